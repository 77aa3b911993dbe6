from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("RADSCRIBE_DATA", Path(__file__).parents[4] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no data at {root}; set RADSCRIBE_DATA")
    return root


class WriteDicom(Protocol):
    def __call__(self, path: Path, stored: np.ndarray, **tags: Any) -> Path: ...


@pytest.fixture(scope="session")
def write_dicom() -> WriteDicom:
    """Writes a plain DICOM file of stored values (H, W) or (frames, H, W), any tag overridden; None leaves one out."""

    def write(path: Path, stored: np.ndarray, **tags: Any) -> Path:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.PatientName, dataset.PatientID = "Doe^Jane", "MRN-4711"
        dataset.Rows, dataset.Columns = stored.shape[-2:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = stored.dtype.itemsize * 8
        dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
        dataset.PixelRepresentation = int(stored.dtype.kind == "i")
        if stored.ndim == 3:
            dataset.NumberOfFrames = stored.shape[0]
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
        for name, value in tags.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write
