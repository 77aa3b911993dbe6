"""What a machine can do: versions, devices, and whether each optional part works, tried and not only found.

Every import is guarded: a package that is missing, or broken, is one line of the answer, and the rest goes on. Nothing
heavy is imported at the top, so that this works where nothing else does.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "missing", "broken", "off"]

NEEDED = {
    "accelerate": "accelerate", "bitsandbytes": "bitsandbytes", "cv2": "opencv-python-headless",
    "datasets": "datasets", "evaluate": "evaluate", "matplotlib": "matplotlib", "networkx": "networkx",
    "nibabel": "nibabel", "nltk": "nltk", "numpy": "numpy", "obonet": "obonet", "peft": "peft", "PIL": "pillow",
    "psutil": "psutil", "pydantic": "pydantic", "pydicom": "pydicom", "yaml": "pyyaml",
    "safetensors": "safetensors", "timm": "timm", "tokenizers": "tokenizers", "torch": "torch",
    "torchvision": "torchvision", "transformers": "transformers",
}  # fmt: skip
"""Packages that Radscribe is installed with: what they are imported as -> what pip calls them."""

TRACKERS = {
    "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "comet_ml": "comet-ml", "aim": "aim",
    "clearml": "clearml", "dvclive": "dvclive", "swanlab": "swanlab", "trackio": "trackio",
}  # fmt: skip
"""Trackers that Accelerate knows by name, with what pip calls them."""

CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")

SYNTAXES = {
    "uncompressed": ("1.2.840.10008.1.2.1", ""),
    "deflated": ("1.2.840.10008.1.2.1.99", ""),
    "RLE": ("1.2.840.10008.1.2.5", ""),
    "JPEG baseline": ("1.2.840.10008.1.2.4.50", "pylibjpeg pylibjpeg-libjpeg"),
    "JPEG lossless": ("1.2.840.10008.1.2.4.70", "pylibjpeg pylibjpeg-libjpeg"),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", "pylibjpeg pylibjpeg-libjpeg"),
    "JPEG 2000": ("1.2.840.10008.1.2.4.90", "pylibjpeg pylibjpeg-openjpeg"),
    "HTJ2K": ("1.2.840.10008.1.2.4.201", "pylibjpeg pylibjpeg-openjpeg"),
}
"""DICOM transfer syntaxes with the packages that decode them."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the answer.

    Args:
        state: "off" is a part that this machine does not have or that nobody asked for; nothing is wrong with it.
        group: versions, devices or parts. name: of the part. note: version, measure, or what to do.
    """

    state: State
    group: str
    name: str
    note: str


class Off(Exception):
    """A part that is not there and need not be; the message says how to have it."""


def examine() -> Iterator[Line]:
    """Looks at everything, one line after another."""
    with _quiet():
        yield from versions()
        yield from devices()
        for name, attempt in PARTS.items():
            yield _tried(name, attempt)


@contextmanager
def _quiet() -> Iterator[None]:
    """What libraries remark while they are tried is no part of the answer."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def versions() -> Iterator[Line]:
    """Radscribe's own version, Python's, and those of the packages that it needs; each is really imported."""
    from vlm import __version__

    yield Line("ok", "versions", "radscribe", __version__)
    yield Line("ok", "versions", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for module, package in NEEDED.items():
        try:
            importlib.import_module(module)
            yield Line("ok", "versions", package, version(package))
        except ModuleNotFoundError as error:
            yield Line("missing", "versions", package, _missing(error, module, package))
        except PackageNotFoundError:
            yield Line("ok", "versions", package, "of unknown version")
        except Exception as error:  # whatever a half-installed package raises is the answer
            yield Line("broken", "versions", package, f"{_short(error)}; pip install --force-reinstall {package}")


def _missing(error: ModuleNotFoundError, module: str, package: str) -> str:
    """What to install: the package itself, or what it could not import."""
    other = (error.name or module).partition(".")[0]
    wanted = package if other == module else NEEDED.get(other, other)
    return f"missing: pip install {wanted}" + ("" if wanted == package else f" (which {package} needs)")


def devices() -> Iterator[Line]:
    """Processor, memory and accelerators."""
    flags = _cpu_flags()
    found = [f for f in CPU_FEATURES if f in flags]
    cores = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count()
    yield Line("ok", "devices", "cpu", f"{cores} cores; {', '.join(found) or 'features unknown'}")
    total, free = memory()
    if total:
        yield Line("ok", "devices", "memory", f"{total / 2**30:.1f} GB, {free / 2**30:.1f} GB free")
    try:
        import torch
    except Exception as error:
        yield Line("missing", "devices", "torch", f"devices unknown: {_short(error)}")
        return
    yield Line(
        "ok", "devices", "torch on the cpu",
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        f", bf16 {'in hardware' if {'avx512_bf16', 'amx_bf16'} & set(flags) else 'emulated, slower than float32'}",
    )  # fmt: skip
    if not torch.cuda.is_available():
        yield Line("off", "devices", "cuda", f"no GPU that torch {torch.__version__} can use")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        left, _ = torch.cuda.mem_get_info(index)
        yield Line(
            "ok", "devices", f"cuda:{index}",
            f"{facts.name}, {facts.total_memory / 2**30:.1f} GB, {left / 2**30:.1f} GB free, "
            f"bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}",
        )  # fmt: skip
    kinds = [n for n in ("gloo", "nccl") if getattr(torch.distributed, f"is_{n}_available")()]
    yield Line("ok" if kinds else "off", "devices", "several processes", ", ".join(kinds) or "torch has no backend")


def memory() -> tuple[int, int]:
    """Bytes of memory that this process may have, and that are free; a container's limit counts. (0, 0) if unknown."""
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        total, free = (int(rows[k].split()[0]) * 1024 for k in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        try:
            import psutil
        except ImportError:
            return 0, 0
        found = psutil.virtual_memory()
        total, free = found.total, found.available
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return min(total, limit), min(free, max(0, limit - used))
    except (OSError, ValueError):
        return total, free


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    return frozenset(next((line for line in text.splitlines() if line.startswith("flags")), "").split())


def _tried(name: str, attempt: Callable[[], str]) -> Line:
    try:
        return Line("ok", "parts", name, attempt())
    except Off as why:
        return Line("off", "parts", name, str(why))
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        return Line("missing", "parts", name, f"missing: pip install {NEEDED.get(module, module)}")
    except Exception as error:  # any failure of a part is what is asked for
        return Line("broken", "parts", name, _short(error))


def _bits(kind: str) -> Callable[[], str]:
    def attempt() -> str:
        """Holds a layer in few bits, runs it forward and backward, and compares."""
        import bitsandbytes
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        plain = torch.nn.Linear(128, 128, bias=False)
        layer: Any
        if kind == "nf4":
            layer = bitsandbytes.nn.Linear4bit(128, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        else:
            layer = bitsandbytes.nn.Linear8bitLt(128, 128, bias=False, has_fp16_weights=False)
        layer.load_state_dict(plain.state_dict())
        layer.to(device)
        x = torch.randn(4, 128, requires_grad=True, device=device)
        out = layer(x)
        out.sum().backward()
        wanted = plain.to(device)(x)
        error = float((out - wanted).detach().norm() / wanted.detach().norm())
        if error > 0.2 or x.grad is None:
            raise RuntimeError(f"computes something else on the {device}: relative error {error:.2f}")
        return f"works on the {device}, relative error {error:.3f}"

    return attempt


def _dicom(uid: str, packages: str) -> Callable[[], str]:
    def attempt() -> str:
        from pydicom.pixels import get_decoder

        decoder = get_decoder(uid)
        if not decoder.is_available:
            raise Off(f"missing: pip install {packages}" if packages else "this pydicom has no decoder for it")
        return ", ".join(decoder.available_plugins) or "read as it is"

    return attempt


def _nifti() -> str:
    import nibabel
    import numpy as np

    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    again = nibabel.Nifti1Image.from_bytes(image.to_bytes())
    if not np.array_equal(np.asarray(again.dataobj), np.arange(8).reshape(2, 2, 2)):
        raise RuntimeError("a volume was read other than it was written")
    return "writes and reads a volume"


def _meteor() -> str:
    from vlm.evaluation.meteor_java import meteor_jar

    if shutil.which("java") is None:
        raise Off("METEOR is scored without synonyms; for the original install Java and pycocoevalcap")
    jar = meteor_jar()
    if jar is None:
        raise Off("Java is here, the METEOR 1.5 jar is not: pip install pycocoevalcap, or set METEOR_JAR")
    return f"{jar.name} with {shutil.which('java')}"


def _tracker(module: str, package: str) -> Callable[[], str]:
    def attempt() -> str:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            raise Off(f"for training.trackers: pip install {package}") from None
        return version(package)

    return attempt


def _deepspeed() -> str:
    try:
        importlib.import_module("deepspeed")
    except ModuleNotFoundError:
        raise Off("for ZeRO: pip install deepspeed") from None
    return version("deepspeed")


def _shipped() -> str:
    """Loads the checkpoint that comes with the package and lets it look at a picture."""
    import torch
    from transformers.utils import logging as transformers_logging

    from vlm.checkpoint import RECORD, SHIPPED, load_checkpoint

    if not (SHIPPED / RECORD).is_file():
        raise Off("this installation comes without one; train one, or name a folder with --checkpoint")
    transformers_logging.disable_progress_bar()
    begun = time.monotonic()
    found = load_checkpoint()
    size = found.config.data.image_size.get("default", 256)
    with torch.inference_mode():
        maps = found.model.vision(torch.zeros(1, 1, size, size))
    if not all(bool(m.isfinite().all()) for m in maps):
        raise RuntimeError("its vision model answers with numbers that are not finite")
    size = sum(p.numel() for p in found.model.parameters())
    return f"loads in {time.monotonic() - begun:.1f} s: {size / 1e6:.1f} million parameters, {len(found.labels)} labels"


def _short(error: Exception) -> str:
    line = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


PARTS: dict[str, Callable[[], str]] = {
    "4-bit weights (nf4)": _bits("nf4"),
    "8-bit weights (int8)": _bits("int8"),
    **{f"DICOM {name}": _dicom(*of) for name, of in SYNTAXES.items()},
    "NIfTI": _nifti,
    "METEOR with Java": _meteor,
    "DeepSpeed": _deepspeed,
    **{f"tracker {name}": _tracker(name, package) for name, package in TRACKERS.items()},
    "shipped checkpoint": _shipped,
}
"""Optional parts -> what tries them."""
