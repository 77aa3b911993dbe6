"""Explanations and traces: in the JSON line, on the page, and back."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from export_reports import HOSTILE, make_report, make_study

from vlm.export.html import page_entry, write_page
from vlm.export.jsonl import report_from_dict, report_to_dict
from vlm.export.trace_entry import trace_entry

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TRACE = {
    "steps": [
        {"section": "findings", "step": 1, "cut": [],
         "beams": [{"text": "A", "score": -1.0, "state": {"n": "open", "m": "banned"}, "bank": 0},
                   {"text": "No", "score": -2.0, "state": {"n": "open", "m": "banned"}, "bank": 0}]},
        {"section": "findings", "step": 2, "cut": [{"text": "A mass", "rule": "must_not_assert"}],
         "beams": [{"text": "No ab", "score": -2.5, "state": {"n": "open"}, "bank": 0},
                   {"text": "A n", "score": -3.0, "state": {"n": "held", "m": "banned"}, "bank": 1}]},
        {"section": "impression", "step": 1, "cut": [],
         "beams": [{"text": "No abs", "score": -1.0, "state": {}, "bank": 0}]},
    ]
}  # fmt: skip


def explanation(image: int = 1) -> dict[str, Any]:
    place = {"image": image, "xyxy": [1.0, 2.0, 9.0, 12.0], "peak": [5.0, 7.0], "where": "upper third, midline",
             "share": 0.4, "change": 0.8}  # fmt: skip
    neighbour = {"concept": "mass", "name": HOSTILE, "via": "edge", "relations": ["suggests"], "weight": 0.6,
                 "change": -0.25}  # fmt: skip
    own = {
        "logit": 2.3, "probability": 0.91, "image": place, "views": [{"image": 0, "share": 0.6, "change": 0.1},
        {"image": 1, "share": 0.4, "change": 0.2}], "boxes": [0, 1], "gate": 0.31, "fusion": {"change": 0.05},
        "neighbours": [neighbour], "left_out": {"count": 3, "largest": 0.01},
    }  # fmt: skip
    return {"measure": "change", "findings": {"nodule": own}}


def test_a_trace_is_kept_whole_in_less_space() -> None:
    packed = trace_entry(TRACE)
    assert packed["names"] == ["n", "m"]
    assert packed["steps"][1]["beams"] == [[1, " ab", -2.5, 0, "o."], [0, " n", -3.0, 1, "hb"]]
    assert packed["steps"][1]["cut"] == [[0, " mass", "must_not_assert"]]
    # A new section starts anew, whatever its text has in common with the last.
    assert packed["steps"][2]["beams"] == [[-1, "No abs", -1.0, 0, ".."]]


def test_an_explanation_is_in_the_line_and_comes_back() -> None:
    report = replace(make_report(), explanation=explanation(), trace=TRACE)
    row = report_to_dict(report, make_study())
    assert row["explanation"] == explanation()
    assert "trace" not in row, "it has files of its own"
    assert report_from_dict(row).explanation == explanation()
    assert "explanation" not in report_to_dict(make_report())


def test_the_page_counts_its_own_images_and_boxes() -> None:
    study = make_study()
    study.images[0].pixels = None  # not shown: the second image is the page's first, and the first box is gone
    entry = page_entry(study, replace(make_report(), explanation=explanation()))
    own = entry["explanation"]["findings"]["nodule"]
    assert own["image"]["image"] == 0
    assert own["views"] == [{"image": 0, "share": 0.4, "change": 0.2}]
    assert own["boxes"] == [0]
    assert entry["boxes"][0]["label"] == "mass"
    hidden = page_entry(study, replace(make_report(), explanation=explanation(image=0)))
    assert hidden["explanation"]["findings"]["nodule"]["image"] is None


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
def test_a_browser_shows_why_and_how(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    write_page(path, [page_entry(make_study(), replace(make_report(), explanation=explanation(), trace=TRACE))])
    # The panel opens by a click: a line of script that the page does not have makes it.
    text = path.read_text().replace("</script>\n</body>", 'showWhy("nodule");</script>\n</body>')
    assert 'showWhy("nodule");</script>' in text
    path.write_text(text)
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    dom = subprocess.run(
        [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout.partition("</head>")[2]  # fmt: skip
    assert "It looked most at the lateral view, upper third, midline: 40% of its attention" in dom
    assert "90.9% → 81.8%" in dom  # sigmoid(2.3 - 0.8)
    assert "0.31 of what the neighbours say is added" in dom
    assert "3 more move it by 0.01 log odds at most" in dom
    assert '<rect class="place"' in dom
    assert "Impression, word piece 1 (3 of 3)" in dom
    assert 'class="cutmark"' in dom
    assert "<img src=x" not in dom
