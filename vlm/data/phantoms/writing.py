"""Phantoms on disk: DICOM files or NIfTI volumes, with the whole truth in `studies.jsonl`."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from rich.progress import track

from vlm.data.layouts.tabular import write_studies
from vlm.data.parallel import Workers
from vlm.data.phantoms.chest_ct import write_phantom
from vlm.data.phantoms.dicom_files import write_slice
from vlm.data.phantoms.kidney_ct import kidney_pair_slices, kidney_study_slice, kidney_volume
from vlm.types import InputError, Modality, Study, StudyImage, View

KINDS = ("chest-ct", "kidney-ct", "chest-xray")
"""What can be drawn."""


def write_kind(
    kind: str,
    out: Path,
    n: int,
    seed: int,
    volume: bool = False,
    priors: bool = False,
    show: bool = False,
    workers: int = 1,
) -> list[Study]:
    """Writes `n` phantom studies of a kind and their truth.

    Args:
        kind: of `KINDS`. out: folder, made when absent. n: how many. seed: the same seed gives the same bytes.
        volume: whole volumes as NIfTI in place of DICOM slices (kidney-ct). priors: an earlier study of every patient,
            with a change that the later report states (kidney-ct, chest-xray). show: a progress bar.
        workers: processes; any number writes the same files.

    Returns:
        The studies, their images named by path; a prior stands before its later study.

    Raises:
        InputError: an unknown kind, or one that has no volumes or no priors.
    """
    if kind not in KINDS:
        raise InputError(f"phantom {kind!r} is not known; choose {', '.join(KINDS)}")
    if volume and (kind != "kidney-ct" or priors):
        raise InputError("--volume: whole volumes are drawn of kidney-ct, without priors")
    if kind == "chest-ct":
        if priors:
            raise InputError("--priors: a chest-ct slice has no study before it; choose kidney-ct or chest-xray")
        return write_phantom(out, n, seed, show)
    out.mkdir(parents=True, exist_ok=True)
    name = "volumes" if volume else kind
    tasks = [(name, out, seed, index, priors) for index in range(n)]
    made: dict[int, list[Study]] = {}
    # A handful is drawn before other processes have started.
    with Workers(workers if n >= 16 else 1) as pool:
        done = pool.map(_make, tasks)
        for index, found in track(done, description="phantom", total=n, disable=not show, transient=True):
            made[index] = found
    studies = [study for index in range(n) for study in made[index]]
    write_studies(out / "studies.jsonl", studies)
    return studies


def _make(task: tuple[str, Path, int, int, bool]) -> tuple[int, list[Study]]:
    """One patient, in whichever process."""
    name, out, seed, index, priors = task
    makers: dict[str, Callable[[Path, int, int, bool], Iterator[Study]]] = {
        "chest-xray": _xray, "kidney-ct": _kidney, "volumes": _volumes
    }  # fmt: skip
    return index, list(makers[name](out, seed, index, priors))


def _kidney(out: Path, seed: int, index: int, priors: bool) -> Iterator[Study]:
    made = kidney_pair_slices(seed, index) if priors else (kidney_study_slice(seed, index),)
    for number, (study, drawn) in enumerate(made):
        path = out / f"{study.id}.dcm"
        write_slice(path, drawn.hu, drawn.spacing_mm, seed, 2 * index + number, "ABDOMEN")
        image = StudyImage(path=path, view=View.AXIAL, modality=Modality.CT, spacing_mm=drawn.spacing_mm)
        yield replace(study, images=[image])


def _xray(out: Path, seed: int, index: int, priors: bool) -> Iterator[Study]:
    from vlm.data.phantoms.chest_xray import chest_xray_pair, chest_xray_study, write_film

    made = chest_xray_pair(seed, index) if priors else (chest_xray_study(seed, index),)
    for number, study in enumerate(made):
        images = []
        for image in study.images:
            view = "frontal" if image.view == View.FRONTAL else "lateral"
            path = out / f"{study.id}-{view}.dcm"
            write_film(path, image, seed, 2 * index + number)
            images.append(replace(image, path=path, pixels=None))
        yield replace(study, images=images)


def _volumes(out: Path, seed: int, index: int, priors: bool) -> Iterator[Study]:
    hu, spacing, study = kidney_volume(seed, index)
    path = out / f"{study.id}.nii.gz"
    write_nifti(path, hu, spacing)
    yield replace(study, images=volume_images(path, len(hu), spacing))


def volume_images(path: Path, count: int, spacing: tuple[float, float, float]) -> list[StudyImage]:
    """One image a slice of a volume, from the feet to the head."""
    return [
        StudyImage(path=path, frame=i, view=View.AXIAL, modality=Modality.CT, spacing_mm=spacing[1:])
        for i in range(count)
    ]


def write_nifti(path: Path, hu: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """Writes a volume as NIfTI, left and right where they are.

    Args:
        path: `.nii.gz`, replaced whole. hu: (Z, H, W) int16, slices from the feet to the head, rows to the patient's
            back, columns to the patient's left. spacing: (slice, row, column) in mm.
    """
    deep, high, wide = hu.shape
    # NIfTI's axes point to the right, to the front and to the head.
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    affine[:3, 3] = [spacing[2] * wide / 2, spacing[1] * high / 2, -spacing[0] * deep / 2]
    image = nibabel.Nifti1Image(np.ascontiguousarray(hu.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    temporary = path.with_name(f".{path.name}.tmp")
    # No name and no time in gzip's header: the same volume gives the same bytes.
    temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
    os.replace(temporary, path)
