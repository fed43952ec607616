"""Full OV and QK circuits between chosen tokens, and between positions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analyses import cli
from analyses._arguments import whole
from analyses._circuits.eigenvalues import HEAD_CIRCUITS
from analyses._circuits.reading import Readings, extremes, ids_in
from analyses._circuits.result import WeightResult
from analyses._circuits.source import (
    AT_ONCE,
    Tokens,
    Weights,
    check_finite,
    embedded,
    number_of,
    provenance_of,
    strings,
    token_ids,
    weights_note,
    whole_model,
)
from analyses._heads.names import Head, one_head
from analyses._views import circuits as views
from analyses._views import tokens as pictures
from analyses.tasks import unknown
from interp import FactoredMatrix, HookedGPT2

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KINDS = (*HEAD_CIRCUITS, "QK positions")
_ROWS = {"OV": "attended token", "QK": "query", "QK positions": "query position"}
_COLUMNS = {"OV": "output token", "QK": "key", "QK positions": "key position"}
_VALUES = {"OV": "logit", "QK": "score", "QK positions": "score"}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TokenCircuit(WeightResult):
    """A head's full OV or QK circuit between chosen tokens, or its QK circuit between positions.

    Attributes:
        circuit: "OV": rows are tokens attended to, columns the logits that attention to them adds
            to. "QK": rows are queries, columns keys, numbers attention scores before the division
            by `sqrt(d_head)`. "QK positions": the same of positions.
        head: which.
        embedding: what stands for a token: "plain", "mlp0"; "position" for positions.
        rows, columns: ids of tokens, or positions.
        row_strings, column_strings: what to call them.
        matrix: `row column`, kept factored.
        strongest: for each row, the tokens of the whole vocabulary with the largest and smallest
            numbers; None for positions.
        own_ranks: for each row, how many tokens of the whole vocabulary have a larger number than
            the row's own token; None for positions and where columns are other tokens.
        strings: the text of every token in this result.
    """

    circuit: str
    head: Head
    embedding: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    row_strings: tuple[str, ...]
    column_strings: tuple[str, ...]
    matrix: FactoredMatrix
    strongest: Readings | None
    own_ranks: Int64[Tensor, " row"] | None
    strings: dict[int, str]

    @property
    def values(self) -> Float[Tensor, "row column"]:
        """The matrix, multiplied out."""
        return self.matrix.AB

    def to_frame(self) -> "pd.DataFrame":
        """One row per number: `circuit`, `layer`, `head`, `row_id`, `row`, `column_id`, `column`,
        `value`."""
        import pandas as pd

        n, m = len(self.rows), len(self.columns)
        return pd.DataFrame(
            {
                "circuit": self.circuit,
                "layer": self.head.layer,
                "head": self.head.head,
                "row_id": [id for id in self.rows for _ in range(m)],
                "row": [text for text in self.row_strings for _ in range(m)],
                "column_id": list(self.columns) * n,
                "column": list(self.column_strings) * n,
                "value": self.values.double().reshape(-1).tolist(),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return {
            "circuit": self.circuit,
            "head": str(self.head),
            "embedding": self.embedding,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "row_strings": list(self.row_strings),
            "column_strings": list(self.column_strings),
            "values": cli.finite(self.values.tolist()),
            "strongest": None if self.strongest is None else self.strongest.to_dict(),
            "own_ranks": None if self.own_ranks is None else self.own_ranks.tolist(),
            "strings": {str(id): text for id, text in self.strings.items()},
        } | self._about()

    def plot(self) -> "go.Figure":
        """A heat map; red above 0, blue below. Keys after the query are left white: no head sees
        them (of positions only).

        Raises:
            ValueError: too many cells to draw; use `values` or `to_frame`.
        """
        return pictures.heat_map(self, _ROWS[self.circuit], _COLUMNS[self.circuit],
                                 _VALUES[self.circuit])  # fmt: skip

    def view(self) -> views.View:
        """What pages and the terminal show."""
        tables = []
        if self.strongest is not None:
            verbs = ("raises", "lowers") if self.circuit == "OV" else ("attends to", "shuns")
            rows = []
            for i, text in enumerate(self.row_strings):
                for sign, verb in zip((1, -1), verbs, strict=True):
                    found = [self.strings[id] for id, _ in self.strongest.of(i, sign)]
                    own = [] if self.own_ranks is None else [f"{int(self.own_ranks[i])}"]
                    rows.append([cli.visible(text), *own, verb, views.token_list(found)])
            own = [] if self.own_ranks is None else ["own rank"]
            tables.append(
                views.Table(
                    "Over the whole vocabulary, strongest first",
                    (_ROWS[self.circuit], *own, "", "tokens"),
                    rows,
                )
            )
        about = {
            "OV": "What does attention to one token add to the logits of others?",
            "QK": "Which tokens would attend to which, by their embeddings alone?",
            "QK positions": "Which positions would attend to which, by their embeddings alone?",
        }[self.circuit]
        return views.View(
            f"QK circuit of head {self.head} between positions"
            if self.circuit == "QK positions"
            else f"Full {self.circuit} circuit of head {self.head}",
            about,
            (
                f"Embedding: {self.embedding}. Without biases and layer norm's division; "
                f"{self.weights}.",
                *(
                    ()
                    if self.own_ranks is None
                    else ("Own rank: how many tokens are above the token itself; 0 is the top.",)
                ),
            ),
            ((self.plot(), f"Down: {_ROWS[self.circuit]}; across: {_COLUMNS[self.circuit]}."),),
            tuple(tables),
            {"circuit": self.to_frame()},
        )

    def __repr__(self) -> str:
        ranks = ""
        if self.own_ranks is not None:
            top = int((self.own_ranks == 0).sum())
            ranks = f"; {top} of {len(self.rows)} tokens are their own strongest"
        return (
            f"TokenCircuit({self.provenance.model}, {self.circuit} of head {self.head}, "
            f"{len(self.rows)} x {len(self.columns)}, embedding {self.embedding}{ranks}; "
            f"{self.weights})"
        )


@torch.no_grad()
def full_circuit(
    weights: Weights, head: Any, circuit: str = "OV", embedding: str = "plain"
) -> FactoredMatrix:
    """A head's full circuit over the whole vocabulary, `d_vocab x d_vocab`, kept factored.

    OV: `X W_V W_O W_U`, from the token attended to (rows) to logits (columns). QK:
    `X W_Q W_K^T X^T`, from query to key, before the division by `sqrt(d_head)`. X is what stands
    for tokens. Biases and layer norm's division are left out (of scores, b_Q adds a number per key
    and b_K one per query, which the softmax does not see).

    Args:
        weights: a model.
        head: `"3.1"`, a `Head` or a pair; negative numbers count from the end.
        circuit: "OV" or "QK".
        embedding: "plain": W_E; "mlp0": W_E and what the first MLP makes of it alone.

    Raises:
        ValueError, IndexError, TypeError: no such head, circuit or embedding; attention weights
            alone.
    """
    if circuit not in HEAD_CIRCUITS:
        raise ValueError(unknown("circuit", str(circuit), HEAD_CIRCUITS))
    model = whole_model(weights, f"the full {circuit} circuit needs embeddings")
    chosen = one_head(head, model.cfg.n_layers, model.cfg.n_heads)
    return _full(model, chosen, circuit, embedding, None, None).detach()


def _full(
    model: HookedGPT2,
    head: Head,
    circuit: str,
    embedding: str,
    rows: Tensor | None,
    columns: Tensor | None,
) -> FactoredMatrix:
    """The full circuit of some tokens; None: of all."""
    w_q, w_k, w_v, w_o = (w[head].detach() for w in (model.W_Q, model.W_K, model.W_V, model.W_O))
    left = embedded(model, embedding, rows)
    if circuit == "OV":
        unembed = model.W_U.detach() if columns is None else model.W_U.detach()[:, columns]
        return FactoredMatrix(left @ w_v, w_o @ unembed)
    right = left if rows is None and columns is None else embedded(model, embedding, columns)
    return FactoredMatrix(left @ w_q, (right @ w_k).T)


@torch.no_grad()
def token_circuit(
    weights: Weights,
    head: Any,
    tokens: Tokens,
    to: Tokens | None = None,
    *,
    circuit: str = "OV",
    embedding: str = "plain",
    top_k: SupportsIndex | None = None,
) -> TokenCircuit:
    """A head's full OV or QK circuit between tokens of your choice.

        token_circuit(model, "3.3", [" Mary", " John"], embedding="mlp0")

    Args:
        weights: a model; stays as it is.
        head: `"3.1"`, a `Head` or a pair.
        tokens: texts of one token each or ids: attended to (OV), or queries (QK).
        to: likewise: output tokens (OV), or keys (QK). None: the same as `tokens`.
        circuit: "OV" or "QK"; see `full_circuit`, which has the whole vocabulary.
        embedding: "plain" or "mlp0"; as there.
        top_k: how many tokens of the whole vocabulary are listed for each row, of each sign; None:
            8, or all where there are fewer.

    Returns:
        the numbers between the tokens, and each row's strongest tokens, on the CPU.

    Raises:
        ValueError, IndexError, TypeError: no such head, token, circuit or embedding; a token twice;
            attention weights alone; NaN or infinity in the weights.

    Source: Elhage et al. 2021, section "One-Layer Attention-Only Transformers".
    """
    if circuit not in HEAD_CIRCUITS:
        raise ValueError(unknown("circuit", str(circuit), HEAD_CIRCUITS))
    model = whole_model(weights, f"the full {circuit} circuit needs embeddings")
    chosen = one_head(head, model.cfg.n_layers, model.cfg.n_heads)
    n_out = model.W_U.shape[1] if circuit == "OV" else model.cfg.d_vocab
    k = number_of(top_k, n_out, 8)
    rows = token_ids(model, tokens, "tokens", model.cfg.d_vocab)
    columns = rows if to is None else token_ids(model, to, "to", n_out)
    if to is None and max(rows) >= n_out:
        raise IndexError(f"this model predicts tokens 0 to {n_out - 1}: say which with to=")
    at = torch.tensor(rows, device=model.device)
    over_all = _full(model, chosen, circuit, embedding, at, None)
    check_finite(f"the weights of head {chosen} or the embeddings", *over_all.pair)
    strongest = extremes(over_all.A, over_all.B.T, k)
    matrix = over_all[:, columns]
    named = {id: text for ids in (rows, columns, ids_in(strongest)) for id, text in
             zip(ids, strings(model, ids), strict=True)}  # fmt: skip
    return TokenCircuit(
        circuit=circuit,
        head=chosen,
        embedding=embedding,
        rows=tuple(rows),
        columns=tuple(columns),
        row_strings=tuple(named[id] for id in rows),
        column_strings=tuple(named[id] for id in columns),
        matrix=FactoredMatrix(matrix.A.cpu(), matrix.B.cpu()),
        strongest=strongest,
        own_ranks=_own_ranks(over_all, rows) if columns == rows else None,
        strings=named,
        weights=weights_note(model),
        provenance=provenance_of(
            model,
            f"token_circuit(model, {str(chosen)!r}, {rows!r}, {columns!r}, circuit={circuit!r}, "
            f"embedding={embedding!r}, top_k={k})",
        ),
    )


def _own_ranks(matrix: FactoredMatrix, rows: list[int]) -> Tensor:
    """How many columns are larger than the row's own; a few rows at a time."""
    own = torch.tensor(rows, device=matrix.device)
    parts = []
    step = max(1, AT_ONCE // matrix.rdim)
    for start in range(0, len(rows), step):
        values = matrix.A[start : start + step] @ matrix.B
        parts.append((values > values.gather(1, own[start : start + step, None])).sum(1))
    return torch.cat(parts).cpu()


@torch.no_grad()
def position_circuit(weights: Weights, head: Any, n: SupportsIndex | None = None) -> TokenCircuit:
    """A head's QK circuit between position embeddings, `W_pos W_Q W_K^T W_pos^T`.

    A head that attends to the position before by positions alone has a bright diagonal there.

    Args:
        weights: a model; stays as it is.
        head: `"3.1"`, a `Head` or a pair.
        n: the first n positions; None: 64, or all where there are fewer.

    Raises:
        ValueError, IndexError, TypeError: no such head; n out of range or no whole number;
            attention weights alone; NaN or infinity in the weights.
    """
    model = whole_model(weights, "a circuit between positions needs position embeddings")
    chosen = one_head(head, model.cfg.n_layers, model.cfg.n_heads)
    n = min(64, model.cfg.n_ctx) if n is None else whole(n, "n is a whole number")
    if not 1 <= n <= model.cfg.n_ctx:
        raise ValueError(f"n={n} is out of range: this model has 1 to {model.cfg.n_ctx} positions")
    positions = model.W_pos[:n].detach()
    w_q, w_k = (w[chosen].detach() for w in (model.W_Q, model.W_K))
    matrix = FactoredMatrix((positions @ w_q).cpu(), (positions @ w_k).T.cpu())
    check_finite(f"the weights of head {chosen} or the positions", *matrix.pair)
    numbers = tuple(range(n))
    names = tuple(map(str, numbers))
    return TokenCircuit(
        circuit="QK positions",
        head=chosen,
        embedding="position",
        rows=numbers,
        columns=numbers,
        row_strings=names,
        column_strings=names,
        matrix=matrix,
        strongest=None,
        own_ranks=None,
        strings={},
        weights=weights_note(model),
        provenance=provenance_of(model, f"position_circuit(model, {str(chosen)!r}, n={n})"),
    )
