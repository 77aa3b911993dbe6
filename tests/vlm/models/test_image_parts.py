"""Vision, hierarchical attention, pyramid and detection head on tiny tensors."""

from __future__ import annotations

import pytest
import torch

from vlm.models.detection import DenseDetections, DetectionHead, locations, select_boxes
from vlm.models.hierarchy import HierarchicalAttention, sine_positions
from vlm.models.pyramid import FeaturePyramid
from vlm.models.vision import VisionEncoder, build_backbone, early_layers, fold_norms


@pytest.mark.parametrize(
    ("name", "channels"),
    [("mobilenetv3_small_050", 3), ("resnet10t", 3), ("vit_tiny_patch16_224", 3), ("convnext_atto", 3)],
)
def test_any_timm_model_gives_three_scales(name: str, channels: int) -> None:
    encoder = VisionEncoder(build_backbone(name, None, {}, 64), 0.5, 0.5, True).eval()
    maps = encoder(torch.rand(2, 1, 64, 64))
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 8), (4, 4), (2, 2)]
    assert tuple(m.shape[1] for m in maps) == encoder.channels
    assert len(maps) == channels


def test_an_unknown_model_is_refused_with_near_names() -> None:
    with pytest.raises(ValueError, match="timm knows no model 'mobilenetv9_100'"):
        build_backbone("mobilenetv9_100", None, {}, 64)


def test_weights_of_another_model_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    save_file({"conv_stem.weight": torch.zeros(1, 1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors: not weights of this model"):
        build_backbone("mobilenetv3_small_050", str(tmp_path / "w.safetensors"), {}, 64)


def test_folding_normalisation_changes_nothing() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("mobilenetv3_small_050", None, {}, 64)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    backbone.eval()
    image = torch.randn(2, 3, 64, 64)
    before = backbone(image)
    assert fold_norms(backbone, 64) > 20
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())
    for old, new in zip(before, backbone(image), strict=True):
        torch.testing.assert_close(old, new, rtol=1e-4, atol=1e-4)


def test_folding_is_taken_back_when_layers_are_not_in_order() -> None:
    class Crossed(torch.nn.Module):
        """Registers the norms in the order opposite to their use."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm_b = torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.BatchNorm2d(4)
            self.b, self.norm_a = torch.nn.Conv2d(4, 4, 1, bias=False), torch.nn.BatchNorm2d(4)
            self.norm_a.running_mean.fill_(3.0)  # type: ignore[union-attr]

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.norm_b(self.b(self.norm_a(self.a(x)).relu()))]

    network = Crossed().eval()
    image = torch.randn(1, 3, 16, 16)
    before = network(image)[0]
    assert fold_norms(network, 16) == 0
    assert torch.equal(before, network(image)[0])


def test_early_layers_are_those_that_the_first_maps_depend_on() -> None:
    backbone = build_backbone("resnet10t", None, {}, 64)
    early = {id(p) for p in early_layers(backbone, 2)}
    names = [n for n, p in backbone.named_parameters() if id(p) in early]
    assert any(n.startswith("layer1") for n in names)
    assert not any(n.startswith(("layer2", "layer3", "layer4")) for n in names)


def test_attention_across_scales_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    full = HierarchicalAttention((8, 16), 32, layers=1, heads=2, grid=2, dropout=0.0).eval()
    plain = HierarchicalAttention((8, 16), 32, layers=0, heads=2, grid=2, dropout=0.0, enabled=False).eval()
    plain.load_state_dict({k: v for k, v in full.state_dict().items() if k in plain.state_dict()}, strict=False)
    maps = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
    for with_attention, without in zip(full(maps), plain(maps), strict=True):
        assert torch.equal(with_attention, without)
    torch.nn.init.ones_(full.gate)
    assert not torch.allclose(full(maps)[0], plain(maps)[0])


def test_scales_hear_each_other_once_the_gate_opens() -> None:
    torch.manual_seed(0)
    attention = HierarchicalAttention((8, 8), 32, layers=1, heads=2, grid=2, dropout=0.0).eval()
    torch.nn.init.ones_(attention.gate)
    fine, coarse = torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4)
    assert not torch.allclose(attention([fine, coarse])[0], attention([fine, coarse * 2 + 1])[0])


def test_positions_do_not_depend_on_the_size() -> None:
    small, large = sine_positions(2, 2, 16), sine_positions(4, 4, 16).view(4, 4, 16)
    centre = large[:2, :2].mean((0, 1))
    assert torch.nn.functional.cosine_similarity(small[0], centre, dim=0) > 0.5
    assert sine_positions(3, 5, 18).shape == (15, 18)


def test_pyramid_carries_meaning_down() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid(3, 16).eval()
    maps = [torch.randn(1, 16, s, s) for s in (8, 4, 2)]
    changed = [*maps[:2], maps[2] + 1]
    assert [o.shape for o in pyramid(maps)] == [m.shape for m in maps]
    assert not torch.allclose(pyramid(maps)[0], pyramid(changed)[0])


def test_locations_are_centres_of_cells() -> None:
    points, strides = locations([(2, 3), (1, 2)], (8, 16), torch.device("cpu"))
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8], [24, 8]]
    assert strides.tolist() == [8.0] * 6 + [16.0] * 2


def test_head_predicts_boxes_around_their_locations() -> None:
    head = DetectionHead(16, 3, (8, 16), 1).eval()
    dense = head([torch.randn(2, 16, 4, 4), torch.randn(2, 16, 2, 2)])
    assert dense.logits.shape == (2, 20, 3)
    low, high = dense.boxes_xyxy[..., :2], dense.boxes_xyxy[..., 2:]
    assert (low < dense.points).all()
    assert (high > dense.points).all()
    assert 0.001 < dense.logits.sigmoid().mean() < 0.05  # the prior of focal loss


def test_a_head_may_read_fewer_maps() -> None:
    head = DetectionHead(16, 3, (8, 16, 32), 1, use=(16,)).eval()
    dense = head([torch.randn(2, 16, 8, 8), torch.randn(2, 16, 4, 4), torch.randn(2, 16, 2, 2)])
    assert dense.logits.shape == (2, 16, 3)
    assert set(dense.strides.tolist()) == {16.0}


def test_boxes_are_suppressed_within_a_class_and_clipped() -> None:
    boxes = torch.tensor([[[-5.0, 4, 20, 20], [0, 4, 20, 21], [0, 4, 20, 20], [40, 40, 60, 60]]])
    logits = torch.tensor([[[4.0, -9], [3, -9], [-9, 3], [2, -9]]])
    dense = DenseDetections(logits, torch.full((1, 4), 4.0), boxes, torch.zeros(4, 2), torch.ones(4))
    (found,) = select_boxes(dense, 64, 0.3, 0.5)
    assert found.classes.tolist() == [0, 1, 0]
    assert found.boxes_xyxy[0].tolist() == [0, 4, 20, 20]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
