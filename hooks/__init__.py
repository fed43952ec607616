"""Floor 1: named points in a computation, what listens there, caches of what passed, and edits.

Knows nothing of GPT-2, tokenizers or files of weights. The vocabulary of axes is in
[`hooks.names`][].
"""

from hooks.cache import ActivationCache
from hooks.edit_files import load_edits, save_edits
from hooks.edits import Ablate, Add, Edit, Patch, Scale
from hooks.names import UnknownHookName, resolve, select
from hooks.point import HookError, HookFunction, HookPoint
from hooks.scope import Listeners, Tap
from hooks.when import NewTokens, PromptTokens, Steps, When

__all__ = [
    "Ablate",
    "ActivationCache",
    "Add",
    "Edit",
    "HookError",
    "HookFunction",
    "HookPoint",
    "Listeners",
    "NewTokens",
    "Patch",
    "PromptTokens",
    "Scale",
    "Steps",
    "Tap",
    "UnknownHookName",
    "When",
    "load_edits",
    "resolve",
    "save_edits",
    "select",
]
