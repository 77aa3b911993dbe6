"""Reports as JSON lines: one object a study, written as it is made, so that an interrupted run can go on.

::

    {"id", "sections": {"findings", "impression"?}, "text",
     "findings": [{"label", "probability", "certainty", "side", "boxes"}],
     "boxes": [{"xyxy", "label", "image", "confidence", "slice"?, "position_mm"?}],
     "sentences": [{"text", "section", "labels", "boxes", "status", "confidence"}],
     "images": [{"file", "view", "modality", "width", "height", "slice"?}], "unmet": [...],
     "abstained"?: [sentences that were left out as too uncertain],
     "alternatives"?: [{"sections", "text", "sentences", "abstained"?, "unmet"}],
     "explanation"?: what moved each finding (`--explain`; its keys: `vlm.explaining`)}

`text` is the findings section, or the impression where there is no findings section: what text metrics score.
Alternatives are further reports of the study (`--num-reports`), which metrics pass over. Boxes are in pixels of the
image as displayed (`vlm.types`). On a slice of a volume a box names it: "slice" counts from 0 in the order of
positions. An image's "slice" is {"first", "last", "count", "position_mm"?}; a slab has several. Of a file's path only
its name is kept. A study that failed is `{"id", "error"}` in a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

from knowledge.ontology import Certainty
from vlm.export.files import whole_file
from vlm.types import SECTIONS, Box, Finding, InputError, Report, Sentence, SlicePlace, Study

DECIMALS = 4
"""Digits kept of probabilities; boxes keep two (hundredths of a pixel)."""


def _number(value: float | None, digits: int = DECIMALS) -> float | None:
    return None if value is None else round(float(value), digits)


def report_to_dict(report: Report, study: Study | None = None) -> dict[str, Any]:
    """A report as plain JSON values (keys: the module's docstring).

    Args:
        report: what the pipeline returned.
        study: its study, for the list of images; None leaves the list empty.
    """
    alternatives = [
        {**_texts_to_dict(other), **_judged_to_dict(other), "unmet": list(other.unmet)} for other in report.alternatives
    ]
    return {
        "id": report.study_id,
        **_texts_to_dict(report),
        "findings": [
            {
                "label": f.label,
                "probability": _number(f.probability),
                "certainty": None if f.certainty is None else str(f.certainty),
                "side": f.side,
                "boxes": list(f.boxes),
            }
            for f in report.findings
        ],
        "boxes": [
            {
                "xyxy": [round(float(v), 2) for v in b.xyxy],
                "label": b.label,
                "image": b.image,
                "confidence": _number(b.confidence),
                **_slice_of(b, study),
            }
            for b in report.boxes
        ],
        **_judged_to_dict(report),
        "images": [] if study is None else [_image_to_dict(study, index) for index in range(len(study.images))],
        "unmet": list(report.unmet),
        **({"alternatives": alternatives} if alternatives else {}),
        **({} if report.explanation is None else {"explanation": report.explanation}),
    }


def _texts_to_dict(report: Report) -> dict[str, Any]:
    sections = {name: report.sections[name] for name in SECTIONS if name in report.sections}
    return {"sections": sections, "text": sections.get("findings") or sections.get("impression") or ""}


def _judged_to_dict(report: Report) -> dict[str, Any]:
    left_out = [_sentence_to_dict(s) for s in report.abstained]
    return {
        "sentences": [_sentence_to_dict(s) for s in report.sentences],
        **({"abstained": left_out} if left_out else {}),
    }


def _sentence_to_dict(s: Sentence) -> dict[str, Any]:
    return {
        "text": s.text,
        "section": s.section,
        "labels": list(s.labels),
        "boxes": list(s.boxes),
        "status": s.status,
        "confidence": _number(s.confidence),
    }


def _sentence_from_dict(s: Mapping[str, Any]) -> Sentence:
    status = cast(Literal["supported", "unsupported", "contradicted"], s["status"])
    return Sentence(s["text"], s["section"], tuple(s["labels"]), tuple(s["boxes"]), status, s["confidence"])


def slice_to_dict(place: SlicePlace | None) -> dict[str, Any] | None:
    """Where a slice lies in its volume, as plain JSON values; None for an image that is not of a volume."""
    if place is None:
        return None
    position = {} if place.position_mm is None else {"position_mm": round(place.position_mm, 2)}
    return {"first": place.first, "last": place.last, "count": place.count, **position}


def _slice_of(box: Box, study: Study | None) -> dict[str, Any]:
    place = study.images[box.image].place if study is not None and box.image < len(study.images) else None
    if place is None:
        return {}
    middle = (place.first + place.last + 1) // 2
    return {"slice": middle} | ({} if place.position_mm is None else {"position_mm": round(place.position_mm, 2)})


def _image_to_dict(study: Study, index: int) -> dict[str, Any]:
    image = study.images[index]
    height, width = image.pixels.shape if image.pixels is not None else (None, None)
    return {
        "file": None if image.path is None else image.path.name,
        "view": None if image.view is None else str(image.view),
        "modality": None if image.modality is None else str(image.modality),
        "width": width,
        "height": height,
        **({} if image.place is None else {"slice": slice_to_dict(image.place)}),
    }


def report_from_dict(row: Mapping[str, Any]) -> Report:
    """The report that `report_to_dict` wrote, without attention maps.

    Raises:
        InputError: a key is missing or of the wrong kind.
    """
    try:
        return Report(
            study_id=str(row["id"]),
            sections={str(k): str(v) for k, v in row["sections"].items()},
            sentences=tuple(_sentence_from_dict(s) for s in row.get("sentences", ())),
            findings=tuple(
                Finding(
                    f["label"],
                    None if f["certainty"] is None else Certainty(f["certainty"]),
                    f["probability"],
                    f["side"],
                    tuple(f["boxes"]),
                )
                for f in row.get("findings", ())
            ),
            boxes=tuple(
                Box(tuple(map(float, b["xyxy"])), b["label"], b["image"], b["confidence"])  # type: ignore[arg-type]
                for b in row.get("boxes", ())
            ),
            unmet=tuple(row.get("unmet", ())),
            abstained=tuple(_sentence_from_dict(s) for s in row.get("abstained", ())),
            alternatives=tuple(
                report_from_dict({**row, "abstained": (), **other, "alternatives": ()})
                for other in row.get("alternatives", ())
            ),
            explanation=row.get("explanation"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"report {row.get('id', '?')!r}: not a line that vlm generate writes ({error!r})") from error


def read_rows(path: Path, torn_tail: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file, one by one.

    Args:
        torn_tail: pass over a last line that is cut off, as a killed run leaves it.

    Raises:
        InputError: the file is absent, or a line is not a JSON object with an "id"; says which line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if torn_tail and not line.endswith("\n"):
                    return
                raise InputError(f"{path}, line {number}: not JSON ({error.msg}); remove or repair the line") from error
            if not isinstance(row, dict) or "id" not in row:
                raise InputError(f'{path}, line {number}: expected an object with an "id", one a study')
            yield row


def read_reports(path: Path) -> list[Report]:
    """All reports of a file that `vlm generate` wrote, in its order."""
    return [report_from_dict(row) for row in read_rows(path)]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON lines file whole: a reader sees the old file or the new one, never a part."""
    with whole_file(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))


class GrowingFile:
    """A JSON lines file that grows line by line; the next run goes on after the last whole line.

    Args:
        path: file to write; its folder is made. A last line that a killed run cut off is removed.
        anew: start with an empty file.

    Raises:
        InputError: the file is there and holds other things than one object with an "id" a line.
    """

    def __init__(self, path: Path, anew: bool = False) -> None:
        self.path = path
        kept = [] if anew or not path.exists() else list(read_rows(path, torn_tail=True))
        self.done: set[str] = {str(row["id"]) for row in kept}
        write_rows(path, kept)
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a line and hands it to the operating system before it returns."""
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        self.done.add(str(row["id"]))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> GrowingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
