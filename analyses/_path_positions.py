"""At which tokens senders are changed and receivers patched."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses._path_walk import Cells, Received, Receiver
from analyses.pairs import PromptPair
from hooks import Patch
from hooks.located import columns_of, real_columns
from hooks.names import nearest

# Names or numbers, the same for every example, or a row per example.
Positions = (
    int
    | str
    | Sequence[int]
    | Sequence[str]
    | Int[Tensor, " example"]
    | Int[Tensor, "example slot"]
    | None
)


@dataclass(frozen=True, eq=False)
class Where:
    """The positions asked for.

    Attributes:
        columns: `example slot`.
        present: which of them an example has, `example slot`.
        everywhere: whether they are all positions.
        apart: whether each is an intervention of its own.
        labels: per slot.
        numbers: per slot, where it is the same number in every example.
        shown: what was asked for, as text.
    """

    columns: Int[Tensor, "example slot"]
    present: Bool[Tensor, "example slot"]
    everywhere: bool
    apart: bool
    labels: tuple[str, ...]
    numbers: tuple[int, ...] | None
    shown: str

    @classmethod
    def of(cls, pair: PromptPair, pos: Positions, apart: bool) -> "Where":
        labels = pair.position_labels()
        if pos is None and apart and pair.is_padded:
            named = f" ({', '.join(pair.positions)})" if pair.positions else ""
            raise ValueError(
                f"examples differ in length, so their positions mean different things: with "
                f"by_position ask for positions{named}, or take examples of one length "
                f"(PromptPair.groups(), or one template of a task)"
            )
        if pos is None:
            columns = torch.arange(pair.clean.shape[1]).expand(len(pair), -1)
            numbers = tuple(range(columns.shape[1]))
            present = pair.attention_mask.cpu()
            return cls(columns, present, True, apart, labels, numbers, "all")
        if isinstance(pos, Tensor):
            given = pos.cpu().reshape(len(pos), -1)
            names: list[str | None] = [None] * given.shape[1]
            shown = "one row per example"
        else:
            asked = [pos] if isinstance(pos, str | int) else list(pos)
            if not asked:
                raise ValueError("pos is empty; None means all positions")
            rows = [_position(pair, one) for one in asked]
            names = [one if isinstance(one, str) else None for one in asked]
            given, shown = torch.stack(rows, dim=1), ", ".join(map(str, asked))
        found = columns_of(given, real_columns(pair.attention_mask), "pos")
        columns = torch.stack([torch.from_numpy(row) for row in found])
        shared = [len(set(column.tolist())) == 1 for column in columns.T]
        first = columns[0].tolist()
        return cls(
            columns=columns,
            present=torch.ones_like(columns, dtype=torch.bool),
            everywhere=False,
            apart=apart,
            labels=tuple(
                name or (labels[column] if same else f"position {slot} asked for")
                for slot, (name, column, same) in enumerate(zip(names, first, shared, strict=True))
            ),
            numbers=tuple(first) if all(shared) else None,
            shown=shown,
        )

    def patches(self, received: Received, cells: Cells) -> list[list[Patch]]:
        """Step 3 for one sender: an intervention, or one per position."""
        if not received:
            return []
        full = {receiver: cells.unfold(value, self.columns) for receiver, value in received.items()}
        if not self.apart:
            pos = None if self.everywhere else self.columns
            return [[_patch(receiver, pos, value) for receiver, value in full.items()]]
        found = []
        for slot, columns in enumerate(self.columns.T):
            pos = columns[:, None]
            found.append([_patch(r, pos, value[:, slot, None]) for r, value in full.items()])
        return found


def _patch(receiver: Receiver, pos: Tensor | None, value: Tensor) -> Patch:
    return Patch((receiver.point, receiver.layer), pos=pos, head=receiver.head, source=value)


def _position(pair: PromptPair, one: str | int) -> Int[Tensor, " example"]:
    if not isinstance(one, str):
        return torch.full((len(pair),), one)
    if one not in pair.positions:
        known = ", ".join(pair.positions) or "none"
        raise ValueError(
            f"these prompts have no position {one!r}.{nearest(one, pair.positions)} Named "
            f"positions here: {known}"
        )
    return pair.positions[one].cpu()
