"""MIMIC-CXR (DICOM) and MIMIC-CXR-JPG as PhysioNet lays them out (Johnson et al. 2019).

    files/p10/p10000032/s50414267/<dicom_id>.{dcm,jpg}        two images of one study
    files/p10/p10000032/s50414267.txt                         its report; also below mimic-cxr-reports/, or in its .zip
    mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv.gz   view and date, official split, labels; .csv will do
    mimic_cxr_sectioned.csv                                   what the official code makes of the reports; read if there

Reports are cut as MIT-LCP/mimic-cxr's `section_parser` does (`official_sections`), without its list of some 60 reports
that were cut by hand: of several sections with one name the last counts, and the last paragraph stands for the findings
where a report has neither findings nor impression. `___` reads "XXXX". The split "validate" is "val". The last earlier
study of a patient that has a report is kept as `clinical["prior"]`.

CheXpert's labels are read, NegBio's where there are none: 1 present, 0 absent, -1 uncertain; an empty cell is unknown.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from knowledge.ontology import Certainty
from vlm.data.files import inside, plain_or_gz, table_rows
from vlm.data.sections import unwritten
from vlm.types import Finding, InputError, Modality, Study, StudyImage, View

CHEXPERT = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
"""The columns of the label files."""
_CERTAINTY = {"1": Certainty.PRESENT, "0": Certainty.ABSENT, "-1": Certainty.UNCERTAIN}
_SPLITS = {"validate": "val"}
_VIEWS = {
    "PA": View.FRONTAL, "AP": View.FRONTAL, "AP AXIAL": View.FRONTAL, "AP LLD": View.FRONTAL, "AP RLD": View.FRONTAL,
    "PA LLD": View.FRONTAL, "PA RLD": View.FRONTAL, "LATERAL": View.LATERAL, "LL": View.LATERAL, "RL": View.LATERAL,
    "XTABLE LATERAL": View.LATERAL,
}  # fmt: skip
_ORDER = {View.FRONTAL: 0, View.LATERAL: 1, View.OTHER: 3}
_VERSIONS = ("mimic-cxr-2.1.0", "mimic-cxr-2.0.0")
_MAX_REPORT = 1 << 18

# As in the official section parser: a heading is a line of capitals behind one blank, up to a colon.
_OFFICIAL = re.compile(r"\n ([A-Z ()/,-]+):\s")
_OFFICIAL_NAMES = {
    "comparisons": "comparison", "clinical history": "history", "reason for examination": "indication",
    "reason for exam": "indication", "clinical information": "history", "exam": "examination",
    "clinical indication": "indication", "conclusion": "impression", "chest, two views": "findings",
    "recommendation(s)": "recommendations", "type of examination": "examination", "reference exam": "comparison",
    "patient history": "history", "comparison exam": "comparison", "findings and impression": "impression",
    "comparison film": "comparison", "findings/impression": "impression", "pfi": "history",
    "recommendation": "recommendations", "wetread": "wet read", "ndication": "impression",
    "findings/ impression": "impression", "finding": "findings", "reference findings": "findings",
    "idication": "indication", "mpression": "impression",
    **dict.fromkeys(("impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion", "imperssion",
                     "impession"), "impression"),
    **dict.fromkeys(("findins", "findindgs", "findgings", "findngs", "findnings", "finidngs"), "findings"),
    **dict.fromkeys(("comparision", "comparsion", "comparrison", "comparisions"), "comparison"),
}  # fmt: skip
_AS_THEY_ARE = frozenset(
    ("preamble", "impression", "comparison", "indication", "findings", "examination", "technique", "history",
     "notification", "addendum", "date", "comment", "wet read", "recommendations")
)  # fmt: skip
_CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
_FINDINGS_LIKE = re.compile(
    "chest|portable|pa and lateral|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|frontal view|"
    "pa view|ap view|one view|lateral view|bone window|frontal upright|frontal semi-upright|ribs|pa and lat"
)


@dataclass(slots=True)
class _Row:
    """What the tables say of one study."""

    subject: str
    images: list[tuple[str, View | None]] = field(default_factory=list)
    when: tuple[str, float] = ("", 0.0)


def read_mimic(root: Path) -> list[Study]:
    """MIMIC-CXR: DICOM files."""
    return _read(root, ".dcm")


def read_mimic_jpg(root: Path) -> list[Study]:
    """MIMIC-CXR-JPG."""
    return _read(root, ".jpg")


def is_mimic(path: Path) -> bool:
    """Whether a folder looks like MIMIC-CXR with DICOM files."""
    return _first_image(path) == ".dcm"


def is_mimic_jpg(path: Path) -> bool:
    """Whether a folder looks like MIMIC-CXR-JPG."""
    return _first_image(path) == ".jpg"


def official_sections(text: str) -> dict[str, str]:
    """Section name -> text as the official code cuts a report, the last one of each name."""
    names, bodies = _official_cuts(text)
    pairs = [(n, b) for n, b in zip(names, bodies, strict=True) if n not in ("impression", "findings") or b.strip()]
    if pairs and not {"impression", "findings"} & {n for n, _ in pairs} and "\n \n" in pairs[-1][1]:
        head, *rest = pairs[-1][1].split("\n \n")
        pairs[-1:] = [(pairs[-1][0], head), ("last_paragraph", "\n \n".join(rest))]
    return {name: body.strip() for name, body in pairs}


def _official_cuts(text: str) -> tuple[list[str], list[str]]:
    match = _OFFICIAL.search(text)
    if match is None:
        return ["full report"], [text]
    names, bodies = ["preamble"], [text[: match.start(1)]]
    while match is not None:
        name, start = match[1].lower().strip(), match.end()
        # A heading on the line of this one is not looked for: "PA AND LATERAL: CHEST: ..." would cut badly.
        following = _OFFICIAL.search(text, start + max(0, text[start:].find("\n")))
        names.append(_official_name(name))
        bodies.append(text[start : following.start() if following else len(text)])
        match = following
    return names, bodies


def _official_name(name: str) -> str:
    if name in _AS_THEY_ARE or name in _OFFICIAL_NAMES:
        return _OFFICIAL_NAMES.get(name, name)
    for known in _CONTAINED:
        if known in name:
            return known
    return "findings" if _FINDINGS_LIKE.search(name) else name


def _read(root: Path, suffix: str) -> list[Study]:
    files = root if root.name == "files" and _patients(root) else root / "files"
    root = files.parent
    if not files.is_dir():
        raise InputError(f"{root}: has no folder files/p10/p10000032/...; unpack MIMIC-CXR there")
    rows = _rows(root, files, suffix)
    there = _on_disk(files, {row.subject for row in rows.values()})
    split_of, labels, report_of = _splits(root), _labels(root), _reports(root)
    studies = []
    for name, row in sorted(rows.items(), key=lambda x: (x[1].subject, x[1].when, x[0])):
        if name not in there:
            continue
        folder = files / f"p{row.subject[:2]}" / f"p{row.subject}" / f"s{name}"
        ordered = sorted(row.images, key=lambda i: (_ORDER.get(i[1], 2) if i[1] else 2, i[0]))
        listed_in = root / "files"
        images = [
            StudyImage(inside(folder, f"{d}{suffix}", listed_in), view=view, modality=Modality.XRAY)
            for d, view in ordered
        ]
        clinical, report = _texts(report_of(row.subject, name))
        split = split_of.get(name)
        studies.append(
            Study(
                id=f"s{name}", images=images, clinical=clinical, report=report or None, findings=labels.get(name),
                patient=f"p{row.subject}", split=_SPLITS.get(split, split) if split else None,
                source="mimic-cxr-jpg" if suffix == ".jpg" else "mimic-cxr",
            )
        )  # fmt: skip
    _add_priors(studies)
    return studies


def _patients(files: Path) -> list[Path]:
    """Group folders p10 to p19 that exist."""
    return [files / f"p{n}" for n in range(10, 20) if (files / f"p{n}").is_dir()]


def _first_image(path: Path) -> str | None:
    """Suffix of the first image of a tree of MIMIC-CXR; None for any other folder."""
    files = path if path.name == "files" else path / "files"
    for group in _patients(files)[:1] if files.is_dir() else ():
        for image in group.glob("p[0-9]*/s[0-9]*/*.*"):
            if image.suffix.lower() in (".dcm", ".jpg"):
                return image.suffix.lower()
    return None


def _table(root: Path, kind: str) -> Path | None:
    return plain_or_gz(root, *(f"{version}-{kind}.csv" for version in _VERSIONS))


def _rows(root: Path, files: Path, suffix: str) -> dict[str, _Row]:
    """Study -> its images, from the metadata, else from the record list, else from the tree."""
    metadata, records = _table(root, "metadata"), plain_or_gz(root, "cxr-record-list.csv")
    rows: dict[str, _Row] = {}
    if metadata is not None:
        wanted = ("dicom_id", "subject_id", "study_id"), ("ViewPosition", "StudyDate", "StudyTime")
        for dicom, subject, study, view, date, time in table_rows(metadata, *wanted):
            row = rows.setdefault(study, _Row(subject))
            row.images.append((dicom, _VIEWS.get(view.upper(), View.OTHER) if view else None))
            row.when = (date, _number(time))
    elif records is not None:
        for dicom, subject, study in table_rows(records, ("dicom_id", "subject_id", "study_id")):
            rows.setdefault(study, _Row(subject)).images.append((dicom, None))
    else:
        for group in _patients(files):
            for image in sorted(group.glob(f"p[0-9]*/s[0-9]*/*{suffix}")):
                study, subject = image.parent.name[1:], image.parent.parent.name[1:]
                rows.setdefault(study, _Row(subject)).images.append((image.stem, None))
    for study, row in rows.items():
        if not (study.isdigit() and row.subject.isdigit()):
            raise InputError(f"{metadata or records}: study {study!r} of subject {row.subject!r} are not numbers")
    return rows


def _on_disk(files: Path, subjects: set[str]) -> set[str]:
    """Studies whose folder exists: most people hold a part of the set. One look at each patient's folder."""
    found: set[str] = set()
    groups = {group.name for group in _patients(files)}
    for subject in subjects:
        folder = files / f"p{subject[:2]}" / f"p{subject}"
        if folder.parent.name in groups and folder.is_dir():
            found.update(p.name[1:] for p in folder.iterdir() if p.name.startswith("s") and p.suffix != ".txt")
    return found


def _splits(root: Path) -> dict[str, str]:
    path = _table(root, "split")
    return {} if path is None else dict(table_rows(path, ("study_id", "split")))  # type: ignore[arg-type]


def _labels(root: Path) -> dict[str, tuple[Finding, ...]]:
    out: dict[str, tuple[Finding, ...]] = {}
    kept: dict[tuple[str, ...], tuple[Finding, ...]] = {}  # most studies share few rows of labels
    for kind in ("chexpert", "negbio"):
        path = _table(root, kind)
        for study, *cells in table_rows(path, ("study_id", *CHEXPERT)) if path is not None else ():
            key = tuple(c.removesuffix(".0") for c in cells)
            if key not in kept:
                kept[key] = tuple(
                    Finding(name, _CERTAINTY[c]) for name, c in zip(CHEXPERT, key, strict=True) if c in _CERTAINTY
                )
            out.setdefault(study, kept[key])
    return {study: findings for study, findings in out.items() if findings}


def _reports(root: Path) -> Callable[[str, str], dict[str, str] | str | None]:
    """(subject, study) -> the report's text, its sections from the sectioned table, or None."""
    table = plain_or_gz(root, "mimic_cxr_sectioned.csv")
    if table is not None:
        names = ("impression", "findings", "last_paragraph", "comparison")
        cut = {
            study.removeprefix("s"): {k: v for k, v in zip(names, cells, strict=True) if v}
            for study, *cells in table_rows(table, ("study",), names)
        }
        return lambda _, study: cut.get(study)
    zipped = next((p for p in (root / "mimic-cxr-reports.zip",) if p.is_file()), None)
    folders = [root / "mimic-cxr-reports" / "files", root / "files"]
    folders = [f for f in folders if f.is_dir()]
    if zipped is not None and not any(next(f.glob("p1[0-9]/p*/s*.txt"), None) for f in folders):
        return _from_zip(zipped)

    def read(subject: str, study: str) -> str | None:
        for folder in folders:
            try:
                with (folder / f"p{subject[:2]}" / f"p{subject}" / f"s{study}.txt").open("rb") as stream:
                    return stream.read(_MAX_REPORT).decode("utf-8", "replace")
            except (FileNotFoundError, NotADirectoryError):
                continue
        return None

    return read


def _from_zip(path: Path) -> Callable[[str, str], str | None]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError):
        raise InputError(f"{path}: is not a whole zip file; copy it again") from None
    known = set(archive.namelist())

    def read(subject: str, study: str) -> str | None:
        name = f"files/p{subject[:2]}/p{subject}/s{study}.txt"
        if name not in known:
            return None
        with archive.open(name) as stream:
            return stream.read(_MAX_REPORT).decode("utf-8", "replace")

    return read


def _texts(report: dict[str, str] | str | None) -> tuple[dict[str, str], dict[str, str]]:
    """(what was known before, the report)."""
    if report is None:
        return {}, {}
    parts = official_sections(report) if isinstance(report, str) else report
    parts = {name: " ".join(unwritten(text).split()) for name, text in parts.items()}
    asked = parts.get("indication") or parts.get("history") or ""
    before = {"indication": asked, "comparison": parts.get("comparison", ""), "technique": parts.get("technique", "")}
    own = {"findings": parts.get("findings", ""), "impression": parts.get("impression", "")}
    if not any(own.values()):
        own["findings"] = parts.get("last_paragraph", "")
    return {k: v for k, v in before.items() if v}, {k: v for k, v in own.items() if v}


def _add_priors(studies: list[Study]) -> None:
    """The impression, else the findings, of the last earlier study of the same patient; studies come in their order."""
    last: dict[str | None, str] = defaultdict(str)
    for study in studies:
        if last[study.patient]:
            study.clinical["prior"] = last[study.patient]
        own = study.report or {}
        last[study.patient] = own.get("impression") or own.get("findings") or last[study.patient]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
