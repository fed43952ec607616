"""Singular vectors of weights, read as tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from analyses._circuits.reading import Readings, ids_in, read
from analyses._circuits.result import WeightResult
from analyses._circuits.source import (
    Weights,
    check_finite,
    heads_of,
    number_of,
    provenance_of,
    strings,
    weights_note,
    whole_model,
)
from analyses._heads.names import checked_layers, one_head
from analyses._views import circuits as views
from analyses._views import directions as pictures
from analyses.tasks import unknown
from interp import HookedGPT2
from interp.factored import full_precision

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MATRICES = ("OV", "QK", "W_in", "W_out")
# Of each matrix, how its left and its right directions meet the residual stream.
_SIDES: dict[str, tuple[str | None, str | None]] = {
    "OV": ("reads", "writes"),
    "QK": ("reads", "reads"),
    "W_in": ("reads", None),
    "W_out": (None, "writes"),
}
_NAMES = {
    "OV": ("reads", "writes"),
    "QK": ("query", "key"),
    "W_in": ("reads", ""),
    "W_out": ("", "writes"),
}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SingularVectors(WeightResult):
    """The leading singular directions of a matrix, as tokens.

    A direction and its negative are equally good singular vectors, so both signs are read; with one
    sign, left and right belong together: what is like `left * sign` is turned into
    `right * sign`, `singular_values` times as large.

    Attributes:
        matrix: "OV", "QK", "W_in" or "W_out".
        place: the head, or the layer of an MLP.
        singular_values: all, falling.
        left: the first directions on the input side (of QK, of queries); unit vectors.
        right: likewise on the output side (of QK, of keys).
        left_tokens, right_tokens: these as tokens; None on the side of neurons, and of attention
            weights alone.
        strings: the text of every token in this result.
    """

    matrix: str
    place: str
    singular_values: Float[Tensor, " rank"]
    left: Float[Tensor, "direction left_dim"]
    right: Float[Tensor, "direction right_dim"]
    left_tokens: Readings | None
    right_tokens: Readings | None
    strings: dict[int, str]

    @property
    def share(self) -> Float[Tensor, " rank"]:
        """Of the squared Frobenius norm, what each direction holds."""
        squared = self.singular_values.double().square()
        return squared / squared.sum()

    def to_frame(self) -> "pd.DataFrame":
        """One row per token of a direction: `matrix`, `place`, `direction`, `singular_value`,
        `side` (`reads`, `writes`, `query`, `key`), `sign`, `k`, `token_id`, `token`, `value` (its
        inner product with the direction). Without tokens, one row per singular value.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        sides = zip(_NAMES[self.matrix], (self.left_tokens, self.right_tokens), strict=True)
        for side, tokens in sides:
            if tokens is None:
                continue
            for direction in range(len(self.left)):
                for sign in (1, -1):
                    for k, (id, value) in enumerate(tokens.of(direction, sign)):
                        rows.append(
                            self._row(direction)
                            | {"side": side, "sign": sign, "k": k, "token_id": id}
                            | {"token": self.strings[id], "value": value}
                        )
        if not rows:
            rows = [self._row(i) for i in range(len(self.singular_values))]
        return pd.DataFrame(rows)

    def _row(self, direction: int) -> dict[str, Any]:
        value = float(self.singular_values[direction])
        return {
            "matrix": self.matrix,
            "place": self.place,
            "direction": direction,
            "singular_value": value,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON, but for the directions themselves."""
        return {
            "matrix": self.matrix,
            "place": self.place,
            "singular_values": self.singular_values.tolist(),
            "left_tokens": None if self.left_tokens is None else self.left_tokens.to_dict(),
            "right_tokens": None if self.right_tokens is None else self.right_tokens.to_dict(),
            "strings": {str(id): text for id, text in self.strings.items()},
        } | self._about()

    def plot(self) -> "go.Figure":
        """A curve of all singular values; hovering shows the tokens of those that were read."""
        return pictures.spectrum(self)

    def tokens(self, direction: int, sign: int) -> list[tuple[str, list[str]]]:
        """The sides that have tokens, and what a direction times `sign` is there."""
        sides = zip(_NAMES[self.matrix], (self.left_tokens, self.right_tokens), strict=True)
        return [
            (side, [self.strings[id] for id, _ in tokens.of(direction, sign)])
            for side, tokens in sides
            if tokens is not None
        ]

    def view(self) -> views.View:
        """What pages and the terminal show."""
        rows: list[list[views.Text]] = []
        for i in range(len(self.left)):
            for sign in (1, -1):
                for side, found in self.tokens(i, sign):
                    first: list[views.Text] = [f"{i}", f"{float(self.singular_values[i]):.3g}"]
                    rows.append([*first, f"{sign:+d}"[0], side, views.token_list(found)])
        if not rows:
            rows = [
                [f"{i}", f"{float(self.singular_values[i]):.4g}", f"{float(self.share[i]):.1%}"]
                for i in range(len(self.left))
            ]
            headers = ("direction", "singular value", "share of norm²")
        else:
            headers = ("direction", "singular value", "sign", "side", "tokens")
        notes = [
            "Left and right of one sign belong together; read with the embedding what is read, "
            "with the unembedding what is written, without layer norm and biases.",
        ]
        if self.left_tokens is None and self.right_tokens is None:
            notes = ["Without embeddings there are no tokens to read directions as."]
        return views.View(
            f"Singular vectors of {self.matrix} of {self.place}",
            "Which directions does this matrix turn into which, and which tokens do they stand "
            "for?",
            (*notes, self.weights[0].upper() + self.weights[1:] + "."),
            ((self.plot(), "Singular values, falling. Hover for the tokens of the first."),),
            (views.Table("The first directions", headers, rows),),
            {"singular_vectors": self.to_frame()},
        )

    def __repr__(self) -> str:
        head = (
            f"SingularVectors({self.provenance.model}, {self.matrix} of {self.place}, "
            f"{len(self.left)} of {len(self.singular_values)} directions; {self.weights})"
        )
        lines = [head]
        for i in range(min(3, len(self.left))):
            sides = [f"{side} {views.token_list(found[:4])}" for side, found in self.tokens(i, 1)]
            value = float(self.singular_values[i])
            lines.append(f"  {i}: {value:.3g}  " + " -> ".join(sides))
        return "\n".join(lines)


@torch.no_grad()
def singular_vectors(
    weights: Weights,
    matrix: str = "OV",
    place: Any = 0,
    *,
    n: SupportsIndex | None = None,
    top_k: SupportsIndex | None = None,
) -> SingularVectors:
    """The singular directions of a head's circuit or of an MLP's weights, read as tokens.

        singular_vectors(model, "OV", "3.3")
        singular_vectors(model, "W_out", 2)

    With `M = U S V^T` (row vectors: `x @ M`), a residual like column i of U is turned into column i
    of V, times the singular value. What is read from the residual stream is compared with token
    embeddings `W_E`, what is written to it with the unembedding `W_U`. (Millidge & Black use the
    unembedding on both sides; in GPT-2, whose weights are tied, it is the same.) The SVD of a head
    is that of its `d_head x d_head` core.

    Signs are fixed so that the strongest token of the output side (else of the input side, else the
    largest number) is positive; both signs are read anyway. Where layer norms are not folded in,
    what is read passes a layer norm's gain that is not counted.

    Args:
        weights: a model; or `AttentionLayers`, for the singular values and vectors of heads,
            without tokens. Stays as it is.
        matrix: "OV", "QK", "W_in" or "W_out".
        place: a head such as `"3.1"` for OV and QK, a layer for W_in and W_out.
        n: how many directions to read; None: 10, or all where there are fewer.
        top_k: how many tokens of each sign; None: 8, or all where there are fewer.

    Returns:
        all singular values, the first n directions and their tokens, on the CPU.

    Raises:
        ValueError, IndexError, TypeError: no such matrix, head or layer; n or top_k out of range;
            the MLP of attention weights alone; NaN or infinity in the weights, or in W_E or W_U
            where directions are read with these.

    Source: Millidge & Black 2022, "The Singular Value Decompositions of Transformer Weight Matrices
    are Highly Interpretable".
    """
    if matrix not in MATRICES:
        raise ValueError(unknown("matrix", str(matrix), MATRICES))
    if matrix in ("OV", "QK"):
        heads = heads_of(weights)
        head = one_head(place, *heads.W_Q.shape[:2])
        label = f"head {head}"
        factored = (heads.OV if matrix == "OV" else heads.QK)[head]
        check_finite(f"the weights {matrix} of {label}", *factored.pair)
        u, s, v = factored.svd()
    else:
        model = whole_model(weights, f"{matrix} is of an MLP")
        (layer,) = checked_layers(place, model.cfg.n_layers)
        label = f"layer {layer}"
        values = full_precision(getattr(model, matrix)[layer])
        check_finite(f"the weights {matrix} of {label}", values)
        u, s, vh = torch.linalg.svd(values, full_matrices=False)
        v = vh.mT
    n = number_of(n, len(s), 10, "n")
    left, right = u[:, :n].mT, v[:, :n].mT
    tokens: list[Readings | None] = [None, None]
    k = 0
    if isinstance(weights, HookedGPT2):
        k = number_of(top_k, min(weights.cfg.d_vocab, weights.cfg.d_vocab_out), 8)
        for index, (side, rows) in enumerate(zip(_SIDES[matrix], (left, right), strict=True)):
            if side is not None:
                tokens[index] = read(weights, rows.to(weights.dtype), side, k)
    sign = _signs(tokens[1] or tokens[0], right)
    named = ids_in(*tokens)
    texts = strings(weights, named) if isinstance(weights, HookedGPT2) else ()
    return SingularVectors(
        matrix=matrix,
        place=label,
        singular_values=s.cpu(),
        left=(left.cpu() * sign[:, None]),
        right=(right.cpu() * sign[:, None]),
        left_tokens=_turned(tokens[0], sign),
        right_tokens=_turned(tokens[1], sign),
        strings=dict(zip(named, texts, strict=True)),
        weights=weights_note(weights),
        provenance=provenance_of(
            weights,
            f"singular_vectors(weights, {matrix!r}, {place!r}, n={n}"
            + (f", top_k={k})" if k else ")"),
        ),
    )


def _signs(tokens: Readings | None, right: Tensor) -> Tensor:
    """1 or -1 for each direction: what makes its strongest token, or largest number, positive."""
    if tokens is not None:
        high, low = tokens.top_values[:, 0], tokens.bottom_values[:, 0]
    else:
        high, low = right.amax(1).cpu(), right.amin(1).cpu()
    return torch.where(high >= -low, 1.0, -1.0).to(right.dtype)


def _turned(tokens: Readings | None, sign: Tensor) -> Readings | None:
    """What is read of the directions times `sign`."""
    if tokens is None:
        return None
    keep = sign[:, None] > 0
    t = tokens
    return Readings(
        t.top_ids.where(keep, t.bottom_ids),
        t.top_values.where(keep, -t.bottom_values),
        t.bottom_ids.where(keep, t.top_ids),
        t.bottom_values.where(keep, -t.top_values),
    )
