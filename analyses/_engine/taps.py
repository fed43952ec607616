"""Edits applied where their tensors are born, while the model's own parts compute.

A walk carries cells of many rows in one tensor, `1 cell ...`, so to the model it looks like one
long prompt; attention comes in rectangles, `row head query key`. A tap knows which row has which
part of the tensor, and applies each row's edits there.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from hooks import Tap
from hooks.located import LocatedEdit, position_first


class RowEdit(NamedTuple):
    """An edit of one row."""

    row: int
    example: int
    edit: LocatedEdit


class Layout:
    """Cells in the order in which a walk carries them: by row, then by column.

    Attributes:
        row, column: of each cell.
        key: `row * n_columns + column` of each cell, ascending.
    """

    def __init__(self, cells: np.ndarray) -> None:
        self.row, self.column = cells.nonzero()
        self.n_columns = cells.shape[1]
        self.key = self.row * self.n_columns + self.column
        self._starts = np.searchsorted(self.row, np.arange(len(cells) + 1))

    def __len__(self) -> int:
        return len(self.key)

    def of_row(self, row: int) -> slice:
        """Where the cells of a row are."""
        return slice(self._starts[row], self._starts[row + 1])

    def part(self, chosen: np.ndarray) -> "Layout":
        """The layout of some of the cells, by a mask over them."""
        part = object.__new__(Layout)
        part.row, part.column, part.key = self.row[chosen], self.column[chosen], self.key[chosen]
        part.n_columns = self.n_columns
        part._starts = np.searchsorted(part.row, np.arange(len(self._starts)))
        return part

    def places(self, other: "Layout") -> tuple[np.ndarray, np.ndarray]:
        """The cells that both have: where they are here, and where there."""
        return _matches(self.key, other.key)


def _matches(ascending: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the wanted numbers are, and which of them are there at all."""
    if not len(ascending):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    place = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    which = (ascending[place] == wanted).nonzero()[0]
    return place[which], which


class EditTap(Tap):
    """Applies edits of rows. Looks to the model like any `Tap`.

    Args:
        edits: by the point's name within the block, in the order in which they apply.
    """

    __slots__ = ("_edits",)

    def __init__(self, edits: Mapping[str, Sequence[RowEdit]]) -> None:
        self._edits = edits

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """`value` with the edits at this point, in memory of its own if there are any."""
        todo = self._edits.get(name)
        if not todo:
            return value
        value = value.clone()
        for row, example, edit in todo:
            view, columns = self._part(value, row)
            at, which = _matches(columns, edit.columns[example])
            if len(at):
                edit.write(view, at, which, example)
        return value

    def listens(self, *names: str) -> bool:
        """Whether an edit is at any of these points."""
        return any(name in self._edits for name in names)

    def alters(self, *names: str) -> bool:
        """The same: whoever listens here does it to edit."""
        return self.listens(*names)

    @abstractmethod
    def _part(self, value: Tensor, row: int) -> tuple[Tensor, np.ndarray]:
        """A row's part of the tensor, `pos ...`, and the columns it has, ascending."""


class CellTap(EditTap):
    """Edits tensors `1 cell ...`."""

    __slots__ = ("_layout",)

    def __init__(self, edits: Mapping[str, Sequence[RowEdit]], layout: Layout) -> None:
        super().__init__(edits)
        self._layout = layout

    def _part(self, value: Tensor, row: int) -> tuple[Tensor, np.ndarray]:
        where = self._layout.of_row(row)
        return value[0, where], self._layout.column[where]


class AttentionTap(EditTap):
    """Edits tensors `row head query key`.

    Args:
        rows: the row of each entry of the first axis.
        queries: `row query`, the columns of the queries.
    """

    __slots__ = ("_place", "_queries")

    def __init__(
        self, edits: Mapping[str, Sequence[RowEdit]], rows: np.ndarray, queries: np.ndarray
    ) -> None:
        place = {row: i for i, row in enumerate(rows.tolist())}
        super().__init__(
            {name: [one for one in todo if one.row in place] for name, todo in edits.items()}
        )
        self._place, self._queries = place, queries

    def _part(self, value: Tensor, row: int) -> tuple[Tensor, np.ndarray]:
        place = self._place[row]
        views = position_first(value[place][None], ("batch", "head", "query", "key"))
        return views[0], self._queries[place]
