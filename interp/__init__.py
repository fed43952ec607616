"""Floor 2: GPT-2. Its config, weights, tokenizer and forward pass, with every activation named."""

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
