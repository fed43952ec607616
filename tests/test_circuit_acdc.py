"""ACDC decides as with one full, naive run per edge; interrupted, it has what it found by then."""

from collections.abc import Callable
from typing import Any

import pytest
from _naive_circuits import naive_value, run_of
from _random_pairs import lively_model, random_pair

from analyses._discovery.runs import EdgeRuns
from analyses.circuit_discovery import (
    Circuit,
    DiscoveryInterrupted,
    NodeCircuit,
    acdc,
    threshold_circuit,
)
from analyses.edge_attribution import edge_attribution
from analyses.metrics import kl
from analyses.pairs import PromptPair
from interp import HookedGPT2


@pytest.fixture(scope="module")
def model(reference_model: Callable[..., Any]) -> HookedGPT2:
    return lively_model(reference_model, 2, 2)


def naive_acdc(
    model: HookedGPT2, pair: PromptPair, threshold: float, by: Callable[[float], float], metric: Any
) -> Circuit:
    """One full run for every edge, in the order of the paper."""
    instead = run_of(model, pair.corrupted, pair.attention_mask)
    circuit = Circuit.full(model)

    def value(one: Circuit) -> float:
        return float(naive_value(model, one, pair, metric, instead).mean())

    now = value(circuit)
    for edge in reversed(circuit.ordered):
        smaller = circuit - Circuit.of(model, [edge])
        after = value(smaller)
        if by(after - now) < threshold:
            circuit, now = smaller, after
    return circuit


@pytest.mark.parametrize(("threshold", "lengths"), [(0.003, (5, 5)), (0.1, (5, 3))])
def test_acdc_decides_as_with_a_full_run_per_edge(
    model: HookedGPT2, threshold: float, lengths: tuple[int, ...]
) -> None:
    pair = random_pair(model, lengths)
    found = acdc(model, pair, threshold)
    clean = model(pair.clean, attention_mask=pair.attention_mask).detach()
    expected = naive_acdc(model, pair, threshold, lambda d: d, kl().against(clean))
    assert found.circuit == expected and 0 < len(expected) < 46
    assert len(found.steps) == 46 and found.circuit == found.circuit.pruned(from_input=False)
    decided = {step.item: step for step in found.steps}
    assert {edge for edge, step in decided.items() if step.kept} == expected.edges
    # Every decision has the numbers that decided it.
    for before, after in zip(found.steps, found.steps[1:], strict=False):
        assert after.before == (before.before if before.kept else before.after)
        assert before.kept == (before.after - before.before >= threshold)
    assert found.faithfulness is not None and found.faithfulness.metric == "logit_diff"


def test_acdc_by_another_metric(model: HookedGPT2) -> None:
    pair = random_pair(model)
    for by, side in (("change", abs), ("decrease", lambda d: -d)):
        way: Any = by
        found = acdc(model, pair, 0.05, metric=pair.metric, by=way)
        assert found.circuit == naive_acdc(model, pair, 0.05, side, pair.metric)
    assert (
        acdc(model, pair, 0.05, metric=pair.metric).circuit
        == acdc(model, pair, 0.05, metric=pair.metric, by="change", memory_limit=1).circuit
    )


def test_acdc_of_nodes(model: HookedGPT2) -> None:
    pair = random_pair(model)
    found = acdc(model, pair, 0.02, metric=pair.metric, level="nodes")
    instead = run_of(model, pair.corrupted, pair.attention_mask)
    circuit = NodeCircuit.full(model)

    def value(one: NodeCircuit) -> float:
        return float(naive_value(model, one, pair, pair.metric, instead).mean())

    for node in reversed(circuit.ordered):
        smaller = circuit.without_nodes([node])
        if abs(value(smaller) - value(circuit)) < 0.02:
            circuit = smaller
    assert found.circuit == circuit and 0 < len(circuit) < 6


def test_acdc_from_a_circuit(model: HookedGPT2) -> None:
    pair = random_pair(model)
    start = threshold_circuit(edge_attribution(model, pair), k=25)
    found = acdc(model, pair, 0.02, start=start)
    assert found.circuit < start and len(found.steps) == len(start)
    with pytest.raises(ValueError, match="level is 'nodes', but start is a Circuit"):
        acdc(model, pair, 0.02, start=start, level="nodes")


def test_what_was_found_before_an_interruption(
    model: HookedGPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = random_pair(model)
    whole = acdc(model, pair, 0.02)
    plain, calls = EdgeRuns.values, []

    def values(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    monkeypatch.setattr(EdgeRuns, "values", values)
    with pytest.raises(DiscoveryInterrupted, match="interrupted after") as caught:
        acdc(model, pair, 0.02)
    partial = caught.value.partial
    n = len(partial.steps)
    assert 0 < n < 46 and list(partial.steps) == list(whole.steps[:n])
    gone = {step.item for step in partial.steps if not step.kept}
    assert partial.circuit.edges == Circuit.full(model).edges - gone  # type: ignore[union-attr]
    assert partial.faithfulness is None and "Discovery(ACDC" in repr(partial)
