"""An ensemble's next word: the mean of the members' probabilities, at every step of one search.

    log p(v) = log( 1/M * sum_m p_m(v) )

(Lakshminarayanan et al. 2017, arXiv:1612.01474, eq. for M networks; for sequences the "expectation of products" of
Malinin and Gales 2021, arXiv:2002.07650, is taken token by token.) Each member reads a prompt of its own, of its own
length and width; beams, constraints and draws are shared. Adding up happens among logarithms: a word that a constraint
asks for may be less probable than float32 can hold.

Shapes: M members, B studies, K beams, N_m prompt tokens and D_m width of a member, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlm.generation.tree_cache import Stepper


class Joint(nn.Module):
    """Language models with their prompts, in the place where `beam_search` and `sample` take a single model.

    Args:
        parts: (model, prompt embeddings (B, N_m, D_m), mask (B, N_m)) of each member; all share one vocabulary.
    """

    def __init__(self, parts: Sequence[tuple[nn.Module, Tensor, Tensor]]) -> None:
        super().__init__()
        self.parts = tuple(parts)


class EnsembleStepper:
    """Steps several models through the same beams.

    Args:
        steppers: one a member.
    """

    def __init__(self, steppers: Sequence[Stepper]) -> None:
        self.steppers = tuple(steppers)

    def prefill(self) -> Tensor:
        """Log probabilities of the first new token, (B, V)."""
        return log_mean([stepper.prefill() for stepper in self.steppers])

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Log probabilities after one more token a beam, (B, K, V)."""
        return log_mean([stepper.step(tokens, parents) for stepper in self.steppers])


def log_mean(logits: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean probability.

    Args:
        logits: (..., V_m) of each member; a matrix that was padded beyond the vocabulary is cut to the shortest.

    Returns:
        (..., V).
    """
    size = min(x.shape[-1] for x in logits)
    cut = [x[..., :size] for x in logits]
    # Not log_softmax, whose rounding depends on the number of threads.
    log_p = torch.stack([x - x.logsumexp(-1, keepdim=True) for x in cut])  # (M, ..., V)
    return log_p.logsumexp(0) - math.log(len(logits))
