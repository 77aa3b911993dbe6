"""What counts as an assertion, read from texts; and that search and reading agree."""

from __future__ import annotations

import random

import pytest
import torch
from generation_text import byte_level, draw_prompt, random_model

from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.generation.checking import unmet_in
from vlm.generation.compiling import compile_constraints
from vlm.generation.constraints import Constraints, TermSet
from vlm.types import InputError

EFFUSION = TermSet("effusion", ("effusion", "pleural fluid"))
NOT_ASSERTED = (
    "No effusion.",
    "no pneumothorax, focal consolidation or effusion is seen",
    "The lungs are clear without pneumothorax or pleural fluid.",
    "Negative for effusion",
    "Effusion is not seen.",
    "Heart is large. Effusion has resolved. Lungs are clear.",
    "The patient has effusions of another kind.",
    "Lungs are clear.",
    "Neither mass nor effusion",
)
ASSERTED = (
    "Small effusion.",
    "effusion",
    "No pneumothorax. Effusion on the left.",
    "No pneumothorax but effusion is present.",
    "No change in the effusion.",
    "There is pleural\nfluid.",
    "Effusion is not large.",
    "EFFUSION: yes",
    "Not only effusion",
)


@pytest.mark.parametrize("text", NOT_ASSERTED)
def test_negated_mentions_are_allowed_and_do_not_meet(text: str) -> None:
    tokenizer = byte_level()
    assert unmet_in(compile_constraints(Constraints(must_not_assert=(EFFUSION,)), tokenizer, 100), text) == ()
    required = TermSet("effusion", EFFUSION.terms, asserted=True)
    unmet = unmet_in(compile_constraints(Constraints(must_appear=(required,)), tokenizer, 100), text)
    assert unmet == ("effusion",) or unmet == ("must_not_assert",)


@pytest.mark.parametrize("text", ASSERTED)
def test_assertions_are_found(text: str) -> None:
    tokenizer = byte_level()
    assert unmet_in(compile_constraints(Constraints(must_not_assert=(EFFUSION,)), tokenizer, 100), text) == (
        "must_not_assert",
    )
    required = TermSet("effusion", EFFUSION.terms, asserted=True)
    assert unmet_in(compile_constraints(Constraints(must_appear=(required,)), tokenizer, 100), text) == ()


@pytest.mark.parametrize("seed", range(30))
def test_search_keeps_what_a_reading_of_the_text_asks(seed: int) -> None:
    """Random constraints over a random model; the text is read again from its first byte."""
    draw = random.Random(seed)
    model, tokenizer = random_model("byte"), byte_level()
    pool = [
        "effusion",
        "heart",
        "mass",
        "no",
        "size",
        "the",
        "is",
        "in",
        "seen",
        "lung",
        "left",
        "s",
        "eg",
        "normal",
        "spine",
    ]
    draw.shuffle(pool)
    constraints = Constraints(
        must_appear=tuple(TermSet(word, (word,), asserted=draw.random() < 0.5) for word in pool[:3] if word != "no"),
        must_not_assert=(TermSet("not", tuple(pool[3:8])),),
        repeat_sentences=draw.random() < 0.5,
    )
    compiled = compile_constraints(constraints, tokenizer, 40)
    settings = BeamSettings(num_beams=draw.choice([1, 3, 6]), max_new_tokens=40, eos_token_ids=(2,), pad_token_id=0)
    for candidates in beam_search(model, settings, input_ids=draw_prompt(model, 2, draw), constraints=[compiled] * 2):
        assert candidates[0].unmet == ()
        for candidate in candidates:
            text = compiled.table.write([token for token in candidate.tokens if token != 2])
            if text.isascii():
                assert unmet_in(compiled, text.decode()) == candidate.unmet


def test_bad_constraints_are_refused_in_one_line() -> None:
    tokenizer = byte_level()
    with pytest.raises(InputError, match="empty or has no letter"):
        TermSet("x", ("",))
    both = Constraints(must_appear=(TermSet("a", ("mass",)),), must_not_assert=(TermSet("b", ("Mass",)),))
    with pytest.raises(InputError, match="contradicts must_not_assert"):
        compile_constraints(both, tokenizer, 20)
    with pytest.raises(InputError, match="twice"):
        Constraints(must_appear=(TermSet("a", ("mass",)), TermSet("a", ("nodule",))))
    for text, message in (
        ("[", "not JSON"),
        ('{"must": []}', "unknown key 'must'"),
        ('{"must_appear": [{"name": "a", "terms": "b"}]}', "list of texts"),
        ('{"must_appear": [{"name": "a", "terms": ["b"], "weight": -1}]}', "weight"),
    ):
        with pytest.raises(InputError, match=message):
            Constraints.from_json(text)
    with pytest.raises(InputError, match="num_beams is 0"):
        BeamSettings(num_beams=0, eos_token_ids=(2,))
    with pytest.raises(InputError, match="eos_token_ids is empty"):
        BeamSettings()
    settings = BeamSettings(eos_token_ids=(2,), max_new_tokens=3)
    mask = torch.tensor([[1, 0]])
    with pytest.raises(InputError, match="pad prompts on the left"):
        beam_search(random_model("byte"), settings, input_ids=torch.tensor([[5, 6]]), attention_mask=mask)


def test_constraints_survive_json() -> None:
    constraints = Constraints(
        must_appear=(TermSet("a", ("x", "y"), asserted=True),),
        must_not_assert=(TermSet("b", ("z",), weight=1.5),),
        repeat_sentences=False,
    )
    assert Constraints.from_json(constraints.to_json()) == constraints
