"""Studies that show nothing: readable as files would be, seeded, and never called normal."""

from __future__ import annotations

import numpy as np

from vlm.data.blank import blank_study
from vlm.data.images import check_image


def test_the_same_numbers_give_the_same_study() -> None:
    first, second = blank_study(3, 7), blank_study(3, 7)
    assert first.clinical == second.clinical
    for a, b in zip(first.images, second.images, strict=True):
        assert a.pixels is not None
        assert b.pixels is not None
        assert np.array_equal(a.pixels, b.pixels)


def test_nothing_is_shown_and_nothing_is_claimed() -> None:
    for index in range(40):
        study = blank_study(0, index)
        assert study.findings is None
        assert "normal" not in " ".join((study.report or {}).values()).lower()
        for image in study.images:
            assert image.pixels is not None
            check_image(image.pixels, study.id)
            # No structure: rows differ by a gradient and noise alone.
            columns = image.pixels.mean(0)
            assert columns.std() < 0.03
