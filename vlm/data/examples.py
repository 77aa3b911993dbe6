"""A study as arrays: what is decoded and tokenised once, and kept.

`ExampleBuilder` decides what a model is told about a study: which views, which prompt, which tokens weigh more, which
findings and
boxes are known. Unknown stays unknown: NaN for a finding, False in `box_known` for a class.

Shapes: V views, S pixels of the square, F findings, K box classes, n boxes, R report tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from knowledge.extraction import Mention, ReportReader, label_mentions
from knowledge.graph import KnowledgeGraph
from knowledge.ontology import Certainty, Kind
from vlm.config import Data
from vlm.data.channels import load_channels
from vlm.data.images import check_image
from vlm.data.transforms import Placement, letterbox
from vlm.data.views import choose_views as choose_views
from vlm.data.windows import window_of
from vlm.types import InputError, Modality, Study, View

VIEWS = tuple(View)
HEADINGS = {"findings": "Findings:", "impression": "Impression:"}


@dataclass(slots=True)
class Example:
    """One study, ready to be batched.

    Args:
        id: `Study.id`. size: S. pixels: (V, S, S) uint8, or (V, C, S, S) of C windows.
        view: (V,) index into `View`. chosen: (V,) index into `Study.images`.
        placements: where each image lies in its square.
        modality: for the prompt. clinical: text of the prompt. report_ids, report_labels, report_weights: (R,).
        finding_targets: (F,) 1, 0 or NaN. boxes_xyxy, box_classes: per view (n, 4) and (n,). box_known: (V, K).
    """

    id: str
    size: int
    pixels: np.ndarray
    view: np.ndarray
    chosen: tuple[int, ...]
    placements: tuple[Placement, ...]
    modality: Modality
    clinical: dict[str, str]
    first_section: str
    report_ids: np.ndarray
    report_labels: np.ndarray
    report_weights: np.ndarray
    finding_targets: np.ndarray
    boxes_xyxy: tuple[np.ndarray, ...]
    box_classes: tuple[np.ndarray, ...]
    box_known: np.ndarray


class ExampleBuilder:
    """Turns studies into examples.

    Args:
        config: the `data` section.
        labels: the model's label list (F). box_labels: classes of the detection head (K).
        graph, reader: to read what a report says, when it is known.
        tokenizer: of the language model. unwritten: a text mark that carries no loss (the de-identifier's).
        concept_weight: weight of the tokens inside a concept's mention, >= 1. view: of the graph, with the labels.
        begin: prompts start with the begin token (no: the language model's own frame holds it).
    """

    def __init__(
        self,
        config: Data,
        labels: Sequence[str],
        box_labels: Sequence[str],
        graph: KnowledgeGraph,
        tokenizer: PreTrainedTokenizerBase,
        concept_weight: float = 1.0,
        unwritten: str = "XXXX",
        view: str = "radscribe",
        begin: bool = True,
    ) -> None:
        self.begin = begin
        self.config, self.graph, self.tokenizer = config, graph, tokenizer
        self.labels, self.box_labels = tuple(labels), tuple(box_labels)
        self.reader = ReportReader(graph)
        self.concept_weight, self.unwritten, self.view = concept_weight, unwritten, view
        self.windows = tuple(window_of(w) for w in config.windows)
        self.named = {name: frozenset(graph.views.get(view, {}).get(name, (name,))) for name in self.labels}
        self.closures = closures(graph, self.named)
        self.coverage = coverage(self.closures, self.named) | self._coverage_of_concepts()

    def _coverage_of_concepts(self) -> dict[str, tuple[str, ...]]:
        """A data set may label by any finding of the graph: a kind of a label covers it, a wider finding those below
        it, and any other is "other finding", as in the reading of reports."""
        out: dict[str, tuple[str, ...]] = {}
        for name, concept in self.graph.concepts.items():
            if concept.kind is not Kind.FINDING or name in self.closures:
                continue
            kinds = self.graph.descendants(name)
            above = tuple(own for own, ids in self.named.items() if any(name in self.graph.descendants(i) for i in ids))
            below = tuple(own for own, ids in self.named.items() if ids & kinds)
            rest = tuple(own for own, ids in self.named.items() if "other_finding" in ids)
            self.closures[name] = kinds
            out[name] = above or below or rest
        return out

    def build(self, study: Study, most: int | None = None) -> Example:
        """Decodes the images and tokenises the report.

        Args:
            study: with images. most: views that are looked at; None for the configuration's.

        Raises:
            InputError: an image cannot be read or shows nothing.
        """
        chosen = choose_views(study.images, most or self.config.max_views)
        if not chosen:
            raise InputError(f"study {study.id}: has no image")
        modality_size = self._size_of(study.images[i].modality for i in chosen)
        read = [load_channels(study.images[i], self.windows, modality_size) for i in chosen]
        images = [image for image, _ in read]
        modality = next((i.modality for i in images if i.modality), Modality(self.config.default_modality))
        size = self._size_of([modality]) or 256
        pixels, placements = [], []
        for image, channels in read:
            assert image.pixels is not None
            check_image(image.pixels, str(image.path.name if image.path else study.id))
            squares = [letterbox(channel, size, full_size=image.full_size) for channel in channels]
            pixels.append(np.stack([np.round(square * 255).astype(np.uint8) for square, _ in squares]))
            placements.append(squares[0][1])
        boxes, classes, known = self._boxes(study, chosen, placements)
        report = {k: v for k, v in (study.report or {}).items() if k in self.config.report_sections and v.strip()}
        ids, targets, weights = self._tokens(report)
        return Example(
            id=study.id, size=size, pixels=_stacked(pixels), chosen=chosen, placements=tuple(placements),
            view=np.array([VIEWS.index(i.view or View.OTHER) for i in images]), modality=modality,
            clinical={k: study.clinical[k] for k in self.config.clinical_sections if study.clinical.get(k)},
            first_section=next(iter(report), self.config.report_sections[0]),
            report_ids=ids, report_labels=targets, report_weights=weights, finding_targets=self.targets(study),
            boxes_xyxy=boxes, box_classes=classes, box_known=known,
        )  # fmt: skip

    def _size_of(self, modalities: Iterable[Modality | None]) -> int | None:
        """Pixels of the model's square for the first modality that is known; None when none is."""
        sizes = self.config.image_size
        known = next((m for m in modalities if m), None)
        return None if known is None else sizes.get(known.value, sizes.get("default", 256))

    def targets(self, study: Study) -> np.ndarray:
        """(F,) what is known of each label: people's labels first, then the report's own words; uncertain is
        unknown. A label that stands for several concepts is absent when all of them are."""
        said: dict[str, Certainty] = {}
        if study.report:
            text = "\n".join(study.report.values())
            said = label_mentions(self.reader.read(text), self.graph, self.view) if text.strip() else {}
        value = {Certainty.PRESENT: 1.0, Certainty.ABSENT: 0.0}
        out = {name: value.get(c, np.nan) for name, c in said.items()}
        stated = [f for f in study.findings or () if f.label in self.coverage]
        denied = {c for f in stated if f.certainty == Certainty.ABSENT for c in self.closures[f.label]}
        for finding in stated:
            covered = self.coverage[finding.label]
            if finding.certainty == Certainty.PRESENT and len(covered) > 1:
                # A label that lumps several findings: the report says which; the others stay unknown.
                out.update({name: out[name] if out.get(name) == 1.0 else np.nan for name in covered})
            elif finding.certainty != Certainty.ABSENT:
                out.update(dict.fromkeys(covered, np.nan))
        out.update({name: 0.0 for name in self.labels if self.named[name] <= denied})
        single = [f for f in stated if f.certainty == Certainty.PRESENT and len(self.coverage[f.label]) == 1]
        out.update({self.coverage[f.label][0]: 1.0 for f in single})
        return np.array([out.get(name, np.nan) for name in self.labels], np.float32)

    def prompt(
        self, modality: Modality, clinical: dict[str, str], section: str, seen: Sequence[str] | None = None
    ) -> str:
        """The text before the report: modality, what is seen (labels), what was asked, and the section's heading."""
        lines = [f"Modality: {modality.value}."]
        if seen is not None and self.config.seen_line:
            names = [self.graph.concepts[label].name for label in seen]
            lines.append(f"Seen: {', '.join(names) or 'unclear'}.")
        lines += [f"{name.capitalize()}: {' '.join(text.split())}" for name, text in clinical.items()]
        return "\n".join([*lines, HEADINGS.get(section, f"{section.capitalize()}:")])

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a prompt; too long a text loses its middle, never its heading."""
        wanted = self.begin and self.tokenizer.bos_token_id is not None
        start = [self.tokenizer.bos_token_id] if wanted else []
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        most = self.config.max_prompt_tokens - len(start)
        if len(ids) > most:
            ids = ids[: most // 2] + ids[-(most - most // 2) :]
        return start + ids

    def _tokens(self, report: dict[str, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, labels and weights of the sections in order, each ended by a line break, the last by the end token."""
        if not report:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        parts, mentions = [], []
        at = 0
        for number, (name, text) in enumerate(report.items()):
            heading = "" if number == 0 else f"\n{HEADINGS.get(name, name.capitalize() + ':')}"
            body = f"{heading} {' '.join(text.split())}"
            parts.append(body)
            offset = at + len(heading) + 1
            mentions += [(m.start + offset, m.end + offset) for m in self._read(" ".join(text.split()))]
            at += len(body)
        encoded = self.tokenizer("".join(parts), add_special_tokens=False, return_offsets_mapping=True)
        most = self.config.max_report_tokens - 1
        ids = encoded["input_ids"]
        whole = len(ids) <= most
        ids, offsets = ids[:most], np.array(encoded["offset_mapping"][:most]).reshape(-1, 2)
        weights = np.ones(len(ids), np.float32)
        for start, end in mentions:
            weights[(offsets[:, 0] < end) & (offsets[:, 1] > start)] = self.concept_weight
        if whole:  # a report that was cut is not taught to end there
            ids = [*ids, self.tokenizer.eos_token_id]
            weights = np.append(weights, np.float32(1.0))
        out = np.array(ids, np.int64)
        mark = self.tokenizer.convert_tokens_to_ids(self.unwritten)
        labels = (
            np.where(out == mark, -100, out)
            if isinstance(mark, int) and mark != self.tokenizer.unk_token_id
            else out.copy()
        )
        return out, labels, weights

    def _read(self, text: str) -> list[Mention]:
        return self.reader.read(text) if self.concept_weight > 1 else []

    def _boxes(
        self, study: Study, chosen: tuple[int, ...], placements: list[Placement]
    ) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], np.ndarray]:
        known = np.zeros((len(chosen), len(self.box_labels)), bool)
        for column in looked_for(study, self.box_labels):
            known[:, column] = True
        boxes, classes = [], []
        for slot, (index, placement) in enumerate(zip(chosen, placements, strict=True)):
            here = [b for b in study.boxes or () if b.image == index and b.label in self.box_labels]
            boxes.append(placement.to_model(np.array([b.xyxy for b in here], np.float32).reshape(-1, 4)))
            classes.append(np.array([self.box_labels.index(b.label) for b in here], np.int64))
            known[slot, classes[-1]] = True
        return tuple(boxes), tuple(classes), known


def _stacked(pixels: list[np.ndarray]) -> np.ndarray:
    """Images (1, S, S) or (C, S, S) as (V, S, S), or as (V, C, S, S) when one has several channels."""
    most = max(len(p) for p in pixels)
    return np.concatenate(pixels) if most == 1 else np.stack([np.broadcast_to(p, (most, *p.shape[1:])) for p in pixels])


def looked_for(study: Study, box_labels: Sequence[str]) -> list[int]:
    """Classes that somebody looked for in every image of the study: where boxes were drawn those labelled absent and
    those with a box, and all of them in a study that is said to be normal."""
    stated = {f.label: f.certainty for f in study.findings or ()}
    if Certainty.PRESENT in (stated.get("normal"), stated.get("normal / no indexing")):
        return list(range(len(box_labels)))
    if study.boxes is None:
        return []
    boxed = {box.label for box in study.boxes}  # what is present without a box is somewhere
    known = {n for n, c in stated.items() if c is Certainty.ABSENT or (c is Certainty.PRESENT and n in boxed)}
    return [i for i, name in enumerate(box_labels) if name in known]


def closures(graph: KnowledgeGraph, named: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """For every label of every view of the graph, its concepts and all their kinds; the model's own labels win.

    Args:
        graph: whose views are read.
        named: the model's labels with the concepts that each stands for.
    """
    out: dict[str, Collection[str]] = {label: ids for view in graph.views.values() for label, ids in view.items()}
    out.update(named)
    return {label: frozenset().union(*map(graph.descendants, ids)) for label, ids in out.items()}


def coverage(closures: Mapping[str, frozenset[str]], named: Mapping[str, frozenset[str]]) -> dict[str, tuple[str, ...]]:
    """For every label of every view of the graph, the model's labels that it covers, at least in part: "Consolidation"
    covers "pneumonia", which stands for both. A kind that two labels share (hydropneumothorax) makes neither cover the
    other.

    Args:
        closures: from `closures`.
        named: the model's labels with the concepts that each stands for.
    """
    covered = {label: tuple(own for own, ids in named.items() if ids & wide) for label, wide in closures.items()}
    return covered | {name: (name,) for name in named}
