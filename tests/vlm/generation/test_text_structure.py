"""Sections, slots, sentences, order and vocabulary hold in the output; soft ones weigh; traces tell what was cut."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch
from generation_text import appears, byte_level, draw_prompt, random_model, sentence_piece

from vlm.generation.beam_search import BeamSettings, Candidate, beam_search
from vlm.generation.checking import unmet_in
from vlm.generation.compiling import compile_constraints
from vlm.generation.constraints import RULES, Constraints, TermSet
from vlm.generation.structure import count_sentences, parse_template
from vlm.generation.trace import Recorder
from vlm.types import InputError

TOKENIZERS = {"byte": byte_level, "piece": sentence_piece}
CONCEPTS = (
    TermSet("effusion", ("effusion", "pleural fluid")),
    TermSet("mass", ("mass",)),
    TermSet("heart", ("cardiomegaly", "heart is large")),
    TermSet("spine", ("degenerative changes",)),
)


def search(
    constraints: Constraints, length: int, beams: int, kind: str = "byte", seed: int = 0, trace: Recorder | None = None
) -> tuple[list[list[Candidate]], list[str]]:
    """Answers of a random model to two prompts, and the best texts."""
    tokenizer, model = TOKENIZERS[kind](), random_model(kind)
    compiled = compile_constraints(constraints, tokenizer, length)
    settings = BeamSettings(beams, length, eos_token_ids=(2,), pad_token_id=0)
    prompt = draw_prompt(model, 2, random.Random(seed))
    found = beam_search(model, settings, input_ids=prompt, constraints=[compiled] * 2, trace=trace)
    texts = [compiled.table.write([t for t in rows[0].tokens if t != 2]).decode(errors="replace") for rows in found]
    return found, texts


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["byte", "piece"])
def test_sections_stand_in_order_with_their_terms_in_them(kind: str, seed: int) -> None:
    draw = random.Random(seed)
    first, second = draw.sample(CONCEPTS, 2)
    constraints = Constraints(
        must_appear=(TermSet("a", first.terms, section="Findings"), TermSet("b", second.terms, section="Impression")),
        sections=("Findings", "Impression"),
        repeat_sentences=False,
    )
    tokenizer = TOKENIZERS[kind]()
    compiled = compile_constraints(constraints, tokenizer, 1000)
    least = int(compiled.cost.max(1).sum() + compiled.frame.need[compiled.frame.start])  # type: ignore[union-attr]
    found, texts = search(constraints, least + draw.choice([0, 3, 20]), draw.choice([1, 4]), kind, seed)
    for rows, text in zip(found, texts, strict=True):
        assert rows[0].unmet == ()
        match = re.fullmatch(r" ?Findings:(.*?)\nImpression:(.*)", text, re.S)
        assert match, text
        assert appears(match[1], first.terms), text
        assert appears(match[2], second.terms), text


@pytest.mark.parametrize("seed", range(6))
def test_all_of_four_terms_in_order_at_a_tight_length(seed: int) -> None:
    draw = random.Random(seed)
    chosen = tuple(draw.sample(CONCEPTS, 4))
    constraints = Constraints(must_appear=chosen, in_order=seed % 2 == 0)
    least = int(compile_constraints(constraints, byte_level(), 1000).cost.max(1).sum())
    for length in (least, least + 2):
        found, texts = search(constraints, length, draw.choice([1, 3, 8]), seed=seed)
        for rows, text in zip(found, texts, strict=True):
            assert rows[0].unmet == (), text
            places = [min(m.start() for term in c.terms for m in re.finditer(term, text.lower())) for c in chosen]
            if constraints.in_order and all(
                sum(len(re.findall(term, text.lower())) for term in c.terms) == 1 for c in chosen
            ):
                assert places == sorted(places), text


@pytest.mark.parametrize("bounds", [(3, 3), (2, 5), (0, 1), (4, None)])
def test_sentences_are_counted(bounds: tuple[int, int | None]) -> None:
    for seed in range(3):
        found, texts = search(Constraints(sentences=bounds), 24, 3, seed=seed)
        for rows, text in zip(found, texts, strict=True):
            assert rows[0].unmet == ()
            assert bounds[0] <= count_sentences(text) <= (bounds[1] or 99), text


@pytest.mark.parametrize(
    ("text", "count"),
    [("A nodule of 3.5 cm. Clear", 2), ("One. Two! Three?", 3), ("", 0), ("a\nb", 2), ("...", 0), ("x. ", 1)],
)
def test_what_a_sentence_is(text: str, count: int) -> None:
    assert count_sentences(text) == count


def test_a_template_is_filled_and_nothing_else_written() -> None:
    constraints = Constraints(template="The heart is {size}. The lungs are {state}.")
    found, texts = search(constraints, 30, 4)
    for rows, text in zip(found, texts, strict=True):
        assert rows[0].unmet == ()
        assert re.fullmatch(r" ?The heart is .*\w.*\. The lungs are .*\w.*\.\s*", text, re.S), text


@pytest.mark.parametrize("seed", range(8))
def test_no_term_is_half_written(seed: int) -> None:
    terms = ("the pleural effusion", "the heart size", "normal in size", "is seen", "in the spine")
    found, texts = search(Constraints(vocabulary=terms), 30, 4, seed=seed)
    follows = {term.split()[0] for term in terms}
    for rows, text in zip(found, texts, strict=True):
        assert rows[0].unmet == ()
        low = re.sub(r"\s", " ", text.lower())
        for match in re.finditer(r"(?<![a-z0-9\x80-\uffff])(\w+)(?![a-z0-9\x80-\uffff])", low, re.A):
            covered = any(
                other.start() <= match.start() < other.end() for term in terms for other in re.finditer(term, low)
            )
            if match[1] in follows and not covered:
                raise AssertionError(text)


def test_soft_rules_weigh_and_do_not_bind() -> None:
    strict = Constraints(sentences=(4, None))
    soft = Constraints(sentences=(4, None), weights={"sentences": 3.0})
    (rows, *_), (text, *_) = search(soft, 12, 4)
    assert rows[0].unmet == ()
    lost = rows[0].score * len(rows[0].tokens) - rows[0].logprob
    assert lost == pytest.approx(0.0 if count_sentences(text) >= 4 or rows[0].tokens[-1] != 2 else -3.0, abs=1e-2)
    assert search(strict, 12, 4)[0][0][0].unmet == ()


def test_search_and_reading_agree() -> None:
    for seed in range(10):
        draw = random.Random(seed)
        constraints = Constraints(
            must_appear=tuple(draw.sample(CONCEPTS, 2)),
            in_order=draw.random() < 0.5,
            sentences=draw.choice([(0, None), (2, 4)]),
            vocabulary=draw.choice([(), ("heart size", "the pleural effusion")]),
            repeat_sentences=draw.random() < 0.5,
        )
        compiled = compile_constraints(constraints, byte_level(), 40)
        found, _ = search(constraints, 40, 3, seed=seed)
        for candidate in (c for rows in found for c in rows):
            text = compiled.table.write([token for token in candidate.tokens if token != 2])
            if text.isascii():
                assert unmet_in(compiled, text.decode()) == candidate.unmet, text


def test_json_holds_everything() -> None:
    constraints = Constraints(
        must_appear=(TermSet("a", ("x", "y"), section="Findings"),),
        in_order=True,
        sections=("Findings", "Impression"),
        sentences=(2, 8),
        vocabulary=("pleural effusion",),
        repeat_sentences=False,
        weights=dict.fromkeys(RULES, 1.5),
    )
    assert Constraints.from_json(constraints.to_json()) == constraints
    assert Constraints.from_json('{"template": "A {b} c"}').template == "A {b} c"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sections": ["a"], "template": "{b}"}', "both sections and a template"),
        ('{"template": "no slot"}', "has no slot"),
        ('{"template": "{a}{b}"}', "need fixed text between"),
        ('{"template": "{a} and {a}"}', "needs a name of its own"),
        ('{"sentences": [3, 2]}', r"sentences are \[3, 2\]"),
        ('{"sentences": [1]}', "fewest, most"),
        ('{"vocabulary": ["."]}', "empty or has no letter"),
        ('{"weights": {"length": 1}}', "known rules are"),
        ('{"weights": {"order": 0}}', "must be above 0"),
        ('{"must_appear": [{"name": "a", "terms": ["b"], "section": "x"}]}', "there are no sections"),
    ],
)
def test_bad_structure_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Constraints.from_json(text)


def test_a_template_longer_than_the_text_is_refused() -> None:
    with pytest.raises(InputError, match="the template takes"):
        compile_constraints(Constraints(template="The heart is {size}."), byte_level(), 2)
    assert parse_template("{{x}} {a}").fixed[0] == "{x} "


def test_the_trace_shows_beams_states_and_cuts() -> None:
    tokenizer = byte_level()
    constraints = Constraints(must_appear=CONCEPTS[:1], must_not_assert=(TermSet("m", ("mass",)),))
    recorder = Recorder(tokenizer, 2)
    traced, _ = search(constraints, 20, 3, trace=recorder)
    plain, _ = search(constraints, 20, 3)
    assert traced == plain  # looking changes nothing
    for trace, rows in zip(recorder.traces, traced, strict=True):
        assert json.loads(json.dumps(trace)) == trace
        steps = trace["steps"]
        assert [entry["step"] for entry in steps] == list(range(1, len(steps) + 1))
        assert set(steps[0]["beams"][0]["state"]) == {"effusion", "m"}
        best = TOKENIZERS["byte"]().decode([t for t in rows[0].tokens if t != 2])
        held = [b for entry in steps for b in entry["beams"] if b["state"]["effusion"] == "held"]
        assert held, best
        assert {b["state"]["m"] for b in held} == {"banned"}
        rules = {cut["rule"] for entry in steps for cut in entry["cut"]}
        assert rules
        assert rules <= {"must_appear", "must_not_assert", "length", "special token", *RULES}


def test_one_study_of_a_batch_has_a_template() -> None:
    tokenizer, model = byte_level(), random_model("byte")
    framed = compile_constraints(Constraints(sections=("Findings",), sentences=(1, 2)), tokenizer, 20)
    other = compile_constraints(Constraints(vocabulary=("the heart",)), tokenizer, 20)
    settings = BeamSettings(3, 20, eos_token_ids=(2,), pad_token_id=0)
    prompt = torch.tensor([[5, 9]] * 3)
    together = beam_search(model, settings, input_ids=prompt, constraints=[framed, None, other])
    for row, own in enumerate([framed, None, other]):
        alone = beam_search(model, settings, input_ids=prompt[:1], constraints=[own])
        assert [c.tokens for c in alone[0]] == [c.tokens for c in together[row]]
