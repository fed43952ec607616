"""One climb through the layers with a growing batch.

Rows join at the stage of their first edit, with the base run's activations there, and carry only
cells that can differ from the base run. Whatever a row does not carry it shares with the base run:
earlier keys and values above all. The arithmetic is the model's own (`interp.model`); this file
only decides on which cells it is done.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses._engine.schedule import LayerCells, Schedule, inside
from analyses._engine.taps import AttentionTap, CellTap, Layout, RowEdit
from hooks import ActivationCache
from hooks.located import LocatedEdit
from hooks.names import layer_of
from interp import HookedGPT2
from interp.model import BlockWeights, Visibility

_OWN_INPUTS = ("hook_q_input", "hook_k_input", "hook_v_input")


@dataclass(frozen=True, eq=False)
class Base:
    """The run without edits (but with the given ones) of some prompts, from `first` on.

    Attributes:
        cache: its activations at `needed(...)`.
        allowed: which keys a query may look at, `prompt query key`.
        padded: whether some of these prompts are padded.
        first: the first of these prompts.
    """

    cache: ActivationCache
    allowed: Bool[Tensor, "prompt query key"]
    padded: bool
    first: int
    _flat: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def run(
        cls,
        model: HookedGPT2,
        tokens: Int[Tensor, "prompt pos"],
        mask: Bool[Tensor, "prompt pos"],
        first: int,
        given: Sequence[LocatedEdit],
        names: Sequence[str],
    ) -> "Base":
        """Run the model on these prompts and keep what is at `names`."""

        def hook(edit: LocatedEdit) -> Callable[[Tensor, object], None]:
            return lambda activation, hook: edit(activation, first=first)

        with model.hooks([(edit.point.name, hook(edit)) for edit in given]):
            _, cache = model.run_with_cache(
                tokens, None, attention_mask=mask, names_filter=list(names)
            )
        visible = Visibility.of(mask, mask.shape[1], padded=True)
        assert visible.allowed is not None
        return cls(cache, visible.allowed[:, 0], not bool(mask.all()), first)

    def at(self, name: str, example: np.ndarray, column: np.ndarray) -> Tensor:
        """What the base run has at a point in these cells: the shape of `example`, then the
        point's axes after batch and pos."""
        if name not in self._flat:
            # Rows next to each other, so that picking them is copying them.
            self._flat[name] = self.cache.tensors[name].flatten(0, 1)
        flat = self._flat[name]
        cells = (example - self.first) * self.allowed.shape[1] + column
        return flat.index_select(0, index(cells.ravel(), flat)).view(*cells.shape, *flat.shape[1:])

    def visible(self, example: np.ndarray, queries: np.ndarray, n_keys: int) -> Tensor:
        """Which of the first `n_keys` keys queries may look at: `#row query key`.

        Args:
            example: of each row.
            queries: `row query`, their columns.
        """
        if not self.padded and bool((queries == queries[0]).all()):
            example, queries = example[:1], queries[:1]
        prompt = index(example - self.first, self.allowed)
        return self.allowed[prompt[:, None], index(queries, self.allowed), :n_keys]


def index(numbers: np.ndarray, like: Tensor) -> Tensor:
    """Indices on the device of a tensor."""
    return torch.from_numpy(numbers).to(like.device)


def needed(edits: Sequence[LocatedEdit], n_layers: int) -> list[str]:
    """The points of the base run that a walk with these edits may have to look up."""
    points = [edit.point.name for edit in edits]
    # What is edited at the final layer norm joins after the last block.
    inside_blocks = [layer_of(name) or 0 for name in points if not name.startswith("ln_final")]
    first = min(inside_blocks, default=n_layers)
    names = {f"blocks.{n_layers - 1}.hook_resid_post"}
    embeddings = {"hook_embed", "hook_pos_embed"}
    if embeddings.intersection(points):
        names |= embeddings
    for layer in range(first, n_layers):
        names |= {
            f"blocks.{layer}.{name}"
            for name in ("hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v")
        }
    for layer in map(layer_of, points):
        if layer is not None:
            names |= {
                f"blocks.{layer}.{name}"
                for name in ("attn.hook_z", "hook_resid_mid", "hook_resid_post")
            }
    return sorted(names)


class Walk:
    """The climb of some rows.

    Args:
        model: whose parts compute.
        base: the base run of (at least) the rows' prompts.
        schedule: of the rows.
        given: edits on in every row.
    """

    def __init__(
        self,
        model: HookedGPT2,
        base: Base,
        schedule: Schedule,
        given: Sequence[LocatedEdit],
    ) -> None:
        self._model, self._base, self._schedule = model, base, schedule
        self._example = schedule.example
        self._own = self._by_layer(
            (i, edit) for i, r in enumerate(schedule.rows) for edit in r.edits
        )
        self._given = self._by_layer((i, edit) for edit in given for i in range(len(schedule.rows)))

    def _by_layer(
        self, pairs: Iterator[tuple[int, LocatedEdit]]
    ) -> dict[int | None, dict[str, list[RowEdit]]]:
        found: dict[int | None, dict[str, list[RowEdit]]] = defaultdict(lambda: defaultdict(list))
        for row, edit in pairs:
            name = edit.point.name
            entry = RowEdit(row, int(self._example[row]), edit)
            found[layer_of(name)][inside(name)].append(entry)
        return {layer: dict(points) for layer, points in found.items()}

    def run(self) -> Iterator[float]:
        """Climb; yields after every block how much of the whole was done since the last time.
        Then `layout` and `normalized` are there.

        `normalized`: `cell d_model`, what the final layer norm gives at the cells read that can
        differ from the base run.
        """
        model = self._model
        residual, layout = self._embedded()
        weights = dict(model.block_weights())
        n_layers, done = model.cfg.n_layers, 0
        for cells in self._schedule.layers():
            residual, layout = self._block(cells, residual, layout, weights[cells.layer])
            yield (cells.layer + 1 - done) / n_layers
            done = cells.layer + 1
        carried = np.zeros_like(self._schedule.reads)
        carried[layout.row, layout.column] = True
        final = Layout(self._schedule.final(carried))
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        residual = self._regrid(residual, layout, final, last)
        tap = CellTap(self._merged(None), final)
        self.layout = final
        weight, bias = model.weight("ln_f.weight"), model.weight("ln_f.bias")
        self.normalized = model.layer_norm("ln_final", residual[None], weight, bias, tap)[0]

    def _merged(self, layer: int | None) -> Mapping[str, Sequence[RowEdit]]:
        """Given edits, then the rows' own, at each point of a layer."""
        given, own = self._given.get(layer, {}), self._own.get(layer, {})
        return {
            name: [*given.get(name, ()), *own.get(name, ())]
            for name in dict.fromkeys((*given, *own))
        }

    def _embedded(self) -> tuple[Tensor, Layout]:
        layout = Layout(self._schedule.embedded())
        if not len(layout):
            like = self._model.W_E
            return like.new_empty(0, like.shape[1]), layout
        # The base run has the given edits in it already: only the rows' own come here.
        tap = CellTap(self._own.get(None, {}), layout)
        parts = [
            tap(name, self._base.at(name, self._example[layout.row], layout.column)[None])[0]
            for name in ("hook_embed", "hook_pos_embed")
        ]
        return parts[0] + parts[1], layout

    def _regrid(
        self, values: Float[Tensor, "cell ..."], old: Layout, new: Layout, name: str
    ) -> Float[Tensor, "new ..."]:
        """Values on other cells: those not carried so far are the base run's at a point."""
        if len(old) == len(new) and np.array_equal(old.key, new.key):
            return values
        there, here = old.places(new)
        if len(here) == len(new):
            return values.index_select(0, index(there, values))
        grown = self._base.at(name, self._example[new.row], new.column)
        new_values = values.index_select(0, index(there, values))
        return grown.index_copy_(0, index(here, grown), new_values)

    def _joined(
        self, values: Tensor, old: Layout, new: Layout, layer: int, point: str
    ) -> Float[Tensor, "new ..."]:
        """Values at a point where rows join, edited: given edits before, as what joins from the
        base run has them already, the rows' own after."""
        given = {point: self._given.get(layer, {}).get(point, [])}
        values = CellTap(given, old)(point, values[None])[0]
        values = self._regrid(values, old, new, f"blocks.{layer}.{point}")
        own = {point: self._own.get(layer, {}).get(point, [])}
        return CellTap(own, new)(point, values[None])[0]

    def _block(
        self, cells: LayerCells, residual: Tensor, carried: Layout, w: BlockWeights
    ) -> tuple[Tensor, Layout]:
        model, layer = self._model, cells.layer
        edits = self._merged(layer)

        enter = Layout(cells.enter)
        resid_pre = self._joined(residual, carried, enter, layer, "hook_resid_pre")
        qkv = self._apart(
            _OWN_INPUTS,
            edits,
            enter,
            lambda tap, part: model.queries_keys_values(part[None], w, tap),
            resid_pre,
        )

        attend = Layout(cells.attend)
        z = self._attention(layer, edits, enter, attend, [part[0] for part in qkv])

        write = Layout(cells.write)
        z = self._joined(z, attend, write, layer, "attn.hook_z")
        (attn_out,) = self._apart(
            ("attn.hook_result",),
            edits,
            write,
            lambda tap, part: (model.attn_output(part[None], w, tap),),
            z,
        )
        attn_out = CellTap(edits, write)("hook_attn_out", attn_out)[0]
        before = self._regrid(resid_pre, enter, write, f"blocks.{layer}.hook_resid_pre")

        mlp = Layout(cells.mlp)
        resid_mid = self._joined(before + attn_out, write, mlp, layer, "hook_resid_mid")
        tap = CellTap(edits, mlp)
        mlp_out = tap("hook_mlp_out", model.mlp_out(resid_mid[None], w, tap))[0]

        leave = Layout(cells.leave)
        return self._joined(resid_mid + mlp_out, mlp, leave, layer, "hook_resid_post"), leave

    def _apart(
        self,
        points: Sequence[str],
        edits: Mapping[str, Sequence[RowEdit]],
        layout: Layout,
        compute: Callable[[CellTap, Tensor], tuple[Tensor, ...]],
        values: Tensor,
    ) -> list[Tensor]:
        """`compute`, on the rows with edits at these points apart from the others: there the model
        computes per head what it otherwise computes at once."""
        rows = {one.row for point in points for one in edits.get(point, ())}
        if not rows or not len(layout):
            return list(compute(CellTap(edits if len(layout) else {}, layout), values))
        special = np.isin(layout.row, list(rows))
        found: list[Tensor] = []
        for chosen in (special, ~special):
            if not chosen.any():
                continue
            part = layout.part(chosen)
            here = set(part.row.tolist())
            own = {
                name: kept
                for name, todo in edits.items()
                if (kept := [one for one in todo if one.row in here])
            }
            at = index(chosen.nonzero()[0], values)
            outputs = compute(CellTap(own, part), values[at])
            if not found:
                found = [out.new_empty(1, len(layout), *out.shape[2:]) for out in outputs]
            for whole, out in zip(found, outputs, strict=True):
                whole[:, at] = out
        return found

    def _attention(
        self,
        layer: int,
        edits: Mapping[str, Sequence[RowEdit]],
        enter: Layout,
        attend: Layout,
        qkv: Sequence[Tensor],
    ) -> Float[Tensor, "cell head d_head"]:
        """What the queries of `attend` gather, where keys and values are new at `enter`."""
        q = self._regrid(qkv[0], enter, attend, f"blocks.{layer}.attn.hook_q")
        z = torch.empty_like(q)
        points = ("attn.hook_attn_scores", "attn.hook_pattern")
        looked = {one.row for point in points for one in edits.get(point, ())}
        patterns = {point: edits[point] for point in points if point in edits}
        for rows, places in self._rectangles(attend, looked):
            queries = attend.column[places]  # row query
            explicit = int(rows[0]) in looked
            n_keys = attend.n_columns if explicit else int(queries.max()) + 1
            k, v = (
                self._keys(layer, name, values, enter, rows, n_keys)
                for name, values in (("attn.hook_k", qkv[1]), ("attn.hook_v", qkv[2]))
            )
            at = index(places.ravel(), q)
            gathered = self._model.attend(
                layer,
                q.index_select(0, at).view(*places.shape, *q.shape[1:]).transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                self._base.visible(self._example[rows], queries, n_keys)[:, None],
                AttentionTap(patterns if explicit else {}, rows, queries),
            )
            z.index_copy_(0, at, gathered.flatten(0, 1))
        return z

    def _rectangles(
        self, layout: Layout, looked: set[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows with equally many queries, and where these are in the layout, `row query`."""
        rows, counts = np.unique(layout.row, return_counts=True)
        explicit = np.isin(rows, list(looked))
        for count in np.unique(counts).tolist():
            for kind in (False, True):
                chosen = rows[(counts == count) & (explicit == kind)]
                if len(chosen):
                    starts = np.searchsorted(layout.row, chosen)
                    yield chosen, starts[:, None] + np.arange(count)

    def _keys(
        self, layer: int, name: str, values: Tensor, enter: Layout, rows: np.ndarray, n_keys: int
    ) -> Float[Tensor, "row key head d_head"]:
        """Keys (or values) of all positions of some rows: the base run's, and the new ones."""
        columns = np.arange(n_keys)[None].repeat(len(rows), axis=0)
        example = self._example[rows][:, None].repeat(n_keys, axis=1)
        every = self._base.at(f"blocks.{layer}.{name}", example, columns)
        chosen = (np.isin(enter.row, rows) & (enter.column < n_keys)).nonzero()[0]
        at = np.searchsorted(rows, enter.row[chosen]) * n_keys + enter.column[chosen]
        new = values.index_select(0, index(chosen, values))
        every.flatten(0, 1).index_copy_(0, index(at, every), new)
        return every
