"""Page and plots, review, perturbations, scorers, plug-ins: each does what its table or page says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from vlm.cli.evaluate import evaluate
from vlm.evaluation import plugins
from vlm.evaluation.command import Arguments, run
from vlm.evaluation.inputs import read_reports
from vlm.evaluation.perturb import flip_negations, perturb_texts, swap_sides
from vlm.evaluation.reruns import compare_reruns
from vlm.evaluation.review import review_folder, weighted_kappa
from vlm.evaluation.scorers import nltk_sentence_bleu, six_scorers, tokens_13a
from vlm.evaluation.text import bleu, index_texts
from vlm.types import InputError

TEXTS = [
    "The heart is normal in size. No pneumothorax.",
    "There is a small left pleural effusion. The right lung is clear.",
    "No pneumothorax or pleural effusion. The lungs are clear.",
    "Calcified granuloma in the right upper lobe. Heart size is normal.",
]


def write_reports(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": f"s{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


def test_the_page_holds_every_table_and_needs_nothing_else(tmp_path: Path) -> None:
    reference = write_reports(tmp_path / "r.jsonl", TEXTS)
    run(Arguments([reference], reference, resamples=30, html=tmp_path / "page.html"), Console(quiet=True))
    page = (tmp_path / "page.html").read_text()
    assert "Text metrics, all studies" in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page.replace("http-equiv", "")
    assert (tmp_path / "page_plots" / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_text_from_files_is_escaped_in_pages(tmp_path: Path) -> None:
    reference = write_reports(tmp_path / "r.jsonl", ["<script>alert(1)</script> heart", *TEXTS])
    run(Arguments([reference], reference, resamples=0, html=tmp_path / "page.html"), Console(quiet=True))
    assert "<script>" not in (tmp_path / "page.html").read_text()
    folder = tmp_path / "review"
    folder.mkdir()
    write_reports(folder / "a.jsonl", ["<script>alert(1)</script>"])
    review_folder(folder, Console(quiet=True))
    assert "<script>alert" not in (folder / "review.html").read_text()


def test_review_page_hides_the_systems_and_ratings_are_summarised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reports(tmp_path / "alphasystem.jsonl", TEXTS)
    write_reports(tmp_path / "betasystem.jsonl", TEXTS[::-1])
    write_reports(tmp_path / "references.jsonl", TEXTS)
    review_folder(tmp_path, Console(width=100))
    page = (tmp_path / "review.html").read_text()
    assert page.count("<article") == 8
    assert "alphasystem" not in page
    assert "betasystem" not in page
    assert page.count("<summary>Reference") == 8
    key = json.loads((tmp_path / "review_key.json").read_text())
    for reader, shift in (("ann", 0), ("bob", 1)):
        ratings = {
            code: {"accuracy": 4 if system == "alphasystem" else 2, "style": min(5, 1 + i % 4 + shift)}
            for i, (code, (system, _)) in enumerate(key.items())
        }
        (tmp_path / f"ratings-{reader}.json").write_text(json.dumps(ratings))
    review_folder(tmp_path, Console(width=100), tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["alphasystem.accuracy"], found["betasystem.accuracy"]) == (4.0, 2.0)
    assert found["kappa.ann.bob.accuracy"] == pytest.approx(1.0)
    assert 0 < found["kappa.ann.bob.style"] < 1
    assert found["alphasystem.completeness"] is None
    assert "ann, bob" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected code ->"),
        ('{"zz": {}}', "'zz' is not in"),
        (None, "is not a rating from 1 to 5"),
    ],
)
def test_wrong_ratings_say_what_is_wrong(tmp_path: Path, content: str | None, message: str) -> None:
    write_reports(tmp_path / "a.jsonl", TEXTS)
    review_folder(tmp_path, Console(quiet=True))
    code = next(iter(json.loads((tmp_path / "review_key.json").read_text())))
    (tmp_path / "ratings-x.json").write_text(content if content is not None else json.dumps({code: {"style": 6}}))
    with pytest.raises(InputError, match=message):
        review_folder(tmp_path, Console(quiet=True))


def test_an_empty_review_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no file of reports"):
        review_folder(tmp_path, Console(quiet=True))
    with pytest.raises(InputError, match="is not a folder"):
        review_folder(tmp_path / "none", Console(quiet=True))


def test_images_outside_the_review_folder_are_not_linked(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    folder = tmp_path / "review"
    folder.mkdir()
    (folder / "inside.png").write_bytes(b"x")
    images = [{"file": "../secret.png"}, {"file": "inside.png"}, {"file": str(tmp_path / "secret.png")}]
    (folder / "a.jsonl").write_text(json.dumps({"id": "1", "text": "x", "images": images}) + "\n")
    review_folder(folder, Console(quiet=True))
    page = (folder / "review.html").read_text()
    assert "inside.png" in page
    assert "secret" not in page


def test_kappa_equals_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    first = rng.integers(1, 6, 60)
    second = np.clip(first + rng.integers(-1, 2, 60), 1, 5)
    value, found = weighted_kappa(first, second, 200)
    assert value == pytest.approx(metrics.cohen_kappa_score(first, second, weights="quadratic"))
    assert found.low < value < found.high


def test_perturbed_texts_say_the_opposite() -> None:
    assert flip_negations("There is no effusion. The heart is normal.") == "There is a effusion. The heart is abnormal."
    assert flip_negations("There is a mass without edema.") == "There is no a mass with edema."
    assert swap_sides("Left effusion, right-sided mass.") == "Right effusion, left-sided mass."
    rows = {row.name: row for row in perturb_texts(TEXTS, TEXTS)}
    assert rows["as written"].scores["finding_f1_micro"] == 1.0
    flipped, swapped = rows["negations flipped"].scores, rows["sides swapped"].scores
    # the n-gram scores hardly notice, the findings do
    assert flipped["rougeL"] > 0.7
    assert flipped["finding_f1_micro"] < 0.5
    assert swapped["rougeL"] > 0.85
    assert swapped["laterality"] == 0.0
    assert rows["sides swapped"].changed == 0.5


def test_reruns_are_compared_study_by_study() -> None:
    left, right = "There is a left pleural effusion.", "There is a right pleural effusion."
    before = {"a": ("The heart is enlarged.", {"mass": 0.2}, 1), "b": (left, {"mass": 0.4}, 0)}
    after = {"a": ("The heart is enlarged.", {"mass": 0.2}, 0), "b": (right, {"mass": 0.9}, 2), "c": ("x", {}, 0)}
    row = compare_reruns(before, after, "mirrored", {"a": "Cardiomegaly.", "b": "Edema."})
    assert (row.studies, row.changed, row.boxes) == (2, 0.5, 1.0)
    assert row.probabilities == pytest.approx(0.25)
    assert (row.same, row.sides) == (1.0, 0.0)
    assert row.reference == pytest.approx(0.5)  # cardiomegaly right, the effusion wrong, the edema missed
    with pytest.raises(InputError, match="no study"):
        compare_reruns(before, {}, "blank")


def test_six_scorers_disagree_on_the_same_predictions(openi: Path) -> None:
    reports = list(read_reports(openi / "r2gen_annotation.json", split="val").texts.values())
    rows = six_scorers([reports[0]] * len(reports), reports)
    values = [row.bleu4 for row in rows]
    assert len(rows) == 6
    assert max(values) > 2 * min(values)


def test_scorers_equal_what_they_name() -> None:
    sentence = pytest.importorskip("nltk.translate.bleu_score")
    predictions = ["the heart is normal in size", "no effusion", "the lungs"]
    references = ["the heart is normal", "there is no effusion seen", "clear"]
    index, systems = index_texts(references, {"p": predictions})
    mine = nltk_sentence_bleu(bleu(index, systems["p"])[3].sums)[:, 3]
    smooth = sentence.SmoothingFunction().method1
    expected = [
        sentence.sentence_bleu([r.split()], p.split(), smoothing_function=smooth)
        for p, r in zip(predictions, references, strict=True)
    ]
    np.testing.assert_allclose(mine, expected, atol=1e-12)
    # mteval-v13a: marks stand alone, but not within numbers
    assert tokens_13a("Size 1.5 cm (left), clear.") == "Size 1.5 cm ( left ) , clear ."


PLUGIN = """
import os
def score(predictions, references):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    return {"tiny_words": [float(len(text.split())) for text in predictions]}
def short(predictions, references):
    return {"x": [1.0]}
def broken(predictions, references):
    return [1 / 0]
def same(predictions, references):
    return {"cider": [1.0] * len(predictions)}
def weightless(predictions, references):
    from vlm.types import InputError
    raise InputError("--plugin 'weightless': no weights in ~/.cache/tiny; fetch them once")
"""
POINTS = "[radscribe.metrics]\n" + "".join(
    f"{name} = tinymetric:{name}\n" for name in ("score", "short", "broken", "same", "weightless", "gone")
)


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with entry points, installed into a folder on the path."""
    info = tmp_path / "site" / "tinymetric-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tinymetric\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (info.parent / "tinymetric.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(info.parent))


@pytest.mark.usefixtures("distribution")
def test_an_installed_plugin_is_found_and_its_scores_are_in_every_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = write_reports(tmp_path / "r.jsonl", TEXTS)
    out = tmp_path / "o.json"
    arguments = Arguments([reference], reference, clinical=False, plugins=("score",), resamples=30, json_file=out)
    run(arguments, Console(width=100))
    flat = json.loads(out.read_text())
    assert flat["tiny_words"] == pytest.approx(np.mean([len(text.split()) for text in TEXTS]))
    assert flat["tiny_words.low"] < flat["tiny_words"] < flat["tiny_words.high"]
    assert "plugin:score" in flat["tiny_words.signature"]
    assert "tiny_words" in capsys.readouterr().out


@pytest.mark.usefixtures("distribution")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody", "'nobody' is not installed.*chexbert"),
        ("gone", "can't be imported"),
        ("short", "x has 1 values for 4 studies"),
        ("broken", "ZeroDivisionError: division by zero"),
        ("same", "there is a score 'cider' already"),
        ("weightless", "no weights in"),
    ],
)
def test_a_plugin_that_is_absent_or_fails_says_so(tmp_path: Path, name: str, message: str) -> None:
    reference = write_reports(tmp_path / "r.jsonl", TEXTS)
    with pytest.raises(InputError, match=message):
        run(Arguments([reference], reference, clinical=False, plugins=(name,), resamples=0), Console(quiet=True))


def test_radgraph_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install radgraph"):
        plugins.load_plugin("radgraph")(["a"], ["b"])


def test_explain_and_scorers_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = write_reports(tmp_path / "r.jsonl", TEXTS)
    arguments = Arguments([reference], reference, resamples=0, explain="first", scorers=True, perturb=True, quiet=True)
    run(arguments, Console(width=100))
    text = capsys.readouterr().out
    assert "Under profile:canonical" in text
    assert "Under profile:r2gen-compat" in text
    assert "the heart is normal in size . no pneumothorax ." in text
    assert "six scorers" in text
    assert "negations flipped" in text


def test_the_documented_table_is_what_its_commands_print(
    openi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(plugins.__file__).parent / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    command = re.search(r"```sh\nvlm evaluate (.*?)\n```", readme, re.DOTALL)
    assert code is not None
    assert command is not None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RADSCRIBE_DATA", str(openi.parent))
    subprocess.run([sys.executable, "-c", code.group(1)], check=True)
    app = typer.Typer()
    app.command()(evaluate)
    arguments = [a.replace("../shared/data", str(openi.parent)) for a in shlex.split(command.group(1))]
    result = CliRunner().invoke(app, [*arguments, "--resamples", "0", "--no-clinical", "--quiet"])
    assert result.exit_code == 0, result.output
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.-]+) \| ([\d.-]+) \|$", readme, re.MULTILINE)
    assert len(rows) == 6
    printed = [" ".join(line.split()) for line in result.output.splitlines()]
    for row in rows:
        assert " ".join(row) in printed
