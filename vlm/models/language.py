"""The language model: any Hugging Face causal LM, frozen, with a PEFT adapter, reading a prefix of embeddings.

A folder is loaded as it is, with no network; a name that is not a folder is a hub id, which the user chose by naming
it. No remote code is run and no pickle is read (safetensors only).

Shapes: B studies, P prefix tokens, N prompt tokens, R report tokens, L the model's width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

SHIPPED_LANGUAGE = Path(__file__).parents[1] / "pretrained" / "language"

UNWRITTEN = "XXXX"
"""The de-identifier's mark: read where a text holds it, never learnt, never written."""


def load_language_model(path: str, revision: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal LM and its tokenizer.

    Args:
        path: a folder, a hub id, or "shipped" for the small decoder that comes with this package. revision: of a hub
            id.

    Raises:
        ValueError: a folder that holds no causal LM, or a hub id that cannot be had.
    """
    path = str(SHIPPED_LANGUAGE) if path == "shipped" else path
    folder = Path(path)
    local = folder.is_dir()
    if not local and (path.startswith((".", "/", "runs/")) or path.count("/") > 1):
        raise ValueError(f"{path}: no such folder of a language model")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False, "local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(path, **options)
        # Eager attention: on CPUs its backward is faster in bf16, and prefix lengths make every mask a full one anyway.
        model = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32, attn_implementation="eager", use_safetensors=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: not a causal language model that transformers can load: {' '.join(str(error).split())[:300]}"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{path}: the tokenizer has no end token, so no report would ever end")
    return model, tokenizer


def add_adapter(
    model: PreTrainedModel, r: int, alpha: float, dropout: float, targets: tuple[str, ...] | None
) -> nn.Module:
    """Freezes the model and wraps it with LoRA (Hu et al. 2021, arXiv:2106.09685); its B matrices start at zero.

    Raises:
        ValueError: `targets` match no layer.
    """
    names = list(targets) if targets else "all-linear"
    try:
        return get_peft_model(
            model,
            LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, task_type=TaskType.CAUSAL_LM),  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise ValueError(f"adapter targets {targets}: {' '.join(str(error).split())[:200]}") from None


class LanguageModel(nn.Module):
    """A causal LM that reads a prefix of embeddings before its prompt.

    Args:
        model: a Hugging Face causal LM, PEFT-wrapped or not.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def width(self) -> int:
        """L."""
        return int(self.embedding.weight.shape[1])  # type: ignore[index, union-attr]

    @property
    def embedding(self) -> nn.Module:
        """The input embedding."""
        return self.model.get_input_embeddings()  # type: ignore[operator, no-any-return]

    def embed(self, ids: Tensor) -> Tensor:
        """(B, N) -> (B, N, L)."""
        return self.embedding(ids)  # type: ignore[no-any-return]

    def forward(
        self, prefix: Tensor, prefix_mask: Tensor, report_ids: Tensor, report_mask: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of the labelled positions alone.

        Args:
            prefix: (B, P, L), padded on the left. prefix_mask: (B, P) True where a token exists.
            report_ids, report_mask: (B, R), padded on the right.
            labels: (B, R): what each report position should be; -100 takes no part.

        Returns:
            (M, vocabulary) logits and the (M,) flat indices into labels of the positions that they predict.
        """
        inputs = torch.cat([prefix, self.embed(report_ids).to(prefix.dtype)], dim=1)
        mask = torch.cat([prefix_mask, report_mask], dim=1)
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)
        base = self.backbone()
        hidden = base(
            inputs_embeds=inputs, attention_mask=mask.long(), position_ids=positions, use_cache=False
        ).last_hidden_state
        # The hidden state before a token predicts it: the last of the prefix predicts the report's first token.
        hidden = hidden[:, prefix.shape[1] - 1 : -1]  # (B, R, L)
        index = (labels.flatten() != -100).nonzero(as_tuple=True)[0]
        logits = self.model.get_output_embeddings()(hidden.flatten(0, 1)[index])  # type: ignore[operator]
        return logits.float(), index

    def backbone(self) -> nn.Module:
        """The decoder without its head, so that logits are computed for labelled positions alone."""
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return model.get_decoder()  # type: ignore[operator, no-any-return]
