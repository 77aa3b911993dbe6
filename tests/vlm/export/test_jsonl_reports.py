"""reports.jsonl: what is written is read back, line by line, and a killed run is taken up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from export_reports import NODULE, make_report, make_study

from vlm.export.jsonl import GrowingFile, read_reports, read_rows, report_from_dict, report_to_dict, write_rows
from vlm.types import InputError

KEYS = {"id", "sections", "text", "findings", "boxes", "sentences", "images", "unmet"}


def test_a_line_holds_the_agreed_keys() -> None:
    row = report_to_dict(make_report(), make_study())
    assert set(row) == KEYS
    assert row["text"] == f"{NODULE} The heart is enlarged."
    assert row["images"][0] == {"file": None, "view": "frontal", "modality": "xray", "width": 60, "height": 40}
    assert row["findings"][0] == {
        "label": "nodule", "probability": 0.91, "certainty": "present", "side": "right", "boxes": [0],
    }  # fmt: skip


def test_only_the_name_of_a_file_is_kept(tmp_path: Path) -> None:
    study = make_study()
    study.images[0] = replace(study.images[0], path=tmp_path / "folder of somebody" / "pa.png")
    row = report_to_dict(make_report(), study)
    assert row["images"][0]["file"] == "pa.png"
    assert "somebody" not in json.dumps(row)


def test_a_report_comes_back_as_it_was(tmp_path: Path) -> None:
    report = make_report()
    write_rows(tmp_path / "r.jsonl", [report_to_dict(report)])
    (again,) = read_reports(tmp_path / "r.jsonl")
    assert again == replace(report, attention={})


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": "a"}\n[1]\n')
    with pytest.raises(InputError, match=r"line 2: expected an object"):
        list(read_rows(path))
    with pytest.raises(InputError, match="not a line that vlm generate writes"):
        report_from_dict({"id": "a"})


def test_a_growing_file_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with GrowingFile(path) as file:
        file.append({"id": "a"})
        assert path.read_text() == '{"id": "a"}\n', "a line is on disk before the next study begins"
    with path.open("a") as stream:
        stream.write('{"id": "b", "te')
    with GrowingFile(path) as file:
        assert file.done == {"a"}
        file.append({"id": "c"})
    assert [row["id"] for row in read_rows(path)] == ["a", "c"]
    with GrowingFile(path, anew=True) as file:
        assert not file.done


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_rows(path, [{"id": "a"}])
    with pytest.raises(ValueError, match="Out of range"):
        write_rows(path, [{"id": "b"}, {"id": "c", "probability": float("nan")}])
    assert path.read_text() == '{"id": "a"}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]
