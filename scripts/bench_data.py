"""Times reading images beside other pipelines in one run, alternating, and states how far the pictures differ.

    python scripts/bench_data.py --n 40 --json bench_data.json

CT: 512x512 16-bit DICOM -> windowed 256x256 float32 in [0, 1], beside plain pydicom + Pillow and, where it is
installed, MONAI. JPEG 2000: a lossless 12-bit radiograph of 2048x2048 -> 512x512, at reduced resolution beside decoding
in full and averaging areas; the shift is that of a phase correlation, in pixels of the small picture, with and without
correction. One thread each; pipelines take turns on each file. Printed are medians over the files of the processor's
time, which a busy machine does not change much, and of the time on the clock.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEG2000Lossless
from rich.console import Console
from rich.table import Table

from vlm.data.dicom import read_dicom
from vlm.data.jpeg2000 import levels_to_leave_out
from vlm.data.phantoms.chest_ct import write_phantom
from vlm.data.transforms import letterbox

WINDOW, SIZE = (-300.0, 1400.0), 256
SIDE, SMALL = 2048, 512
KINDS = ("cpu", "wall")
Pipeline = Callable[[Path], np.ndarray]


def ours(path: Path) -> np.ndarray:
    pixels = read_dicom(path, WINDOW).pixels
    assert pixels is not None
    return letterbox(pixels, SIZE)[0]


def plain(path: Path) -> np.ndarray:
    """What most scripts do."""
    data = pydicom.dcmread(path)
    hu = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    scaled = np.clip((hu - (WINDOW[0] - WINDOW[1] / 2)) / WINDOW[1], 0, 1).astype(np.float32)
    return np.asarray(Image.fromarray(scaled).resize((SIZE, SIZE), Image.Resampling.BOX))


def monai() -> Pipeline:
    torch.set_num_threads(1)
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Resize, ScaleIntensityRange

    low, high = WINDOW[0] - WINDOW[1] / 2, WINDOW[0] + WINDOW[1] / 2
    steps = [LoadImage(image_only=True, reader="PydicomReader"), EnsureChannelFirst()]
    pipeline = Compose([*steps, ScaleIntensityRange(low, high, 0, 1, clip=True), Resize((SIZE, SIZE), mode="area")])
    return lambda path: np.asarray(pipeline(path))


def reduced(path: Path) -> np.ndarray:
    image = read_dicom(path, least=SMALL)
    assert image.pixels is not None
    return letterbox(image.pixels, SMALL, full_size=image.full_size)[0]


def in_full(path: Path) -> np.ndarray:
    pixels = read_dicom(path).pixels
    assert pixels is not None
    return letterbox(pixels, SMALL)[0]


def uncorrected(path: Path) -> np.ndarray:
    """Reduced decoding as it comes out of the decoder."""
    data = pydicom.dcmread(path)
    with Image.open(io.BytesIO(pydicom.encaps.get_frame(data.PixelData, 0, number_of_frames=1))) as image:
        image.reduce = levels_to_leave_out(SIDE, SIDE, SMALL)  # type: ignore[method-assign, assignment]
        return np.asarray(image, np.float32) / 65535


def write_radiographs(folder: Path, count: int) -> list[Path]:
    """Lossless JPEG 2000 files of blobs with edges, film grain and detector noise, 12 of 16 bits."""
    paths = []
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = np.full((SIDE, SIDE), 1800, np.float32)
        for _ in range(40):
            cx, cy, radius = *rng.uniform(0, SIDE, 2), rng.uniform(20, 400)
            pixels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] += rng.uniform(-300, 300)
        grain = cv2.GaussianBlur(rng.normal(0, 60, pixels.shape).astype(np.float32), (0, 0), 1)
        pixels = cv2.GaussianBlur(pixels, (0, 0), 3) + grain + rng.normal(0, 8, pixels.shape)
        paths.append(_write(folder / f"{number}.dcm", np.clip(pixels, 0, 4095).astype(np.uint16)))
    return paths


def _write(path: Path, stored: np.ndarray) -> Path:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "1.2.3"
    data.Modality, data.SamplesPerPixel, data.PhotometricInterpretation = "DX", 1, "MONOCHROME2"
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.WindowCenter, data.WindowWidth = 2048, 4096
    data.PixelData = stored.tobytes()
    data["PixelData"].VR = "OW"
    data.compress(JPEG2000Lossless, generate_instance_uid=False)
    data.save_as(path, enforce_file_format=True)
    return path


def race(pipelines: dict[str, Pipeline], paths: list[Path]) -> dict[str, dict[str, float]]:
    """Median milliseconds a file, of the processor and by the clock; the pipelines take turns on each file."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    for read in pipelines.values():
        read(paths[0])
    names = list(pipelines)
    for path in paths:
        names.append(names.pop(0))  # the first to touch a file pays for fetching it: that falls on each in turn
        for name in names:
            start = time.process_time(), time.perf_counter()
            pipelines[name](path)
            times[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    medians = {name: np.median(np.array(t), axis=0) * 1000 for name, t in times.items()}
    return {name: {"cpu": round(float(m[0]), 3), "wall": round(float(m[1]), 3)} for name, m in medians.items()}


def difference(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Grey levels of 255 between two pictures, and the shift in pixels."""
    levels = np.abs(found - wanted) * 255
    (dx, dy), _ = cv2.phaseCorrelate(wanted.astype(np.float64), found.astype(np.float64))
    return {
        "mean": round(float(levels.mean()), 3),
        "p99": round(float(np.percentile(levels, 99)), 3),
        "shift": round(float(np.hypot(dx, dy)), 3),
    }


def run(count: int, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    studies = write_phantom(folder / "ct", count, 0)
    written = count / (time.perf_counter() - start)
    slices = [image.path for study in studies for image in study.images if image.path]
    readers: dict[str, Pipeline] = {"radscribe": ours, "pydicom + Pillow": plain}
    if importlib.util.find_spec("monai"):
        readers["MONAI"] = monai()
    (folder / "j2k").mkdir()
    radiographs = write_radiographs(folder / "j2k", max(2, count // 8))
    jpeg = race({"reduced": reduced, "in full": in_full}, radiographs)
    whole = in_full(radiographs[0])
    ct = race(readers, slices)
    best = {kind: min(v[kind] for k, v in ct.items() if k != "radscribe") for kind in KINDS}
    return {
        "ct_ms": ct,
        "ct_best_other_over_ours": {kind: round(best[kind] / ct["radscribe"][kind], 2) for kind in KINDS},
        "ct_largest_difference": round(float(np.abs(ours(slices[0]) - plain(slices[0])).max()), 6),
        "jpeg2000_ms": jpeg,
        "jpeg2000_times_faster": {kind: round(jpeg["in full"][kind] / jpeg["reduced"][kind], 2) for kind in KINDS},
        "jpeg2000_difference": difference(reduced(radiographs[0]), whole),
        "jpeg2000_uncorrected": difference(uncorrected(radiographs[0]), whole),
        "phantom_studies_per_second": round(written, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=40, help="number of CT slices; an eighth as many radiographs")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments.n, Path(folder))
    console = Console()
    for title, key in (("512x512 CT -> 256", "ct_ms"), ("2048x2048 JPEG 2000 -> 512", "jpeg2000_ms")):
        table = Table("pipeline", "ms of processor", "ms by the clock", title=title)
        for name, value in result[key].items():
            table.add_row(name, f"{value['cpu']:.2f}", f"{value['wall']:.2f}")
        console.print(table)
    if "MONAI" not in result["ct_ms"]:
        console.print("MONAI is not installed (pip install --no-deps monai): left out")
    console.print({k: v for k, v in result.items() if not k.endswith("_ms")})
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
