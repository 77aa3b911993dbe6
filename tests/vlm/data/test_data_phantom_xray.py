"""The radiograph phantom: one volume in two views, boxes and words from the numbers that drew it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread

from knowledge.extraction import ReportReader, label_mentions
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty
from vlm.data.images import read_image
from vlm.data.phantoms.chest_findings import Cardiomegaly, Consolidation, Effusion, Nodule, Pneumothorax, place
from vlm.data.phantoms.chest_xray import (
    amount_of,
    body_of,
    change_of,
    chest_xray_pair,
    chest_xray_study,
    render,
    study_of,
)
from vlm.data.phantoms.chest_xray_dicom import write_film
from vlm.types import InputError, Modality, StudyImage, View


@pytest.fixture(scope="module")
def reader() -> ReportReader:
    return ReportReader(KnowledgeGraph.load())


def _study(findings: list, seed: int = 5, devices: list | None = None):
    return study_of(render(seed, 0, findings, devices or []), "x", seed, 0)


def _box(study, label: str, image: int):
    return next(b.xyxy for b in study.boxes if b.label == label and b.image == image)


def _nodule(size: float = 24.0, lobe: str = "left upper lobe") -> Nodule:
    body = body_of(5, 0, [])
    centre = place(body, lobe, size / 2, np.random.default_rng(1))
    return Nodule("left" if lobe.startswith("left") else "right", lobe, centre, size, False)


def test_same_numbers_same_bytes_other_numbers_other_bytes(tmp_path: Path) -> None:
    first, second = chest_xray_study(3, 4), chest_xray_study(3, 4)
    assert first.report == second.report
    assert first.findings == second.findings
    assert first.boxes == second.boxes
    for number, (a, b) in enumerate(zip(first.images, second.images, strict=True)):
        assert np.array_equal(a.pixels, b.pixels)
        for name, image in (("a", a), ("b", b)):
            write_film(tmp_path / f"{name}{number}.dcm", image, 3, 4)
        assert (tmp_path / f"a{number}.dcm").read_bytes() == (tmp_path / f"b{number}.dcm").read_bytes()
    assert not np.array_equal(first.images[0].pixels, chest_xray_study(3, 5).images[0].pixels)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_effusion_lies_on_its_side_in_picture_box_and_words(side) -> None:
    ill, well = (render(5, 0, f, []) for f in ([Effusion(side, 0.5, 30.0)], []))
    study = study_of(ill, "x", 5, 0)
    # What the fluid adds is white, low and on the patient's side: the left is at the viewer's right.
    half = ill.views[0].pixels.shape[1] // 2
    added = np.clip(ill.views[0].pixels.astype(float) - well.views[0].pixels, 0, None)
    low = added[added.shape[0] // 3 :]
    left, right = low[:, half:].sum(), low[:, :half].sum()
    assert (left > 2.0 * right) if side == "left" else (right > 2.0 * left)
    x1, _, x2, _ = _box(study, "pleural_effusion", 0)
    assert (x1 >= half - 20) if side == "left" else (x2 <= half + 20)
    assert side in study.report["findings"]
    assert ("right" if side == "left" else "left") not in study.report["findings"]
    assert next(f for f in study.findings if f.label == "pleural_effusion").side == side


@pytest.mark.parametrize("kind", ["nodule", "consolidation"])
def test_both_views_show_a_lesion_at_the_same_height(kind: str) -> None:
    nodule = _nodule()
    lesion = nodule if kind == "nodule" else Consolidation("left", nodule.lobe, nodule.centre, (30, 32, 36), 0.9)
    study = _study([lesion])
    frontal, lateral = (_box(study, lesion.label, i) for i in (0, 1))
    assert abs((frontal[1] + frontal[3]) - (lateral[1] + lateral[3])) / 2 < 8
    assert abs((frontal[3] - frontal[1]) - (lateral[3] - lateral[1])) < 0.25 * (frontal[3] - frontal[1])
    # The picture itself is whiter there than without the lesion, in both views.
    ill, well = render(5, 0, [lesion], []), render(5, 0, [], [])
    for number, box in enumerate((frontal, lateral)):
        x1, y1, x2, y2 = (int(v) for v in box)
        more = ill.views[number].pixels.astype(float) - well.views[number].pixels
        assert more[y1:y2, x1:x2].mean() > np.median(more) + 50


def test_a_nodule_is_as_wide_as_the_report_says() -> None:
    nodule = _nodule(28.0)
    study = _study([nodule])
    x1, _, x2, _ = _box(study, "nodule", 0)
    assert (x2 - x1) * study.images[0].spacing_mm[1] == pytest.approx(28.0, rel=0.15)
    assert "28 mm" in study.report["findings"]
    assert "28 mm" in study.report["impression"]


@pytest.mark.parametrize(
    ("small", "large", "words"),
    [
        (Effusion("left", 0.2, 30.0), Effusion("left", 0.6, 30.0), ("small", "large")),
        (Pneumothorax("right", 20.0), Pneumothorax("right", 90.0), ("small", "large")),
        (_nodule(10), _nodule(25), ("10 mm", "25 mm")),
        (Cardiomegaly(0.53), Cardiomegaly(0.66), ("mild", "severe")),
    ],
)
def test_more_of_it_is_a_larger_box_and_a_stronger_word(small, large, words: tuple[str, str]) -> None:
    areas = []
    for finding, word in zip((small, large), words, strict=True):
        study = _study([finding])
        x1, y1, x2, y2 = _box(study, finding.label, 0)
        areas.append((x2 - x1) * (y2 - y1))
        assert word in study.report["findings"].lower()
    # Free air lies along the whole wall even where there is little: its box grows less than its width.
    assert areas[1] > (1.05 if isinstance(large, Pneumothorax) else 1.15) * areas[0]


@pytest.mark.parametrize("ratio", [0.53, 0.60, 0.67])
def test_the_cardiothoracic_ratio_is_that_of_the_drawn_heart(ratio: float) -> None:
    finding = Cardiomegaly(ratio)
    study = _study([finding])
    x1, _, x2, _ = _box(study, "cardiomegaly", 0)
    body = body_of(5, 0, [finding])
    chest = 2 * float(body.wall(np.linspace(0.3, 1.0, 30) * body.height)[0].max())
    assert (x2 - x1) * study.images[0].spacing_mm[1] / chest == pytest.approx(ratio, abs=0.015)
    assert f"{ratio:.2f}" in study.report["findings"]


@pytest.mark.parametrize("ratio", [0.56, 0.66])
def test_the_ratio_measured_in_the_film_agrees(ratio: float) -> None:
    """The heart's borders in the picture: where it is whiter than the same chest with a small heart."""
    large, small = (render(5, 0, [Cardiomegaly(r)], []).views[0] for r in (ratio, 0.40))
    body = body_of(5, 0, [Cardiomegaly(ratio)])
    gain = cv2.GaussianBlur(large.pixels.astype(np.float32) - small.pixels, (0, 0), 2)
    first, last = (int((z + 0.19 * body.height) / large.spacing) for z in (0.5 * body.height, max(body.tops)))
    gain = gain[first:last] - np.median(gain[first:last])
    seen = np.flatnonzero((gain > 250).sum(0) >= 4)
    chest = 2 * float(body.wall(np.linspace(0.3, 1.0, 30) * body.height)[0].max())
    assert (seen[-1] - seen[0] + 1) * large.spacing / chest == pytest.approx(ratio, abs=0.025)


def test_the_reader_finds_exactly_what_is_labelled(reader: ReportReader) -> None:
    normal = 0
    for index in range(60):
        study = chest_xray_study(9, index)
        mentions = [m for name, text in (study.report or {}).items() for m in reader.read(text, name)]
        said = {k for k, v in label_mentions(mentions, reader.graph).items() if v is not Certainty.ABSENT}
        drawn = {f.label for f in study.findings or () if f.certainty is Certainty.PRESENT}
        assert said == drawn, study.report
        normal += not drawn - {"normal", "device"}
        for box in study.boxes or ():
            high, wide = study.images[box.image].pixels.shape
            assert 0 <= box.xyxy[0] < box.xyxy[2] <= wide
            assert 0 <= box.xyxy[1] < box.xyxy[3] <= high
    assert 18 <= normal <= 42


@pytest.mark.parametrize(
    ("kind", "word"),
    [("new", "new"), ("larger", "increased"), ("smaller", "decreased"), ("resolved", "resol"), ("unchanged", "study")],
)
def test_a_pair_shows_the_change_that_its_report_states(kind, word: str, reader: ReportReader) -> None:
    for index in range(4):
        prior, later = chest_xray_pair(2, index, kind)
        assert prior.id != later.id
        assert prior.patient == later.patient
        assert later.clinical["prior"] == " ".join(prior.report.values())
        assert "prior" not in prior.clinical
        if word in later.report["findings"].lower():
            break
    else:
        raise AssertionError(later.report)
    for study in (prior, later):
        mentions = [m for name, text in study.report.items() for m in reader.read(text, name)]
        said = {k for k, v in label_mentions(mentions, reader.graph).items() if v is not Certainty.ABSENT}
        assert said == {f.label for f in study.findings if f.certainty is Certainty.PRESENT}, study.report


def test_a_change_is_a_change_of_the_number_that_draws() -> None:
    for finding in (Effusion("left", 0.5, 30.0), Pneumothorax("right", 60.0), _nodule(25), Cardiomegaly(0.62)):
        larger, smaller = change_of("larger", finding), change_of("smaller", finding)
        assert amount_of(larger.before) < amount_of(larger.after)
        assert amount_of(smaller.before) > amount_of(smaller.after)
        assert change_of("new", finding).before is None
        assert change_of("resolved", finding).after is None
    assert change_of("larger", Effusion("left", 0.17, 30.0)).kind == "unchanged"  # as little as can be drawn


def test_the_written_film_reads_as_it_was_drawn_and_names_nobody(tmp_path: Path) -> None:
    study = chest_xray_study(1, 2)
    for number, image in enumerate(study.images):
        path = tmp_path / f"{number}.dcm"
        write_film(path, image, 1, 2)
        read = read_image(path)
        assert np.abs(read.pixels - image.pixels).max() < 1e-5
        assert (read.view, read.modality) == (image.view, Modality.XRAY)
        assert read.spacing_mm == pytest.approx(image.spacing_mm, abs=1e-5)
        header = dcmread(path)
        assert not header.PatientName
        assert not header.PatientID
        assert header.BitsStored == 12
        assert header.ViewPosition == ("PA", "LL")[number]
    with pytest.raises(InputError):
        write_film(tmp_path / "x.dcm", StudyImage(view=View.FRONTAL), 1, 2)
