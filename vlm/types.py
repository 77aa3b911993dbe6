"""What every layer speaks: studies, boxes, findings and reports, and the one error that reaches a user.

Coordinates. A `Box` is `(x1, y1, x2, y2)` in pixels of the image as it is displayed: x grows to the right, y grows
down, the corner (0, 0) is the outer corner of the top-left pixel, and x2, y2 are exclusive. Worked example: a box that
covers only the pixel in row 3, column 5 is (5, 3, 6, 4).

Sides. An image is always held in radiological display: the patient's right is at the viewer's left for frontal
radiographs and axial slices. A side in a finding or a sentence is the patient's.

Unknown is `None`. An empty tuple of findings or boxes says that somebody looked and saw none; `None` says that nobody
looked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from knowledge.ontology import Certainty

if TYPE_CHECKING:  # types is read by every verb; torch takes seconds, and `vlm doctor` works without either
    import numpy as np
    from torch import Tensor

SECTIONS = ("indication", "comparison", "technique", "findings", "impression")
"""Report sections in the order in which they are written."""


class InputError(ValueError):
    """Something that the user gave is wrong: one line that says which file or key, what is wrong, and what to do.

    The command line prints the message alone and exits with code 2; a batch records it and goes on.
    """


class Modality(StrEnum):
    """How the image was made; the values are those of JSONL files and of the model's text prefix."""

    XRAY = "xray"
    CT = "ct"
    MR = "mr"
    ULTRASOUND = "us"
    MAMMOGRAPHY = "mg"
    OTHER = "other"


class View(StrEnum):
    """Projection of a radiograph or plane of a slice."""

    FRONTAL = "frontal"
    LATERAL = "lateral"
    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Box:
    """A labelled rectangle on one image of a study (coordinates: the module's docstring).

    Args:
        xyxy: x1, y1, x2, y2 in pixels of the displayed image, x1 < x2 and y1 < y2.
        label: the finding's name in the model's label list, or what the data set calls it.
        image: index into `Study.images`.
        confidence: calibrated probability in [0, 1]; None for a box drawn by a person.
    """

    xyxy: tuple[float, float, float, float]
    label: str
    image: int = 0
    confidence: float | None = None

    @property
    def area(self) -> float:
        """Area in square pixels."""
        x1, y1, x2, y2 = self.xyxy
        return max(0.0, x2 - x1) * max(0.0, y2 - y1)


@dataclass(frozen=True, slots=True)
class SlicePlace:
    """Where an image lies in a volume, so that a box names its slice.

    Args:
        first, last: slices from 0, in the order of their positions; the same for one slice, the ends of a slab else.
        count: slices of the volume.
        position_mm: of the (middle) slice along the normal, in the patient's coordinates; None when unknown.
        series: which volume of the study, from 0.
    """

    first: int
    last: int
    count: int
    position_mm: float | None = None
    series: int = 0


@dataclass(slots=True)
class StudyImage:
    """One image of a study: where it lies, or its pixels.

    Args:
        path: file to read; None when `pixels` is given.
        pixels: (H, W) float32 in [0, 1] in radiological display, black is air; None until it is read.
        view, modality: None when unknown.
        spacing_mm: (row, column) distance between pixel centres in mm, of the file's own pixel grid; None when unknown.
        window: (centre, width) in Hounsfield units, or a name, asked for by the user; None for the reader's default.
        frame: which frame of a multi-frame file, or which slice of a volume (so that a box names its slice); None for
            the only one.
        masked: rectangles (x1, y1, x2, y2) in shares of width and height that are blackened once the image is read:
            text that was burnt in.
        place: of a slice in its volume; None for an image that is not one of a volume.
        slab: (file, frame) of every slice whose maximum is shown, this one among them; () for one slice.
        full_size: (width, height) of the image's own grid, which boxes count in, when `pixels` were decoded at reduced
            resolution; None when they are that grid.
    """

    path: Path | None = None
    pixels: np.ndarray | None = None
    view: View | None = None
    modality: Modality | None = None
    spacing_mm: tuple[float, float] | None = None
    window: tuple[float, float] | str | None = None
    frame: int | None = None
    masked: tuple[tuple[float, float, float, float], ...] = ()
    place: SlicePlace | None = None
    slab: tuple[tuple[Path, int | None], ...] = ()
    full_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One entry of the label list, as labelled by a data set or as given by the model.

    Args:
        label: name in the label list (a named view of the graph).
        certainty: what is said of it; None when unknown.
        probability: calibrated probability in [0, 1]; None when a person set the label.
        side: the patient's "left", "right" or "bilateral"; None when unknown or not sided.
        boxes: indices into the report's or the study's boxes.
    """

    label: str
    certainty: Certainty | None = None
    probability: float | None = None
    side: Literal["left", "right", "bilateral"] | None = None
    boxes: tuple[int, ...] = ()


@dataclass(slots=True)
class Study:
    """One visit of one patient: images, what was asked, and, where known, what was found.

    Args:
        id: unique in its data set; never a patient's identifier from a DICOM header.
        images: in a stable order; `Box.image` counts in it.
        clinical: text that was known before the images were read, by section name ("indication", "comparison",
            "prior").
        findings: labelled findings; a label that is not listed is unknown, not negative. None: nobody labelled.
        boxes: lesions; None: nobody drew boxes, () : somebody looked and there are none.
        report: sections of the reference report, keys from `SECTIONS`; None when there is none.
        patient: key that must not cross a split; None when unknown, then `id` stands for it.
        split: "train", "val", "test" or None.
        source: name of the data set.
    """

    id: str
    images: list[StudyImage]
    clinical: dict[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] | None = None
    boxes: tuple[Box, ...] | None = None
    report: dict[str, str] | None = None
    patient: str | None = None
    split: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a generated report and what it rests on.

    Args:
        text: as written, with its full stop.
        section: "findings" or "impression".
        labels: the findings (label list) that it speaks of.
        boxes: indices into `Report.boxes`.
        status: "supported" when the finding probabilities or a box agree with it, "contradicted" when they say the
            opposite, "unsupported" when nothing the model measures speaks for or against it.
        confidence: probability in [0, 1] that the statement is right, from the findings it rests on; None when
            unsupported.
    """

    text: str
    section: str
    labels: tuple[str, ...] = ()
    boxes: tuple[int, ...] = ()
    status: Literal["supported", "unsupported", "contradicted"] = "unsupported"
    confidence: float | None = None


@dataclass(slots=True)
class Report:
    """What the pipeline returns for a study.

    Args:
        study_id: `Study.id`.
        sections: text by section name, in `SECTIONS` order.
        sentences: the same text, sentence by sentence, with evidence.
        findings: every label that the checkpoint learnt in this modality, with its probability.
        boxes: detections, by falling confidence; faint ones too, which no finding and no sentence points at.
        attention: label -> (V, h, w) float32 array per view, each summing to 1 over all views; for heat maps.
        unmet: constraints that the report could not hold, by name.
        abstained: sentences that were left out because their confidence was too low (`--abstain`).
        trace: how the beams went, as plain JSON values; None unless asked for (`--trace`):
            {"steps": [{"step": int, "beams": [{"text": str, "score": float, "state": {constraint: "open" | "held" |
            "banned"}, "bank": int}], "cut": [{"text": str, "rule": str}]}]}.
        explanation: what moved each finding, as plain JSON values; None unless asked for (`--explain`).
        alternatives: other reports of the same study, best first (`--num-reports`).
    """

    study_id: str
    sections: dict[str, str]
    sentences: tuple[Sentence, ...]
    findings: tuple[Finding, ...]
    boxes: tuple[Box, ...]
    attention: Mapping[str, np.ndarray] = field(default_factory=dict)
    unmet: tuple[str, ...] = ()
    trace: dict[str, Any] | None = None
    explanation: dict[str, Any] | None = None
    alternatives: tuple[Report, ...] = ()
    abstained: tuple[Sentence, ...] = ()


@dataclass(slots=True)
class StudyBatch:
    """Studies as tensors, all images of one size.

    Shapes: B studies, T images of all studies together, S pixels, N prompt and R report tokens, F findings, K box
    classes.

    Args:
        ids: `Study.id`, B of them.
        pixel_values: (T, C, S, S) in [0, 1], C = 1 for grey, more for several windows or pseudo-colour; None when
            `cached` stands for it.
        image_study, image_slot, view: (T,) index of the image's study, its place within the study, and its view's
            index.
        prompt_ids, prompt_mask: (B, N), padded on the left.
        report_ids, report_mask: (B, R), padded on the right; R is 0 when no report is at hand.
        report_labels: (B, R) token to be predicted at each report position; -100 takes no part.
        report_weights: (B, R) weight of each token in the report loss.
        finding_targets: (B, F) 1 present, 0 absent, NaN unknown.
        boxes_xyxy, box_classes: per image (n, 4) in pixels of the model's input and (n,).
        box_known: (T, K) True where somebody looked for this class in this image.
        cached: image features computed earlier by frozen parts.
        maps: the vision model's maps of the images, finest first, computed earlier while it is frozen.
    """

    ids: tuple[str, ...]
    pixel_values: Tensor | None
    image_study: Tensor
    image_slot: Tensor
    view: Tensor
    prompt_ids: Tensor
    prompt_mask: Tensor
    report_ids: Tensor
    report_mask: Tensor
    report_labels: Tensor
    report_weights: Tensor
    finding_targets: Tensor
    boxes_xyxy: tuple[Tensor, ...]
    box_classes: tuple[Tensor, ...]
    box_known: Tensor
    cached: CachedFeatures | None = None
    maps: tuple[Tensor, ...] | None = None


@dataclass(slots=True)
class CachedFeatures:
    """What the language half needs of the image half: (T, G*G, S*D) pooled maps, (B, F, D) evidence and (B, F)
    logits."""

    pooled: Tensor
    tokens: Tensor
    logits: Tensor
