"""Augmentation: left stays left, boxes stay on their lesions, and text and labels change with a mirror image."""

from __future__ import annotations

import numpy as np
import pytest

from knowledge.ontology import Certainty
from vlm.data.augment import augment, cut_out, mix
from vlm.data.mirror import can_be_mirrored, mirrored, swap_sides
from vlm.types import Box, Finding, Modality, Study, StudyImage, View


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A nodule in the left upper lobe.", "A nodule in the right upper lobe."),
        ("Right-sided, RUL; LEFT base, leftward.", "Left-sided, LUL; RIGHT base, rightward."),
        ("left_kidney", "right_kidney"),
        ("The cleft and the copyright are unchanged; bright.", "The cleft and the copyright are unchanged; bright."),
    ],
)
def test_words_change_sides(text: str, expected: str) -> None:
    assert swap_sides(text) == expected
    assert swap_sides(expected) == text


def study(text: str, view: View = View.AXIAL) -> Study:
    pixels = np.zeros((40, 60), np.float32)
    pixels[10:20, 5:15] = 1  # at the viewer's left: the patient's right
    return Study(
        "s", [StudyImage(pixels=pixels, view=view, modality=Modality.CT)], {"indication": "Right pain."},
        (Finding("nodule", Certainty.PRESENT, side="right", boxes=(0,)),), (Box((5, 10, 15, 20), "nodule"),),
        {"findings": text},
    )  # fmt: skip


def test_a_mirror_image_changes_pixels_boxes_sides_and_words_together() -> None:
    before = study("A nodule in the right lung. The left lung is clear.")
    after = mirrored(before)
    pixels = after.images[0].pixels
    assert pixels is not None
    (box,) = after.boxes or ()
    assert box.xyxy == (45, 10, 55, 20)
    assert pixels[10:20, 45:55].all()
    assert pixels.sum() == 100
    assert (after.findings or ())[0].side == "left"
    assert after.report == {"findings": "A nodule in the left lung. The right lung is clear."}
    assert after.clinical == {"indication": "Left pain."}
    assert (after.patient, after.id) == ("s", "s/mirrored"), "the two never part"
    assert mirrored(after).report == before.report


@pytest.mark.parametrize(
    "text", ["The right atrium is large.", "Right middle lobe nodule.", "Levoscoliosis.", "The aortic arch."]
)
def test_what_has_one_side_by_nature_is_not_mirrored(text: str) -> None:
    assert not can_be_mirrored(study(text))
    assert can_be_mirrored(study("A nodule in the right lung."))
    assert not can_be_mirrored(study("A nodule.", View.LATERAL))


def test_left_stays_left() -> None:
    """The brightest corner of a picture stays in its quarter whatever is drawn."""
    marked = np.full((2, 96, 96), 30, np.uint8)
    marked[:, 12:26, 12:26] = 250
    rng = np.random.default_rng(0)
    for _ in range(150):
        out, _ = augment(marked, np.zeros((0, 4), np.float32), rng, cuts=1.0)
        y, x = np.nonzero(out[0] > out[0].max() - 30)
        assert x.mean() < 48
        assert y.mean() < 48
        assert out.shape == marked.shape


def test_no_box_is_pushed_out_of_the_picture() -> None:
    box = np.array([[0, 0, 10, 10], [86, 86, 96, 96]], np.float32)
    for seed in range(200):
        _, found = augment(np.zeros((96, 96), np.uint8), box, np.random.default_rng(seed))
        sides = found[:, 2:] - found[:, :2]
        assert (sides > 6).all(), seed


def test_cut_out_hides_little_of_a_box_and_of_the_picture() -> None:
    box = np.array([[20.0, 20, 30, 30], [50, 50, 90, 90]], np.float32)
    lost = []
    for seed in range(200):
        out = cut_out(np.full((96, 96), 255, np.uint8), box, np.random.default_rng(seed)) == 0
        assert out[20:30, 20:30].mean() <= 0.2
        assert out[50:90, 50:90].mean() <= 0.2
        lost.append(out.mean())
    assert np.mean(lost) > 0
    assert max(lost) <= 0.05


def test_mixing_keeps_most_of_the_own_picture() -> None:
    own, other = np.full((8, 8), 200, np.uint8), np.zeros((8, 8), np.uint8)
    for seed in range(20):
        assert mix(own, other, np.random.default_rng(seed)).min() >= 140
