"""Forbidden words: the same answers as generate() with a brute-force ban that tries every token of the vocabulary."""

from __future__ import annotations

import random
import re

import pytest
import torch
from generation_text import byte_level, draw_prompt, random_model
from transformers import LogitsProcessor

import vlm.generation.tracker as tracker
from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.generation.compiling import compile_constraints
from vlm.generation.constraints import Constraints, TermSet
from vlm.generation.negation import Negation
from vlm.generation.tokens import TokenTable

LENGTH, END = 9, 2


class BruteForceBan(LogitsProcessor):
    """Refuses every token behind which a forbidden word stands in the text, read from its first byte."""

    def __init__(self, words: list[str]) -> None:
        alternatives = "|".join(re.escape(word) for word in words)
        word, other = rb"[a-z0-9\x80-\xff]", rb"[^a-z0-9\x80-\xff]"
        self.inside = re.compile(rb"(?:^|" + other + rb")(?:" + alternatives.encode() + rb")" + other, re.I)
        self.at_end = re.compile(
            rb"(?:^|" + other + rb")(?:" + alternatives.encode() + rb")(?:" + other + rb"|$)", re.I
        )
        self.word = word
        self.table = TokenTable.of(byte_level())

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for row, ids in enumerate(input_ids.tolist()):
            text = self.table.write([token for token in ids if token != END])
            for token, piece in enumerate(self.table.pieces):
                last = len(ids) + 1 == LENGTH or token == END
                pattern = self.at_end if last else self.inside
                if (not piece and token != END) or pattern.search(text + piece):
                    scores[row, token] = -torch.inf
        return scores


@pytest.mark.parametrize("seed", range(6))
def test_equals_a_ban_by_brute_force(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "CAUGHT", 0.0)  # the price of evasion is a preference, not part of the ban
    monkeypatch.setattr(tracker, "GLUED", 0.0)
    draw = random.Random(seed)
    model, tokenizer = random_model("byte"), byte_level()
    pieces = sorted({piece.strip().decode() for piece in TokenTable.of(tokenizer).pieces if piece.strip().isalpha()})
    words = sorted({word.lower() for word in draw.sample(pieces, 40)})
    constraints = Constraints(must_not_assert=(TermSet("words", tuple(words)),), negation=Negation((), (), ()))
    compiled = compile_constraints(constraints, tokenizer, LENGTH)
    prompt = draw_prompt(model, 2, draw)
    embeds = model.get_input_embeddings()(prompt).detach()
    settings = BeamSettings(num_beams=3, max_new_tokens=LENGTH, eos_token_ids=(END,), pad_token_id=0)
    with torch.inference_mode():
        expected = model.generate(
            inputs_embeds=embeds,
            num_beams=3,
            num_return_sequences=3,
            max_new_tokens=LENGTH,
            eos_token_id=END,
            pad_token_id=0,
            do_sample=False,
            logits_processor=[BruteForceBan(words)],
            return_dict_in_generate=True,
            output_scores=True,
        )
    found = beam_search(model, settings, inputs_embeds=embeds, constraints=[compiled] * 2)
    sequences = expected.sequences.view(2, 3, -1).tolist()
    scores = expected.sequences_scores.view(2, 3).tolist()
    for study, candidates in enumerate(found):
        for rank, candidate in enumerate(candidates):
            assert candidate.score == pytest.approx(scores[study][rank], abs=1e-4)
            assert list(candidate.tokens) == sequences[study][rank][: len(candidate.tokens)]
