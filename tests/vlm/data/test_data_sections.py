"""Sections of reports as they come: with and without colons, in capitals, in one paragraph, with addenda and marks."""

from __future__ import annotations

import time

import pytest

from vlm.data.sections import parse_sections, split_sections

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 \n INDICATION:  ___F with new onset ascites  // eval for infection
 \n COMPARISON:  None.
 \n FINDINGS: \n \n There is no focal consolidation, pleural effusion
 or pneumothorax. \n \n IMPRESSION: \n \n No acute cardiopulmonary process.
"""
CASES = [
    (MIMIC, {"indication": "XXXX F with new onset ascites // eval for infection", "comparison": "None.",
             "findings": "There is no focal consolidation, pleural effusion or pneumothorax.",
             "impression": "No acute cardiopulmonary process."}),
    ("Indication: pain. Findings: Heart normal. Impression: Normal.",
     {"indication": "pain.", "findings": "Heart normal.", "impression": "Normal."}),
    ("INDICATION Cough for XXXX XXXX. FINDINGS The lungs are clear. IMPRESSION No acute disease.",
     {"indication": "Cough for XXXX.", "findings": "The lungs are clear.", "impression": "No acute disease."}),
    ("HISTORY: FALL. FINDINGS: NO FINDINGS OF PNEUMONIA. IMPRESSION: NORMAL.",
     {"indication": "FALL.", "findings": "NO FINDINGS OF PNEUMONIA.", "impression": "NORMAL."}),
    ("FINDINGS\nHeart normal.\nIMPRESSION\n1. Normal.\n\nADDENDUM: Told to [**Name 12**].",
     {"findings": "Heart normal.", "impression": "1. Normal.", "addendum": "Told to XXXX."}),
    ("The lungs are clear. No findings of pneumonia. Impression of a nodule is not confirmed.",
     {"findings": "The lungs are clear. No findings of pneumonia. Impression of a nodule is not confirmed."}),
    (" FINAL REPORT\n CHEST RADIOGRAPH\n\n INDICATION:  Fall.\n\n COMPARISONS:  ___.\n\n The lungs are clear.",
     {"indication": "Fall.", "comparison": "XXXX.", "findings": "The lungs are clear."}),
    ("FINDINGS: Lungs clear.\nFINDINGS: Liver normal.\nRECOMMENDATION: CT.",
     {"findings": "Lungs clear. Liver normal."}),
    ("**Findings:** Clear.\r\n**Impression:** Normal.", {"findings": "Clear.", "impression": "Normal."}),
    ("", {}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_sections(text: str, expected: dict[str, str]) -> None:
    assert parse_sections(text) == expected


def test_what_was_known_before_is_apart() -> None:
    before, report = split_sections(MIMIC)
    assert (list(before), list(report)) == (["indication", "comparison"], ["findings", "impression"])


def test_no_text_takes_long() -> None:
    start = time.perf_counter()
    for text in ("FINDINGS " * 40000, " " * 300000, "a. " * 90000, "\n " * 150000, "_" * 300000, "[**" * 90000):
        parse_sections(text)
    assert time.perf_counter() - start < 15
