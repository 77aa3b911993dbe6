"""Letterboxing moves boxes exactly there and back."""

from __future__ import annotations

import numpy as np
import pytest

from vlm.data.transforms import letterbox


def test_worked_example_of_the_docstring() -> None:
    square, placement = letterbox(np.ones((100, 200), np.float32), 50)
    assert square.shape == (50, 50)
    np.testing.assert_allclose(placement.to_model(np.array([[40, 40, 80, 80]])), [[10, 22, 20, 32]])
    assert square[:12].max() == 0
    assert square[12:37].min() == 1
    assert square[37:].max() == 0


@pytest.mark.parametrize("height, width", [(37, 211), (512, 512), (9, 1000), (300, 64)])
def test_boxes_come_back(height: int, width: int) -> None:
    _, placement = letterbox(np.zeros((height, width), np.float32), 224)
    boxes = np.float32([[0, 0, width, height], [1.5, 2, width / 2, height / 2]])
    np.testing.assert_allclose(placement.to_image(placement.to_model(boxes)), boxes, atol=1e-3)


def test_a_bright_square_lies_where_its_box_says() -> None:
    pixels = np.zeros((300, 500), np.float32)
    pixels[100:180, 200:320] = 1
    square, placement = letterbox(pixels, 250)
    x1, y1, x2, y2 = placement.to_model(np.array([[200, 100, 320, 180]]))[0].round().astype(int)
    assert square[y1:y2, x1:x2].min() == 1
    assert square.sum() == pytest.approx((x2 - x1) * (y2 - y1))
