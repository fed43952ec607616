"""Finding circuits: EAP on a linear model, a planted circuit, thresholds and greedy search by brute
force; errors."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _micro import blank_model
from _naive_circuits import naive_value, run_of
from _random_pairs import D_VOCAB, lively_model, random_pair

from analyses import circuit_discovery as module
from analyses.circuit_discovery import (
    Circuit,
    DiscoveryInterrupted,
    NodeCircuit,
    acdc,
    discover,
    faithfulness_curve,
    greedy_circuit,
    run_circuit,
    threshold_circuit,
)
from analyses.edge_attribution import EdgeAttribution, edge_attribution
from analyses.metrics import kl
from analyses.pairs import PromptPair
from interp import HookedGPT2, HookedGPT2Config


@pytest.fixture(scope="module")
def model(reference_model: Callable[..., Any]) -> HookedGPT2:
    return lively_model(reference_model, 2, 2)


# ------------------------------------------------------------------ models with known circuits

PLANTED = ["input → 0.1.v", "0.1 → 1.0.v", "1.0 → logits"]


def planted_model() -> HookedGPT2:
    """A model whose circuit is `PLANTED`, among others that work and are not read.

    Residual directions are columns of a Hadamard matrix: orthogonal, mean 0, variance 1. Attention
    is even. Head 0.1 writes plus or minus `said` for token 2 or 1, head 1.0 turns that into
    `answer`, which the logits read. Head 1.1 and the first MLP tell the tokens apart too, in
    directions that nobody reads. All is plus or minus one thing: layer norms divide by the same.
    """
    cfg = HookedGPT2Config(
        n_layers=2, d_model=8, n_heads=2, d_mlp=2, n_ctx=4, d_vocab=4, act_fn="relu", eps=1e-14,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = blank_model(cfg)
    rows = torch.tensor([[1.0]], dtype=torch.float64)
    for _ in range(3):
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    one, two, other, said, answer, idle, unread = rows[1:]
    model.W_E[1:] = torch.stack([one, two, other])
    tells = (two - one) / 8
    model.W_V[0, 1, :, 0], model.W_O[0, 1, 0] = tells, said
    model.W_V[1, 0, :, 0], model.W_O[1, 0, 0] = said / 8, answer
    model.W_V[1, 1, :, 0], model.W_O[1, 1, 0] = tells, idle
    model.W_in[0, :, 0], model.W_out[0, 0] = two / 8, unread
    model.W_in[0, :, 1], model.W_out[0, 1] = one / 8, -unread
    model.W_U[:, 0], model.W_U[:, 3] = answer, -answer
    return model


def planted_pair(model: HookedGPT2) -> PromptPair:
    return PromptPair.of(model, torch.tensor([[2, 3]]), torch.tensor([[1, 3]]), 0, 3)


def linear_model() -> HookedGPT2:
    """A random model that is linear in what every part reads.

    Layer norms divide by the root of an eps that is larger than any variance, and multiply by it;
    attention is even, as queries and keys are 0; the biases of MLPs keep all neurons on.
    """
    cfg = HookedGPT2Config(
        n_layers=2, d_model=12, n_heads=2, d_mlp=16, n_ctx=8, d_vocab=D_VOCAB, act_fn="relu",
        eps=1e24, tie_word_embeddings=False,
    )  # fmt: skip
    model = blank_model(cfg)
    for weight in (model.W_E, model.W_pos, model.W_V, model.W_O, model.W_in, model.W_out):
        weight.normal_(std=0.3)
    model.W_U.normal_()
    model.b_in.fill_(1e3)
    for norm in ("ln_1.weight", "ln_2.weight", "ln_f.weight"):
        model.get_parameter(norm).fill_(1e12)
    return model


def test_edge_attribution_of_a_linear_model_is_exact() -> None:
    model = linear_model()
    pair = random_pair(model)
    for steps in (None, 2):
        scores = edge_attribution(model, pair, steps=steps)
        full = Circuit.full(model)
        each = {str(e): full - Circuit.of(model, [e]) for e in full}
        exact = run_circuit(model, each, pair)
        change = (exact.values - exact.clean).mean(1)
        estimate = torch.stack([scores[str(e.sender), str(e.receiver)] for e in full])
        assert (change.abs() > 1e-3).sum() > 20
        torch.testing.assert_close(estimate, change, rtol=1e-8, atol=1e-8)
    pair = random_pair(model, (5, 4))
    both = edge_attribution(model, pair), edge_attribution(model, pair, direction="denoising")
    torch.testing.assert_close(both[0].scores, -both[1].scores, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["acdc", "greedy", "eap"])
def test_a_planted_circuit_is_recovered(method: Any) -> None:
    model = planted_model()
    pair = planted_pair(model)
    ends = pair.ends(model)
    torch.testing.assert_close(ends["clean"], -ends["corrupted"])
    how: dict[str, dict[str, Any]] = {
        "acdc": {"threshold": 1e-4}, "greedy": {"share": 0.999}, "eap": {"k": 3},
    }  # fmt: skip
    found = discover(model, pair, method, **how[method])
    assert found.circuit == Circuit.of(model, PLANTED)
    assert found.faithfulness is not None
    assert float(found.faithfulness.share) == pytest.approx(1)
    # Any edge less, and all is lost.
    for edge in PLANTED:
        rest = Circuit.of(model, [other for other in PLANTED if other != edge])
        assert float(run_circuit(model, rest, pair).recovered) == pytest.approx(0, abs=1e-9)


# ------------------------------------------------------------------ thresholds, greedy


@pytest.fixture(scope="module")
def scores(model: HookedGPT2) -> EdgeAttribution:
    torch.manual_seed(1)
    return edge_attribution(model, random_pair(model))


@pytest.mark.parametrize("sign", ["any", "helpful", "harmful"])
@pytest.mark.parametrize("level", ["edges", "nodes"])
def test_thresholds_by_brute_force(scores: EdgeAttribution, sign: Any, level: Any) -> None:
    full = Circuit.full(module.Shape(2, 2))
    if level == "edges":
        rated = {str(e): float(scores[str(e.sender), str(e.receiver)]) for e in full}
    else:
        rated = {str(p): float(s) for p, s in zip(scores.senders, scores.outgoing, strict=True)}
        del rated["input"]
    # Noising: what helps makes the metric fall when it is put out.
    wanted = {"any": abs, "helpful": lambda s: -s, "harmful": lambda s: s}[sign]
    order = sorted((n for n in rated if sign == "any" or wanted(rated[n]) > 0),
                   key=lambda n: -wanted(rated[n]))  # fmt: skip
    options = {"sign": sign, "level": level, "connected": False}
    for k in (0, 3, 5):
        found = threshold_circuit(scores, k=k, **options)
        assert {str(one) for one in found} == set(order[:k])
        assert {str(n): s for n, s in found.scores.items()} == {n: rated[n] for n in order[:k]}
    for name in order[2:5]:
        least = abs(rated[name])
        found = threshold_circuit(scores, threshold=least, **options)
        assert {str(one) for one in found} == {n for n in order if abs(rated[n]) >= least}
    if level == "edges":
        whole: Any = threshold_circuit(scores, k=20, sign=sign, connected=False)
        assert threshold_circuit(scores, k=20, sign=sign) == whole.pruned()


def test_denoising_scores_have_the_other_sign(model: HookedGPT2) -> None:
    pair = random_pair(model)
    for direction, sign in (("noising", -1), ("denoising", 1)):
        way: Any = direction
        scores = edge_attribution(model, pair, direction=way)
        found = threshold_circuit(scores, k=10, sign="helpful", connected=False)
        assert all(sign * score > 0 for score in found.scores.values())


def test_the_curve_runs_the_best_of_each_size(model: HookedGPT2, scores: EdgeAttribution) -> None:
    found = faithfulness_curve(model, scores, [3, 12, 46], connected=False)
    assert [len(circuit) for circuit in found.circuits.values()] == [3, 12, 46]
    for (_, circuit), value in zip(found.circuits.items(), found.values, strict=True):
        assert circuit == threshold_circuit(scores, k=len(circuit), connected=False)
        alone = run_circuit(model, circuit, scores.pair)
        torch.testing.assert_close(value, alone.values[0], rtol=0, atol=1e-12)
    assert float(found.share[-1]) == pytest.approx(1)
    every = faithfulness_curve(model, scores)
    assert list(every.circuits)[-1] == "k=46" and len(every.plot().data) == 2
    nodes = faithfulness_curve(model, scores, [1, 6], level="nodes")
    assert list(nodes.to_frame()["size"]) == [1, 6]
    with pytest.raises(ValueError, match="size=47 is out of range: expected 0 to 46"):
        faithfulness_curve(model, scores, [47])


@pytest.mark.parametrize("way", ["remove", "add"])
def test_greedy_search_by_brute_force(model: HookedGPT2, way: Any) -> None:
    pair = random_pair(model)
    instead = run_of(model, pair.corrupted, pair.attention_mask)

    def value(circuit: NodeCircuit) -> float:
        return float(naive_value(model, circuit, pair, pair.metric, instead).mean())

    full = NodeCircuit.full(model)
    circuit = full if way == "remove" else full - full
    target, ends = value(full), value(full - full)
    sizes = {len(circuit): circuit}
    for _ in range(6):
        nodes = [n for n in full if (n in circuit) == (way == "remove")]
        rest = [circuit - NodeCircuit.of(model, [n]) if way == "remove"
                else circuit | NodeCircuit.of(model, [n]) for n in nodes]  # fmt: skip
        circuit = min(rest, key=lambda one: abs(value(one) - target))
        sizes[len(circuit)] = circuit
    for k in (1, 3, 5):
        found = greedy_circuit(model, pair, k=k, way=way, level="nodes")
        assert found.circuit == sizes[k]
    # Up to a share of the metric: the smallest on the way down, the first on the way up.
    recovered = {k: (value(c) - ends) / (target - ends) for k, c in sizes.items()}
    found = greedy_circuit(model, pair, share=0.7, way=way, level="nodes")
    if way == "remove":
        k = 6
        while recovered[k - 1] >= 0.7:
            k -= 1
    else:
        k = next(k for k in range(7) if recovered[k] >= 0.7)
    assert found.circuit == sizes[k]


def test_greedy_search_of_edges(model: HookedGPT2) -> None:
    pair = random_pair(model)
    found = greedy_circuit(model, pair, k=42)
    circuit, full = Circuit.full(model), Circuit.full(model)
    for _ in range(4):
        each = [circuit - Circuit.of(model, [e]) for e in reversed(circuit.ordered)]
        ran = run_circuit(model, each, pair)
        gap = (ran.mean - ran.clean.mean()).abs()
        circuit = each[int(gap.argmin())]
    assert found.circuit == circuit and len(full) - len(circuit) == 4
    several = greedy_circuit(model, pair, k=40, at_once=3)
    assert len(several.circuit) == 40 and several.n_run < 150
    kept = [step for step in several.steps if step.kept]
    assert set(several.circuit.scores) == {step.item for step in kept}


@pytest.mark.parametrize("way", ["remove", "add"])
def test_several_at_once_stop_where_one_by_one_would(model: HookedGPT2, way: Any) -> None:
    pair = random_pair(model)
    for k, at_once in ((1, 4), (3, 2), (2, 1000), (5, 1000)):
        found = greedy_circuit(model, pair, k=k, at_once=at_once, level="nodes", way=way)
        assert len(found.circuit) == k
    # Six nodes at a time are too much (or more than needed): the rest is then one by one.
    alone = greedy_circuit(model, pair, share=0.7, level="nodes", way=way)
    several = greedy_circuit(model, pair, share=0.7, at_once=6, level="nodes", way=way)
    assert 0 < len(alone.circuit) < 6 and several.circuit == alone.circuit


def test_an_interrupted_last_run_loses_nothing(
    model: HookedGPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("analyses._discovery.methods.faithfulness", interrupted)
    with pytest.raises(DiscoveryInterrupted, match="interrupted after") as caught:
        greedy_circuit(model, random_pair(model), k=3, level="nodes")
    assert len(caught.value.partial.circuit) == 3


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_other_libraries(model: HookedGPT2, scores: EdgeAttribution) -> None:
    three: Any = np.int64(3)
    tenth: Any = np.float32(0.1)
    pair = random_pair(model)
    assert threshold_circuit(scores, k=three) == threshold_circuit(scores, k=3)
    same = threshold_circuit(scores, threshold=float(tenth))
    assert threshold_circuit(scores, threshold=tenth) == same
    assert len(greedy_circuit(model, pair, k=three, level="nodes").circuit) == 3
    by_it = acdc(model, pair, tenth, level="nodes").circuit
    assert by_it == acdc(model, pair, float(tenth), level="nodes").circuit


def test_what_is_told_of_a_divergence(model: HookedGPT2) -> None:
    found = run_circuit(model, Circuit.empty(model), random_pair(model), kl())
    assert "inf" not in repr(found) and "-0.0%" not in repr(found) and "nan" not in repr(found)
    assert found.share.isnan().all() and "– of clean, 0.0% recovered" in repr(found)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p, s: acdc(m, p, 0), "threshold=0 is out of range: expected a number above 0"),
        (lambda m, p, s: acdc(m, p, 0.1, by="rise"), "unknown by 'rise'"),
        (lambda m, p, s: acdc(m, p, 0.1, level="edge"), "unknown level 'edge'; did you mean"),
        (lambda m, p, s: acdc(m, p, 0.1, ablation="means"), "unknown ablation 'means'; did you"),
        (lambda m, p, s: greedy_circuit(m, p), "say where to stop"),
        (lambda m, p, s: greedy_circuit(m, p, k=-1), "k=-1 is out of range"),
        (lambda m, p, s: greedy_circuit(m, p, share=2), "share=2 is out of range: expected 0 to 1"),
        (lambda m, p, s: greedy_circuit(m, p, k=1, way="add"), "edges cannot be added one by one"),
        (lambda m, p, s: threshold_circuit(s), "give either k or threshold"),
        (lambda m, p, s: threshold_circuit(s, k=99), "k=99 is out of range: expected 0 to 46"),
        (lambda m, p, s: threshold_circuit(s, threshold=-1.0), "threshold=-1.0 is out of range"),
        (lambda m, p, s: threshold_circuit(s, k=1, sign="good"), "unknown sign 'good'"),
        (lambda m, p, s: threshold_circuit(p, k=1), "attribution is what edge_attribution gives"),
        (lambda m, p, s: discover(m, p, "acdcd", k=1), "unknown method 'acdcd'; did you mean"),
        (lambda m, p, s: discover(m, p, "acdc", k=3), "k does not go with method 'acdc'"),
        (lambda m, p, s: discover(m, p, "eap"), "method 'eap' needs threshold or k"),
        (lambda m, p, s: acdc(m, p, 10**400), "threshold is out of range: expected a finite"),
        (lambda m, p, s: acdc(m, p, 0.1, seed="x"), "seed='x' is no whole number"),
        (lambda m, p, s: Circuit.full(p), "a circuit is of a HookedGPT2, its config or a Shape"),
        (lambda m, p, s: discover(m, p, "eap", k=3, steps=9), "steps does not go with method"),
    ],
    ids=range(20),
)
def test_what_does_not_fit_is_refused(
    model: HookedGPT2, scores: EdgeAttribution, call: Any, message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        call(model, random_pair(model), scores)
