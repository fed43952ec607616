"""Finding circuits by running them: ACDC, and greedy removal or addition."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Bool
from torch import Tensor

from analyses._discovery.circuit import AnyCircuit, Circuit, NodeCircuit
from analyses._discovery.names import Edge, Node
from analyses._discovery.runs import EdgeRuns, NodeRuns, Runs
from analyses._edges import Part

LEVELS = ("edges", "nodes")
# More at a time would seldom all be right.
_MOST_GUESSED = 256


class Item(NamedTuple):
    """What a search may leave out.

    Attributes:
        name: the edge or node.
        place: its index in masks.
        stage: items of one stage do not see each other.
    """

    name: Edge | Node
    place: tuple[int, ...]
    stage: tuple[int, int]


class Step(NamedTuple):
    """One decision of a search.

    Attributes:
        item: what was decided on.
        before, after: the metric (mean over examples) without and with this change.
        kept: whether the item stayed in the circuit.
        run: False where the circuit was not run, because what the item leads to was gone.
    """

    item: Edge | Node
    before: float
    after: float
    kept: bool
    run: bool = True


@dataclass
class Search:
    """A search under way.

    Attributes:
        runs: what runs circuits.
        mask: what is in the circuit by now.
        value: its metric, mean over examples.
        steps: the decisions so far.
    """

    runs: Runs
    mask: Bool[Tensor, "..."]
    value: float
    steps: list[Step]

    @classmethod
    def start(cls, runs: Runs, mask: Bool[Tensor, "..."]) -> "Search":
        """Begin with a circuit."""
        return cls(runs, mask.clone(), float(runs.values(mask[None]).mean()), [])

    @property
    def items(self) -> list[Item]:
        """All there are, last first: receivers in reverse order, of each its senders in reverse."""
        shape = self.runs.shape
        if isinstance(self.runs, NodeRuns):
            return [
                Item(Node(part), (index,), (part.layer or 0, int(part.kind == "mlp")))
                for index, part in reversed(list(enumerate(shape.senders)))
                if index
            ]
        sending = shape.senders
        return [
            Item(Edge(sending[s], receiver), (s, r), _stage(receiver, shape.n_layers))
            for r, receiver in reversed(list(enumerate(shape.receivers)))
            for s in reversed(range(shape.before(receiver)))
        ]

    def leads_nowhere(self, item: Item) -> bool:
        """Whether what an edge leads to sends nothing on."""
        if not isinstance(item.name, Edge) or item.name.reader is None:
            return False
        return not bool(self.mask[self.runs.shape.sender_index(item.name.reader)].any())

    def circuit(
        self, kept: tuple[str, ...], model: str, method: str, provenance: Mapping[str, Any]
    ) -> AnyCircuit:
        """What is in the circuit, with the effect of leaving each out as score."""
        shape = self.runs.shape
        there = [item.name for item in self.items if bool(self.mask[item.place].all())]
        scores = {
            step.item: step.after - step.before
            for step in self.steps
            if step.kept and math.isfinite(step.after)
        }
        if isinstance(self.runs, EdgeRuns):
            edges = frozenset(name for name in there if isinstance(name, Edge))
            of_edges = {name: score for name, score in scores.items() if name in edges}
            return Circuit(shape, edges, of_edges, model, method, provenance)  # type: ignore[arg-type]
        nodes = frozenset(name for name in there if isinstance(name, Node))
        of_nodes = {name: score for name, score in scores.items() if name in nodes}
        return NodeCircuit(
            shape, nodes, kept, {}, of_nodes, model, method, provenance  # type: ignore[arg-type]
        )  # fmt: skip


def _stage(receiver: Part, n_layers: int) -> tuple[int, int]:
    if receiver.layer is None:
        return n_layers, 0
    return receiver.layer, int(receiver.kind == "mlp")


def acdc(
    search: Search,
    small: Callable[[float, float], bool],
    advance: Callable[[float], None],
) -> None:
    """Decide on every item of the circuit, last first.

    The decisions are those of running each circuit by itself, one after the other. Most items go,
    so the circuits without the next one, the next two, ... are run together: as far as they all go,
    each is the circuit that would have been run.

    Args:
        small: whether an item may go that takes the metric from one value to another.
    """
    todo = [item for item in search.items if bool(search.mask[item.place].any())]
    n, guess = len(todo), 4
    while todo:
        if search.leads_nowhere(todo[0]):
            item = todo.pop(0)
            search.mask[item.place] = False
            search.steps.append(Step(item.name, search.value, search.value, False, run=False))
            advance(1 / n)
            continue
        stage = todo[0].stage
        batch = []
        for item in todo[:guess]:
            if item.stage != stage or search.leads_nowhere(item):
                break
            batch.append(item)
        masks = search.mask[None].repeat(len(batch), *(1,) * search.mask.ndim)
        for row, item in enumerate(batch):
            masks[(slice(row, None), *item.place)] = False
        found = search.runs.values(masks).mean(1).tolist()
        for item, after in zip(batch, found, strict=True):
            todo.pop(0)
            goes = small(search.value, after)
            search.steps.append(Step(item.name, search.value, after, not goes))
            advance(1 / n)
            if not goes:
                guess = max(1, guess // 2)
                break
            search.mask[item.place] = False
            search.value = after
        else:
            guess = min(_MOST_GUESSED, 2 * guess)


def greedy(
    search: Search,
    target: float,
    stop: Callable[[int, float], bool],
    *,
    add: bool,
    k: int | None = None,
    at_once: int,
    advance: Callable[[float], None],
) -> None:
    """Take out (or put in), again and again, what takes the metric closest to a target.

    Args:
        target: the metric of the whole model.
        stop: whether a circuit is no longer wanted (adding: is already enough), by its size and
            its metric.
        k: the size to stop at; no round goes past it.
        at_once: how many a round takes: those that would each alone be the best. What of the last
            round would be too much is taken one by one.
        advance: as in `acdc`.
    """
    items = search.items
    size = sum(bool(search.mask[item.place].all()) for item in items)
    while not (add and stop(size, search.value)):
        if not add and isinstance(search.runs, EdgeRuns):
            size -= _drop_dead(search, items)
        open_ = [item for item in items if bool(search.mask[item.place].all()) != add]
        if not open_:
            return
        masks = search.mask[None].repeat(len(open_), *(1,) * search.mask.ndim)
        for row, item in enumerate(open_):
            masks[(row, *item.place)] = add
        found = search.runs.values(masks).mean(1)
        # Of equals the first in the order of the search.
        most = at_once if k is None else max(1, min(at_once, abs(size - k)))
        best = (found - target).abs().argsort(stable=True)[:most].tolist()
        after = float(found[best[0]])
        if len(best) > 1:
            together = search.mask.clone()
            for index in best:
                together[open_[index].place] = add
            at_the_end = float(search.runs.values(together[None]).mean())
            if stop(size, at_the_end):
                # Not by its size: the metric says that somewhere in this round is the end.
                best, at_once = best[:1], 1
            else:
                after = at_the_end
        size += len(best) if add else -len(best)
        if not add and stop(size, after):
            search.steps += [
                Step(item.name, search.value, float(value), True)
                for item, value in zip(open_, found, strict=True)
            ]
            return
        for index in best:
            item = open_[index]
            search.mask[item.place] = add
            search.steps.append(Step(item.name, search.value, float(found[index]), add))
        search.value = after
        advance(len(best) / len(items))


def _drop_dead(search: Search, items: Sequence[Item]) -> int:
    """Leave out what leads nowhere, which changes nothing; how many that was."""
    gone = 0
    for item in items:
        if bool(search.mask[item.place]) and search.leads_nowhere(item):
            search.mask[item.place] = False
            search.steps.append(Step(item.name, search.value, search.value, False, run=False))
            gone += 1
    return gone
