"""The training loss, term by term: named, unweighted, and without what is unknown.

    L = w_lm * report + w_box * detection + w_cls * findings
        + w_imp * implication + w_exc * exclusion + w_align * alignment + w_keep * retention

The knowledge term has three parts, each with a weight of its own in `training.loss`: tokens inside a concept's mention
weigh more in `report_loss` (`concept_weight`), finding probabilities respect the graph (`implication`, `exclusion`),
and each finding's image evidence is pulled toward its concept's text (`alignment`). Their derivations and gradients
stand with the functions; `tests/vlm/test_loss_terms.py` works each by hand.

A term that nothing in the batch speaks of is left out of the result; it is never zero by default, so a mean over
batches is right.

With several processes a term is a sum over this process's studies divided by its count over all of them (`share`): the
mean of the processes' gradients, which is what data-parallel training takes, is then the gradient of one process with
the whole batch, however unevenly tokens and labels are spread.

Shapes: B studies, T images, A locations, K box classes, F findings, M labelled report positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

if TYPE_CHECKING:
    from vlm.types import StudyBatch

RANGES = {8: (0.0, 48.0), 16: (48.0, 96.0), 32: (96.0, 1e9)}
"""Longest side (pixels of the model's input) of the boxes that each stride is responsible for."""


def share(count: Tensor) -> Tensor:
    """A count averaged over the processes of a run; with one process, the count itself.

    Every process must call it the same number of times in the same order, so terms ask for their counts before they
    look whether they have anything to say.
    """
    total = count.detach().to(torch.float32)
    if processes() > 1:
        total = total.clone()
        dist.all_reduce(total)
        total /= processes()
    return total


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def report_loss(logits: Tensor, index: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the report's tokens, weighted: the first part of the knowledge term lies in the weights.

    Tokens inside a concept's mention carry the weight c = `concept_weight` >= 1, all others 1; with p_t the probability
    of token t, L = -sum_t w_t log p_t / sum_t w_t. It is maximum likelihood on a corpus in which each concept token
    stands c times, so c = 1 is the plain loss. Divided by sum_t w_t, the size of L does not depend on c: raising it
    moves gradient from common words to medical ones. With z the logits and y_t the token,
    dL/dz_tv = w_t / sum_s w_s * (p_t(v) - [v = y_t]). Own formula, after importance-weighted likelihood.

    Args:
        logits: (M, vocabulary). index: (M,) flat positions in labels. labels, weights: (B, R).
        smoothing: label smoothing in [0, 1).
    """
    nll = F.cross_entropy(logits, labels.flatten()[index], reduction="none", label_smoothing=smoothing)
    w = weights.flatten()[index]
    return (nll * w).sum() / share(w.sum()).clamp_min(1e-6)


def reward_loss(logits: Tensor, index: Tensor, labels: Tensor, advantages: Tensor) -> Tensor:
    """Policy gradient of drawn reports: L = -sum_t A_t log p_t / T, with T the tokens that were drawn.

    A drawn report that was rewarded more than the baseline (A > 0) becomes more likely, one that was rewarded less
    becomes less so (Rennie et al. 2017, arXiv:1612.00563).

    Args:
        logits: (M, vocabulary). index: (M,) flat positions in labels. labels, advantages: (B, R); every token of a
            report carries the report's advantage.
    """
    nll = F.cross_entropy(logits, labels.flatten()[index], reduction="none")
    count = share(torch.tensor(len(index), device=logits.device))
    return (nll * advantages.flatten()[index]).sum() / count.clamp_min(1.0)


def finding_loss(logits: Tensor, targets: Tensor, positive_weight: Tensor | None = None) -> Tensor | None:
    """Binary cross-entropy over the labels that are known.

    Args:
        logits: (B, F). targets: (B, F) 1, 0 or NaN for unknown. positive_weight: (F,) weight of a positive, for rare
            findings.
    """
    known = ~targets.isnan()
    count = share(known.sum())
    if not count:
        return None
    loss = F.binary_cross_entropy_with_logits(
        logits, targets.nan_to_num(0.0), reduction="none", pos_weight=positive_weight
    )
    return loss[known].sum() / count


def retention_loss(logits: Tensor, start: Tensor, targets: Tensor) -> Tensor | None:
    """Keeps what the starting checkpoint said where nobody says better: learning without forgetting (Li and Hoiem
    2016, arXiv:1606.09282), for findings.

    Over the labels that a study leaves unknown, L = mean KL(q || p), with q = sigmoid(start) and p = sigmoid(logits): 0
    at the first step, and dL/dz = (p - q) / n. Departs from the paper in that findings are yes or no each (no softmax,
    so no temperature), and that the start sees the very image that is learnt from, varied alike.

    Args:
        logits, start: (B, F). targets: (B, F) 1, 0 or NaN for unknown.
    """
    unknown = targets.isnan()
    count = share(unknown.sum())
    if not count:
        return None
    q = start.float().sigmoid()
    bits = F.binary_cross_entropy_with_logits
    loss = bits(logits.float(), q, reduction="none") - bits(start.float(), q, reduction="none")
    return loss[unknown].sum() / count


def implication_loss(logits: Tensor, implies: Tensor) -> Tensor | None:
    """A child implies its parent: p(child) <= p(parent). The second part of the knowledge term, with `exclusion_loss`.

    In Lukasiewicz logic the truth of a -> b is min(1, 1 - a + b); what it lacks to 1 is relu(a - b). Over the n edges,
    L = mean relu(p_child - p_parent) (the distance to satisfaction of probabilistic soft logic: Bach et al. 2017,
    arXiv:1505.04406, with weights of 1). Where the rule is broken, with p = sigmoid(z), dL/dz_child = p_child (1 -
    p_child) / n and dL/dz_parent = -p_parent (1 - p_parent) / n; where it holds, both are 0. It needs no label: it
    speaks of unknown findings too.

    Args:
        logits: (B, F). implies: (n, 2) child and parent indices; empty where no label lies below another.
    """
    if not len(implies):
        return None
    p = logits.sigmoid()
    studies = share(torch.tensor(len(logits), device=logits.device))
    return (p[:, implies[:, 0]] - p[:, implies[:, 1]]).relu().sum() / (studies * len(implies))


def exclusion_loss(logits: Tensor, excludes: Tensor) -> Tensor | None:
    """Exclusive findings exclude each other: p(a) + p(b) <= 1.

    In Lukasiewicz logic the truth of "a and b" is max(0, a + b - 1); what "not (a and b)" lacks to 1 is just that. Over
    the m pairs, L = mean relu(p_a + p_b - 1) (source as in `implication_loss`). Where the rule is broken, dL/dz_a = p_a
    (1 - p_a) / m and likewise for b: both fall, the less certain one faster; where it holds, both are 0.

    Args:
        logits: (B, F). excludes: (m, 2) pairs of indices.
    """
    if not len(excludes):
        return None
    p = logits.sigmoid()
    studies = share(torch.tensor(len(logits), device=logits.device))
    return (p[:, excludes[:, 0]] + p[:, excludes[:, 1]] - 1).relu().sum() / (studies * len(excludes))


def alignment_loss(similarity: Tensor, targets: Tensor) -> Tensor | None:
    """Pulls a finding's evidence toward the text of what is true of it: its term when present, "no term" when absent.
    The third part of the knowledge term.

    With s_fk the cosine of evidence f and text k over the temperature, and y the text that is true, the loss of one
    finding is -log softmax_k(s_f)_y: the contrastive bound of van den Oord et al. 2018 (arXiv:1807.03748), one-sided as
    the 2F texts are the same for every study. y = f for a present and F + f for an absent finding; unknown ones take no
    part. Absent findings outnumber present ones by far, so with P present and A absent ones L = (sum over present / P +
    sum over absent / A) / 2, and dL/ds_fk = (softmax_k(s_f) - [k = y]) / 2P (or 2A). With only one kind in the batch
    the halving falls away.

    Args:
        similarity: (B, F, 2F) logits. targets: (B, F) 1, 0 or NaN.
    """
    labels = torch.arange(targets.shape[1], device=targets.device).expand_as(targets)
    terms = []
    for value, offset in ((1.0, 0), (0.0, targets.shape[1])):
        chosen = targets == value
        count = share(chosen.sum())
        if count:
            terms.append(F.cross_entropy(similarity[chosen], labels[chosen] + offset, reduction="sum") / count)
    return torch.stack(terms).mean() if terms else None


@dataclass(slots=True)
class _Assigned:
    """Targets at every location of one image: class one-hot (A, K), box (A, 4), positive (A,)."""

    classes: Tensor
    boxes: Tensor
    positive: Tensor


def assign_targets(points: Tensor, strides: Tensor, boxes: Tensor, classes: Tensor, kinds: int) -> _Assigned:
    """Which locations answer for which box.

    A location answers for a box when it lies inside it, within 1.5 strides of its centre, and its stride covers the
    box's longest side (`RANGES`); of several boxes the smallest wins. The location nearest to a box's centre at its
    stride always answers, or a lesion smaller than a cell would have none.

    Args:
        points: (A, 2). strides: (A,). boxes: (n, 4) x1, y1, x2, y2. classes: (n,). kinds: K.
    """
    one_hot = points.new_zeros(len(points), kinds)
    target = points.new_zeros(len(points), 4)
    if not len(boxes):
        return _Assigned(one_hot, target, torch.zeros(len(points), dtype=torch.bool, device=points.device))
    longest = (boxes[:, 2:] - boxes[:, :2]).amax(1)  # (n,)
    present = strides.unique()
    low = points.new_tensor([RANGES[int(s)][0] for s in present])
    high = points.new_tensor([RANGES[int(s)][1] for s in present])
    low[0], high[-1] = 0.0, float("inf")  # a head that reads fewer maps answers for every size all the same
    high[:-1] = low[1:]
    level = torch.searchsorted(present, strides)
    fits = (longest >= low[level][:, None]) & (longest < high[level][:, None])  # (A, n)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    offset = (points[:, None] - centre).abs()  # (A, n, 2)
    inside = ((points[:, None] > boxes[:, :2]) & (points[:, None] < boxes[:, 2:])).all(-1)
    answers = fits & inside & (offset.amax(-1) < 1.5 * strides[:, None])
    distance = offset.square().sum(-1).masked_fill(~fits, float("inf"))
    nearest = distance.argmin(0)
    answers[nearest, torch.arange(len(boxes), device=points.device)] = True
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    cost = area.expand(len(points), -1).masked_fill(~answers, float("inf"))
    smallest, which = cost.min(1)
    positive = smallest.isfinite()
    one_hot[positive] = F.one_hot(classes[which[positive]], kinds).to(one_hot.dtype)
    target[positive] = boxes[which[positive]]
    return _Assigned(one_hot, target, positive)


def detection_loss(
    logits: Tensor, quality: Tensor, boxes: Tensor, points: Tensor, strides: Tensor, batch: StudyBatch
) -> dict[str, Tensor]:
    """Focal loss on classes that somebody looked for, GIoU on boxes, and the head's own IoU.

    Args:
        logits (T, A, K), quality (T, A), boxes (T, A, 4), points (A, 2), strides (A,): the head's output.
        batch: `boxes_xyxy`, `box_classes` and `box_known` are read. Images in which nobody looked for anything take no
            part.

    Returns:
        "box_class", "box_giou", "box_quality"; empty when nobody looked at any image.
    """
    looked = batch.box_known.any(1).nonzero(as_tuple=True)[0]
    anywhere = share(torch.tensor(len(looked), device=logits.device))
    if not anywhere:
        return {}
    if not len(looked):  # another process has looked: its counts are asked for here too
        share(anywhere.new_zeros(()))
        return {}
    assigned = [
        assign_targets(points, strides, batch.boxes_xyxy[i], batch.box_classes[i], logits.shape[2])
        for i in looked.tolist()
    ]
    classes = torch.stack([a.classes for a in assigned])  # (t, A, K)
    positive = torch.stack([a.positive for a in assigned])  # (t, A)
    count = share(positive.sum())
    focal = sigmoid_focal_loss(logits[looked], classes, alpha=0.5, gamma=2.0)
    losses = {"box_class": (focal * batch.box_known[looked][:, None]).sum() / count.clamp_min(1.0 / processes())}
    if positive.any():
        predicted, wanted = boxes[looked][positive], torch.stack([a.boxes for a in assigned])[positive]
        giou = generalized_box_iou_loss(predicted, wanted)
        losses["box_giou"] = giou.sum() / count
        with torch.no_grad():
            overlap = _paired_iou(predicted, wanted)
        losses["box_quality"] = (
            F.binary_cross_entropy_with_logits(quality[looked][positive], overlap, reduction="sum") / count
        )
    return losses


def _paired_iou(a: Tensor, b: Tensor) -> Tensor:
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp_min(0).prod(1)
    return shared / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared).clamp_min(1e-6)
