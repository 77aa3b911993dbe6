"""Consistency while decoding: what a beam says is read as soon as a sentence ends, and what contradicts costs it.

    penalty = weight * (statements against the evidence + contradictions inside the text)

A statement against the evidence is one that `statements` contradicts: present below the lower cut, absent above the
upper one or beside a box, or on a side where no box of the finding lies. Contradictions inside the text are those of
`knowledge.rules`. The penalty is a function of the text alone, so it can be taken back: a beam pays the difference to
what it paid before.

A side is read earlier, at the word that names it or the finding, and so is a denial of what was seen, at the state that
denies it ("heart size within normal ...") or at the word for anything at all ("the lungs show no abnormality"): when
the sentence has ended, every beam may have taken the wrong one. A side where no box of the finding lies and such a
denial cut their beam wherever another one is left. Texts are read at those tokens only, and the best offers of a step
only; what was read is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from knowledge.extraction import split_sentences
from knowledge.general import general_concepts
from knowledge.graph import KnowledgeGraph
from knowledge.lexicon import GENERIC, Lexicon
from knowledge.ontology import Certainty
from knowledge.rules import contradictions
from vlm.generation.evidence import Evidence
from vlm.generation.structuring import Structurer, share_sides
from vlm.generation.tokens import TokenTable
from vlm.types import InputError

SIDES = ("left", "right", "bilateral", "bilaterally", "both", "left-sided", "right-sided")
FORBIDDING = 1.0e4
"""Nats for a contradiction of infinite weight: a last resort where every beam has one."""

MOST_KEPT = 50_000


class Judge(Protocol):
    """Says what a text is to pay, in nats, 0 or more; `finished` where its last sentence has ended."""

    def penalty(self, text: str, finished: bool) -> float: ...


class EvidenceJudge:
    """Holds a text against one study's evidence, the graph's rules and itself.

    Args:
        structurer: reads and judges.
        evidence: of the study.
        weight: nats for each contradiction, above 0; infinite to cut beams wherever another one is left.
        section: of the report.
        before: text of the sections before it.

    Raises:
        InputError: a weight of 0 or less.
    """

    def __init__(
        self, structurer: Structurer, evidence: Evidence, weight: float, section: str = "findings", before: str = ""
    ) -> None:
        if not weight > 0:
            raise InputError(f"weight of contradictions is {weight}: it must be above 0")
        self.structurer, self.evidence, self.section = structurer, evidence, section
        self.weight = min(weight, FORBIDDING)
        self.before = f"{before.strip()} " if before.strip() else ""
        self._paid: dict[tuple[str, bool], float] = {}

    def penalty(self, text: str, finished: bool) -> float:
        """Nats that a text pays."""
        key = (text, finished)
        if key not in self._paid:
            if len(self._paid) >= MOST_KEPT:
                self._paid.clear()
            count, grave = self._read(text, finished)
            self._paid[key] = self.weight * count + FORBIDDING * grave
        return self._paid[key]

    def count(self, text: str, finished: bool) -> int:
        """Contradictions of a text; of a sentence that goes on only its sides and denials count."""
        return self._read(text, finished)[0]

    def _read(self, text: str, finished: bool) -> tuple[int, int]:
        """Contradictions of a text, and how many of them deny what was seen or put it on the other side."""
        mentions = share_sides(self.structurer.reader.read(self.before + text, self.section))
        # The sentence that goes on.
        open_at = None if finished else len(split_sentences(self.before + text)) - 1
        settled = [m for m in mentions if m.sentence != open_at]
        wrong: dict[tuple[int, str, Certainty], bool] = {}  # a thing once a sentence, however many words say it
        for mention, said in self.structurer.said(mentions, self.evidence):
            if said.certainty is Certainty.UNCERTAIN and not said.swapped:
                continue
            anywhere = said.general is not None and mention.place is None and mention.side is None
            if anywhere and mention.sentence == open_at:
                continue  # "no lesion is seen ...": where, the rest of the sentence may say
            # What can be read too late only is dear, but no beam rambles on so as not to end its sentence.
            grave = said.swapped or (said.verdict < 0 and said.certainty is Certainty.ABSENT and not anywhere)
            if grave or (said.verdict < 0 and mention.sentence != open_at):
                key = (mention.sentence, said.about, said.certainty)
                wrong[key] = wrong.get(key, False) or grave
        inside = len(contradictions(settled, self.structurer.graph))
        return len(wrong) + inside, sum(wrong.values())


class Judges:
    """The judges of a batch, and the tokens at which they read.

    Args:
        judges: one a study; None for a study that is not judged.
        tokenizer: of the model.
        watched: words at which a sentence is read before it ends: sides, and the last words of findings' names and of
            states that deny one.
    """

    def __init__(self, judges: Sequence[Judge | None], tokenizer: Any, watched: Iterable[str] = SIDES) -> None:
        self.judges = tuple(judges)
        self.table = TokenTable.of(tokenizer)
        self.flags = _flags(self.table, frozenset(watched))

    def to(self, device: torch.device) -> Judges:
        """Itself, with its tensor where the search runs."""
        self.flags = self.flags.to(device)
        return self

    def penalties(
        self, paid: Tensor, written: Tensor, step: int, beams: Tensor, tokens: Tensor, live: Tensor, ends: Tensor
    ) -> Tensor:
        """What every offer (B, X) pays in all.

        Args:
            paid: (B, K), what its beam pays.
            written: (B, K, T) new tokens, `step` of them.
            beams, tokens, live: (B, X) of the offers.
            ends: (V,) bool, end tokens.
        """
        total = paid.gather(1, beams)
        size = len(self.flags)
        flags = self.flags[tokens.clamp(max=size - 1)].masked_fill(tokens >= size, 0)
        flags = torch.where(ends[tokens], 2, flags)
        places = ((flags > 0) & live).nonzero()
        if not len(places):
            return total
        at = (places[:, 0], places[:, 1])
        offers = torch.stack([*at, beams[at], tokens[at], flags[at].long()], 1).tolist()
        pieces = self.table.pieces
        texts: dict[tuple[int, int], bytes] = {}
        for study, place, beam, token, flag in offers:
            judge = self.judges[study]
            if judge is None:
                continue
            if (study, beam) not in texts:
                texts[study, beam] = self.table.write([t for t in written[study, beam, :step].tolist() if t < size])
            text = texts[study, beam] + (pieces[token] if token < size else b"")
            total[study, place] = judge.penalty(text.decode("utf-8", "ignore").strip(), flag == 2)
        return total


@lru_cache(maxsize=8)
def _flags(table: TokenTable, watched: frozenset[str]) -> Tensor:
    """(V,) uint8 of a tokenizer's pieces: 0 goes on, 1 is watched, 2 ends a sentence."""
    words = {word.encode() for word in watched}
    # The end of a word that the tokenizer cuts ("unrem" + "arkable") counts as the word.
    rests = {word[start:] for word in words for start in range(len(word) - 2)}
    flags = []
    for piece in table.pieces:
        word = piece.strip().lower()
        ends = any(mark in piece for mark in (b".", b"!", b"?", b"\n"))
        flags.append(2 if ends else int(word in words or (piece[:1].isalpha() and word in rests)))
    return torch.tensor(flags, dtype=torch.uint8)


def watched_words(terms: Iterable[str], graph: KnowledgeGraph | None = None) -> frozenset[str]:
    """Sides, the last words of terms, words for anything at all, and the states that deny a finding of a graph
    ("unremarkable")."""
    words = set(SIDES) | {term.split()[-1].lower() for term in terms if term.split()}
    for word in (*GENERIC, *(word for row in general_concepts().values() for word in row.words)):
        last = word.split()[-1]
        words |= {last, f"{last[:-1]}ies" if last.endswith("y") else f"{last}s"}
    composites = Lexicon(graph).composites if graph is not None else {}
    for (_, quality), meanings in composites.items():
        if any(meaning.certainty is Certainty.ABSENT for meaning in meanings):
            words |= {quality.split()[-1], f"{quality.split()[-1]}s"}
    return frozenset(words)
