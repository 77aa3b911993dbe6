"""The text half of a report: constraints from what was seen, the search, and the choice among its candidates.

Sections are written one after another, each with those before it in its prompt. Drafts of one kind are written together
(`Draft.kind`); what a draft becomes does not depend on the others (on the CPU to the last bit, `lean_llama.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm.checkpoint import Checkpoint
from vlm.config import Generation
from vlm.data.examples import HEADINGS, Example, ExampleBuilder
from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.generation.checking import unmet_in
from vlm.generation.compiling import CompiledConstraints, compile_constraints
from vlm.generation.consistency import rerank
from vlm.generation.constraints import Constraints
from vlm.generation.ensemble_stepper import Joint
from vlm.generation.judging import EvidenceJudge, Judges, watched_words
from vlm.generation.planning import beam_plan
from vlm.generation.sampling import sample
from vlm.generation.steering import steer, term_automaton
from vlm.generation.structuring import Structurer
from vlm.generation.tokens import TokenTable
from vlm.generation.trace import Recorder
from vlm.generation.wording import wording_of
from vlm.models.language import UNWRITTEN
from vlm.models.report_generator import ImageOutput, ReportGenerator
from vlm.request import GenerationSettings, join_constraints
from vlm.seeing import Seen, Seer
from vlm.types import InputError, StudyBatch


@dataclass(frozen=True, slots=True)
class Written:
    """A candidate text: what was written, its search score, and the constraints that it does not hold."""

    text: str
    score: float
    unmet: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the search starts from: a language model, prompt embeddings (B, P, L) padded on the left, and mask (B, P).

    Of an ensemble the model is all members' in one, each with its own prompt, and the embeddings are the first's.
    """

    language: nn.Module
    embeds: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Look:
    """How a model saw a study, for its prompt: its own example, its image half's output, and a batch of it alone."""

    example: Example
    image: ImageOutput
    batch: StudyBatch


@dataclass(slots=True)
class Draft:
    """A report on its way.

    Args:
        index: place of its study in the input. rank: 0 for the study's report, 1 and on for its alternatives.
        example, seen, image, batch: of the study; the batch holds it alone.
        others: how the other members of an ensemble looked at it.
        constraints: of its text.
        search: how it is searched.
        written: text by section. unmet, trace: of the sections written.
    """

    index: int
    example: Example
    seen: Seen
    image: ImageOutput
    batch: StudyBatch
    constraints: Constraints
    search: BeamSettings
    others: tuple[Look, ...] = ()
    rank: int = 0
    written: dict[str, str] = field(default_factory=dict)
    unmet: tuple[str, ...] = ()
    trace: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kind(self) -> tuple[object, ...]:
        """Drafts of one kind can be written together, and at no cost to one another: the same settings of the search,
        and terms to wait for or not."""
        return (not self.written, bool(self.constraints.must_appear) and not self.written, self.search)


class Writer:
    """Writes the sections of reports.

    Args:
        checkpoint: loaded, in evaluation mode.
        builder: of its examples.
        seer: of its image half.
        others: model and builder of each further member of an ensemble; they share the first's tokenizer.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        builder: ExampleBuilder,
        seer: Seer,
        others: Sequence[tuple[ReportGenerator, ExampleBuilder]] = (),
    ) -> None:
        view = checkpoint.config.model.knowledge.view
        self.checkpoint, self.builder, self.seer = checkpoint, builder, seer
        self.members = ((checkpoint.model, builder), *others)
        self.sections = tuple(checkpoint.config.data.report_sections)
        self.wording = wording_of(checkpoint.graph, view)
        self.automaton = term_automaton(self.wording)
        self.structurer = Structurer(checkpoint.graph, builder.reader, view)
        names = (name for label in self.wording.concepts for name in self.wording.names(label))
        self.watched = watched_words(names, checkpoint.graph)
        tokenizer = checkpoint.tokenizer
        self.break_id = _break_id(tokenizer)
        mark = tokenizer.convert_tokens_to_ids(UNWRITTEN)
        self.suppressed = (mark,) if isinstance(mark, int) and mark != tokenizer.unk_token_id else ()

    def draft(
        self,
        index: int,
        example: Example,
        seen: Seen,
        image: ImageOutput,
        batch: StudyBatch,
        settings: GenerationSettings,
        others: tuple[Look, ...] = (),
    ) -> Draft:
        """The empty report of a study that was looked at."""
        generation = self.checkpoint.config.generation
        search = self._beams(max(_width(settings, generation), settings.num_reports), generation)
        if settings.num_beams == "auto":
            search = beam_plan(seen.evidence, search, generation.max_must).apply(search)
            search = replace(search, num_beams=max(search.num_beams, settings.num_reports))
        constraints = self.constraints(seen, settings, generation)
        return Draft(index, example, seen, image, batch, constraints, search, others)

    def constraints(self, seen: Seen, settings: GenerationSettings, generation: Generation) -> Constraints:
        """The findings' own constraints and the user's; where they disagree the user's stand."""
        base = Constraints(repeat_sentences=False, negation=self.wording.negation)
        if settings.steer:
            # A box says as much as a finding: the more certain of the two counts.
            boxed: dict[str, float] = {}
            for box in seen.boxes:
                if (box.confidence or 0.0) >= seen.evidence.least:
                    boxed[box.label] = max(boxed.get(box.label, 0.0), box.confidence or 0.0)
            probabilities = {n: max(p, boxed.get(n, 0.0)) for n, p in seen.evidence.probabilities.items()}
            cuts = seen.evidence.thresholds
            base = steer(probabilities, self.wording, cuts, generation.softness, generation.max_must)
        return join_constraints(base, settings, self.sections)

    def done(self, draft: Draft) -> bool:
        """Whether all sections are written."""
        return len(draft.written) == len(self.sections)

    @torch.inference_mode()
    def write(self, drafts: Sequence[Draft], settings: GenerationSettings) -> list[list[Draft]]:
        """Adds a section to drafts of one kind.

        Returns:
            For each draft what becomes of it: behind the first section one draft for each report that is asked for.
        """
        generation = self.checkpoint.config.generation
        first = not drafts[0].written
        prompts = self._prompts(drafts)
        constraints = [self._bound(d, settings) for d in drafts]
        compiled = [self._compile(c, generation.max_new_tokens, settings) for c in constraints]
        traces: list[list[dict[str, Any]]] = [[] for _ in drafts]
        if settings.decoding == "sample":
            answers = self._drawn(prompts, compiled, drafts, settings, generation)
        else:
            judges = self._judges(drafts, settings, generation)
            recorder = Recorder(self.checkpoint.tokenizer, len(drafts)) if settings.traced else None
            answers = self._search(prompts, compiled, drafts[0].search, judges, recorder)
            traces = [trace["steps"] for trace in recorder.traces] if recorder else traces
        pools: Sequence[Sequence[Written]] = [()] * len(drafts)
        if first and settings.decoding == "beam" and generation.samples:
            pools = self._pool(prompts, compiled, drafts, settings, generation)
        out = []
        for draft, candidates, pool, trace in zip(drafts, answers, pools, traces, strict=True):
            chosen = self._ordered(candidates, pool, draft.seen, generation) if first else candidates
            count = settings.num_reports if first else 1
            section = self.sections[len(draft.written)]
            steps = [*draft.trace, *({"section": section, **step} for step in trace)]
            out.append(
                [
                    replace(
                        draft, rank=draft.rank + rank, written={**draft.written, section: best.text},
                        unmet=draft.unmet + best.unmet, trace=steps,
                    )
                    for rank, best in enumerate(_distinct(chosen)[:count])
                ]
            )  # fmt: skip
        return out

    def _prompts(self, drafts: Sequence[Draft]) -> Prompts:
        """The prompts of all drafts."""
        parts = [(m.language.model, *self._prefixes(drafts, at)) for at, (m, _) in enumerate(self.members)]
        language, embeds, mask = parts[0]
        return Prompts(language if len(parts) == 1 else Joint(parts), embeds, mask)

    def _prefixes(self, drafts: Sequence[Draft], member: int) -> tuple[Tensor, Tensor]:
        """One member's prompt embeddings (B, P, L), padded on the left, and mask (B, P); each made by itself."""
        model, builder = self.members[member]
        rows = []
        for draft in drafts:
            section = self.sections[len(draft.written)]
            look = draft.others[member - 1] if member else Look(draft.example, draft.image, draft.batch)
            ids = torch.tensor([self._prompt(builder, look.example, draft.written, section, draft.seen)])
            ids = ids.to(look.batch.prompt_ids.device)
            own = replace(look.batch, prompt_ids=ids, prompt_mask=torch.ones_like(ids, dtype=torch.bool))
            embeds, mask = model.prefix(look.image, own)
            rows.append(embeds[0, mask[0]])
        longest = max(map(len, rows))
        prefix = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
        mask = torch.zeros(prefix.shape[:2], dtype=torch.long, device=prefix.device)
        for number, row in enumerate(rows):
            prefix[number, longest - len(row) :] = row
            mask[number, longest - len(row) :] = 1
        return prefix, mask

    def _bound(self, draft: Draft, settings: GenerationSettings) -> Constraints:
        """What binds the section that comes next: what must appear binds the first, unless the user says otherwise."""
        own, section = draft.constraints, self.sections[len(draft.written)]
        named = tuple(
            replace(entry, section=None)
            for entry in (settings.constraints.must_appear if settings.constraints else ())
            if entry.section is not None and entry.section.lower() == section
        )
        if not draft.written:
            return replace(own, must_appear=own.must_appear + named)
        return replace(own, must_appear=named, in_order=False, template="", sections=(), sentences=(0, None))

    def _ordered(
        self, candidates: Sequence[Written], pool: Sequence[Written], seen: Seen, generation: Generation
    ) -> list[Written]:
        """The candidates, beams and samples, best first: those that hold as many constraints as the best beam and
        contradict least, by agreement and consensus; then the other beams."""
        fewest = len(candidates[0].unmet)
        alike = [c for c in (*candidates, *pool) if len(c.unmet) <= fewest and c.text]
        if generation.contradiction:
            counts = [EvidenceJudge(self.structurer, seen.evidence, 1.0).count(c.text, True) for c in alike]
            alike = [c for c, count in zip(alike, counts, strict=True) if count == min(counts)]
        if len(alike) > 1:
            order = rerank(
                [c.text for c in alike], [c.score for c in alike], self.structurer, seen.evidence,
                generation.consistency, generation.consensus, [c.text for c in pool],
            )  # fmt: skip
            alike = [alike[place] for place in order]
        return [*alike, *candidates]

    def _pool(
        self,
        prompts: Prompts,
        compiled: Sequence[CompiledConstraints],
        drafts: Sequence[Draft],
        settings: GenerationSettings,
        generation: Generation,
    ) -> list[list[Written]]:
        """Draws from the language model, for consensus; each with the constraints that it does not hold."""
        beams = replace(self._beams(generation.samples, generation), min_new_tokens=1)
        drawn = sample(
            prompts.language, beams, [_seed(d, settings.seed) for d in drafts], inputs_embeds=prompts.embeds,
            attention_mask=prompts.mask, temperature=generation.temperature, top_p=generation.top_p,
        )  # fmt: skip
        return [
            [Written(text, c.score, unmet_in(own, text)) for c in row if (text := self._text(c.tokens))]
            for row, own in zip(drawn, compiled, strict=True)
        ]

    def _drawn(
        self,
        prompts: Prompts,
        compiled: Sequence[CompiledConstraints],
        drafts: Sequence[Draft],
        settings: GenerationSettings,
        generation: Generation,
    ) -> list[list[Written]]:
        """Draws the answers themselves, under their constraints."""
        count = settings.num_reports if not drafts[0].written else 1
        beams = replace(self._beams(count, generation), min_new_tokens=1)
        seeds = [_seed(d, settings.seed, "drawn", d.rank, len(d.written)) for d in drafts]
        drawn = sample(
            prompts.language, beams, seeds, inputs_embeds=prompts.embeds, attention_mask=prompts.mask,
            temperature=settings.temperature or generation.temperature, top_p=settings.top_p or generation.top_p,
            constraints=compiled,
        )  # fmt: skip
        return [[Written(self._text(c.tokens), c.score, c.unmet) for c in row] for row in drawn]

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.checkpoint.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _beams(self, width: int, generation: Generation) -> BeamSettings:
        tokenizer = self.checkpoint.tokenizer
        return BeamSettings(
            num_beams=width,
            max_new_tokens=generation.max_new_tokens,
            length_penalty=generation.length_penalty,
            no_repeat_ngram_size=generation.no_repeat_ngram_size,
            no_repeat_in_sentence=generation.no_repeat_in_sentence,
            sentence_end_ids=TokenTable.of(tokenizer).sentence_ends,
            eos_token_ids=(tokenizer.eos_token_id, self.break_id),
            pad_token_id=tokenizer.pad_token_id,
            suppress_token_ids=self.suppressed,
        )

    def _prompt(
        self, builder: ExampleBuilder, example: Example, written: dict[str, str], section: str, seen: Seen
    ) -> list[int]:
        first = next(iter(written), section)
        cuts = self.checkpoint.calibration.seen
        named = [name for name, p in seen.evidence.probabilities.items() if p >= cuts.get(name, 0.5)]
        named += [name for name in self.checkpoint.labels if name not in named and seen.evidence.boxes_of(name)]
        ids = builder.prompt_ids(builder.prompt(example.modality, example.clinical, first, named))
        if not written:
            return ids
        body = ""
        for number, (name, text) in enumerate(written.items()):
            body += f" {text}" if number == 0 else f"\n{HEADINGS[name]} {text}"
        tail = self.checkpoint.tokenizer(f"{body}\n{HEADINGS[section]}", add_special_tokens=False)["input_ids"]
        return ids + tail

    def _search(
        self,
        prompts: Prompts,
        compiled: Sequence[CompiledConstraints],
        beams: BeamSettings,
        judges: Judges | None,
        recorder: Recorder | None,
    ) -> list[list[Written]]:
        found = beam_search(
            prompts.language, beams, inputs_embeds=prompts.embeds, attention_mask=prompts.mask, constraints=compiled,
            judges=judges, trace=recorder,
        )  # fmt: skip
        return [[Written(self._text(c.tokens), c.score, c.unmet) for c in row] for row in found]

    def _judges(self, drafts: Sequence[Draft], settings: GenerationSettings, generation: Generation) -> Judges | None:
        """Who make contradictions cost, each with the sections that the study has already."""
        if not settings.steer or not generation.contradiction:
            return None
        section = self.sections[len(drafts[0].written)]
        weight = generation.contradiction
        judges = [
            EvidenceJudge(self.structurer, d.seen.evidence, weight, section, " ".join(d.written.values()))
            for d in drafts
        ]
        return Judges(judges, self.checkpoint.tokenizer, self.watched)

    def _compile(
        self, constraints: Constraints, length: int, settings: GenerationSettings | None = None
    ) -> CompiledConstraints:
        # The shared automaton knows the graph's terms alone; a user's own terms need one of their own.
        own = settings is not None and bool(settings.must or settings.must_not or settings.constraints)
        return compile_constraints(
            constraints, self.checkpoint.tokenizer, length, automaton=None if own else self.automaton
        )


def _width(settings: GenerationSettings, generation: Generation) -> int:
    if settings.decoding == "greedy":
        return 1
    return settings.num_beams if isinstance(settings.num_beams, int) else generation.num_beams


def _seed(draft: Draft, seed: int, *what: object) -> int:
    """A seed of the study's own; no other study and no batch has a part in it."""
    name = draft.example.id if not seed and not what else ":".join(map(str, (draft.example.id, seed, *what)))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _distinct(candidates: Sequence[Written]) -> list[Written]:
    """Without texts that stand before; never none."""
    first: dict[str, Written] = {}
    for candidate in candidates:
        first.setdefault(candidate.text, candidate)
    return list(first.values())


def _break_id(tokenizer: object) -> int:
    """The token that ends a section: a line break before the next heading."""
    encoded = tokenizer("end.\nImpression:", add_special_tokens=False, return_offsets_mapping=True)  # type: ignore[operator]
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if start <= 4 < end:
            return int(token)
    raise InputError("the tokenizer has no token for a line break; a report's sections could not be told apart")
