"""The chosen studies as a list that `vlm data validate` and `vlm train` read once somebody has filled it in.

CSV: a row a study, its images split by ";", the layout of `vlm.data.layouts.tabular`; `findings` and `impression` stand
empty, and `rank`, `score` and `why` are read over. A CSV cannot say which slice of a volume, which window or which
masks: such a pool is written as JSONL, the same layout's other form, with `selection` on each line. A pixel spacing
that only the pool's list stated is not in a CSV either; training does not ask for it.

Nothing of what the pool said of findings, boxes or reports is written, and of patients nothing but the study's id.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlm.data.files import write_atomic
from vlm.data.layouts.tabular import as_record
from vlm.selecting.picking import Pick
from vlm.types import InputError, Study

SPLIT = "train"
"""Of a study whose pool names none: what was chosen for being odd is no sample to validate on."""
_TEXTS = ("indication", "comparison", "technique", "prior")
_TO_FILL = ("findings", "impression")


def check_out(out: Path, studies: Sequence[Study], overwrite: bool) -> None:
    """Everything about the list's file that can be wrong, before hours are spent on looking.

    Args:
        out: .csv or .jsonl. studies: any of them may be chosen. overwrite: a list may be replaced.

    Raises:
        InputError: naming the file, or the study that the list could not hold.
    """
    if out.suffix.lower() not in (".csv", ".jsonl"):
        raise InputError(f"--out {out}: the list is a .csv or .jsonl file")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file in it")
    if out.exists() and not overwrite:
        raise InputError(f"--out {out}: is there already, perhaps filled in; choose another name, or --overwrite")
    files = [i.path for study in studies for i in study.images if i.path is not None]
    folder = out.parent.resolve()
    for study in studies:
        for image in study.images:
            if image.path is None:
                raise InputError(f"study {study.id}: an image has no file; write the pixels to a file first")
            if not image.path.resolve().is_relative_to(folder):
                above = os.path.commonpath([f.resolve().parent for f in files])
                raise InputError(f"--out {out}: the list must lie above its images: {Path(above) / out.name}")
        odd = not_for_csv(study) if out.suffix.lower() == ".csv" else None
        if odd:
            raise InputError(f"--out {out}: a CSV cannot hold study {study.id}'s {odd}; write {out.stem}.jsonl")


def not_for_csv(study: Study) -> str | None:
    """What a study has that a CSV can't say; None for nothing."""
    for image in study.images:
        if image.frame is not None or image.slab or image.place is not None:
            return "slices"
        if image.masked or image.window is not None:
            return "masks" if image.masked else "window"
        if image.path is not None and (";" in str(image.path) or str(image.path) != str(image.path).strip()):
            return "file name"
    return "images of several modalities" if len({i.modality for i in study.images}) > 1 else None


def write_list(out: Path, picks: Sequence[Pick]) -> None:
    """Writes the list, whole or not at all.

    Args:
        out: .csv or .jsonl, in a folder above the images. picks: in order.
    """
    write_atomic(out, _csv(out.parent, picks) if out.suffix.lower() == ".csv" else _jsonl(out.parent, picks))


def _csv(folder: Path, picks: Sequence[Pick]) -> str:
    texts = [name for name in _TEXTS if any(p.study.clinical.get(name) for p in picks)]
    columns = ["id", "image", "view", "modality", "split", *texts, *_TO_FILL, "rank", "score", "why"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for pick in picks:
        study = pick.study
        images = as_record(_bare(study), folder)["images"]
        views = [image.get("view", "") for image in images]
        row = {
            "id": study.id, "image": ";".join(image["file"] for image in images),
            "view": ";".join(views) if any(views) else "", "modality": images[0].get("modality", "") if images else "",
            "split": study.split or SPLIT, "rank": pick.rank, "score": "" if pick.score is None else pick.score,
            "why": pick.why,
        }  # fmt: skip
        writer.writerow(row | {name: " ".join(study.clinical.get(name, "").split()) for name in texts})
    return stream.getvalue()


def _jsonl(folder: Path, picks: Sequence[Pick]) -> str:
    lines = []
    for pick in picks:
        record = as_record(_bare(pick.study), folder)
        record["selection"] = {"rank": pick.rank, "score": pick.score, "why": pick.why}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)


def _bare(study: Study) -> Study:
    """Without anything that somebody said of it, or of the patient."""
    clinical = {name: text for name, text in study.clinical.items() if name in _TEXTS}
    return replace(
        study, findings=None, boxes=None, report=None, patient=None, split=study.split or SPLIT, clinical=clinical
    )
