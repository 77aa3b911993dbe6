"""Self-critical training: reports are drawn, scored, and made more or less likely than the model's own best.

    L = -mean_t A log p(y_t | y_<t, study),   A = reward(drawn) - reward(greedy)

Source: Rennie et al. 2017, arXiv:1612.00563. The reward is CIDEr-D against the reference plus the F1 of the findings
that the knowledge graph's reader finds in both texts, each with its weight: a wrong finding in a fluent report pays.
With two draws a study or more the baseline can be the mean of the other draws (Kool et al. 2019).

Shapes: B studies, K draws, R tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from knowledge.graph import KnowledgeGraph
from vlm.config import Reward
from vlm.data.batches import pad
from vlm.evaluation.clinical import FindingReader
from vlm.evaluation.pairs import PairCider
from vlm.generation.beam_search import beam_search
from vlm.generation.sampling import sample
from vlm.generation.settings import BeamSettings
from vlm.models.report_generator import ReportGenerator
from vlm.types import CachedFeatures, StudyBatch


class Scorer:
    """Rewards of reports.

    Args:
        references: of all training studies; their document frequencies count. graph, view: whose labels are compared.
        settings: weights.
    """

    def __init__(self, references: Sequence[str], graph: KnowledgeGraph, view: str, settings: Reward) -> None:
        self.cider, self.reader, self.view, self.settings = PairCider(references), FindingReader(graph), view, settings

    def __call__(self, reports: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """(N,) rewards."""
        out = np.zeros(len(reports))
        if self.settings.cider:
            pairs = zip(reports, references, strict=True)
            out += self.settings.cider * np.array([self.cider(a, b) for a, b in pairs])
        if self.settings.findings:
            said, truth = (self.reader.read(list(t), self.view).positive for t in (reports, references))
            total = said.sum(1) + truth.sum(1)
            shared = 2 * (said & truth).sum(1)
            out += self.settings.findings * np.where(total > 0, shared / np.maximum(total, 1), 1.0)
        return out


class RewardBatch:
    """Turns a batch into drawn reports with their advantages.

    Args:
        scorer: of reports. tokenizer: of the language model. settings: draws, temperature, baseline. most: longest
            report in tokens. suppressed: ids that are never drawn.
    """

    def __init__(
        self, scorer: Scorer, tokenizer: PreTrainedTokenizerBase, settings: Reward, most: int, suppressed: Sequence[int]
    ) -> None:
        self.scorer, self.tokenizer, self.settings, self.most = scorer, tokenizer, settings, most
        self.suppressed = tuple(suppressed)

    @torch.no_grad()
    def draw(self, model: ReportGenerator, batch: StudyBatch, seed: int) -> tuple[StudyBatch, dict[str, float]]:
        """Draws and scores.

        Args:
            model: left in the mode that it is in. batch: with references as its reports. seed: of the draws.

        Returns:
            The batch with every study K times, drawn reports as its reports and advantages as their weights; and the
            mean rewards of draws and baseline.
        """
        training, draws = model.training, self.settings.draws
        modes = {name: module.training for name, module in model.named_modules()}
        model.eval()
        references = [self._text(row[row >= 0]) for row in batch.report_labels]
        prefix, mask = model.prefix(model.encode(batch, detect=False), batch)
        beams = BeamSettings(
            draws, self.most, min_new_tokens=2, eos_token_ids=(int(self.tokenizer.eos_token_id),),  # type: ignore[arg-type]
            pad_token_id=self.tokenizer.pad_token_id, suppress_token_ids=self.suppressed,  # type: ignore[arg-type]
        )  # fmt: skip
        language, attention = model.language.model, mask.long()
        seeds = [seed + i for i in range(len(references))]
        found = sample(
            language,
            beams,
            seeds,
            inputs_embeds=prefix,
            attention_mask=attention,
            temperature=self.settings.temperature,
        )
        drawn = [[list(c.tokens) for c in row] for row in found]  # (B, K) lists
        texts = [[self._text(tokens) for tokens in row] for row in drawn]
        rewards = self.scorer([t for row in texts for t in row], np.repeat(references, draws).tolist())
        rewards = rewards.reshape(len(references), draws)
        if self.settings.baseline == "greedy":
            greedy = beam_search(language, replace(beams, num_beams=1), inputs_embeds=prefix, attention_mask=attention)
            base = self.scorer([self._text(row[0].tokens) for row in greedy], references)[:, None]
        else:
            base = (rewards.sum(1, keepdims=True) - rewards) / (draws - 1)
        for name, module in model.named_modules():
            module.training = modes[name]
        assert model.training == training
        advantage = torch.from_numpy(rewards - base).float().T.flatten()  # draw by draw, as `repeated` orders them
        ids = [row[k] for k in range(draws) for row in drawn]
        return self._taught(repeated(batch, draws), ids, advantage), {
            "reward": float(rewards.mean()), "baseline": float(base.mean()),
        }  # fmt: skip

    def _taught(self, batch: StudyBatch, ids: list[list[int]], advantage: Tensor) -> StudyBatch:
        device = batch.report_ids.device
        report, mask = pad(ids, int(self.tokenizer.pad_token_id), left=False)  # type: ignore[arg-type]
        labels = torch.where(mask.bool(), report, -100)
        weights = torch.where(mask.bool(), advantage[:, None], 0.0)
        return replace(
            batch, report_ids=report.to(device), report_mask=mask.to(device), report_labels=labels.to(device),
            report_weights=weights.to(device),
        )  # fmt: skip

    def _text(self, tokens: Tensor | Sequence[int]) -> str:
        ids = [int(t) for t in tokens]
        return " ".join(str(self.tokenizer.decode(ids, skip_special_tokens=True)).split())


def repeated(batch: StudyBatch, times: int) -> StudyBatch:
    """Every study `times` over: the whole batch, then the whole batch again."""
    if times == 1:
        return batch
    studies = len(batch.ids)

    def again(value: Tensor | None) -> Tensor | None:
        return None if value is None else torch.cat([value] * times)

    cached = None
    if batch.cached is not None:
        held = batch.cached
        cached = CachedFeatures(*(torch.cat([v] * times) for v in (held.pooled, held.tokens, held.logits)))
    images = [batch.image_study + k * studies for k in range(times)]
    rows = (
        "pixel_values", "image_slot", "view", "prompt_ids", "prompt_mask", "report_ids", "report_mask", "report_labels",
        "report_weights", "finding_targets", "box_known",
    )  # fmt: skip
    return replace(
        batch, ids=batch.ids * times, image_study=torch.cat(images), cached=cached,
        boxes_xyxy=batch.boxes_xyxy * times, box_classes=batch.box_classes * times,
        maps=None if batch.maps is None else tuple(torch.cat([m] * times) for m in batch.maps),
        **{name: again(getattr(batch, name)) for name in rows},  # type: ignore[arg-type]
    )  # fmt: skip
