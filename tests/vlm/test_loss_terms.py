"""Losses against values worked by hand, and unknown labels that take no part."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from knowledge.graph import KnowledgeGraph
from vlm import losses
from vlm.checkpoint import load_checkpoint
from vlm.models.detection import locations
from vlm.steps import graph_rules
from vlm.types import StudyBatch

NAN = float("nan")


def test_report_loss_weighs_concept_tokens() -> None:
    # Two positions over two words, logits 0: every token costs ln 2; with logits (ln 3, 0) the first costs ln(4/3).
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    labels, weights = torch.tensor([[0, 1, -100]]), torch.tensor([[2.0, 1.0, 5.0]])
    loss = losses.report_loss(logits, torch.tensor([0, 1]), labels, weights)
    assert loss.item() == pytest.approx((2 * math.log(4 / 3) + math.log(2)) / 3)


def test_unknown_findings_take_no_part() -> None:
    logits = torch.tensor([[0.0, 5.0, -5.0]], requires_grad=True)
    loss = losses.finding_loss(logits, torch.tensor([[1.0, NAN, NAN]]))
    assert loss is not None
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.tolist()[0] == pytest.approx([-0.5, 0.0, 0.0])
    assert losses.finding_loss(logits, torch.full((1, 3), NAN)) is None


def test_gradient_of_the_concept_weight_by_hand() -> None:
    # Two tokens over two words; z = (ln 3, 0) gives p = (3/4, 1/4), z = (0, 0) gives (1/2, 1/2). The first token lies
    # in a mention and weighs 2: w / sum w = 2/3 and 1/3. dL/dz = w / sum w * (p - [v = y]):
    #   first, y = 0: 2/3 * (3/4 - 1, 1/4) = (-1/6, 1/6); second, y = 1: 1/3 * (1/2, 1/2 - 1) = (1/6, -1/6).
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]], requires_grad=True)
    labels, weights = torch.tensor([[0, 1]]), torch.tensor([[2.0, 1.0]])
    losses.report_loss(logits, torch.tensor([0, 1]), labels, weights).backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([-1 / 6, 1 / 6, 1 / 6, -1 / 6])


def test_gradient_of_the_implication_by_hand() -> None:
    # p = 0.9 (child of both), 0.5, 0.95. 0.9 <= 0.5 is broken by 0.4, 0.9 <= 0.95 holds: L = (0.4 + 0) / 2.
    # d sigmoid / dz = p (1 - p): child 0.09 / 2, first parent -0.25 / 2, second 0.
    logits = torch.logit(torch.tensor([[0.9, 0.5, 0.95]])).requires_grad_()
    loss = losses.implication_loss(logits, torch.tensor([[0, 1], [0, 2]]))
    assert loss is not None
    assert loss.item() == pytest.approx(0.2, abs=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.tolist()[0] == pytest.approx([0.045, -0.125, 0.0], abs=1e-6)
    assert losses.implication_loss(logits, torch.empty(0, 2, dtype=torch.long)) is None


def test_gradient_of_the_exclusion_by_hand() -> None:
    # p = 0.9, 0.75, 0.05. 0.9 + 0.75 - 1 = 0.65 is too much, 0.9 + 0.05 is not: L = (0.65 + 0) / 2.
    # Gradients p (1 - p) / 2: 0.045 for the first, 0.1875 / 2 for the second, 0 for the third.
    logits = torch.logit(torch.tensor([[0.9, 0.75, 0.05]])).requires_grad_()
    loss = losses.exclusion_loss(logits, torch.tensor([[0, 1], [0, 2]]))
    assert loss is not None
    assert loss.item() == pytest.approx(0.325, abs=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.tolist()[0] == pytest.approx([0.045, 0.09375, 0.0], abs=1e-6)
    assert losses.exclusion_loss(logits, torch.empty(0, 2, dtype=torch.long)) is None


def test_gradient_of_the_alignment_by_hand() -> None:
    # Two findings, four texts; the first present, the second absent, so the targets are texts 0 and 3.
    #   first: softmax (2, 1, 1, 1) / 5, loss ln(5/2), gradient (2/5 - 1, 1/5, 1/5, 1/5) / 2
    #   second: softmax (1, 1, 1, 3) / 6, loss ln 2, gradient (1/6, 1/6, 1/6, 1/2 - 1) / 2
    similarity = torch.tensor([[[math.log(2.0), 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, math.log(3.0)]]], requires_grad=True)
    loss = losses.alignment_loss(similarity, torch.tensor([[1.0, 0.0]]))
    assert loss is not None
    assert loss.item() == pytest.approx((math.log(5 / 2) + math.log(6 / 3)) / 2)
    loss.backward()
    assert similarity.grad is not None
    assert similarity.grad[0, 0].tolist() == pytest.approx([-0.3, 0.1, 0.1, 0.1])
    assert similarity.grad[0, 1].tolist() == pytest.approx([1 / 12, 1 / 12, 1 / 12, -0.25])
    assert losses.alignment_loss(similarity, torch.tensor([[NAN, NAN]])) is None


def test_the_graph_gives_the_rules(tiny_checkpoint_folder: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint_folder)
    implies, excludes = graph_rules(checkpoint)
    labels = checkpoint.labels
    pairs = {frozenset((labels[a], labels[b])) for a, b in excludes.tolist()}
    assert {"normal", "pneumothorax"} in pairs
    assert {"hypoinflation", "hyperinflation"} in pairs
    assert not len(implies), "no label of the shipped view lies below another"
    view = {"parenchymal_finding": ("parenchymal_finding",), "pneumonia": ("pneumonia", "consolidation"),
            "infection": ("infection",), "normal": ("normal",)}  # fmt: skip
    graph = checkpoint.graph
    own = KnowledgeGraph(graph.concepts, graph.edges, {"radscribe": view}, check=False)
    implies, excludes = graph_rules(replace(checkpoint, graph=own, labels=tuple(view)))
    assert [1, 0] in implies.tolist()
    assert all(child != parent for child, parent in implies.tolist())
    assert [1, 3] in excludes.tolist()


def test_locations_answer_for_the_box_of_their_size() -> None:
    points, strides = locations([(8, 8), (4, 4), (2, 2)], (8, 16, 32), torch.device("cpu"))
    boxes = torch.tensor([[17.0, 17.0, 30.0, 30.0], [0.0, 0.0, 60.0, 60.0], [50.0, 50.0, 53.0, 53.0]])
    assigned = losses.assign_targets(points, strides, boxes, torch.tensor([1, 0, 2]), 3)
    small = assigned.positive & (assigned.classes[:, 1] == 1)
    assert set(strides[small].tolist()) == {8.0}
    large = assigned.positive & (assigned.classes[:, 0] == 1)
    assert set(strides[large].tolist()) == {16.0}
    tiny = (assigned.classes[:, 2] == 1).nonzero()
    assert points[tiny].flatten().tolist() == [52.0, 52.0]  # smaller than a cell: the nearest one answers
    assert assigned.boxes[small][0].tolist() == [17, 17, 30, 30]


def test_one_map_alone_answers_for_boxes_of_every_size() -> None:
    points, strides = locations([(16, 16)], (16,), torch.device("cpu"))
    boxes = torch.tensor([[17.0, 17.0, 30.0, 30.0], [40.0, 40.0, 250.0, 250.0]])
    assigned = losses.assign_targets(points, strides, boxes, torch.tensor([1, 0]), 2)
    assert points[assigned.classes[:, 1] == 1].tolist() == [[24.0, 24.0]]
    assert points[assigned.classes[:, 0] == 1].mean(0).tolist() == pytest.approx([144, 144], abs=8)


def batch(known: list[list[bool]], boxes: list[list[list[float]]]) -> StudyBatch:
    empty = torch.zeros(len(known), 0, dtype=torch.long)
    return StudyBatch(
        ids=tuple(str(i) for i in range(len(known))),
        pixel_values=None,
        image_study=torch.arange(len(known)),
        image_slot=torch.zeros(len(known), dtype=torch.long),
        view=torch.zeros(len(known), dtype=torch.long),
        prompt_ids=empty,
        prompt_mask=empty.bool(),
        report_ids=empty,
        report_mask=empty.bool(),
        report_labels=empty,
        report_weights=empty.float(),
        finding_targets=torch.zeros(len(known), 1),
        boxes_xyxy=tuple(torch.tensor(b).reshape(-1, 4) for b in boxes),
        box_classes=tuple(torch.zeros(len(b), dtype=torch.long) for b in boxes),
        box_known=torch.tensor(known),
    )


def test_classes_that_nobody_looked_for_are_not_negatives() -> None:
    points, strides = locations([(4, 4)], (8,), torch.device("cpu"))
    logits = torch.zeros(2, 16, 2, requires_grad=True)
    quality, boxes = torch.zeros(2, 16), torch.zeros(2, 16, 4)
    terms = losses.detection_loss(
        logits, quality, boxes, points, strides, batch([[True, False], [False, False]], [[], []])
    )
    terms["box_class"].backward()
    assert logits.grad is not None
    assert logits.grad[0, :, 0].abs().min() > 0
    assert logits.grad[0, :, 1].abs().max() == 0
    assert logits.grad[1].abs().max() == 0
    assert "box_giou" not in terms
    assert losses.detection_loss(logits, quality, boxes, points, strides, batch([[False, False]] * 2, [[], []])) == {}


def test_a_perfect_box_costs_nothing() -> None:
    points, strides = locations([(4, 4)], (8,), torch.device("cpu"))
    truth = [8.0, 8.0, 24.0, 24.0]
    boxes = torch.tensor(truth).expand(1, 16, 4)
    terms = losses.detection_loss(
        torch.zeros(1, 16, 1), torch.full((1, 16), 20.0), boxes, points, strides, batch([[True]], [[truth]])
    )
    assert terms["box_giou"].item() == pytest.approx(0.0, abs=1e-5)
    assert terms["box_quality"].item() == pytest.approx(0.0, abs=1e-5)
