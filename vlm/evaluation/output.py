"""An `Evaluation` as a rich table of at most 100 columns, Markdown, JSON, and CSV by study."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vlm.evaluation.result import Comparison, Evaluation, SystemResult
from vlm.evaluation.tables import detection_tables, label_tables, show, span

WIDTH = 100
MAIN = ("bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "meteor", "cider")
CLINICAL = (
    "finding_f1_micro",
    "finding_f1_macro",
    "coded_f1_micro",
    "coded_f1_macro",
    "false_statements",
    "omissions",
    "laterality",
)
SPANS = ("bleu4", "rougeL", "cider", "finding_f1_micro", "finding_f1_macro", "coded_f1_macro")
COMPARED = ("bleu4", "cider", "finding_f1_macro", "coded_f1_macro")
SHORT = {
    "finding_f1_micro": "F1 micro",
    "finding_f1_macro": "F1 macro",
    "coded_f1_micro": "coded micro",
    "coded_f1_macro": "coded macro",
    "false_statements": "false",
    "omissions": "omitted",
    "laterality": "side",
}


def tables_of(result: Evaluation) -> list[tuple[str, list[str], list[list[str]]]]:
    """Returns the tables that are printed: title, header, rows of texts."""
    tables = [_scores_table(result, MAIN, "Text metrics, all studies", new=False)]
    if any(name in result.systems[0].values() for name in CLINICAL):
        tables.append(
            _scores_table(result, CLINICAL, "Findings read from the texts, all studies", new=False, spread=False)
        )
    tables.append(_interval_table(result))
    if result.plugin_scores:
        tables.append(_plugin_table(result))
    if result.is_new is not None and result.is_new.any():
        title = f"Only the {int(result.is_new.sum())} studies whose reference is not in --train"
        tables.append(_scores_table(result, (*MAIN[3:], *CLINICAL[1:4:2]), title, new=True, spread=False))
    for new in (False, True):
        compared = [c for c in result.comparisons if c.new == new]
        if compared:
            tables.append(_comparison_table(compared, new))
    tables.extend(label_tables(result))
    tables.extend(detection_tables(result))
    return [table for table in tables if table[2]]


def _scores_table(
    result: Evaluation, metrics: Sequence[str], title: str, new: bool, spread: bool = True
) -> tuple[str, list[str], list[list[str]]]:
    present = [name for name in metrics if any(name in system.values(new) for system in result.systems)]
    header = ["", *(SHORT.get(name, name) for name in present)] + (["unique", "length"] if spread else [])
    rows = []
    for system in result.systems:
        values = system.values(new)
        row = [_label(system), *(show(values.get(name)) if name in values else "" for name in present)]
        if spread:
            row += (
                [show(system.diversity.unique), show(system.diversity.length_ratio, 2)]
                if system.diversity
                else ["", ""]
            )
        rows.append(row)
    return title, header, rows


def _label(system: SystemResult) -> str:
    return f"  {_short(system.name)}" if system.floor else _short(system.name)


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def _interval_table(result: Evaluation) -> tuple[str, list[str], list[list[str]]]:
    names = [name for name in SPANS if name in result.systems[0].intervals]
    rows = []
    for system in result.systems:
        if not system.intervals:
            continue
        cells = []
        for name in names:
            found = system.intervals.get(name)
            cells.append(
                ""
                if found is None
                else f"{show(found.low)} {show(found.high)}"
                if not math.isnan(found.low)
                else "undefined"
            )
        rows.append([_label(system), *cells])
    level = result.settings.get("level", 0.95)
    return f"{level:.0%} bootstrap intervals by study", ["", *(SHORT.get(name, name) for name in names)], rows


def _plugin_table(result: Evaluation) -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for system in result.systems:
        for name, value in system.values().items():
            if name in result.plugin_scores:
                found = system.intervals.get(name)
                new = show(system.values(new=True)[name]) if system.new is not None else ""
                rows.append([_short(system.name), name[:40], show(value), span(found) if found else "", new])
    return "Plug-ins (floors left out)", ["", "score", "mean", "interval", "new studies"], rows


def _comparison_table(comparisons: Sequence[Comparison], new: bool) -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for comparison in comparisons:
        for name in COMPARED:
            gap = comparison.differences.get(name)
            if gap is None:
                continue
            verdict = "clear of zero" if gap.clear else "holds zero"
            if math.isnan(gap.interval.low):
                verdict = "undefined"
            span = f"{show(gap.interval.low)} to {show(gap.interval.high)}"
            p = "" if gap.p_holm is None else show(gap.p_holm, 4)
            rows.append(
                [
                    f"{_short(comparison.first)} - {_short(comparison.second)}",
                    SHORT.get(name, name),
                    show(gap.value),
                    span,
                    verdict,
                    p,
                ]
            )
    where = "new studies" if new else "all studies"
    title = f"Paired differences, {where} (approximate randomisation, Holm over the pairs of a metric)"
    return title, ["", "metric", "difference", "interval", "", "p (Holm)"], rows


def print_tables(result: Evaluation, console: Console, verbose: bool = True) -> None:
    """Prints the tables, the notes on floors and the signatures.

    Args:
        verbose: with label tables and signatures.
    """
    for title, header, rows in tables_of(result):
        if not verbose and title.startswith(("By finding", "CheXpert", "By label")):
            continue
        console.print(title, style="bold", markup=False, highlight=False)
        table = Table(box=None, padding=(0, 1), show_edge=False)
        for place, name in enumerate(header):
            table.add_column(name, justify="left" if place == 0 else "right", overflow="ellipsis", no_wrap=True)
        for row in rows:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        console.print(table)
        console.print()
    for line in footnotes(result):
        console.print(line, markup=False, highlight=False)
    if verbose:
        for name in (*MAIN, "finding_f1_macro", "coded_f1_macro"):
            if name in result.signatures:
                lines = wrap_signature(result.signatures[name])
                console.print("\n".join(lines), style="dim", markup=False, highlight=False)


def wrap_signature(signature: str) -> list[str]:
    """Returns a signature in lines of at most `WIDTH`, broken before a bar; joined without their indent they are it."""
    lines = [""]
    for part in re.split(r"(?=\|)", signature):
        if len(lines[-1]) + len(part) > WIDTH:
            lines.append("  ")
        lines[-1] += part
    return lines


def footnotes(result: Evaluation) -> list[str]:
    """Returns how the floors were made, what is written most often, and what else to know."""
    lines = []
    for system in result.systems:
        if system.note:
            text = (
                f': "{system.diversity.most_frequent[:160]}"'
                if system.name.startswith("constant") and system.diversity
                else ""
            )
            lines.append(f"{system.name}: {system.note}{text}")
        elif system.diversity is not None:
            spread = system.diversity
            lines.append(
                f"{system.name}: {spread.unique:.1%} of the reports are unique; the most frequent is written for "
                f'{spread.most_frequent_share:.1%}: "{spread.most_frequent[:120]}"'
            )
    if result.ceiling:
        lines.append(
            "what a perfect report would score (the reader on the references' own text against the coded labels): "
            f"micro-F1 {result.ceiling['coded_f1_micro']:.3f}, macro-F1 {result.ceiling['coded_f1_macro']:.3f}"
        )
    if len(result.ids) == 1:
        lines.append(
            "one study: CIDEr is undefined (every document frequency is 1 of 1), so are intervals, tests and shuffles"
        )
    return lines + result.notes


def markdown(result: Evaluation) -> str:
    """Returns the same tables as Markdown."""
    parts = [f"# Evaluation of {len(result.ids)} studies\n"]
    for title, header, rows in tables_of(result):
        parts.append(f"## {title}\n")
        parts.append("| " + " | ".join(name or " " for name in header) + " |")
        parts.append("|" + "|".join("---" if i == 0 else "---:" for i in range(len(header))) + "|")
        parts.extend("| " + " | ".join(cell.strip().replace("|", "\\|") or " " for cell in row) + " |" for row in rows)
        parts.append("")
    parts.extend(f"- {line}" for line in footnotes(result))
    parts.append("\n## Signatures\n")
    parts.extend(f"- `{name}`: `{text}`" for name, text in result.signatures.items())
    return "\n".join(parts) + "\n"


def by_study_csv(result: Evaluation) -> str:
    """Returns one row a study and system: the per-study values of every score."""
    names = list(dict.fromkeys(score.name for system in result.systems for score in system.scores))
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["id", "system", "new", *names])
    for system in result.systems:
        columns = {score.name: score.per_study for score in system.scores}
        for row, key in enumerate(result.ids):
            new = "" if result.is_new is None else int(result.is_new[row])
            cells = [
                f"{columns[n][row]:.6g}" if n in columns and not math.isnan(columns[n][row]) else "" for n in names
            ]
            writer.writerow([key, system.name, new, *cells])
    return lines.getvalue()


def as_json(result: Evaluation) -> str:
    """Returns the flat object of `Evaluation.flat`."""
    return json.dumps(result.flat(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
