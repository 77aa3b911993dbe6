"""What the reader of reports must read: sentences with their full reading, sections, spans, Open-i's coded labels."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest

from knowledge.extraction import Mention, ReportReader, label_mentions, split_sentences
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty

SENTENCES = [
    json.loads(line) for line in (Path(__file__).parent / "sentences.jsonl").read_text(encoding="utf-8").splitlines()
]
DATA = Path(os.environ.get("RADSCRIBE_DATA", Path(__file__).parents[2] / "../shared/data")) / "openi"
NEEDS_OPENI = pytest.mark.skipif(not (DATA / "labels20.json").exists(), reason=f"Open-i is not at {DATA}")


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    return KnowledgeGraph.load()


@pytest.fixture(scope="module")
def reader(graph: KnowledgeGraph) -> ReportReader:
    return ReportReader(graph)


def reading(mentions: list[Mention]) -> list[tuple]:
    return sorted(
        (m.start, m.end, m.concept, str(m.certainty), m.place, m.side, list(m.attributes), m.measure_mm, m.change)
        for m in mentions
    )


def test_there_are_enough_sentences() -> None:
    assert len({s["text"] for s in SENTENCES}) >= 200


@pytest.mark.parametrize("sentence", SENTENCES, ids=[s["text"][:50] for s in SENTENCES])
def test_sentence_is_read_in_full(reader: ReportReader, sentence: dict) -> None:
    expected = [
        (m["start"], m["end"], m["concept"], m["certainty"], m["place"], m["side"], m["attributes"], m["measure_mm"],
         m["change"])
        for m in sentence["mentions"]
    ]  # fmt: skip
    assert reading(reader.read(sentence["text"])) == sorted(expected)


def test_spans_point_into_the_text(reader: ReportReader) -> None:
    text = "The lungs are clear.\n1. No effusion. 2. Small right apical pneumothorax, new since 3.5 hours ago."
    for m in reader.read(text):
        start, end = split_sentences(text)[m.sentence]
        assert start <= m.start < m.end <= end
    assert [text[m.start : m.end] for m in reader.read(text)][-2:] == ["effusion", "pneumothorax"]


def test_sentences_end_at_stops_not_at_numbers_or_titles() -> None:
    text = "1. A 3.5 cm mass. Seen by Dr. Smith.No effusion.\nClear lungs"
    assert [text[a:b] for a, b in split_sentences(text)] == [
        "A 3.5 cm mass.", "Seen by Dr. Smith.", "No effusion.", "Clear lungs",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", " \n", "...", "12345", "XXXX XXXX.", "肺炎", "\x00\x00"])
def test_text_that_says_nothing(reader: ReportReader, graph: KnowledgeGraph, text: str) -> None:
    assert reader.read(text) == []
    assert label_mentions(reader.read(text), graph, "openi20") == {}


def test_sections_change_what_a_finding_means(reader: ReportReader) -> None:
    assert [m.certainty for m in reader.read("Pneumonia.", "indication")] == [Certainty.UNCERTAIN]
    assert reader.read("Pneumonia.", "comparison") == []
    whole = "INDICATION: Pneumonia. COMPARISON: Effusion on CT. FINDINGS: No effusion. IMPRESSION: Cardiomegaly."
    said = {m.concept: m.certainty for m in reader.read(whole)}
    assert said == {
        "pneumonia": Certainty.UNCERTAIN, "pleural_effusion": Certainty.ABSENT, "cardiomegaly": Certainty.PRESENT,
    }  # fmt: skip


def test_a_repeated_sentence_is_read_with_its_own_span(reader: ReportReader) -> None:
    text = "No effusion. No effusion."
    assert [(m.start, m.sentence) for m in reader.read(text)] == [(3, 0), (16, 1)]


def test_labels_prefer_what_is_present(reader: ReportReader, graph: KnowledgeGraph) -> None:
    said = label_mentions(reader.read("No pneumothorax. Possible effusion. Small left pneumothorax."), graph)
    assert said["pneumothorax"] is Certainty.PRESENT
    assert said["pleural_effusion"] is Certainty.UNCERTAIN
    assert said["normal"] is Certainty.ABSENT
    assert "edema" not in said


def test_normal_and_others_follow_from_the_rest(reader: ReportReader, graph: KnowledgeGraph) -> None:
    normal = label_mentions(reader.read("Heart size is normal. No effusion."), graph)
    assert normal["normal"] is Certainty.PRESENT
    other = label_mentions(reader.read("Tortuous aorta."), graph)
    assert (other["normal"], other["other_finding"]) == (Certainty.ABSENT, Certainty.PRESENT)
    both = label_mentions(reader.read("Tortuous aorta. Cardiomegaly."), graph, "openi20")
    assert both["cardiomegaly"] is Certainty.PRESENT
    assert both["others"] is Certainty.ABSENT
    assert label_mentions(reader.read("History of pneumonia."), graph) == {}


def test_a_smaller_graph_reads_only_its_concepts(graph: KnowledgeGraph) -> None:
    part = graph.subgraph(["pneumothorax", "pleural_cavity", "thorax", "body"])
    said = ReportReader(part).read("Cardiomegaly. Left pneumothorax.")
    assert [m.concept for m in said] == ["pneumothorax"]


def test_very_long_text_is_read_in_time(reader: ReportReader) -> None:
    assert len(reader.read("no effusion " * 20_000)) == 20_000
    assert reader.read("a" * 200_000) == []


def openi_macro_f1(graph: KnowledgeGraph, splits: tuple[str, ...]) -> dict[str, float]:
    with (DATA / "indiana_reports.csv").open(encoding="utf-8") as file:
        rows = {r["uid"]: r for r in csv.DictReader(file)}
    coded = json.loads((DATA / "labels20.json").read_text())
    parts = json.loads((DATA / "r2gen_annotation.json").read_text())
    uids = [re.match(r"CXR(\d+)_", e["id"]).group(1) for part in splits for e in parts[part]]
    reader = ReportReader(graph)
    counts = {label: [0, 0, 0] for label in graph.views["openi20"]}
    for uid in uids:
        text = f"{rows[uid]['findings']}\n{rows[uid]['impression']}"
        said = label_mentions(reader.read(text), graph, "openi20")
        for label, c in counts.items():
            read, true = said.get(label) is Certainty.PRESENT, label in coded[uid]
            c[0] += read and true
            c[1] += read and not true
            c[2] += true and not read
    return {label: 2 * tp / max(1, 2 * tp + fp + fn) for label, (tp, fp, fn) in counts.items()}


@NEEDS_OPENI
def test_agreement_with_the_coders_of_openi(graph: KnowledgeGraph) -> None:
    f1 = openi_macro_f1(graph, ("train", "val"))
    findings = {k: v for k, v in f1.items() if k not in ("normal / no indexing", "others")}
    assert len(findings) == 18
    assert sum(findings.values()) / 18 >= 0.93
    assert min(findings.values()) >= 0.85
    assert sum(f1.values()) / 20 >= 0.92
