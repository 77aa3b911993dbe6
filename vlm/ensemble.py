"""Several checkpoints, or several adapters on one, that see and write a report together.

Image half. A finding's probability is the mean of the members' calibrated probabilities (Lakshminarayanan et al. 2017,
arXiv:1612.01474), not of their logits: one member that is sure and wrong then moves the mean less far. A label counts
the members that learnt it in the study's modality; one that none learnt is left out. Cuts are averaged likewise, in
probability: where every member lies just at its own cut, the ensemble lies just at its own. A member without an upper
cut (above 1: nothing is certain enough for it) makes the ensemble's higher, never lower. No data set has confirmed
these cuts, and the mean of calibrated members is a little underconfident (Rahaman and Thiery 2021, arXiv:2007.08792).
Attention maps are averaged; boxes are fused by weighted boxes fusion (Solovyev et al. 2021, arXiv:1910.13302).

Text half. The next token's probabilities are averaged at every step of one search (`generation.ensemble_stepper`). Each
member has a prompt of its own making, with its own image and evidence tokens; "Seen:" names what the ensemble found.
How reports are written (beams, length, samples) is the first member's `generation` section.

N members cost N times the time and the prompts' memory; weights that are equal bit for bit are held once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import box_iou

from vlm.adapter_folder import apply_adapter
from vlm.checkpoint import Checkpoint, load_checkpoint
from vlm.data.batches import Collator, move
from vlm.data.examples import Example
from vlm.generation.evidence import Evidence
from vlm.generation.steering import NEUTRAL, Threshold
from vlm.models.detection import select_boxes
from vlm.request import GenerationSettings
from vlm.seeing import Seen, Seer, example_builder
from vlm.types import Box, InputError, Study, StudyBatch, StudyImage
from vlm.writing import Look

OVERLAP = 0.55
"""IoU above which boxes are one: the value of the paper's experiments."""


class Member:
    """One checkpoint and its way from a study to what it sees.

    Args:
        checkpoint: loaded, in evaluation mode.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.model = checkpoint, checkpoint.model
        self.builder = example_builder(checkpoint)
        self.collate = Collator(self.builder)
        self.seer = Seer(checkpoint)
        self.device = next(self.model.parameters()).device

    @property
    def reading(self) -> str:
        """What decides how a study becomes an example: members that agree in it share examples."""
        return f"{self.builder.config.model_dump_json(exclude={'train', 'validation', 'replay'})} {self.builder.begin}"

    def look(self, study: Study, example: Example, settings: GenerationSettings) -> tuple[Look, Seen]:
        """The image half of one study, by itself.

        Raises:
            InputError: an image that cannot be read, or shows nothing.
        """
        batch: StudyBatch = move(self.collate([example]), self.device)
        if settings.blank and batch.pixel_values is not None:
            batch.pixel_values = torch.full_like(batch.pixel_values, 0.5)
        image = self.model.encode(batch)
        (seen,) = self.seer.see(image, batch, [example], settings.attention)
        image.dense, batch.pixel_values = None, None  # no longer needed, and large
        return Look(example, image, batch), seen

    @torch.inference_mode()
    def lesion_score(self, image: StudyImage) -> float:
        """The score of the surest box on one image, of the findings that the checkpoint learnt.

        Raises:
            InputError: the image shows nothing.
        """
        detection = self.checkpoint.config.model.detection
        example = self.builder.build(Study("slice", [image]))
        dense = self.model.encode(move(self.collate([example]), self.device)).dense
        assert dense is not None
        (found,) = select_boxes(dense, example.size, 0.0, detection.nms_iou)
        spoken = self.checkpoint.calibration.modalities.get(example.modality.value, self.checkpoint.labels)
        pairs = zip(found.scores.tolist(), found.classes.tolist(), strict=True)
        return max((score for score, kind in pairs if detection.labels[kind] in spoken), default=0.0)


def load_members(folders: Sequence[Path | None], adapters: Sequence[Path] = ()) -> tuple[list[Checkpoint], list[str]]:
    """Loads the members of a pipeline, and what to call them.

    Several checkpoints are a member each. Several adapters on one checkpoint are a member each; with as many adapters
    as checkpoints the first goes on the first, and so on.

    Args:
        folders: of checkpoints; None or nothing for the shipped one. adapters: to put on them.

    Raises:
        InputError: a folder that is damaged or does not fit, or numbers that don't match.
    """
    bases = list(folders) or [None]
    if adapters and len(bases) not in (1, len(adapters)):
        raise InputError(
            f"--checkpoint {len(bases)} times and --adapter {len(adapters)} times: give one checkpoint for all "
            "adapters, or an adapter for each checkpoint"
        )
    pairs: list[tuple[Path | None, Path | None]] = [(base, None) for base in bases]
    if adapters:
        pairs = list(zip(bases if len(bases) > 1 else bases * len(adapters), adapters, strict=True))
    members = []
    for base, adapter in pairs:
        checkpoint = load_checkpoint(base)
        members.append(checkpoint if adapter is None else apply_adapter(checkpoint, adapter))
    names = [str(adapter or base or "the shipped checkpoint") for base, adapter in pairs]
    check_members(members, names)
    share_weights(members)
    return members, names


def check_members(members: Sequence[Checkpoint], names: Sequence[str]) -> None:
    """Members must speak of the same findings in the same tokens and sections.

    Raises:
        InputError: naming the two and what differs.
    """
    first = _shared(members[0])
    for member, name in zip(members[1:], names[1:], strict=True):
        for what, value in _shared(member).items():
            if value != first[what]:
                raise InputError(
                    f"{name}: can't write together with {names[0]}: another {what} ({_difference(first[what], value)})"
                )


def _shared(checkpoint: Checkpoint) -> dict[str, object]:
    """What members of an ensemble must agree in, by the name that a message gives it."""
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    detection = config.model.detection
    return {
        "list of findings": checkpoint.labels,
        "knowledge graph": checkpoint.graph.hash[:12],
        "list of boxed findings": detection.labels if detection.enabled else (),
        "order of report sections": tuple(config.data.report_sections),
        "tokenizer": tokenizer.get_vocab(),
        "end token": tokenizer.eos_token_id,
    }


def _difference(one: object, other: object) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        if len(one) != len(other):
            return f"{len(other)} tokens, not {len(one)}"
        token = min(t for t in {*one, *other} if one.get(t) != other.get(t))
        return f"{token!r} is {other.get(token)}, not {one.get(token)}"
    if isinstance(one, tuple) and isinstance(other, tuple):
        if set(one) == set(other):
            return f"{', '.join(other[:4])}, not {', '.join(one[:4])}"
        return ", ".join([f"without {n}" for n in one if n not in other] + [f"with {n}" for n in other if n not in one])
    return f"{other}, not {one}"


def share_weights(members: Sequence[Checkpoint]) -> None:
    """Lets members hold once what is equal in them, such as the frozen base of several adapters."""
    held: dict[str, torch.Tensor] = {}
    for member in members:
        for name, weight in member.model.named_parameters():
            if type(weight) is not nn.Parameter:  # held in few bits, with scales beside it
                continue
            first = held.setdefault(name, weight.data)
            if first.shape == weight.shape and first.dtype == weight.dtype and torch.equal(first, weight.data):
                weight.data = first


def joined(members: Sequence[Checkpoint]) -> Checkpoint:
    """What the writer reads of an ensemble: the first member, with the ensemble's cuts of the prompt and its own
    hash."""
    if len(members) == 1:
        return members[0]
    first = members[0]
    seen = {n: fmean(m.calibration.seen.get(n, 0.5) for m in members) for n in first.labels}
    digest = hashlib.sha256("\n".join(m.hash for m in members).encode()).hexdigest()
    return replace(first, calibration=replace(first.calibration, seen=seen), hash=digest)


def join_seen(seen: Sequence[Seen], labels: Sequence[str], overlap: float = OVERLAP) -> Seen:
    """What an ensemble sees of one study.

    Args:
        seen: of each member, of the same images. labels: the finding list. overlap: of boxes that are one.
    """
    first = seen[0].evidence
    speakers = {n: [s for s in seen if n in s.evidence.probabilities] for n in labels}
    spoken = {n: own for n, own in speakers.items() if own}
    cuts = dict(first.thresholds or {})
    for name, own in spoken.items():
        each = [s.evidence.cut(name) for s in own]
        cuts[name] = Threshold(fmean(c.lower for c in each), fmean(c.upper for c in each))
    boxes = fuse_boxes([s.boxes for s in seen], {n: len(own) for n, own in spoken.items()}, overlap)
    evidence = Evidence(
        {n: fmean(s.evidence.probabilities[n] for s in own) for n, own in spoken.items()},
        boxes,
        first.widths,
        {n: cuts.get(n, NEUTRAL) for n in labels},
        fmean(s.evidence.least for s in seen),
        (fmean(s.evidence.platt[0] for s in seen), fmean(s.evidence.platt[1] for s in seen)),
    )
    maps = {n: [s.attention[n] for s in own if n in s.attention] for n, own in spoken.items()}
    return Seen(evidence, boxes, {n: mean_map(own) for n, own in maps.items() if own})


def mean_map(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of attention maps (V, h, w), each summing to 1; those of another size are brought to the first's."""
    shape = maps[0].shape
    if all(m.shape == shape for m in maps):
        return np.asarray(np.mean(maps, axis=0, dtype=np.float64), np.float32)
    sized = [functional.interpolate(torch.from_numpy(m)[None], shape[1:], mode="bilinear")[0].numpy() for m in maps]
    shares = [m / max(float(m.sum()), 1e-9) for m in sized]
    return np.asarray(np.mean(shares, axis=0, dtype=np.float64), np.float32)


def fuse_boxes(
    found: Sequence[Sequence[Box]], voices: Mapping[str, int] | None = None, overlap: float = OVERLAP
) -> tuple[Box, ...]:
    """Weighted boxes fusion, label by label and image by image.

    In the order of falling confidence each box joins the fused box of highest IoU above `overlap`, or begins one. A
    fused box's corners are the mean of its boxes', weighted by confidence; its confidence is theirs' mean, times
    min(T, M) / M for T boxes of M members: what one member alone saw counts the less, the more members looked.

    Args:
        found: boxes of each member, with confidences, in pixels of the same images.
        voices: label -> M; None for all members.

    Returns:
        By falling confidence.
    """
    groups: dict[tuple[int, str], list[Box]] = {}
    for boxes in found:
        for box in boxes:
            groups.setdefault((box.image, box.label), []).append(box)
    out = []
    for (image, label), own in groups.items():
        members = (voices or {}).get(label, len(found))
        corners = torch.tensor([b.xyxy for b in own], dtype=torch.float64)
        confidence = torch.tensor([b.confidence or 0.0 for b in own], dtype=torch.float64)
        for xyxy, score in _fused(corners, confidence, members, overlap):
            x1, y1, x2, y2 = (round(v, 1) for v in xyxy)
            out.append(Box((x1, y1, x2, y2), label, image, round(score, 4)))
    return tuple(sorted(out, key=lambda b: -(b.confidence or 0)))


def _fused(
    corners: torch.Tensor, confidence: torch.Tensor, members: int, overlap: float
) -> list[tuple[list[float], float]]:
    """Fused boxes of one label in one image: corners (n, 4) and confidences (n,) -> corners and confidence of each."""
    clusters: list[list[int]] = []
    fused = corners[:0]
    weight = confidence.clamp_min(1e-6)[:, None]
    for index in confidence.argsort(descending=True, stable=True).tolist():
        near = box_iou(corners[index : index + 1], fused)[0]  # (clusters,)
        best = int(near.argmax()) if len(near) else -1
        if best < 0 or near[best] <= overlap:
            clusters.append([index])
            fused = torch.cat([fused, corners[index : index + 1]])
            continue
        own = clusters[best]
        own.append(index)
        fused[best] = (corners[own] * weight[own]).sum(0) / weight[own].sum()
    scores = [float(confidence[own].mean()) * min(len(own), members) / members for own in clusters]
    return list(zip(fused.tolist(), scores, strict=True))
