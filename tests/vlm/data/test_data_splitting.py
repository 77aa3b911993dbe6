"""Splits that are written into a list: by patient, seeded, stable while the list grows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlm.cli.data import app
from vlm.data.layouts.tabular import read_list
from vlm.data.splitting import draw_splits, split_list
from vlm.types import InputError


def lay_list(folder: Path, patients: int, extra: str = "") -> Path:
    """Two studies a patient; the cell of a report holds a comma and a line break."""
    rows = ["id,image,patient,findings,note"]
    for number in range(2 * patients):
        (folder / f"{number}.png").write_bytes(b"")
        rows.append(f's{number},{number}.png,p{number // 2},"Clear,\nnormal.",kept {number}')
    path = folder / "studies.csv"
    path.write_text("\n".join(rows) + "\n" + extra)
    return path


def test_patients_stay_together_and_columns_stay(tmp_path: Path) -> None:
    path = lay_list(tmp_path, 20)
    counts = split_list(path, tmp_path / "cut.csv", {"val": 0.15, "test": 0.1})
    assert counts == {"train": 30, "val": 6, "test": 4}
    studies = read_list(tmp_path / "cut.csv")
    by_patient: dict[str | None, set[str | None]] = {}
    for study in studies:
        by_patient.setdefault(study.patient, set()).add(study.split)
    assert all(len(splits) == 1 for splits in by_patient.values())
    with (tmp_path / "cut.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["note"] for row in rows] == [f"kept {n}" for n in range(40)]
    assert rows[0]["findings"] == "Clear,\nnormal."


def test_a_list_that_grows_keeps_its_splits(tmp_path: Path) -> None:
    path = lay_list(tmp_path, 20)
    split_list(path, path, {"val": 0.2})
    before = {s.id: s.split for s in read_list(path)}
    with path.open("a") as stream:
        for number in range(40, 60):
            stream.write(f"s{number},0.png,p{number // 2},Clear.,new,\n")
    assert split_list(path, path, {"val": 0.2}, seed=9) == {"train": 48, "val": 12}
    after = {s.id: s.split for s in read_list(path)}
    assert {k: after[k] for k in before} == before


def test_the_draw_depends_on_the_seed_alone() -> None:
    names = [f"p{n}" for n in range(50)]
    first = draw_splits(names, {}, {"val": 0.2}, 0)
    assert draw_splits(names[::-1], {}, {"val": 0.2}, 0) == first
    assert draw_splits(names, {}, {"val": 0.2}, 1) != first


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    records = [{"id": f"s{n}", "images": [{"file": "a.png"}], "report": {"findings": "Clear."}} for n in range(10)]
    path = tmp_path / "studies.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    found = CliRunner().invoke(app, ["split", str(tmp_path), "--val", "0.2"])
    assert found.exit_code == 0, found.output
    assert [s.split for s in read_list(tmp_path / "studies-split.jsonl")].count("val") == 2
    assert "2 val" in found.output


@pytest.mark.parametrize(
    "shares, message",
    [
        ({"val": 0.0}, "between 0 and 1"),
        ({"val": 0.6, "test": 0.5}, "leave some for training"),
        ({"val": 0.01}, "has 20 patients, too few for val"),
    ],
)
def test_shares_that_cannot_be(tmp_path: Path, shares: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_list(lay_list(tmp_path, 20), tmp_path / "cut.csv", shares)
    assert not (tmp_path / "cut.csv").exists()


def test_elsewhere_and_two_splits_are_refused(tmp_path: Path) -> None:
    path = lay_list(tmp_path, 3)
    with pytest.raises(InputError, match="must lie beside"):
        split_list(path, tmp_path / "other" / "cut.csv", {"val": 0.3})
    path.write_text("id,image,patient,split\na,0.png,p,train\nb,1.png,p,val\n")
    with pytest.raises(InputError, match="study 'b' is in 'train' and in 'val'"):
        split_list(path, tmp_path / "cut.csv", {"val": 0.3})
