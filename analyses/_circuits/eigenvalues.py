"""Eigenvalues of the circuits of heads, and what they say about copying."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from analyses import cli
from analyses._circuits.result import WeightResult
from analyses._circuits.source import (
    AT_ONCE,
    EMBEDDINGS,
    Weights,
    check_finite,
    embedded,
    heads_of,
    provenance_of,
    weights_note,
    whole_model,
)
from analyses._heads.names import Head, checked_heads
from analyses._views import circuits as views
from analyses._views import eigenvalues as pictures
from analyses.tasks import unknown
from interp import FactoredMatrix, HookedGPT2
from interp.factored import full_precision

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

HEAD_CIRCUITS = ("OV", "QK")
# What stands on both sides of a head's weights.
SPACES = (*EMBEDDINGS, "residual")
_SPACE_NOTES = {
    "plain": "plain: tokens by their embedding, d_vocab x d_vocab",
    "mlp0": "mlp0: tokens by their embedding and what the first MLP makes of it, d_vocab x d_vocab "
    "(heads of the first layer never see that)",
    "residual": "residual: from residual stream to residual stream, d_model x d_model",
}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HeadEigenvalues(WeightResult):
    """Eigenvalues of every head's circuit, those that can be other than 0.

    Attributes:
        circuit: "OV" or "QK".
        spaces: the axis `space`: "plain", "mlp0", "residual"; see `head_eigenvalues`.
        eigenvalues: by falling magnitude.
    """

    circuit: str
    spaces: tuple[str, ...]
    eigenvalues: Complex[Tensor, "space layer head d_head"]

    @property
    def scores(self) -> Float[Tensor, "space layer head"]:
        """Sum of the eigenvalues over the sum of their magnitudes, -1 to 1; NaN where all are 0.

        Of OV: 1 for a head that raises the logits of what it attends to (copying), -1 for one that
        lowers them, 0 where eigenvalues are spread evenly. Of QK: 1 for a head that attends to what
        is like the query.
        """
        return self.eigenvalues.real.sum(-1) / self.eigenvalues.abs().sum(-1)

    def __getitem__(self, space: str) -> Float[Tensor, "layer head"]:
        """The scores in one space.

        Raises:
            KeyError: it was not asked for.
        """
        return self.scores[self._place(space)]

    def _place(self, space: str) -> int:
        if space not in self.spaces:
            raise KeyError(unknown("space", str(space), self.spaces))
        return self.spaces.index(space)

    def to_frame(self) -> "pd.DataFrame":
        """One row per eigenvalue: `circuit`, `space`, `layer`, `head`, `index` (0 is the largest in
        magnitude), `real`, `imag`, `magnitude`."""
        import pandas as pd

        grids = torch.meshgrid(
            *(torch.arange(size) for size in self.eigenvalues.shape), indexing="ij"
        )
        place, layer, head, index = (grid.reshape(-1).tolist() for grid in grids)
        flat = self.eigenvalues.reshape(-1)
        return pd.DataFrame(
            {
                "circuit": self.circuit,
                "space": [self.spaces[i] for i in place],
                "layer": layer,
                "head": head,
                "index": index,
                "real": flat.real.double().tolist(),
                "imag": flat.imag.double().tolist(),
                "magnitude": flat.abs().double().tolist(),
            }
        )

    def table(self) -> "pd.DataFrame":
        """One row per head: `layer`, `head`, and the score in each space."""
        import pandas as pd

        n_layers, n_heads = self.eigenvalues.shape[1:3]
        return pd.DataFrame(
            {
                "layer": [layer for layer in range(n_layers) for _ in range(n_heads)],
                "head": list(range(n_heads)) * n_layers,
                **{space: self[space].reshape(-1).tolist() for space in self.spaces},
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not there is None."""
        return {
            "circuit": self.circuit,
            "spaces": list(self.spaces),
            "scores": cli.finite(self.scores.tolist()),
            "real": cli.finite(self.eigenvalues.real.tolist()),
            "imag": cli.finite(self.eigenvalues.imag.tolist()),
        } | self._about()

    def ranked(self, space: str) -> list[Head]:
        """Heads by falling score, those without one left out.

        Raises:
            KeyError: there is no such space.
        """
        scores = self[space]
        flat = scores.reshape(-1)
        order = flat.nan_to_num(-math.inf).argsort(descending=True, stable=True).tolist()
        return [Head(*divmod(i, scores.shape[1])) for i in order if not flat[i].isnan()]

    def plot(self) -> "go.Figure":
        """Heat maps of the scores, layers down and heads across, from -1 to 1."""
        return pictures.scores(self)

    def plot_eigenvalues(self, heads: Any = None, space: str | None = None) -> "go.Figure":
        """Eigenvalues in the complex plane, one panel per head: angles as they are, distances from
        0 the square roots of magnitudes in units of the head's largest.

        Args:
            heads: which, as `"3.1"`, a pair or several; None: the three highest and the three
                lowest scores.
            space: None: the last one there is.

        Raises:
            KeyError: no such space. ValueError, IndexError, TypeError: no such head.
        """
        space = self.spaces[-1] if space is None else space
        place = self._place(space)
        n_layers, n_heads = self.eigenvalues.shape[1:3]
        if heads is None:
            ranked = self.ranked(space)
            chosen = list(dict.fromkeys([*ranked[:3], *ranked[-3:]])) or [Head(0, 0)]
        else:
            chosen = list(checked_heads(heads, n_layers, n_heads))
        return pictures.planes(self, place, chosen)

    def view(self, top_k: int = 10) -> views.View:
        """What pages and the terminal show, with the `top_k` highest and lowest heads."""
        ranked = self.ranked(self.spaces[-1])
        some = ranked if len(ranked) <= 2 * top_k else [*ranked[:top_k], *ranked[-top_k:]]
        rows = [
            [str(head), *(_cell(float(self[space][head])) for space in self.spaces)]
            for head in some
        ]
        which = "all heads" if some is ranked else f"the {top_k} highest and lowest heads"
        table = views.Table(
            f"Scores of {which}, by falling score of {self.spaces[-1]}",
            ("head", *self.spaces),
            rows,
        )
        what = (
            "Does a head copy? In its full OV circuit a positive eigenvalue stands for tokens that "
            "raise their own logits."
            if self.circuit == "OV"
            else "Does a head attend to what is like the query? In its full QK circuit a positive "
            "eigenvalue stands for tokens that attend to themselves."
        )
        return views.View(
            f"Eigenvalues of {self.circuit} circuits",
            f"{what} Score: the sum of the eigenvalues over the sum of their magnitudes.",
            (
                *(f"{_SPACE_NOTES[space]}." for space in self.spaces),
                self.weights[0].upper() + self.weights[1:] + ". Biases are left out.",
            ),
            (
                (self.plot(), "Red: above 0. Blue: below. Hover for the numbers."),
                (
                    self.plot_eigenvalues(),
                    f"Eigenvalues of the heads with the highest and lowest score ({self.spaces[-1]}"
                    "). Distances from 0: square roots, in units of each head's largest.",
                ),
            ),
            (table,),
            {"head_table": self.table(), "eigenvalues": self.to_frame()},
        )

    def __repr__(self) -> str:
        n_layers, n_heads = self.eigenvalues.shape[1:3]
        lines = [
            f"HeadEigenvalues({self.provenance.model}, {self.circuit}, {n_layers} layers x "
            f"{n_heads} heads; {self.weights})"
        ]
        for space in self.spaces:
            best = [f"{h} {float(self[space][h]):+.3f}" for h in self.ranked(space)]
            shown = best if len(best) <= 6 else [*best[:3], "...", *best[-3:]]
            lines.append(f"  {space}: {', '.join(shown)}")
        return "\n".join(lines)


def _cell(score: float) -> views.Text:
    if math.isnan(score):
        return "–"
    return views.Shade(f"{score:+.3f}", abs(score), 1 if score > 0 else -1)


@torch.no_grad()
def head_eigenvalues(
    weights: Weights, circuit: str = "OV", spaces: str | Sequence[str] | None = None
) -> HeadEigenvalues:
    """Eigenvalues of the circuits of all heads; of the full OV circuit, the copying score.

    The full OV circuit of a head, `X W_V W_O W_U` with token embeddings X, says what attention to
    one token does to the logits of every other. Where a vector of tokens is an eigenvector with
    positive eigenvalue, attention to those tokens raises those tokens: the head copies. The matrix
    is `d_vocab x d_vocab`, but has rank `d_head`, and its eigenvalues are those of
    `W_O (W_U X) W_V`, `d_head x d_head`: `W_U X` is the same for all heads.

    The full QK circuit is `X W_Q W_K^T X^T`; a positive eigenvalue stands for tokens that attend
    to themselves.

    GPT-2 has MLPs, which Elhage et al.'s models have not: the heads of later layers do not see a
    token's embedding but what the first MLP made of it. So two embeddings are given by default.
    On `mini` they disagree: its induction heads (3.0, 3.3, 3.4, 3.5) score -0.64 to -0.73 with
    "plain", 0.99 and more with "mlp0".

    Left out: biases, the division by layer norm's scale, and its gain where not folded in.

    Args:
        weights: a model; or `AttentionLayers`, for "residual" only.
        circuit: "OV" or "QK".
        spaces: some of "plain" (tokens by their embedding), "mlp0" (by their embedding and what the
            first MLP makes of it alone), "residual" (no tokens: `d_model x d_model`). None: the
            first two of a model, the third of attention weights alone.

    Returns:
        eigenvalues and scores of every head, on the CPU.

    Raises:
        ValueError: an unknown circuit or space, one twice or none; a space of tokens for attention
            weights alone; embedding and unembedding of different tokens; weights that are not
            finite. TypeError: something that has no attention weights.

    Source: Elhage et al. 2021, section "One-Layer Attention-Only Transformers", part "Summarizing
    OV/QK matrices": the eigenvalue-based copying score.
    """
    if circuit not in HEAD_CIRCUITS:
        raise ValueError(unknown("circuit", str(circuit), HEAD_CIRCUITS))
    if spaces is None:
        spaces = EMBEDDINGS if isinstance(weights, HookedGPT2) else ("residual",)
    chosen = (spaces,) if isinstance(spaces, str) else tuple(spaces)
    for space in chosen:
        if space not in SPACES:
            raise ValueError(unknown("space", str(space), SPACES))
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"spaces are some of {', '.join(SPACES)}, each once: {chosen}")
    heads = heads_of(weights)
    found = []
    for space in chosen:
        if space == "residual":
            matrix = heads.OV if circuit == "OV" else heads.QK
        else:
            needs = f"the full {circuit} circuit ({space}) needs embeddings"
            matrix = _through_tokens(whole_model(weights, needs, "; space 'residual' needs none"),
                                     circuit, space)  # fmt: skip
        check_finite(f"the {circuit} circuits ({space})", *matrix.pair)
        values = matrix.eigenvalues
        order = values.abs().argsort(-1, descending=True)
        found.append(values.gather(-1, order).cpu())
    return HeadEigenvalues(
        circuit=circuit,
        spaces=chosen,
        eigenvalues=torch.stack(found),
        weights=weights_note(weights),
        provenance=provenance_of(
            weights, f"head_eigenvalues(weights, circuit={circuit!r}, spaces={chosen!r})"
        ),
    )


def _through_tokens(model: HookedGPT2, circuit: str, space: str) -> FactoredMatrix:
    """A matrix `d_model x d_model` per head with the eigenvalues of the full circuit."""
    tokens = embedded(model, space)
    if circuit == "QK":
        between = _gram(tokens, tokens)
        return FactoredMatrix(between @ full_precision(model.W_Q), full_precision(model.W_K.mT))
    if model.W_U.shape[1] != len(tokens):
        raise ValueError(
            f"this model reads {len(tokens)} tokens and predicts {model.W_U.shape[1]}: whether a "
            "head copies has no meaning"
        )
    between = _gram(model.W_U.T, tokens)
    return FactoredMatrix(between @ full_precision(model.W_V), full_precision(model.W_O))


def _gram(
    left: Float[Tensor, "token d_model"], right: Float[Tensor, "token d_model"]
) -> Float[Tensor, "d_model d_model"]:
    """`left^T right`, summed up part by part where the dtype is too coarse to hold the sum."""
    if left.dtype == full_precision(left).dtype:
        return left.T @ right
    total = full_precision(left.new_zeros(left.shape[1], right.shape[1]))
    rows = max(1, AT_ONCE // left.shape[1])
    for a, b in zip(left.split(rows), right.split(rows), strict=True):
        total += full_precision(a).T @ full_precision(b)
    return total
