"""index.html: self-contained, whole, safe against what a report says, and readable again."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_reports import HOSTILE, make_report, make_study
from PIL import Image

from vlm.export.html import encode_image, failure_entry, page_entry, read_entries, write_page
from vlm.types import StudyImage, View

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def islands(page: str) -> dict[str, object]:
    """The page's data by the id of their element, as a browser would cut them out."""
    found = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    assert write_page(path, [page_entry(make_study(), make_report())], "A title & more") == 1
    page = path.read_text()
    assert "Research software, not a medical device." in page
    assert "<title>A title &amp; more</title>" in page
    assert "{{" not in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page), "loads something from elsewhere"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "default-src 'none'" in page


def test_what_a_report_says_cannot_become_markup(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    entries = [page_entry(make_study("<b>s</b>"), make_report("<b>s</b>", HOSTILE)), failure_entry("x", HOSTILE)]
    write_page(path, entries)
    page = path.read_text()
    assert "onerror=alert" in page, "the text is there"
    assert "<img src=x" not in page
    assert "</script><img" not in page
    data = islands(page)
    assert data["study-0"]["sentences"][0]["text"] == HOSTILE  # type: ignore[index]
    assert data["index"][1]["failed"] is True  # type: ignore[index]


def test_entries_come_back_from_a_page(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    entries = [page_entry(make_study(n), make_report(n)) for n in ("a", "b")]
    write_page(path, entries)
    assert list(read_entries(path)) == entries


def test_heat_maps_of_what_is_likely_or_said(tmp_path: Path) -> None:
    entry = page_entry(make_study(), make_report())
    assert set(entry["heat"]) == {"nodule", "cardiomegaly"}, "the scar is unlikely and not in the report"
    first, second = (np.frombuffer(base64.b64decode(x), np.uint8) for x in entry["heat"]["nodule"]["data"])
    assert first.reshape(4, 4)[1, 1] == 255
    assert first.sum() == 255
    assert not second.any()


def test_images_that_the_model_did_not_see_are_left_out() -> None:
    """Of four images only the third and the last have pixels: boxes, maps and truth follow them."""
    study, report = make_study(), make_report()
    unseen = StudyImage(path=Path("x.png"), view=View.OTHER)
    study.images = [unseen, unseen, study.images[0], study.images[1]]
    moved = tuple(replace(b, image=b.image + 2) for b in report.boxes)
    gone = replace(report.boxes[0], image=0)
    report = replace(report, boxes=(gone, *moved))
    report.findings = (replace(report.findings[0], boxes=(0, 1)),)
    study.boxes = (replace(study.boxes[0], image=2), replace(study.boxes[0], image=1)) if study.boxes else ()
    entry = page_entry(study, report, (2, 3))
    assert len(entry["images"]) == 2
    assert [b["image"] for b in entry["boxes"]] == [0, 1]
    assert entry["findings"][0]["boxes"] == [0]
    assert [b["image"] for b in entry["truth"]["boxes"]] == [0]
    assert np.frombuffer(base64.b64decode(entry["heat"]["nodule"]["data"][0]), np.uint8).any()


def test_no_truth_where_nothing_is_known() -> None:
    study = replace(make_study(), report=None, boxes=None, findings=None)
    assert page_entry(study, make_report())["truth"] is None


def test_an_image_is_reduced_and_keeps_its_grey_values() -> None:
    ramp = np.tile(np.linspace(0, 1, 1000, dtype=np.float32), (500, 1))
    ramp[0, 0] = np.nan
    data = base64.b64decode(encode_image(ramp, 100).removeprefix("data:image/webp;base64,"))
    image = Image.open(io.BytesIO(data)).convert("L")
    assert image.size == (100, 50)
    assert np.abs(np.asarray(image)[25] / 255 - np.linspace(0.005, 0.995, 100)).max() < 0.04


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_draws_boxes_sentences_and_the_failure(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    path = tmp_path / "index.html"
    write_page(path, [page_entry(make_study(), make_report(text=HOSTILE)), failure_entry("bad", "truncated")])
    page = path.read_text().replace("</body>", "<script>light({ sentence: 0 });</script></body>")
    path.write_text(page)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    dom = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    body = dom.rpartition("</noscript>")[0]
    assert 'class="sentence supported on"' in body
    assert 'class="sentence contradicted"' in body
    assert body.count('class="box') == 2
    assert re.search(r'class="box on"[^>]*data-box="0"|data-box="0"[^>]*class="box on"', body)
    assert "1 report, 1 failed" in body
    assert "<img src=x" not in body
