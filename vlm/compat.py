"""What one release of a library names otherwise than another."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from torch import nn


def cache_argument(model: nn.Module) -> str:
    """What a Hugging Face causal LM's forward calls its keys and values: `cache` since transformers 5.24, where the
    earlier `past_key_values` still works but warns at every call.

    Args:
        model: PEFT-wrapped or not.
    """
    base: Any = getattr(model, "get_base_model", lambda: model)()
    return _of(base.__class__)


@cache
def _of(kind: Any) -> str:
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"
