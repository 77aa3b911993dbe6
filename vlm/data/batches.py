"""Examples -> tensors: padding, augmentation, and batches of one image size and of like length.

Shapes: B studies, T images, S pixels, N prompt and R report tokens, F findings, K box classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vlm.data.augment import augment, mix
from vlm.data.channels import as_channels
from vlm.data.examples import Example, ExampleBuilder
from vlm.types import CachedFeatures, Modality, StudyBatch


class Collator:
    """Makes a `StudyBatch` of examples.

    Args:
        builder: gives prompts and the tokenizer.
        augment_images: random variation of the images. clinical_dropout: share of studies whose clinical text is left
            out.
        rng: source of both; None for neither.
        skip_pixels: leaves pixels out, when cached features stand for them.
    """

    def __init__(
        self,
        builder: ExampleBuilder,
        augment_images: bool = False,
        clinical_dropout: float = 0.0,
        rng: np.random.Generator | None = None,
        skip_pixels: bool = False,
    ) -> None:
        self.builder = builder
        self.augment_images = augment_images and rng is not None
        self.clinical_dropout = clinical_dropout if rng is not None else 0.0
        self.noise = builder.config.seen_noise if rng is not None else 0.0
        self.rng = rng or np.random.default_rng(0)
        self.skip_pixels = skip_pixels

    def __call__(self, examples: Sequence[Example]) -> StudyBatch:
        """Batches examples of one size."""
        pixels, boxes = self._pixels(examples)
        prompts = [self._prompt(e) for e in examples]
        tokenizer = self.builder.tokenizer
        prompt_ids, prompt_mask = pad(prompts, tokenizer.pad_token_id, left=True)
        reports = [torch.from_numpy(e.report_ids) for e in examples]
        report_ids, report_mask = pad([r.tolist() for r in reports], tokenizer.pad_token_id, left=False)
        labels = torch.full_like(report_ids, -100)
        weights = torch.zeros(report_ids.shape)
        for row, example in enumerate(examples):
            labels[row, : len(example.report_labels)] = torch.from_numpy(example.report_labels)
            weights[row, : len(example.report_weights)] = torch.from_numpy(example.report_weights)
        counts = [len(e.pixels) for e in examples]
        return StudyBatch(
            ids=tuple(e.id for e in examples),
            pixel_values=None if self.skip_pixels else torch.from_numpy(pixels).float().div_(255),
            image_study=torch.repeat_interleave(torch.arange(len(examples)), torch.tensor(counts)),
            image_slot=torch.cat([torch.arange(n) for n in counts]),
            view=torch.from_numpy(np.concatenate([e.view for e in examples])),
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            report_ids=report_ids,
            report_mask=report_mask,
            report_labels=labels,
            report_weights=weights,
            finding_targets=torch.from_numpy(np.stack([e.finding_targets for e in examples])),
            boxes_xyxy=tuple(torch.from_numpy(b) for b in boxes),
            box_classes=tuple(torch.from_numpy(c) for e in examples for c in e.box_classes),
            box_known=torch.from_numpy(np.concatenate([e.box_known for e in examples])),
        )

    def _pixels(self, examples: Sequence[Example]) -> tuple[np.ndarray, list[np.ndarray]]:
        boxes = [b for e in examples for b in e.boxes_xyxy]
        if self.skip_pixels:
            return np.zeros(0, np.uint8), boxes
        images = [image for e in examples for image in e.pixels]
        config = self.builder.config
        coloured = [config.pseudo_colour and e.modality is Modality.XRAY for e in examples for _ in e.pixels]
        if self.augment_images:
            images = self._mixed(examples, images)
            varied = [augment(i, b, self.rng, cuts=config.cut_out) for i, b in zip(images, boxes, strict=True)]
            images, boxes = [v[0] for v in varied], [v[1] for v in varied]
        shown = [as_channels(i, config.channels, c) for i, c in zip(images, coloured, strict=True)]
        return np.stack(shown), boxes

    def _mixed(self, examples: Sequence[Example], images: list[np.ndarray]) -> list[np.ndarray]:
        """Images, some with a faint healthy one of this batch blended in, of the same modality and view."""
        share = self.builder.config.mixing
        if not share or "normal" not in self.builder.labels:
            return images
        normal = self.builder.labels.index("normal")
        about = [(e.modality, int(v), i.shape) for e in examples for v, i in zip(e.view, e.pixels, strict=True)]
        owner = [number for number, e in enumerate(examples) for _ in e.pixels]
        healthy = [i for i, number in enumerate(owner) if examples[number].finding_targets[normal] == 1]
        out = []
        for at, image in enumerate(images):
            partners = [i for i in healthy if about[i] == about[at] and owner[i] != owner[at]]
            chosen = bool(partners) and self.rng.random() < share
            out.append(mix(image, images[partners[self.rng.integers(len(partners))]], self.rng) if chosen else image)
        return out

    def _prompt(self, example: Example) -> list[int]:
        clinical = {} if self.clinical_dropout and self.rng.random() < self.clinical_dropout else example.clinical
        seen = self._seen(example.finding_targets)
        return self.builder.prompt_ids(self.builder.prompt(example.modality, clinical, example.first_section, seen))

    def _seen(self, targets: np.ndarray) -> list[str]:
        """The labels known to be present; in training some are lost and some are wrong, as a prediction's would be."""
        present = targets == 1
        if self.noise:
            present = present & (self.rng.random(len(targets)) >= self.noise)
            present = present | (self.rng.random(len(targets)) < self.noise / 5)
        return [name for name, there in zip(self.builder.labels, present, strict=True) if there]


def pad(rows: Sequence[Sequence[int]], value: int, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of ids -> (B, longest) and mask, True where an id stands."""
    longest = max((len(r) for r in rows), default=0)
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, at] = torch.tensor(row, dtype=torch.long)
        mask[i, at] = True
    return ids, mask


def bucketed(
    examples: Sequence[Example],
    batch_size: int,
    rng: np.random.Generator | None,
    length: Callable[[Example], int] | None = None,
) -> Iterator[list[int]]:
    """Indices of batches of one image size and of like length, in random order.

    Args:
        examples: what is batched. batch_size: the last of a size may be smaller.
        rng: shuffles; None keeps the order of length.
        length: what padding is measured by; default the report's tokens.
    """
    measure = length or (lambda e: len(e.report_ids))
    sizes, lengths = np.array([e.size for e in examples]), np.array([measure(e) for e in examples])
    yield from bucketed_by(sizes, lengths, batch_size, rng)


def bucketed_by(
    sizes: np.ndarray, lengths: np.ndarray, batch_size: int, rng: np.random.Generator | None
) -> list[list[int]]:
    """`bucketed` by what is known of the examples: image size (n,) and length (n,)."""
    batches: list[list[int]] = []
    for size in np.unique(sizes):
        own = np.flatnonzero(sizes == size)
        # Noise breaks ties anew each epoch, so that batches differ while lengths stay alike.
        key = lengths[own] + (rng.uniform(0, 8, len(own)) if rng is not None else np.zeros(len(own)))
        own = own[np.argsort(key, kind="stable")]
        batches += [own[i : i + batch_size].tolist() for i in range(0, len(own), batch_size)]
    if rng is not None:
        rng.shuffle(batches)  # type: ignore[arg-type]
    return batches


def move(batch: StudyBatch, device: torch.device) -> StudyBatch:
    """The batch on a device."""
    if device.type == "cpu":
        return batch

    def put(value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
            return tuple(v.to(device) for v in value)
        if isinstance(value, CachedFeatures):
            return CachedFeatures(value.pooled.to(device), value.tokens.to(device), value.logits.to(device))
        return value

    return StudyBatch(**{name: put(getattr(batch, name)) for name in StudyBatch.__slots__})  # type: ignore[arg-type]
