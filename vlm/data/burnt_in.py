"""Text that is burnt into an image, suspected from its looks: rows of small, bright, thin shapes of one height.

No character is read. A lone marker ("L") is no row and is passed over. Meant to send a person to look.
"""

from __future__ import annotations

import cv2
import numpy as np

MAX_SIDE = 1024
FEWEST = 5  # shapes that make a row
_LETTER = (5, 40)  # height in pixels
_BRIGHT = 0.35  # of the brightest


def text_rows(pixels: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Rectangles in which text is suspected.

    Args:
        pixels: (H, W) float32 in [0, 1].

    Returns:
        x1, y1, x2, y2 in shares of width and height.
    """
    height, width = pixels.shape
    # Small images are enlarged: letters of five pixels would run into one another.
    scale = min(2.0, MAX_SIDE / max(height, width))
    grey: np.ndarray = np.round(pixels * 255).astype(np.uint8)
    if scale != 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    # What is left of an image when thin bright strokes are taken out is taken away from it: the strokes remain.
    strokes = cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, cv2.getStructuringElement(cv2.MORPH_RECT, (9, 9)))
    mask = (strokes > _BRIGHT * float(grey.max())).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    x, y, w, h, area = (stats[1:count, k] for k in (0, 1, 2, 3, 4))
    letters = (h >= _LETTER[0]) & (h <= _LETTER[1]) & (w <= 2.0 * h) & (w >= 1) & (area >= 0.15 * w * h)
    rows = _rows(np.stack([x, y, x + w, y + h], 1)[letters].astype(float))
    whole = np.array([grey.shape[1], grey.shape[0]] * 2, float)
    return [tuple((row / whole).tolist()) for row in rows]  # type: ignore[misc]


def _rows(boxes: np.ndarray) -> list[np.ndarray]:
    """Groups shapes (n, 4) that stand side by side on one line, of like height, with gaps of about a letter."""
    left = boxes[np.argsort(boxes[:, 0], kind="stable")]
    rows = []
    while len(left) >= FEWEST:
        row, last = [0], left[0]
        for i in range(1, len(left)):
            high = last[3] - last[1]
            if left[i, 0] - last[2] > 1.5 * high:
                break
            alike = abs(left[i, 3] - last[3]) <= 0.25 * high and abs(left[i, 3] - left[i, 1] - high) <= 0.4 * high
            if alike and left[i, 0] >= last[0] + 1:
                row.append(i)
                last = left[i]
        if len(row) >= FEWEST:
            own = left[row]
            rows.append(np.array([own[:, 0].min(), own[:, 1].min(), own[:, 2].max(), own[:, 3].max()]))
            left = np.delete(left, row, axis=0)
        else:
            left = left[1:]
    return rows
