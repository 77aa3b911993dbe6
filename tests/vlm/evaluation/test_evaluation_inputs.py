"""Reading and joining report files, and the line that each kind of wrong input gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm.evaluation.inputs import Reports, join, read_reports, uid_of
from vlm.types import InputError


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def reports(name: str = "p", **texts: str) -> Reports:
    return Reports(Path(f"{name}.jsonl"), dict(texts), {key: {} for key in texts})


def test_reads_every_layout_to_the_same_reports(tmp_path: Path) -> None:
    expected = {"a": "the heart, is normal", "b": "clear lungs"}
    rows = [{"id": key, "text": text} for key, text in expected.items()]
    jsonl = lines(tmp_path / "a.jsonl", *rows)
    table = tmp_path / "a.csv"
    table.write_text('study_id,report\na,"the heart, is normal"\nb,clear lungs\n')
    mapping = tmp_path / "a.json"
    mapping.write_text(json.dumps(expected))
    listed = tmp_path / "b.json"
    listed.write_text(json.dumps(rows))
    r2gen = tmp_path / "annotation.json"
    part = [{"id": key, "report": text, "image_path": [], "split": "val"} for key, text in expected.items()]
    r2gen.write_text(json.dumps({"train": [], "val": part}))
    for path, split in ((jsonl, None), (table, None), (mapping, None), (listed, None), (r2gen, "val")):
        assert read_reports(path, split=split).texts == expected, path


def test_reads_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"uid": [1, 2], "generated": ["one", None]}), tmp_path / "a.parquet")
    assert read_reports(tmp_path / "a.parquet").texts == {"1": "one", "2": ""}


def test_reads_our_reports_and_study_files(tmp_path: Path) -> None:
    ours = lines(
        tmp_path / "reports.jsonl",
        {
            "id": "s1",
            "sections": {"findings": "f", "impression": "i"},
            "text": "f",
            "findings": [{"label": "mass", "probability": 0.1}],
        },
    )
    truth = lines(
        tmp_path / "studies.jsonl",
        {"id": "s1", "images": [], "report": {"findings": "f", "impression": "i"}, "findings": []},
    )
    assert read_reports(ours).texts == read_reports(truth).texts == {"s1": "f"}


def test_columns_can_be_given(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"name": "a", "words": "x y", "text": "no"})
    assert read_reports(path, "name", "words").texts == {"a": "x y"}


def test_open_i_layouts_join_by_uid(openi: Path) -> None:
    annotation = read_reports(openi / "r2gen_annotation.json", split="val")
    table = read_reports(openi / "indiana_reports.csv")
    assert uid_of("CXR2384_IM-0942") == "2384"
    joined = join({"csv": table}, annotation, allow_missing=True)
    assert len(joined.ids) == 296
    assert any("uid" in note for note in joined.notes)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "a.jsonl", "is empty"),
        ("\n\n", "a.jsonl", "holds no reports"),
        ('{"id": 1, "text": "a"}\n{"id": 2, "text": \n', "a.jsonl", "line 2: not valid JSON"),
        ('{"id": 1, "text": "a"}\n[1]\n', "a.jsonl", "line 2: a list"),
        ('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n', "a.jsonl", "1 ids are there more than once: 1"),
        ('{"id": 1, "words": "a"}\n', "a.jsonl", "found no text column"),
        ('{"key2": 1, "text": "a"}\n', "a.jsonl", "found no id column"),
        ('{"id": "", "text": "a"}\n', "a.jsonl", "'id' is empty"),
        ('{"id": 1, "text": 7}\n', "a.jsonl", "found no text column"),
        ("id,text\n1,a,b\n", "a.csv", "line 2: more fields"),
        ('{"train": [], "val": []}', "a.json", "choose one with --split"),
        ("[1, 2", "a.json", "not valid JSON"),
        ("hello", "a.parquet", "not a readable Parquet file"),
        ("hello", "a.docx", "cannot read .docx"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path: Path, content: str, name: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError) as error:
        read_reports(path)
    assert message in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_absent_file_and_text_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        read_reports(tmp_path / "none.jsonl")
    path = tmp_path / "latin.csv"
    path.write_bytes("id,text\n1,caf\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_reports(path)


def test_a_part_that_the_file_lacks(tmp_path: Path) -> None:
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps({"train": [{"id": "a", "report": "x"}], "val": []}))
    with pytest.raises(InputError, match="no part 'test'; it has train, val"):
        read_reports(path, split="test")


def test_missing_and_extra_ids_list_the_first_ten() -> None:
    references = reports("r", **{f"s{i:02d}": "text" for i in range(15)})
    with pytest.raises(InputError, match=r"14 references have no prediction: s01, .*s10, and 4 more.*--allow-missing"):
        join({"p": reports(s00="x")}, references)
    with pytest.raises(InputError, match="1 predictions have no reference: zz"):
        join({"p": reports(**dict.fromkeys(references.texts, "x"), zz="x")}, references)
    joined = join({"p": reports(s00="x", zz="y")}, references, allow_missing=True)
    assert joined.ids == ["s00"]
    assert len(joined.notes) == 2


def test_no_common_id() -> None:
    with pytest.raises(InputError, match="share no id: a against b"):
        join({"p": reports(a="x")}, reports("r", b="x"))


def test_empty_reports() -> None:
    with pytest.raises(InputError, match="1 references are empty: b"):
        join({"p": reports(a="x", b="y")}, reports("r", a="x", b=""))
    with pytest.raises(InputError, match="every report is empty"):
        join({"p": reports(a="", b="")}, reports("r", a="x", b="y"))
    joined = join({"p": reports(a="", b="y")}, reports("r", a="x", b="y"))
    assert "1 reports are empty and score 0: a" in joined.notes[0]


def test_a_very_long_report_passes_the_csv_reader_and_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\na," + "word " * 100_000 + "\nb,short\n")
    joined = join({"p": read_reports(path)}, reports("r", a="x", b="y"))
    assert "1 reports are longer than 5,000 words: a" in joined.notes[0]
