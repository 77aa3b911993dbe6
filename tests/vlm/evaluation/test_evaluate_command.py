"""`vlm evaluate` from files to table, JSON, CSV, gate and exit code; profiles and signatures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from vlm.cli.evaluate import evaluate
from vlm.evaluation.command import Arguments, run
from vlm.evaluation.gate import gate
from vlm.evaluation.inputs import join, read_reports
from vlm.evaluation.run import Settings, evaluate_reports
from vlm.evaluation.tokens import make_profile, r2gen_clean
from vlm.types import InputError

TEXTS = [
    "The heart is normal in size. The lungs are clear.",
    "There is a small left pleural effusion. The heart is enlarged.",
    "No pneumothorax or pleural effusion. The lungs are clear.",
    "Calcified granuloma in the right upper lobe. Heart size is normal.",
    "Cardiomegaly with pulmonary edema.",
    "The lungs are hyperexpanded consistent with emphysema.",
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    def write(name: str, texts: list[str], start: int = 0) -> Path:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps({"id": f"s{i + start}", "text": text}) + "\n" for i, text in enumerate(texts))
        )
        return path

    return {
        "references": write("references.jsonl", TEXTS),
        "good": write("good.jsonl", [text.replace("normal", "unremarkable") for text in TEXTS]),
        "flat": write("flat.jsonl", ["The lungs are clear."] * 6),
        "train": write("train.jsonl", [*TEXTS[:2], "The lungs are clear. No pleural effusion."], 100),
        "out": tmp_path / "out",
    }


def test_all_outputs(files: dict[str, Path]) -> None:
    out = files["out"]
    console = Console(width=100, record=True, quiet=True)
    reasons = run(
        Arguments(
            [files["good"]],
            files["references"],
            files["train"],
            resamples=100,
            json_file=out / "a.json",
            csv_file=out / "a.csv",
            markdown_file=out / "a.md",
        ),
        console,
    )
    assert reasons == []
    scores = json.loads((out / "a.json").read_text())
    keys = (
        "bleu1",
        "bleu2",
        "bleu3",
        "bleu4",
        "rougeL",
        "meteor",
        "cider",
        "unique",
        "constant.cider",
        "shuffled.cider",
    )
    for key in (
        *keys,
        "neighbour.cider",
        "cider.low",
        "cider-constant",
        "cider-constant.p_holm",
        "new.cider",
        "finding_f1_macro",
    ):
        assert isinstance(scores[key], float), key
    assert scores["cider"] > scores["shuffled.cider"]
    assert scores["cider-constant"] == pytest.approx(scores["cider"] - scores["constant.cider"])
    assert scores["studies_new"] == 4
    assert "tok:[a-z0-9]+" in scores["cider.signature"]
    rows = list(csv.DictReader((out / "a.csv").open()))
    good = [row for row in rows if row["system"] == "good"]
    assert len(good) == 6
    assert np.mean([float(row["cider"]) for row in good]) == pytest.approx(scores["cider"], rel=1e-4)
    assert "| good |" in (out / "a.md").read_text()


def test_the_table_fits_100_columns(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run(
        Arguments([files["good"], files["flat"]], files["references"], files["train"], resamples=50, quiet=True),
        Console(width=100),
    )
    text = capsys.readouterr().out
    assert "good - flat" in text
    assert "shuffled[good]" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_several_systems_are_compared_in_pairs(files: dict[str, Path]) -> None:
    joined = join(
        {"good": read_reports(files["good"]), "flat": read_reports(files["flat"])}, read_reports(files["references"])
    )
    flat = evaluate_reports(joined, Settings(resamples=200, clinical=False)).flat()
    assert flat["good.bleu1-flat"] > 0
    assert flat["good.bleu1-flat.p_holm"] >= flat["good.bleu1-flat.p"]
    assert flat["flat.unique"] == pytest.approx(1 / 6)


def test_gate_and_exit_code(files: dict[str, Path]) -> None:
    app = typer.Typer()
    app.command()(evaluate)
    call = ["--references", str(files["references"]), "--resamples", "20", "--no-clinical", "--quiet"]
    passed = CliRunner().invoke(
        app, [str(files["good"]), *call, "--fail-if", "unique<0.1", "--fail-if", "cider<constant"]
    )
    assert passed.exit_code == 0, passed.output
    failed = CliRunner().invoke(
        app, [str(files["flat"]), *call, "--fail-if", "unique<0.2", "--fail-if", "cider<=constant"]
    )
    assert failed.exit_code == 3
    assert "gate: unique = 0.1667 < 0.2" in failed.output
    assert "cider = " in failed.output


def test_of_several_processes_the_first_scores(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(evaluate)
    out = files["out"] / "a.json"
    call = [str(files["good"]), "--references", str(files["references"]), "--resamples", "0", "--no-clinical"]
    for rank, written in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        result = CliRunner().invoke(app, [*call, "--json", str(out)])
        assert (result.exit_code, bool(result.output), out.is_file()) == (0, written, written)


def test_wrong_conditions_say_what_is_wrong() -> None:
    scores = {"cider": 1.0, "constant.cider": 0.5, "name.signature": "x", "bleu1": None}
    assert gate(["cider<constant"], scores, ["p"]) == []
    assert gate(["bleu1<0.1"], scores, ["p"]) == ["bleu1 < 0.1: undefined"]
    for condition, message in (
        ("cider", "is not NAME < VALUE"),
        ("spice<1", "no score 'spice'"),
        ("cider<nobody", "'nobody' is no number"),
    ):
        with pytest.raises(InputError, match=message):
            gate([condition], scores, ["p"])


def test_one_study_prints_undefined(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"id": "a", "text": TEXTS[0]}) + "\n")
    run(Arguments([path], path, json_file=tmp_path / "o.json"), Console(width=100))
    assert "undefined" in capsys.readouterr().out
    scores = json.loads((tmp_path / "o.json").read_text())
    assert scores["cider"] is None
    assert scores["bleu1"] == pytest.approx(1.0, abs=1e-6)


def test_text_that_is_not_english_is_refused_or_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = ["Сердце не увеличено", "Лёгкие чистые"]
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(rows)))
    with pytest.raises(InputError, match=r"2 references hold no token.*--profile unicode"):
        run(Arguments([path], path, clinical=False), Console(quiet=True))
    run(Arguments([path], path, clinical=False, profile="unicode", json_file=tmp_path / "o.json"), Console(quiet=True))
    assert json.loads((tmp_path / "o.json").read_text())["bleu1"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": None}, "--references"),
        ({"profile": "x"}, "choose one of canonical"),
        ({"meteor": "x"}, "choose stem, java or off"),
        ({"names": ("a", "b")}, "2 names for 1 files"),
        ({"view": "x"}, "view 'x' is not in the graph"),
        ({"explain": "nobody"}, "no study 'nobody'"),
    ],
)
def test_wrong_options_say_what_is_wrong(files: dict[str, Path], change: dict[str, object], message: str) -> None:
    options: dict[str, object] = {"references": files["references"], "resamples": 0, **change}
    with pytest.raises(InputError, match=message):
        run(Arguments([files["good"]], **options), Console(quiet=True))  # type: ignore[arg-type]


def test_profiles_differ_and_are_named() -> None:
    text = "1. Heart size is NORMAL (stable). 2. No 4.5 cm mass/nodule..  Clear."
    assert make_profile("canonical").reference(text) == "1 heart size is normal stable 2 no 4 5 cm mass nodule clear"
    # by hand from R2Gen's cleaning: enumeration dropped, slash removed without a blank, full stops are tokens
    assert r2gen_clean(text) == "heart size is normal stable . no 45 cm massnodule . clear ."
    long = "word " * 80
    profile = make_profile("r2gen-compat")
    assert len(profile.reference(long).split()) == 59
    assert len(profile.prediction(long).split()) == 60
    assert len(make_profile("r2gen-compat-mimic").reference("word " * 200).split()) == 99
    rare = make_profile("r2gen-compat", ["heart is normal"] * 3 + ["zebra"])
    assert rare.reference("heart zebra") == "heart <unk> ."
    assert "count<3 in train" in rare.signature
