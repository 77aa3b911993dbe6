"""Strict configuration: one YAML file a run, dotted overrides, unknown keys refused with the nearest known one.

config = load_config(Path("configs/tiny.yaml"), ["training.seed=3", "model.width=64"])
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlm.types import InputError


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    return value


Real = Annotated[float, AfterValidator(_finite)]
"""A float that is neither NaN nor infinite: YAML's `.nan` would otherwise reach the optimizer."""


class Strict(BaseModel):
    """Refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class DataSet(Strict):
    """One data set of a run.

    `path` is relative to `RADSCRIBE_DATA` when that is set and the path is not absolute, else to the working
    directory; of a prepared set it may be an address that fsspec knows (s3://bucket/set). `split` keeps studies of
    these splits. `weight` is how many times an epoch the set is seen; a fraction takes that share anew each epoch.
    `slices` is which slices of volumes are kept, such as "uniform:8" (vlm/data/slices.py). `mirrored` adds the mirror
    image of every study that has one, with left and right changed in text and labels too (vlm/data/mirror.py).
    """

    path: Path | None = None
    format: str = "auto"
    split: tuple[str, ...] | None = None
    weight: Annotated[Real, Field(gt=0, le=100)] = 1.0
    limit: Annotated[int, Field(gt=0)] | None = None
    count: Annotated[int, Field(gt=0)] | None = Field(default=None, description="phantom and blank: number of studies")
    seed: int = Field(default=0, description="phantom and blank: seed")
    slices: str | None = None
    mirrored: bool = False

    def location(self) -> Path:
        """The folder or file that the set lies in."""
        root = os.environ.get("RADSCRIBE_DATA")
        path = self.path or Path(".")
        elsewhere = re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) is not None
        return Path(root) / path if root and not path.is_absolute() and not elsewhere else path

    def overlaps(self, other: DataSet) -> bool:
        """Whether both name studies of one set: the same place or the same drawing, and a split in common."""
        if (self.path, self.slices) != (other.path, other.slices):
            return False
        if self.path is None and (self.format, self.seed) != (other.format, other.seed):
            return False
        return self.split is None or other.split is None or bool({*self.split} & {*other.split})


class Replay(Strict):
    """Old data beside new, so that a checkpoint that is trained on does not forget: in every batch `share` of the
    studies are drawn from `sets`, anew each epoch, by `weight` and size. What is measured on `validation` is logged as
    old_loss, old_auc, ... each epoch; without `sets` it is only measured. `stages` names those that replay."""

    sets: tuple[DataSet, ...] = ()
    share: Real | None = Field(default=None, description="of every batch, above 0 and below 1; 0.25 when left out")
    validation: tuple[DataSet, ...] = ()
    stages: tuple[str, ...] | None = Field(default=None, description="names of stages; null takes all")

    @model_validator(mode="after")
    def _something_is_replayed(self) -> Replay:
        if self.sets and self.share is None:
            self.share = 0.25
        if self.share is not None and not 0 < self.share < 1:
            remedy = "leave the sets out" if self.share <= 0 else "train on them instead (data.train)"
            raise ValueError(f"share is {self.share}: it must lie above 0 and below 1; to have all or nothing {remedy}")
        if not self.sets and (self.share is not None or self.stages is not None):
            raise ValueError("a share of what? name the old data in sets")
        if not self.sets and not self.validation:
            raise ValueError("names neither sets nor validation; leave the section out")
        return self

    def concerns(self, stage: str) -> bool:
        """Whether the batches of a stage hold old studies."""
        return bool(self.sets) and (self.stages is None or stage in self.stages)

    def of_batch(self, size: int) -> int:
        """Old studies of a batch of `size` studies, 2 or more."""
        return min(max(1, round((self.share or 0.0) * size)), size - 1)


class Data(Strict):
    """What is read, and how pixels reach the model."""

    train: tuple[DataSet, ...] = ()
    validation: tuple[DataSet, ...] = ()
    replay: Replay | None = None
    image_size: dict[str, Annotated[int, Field(ge=32, le=2048, multiple_of=32)]] = {"default": 256}
    default_modality: Literal["xray", "ct", "mr", "us", "mg", "other"] = "xray"
    windows: tuple[str, ...] = Field(
        default=(), max_length=8, description="CT windows, one input channel each: names or CENTRE/WIDTH"
    )
    pseudo_colour: bool = Field(default=False, description="grey X-rays as three colour channels")
    max_views: Annotated[int, Field(ge=1, le=16)] = 2
    clinical_sections: tuple[str, ...] = ("indication",)
    modality_labels: dict[str, tuple[str, ...]] = Field(
        default={}, description="modality -> labels to speak of, where it is not all that training held examples of"
    )
    seen_line: bool = Field(default=False, description="name the findings in the prompt, as told or as predicted")
    seen_noise: Annotated[Real, Field(ge=0, le=1)] = 0.1
    clinical_dropout: Annotated[Real, Field(ge=0, le=1)] = 0.2
    max_prompt_tokens: Annotated[int, Field(ge=8, le=4096)] = 64
    max_report_tokens: Annotated[int, Field(ge=8, le=4096)] = 160
    report_sections: tuple[str, ...] = ("findings",)
    augment: bool = True
    cut_out: Annotated[Real, Field(ge=0, le=1)] = Field(default=0.0, description="share of images with squares cut out")
    mixing: Annotated[Real, Field(ge=0, le=1)] = Field(
        default=0.0, description="share of images into which somebody healthy is blended faintly"
    )
    buffer: Annotated[int, Field(gt=0)] = Field(
        default=2048, description="studies of prepared sets that are shuffled and read at a time"
    )
    cache_images: bool = True
    workers: Annotated[int, Field(ge=0, le=64)] = 0

    @property
    def channels(self) -> int:
        """Channels of the model's input: one a window, three for colour."""
        return 3 if self.pseudo_colour else max(1, len(self.windows))

    @model_validator(mode="after")
    def _channels_fit(self) -> Data:
        if self.pseudo_colour and len(self.windows) not in (0, 1, 3):
            raise ValueError(f"pseudo_colour makes three channels, and windows {len(self.windows)}; take three windows")
        return self


class Vision(Strict):
    """A timm model by name. `weights` is a safetensors file, or "pretrained" to let timm fetch them from its hub."""

    name: str = "mobilenetv2_100"
    weights: str | None = None
    options: dict[str, Any] = {}
    mean: Real = 0.5
    std: Annotated[Real, Field(gt=0)] = 0.5
    channels: Annotated[int, Field(ge=1, le=8)] = Field(
        default=1, description="of the input; follows data.windows and data.pseudo_colour when left out"
    )
    freeze_norm: bool = True
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = 0


class Hierarchy(Strict):
    """Hierarchical attention; `layers: 0` leaves out the self-attention across scales."""

    enabled: bool = True
    layers: Annotated[int, Field(ge=0, le=12)] = 1
    heads: Annotated[int, Field(ge=1)] = 4
    grid: Annotated[int, Field(ge=1, le=32)] = 8


class Detection(Strict):
    """The dense head. `labels` are its classes, names of the label list; `strides` the pyramid's maps that it reads."""

    enabled: bool = True
    labels: tuple[str, ...] = ("nodule", "mass", "calcification", "infiltrate", "tuberculosis")
    strides: tuple[Literal[8, 16, 32], ...] = Field(default=(8, 16, 32), min_length=1)
    layers: Annotated[int, Field(ge=1, le=8)] = 2
    score_threshold: Annotated[Real, Field(ge=0, le=1)] = 0.3
    nms_iou: Annotated[Real, Field(gt=0, lt=1)] = 0.5


class Knowledge(Strict):
    """The graph and the view of it whose labels are the model's findings. `graph: null` is the shipped graph.

    `fusion` is how what a finding's neighbours in the graph found is added to its own evidence; `enabled: false` leaves
    out the graph's relations altogether.
    """

    enabled: bool = True
    fusion: Literal["none", "concatenate", "attention", "gate"] = "gate"
    graph: Path | None = None
    view: str = "radscribe"
    layers: Annotated[int, Field(ge=1, le=8)] = 2
    heads: Annotated[int, Field(ge=1)] = 4


class Adapter(Strict):
    """A PEFT adapter by name. `targets: null` takes every linear layer (IA3: keys, values and feed-forward); names of
    layers otherwise. `tokens` is a prefix's length."""

    type: Literal["lora", "dora", "rslora", "ia3", "adalora", "prefix", "none"] = "lora"
    r: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[Real, Field(gt=0)] = 32
    dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.05
    targets: tuple[str, ...] | None = None
    tokens: Annotated[int, Field(ge=1, le=1024)] = 16


class Language(Strict):
    """Any Hugging Face causal LM by folder or hub id; a hub id is fetched, a folder never; "shipped" is the small one
    here."""

    path: str = "shipped"
    revision: str | None = None
    quantize: Literal["none", "nf4", "int8"] = Field(
        default="none", description="keep the frozen weights in 4 or 8 bits (QLoRA), on a GPU or on the CPU"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the frozen weights")
    frame: Literal["auto", "prompt"] = Field(
        default="auto",
        description="auto: the tokenizer's chat template around images and prompt, or the begin token before them; "
        "prompt: the begin token after the images, as checkpoints before 0.2 had it",
    )
    bundle: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="whether checkpoints hold the language model; auto: a folder of at most 1 GB. One that does not is "
        "named with its revision and its fingerprint, and another one is refused",
    )
    adapter: Adapter = Adapter()


class Model(Strict):
    """The figure's parts."""

    width: Annotated[int, Field(ge=16, le=4096, multiple_of=8)] = 128
    visual_grid: Annotated[int, Field(ge=1, le=32)] = 4
    dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.1
    vision: Vision = Vision()
    hierarchy: Hierarchy = Hierarchy()
    detection: Detection = Detection()
    knowledge: Knowledge = Knowledge()
    language: Language = Language()


class LossWeights(Strict):
    """`L = report + detection + findings + knowledge`; 0 switches a term off, and 1 the weight of a concept's tokens.

    Knowledge is `concept_weight`, the weight of tokens inside a concept's mention; `implication` and `exclusion`, the
    graph's rules for finding probabilities; and `alignment` of image evidence with its concept's text.
    """

    report: Annotated[Real, Field(ge=0)] = 1.0
    detection: Annotated[Real, Field(ge=0)] = 1.0
    findings: Annotated[Real, Field(ge=0)] = 1.0
    implication: Annotated[Real, Field(ge=0)] = 0.1
    exclusion: Annotated[Real, Field(ge=0)] = 0.1
    alignment: Annotated[Real, Field(ge=0)] = 0.1
    retention: Annotated[Real, Field(ge=0)] = Field(
        default=0.0, description="keep the start's finding probabilities where the new data's labels are unknown"
    )
    reward: Annotated[Real, Field(ge=0)] = 1.0
    concept_weight: Annotated[Real, Field(ge=1)] = 1.5


Part = Literal["vision", "pyramid", "detection", "knowledge", "bridge", "adapter", "language"]


class Stage(Strict):
    """One stage: which parts learn, for how long. Loss terms whose parts are all frozen are not computed."""

    name: str
    epochs: Annotated[Real, Field(gt=0, le=10000)]
    train: tuple[Part, ...]
    losses: tuple[Literal["report", "detection", "findings", "knowledge", "reward"], ...]
    lr: Annotated[Real, Field(gt=0, lt=1)] = 1e-3
    part_lr: dict[Part, Annotated[Real, Field(gt=0, le=10)]] = {}
    batch_size: Annotated[int, Field(ge=1)] = Field(default=16, description="studies a step, over all processes")
    accumulate: Annotated[int, Field(ge=1)] = 1
    warmup: Annotated[Real, Field(ge=0, lt=1)] = 0.05
    cache_copies: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="variations of each image whose features are kept, when the image half is frozen"
    )
    choose_by: Literal["loss", "auc", "map", "auc+map", "cider", "bleu4", "finding_f1"] = Field(
        default="loss", description="the last three by reports written for `training.written` validation studies"
    )
    sets: tuple[int, ...] | None = Field(default=None, description="indices into data.train; null takes all")
    patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="stop after so many epochs without a better validation"
    )


class Reward(Strict):
    """Self-critical training (a stage with the loss "reward"): draws are scored by CIDEr-D plus finding F1."""

    cider: Annotated[Real, Field(ge=0)] = 1.0
    findings: Annotated[Real, Field(ge=0)] = 1.0
    draws: Annotated[int, Field(ge=1, le=64)] = 2
    temperature: Annotated[Real, Field(gt=0, le=10)] = 1.0
    baseline: Literal["greedy", "mean"] = Field(
        default="greedy", description="what a draw is compared with: the model's greedy report, or its other draws"
    )

    @model_validator(mode="after")
    def _others_exist(self) -> Reward:
        if self.baseline == "mean" and self.draws < 2:
            raise ValueError("training.reward.baseline: the mean of the other draws needs draws of 2 or more")
        return self


class Training(Strict):
    """The loop. `dtype: auto` takes bf16 autocast where the processor multiplies it natively."""

    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    weight_decay: Annotated[Real, Field(ge=0)] = 0.05
    clip: Annotated[Real, Field(gt=0)] = 1.0
    label_smoothing: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    ema: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    save_minutes: Annotated[Real, Field(gt=0)] = 5.0
    log_every: Annotated[int, Field(ge=1)] = Field(default=10, description="steps between lines of metrics.jsonl")
    keep: Annotated[int, Field(ge=1)] = 2
    processes: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="how many must run; another number stops the run before it starts"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="keep each layer's input alone and compute the rest again: less memory, more time"
    )
    samples: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0, description="validation studies whose reports are written out after each epoch that learns reports"
    )
    written: Annotated[int, Field(ge=1)] = Field(
        default=64, description="validation studies that reports are written for where a stage is chosen by them"
    )
    trackers: tuple[str, ...] = Field(
        default=(), description="by their names in Accelerate: tensorboard, wandb, mlflow, ..."
    )
    shard: Literal[False, True, "zero2", "zero3"] = Field(
        default=False,
        description="share weights out over the processes: true for torch's fully_shard; zero2 and zero3 by DeepSpeed",
    )
    timeout_seconds: Annotated[Real, Field(ge=5)] = Field(
        default=60.0, description="how long a process waits for the others before it says that one is gone"
    )
    stages: tuple[Stage, ...] = ()
    loss: LossWeights = LossWeights()
    reward: Reward = Reward()


class Generation(Strict):
    """How reports are written."""

    num_beams: Annotated[int, Field(ge=1, le=64)] = 4
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 120
    length_penalty: Real = 1.0
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=20)] = 0
    no_repeat_in_sentence: Annotated[int, Field(ge=0, le=20)] = 4
    max_must: Annotated[int, Field(ge=0, le=20)] = 4
    sensitivity: Annotated[Real, Field(gt=0, le=1)] = 0.95
    precision: Annotated[Real, Field(gt=0, le=1)] = 0.7
    softness: Annotated[Real, Field(ge=0)] = 0.5
    consistency: Annotated[Real, Field(ge=0)] = 0.05
    contradiction: Annotated[Real, Field(ge=0)] = Field(
        default=5.0, description="nats that a beam pays for each contradiction to what was seen or to itself"
    )
    consensus: Annotated[Real, Field(ge=0)] = 0.0
    samples: Annotated[int, Field(ge=0, le=256)] = 0
    temperature: Annotated[Real, Field(gt=0, le=10)] = 1.0
    top_p: Annotated[Real, Field(gt=0, le=1)] = 1.0
    batch_size: Annotated[int, Field(ge=1)] = 8


class Config(Strict):
    """A whole run. `start` is a checkpoint folder to go on from, or "shipped"; its model section then stands.

    `ablation` is what scripts/ablate.py lays over the rest, key by key, to build and train its variants anew; nothing
    else reads it.
    """

    start: str | None = None
    ablation: dict[str, Any] = Field(default={}, exclude=True)
    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    generation: Generation = Generation()

    @model_validator(mode="after")
    def _channels_fit(self) -> Config:
        vision, needed = self.model.vision, self.data.channels
        if self.start is None and "channels" not in vision.model_fields_set:
            vision.__dict__["channels"] = needed  # not marked as set: it goes on following the data section
        if self.start is None and vision.channels != needed:
            raise ValueError(
                f"model.vision.channels: {vision.channels}, but data.windows and data.pseudo_colour make {needed}; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Config:
        if self.start is not None and "model" in self.model_fields_set:
            raise ValueError("start: the model is the checkpoint's; leave the model section out, or start out")
        names = [stage.name for stage in self.training.stages]
        if len(names) != len(set(names)):
            raise ValueError(f"training.stages: two stages have the same name: {names}")
        chosen = self.model.language
        for stage in self.training.stages:
            if "language" in stage.train and (chosen.quantize != "none" or chosen.bundle == "no"):
                key = "bundle: no" if chosen.bundle == "no" else f"quantize: {chosen.quantize}"
                raise ValueError(
                    f"training.stages.{stage.name}.train: 'language' cannot learn with model.language.{key}; "
                    "train the adapter"
                )
            for index in stage.sets or ():
                if not 0 <= index < len(self.data.train):
                    raise ValueError(f"training.stages.{stage.name}.sets: {index} is not an index into data.train")
        return self

    @model_validator(mode="after")
    def _replay_fits(self) -> Config:
        replay = self.data.replay
        if replay is None:
            return self
        for name, own, others in (
            ("sets", replay.sets, self.data.train), ("validation", replay.validation, self.data.validation),
        ):  # fmt: skip
            beside = "train" if name == "sets" else "validation"
            for number, source in enumerate(own):
                for other, theirs in enumerate(others):
                    if source.overlaps(theirs):
                        raise ValueError(
                            f"data.replay.{name}.{number}: shares its studies with data.{beside}.{other}; old data "
                            "must not be new data as well, leave one out"
                        )
        names = [stage.name for stage in self.training.stages]
        for name in replay.stages or ():
            if name not in names:
                raise ValueError(f"data.replay.stages: {name!r} is no stage; stages are {', '.join(names)}")
        for stage in self.training.stages:
            if replay.sets and stage.batch_size < 2 and stage.name in (replay.stages or names):
                raise ValueError(
                    f"training.stages.{stage.name}.batch_size: 1 leaves no room for an old study beside a new one; "
                    "take 2 or more"
                )
        return self


def load_config(path: Path, overrides: list[str] | tuple[str, ...] = (), data: Path | None = None) -> Config:
    """Reads a YAML file and applies `key.sub=value` overrides (values are YAML).

    Args:
        path: of the file. overrides: win over it. data: in place of the path of every training and validation set that
            has one; as the user typed it, so never below RADSCRIBE_DATA.

    Raises:
        InputError: naming the file or the key, what is wrong, and the nearest known key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the configuration: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; a configuration is YAML") from None
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a configuration is a mapping of sections (data, model, training, generation)")
    if data is not None:
        _take_data(tree, data.absolute(), path)
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, str(path))


def _take_data(tree: dict[str, Any], data: Path, origin: Path) -> None:
    """Puts one path in the place of those that the data sets have."""
    section = tree.get("data")
    parts = [section.get(name) for name in ("train", "validation")] if isinstance(section, dict) else []
    sets = [entry for part in parts if isinstance(part, list) for entry in part if isinstance(entry, dict)]
    named = [entry for entry in sets if "path" in entry]
    if not named:
        raise InputError(f"--data {data}: {origin} has no data set with a path that it could stand for; write one")
    paths = sorted({str(entry["path"]) for entry in named})
    if len(paths) > 1:
        raise InputError(
            f"--data {data}: {origin} names {len(paths)} data sets ({', '.join(paths)}), it can't stand for all; "
            "use --set data.train.0.path=..."
        )
    for entry in named:
        entry["path"] = str(data)


def lay_over(config: Config, changes: dict[str, Any], origin: str, overrides: Sequence[str] = ()) -> Config:
    """A configuration with a tree laid over what it sets itself: sections key by key, lists and values as a whole; then
    `key.sub=value` overrides.

    Args:
        config: left as it is. changes: may name any key. origin: names the tree in messages.

    Raises:
        InputError: naming the key, what is wrong, and the nearest known key.
    """
    tree = _merged(config.model_dump(mode="json", exclude_unset=True), changes)
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, origin)


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    out = dict(tree)
    for key, value in changes.items():
        old = out.get(key)
        out[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def parse_config(tree: dict[str, Any], origin: str) -> Config:
    """Validates a tree; `origin` names it in messages."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{origin}: {_explain(first)}{more}") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override!r}: write it as section.key=value")
    *parents, last = key.split(".")
    node: Any = tree
    for name in parents:
        node = node[int(name)] if isinstance(node, list) and name.isdigit() and int(name) < len(node) else (
            node.setdefault(name, {}) if isinstance(node, dict) else None
        )  # fmt: skip
        if node is None:
            raise InputError(f"--set {override!r}: {name!r} is not a section")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {override!r}: {value!r} is not YAML") from None
    # YAML 1.1 reads 1e-4 as text for want of a dot.
    if isinstance(parsed, str):
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = parsed
    elif isinstance(node, dict):
        node[last] = parsed
    else:
        raise InputError(f"--set {override!r}: {last!r} is not a key here")


def _explain(error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known keys are {', '.join(known)}"
        return f"unknown key {location!r}{hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{location}: {message} (given: {error['input']!r})" if location else message


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """The fields of the model at a location, found by walking the annotations."""
    model: Any = Config
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
