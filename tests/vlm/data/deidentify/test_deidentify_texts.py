"""Names, dates and numbers that are planted in reports and lists are found; what a report is about stays."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from vlm.cli.data import app
from vlm.data.deidentify.texts import TextScrubber
from vlm.data.sources import read_studies

RUN = CliRunner()


@pytest.mark.parametrize(
    "text, gone",
    [
        ("Discussed with Dr. John A. Smith on 3/14 at 14:32.", ["John", "Smith", "3/14", "14:32"]),
        ("Electronically signed by Jane Doe, MD on 03/14/2019 10:22 am.", ["Jane", "Doe", "2019", "10:22"]),
        ("MRN: 12345A. Accession # RX-99812.", ["12345A", "RX-99812"]),
        ("Call 555-123-4567 or (555) 123-4567, pager 44321.", ["4567", "44321"]),
        ("Comparison: March 3, 2018 and 14 Feb 2017, dated 2016-01-02.", ["March", "2018", "Feb", "2017", "2016"]),
        ("Patient: GARCIA, MARIA. DOB: 04.07.1931", ["GARCIA", "MARIA", "1931"]),
        ("Seen at St. Mary's Hospital, 12 Oak Street, Springfield, IL 62704.", ["Mary", "Oak", "Springfield", "62704"]),
        ("Mail a.b@c.org, see www.x.org/y, host 10.0.0.12.", ["a.b@", "x.org", "10.0"]),
        ("Reported to nurse Kelly Brown. Michael Johnson was informed.", ["Kelly", "Brown", "Michael", "Johnson"]),
        ("DICTATED BY JOHN DOE ON 12/03/19", ["JOHN", "DOE", "12/03"]),
        ("A 93-year-old man.", ["93"]),
        ("Radiologist: O'Brien, Pat", ["Brien", "Pat"]),
        ("Zwingli has a nodule, ZWINGLI again; order 77-88.", ["Zwingli", "ZWINGLI", "77-88"]),
    ],
)
def test_planted_identifiers_go(text: str, gone: list[str]) -> None:
    counts: Counter[str] = Counter()
    clean = TextScrubber(["ZWINGLI", "77-88"]).scrub(text, counts)
    assert all(word in text for word in gone)
    assert not [word for word in gone if word in clean], clean
    assert counts


@pytest.mark.parametrize(
    "text",
    [
        "There is a 12 mm nodule (series 3, image 45/120) at T12. 3.5 x 4.2 cm mass at the 3:00 position, HU 45.",
        "PATIENT ROTATED. NO ACUTE DISEASE. Heart size XXXX. Dr. XXXX.",
        "Findings may represent pneumonia in the right middle lobe; 2/3 of the lung; 10-12 mm; a 67-year-old.",
        "Unchanged since 2015. 5th rib fracture. Grade 2/6. C3/4 disc. 100 mL/min. EF 45%. Mr signal.",
    ],
)
def test_findings_stay(text: str) -> None:
    counts: Counter[str] = Counter()
    assert TextScrubber(["Zwingli"]).scrub(text, counts) == text
    assert not counts


def test_real_reports_without_identifiers_are_left_alone(shared_data: Path) -> None:
    with (shared_data / "openi" / "indiana_reports.csv").open(encoding="utf-8") as stream:
        reports = [row["findings"] + " " + row["impression"] for row in csv.DictReader(stream)][:800]
    scrubber, counts = TextScrubber(), Counter[str]()
    for text in reports:
        scrubber.scrub(text, counts)
    assert sum(counts.values()) <= 2, counts


def test_a_list_stays_a_list(tmp_path: Path) -> None:
    """Ids, file names and references change together; labels, boxes and what was found stay."""
    source, out = tmp_path / "src", tmp_path / "out"
    (source / "images").mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    for name in ("Doe_Jane_1.png", "Doe_Jane_2.png"):
        cv2.imwrite(str(source / "images" / name), picture)
    studies = [
        {
            "id": f"Doe-{i}", "patient": "MRN-4711", "split": "train",
            "images": [{"file": f"images/Doe_Jane_{i}.png", "view": "frontal", "modality": "xray"}],
            "findings": [{"label": "nodule", "certainty": "present", "side": "left", "boxes": [0]}],
            "boxes": [{"xyxy": [1, 2, 9, 12], "label": "nodule", "image": 0}],
            "report": {"findings": f"Dr. Miller saw a 12 mm nodule on 03/0{i}/2019."},
        }
        for i in (1, 2)
    ]  # fmt: skip
    (source / "studies.jsonl").write_text("".join(json.dumps(s) + "\n" for s in studies))
    header = "patient_id,image,Referring Physician,study_date,text"
    both = "images/Doe_Jane_1.png;images/Doe_Jane_2.png"
    (source / "reports.csv").write_text(f"{header}\nMRN-4711,{both},Miller,2019-03-01,No mass.\n")
    done = RUN.invoke(app, ["deidentify", str(source), "--out", str(out)])
    assert done.exit_code == 0, done.output
    everything = " ".join(p.as_posix().removeprefix(tmp_path.as_posix()) + p.read_bytes().decode("latin-1")
                          for p in out.rglob("*") if p.is_file())  # fmt: skip
    for word in ("Doe", "Jane", "4711", "Miller", "2019"):
        assert word not in everything
    read = read_studies(out)
    assert len(read) == 2
    assert read[0].patient == read[1].patient
    assert read[0].id != read[1].id
    assert all(s.images[0].path is not None and s.images[0].path.is_file() for s in read)
    assert read[0].boxes is not None
    assert read[0].boxes[0].xyxy == (1, 2, 9, 12)
    assert read[0].report == {"findings": "Dr. XXXX saw a 12 mm nodule on XXXX."}
    (row,) = csv.DictReader((out / "reports.csv").open())
    assert row["patient_id"] == read[0].patient
    assert [(out / name).is_file() for name in row["image"].split(";")] == [True, True]
    assert (row["Referring Physician"], row["study_date"], row["text"]) == ("XXXX", "", "No mass.")
