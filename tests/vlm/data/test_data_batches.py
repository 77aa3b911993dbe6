"""Batches: padding, one image size each, and pictures that change together with their boxes and are never flipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import draw_study
from transformers import AutoTokenizer

from knowledge.graph import KnowledgeGraph
from vlm.config import Data
from vlm.data.augment import augment
from vlm.data.batches import Collator, bucketed, pad
from vlm.data.examples import Example, ExampleBuilder


@pytest.fixture(scope="module")
def builder(language_folder: Path) -> ExampleBuilder:
    graph = KnowledgeGraph.load()
    config = Data.model_validate({"image_size": {"default": 64}})
    labels = tuple(graph.views["radscribe"])
    return ExampleBuilder(config, labels, ("nodule",), graph, AutoTokenizer.from_pretrained(language_folder))


@pytest.fixture(scope="module")
def examples(builder: ExampleBuilder, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("studies")
    return [builder.build(draw_study(folder, i, lesion=i % 2 == 0, views=1 + i % 2)) for i in range(4)]


def sized(example: Example, size: int, tokens: int) -> Example:
    return replace(example, size=size, report_ids=np.zeros(tokens, np.int64))


def test_pad() -> None:
    ids, mask = pad([[5], [6, 7, 8]], value=9, left=True)
    assert ids.tolist() == [[9, 9, 5], [6, 7, 8]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]
    ids, mask = pad([[5], [6, 7, 8]], value=9, left=False)
    assert ids.tolist() == [[5, 9, 9], [6, 7, 8]]
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert pad([[], []], 0, left=False)[0].shape == (2, 0)


def test_batches_hold_every_example_once_and_one_size_each(examples: list[Example]) -> None:
    rng = np.random.default_rng(0)
    many = [sized(examples[0], int(rng.choice([64, 96])), int(rng.integers(1, 120))) for _ in range(53)]
    batches = list(bucketed(many, 8, np.random.default_rng(3)))
    assert sorted(i for batch in batches for i in batch) == list(range(53))
    assert all(len({many[i].size for i in batch}) == 1 for batch in batches)
    assert all(1 <= len(batch) <= 8 for batch in batches)
    # Like lengths lie together: 53 lengths over 120 tokens in sorted eights span far less than all of it.
    spans = [np.ptp([len(many[i].report_ids) for i in batch]) for batch in batches]
    assert max(spans) < 60


def test_the_seed_decides_the_batches(examples: list[Example]) -> None:
    many = [sized(examples[0], 64, n % 7 + 1) for n in range(40)]
    first, again, other = (list(bucketed(many, 4, np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    lengths = [len(many[i].report_ids) for batch in bucketed(many, 4, None) for i in batch]
    assert lengths == sorted(lengths)


def test_a_batch_knows_whose_image_is_whose(builder: ExampleBuilder, examples: list[Example]) -> None:
    batch = Collator(builder)(examples)
    assert batch.image_study.tolist() == [0, 1, 1, 2, 3, 3]
    assert batch.image_slot.tolist() == [0, 0, 1, 0, 0, 1]
    assert batch.pixel_values is not None
    assert batch.pixel_values.shape == (6, 1, 64, 64)
    assert float(batch.pixel_values.max()) <= 1.0
    assert [len(boxes) for boxes in batch.boxes_xyxy] == [1, 0, 0, 1, 0, 0]
    assert batch.prompt_mask[:, -1].all()
    assert ((batch.report_labels == -100) | batch.report_mask).all()
    assert (batch.report_weights[~batch.report_mask] == 0).all()
    assert Collator(builder, skip_pixels=True)(examples).pixel_values is None


def test_clinical_text_is_left_out_at_random_and_only_with_a_seed(
    builder: ExampleBuilder, examples: list[Example]
) -> None:
    def prompts(**how: object) -> list[str]:
        batch = Collator(builder, **how)(examples)  # type: ignore[arg-type]
        return [
            builder.tokenizer.decode(row[mask]) for row, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)
        ]

    assert all("Chest pain" in text for text in prompts(clinical_dropout=1.0))
    dropped = prompts(clinical_dropout=1.0, rng=np.random.default_rng(0))
    assert not any("Chest pain" in text for text in dropped)
    assert all("Findings:" in text for text in dropped)


def bright(pixels: np.ndarray) -> tuple[float, float, float, float]:
    """Outer corners of what is bright."""
    y, x = np.nonzero(pixels > 128)
    return float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)


def test_a_box_moves_with_its_pixels(builder: ExampleBuilder, examples: list[Example]) -> None:
    """A bright ellipse fills its box exactly, before and after; a bright rectangle overhangs by its turned corners."""
    y, x = np.mgrid[:160, :160] + 0.5
    ellipse = (((x - 70) / 30) ** 2 + ((y - 90) / 20) ** 2 <= 1).astype(np.uint8) * 230
    rectangle = np.zeros((160, 160), np.uint8)
    rectangle[70:110, 40:100] = 230
    box = np.array([[40.0, 70.0, 100.0, 110.0]], np.float32)
    moved = 0
    for seed in range(60):
        # Turned by at most 3.2 degrees, corners 30 and 20 from the centre overhang by 20 sin(3.2) and 30 sin(3.2).
        for picture, slack in ((ellipse, 2.0), (rectangle, 4.0)):
            out, (found,) = augment(picture, box, np.random.default_rng(seed))
            assert np.abs(np.array(bright(out)) - found).max() <= slack, seed
        moved += np.abs(found - box[0]).max() > slack
    assert moved > 20

    example = replace(
        examples[0], pixels=rectangle[None], boxes_xyxy=(box,), box_classes=(np.zeros(1, np.int64),), size=160
    )
    batch = Collator(builder, augment_images=True, rng=np.random.default_rng(5))([example])
    assert batch.pixel_values is not None
    found = batch.boxes_xyxy[0][0].numpy()
    assert np.abs(found - box[0]).max() > 1
    assert np.abs(np.array(bright(batch.pixel_values[0, 0].numpy() * 255)) - found).max() <= 4.0
    still = Collator(builder, augment_images=True)([example])
    assert still.boxes_xyxy[0].numpy() == pytest.approx(box)


def test_nothing_is_flipped() -> None:
    marked = np.full((100, 100), 40, np.uint8)
    marked[10:30, 10:30] = 240  # upper left
    rng = np.random.default_rng(0)
    for _ in range(200):
        out, _ = augment(marked, np.zeros((0, 4), np.float32), rng)
        x1, y1, x2, y2 = bright(np.where(out >= out.max() - 40, 255, 0))
        assert (x1 + x2) / 2 < 45
        assert (y1 + y2) / 2 < 45


def test_a_box_that_leaves_the_picture_is_cut_to_it() -> None:
    box = np.array([[0.0, 0.0, 12.0, 100.0]], np.float32)
    for seed in range(50):
        _, found = augment(np.zeros((100, 100), np.uint8), box, np.random.default_rng(seed))
        assert found.min() >= 0
        assert found.max() <= 100
