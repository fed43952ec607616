"""Running circuits: against a naive run edge by edge, full and empty circuits, what stands in
place, batches and memory; faithfulness, completeness, minimality from the naive runs; errors."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _naive_circuits import Sent, inside, naive_logits, naive_value, run_of
from _random_pairs import D_VOCAB, N_POS, lively_model, random_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from analyses.circuit_discovery import (
    Circuit,
    Node,
    NodeCircuit,
    Part,
    Shape,
    completeness,
    minimality,
    run_circuit,
)
from analyses.metrics import kl, log_prob, loss
from analyses.pairs import PromptPair
from interp import HookedGPT2

N_LAYERS, N_HEADS = 2, 2
LENGTHS = [(N_POS, N_POS), (N_POS, N_POS - 2)]


@pytest.fixture(scope="module")
def model(reference_model: Callable[..., Any]) -> HookedGPT2:
    return lively_model(reference_model, N_LAYERS, N_HEADS)


def named_pair(model: HookedGPT2, lengths: tuple[int, ...] = (N_POS, N_POS - 2)) -> PromptPair:
    pair = random_pair(model, lengths)
    positions = {"S": torch.arange(len(pair)) % 2, "END": pair.lengths - 1}
    return replace(pair, positions=positions)


def random_circuit(model: HookedGPT2, share: float) -> Circuit:
    every = list(Circuit.full(model))
    return Circuit.of(model, [e for e in every if float(torch.rand(())) < share])


def random_nodes(model: HookedGPT2, share: float, kept: Any = ("input",)) -> NodeCircuit:
    parts = [p for p in Shape.of(model).senders[1:] if "mlps" not in kept or p.kind == "head"]
    nodes = []
    for part in parts:
        draw = torch.rand(2).tolist()
        if draw[0] < share / 2:
            nodes.append(Node(part))
        elif draw[0] < share:
            nodes += [Node(part, "S"), Node(part, -1)] if draw[1] < 0.5 else [Node(part, "END")]
    return NodeCircuit.of(model, nodes, kept=kept)


def corrupted(model: HookedGPT2, pair: PromptPair) -> Sent:
    return run_of(model, pair.corrupted, pair.attention_mask)


# ------------------------------------------------------------------ the numbers


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), padded=st.booleans())
def test_random_circuits_equal_the_naive_run(
    model: HookedGPT2, seed: int, share: float, padded: bool
) -> None:
    torch.manual_seed(seed)
    pair = random_pair(model, LENGTHS[padded])
    several = [random_circuit(model, share), random_circuit(model, 0.5), Circuit.full(model)]
    found = run_circuit(model, several, pair)
    instead = corrupted(model, pair)
    for circuit, values in zip(several, found.values, strict=True):
        expected = naive_value(model, circuit, pair, pair.metric, instead)
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), kept=st.sampled_from([(), ("input",), ("input", "mlps")]))
def test_random_node_circuits_equal_the_naive_run(
    model: HookedGPT2, seed: int, kept: tuple[str, ...]
) -> None:
    torch.manual_seed(seed)
    pair = named_pair(model)
    several = [random_nodes(model, share, kept) for share in (0.2, 0.6, 0.95)]
    found = run_circuit(model, several, pair)
    instead = corrupted(model, pair)
    for circuit, values in zip(several, found.values, strict=True):
        expected = naive_value(model, circuit, pair, pair.metric, instead)
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_full_is_the_clean_run_and_empty_the_corrupted_one(
    model: HookedGPT2, lengths: tuple[int, ...]
) -> None:
    pair = random_pair(model, lengths)
    ends = pair.ends(model)
    assert (ends["clean"] - ends["corrupted"]).abs().min() > 0.05
    for kind in (Circuit, NodeCircuit):
        found = run_circuit(model, {"full": kind.full(model)}, pair)
        torch.testing.assert_close(found.values[0], ends["clean"], rtol=0, atol=1e-12)
        assert float(found.recovered) == pytest.approx(1) and float(found.share) == pytest.approx(1)
        empty = Circuit.empty(model) if kind is Circuit else NodeCircuit.empty(model, kept=())
        found = run_circuit(model, empty, pair)
        torch.testing.assert_close(found.values[0], ends["corrupted"], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.empty, ends["corrupted"], rtol=0, atol=1e-12)
        assert float(found.recovered) == pytest.approx(0)


def test_a_circuit_of_nodes_is_that_of_their_edges(model: HookedGPT2) -> None:
    pair = random_pair(model)
    parts = Shape.of(model).senders[1:]
    for kept in (("input",), (), ("input", "mlps")):
        chosen = [p for p in parts[::2] if p.kind == "head" or "mlps" not in kept]
        nodes = NodeCircuit.of(model, chosen, kept=kept)  # type: ignore[arg-type]
        by_node = run_circuit(model, nodes, pair)
        by_edge = run_circuit(model, nodes.to_edges(), pair)
        torch.testing.assert_close(by_node.values, by_edge.values, rtol=0, atol=1e-12)


def means(model: HookedGPT2, pair: PromptPair, keys: list[Any], per_position: bool) -> Sent:
    """Means of the corrupted run over examples of equal key, by hand."""
    sent = corrupted(model, pair)
    found: Sent = {}
    for part, values in sent.items():
        rows = []
        for example, key in enumerate(keys):
            same = [i for i, other in enumerate(keys) if other == key]
            if per_position:
                rows.append(values[same].mean(0))
            else:
                real = torch.cat([values[i, : pair.lengths[i]] for i in same])
                rows.append(real.mean(0).expand_as(values[example]))
        found[part] = torch.stack(rows)
    return found


@pytest.mark.parametrize("kind", [Circuit, NodeCircuit])
def test_what_stands_in_place(model: HookedGPT2, kind: Any) -> None:
    pair = named_pair(model, (N_POS, N_POS - 2, N_POS, N_POS, N_POS - 2, N_POS))
    circuit = random_circuit(model, 0.6) if kind is Circuit else random_nodes(model, 0.6)
    lengths = pair.lengths.tolist()
    groups = ["a", "a", "b", "b", "a", "a"]
    zeros = {part: torch.zeros_like(value) for part, value in corrupted(model, pair).items()}
    both = [f"{n} {g}" for n, g in zip(lengths, groups, strict=True)]
    cases: list[tuple[dict[str, Any], Sent]] = [
        ({"ablation": "zero"}, zeros),
        ({"ablation": "mean"}, means(model, pair, lengths, True)),
        ({"ablation": "mean", "per_position": False}, means(model, pair, [0] * 6, False)),
        (
            {"ablation": "mean", "per_position": False, "groups": groups},
            means(model, pair, groups, False),
        ),
        ({"ablation": "mean", "groups": groups}, means(model, pair, both, True)),
    ]
    values = []
    for options, instead in cases:
        found = run_circuit(model, circuit, pair, **options)
        expected = naive_value(model, circuit, pair, pair.metric, instead)
        torch.testing.assert_close(found.values[0], expected, rtol=1e-9, atol=1e-9)
        values.append(found.values[0])
        if options == {"ablation": "mean"}:
            assert "6 corrupted prompts in 2 groups, the smallest of 2" in repr(found)
    # They are all different, so that none of the above could stand for another.
    assert torch.pdist(torch.stack(values)).min() > 1e-4


def test_resampling_is_a_run_of_a_reference_prompt(model: HookedGPT2) -> None:
    pair = random_pair(model)
    reference = torch.randint(1, D_VOCAB, (3, N_POS))
    circuit = random_circuit(model, 0.5)
    every = []
    for row in reference:
        instead = run_of(model, row.expand(2, -1), pair.attention_mask)
        every.append(naive_value(model, circuit, pair, pair.metric, instead))
    drawn = set()
    for seed in range(8):
        found = run_circuit(
            model, circuit, pair, ablation="resample", reference=reference, seed=seed
        )
        for example in range(2):
            near = [float((one[example] - found.values[0, example]).abs()) for one in every]
            assert min(near) < 1e-9
            drawn.add((example, near.index(min(near))))
    assert len(drawn) > 3  # not always the same prompt, nor the same for both


def test_other_prompts_as_reference(model: HookedGPT2) -> None:
    pair, other = random_pair(model), random_pair(model, (N_POS, N_POS, N_POS))
    circuit = random_circuit(model, 0.5)
    run = run_of(model, other.corrupted, other.attention_mask)
    instead = {part: value.mean(0).expand(2, -1, -1) for part, value in run.items()}
    found = run_circuit(model, circuit, pair, ablation="mean", reference=other)
    expected = naive_value(model, circuit, pair, pair.metric, instead)
    torch.testing.assert_close(found.values[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", [kl(), log_prob(3), loss()], ids=lambda m: m.name)
def test_other_metrics(model: HookedGPT2, metric: Any) -> None:
    pair = random_pair(model, LENGTHS[1])
    circuit = random_circuit(model, 0.6)
    found = run_circuit(model, circuit, pair, metric)
    clean = model(pair.clean, attention_mask=pair.attention_mask)
    instead = corrupted(model, pair)
    expected = naive_value(model, circuit, pair, metric.against(clean), instead)
    torch.testing.assert_close(found.values[0], expected, rtol=1e-9, atol=1e-9)
    if metric.name == "kl":
        assert float(found.clean.abs().max()) < 1e-12 and float(found.values.min()) > 1e-3


def test_a_function_of_all_logits(model: HookedGPT2) -> None:
    pair = random_pair(model)
    several = [random_circuit(model, 0.5) for _ in range(3)]
    found = run_circuit(model, several, pair, lambda logits: (logits[:, -1, 3] ** 2).mean())
    assert found.values.shape == (3, 1)
    instead = corrupted(model, pair)
    for circuit, value in zip(several, found.values, strict=True):
        expected = naive_value(
            model, circuit, pair, lambda logits, *_: (logits[:, -1, 3] ** 2).mean(), instead
        )
        torch.testing.assert_close(value[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["edges", "nodes"])
def test_memory_and_company_change_nothing(model: HookedGPT2, kind: str) -> None:
    pair = named_pair(model, (N_POS, N_POS - 2, N_POS))
    make: Any = random_circuit if kind == "edges" else random_nodes
    several = [make(model, share) for share in (0.1, 0.5, 0.97, 0.9, 0.3)]
    together = run_circuit(model, several, pair)
    little = run_circuit(model, several, pair, memory_limit=1)
    torch.testing.assert_close(little.values, together.values, rtol=0, atol=1e-12)
    for circuit, values in zip(several, together.values, strict=True):
        alone = run_circuit(model, circuit, pair)
        torch.testing.assert_close(alone.values[0], values, rtol=0, atol=1e-12)


def test_what_leads_nowhere_changes_nothing(model: HookedGPT2) -> None:
    pair, smaller = random_pair(model), 0
    for _ in range(5):
        circuit = random_circuit(model, 0.3)
        pruned = circuit.pruned()
        smaller += pruned < circuit
        both = run_circuit(model, [circuit, pruned], pair)
        torch.testing.assert_close(both.values[0], both.values[1], rtol=0, atol=1e-12)
        # With means what does not come from the input is something, too.
        ends = circuit.pruned(from_input=False)
        both = run_circuit(model, [circuit, ends], pair, ablation="mean")
        torch.testing.assert_close(both.values[0], both.values[1], rtol=0, atol=1e-12)
    assert smaller > 1


def test_a_model_with_other_attention(reference_model: Callable[..., Any]) -> None:
    cfg = dict(n_layer=2, n_head=2, n_embd=12, n_positions=12, vocab_size=D_VOCAB, bos_token_id=0,
               eos_token_id=0, scale_attn_by_inverse_layer_idx=True)  # fmt: skip
    model = HookedGPT2.from_pretrained(reference_model(cfg, dtype=torch.float64), dtype="float64")
    pair = random_pair(model)
    for kind in (Circuit, NodeCircuit):
        found = run_circuit(model, [kind.full(model), kind.empty(model, **(
            {} if kind is Circuit else {"kept": ("input",)}
        ))], pair)  # fmt: skip
        torch.testing.assert_close(found.values[0], pair.ends(model)["clean"], rtol=0, atol=1e-12)


# ------------------------------------------------------------------ judging circuits


def test_completeness_is_what_it_says(model: HookedGPT2) -> None:
    pair = named_pair(model)
    circuit = NodeCircuit.of(model, {"late": ["1.0@END", "1.1"], "early": ["0.1", "0.mlp@S"]})
    found = completeness(
        model, circuit, pair, sets={"mine": ["1.1", "0.mlp"]}, n_random=4, n_greedy=2,
        greedy_steps=3, greedy_sample=2,
    )  # fmt: skip
    assert [*found.sets][:4] == ["nothing", "late", "early", "mine"]
    assert found.sets["mine"] == (Node(Part("head", 1, 1)), Node(Part("mlp", 0), "S"))
    frame = found.to_frame()
    assert list(frame["kind"].value_counts().reindex(["random", "greedy"])) == [4, 2]
    instead = corrupted(model, pair)
    for name, nodes in found.sets.items():
        row = frame[frame["set"] == name].iloc[0]
        of_circuit = naive_value(model, circuit.without_nodes(nodes), pair, pair.metric, instead)
        assert row["circuit"] == pytest.approx(float(of_circuit.mean()), abs=1e-9)
        # Of the whole model the same nodes are taken out, at the same positions.
        out = inside(NodeCircuit.of(model, nodes, kept=()), pair)
        logits = naive_logits(
            model, pair.clean, pair.attention_mask, instead, lambda s, _, out=out: ~out[s]
        )
        of_model = pair.metric(logits, attention_mask=pair.attention_mask).mean()
        assert row["model"] == pytest.approx(float(of_model.detach()), abs=1e-9)
        assert row["gap"] == pytest.approx(abs(row["circuit"] - row["model"]))


def test_greedy_completeness_finds_the_worst_single_node(model: HookedGPT2) -> None:
    pair = random_pair(model)
    circuit = random_circuit(model, 0.7).pruned()
    nodes = [str(part) for part in circuit.nodes if part.layer is not None]
    every = completeness(model, circuit, pair, sets={n: [n] for n in nodes}, n_random=0, n_greedy=0)
    found = completeness(
        model, circuit, pair, n_random=0, n_greedy=1, greedy_steps=1, greedy_sample=None
    )
    gaps = every.to_frame().set_index("set")["gap"].drop("nothing")
    greedy = found.to_frame().set_index("set").loc["greedy 0"]
    assert greedy["gap"] == pytest.approx(gaps.max()) and greedy["nodes"] == gaps.idxmax()


def test_minimality_is_what_it_says(model: HookedGPT2) -> None:
    pair = named_pair(model)
    circuit = NodeCircuit.of(model, {"late": ["1.0@END", "1.1"], "early": ["0.1", "0.mlp"]})
    found = minimality(model, circuit, pair, sets={"0.1": ["1.1"]}, n_random=3)
    frame = found.to_frame(every=True)
    assert len(frame) == 4 * 5 + 1
    assert set(frame["set"]) == {
        "nothing", "other late", "other early", "given", "random 0", "random 1", "random 2",
    }  # fmt: skip
    instead = corrupted(model, pair)
    for _, row in frame.iterrows():
        nodes = row["nodes"].split()
        without = naive_value(model, circuit.without_nodes(nodes), pair, pair.metric, instead)
        both = naive_value(
            model, circuit.without_nodes([*nodes, row["node"]]), pair, pair.metric, instead
        )
        assert row["without_set"] == pytest.approx(float(without.mean()), abs=1e-9)
        assert row["score"] == pytest.approx(float((both - without).mean().abs()), abs=1e-9)
        assert row["share"] == pytest.approx(
            row["score"] / abs(float(pair.ends(model)["clean"].mean()))
        )
    best = found.to_frame().set_index("node")["score"]
    assert dict(best) == dict(frame.groupby("node")["score"].max())


# ------------------------------------------------------------------ what does not fit


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ablation": "patched"}, "unknown ablation 'patched'; did you mean 'patch'?"),
        ({"reference": "x"}, "reference goes with ablation 'mean' or 'resample', not patch"),
        ({"ablation": "zero", "per_position": False}, "per_position=False goes with"),
        ({"ablation": "mean", "groups": ["a"]}, "groups has 1 names for 2 prompts"),
        ({"ablation": "mean", "reference": torch.ones(2, 3, dtype=torch.int64)},
         "no reference prompt is like an example of 5 tokens"),
        ({"memory_limit": 0}, "memory_limit=0: expected bytes, at least 1"),
        ({"metric": lambda logits: logits[:, -1, 0] * torch.nan}, "not a finite number"),
        ({"circuits": []}, "there are no circuits"),
        ({"circuits": [Circuit.empty(Shape(2, 2)), NodeCircuit.empty(Shape(2, 2))]},
         "some of these circuits are of edges, some of nodes"),
        ({"circuits": Circuit.empty(Shape(12, 12))},
         "this circuit is of a model with 12 layers of 12 heads, yours has 2 layers of 2 heads"),
        ({"circuits": NodeCircuit.of(Shape(2, 2), ["1.0@S9"])}, "unknown position 'S9'"),
        ({"circuits": NodeCircuit.of(Shape(2, 2), ["1.0@7"])}, "position 7 is out of range"),
        ({"circuits": ["full"]}, "circuit 0 is no circuit but str"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    model: HookedGPT2, change: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"circuits": Circuit.full(model), **change}
    with pytest.raises((ValueError, TypeError, IndexError), match=re.escape(message)):
        run_circuit(model, options.pop("circuits"), named_pair(model, (N_POS, N_POS)), **options)


def test_a_mean_over_one_prompt_is_refused(model: HookedGPT2) -> None:
    pair = random_pair(model, (N_POS, N_POS - 2, N_POS))
    message = (
        r"only one reference prompt is of 3 tokens \(so for 1 of 2 groups\).*Take more prompts"
    )
    with pytest.raises(ValueError, match=message):
        run_circuit(model, Circuit.empty(model), pair, ablation="mean")
    run_circuit(model, Circuit.empty(model), pair, ablation="mean", per_position=False)


def test_active_hooks_are_refused(model: HookedGPT2) -> None:
    with (
        model.hooks([("blocks.1.attn.hook_z", lambda activation, hook: None)]),
        pytest.raises(ValueError, match=r"hooks are active on the model, at blocks\.1"),
    ):
        run_circuit(model, Circuit.full(model), random_pair(model))


def test_sets_of_nodes_that_are_not_there(model: HookedGPT2) -> None:
    pair, circuit = random_pair(model), NodeCircuit.of(model, ["1.0", "0.mlp"])
    with pytest.raises(ValueError, match=r"node 1\.1 is not in the circuit\. Did you mean '1\.0'"):
        completeness(model, circuit, pair, sets={"mine": ["1.1"]})
    with pytest.raises(ValueError, match=r"node 1\.0 is in its own set"):
        minimality(model, circuit, pair, sets={"1.0": ["1.0"]})
    with pytest.raises(ValueError, match="n_random=-1 is out of range"):
        minimality(model, circuit, pair, n_random=-1)
    for name in ("nothing", "random 0", "greedy 3"):
        with pytest.raises(ValueError, match=f"a set is called '{name}', as one of those"):
            completeness(model, circuit, pair, sets={name: ["1.0"]})
    roles = NodeCircuit.of(model, {"late": ["1.0"]})
    with pytest.raises(ValueError, match="two sets of the name 'late'"):
        completeness(model, roles, pair, sets={"late": ["1.0"]})


@pytest.mark.usefixtures("unchecked")
def test_sets_without_names_are_refused(model: HookedGPT2) -> None:
    sets: Any = [["1.0"]]
    with pytest.raises(TypeError, match="sets are node names by a name for each set"):
        completeness(model, NodeCircuit.of(model, ["1.0"]), random_pair(model), sets=sets)


def test_sets_of_a_node_at_several_positions(model: HookedGPT2) -> None:
    pair = named_pair(model)
    circuit = NodeCircuit.of(model, ["1.0@S", "1.0@END", "0.1"])
    found = minimality(model, circuit, pair, sets={"1.0": ["0.1", "0.1"]}, n_random=0)
    given = [(str(node), several) for node, name, several in found.tried if name == "given"]
    alone = (Node(Part("head", 0, 1)),)
    assert given == [("1.0@END", alone), ("1.0@S", alone)]
    sets = {"mine": ["1.0", "1.0@S"]}
    twice = completeness(model, circuit, pair, sets=sets, n_random=0, n_greedy=0)
    assert list(twice.to_frame()["size"]) == [0, 2]


# ------------------------------------------------------------------ the results


def test_tables_pages_and_words(model: HookedGPT2, tmp_path: Path) -> None:
    pair = random_pair(model)
    several = {"</script><b>x": random_circuit(model, 0.5), "full": Circuit.full(model)}
    found = run_circuit(model, several, pair)
    frame = found.to_frame().set_index("circuit")
    full = frame.loc["full"]
    assert full["size"] == len(Circuit.full(model)) and full["gap"] == pytest.approx(0)
    assert full["stderr"] == pytest.approx(float(found.clean.std()) / 2**0.5)
    first = frame.iloc[0]
    assert first["share"] == pytest.approx(first["value"] / first["clean"])
    whole = first["clean"] - first["empty"]
    assert first["recovered"] == pytest.approx((first["value"] - first["empty"]) / whole)
    assert "Faithfulness" in repr(found) and "100.0% recovered" in repr(found)
    circuit = NodeCircuit.of(model, {"late": ["1.0", "1.1"], "early": ["0.mlp"]})
    results = [
        found,
        completeness(model, circuit, pair, n_random=2, n_greedy=1),
        minimality(model, circuit, pair, n_random=2),
    ]
    for number, result in enumerate(results):
        path = tmp_path / f"{number}.html"
        result.to_html(path, model=model)
        text = path.read_text()
        assert "</script><b>x" not in text and "Provenance" in text
        assert "://" not in re.sub(r"(?s)<script.*?</script>", "", text)
    console = Console(file=io.StringIO(), width=100)
    console.print(circuit.table())
    assert "late" in console.file.getvalue()  # type: ignore[attr-defined]
