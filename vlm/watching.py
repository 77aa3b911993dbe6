"""Watching a run: reports written with the current weights, what they score, and trackers.

Reports are written for the first validation studies whose report was not cut, with narrow beams and without
constraints, so that what is judged is the language model; references are those studies' reports as it is taught them.
They choose between epochs of one run. What a checkpoint is worth is for `vlm evaluate` to say.
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from vlm.checkpoint import Checkpoint
from vlm.config import Config, Stage
from vlm.data.batches import Collator, bucketed, move
from vlm.data.examples import HEADINGS, Example, ExampleBuilder
from vlm.doctor import TRACKERS
from vlm.evaluation.clinical import FindingReader, finding_scores
from vlm.evaluation.text import bleu, cider, index_texts
from vlm.evaluation.tokens import make_profile
from vlm.request import GenerationSettings
from vlm.run_folder import flat, read_log
from vlm.seeing import Seer
from vlm.types import InputError
from vlm.writing import Draft, Writer

WRITTEN_METRICS = ("cider", "bleu4", "finding_f1")
"""What a stage may be chosen by that takes written reports."""
NEEDS = {"auc": "findings", "map": "detection", **dict.fromkeys(WRITTEN_METRICS, "report")}
"""The loss that a stage must have for a metric to mean anything."""
BEAMS, BATCH = 2, 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A report written with the current weights, beside the study's own."""

    id: str
    report: str
    reference: str


def check_choice(stage: Stage) -> None:
    """A stage must be chosen by something that it teaches.

    Raises:
        InputError: it isn't.
    """
    needed = NEEDS.get(stage.choose_by)
    taught = {*stage.losses, *(["report"] if "reward" in stage.losses else [])}
    if needed is not None and needed not in taught:
        raise InputError(
            f"training.stages.{stage.name}.choose_by: {stage.choose_by!r} needs the loss {needed!r}; the stage has "
            f"{', '.join(stage.losses)}"
        )


class Scribe:
    """Writes reports of validation studies.

    Args:
        checkpoint: whose model is in training. builder: of its examples. examples: for validation.
        device: of the model.
    """

    def __init__(
        self, checkpoint: Checkpoint, builder: ExampleBuilder, examples: Sequence[Example], device: torch.device
    ) -> None:
        generation = checkpoint.config.generation.model_copy(update={"samples": 0})
        config = checkpoint.config.model_copy(update={"generation": generation})
        self.checkpoint = replace(checkpoint, config=config)
        self.builder, self.device = builder, device
        end = checkpoint.tokenizer.eos_token_id
        self.whole = [i for i, e in enumerate(examples) if len(e.report_ids) and e.report_ids[-1] == end]
        self.examples = examples
        self.settings = GenerationSettings(steer=False, attention=False, num_beams=min(BEAMS, generation.num_beams))
        self.seer = Seer(self.checkpoint)
        self.writer = Writer(self.checkpoint, builder, self.seer)
        self.findings = FindingReader(checkpoint.graph)

    @torch.inference_mode()
    def write(self, count: int) -> list[Sample]:
        """Reports of the first `count` studies, in their order."""
        model = self.checkpoint.model
        training = model.training
        model.eval()
        chosen = [self.examples[i] for i in self.whole[:count]]
        out: dict[int, Sample] = {}
        for indices in bucketed(chosen, BATCH, None):
            drafts = [self._draft(index, chosen[index]) for index in indices]
            while drafts:
                # Drafts of one batch have written equally many sections: they are of one kind.
                drafts = [grown for (grown,) in self.writer.write(drafts, self.settings)]
                if all(map(self.writer.done, drafts)):
                    break
            for draft in drafts:
                out[draft.index] = Sample(draft.example.id, self._joined(draft.written), self._reference(draft.example))
        model.train(training)
        return [out[index] for index in sorted(out)]

    def _draft(self, index: int, example: Example) -> Draft:
        batch = move(Collator(self.builder)([example]), self.device)
        image = self.checkpoint.model.encode(batch, detect=self.checkpoint.config.data.seen_line)
        (seen,) = self.seer.see(image, batch, [example], False)
        image.dense, batch.pixel_values = None, None
        return self.writer.draft(index, example, seen, image, batch, self.settings)

    def _reference(self, example: Example) -> str:
        text = str(self.checkpoint.tokenizer.decode(example.report_ids.tolist(), skip_special_tokens=True))
        for name in self.checkpoint.config.data.report_sections:
            text = text.replace(HEADINGS.get(name, f"{name.capitalize()}:"), " ")
        return " ".join(text.split())

    @staticmethod
    def _joined(written: Mapping[str, str]) -> str:
        return " ".join(" ".join(written.values()).split())

    def score(self, samples: Sequence[Sample]) -> dict[str, float]:
        """CIDEr-D and BLEU-4 (canonical profile) and micro F1 of findings; nothing for fewer than two reports."""
        if len(samples) < 2:
            return {}
        reports, references = [s.report for s in samples], [s.reference for s in samples]
        profile = make_profile("canonical")
        index, systems = index_texts(
            [profile.reference(t) for t in references], {"p": [profile.prediction(t) for t in reports]}
        )
        view = self.checkpoint.config.model.knowledge.view
        scores = finding_scores(self.findings.read(reports, view), self.findings.read(references, view), view)
        f1 = next(s for s in scores if s.name == "finding_f1_micro").value
        found = {
            "cider": cider(index, systems["p"]).value, "bleu4": bleu(index, systems["p"])[3].value, "finding_f1": f1,
        }  # fmt: skip
        return {name: round(float(value), 6) for name, value in found.items()}


def keep_samples(out: Path, stage: str, epoch: int, samples: Sequence[Sample]) -> None:
    """Appends to samples.jsonl."""
    with (out / "samples.jsonl").open("a", encoding="utf-8") as stream:
        for sample in samples:
            record = {"stage": stage, "epoch": epoch, "id": sample.id, "report": sample.report}
            stream.write(json.dumps({**record, "reference": sample.reference}, ensure_ascii=False) + "\n")


class Trackers:
    """What Accelerate's trackers are told: numbers under stage/name, at steps counted over all stages.

    Args:
        accelerator: of this run. names: as Accelerate calls them. out: the run's folder; trackers that write files
            write into out/trackers. config: shown as parameters.

    Raises:
        InputError: a name that Accelerate does not know, or a tracker that is not installed or cannot start.
    """

    def __init__(self, accelerator: Accelerator, names: Sequence[str], out: Path, config: Config) -> None:
        self.accelerator, self.out, self.names = accelerator, out, tuple(names)
        check_trackers(names)
        if not names:
            return
        accelerator.project_configuration.logging_dir = str(out / "trackers")
        accelerator.log_with = list(names)
        values = {
            k: v if isinstance(v, int | float | str) else str(v)
            for k, v in flat(config.model_dump(mode="json")).items()
        }
        try:
            accelerator.init_trackers("radscribe", config=values)
        except Exception as error:  # each tracker has errors of its own: no key, no network, a full disk
            raise InputError(
                f"training.trackers: {', '.join(names)} cannot start: {' '.join(str(error).split())[:200]}"
            ) from None

    def before(self, stage: str) -> int:
        """Steps of the stages before this one, as the log has them."""
        if not self.names or not (self.out / "metrics.jsonl").is_file():
            return 0
        last: dict[str, int] = {}
        for row in read_log(self.out):
            if row.get("stage") == stage:
                break
            if "stage" in row and "step" in row:
                last[row["stage"]] = max(last.get(row["stage"], 0), row["step"])
        return sum(last.values())

    def log(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Numbers and texts of a step."""
        if self.names:
            kept = {k: v for k, v in values.items() if isinstance(v, int | float | str)}
            self.accelerator.log({f"{stage}/{k}": v for k, v in kept.items() if k not in ("stage", "step")}, step=step)


def check_trackers(names: Sequence[str]) -> None:
    """Whether all of them are known and installed.

    Raises:
        InputError: one isn't; how to have it is said.
    """
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            near = difflib.get_close_matches(name, LOGGER_TYPE_TO_CLASS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(LOGGER_TYPE_TO_CLASS)}"
            raise InputError(f"training.trackers: Accelerate knows no tracker {name!r}; {hint}")
        try:
            importlib.import_module(name)
        except ImportError:
            raise InputError(
                f"training.trackers: {name} is not installed: pip install {TRACKERS.get(name, name)}"
            ) from None
