"""What results of weights have in common: a view, a page, the hash of the weights."""

from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from analyses import report
from analyses._views import circuits as views

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from interp import HookedGPT2


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class WeightResult:
    """A result that follows from weights alone.

    Attributes:
        weights: whether layer norms are folded into them, in words.
        provenance: model, dtype, versions, the call.
    """

    weights: str
    provenance: report.Provenance

    def to_frame(self) -> "pd.DataFrame":
        """One row per number."""
        raise NotImplementedError

    def plot(self) -> "go.Figure":
        """The main picture."""
        raise NotImplementedError

    def view(self) -> views.View:
        """What pages and the terminal show."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not there is None."""
        raise NotImplementedError

    def page(self) -> report.Page:
        """The page that `to_html` writes."""
        return views.page([self.view()], self.provenance)

    def to_html(self, path: str | PathLike[str], *, model: "HookedGPT2 | None" = None) -> None:
        """Write a page with pictures, tables and provenance. It needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        result = self if model is None else self.hashed(model)
        result.page().write(path)

    def hashed(self, model: "HookedGPT2", call: str | None = None) -> "WeightResult":
        """The same with the hash of the model's weights, and another call where one is given."""
        return replace(self, provenance=self.provenance.with_weights(model, call))

    def _about(self) -> dict[str, Any]:
        return {"weights": self.weights, "provenance": self.provenance.to_dict()}

    def _repr_html_(self) -> str:
        return self.page().frame(900)
