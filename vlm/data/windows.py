"""Windows: which range of values becomes black to white.

A CT slice holds about 4,000 grey levels and a screen shows 256: a window (centre, width) in Hounsfield units says
which part is seen. The model's own window is wide enough to hold lung and soft tissue at once.
"""

from __future__ import annotations

import math

import numpy as np

from vlm.types import InputError

MODEL_CT_WINDOW = (-300.0, 1400.0)
"""Centre and width for CT when the user asks for none: -1000 (air) to +400 HU (bone; contrast is still told apart)."""

WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (40.0, 400.0),
    "abdomen": (50.0, 400.0),
    "liver": (60.0, 160.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "stroke": (35.0, 30.0),
    "kidney": (40.0, 350.0),
    "wide": MODEL_CT_WINDOW,
}


def window_of(name: tuple[float, float] | str) -> tuple[float, float]:
    """Centre and width of a window given by name, by "CENTRE/WIDTH", or as a pair.

    Raises:
        InputError: unknown name, or a width that is not positive.
    """
    if isinstance(name, str):
        if name in WINDOWS:
            return WINDOWS[name]
        try:
            centre, width = (float(x) for x in name.split("/"))
        except ValueError:
            raise InputError(
                f"window {name!r} is not known; choose {', '.join(WINDOWS)}, or give CENTRE/WIDTH such as 40/400"
            ) from None
    else:
        centre, width = (float(x) for x in name)
    if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
        raise InputError(f"window {name!r}: centre and width must be finite and the width above 0")
    return centre, width


def apply_window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """Maps values linearly so that centre - width/2 becomes 0 and centre + width/2 becomes 1, clipped.

    Args:
        values: any shape, any real type.
        centre, width: in the unit of the values; width > 0.

    Returns:
        float32 in [0, 1], same shape.
    """
    scaled = np.multiply(values, np.float32(1.0 / width), dtype=np.float32)
    scaled += np.float32(0.5 - centre / width)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def apply_range(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps low to 0 and high to 1, clipped; a range that is empty gives zeros."""
    if not high > low:
        return np.zeros(values.shape, np.float32)
    return apply_window(values, (low + high) / 2, high - low)
