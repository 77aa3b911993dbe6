"""Which layouts of data sets are read, and how one is told from another: one small dict.

`read_studies(path)` looks at the path and picks the first layout of `FORMATS` whose detector says yes; the general ones
(a list, a folder, a file) come last.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlm.data.layouts.coco import is_coco, read_coco
from vlm.data.layouts.folders import read_folder, read_image_file
from vlm.data.layouts.kidney import is_kidney, read_kidney
from vlm.data.layouts.lidc import is_lidc, read_lidc
from vlm.data.layouts.medpix import is_medpix, read_medpix
from vlm.data.layouts.mimic import is_mimic, is_mimic_jpg, read_mimic, read_mimic_jpg
from vlm.data.layouts.nih import is_nih, read_nih
from vlm.data.layouts.openi import read_openi, read_r2gen
from vlm.data.layouts.padchest import is_padchest, read_padchest
from vlm.data.layouts.slake import is_slake, read_slake
from vlm.data.layouts.tabular import is_list, read_list
from vlm.data.prepared import is_prepared, read_prepared
from vlm.data.slices import Score, SliceRule, keep_slices
from vlm.data.windows import window_of
from vlm.types import InputError, Study

HEAD = 1 << 16


@dataclass(frozen=True, slots=True)
class Layout:
    """How one kind of data set is read.

    Args:
        name: the value of `format`.
        read: path -> studies.
        detect: whether a path looks like this layout; reads no more than names and the head of one file.
        summary: one line for people.
        example: what the tree looks like.
        slices: which slices of a volume are kept when nothing else is asked for (`vlm.data.slices`).
    """

    name: str
    read: Callable[[Path], list[Study]]
    detect: Callable[[Path], bool]
    summary: str
    example: str
    slices: str = "uniform:8"


def read_studies(
    path: Path, format: str = "auto", split: str | None = None, slices: str | None = None, score: Score | None = None
) -> list[Study]:
    """Reads a data set, a folder or a file as studies; pixels stay on disk until `load_image`.

    Args:
        path: file or folder.
        format: name in `FORMATS`; "auto" to tell it from the path.
        split: keep this split only, "train", "val", "test" or what the data set calls its own.
        slices: which slices of volumes are kept, such as "mls:8" (`vlm.data.slices`); None for the layout's own choice.
        score: for "mls", what ranks slices; None for a guess from the picture.

    Returns:
        Studies in the data set's order.

    Raises:
        InputError: unknown format, path absent, a broken file (named), no study at all, or none in the split.
    """
    path = Path(path)
    layout = layout_of(path, format)
    rule = SliceRule.parse(slices or layout.slices)
    studies = layout.read(path)
    if not studies:
        raise InputError(f"{path}: holds no study with an image (read as {layout.name!r})")
    if split is None:
        return [keep_slices(s, rule, score) for s in studies]
    chosen = [s for s in studies if s.split == split]
    if not chosen:
        there = Counter(s.split or "without a split" for s in studies)
        listed = ", ".join(f"{name} ({n})" for name, n in there.most_common(8))
        raise InputError(f"{path}: has no study in split {split!r}; it has {listed}")
    return [keep_slices(s, rule, score) for s in chosen]


def gather_studies(
    paths: Sequence[Path],
    format: str = "auto",
    split: str | None = None,
    window: str | None = None,
    limit: int | None = None,
    slices: str | None = None,
    score: Score | None = None,
) -> list[Study]:
    """Reads the studies of several paths; ids that two paths share are told apart by a number.

    Args:
        paths: files and folders, as `read_studies` takes them.
        format, split: passed on.
        window: "CENTRE/WIDTH" or a name of `vlm.data.windows.WINDOWS`, for every image that has Hounsfield units.
        limit: keep the first so many.
        slices, score: which slices of volumes are kept (`vlm.data.slices`), by the same window.

    Raises:
        InputError: a path that cannot be read, an unknown window, no study.
    """
    window_pair = None if window is None else window_of(window)
    windowed = None if score is None else lambda image: score(replace(image, window=window_pair or image.window))
    studies: list[Study] = []
    taken: set[str] = set()
    for path in dict.fromkeys(paths):
        for study in read_studies(path, format, split, slices, windowed):
            name, number = study.id, 2
            while name in taken:
                name, number = f"{study.id}-{number}", number + 1
            taken.add(name)
            images = study.images if window_pair is None else [replace(i, window=window_pair) for i in study.images]
            studies.append(replace(study, id=name, images=images))
    if not studies:
        part = f" of split {split!r}" if split else ""
        raise InputError(f"{', '.join(map(str, paths))}: no studies{part} found")
    return studies if limit is None else studies[:limit]


def layout_of(path: Path, format: str = "auto") -> Layout:
    """The layout with this name, or, for "auto", the first that recognises the path.

    Raises:
        InputError: unknown name, absent path, or a file of a kind that is not read.
    """
    if format != "auto" and format not in FORMATS:
        raise InputError(f"format {format!r} is not known; choose auto, {', '.join(FORMATS)}")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if format != "auto":
        return FORMATS[format]
    for layout in FORMATS.values():
        if layout.detect(path):
            return layout
    raise InputError(f"{path}: no layout recognises it; give the format by name: {', '.join(FORMATS)}")


def _has(*names: str) -> Callable[[Path], bool]:
    """Detects a folder that holds all of these entries."""
    return lambda path: path.is_dir() and all((path / name).exists() for name in names)


def _head(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD).decode("utf-8", "replace")
    except OSError:
        return ""


def _is_r2gen(path: Path) -> bool:
    if path.is_dir():
        return any((path / n).is_file() for n in ("annotation.json", "r2gen_annotation.json"))
    return path.suffix.lower() == ".json" and re.search(r'"image_path"\s*:', _head(path)) is not None


FORMATS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "prepared",
            read_prepared,
            is_prepared,
            "what vlm data prepare writes: shards with decoded images, or an index of a list",
            "openi-512/\n  prepared.json  index.parquet  data/train-00000-of-00009.parquet",
            slices="uniform:64",
        ),
        Layout(
            "openi",
            read_openi,
            _has("indiana_reports.csv", "indiana_projections.csv"),
            "Indiana University chest X-rays (Open-i) as downloaded; splits from R2Gen's annotation file beside them",
            "openi/\n  indiana_reports.csv  indiana_projections.csv  [annotation.json]  images/images_normalized/*.png",
        ),
        Layout(
            "r2gen",
            read_r2gen,
            _is_r2gen,
            "R2Gen's split file with reports and images",
            "iu_xray/\n  annotation.json  images/CXR1000_IM-0003/{0,1}.png",
        ),
        Layout(
            "slake",
            read_slake,
            is_slake,
            "SLAKE: CT, MR and X-ray with organ and lesion boxes",
            "slake/\n  imgs/xmlab1/{source.jpg,detection.json,question.json}",
        ),
        Layout(
            "medpix",
            read_medpix,
            is_medpix,
            "MedPix cases: CT and MR with captions; burnt-in names are blackened",
            "medpix/\n  cases.jsonl  images/MPX1009_synpic46283.jpg",
        ),
        Layout(
            "mimic-cxr",
            read_mimic,
            is_mimic,
            "MIMIC-CXR: DICOM and report texts; sections as the official code cuts them, CheXpert labels, split",
            "mimic-cxr/\n  files/p10/p10000032/s50414267/02aa804e-....dcm  files/p10/p10000032/s50414267.txt\n"
            "  [cxr-record-list.csv.gz]  [mimic-cxr-2.0.0-{metadata,split,chexpert}.csv.gz]  [mimic-cxr-reports.zip]",
        ),
        Layout(
            "mimic-cxr-jpg",
            read_mimic_jpg,
            is_mimic_jpg,
            "MIMIC-CXR-JPG: the same as JPEG; reports from MIMIC-CXR's archive laid beside",
            "mimic-cxr-jpg/\n  files/p10/p10000032/s50414267/02aa804e-....jpg  mimic-cxr-2.0.0-metadata.csv.gz\n"
            "  mimic-cxr-2.0.0-{split,chexpert,negbio}.csv.gz  [mimic-cxr-reports.zip]  [mimic_cxr_sectioned.csv]",
        ),
        Layout(
            "ct-kidney",
            read_kidney,
            is_kidney,
            "CT-KIDNEY: slices in folders by class; a class says nothing of the others",
            "ct-kidney/\n  {Cyst,Normal,Stone,Tumor}/Cyst- (1).jpg  [kidneyData.csv]",
        ),
        Layout(
            "nih",
            read_nih,
            is_nih,
            "NIH ChestX-ray14: 14 findings mined from reports, boxes of 880 images, split by patient",
            "chestxray14/\n  Data_Entry_2017.csv  BBox_List_2017.csv  train_val_list.txt  test_list.txt\n"
            "  images_001/images/00000001_000.png",
        ),
        Layout(
            "padchest",
            read_padchest,
            is_padchest,
            "PadChest, or a table like it: English or Spanish labels become the graph's",
            "padchest/\n  PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv\n  0/2053668664013_k6ga29.png",
        ),
        Layout(
            "lidc",
            read_lidc,
            is_lidc,
            "LIDC-IDRI: chest CT series, nodules on which at least half of the readers agree as boxes on slices",
            "LIDC-IDRI/\n  LIDC-IDRI-0001/<study>/<series>/{1-001.dcm,069.xml}  or  tcia-lidc-xml/*/*.xml",
            "boxes:8",
        ),
        Layout(
            "coco",
            read_coco,
            is_coco,
            "COCO boxes, TBX11K and KSSD among them; the split is the file's name",
            "tbx11k/\n  train.json  [val.json]  images/tb0005.jpg",
        ),
        Layout(
            "list",
            read_list,
            is_list,
            "your own: JSONL or CSV list of studies, image paths relative to it (schema: vlm/data/layouts/tabular.py)",
            'mine/\n  studies.jsonl  {"id": "s1", "images": [{"file": "a.png", "view": "frontal"}]}\n'
            "  or studies.csv  with the columns id,image[,view,modality,patient,split,indication,findings,impression]",
        ),
        Layout(
            "image",
            read_image_file,
            Path.is_file,
            "one PNG, JPEG, TIFF, DICOM or NIfTI file",
            "scan.dcm",
        ),
        Layout(
            "folder",
            read_folder,
            Path.is_dir,
            "a folder of images: each a study; a_frontal.png + a_lateral.png, small subfolders, CT series are joined",
            "scans/\n  a_frontal.png  a_lateral.png  b.dcm  case7/{1,2}.png  ct/IM{1..300}.dcm",
        ),
    )
}
"""Layouts by name, the particular before the general: auto-detection takes the first that recognises a path."""
