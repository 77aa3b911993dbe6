"""What the channels of the model's input show: grey, several CT windows at once, or pseudo-colour.

Windows. A CT in Hounsfield units is read once over the range that all windows need, and each window is cut out of it.
Anything else (an X-ray, a picture without units, an image whose window the user chose) is grey and stands in every
channel.

Pseudo-colour of grey radiographs (Yuan, Lu et al. 2022, "Chest X-ray disease diagnosis method based on YOLO model and
pseudo color conversion"). They turn 256 greys into colours so that small differences become large ones in some channel.
The paper's abstract gives no transfer functions; these are the piecewise linear ones of the textbook (Gonzalez and
Woods, grey level to colour transformation), with g the grey level from 0 to 1:

    red    0 up to g = 1/2, rises to 1 at g = 3/4, then 1
    green  rises to 1 at g = 1/4, 1 up to g = 3/4, then falls to 0
    blue   1 up to g = 1/4, falls to 0 at g = 1/2, then 0

It is applied to X-rays alone, after augmentation. No grey is lost: the three together tell every level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlm.data.images import load_image
from vlm.data.windows import MODEL_CT_WINDOW, apply_window
from vlm.types import Modality, StudyImage

Window = tuple[float, float]


def load_channels(
    image: StudyImage, windows: Sequence[Window] = (), least: int | None = None
) -> tuple[StudyImage, list[np.ndarray]]:
    """Reads an image as the channels that windows ask for.

    Args:
        image: as `load_image` takes it.
        windows: (centre, width) in HU, in the order of the channels; () for grey.
        least: pixels of the longer side that are enough.

    Returns:
        The image with its grey pixels, and (H, W) float32 in [0, 1]: one for grey, one a window for CT.

    Raises:
        InputError: as `load_image`.
    """
    made = image.pixels is not None and image.window in (None, MODEL_CT_WINDOW)
    if not windows or (image.window is not None and not made):
        read = load_image(image, least=least)
        assert read.pixels is not None
        return read, [read.pixels]
    whole = hull(windows)
    read = load_image(image, whole, least)
    assert read.pixels is not None
    if made:  # in memory, with the model's window: what it cuts off is gone
        units = MODEL_CT_WINDOW if image.modality is Modality.CT else None
    else:
        units = whole if read.window == whole else None
    if units is None:
        return read, [read.pixels]
    values = read.pixels * np.float32(units[1]) + np.float32(units[0] - units[1] / 2)
    return read, [apply_window(values, *window) for window in windows]


def hull(windows: Sequence[Window]) -> Window:
    """The smallest window that holds all of these."""
    low = min(centre - width / 2 for centre, width in windows)
    high = max(centre + width / 2 for centre, width in windows)
    return (low + high) / 2, high - low


def colour_table() -> np.ndarray:
    """(3, 256) uint8: red, green and blue of each grey level."""
    grey = np.linspace(0, 1, 256)
    red = np.interp(grey, [0.5, 0.75], [0, 1])
    green = np.interp(grey, [0, 0.25, 0.75, 1], [0, 1, 1, 0])
    blue = np.interp(grey, [0.25, 0.5], [1, 0])
    return np.rint(np.stack([red, green, blue]) * 255).astype(np.uint8)


_COLOURS = colour_table()


def as_channels(pixels: np.ndarray, count: int, colour: bool) -> np.ndarray:
    """An image as the channels of a batch.

    Args:
        pixels: (S, S) grey or (C, S, S), uint8.
        count: channels of the model's input. colour: whether grey becomes pseudo-colour (count is 3).

    Returns:
        (count, S, S) uint8.
    """
    if pixels.ndim == 3:
        return pixels
    if colour:
        return _COLOURS[:, pixels]
    return np.broadcast_to(pixels, (count, *pixels.shape))
