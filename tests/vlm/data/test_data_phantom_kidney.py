"""The kidney phantom: the same bytes, sides, sizes, volumes and priors; and reports that say what was drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from knowledge.extraction import ReportReader
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty
from vlm.cli.data import app
from vlm.data.images import load_image
from vlm.data.phantoms import kidney_ct
from vlm.data.phantoms.kidney_patient import KINDS, KidneyLesion, make_abdomen, make_lesion
from vlm.data.phantoms.writing import write_kind
from vlm.data.sources import read_studies
from vlm.types import InputError


def drawn(lesion: KidneyLesion) -> tuple[kidney_ct.Abdomen, kidney_ct.KidneySlice]:
    from dataclasses import replace

    patient = replace(make_abdomen(np.random.default_rng(3)), lesions=(lesion,))
    return patient, kidney_ct.section(patient, kidney_ct.place(patient, lesion)[2], 0, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_lesion_lies_on_its_side_and_is_as_large_as_it_says(kind: str, side: str) -> None:
    lesion = make_lesion(kind, side, np.random.default_rng(5), False)  # type: ignore[arg-type]
    _, found = drawn(lesion)
    box = found.boxes[0]
    middle = (box.xyxy[0] + box.xyxy[2]) / 2
    assert (middle > kidney_ct.SIZE / 2) == (side == "left")  # radiological display
    if kind != "hydronephrosis":  # its box holds the calyces too
        size = max(box.xyxy[2] - box.xyxy[0], box.xyxy[3] - box.xyxy[1]) * found.spacing_mm[0]
        assert size == pytest.approx(lesion.size_mm, rel=0.12, abs=1.0)
    y, x = int((box.xyxy[1] + box.xyxy[3]) / 2), int(middle)
    value = float(np.median(found.hu[y - 1 : y + 2, x - 1 : x + 2]))
    assert {"kidney_cyst": -30 < value < 40, "kidney_stone": value > 250, "kidney_tumour": 5 < value < 90,
            "hydronephrosis": value < 60}[kind]  # fmt: skip


def test_a_larger_pelvis_is_a_worse_hydronephrosis() -> None:
    base = make_lesion("hydronephrosis", "left", np.random.default_rng(5), False)
    widths = []
    for size, word in ((15, "mild"), (25, "moderate"), (38, "severe")):
        lesion = base.sized(size)
        _, found = drawn(lesion)
        assert lesion.severity == word
        widths.append(found.boxes[0].xyxy[3] - found.boxes[0].xyxy[1])
    assert widths == sorted(widths)


def test_the_reader_finds_what_was_drawn() -> None:
    graph = KnowledgeGraph.load()
    reader = ReportReader(graph)
    for index in range(60):
        study = kidney_ct.kidney_study(4, index)
        assert study.report is not None
        mentions = reader.read(study.report["findings"])
        for finding in study.findings or ():
            if finding.label == "normal":
                continue
            said = {m.certainty for m in mentions if m.concept == finding.label}
            assert said == {finding.certainty}, (finding, study.report)
            if finding.certainty == Certainty.PRESENT and finding.side != "bilateral":
                sides = {m.side for m in mentions if m.concept == finding.label and m.side}
                assert sides == {finding.side}, study.report


def test_files_hold_the_same_bytes_and_pixels(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["phantom", "--kind", "kidney-ct", "--n", "3", "--out", str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    write_kind("kidney-ct", tmp_path / "b", 3, 0)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["kidney-0-00000.dcm", "kidney-0-00001.dcm", "kidney-0-00002.dcm", "studies.jsonl"]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    study = read_studies(tmp_path / "a")[1]
    memory = kidney_ct.kidney_study(0, 1)
    assert study.report == memory.report
    assert study.boxes == memory.boxes
    pixels = load_image(study.images[0]).pixels
    assert pixels is not None
    assert memory.images[0].pixels is not None
    np.testing.assert_allclose(pixels, memory.images[0].pixels, atol=1e-5)


def test_a_volume_keeps_left_and_right_and_names_slices(tmp_path: Path) -> None:
    studies = write_kind("kidney-ct", tmp_path, 6, 2, volume=True)
    write_kind("kidney-ct", tmp_path / "again", 6, 2, volume=True)
    name = f"{studies[0].id}.nii.gz"
    assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    read = read_studies(tmp_path / "studies.jsonl")
    boxed = next(s for s in read if s.boxes)
    assert boxed.boxes is not None
    number = boxed.boxes[0].image
    index = [s.id for s in studies].index(boxed.id)
    hu, spacing, _ = kidney_ct.kidney_volume(2, index)
    image = load_image(boxed.images[number])
    assert image.spacing_mm == pytest.approx(spacing[1:], rel=1e-4)
    assert image.pixels is not None
    expected = kidney_ct.apply_window(hu[number], *kidney_ct.MODEL_CT_WINDOW)
    np.testing.assert_allclose(image.pixels, expected, atol=1e-5)


def test_priors_say_what_changed() -> None:
    kinds = set()
    for index in range(30):
        before, after = kidney_ct.kidney_pair(7, index)
        assert before.id != after.id
        assert before.patient == after.patient
        assert before.report is not None
        assert after.report is not None
        assert after.clinical["prior"] == before.report["findings"]
        text = after.report["findings"]
        had, has = ({b.label for b in s.boxes or ()} for s in (before, after))
        for word, gone in (("is new since", False), ("has resolved", True)):
            if word in text:
                kinds.add(word)
                assert (had - has if gone else has - had) or len(before.boxes or ()) != len(after.boxes or ())
        kinds |= {word for word in ("increased from", "decreased from", "is unchanged") if word in text}
    assert kinds == {"is new since", "has resolved", "increased from", "decreased from", "is unchanged"}


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"kind": "knee"}, "choose chest-ct, kidney-ct, chest-xray"),
        ({"kind": "chest-ct", "volume": True}, "--volume: whole volumes are drawn of kidney-ct"),
        ({"kind": "chest-ct", "priors": True}, "--priors: a chest-ct slice has no study before it"),
    ):
        with pytest.raises(InputError, match=message):
            write_kind(out=tmp_path / "x", n=1, seed=0, **options)  # type: ignore[arg-type]
