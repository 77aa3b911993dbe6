"""A committee looks at studies: finding probabilities of every member, how certain boxes are, and image features.

Members are checkpoints, adapters on one checkpoint, or one checkpoint with drop-out left on (Gal and Ghahramani 2016,
arXiv:1506.02142): the passes differ in the drop-out of the finding queries and the finding head, so that the costly
part, the images' maps, is computed once a study. Each study's masks are seeded by its own id: what is said of it
does not depend on the others.

Labels, boxes and reports of a study are taken off before anything is computed. The language model is not needed and is
let go.

Shapes: B studies, M members or passes, F findings, D features, V images of a study.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vlm.adapter_folder import apply_adapter
from vlm.checkpoint import Checkpoint, load_checkpoint
from vlm.data.batches import Collator, move
from vlm.data.examples import Example
from vlm.models.report_generator import Evidence, ReportGenerator
from vlm.seeing import Seer, example_builder
from vlm.selecting.scores import entropy
from vlm.types import InputError, Study, StudyBatch

AHEAD = 16
"""Studies that are read at a time."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is measured of one study.

    Args:
        study_id: `Study.id`.
        probability: (M, F) calibrated; NaN for labels that the checkpoint does not speak of in this modality.
        boxes: (F,) entropy in bits of the least certain box of each label; 0 without one.
        features: (D,) of the first member.
    """

    study_id: str
    probability: np.ndarray
    boxes: np.ndarray
    features: np.ndarray


@dataclass(frozen=True, slots=True)
class Unread:
    """A study that could not be looked at, and the one line that says why."""

    study_id: str
    message: str


class Member:
    """A checkpoint that gives its opinion.

    Args:
        checkpoint: in evaluation mode; its language model is let go where `alone`.
        alone: the checkpoint is used for nothing else.
    """

    def __init__(self, checkpoint: Checkpoint, alone: bool = False) -> None:
        self.checkpoint, self.model = checkpoint, checkpoint.model
        self.builder = example_builder(checkpoint)
        self.collate = Collator(self.builder)
        self.seer = Seer(checkpoint)
        if alone:
            del self.model.language

    @property
    def cuts(self) -> np.ndarray:
        """(F,) the probability from which a label counts as present; one half where nothing was calibrated."""
        seen = self.checkpoint.calibration.seen
        return np.array([seen.get(name, 0.5) for name in self.checkpoint.labels])

    @torch.inference_mode()
    def look(self, example: Example, batch: StudyBatch, passes: int = 1, seed: int = 0) -> Look:
        """What this member says of one study.

        Args:
            example, batch: the study, by itself. passes: 1 as it is; more with drop-out, so many times. seed: of it.

        Raises:
            InputError: the checkpoint speaks of no finding in this modality.
        """
        image = self.model.encode(batch)
        (seen,) = self.seer.see(image, batch, [example], attention=False)
        assert image.evidence is not None
        labels = self.checkpoint.labels
        spoken = np.array([name in seen.evidence.probabilities for name in labels])
        if not spoken.any():
            raise InputError(f"study {example.id}: the checkpoint speaks of no finding in {example.modality.value}")
        if passes > 1:
            logits = drop_passes(self.model, image.evidence, passes, study_seed(seed, example.id))
            probability = self.seer.calibrated(logits).double().cpu().numpy()
            probability[:, ~spoken] = np.nan
        else:
            probability = np.array([[seen.evidence.probabilities.get(name, np.nan) for name in labels]])
        boxes = np.zeros(len(labels))
        for box in seen.boxes:
            at = labels.index(box.label)
            boxes[at] = max(boxes[at], float(entropy(np.array(box.confidence))))
        return Look(example.id, probability, boxes, pooled(image.evidence))


def pooled(evidence: Evidence) -> np.ndarray:
    """(D,) what a study looks like to the model: the mean and the maximum of its image tokens, which is what the
    finding head sees of the whole image; D is twice the model's width."""
    mask = evidence.mask[..., None]
    images = evidence.images.float()
    mean = (images * mask).sum(1) / mask.sum(1)
    peak = images.masked_fill(~mask, float("-inf")).amax(1)
    return torch.cat([mean, peak], dim=-1)[0].cpu().numpy()  # type: ignore[no-any-return]


def drop_passes(model: ReportGenerator, evidence: Evidence, passes: int, seed: int) -> Tensor:
    """The findings of one study, asked again and again with drop-out: logits (M, F).

    Args:
        model: in evaluation mode, left so. evidence: of one study, without drop-out; its image tokens are asked anew.
        passes: M. seed: of the masks; torch's own generator is left as it was.
    """
    tokens = evidence.images.expand(passes, -1, -1)  # (M, T, D)
    mask = evidence.mask.expand(passes, -1)
    nodes = model.graph()[0][model.label_nodes]
    with torch.random.fork_rng(), _dropping(model):
        torch.manual_seed(seed)
        visual, _ = model.queries(nodes, tokens, mask)
        fused = visual if model.gate is None else model.gate(visual, nodes)[0]
        logits: Tensor = model.finding_head(fused, tokens, mask)
    return logits


def dropping_parts(model: ReportGenerator) -> list[nn.Module]:
    """The layers of the finding queries and the finding head that drop something in training."""
    inside = [m for part in (model.queries, model.finding_head) for m in part.modules()]
    return [
        m
        for m in inside
        if (isinstance(m, nn.Dropout) and m.p > 0) or (isinstance(m, nn.MultiheadAttention) and m.dropout > 0)
    ]


@contextmanager
def _dropping(model: ReportGenerator) -> Iterator[None]:
    """Those layers in training mode while the block runs; everything else stays in evaluation mode."""
    parts = dropping_parts(model)
    for part in parts:
        part.training = True
    try:
        yield
    finally:
        for part in parts:
            part.training = False


def alike(one: ReportGenerator, other: ReportGenerator) -> bool:
    """Whether two models' image halves have the same weights."""
    first, second = ({n: t for n, t in m.state_dict().items() if not n.startswith("language.")} for m in (one, other))
    return first.keys() == second.keys() and all(torch.equal(t, second[n]) for n, t in first.items())


def study_seed(seed: int, study_id: str) -> int:
    """A seed of a study's own."""
    return int.from_bytes(hashlib.sha256(f"{seed} {study_id}".encode()).digest()[:7], "big")


class Committee:
    """All members, and how many times one that is alone is asked.

    Args:
        members: at least one, with one label list. passes: of drop-out, for a single member; 1 for none.
        seed: of drop-out.

    Raises:
        InputError: members of different label lists, or passes of a model without drop-out.
    """

    def __init__(self, members: Sequence[Member], passes: int = 1, seed: int = 0) -> None:
        self.members, self.passes, self.seed = list(members), passes, seed
        first = members[0].checkpoint
        for member in members[1:]:
            if member.checkpoint.labels != first.labels:
                odd = sorted(set(member.checkpoint.labels) ^ set(first.labels)) or ["their order"]
                raise InputError(f"--checkpoint: the members' finding lists differ ({odd[0]}); they must be the same")
        if len(members) > 1 and all(alike(members[0].model, m.model) for m in members[1:]):
            raise InputError(
                "--checkpoint, --adapter: the members agree in everything, for they share one image half (as adapters "
                "that change the text alone do); give members whose findings were trained apart"
            )
        if passes > 1 and not dropping_parts(members[0].model):
            raise InputError(
                "--strategy disagreement: one checkpoint without drop-out agrees with itself; give --checkpoint or "
                "--adapter several times"
            )

    @classmethod
    def load_for(
        cls, strategy: str, checkpoints: Sequence[Path], adapters: Sequence[Path], passes: int = 10, seed: int = 0
    ) -> Committee:
        """Loads what a strategy needs, on a GPU where there is one.

        Args:
            strategy: disagreement takes several members, or else passes of one; diversity takes one.
            checkpoints: folders; none for the shipped one. adapters: each makes a member of its own with the (single)
                checkpoint. passes, seed: as in the class.

        Raises:
            InputError: several checkpoints and adapters at once, more members than the strategy can use, or one that
                cannot be loaded.
        """
        if strategy == "diversity" and max(len(checkpoints), len(adapters)) > 1:
            raise InputError("--strategy diversity: compares the features of one checkpoint; give one")
        several = len(checkpoints) > 1 or len(adapters) > 1
        passes = passes if strategy == "disagreement" and not several else 1
        if len(checkpoints) > 1 and adapters:
            raise InputError("--adapter: several adapters make a committee on one checkpoint; give --checkpoint once")
        folder = checkpoints[0] if checkpoints else None
        pairs: list[tuple[Path | None, Path | None]] = [(folder, adapter) for adapter in adapters]
        members = []
        for path, adapter in pairs or [(path, None) for path in checkpoints] or [(None, None)]:
            checkpoint = load_checkpoint(path)
            if adapter is not None:
                checkpoint = apply_adapter(checkpoint, adapter)
            member = Member(checkpoint, alone=True)
            member.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            members.append(member)
        return cls(members, passes, seed)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of every member."""
        return self.members[0].checkpoint.labels

    @property
    def cuts(self) -> np.ndarray:
        """(F,) mean of the members'."""
        return np.mean([member.cuts for member in self.members], axis=0)  # type: ignore[no-any-return]

    @property
    def key(self) -> str:
        """What decides the result of a look: members, passes, seed."""
        facts = [*(m.checkpoint.hash for m in self.members), self.passes, self.seed]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def looks(self, studies: Iterable[Study]) -> Iterator[tuple[Study, Look | Unread]]:
        """Looks at studies, a few being read ahead, in their order."""
        incoming = iter(studies)
        with ThreadPoolExecutor(max(2, torch.get_num_threads())) as pool:
            while some := list(islice(incoming, AHEAD)):
                for study, read in zip(some, pool.map(self._read, some), strict=True):
                    yield study, (read if isinstance(read, Unread) else self._look(study.id, read))

    def _read(self, study: Study) -> list[Example] | Unread:
        """The study as every member is shown it, without what anybody said of it."""
        bare = replace(study, report=None, findings=None, boxes=None)
        examples: list[Example] = []
        try:
            for at, member in enumerate(self.members):
                alike = [i for i in range(at) if self.members[i].builder.config == member.builder.config]
                examples.append(examples[alike[0]] if alike else member.builder.build(bare))
        except InputError as error:
            return Unread(study.id, str(error))
        return examples

    def _look(self, study_id: str, examples: list[Example]) -> Look | Unread:
        found = []
        try:
            for member, example in zip(self.members, examples, strict=True):
                device = next(member.model.parameters()).device
                batch = move(member.collate([example]), device)
                found.append(member.look(example, batch, self.passes, self.seed))
        except InputError as error:
            return Unread(study_id, str(error))
        probability = np.concatenate([look.probability for look in found])
        unknown = np.isnan(probability).any(0)  # a finding that one member does not speak of can't be compared
        if unknown.all():
            return Unread(study_id, f"study {study_id}: there is no finding that all members speak of")
        probability[:, unknown] = np.nan
        return Look(study_id, probability, np.mean([look.boxes for look in found], axis=0), found[0].features)
