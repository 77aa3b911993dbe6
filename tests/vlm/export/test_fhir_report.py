"""FHIR: the resource keeps the rules of R4 that a validator would check first."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export_reports import HOSTILE, make_report, make_study

from vlm.export.fhir import fhir_report, write_fhir

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def no_empty(value: Any) -> None:
    """FHIR forbids empty objects, arrays and strings."""
    assert value not in ({}, [], "", None)
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        no_empty(child)


def test_required_elements_and_references() -> None:
    resource = fhir_report(make_report("a b/c"), make_study(), "f" * 64, WHEN)
    assert (resource["resourceType"], resource["status"]) == ("DiagnosticReport", "preliminary")
    assert resource["code"]["coding"][0]["code"] == "18748-4"
    assert resource["id"] == "a-b-c"
    assert resource["issued"] == "2026-01-02T03:04:05+00:00"
    assert resource["conclusion"] == "Nodule."
    contained = {r["id"]: r for r in resource["contained"]}
    assert {r["reference"].removeprefix("#") for r in resource["result"]} == set(contained) - {"device"}
    for observation in (r for r in contained.values() if r["resourceType"] == "Observation"):
        assert observation["device"] == {"reference": "#device"}
        assert observation["status"] == "preliminary"
        assert "text" in observation["code"]
    no_empty(resource)
    assert "subject" not in resource


def test_a_finding_with_its_probability_side_and_box() -> None:
    nodule, heart, scar = fhir_report(make_report())["contained"][1:]
    assert nodule["valueCodeableConcept"]["coding"][0]["code"] == "52101004"
    assert nodule["interpretation"][0]["coding"][0]["code"] == "POS"
    assert nodule["bodySite"]["coding"][0]["display"] == "Right"
    assert nodule["component"][0]["valueQuantity"]["value"] == 0.91
    assert nodule["component"][1]["valueString"] == "0 11.0 6.0 21.0 16.0 confidence 0.8800"
    assert heart["valueCodeableConcept"]["coding"][0]["code"] == "2667000"
    assert scar["interpretation"][0]["coding"][0]["code"] == "IND"


def test_a_report_without_findings_has_no_empty_parts() -> None:
    bare = replace(make_report(), findings=(), sentences=(), boxes=(), sections={"findings": "Clear."})
    resource = fhir_report(bare)
    no_empty(resource)
    assert "result" not in resource
    assert "conclusion" not in resource


def test_text_is_escaped_and_also_attached_as_written(tmp_path: Path) -> None:
    write_fhir(tmp_path / "fhir" / "a.json", make_report(text=HOSTILE))
    resource = json.loads((tmp_path / "fhir" / "a.json").read_text())
    assert "<img" not in resource["text"]["div"]
    assert HOSTILE in base64.b64decode(resource["presentedForm"][0]["data"]).decode()
