"""What a run needs: blocks that operations ask for are added up, on real tensors and fake ones alike, and the estimate
of a model without weights is that of the model with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import write_family
from tiny import tiny_config

from vlm.assembly import starting_point
from vlm.config import Config
from vlm.fitting import parse_size
from vlm.memory import Estimate, size, weight_bytes
from vlm.optimization import select_parameters
from vlm.sizing import Shape
from vlm.tally import Heap, Watch, heap_of
from vlm.weightless import FewBits, without_weights

SHAPE = Shape(2, 3, 2, 64, 1, 20, 12, 24)


def config_of(language: Path, **more: object) -> Config:
    tree = tiny_config(language).model_dump(mode="json")
    tree["data"] |= {"train": [{"format": "blank", "count": 4}]}
    tree["training"]["stages"] = [{"name": "text", "epochs": 1, "train": ["bridge", "adapter"], "losses": ["report"]}]
    tree["training"].update(more)
    return Config.model_validate(tree)


def peak_of(config: Config, built=None) -> int:  # type: ignore[no-untyped-def]
    """Of one step of the first stage, on cached features."""
    built = built or without_weights(config)
    stage = config.training.stages[0]
    estimate = Estimate(built, {"train": [], "validation": []}, None, "cpu")
    select_parameters(built.model, stage, 0)
    return estimate._step(SHAPE, stage, True, False, True).peak


def test_blocks_are_added_up_while_they_live() -> None:
    watch = Watch()
    with watch:
        a = torch.zeros(1000)
        b = a + 1
        view = b.view(10, 100)
        assert watch.live == 8000
        del a
        c = view * 2
        del b, view
        assert watch.live == 4000
    assert watch.peak == 8000
    assert c.numel() == 1000


def test_shapes_alone_take_what_the_model_takes(language_folder: Path) -> None:
    config = config_of(language_folder)
    real, fake = starting_point(config, None).model, without_weights(config).model
    assert weight_bytes(real) == weight_bytes(fake)
    assert {n: p.shape for n, p in real.named_parameters()} == {n: p.shape for n, p in fake.named_parameters()}


def test_a_step_on_shapes_asks_for_what_a_step_on_numbers_asks_for(language_folder: Path) -> None:
    config = config_of(language_folder)
    told = peak_of(config)
    built = without_weights(config)
    built.model = starting_point(config, None).model
    built.mode = torch.inference_mode(False)  # type: ignore[assignment]  # real tensors
    assert told == pytest.approx(peak_of(config, built), rel=0.02)


def test_checkpointing_and_few_bits_take_less(tmp_path: Path, language_folder: Path) -> None:
    folder = write_family("gpt2", tmp_path / "gpt2", language_folder, n_layer=6)
    assert peak_of(config_of(folder, gradient_checkpointing=True)) < 0.6 * peak_of(config_of(folder))
    weights = {}
    for kind in ("none", "nf4", "int8"):
        tree = config_of(folder).model_dump(mode="json")
        tree["model"]["language"]["quantize"] = kind
        weights[kind] = weight_bytes(without_weights(Config.model_validate(tree)).model)["language model"]
    assert weights["nf4"] < weights["int8"] < weights["none"]


def test_few_bits_hold_what_bitsandbytes_holds() -> None:
    import bitsandbytes

    real = bitsandbytes.nn.Linear4bit(256, 128, bias=False, quant_type="nf4", compress_statistics=True)
    real.load_state_dict({"weight": torch.randn(128, 256)})
    real.to("cpu")
    state = real.weight.quant_state
    held = size(real.weight.data) + size(state.absmax) + size(state.state2.absmax)
    layer = FewBits(256, 128, None, 4, torch.float32)
    assert size(layer.weight) + size(layer.scales) == held


def test_the_heap_joins_its_holes_and_cannot_use_those_that_are_too_small() -> None:
    heap = Heap()
    blocks = [heap.take(10_000) for _ in range(4)]
    before = heap.most
    heap.give(*blocks[1])
    heap.give(*blocks[2])
    heap.take(19_000)  # into the joined hole
    assert heap.most == before
    heap.take(5_000)
    assert heap.most > before
    growing = heap_of([(0, 50_000), (1, 60_000), (0, 0), (1, 0)], (0.5, 1.0), set())
    assert growing >= 110_000


@pytest.mark.parametrize(("text", "wanted"), [("24GB", 24 << 30), ("512 mib", 512 << 20), ("1.5g", 3 << 29)])
def test_sizes_are_read(text: str, wanted: int) -> None:
    assert parse_size(text) == wanted
