"""A report as a FHIR R4 DiagnosticReport, with its findings as contained Observations (https://hl7.org/fhir/R4).

The status is "preliminary": no person has read the study. Nothing about the patient is written: no subject, no dates
of the study, only `Study.id`. A box is a component of its finding's Observation, "image x1 y1 x2 y2" in pixels as
displayed, because R4 has no resource for a region of an image (ImagingSelection came with R5).
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from knowledge.ontology import Certainty
from vlm import __version__
from vlm.export.files import write_whole
from vlm.types import Finding, Report, Study

_SNOMED = "http://snomed.info/sct"
_CERTAINTY = {
    Certainty.PRESENT: ({"system": _SNOMED, "code": "52101004", "display": "Present"}, "POS", "Positive"),
    Certainty.ABSENT: ({"system": _SNOMED, "code": "2667000", "display": "Absent"}, "NEG", "Negative"),
    Certainty.UNCERTAIN: ({"system": _SNOMED, "code": "82334004", "display": "Indeterminate"}, "IND", "Indeterminate"),
}
_SIDES = {
    "left": {"system": _SNOMED, "code": "7771000", "display": "Left"},
    "right": {"system": _SNOMED, "code": "24028007", "display": "Right"},
    "bilateral": {"system": _SNOMED, "code": "51440002", "display": "Right and left"},
}
_CATEGORY = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD", "display": "Radiology"}]
}
_STUDY_CODE = {"coding": [{"system": "http://loinc.org", "code": "18748-4", "display": "Diagnostic imaging study"}]}
_NOTICE = "Written by research software. Not a medical device, not verified by a physician."


def _observation(finding: Finding, number: int, report: Report) -> dict[str, Any]:
    resource: dict[str, Any] = {
        "resourceType": "Observation",
        "id": f"finding-{number}",
        "status": "preliminary",
        "category": [
            {
                "coding": [
                    {"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "imaging"},
                ]
            }
        ],
        "code": {"text": finding.label.replace("_", " ")},
        "device": {"reference": "#device"},
    }
    if finding.certainty is None:
        resource["dataAbsentReason"] = {
            "coding": [
                {"system": "http://terminology.hl7.org/CodeSystem/data-absent-reason", "code": "unknown"},
            ]
        }
    else:
        value, code, display = _CERTAINTY[finding.certainty]
        resource["valueCodeableConcept"] = {"coding": [value]}
        interpretation = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
        resource["interpretation"] = [{"coding": [{"system": interpretation, "code": code, "display": display}]}]
    if finding.side is not None:
        resource["bodySite"] = {"coding": [_SIDES[finding.side]]}
    component: list[dict[str, Any]] = []
    if finding.probability is not None:
        quantity = {
            "value": round(float(finding.probability), 4),
            "system": "http://unitsofmeasure.org",
            "code": "1",
        }
        component.append({"code": {"text": "probability"}, "valueQuantity": quantity})
    for index in finding.boxes:
        box = report.boxes[index]
        sure = "" if box.confidence is None else f" confidence {box.confidence:.4f}"
        place = " ".join(f"{v:.1f}" for v in box.xyxy)
        component.append(
            {
                "code": {"text": "box: image x1 y1 x2 y2, pixels as displayed"},
                "valueString": f"{box.image} {place}{sure}",
            }
        )
    if component:
        resource["component"] = component
    return resource


def fhir_report(
    report: Report, study: Study | None = None, checkpoint: str = "", issued: datetime | None = None
) -> dict[str, Any]:
    """A report as a DiagnosticReport resource.

    Args:
        report: findings become Observations, the impression becomes the conclusion.
        study: for the modality in the code's text; nothing else of it is written.
        checkpoint: hash of what wrote the report; goes to the device's version.
        issued: when; None for now.
    """
    text = "\n\n".join(f"{name.capitalize()}: {body}" for name, body in report.sections.items())
    paragraphs = "".join(
        f"<h3>{html.escape(name.capitalize())}</h3><p>{html.escape(body)}</p>" for name, body in report.sections.items()
    )
    observations = [_observation(finding, n, report) for n, finding in enumerate(report.findings, start=1)]
    version = [{"value": f"radscribe {__version__}"}]
    if checkpoint:
        version.append({"value": f"checkpoint {checkpoint[:12]}"})
    device = {
        "resourceType": "Device",
        "id": "device",
        "deviceName": [{"name": "Radscribe", "type": "manufacturer-name"}],
        "type": {"text": "report generation software (research)"},
        "version": version,
    }
    modalities = sorted({str(i.modality) for i in study.images if i.modality}) if study is not None else []
    code = {**_STUDY_CODE, "text": f"Imaging report ({', '.join(modalities)})"} if modalities else _STUDY_CODE
    resource: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        "id": re.sub(r"[^A-Za-z0-9.-]", "-", report.study_id)[:64] or "report",
        "text": {
            "status": "generated",
            "div": f'<div xmlns="http://www.w3.org/1999/xhtml"><p>{_NOTICE}</p>{paragraphs}</div>',
        },
        "contained": [*([device] if observations else []), *observations],
        "identifier": [{"system": "urn:radscribe:study", "value": report.study_id}],
        "status": "preliminary",
        "category": [_CATEGORY],
        "code": code,
        "issued": (issued or datetime.now(UTC)).isoformat(timespec="seconds"),
        "result": [{"reference": f"#{o['id']}"} for o in observations],
        "presentedForm": [
            {"contentType": "text/plain; charset=utf-8", "data": base64.b64encode(text.encode()).decode("ascii")}
        ],
    }
    if report.sections.get("impression"):
        resource["conclusion"] = report.sections["impression"]
    # FHIR forbids empty arrays.
    return {key: value for key, value in resource.items() if value != []}


def write_fhir(path: Path, report: Report, study: Study | None = None, checkpoint: str = "") -> None:
    """Writes `fhir_report` as a JSON file, whole or not at all."""
    resource: Mapping[str, Any] = fhir_report(report, study, checkpoint)
    write_whole(path, json.dumps(resource, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
