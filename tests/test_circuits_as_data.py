"""Circuits as values: made from names, as sets, pruned, saved, drawn; compared with others (ROC);
what was published."""

import io
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from analyses import report
from analyses._discovery import names
from analyses._views import circuit_graph
from analyses.circuit_discovery import (
    Circuit,
    Edge,
    Node,
    NodeCircuit,
    Part,
    Shape,
    compare,
    load_circuit,
    published_circuit,
    roc,
    roc_of_circuits,
    scores_of,
)
from analyses.edge_attribution import receivers, senders

SHAPE = Shape(2, 2)
FULL = Circuit.full(SHAPE)


def subset(draw: st.DataObject, every: Any = tuple(FULL)) -> list[Any]:
    return draw.draw(st.lists(st.sampled_from(every), unique=True))


# ------------------------------------------------------------------ names


def test_all_edges_there_are() -> None:
    # Of each layer: into queries, keys and values of 2 heads, into the MLP; then into the logits.
    assert len(FULL) == (6 * 1 + 3) + (6 * 4 + 6) + 7
    every = {(str(s), str(r)) for s in senders(2, 2) for r in receivers(2, 2)}
    for sender, receiver in every:
        later = {"input": 0, "0.0": 1, "0.1": 1, "0.mlp": 2, "1.0": 3, "1.1": 3, "1.mlp": 4}[sender]
        reads = {"logits": 5, "0.mlp": 2, "1.mlp": 4}.get(receiver, 1 + 2 * int(receiver[0] == "1"))
        assert (sender, receiver) in FULL if later < reads else True
        if later >= reads:
            with pytest.raises(ValueError, match=f"no edge from {sender} to {receiver}"):
                Circuit.of(SHAPE, [(sender, receiver)])


def test_edges_and_nodes_from_names() -> None:
    expected = Edge(Part("head", 0, 1), Part("q", 1, 0))
    ways: list[Any] = [("0.1", "1.0.q"), "0.1 → 1.0.q", "0.1->1.0.q", " 0.1 -> 1.0.q ", expected]
    for way in ways:
        assert Circuit.of(SHAPE, [way]).edges == {expected}
    assert str(expected) == "0.1 → 1.0.q" and expected in FULL and "1.1 → logits" in FULL
    for name, node in (
        ("1.0", Node(Part("head", 1, 0))),
        ("0.mlp@S2", Node(Part("mlp", 0), "S2")),
        ("1.1@-1", Node(Part("head", 1, 1), -1)),
    ):
        assert NodeCircuit.of(SHAPE, [name]).nodes == {node} and str(node) == name


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        (("0.mpl", "logits"), "unknown sender '0.mpl'; did you mean '0.mlp'? (there are 2 layers"),
        (("0.1", "1.0"), "unknown receiver '1.0': say which of 1.0.q, 1.0.k and 1.0.v it is"),
        (("2.0", "logits"), "unknown sender '2.0': layer 2 is out of range"),
        (("0.2", "logits"), "unknown sender '0.2': head 2 is out of range"),
        (("1.0", "1.1.q"), "there is no edge from 1.0 to 1.1.q"),
        (("1.0", "logit"), "unknown receiver 'logit'; did you mean 'logits'?"),
        ("0.1", "an edge is ('9.6', 'logits') or '9.6 → logits', not '0.1'"),
        (("0.1", 3), "a receiver is a name such as '0.mlp', not 3"),
        (7, "an edge is ('9.6', 'logits')"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_names_that_stand_for_no_edge(edge: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        Circuit.of(SHAPE, [edge])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NodeCircuit.of(SHAPE, ["1.0", "1.0"]), "1.0 is named twice"),
        (lambda: NodeCircuit.of(SHAPE, ["1.0", "1.0@END"]), "1.0@END is in the circuit twice"),
        (lambda: NodeCircuit.of(SHAPE, ["input"]), "node input is not counted"),
        (lambda: NodeCircuit.of(SHAPE, ["0.mlp"], kept=("mlps",)), "node 0.mlp is not counted"),
        (lambda: NodeCircuit.of(SHAPE, ["0.0"], kept=("mlp",)),  # type: ignore[list-item]
         "unknown part to be kept 'mlp'; did you mean 'mlps'?"),
        (lambda: NodeCircuit.of(SHAPE, ["1.0@"]), "names no position after the @"),
        (lambda: NodeCircuit.of(SHAPE, "1.0"), "nodes are several names in a list"),
        (lambda: NodeCircuit.of(SHAPE, ["1.0"], scores={"1.1": 1.0}), "a score of 1.1, which is"),
        (lambda: Circuit.of(SHAPE, ["0.0 → logits"] * 2), "0.0 → logits is named twice"),
        (lambda: FULL | Circuit.full(Shape(3, 2)), "these circuits are of different models"),
        (lambda: NodeCircuit.full(SHAPE) >= FULL, "are of different kinds"),  # type: ignore[operator]
        (lambda: NodeCircuit.full(SHAPE) - NodeCircuit.full(SHAPE, kept=()), "keep different"),
        (lambda: Circuit.from_mask(SHAPE, torch.ones(3, 3, dtype=torch.bool)), "has shape (3, 3)"),
        (lambda: Circuit.from_mask(SHAPE, torch.ones(7, 15, dtype=torch.bool)), "there is no edge"),
        (lambda: FULL.without_nodes(["1.0@END"]), "node 1.0@END is at one position"),
        (lambda: NodeCircuit.of(SHAPE, ["1.0@3"]).to_edges(), "edges are at all positions"),
    ],
    ids=range(16),
)  # fmt: skip
def test_circuits_that_cannot_be(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        make()


# ------------------------------------------------------------------ sets


@settings(max_examples=20)
@given(data=st.data())
def test_circuits_are_sets(data: st.DataObject) -> None:
    one, other = subset(data), subset(data)
    a, b = Circuit.of(SHAPE, one), Circuit.of(SHAPE, other)
    assert (a | b).edges == set(one) | set(other) and (a & b).edges == set(one) & set(other)
    assert (a - b).edges == set(one) - set(other)
    assert (a <= b) == (set(one) <= set(other)) and (a == b) == (set(one) == set(other))
    assert (a < b) == (set(one) < set(other)) and len(a) == len(one)
    assert Circuit.from_mask(SHAPE, a.mask) == a and hash(Circuit.from_mask(SHAPE, a.mask)) == hash(
        a
    )
    nodes = [str(p) for p in SHAPE.senders[1:]]
    c, d = (NodeCircuit.of(SHAPE, subset(data, nodes)) for _ in range(2))
    assert (c - d).nodes == c.nodes - d.nodes and (c <= d) == (c.nodes <= d.nodes)
    assert (c | d) == (d | c) and (c & d) <= c


@settings(max_examples=20)
@given(data=st.data())
def test_pruning_leaves_what_is_on_a_path(data: st.DataObject) -> None:
    circuit = Circuit.of(SHAPE, subset(data))
    paths: set[Edge] = set()

    def walk(at: Part, path: list[Edge]) -> None:
        for edge in circuit.edges:
            if edge.sender == at:
                if edge.reader is None:
                    paths.update([*path, edge])
                else:
                    walk(edge.reader, [*path, edge])

    walk(Part("input"), [])
    assert circuit.pruned().edges == paths
    assert circuit.pruned() <= circuit.pruned(from_input=False) <= circuit
    ends = {end for e in paths for end in (e.sender, e.reader) if end is not None}
    assert set(circuit.pruned().nodes) == ends


def test_scores_stay_with_their_edges() -> None:
    a = Circuit.of(SHAPE, ["0.0 → logits", "1.0 → logits"], scores={"0.0 → logits": 2.0})
    b = Circuit.of(SHAPE, ["0.0 → logits"], scores={"0.0 → logits": -1.0})
    assert list((a | b).scores.values()) == [2.0] and list((a & b).scores.values()) == [2.0]
    assert (a - b).scores == {} and scores_of(b) == {Edge(*next(iter(b))): 1.0}
    assert a.without_nodes(["0.0"]) == Circuit.of(SHAPE, ["1.0 → logits"])


def test_full_and_empty_keep_the_same() -> None:
    assert NodeCircuit.full(SHAPE).kept == NodeCircuit.empty(SHAPE).kept == ("input",)


def test_edges_of_nodes() -> None:
    nodes = NodeCircuit.of(SHAPE, ["0.1", "1.0"])
    edges = {str(edge) for edge in nodes.to_edges()}
    assert edges == {
        *(f"input → 0.1.{kind}" for kind in "qkv"), *(f"input → 1.0.{kind}" for kind in "qkv"),
        *(f"0.1 → 1.0.{kind}" for kind in "qkv"), "input → logits", "0.1 → logits", "1.0 → logits",
    }  # fmt: skip
    assert nodes.to_edges().nodes == (Part("input"), *nodes.parts)


# ------------------------------------------------------------------ files


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    edges = Circuit.of(
        SHAPE, ["0.0 → logits", "input → 1.mlp"], scores={"0.0 → logits": -0.1 - 1e-17},
        method='by "hand" </script>', provenance={"call": "x", "weights_sha256": None},
    )  # fmt: skip
    edges.save(path)
    found: Any = load_circuit(path, SHAPE)
    assert found == edges and found.scores == edges.scores
    assert (found.method, found.provenance) == (edges.method, edges.provenance)
    nodes = NodeCircuit.of(
        SHAPE, {"late": ["1.0@END", "1.1@-1"], "early": ["0.1"]}, kept=("input", "mlps"),
        scores={"0.1": 0.5},
    )  # fmt: skip
    nodes.save(path)
    found = load_circuit(path)
    assert found == nodes and found.roles == nodes.roles and found.scores == nodes.scores
    ioi = published_circuit("ioi")
    ioi.save(path)
    assert load_circuit(path) == ioi and load_circuit(path).model == "gpt2"
    assert [p.name for p in tmp_path.iterdir()] == ["circuit.json"]


def test_a_failed_save_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    FULL.save(path)
    before = path.read_bytes()
    bad = Circuit.of(SHAPE, ["0.0 → logits"], provenance={"x": object()})
    with pytest.raises(TypeError):
        bad.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "is no file of a circuit"),
        ({"version": 2}, "is of version 2; this package reads version 1"),
        ({"kind": "paths"}, "kind is 'paths', expected 'edges' or 'nodes'"),
        ({"version": True}, "is of version True"),
        ({"n_layers": 0}, "'n_layers' is 0, expected 1 to 1024"),
        ({"n_layers": -1}, "'n_layers' is -1, expected 1 to 1024"),
        ({"n_heads": 10**9}, "'n_heads' is 1000000000, expected 1 to 1024"),
        ({"n_layers": 1000, "n_heads": 1000}, "1000 layers of 1000 heads are more than"),
        ({"edges": [["0.0", "logits", "0.5"]]}, "'score' in row 0 of 'edges' is '0.5'"),
        ({"n_heads": "2"}, "'n_heads' is '2', expected int"),
        ({"edges": [["0.0", "logits"]]}, "'edges' is no list of rows of 3"),
        ({"edges": [["0.9", "logits", None]]}, "unknown sender '0.9'"),
        ({"n_layers": 3}, "is of a model with 3 layers of 2 heads, yours has 2 layers"),
    ],
)
def test_files_that_hold_no_such_circuit(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "circuit.json"
    FULL.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_circuit(path, SHAPE)
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ValueError, match="no JSON file of a circuit"):
            load_circuit(path)
    with pytest.raises(ValueError, match="is a folder"):
        FULL.save(tmp_path)
    with pytest.raises(ValueError, match="is a folder"):
        FULL.save(".")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["1.0", True, None, None], "'pos' in row 1 of 'nodes' is True, expected a position's"),
        (["1.0", 1.5, None, None], "'pos' in row 1 of 'nodes' is 1.5"),
        (["1.0", "", None, None], "'pos' in row 1 of 'nodes' is ''"),
        (["1.0", None, ["late"], None], "'role' in row 1 of 'nodes' is ['late'], expected a word"),
        (["1.0", None, 3, None], "'role' in row 1 of 'nodes' is 3"),
        (["1.0", None, None, math.nan], "'score' in row 1 of 'nodes' is nan, expected a finite"),
        (["1.0", None, None, True], "'score' in row 1 of 'nodes' is True"),
        (["1.0", None, None, "0.5"], "'score' in row 1 of 'nodes' is '0.5'"),
        ([None, None, None, 0.5], "'node' in row 1 of 'nodes' is None, expected a name"),
        (["0.0", None, "other", 0.5], "0.0 is named twice"),
    ],
)
def test_damaged_rows_are_named(tmp_path: Path, row: list[Any], message: str) -> None:
    path = tmp_path / "circuit.json"
    NodeCircuit.of(SHAPE, ["0.0"]).save(path)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"nodes": [*data["nodes"], row]}))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_circuit(path)
    assert str(path) in str(caught.value)


def test_names_are_made_once_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = tmp_path / "circuit.json", []
    shape = Shape(3, 5)
    Circuit.full(shape).save(path)
    made = names.senders
    monkeypatch.setattr(names, "senders", lambda *at: asked.append(at) or made(*at))
    assert load_circuit(path) == Circuit.full(shape)
    assert len(asked) < 5


# ------------------------------------------------------------------ looks


def test_tables_and_words() -> None:
    scores = {"0.0 → logits": -0.5, "input → 0.1.q": 0.25}
    circuit = Circuit.of(SHAPE, [*scores, "0.1 → logits"], scores=scores)
    frame = circuit.to_frame()
    assert list(frame["receiver"]) == ["0.1.q", "logits", "logits"]
    assert list(frame["score"].isna()) == [False, False, True]
    assert frame.iloc[0]["receiver_kind"] == "q" and frame.iloc[0]["receiver_head"] == 1
    assert repr(circuit).splitlines()[0] == (
        "Circuit(2 layers of 2 heads: 3 of 46 edges, 3 nodes; given by name)"
    )
    assert "0.0 → logits: -0.5" in repr(circuit)
    console = Console(file=io.StringIO(), width=80)
    console.print(circuit.table())
    assert re.search(r"logits\s+│ 0.0 0.1", console.file.getvalue())  # type: ignore[attr-defined]
    nodes = published_circuit("ioi")
    assert list(nodes.to_frame()["pos"].unique()) == ["S2", "S1+1", "END"]
    assert "name mover: 9.9@END 10.0@END 9.6@END" in repr(nodes)


def test_the_graph_has_every_edge_and_node() -> None:
    shape = Shape(12, 12)
    torch.manual_seed(0)
    every = list(Circuit.full(shape))
    chosen = [every[i] for i in torch.randperm(len(every))[:200].tolist()]
    scores = {edge: float(torch.randn(())) for edge in chosen}
    figure: Any = Circuit.of(shape, chosen, scores=scores).plot()
    lines = [t for t in figure.data if t.mode == "lines" and t.x[0] is not None]
    assert sum(list(t.x).count(None) for t in lines) == 200
    dashes = {trace.line.dash for trace in lines}
    assert dashes == {"solid", "dash", "dot"} and len({trace.line.color for trace in lines}) == 2
    named = [text for t in figure.data if t.mode == "markers+text" for text in t.text]
    ends = {str(p) for e in chosen for p in (e.sender, e.reader) if p is not None} | {"logits"}
    shown = {text.replace(" mlp", ".mlp").replace("<br>mlp", ".mlp") for text in named}
    assert shown == ends and len(named) == len(ends)
    hovers = {text for t in figure.data if t.mode == "markers" and t.text for text in t.text}
    assert {text.split(":")[0] for text in hovers} == {str(edge) for edge in chosen}
    # Above each other in the order in which they are computed, and no two in one place.
    places = circuit_graph.layout(
        [(str(e.sender), str(e.reader or "logits"), *_rows(e)) for e in chosen]
    )
    assert len(set(places.values())) == len(places)
    for edge in chosen:
        assert places[str(edge.sender)][1] < places[str(edge.reader or "logits")][1]
    named = {t.name: t.line for t in figure.data if t.mode == "lines" and t.x[0] is None}
    assert [*named] == [
        "into queries", "into keys", "into values", "into MLPs and logits", "score above 0",
        "score below 0",
    ]  # fmt: skip
    assert figure.layout.width < 1400 and figure.layout.height < 1700


def _rows(edge: Edge) -> tuple[int, int]:
    def row(part: Part | None) -> int:
        if part is None:
            return 99
        return 0 if part.layer is None else 2 * part.layer + (2 if part.kind == "mlp" else 1)

    return row(edge.sender), row(edge.reader)


def test_pictures_of_odd_circuits(tmp_path: Path) -> None:
    hostile = "</script><b>x</b>"
    nodes = NodeCircuit.of(SHAPE, {hostile: [f"1.0@{hostile}"], "plain": ["0.mlp"]})
    circuits = [Circuit.empty(SHAPE), nodes, FULL, NodeCircuit.empty(SHAPE)]
    figures: list[Any] = [one.plot() for one in (*circuits, published_circuit("ioi"))]
    page = report.Page("odd")
    for figure in figures:
        page.figure(figure)
    page.write(tmp_path / "page.html")
    assert hostile not in (tmp_path / "page.html").read_text()
    roles = {trace.name for trace in figures[-1].data if trace.showlegend}
    assert roles == set(published_circuit("ioi").by_role())


# ------------------------------------------------------------------ comparisons


def test_the_published_circuit() -> None:
    ioi = published_circuit("ioi")
    assert len(ioi) == 26 and ioi.kept == ("input", "mlps") and ioi.shape == Shape(12, 12)
    assert {role: len(nodes) for role, nodes in ioi.by_role().items()} == {
        "name mover": 3, "negative name mover": 2, "backup name mover": 8, "S-inhibition": 4,
        "induction": 4, "duplicate token": 3, "previous token": 2,
    }  # fmt: skip
    assert "9.9@END" in ioi and "9.9" not in ioi and "9.9" in ioi.anywhere()
    with pytest.raises(ValueError, match=r"unknown published circuit 'oi'; did you mean 'ioi'"):
        published_circuit("oi")


def test_comparing_nodes_and_edges() -> None:
    reference = NodeCircuit.of(SHAPE, ["0.0", "1.0@END", "1.0@S"], kept=("input", "mlps"))
    found = Circuit.of(SHAPE, ["input → 0.mlp", "0.mlp → 1.0.q", "1.0 → logits", "1.1 → logits"])
    held = compare(found, reference)
    assert [str(p) for p in held.both] == ["1.0"] and [str(p) for p in held.only_found] == ["1.1"]
    assert [str(p) for p in held.only_reference] == ["0.0"] and held.n_all == 4  # heads only
    assert (held.precision, held.recall, held.f1) == (0.5, 0.5, 0.5)
    assert held.false_positive_rate == 0.5
    assert list(held.to_frame()["name"]) == ["1.0", "1.1", "0.0"]
    assert held.to_dict()["f1"] == 0.5 and "F1 0.500" in repr(held)
    empty = compare(Circuit.empty(SHAPE), found, "edges")
    assert (
        math.isnan(empty.precision) and empty.recall == 0 and empty.to_dict()["precision"] is None
    )
    with pytest.raises(ValueError, match="a circuit of nodes has no edges to compare"):
        compare(found, reference, "edges")
    with pytest.raises(ValueError, match="of different models"):
        compare(found, published_circuit("ioi"))


@settings(max_examples=20)
@given(data=st.data())
def test_the_area_is_the_chance_to_rank_a_pair_right(data: st.DataObject) -> None:
    every = tuple(FULL)
    inside = data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=45, unique=True))
    scores = {e: float(data.draw(st.integers(-2, 3))) for e in every if data.draw(st.booleans())}
    found = roc(scores, Circuit.of(SHAPE, inside))
    pairs = [
        (scores.get(a, -math.inf), scores.get(b, -math.inf))
        for a, b in itertools.product(inside, [e for e in every if e not in inside])
    ]
    above = sum(a > b for a, b in pairs) / len(pairs)
    equal = sum(a == b for a, b in pairs) / len(pairs)
    assert found.auc() == pytest.approx(above + equal / 2)
    assert found.auc("pessimistic") == pytest.approx(above)
    assert found.auc("optimistic") == pytest.approx(above + equal)
    for row in found.to_frame().iloc[1:].itertuples():
        if row.label != "not scored":
            least = float(row.label.removeprefix("score >= "))
            hits = [e for e in scores if scores[e] >= least]
            assert row.true_positive_rate == pytest.approx(
                sum(e in inside for e in hits) / len(inside)
            )
            assert row.false_positive_rate == pytest.approx(
                sum(e not in inside for e in hits) / (len(every) - len(inside))
            )


def test_roc_of_nodes_and_of_circuits() -> None:
    reference = NodeCircuit.of(SHAPE, ["1.0", "1.1"], kept=("input", "mlps"))
    scores = {"1.0": 3.0, "0.1": 2.0, "1.1": 1.0, "0.mlp": 9.0}
    found = roc(scores, reference, "nodes")
    assert found.members == (2, 2)  # MLPs are not compared
    assert list(zip(found.false_positive, found.true_positive, strict=True)) == [
        (0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1),
    ]  # fmt: skip
    assert found.auc() == 0.75
    # A node at two positions counts by its best, in whatever order the scores are.
    for places in (["1.0@S", "1.0@END"], ["1.0@END", "1.0@S"]):
        at = {name: 3.0 if name.endswith("END") else -1.0 for name in places}
        assert roc({**at, **scores, "1.0": 0.0}, reference, "nodes").auc() == found.auc()
    circuits = {
        "small": NodeCircuit.of(SHAPE, ["1.0"]),
        "worse": NodeCircuit.of(SHAPE, ["0.0"]),
        "larger": NodeCircuit.of(SHAPE, ["1.0", "1.1", "0.0"]),
    }
    several = roc_of_circuits(circuits, reference, "nodes")
    assert several.labels == ("nothing", "small", "larger", "everything")
    assert several.auc("pessimistic") == pytest.approx(0.5 * 0.5 + 0.5 * 1)
    assert several.auc() == pytest.approx(0.5 * 0.75 + 0.5)
    assert len(several.plot().data) == 4 and "0.7500 pessimistic" in repr(several)
    with pytest.raises(ValueError, match=r"the score of 1\.0 is NaN"):
        roc({"1.0": math.nan}, reference, "nodes")
    with pytest.raises(ValueError, match="the reference has nothing in it"):
        roc(scores, NodeCircuit.empty(SHAPE, kept=("mlps",)), "nodes")


@pytest.mark.usefixtures("unchecked")
def test_ways_of_comparing_there_are_not() -> None:
    found = roc({"1.0": 1.0}, NodeCircuit.of(SHAPE, ["1.0"]), "nodes")
    wrong: Any = "worst"
    with pytest.raises(ValueError, match="unknown way with ties 'worst'"):
        found.auc(wrong)
    with pytest.raises(ValueError, match="unknown level 'worst'"):
        compare(FULL, FULL, wrong)
    with pytest.raises(TypeError, match="reference is a circuit, not str"):
        roc({}, wrong)
    with pytest.raises(ValueError, match="there are no circuits"):
        roc_of_circuits({}, FULL)
