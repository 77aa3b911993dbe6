"""Your own data: a JSONL or CSV file that lists studies, with image paths relative to it.

JSONL, one study a line; "id" and "images" are needed, an absent key means unknown:

    {"id": "s1", "patient": "p1", "split": "train",
     "images": [{"file": "s1/pa.dcm", "view": "frontal", "modality": "xray", "spacing_mm": [0.14, 0.14]}],
     "clinical": {"indication": "Cough."},
     "findings": [{"label": "nodule", "certainty": "present", "side": "left"}],
     "boxes": [{"xyxy": [10, 20, 40, 50], "label": "nodule", "image": 0}],
     "report": {"findings": "A nodule in the left lung.", "impression": "Nodule."}}

CSV, one image a row or several split by ";": columns `id`, `image`, and, where known, `view`, `modality`, `patient`,
`split`, `indication`, `comparison`, `technique`, `prior`, `findings`, `impression`. Rows with one id are one study.

"report" may be a whole text instead (JSONL: a string; CSV: a column `report`): it is cut into sections by
`vlm.data.sections`, and what a column or a key states wins. "clinical" may hold "prior", the text of an earlier report.
"selection", with which `vlm data select` says why it chose a study, is read over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from knowledge.ontology import Certainty
from vlm.data.files import inside, read_json_lines, read_table, sections_of, write_atomic
from vlm.data.sections import split_sections
from vlm.types import SECTIONS, Box, Finding, InputError, Modality, SlicePlace, Study, StudyImage, View

NEEDED = ("id", "image")
_KEYS = {"id", "images", "clinical", "findings", "boxes", "report", "patient", "split", "source", "selection"}
_IMAGE_KEYS = {"file", "view", "modality", "spacing_mm", "window", "frame", "masked", "slice", "slab"}
_SLICE_KEYS = {"first", "last", "count", "position_mm", "series"}
_SIDES = ("left", "right", "bilateral")
_CHECKED = 20
_Value = TypeVar("_Value", bound=StrEnum)


def read_list(path: Path) -> list[Study]:
    """Reads a JSONL or CSV list, or the `studies.jsonl` or `studies.csv` of a folder.

    Raises:
        InputError: a line is broken or lacks a key or column (named), an id comes twice, a path leaves the folder, or
            none of the images exists.
    """
    file = list_in(path)
    studies = _read_csv(file) if file.suffix.lower() == ".csv" else _read_jsonl(file)
    paths = [image.path for study in studies[:_CHECKED] for image in study.images if image.path]
    if paths and not any(p.exists() for p in paths):
        raise InputError(
            f"{file}: the listed image {paths[0].name!r} is absent, and so are all of the first {len(paths)}; "
            f"paths are relative to {file.parent}"
        )
    return studies


def study_of(record: dict[str, Any], file: Path, number: int) -> Study:
    """One object of the JSONL schema as a study.

    Args:
        record: the object. file: the list that it comes from; images lie in its folder. number: its line.

    Raises:
        InputError: what is wrong with which key.
    """
    return _study(record, _Line(file, number))


def list_in(path: Path) -> Path:
    """The list itself: the path, or the folder's `studies.jsonl` or `studies.csv`.

    Raises:
        InputError: a folder without either.
    """
    if not path.is_dir():
        return path
    for name in ("studies.jsonl", "studies.csv"):
        if (path / name).is_file():
            return path / name
    raise InputError(f"{path}: has neither studies.jsonl nor studies.csv")


def is_list(path: Path) -> bool:
    """Whether a path looks like such a list."""
    if path.is_dir():
        return any((path / n).is_file() for n in ("studies.jsonl", "studies.csv"))
    return path.suffix.lower() in (".jsonl", ".ndjson", ".csv")


def write_studies(path: Path, studies: Iterable[Study]) -> None:
    """Writes studies as JSONL, whole or not at all; what is unknown is left out.

    Args:
        path: file to write; images must lie in its folder or below.
        studies: with image paths; pixels are not written.

    Raises:
        InputError: an image has no file, or lies outside the folder.
    """
    lines = [json.dumps(as_record(study, path.parent), ensure_ascii=False) for study in studies]
    write_atomic(path, "".join(line + "\n" for line in lines))


def as_record(study: Study, folder: Path) -> dict[str, Any]:
    """A study as an object of the JSONL schema, image paths relative to the folder."""
    record: dict[str, Any] = {
        "id": study.id,
        "patient": study.patient,
        "split": study.split,
        "source": study.source,
        "images": [_image_record(image, study.id, folder) for image in study.images],
        "clinical": study.clinical or None,
        "findings": None if study.findings is None else [_finding_record(f) for f in study.findings],
        "boxes": None if study.boxes is None else [_box_record(b) for b in study.boxes],
        "report": study.report,
    }
    return {key: value for key, value in record.items() if value is not None}


def _image_record(image: StudyImage, study: str, folder: Path) -> dict[str, Any]:
    if image.path is None:
        raise InputError(f"study {study}: an image has no file; write the pixels to a file first")
    record = {
        "file": _relative(image.path, study, folder),
        "view": image.view,
        "modality": image.modality,
        "spacing_mm": image.spacing_mm,
        "window": image.window,
        "frame": image.frame,
        "masked": image.masked or None,
        "slice": None if image.place is None else {k: v for k, v in asdict(image.place).items() if v is not None},
        "slab": [{"file": _relative(path, study, folder), "frame": frame} for path, frame in image.slab] or None,
    }
    return {key: value for key, value in record.items() if value is not None}


def _relative(path: Path, study: str, folder: Path) -> str:
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        raise InputError(f"study {study}: {path} lies outside {folder}; write the list above its images") from None


def _finding_record(finding: Finding) -> dict[str, Any]:
    record = {
        "label": finding.label,
        "certainty": finding.certainty,
        "probability": finding.probability,
        "side": finding.side,
        "boxes": finding.boxes or None,
    }
    return {key: value for key, value in record.items() if value is not None}


def _box_record(box: Box) -> dict[str, Any]:
    record = {"xyxy": box.xyxy, "label": box.label, "image": box.image}
    return record if box.confidence is None else {**record, "confidence": box.confidence}


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a list: turns values into types, or says what is wrong with which key."""

    file: Path
    number: int
    unit: str = "line"

    def fail(self, message: str) -> NoReturn:
        raise InputError(f"{self.file}: {self.unit} {self.number}: {message}")

    def known(self, record: dict[str, Any], keys: set[str], what: str) -> None:
        unknown = sorted(set(record) - keys)
        if unknown:
            self.fail(f"{what} has no key {unknown[0]!r}; its keys are {', '.join(sorted(keys))}")

    def objects(self, record: dict[str, Any], key: str) -> list[dict[str, Any]] | None:
        value = record.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
            self.fail(f"{key!r} is not a list of objects")
        return value

    def texts(self, record: dict[str, Any], key: str) -> dict[str, str] | None:
        value = record.get(key)
        if value is None:
            return None
        if not isinstance(value, dict) or not all(isinstance(x, str) for x in value.values()):
            self.fail(f"{key!r} is not an object of texts")
        return value

    def text(self, record: dict[str, Any], key: str) -> str | None:
        value = record.get(key)
        if value is not None and not isinstance(value, str | int):
            self.fail(f"{key!r} is not a text")
        return None if value is None or value == "" else str(value)

    def choice(self, record: dict[str, Any], key: str, kind: Callable[[str], _Value], choices: Iterable[_Value]) -> Any:
        value = self.text(record, key)
        if value is None:
            return None
        try:
            return kind(value.strip().lower())
        except ValueError:
            self.fail(f"{key} {value!r} is not known; choose {', '.join(choices)}")

    def numbers(self, value: Any, count: int, key: str) -> tuple[float, ...]:
        ok = isinstance(value, list) and len(value) == count
        if not ok or not all(isinstance(x, int | float) and math.isfinite(x) for x in value):
            self.fail(f"{key!r} is not a list of {count} numbers")
        return tuple(float(x) for x in value)

    def rectangle(self, value: Any) -> tuple[float, float, float, float]:
        x1, y1, x2, y2 = self.numbers(value, 4, "masked")
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            self.fail("'masked' is left, top, right, bottom in shares of the image, from 0 to 1")
        return x1, y1, x2, y2

    def share(self, record: dict[str, Any], key: str) -> float | None:
        value = record.get(key)
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            self.fail(f"{key!r} is not a number from 0 to 1")
        return value

    def whole(self, value: Any, key: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            self.fail(f"{key!r} is not a whole number from 0")
        return value


def _read_jsonl(path: Path) -> list[Study]:
    studies: dict[str, Study] = {}
    for number, record in read_json_lines(path):
        study = _study(record, _Line(path, number))
        if study.id in studies:
            raise InputError(f"{path}: line {number}: the id {study.id!r} was used before; ids must be unique")
        studies[study.id] = study
    return list(studies.values())


def _study(record: dict[str, Any], line: _Line) -> Study:
    name = line.text(record, "id")
    if name is None:
        line.fail("has no 'id'")
    line.known(record, _KEYS, "a study")
    if "images" not in record:
        line.fail("has no 'images'")
    images = [_image(entry, line) for entry in line.objects(record, "images") or []]
    boxes, findings = line.objects(record, "boxes"), line.objects(record, "findings")
    clinical, report = line.texts(record, "clinical") or {}, None
    if isinstance(record.get("report"), str):
        before, report = split_sections(record["report"])
        clinical, report = before | clinical, report or None
    else:
        report = line.texts(record, "report")
    study = Study(
        id=name,
        images=images,
        clinical=clinical,
        boxes=None if boxes is None else tuple(_box(b, len(images), line) for b in boxes),
        report=report,
        patient=line.text(record, "patient"),
        split=line.text(record, "split"),
        source=line.text(record, "source"),
    )
    study.findings = None if findings is None else tuple(_finding(f, len(study.boxes or ()), line) for f in findings)
    return study


def _image(entry: dict[str, Any], line: _Line) -> StudyImage:
    line.known(entry, _IMAGE_KEYS, "an image")
    if not isinstance(entry.get("file"), str):
        line.fail("an image has no 'file'")
    spacing, window = entry.get("spacing_mm"), entry.get("window")
    if window is not None and not isinstance(window, str):
        centre, width = line.numbers(window, 2, "window")
        window = (centre, width)
    if spacing is not None:
        row, column = line.numbers(spacing, 2, "spacing_mm")
        spacing = (row, column) if min(row, column) > 0 else line.fail("'spacing_mm' must be above 0")
    return StudyImage(
        path=inside(line.file.parent, entry["file"], line.file),
        view=line.choice(entry, "view", View, View),
        modality=line.choice(entry, "modality", Modality, Modality),
        spacing_mm=spacing,
        window=window,
        frame=_frame(entry, line),
        masked=tuple(line.rectangle(x) for x in entry.get("masked") or ()),
        place=None if entry.get("slice") is None else _place(entry["slice"], line),
        slab=tuple(
            (inside(line.file.parent, str(part.get("file", "")), line.file), _frame(part, line))
            for part in line.objects(entry, "slab") or ()
        ),
    )


def _frame(entry: dict[str, Any], line: _Line) -> int | None:
    return None if entry.get("frame") is None else line.whole(entry["frame"], "frame")


def _place(entry: Any, line: _Line) -> SlicePlace:
    if not isinstance(entry, dict):
        line.fail('\'slice\' is an object such as {"first": 4, "last": 4, "count": 120, "position_mm": -75.0}')
    line.known(entry, _SLICE_KEYS, "a slice")
    first, count = line.whole(entry.get("first"), "first"), line.whole(entry.get("count"), "count")
    last = line.whole(entry.get("last", first), "last")
    if not first <= last < count:
        line.fail(f"slice {first} to {last} of {count}: slices are counted from 0")
    position = entry.get("position_mm")
    where = None if position is None else line.numbers([position], 1, "position_mm")[0]
    return SlicePlace(first, last, count, where, line.whole(entry.get("series", 0), "series"))


def _box(entry: dict[str, Any], images: int, line: _Line) -> Box:
    line.known(entry, {"xyxy", "label", "image", "confidence"}, "a box")
    x1, y1, x2, y2 = line.numbers(entry.get("xyxy"), 4, "xyxy")
    label, image = line.text(entry, "label"), line.whole(entry.get("image", 0), "image")
    if label is None:
        line.fail("a box has no 'label'")
    if not (x1 < x2 and y1 < y2):
        line.fail(f"box {[x1, y1, x2, y2]} is empty; xyxy is left, top, right, bottom in pixels")
    if image >= images:
        line.fail(f"a box lies on image {image}, the study has {images}, counted from 0")
    return Box((x1, y1, x2, y2), label, image, line.share(entry, "confidence"))


def _finding(entry: dict[str, Any], boxes: int, line: _Line) -> Finding:
    line.known(entry, {"label", "certainty", "probability", "side", "boxes"}, "a finding")
    label, side = line.text(entry, "label"), line.text(entry, "side")
    if label is None:
        line.fail("a finding has no 'label'")
    if side is not None and side not in _SIDES:
        line.fail(f"side {side!r} is not known; choose {', '.join(_SIDES)}")
    indices = tuple(line.whole(i, "boxes") for i in entry.get("boxes") or ())
    if any(i >= boxes for i in indices):
        line.fail(f"finding {label!r} points at a box that is not there; the study has {boxes}")
    certainty = line.choice(entry, "certainty", Certainty, Certainty)
    return Finding(label, certainty, line.share(entry, "probability"), side, indices)  # type: ignore[arg-type]


def _read_csv(path: Path) -> list[Study]:
    studies: dict[str, Study] = {}
    for number, row in enumerate(read_table(path, NEEDED), start=1):
        line = _Line(path, number, "row")
        if not row["id"].strip():
            line.fail("has no id")
        files = [x.strip() for x in row["image"].split(";") if x.strip()]
        views = [x.strip() for x in row.get("view", "").split(";")]
        if len(views) not in (1, len(files)):
            line.fail(f"lists {len(files)} images and {len(views)} views")
        images = [
            StudyImage(
                inside(path.parent, file, path),
                view=line.choice({"view": views[i % len(views)]}, "view", View, View),
                modality=line.choice(dict(row), "modality", Modality, Modality),
            )
            for i, file in enumerate(files)
        ]
        before, text = split_sections(row.get("report", ""))
        sections = before | text | sections_of(**{name: row.get(name, "") for name in (*SECTIONS, "prior")})
        study = Study(
            id=row["id"].strip(),
            images=images,
            clinical={k: v for k, v in sections.items() if k not in ("findings", "impression")},
            report={k: v for k, v in sections.items() if k in ("findings", "impression")} or None,
            patient=row.get("patient", "").strip() or None,
            split=row.get("split", "").strip() or None,
        )
        _join(studies, study, line)
    return list(studies.values())


def _join(studies: dict[str, Study], study: Study, line: _Line) -> None:
    """Adds a row to the study of its id; what two rows both state must agree."""
    first = studies.setdefault(study.id, study)
    if first is study:
        return
    first.images += study.images
    for name, before, now in (
        ("split", first.split, study.split),
        ("patient", first.patient, study.patient),
        ("report", first.report, study.report),
    ):
        if before and now and before != now:
            line.fail(f"{name} differs from that of an earlier row with the id {study.id!r}")
    first.split, first.patient = first.split or study.split, first.patient or study.patient
    first.report, first.clinical = first.report or study.report, {**study.clinical, **first.clinical}
