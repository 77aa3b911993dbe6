"""The text half of a report: constraints from what was seen, the search, and the choice among its candidates.

Sections are written one after another, each with those before it in its prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from vlm.checkpoint import Checkpoint
from vlm.config import Generation
from vlm.data.batches import pad
from vlm.data.examples import HEADINGS, Example, ExampleBuilder
from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.generation.checking import unmet_in
from vlm.generation.compiling import CompiledConstraints, compile_constraints
from vlm.generation.consistency import rerank
from vlm.generation.constraints import Constraints, TermSet
from vlm.generation.judging import EvidenceJudge, Judges, watched_words
from vlm.generation.sampling import sample
from vlm.generation.steering import steer, term_automaton
from vlm.generation.structuring import Structurer
from vlm.generation.wording import wording_of
from vlm.models.language import UNWRITTEN
from vlm.models.report_generator import ImageOutput
from vlm.seeing import Seen, Seer
from vlm.types import InputError, StudyBatch


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """What the user asks of a run, beside the checkpoint's own `generation` section.

    Args:
        must, must_not: terms that every report must hold, and must not assert.
        steer: let the findings' probabilities constrain the text. blank: replace every image by a grey one (to test
            that it matters).
        attention: keep attention maps for heat maps.
        num_beams, batch_size, max_views: override the checkpoint's.
        abstain: leave out sentences whose confidence is below this, in [0, 1]; None for none.
    """

    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()
    steer: bool = True
    blank: bool = False
    attention: bool = True
    num_beams: int | None = None
    batch_size: int | None = None
    max_views: int | None = None
    abstain: float | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A candidate text: what was written, its search score, and the constraints that it does not hold."""

    text: str
    score: float
    unmet: tuple[str, ...] = ()


class Writer:
    """Writes the sections of a batch's reports.

    Args:
        checkpoint: loaded, in evaluation mode.
        builder: of its examples.
        seer: of its image half.
    """

    def __init__(self, checkpoint: Checkpoint, builder: ExampleBuilder, seer: Seer) -> None:
        view = checkpoint.config.model.knowledge.view
        self.checkpoint, self.builder, self.seer = checkpoint, builder, seer
        self.model = checkpoint.model
        self.wording = wording_of(checkpoint.graph, view)
        self.automaton = term_automaton(self.wording)
        self.structurer = Structurer(checkpoint.graph, builder.reader, view)
        self.watched = watched_words(name for label in self.wording.concepts for name in self.wording.names(label))
        tokenizer = checkpoint.tokenizer
        self.break_id = _break_id(tokenizer)
        mark = tokenizer.convert_tokens_to_ids(UNWRITTEN)
        self.suppressed = (mark,) if isinstance(mark, int) and mark != tokenizer.unk_token_id else ()

    def constraints(self, seen: Seen, settings: GenerationSettings, generation: Generation) -> Constraints:
        """The findings' own constraints and the user's."""
        base = Constraints(repeat_sentences=False, negation=self.wording.negation)
        if settings.steer:
            # A box says as much as a finding: the more certain of the two counts.
            boxed: dict[str, float] = {}
            for box in seen.boxes:
                if (box.confidence or 0.0) >= self.seer.least:
                    boxed[box.label] = max(boxed.get(box.label, 0.0), box.confidence or 0.0)
            probabilities = {n: max(p, boxed.get(n, 0.0)) for n, p in seen.evidence.probabilities.items()}
            base = steer(probabilities, self.wording, self.seer.thresholds, generation.softness, generation.max_must)
        must = tuple(TermSet(f"--must {t}", (t,)) for t in settings.must)
        never = tuple(TermSet(f"--must-not {t}", (t,)) for t in settings.must_not)
        return replace(base, must_appear=base.must_appear + must, must_not_assert=base.must_not_assert + never)

    def write(
        self,
        image: ImageOutput,
        batch: StudyBatch,
        examples: Sequence[Example],
        seen: Sequence[Seen],
        constraints: Sequence[Constraints],
        settings: GenerationSettings,
        generation: Generation,
    ) -> tuple[list[dict[str, str]], list[tuple[str, ...]]]:
        """Writes section after section, each after those before it; what must appear binds the first."""
        texts: list[dict[str, str]] = [{} for _ in examples]
        unmet: list[tuple[str, ...]] = [()] * len(examples)
        for number, section in enumerate(self.checkpoint.config.data.report_sections):
            prompts = [self._prompt(e, texts[i], section, seen[i]) for i, e in enumerate(examples)]
            ids, mask = pad(prompts, self.checkpoint.tokenizer.pad_token_id, left=True)
            device = batch.prompt_ids.device
            prompt = replace(batch, prompt_ids=ids.to(device), prompt_mask=mask.to(device))
            prefix, prefix_mask = self.model.prefix(image, prompt)
            own = list(constraints) if number == 0 else [replace(c, must_appear=()) for c in constraints]
            judges = self._judges(seen, texts, section, settings, generation)
            answers = self._search(prefix, prefix_mask, own, settings, generation, judges)
            pools = (
                self._sample(prefix, prefix_mask, own, examples, generation) if number == 0 else [()] * len(examples)
            )
            for row, candidates in enumerate(answers):
                best = self._best(candidates, pools[row], seen[row], generation) if number == 0 else candidates[0]
                texts[row][section] = best.text
                unmet[row] += best.unmet
        return texts, unmet

    def _best(
        self, candidates: Sequence[Written], pool: Sequence[Written], seen: Seen, generation: Generation
    ) -> Written:
        """The candidate to keep, beam or sample, of those that hold as many constraints as the best beam and contradict
        least."""
        fewest = len(candidates[0].unmet)
        alike = [c for c in (*candidates, *pool) if len(c.unmet) <= fewest and c.text]
        if generation.contradiction:
            counts = [EvidenceJudge(self.structurer, seen.evidence, 1.0).count(c.text, True) for c in alike]
            alike = [c for c, count in zip(alike, counts, strict=True) if count == min(counts)]
        if len(alike) < 2:
            return (alike or candidates)[0]
        order = rerank(
            [c.text for c in alike], [c.score for c in alike], self.structurer, seen.evidence,
            generation.consistency, generation.consensus, [c.text for c in pool],
        )  # fmt: skip
        return alike[order[0]]

    def _sample(
        self,
        prefix: Tensor,
        mask: Tensor,
        constraints: Sequence[Constraints],
        examples: Sequence[Example],
        generation: Generation,
    ) -> list[list[Written]]:
        """Draws from the language model, for consensus; each with the constraints that it does not hold."""
        if not generation.samples:
            return [[] for _ in examples]
        settings = replace(self._beams(generation.samples, generation), min_new_tokens=1)
        seeds = [int.from_bytes(hashlib.sha256(e.id.encode()).digest()[:4], "big") for e in examples]
        drawn = sample(
            self.model.language.model, settings, seeds, inputs_embeds=prefix, attention_mask=mask.long(),
            temperature=generation.temperature, top_p=generation.top_p,
        )  # fmt: skip
        out = []
        for row, own in zip(drawn, constraints, strict=True):
            compiled = self._compile(own, generation.max_new_tokens)
            texts = [(self._text(c.tokens), c.score) for c in row]
            out.append([Written(text, score, unmet_in(compiled, text)) for text, score in texts if text])
        return out

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.checkpoint.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _beams(self, width: int, generation: Generation) -> BeamSettings:
        tokenizer = self.checkpoint.tokenizer
        return BeamSettings(
            num_beams=width,
            max_new_tokens=generation.max_new_tokens,
            length_penalty=generation.length_penalty,
            no_repeat_ngram_size=generation.no_repeat_ngram_size,
            eos_token_ids=(tokenizer.eos_token_id, self.break_id),
            pad_token_id=tokenizer.pad_token_id,
            suppress_token_ids=self.suppressed,
        )

    def _prompt(self, example: Example, written: dict[str, str], section: str, seen: Seen) -> list[int]:
        first = next(iter(written), section)
        cuts = self.checkpoint.calibration.seen
        named = [name for name, p in seen.evidence.probabilities.items() if p >= cuts.get(name, 0.5)]
        named += [name for name in self.checkpoint.labels if name not in named and seen.evidence.boxes_of(name)]
        ids = self.builder.prompt_ids(self.builder.prompt(example.modality, example.clinical, first, named))
        if not written:
            return ids
        body = ""
        for number, (name, text) in enumerate(written.items()):
            body += f" {text}" if number == 0 else f"\n{HEADINGS[name]} {text}"
        tail = self.checkpoint.tokenizer(f"{body}\n{HEADINGS[section]}", add_special_tokens=False)["input_ids"]
        return ids + tail

    def _search(
        self,
        prefix: Tensor,
        mask: Tensor,
        constraints: Sequence[Constraints],
        settings: GenerationSettings,
        generation: Generation,
        judges: Judges | None = None,
    ) -> list[list[Written]]:
        beams = self._beams(settings.num_beams or generation.num_beams, generation)
        compiled = [self._compile(c, generation.max_new_tokens) for c in constraints]
        found = beam_search(
            self.model.language.model, beams, inputs_embeds=prefix, attention_mask=mask.long(), constraints=compiled,
            judges=judges,
        )  # fmt: skip
        return [[Written(self._text(c.tokens), c.score, c.unmet) for c in row] for row in found]

    def _judges(
        self,
        seen: Sequence[Seen],
        written: Sequence[dict[str, str]],
        section: str,
        settings: GenerationSettings,
        generation: Generation,
    ) -> Judges | None:
        """Who make contradictions cost, each with the sections that the study has already."""
        if not settings.steer or not generation.contradiction:
            return None
        judges = [
            EvidenceJudge(self.structurer, s.evidence, generation.contradiction, section, " ".join(texts.values()))
            for s, texts in zip(seen, written, strict=True)
        ]
        return Judges(judges, self.checkpoint.tokenizer, self.watched)

    def _compile(self, constraints: Constraints, length: int) -> CompiledConstraints:
        # The shared automaton knows the graph's terms alone; a user's own terms need one of their own.
        own = any(t.name.startswith("--") for t in constraints.must_appear + constraints.must_not_assert)
        return compile_constraints(
            constraints, self.checkpoint.tokenizer, length, automaton=None if own else self.automaton
        )


def _break_id(tokenizer: object) -> int:
    """The token that ends a section: a line break before the next heading."""
    encoded = tokenizer("end.\nImpression:", add_special_tokens=False, return_offsets_mapping=True)  # type: ignore[operator]
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if start <= 4 < end:
            return int(token)
    raise InputError("the tokenizer has no token for a line break; a report's sections could not be told apart")
