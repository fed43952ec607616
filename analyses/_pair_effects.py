"""What results of patching between two prompts have in common: views of effects, and their page.

Needs no torch: the commands' `--help` must not wait for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from analyses import report
from analyses._views import effects as effects_views
from analyses.tasks import unknown

if TYPE_CHECKING:
    from typing import Self

    import plotly.graph_objects as go

    from analyses.effects import Effects, Scale
    from analyses.pairs import PromptPair
    from interp import HookedGPT2


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PairEffects(ABC):
    """Effects of patching every place, by view.

    Attributes:
        views: the effects of each view, by its name; on the normalised scale 0 is the corrupted
            run and 1 the clean one.
        direction: "denoising" or "noising".
        pair: the prompts.
        provenance: model, dtype, versions, the call.
    """

    views: "Mapping[str, Effects]"
    direction: str
    pair: "PromptPair"
    provenance: report.Provenance

    def __getitem__(self, view: str) -> "Effects":
        if view not in self.views:
            raise KeyError(unknown("view of this result", view, tuple(self.views)))
        return self.views[view]

    def to_frame(self) -> Any:
        """The tables of all views (see `Effects.to_frame`), with a column `direction`.

        An axis that a view does not have is empty there.
        """
        frame = effects_views.concatenated(self.views)
        frame.insert(1, "direction", self.direction)
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not finite is None."""
        prompts = {"clean": self.pair.str_tokens, "corrupted": self.pair.corrupted_str_tokens}
        return {
            "direction": self.direction,
            "source": self.pair.source,
            "prepend_bos": self.pair.prepend_bos,
            **{name: [list(row) for row in rows] for name, rows in prompts.items()},
            "views": [effects.to_dict() for effects in self.views.values()],
            "provenance": self.provenance.to_dict(),
        }

    def plot(self, *views: str, scale: "Scale | None" = None) -> "go.Figure":
        """Heat maps side by side, with one scale of colours.

        Args:
            views: which; by default the first, and all others on the same axes.
            scale: one of `analyses.effects.SCALES`; by default normalised.

        Raises:
            KeyError: a view that is not here.
            ValueError: views on different axes.
        """
        names = views or effects_views.grouped(self.views)[0]
        chosen = {name: self[name] for name in names}
        if len({effects.axes for effects in chosen.values()}) > 1:
            axes = "; ".join(f"{n}: {', '.join(e.axes)}" for n, e in chosen.items())
            raise ValueError(f"these views lie on different axes ({axes}): plot them one by one")
        return effects_views.panels(list(chosen.items()), scale)

    @abstractmethod
    def page(self, top_k: int = 10) -> report.Page:
        """The page that `to_html` writes, with tables of the `top_k` strongest."""

    def to_html(self, path: str | PathLike[str], *, model: "HookedGPT2 | None" = None) -> None:
        """Write a page with prompts, heat maps, the strongest places and provenance.

        It needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        result = self if model is None else self.hashed(model)
        result.page().write(path)

    def hashed(self, model: "HookedGPT2", call: str | None = None) -> "Self":
        """The same with the hash of the model's weights, and another call where one is given."""
        return replace(self, provenance=self.provenance.with_weights(model, call))

    def _lines(self, how: str) -> list[str]:
        n, source = len(self.pair), f"{self.pair.source}, " if self.pair.source else ""
        lines = [
            f"{type(self).__name__}({self.provenance.model}, {self.direction}, {how}{source}"
            f"{n} example{'s'[: n != 1]})"
        ]
        for effects in self.views.values():
            lines += [f"  {line}" for line in repr(effects).splitlines()]
        return lines

    def __repr__(self) -> str:
        return "\n".join(self._lines(""))
