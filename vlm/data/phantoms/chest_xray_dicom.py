"""A phantom radiograph as a valid Digital X-Ray file: fixed identifiers and dates, so a seed gives the same bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from vlm.data.phantoms.dicom_files import ROOT
from vlm.types import InputError, StudyImage, View

_TOP = 4095  # 12 bits


def write_film(path: Path, image: StudyImage, seed: int, number: int) -> None:
    """Writes one view of a study; the reader gives the very same pixels back.

    Args:
        path: file, replaced whole. image: with pixels, view (frontal or lateral) and spacing.
        seed, number: make the identifiers; the number is unique for a study among those of the seed.

    Raises:
        InputError: the image has no pixels, no spacing, or another view.
    """
    if image.pixels is None or image.spacing_mm is None or image.view not in (View.FRONTAL, View.LATERAL):
        raise InputError(f"{path.name}: a film needs pixels, spacing and a frontal or lateral view")
    lateral = image.view is View.LATERAL
    series = f"{ROOT}.{seed}.{number}.7.{2 if lateral else 1}"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = UID(f"{series}.1")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(f"{ROOT}.1")
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["DERIVED", "PRIMARY", ""]
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{ROOT}.{seed}.{number}.7", series
    data.StudyDate = data.SeriesDate = data.ContentDate = "20000101"
    data.StudyTime = data.SeriesTime = data.ContentTime = "120000"
    data.Modality, data.Manufacturer, data.PresentationIntentType = "DX", "Radscribe phantom", "FOR PRESENTATION"
    data.BodyPartExamined, data.ViewPosition, data.ImageLaterality = "CHEST", "LL" if lateral else "PA", "U"
    data.PatientOrientation = ["P", "F"] if lateral else ["L", "F"]
    data.PatientName = data.PatientID = data.PatientBirthDate = data.PatientSex = ""
    data.AccessionNumber = data.ReferringPhysicianName = data.StudyID = ""
    data.SeriesNumber, data.InstanceNumber = (2 if lateral else 1), 1
    data.BurnedInAnnotation = "NO"
    data.ViewCodeSequence, data.AnatomicRegionSequence = _code(*_view_code(lateral)), _code("51185008", "SCT", "Chest")
    row, column = (round(float(s), 6) for s in image.spacing_mm)
    data.ImagerPixelSpacing = data.PixelSpacing = [f"{row:.6f}", f"{column:.6f}"]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = image.pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelIntensityRelationship, data.PixelIntensityRelationshipSign = "LOG", -1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "US"
    data.PresentationLUTShape, data.LossyImageCompression = "IDENTITY", "00"
    # The whole range: DICOM's linear window maps 0 to black and 4095 to white with these two.
    data.WindowCenter, data.WindowWidth = str((_TOP + 1) // 2), str(_TOP + 1)
    data.PixelData = np.rint(image.pixels * np.float32(_TOP)).clip(0, _TOP).astype("<u2").tobytes()
    temporary = path.with_name(f".{path.name}.tmp")
    data.save_as(temporary, enforce_file_format=True)
    os.replace(temporary, path)


def _view_code(lateral: bool) -> tuple[str, str, str]:
    return ("399173006", "SCT", "left lateral") if lateral else ("399348003", "SCT", "postero-anterior")


def _code(value: str, scheme: str, meaning: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return Sequence([item])
