"""Other people's engines agree: llguidance on what a template allows, transformers on what bad words forbid."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest
import torch
from generation_models import tiny
from generation_text import byte_level, draw_prompt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.generation.logits_process import NoBadWordsLogitsProcessor

from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.generation.compiling import compile_constraints
from vlm.generation.constraints import Constraints, TermSet
from vlm.generation.negation import Negation
from vlm.generation.structure import LOST, compile_template
from vlm.generation.tokens import TokenTable


@pytest.mark.parametrize("seed", range(3))
def test_a_template_allows_what_llguidance_allows(seed: int) -> None:
    llguidance = pytest.importorskip("llguidance")
    hugging_face = pytest.importorskip("llguidance.hf")
    tokenizer = byte_level()
    table = TokenTable.of(tokenizer)
    frame = compile_template("The |{a}|{b}|", table)
    slot = r"[^|]*[0-9A-Za-z][^|]*\|"
    grammar = llguidance.LLMatcher.grammar_from_regex(rf" ?The \|{slot}{slot}[ \t\r\n]*")
    engine = llguidance.LLMatcher(hugging_face.from_tokenizer(tokenizer), grammar)
    ascii_tokens = [t for t, piece in enumerate(table.pieces) if piece and max(piece) < 128]
    draw, state = random.Random(seed), frame.start
    for _ in range(25):
        mask = np.unpackbits(np.frombuffer(engine.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = {}
        for token in ascii_tokens:
            place = state
            for byte in table.pieces[token]:
                place = int(frame.moves[place, byte])
            allowed[token] = place
        ours = {token for token, place in allowed.items() if place != LOST}
        theirs = {token for token in ascii_tokens if mask[token]}
        # Where the text is forced, llguidance allows its canonical token alone.
        assert ours == theirs or (len(theirs) == 1 and theirs <= ours)
        if not ours:
            break
        chosen = draw.choice(sorted(ours))
        assert engine.consume_token(chosen)
        state = allowed[chosen]
        assert bool(frame.final[state]) == engine.is_accepting()


def whole_words() -> PreTrainedTokenizerFast:
    """Tokens are words with a space before them: each text has one segmentation."""
    draw = random.Random(0)
    words = sorted({"".join(draw.choice(string.ascii_lowercase) for _ in range(draw.randint(2, 6))) for _ in range(60)})
    pieces = ["<pad>", "<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet(), *(f"Ġ{word}" for word in words)]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("seed", range(5))
def test_answers_hold_no_bad_words_of_transformers(seed: int) -> None:
    draw = random.Random(seed)
    tokenizer = whole_words()
    model = tiny("llama", len(tokenizer))
    first = len(tokenizer) - sum(piece.startswith("Ġ") and len(piece) > 1 for piece in tokenizer.get_vocab())
    tokens = list(range(first, len(tokenizer)))
    others = tuple(token for token in range(3, len(tokenizer)) if token not in tokens)
    settings = BeamSettings(4, 20, 20, eos_token_ids=(2,), pad_token_id=0, suppress_token_ids=others)
    prompt = draw_prompt(model, 3, draw)
    free = beam_search(model, settings, input_ids=prompt)
    written = draw.choice(free)[0].tokens  # the ban has work to do
    bad = [draw.sample(tokens, size) for size in (1, 1, 2)] + [list(written[at : at + 1 + at % 3]) for at in (2, 4, 9)]
    terms = tuple(tokenizer.decode(ids).strip() for ids in bad)
    constraints = Constraints(must_not_assert=(TermSet("bad", terms),), negation=Negation((), (), ()))
    compiled = compile_constraints(constraints, tokenizer, 20)
    processor = NoBadWordsLogitsProcessor(bad, eos_token_id=[2])
    bound = beam_search(model, settings, input_ids=prompt, constraints=[compiled] * 3)
    assert any(_refused(processor, c.tokens, len(tokenizer)) for rows in free for c in rows)
    for rows in bound:
        for candidate in rows:
            assert not _refused(processor, candidate.tokens, len(tokenizer))


def _refused(processor: NoBadWordsLogitsProcessor, tokens: tuple[int, ...], size: int) -> bool:
    return any(
        bool(processor(torch.tensor([tokens[:place]], dtype=torch.long), torch.zeros(1, size))[0, token].isneginf())
        for place, token in enumerate(tokens)
    )
