"""PadChest (Bustos et al. 2020), and tables written like it: 160,868 radiographs with labels of a tree of 174 findings.

    PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv (or .csv.gz)
    0/1234_abc.png ... 54/...                 folders named by ImageDir; or all images in images/

    ImageID, ImageDir, StudyID, PatientID, Projection, MethodLabel, Labels "['cardiomegaly', 'pleural effusion']",
    LabelsLocalizationsBySentence "[['pleural effusion', 'loc left', 'loc basal'], ['normal']]", ...

Only ImageID, StudyID and Labels are needed. Labels are English terms of the set's tree; Spanish ones, as hospitals that
write such tables use them, are known too. Those that the graph knows take its concept, the others keep their name and
teach nothing. A label that is not listed is unknown; "normal" alone says that the study is. Sides come from the
sentence that names the label with "loc left" or "loc right". Images whose Projection is EXCLUDE are left out; the
report is not read, for the set holds Spanish word stems and not sentences.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from knowledge.ontology import Certainty
from vlm.data.files import inside, plain_or_gz, table_rows
from vlm.types import Finding, InputError, Modality, Study, StudyImage, View

CONCEPTS: dict[str, str] = {
    "normal": "normal", "cardiomegaly": "cardiomegaly", "pleural effusion": "pleural_effusion",
    "loculated pleural effusion": "pleural_effusion", "pneumothorax": "pneumothorax",
    "hydropneumothorax": "hydropneumothorax", "pulmonary edema": "edema", "heart insufficiency": "heart_failure",
    "pneumonia": "pneumonia", "atypical pneumonia": "pneumonia", "infiltrates": "infiltrate",
    "consolidation": "consolidation", "alveolar pattern": "airspace_disease",
    "interstitial pattern": "interstitial_opacity", "ground glass pattern": "ground_glass_opacity",
    "reticular interstitial pattern": "interstitial_opacity", "increased density": "density",
    "atelectasis": "atelectasis", "laminar atelectasis": "atelectasis", "lobar atelectasis": "atelectasis",
    "total atelectasis": "atelectasis", "round atelectasis": "rounded_atelectasis", "volume loss": "volume_loss",
    "nodule": "nodule", "multiple nodules": "nodule", "pseudonodule": "nodular_density", "mass": "mass",
    "pulmonary mass": "mass", "mediastinal mass": "mediastinal_mass", "granuloma": "granuloma",
    "calcified granuloma": "calcified_granuloma", "calcified densities": "calcification", "cavitation": "cavity",
    "emphysema": "emphysema", "bullas": "bulla", "copd signs": "copd", "air trapping": "hyperinflation",
    "hyperinflated lung": "hyperinflation", "hypoexpansion": "hypoinflation", "flattened diaphragm":
    "diaphragm_flattening", "pleural thickening": "pleural_thickening", "apical pleural thickening":
    "pleural_thickening", "calcified pleural thickening": "pleural_calcification", "pleural plaques": "pleural_plaque",
    "calcified pleural plaques": "pleural_calcification", "costophrenic angle blunting": "costophrenic_blunting",
    "hemidiaphragm elevation": "diaphragm_elevation",
    "diaphragmatic eventration": "diaphragm_eventration", "pulmonary fibrosis": "pulmonary_fibrosis",
    "fibrotic band": "scar", "bronchiectasis": "bronchiectasis", "miliary opacities": "miliary_pattern",
    "scoliosis": "scoliosis", "kyphosis": "kyphosis", "vertebral degenerative changes": "degenerative_change",
    "degenerative changes": "degenerative_change", "vertebral compression": "compression_deformity",
    "vertebral anterior compression": "compression_deformity", "vertebral fracture": "compression_fracture",
    "fracture": "fracture", "rib fracture": "fracture", "clavicle fracture": "fracture", "humeral fracture": "fracture",
    "callus rib fracture": "fracture", "osteopenia": "osteopenia", "osteoporosis": "osteopenia",
    "hiatal hernia": "hiatal_hernia", "aortic elongation": "aortic_tortuosity",
    "descendent aortic elongation": "aortic_tortuosity", "ascendent aortic elongation": "aortic_tortuosity",
    "supra aortic elongation": "aortic_tortuosity", "aortic atheromatosis": "atherosclerosis",
    "aortic aneurysm": "aortic_aneurysm",
    "hilar enlargement": "hilar_enlargement", "vascular hilar enlargement": "hilar_enlargement",
    "adenopathy": "lymphadenopathy", "hilar congestion": "pulmonary_congestion",
    "mediastinal enlargement": "mediastinal_widening", "superior mediastinal enlargement": "mediastinal_widening",
    "mediastinal shift": "mediastinal_shift", "tracheal shift": "tracheal_deviation", "goiter": "thyroid_enlargement",
    "pneumomediastinum": "pneumomediastinum", "pneumoperitoneo": "pneumoperitoneum",
    "subcutaneous emphysema": "subcutaneous_emphysema", "pulmonary hypertension": "pulmonary_hypertension",
    "pulmonary artery enlargement": "pulmonary_artery_enlargement", "pericardial effusion": "pericardial_effusion",
    "lung metastasis": "metastasis", "bone metastasis": "metastasis", "metastasis": "metastasis",
    "tuberculosis": "tuberculosis", "tuberculosis sequelae": "granulomatous_disease", "nipple shadow": "nipple_shadow",
    "pectum excavatum": "pectus_deformity", "pectum carinatum": "pectus_deformity", "cervical rib": "cervical_rib",
    "azygos lobe": "azygos_fissure", "empyema": "empyema", "abscess": "abscess", "mastectomy": "mastectomy",
    "electrical device": "device", "pacemaker": "pacemaker", "dual chamber device": "pacemaker",
    "single chamber device": "pacemaker", "dai": "pacemaker", "central venous catheter": "catheter",
    "central venous catheter via jugular vein": "catheter", "central venous catheter via subclavian vein": "catheter",
    "reservoir central venous catheter": "catheter", "catheter": "catheter", "nsg tube": "enteric_tube",
    "endotracheal tube": "endotracheal_tube", "tracheostomy tube": "tracheostomy_tube", "chest drain tube":
    "chest_tube", "sternotomy": "sternotomy", "suture material": "sutures", "metal": "implanted_material",
    "osteosynthesis material": "implanted_material", "artificial heart valve": "prosthetic_valve", "prosthesis":
    "joint_prosthesis", "endoprosthesis": "stent", "surgery": "postsurgical_change", "mammary prosthesis":
    "breast_implant",
}  # fmt: skip
"""PadChest's terms -> concepts of the graph."""
SPANISH: dict[str, str] = {
    "cardiomegalia": "cardiomegaly", "derrame pleural": "pleural effusion", "neumotorax": "pneumothorax",
    "edema pulmonar": "pulmonary edema", "insuficiencia cardiaca": "heart insufficiency", "neumonia": "pneumonia",
    "infiltrado": "infiltrates", "infiltrados": "infiltrates", "consolidacion": "consolidation",
    "patron alveolar": "alveolar pattern", "patron intersticial": "interstitial pattern",
    "vidrio deslustrado": "ground glass pattern", "atelectasia": "atelectasis",
    "atelectasia laminar": "laminar atelectasis", "perdida de volumen": "volume loss", "nodulo": "nodule",
    "nodulos": "multiple nodules", "masa": "mass", "granuloma calcificado": "calcified granuloma",
    "calcificacion": "calcified densities", "enfisema": "emphysema", "bulla": "bullas", "epoc": "copd signs",
    "atrapamiento aereo": "air trapping", "engrosamiento pleural": "pleural thickening",
    "pinzamiento del seno costofrenico": "costophrenic angle blunting", "fibrosis pulmonar": "pulmonary fibrosis",
    "bronquiectasias": "bronchiectasis", "escoliosis": "scoliosis", "cifosis": "kyphosis",
    "cambios degenerativos": "degenerative changes", "fractura": "fracture", "fractura costal": "rib fracture",
    "osteopenia": "osteopenia", "hernia de hiato": "hiatal hernia", "elongacion aortica": "aortic elongation",
    "ateromatosis aortica": "aortic atheromatosis", "ensanchamiento mediastinico": "mediastinal enlargement",
    "adenopatias": "adenopathy", "bocio": "goiter", "metastasis": "metastasis", "tuberculosis": "tuberculosis",
    "marcapasos": "pacemaker", "cateter venoso central": "central venous catheter",
    "sonda nasogastrica": "nsg tube", "tubo endotraqueal": "endotracheal tube", "esternotomia": "sternotomy",
    "sin hallazgos": "normal", "sin alteraciones": "normal",
}  # fmt: skip
"""Spanish terms without accents -> PadChest's."""
NEEDED = ("ImageID", "StudyID", "Labels")
OPTIONAL = ("ImageDir", "PatientID", "Projection", "LabelsLocalizationsBySentence")
_NOT_FINDINGS = frozenset(("normal", "exclude", "unchanged", "suboptimal study", ""))
_VIEWS = {"PA": View.FRONTAL, "AP": View.FRONTAL, "AP_HORIZONTAL": View.FRONTAL, "L": View.LATERAL,
          "COSTAL": View.OTHER}  # fmt: skip
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_SENTENCE = re.compile(r"\[([^\[\]]*)\]")
_PLAIN = str.maketrans("áéíóúüñ", "aeiouun")
_Side = Literal["left", "right", "bilateral"]
_SIDES: dict[str, _Side] = {"loc left": "left", "loc right": "right", "loc bilateral": "bilateral"}


def read_padchest(path: Path) -> list[Study]:
    """Reads the table; images that are not on disk are left out, since the set comes in fifty parts.

    Args:
        path: folder of the table, or the table.

    Returns:
        One study a StudyID, in the table's order, frontal images first.

    Raises:
        InputError: no table, a missing column, an image path that leaves the folder, or no image on disk.
    """
    table = _table(path)
    if table is None:
        raise InputError(f"{path}: has no table PADCHEST_chest_x_ray_images_labels_*.csv")
    root = table.parent
    studies: dict[str, Study] = {}
    listings: dict[Path, frozenset[str]] = {}
    for name, study, labels, folder, patient, projection, sentences in table_rows(table, NEEDED, OPTIONAL):
        if projection.upper() == "EXCLUDE" or not study:
            continue
        file = _file(root, folder, name, table, listings)
        if file is None:
            continue
        image = StudyImage(file, view=_VIEWS.get(projection.upper()), modality=Modality.XRAY)
        if study in studies:
            studies[study].images.append(image)
            continue
        findings = findings_of(labels, sentences)
        studies[study] = Study(study, [image], findings=findings, patient=patient or None, source="padchest")
    if not studies:
        raise InputError(f"{table}: none of its images is on disk, in folders named by ImageDir or in images/")
    for one in studies.values():
        one.images.sort(key=lambda i: i.view is not View.FRONTAL)
    return list(studies.values())


def is_padchest(path: Path) -> bool:
    """Whether a path is such a table, or a folder with one."""
    if path.is_dir():
        return _table(path) is not None
    if not path.name.lower().endswith((".csv", ".csv.gz")) or not path.is_file():
        return False
    try:
        next(table_rows(path, (*NEEDED, "Projection")), None)
    except InputError:
        return False
    return True


def findings_of(labels: str, sentences: str = "") -> tuple[Finding, ...] | None:
    """Findings of a cell of labels; None when it says nothing ("exclude", "unchanged", empty).

    Args:
        labels: such as "['cardiomegaly', 'pleural effusion']". sentences: labels and places by sentence.
    """
    terms = [_english(t) for t in _terms(labels)]
    found = [t for t in dict.fromkeys(terms) if t not in _NOT_FINDINGS]
    if not found:
        return (Finding("normal", Certainty.PRESENT),) if "normal" in terms else None
    sides = _sides(sentences)
    out: dict[str, Finding] = {}
    for term in found:
        concept = CONCEPTS.get(term, term)
        side = sides.get(term)
        before = out.get(concept)
        out[concept] = Finding(concept, Certainty.PRESENT, side=side if before is None else before.side or side)
    return (*out.values(), Finding("normal", Certainty.ABSENT))


def _table(path: Path) -> Path | None:
    if path.is_file():
        return path
    found = plain_or_gz(path, "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv")
    return found or next(iter(sorted(path.glob("PADCHEST*.csv*")) + sorted(path.glob("*padchest*.csv*"))), None)


def _file(root: Path, folder: str, name: str, table: Path, listings: dict[Path, frozenset[str]]) -> Path | None:
    """Where an image lies; each folder is listed once."""
    for relative in (f"{folder}/{name}" if folder else name, f"images/{name}", name, f"images/{folder}/{name}"):
        file = inside(root, relative, table)
        if file.parent not in listings:
            here = file.parent
            listings[here] = frozenset(p.name for p in here.iterdir()) if here.is_dir() else frozenset()
        if file.name in listings[file.parent]:
            return file
    return None


def _terms(cell: str) -> list[str]:
    quoted = [a or b for a, b in _QUOTED.findall(cell)]
    parts = quoted or re.split(r"[,;|]", cell.strip("[] "))
    return [" ".join(p.lower().split()) for p in parts if p.strip() and p.strip().lower() != "nan"]


def _english(term: str) -> str:
    return SPANISH.get(term.translate(_PLAIN), term)


def _sides(sentences: str) -> dict[str, _Side]:
    """Term -> side, from the sentences that name one side; two sentences of different sides make both."""
    out: dict[str, _Side] = {}
    for match in _SENTENCE.finditer(sentences):
        terms = _terms(match[1])
        here = {_SIDES[t] for t in terms if t in _SIDES}
        side: _Side | None = next(iter(here)) if len(here) == 1 else "bilateral" if here else None
        for term in (_english(t) for t in terms if side is not None and not t.startswith("loc ")):
            assert side is not None
            out[term] = side if out.get(term, side) == side else "bilateral"
    return out
