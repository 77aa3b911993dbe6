"""Reports a second of `knowledge.extraction` on one core, beside spaCy + negspaCy (and medspaCy) with the same terms.

    python scripts/bench_extraction.py ../shared/data/openi/indiana_reports.csv --json bench.json

All pipelines run in this process, on the same reports, with the graph's finding terms; reading and loading are not
timed. The first pass over the reports is "cold": no sentence has been seen before. spaCy gets a blank English pipeline
(tokenizer, rule-based sentences, an entity ruler with the terms, negation): no tagger or parser, so as fast as can be.
negspaCy and medspaCy are optional; install them into an environment of their own, because medspaCy pins old packages:
`pip install spacy negspacy medspacy networkx`. A pipeline that is not installed is said to be so.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from knowledge.extraction import ReportReader  # noqa: E402
from knowledge.graph import KnowledgeGraph  # noqa: E402
from knowledge.ontology import Certainty, Kind  # noqa: E402


def read_texts(path: Path) -> list[str]:
    """Findings and impression of every row of a CSV, or the `text` of every JSONL line."""
    with path.open(encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            return [str(json.loads(line)["text"]) for line in file if line.strip()]
        return [f"{r.get('findings', '')}\n{r.get('impression', '')}".strip() for r in csv.DictReader(file)]


def terms(graph: KnowledgeGraph) -> list[tuple[str, str]]:
    """(term, concept id) of every finding, with plurals: what the other pipelines look for."""
    found = [(t, i) for i in graph.of_kind(Kind.FINDING) for t in graph.terms(i)]
    return found + [(f"{t}s", i) for t, i in found if not t.endswith("s")]


def ours(graph: KnowledgeGraph) -> Callable[[str], int]:
    """Reads a report; returns how many findings are present."""
    reader = ReportReader(graph)
    return lambda text: sum(m.certainty is Certainty.PRESENT for m in reader.read(text))


def negspacy_pipeline(graph: KnowledgeGraph) -> Callable[[str], int]:
    """spaCy's entity ruler and negspaCy's negation."""
    import negspacy.negation
    import spacy

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    ruler = nlp.add_pipe("entity_ruler", config={"phrase_matcher_attr": "LOWER"})
    ruler.add_patterns([{"label": "FINDING", "pattern": t, "id": i} for t, i in terms(graph)])
    nlp.add_pipe("negex", config={"ent_types": ["FINDING"]})
    assert negspacy.negation is not None  # imported for the component that it registers
    return lambda text: sum(not e._.negex for e in nlp(text).ents)


def medspacy_pipeline(graph: KnowledgeGraph) -> Callable[[str], int]:
    """medspaCy's target matcher and ConText."""
    import medspacy
    from loguru import logger
    from medspacy.ner import TargetRule

    logger.remove()  # PyRuSH logs every token, which would be what is timed
    nlp = medspacy.load(enable=["medspacy_pyrush", "medspacy_target_matcher", "medspacy_context"])
    nlp.get_pipe("medspacy_target_matcher").add([TargetRule(t, "FINDING") for t, _ in terms(graph)])
    return lambda text: sum(not (e._.is_negated or e._.is_uncertain) for e in nlp(text).ents)


def seconds(read: Callable[[str], int], texts: Iterable[str]) -> tuple[float, int]:
    """Time of one pass, and the findings said to be present."""
    started = time.perf_counter()
    found = sum(read(text) for text in texts)
    return time.perf_counter() - started, found


def main() -> None:
    """Prints a table of reports a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, help="CSV with findings and impression, or JSONL with text")
    parser.add_argument("--passes", type=int, default=3, help="cold passes; the median is printed")
    parser.add_argument("--limit", type=int, default=0, help="reports for the other pipelines; 0 for all")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    if not arguments.reports.is_file():
        parser.error(f"{arguments.reports} is not a file")
    texts = read_texts(arguments.reports)
    if not texts:
        parser.error(f"{arguments.reports} holds no report")
    graph = KnowledgeGraph.load()
    rows: dict[str, dict[str, float]] = {}
    cold = sorted(seconds(ours(graph), texts) for _ in range(max(1, arguments.passes)))
    time_cold, found = cold[len(cold) // 2]
    rows["radscribe, no sentence seen before"] = {"reports_per_s": len(texts) / time_cold, "present": found}
    reader = ours(graph)
    seconds(reader, texts)
    warm, _ = seconds(reader, texts)
    rows["radscribe, all sentences seen before"] = {"reports_per_s": len(texts) / warm, "present": found}
    some = texts[: arguments.limit or None]
    for name, needs, make in (
        ("spaCy + negspaCy", "negspacy", negspacy_pipeline),
        ("medspaCy", "medspacy", medspacy_pipeline),
    ):
        if importlib.util.find_spec(needs) is None:
            print(f"{name}: not installed")
            continue
        spent, present = seconds(make(graph), some)
        rows[name] = {"reports_per_s": len(some) / spent, "present": present}
    print(f"{len(texts)} reports, {sum(map(len, texts)) / len(texts):.0f} characters each, one core")
    best = max(r["reports_per_s"] for n, r in rows.items() if n.startswith("radscribe, no"))
    for name, row in rows.items():
        print(f"{name:40} {row['reports_per_s']:9.0f} reports/s   x{best / row['reports_per_s']:.1f}")
    if arguments.json:
        flat = {f"{n}: {k}": v for n, row in rows.items() for k, v in row.items()}
        arguments.json.write_text(json.dumps(flat, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
