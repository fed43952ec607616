"""Floor 1: named points in a computation, what listens there, and caches of what passed.

Knows nothing of GPT-2, tokenizers or files of weights. The vocabulary of axes is in
[`hooks.names`][].
"""

from hooks.cache import ActivationCache
from hooks.names import UnknownHookName, resolve, select
from hooks.point import HookError, HookFunction, HookPoint
from hooks.scope import Listeners, Tap

__all__ = [
    "ActivationCache",
    "HookError",
    "HookFunction",
    "HookPoint",
    "Listeners",
    "Tap",
    "UnknownHookName",
    "resolve",
    "select",
]
