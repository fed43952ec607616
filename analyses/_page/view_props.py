"""What components of circuitsvis are given, checked against the axes that each of them expects."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from analyses import cli
from analyses._page.text import isolated, rounded

# How long tokens may be, in columns of a terminal: in running text, and elsewhere (at the axes of
# charts, in tables); and names.
_TEXT_WIDTH, _WIDTH, _NAME_WIDTH = 100, 20, 40
_HEAD_WIDTH = 10  # stands on a small map
_RUNNING_TEXT = {"ColoredTokens", "ColoredTokensMulti", "TextNeuronActivations", "TopkSamples"}

# The axes of every prop, and what it holds. Equal axes are equal lengths, except that one with a *
# may differ in length from entry to entry; query and key are as long as pos, next is one less.
_PROPS: dict[str, dict[str, tuple[str, str]]] = {
    "AttentionHeads": {
        "tokens": ("pos", "token"),
        "attention": ("head query key", "number"),
        "attentionHeadNames": ("head", "name"),
    },
    "AttentionPattern": {"tokens": ("pos", "token"), "attention": ("query key", "number")},
    "ColoredTokens": {"tokens": ("pos", "token"), "values": ("pos", "number")},
    "ColoredTokensMulti": {
        "tokens": ("pos", "token"),
        "values": ("pos kind", "number"),
        "labels": ("kind", "name"),
    },
    "TextNeuronActivations": {
        "tokens": ("pos", "token"),
        "activations": ("pos layer neuron", "number"),
    },
    "TokenLogProbs": {
        "prompt": ("pos", "token"),
        "topKLogProbs": ("next k", "number"),
        "topKTokens": ("next k", "token"),
        "correctTokenRank": ("next", "index"),
        "correctTokenLogProb": ("next", "number"),
    },
    "TopkSamples": {
        "tokens": ("layer neuron sample *pos", "token"),
        "activations": ("layer neuron sample *pos", "number"),
    },
    "TopkTokens": {
        "tokens": ("sample *pos", "token"),
        "topkVals": ("sample layer k neuron", "number"),
        "topkIdxs": ("sample layer k neuron", "place"),
        "bottomkVals": ("sample layer k neuron", "number"),
        "bottomkIdxs": ("sample layer k neuron", "place"),
    },
}
# What a component can do without.
_OPTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "TextNeuronActivations": {
        "firstDimensionName": ("", "name"),
        "secondDimensionName": ("", "name"),
        "firstDimensionLabels": ("layer", "name"),
        "secondDimensionLabels": ("neuron", "name"),
    },
    "TopkSamples": {
        "zerothDimensionName": ("", "name"),
        "firstDimensionName": ("", "name"),
        "zerothDimensionLabels": ("layer", "name"),
        "firstDimensionLabels": ("neuron", "name"),
    },
    "TopkTokens": {
        "firstDimensionName": ("", "name"),
        "thirdDimensionName": ("", "name"),
        "sampleLabels": ("sample", "name"),
        "firstDimensionLabels": ("layer", "name"),
    },
}
# They write tokens into the page as HTML.
_WRITES_HTML = set(_PROPS) - {"AttentionHeads", "AttentionPattern"}


class Props:
    """The props of one component, added one by one.

    Args:
        component: its name.
        most: how long an axis may be.

    Raises:
        ValueError: there is no such component.
    """

    def __init__(self, component: str, most: Mapping[str, int] | None = None) -> None:
        if component not in _PROPS:
            from hooks.names import nearest

            raise ValueError(
                f"circuitsvis has no component {component!r}.{nearest(component, _PROPS)} "
                f"Expected {', '.join(_PROPS)}"
            )
        self.component = component
        self.props: dict[str, Any] = {}
        self._width = _TEXT_WIDTH if component in _RUNNING_TEXT else _WIDTH
        self._most = most or {}
        self._known = _PROPS[component] | _OPTIONS.get(component, {})
        self._sizes: dict[object, tuple[int, str]] = {}
        self._shortened: list[tuple[str, str]] = []

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """Raise a ValueError unless the shape of an array has the axes of a prop."""
        axes = self._known[name][0].split()
        if len(shape) != len(axes):
            hint = ""
            if len(shape) == len(axes) + 1:
                hint = ". Is a batch axis left on? Take one example"
            raise ValueError(
                f"{self.component}: {name} has the axes {' '.join(axes)}, not the shape "
                f"{tuple(shape)}{hint}"
            )

    def add(self, name: str, value: Any) -> None:
        """Check a prop, and make it plain data.

        Raises:
            ValueError: see `views.circuitsvis_view`.
        """
        if name not in self._known:
            from hooks.names import nearest

            raise ValueError(
                f"{self.component} has no prop {name!r}.{nearest(name, self._known)} Expected "
                f"{', '.join(self._known)}"
            )
        if hasattr(value, "tolist"):
            self.check_shape(name, value.shape)
            value = value.tolist()
        axes, kind = self._known[name]
        self.props[name] = rounded(self._plain(name, value, axes.split(), kind, ()))

    def set(self, **props: Any) -> None:
        """Add props that need no check."""
        self.props |= rounded(props)

    def cut_rows(self, name: str) -> None:
        """Of square matrices, keep what is on and below the diagonal."""

        def cut(value: list[Any]) -> list[Any]:
            if isinstance(value[0][0], list):
                return [cut(matrix) for matrix in value]
            return [row[: i + 1] for i, row in enumerate(value)]

        self.props[name] = cut(self.props[name])

    def done(self, **more: Any) -> dict[str, Any]:
        """All props, with those in `more` which need no check.

        Raises:
            ValueError: one is missing.
        """
        if missing := [name for name in _PROPS[self.component] if name not in self.props]:
            raise ValueError(f"{self.component} also needs {', '.join(missing)}")
        self.set(**more)
        self._check_places()
        return self.props

    @property
    def shortened(self) -> tuple[tuple[str, str], ...]:
        """Where a token was shortened, and the whole token."""
        return tuple(self._shortened)

    # -------------------------------------------------------------- one value

    def _plain(
        self, name: str, value: Any, axes: Sequence[str], kind: str, at: tuple[int, ...]
    ) -> Any:
        if hasattr(value, "tolist"):  # an array or a number of numpy or torch, in a list
            value = value.tolist()
        if not axes:
            return self._entry(name, value, kind, at)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(
                f"{self._where(name, at)} is {value!r}, expected a list along {axes[0]}"
            )
        self._check_length(name, len(value), axes[0], at)
        return [
            self._plain(name, one, axes[1:], kind, (*at, index)) for index, one in enumerate(value)
        ]

    def _check_length(self, name: str, length: int, axis: str, at: tuple[int, ...]) -> None:
        where = self._where(name, at)
        if not length:
            raise ValueError(f"{where} is empty, expected at least one entry along {axis}")
        if length > self._most.get(axis, length):
            raise ValueError(
                f"{where} has {length:,} entries along {axis}, expected at most "
                f"{self._most[axis]:,}: show a part of them"
            )
        less = int(axis == "next")
        key = (axis, at) if axis.startswith("*") else _SAME.get(axis, axis)
        expected, source = self._sizes.setdefault(key, (length + less, name))
        if length != expected - less:
            raise ValueError(
                f"{where} has length {length} along {axis}, expected {expected - less} (as long as "
                f"{source}{', less one' if less else ''})"
            )

    def _entry(self, name: str, value: Any, kind: str, at: tuple[int, ...]) -> Any:
        where = self._where(name, at)
        if kind in ("token", "name"):
            if not isinstance(value, str):
                raise ValueError(f"{where} is {value!r}, expected text")
            return self._text(value, where, kind)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where} is {value!r}, expected a number")
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, expected a finite number")
        if kind != "number" and (value != int(value) or value < 0):
            raise ValueError(f"{where} is {value!r}, expected a whole number, 0 or more")
        return value

    def _text(self, text: str, where: str, kind: str) -> str:
        """Text as circuitsvis can be given it."""
        whole = cli.visible(text) or "∅"
        name_width = _HEAD_WIDTH if self.component == "AttentionHeads" else _NAME_WIDTH
        shown = cli.shorten(whole, self._width if kind == "token" else name_width)
        if shown != whole:
            self._shortened.append((where.removeprefix(f"{self.component}: "), whole))
        if any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in shown):
            shown = isolated(shown)  # the number behind it stays behind it
        if self.component in _WRITES_HTML:
            # Neither starts a tag or an entity before a word joiner, which has no width.
            shown = shown.replace("<", "<\u2060").replace("&", "&\u2060")
            if kind == "token" and text.endswith("\n"):
                shown += "\n"  # a new line begins after it
        return shown

    def _check_places(self) -> None:
        """Places among the tokens of their sample must be there."""
        for name, (_, kind) in _PROPS[self.component].items():
            if kind != "place":
                continue
            for sample, places in enumerate(self.props[name]):
                n = len(self.props["tokens"][sample])
                worst = max(place for layer in places for row in layer for place in row)
                if worst >= n:
                    raise ValueError(
                        f"{name}[{sample}] holds {worst}, but sample {sample} has {n} tokens"
                    )

    def _where(self, name: str, at: tuple[int, ...]) -> str:
        return f"{self.component}: {name}{''.join(f'[{index}]' for index in at)}"


_SAME = {"query": "pos", "key": "pos", "next": "pos"}
