"""Completeness and minimality of a circuit, as in the IOI paper."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses import cli, report
from analyses._discovery.circuit import AnyCircuit, NodeCircuit
from analyses._discovery.faithfulness import Ablation, checked_kind, share_of
from analyses._discovery.names import AnyNode, Node, Shape, listed, parse_node
from analyses._discovery.numbers import whole
from analyses._discovery.runs import Runs, runs_of
from analyses._discovery.setting import Setting
from analyses._views import circuit_discovery as views
from analyses.metrics import AnyMetric
from analyses.pairs import PromptPair
from analyses.prompts import AnyPrompts
from hooks.names import nearest
from interp import HookedGPT2

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_NOTHING = "nothing"
NodeSets = Mapping[str, Sequence[AnyNode]]


def counted(circuit: AnyCircuit) -> tuple[Node, ...]:
    """The nodes of a circuit that may be taken out: not the input, nor what is kept."""
    if isinstance(circuit, NodeCircuit):
        return circuit.ordered
    return tuple(Node(part) for part in circuit.nodes if part.layer is not None)


def completeness(
    model: HookedGPT2,
    circuit: AnyCircuit,
    pair: PromptPair,
    metric: AnyMetric | None = None,
    *,
    sets: NodeSets | None = None,
    n_random: int = 20,
    n_greedy: int = 5,
    greedy_steps: int = 10,
    greedy_sample: int | None = 10,
    ablation: Ablation = "patch",
    reference: AnyPrompts | PromptPair | None = None,
    per_position: bool = True,
    groups: Sequence[str] | None = None,
    reference_groups: Sequence[str] | None = None,
    seed: int = 0,
    memory_limit: int = 2**30,
    progress: bool = True,
) -> "Completeness":
    """Does the circuit have all that does the work? Then it falls as the model does.

    For a set K of the circuit's nodes, F(C \\ K) is the metric of the circuit without them,
    F(M \\ K) that of the whole model without them. A complete circuit has
    |F(C \\ K) - F(M \\ K)| small for every K. As there are too many, some are tried:

    - the empty set;
    - `sets` that are given, and the roles of a circuit that has them;
    - random ones: each node is in with probability 1/2;
    - greedy ones, which look for the largest gap: from the empty set, step by step the node of
      `greedy_sample` drawn at random that makes the gap largest is put in; the best K on the way
      counts.

    Args:
        model, pair, metric: as in `run_circuit`.
        circuit: the circuit.
        sets: node names, by a name for each set.
        n_random, n_greedy: how many of these sets.
        greedy_steps, greedy_sample: of a greedy search: how many nodes at most, of how many drawn
            at each step (None: all that are left).
        ablation, reference, per_position, groups, reference_groups, memory_limit, progress: as in
            `run_circuit`.
        seed: of the random sets and draws, and of "resample".

    Raises:
        ValueError: a set with a node that is not in the circuit or with the name of another set
            ("nothing", "random 0", a role), a count below 0, or what `run_circuit` refuses.

    Source: Wang et al. 2022, arXiv 2211.00593, section 4 (completeness).
    """
    n_random, n_greedy = whole("n_random", n_random, 0), whole("n_greedy", n_greedy, 0)
    greedy_steps, seed = whole("greedy_steps", greedy_steps, 1), whole("seed", seed, 0)
    if greedy_sample is not None:
        greedy_sample = whole("greedy_sample", greedy_sample, 1)
    nodes = counted(circuit)
    chosen: dict[str, tuple[Node, ...]] = {_NOTHING: ()}
    chosen |= _sets(circuit, sets)
    setting = Setting.of(
        model, pair, metric, ablation=ablation, reference=reference, per_position=per_position,
        groups=groups, reference_groups=reference_groups, seed=seed, memory_limit=memory_limit,
    )  # fmt: skip
    runs = runs_of(setting, checked_kind([circuit], Shape.of(model)))
    generator = torch.Generator().manual_seed(seed)
    for number in range(n_random):
        chosen[f"random {number}"] = _drawn(nodes, generator)
    pairs = _Knockouts(runs, circuit)
    with cli.bar("completeness", shown=progress) as advance:
        for number in range(n_greedy):
            found = _worst(pairs, nodes, greedy_steps, greedy_sample, generator)
            chosen[f"greedy {number}"] = found
            advance(1 / (n_greedy + 1))
        of_circuit, of_model = pairs.values(list(chosen.values()))
    call = (
        f"completeness(model, ..., metric={setting.judge.name}, n_random={n_random}, "
        f"n_greedy={n_greedy}, greedy_steps={greedy_steps}, greedy_sample={greedy_sample}, "
        f"ablation={ablation!r}, seed={seed})"
    )
    return Completeness(
        circuit=circuit,
        sets=chosen,
        metric=setting.judge.name,
        of_circuit=of_circuit,
        of_model=of_model,
        instead=setting.told,
        provenance=report.Provenance.of(model, call),
    )


def minimality(
    model: HookedGPT2,
    circuit: AnyCircuit,
    pair: PromptPair,
    metric: AnyMetric | None = None,
    *,
    sets: Mapping[str, Sequence[AnyNode]] | None = None,
    n_random: int = 10,
    ablation: Ablation = "patch",
    reference: AnyPrompts | PromptPair | None = None,
    per_position: bool = True,
    groups: Sequence[str] | None = None,
    reference_groups: Sequence[str] | None = None,
    seed: int = 0,
    memory_limit: int = 2**30,
    progress: bool = True,
) -> "Minimality":
    """Is every node of the circuit needed? Then without some K it makes a difference.

    The minimality score of a node v and a set K of the other nodes is
    |F(C \\ (K with v)) - F(C \\ K)|, also given as a share of F(M). A circuit is minimal if every
    node has some K with a score that is not small. Of each node the largest score over these K
    counts: the empty set; the other nodes of its role, in a circuit that has them; random sets of
    the other nodes (each is in with probability 1/2); and the set given for it.

    The paper chose the K of each node by hand; give those in `sets` for its figures.

    Args:
        model, pair, metric: as in `run_circuit`.
        circuit: the circuit.
        sets: for the name of a node, the names of its K; without a position, of the node at each
            of its positions.
        n_random: how many random sets for each node.
        ablation, reference, per_position, groups, reference_groups, memory_limit, progress: as in
            `run_circuit`.
        seed: of the random sets, and of "resample".

    Raises:
        ValueError: a node that is not in the circuit, or in its own K, or what `run_circuit`
            refuses.

    Source: Wang et al. 2022, arXiv 2211.00593, section 4 (minimality).
    """
    n_random, seed = whole("n_random", n_random, 0), whole("seed", seed, 0)
    nodes = counted(circuit)
    if not nodes:
        raise ValueError("the circuit has no node")
    given: dict[Node, tuple[Node, ...]] = {}
    for name, several in _mapping(sets).items():
        # A name without position stands for the node at each of its positions.
        for node in _in_circuit([name], nodes, circuit, "sets"):
            if node in given:
                raise ValueError(f"there are two sets for node {node}")
            given[node] = _in_circuit(several, nodes, circuit, name)
    roles = circuit.by_role() if isinstance(circuit, NodeCircuit) else {}
    generator = torch.Generator().manual_seed(seed)
    tried: list[tuple[Node, str, tuple[Node, ...]]] = []
    for node in nodes:
        others = tuple(other for other in nodes if other != node)
        own: dict[str, tuple[Node, ...]] = {_NOTHING: ()}
        for role, members in roles.items():
            if node in members and len(members) > 1:
                own[f"other {role}"] = tuple(other for other in members if other != node)
        for number in range(n_random):
            own[f"random {number}"] = _drawn(others, generator)
        if node in given:
            if node in given[node]:
                raise ValueError(f"node {node} is in its own set")
            own["given"] = given[node]
        tried += [(node, name, several) for name, several in own.items()]
    setting = Setting.of(
        model, pair, metric, ablation=ablation, reference=reference, per_position=per_position,
        groups=groups, reference_groups=reference_groups, seed=seed, memory_limit=memory_limit,
    )  # fmt: skip
    runs = runs_of(setting, checked_kind([circuit], Shape.of(model)))
    knockouts = _Knockouts(runs, circuit)
    with cli.bar("minimality", shown=progress) as advance:
        sides = [several for _, _, several in tried] + [(*k, node) for node, _, k in tried]
        values = knockouts.of_circuit(sides, advance)
    call = (
        f"minimality(model, ..., metric={setting.judge.name}, n_random={n_random}, "
        f"ablation={ablation!r}, seed={seed})"
    )
    return Minimality(
        circuit=circuit,
        tried=tuple(tried),
        metric=setting.judge.name,
        without_set=values[: len(tried)],
        without_both=values[len(tried) :],
        whole=float(setting.clean_values.mean()),
        instead=setting.told,
        provenance=report.Provenance.of(model, call),
    )


def _drawn(nodes: Sequence[Node], generator: torch.Generator) -> tuple[Node, ...]:
    """Each node with probability 1/2."""
    inside = torch.rand(len(nodes), generator=generator) < 0.5
    return tuple(node for node, chosen in zip(nodes, inside, strict=True) if chosen)


def _sets(circuit: AnyCircuit, sets: NodeSets | None) -> dict[str, tuple[Node, ...]]:
    found: dict[str, tuple[Node, ...]] = {}
    if isinstance(circuit, NodeCircuit):
        found |= circuit.by_role()
    nodes = counted(circuit)
    for name, several in _mapping(sets).items():
        if str(name) in found:
            raise ValueError(f"there are two sets of the name {str(name)!r}: one is a role's")
        found[str(name)] = _in_circuit(several, nodes, circuit, name)
    for name in found:
        if name == _NOTHING or re.fullmatch(r"(random|greedy) \d+", name):
            raise ValueError(
                f"a set is called {name!r}, as one of those that are tried anyway: call it "
                "something else"
            )
    return found


def _mapping(sets: Any) -> Mapping[str, Sequence[AnyNode]]:
    """Sets by name."""
    if sets is None:
        return {}
    if not isinstance(sets, Mapping):
        raise TypeError(
            f"sets are node names by a name for each set, {{'mine': ['9.6']}}, not {sets!r}"
        )
    return sets


def _in_circuit(
    given: Sequence[AnyNode], nodes: Sequence[Node], circuit: AnyCircuit, what: object
) -> tuple[Node, ...]:
    """Nodes by name, all of them in the circuit; without a position: all of that head or MLP."""
    found: list[Node] = []
    for one in listed(given, f"the nodes of {what}"):
        node = parse_node(one, circuit.shape)  # type: ignore[arg-type]
        same = [other for other in nodes if node in (other, Node(other.part))]
        if not same:
            hint = nearest(str(node), [str(other) for other in nodes])
            raise ValueError(f"set {what}: node {node} is not in the circuit.{hint}")
        found += same
    return tuple(dict.fromkeys(found))


class _Knockouts:
    """Runs a circuit and the whole model without some nodes."""

    def __init__(self, runs: Runs, circuit: AnyCircuit) -> None:
        self._runs = runs
        self._mask = runs.mask(circuit)

    def of_circuit(self, sets: Sequence[Sequence[Node]], advance: Any = None) -> Tensor:
        """F(C \\ K), mean over examples, for each K."""
        masks = [self._mask & ~self._runs.leaving(several) for several in sets]
        return self._runs.values(torch.stack(masks), advance).mean(1)

    def values(self, sets: Sequence[Sequence[Node]]) -> tuple[Tensor, Tensor]:
        """F(C \\ K) and F(M \\ K) for each K."""
        out = [self._runs.leaving(several) for several in sets]
        masks = [self._mask & ~one for one in out] + [self._runs.full & ~one for one in out]
        found = self._runs.values(torch.stack(masks)).mean(1)
        return found[: len(sets)], found[len(sets) :]


def _worst(
    pairs: _Knockouts,
    nodes: Sequence[Node],
    steps: int,
    sample: int | None,
    generator: torch.Generator,
) -> tuple[Node, ...]:
    """A set with a large gap between circuit and model, found step by step."""
    chosen: list[Node] = []
    best: tuple[float, tuple[Node, ...]] = (-math.inf, ())
    for _ in range(min(steps, len(nodes))):
        left = [node for node in nodes if node not in chosen]
        if sample is not None and len(left) > sample:
            order = torch.randperm(len(left), generator=generator)[:sample]
            left = [left[i] for i in sorted(order.tolist())]
        of_circuit, of_model = pairs.values([[*chosen, node] for node in left])
        gaps = (of_circuit - of_model).abs()
        place = int(gaps.argmax())
        chosen.append(left[place])
        best = max(best, (float(gaps[place]), tuple(chosen)), key=lambda found: found[0])
    return best[1]


# ------------------------------------------------------------------ results


@dataclass(frozen=True, eq=False, repr=False)
class Completeness:
    """The circuit and the whole model, both without some of the circuit's nodes.

    Attributes:
        circuit: the circuit C.
        sets: the K, by name.
        metric: its name.
        of_circuit, of_model: F(C \\ K) and F(M \\ K), means over examples, `set`.
        instead: what stands in place of what is not there.
        provenance: model, dtype, versions, the call.
    """

    circuit: AnyCircuit
    sets: Mapping[str, tuple[Node, ...]]
    metric: str
    of_circuit: Float[Tensor, " set"]
    of_model: Float[Tensor, " set"]
    instead: str
    provenance: report.Provenance

    @property
    def gap(self) -> Float[Tensor, " set"]:
        """|F(C \\ K) - F(M \\ K)|: small for all K of a complete circuit."""
        return (self.of_circuit - self.of_model).abs()

    def to_frame(self) -> "pd.DataFrame":
        """One row per set: `set`, `kind` (its name without number), `size`, `nodes`, `metric`,
        `circuit` F(C \\ K), `model` F(M \\ K), `gap`."""
        import pandas as pd

        return pd.DataFrame(
            {
                "set": list(self.sets),
                "kind": [kind_of(name) for name in self.sets],
                "size": [len(nodes) for nodes in self.sets.values()],
                "nodes": [" ".join(map(str, nodes)) for nodes in self.sets.values()],
                "metric": self.metric,
                "circuit": self.of_circuit.tolist(),
                "model": self.of_model.tolist(),
                "gap": self.gap.tolist(),
            }
        )

    def plot(self) -> "go.Figure":
        """A point per set: the whole model without it across, the circuit without it up."""
        return views.completeness_figure(self)

    def to_html(self, path: str | PathLike[str], *, model: HookedGPT2 | None = None) -> None:
        """Write a page with the figure, the sets and provenance; it needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        result = self
        if model is not None:
            result = replace(self, provenance=self.provenance.with_weights(model))
        views.completeness_page(result).write(path)

    def __repr__(self) -> str:
        worst = int(self.gap.argmax())
        name = list(self.sets)[worst]
        return (
            f"Completeness({self.provenance.model}, {len(self.sets)} sets; largest gap "
            f"{float(self.gap[worst]):.4g} of {self.metric} without {name!r}: circuit "
            f"{float(self.of_circuit[worst]):.4g}, model {float(self.of_model[worst]):.4g})"
        )


def kind_of(name: str) -> str:
    """`random` of `random 3`."""
    first, _, rest = name.rpartition(" ")
    return first if first in ("random", "greedy") and rest.isdigit() else name


@dataclass(frozen=True, eq=False, repr=False)
class Minimality:
    """What each node adds to the circuit, without some of the others.

    Attributes:
        circuit: the circuit C.
        tried: node v, the name of a set, and its nodes K.
        metric: its name.
        without_set, without_both: F(C \\ K) and F(C \\ (K with v)), means over examples, `tried`.
        whole: F(M).
        instead: what stands in place of what is not there.
        provenance: model, dtype, versions, the call.
    """

    circuit: AnyCircuit
    tried: tuple[tuple[Node, str, tuple[Node, ...]], ...]
    metric: str
    without_set: Float[Tensor, " tried"]
    without_both: Float[Tensor, " tried"]
    whole: float
    instead: str
    provenance: report.Provenance

    @property
    def scores(self) -> Float[Tensor, " tried"]:
        """|F(C \\ (K with v)) - F(C \\ K)|."""
        return (self.without_both - self.without_set).abs()

    def to_frame(self, every: bool = False) -> "pd.DataFrame":
        """One row per node, with the set of the largest score (with `every`: per node and set).

        Columns: `node`, `role`, `set`, `nodes` (K), `metric`, `without_set` F(C \\ K),
        `without_both`, `score`, `share` of F(M).
        """
        import pandas as pd

        scores = self.scores.tolist()
        roles = self.circuit.roles if isinstance(self.circuit, NodeCircuit) else {}
        frame = pd.DataFrame(
            {
                "node": [str(node) for node, _, _ in self.tried],
                "role": [roles.get(node, "") for node, _, _ in self.tried],
                "set": [name for _, name, _ in self.tried],
                "nodes": [" ".join(map(str, several)) for _, _, several in self.tried],
                "metric": self.metric,
                "without_set": self.without_set.tolist(),
                "without_both": self.without_both.tolist(),
                "score": scores,
                "share": [share_of(score, abs(self.whole)) for score in scores],
            }
        )
        if every:
            return frame
        best = frame.groupby("node", sort=False)["score"].idxmax()
        return frame.loc[best].reset_index(drop=True)

    def plot(self) -> "go.Figure":
        """The score of each node as a share of the whole model's metric, largest first."""
        return views.minimality_figure(self)

    def to_html(self, path: str | PathLike[str], *, model: HookedGPT2 | None = None) -> None:
        """Write a page with the figure, the scores and provenance; it needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        result = self
        if model is not None:
            result = replace(self, provenance=self.provenance.with_weights(model))
        views.minimality_page(result).write(path)

    def __repr__(self) -> str:
        least: Any = self.to_frame().sort_values("score").iloc[0]
        return (
            f"Minimality({self.provenance.model}, {self.to_frame().shape[0]} nodes; least needed "
            f"{least['node']}: {least['score']:.4g} of {self.metric}, {least['share']:.1%} of the "
            "whole model's)"
        )
