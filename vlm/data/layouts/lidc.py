"""LIDC-IDRI (Armato et al. 2011) as TCIA gives it: 1,018 chest CTs, nodules outlined by four radiologists in XML.

    LIDC-IDRI-0001/<study>/<series>/{1-001.dcm, ..., 069.xml}     the XML may also lie apart, in tcia-lidc-xml/

An outline runs just outside the nodule, so a box holds the pixels strictly inside it. Outlines of several readers that
overlap on a shared slice are one nodule. A nodule counts when at least half of the reading sessions outlined it; its
box on a slice is the median of the corners there, where at least half of those readers outlined it. Slices with marks
that do not count (a minority's outlines, nodules below 3 mm, which are marked by a point) are left out: on them a
nodule is neither there nor absent. A series that nobody marked has no nodule; a marked one without agreement
says nothing.

Ratings are medians over the readers. A calcification rated 1 to 5 (6 is none) makes the nodule a calcified one, and a
malignancy of 4 or more an uncertain "lung_cancer": it is a guess from the image. `nodules_in` gives all ratings.
"""

from __future__ import annotations

import re
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from knowledge.ontology import Certainty
from vlm.data.dicom import SliceHeader, read_slice_header
from vlm.data.images import DICOM_SUFFIXES
from vlm.data.slices import placed
from vlm.types import Box, Finding, InputError, Modality, Study, StudyImage, View

RATINGS = ("subtlety", "internalStructure", "calcification", "sphericity", "margin", "lobulation", "spiculation",
           "texture", "malignancy")  # fmt: skip
MAX_XML = 1 << 26
_PATIENT = re.compile(r"LIDC-IDRI-\d{4}", re.IGNORECASE)
_Rectangle = tuple[float, float, float, float]


@dataclass(slots=True)
class Mark:
    """What one reader drew of one nodule.

    Args:
        reader: number of the reading session. outlines: SOPInstanceUID of a slice -> box. small: below 3 mm.
        ratings: by name of `RATINGS`, as far as given.
    """

    reader: int
    outlines: dict[str, _Rectangle] = field(default_factory=dict)
    small: bool = False
    ratings: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Nodule:
    """A nodule that at least half of the readers outlined.

    Args:
        boxes: SOPInstanceUID of a slice -> median box. readers: how many outlined it. ratings: medians.
    """

    boxes: dict[str, _Rectangle]
    readers: int
    ratings: dict[str, float]


@dataclass(frozen=True, slots=True)
class Reading:
    """The marks of one series: nodules that count, and slices on which other marks lie."""

    series: str
    sessions: int
    nodules: tuple[Nodule, ...]
    unclear: frozenset[str]


def read_lidc(root: Path) -> list[Study]:
    """Reads every series that has an XML of nodules.

    Returns:
        One study a series with all its slices, but for those with unclear marks; its id is the patient's folder, with
        "/2" for a second series. The model is shown slices with boxes (`boxes:8`) unless something else is asked for.

    Raises:
        InputError: no series with its XML, or a broken XML.
    """
    apart = {reading.series: reading for reading in _apart(root)}
    studies: list[Study] = []
    seen: dict[str, int] = {}
    for folder in _series_folders(root):
        own = [r for p in sorted(folder.glob("*.xml")) if (r := nodules_in(p)) is not None]
        if not own and not apart:
            continue
        slices = _slices(folder)
        reading = own[0] if own else apart.get(slices[0][0].series or "") if slices else None
        if reading is None or len(slices) < 2:
            continue
        match = _PATIENT.search(folder.as_posix())
        patient = match[0].upper() if match else folder.relative_to(root).parts[0] if folder != root else root.name
        seen[patient] = seen.get(patient, 0) + 1
        name = patient if seen[patient] == 1 else f"{patient}/{seen[patient]}"
        studies.append(_study(name, patient, slices, reading))
    if not studies:
        raise InputError(f"{root}: no CT series with an XML of nodules (LidcReadMessage) in it, or in tcia-lidc-xml")
    return studies


def is_lidc(path: Path) -> bool:
    """Whether a folder looks like LIDC-IDRI: patient folders of its names, or a series with such an XML."""
    if not path.is_dir():
        return False
    if any(_PATIENT.fullmatch(p.name) and p.is_dir() for p in path.iterdir()):
        return True
    if (path / "LIDC-IDRI").is_dir():
        return True
    return any(_root_tag(p) == "LidcReadMessage" for p in sorted(path.glob("*.xml"))[:3])


def nodules_in(path: Path) -> Reading | None:
    """Reads one XML file; None for one of another kind (the set's radiographs have such files too).

    Raises:
        InputError: broken XML, an entity in it, or an outline that makes no sense.
    """
    data = path.read_bytes()
    if len(data) > MAX_XML or b"<!DOCTYPE" in data[:4096] or b"<!ENTITY" in data:
        raise InputError(f"{path}: is not an XML of LIDC-IDRI (too large, or it declares entities)")
    try:
        tree = ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError, RecursionError):
        raise InputError(f"{path}: is not valid XML; copy it again") from None
    if _tag(tree) != "LidcReadMessage":
        return None
    series = next((_text(e) for e in tree.iter() if _tag(e).lower() == "seriesinstanceuid"), "")
    marks: list[Mark] = []
    sessions = [e for e in tree if _tag(e) == "readingSession"]
    for reader, session in enumerate(sessions):
        marks += [_mark(reader, e, path) for e in session if _tag(e) == "unblindedReadNodule"]
    nodules, unclear = _agreed(marks, len(sessions))
    return Reading(series, len(sessions), nodules, unclear)


def _tag(element: ET.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _text(element: ET.Element) -> str:
    return (element.text or "").strip()


def _root_tag(path: Path) -> str:
    try:
        for _, element in ET.iterparse(path, events=("start",)):
            return _tag(element)
    except (ET.ParseError, OSError, ValueError, LookupError):
        pass
    return ""


def _mark(reader: int, element: ET.Element, path: Path) -> Mark:
    mark = Mark(reader)
    for part in element:
        if _tag(part) == "characteristics":
            mark.ratings = {_tag(e): int(_text(e)) for e in part if _tag(e) in RATINGS and _text(e).isdigit()}
        elif _tag(part) == "roi":
            inside = {_tag(e): _text(e) for e in part if _tag(e) in ("imageSOP_UID", "inclusion")}
            points = [{_tag(e): _text(e) for e in p} for p in part if _tag(p) == "edgeMap"]
            if inside.get("inclusion", "TRUE").upper() != "TRUE" or not inside.get("imageSOP_UID"):
                continue  # a hole in the nodule
            try:
                xs, ys = [int(p["xCoord"]) for p in points], [int(p["yCoord"]) for p in points]
                mark.outlines[inside["imageSOP_UID"]] = _rectangle(xs, ys)
            except (KeyError, ValueError):
                raise InputError(f"{path}: an outline lacks its points (xCoord, yCoord)") from None
            mark.small |= len(points) == 1
    return mark


def _rectangle(xs: Sequence[int], ys: Sequence[int]) -> _Rectangle:
    """The pixels strictly inside an outline; of one too thin for any inside, the outline itself."""
    x1, x2 = (min(xs) + 1, max(xs)) if max(xs) - min(xs) > 1 else (min(xs), max(xs) + 1)
    y1, y2 = (min(ys) + 1, max(ys)) if max(ys) - min(ys) > 1 else (min(ys), max(ys) + 1)
    return float(x1), float(y1), float(x2), float(y2)


def _agreed(marks: list[Mark], sessions: int) -> tuple[tuple[Nodule, ...], frozenset[str]]:
    """(nodules that count, slices with marks that do not)."""
    nodules: list[Nodule] = []
    unclear: set[str] = {uid for m in marks if m.small for uid in m.outlines}
    for group in _clusters([m for m in marks if not m.small]):
        readers = {m.reader for m in group}
        slices = {uid for m in group for uid in m.outlines}
        if 2 * len(readers) < sessions:
            unclear |= slices
            continue
        boxes: dict[str, _Rectangle] = {}
        for uid in sorted(slices):
            here = [m.outlines[uid] for m in group if uid in m.outlines]
            if 2 * len({m.reader for m in group if uid in m.outlines}) >= len(readers):
                x1, y1, x2, y2 = (statistics.median(side) for side in zip(*here, strict=True))
                boxes[uid] = (x1, y1, x2, y2)
            else:
                unclear.add(uid)
        rated = {name: [m.ratings[name] for m in group if name in m.ratings] for name in RATINGS}
        ratings = {name: float(statistics.median(values)) for name, values in rated.items() if values}
        nodules.append(Nodule(boxes, len(readers), ratings))
    return tuple(nodules), frozenset(unclear)


def _clusters(marks: list[Mark]) -> list[list[Mark]]:
    """Marks that overlap on a shared slice, directly or through others; those of one reader may join through others."""
    groups: list[list[Mark]] = []
    for mark in marks:
        touching = [g for g in groups if any(_overlap(mark, other) for other in g)]
        groups = [g for g in groups if g not in touching] + [[mark, *(m for g in touching for m in g)]]
    return groups


def _overlap(a: Mark, b: Mark) -> bool:
    for uid in a.outlines.keys() & b.outlines.keys():
        p, q = a.outlines[uid], b.outlines[uid]
        if min(p[2], q[2]) > max(p[0], q[0]) and min(p[3], q[3]) > max(p[1], q[1]):
            return True
    return False


def _series_folders(root: Path) -> Iterator[Path]:
    """Folders that hold DICOM files, by name."""
    for folder in [root, *sorted(p for p in root.rglob("*") if p.is_dir())]:
        if any(p.suffix.lower() in DICOM_SUFFIXES for p in folder.iterdir()):
            yield folder


def _apart(root: Path) -> Iterator[Reading]:
    """Readings whose XML lies apart from the images."""
    for folder in (root / "tcia-lidc-xml", root.parent / "tcia-lidc-xml"):
        for path in sorted(folder.rglob("*.xml")) if folder.is_dir() else ():
            reading = nodules_in(path)
            if reading is not None:
                yield reading


def _slices(folder: Path) -> list[tuple[SliceHeader, Path]]:
    """The CT slices of a folder with their headers, by position."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in DICOM_SUFFIXES:
            try:
                found.append((read_slice_header(path), path))
            except InputError:
                continue  # a localiser or a broken file: the others still make the volume
    found = [(h, p) for h, p in found if h.modality is Modality.CT and h.position is not None and h.uid]
    return sorted(found, key=lambda x: (x[0].position or 0.0, x[1].name))


def _study(name: str, patient: str, slices: list[tuple[SliceHeader, Path]], reading: Reading) -> Study:
    whole = placed(
        [StudyImage(path, view=View.AXIAL, modality=Modality.CT) for _, path in slices],
        [header.position for header, _ in slices],
    )
    kept = [(h, image) for (h, _), image in zip(slices, whole, strict=True) if h.uid not in reading.unclear]
    at = {header.uid: number for number, (header, _) in enumerate(kept)}
    boxes: list[Box] = []
    findings: list[Finding] = []
    for nodule in reading.nodules:
        own = range(len(boxes), len(boxes) + sum(uid in at for uid in nodule.boxes))
        boxes += [Box(xyxy, "nodule", at[uid]) for uid, xyxy in nodule.boxes.items() if uid in at]
        findings.append(Finding("nodule", Certainty.PRESENT, boxes=tuple(own)))
        if 1 <= nodule.ratings.get("calcification", 6) < 6:
            findings.append(Finding("calcified_nodule", Certainty.PRESENT, boxes=tuple(own)))
        if nodule.ratings.get("malignancy", 0) >= 4:
            findings.append(Finding("lung_cancer", Certainty.UNCERTAIN, boxes=tuple(own)))
    if findings:
        findings.append(Finding("normal", Certainty.ABSENT))
    elif not reading.unclear:
        findings.append(Finding("nodule", Certainty.ABSENT))
    images = [replace(image) for _, image in kept]
    return Study(name, images, findings=tuple(findings) or None, boxes=tuple(boxes), patient=patient, source="lidc")
