"""One self-contained page for a set of reports: images with boxes, heat maps on demand, sentences that show their
evidence.

A study becomes a *page entry*, plain JSON values with its images embedded as compressed WebP, as soon as its report
is made; the page is put together from the entries one by one. So neither the pixels nor the page of several hundred
studies is ever held in memory, and a browser decodes a study only when it is opened. The page loads nothing from
anywhere (its content policy forbids it).

Page entry: {"id", "images": [{"src", "thumb", "width", "height", "view", "modality", "mm", "marks", "slice"}],
"clinical", "sections", "sentences", "findings", "boxes", "unmet", "heat": {label: {"h", "w", "data": [base64 per
image]}}, "truth"?, "explanation"?, "trace"? (`trace_entry`)}; a failed study's is {"id", "error"}. `mm` is the width of
one displayed pixel.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm.export.files import whole_file
from vlm.export.jsonl import report_to_dict, slice_to_dict
from vlm.export.trace_entry import trace_entry
from vlm.types import Report, Study, StudyImage, View

MARKED_VIEWS = (View.FRONTAL, View.AXIAL, View.CORONAL)
"""Views in which the patient's right is at the viewer's left, so that R and L can be written."""
MAX_HEAT_SIDE = 32
HEAT_FROM = 0.2
"""A finding less likely than this gets a heat map only when the report speaks of it."""
THUMB_SIDE = 92
_ISLAND = '<script type="application/json" id="study-'


def encode_image(pixels: np.ndarray, max_side: int = 768, quality: int = 82) -> str:
    """A grey image as a WebP data URI.

    Args:
        pixels: (H, W) floating point in [0, 1]; values outside are clipped.
        max_side: the longer side is reduced to this many pixels.
        quality: WebP quality, 1 to 100.
    """
    grey = (np.clip(np.nan_to_num(pixels), 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
    image = Image.fromarray(grey)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _encode_heat(maps: np.ndarray, views: Mapping[int, int], images: int) -> dict[str, Any]:
    """(V, h, w) attention -> bytes per shown image, scaled by the largest value of all views so that views compare."""
    maps = np.nan_to_num(np.asarray(maps, dtype=np.float32))
    step = -(-max(maps.shape[1:]) // MAX_HEAT_SIDE)
    if step > 1:
        height, width = (side // step * step for side in maps.shape[1:])
        maps = maps[:, :height, :width].reshape(len(maps), height // step, step, width // step, step).mean((2, 4))
    peak = float(maps.max(initial=0.0))
    levels = (np.clip(maps / peak if peak > 0 else maps, 0, 1) * 255 + 0.5).astype(np.uint8)
    return {
        "h": maps.shape[1],
        "w": maps.shape[2],
        "data": [
            base64.b64encode(levels[views[i]].tobytes()).decode("ascii")
            if views.get(i, len(levels)) < len(levels)
            else ""
            for i in range(images)
        ],
    }


def _image_entry(image: StudyImage, max_side: int) -> dict[str, Any]:
    if image.pixels is None:
        raise ValueError("page_entry needs images whose pixels are read")
    height, width = image.pixels.shape
    return {
        "src": encode_image(image.pixels, max_side),
        "thumb": encode_image(image.pixels, THUMB_SIDE, 70),
        "width": width,
        "height": height,
        "view": None if image.view is None else str(image.view),
        "modality": None if image.modality is None else str(image.modality),
        "mm": None if image.spacing_mm is None else image.spacing_mm[1],
        "marks": image.view in MARKED_VIEWS,
        "slice": slice_to_dict(image.place),
    }


def _truth(study: Study, shown: Mapping[int, int]) -> dict[str, Any] | None:
    """What is known of the study: reference report, boxes, labels; None when nothing is."""
    if study.report is None and study.boxes is None and study.findings is None:
        return None
    report = study.report or {}
    return {
        "sections": {name: report[name] for name in ("findings", "impression") if report.get(name)},
        "boxes": [
            {"xyxy": [round(float(v), 2) for v in b.xyxy], "label": b.label, "image": shown[b.image]}
            for b in study.boxes or ()
            if b.image in shown
        ],
        "labels": None
        if study.findings is None
        else {f.label: str(f.certainty) for f in study.findings if f.certainty is not None},
    }


def page_entry(study: Study, report: Report, seen: Sequence[int] | None = None, max_side: int = 768) -> dict[str, Any]:
    """A report and its study as a page entry (module's docstring).

    Only images with pixels are embedded: of a volume of 300 slices a page wants those that the model saw. Boxes on the
    others are left out of the page.

    Args:
        study: its report, boxes and findings, where known, are shown beside as the reference.
        report: what the pipeline returned for it.
        seen: for each view of the attention maps, its index in the study's images; None: the first ones, in order.
        max_side: longer side of the embedded images, in pixels.
    """
    shown = {
        index: place for place, index in enumerate(i for i, im in enumerate(study.images) if im.pixels is not None)
    }
    row = report_to_dict(report)
    row.pop("text")
    renumber = {n: m for m, n in enumerate(n for n, b in enumerate(report.boxes) if b.image in shown)}
    row["boxes"] = [{**row["boxes"][n], "image": shown[report.boxes[n].image]} for n in renumber]
    for part in (*row["findings"], *row["sentences"], *row.get("abstained", ())):
        part["boxes"] = [renumber[n] for n in part["boxes"] if n in renumber]
    views = {shown[i]: v for v, i in enumerate(seen if seen is not None else range(len(study.images))) if i in shown}
    said = {label for s in report.sentences for label in s.labels}
    leading = {f.label for f in report.findings if f.probability is None or f.probability >= HEAT_FROM} | said
    return {
        **row,
        **_explained(report, shown, renumber),
        **({} if report.trace is None else {"trace": trace_entry(report.trace)}),
        "images": [_image_entry(study.images[index], max_side) for index in shown],
        "clinical": {k: v for k, v in study.clinical.items() if v},
        "heat": {n: _encode_heat(m, views, len(shown)) for n, m in report.attention.items() if n in leading},
        "truth": _truth(study, shown),
    }


def _explained(report: Report, shown: Mapping[int, int], boxes: Mapping[int, int]) -> dict[str, Any]:
    """The explanation with the page's numbers of images and boxes."""
    if report.explanation is None:
        return {}
    findings = {}
    for label, own in report.explanation["findings"].items():
        place = own["image"]
        findings[label] = {
            **own,
            "image": {**place, "image": shown[place["image"]]} if place["image"] in shown else None,
            "views": [{**v, "image": shown[v["image"]]} for v in own["views"] if v["image"] in shown],
            "boxes": [boxes[n] for n in own["boxes"] if n in boxes],
        }
    return {"explanation": {**report.explanation, "findings": findings}}


def failure_entry(study_id: str, message: str) -> dict[str, Any]:
    """A study without a report, as a page entry."""
    return {
        "id": study_id,
        "error": message,
        "images": [],
        "sections": {},
        "sentences": [],
        "findings": [],
        "boxes": [],
        "unmet": [],
        "heat": {},
        "clinical": {},
        "truth": None,
    }


def _index_line(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the list of studies shows of an entry."""
    images = entry["images"]
    said = [f["label"] for f in entry["findings"] if f["certainty"] == "present"]
    return {
        "id": entry["id"],
        "thumb": images[0]["thumb"] if images else None,
        "said": said,
        "contradicted": sum(s["status"] == "contradicted" for s in entry["sentences"]),
        "failed": "error" in entry,
        "truth": entry["truth"] is not None,
    }


def _island(name: str, value: Any) -> str:
    """JSON inside a script element: `<` is written as an escape, so that no text can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def write_page(
    path: Path,
    entries: Iterable[Mapping[str, Any]],
    title: str = "Radscribe",
    facts: Sequence[tuple[str, str]] = (),
) -> int:
    """Writes the page, whole or not at all.

    Args:
        path: file to write.
        entries: page entries, in the order of the list; read one by one.
        title: the page's heading.
        facts: (name, value) pairs shown under the list: the checkpoint, settings, scores.

    Returns:
        Number of studies on the page.
    """
    folder = resources.files("vlm.export")
    head, _, tail = folder.joinpath("page.html").read_text(encoding="utf-8").partition("{{DATA}}")
    head = head.replace("{{TITLE}}", html.escape(title))
    head = head.replace("{{CSS}}", folder.joinpath("page.css").read_text(encoding="utf-8"))
    scripts = [folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.js", "page.explain.js")]
    tail = tail.replace("{{JS}}", "\n".join(scripts))
    index: list[dict[str, Any]] = []
    with whole_file(path) as file:
        file.write(head.encode("utf-8"))
        for entry in entries:
            file.write(_island(f"study-{len(index)}", entry).encode("utf-8"))
            index.append(_index_line(entry))
        file.write(_island("index", index).encode("utf-8"))
        file.write(_island("meta", {"title": title, "facts": [list(fact) for fact in facts]}).encode("utf-8"))
        file.write(tail.encode("utf-8"))
    return len(index)


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a page that `write_page` wrote, in its order; a file that is no such page has none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(_ISLAND) and line.endswith("</script>\n"):
                yield json.loads(line.partition(">")[2].removesuffix("</script>\n"))
