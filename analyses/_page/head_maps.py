"""Maps of many heads in a page: small ones in a grid, one large, and what a token attends to.

The numbers travel as 32-bit floats, exact, while they fit a budget. Beyond it, what comes last goes
first: whole kinds of maps, then, for the one kind that is left, single cells. Those are pooled into
blocks that show their largest magnitude, and the strongest keys of every query stay exact. The page
says what was left out.
"""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analyses._page.views import MOST_CELLS, MOST_CELLS_HOVER, view_colours

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

# So many numbers a page holds: 16 MiB as text, which browsers read in a second or two.
BUDGET = 3 * 2**20
# Where cells are pooled, so many keys of every query stay exact; they take part of the budget.
LINKS = 4


@dataclass(frozen=True, eq=False)
class MapKind:
    """One kind of numbers that every head has for query and key.

    Attributes:
        name: what the page calls it.
        values: the numbers, or what makes them when they are needed.
        explanation: a sentence that says what they are.
        limit: the number that gets the full colour; None: the largest magnitude of each head.
        signed: numbers below zero get a colour of their own.
        causal: keys after the query have no number; what `values` holds there is not read.
        column: its name in a table; None: `name`.
    """

    name: str
    values: "Float[Tensor, 'component query key'] | Callable[[], Tensor]"
    explanation: str = ""
    limit: float | None = None
    signed: bool = False
    causal: bool = True
    column: str | None = None


@dataclass(frozen=True, eq=False)
class HeadMaps:
    """Maps of heads, for `Page.head_maps`.

    Attributes:
        heads: layer and head of each.
        tokens: what to call each position, one line each.
        kinds: the numbers, the most important first: where not all fit, the last are left out.
        positions: the position of each token in its prompt; None: 0, 1, 2, ...
        token_columns: for the CSV of a head, what the tokens are, by what stands before
            `query_token` and `key_token` in the names of its columns; None: `tokens`.
        notes: a line to be shown with a head.
        chosen: the head that is open at first; None: the first one.
        query: the place among `tokens` that is chosen at first; None: the last one.
    """

    heads: Sequence[tuple[int, int]]
    tokens: Sequence[str]
    kinds: Sequence[MapKind]
    positions: Sequence[int] | None = None
    token_columns: Mapping[str, Sequence[str]] | None = None
    notes: Mapping[tuple[int, int], str] = field(default_factory=dict)
    chosen: tuple[int, int] | None = None
    query: int | None = None

    def spec(self, budget: int = BUDGET) -> dict[str, Any]:
        """All that the page's script needs, as plain data; `left_out` says what it lacks.

        Args:
            budget: how many numbers there may be.

        Raises:
            ValueError: no heads, tokens or kinds; one of them twice; a head, query or limit that
                there is not; values of another shape or not finite; a budget below 1.
        """
        self._check()
        if budget < 1:
            raise ValueError(f"budget is {budget}, expected at least 1")
        n_heads, n = len(self.heads), len(self.tokens)
        positions = list(range(n)) if self.positions is None else list(self.positions)
        sizes = [n_heads * (n * (n + 1) // 2 if kind.causal else n * n) for kind in self.kinds]
        n_kinds = sum(sum(sizes[: i + 1]) <= budget for i in range(len(sizes)))
        block = 1 if n_kinds else self._block(budget)
        shown = self.kinds[: max(n_kinds, 1)]
        chosen = self.heads[0] if self.chosen is None else self.chosen
        return {
            "heads": [[layer, head] for layer, head in self.heads],
            "tokens": list(self.tokens),
            "positions": positions,
            "tokenColumns": {
                prefix: list(tokens)
                for prefix, tokens in (self.token_columns or {"": self.tokens}).items()
            },
            "notes": [self.notes.get((layer, head), "") for layer, head in self.heads],
            "chosen": [tuple(one) for one in self.heads].index(tuple(chosen)),
            "query": n - 1 if self.query is None else self.query,
            "block": block,
            "mostCells": [MOST_CELLS_HOVER, MOST_CELLS],
            "kinds": [self._packed(kind, block) for kind in shown],
            "leftOut": self._left_out(shown, block),
        }

    def _check(self) -> None:
        names = [kind.name for kind in self.kinds]
        heads = [tuple(head) for head in self.heads]
        for what, items in (("head", heads), ("token", self.tokens), ("kind", names)):
            if not items:
                raise ValueError(f"maps of heads need at least one {what}")
            if what != "token" and len(set(items)) != len(items):
                raise ValueError(f"maps of heads have a {what} twice: {items}")
        if self.chosen is not None and tuple(self.chosen) not in heads:
            raise ValueError(f"the chosen head {self.chosen} is none of {heads}")
        if self.positions is not None and len(self.positions) != len(self.tokens):
            raise ValueError(f"{len(self.positions)} positions for {len(self.tokens)} tokens")
        for prefix, tokens in (self.token_columns or {}).items():
            if len(tokens) != len(self.tokens):
                raise ValueError(
                    f"token_columns {prefix!r} has {len(tokens)} tokens, there are "
                    f"{len(self.tokens)}"
                )
        if self.query is not None and not 0 <= self.query < len(self.tokens):
            raise ValueError(f"query {self.query} is out of range: {len(self.tokens)} tokens")
        for kind in self.kinds:
            if kind.limit is not None and not 0 < kind.limit < math.inf:
                raise ValueError(f"{kind.name}: limit is {kind.limit}, expected a positive number")

    def _block(self, budget: int) -> int:
        """The smallest side of a block with which one kind fits."""
        n_heads, n, causal = len(self.heads), len(self.tokens), self.kinds[0].causal
        links = 2 * LINKS * n_heads * n
        for block in range(2, n + 1):
            side = -(-n // block)
            cells = n_heads * (side * (side + 1) // 2 if causal else side * side)
            if cells + links <= budget:
                return block
        return n

    def _packed(self, kind: MapKind, block: int) -> dict[str, Any]:
        import torch

        values = torch.as_tensor(kind.values() if callable(kind.values) else kind.values)
        expected = (len(self.heads), len(self.tokens), len(self.tokens))
        if tuple(values.shape) != expected:
            raise ValueError(
                f"{kind.name} has shape {tuple(values.shape)}, expected component query key = "
                f"{expected}: {expected[0]} heads and {expected[1]} tokens"
            )
        values = values.detach().to("cpu", torch.float32)
        if kind.causal:
            future = torch.ones(values.shape[1:], dtype=torch.bool).triu(1)
            values = values.masked_fill(future, 0.0)
        finite = values.isfinite()
        if not bool(finite.all()):
            at, query, key = (~finite).nonzero()[0].tolist()
            layer, head = self.heads[at]
            raise ValueError(
                f"{kind.name} of head {layer}.{head} is {float(values[at, query, key])} at query "
                f"{query}, key {key}: no colour stands for that"
            )
        packed: dict[str, Any] = {
            "name": kind.name,
            "column": kind.column or kind.name,
            "explanation": kind.explanation,
            "limit": kind.limit,
            "signed": kind.signed,
            "causal": kind.causal,
            "colours": view_colours(kind.signed),
        }
        cells = values
        if block > 1:
            strongest = values.abs().topk(min(LINKS, len(self.tokens))).indices
            packed["linkKeys"] = _base64(strongest.to(torch.int32))
            packed["linkValues"] = _base64(values.gather(-1, strongest))
            packed["nLinks"] = strongest.shape[-1]
            cells = pooled(values, block)
        side = cells.shape[-1]
        if kind.causal:
            rows, columns = torch.tril_indices(side, side)
            cells = cells[:, rows, columns]
        return packed | {"side": side, "values": _base64(cells.contiguous())}

    def _left_out(self, shown: Sequence[MapKind], block: int) -> str:
        parts = []
        names = [kind.name for kind in self.kinds[len(shown) :]]
        if names:
            parts.append(f"{', '.join(names)} not shown")
        if block > 1:
            parts.append(
                f"maps in blocks of {block} x {block} tokens, each with the colour of its largest "
                f"magnitude; the {LINKS} strongest keys of every query are exact"
            )
        if not parts:
            return ""
        return (
            f"To keep this page small ({len(self.heads)} heads, {len(self.tokens)} tokens): "
            f"{'; '.join(parts)}. Choose fewer heads or positions to see more."
        )


def pooled(values: "Tensor", block: int) -> "Tensor":
    """The number of largest magnitude in each block of the last two axes, with its sign."""
    from torch.nn.functional import max_pool2d

    # With `ceil_mode` blocks at the right and lower edge are what is left there.
    most = max_pool2d(values, block, ceil_mode=True)
    least = -max_pool2d(-values, block, ceil_mode=True)
    return most.where(most >= -least, least)


def _base64(values: "Tensor") -> str:
    numbers = values.contiguous().numpy()
    return base64.b64encode(numbers.astype(numbers.dtype.newbyteorder("<")).data).decode()
