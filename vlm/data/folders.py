"""A single image file, or a folder of them without a list: which files make one study.

scan.png                         one study
a_frontal.png  a_lateral.png     one study "a" of two views (also -frontal, _pa, _ap, _lat, _lateral)
case7/1.png    case7/2.png       one study "case7": a subfolder of at most 8 pictures
class/0001.png ... 0900.png      a larger subfolder holds one study a picture
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from vlm.data.images import DICOM_SUFFIXES, IMAGE_SUFFIXES, NIFTI_SUFFIXES
from vlm.types import InputError, Study, StudyImage, View

MAX_TOGETHER = 8
MAX_FILES = 2_000_000
SUFFIXES = IMAGE_SUFFIXES + DICOM_SUFFIXES + NIFTI_SUFFIXES
_VIEW = re.compile(r"^(?P<stem>.+)[_\- ](?P<view>frontal|pa|ap|lateral|lat)$", re.IGNORECASE)
_VIEWS = {"frontal": View.FRONTAL, "pa": View.FRONTAL, "ap": View.FRONTAL, "lateral": View.LATERAL, "lat": View.LATERAL}


def read_image_file(path: Path) -> list[Study]:
    """One image file as one study; its id is the file's stem."""
    if not path.is_file():
        raise InputError(f"{path}: no such image file")
    return [Study(stem_of(path.name), [StudyImage(path, view=view_of(path.name)[1])])]


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
    for folder, files in image_files(root):
        relative = "" if folder == root else folder.relative_to(root).as_posix()
        if relative and len(files) <= MAX_TOGETHER and not _paired(files):
            groups.setdefault(relative, []).extend(files)
            continue
        for file in files:
            stem = view_of(file.name)[0] if _paired(files) else stem_of(file.name)
            groups.setdefault(f"{relative}/{stem}" if relative else stem, []).append(file)
    if not groups:
        raise InputError(f"{root}: holds no image ({', '.join(SUFFIXES)} are read)")
    return [study for name, files in sorted(groups.items()) for study in _studies(name, files, root)]


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


def _paired(files: list[Path]) -> bool:
    return any(view_of(f.name)[1] for f in files)


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


def _studies(name: str, files: list[Path], root: Path) -> Iterator[Study]:
    views = [view_of(f.name)[1] for f in files]
    if len(files) > 1 and len({stem_of(f.name) for f in files}) == 1:
        # a.png beside a.dcm: nothing says that the two belong together.
        for file in files:
            yield Study(file.relative_to(root).as_posix(), [StudyImage(file)], source=root.name)
        return
    order = sorted(range(len(files)), key=lambda i: (views[i] is View.LATERAL, files[i].name))
    yield Study(name, [StudyImage(files[i], view=views[i]) for i in order], source=root.name)
