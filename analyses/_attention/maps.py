"""What attention results have in common: matrices of query and key, and what to do with them.

[`analyses.attention`][] makes the results and says what the matrices mean.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses import report
from analyses._arguments import listed, whole
from analyses._attention.matrices import MATRICES, checked_matrix
from analyses._heads.names import Head, checked_heads, checked_layers

if TYPE_CHECKING:
    from typing import Self

    import pandas as pd
    import plotly.graph_objects as go

    from interp import HookedGPT2


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AttentionMaps(ABC):
    """Per head a matrix of queries and keys, under several names.

    Attributes:
        heads: the axis `component`.
        positions: the axes `query` and `key`: positions of the prompt, from 0, ascending.
        n_tokens: of the prompt.
        n_layers, n_heads: of the model.
        provenance: model, dtype, versions, the call.
    """

    heads: tuple[Head, ...]
    positions: tuple[int, ...]
    n_tokens: int
    n_layers: int
    n_heads: int
    provenance: report.Provenance

    @property
    @abstractmethod
    def signed(self) -> bool:
        """Whether zero is the middle of every matrix, as in a difference."""

    @abstractmethod
    def of_heads(self, name: str, index: Sequence[int]) -> Float[Tensor, "component query key"]:
        """`matrix(name)` of the heads at these places of the axis `component` only."""

    @abstractmethod
    def token_columns(self) -> dict[str, tuple[str, ...]]:
        """Per prompt, its tokens as strings; the names go before `query_token` and `key_token`."""

    @abstractmethod
    def _restricted(self, index: Sequence[int], slots: Sequence[int]) -> "Self":
        """The same of some heads and positions, by their places on the axes."""

    @abstractmethod
    def page(self) -> report.Page:
        """The page that `to_html` writes."""

    # -------------------------------------------------------------- numbers

    def matrix(self, name: str) -> Float[Tensor, "component query key"]:
        """One of `MATRICES`, of all heads.

        Raises:
            ValueError: there is no such matrix; names the nearest.
        """
        return self.of_heads(name, range(len(self.heads)))

    def head(self, head: Any, name: str = "pattern") -> Float[Tensor, "query key"]:
        """One matrix of one head.

        Args:
            head: `"3.1"`, a `Head` or a pair; negative layers count from the end.
            name: one of `MATRICES`.

        Raises:
            ValueError: no such matrix, or the head is not here; says which are.
        """
        return self.of_heads(name, [self.index(head)])[0]

    def index(self, head: Any) -> int:
        """The place of a head on the axis `component`.

        Raises:
            ValueError: it is not here; says which are.
        """
        (wanted,) = self._found(checked_heads(head, self.n_layers, self.n_heads))
        return wanted

    def slot(self, position: int) -> int:
        """The place of a position of the prompt on the axes `query` and `key`.

        Args:
            position: negative ones count from the end of the prompt.

        Raises:
            IndexError: the prompt has no such position.
            ValueError: it was left out of this selection.
        """
        return self._slots([position])[0]

    @property
    def shown(self) -> Bool[Tensor, "query key"]:
        """True where a query may attend to a key: at itself and before."""
        at = torch.tensor(self.positions)
        return at[:, None] >= at[None, :]

    def _found(self, asked: Iterable[Head]) -> list[int]:
        places = {head: i for i, head in enumerate(self.heads)}
        for head in asked:
            if head not in places:
                few = ", ".join(map(str, self.heads[:8])) + (", ..." if len(places) > 8 else "")
                raise ValueError(f"head {head} is not in this result; it has {few}")
        return [places[head] for head in asked]

    def _slots(self, asked: Iterable[int]) -> list[int]:
        places = {position: i for i, position in enumerate(self.positions)}
        found: dict[int, int] = {}
        for position in asked:
            if not -self.n_tokens <= position < self.n_tokens:
                raise IndexError(
                    f"position {position} is out of range: the prompt has {self.n_tokens} tokens, "
                    f"0 to {self.n_tokens - 1} (or -{self.n_tokens} to -1)"
                )
            real = position % self.n_tokens
            if real not in places:
                raise ValueError(
                    f"position {real} is not in this selection; it has "
                    f"{', '.join(map(str, self.positions))}"
                )
            if real in found:
                raise ValueError(f"position {real} is asked for twice ({found[real]}, {position})")
            found[real] = position
        return [places[real] for real in sorted(found)]

    def select(
        self,
        *,
        layers: int | Sequence[int] | None = None,
        heads: Any = None,
        positions: SupportsIndex | Iterable[SupportsIndex] | None = None,
    ) -> "Self":
        """Some heads and some positions only.

        Args:
            layers: those heads of these layers that are here.
            heads: as in `attention`; not together with layers.
            positions: keep these queries and keys, in the order of the prompt, under their numbers
                in the whole prompt; negative ones count from its end. A row of the pattern then
                need not add up to 1: what went to other keys is gone.

        Raises:
            ValueError: heads or positions that are not here, one twice, none at all, or layers
                and heads together.
            IndexError: no such layer, head or position in the model and the prompt.
            TypeError: positions that are no whole numbers.
        """
        index: Sequence[int] = range(len(self.heads))
        if layers is not None:
            if heads is not None:
                raise ValueError("give layers (all heads of each) or heads, not both")
            wanted = checked_layers(layers, self.n_layers)
            for layer in wanted:
                if layer not in {head.layer for head in self.heads}:
                    here = ", ".join(map(str, sorted({head.layer for head in self.heads})))
                    raise ValueError(f"layer {layer} is not in this result; it has {here}")
            index = [i for layer in wanted for i, head in enumerate(self.heads)
                     if head.layer == layer]  # fmt: skip
        elif heads is not None:
            index = self._found(checked_heads(heads, self.n_layers, self.n_heads))
        slots: Sequence[int] = range(len(self.positions))
        if positions is not None:
            slots = self._slots(_whole_numbers(positions))
        return self._restricted(index, slots)

    # -------------------------------------------------------------- tables

    def to_frame(self, *names: str) -> "pd.DataFrame":
        """One row per head, query and key that is not after the query.

        Columns: `layer`, `head`, `query`, `query_token`, `key`, `key_token`, and one per matrix.
        (The tokens of the second prompt of a difference are `other_query_token` and so on.)

        Args:
            names: of `MATRICES`; none given: all but `scaled_scores`, which is the same as
                `scores` on these rows unless a hook changed the scores.

        Raises:
            ValueError: there is no such matrix.
        """
        import pandas as pd

        chosen = names or tuple(name for name in MATRICES if name != "scaled_scores")
        queries, keys = (at.numpy() for at in self.shown.nonzero(as_tuple=True))
        n, at = len(self.heads), torch.tensor(self.positions).numpy()
        columns: dict[str, Any] = {
            "layer": torch.tensor([h.layer for h in self.heads]).repeat_interleave(len(keys)),
            "head": torch.tensor([h.head for h in self.heads]).repeat_interleave(len(keys)),
        }
        for axis, slots in (("query", queries), ("key", keys)):
            columns[axis] = torch.from_numpy(at[slots]).repeat(n)
            for prefix, tokens in self.token_columns().items():
                columns[f"{prefix}{axis}_token"] = [tokens[p] for p in at[slots]] * n
        for name in chosen:
            columns[name] = self.matrix(name)[:, queries, keys].reshape(-1)
        return pd.DataFrame(
            {
                name: column.numpy() if isinstance(column, Tensor) else column
                for name, column in columns.items()
            }
        )

    def links(
        self, top_k: int = 3, matrix: str = "pattern", *, skip_first: bool = True
    ) -> "pd.DataFrame":
        """The strongest links of each head, strongest first.

        Most heads of a GPT-2 rest on the first token when they have nothing to do, so without
        `skip_first` a table of strongest links is a column of zeros.

        Columns: `layer`, `head`, `rank` (from 0), `query`, `query_token`, `key`, `key_token`, and
        the matrix by its name.

        Args:
            top_k: how many per head; fewer where there are not so many. A NaN comes last.
            matrix: one of `MATRICES`. Strongest is largest, in a difference furthest from 0.
            skip_first: leave out links to position 0.

        Raises:
            ValueError: no such matrix, or top_k < 1. TypeError: top_k is no whole number.
        """
        import pandas as pd

        if isinstance(top_k, bool) or not isinstance(top_k, int):
            raise TypeError(f"top_k is a whole number, not {top_k!r}")
        if top_k < 1:
            raise ValueError(f"top_k={top_k} is out of range: expected at least 1")
        allowed = self.shown
        if skip_first and self.positions[0] == 0:
            allowed[:, 0] = False
        places = allowed.reshape(-1).nonzero()[:, 0]
        values = self.matrix(matrix).flatten(1)[:, places]
        strength = values.abs() if self.signed else values
        strength = strength.masked_fill(strength.isnan(), -math.inf)
        order = strength.topk(min(top_k, len(places))).indices
        rows = []
        for head, best, numbers in zip(
            self.heads, places[order].tolist(), values.gather(1, order).tolist(), strict=True
        ):
            for rank, (place, number) in enumerate(zip(best, numbers, strict=True)):
                row: dict[str, Any] = {"layer": head.layer, "head": head.head, "rank": rank}
                ends = divmod(place, len(self.positions))
                for axis, slot in zip(("query", "key"), ends, strict=True):
                    row[axis] = self.positions[slot]
                    for prefix, tokens in self.token_columns().items():
                        row[f"{prefix}{axis}_token"] = tokens[self.positions[slot]]
                rows.append(row | {matrix: number})
        tokens = [f"{prefix}{{}}_token" for prefix in self.token_columns()]
        sides = [c for axis in ("query", "key") for c in (axis, *(t.format(axis) for t in tokens))]
        return pd.DataFrame(rows, columns=["layer", "head", "rank", *sides, matrix])

    def busiest(self) -> tuple[Head, ...]:
        """The heads, those with most to see first.

        That is: whose queries give most, at best and on average over queries, to one token other
        than the first and themselves; in a difference, whose patterns differ most.
        """
        order = self._most_to_see().argsort(descending=True, stable=True)
        return tuple(self.heads[i] for i in order.tolist())

    def busiest_layer(self) -> int:
        """The layer whose heads have, on average, most to see."""
        layers = torch.tensor([head.layer for head in self.heads])
        to_see = self._most_to_see()
        return max(
            layers.unique().tolist(), key=lambda layer: float(to_see[layers == layer].mean())
        )

    def _most_to_see(self) -> Float[Tensor, " component"]:
        values = self.matrix("pattern").abs()
        if not self.signed:
            other = self.shown & ~torch.eye(len(self.positions), dtype=torch.bool)
            other[:, 0] &= self.positions[0] != 0
            values = values * other
        return values.nan_to_num(0.0).amax(-1).mean(-1)

    # -------------------------------------------------------------- pictures

    def label(self, slot: int) -> str:
        """A position with its token, for reading: `4 ·Mary`.

        Args:
            slot: a place on the axes `query` and `key`.
        """
        from analyses._views import attention as views

        return views.labels(self)[slot]

    def plot(self, head: Any = None, matrix: str = "pattern") -> "go.Figure":
        """One head large, or all as small maps (layers down, heads across).

        Hovering shows query, key and the exact value; queries are rows, keys columns. Small maps
        of long prompts show blocks of positions, each by its value furthest from zero, and say so.

        Args:
            head: as in `head`; None for all.
            matrix: one of `MATRICES`.

        Raises:
            ValueError: no such head or matrix here.
        """
        from analyses._views import attention_figures as views

        if head is None:
            return views.montage(self, checked_matrix(matrix))
        return views.head_map(self, self.index(head), checked_matrix(matrix))

    def side_by_side(self, layer: int | None = None, matrix: str = "pattern") -> report.View:
        """The heads of one layer next to each other (circuitsvis), one of them large.

        A notebook shows what is returned, without any network; `Page.view` takes it too.

        Args:
            layer: negative ones count from the end; None for `busiest_layer()`.
            matrix: one of `MATRICES`.

        Raises:
            ValueError: no such matrix, no head of this layer is here, or more cells than
                circuitsvis can draw.
            IndexError: the model has no such layer.
        """
        from analyses._views import attention_figures as views

        chosen = self.select(layers=self.busiest_layer() if layer is None else layer)
        return views.side_by_side(chosen, checked_matrix(matrix))

    def attended(self, head: Any, query: int = -1, matrix: str = "pattern") -> report.View:
        """What one query attends to in one head, as coloured tokens (circuitsvis).

        A notebook shows what is returned, without any network; `Page.view` takes it too.

        Args:
            head: `"3.1"`, a `Head` or a pair.
            query: position of the prompt; negative ones count from its end.
            matrix: one of `MATRICES`.

        Raises:
            ValueError, IndexError: no such head, position or matrix here.
        """
        from analyses._views import attention_figures as views

        slot = self.slot(query)
        return views.attended(self, self.index(head), slot, checked_matrix(matrix))

    def _repr_html_(self) -> str:
        from analyses._views import attention_page as views

        return views.notebook(self)

    def hashed(self, model: "HookedGPT2", call: str | None = None) -> "Self":
        """The same with the hash of the model's weights in its provenance (reads all of them
        once), and with the call that made it where one is given."""
        return replace(self, provenance=self.provenance.with_weights(model, call))

    def to_html(self, path: str | PathLike[str], *, model: "HookedGPT2 | None" = None) -> None:
        """Write the page. It needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        (self if model is None else self.hashed(model)).page().write(path)


def _whole_numbers(positions: Any) -> list[int]:
    asked = listed(positions)
    if not asked:
        raise ValueError("positions is empty; leave it out for all")
    return [whole(position, "positions are whole numbers") for position in asked]
