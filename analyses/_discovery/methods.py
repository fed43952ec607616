"""The ways to find a circuit: thresholds on scores, ACDC, greedy search."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses import cli, report
from analyses._discovery.circuit import AnyCircuit, Circuit, NodeCircuit
from analyses._discovery.faithfulness import (
    Ablation,
    Faithfulness,
    checked_kind,
    faithfulness,
)
from analyses._discovery.names import Edge, Node, Shape
from analyses._discovery.numbers import real
from analyses._discovery.numbers import whole as whole_number
from analyses._discovery.result import Discovery, DiscoveryInterrupted
from analyses._discovery.runs import EdgeRuns, NodeRuns, Runs
from analyses._discovery.search import LEVELS, Search
from analyses._discovery.search import acdc as run_acdc
from analyses._discovery.search import greedy as run_greedy
from analyses._discovery.setting import Setting
from analyses.edge_attribution import EdgeAttribution
from analyses.metrics import KL, AnyMetric, kl
from analyses.pairs import PromptPair
from analyses.prompts import AnyPrompts
from analyses.tasks import unknown
from interp import HookedGPT2

Level = Literal["edges", "nodes"]
SIGNS = ("any", "helpful", "harmful")
BY = ("increase", "decrease", "change")
WAYS = ("remove", "add")

# ------------------------------------------------------------------ thresholds on scores


def threshold_circuit(
    attribution: EdgeAttribution,
    *,
    k: int | None = None,
    threshold: float | None = None,
    sign: Literal["any", "helpful", "harmful"] = "any",
    level: Level = "edges",
    connected: bool = True,
) -> AnyCircuit:
    """The edges (or nodes) with the largest scores of edge attribution.

    Args:
        attribution: the scores, of EAP or (with steps) of EAP-IG. The score of a node is the sum
            over the edges that leave it.
        k: so many; of equal scores the earlier edge.
        threshold: those whose score is at least so large, of either sign. Either this or k.
        sign: "any", "helpful" (the edge works for the metric: without it the metric falls), or
            "harmful" (it works against it).
        level: "edges" or "nodes".
        connected: leave out edges that lie on no path from the input to the logits. The circuit
            may then have fewer than k.

    Returns:
        A `Circuit`, or a `NodeCircuit` that keeps the input; with the scores.

    Raises:
        ValueError: neither k nor threshold or both, one out of range, an unknown sign or level.
    """
    if not isinstance(attribution, EdgeAttribution):
        raise TypeError(
            f"attribution is what edge_attribution gives, not {type(attribution).__name__}"
        )
    _one_of("sign", sign, SIGNS)
    _one_of("level", level, LEVELS)
    names, scores, shape = _scored(attribution, level)
    order = _best_first(scores, sign, attribution.direction)
    chosen = _cut(scores, order, k, threshold)
    how = f"{_method(attribution)}, " + (f"k={k}" if k is not None else f"threshold={threshold:g}")
    how += "" if sign == "any" else f", {sign} only"
    return _circuit(names, scores, chosen, shape, attribution, how, connected)


def ranked(
    attribution: EdgeAttribution, sign: str, level: str
) -> Callable[[int, bool], AnyCircuit]:
    """The circuit of the best k edges (or nodes), for any k."""
    names, scores, shape = _scored(attribution, level)
    order = _best_first(scores, sign, attribution.direction)

    def best(k: int, connected: bool) -> AnyCircuit:
        how = f"{_method(attribution)}, k={k}"
        return _circuit(names, scores, order[:k], shape, attribution, how, connected)

    return best


def _method(attribution: EdgeAttribution) -> str:
    steps = attribution.steps
    name = "EAP" if steps is None else f"EAP-IG with {steps} steps"
    return f"{name} ({attribution.direction}, {attribution.metric})"


def _scored(
    attribution: EdgeAttribution, level: str
) -> tuple[Sequence[Edge] | Sequence[Node], Tensor, Shape]:
    heads = {part.head for part in attribution.senders if part.head is not None}
    layers = {part.layer for part in attribution.senders if part.layer is not None}
    shape = Shape(len(layers), len(heads))
    if level == "nodes":
        nodes = [Node(part) for part in attribution.senders[1:]]
        return nodes, attribution.outgoing[1:], shape
    places = attribution.exists.T.nonzero().tolist()  # by receiver, then by sender
    edges = [Edge(attribution.senders[s], attribution.receivers[r]) for r, s in places]
    return edges, attribution.total.T[attribution.exists.T], shape


def _best_first(scores: Tensor, sign: str, direction: str) -> list[int]:
    """Places by the size of their scores, only those of the sign wanted."""
    # Noising puts the corrupted value in: what helps makes the metric fall.
    raises = scores if direction == "denoising" else -scores
    wanted = {"any": scores.abs(), "helpful": raises, "harmful": -raises}[sign]
    order = wanted.argsort(descending=True, stable=True).tolist()
    return [i for i in order if sign == "any" or float(wanted[i]) > 0]


def _cut(
    scores: Tensor, order: Sequence[int], k: int | None, threshold: float | None
) -> Sequence[int]:
    if (k is None) == (threshold is None):
        raise ValueError("give either k or threshold")
    if k is not None:
        return order[: whole_number("k", k, 0, len(scores))]
    least = real("threshold", threshold)
    if least < 0:
        raise ValueError(f"threshold={least} is out of range: expected at least 0")
    return [i for i in order if abs(float(scores[i])) >= least]


def _circuit(
    names: Sequence[Edge] | Sequence[Node],
    scores: Tensor,
    chosen: Sequence[int],
    shape: Shape,
    attribution: EdgeAttribution,
    how: str,
    connected: bool,
) -> AnyCircuit:
    rated = {names[i]: float(scores[i]) for i in chosen}
    model = attribution.provenance.model
    provenance = attribution.provenance.to_dict()
    if all(isinstance(name, Node) for name in rated) and isinstance(names[0], Node):
        return NodeCircuit(
            shape, frozenset(rated), ("input",), {}, rated, model, how, provenance  # type: ignore[arg-type]
        )  # fmt: skip
    found = Circuit(shape, frozenset(rated), rated, model, how, provenance)  # type: ignore[arg-type]
    if not connected:
        return found
    live = found.pruned()
    told = f"{len(found)} chosen, {len(live)} of them on a path from the input to the logits"
    return replace(live, method=f"{how}: {told}")


def faithfulness_curve(
    model: HookedGPT2,
    attribution: EdgeAttribution,
    sizes: Sequence[int] | None = None,
    *,
    sign: Literal["any", "helpful", "harmful"] = "any",
    level: Level = "edges",
    connected: bool = True,
    metric: AnyMetric | None = None,
    ablation: Ablation = "patch",
    reference: AnyPrompts | PromptPair | None = None,
    memory_limit: int = 2**30,
    progress: bool = True,
) -> Faithfulness:
    """How much of the metric the best k edges (or nodes) keep, for several k.

    Args:
        model: the one that the scores are of.
        attribution: the scores; its prompts are run.
        sizes: the k. None: about 20, each a third larger than the one before.
        sign, level, connected: as in `threshold_circuit`. A circuit's size is what is left of k.
        metric: by default the pair's.
        ablation, reference, memory_limit, progress: as in `run_circuit`.

    Returns:
        A circuit of each size, under its name `k=...`, with the metric.

    Raises:
        ValueError: a size out of range, or what `threshold_circuit` and `run_circuit` refuse.
    """
    _one_of("sign", sign, SIGNS)
    _one_of("level", level, LEVELS)
    n = len(_scored(attribution, level)[0])
    if sizes is None:
        grown = [round(1.35**i) for i in range(64)]
        sizes = sorted({k for k in grown if k < n} | {n})
    sizes = [whole_number("size", k, 0, n) for k in sizes]
    if not sizes:
        raise ValueError("sizes is empty; None chooses some")
    best = ranked(attribution, sign, level)
    named = {f"k={k}": best(k, connected) for k in sizes}
    setting = Setting.of(
        model, attribution.pair, metric, ablation=ablation, reference=reference,
        memory_limit=memory_limit,
    )  # fmt: skip
    kind = checked_kind(list(named.values()), Shape.of(model))
    runs: Runs = EdgeRuns(setting) if kind is Circuit else NodeRuns(setting)
    call = (
        f"faithfulness_curve(model, {_method(attribution)}, sizes={list(sizes)}, sign={sign!r}, "
        f"level={level!r}, connected={connected}, ablation={ablation!r})"
    )
    return faithfulness(runs, named, call, progress=progress)


# ------------------------------------------------------------------ ACDC


def acdc(
    model: HookedGPT2,
    pair: PromptPair,
    threshold: float,
    *,
    metric: AnyMetric | None = None,
    by: Literal["increase", "decrease", "change"] | None = None,
    level: Level = "edges",
    start: AnyCircuit | None = None,
    ablation: Ablation = "patch",
    reference: AnyPrompts | PromptPair | None = None,
    per_position: bool = True,
    seed: int = 0,
    memory_limit: int = 2**30,
    progress: bool = True,
) -> Discovery:
    """Automatic circuit discovery: leave out, from the logits down, what changes the metric little.

    1. Begin with the whole model.
    2. Visit the receivers from the logits down to the first layer, and of each its senders, last
       first. Run the circuit without that edge; if the metric changes by less than the threshold
       from what it is with the edge, the edge goes for good.

    The decisions are those of one full run per edge. What is run is less: all below the receiver
    visited is still the clean run and is not computed again; nor is what leads nowhere any more,
    whose edges go without a run; and several circuits are run at a time, as if all their edges
    went, of which those after the first edge that stays are thrown away.

    Args:
        model: what is looked into; stays as it is.
        pair: the prompts.
        threshold: in the metric's units (nats for the divergence), above 0.
        metric: by default the divergence from the clean run's prediction at the last position,
            KL(clean || circuit), as in the paper.
        by: what less than the threshold means: the "increase" of the metric (so that what lowers a
            divergence goes), its "decrease", or its "change" of either sign. By default "increase"
            of a divergence, "change" of other metrics.
        level: "edges", or "nodes": heads and MLPs, last first.
        start: a circuit to begin with, rather than the whole model.
        ablation, reference, per_position, seed, memory_limit: as in `run_circuit`.
        progress: show a bar on standard error, where that is a terminal.

    Returns:
        the circuit, each edge with the change of the metric without it as score, and the decisions.

    Raises:
        ValueError, TypeError: a threshold that is not above 0, an unknown level, or what
            `run_circuit` refuses.
        DiscoveryInterrupted: on Ctrl-C, with the circuit as it was then.

    Source: Conmy et al., "Towards Automated Circuit Discovery for Mechanistic Interpretability"
    (2023), arXiv 2304.14997, section 3 and algorithm 1.
    """
    threshold = real("threshold", threshold)
    if threshold <= 0:
        raise ValueError(f"threshold={threshold:g} is out of range: expected a number above 0")
    _one_of("level", level, LEVELS)
    measure = kl() if metric is None else metric
    by = by or ("increase" if isinstance(measure, KL) else "change")
    _one_of("by", by, BY)
    sides = {"increase": lambda d: d, "decrease": lambda d: -d, "change": abs}
    setting = Setting.of(
        model, pair, measure, ablation=ablation, reference=reference, per_position=per_position,
        seed=seed, memory_limit=memory_limit,
    )  # fmt: skip
    runs, mask, kept = _start(setting, level, start)
    call = (
        f"acdc(model, ..., {threshold:g}, metric={setting.judge.name}, by={by!r}, level={level!r}, "
        f"ablation={ablation!r})"
    )
    method = f"ACDC ({setting.judge.name}, threshold {threshold:g}, {setting.told})"

    def small(before: float, after: float) -> bool:
        return sides[by](after - before) < threshold

    return _searched(
        runs, mask, kept, method, call, progress,
        lambda search, advance: run_acdc(search, small, advance),
        # A divergence has no share that is kept: that is told by the pair's own metric.
        judged_by=pair.metric if isinstance(measure, KL) and pair.answers is not None else None,
    )  # fmt: skip


# ------------------------------------------------------------------ greedy


def greedy_circuit(
    model: HookedGPT2,
    pair: PromptPair,
    *,
    k: int | None = None,
    share: float | None = None,
    way: Literal["remove", "add"] = "remove",
    at_once: int = 1,
    metric: AnyMetric | None = None,
    level: Level = "edges",
    start: AnyCircuit | None = None,
    ablation: Ablation = "patch",
    reference: AnyPrompts | PromptPair | None = None,
    per_position: bool = True,
    seed: int = 0,
    memory_limit: int = 2**30,
    progress: bool = True,
) -> Discovery:
    """Leave out, again and again, whatever then keeps the metric closest to the whole model's.

    Each round runs the circuit without each of the edges (or nodes) that are left, and takes out
    the one after which the metric, averaged over examples, is closest to that of the whole model.
    With `way="add"` it puts in, from nothing, the node that brings the metric closest.

    Args:
        model, pair: as in `acdc`.
        k: stop at so many edges (or nodes).
        share: stop before less than this share of the metric's difference between the empty circuit
            and the whole model is recovered (adding: as soon as it is). With k: at the first of
            both.
        way: "remove" or "add". Edges cannot be added one by one: an edge carries something only
            where all of a path to the logits is there.
        at_once: how many a round takes, those that alone would each be the best: n times as fast,
            less exact. No round goes past k, and the last one up to share is taken one by one.
        metric: by default the pair's.
        level, start: as in `acdc`.
        ablation, reference, per_position, seed, memory_limit, progress: as in `acdc`.

    Returns:
        the circuit, and the decisions.

    Raises:
        ValueError, TypeError: neither k nor share, one out of range, an unknown way or level, edges
            to be added, or what `run_circuit` refuses.
        DiscoveryInterrupted: on Ctrl-C, with the circuit as it was then.
    """
    _one_of("way", way, WAYS)
    _one_of("level", level, LEVELS)
    if k is None and share is None:
        raise ValueError("say where to stop: k (how many) or share (how much of the metric)")
    k = None if k is None else whole_number("k", k, 0)
    at_once = whole_number("at_once", at_once, 1)
    share = None if share is None else real("share", share)
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"share={share:g} is out of range: expected 0 to 1")
    add = way == "add"
    if add and level == "edges":
        raise ValueError(
            "edges cannot be added one by one: alone, an edge carries nothing without a path to "
            "the logits. Add nodes (level='nodes'), or remove edges"
        )
    setting = Setting.of(
        model, pair, metric, ablation=ablation, reference=reference, per_position=per_position,
        seed=seed, memory_limit=memory_limit,
    )  # fmt: skip
    runs, mask, kept = _start(setting, level, start, add=add)
    ends = _empty(runs, kept)[None]
    empty, whole = float(runs.values(ends).mean()), float(setting.clean_values.mean())
    if share is not None and empty == whole:
        raise ValueError(
            f"metric {setting.judge.name} is {whole:.4g} of the whole model and of the empty "
            "circuit: there is no share to keep"
        )

    def stop(size: int, value: float) -> bool:
        recovered = math.nan if share is None else (value - empty) / (whole - empty)
        if add:
            enough = share is not None and recovered >= share
            return enough or (k is not None and size >= k)
        too_little = share is not None and recovered < share
        return too_little or (k is not None and size < k)

    call = (
        f"greedy_circuit(model, ..., k={k}, share={share}, way={way!r}, at_once={at_once}, "
        f"metric={setting.judge.name}, level={level!r}, ablation={ablation!r})"
    )
    method = f"greedy, {way} ({setting.judge.name}, {setting.told})"
    return _searched(
        runs, mask, kept, method, call, progress,
        lambda search, advance: run_greedy(
            search, whole, stop, add=add, k=k, at_once=at_once, advance=advance
        ),
    )  # fmt: skip


# ------------------------------------------------------------------ what they share


def _one_of(what: str, given: Any, known: Sequence[str]) -> None:
    if given not in known:
        raise ValueError(unknown(what, str(given), tuple(known)))


def _start(
    setting: Setting, level: str, start: AnyCircuit | None, add: bool = False
) -> tuple[Runs, Bool[Tensor, "..."], tuple[str, ...]]:
    """What runs circuits, the mask to begin with, and what is always kept."""
    runs: Runs = EdgeRuns(setting) if level == "edges" else NodeRuns(setting)
    if start is None:
        mask = _empty(runs, ("input",)) if add else runs.full
        return runs, mask, ("input",)
    kind = checked_kind([start], runs.shape)
    if (kind is Circuit) != (level == "edges"):
        raise ValueError(f"level is {level!r}, but start is a {kind.__name__}")
    if isinstance(start, NodeCircuit) and (
        start.kept != ("input",) or any(node.pos is not None for node in start.nodes)
    ):
        raise ValueError("start has nodes at some positions, or does not keep just the input")
    return runs, runs.mask(start), ("input",)


def _empty(runs: Runs, kept: tuple[str, ...]) -> Bool[Tensor, "..."]:
    mask = torch.zeros_like(runs.full)
    if isinstance(runs, NodeRuns):
        mask[0] = "input" in kept
    return mask


def _searched(
    runs: Runs,
    mask: Bool[Tensor, "..."],
    kept: tuple[str, ...],
    method: str,
    call: str,
    progress: bool,
    go: Callable[[Search, Callable[[float], None]], None],
    judged_by: AnyMetric | None = None,
) -> Discovery:
    """Carry out a search; interrupted, what it has by then.

    Args:
        judged_by: the metric of the result's `faithfulness`; None: that of the search.
    """
    setting = runs.setting
    search = Search.start(runs, mask)

    def result(whole: Faithfulness | None) -> Discovery:
        model = str(setting.model.cfg.model_name)
        provenance = report.Provenance.of(setting.model, call)
        circuit = search.circuit(kept, model, method, provenance.to_dict())
        return Discovery(
            circuit, method, setting.judge.name, tuple(search.steps), runs.n_run, whole, provenance
        )

    try:
        with cli.bar(method.split(" ")[0].rstrip(","), shown=progress) as advance:
            go(search, advance)
        n_run = runs.n_run
        judged = runs if judged_by is None else type(runs)(setting.judged_by(judged_by))
        found = result(None)
        whole = faithfulness(judged, {"found": found.circuit}, call, progress=False)
    except KeyboardInterrupt:
        raise DiscoveryInterrupted(result(None)) from None
    return Discovery(
        found.circuit, method, setting.judge.name, found.steps, n_run, whole, found.provenance
    )
