"""Self-critical training: rewards against the corpus scores, what an advantage does, and a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training_run import config_for
from torch.nn import functional as F

from knowledge.graph import KnowledgeGraph
from vlm import training
from vlm.assembly import starting_point
from vlm.config import Config, Reward, parse_config
from vlm.data.phantoms.chest_ct import phantom_study
from vlm.evaluation.pairs import PairCider
from vlm.evaluation.text import cider, index_texts
from vlm.evaluation.tokens import Profile
from vlm.losses import reward_loss
from vlm.rewards import Scorer, repeated
from vlm.types import InputError

REWARD = {"name": "reward", "epochs": 1, "train": ["bridge", "adapter"], "losses": ["reward"], "batch_size": 4}


def test_pairs_score_as_the_corpus_does() -> None:
    references = [" ".join((phantom_study(3, i).report or {}).values()) for i in range(12)]
    predictions = references[1:] + references[:1]
    predictions[0] = ""
    profile = Profile()
    index, where = index_texts(
        [profile.reference(t) for t in references], {"ours": [profile.prediction(t) for t in predictions]}
    )
    expected = cider(index, where["ours"]).per_study
    pairs = PairCider(references)
    found = [pairs(a, b) for a, b in zip(predictions, references, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert pairs(references[0], references[0]) == pytest.approx(10.0)


def test_a_wrong_finding_costs_more_than_other_words() -> None:
    graph = KnowledgeGraph.load()
    truth = "There is a small left pleural effusion. The heart is normal in size."
    scorer = Scorer([truth], graph, "radscribe", Reward(cider=0.0))
    right, wrong, none = scorer(
        ["A left effusion is seen. Normal heart size.", "There is a pneumothorax.", ""], [truth] * 3
    )
    assert right == 1.0
    assert wrong == none == 0.0


def test_the_gradient_of_a_reward_worked_by_hand() -> None:
    """Two tokens of one report, advantage 2, three words, uniform logits: dL/dlogit = A (p - onehot) / T with p = 1/3
    and T = 2: -2/3 for the word that was drawn, 1/3 for the others; a negative advantage turns the signs."""
    labels = torch.tensor([[0, 2]])
    for advantage in (2.0, -2.0):
        logits = torch.zeros(2, 3, requires_grad=True)
        reward_loss(logits, torch.tensor([0, 1]), labels, torch.full((1, 2), advantage)).backward()
        expected = advantage * (1 / 3 - F.one_hot(labels[0], 3).float()) / 2
        torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("baseline", ["greedy", "mean"])
def test_a_stage_learns_by_reward(baseline: str, language_folder: Path, tmp_path: Path) -> None:
    tree = config_for(language_folder, [REWARD]).model_dump(mode="json")
    tree["training"] |= {"log_every": 1, "reward": {"draws": 2, "baseline": baseline}}
    made = starting_point(Config.model_validate(tree), None)
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    training.train(made, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"reward", "baseline"} <= set(rows[0])
    assert "loss" in rows[-1]  # validation by the references' likelihood
    assert any(not torch.equal(p, before[n]) for n, p in made.model.named_parameters())


def test_studies_are_repeated_whole(language_folder: Path) -> None:
    from vlm.data.batches import Collator
    from vlm.data.examples import ExampleBuilder

    made = starting_point(config_for(language_folder), None)
    builder = ExampleBuilder(
        made.config.data, made.labels, made.config.model.detection.labels, made.graph, made.tokenizer
    )
    batch = Collator(builder)([builder.build(phantom_study(3, i)) for i in range(3)])
    again = repeated(batch, 2)
    with torch.inference_mode():
        one, two = made.model.eval()(batch), made.model(again)
    assert one.report_logits is not None
    assert two.report_logits is not None
    torch.testing.assert_close(two.report_logits, torch.cat([one.report_logits] * 2), rtol=0, atol=1e-5)


def test_one_draw_has_no_others_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="draws of 2 or more"):
        Reward(draws=1, baseline="mean")
    with pytest.raises(InputError, match=r"unknown key 'training\.reward\.draw'; did you mean 'draws'"):
        parse_config({"training": {"reward": {"draw": 2}}}, "x")
