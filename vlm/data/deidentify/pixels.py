"""Text that is burnt into a picture: found by its looks, and blackened.

Letters are small, thin, of one height and of one brightness, in a row; ribs, vessels and edges are not. No character is
read. This finder prefers to blacken too much: short words, bright letters on dark and dark on bright, letters of 5 to
120 pixels (of a side of 1,024). It is no guarantee; the report says how many pictures were touched, and a person looks.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

MAX_SIDE = 1024
MAX_FRAMES = 64
_STEP = 25
_LEVELS = tuple(range(20, 225, _STEP))
_SHARP = (
    0.4  # share of a letter that is left when the threshold rises by a step: text has hard edges, anatomy soft ones
)
_CONTRAST = 34  # grey levels by which most of a letter passes the threshold that cuts it out
_EVEN = 30.0  # grey levels by which letters of a row may differ
_TALLEST = 0.12  # of the image's height


def find_text(grey: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Rectangles of rows of letters.

    Args:
        grey: (H, W) uint8.

    Returns:
        (x1, y1, x2, y2) in pixels, a margin included, joined where they overlap.
    """
    height, width = grey.shape
    scale = min(4.0, MAX_SIDE / max(height, width))
    size = max(8, round(width * scale)), max(8, round(height * scale))
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    rows: list[np.ndarray] = []
    for shown in (small, 255 - small):
        for level in _LEVELS:
            letters, words = _shapes(shown, level)
            rows += [*_rows(letters), *words]
    whole = np.zeros((size[1], size[0]), np.uint8)
    for x1, y1, x2, y2 in np.array(rows, int).reshape(-1, 4):
        pad = max(2, (y2 - y1) // 3)
        whole[max(0, y1 - pad) : y2 + pad, max(0, x1 - 3 * pad) : x2 + 3 * pad] = 1
    count, _, stats, _ = cv2.connectedComponentsWithStats(whole)
    boxes = []
    for x, y, w, h, _ in stats[1:count].tolist():
        boxes.append(
            (
                max(0, int(x / scale)), max(0, int(y / scale)),
                min(width, int(np.ceil((x + w) / scale))), min(height, int(np.ceil((y + h) / scale))),
            )
        )  # fmt: skip
    return boxes


def _shapes(grey: np.ndarray, level: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Shapes above a threshold: (n, 5) x1, y1, x2, y2 and grey of what may be letters, and x1, y1, x2, y2 of what may
    be words, whose letters touch."""
    mask = cv2.threshold(grey, level, 1, cv2.THRESH_BINARY)[1]
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    x, y, w, h, area = (stats[:, k].astype(int) for k in range(5))
    fit = (h >= 5) & (h <= _TALLEST * len(grey)) & (w <= 20 * h) & (area >= 0.12 * w * h) & (area >= 8)
    fit &= (w <= 1.8 * h) | ((area <= 0.8 * w * h) & (w >= 2.2 * h) & (h <= 50))
    fit[0] = False
    letters, words = [], []
    for k in np.flatnonzero(fit).tolist():
        where = (slice(y[k], y[k] + h[k]), slice(x[k], x[k] + w[k]))
        own = parts[where] == k
        values = grey[where][own]
        bright = float(np.percentile(values, 80))
        if (values > level + _STEP).mean() < _SHARP or bright < level + _CONTRAST:
            continue
        box = np.array([x[k], y[k], x[k] + w[k], y[k] + h[k], bright], float)
        if w[k] <= 1.8 * h[k]:
            letters.append(box)
        # A word crosses from dark to bright about twice a letter, on every line.
        elif (
            np.abs(np.diff(own.astype(np.int8), axis=1)).sum(1)[h[k] // 5 : -(h[k] // 5) or None].mean()
            >= 2.2 * w[k] / h[k]
        ):
            words.append(box[:4])
    return np.array(letters, float).reshape(-1, 5), words


def _rows(letters: np.ndarray) -> list[np.ndarray]:
    """Rows of at least three letters of one height and brightness on one line, with gaps of at most 1.6 heights."""
    left = letters[np.argsort(letters[:, 0], kind="stable")]
    rows = []
    while len(left) >= 3:
        row, last = [0], left[0]
        for i in range(1, len(left)):
            high = last[3] - last[1]
            if left[i, 0] - last[2] > 1.6 * high:
                break
            own = left[i, 3] - left[i, 1]
            line = abs(left[i, 3] - last[3]) <= 0.25 * high or abs(left[i, 1] - last[1]) <= 0.2 * high
            alike = 0.6 * high <= own <= 1.65 * high and abs(left[i, 4] - last[4]) <= _EVEN
            if line and alike and left[i, 0] >= last[0] + 1:
                row.append(i)
                last = left[i]
        own_row = left[row]
        heights = own_row[:, 3] - own_row[:, 1]
        level = np.abs(own_row[:, 3] - np.median(own_row[:, 3])) <= 0.2 * np.median(heights)
        wide = own_row[:, 2].max() - own_row[:, 0].min()
        if len(row) >= 3 and level.mean() >= 0.6 and wide >= 1.5 * np.median(heights):
            rows.append(np.array([*own_row[:, :2].min(0), *own_row[:, 2:4].max(0)]))
            left = np.delete(left, row, axis=0)
        else:
            left = left[1:]
    return rows


def text_of_frames(frames: Iterable[np.ndarray]) -> list[tuple[int, int, int, int]]:
    """Rectangles found in any of up to 64 frames (H, W), of any real type."""
    found: dict[tuple[int, int, int, int], None] = {}
    for number, frame in enumerate(frames):
        if number >= MAX_FRAMES:
            break
        found.update(dict.fromkeys(find_text(to_grey(frame))))
    return list(found)


def to_grey(frame: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) of any real type -> uint8, its whole range used."""
    values = frame.astype(np.float32)
    if values.ndim == 3:
        values = values[..., :3].max(-1)
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    return np.round((values - low) * (255 / (high - low))).astype(np.uint8)


def blacken(pixels: np.ndarray, boxes: Iterable[tuple[int, int, int, int]], value: float, colours: bool) -> None:
    """Fills rectangles of (..., H, W), or of (..., H, W, 3) with `colours`, in place."""
    for x1, y1, x2, y2 in boxes:
        if colours:
            pixels[..., y1:y2, x1:x2, :] = value
        else:
            pixels[..., y1:y2, x1:x2] = value
