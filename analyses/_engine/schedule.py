"""Which places of which rows can change, layer by layer.

A *row* is one intervention on one prompt. All its activations are those of the base run until its
first edit; from there on a set of positions, its *cells*, is carried and recomputed. Within a block
each position is on its own but for attention, where a changed key or value reaches all later
queries. So a row's cells change at five stages of a block:

| stage | edits that add cells | cells |
|---|---|---|
| enter | `resid_pre`, `attn_in`, `ln1`, `q/k/v_input`, `q`, `k`, `v` | carried + edited |
| attend | `attn_scores`, `pattern` | + edited queries + all after the first changed key or value |
| write | `z`, `result`, `attn_out` | + edited |
| mlp | `resid_mid`, `mlp_in`, `ln2`, `pre`, `post`, `mlp_out` | + edited |
| leave | `resid_post` | + edited |

No position after the last one read is ever carried, and in the last block, once keys and values are
known, only the positions read. Edits at the embeddings come before block 0, those at the final
layer norm after the last.

Sets of cells are boolean matrices `row pos`; the pos axis is the column of the token tensor.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hooks.located import LocatedEdit
from hooks.names import layer_of

EMBED, ENTER, ATTEND, WRITE, MLP, LEAVE, FINAL = range(7)
_STAGES = {
    "hook_embed": EMBED,
    "hook_pos_embed": EMBED,
    "hook_resid_pre": ENTER,
    "hook_attn_in": ENTER,
    "ln1.hook_scale": ENTER,
    "ln1.hook_normalized": ENTER,
    "hook_q_input": ENTER,
    "hook_k_input": ENTER,
    "hook_v_input": ENTER,
    "attn.hook_q": ENTER,
    "attn.hook_k": ENTER,
    "attn.hook_v": ENTER,
    "attn.hook_attn_scores": ATTEND,
    "attn.hook_pattern": ATTEND,
    "attn.hook_z": WRITE,
    "attn.hook_result": WRITE,
    "hook_attn_out": WRITE,
    "hook_resid_mid": MLP,
    "hook_mlp_in": MLP,
    "ln2.hook_scale": MLP,
    "ln2.hook_normalized": MLP,
    "mlp.hook_pre": MLP,
    "mlp.hook_post": MLP,
    "hook_mlp_out": MLP,
    "hook_resid_post": LEAVE,
    "ln_final.hook_scale": FINAL,
    "ln_final.hook_normalized": FINAL,
}
# A changed query changes what its own position gathers, and no other's.
_QUERY_ONLY = ("hook_q_input", "attn.hook_q")

Cells = np.ndarray  # bool, row pos


def inside(name: str) -> str:
    """A point's name within its block."""
    return name.split(".", 2)[2] if layer_of(name) is not None else name


def stage_of(name: str) -> int:
    """The stage at which an edit at this point adds cells."""
    return _STAGES[inside(name)]


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One intervention on one prompt.

    Attributes:
        intervention: its place in the sweep.
        example: the prompt's place in the batch.
        edits: the intervention's edits.
        changed: per edit, the columns of the prompt at which it can change the base run.
    """

    intervention: int
    example: int
    edits: tuple[LocatedEdit, ...]
    changed: tuple[np.ndarray, ...]


class LayerCells(NamedTuple):
    """The cells of all rows at the stages of one block (see the table above)."""

    layer: int
    enter: Cells
    attend: Cells
    write: Cells
    mlp: Cells
    leave: Cells


class _Additions(NamedTuple):
    rows: np.ndarray
    columns: np.ndarray


class Schedule:
    """The cells of some rows.

    Args:
        rows: interventions on prompts.
        given: edits that are on in the base run and in every row.
        reads: `example pos`, where a metric reads.
        real: `example pos`, where tokens are.
        n_layers: blocks of the model.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        given: Sequence[LocatedEdit],
        reads: Cells,
        real: Cells,
        n_layers: int,
    ) -> None:
        self.rows = rows
        self.n_layers = n_layers
        self.example = np.array([row.example for row in rows], dtype=np.int64)
        self.reads = reads[self.example]
        self._real = real[self.example]
        self._given_queries = self._queries_of_given(given)
        self._needed = self._carried_at_most(given)
        self._additions = self._all_additions()
        self._spreading = self._all_additions(spreading=True)

    def _queries_of_given(self, given: Sequence[LocatedEdit]) -> dict[int, Cells]:
        found: dict[int, Cells] = {}
        for edit in given:
            if edit.is_attention:
                where = found.setdefault(edit.point.layer(), np.zeros_like(self._real))
                for row, example in enumerate(self.example):
                    where[row, edit.columns[example]] = True
        return found

    def _carried_at_most(self, given: Sequence[LocatedEdit]) -> Cells:
        """Everything up to the last position read; all of it where an edited pattern may look at
        what comes later."""
        later = np.logical_or.accumulate(self.reads[:, ::-1], axis=1)[:, ::-1]
        for index, row in enumerate(self.rows):
            if any(edit.is_attention for edit in (*row.edits, *given)):
                later[index] = True
        return later & self._real

    def _all_additions(self, *, spreading: bool = False) -> dict[tuple[int, int], _Additions]:
        """(layer, stage) -> the cells that edits add there."""
        lists: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = defaultdict(list)
        for index, row in enumerate(self.rows):
            for edit, columns in zip(row.edits, row.changed, strict=True):
                if not len(columns) or (spreading and inside(edit.point.name) in _QUERY_ONLY):
                    continue
                layer = layer_of(edit.point.name)
                stage = stage_of(edit.point.name)
                lists[0 if layer is None else layer, stage].append((index, columns))
        return {
            key: _Additions(
                np.repeat([index for index, _ in found], [len(columns) for _, columns in found]),
                np.concatenate([columns for _, columns in found]),
            )
            for key, found in lists.items()
        }

    def _with(
        self, cells: Cells, layer: int, stage: int, additions: dict[tuple[int, int], _Additions]
    ) -> Cells:
        found = additions.get((layer, stage))
        if found is None:
            return cells
        cells = cells.copy()
        cells[found.rows, found.columns] = True
        return cells

    def _added(self, cells: Cells, layer: int, stage: int) -> Cells:
        return self._with(cells, layer, stage, self._additions)

    def embedded(self) -> Cells:
        """The cells changed before block 0."""
        return self._added(np.zeros_like(self._real), 0, EMBED) & self._needed

    def layers(self) -> Iterator[LayerCells]:
        """The cells of each block, from the first that has any."""
        carried = self.embedded()
        for layer in range(self.n_layers):
            last = layer == self.n_layers - 1
            enter = self._added(carried, layer, ENTER) & self._needed
            spreading = self._with(carried, layer, ENTER, self._spreading) & self._needed
            attend = self._added(enter, layer, ATTEND) | np.logical_or.accumulate(spreading, axis=1)
            if layer in self._given_queries:
                attend = attend | self._given_queries[layer] & spreading.any(1, keepdims=True)
            after = self._needed & self.reads if last else self._needed
            attend = attend & after
            write = self._added(attend, layer, WRITE) & after
            mlp = self._added(write, layer, MLP) & after
            carried = self._added(mlp, layer, LEAVE) & after
            if enter.any() or carried.any():
                yield LayerCells(layer, enter, attend, write, mlp, carried)

    def final(self, carried: Cells) -> Cells:
        """The cells that are read in the end, of those that the last block leaves."""
        return self._added(carried, 0, FINAL) & self.reads
