"""Virtual weights: what connects two parts of a model through the residual stream."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from analyses import cli
from analyses._circuits.parts import Part, reader, writer
from analyses._circuits.result import WeightResult
from analyses._circuits.source import (
    AT_ONCE,
    Weights,
    check_finite,
    heads_of,
    number_of,
    provenance_of,
    strings,
    weights_note,
)
from analyses._heads.names import checked_heads
from analyses._views import circuits as views
from analyses._views import virtual as pictures
from interp import FactoredMatrix, HookedGPT2
from interp.composition import composition_scores, random_composition

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class VirtualWeights(WeightResult):
    """The weights between what one part writes and another one reads.

    Attributes:
        writer, reader: their names.
        matrix: from one to the other, kept factored.
        score: the composition score of both: `|M N| / (|M| |N|)`, 0 to 1.
        baseline: what random matrices give; see `composition`.
        sigmas: how far the squared score is above that, in standard deviations.
        singular_values: all, falling.
        entries: the strongest single weights, as (from, to, value), by falling magnitude. A side
            that has no basis of its own (a head's) is taken as a whole: then the value is the norm
            of the other side's row or column.
    """

    writer: str
    reader: str
    matrix: FactoredMatrix
    score: float
    baseline: float
    sigmas: float
    singular_values: Float[Tensor, " rank"]
    entries: tuple[tuple[str, str, float], ...]

    def to_frame(self) -> "pd.DataFrame":
        """One row per number: `writer`, `reader`, `quantity`, `index`, `from`, `to`, `value`.

        Quantities: `score`, `baseline`, `sigmas`; `weight` of the strongest connections, `from` and
        `to` saying of what (tokens, positions, neurons, or a head as a whole); `singular_value`.
        """
        import pandas as pd

        rows: list[tuple[str, int, str, str, float]] = [
            (name, 0, "", "", getattr(self, name)) for name in ("score", "baseline", "sigmas")
        ]
        rows += [("weight", i, *entry) for i, entry in enumerate(self.entries)]
        values = self.singular_values.double().tolist()
        rows += [("singular_value", i, "", "", value) for i, value in enumerate(values)]
        columns = ["quantity", "index", "from", "to", "value"]
        frame = pd.DataFrame(rows, columns=columns)
        frame.insert(0, "reader", self.reader)
        frame.insert(0, "writer", self.writer)
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON, but for the matrix."""
        return {
            "writer": self.writer,
            "reader": self.reader,
            "score": cli.finite(self.score),
            "baseline": self.baseline,
            "sigmas": cli.finite(self.sigmas),
            "singular_values": self.singular_values.tolist(),
            "entries": [list(entry) for entry in self.entries],
        } | self._about()

    def plot(self) -> "go.Figure":
        """Bars of the strongest connections; of two heads, a curve of singular values."""
        return pictures.figure(self)

    def view(self) -> views.View:
        """What pages and the terminal show."""
        most = max((abs(value) for _, _, value in self.entries), default=0.0) or 1.0
        rows = [
            [
                cli.visible(a),
                cli.visible(b),
                views.Shade(f"{v:.4g}", abs(v) / most, 1 if v > 0 else -1),
            ]
            for a, b, v in self.entries
        ]
        tables = [views.Table("The strongest connections", ("from", "to", "weight"), rows, 2)]
        return views.View(
            f"Virtual weights from {self.writer} to {self.reader}",
            "How strongly is what one part writes connected, through the residual stream alone, to "
            "what another one reads?",
            (
                f"Composition score {self.score:.4f}, {self.score / self.baseline:.2f} times the "
                f"{self.baseline:.4f} of random matrices ({self.sigmas:+.1f} sigmas).",
                f"Layer norm between both is left out; {self.weights}.",
            ),
            ((self.plot(), "Strongest first." if rows else "Singular values, falling."),),
            tuple(tables) if rows else (),
            {"virtual_weights": self.to_frame()},
        )

    def __repr__(self) -> str:
        lines = [
            f"VirtualWeights({self.provenance.model}, {self.writer} -> {self.reader}, "
            f"{self.matrix.ldim} x {self.matrix.rdim}, score {self.score:.4f}, baseline "
            f"{self.baseline:.4f}; {self.weights})"
        ]
        lines += [
            f"  {cli.visible(a)} -> {cli.visible(b)}: {v:.4g}" for a, b, v in self.entries[:3]
        ]
        return "\n".join(lines)


@torch.no_grad()
def virtual_weights(
    weights: Weights, writer_name: Any, reader_name: Any, *, top_k: SupportsIndex = 20
) -> VirtualWeights:
    """The virtual weights between two parts: what the one writes, times what the other reads.

        virtual_weights(model, "1.mlp", "3.mlp")        # neuron to neuron
        virtual_weights(model, "0.0", "3.3.k")          # a head to another's keys
        virtual_weights(model, "embed", "2.mlp.17")     # tokens to a neuron
        virtual_weights(model, "3.mlp.4", "logits")     # a neuron to tokens

    Every part reads the sum of all that was written before it, so between any two there are linear
    weights, `W_out W_in`, beside those that were trained as such. Layer norm between them is left
    out (its gain counts where it is folded in).

    Args:
        weights: a model; or `AttentionLayers`, for heads. Stays as it is.
        writer_name: a head `"3.1"` (its OV circuit), an MLP `"3.mlp"`, a neuron `"3.mlp.7"`,
            `"embed"` or `"pos_embed"`.
        reader_name: a head's `"3.1.q"`, `"3.1.k"` (its QK circuit, from that side) or `"3.1.v"`
            (its OV circuit), an MLP `"3.mlp"`, a neuron `"3.mlp.7"`, or `"logits"`.
        top_k: how many of the strongest connections are listed.

    Returns:
        the matrix, its score beside the baseline, and the strongest connections, on the CPU.

    Raises:
        ValueError, IndexError, TypeError: no such part, one that attention weights alone do not
            have, a reader that comes before the writer; top_k below 1; NaN or infinity.

    Source: Elhage et al. 2021, section "Virtual Weights and the Residual Stream as a Communication
    Channel".
    """
    source, target = writer(weights, writer_name), reader(weights, reader_name)
    if target.stage <= source.stage:
        raise ValueError(f"{target.name} does not come after {source.name}: it cannot read it")
    for part in (source, target):
        check_finite(f"the weights of {part.name}", *part.matrix.pair)
    matrix = source.matrix @ target.matrix
    score = float(composition_scores(source.matrix, target.matrix))
    mean, spread = (float(one) for one in random_composition(source.matrix, target.matrix))
    sigmas = (score**2 - mean) / spread if spread else math.nan
    k = number_of(top_k, 10_000, 20)
    return VirtualWeights(
        writer=source.name,
        reader=target.name,
        matrix=FactoredMatrix(matrix.A.cpu(), matrix.B.cpu()),
        score=score,
        baseline=math.sqrt(mean),
        sigmas=sigmas,
        singular_values=matrix.S.cpu(),
        entries=_strongest(weights, source, target, matrix, k),
        weights=weights_note(weights),
        provenance=provenance_of(
            weights, f"virtual_weights(weights, {source.name!r}, {target.name!r}, top_k={k})"
        ),
    )


def _strongest(
    weights: Weights, source: Part, target: Part, matrix: FactoredMatrix, k: int
) -> tuple[tuple[str, str, float], ...]:
    whole = [part.basis == "residual" for part in (source, target)]
    if all(whole):
        return ()
    if any(whole):
        # All of the other side: norms of rows or columns, from the core of that side.
        rows = matrix if whole[1] else matrix.T
        sizes = torch.cat([(part @ rows.B).norm(dim=1) for part in rows.A.split(_rows(rows))])
        best = sizes.topk(min(k, len(sizes)))
        named = source if whole[1] else target
        names = _names(weights, named, best.indices.tolist())
        values = best.values.tolist()
        if whole[1]:
            return tuple((a, target.name, v) for a, v in zip(names, values, strict=True))
        return tuple((source.name, b, v) for b, v in zip(names, values, strict=True))
    flat_ids, flat_values = [], []
    step = _rows(matrix)
    for start in cli.progress(range(0, matrix.ldim, step), "virtual weights"):
        values = (matrix.A[start : start + step] @ matrix.B).reshape(-1)
        best = values.abs().topk(min(k, len(values))).indices
        flat_ids.append(best + start * matrix.rdim)
        flat_values.append(values[best])
    ids, values = torch.cat(flat_ids), torch.cat(flat_values)
    order = values.abs().argsort(descending=True, stable=True)[:k]
    ids, values = ids[order], values[order]
    ends = [
        _names(weights, source, (ids // matrix.rdim).tolist()),
        _names(weights, target, (ids % matrix.rdim).tolist()),
    ]
    return tuple(zip(*ends, values.tolist(), strict=True))


def _rows(matrix: FactoredMatrix) -> int:
    """How many rows are multiplied out at a time."""
    return max(1, AT_ONCE // matrix.rdim)


def _names(weights: Weights, part: Part, places: list[int]) -> list[str]:
    """What to call rows of what writes, or columns of what reads."""
    if part.basis == "token" and isinstance(weights, HookedGPT2):
        return list(strings(weights, places))
    if part.basis == "neuron":
        layer = part.name.split(".")[0]
        return [f"{layer}.mlp.{part.first + place}" for place in places]
    return [f"pos_embed.{place}" for place in places]


def virtual_head(weights: Weights, heads: Sequence[Any]) -> FactoredMatrix:
    """The virtual attention head that several heads make by V-composition, `d_model x d_model`.

    Args:
        weights: a model or `AttentionLayers`.
        heads: two or more, each in a later layer than the one before: `["0.0", "3.3"]`.

    Returns:
        the product of their OV circuits, of rank `d_head` at most.

    Raises:
        ValueError, IndexError, TypeError: fewer than two, not in order, no such head.

    Source: Elhage et al. 2021, section "Virtual Attention Heads".
    """
    held = heads_of(weights)
    chosen = checked_heads(list(heads), *held.W_Q.shape[:2])
    layers = [head.layer for head in chosen]
    if len(chosen) < 2 or any(a >= b for a, b in pairwise(layers)):
        raise ValueError(
            "a virtual head is made of two or more heads, each in a later layer than the one "
            f"before, not of {', '.join(map(str, chosen))}"
        )
    product = held.OV[chosen[0]]
    for head in chosen[1:]:
        product = product @ held.OV[head]
    return product
