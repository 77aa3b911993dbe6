"""`vlm data select` on drawn studies: a list that can be filled in and trained on, and bad input in one line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from vlm.cli.main import main
from vlm.data.layouts.tabular import write_studies
from vlm.data.sources import read_studies


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["data", *arguments])
    return int(stopped.value.code or 0)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Eight drawn studies as a list, with labels and reports that must not be looked at."""
    from tiny import draw_study

    (tmp_path / "images").mkdir()
    studies = [draw_study(tmp_path / "images", number, lesion=number % 2 == 0) for number in range(8)]
    write_studies(tmp_path / "pool.jsonl", studies)
    write_studies(tmp_path / "labelled.jsonl", studies[:2])
    return tmp_path / "pool.jsonl"


@pytest.mark.parametrize("strategy", ["uncertainty", "diversity"])
def test_a_list_is_chosen_filled_in_and_valid(
    strategy: str, pool: Path, tiny_checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = pool.parent / "next.csv"
    arguments = ["select", str(pool), "--n", "3", "--strategy", strategy, "--out", str(out), "--labelled",
                 str(pool.parent / "labelled.jsonl"), "--checkpoint", str(tiny_checkpoint_folder)]  # fmt: skip
    assert run(*arguments) == 0
    said = capsys.readouterr().out
    assert f"3 of 6 studies (2 labelled ones left out) by {strategy}" in said.replace("\n", " ")
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert not {"study0", "study1"} & {row["id"] for row in rows}
    assert [p.name for p in pool.parent.iterdir() if p.name.startswith(".")] == []
    assert run(*arguments) == 2
    assert "is there already" in capsys.readouterr().err
    before = out.read_bytes()
    assert run(*arguments, "--overwrite") == 0
    assert out.read_bytes() == before
    for row in rows:
        row["findings"] = "The lungs are clear."
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert run("validate", str(out), "--no-html", "--workers", "1") == 0
    assert all(s.report == {"findings": "The lungs are clear."} for s in read_studies(out))


def test_wrong_input_is_one_line_and_exit_code_2(
    pool: Path, tiny_checkpoint_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, folder = str(pool.parent / "next.csv"), str(tiny_checkpoint_folder)
    (pool.parent / "empty").mkdir()
    cases = {
        ("--strategy", "uncertanty"): "--strategy 'uncertanty' is not known; did you mean 'uncertainty'?",
        ("--n", "9"): "--n 9: the pool has 8 studies; ask for at most 8",
        ("--labelled", str(pool.parent / "none.csv")): "none.csv",
        ("--strategy", "disagreement"): "without drop-out agrees with itself",
        ("--strategy", "disagreement", "--checkpoint", folder): "share one image half",
        ("--strategy", "diversity", "--checkpoint", folder): "--strategy diversity: compares the features of one",
        ("--checkpoint", folder, "--adapter", folder): "give --checkpoint once",
        ("--split", "spring"): "has no study in split 'spring'",
    }
    for arguments, message in cases.items():
        wanted = () if "--n" in arguments else ("--n", "2")
        assert run("select", str(pool), "--out", out, "--checkpoint", folder, *wanted, *arguments) == 2, arguments
        said = capfd.readouterr().err
        assert message in said, said
        assert len(said.strip().splitlines()) == 1, said
    assert run("select", str(pool.parent / "empty"), "--out", out, "--n", "2") == 2
    assert not Path(out).exists()
