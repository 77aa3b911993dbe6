"""Constraints hold in the output, whatever the model would like to write."""

from __future__ import annotations

import copy
import random
import re

import pytest
import torch
from generation_text import appears, byte_level, draw_prompt, random_model, sentence_piece

import vlm.generation.offers as offers
import vlm.generation.tracker as tracker
from vlm.generation.beam_search import BeamSettings, beam_search
from vlm.generation.compiling import compile_constraints
from vlm.generation.constraints import Constraints, TermSet
from vlm.generation.tokens import TokenTable
from vlm.types import InputError

CONCEPTS = (
    TermSet("cardiomegaly", ("cardiomegaly", "enlarged heart", "heart is enlarged")),
    TermSet("effusion", ("pleural effusion", "effusions")),
    TermSet("pneumothorax", ("pneumothorax",)),
    TermSet("mass", ("mass", "tumour")),
    TermSet("edema", ("edema", "vascular congestion")),
    TermSet("scoliosis", ("scoliosis",)),
)
TOKENIZERS = {"byte": byte_level, "piece": sentence_piece}


def settings(width: int, length: int, **more: object) -> BeamSettings:
    return BeamSettings(num_beams=width, max_new_tokens=length, eos_token_ids=(2,), pad_token_id=0, **more)


def text_of(kind: str, tokens: tuple[int, ...]) -> str:
    pieces = TOKENIZERS[kind]().decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return " " + pieces


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("kind", ["byte", "piece"])
def test_every_required_concept_appears(kind: str, seed: int) -> None:
    draw = random.Random(seed)
    model, tokenizer = random_model(kind), TOKENIZERS[kind]()
    chosen = tuple(draw.sample(CONCEPTS, draw.randint(1, 5)))
    least = int(compile_constraints(Constraints(must_appear=chosen), tokenizer, 1000).cost.max(1).sum())
    length = least + draw.choice([0, 1, 3, 30])
    compiled = compile_constraints(Constraints(must_appear=chosen), tokenizer, length)
    assert compiled.left_out == ()
    prompt = draw_prompt(model, 3, draw)
    for candidates in beam_search(
        model, settings(draw.choice([1, 2, 4, 8]), length), input_ids=prompt, constraints=[compiled] * 3
    ):
        assert candidates[0].unmet == ()
        text = text_of(kind, candidates[0].tokens)
        assert all(appears(text, concept.terms) for concept in chosen), text


def test_what_does_not_fit_is_named() -> None:
    tokenizer, model = byte_level(), random_model("byte")
    compiled = compile_constraints(Constraints(must_appear=CONCEPTS), tokenizer, 6)
    assert compiled.left_out
    best = beam_search(model, settings(3, 6), input_ids=torch.tensor([[5]]), constraints=[compiled])[0][0]
    assert best.unmet == compiled.left_out
    with pytest.raises(InputError, match=r"take \d+ tokens and max_new_tokens is 6"):
        compile_constraints(Constraints(must_appear=CONCEPTS), tokenizer, 6, strict=True)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["byte", "piece"])
def test_forbidden_terms_do_not_appear_when_nothing_negates(kind: str, seed: int) -> None:
    draw = random.Random(seed)
    model, tokenizer = random_model(kind), TOKENIZERS[kind]()
    words = ("the", "a", "e", "no", "is", "t", "s", "in", "i", "1", "ed")
    forbidden = TermSet("letters", tuple(draw.sample(words, 6)))
    compiled = compile_constraints(Constraints(must_not_assert=(forbidden,)), tokenizer, 30)
    free = beam_search(model, settings(4, 30), input_ids=draw_prompt(model, 4, draw))
    bound = beam_search(model, settings(4, 30), input_ids=draw_prompt(model, 4, draw), constraints=[compiled] * 4)
    assert len(free) == len(bound) == 4
    for candidates in bound:
        for candidate in candidates:
            text = text_of(kind, candidate.tokens)
            if not appears(text, ("no", "not", "without", "resolved", "absent", "excluded")):
                assert not appears(text, forbidden.terms), text


def test_search_with_a_ban_equals_bad_words_of_transformers() -> None:
    """A ban on single-token words equals `suppress_tokens` on the same tokens: the same answers and scores."""
    model, tokenizer = random_model("byte"), byte_level()
    draw = random.Random(7)
    prompt = draw_prompt(model, 3, draw)
    marks = [
        token for token in range(3, len(tokenizer)) if tokenizer.decode([token]) in (" pleural", " heart", " size")
    ]
    compiled = compile_constraints(
        Constraints(must_not_assert=(TermSet("x", ("zzzz",)),)), tokenizer, 20
    )  # a constraint that never bites must change nothing
    plain = beam_search(model, settings(4, 20), input_ids=prompt)
    bound = beam_search(model, settings(4, 20), input_ids=prompt, constraints=[compiled] * 3)
    assert marks
    assert [[c.tokens for c in row] for row in plain] == [[c.tokens for c in row] for row in bound]


def test_no_sentence_is_written_twice() -> None:
    model, tokenizer = random_model("byte"), byte_level()
    compiled = compile_constraints(Constraints(repeat_sentences=False), tokenizer, 60)
    draw = random.Random(1)
    for candidates in beam_search(
        model, settings(4, 60), input_ids=draw_prompt(model, 4, draw), constraints=[compiled] * 4
    ):
        written = compiled.table.write([token for token in candidates[0].tokens if token != 2])
        # Latin-1 keeps every byte apart; those beyond ASCII are letters to the search.
        parts = re.split(r"[.!?\n]", written.decode("latin-1").lower())
        sentences = ["".join(char for char in part if char.isalnum() or ord(char) > 127) for part in parts]
        sentences = [sentence for sentence in sentences if sentence]
        assert len(sentences) == len(set(sentences))


def ending_model(kind: str, end: float) -> torch.nn.Module:
    """The random model with a head that likes full stops, several of them, and, by `end`, the end."""
    model, tokenizer = copy.deepcopy(random_model(kind)), TOKENIZERS[kind]()
    bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    with torch.no_grad():
        bias[tokenizer.encode(".", add_special_tokens=False)[-1]] = 12.0
        bias[2] = end
    model.lm_head.bias = bias
    return model


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["byte", "piece"])
def test_no_full_stop_follows_a_full_stop(kind: str, seed: int) -> None:
    draw = random.Random(seed)
    model, tokenizer = ending_model(kind, 11.0), TOKENIZERS[kind]()
    prompt = draw_prompt(model, 3, draw)
    free = beam_search(model, settings(4, 30), input_ids=prompt)
    concepts = tuple(draw.sample(CONCEPTS, 2))
    compiled = compile_constraints(Constraints(must_appear=concepts, repeat_sentences=False), tokenizer, 30)
    bound = beam_search(model, settings(4, 30), input_ids=prompt, constraints=[compiled] * 3)
    twice = re.compile(r"[.!?][^0-9A-Za-z\x80-\xff]*[.!?]")
    assert any(twice.search(compiled.table.write(list(c[0].tokens)).decode("latin-1")) for c in free)
    for candidates in bound:
        for candidate in candidates:
            text = compiled.table.write([token for token in candidate.tokens if token != 2]).decode("latin-1")
            assert candidate.unmet == ()
            assert not twice.search(text), text


def test_a_text_that_would_end_goes_on_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model would end, the next sentence is the missing term's: texts are shorter, and end in full stops."""
    model, tokenizer = ending_model("byte", 13.0), byte_level()
    prompt = draw_prompt(model, 8, random.Random(3))
    compiled = compile_constraints(
        Constraints(must_appear=(CONCEPTS[2], CONCEPTS[5]), repeat_sentences=False), tokenizer, 80
    )

    def written() -> list[tuple[int, ...]]:
        found = beam_search(model, settings(4, 80), input_ids=prompt, constraints=[compiled] * 8)
        assert all(rows[0].unmet == () for rows in found)
        return [rows[0].tokens for rows in found]

    bound = written()
    monkeypatch.setattr(tracker.Tracker, "wait", lambda self, state, scores, over: None)
    monkeypatch.setattr(tracker.Tracker, "_rambles", lambda self, before, after, over, tokens: over & False)
    free = written()
    assert sum(map(len, bound)) < 0.8 * sum(map(len, free))


def test_a_text_that_fills_its_length_ends_its_last_sentence() -> None:
    model, tokenizer = random_model("byte"), byte_level()
    prompt = draw_prompt(model, 8, random.Random(4))
    compiled = compile_constraints(Constraints(must_appear=(CONCEPTS[3],)), tokenizer, 30)
    free = beam_search(model, settings(4, 30), input_ids=prompt)
    bound = beam_search(model, settings(4, 30), input_ids=prompt, constraints=[compiled] * 8)
    marks = (".", "!", "?", "\n")
    closed = [
        sum(rows[0].tokens[-1] == 2 or text_of("byte", rows[0].tokens).endswith(marks) for rows in found)
        for found in (free, bound)
    ]
    assert closed[0] < 8
    assert closed[1] == 8


def test_half_a_word_is_not_left_to_write_its_term_elsewhere() -> None:
    model, tokenizer = random_model("byte"), byte_level()
    compiled = compile_constraints(Constraints(must_appear=(TermSet("p", ("pneumothorax",)),)), tokenizer, 40)
    half, whole = compiled.terms.nodes[b"pneu"], compiled.terms.nodes[b"pneumothorax"]
    assert compiled.torn[half] == 1
    assert compiled.torn[whole] == 0
    for seed in range(8):
        prompt = draw_prompt(model, 2, random.Random(seed))
        for rows in beam_search(model, settings(4, 40), input_ids=prompt, constraints=[compiled] * 2):
            assert not re.search(r"\bp(n(eu?)?)? pneumothorax", text_of("byte", rows[0].tokens), re.I)


def test_studies_of_a_batch_keep_their_own_constraints() -> None:
    model, tokenizer = random_model("byte"), byte_level()
    first = compile_constraints(Constraints(must_appear=CONCEPTS[:2]), tokenizer, 40)
    second = compile_constraints(Constraints(must_appear=CONCEPTS[2:4], repeat_sentences=False), tokenizer, 40)
    prompt = torch.tensor([[5, 9], [5, 9], [5, 9]])
    together = beam_search(model, settings(4, 40), input_ids=prompt, constraints=[first, None, second])
    for row, compiled in enumerate([first, None, second]):
        alone = beam_search(model, settings(4, 40), input_ids=prompt[:1], constraints=[compiled])
        assert [c.tokens for c in alone[0]] == [c.tokens for c in together[row]]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["byte", "piece"])
def test_a_study_finds_its_way_out_whatever_the_others_look_at(
    kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "SPARE", 0)  # every refusal has a study look further
    draw = random.Random(seed)
    model, tokenizer = random_model(kind), TOKENIZERS[kind]()
    pieces = [piece for piece in sorted(tokenizer.get_vocab()) if piece.isascii() and piece.isalpha()]
    chosen = [tuple(draw.sample(CONCEPTS, draw.randint(1, 4))) for _ in range(3)]
    asked = [Constraints(must_appear=own) for own in chosen]
    costs = [int(compile_constraints(own, tokenizer, 1000).cost.max(1).sum()) for own in asked]
    length, width = max(18, *costs) + draw.choice([0, 1, 2, 8, 16, 24]), draw.choice([1, 2, 4])
    asked.append(Constraints(must_not_assert=(TermSet("words", tuple(draw.sample(pieces, len(pieces) * 3 // 4))),)))
    asked.append(Constraints(template="Findings: {findings} Impression: {impression}"))  # it needs much more length
    compiled = [compile_constraints(own, tokenizer, length) for own in asked]
    prompt = draw_prompt(model, 5, draw)
    together = beam_search(model, settings(width, length), input_ids=prompt, constraints=compiled)
    for row, own in enumerate(compiled):
        alone = beam_search(model, settings(width, length), input_ids=prompt[row : row + 1], constraints=[own])
        assert [c.tokens for c in together[row]] == [c.tokens for c in alone[0]]
        if row < len(chosen):
            assert together[row][0].unmet == ()


def test_a_soft_weight_moves_the_score_and_no_more() -> None:
    model, tokenizer = random_model("byte"), byte_level()
    prompt = torch.tensor([[5, 9]])
    strong = Constraints(must_appear=(TermSet("letter", ("a", "e", "i", "the"), weight=50.0),))
    compiled = compile_constraints(strong, tokenizer, 20)
    plain = beam_search(model, settings(4, 20, length_penalty=0.0), input_ids=prompt)[0][0]
    best = beam_search(model, settings(4, 20, length_penalty=0.0), input_ids=prompt, constraints=[compiled])[0][0]
    bonus = best.score - best.logprob
    assert bonus == pytest.approx(
        50.0 if appears(text_of("byte", best.tokens), ("a", "e", "i", "the")) else 0.0, abs=1e-2
    )
    assert best.score >= plain.score - 1e-3


@pytest.mark.parametrize("size", [2, 3])
def test_a_sentence_does_not_stutter(size: int) -> None:
    model, tokenizer = random_model("byte"), byte_level()
    ends = TokenTable.of(tokenizer).sentence_ends
    assert tokenizer.encode(".")[0] in ends
    stuttering = 0
    for seed in range(8):
        prompt = draw_prompt(model, 2, random.Random(seed))
        rule = settings(3, 40, no_repeat_in_sentence=size, sentence_end_ids=ends)
        for plain, careful in zip(
            beam_search(model, settings(3, 40), input_ids=prompt),
            beam_search(model, rule, input_ids=prompt),
            strict=True,
        ):
            assert not stutters(careful[0].tokens, size, ends)
            stuttering += stutters(plain[0].tokens, size, ends)
    assert stuttering


def stutters(tokens: tuple[int, ...], size: int, ends: tuple[int, ...]) -> bool:
    """Whether an n-gram comes twice in a sentence."""
    start, seen = 0, set()
    for at in range(size, len(tokens) + 1):
        gram = tokens[at - size : at]
        if at - size >= start and gram in seen:
            return True
        seen.add(gram)
        if tokens[at - 1] in ends:
            start, seen = at, set()
    return False


def test_a_term_is_written_though_it_repeats_what_its_sentence_says() -> None:
    model, tokenizer = random_model("byte"), byte_level()
    twice = TermSet("twice", ("pneumothorax and pneumothorax",))
    compiled = compile_constraints(Constraints(must_appear=(twice,)), tokenizer, 40)
    rule = settings(2, 40, no_repeat_in_sentence=1, sentence_end_ids=TokenTable.of(tokenizer).sentence_ends)
    (found,) = beam_search(model, rule, input_ids=torch.tensor([[5, 9]]), constraints=[compiled])
    assert found[0].unmet == ()
    assert appears(text_of("byte", found[0].tokens), twice.terms)
