"""A single image file, or a folder of them without a list: which files make one study.

scan.png                         one study
a_frontal.png  a_lateral.png     one study "a" of two views (also -frontal, _pa, _ap, _lat, _lateral)
case7/1.png    case7/2.png       one study "case7": a subfolder of at most 8 pictures
class/0001.png ... 0900.png      a larger subfolder holds one study a picture
ct/1.dcm ... ct/300.dcm          a CT or MR series: one study of 300 slices ordered by position
volume.nii.gz, enhanced.dcm      one study of all its slices or frames

Volumes come whole, each slice with its place; `vlm.data.slices` keeps a bounded set of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vlm.data.dicom import SliceHeader, read_slice_header
from vlm.data.images import DICOM_SUFFIXES, IMAGE_SUFFIXES, NIFTI_SUFFIXES, file_kind
from vlm.data.slices import placed
from vlm.types import InputError, Modality, Study, StudyImage, View

MAX_TOGETHER = 8
MAX_FRAMES = 10_000
MAX_FILES = 2_000_000
SUFFIXES = IMAGE_SUFFIXES + DICOM_SUFFIXES + NIFTI_SUFFIXES
_VIEW = re.compile(r"^(?P<stem>.+)[_\- ](?P<view>frontal|pa|ap|lateral|lat)$", re.IGNORECASE)
_VIEWS = {"frontal": View.FRONTAL, "pa": View.FRONTAL, "ap": View.FRONTAL, "lateral": View.LATERAL, "lat": View.LATERAL}


def read_image_file(path: Path) -> list[Study]:
    """One image file as one study; its id is the file's stem."""
    if not path.is_file():
        raise InputError(f"{path}: no such image file")
    file_kind(path)
    return [Study(stem_of(path.name), _images(path))]


def read_folder(root: Path) -> list[Study]:
    """Every image below a folder, grouped into studies as the module's docstring says.

    Args:
        root: folder.

    Returns:
        Studies ordered by id; ids are paths relative to the folder, without suffix, "/" between the parts.

    Raises:
        InputError: no folder, or no image in it.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    groups: dict[str, list[Path]] = {}
    studies: list[Study] = []
    for folder, files in image_files(root):
        relative = "" if folder == root else folder.relative_to(root).as_posix()
        series, files = _series(files)
        for number, slices in enumerate(series, start=1):
            name = relative or root.resolve().name
            images = placed([StudyImage(file) for _, file in slices], [header.position for header, _ in slices])
            studies.append(Study(name if len(series) == 1 else f"{name}/series{number}", images, source=root.name))
        paired = any(view_of(f.name)[1] for f in files)
        if relative and len(files) <= MAX_TOGETHER and not paired:
            groups.setdefault(relative + "/files" * bool(series), []).extend(files)
            continue
        for file in files:
            stem = view_of(file.name)[0] if paired else stem_of(file.name)
            groups.setdefault(f"{relative}/{stem}" if relative else stem, []).append(file)
    studies += [study for name, files in groups.items() if files for study in _studies(name, files, root)]
    if not studies:
        raise InputError(f"{root}: holds no image ({', '.join(SUFFIXES)} are read)")
    return sorted(studies, key=lambda study: study.id)


def image_files(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """(folder, its image files by name), hidden ones left out; files without a suffix count when they are DICOM."""
    count = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        files = [Path(folder, n) for n in sorted(names) if not n.startswith(".") and _is_image(Path(folder, n))]
        count += len(files)
        if count > MAX_FILES:
            raise InputError(
                f"{root}: holds more than {MAX_FILES:,} images; give a smaller folder or a list of studies"
            )
        if files:
            yield Path(folder), files


def stem_of(name: str) -> str:
    """File name without its suffix, `.nii.gz` taken as one."""
    lower = name.lower()
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if lower.endswith(s)), "")
    return name[: len(name) - len(suffix)] or name


def view_of(name: str) -> tuple[str, View | None]:
    """(stem without the view's mark, view) of a file name such as `a_lateral.png`; the view is None without a mark."""
    stem = stem_of(name)
    match = _VIEW.match(stem)
    return (match["stem"], _VIEWS[match["view"].lower()]) if match else (stem, None)


def _is_image(path: Path) -> bool:
    if path.name.lower().endswith(SUFFIXES):
        return True
    if "." in path.name and not path.suffix[1:].isdigit():  # 1.2.840.113.7 is a common name of a DICOM file
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _series(files: list[Path]) -> tuple[list[list[tuple[SliceHeader, Path]]], list[Path]]:
    """(series of two or more CT or MR slices, each ordered by position; the other files)."""
    found: dict[str, list[tuple[SliceHeader, Path]]] = {}
    for file in files if len(files) > 1 else ():
        header = _header(file)
        if header and header.series and header.modality in (Modality.CT, Modality.MR) and header.frames == 1:
            found.setdefault(header.series, []).append((header, file))
    series = []
    for slices in found.values():
        if len(slices) > 1 and all(h.position is not None for h, _ in slices):
            series.append(sorted(slices, key=lambda x: (x[0].position or 0.0, x[0].instance or 0.0)))
    taken = {file for one in series for _, file in one}
    return series, [f for f in files if f not in taken]


def _header(file: Path) -> SliceHeader | None:
    """A DICOM file's header; None for any other file, and for a broken one, which says so itself when it is read."""
    try:
        if file.name.lower().endswith(IMAGE_SUFFIXES) or file_kind(file) != "DICOM":
            return None
        return read_slice_header(file)
    except InputError:
        return None


def _images(path: Path) -> list[StudyImage]:
    """The file as images: one, or the slices of a volume, or the frames of a DICOM file in the order of position."""
    view = view_of(path.name)[1]
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        from vlm.data.nifti import slice_positions

        try:
            positions = slice_positions(path)
        except InputError:
            return [StudyImage(path, view=view)]
        if len(positions) < 2:
            return [StudyImage(path)]
        return placed([StudyImage(path, frame=i) for i in range(len(positions))], positions)
    header = _header(path)
    if header is None or not 1 < header.frames <= MAX_FRAMES:
        return [StudyImage(path, view=view)]
    along = header.frame_positions
    order = sorted(range(header.frames), key=along.__getitem__) if along else list(range(header.frames))
    frames = [StudyImage(path, view=view, frame=i) for i in order]
    return placed(frames, [along[i] if along else None for i in order])


def _studies(name: str, files: list[Path], root: Path) -> Iterator[Study]:
    views = [view_of(f.name)[1] for f in files]
    if len(files) > 1 and len({stem_of(f.name) for f in files}) == 1:
        # a.png beside a.dcm: nothing says that the two belong together.
        for file in files:
            yield Study(file.relative_to(root).as_posix(), _images(file), source=root.name)
        return
    order = sorted(range(len(files)), key=lambda i: (views[i] is View.LATERAL, files[i].name))
    images: list[StudyImage] = []
    for number, index in enumerate(order):
        images += [
            i if i.place is None else replace(i, place=replace(i.place, series=number)) for i in _images(files[index])
        ]
    yield Study(name, images, source=root.name)
