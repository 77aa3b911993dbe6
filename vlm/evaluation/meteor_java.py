"""METEOR 1.5 itself, where Java and its jar are installed: all four modules, as pycocoevalcap runs it.

Protocol of the jar's `-stdio`: a line `SCORE ||| reference ||| ... ||| prediction` is answered by one line of 23
numbers: lengths of prediction and reference, function words of both, then for each of the four modules content matches
and function matches of both sides, chunks, matched words of both. A corpus is scored from their sums, in which a report
that is aligned whole in one chunk counts no chunk. So only statistics are asked for, all at once and each distinct pair
once, and `meteor_of_sums` makes METEOR of them: equal to the jar's own `EVAL`, and to pycocoevalcap's, for one report
and for the corpus, and as quick to resample as every other score.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib import util
from pathlib import Path

import numpy as np

from vlm.evaluation.meteor import ALPHA, BETA, DELTA, GAMMA, meteor_of_sums
from vlm.evaluation.resampling import Score
from vlm.types import InputError

WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # exact, stem, synonym, paraphrase
NUMBERS = 23
_SECONDS = 600.0  # of a run, and a tenth of a second more for each pair


def meteor_jar() -> Path | None:
    """Returns the METEOR 1.5 jar (METEOR_JAR in the environment, or pycocoevalcap's) when Java is installed too."""
    if shutil.which("java") is None:
        return None
    spec = util.find_spec("pycocoevalcap")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    candidates = [os.environ.get("METEOR_JAR", ""), *(f"{folder}/meteor/meteor-1.5.jar" for folder in folders)]
    return next((Path(name) for name in candidates if name and Path(name).is_file()), None)


class JavaMeteor:
    """A METEOR jar, and the statistics of every pair that it was asked for.

    Raises:
        InputError: Java or the jar is absent.
    """

    def __init__(self) -> None:
        jar = meteor_jar()
        if jar is None:
            raise InputError(
                "--meteor java needs Java on the path and the METEOR 1.5 jar (set METEOR_JAR, or install pycocoevalcap)"
            )
        self.jar = jar.resolve()
        self._known: dict[str, np.ndarray] = {}

    def ask(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> np.ndarray:
        """Returns (N, 8) statistics as `meteor_of_sums` takes them; pairs that are not known yet are scored in one run.

        Args:
            predictions: N token strings.
            references: N token strings, or lists of such, of which METEOR counts the best.

        Raises:
            InputError: the jar fails.
        """
        lines = [_line(p, [r] if isinstance(r, str) else r) for p, r in zip(predictions, references, strict=True)]
        new = [line for line in dict.fromkeys(lines) if line not in self._known]
        if new:
            self._known |= dict(zip(new, self._run(new), strict=True))
        return np.stack([self._known[line] for line in lines]) if lines else np.zeros((0, 8))

    def _run(self, lines: Sequence[str]) -> list[np.ndarray]:
        command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(self.jar), "-", "-", "-stdio", "-l", "en"]
        try:
            done = subprocess.run(
                [*command, "-norm"],
                input="\n".join(lines) + "\n",
                capture_output=True,
                encoding="utf-8",
                cwd=self.jar.parent,
                timeout=_SECONDS + 0.1 * len(lines),
                check=True,
            )
            rows = [[float(value) for value in answer.split()] for answer in done.stdout.splitlines()]
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise InputError(f"{self.jar}: METEOR failed ({type(error).__name__}); score with --meteor stem") from error
        if len(rows) != len(lines) or any(len(row) != NUMBERS for row in rows):
            raise InputError(
                f"{self.jar}: METEOR answered {len(rows)} lines for {len(lines)} reports, or not {NUMBERS} numbers a "
                "line; score with --meteor stem"
            )
        return [statistics(np.array(row)) for row in rows]


def _line(prediction: str, references: Sequence[str]) -> str:
    return " ||| ".join(("SCORE", *(" ".join(text.replace("|||", " ").split()) for text in (*references, prediction))))


def statistics(numbers: np.ndarray) -> np.ndarray:
    """Returns the eight statistics of `meteor_of_sums` from (23,) numbers of the jar."""
    length = numbers[:2]  # prediction, reference
    function = numbers[2:4]
    matches = np.asarray(WEIGHTS) @ numbers[4:20].reshape(4, 4)  # content of both, function words of both
    weighted = DELTA * (length - function) + (1 - DELTA) * function
    chunks, words = numbers[20], numbers[21:23]
    whole = chunks == 1 and words[0] == length[0] and words[1] == length[1]
    return np.array([*matches, *weighted, words.mean(), 0.0 if whole else chunks])


def meteor_java(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], java: JavaMeteor | None = None
) -> Score:
    """Scores METEOR 1.5 by Java, all its modules, on tokens as pycocoevalcap passes them.

    Args:
        predictions: N token strings.
        references: N token strings, or lists of such.
        java: what has scored other systems of the same call; None starts anew.

    Raises:
        InputError: Java or the jar is absent, or it fails.
    """
    sums = (java or JavaMeteor()).ask(predictions, references)
    signature = (
        f"meteor|java:1.5|modules:exact stem synonym paraphrase|alpha:{ALPHA}|beta:{BETA}|gamma:{GAMMA}|delta:{DELTA}"
        f"|weights:{' '.join(format(weight, 'g') for weight in WEIGHTS)}|level:corpus"
    )
    return Score(
        "meteor", float(meteor_of_sums(sums.sum(axis=0))), meteor_of_sums(sums), sums, meteor_of_sums, signature
    )
