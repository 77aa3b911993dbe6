"""A phantom slice as a valid CT Image Storage file: fixed identifiers and dates, so a seed gives the same bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.10.1581"
"""Prefix of the phantom's identifiers; pydicom's own example root with a number below it."""


def write_slice(
    path: Path, hu: np.ndarray, spacing_mm: tuple[float, float], seed: int, index: int, body: str = "CHEST"
) -> None:
    """Writes one slice.

    Args:
        path: file, replaced whole. hu: (H, W) int16. spacing_mm: (row, column). seed, index: make the identifiers.
        body: its part, as DICOM names it.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"{ROOT}.{seed}.{index}.1.1")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(f"{ROOT}.1")
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{ROOT}.{seed}.{index}", f"{ROOT}.{seed}.{index}.1"
    data.FrameOfReferenceUID = f"{ROOT}.{seed}.{index}.2"
    data.StudyDate = data.SeriesDate = data.ContentDate = "20000101"
    data.StudyTime = data.SeriesTime = data.ContentTime = "120000"
    data.Modality, data.Manufacturer, data.BodyPartExamined = "CT", "Radscribe phantom", body
    data.PatientName, data.PatientID = f"PHANTOM^{seed}^{index}", f"PHANTOM{seed}-{index}"
    data.PatientBirthDate, data.PatientSex, data.PatientPosition = "", "O", "HFS"
    data.AccessionNumber, data.ReferringPhysicianName, data.StudyID, data.PositionReferenceIndicator = "", "", "1", ""
    data.SeriesNumber, data.InstanceNumber, data.AcquisitionNumber = 1, 1, 1
    data.SliceThickness, data.KVP = "1.5", "120"
    row, column = (round(float(s), 6) for s in spacing_mm)
    data.PixelSpacing = [f"{row:.6f}", f"{column:.6f}"]
    data.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    height, width = hu.shape
    data.ImagePositionPatient = [f"{-column * width / 2:.4f}", f"{-row * height / 2:.4f}", "0"]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = height, width
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"
    data.WindowCenter, data.WindowWidth = "-600", "1500"
    data.PixelData = (hu.astype(np.int32) + 1024).clip(0, 65535).astype("<u2").tobytes()
    temporary = path.with_name(f".{path.name}.tmp")
    data.save_as(temporary, enforce_file_format=True)
    os.replace(temporary, path)
