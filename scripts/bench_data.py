"""Times reading, windowing and resizing of 512x512 16-bit DICOM slices beside a plain pydicom + Pillow pipeline.

    python scripts/bench_data.py --n 50

The slices are phantom CT written to a temporary folder. Each pipeline gives a 256x256 float32 picture in [0, 1]; the
median over the files is printed, after one warm-up. MONAI joins in when it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from rich.console import Console
from rich.table import Table

from vlm.data.dicom import read_dicom
from vlm.data.phantoms.chest_ct import write_phantom
from vlm.data.transforms import letterbox

WINDOW, SIZE = (-300.0, 1400.0), 256


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


def monai() -> Callable[[Path], np.ndarray]:
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Resize, ScaleIntensityRange

    low, high = WINDOW[0] - WINDOW[1] / 2, WINDOW[0] + WINDOW[1] / 2
    steps = [LoadImage(image_only=True), EnsureChannelFirst(), ScaleIntensityRange(low, high, 0, 1, clip=True)]
    pipeline = Compose([*steps, Resize((SIZE, SIZE), mode="area")])
    return lambda path: np.asarray(pipeline(path))


def median_ms(read: Callable[[Path], np.ndarray], paths: list[Path]) -> float:
    """Median milliseconds a file."""
    read(paths[0])
    times = []
    for path in paths:
        start = time.perf_counter()
        read(path)
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50, help="number of slices")
    arguments = parser.parse_args()
    readers: dict[str, Callable[[Path], np.ndarray]] = {"radscribe": ours, "pydicom + Pillow": plain}
    if importlib.util.find_spec("monai"):
        readers["MONAI"] = monai()
    table = Table("pipeline", "ms a slice")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        studies = write_phantom(Path(folder), arguments.n, 0)
        written = arguments.n / (time.perf_counter() - start)
        paths = [image.path for study in studies for image in study.images if image.path]
        difference = float(np.abs(ours(paths[0]) - plain(paths[0])).max())
        for name, read in readers.items():
            table.add_row(name, f"{median_ms(read, paths):.2f}")
    console = Console()
    console.print(table)
    console.print(f"largest difference of the two pictures: {difference:.5f}; phantom: {written:.1f} studies/s written")


if __name__ == "__main__":
    main()
