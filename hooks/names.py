"""Names of hook points: from what a user writes to the full name, or a clear error.

The vocabulary of axes, the same in annotations, docstrings, data frames and plots:

| axis | meaning |
|---|---|
| `batch` | prompts of one run |
| `pos` | token positions of a prompt |
| `d_model` | the residual stream |
| `head` | attention heads of one layer |
| `d_head` | the space of queries, keys and values of one head |
| `query`, `key` | the position that attends, the position attended to |
| `d_mlp` | neurons of one layer |
| `d_vocab` | tokens of the vocabulary |
| `layer` | transformer blocks, from 0 |
| `component` | things that write to the residual stream (embeddings, heads, attention, MLPs) |

Full names look like `blocks.3.attn.hook_pattern` or `hook_embed`. Short forms, as TransformerLens
users write them: `("pattern", 3)`, `("scale", 3, "ln1")`, `"embed"`, and the aliases in `ALIASES`.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache

NameFilter = str | tuple | Iterable[str | tuple] | Callable[[str], bool]

ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
}
MODULES = {"a": "attn", "m": "mlp"}


class UnknownHookName(KeyError):
    """A name, short form or filter that stands for no hook point."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message.
        return str(self.args[0]) if self.args else ""


def nearest(name: str, names: Iterable[str]) -> str:
    """`" Did you mean ...?"` with the name most like `name`, or the empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def resolve(name: str | tuple, names: Sequence[str], n_layers: int | None = None) -> str:
    """The full name that `name` stands for.

    Args:
        name: a full name, a short form without layer (`"embed"`), or a tuple
            `(short, layer)` or `(short, layer, "ln1")`. A negative layer counts from the end.
        names: the full names there are.
        n_layers: how many layers the model has, where `names` may not be all of its points.

    Raises:
        UnknownHookName: it stands for none of `names`, or for more than one.
    """
    if isinstance(name, str):
        if name in names:
            return name
        if f"hook_{name}" in names:
            return f"hook_{name}"
        raise UnknownHookName(_unknown(name, names))
    if not isinstance(name, tuple) or not name or not isinstance(name[0], str) or len(name) > 3:
        raise UnknownHookName(
            f"{name!r} is no hook name: expected a full name like 'blocks.0.attn.hook_pattern' "
            f"or a tuple like ('pattern', 0) or ('scale', 0, 'ln1')."
        )
    parts: list = [*name, None, None]
    short, layer, module = parts[:3]
    if layer is None and module is None:
        return resolve(short, names)
    if n_layers is None:
        n_layers = _count_layers(names)
    return _resolve_short(short, layer, module, names, n_layers)


def _resolve_short(
    short: str, layer: object, module: object, names: Sequence[str], n_layers: int
) -> str:
    short = ALIASES.get(short, short)
    ending = f"hook_{short.removeprefix('hook_')}"
    if layer is None:
        prefix = ""
    else:
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise UnknownHookName(f"the layer in {(short, layer)!r} is no whole number.")
        if not -n_layers <= layer < n_layers:
            raise UnknownHookName(
                f"layer {layer} in {(short, layer)!r} is out of range: there are {n_layers} "
                f"layers, 0 to {n_layers - 1} (or -{n_layers} to -1)."
            )
        prefix = f"blocks.{layer % n_layers}."
    inside = [n for n in names if n.startswith(prefix) and n.rsplit(".", 1)[-1] == ending]
    if module is not None:
        module = MODULES.get(str(module), module)
        elsewhere, inside = inside, [n for n in inside if f".{module}." in f".{n}"]
        if elsewhere and not inside:
            raise UnknownHookName(
                f"there is no hook point {short!r} in {module!r} of layer {layer}; there is "
                f"{', '.join(elsewhere)}."
            )
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise UnknownHookName(f"{(short, layer)!r} is ambiguous: it could be any of {inside}.")
    there = [n for n in names if n.startswith(prefix)]
    shorts = {n.rsplit("hook_", 1)[-1] for n in there}
    raise UnknownHookName(
        f"there is no hook point {short!r} in layer {layer}.{nearest(short, shorts)} "
        f"Short forms there: {', '.join(sorted(shorts))}."
    )


def _count_layers(names: Sequence[str]) -> int:
    return 1 + max((layer_of(n) or 0 for n in names), default=0)


@cache
def layer_of(name: str) -> int | None:
    """The layer in a full name, or None where it names none."""
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) if found else None


def select(names_filter: NameFilter, names: Sequence[str]) -> list[str]:
    """The full names that a filter picks, in the order of `names`.

    Args:
        names_filter: a name or short form, a glob (`"blocks.*.attn.hook_z"`), a list of those
            (every entry must stand for something), or a function of the full name.
        names: the full names there are.

    Raises:
        UnknownHookName: an entry stands for nothing, or the filter picks nothing.
        TypeError: the filter is of none of these kinds.
    """
    if callable(names_filter):
        wanted = {n for n in names if names_filter(n)}
        if not wanted:
            raise UnknownHookName(f"the filter function picks none of the {len(names)} points.")
    elif isinstance(names_filter, str | tuple):
        wanted = _expand(names_filter, names)
    elif isinstance(names_filter, Iterable):
        entries = list(names_filter)
        if not entries:
            raise UnknownHookName("the list of hook names is empty: it picks nothing.")
        wanted = set().union(*(_expand(entry, names) for entry in entries))
    else:
        raise TypeError(
            f"a filter of hook names is a name, a glob, a list of them or a function of the name, "
            f"not {type(names_filter).__name__}."
        )
    return [n for n in names if n in wanted]


def _expand(entry: str | tuple, names: Sequence[str]) -> set[str]:
    if isinstance(entry, str) and any(c in entry for c in "*?["):
        found = {n for n in names if fnmatchcase(n, entry)}
        if not found:
            raise UnknownHookName(
                f"the pattern {entry!r} matches none of the {len(names)} hook points"
                f" (first: {names[0]!r}, last: {names[-1]!r})."
            )
        return found
    return {resolve(entry, names)}


def _unknown(name: str, names: Sequence[str]) -> str:
    layer, n_layers = layer_of(name), _count_layers(names)
    if layer is not None and layer >= n_layers:
        return (
            f"there is no hook point {name!r}: layer {layer} is out of range, "
            f"there are {n_layers} layers, 0 to {n_layers - 1}."
        )
    ending = f"hook_{ALIASES.get(name, name).removeprefix('hook_')}"
    found = [n.split(".") for n in names if n.rsplit(".", 1)[-1] == ending]
    if found:
        # A block has two of some: `blocks.0.ln1.hook_scale`, `blocks.0.ln2.hook_scale`.
        parts = [n[2] for n in found if n[:2] == ["blocks", "0"]]
        short = [(name, 0)] if len(parts) < 2 else [(name, 0, part) for part in parts]
        return (
            f"there is no hook point {name!r} without a layer: that of layer 0 is "
            f"{' or '.join(map(repr, short))}, "
            f"those of all layers are '*{ending}'."
        )
    return f"there is no hook point {name!r}.{nearest(name, names)}"
