"""Prepared sets in training: examples equal to those in memory, pools that bound what is read, weights kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import draw_study
from transformers import AutoTokenizer

from knowledge.graph import KnowledgeGraph
from vlm.config import Data, DataSet
from vlm.data.batches import Collator
from vlm.data.examples import Example, ExampleBuilder
from vlm.data.layouts.tabular import write_studies
from vlm.data.packing import Packing
from vlm.data.prepare import index_only, prepare
from vlm.data.prepared import PreparedSet
from vlm.data.streaming import Mixture, StreamedExamples, choose, epoch_plan
from vlm.training_data import known_of, load_examples, tell_apart, usable
from vlm.types import InputError, Study


@pytest.fixture(scope="module")
def builder(language_folder: Path) -> ExampleBuilder:
    graph = KnowledgeGraph.load()
    config = Data.model_validate({"image_size": {"default": 64}})
    labels = tuple(graph.views["radscribe"])
    return ExampleBuilder(config, labels, ("nodule",), graph, AutoTokenizer.from_pretrained(language_folder))


def unknown(study: Study, number: int) -> Study:
    """Every third study has no report, every second no labels and no boxes."""
    study.split = ("train", "val")[number % 5 == 4]
    if number % 3 == 2:
        study.report = None
    if number % 2:
        study.findings = study.boxes = None
    return study


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    studies = [unknown(draw_study(folder, i, lesion=i % 4 == 0, views=1 + i % 2), i) for i in range(40)]
    write_studies(folder / "studies.jsonl", studies)
    prepare([(folder, "auto")], folder.parent / "prepared", Packing(size=64), shard=4)
    return folder


@pytest.fixture(scope="module")
def prepared(source: Path) -> Path:
    return source.parent / "prepared"


def same(one: Example, other: Example) -> bool:
    arrays = ("pixels", "view", "report_ids", "report_labels", "report_weights", "box_known")
    return (
        all(np.array_equal(getattr(one, n), getattr(other, n)) for n in arrays)
        and np.array_equal(one.finding_targets, other.finding_targets, equal_nan=True)
        and all(np.allclose(a, b, atol=1e-3) for a, b in zip(one.boxes_xyxy, other.boxes_xyxy, strict=True))
        and (one.id, one.size, one.modality, one.clinical) == (other.id, other.size, other.modality, other.clinical)
    )


def test_a_streamed_example_is_the_one_in_memory(source: Path, prepared: Path, builder: ExampleBuilder) -> None:
    memory = {e.id: e for e in load_examples(DataSet(path=source), builder, show=False)}
    streamed = load_examples(DataSet(path=prepared), builder, show=False)
    assert isinstance(streamed, StreamedExamples)
    assert len(streamed) == 40
    assert all(same(e, memory[e.id]) for e in streamed)
    assert {e.id for e in usable(streamed, ["report"])} == {e.id for e in usable(list(memory.values()), ["report"])}
    for (modality, targets), example in zip(known_of(streamed), streamed, strict=True):
        assert (modality, targets.tolist()) == (example.modality, pytest.approx(example.finding_targets, nan_ok=True))


def test_split_and_limit(prepared: Path, builder: ExampleBuilder) -> None:
    streamed = load_examples(DataSet(path=prepared, split=("val",), limit=3), builder, show=False)
    assert [e.id for e in streamed] == ["study4", "study9", "study14"]
    with pytest.raises(InputError, match=r"has no study in split test; it has train \(32\), val \(8\)"):
        choose(PreparedSet(prepared), ["test"], None)


def test_an_epoch_reads_shard_after_shard_and_every_study_once(prepared: Path, builder: ExampleBuilder) -> None:
    streamed = load_examples(DataSet(path=prepared), builder, show=False)
    assert isinstance(streamed, StreamedExamples)
    examples, batches = epoch_plan([(1.0, streamed)], 3, np.random.default_rng(0), pool=8)
    assert isinstance(examples, Mixture)
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(40))
    assert sorted(examples.at.tolist()) == list(range(40))
    blocks = streamed.blocks[examples.at[order]]
    for start in range(0, 40, 8):  # a pool of 8 takes two shards of 4, or the ends of one more
        assert len(set(blocks[start : start + 8].tolist())) <= 3
    again = epoch_plan([(1.0, streamed)], 3, np.random.default_rng(0), pool=8)
    other = epoch_plan([(1.0, streamed)], 3, np.random.default_rng(1), pool=8)
    assert again[1] == batches
    assert np.array_equal(again[0].at, examples.at)  # type: ignore[attr-defined]
    assert other[0].at.tolist() != examples.at.tolist()  # type: ignore[attr-defined]


def test_a_mixture_keeps_its_weights_in_every_pool_and_each_sets_unknown(
    source: Path, prepared: Path, builder: ExampleBuilder
) -> None:
    streamed = load_examples(DataSet(path=prepared), builder, show=False)
    boxed = [e for e in load_examples(DataSet(path=source), builder, show=False) if e.box_known.any()][:10]
    drawn, batches = epoch_plan([(0.5, streamed), (2.0, boxed)], 4, np.random.default_rng(0), pool=5)
    assert isinstance(drawn, Mixture)
    assert np.bincount(drawn.which).tolist() == [20, 20]
    assert np.bincount(drawn.at[drawn.which == 1]).tolist() == [2] * 10
    order = np.array([i for batch in batches for i in batch])
    for start in range(0, 40, 10):  # four pools of five streamed studies each
        assert np.bincount(drawn.which[order[start : start + 10]]).tolist() == [5, 5]
    rows = [drawn[i] for i in order[:10]]
    batch = Collator(builder)(rows)
    for row, example in enumerate(rows):
        assert np.array_equal(batch.finding_targets[row].numpy(), example.finding_targets, equal_nan=True)
        known = batch.box_known[batch.image_study == row]
        assert known.numpy().tolist() == example.box_known.tolist()
        assert bool((batch.report_labels[row] != -100).any()) == bool(len(example.report_ids))


def test_only_sets_in_memory_are_batched_over_all_of_them(source: Path, builder: ExampleBuilder) -> None:
    examples = load_examples(DataSet(path=source), builder, show=False)
    drawn, batches = epoch_plan([(1.5, examples)], 4, np.random.default_rng(0), pool=1)
    assert len(drawn) == 60
    assert sorted(i for batch in batches for i in batch) == list(range(60))


def test_studies_of_two_sets_with_one_id_are_told_apart(source: Path, prepared: Path, builder: ExampleBuilder) -> None:
    sets = [DataSet(path=source), DataSet(path=prepared), DataSet(path=source, split=("val",))]
    named = [examples for _, examples in tell_apart([(s, load_examples(s, builder, False)) for s in sets])]
    assert [e.id for e in named[0]][:2] == ["study0", "study1"]
    assert [named[1][i].id for i in range(2)] == ["prepared:study0", "prepared:study1"]
    assert named[2][0].id == "study4"


def test_an_index_without_pixels_streams_too(source: Path, builder: ExampleBuilder, tmp_path: Path) -> None:
    index_only([(source, "auto")], tmp_path / "index")
    streamed = load_examples(DataSet(path=tmp_path / "index"), builder, show=False)
    memory = load_examples(DataSet(path=source), builder, show=False)
    assert isinstance(streamed, StreamedExamples)
    assert all(same(a, b) for a, b in zip(streamed, memory, strict=True))


def test_windows_need_what_was_kept(source: Path, prepared: Path, builder: ExampleBuilder, tmp_path: Path) -> None:
    config = builder.config.model_copy(update={"windows": ("lung", "bone")})
    windowed = ExampleBuilder(config, builder.labels, ("nodule",), builder.graph, builder.tokenizer)
    with pytest.raises(
        InputError, match=r"prepared: has lost what data\.windows would show of CT; prepare it with --hu"
    ):
        load_examples(DataSet(path=prepared), windowed, show=False)
    prepare([(source, "auto")], tmp_path / "hu", Packing(size=64, hu=True))
    assert len(load_examples(DataSet(path=tmp_path / "hu"), windowed, show=False)) == 40


def test_an_address_is_no_path_below_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADSCRIBE_DATA", "/data")
    assert DataSet(path=Path("openi")).location() == Path("/data/openi")
    assert str(DataSet(path=Path("s3://bucket/set")).location()) == "s3:/bucket/set"
