"""The local `evaluate` modules load offline, keep `evaluate`'s conventions, and their documented examples are true."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import vlm.evaluation

evaluate = pytest.importorskip("evaluate")
FOLDER = Path(vlm.evaluation.__file__).parent / "modules"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and not path.name.startswith("_"))
TEXTS = ["The heart is normal in size.", "There is a left pleural effusion.", "The lungs are clear of disease."]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")


@pytest.mark.parametrize("name", NAMES)
def test_loads_offline_with_card_features_and_compute(name: str) -> None:
    metric = evaluate.load(str(FOLDER / name))
    assert isinstance(metric, evaluate.Metric)
    assert len(metric.description.strip()) > 40
    assert "Args:" in metric.inputs_description
    assert "Returns:" in metric.inputs_description
    assert metric.features is not None
    values = metric.compute(predictions=TEXTS, references=TEXTS)
    for key in [key for key in values if key.endswith("_per_study")]:
        assert len(values[key]) == 3
        assert key.removesuffix("_per_study") in values


@pytest.mark.parametrize("name", NAMES)
def test_the_documented_example_is_true(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[2])
    metric = evaluate.load(str(FOLDER / name))
    example = doctest.DocTestParser().get_doctest(metric.inputs_description, {"evaluate": evaluate}, name, None, 0)
    assert len(example.examples) == 3
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


def test_adding_in_batches_equals_computing_at_once() -> None:
    metric = evaluate.load(str(FOLDER / "cider"))
    for text in TEXTS:
        metric.add(prediction=text, reference=text)
    assert metric.compute()["cider"] == pytest.approx(10.0)
    assert "variant:D" in metric.compute(predictions=TEXTS, references=TEXTS)["cider_signature"]


def test_several_references_and_given_tokens() -> None:
    metric = evaluate.load(str(FOLDER / "bleu"))
    several = metric.compute(predictions=TEXTS, references=[[text, "other words"] for text in TEXTS])
    assert several["bleu4"] == pytest.approx(1.0)
    given = metric.compute(predictions=["A b , c d"], references=["A b , c d"], profile="tokens")
    assert given["bleu4"] == pytest.approx(1.0, abs=1e-6)
    assert "tokens as given" in given["bleu4_signature"]


def test_cider_of_one_report_is_none() -> None:
    assert evaluate.load(str(FOLDER / "cider")).compute(predictions=TEXTS[:1], references=TEXTS[:1])["cider"] is None
