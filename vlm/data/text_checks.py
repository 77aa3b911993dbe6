"""Texts of a study, checked one by one: placeholders, sections in the wrong place, and what contradicts the metadata.

All but the side of a finding are judged by patterns. They are for a person to look at, so each says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from knowledge.extraction import ReportReader
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty
from vlm.data.issues import Issue
from vlm.types import Box, Modality, Study, View

PLACEHOLDER = re.compile(r"\s*(replace this\b.*|n/?a|none|null|nan|tbd|todo|test|lorem ipsum.*|[x\s.]+)\s*\.?\s*", re.I)
HEADING = re.compile(r"\b(findings|impression|indication|comparison|technique)\s*:", re.I)
_BROKEN = re.compile(r"\ufffd|Ã[\x80-\xbf©¨¼¶¤±]|â€|</?(?:br|p|div|span|b)\b[^>]{0,40}>", re.I)
_REASON = re.compile(
    r"\b(\d+[- ]?(?:year|yr|y)[- ]?(?:old|o)\b|rule out\b|r/o\b|evaluate for\b|presents? with\b|history of\b.{0,40}$)",
    re.I,
)
_SEEN = re.compile(
    r"\b(lungs? (?:are|is|appear)\b.{0,20}\bclear|heart (?:size )?(?:is|appears)|no (?:focal|pleural|pneumothorax)|"
    r"unremarkable|within normal limits)\b",
    re.I,
)
_CONCLUSION = re.compile(r"^\s*(?:1[.)]|impression\b)|\bno acute cardiopulmonary\b", re.I)
_PLANES = {
    View.AXIAL: re.compile(r"\b(axial|transverse)\b", re.I),
    View.CORONAL: re.compile(r"\bcoronal\b", re.I),
    View.SAGITTAL: re.compile(r"\bsagittal\b", re.I),
}
_SINGLE = re.compile(r"\b(?:single|one|solitary)\s+(?:\w+\s+){0,2}?(ap|pa|frontal|lateral)\b[^.]{0,20}\bview\b", re.I)
_ONLY_LATERAL = re.compile(r"\blateral (?:view|projection) only\b", re.I)
_MODALITIES = {
    Modality.CT: re.compile(r"\b(?:CT|CTA|computed tomograph\w*)\b"),
    Modality.MR: re.compile(r"\b(?:MRI?|MRA|T[12][- ]?(?:weighted|WI?)|FLAIR|STIR)\b"),
    Modality.XRAY: re.compile(r"\b(?:radiographs?|x-?rays?|plain films?)\b", re.I),
    Modality.ULTRASOUND: re.compile(r"\b(?:ultrasound|sonogra\w+|doppler)\b", re.I),
}
_SIDED = re.compile(r"\b(left|right)\b", re.I)
_OPPOSITE = {"left": "right", "right": "left"}


def check_sections(study: Study) -> Iterator[Issue]:
    """Empty, placeholder, swapped or doubled sections."""
    report = study.report or {}
    for name, text in {**study.clinical, **report}.items():
        yield from _check_section(study.id, name, text)
    findings, impression = report.get("findings", ""), report.get("impression", "")
    if report.get("impression") and not findings:
        yield Issue("warning", "no findings section", study.id, "has an impression and no findings")
    if findings and impression:
        if findings.strip().lower() == impression.strip().lower() and len(findings) > 40:
            yield Issue("warning", "same sections", study.id, "findings and impression are the same text")
        elif _CONCLUSION.search(findings) and _SEEN.search(impression) and len(impression) > 2 * len(findings):
            text = f"findings {findings.strip()[:50]!r} read like an impression, and are much shorter than it"
            yield Issue("warning", "sections swapped", study.id, text)


def _check_section(study: str, name: str, text: str) -> Iterator[Issue]:
    if not text.strip():
        yield Issue("warning", "empty section", study, f"the section {name} is empty")
    elif PLACEHOLDER.fullmatch(text):
        if name in ("findings", "impression"):
            yield Issue("warning", "placeholder", study, f"the section {name} reads {text.strip()[:60]!r}")
    elif name in ("findings", "impression"):
        words = text.split()
        if len(words) >= 4 and sum("XXXX" in word for word in words) > 0.4 * len(words):
            yield Issue("warning", "mostly masked", study, f"more than 4 in 10 words of {name} are XXXX")
        if name == "findings" and _REASON.match(text.strip()) and not _SEEN.search(text):
            yield Issue("warning", "sections swapped", study, f"findings {text.strip()[:50]!r} read like an indication")
    elif name == "indication" and len(_SEEN.findall(text)) >= 2:
        yield Issue("warning", "sections swapped", study, f"indication {text.strip()[:50]!r} reads like findings")
    for match in HEADING.finditer(text):
        if match[1].lower() != name:
            yield Issue("warning", "section in section", study, f"{name} holds the heading {match[0]!r}")
    if _BROKEN.search(text):
        found = _BROKEN.search(text)
        assert found is not None
        yield Issue("warning", "broken characters", study, f"{name} holds {found[0]!r}: wrong encoding or mark-up")


def check_metadata(study: Study) -> Iterator[Issue]:
    """Views and modalities that the text names and the metadata denies."""
    text = " ".join((study.report or {}).values())
    views = {i.view for i in study.images if i.view is not None}
    if len(study.images) == 1:
        named = {view for view, pattern in _PLANES.items() if pattern.search(text)}
        if len(named) == 1 and views and views <= set(_PLANES) and not named & views:
            yield _view(study.id, next(iter(named)).value, views)
    single = _SINGLE.search(text)
    if single is not None and len(study.images) == 1 and views:
        wanted = View.LATERAL if single[1].lower() == "lateral" else View.FRONTAL
        if views <= {View.FRONTAL, View.LATERAL} and wanted not in views:
            yield _view(study.id, single[0], views)
    elif single is not None and {View.FRONTAL, View.LATERAL} <= views:
        yield _view(study.id, single[0], views)
    if _ONLY_LATERAL.search(text) and views == {View.FRONTAL}:
        yield _view(study.id, "lateral view only", views)
    # The first sentence says what is shown; later ones may speak of other examinations.
    first = re.split(r"(?<=[.;])\s", (study.report or {}).get("findings", "").strip(), maxsplit=1)[0]
    stated = {m for m, pattern in _MODALITIES.items() if pattern.search(first)}
    own = {i.modality for i in study.images if i.modality in _MODALITIES}
    if len(stated) == 1 and own and not stated & own:
        said, listed = next(iter(stated)).value, ", ".join(sorted(str(m) for m in own))
        yield Issue("warning", "modality", study.id, f"the text speaks of {said}, the metadata says {listed}")


def _view(study: str, said: str, views: set[View]) -> Issue:
    listed = ", ".join(sorted(views))
    return Issue("warning", "view", study, f"the text says {said!r}, the metadata says {listed}")


class SideCheck:
    """Sides that labels and boxes state, beside those of the text; the text is read only where a side is stated."""

    def __init__(self, graph: KnowledgeGraph) -> None:
        self.graph, self.reader = graph, ReportReader(graph)

    def __call__(self, study: Study) -> Iterator[Issue]:
        """One issue for each label whose side is the other one in the report."""
        stated = {(f.label, str(f.side)) for f in study.findings or () if f.side in _OPPOSITE and _present(f.certainty)}
        stated |= {(box.label, side) for box in study.boxes or () if (side := side_of(box, study)) is not None}
        text = "\n".join((study.report or {}).values())
        if not stated or not text.strip():
            return
        said: dict[str, set[str]] = {}
        for mention in self.reader.read(text):
            if mention.certainty == Certainty.PRESENT:
                said.setdefault(mention.concept, set()).add(str(mention.side))
        for label, side in sorted(stated):
            kinds = self.graph.descendants(label) if label in self.graph.concepts else frozenset((label,))
            sides = set().union(*(said.get(kind, set()) for kind in kinds))
            if sides == {_OPPOSITE[side]}:
                text = f"{label} is of the patient's {side} by its label, and of the {_OPPOSITE[side]} by the report"
                yield Issue("warning", "side in text", study.id, text)


def _present(certainty: Certainty | None) -> bool:
    return certainty in (None, Certainty.PRESENT)


def side_of(box: Box, study: Study) -> str | None:
    """The side that a box's name, or a finding that points at it, states."""
    match = _SIDED.search(box.label.replace("_", " "))
    if match:
        return match[1].lower()
    index = (study.boxes or ()).index(box)
    sides = {f.side for f in study.findings or () if index in f.boxes} & {"left", "right"}
    return str(sides.pop()) if len(sides) == 1 else None
