"""The text of a radiology report -> its sections; no medical knowledge, headings only.

    FINAL REPORT
    INDICATION:  Cough.   COMPARISON: None.            {"indication": "Cough.", "comparison": "None.",
    FINDINGS: The lungs are clear.              ->      "findings": "The lungs are clear.",
    IMPRESSION: Normal.                                 "impression": "Normal."}

Rules
- A heading is a known name (`HEADINGS`) at the start of a line or after the end of a sentence, followed by a colon, or
  by a line break; in capitals it needs neither ("FINDINGS The heart is normal.").
- Headings of other things (examination, notification, a signature) end a section and are left out.
- Text before the first heading is left out when a findings or an impression section follows, and is the findings
  when none does: a report that is one paragraph without headings is all findings. Its last paragraph is taken where
  several stand there, as the code of MIMIC-CXR does.
- Two sections of one name are joined in their order. An addendum comes back as "addendum", of no section.
- What a de-identifier took out (`___`, `[** ... **]`, `XXXX`) reads "XXXX": one mark, without loss in training.
"""

from __future__ import annotations

import re

from vlm.types import SECTIONS

UNWRITTEN = "XXXX"
ADDENDUM = "addendum"
MAX_TEXT = 1 << 18
HEADINGS: dict[str, str | None] = {
    **dict.fromkeys(
        ("indication", "indications", "clinical indication", "clinical history", "clinical information", "history",
         "patient history", "clinical data", "clinical statement", "clinical question", "reason for examination",
         "reason for exam", "reason for study", "reason", "history and indication", "indication/history", "hx"),
        "indication",
    ),
    **dict.fromkeys(
        ("comparison", "comparisons", "comparison study", "comparison studies", "comparison exam", "comparison film",
         "comparison films", "prior studies", "prior study", "reference exam"),
        "comparison",
    ),
    **dict.fromkeys(
        ("technique", "techniques", "procedure", "protocol", "views", "technique and findings"),
        "technique",
    ),
    **dict.fromkeys(
        ("findings", "finding", "report", "description", "observations", "radiographic findings", "result", "results"),
        "findings",
    ),
    **dict.fromkeys(
        ("impression", "impressions", "conclusion", "conclusions", "opinion", "summary", "diagnosis",
         "findings/impression", "findings / impression", "findings and impression", "impression and findings",
         "impression/findings", "interpretation", "imp"),
        "impression",
    ),
    **dict.fromkeys(("addendum", "addenda"), ADDENDUM),
    **dict.fromkeys(
        ("examination", "exam", "type of examination", "study", "notification", "recommendation", "recommendations",
         "recommendation(s)", "wet read", "wetread", "preliminary report", "final report", "dictated by", "signed by",
         "electronically signed by", "report approved date", "transcribed by", "date", "attending", "comment",
         "communication", "dose", "contrast"),
        None,
    ),
}  # fmt: skip
"""Heading in small letters -> section; None ends a section and is left out."""

_NAMES = "|".join(sorted((re.escape(n).replace(r"\ ", r"[ \t]+") for n in HEADINGS), key=len, reverse=True))
# With a colon: at the start of a line, or after the end of a sentence, in any case.
_COLON = re.compile(rf"(?:^|\n|(?<=[.!?:;])\s|(?<=[.!?])|(?<=\s\s))[ \t]*(?P<name>{_NAMES})[ \t]*:", re.IGNORECASE)
# Without: alone on its line, or in capitals before a word that can begin a sentence.
_CAPITALS = _NAMES.upper().replace(r"[ \T]+", r"[ \t]+")
_ALONE = re.compile(rf"(?:^|\n)[ \t]*(?P<name>{_NAMES})[ \t]*(?:[-–—.][ \t]*)?(?=\n|$)", re.IGNORECASE)
_BARE = re.compile(
    rf"(?:^|\n|(?<=[.!?])\s)[ \t]*(?P<name>{_CAPITALS})[ \t]+"
    r"(?!(?:OF|OR|AND|IS|ARE|WAS|WERE|TO|IN|ON|FOR|WITH|BY|AT|FROM|HAS|HAVE|MAY|CONSISTENT|COMPATIBLE|SUGGEST\w*)\b)"
    r"(?=[A-Z0-9])"
)
_DASH = re.compile(rf"(?:^|\n)[ \t]*(?P<name>{_NAMES})[ \t]*[-–—][ \t]+(?=\S)", re.IGNORECASE)
_SHORT_BARE = frozenset({"DATE", "DOSE", "CONTRAST", "STUDY", "EXAM", "REASON", "VIEWS", "COMMENT", "REPORT", "IMP"})
_BLANKS, _BREAKS = re.compile(r"[ \t\f\v]{3,}"), re.compile(r"\n{3,}")
_HIDDEN = re.compile(r"\[\*\*[^\[]{0,200}?\*\*\]|_{2,}|\bX{4,}(?:[ \t]+X{4,})*\b")
_GLUED = re.compile(r"\bXXXX(?=[A-WYZa-z0-9])")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_TITLE = re.compile(r"^\s*(?:final|preliminary|interim|wet)[ \t]+(?:report|read)\b[ \t]*:?", re.IGNORECASE)


def parse_sections(text: str) -> dict[str, str]:
    """Splits a report into sections by the rules of the module's docstring.

    Args:
        text: as written; what lies behind its first 262,144 characters is cut off.

    Returns:
        Section -> text with white space collapsed, in the order of `vlm.types.SECTIONS`, then "addendum"; sections
        without text are left out.
    """
    text = _tidy(unwritten(text[:MAX_TEXT]))
    marks = _headings(text)
    parts: dict[str, list[str]] = {}
    ends = [start for start, _, _ in marks[1:]] + [len(text)]
    for (_, start, section), end in zip(marks, ends, strict=False):
        if section is not None and text[start:end].strip():
            parts.setdefault(section, []).append(text[start:end])
    if not {"findings", "impression"} & set(parts):
        rest = _untitled(text, marks)
        if rest:
            parts["findings"] = [rest]
            for name in set(parts) - {"findings"}:  # what was taken as the findings is no longer the last section's
                parts[name][-1] = parts[name][-1].rstrip().removesuffix(rest.rstrip())
    joined = {name: " ".join(" ".join(parts[name]).split()) for name in (*SECTIONS, ADDENDUM) if name in parts}
    return {name: body for name, body in joined.items() if body}


def split_sections(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """(what was known before: indication, comparison, technique; the report itself: findings, impression)."""
    found = parse_sections(text)
    before = {name: text for name, text in found.items() if name in ("indication", "comparison", "technique")}
    return before, {name: text for name, text in found.items() if name in ("findings", "impression")}


def unwritten(text: str) -> str:
    """Every mark of a de-identifier as "XXXX"; several in a row become one."""
    return _GLUED.sub(f"{UNWRITTEN} ", _HIDDEN.sub(UNWRITTEN, text))


def _tidy(text: str) -> str:
    """One kind of line break, no line of blanks alone, no run of blanks that patterns would walk again."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", " ").replace("**", "")
    lines = (_BLANKS.sub("  ", line).rstrip() for line in text.split("\n"))
    return _BREAKS.sub("\n\n", "\n".join(lines))


def _headings(text: str) -> list[tuple[int, int, str | None]]:
    """(start of the heading, start of its text, section), in order, none within another."""
    found = [(m.start("name"), m.end(), m["name"]) for m in _COLON.finditer(text)]
    found += [(m.start("name"), m.end(), m["name"]) for rule in (_ALONE, _DASH) for m in rule.finditer(text)]
    found += [(m.start("name"), m.end(), m["name"]) for m in _BARE.finditer(text) if m["name"] not in _SHORT_BARE]
    marks: list[tuple[int, int, str | None]] = []
    for start, end, name in sorted(found):
        if not marks or start >= marks[-1][1]:
            marks.append((start, end, HEADINGS[" ".join(name.lower().split())]))
    return marks


def _untitled(text: str, marks: list[tuple[int, int, str | None]]) -> str:
    """The text that no heading claims: what stands before the first one, else the last paragraph of the last section
    when several stand there."""
    before = _TITLE.sub("", text[: marks[0][0]] if marks else text).strip()
    if before or not marks:
        paragraphs = [p for p in _PARAGRAPH.split(before) if p.strip()]
        # Of a report's head (a title, a date) and its body, the body is the paragraph that holds sentences.
        return next((p for p in reversed(paragraphs) if "." in p), before)
    _, start, section = marks[-1]
    paragraphs = [p for p in _PARAGRAPH.split(text[start:]) if p.strip()]
    return "\n\n".join(paragraphs[1:]) if len(paragraphs) > 1 and section != ADDENDUM else ""
