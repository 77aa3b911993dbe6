"""How large an image may be: asked of its header before anything is decoded."""

from __future__ import annotations

from pathlib import Path

from vlm.types import InputError

MAX_PIXELS = 100_000_000
MIN_SIDE = 8


def check_size(width: int, height: int, name: Path) -> None:
    """Bounds an image before it is decoded: at most 100 megapixels, at least 8 pixels a side.

    Raises:
        InputError: outside the bounds.
    """
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise InputError(f"{name}: image is {width}x{height} pixels, more than {limit} megapixels; make it smaller")
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{name}: image is {width}x{height} pixels; at least {MIN_SIDE}x{MIN_SIDE} are needed")
