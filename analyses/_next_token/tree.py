"""A tree of what may follow a prompt: its likeliest branches, to a depth.

1. The prompt is read once; its keys and values are kept.
2. Each node has at most `width` children: the likeliest tokens there.
3. Level by level, branches are read after copies of the prompt's keys and values, as many at a time
   as 256 MB hold.
4. Branches less probable than `min_prob` (from the prompt on) are left out, and with more than
   `max_nodes` nodes all but the likeliest. As a branch is never likelier than its beginning, what
   falls below at one level need not be followed: the tree is the one that a search of all branches
   would keep.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses import cli, report
from analyses._arguments import whole
from analyses._next_token.result import PromptsResult
from analyses._next_token.run import Prefixes, checked_temperature, checked_top_k, ids_of, read
from analyses.prompts import Prompts, token_string
from interp import HookedGPT2, TokenBatch

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass
class _Node:
    token: int
    parent: "_Node | None"
    level: int
    rank: int
    log_prob: float
    total: float
    ended: bool

    def path(self) -> list[int]:
        before = [] if self.parent is None else self.parent.path()
        return [*before, self.token]


def branches(
    model: HookedGPT2,
    tokens: str | Sequence[str] | TokenBatch | Int[Tensor, "batch pos"] | Int[Tensor, " pos"],
    depth: int = 4,
    width: int = 3,
    *,
    temperature: float | int = 1.0,
    min_prob: float | int = 1e-3,
    max_nodes: int = 200,
    prepend_bos: bool = True,
) -> "Branches":
    """The likeliest ways in which a prompt may go on.

    Args:
        model: what predicts; stays as it is. Functions that are active on it count; they see the
            prompt in one pass, and then only what comes after it.
        tokens: one prompt: text, token ids (`pos`, or `batch pos` with a batch of one), or what
            `model.tokenize` gives for it.
        depth: how many tokens to look ahead.
        width: how many tokens to look at in each place, the likeliest.
        temperature: what logits are divided by before the softmax.
        min_prob: leave out branches that are less probable, from the prompt on; 0 for none.
        max_nodes: keep the likeliest, where there would be more nodes than this.
        prepend_bos: put `<|endoftext|>` before text; ids are taken as they are.

    Returns:
        The tree, on the CPU. Log-probabilities are natural, in float32, or float64 for a float64
        model. Equal to one full forward pass over every branch.

    Raises:
        ValueError: several prompts; depth, width, min_prob or max_nodes out of range; prompt and
            branches longer than `n_ctx`; a temperature that is not above 0; no token is as
            probable as `min_prob`.
        others: what `model.tokenize` and a run refuse.
    """
    depth = _at_least_1("depth", depth)
    max_nodes = _at_least_1("max_nodes", max_nodes)
    width = checked_top_k(model, width, "width")
    if isinstance(min_prob, bool) or not isinstance(min_prob, int | float):
        raise TypeError(f"min_prob is a number, not {min_prob!r}")
    if not 0 <= min_prob < 1:
        raise ValueError(f"min_prob={min_prob} is out of range: expected 0 or more, below 1")
    temperature = checked_temperature(temperature)
    prompts = Prompts.of(model, tokens, prepend_bos=prepend_bos)
    if len(prompts.lengths) != 1:
        raise ValueError(
            f"branches takes one prompt, these are {len(prompts.lengths)}: ask for each on its own"
        )
    (length,), n_ctx = prompts.lengths, model.cfg.n_ctx
    if length + depth - 1 > n_ctx:
        raise ValueError(
            f"depth={depth} is too much: the prompt has {length} tokens, this model reads at most "
            f"n_ctx = {n_ctx}, and the last token of a branch is not read, so that "
            f"{n_ctx - length + 1} more can be looked at"
        )
    end = model.cfg.eos_token_id if model.tokenizer is None else model.tokenizer.eos_token_id
    prefix = Prefixes(model, prompts.tokens, prompts.attention_mask)
    nodes: list[_Node] = []
    frontier: list[_Node | None] = [None]
    left_out = 0
    for level in range(1, depth + 1):
        if level == 1:
            hidden = prefix.hidden
        else:
            paths = [node.path() for node in frontier if node is not None]
            hidden = torch.stack([rows[-1] for rows in prefix.after([0] * len(paths), paths)])
        numbers = read(model, hidden, width, temperature)
        found = [
            _Node(token, parent, level, rank, own, own + (parent.total if parent else 0.0),
                  ended=token == end)
            for parent, ids, own_log_probs in zip(
                frontier, numbers.top_tokens.tolist(), numbers.top_log_probs.tolist(), strict=True
            )
            for rank, (token, own) in enumerate(zip(ids, own_log_probs, strict=True))
        ]  # fmt: skip
        likely = [node for node in found if math.exp(node.total) >= min_prob]
        # Stable, and parents come first: no node is kept without those before it.
        nodes = sorted([*nodes, *likely], key=lambda node: -node.total)
        left_out += len(found) - len(likely) + len(nodes[max_nodes:])
        nodes = sorted(nodes[:max_nodes], key=lambda node: node.level)
        frontier = [node for node in nodes if node.level == level and not node.ended]
        if not frontier:
            break
    if not nodes:
        raise ValueError(
            f"min_prob={min_prob:g} leaves nothing: the likeliest next token has probability "
            f"{math.exp(float(read(model, prefix.hidden, 1, temperature).top_log_probs)):.3g}"
        )
    ordered = list(_in_order(nodes))
    number = {id(node): index for index, node in enumerate(ordered)}
    ids = ids_of(prompts)
    shown = {*ids[0], *(node.token for node in ordered)}
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    call = (
        f"branches(model, ..., depth={depth}, width={width}, temperature={temperature:g}, "
        f"min_prob={min_prob:g}, max_nodes={max_nodes}, prepend_bos={prepend_bos})"
    )
    return Branches(
        tokens=ids,
        prepend_bos=prompts.prepend_bos,
        strings={id: token_string(model, id) for id in sorted(shown)},
        provenance=report.Provenance.of(model, call),
        temperature=temperature,
        depth=depth,
        width=width,
        min_prob=float(min_prob),
        max_nodes=max_nodes,
        left_out=left_out,
        token=torch.tensor([node.token for node in ordered]),
        parent=torch.tensor(
            [-1 if node.parent is None else number[id(node.parent)] for node in ordered]
        ),
        level=torch.tensor([node.level for node in ordered]),
        rank=torch.tensor([node.rank for node in ordered]),
        log_prob=torch.tensor([node.log_prob for node in ordered], dtype=dtype),
        total_log_prob=torch.tensor([node.total for node in ordered], dtype=dtype),
        ended=torch.tensor([node.ended for node in ordered]),
    )


def _at_least_1(name: str, value: object) -> int:
    number = whole(value, f"{name} is a whole number")
    if number < 1:
        raise ValueError(f"{name}={number} is out of range: expected at least 1")
    return number


def _in_order(nodes: Sequence[_Node]) -> Iterator[_Node]:
    """Every node before its children, likelier children first."""
    children: dict[int | None, list[_Node]] = {}
    for node in sorted(nodes, key=lambda node: node.rank):
        children.setdefault(None if node.parent is None else id(node.parent), []).append(node)
    waiting = children.get(None, [])[::-1]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += children.get(id(node), [])[::-1]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Branches(PromptsResult):
    """A tree of what may follow a prompt. Children stand after their parent, likelier ones first.

    Attributes:
        temperature: what logits were divided by.
        depth, width, min_prob, max_nodes: as asked for.
        left_out: how many branches were looked at and are not here: less probable than `min_prob`,
            or than `max_nodes` others.
        token: of each node.
        parent: the number of the node that it follows; -1: it follows the prompt.
        level: 1 for what follows the prompt.
        rank: how many tokens are likelier at this place.
        log_prob: natural, of the token where it stands.
        total_log_prob: natural, of the token and all before it up to the prompt.
        ended: whether it is `<|endoftext|>`, after which nothing is looked at.
    """

    temperature: float
    depth: int
    width: int
    min_prob: float
    max_nodes: int
    left_out: int
    token: Int[Tensor, " node"]
    parent: Int[Tensor, " node"]
    level: Int[Tensor, " node"]
    rank: Int[Tensor, " node"]
    log_prob: Float[Tensor, " node"]
    total_log_prob: Float[Tensor, " node"]
    ended: Bool[Tensor, " node"]

    def __len__(self) -> int:
        """How many nodes there are."""
        return len(self.token)

    @property
    def prob(self) -> Float[Tensor, " node"]:
        """The probability of each token where it stands."""
        return self.log_prob.exp()

    @property
    def total_prob(self) -> Float[Tensor, " node"]:
        """The probability of each branch up to its node."""
        return self.total_log_prob.exp()

    @property
    def mass(self) -> Float[Tensor, " depth"]:
        """How much of the probability of all continuations of 1, 2, ... tokens is in the tree.

        A branch that has ended counts at every depth from its end on.
        """
        levels = torch.arange(1, self.depth + 1)[:, None]
        there = (self.level == levels) | (self.ended & (self.level < levels))
        return (there * self.total_prob).sum(1)

    def children(self, node: int = -1) -> list[int]:
        """The nodes that follow a node, or with -1 the prompt; likeliest first."""
        return (self.parent == node).nonzero()[:, 0].tolist()

    def path(self, node: int) -> tuple[int, ...]:
        """The token ids from the prompt to a node, its own included.

        Raises:
            IndexError: there is no such node.
        """
        if not 0 <= node < len(self):
            raise IndexError(f"node {node} is out of range: this tree has {len(self)}")
        parents, ids = self.parent.tolist(), []
        while node >= 0:
            ids.append(int(self.token[node]))
            node = parents[node]
        return tuple(reversed(ids))

    def __repr__(self) -> str:
        lines = [
            f"{self._about()}; depth={self.depth}, width={self.width}, {len(self)} nodes, "
            f"temperature={self.temperature:g})"
        ]
        for node, (level, p, total) in enumerate(
            zip(self.level.tolist(), self.prob.tolist(), self.total_prob.tolist(), strict=True)
        ):
            if node == 20:
                lines.append(f"  ... and {len(self) - 20} more nodes")
                break
            token = self.strings[int(self.token[node])]
            lines.append(f"  {'  ' * (level - 1)}{token!r} {p:.3f} (total {total:.3f})")
        return "\n".join(lines)

    _columns: ClassVar[Mapping[str, str | None]] = {
        "node": "Int64",
        "parent": "Int64",
        "level": "Int64",
        "rank": "Int64",
        "token_id": "Int64",
        "token": None,
        "log_prob": None,
        "prob": None,
        "total_log_prob": None,
        "total_prob": None,
        "text": None,
        "ended": "boolean",
    }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One line per node.

        Columns: `node`, `parent` (-1: the prompt), `level`, `rank`, `token_id`, `token`,
        `log_prob`, `prob` (of the token where it stands), `total_log_prob`, `total_prob` (from the
        prompt on), `text` (the tokens from the prompt on, joined), `ended`.
        """
        texts: list[str] = []
        values = (self.parent, self.level, self.rank, self.token, self.log_prob)
        columns = [v.tolist() for v in (*values, self.total_log_prob, self.ended)]
        for node, (parent, level, rank, id, own, total, ended) in enumerate(
            zip(*columns, strict=True)
        ):
            texts.append((texts[parent] if parent >= 0 else "") + self.strings[id])
            yield {
                "node": node, "parent": parent, "level": level, "rank": rank, "token_id": id,
                "token": self.strings[id], "log_prob": own, "prob": math.exp(own),
                "total_log_prob": total, "total_prob": math.exp(total), "text": texts[-1],
                "ended": ended,
            }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not finite is None."""
        return self._dict() | {
            "temperature": self.temperature,
            "depth": self.depth,
            "width": self.width,
            "min_prob": self.min_prob,
            "max_nodes": self.max_nodes,
            "left_out": self.left_out,
            "mass": self.mass.tolist(),
            "nodes": [cli.finite(row) for row in self.rows()],
        }

    def plot(self) -> "go.Figure":
        """The tree from left to right. Lines are as wide as the branch is probable; the likeliest
        way on from each token goes straight. Hovering shows everything about a token."""
        from analyses._next_token import figures

        return figures.tree_figure(self)
