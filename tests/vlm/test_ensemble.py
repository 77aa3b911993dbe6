"""Several checkpoints that see and write together: what their mean is, when they are refused, and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import draw_study, tiny_config, write_language

from vlm.adapter_folder import export_adapter
from vlm.assembly import starting_point
from vlm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vlm.cli.main import main
from vlm.data.sources import gather_studies
from vlm.ensemble import check_members, fuse_boxes, join_seen, load_members
from vlm.export.jsonl import report_to_dict
from vlm.generation.beam_search import beam_search
from vlm.generation.ensemble_stepper import Joint, log_mean
from vlm.generation.evidence import Evidence
from vlm.generation.settings import BeamSettings
from vlm.generation.steering import Threshold
from vlm.pipeline import GenerationSettings, Pipeline
from vlm.seeing import Seen
from vlm.types import Box, InputError, Report


def made(language: Path, seed: int, **changes: object) -> Checkpoint:
    """An untrained checkpoint whose every weight depends on the seed, the adapter's too."""
    config = tiny_config(language, generation__max_new_tokens=12, generation__num_beams=2, **changes)
    config.training.seed = seed
    checkpoint = starting_point(config, None)
    torch.manual_seed(seed)
    for name, weight in checkpoint.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return checkpoint


@pytest.fixture(scope="module")
def folders(language_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("members")
    for seed in (1, 2):
        save_checkpoint(root / f"member{seed}", made(language_folder, seed))
    return root / "member1", root / "member2"


@pytest.fixture(scope="module")
def pair(folders: tuple[Path, Path]) -> Pipeline:
    return Pipeline.load(folders)


def written(pipeline: Pipeline, studies: Any, **settings: Any) -> list[dict[str, Any]]:
    found = [report for _, report in pipeline.reports(studies, GenerationSettings(**settings))]
    assert all(isinstance(report, Report) for report in found)
    return [report_to_dict(report) for report in found]  # type: ignore[arg-type]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


@pytest.mark.parametrize("settings", [{}, {"decoding": "greedy"}, {"decoding": "sample", "num_reports": 2}])
def test_a_checkpoint_with_itself_writes_what_it_writes_alone(
    folders: tuple[Path, Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    """To the last digit of the record: texts, alternatives, probabilities, boxes and confidences."""
    studies = [draw_study(tmp_path, n, views=1 + n % 2) for n in range(3)]
    alone = written(Pipeline.load(folders[0]), studies, **settings)
    assert written(Pipeline.load([folders[0], folders[0]]), studies, **settings) == alone


def test_two_members_write_another_report_that_does_not_depend_on_the_batch(pair: Pipeline, tmp_path: Path) -> None:
    studies = [draw_study(tmp_path, n, views=1 + n % 2) for n in range(3)]
    studies = [replace(s, clinical={"indication": "Cough. " * n}) for n, s in enumerate(studies)]
    one = written(pair, studies, batch_size=1, must=("small nodule",), num_reports=2)
    assert one == written(pair, studies, batch_size=3, must=("small nodule",), num_reports=2)
    assert all("small nodule" in row["text"].lower() for row in one)


def test_probabilities_are_the_mean_of_the_members(folders: tuple[Path, Path], pair: Pipeline, tmp_path: Path) -> None:
    study = draw_study(tmp_path, 1)
    alone = [
        {f["label"]: f["probability"] for f in written(Pipeline.load(folder), [study])[0]["findings"]}
        for folder in folders
    ]
    for finding in written(pair, [study])[0]["findings"]:
        name = finding["label"]
        assert finding["probability"] == pytest.approx((alone[0][name] + alone[1][name]) / 2, abs=1.01e-4)


def test_the_next_token_is_the_mean_of_probabilities() -> None:
    """By hand: (0.5, 0.5, 0) and (0.1, 0.1, 0.8) -> (0.3, 0.3, 0.4); the second's padded fourth column is cut."""
    first = torch.tensor([[0.5, 0.5, 0.0]]).log() + 3.0  # logits are free of a constant
    second = torch.tensor([[0.1, 0.1, 0.8]]).log()
    second = torch.cat([second, torch.full((1, 1), 1.0)], 1)
    torch.testing.assert_close(log_mean([first, second]).exp(), torch.tensor([[0.3, 0.3, 0.4]]))
    far = torch.tensor([[0.0, -200.0]])  # e^-200 is no float32
    assert log_mean([far, far])[0, 1] == pytest.approx(-200.0)


def test_greedy_search_takes_what_the_mean_says(folders: tuple[Path, Path]) -> None:
    """Two language models with prompts of different length: each step's token is the argmax of the mean probability."""
    models: list[Any] = [load_checkpoint(folder).model.language.model for folder in folders]
    torch.manual_seed(5)
    prompts = [torch.randn(1, n, 32) for n in (3, 5)]
    parts = [(m, p, torch.ones(p.shape[:2], dtype=torch.long)) for m, p in zip(models, prompts, strict=True)]
    found = beam_search(Joint(parts), BeamSettings(1, 6, eos_token_ids=(2,)), inputs_embeds=prompts[0])[0][0].tokens
    tokens: list[int] = []
    while len(tokens) < len(found):
        mean = torch.zeros(())
        for model, prompt in zip(models, prompts, strict=True):
            embeds = model.get_input_embeddings()(torch.tensor([tokens], dtype=torch.long))
            with torch.no_grad():
                logits = model(inputs_embeds=torch.cat([prompt, embeds], 1)).logits[0, -1]
            mean = mean + logits.softmax(-1) / 2
        tokens.append(int(mean.argmax()))
    assert tuple(tokens) == found


def test_boxes_are_fused_by_hand() -> None:
    """Two of three members see one nodule: corners weighted 0.8 to 0.4, confidence 0.6 * 2 / 3; the third's lies
    elsewhere (0.3 / 3), another label and another image stay apart."""
    found = [
        [Box((0, 0, 10, 10), "nodule", 0, 0.8), Box((0, 0, 10, 10), "mass", 0, 0.9)],
        [Box((0, 0, 10, 13), "nodule", 0, 0.4)],
        [Box((50, 50, 60, 60), "nodule", 0, 0.3), Box((0, 0, 10, 10), "nodule", 1, 0.6)],
    ]
    assert fuse_boxes(found) == (
        Box((0.0, 0.0, 10.0, 11.0), "nodule", 0, 0.4),
        Box((0.0, 0.0, 10.0, 10.0), "mass", 0, 0.3),
        Box((0.0, 0.0, 10.0, 10.0), "nodule", 1, 0.2),
        Box((50.0, 50.0, 60.0, 60.0), "nodule", 0, 0.1),
    )
    assert fuse_boxes(found, {"mass": 1, "nodule": 3})[0] == Box((0.0, 0.0, 10.0, 10.0), "mass", 0, 0.9)
    assert fuse_boxes([[], []]) == ()


def test_a_label_counts_those_who_learnt_it() -> None:
    """Cuts and probabilities are means of the members that speak; a cut above 1 raises the ensemble's."""
    maps = np.full((1, 2, 2), 0.25, np.float32)
    one = Evidence({"a": 0.2, "b": 0.5}, (), [80], {"a": Threshold(0.1, 0.4), "b": Threshold(0.1, 0.6)}, 0.4)
    two = Evidence({"a": 0.6}, (), [80], {"a": Threshold(0.3, 1.01), "b": Threshold(0.0, 1.0)}, 0.6, (2.0, 1.0))
    sharp = np.zeros((1, 4, 4), np.float32)
    sharp[0, 0, 0] = 1.0
    seen = join_seen([Seen(one, (), {"a": maps}), Seen(two, (), {"a": sharp})], ("a", "b", "c"))
    assert dict(seen.evidence.probabilities) == pytest.approx({"a": 0.4, "b": 0.5})
    assert seen.evidence.cut("a").lower == pytest.approx(0.2)
    assert seen.evidence.cut("a").upper == pytest.approx(0.705)
    assert seen.evidence.cut("b") == Threshold(0.1, 0.6)
    assert seen.evidence.least == pytest.approx(0.5)
    assert seen.evidence.platt == pytest.approx((1.5, 0.5))
    assert seen.attention["a"].shape == (1, 2, 2)
    assert seen.attention["a"].sum() == pytest.approx(1.0)


def test_members_that_differ_are_refused(language_folder: Path, tmp_path: Path) -> None:
    base = made(language_folder, 1)
    graph = replace(base, labels=base.labels[:-1])
    with pytest.raises(InputError, match=r"^B: can't write together with A: another list of findings .*other_finding"):
        check_members([base, graph], ["A", "B"])
    sections = made(language_folder, 1, data__report_sections=("impression", "findings"))
    with pytest.raises(InputError, match="another order of report sections"):
        check_members([base, sections], ["A", "B"])
    other = write_language(tmp_path / "language")
    text = json.loads((other / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    last, before = sorted(vocabulary, key=vocabulary.get)[-1], sorted(vocabulary, key=vocabulary.get)[-2]
    vocabulary[last], vocabulary[before] = vocabulary[before], vocabulary[last]
    (other / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(InputError, match=r"^B: can't write together with A: another tokenizer"):
        check_members([base, made(other, 1)], ["A", "B"])


def test_numbers_of_checkpoints_and_adapters_must_match(folders: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="--checkpoint 2 times and --adapter 1 times: give one checkpoint for all"):
        load_members(folders, [folders[0]])


def test_equal_weights_are_held_once(folders: tuple[Path, Path]) -> None:
    (one, two), _ = load_members([folders[0], folders[0]])
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    (one, two), _ = load_members(folders)
    shared = {
        n for n, p in two.model.named_parameters() if p.data_ptr() == dict(one.model.named_parameters())[n].data_ptr()
    }
    assert any("embed_tokens" in n for n in shared)  # the language model's file is the same
    assert not any("lora_B" in n for n in shared)


def test_an_explanation_says_whose_it_is(pair: Pipeline, tmp_path: Path) -> None:
    ((_, report),) = pair.reports([draw_study(tmp_path, 1)], GenerationSettings(explain=True))
    assert isinstance(report, Report)
    assert report.explanation is not None
    assert report.explanation["measure"].endswith("of the first of 2 members alone")


def test_the_command_line_takes_two_adapters_and_knows_its_folder(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    for number in range(2):
        draw_study(pictures, number, views=1)
    base = load_checkpoint(folders[0])
    export_adapter(base, tmp_path / "x", base)
    export_adapter(load_checkpoint(folders[1]), tmp_path / "y", load_checkpoint(folders[0]))
    call = ("generate", pictures, "--out", tmp_path / "out", "--checkpoint", folders[0])
    assert run(*call, "--adapter", tmp_path / "x", "--adapter", tmp_path / "y", "--trace") == 0
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert len(record["members"]) == 2
    capsys.readouterr()
    assert run(*call, "--adapter", tmp_path / "x", "--adapter", tmp_path / "y", "--trace") == 0
    assert "2 reports, 0 failed" in capsys.readouterr().out
    assert run(*call, "--adapter", tmp_path / "y", "--adapter", tmp_path / "x", "--trace") == 2
    assert "holds reports of another checkpoint" in " ".join(capsys.readouterr().err.split())
    texts = [json.loads(line)["text"] for line in (tmp_path / "out/reports.jsonl").read_text().splitlines()]
    whole = Pipeline.load(folders[0], [tmp_path / "x", tmp_path / "y"])
    assert texts == [row["text"] for row in written(whole, gather_studies([pictures]))]
