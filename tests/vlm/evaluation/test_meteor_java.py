"""METEOR by Java: the jar's protocol against a stand-in that speaks it, and, where Java is, against pycocoevalcap's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vlm.evaluation.command import Arguments, run
from vlm.evaluation.meteor_java import JavaMeteor, meteor_jar, meteor_java, statistics
from vlm.types import InputError

# Answers SCORE lines as the jar does, with exact matches of content words only; notes how it was called.
_STAND_IN = """#!{python}
import sys
from pathlib import Path
here = Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + chr(10))
for line in sys.stdin:
    kind, *references, prediction = line.rstrip(chr(10)).split(" ||| ")
    assert kind == "SCORE", line
    words, texts = prediction.split(), [text.split() for text in references]
    def matched(text):
        return sum(min(words.count(word), text.count(word)) for word in set(words))
    best = max(texts, key=matched)
    n = matched(best)
    print(*map(float, [len(words), len(best), 0, 0, n, n, *[0] * 14, min(n, 1), n, n]), flush=True)
"""


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stand-in for Java and for the jar, first on the path."""
    (tmp_path / "java").write_text(_STAND_IN.replace("{python}", sys.executable))
    (tmp_path / "java").chmod(0o755)
    (tmp_path / "meteor.jar").write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("METEOR_JAR", str(tmp_path / "meteor.jar"))
    return tmp_path


def test_the_jar_is_asked_once_for_all_pairs(java: Path) -> None:
    asked = JavaMeteor()
    score = meteor_java(["a b c d", "x", ""], [["q", "a b c d"], ["a"], ["b"]], asked)
    assert score.per_study == pytest.approx([1.0, 0.0, 0.0])
    assert "modules:exact stem synonym paraphrase" in score.signature
    meteor_java(["x", "a b c d"], [["a"], ["q", "a b c d"]], asked)
    calls = (java / "calls").read_text().splitlines()
    assert len(calls) == 1
    assert calls[0].endswith(f"-jar {java / 'meteor.jar'} - - -stdio -l en -norm")


def test_a_text_cannot_break_out_of_its_line(java: Path) -> None:
    score = meteor_java(["a ||| b\nSCORE ||| a"], ["a b"])
    assert len(score.per_study) == 1
    assert score.sums[0, 4] == pytest.approx(0.75 * 4)  # a, b, SCORE, a: four content words


def test_statistics_by_hand() -> None:
    # six words each, half of them function words, one content word matched by its synonym (weight 0.8), two chunks
    numbers = [6, 6, 3, 3, 1, 1, 2, 2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 2, 4, 4]
    np.testing.assert_allclose(statistics(np.array(numbers, float)), [1.8, 1.8, 2, 2, 3, 3, 4, 2])


def test_evaluate_scores_floors_and_shuffles_in_one_run(java: Path) -> None:
    reports = java / "r.jsonl"
    texts = ["The heart is normal.", "Clear lungs.", "A small left effusion."]
    reports.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    arguments = Arguments([reports], reports, meteor="java", clinical=False, resamples=50, json_file=java / "o.json")
    run(arguments, Console(quiet=True))
    found = json.loads((java / "o.json").read_text())
    assert found["meteor"] == pytest.approx(1.0)
    assert found["shuffled.meteor"] == pytest.approx(0.0)
    assert found["meteor.signature"].startswith("meteor|java:1.5")
    assert len((java / "calls").read_text().splitlines()) == 1


@pytest.mark.parametrize("answer", ["exit 1", "echo 1.0", "echo nonsense", "true"])
def test_a_jar_that_fails_says_what_to_do(java: Path, answer: str) -> None:
    (java / "java").write_text(f"#!/bin/sh\n{answer}\n")
    with pytest.raises(InputError, match="score with --meteor stem"):
        meteor_java(["a"], ["a"])


def test_without_java_it_says_what_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"needs Java on the path and the METEOR 1\.5 jar"):
        JavaMeteor()


@pytest.mark.skipif(meteor_jar() is None, reason="needs Java and the METEOR 1.5 jar")
@pytest.mark.slow
def test_equal_to_pycocoevalcap_by_java(openi_reports: list[str]) -> None:
    theirs = pytest.importorskip("pycocoevalcap.meteor.meteor")
    references = openi_reports[:40]
    predictions = [*references[:5], *openi_reports[41:75], ""]
    corpus, each = theirs.Meteor().compute_score(
        {i: [text] for i, text in enumerate(references)}, {i: [text] for i, text in enumerate(predictions)}
    )
    score = meteor_java(predictions, references)
    np.testing.assert_allclose(score.per_study, each, atol=1e-9)
    assert score.value == pytest.approx(corpus, abs=1e-9)
