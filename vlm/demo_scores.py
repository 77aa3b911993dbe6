"""Scores of `vlm demo`: reports of phantom studies against what is known of the phantom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm.data.phantoms.chest_ct import phantom_study
from vlm.evaluation.baselines import Settings
from vlm.evaluation.detection import average_precision
from vlm.evaluation.inputs import Reports, join
from vlm.evaluation.run import evaluate_reports
from vlm.export.jsonl import read_rows, report_from_dict
from vlm.types import Study

TEXT_SCORES = {
    "finding_f1_micro": "findings in the text: F1 (micro)",
    "finding_f1_macro": "findings in the text: F1 (macro)",
    "bleu4": "BLEU-4",
    "rougeL": "ROUGE-L",
    "cider": "CIDEr",
}
"""Metric of `vlm.evaluation` -> its name in the demo's table."""

CONSTANTS = 24
"""Phantom studies among whose reports the demo chooses its constant one."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One line of the demo's table: a score of the model and of the best constant report, as printed."""

    name: str
    model: str
    floor: str


def score_demo(studies: Sequence[Study], reports_file: Path, constant_seed: int = 1) -> list[ScoreRow]:
    """Scores a file of reports against what is known of its studies: boxes, finding probabilities, findings, words.

    The constant report beside the model is chosen on other phantom studies (`constant_seed`): of six references one
    would score by being its own copy.
    """
    made = {row["id"]: row for row in read_rows(reports_file)}
    known = [study for study in studies if study.id in made]
    if not known:
        return []
    reports = [report_from_dict(made[study.id]) for study in known]
    truths = [study.boxes or () for study in known]
    boxes = average_precision([report.boxes for report in reports], truths)
    count = f"{boxes.matched} of {boxes.truths} lesions, {boxes.predictions - boxes.matched} false"
    rows = [
        ScoreRow("boxes: mAP at IoU 0.5", _shown(boxes.mean_ap), "-"),
        ScoreRow("boxes: mean IoU where matched", _shown(boxes.mean_iou), "-"),
        ScoreRow("boxes: found at confidence 0.5", count, "-"),
    ]
    references = Reports(reports_file, {s.id: (s.report or {}).get("findings", "") for s in known})
    references.records.update({s.id: {"id": s.id} for s in known})
    texts = {r.study_id: r.sections.get("findings") or r.sections.get("impression", "") for r in reports}
    if not any(texts.values()) or not any(references.texts.values()):
        return rows
    predictions = Reports(reports_file, texts, {name: {"id": name} for name in texts})
    settings = Settings(resamples=0, meteor="off")
    others = [phantom_study(constant_seed, index) for index in range(CONSTANTS)]
    train = Reports(reports_file, {s.id: (s.report or {})["findings"] for s in others})
    result = evaluate_reports(join({"model": predictions}, references, allow_missing=True), settings, train)
    floor = next((s.values() for s in result.systems if s.floor and s.name.startswith("constant")), {})
    mine = result.system("model").values()
    return rows + [
        ScoreRow(shown, _shown(mine[name]), _shown(floor.get(name, float("nan"))))
        for name, shown in TEXT_SCORES.items()
        if name in mine
    ]


def _shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
