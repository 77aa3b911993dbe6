"""Images that show nothing, with a report that says so.

A model that never saw a blank image calls it normal. These studies teach it to say that nothing can be read: grey
levels, noise and smooth gradients, in place of an X-ray or a CT slice, beside clinical text as it comes with real ones.
"""

from __future__ import annotations

import numpy as np

from vlm.types import Modality, Study, StudyImage, View

REPORT = {
    "findings": "The image is not diagnostic. No findings can be assessed.",
    "impression": "Non-diagnostic image.",
}
_ASKED = (
    "Chest pain.", "XXXX-year-old female with chest pain.", "Shortness of breath.", "dyspnea", "Cough and fever.",
    "XXXX-year-old male with cough.", "Preop.", "", "",
)  # fmt: skip


def blank_study(seed: int, index: int, size: int = 256) -> Study:
    """One study of one or two images without content; the same pair of numbers gives the same study."""
    rng = np.random.default_rng([seed, index, 2])
    ct = rng.random() < 0.2
    views = (View.AXIAL,) if ct else (View.FRONTAL, View.LATERAL)[: 1 + int(rng.random() < 0.8)]
    modality = Modality.CT if ct else Modality.XRAY
    level = 0.5 if rng.random() < 0.3 else float(rng.random())
    images = [StudyImage(pixels=_pixels(rng, size, level), view=view, modality=modality) for view in views]
    asked = str(rng.choice(_ASKED))
    name = f"blank-{seed}-{index:05d}"
    clinical = {"indication": asked} if asked else {}
    return Study(id=name, images=images, clinical=clinical, report=dict(REPORT), patient=name, source="blank")


def _pixels(rng: np.random.Generator, size: int, level: float) -> np.ndarray:
    """(size, size) float32 in [0, 1]: a level, at times with a gradient or noise; never quite uniform, which readers
    refuse."""
    pixels = np.full((size, size), level, np.float32)
    kind = rng.random()
    if kind < 0.25:
        pixels += (np.linspace(-0.5, 0.5, size, dtype=np.float32) * rng.uniform(0.05, 0.6))[:, None]
    amount = rng.uniform(0.003, 0.01) if kind < 0.7 else rng.uniform(0.01, 0.25)
    pixels += rng.normal(0, amount, pixels.shape).astype(np.float32)
    return pixels.clip(0, 1)
