"""Floor 2: GPT-2. Its config, weights, tokenizer and forward pass, with every activation named."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hooks import ActivationCache, HookError, HookPoint, UnknownHookName
    from interp.attention_layers import AttentionLayers
    from interp.config import HookedGPT2Config
    from interp.factored import FactoredMatrix
    from interp.generate import GenerationStream
    from interp.generation import Generation, GenerationStep
    from interp.hooked import HookedGPT2
    from interp.kv_cache import KeyValueCache
    from interp.run import LogitsAndLoss
    from interp.tokenizer import TokenBatch, Tokenizer

__all__ = [
    "ActivationCache",
    "AttentionLayers",
    "FactoredMatrix",
    "Generation",
    "GenerationStep",
    "GenerationStream",
    "HookError",
    "HookPoint",
    "HookedGPT2",
    "HookedGPT2Config",
    "KeyValueCache",
    "LogitsAndLoss",
    "TokenBatch",
    "Tokenizer",
    "UnknownHookName",
]

# Where each name is. They are fetched when first used, so that a command of this package answers
# --help and wrong options without waiting seconds for torch.
_HOME = dict.fromkeys(("ActivationCache", "HookError", "HookPoint", "UnknownHookName"), "hooks") | {
    "AttentionLayers": "interp.attention_layers",
    "FactoredMatrix": "interp.factored",
    "Generation": "interp.generation",
    "GenerationStep": "interp.generation",
    "GenerationStream": "interp.generate",
    "HookedGPT2": "interp.hooked",
    "HookedGPT2Config": "interp.config",
    "KeyValueCache": "interp.kv_cache",
    "LogitsAndLoss": "interp.run",
    "TokenBatch": "interp.tokenizer",
    "Tokenizer": "interp.tokenizer",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
