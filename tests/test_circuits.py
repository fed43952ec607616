"""Circuits in the weights: hand-made ones with known answers, definitions, mini, bad inputs."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from _commands import help_without_torch
from _micro import blank_model
from safetensors.torch import save_file
from torch import Tensor

from analyses import circuits, cli
from analyses._views.circuits import Shade, page
from analyses.circuits import (
    AttentionLayers,
    composition,
    full_circuit,
    head_eigenvalues,
    neuron_directions,
    position_circuit,
    singular_vectors,
    token_circuit,
    virtual_head,
    virtual_weights,
)
from interp import HookedGPT2, HookedGPT2Config
from notebooks.browser import Browser

NASTY = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def random_model(reference_model) -> HookedGPT2:
    sizes = {"n_layer": 3, "n_embd": 24, "n_head": 4, "vocab_size": 30, "n_positions": 16}
    hf = reference_model(sizes, dtype=torch.float64)
    return HookedGPT2.from_pretrained(hf, dtype="float64").requires_grad_(False)


def induction_pair() -> HookedGPT2:
    """Two layers of two heads, after Elhage et al. 2021.

    The residual stream has three parts of four numbers: the token, the position, and what stood
    before. Head 0.0 looks from a position to the one before (a rotation of positions) and writes
    its token into the third part; head 1.0 compares its token with the third part of keys and
    writes the token it finds. Head 0.1 writes into the first part, head 1.1 does nothing.
    """
    cfg = HookedGPT2Config(
        n_layers=2, d_model=12, n_heads=3, d_mlp=2, n_ctx=4, d_vocab=4, act_fn="relu",
        tie_word_embeddings=False,
    )  # fmt: skip
    model = blank_model(cfg)
    eye = torch.eye(12, dtype=torch.float64)
    token, position, before = eye[:, :4], eye[:, 4:8], eye[:, 8:]
    model.W_E[:] = token.T
    model.W_U[:] = token
    model.W_pos[:] = position.T
    model.W_Q[0, 0] = position
    model.W_K[0, 0] = position.roll(1, 1)
    model.W_V[0, 0] = token
    model.W_O[0, 0] = before.T
    model.W_V[0, 1] = token
    model.W_O[0, 1] = token.T
    model.W_Q[1, 0] = token
    model.W_K[1, 0] = before
    model.W_V[1, 0] = token
    model.W_O[1, 0] = token.T
    return model


# ------------------------------------------------------------------ composition


def test_an_induction_pair_composes_through_keys() -> None:
    found = composition(induction_pair())
    # All that 0.0 writes is read: |before^T before| = 2 = sqrt(4), of norms 2 and 2.
    assert found.score("K", "0.0", "1.0") == pytest.approx(0.5)
    assert found.baseline == pytest.approx(12**-0.5)
    for mode in "QV":
        assert found.score(mode, "0.0", "1.0") == pytest.approx(0)
        assert found.score(mode, "0.1", "1.0") == pytest.approx(0.5)
    assert found.score("K", (0, 1), (1, 0)) == pytest.approx(0)
    sigmas = found.sigmas[found.modes.index("K"), 0, 0, 1, 0]
    assert float(sigmas) > 2 and float(found.above[1, 0, 0, 1, 0]) > 0.2
    assert math.isnan(found.score("K", "0.0", "1.1"))  # which is all zeros
    best = found.top("K", 1).iloc[0]
    assert (best["layer"], best["head"], best["later_layer"], best["later_head"]) == (0, 0, 1, 0)


def test_composition_far_above_random_in_many_numbers() -> None:
    """The same pair among random heads of a wide model stands out by 80 sigmas."""
    torch.manual_seed(0)
    shape = (2, 4, 128, 16)
    heads = {name: torch.randn(shape, dtype=torch.float64) for name in ("W_Q", "W_K", "W_V")}
    w_o = torch.randn(2, 4, 16, 128, dtype=torch.float64)
    heads["W_K"][1, 2] = w_o[0, 1].T
    found = composition(AttentionLayers(heads["W_Q"], heads["W_K"], heads["W_V"], w_o))
    best = found.top(None, 2)
    assert best.loc[0, ["mode", "layer", "head", "later_layer", "later_head"]].tolist() == [
        "K", 0, 1, 1, 2,
    ]  # fmt: skip
    assert best.loc[0, "sigmas"] > 50 > 10 > best.loc[1, "sigmas"]
    rest = found.scores[~torch.isnan(found.scores)]
    rest = rest[rest < 0.2]
    assert len(rest) == 3 * 16 - 1
    squared = rest.square().mean()
    assert float(squared) == pytest.approx(found.baseline**2, rel=0.05)


@pytest.mark.parametrize("n_heads", [1, 2, 3, 4])
def test_composition_of_two_small_layers(n_heads: int) -> None:
    """Of n_heads² pairs no more are listed than there are."""
    torch.manual_seed(n_heads)
    q, k, v = torch.randn(3, 2, n_heads, 8, 2)
    found = composition(AttentionLayers(q, k, v, torch.randn(2, n_heads, 2, 8)))
    pairs = n_heads**2
    for asked in (10, 20):
        assert [len(table.rows) for table in found.view(asked).tables] == [min(asked, pairs)] * 3
    assert len(found.view(1).tables[0].rows) == 1
    assert len(found.top("Q")) == min(10, pairs) and len(found.top()) == min(10, 3 * pairs)
    assert "<iframe" in found._repr_html_() and len(found.to_frame()) == 3 * pairs


def test_tables_of_composition_have_the_colours_of_their_caption() -> None:
    """Red above the baseline, blue below, by how much."""
    found = composition(induction_pair(), "K")
    above = found.top("K", 9).dropna()["above"].tolist()
    cells = [row[2] for row in found.view().tables[0].rows]
    assert min(above) < 0 < max(above) and len(cells) == len(above)
    most = max(map(abs, above))
    for cell, value in zip(cells, above, strict=True):
        assert isinstance(cell, Shade) and cell.sign == (1 if value > 0 else -1)
        assert cell.shade == pytest.approx(abs(value) / most)
    assert '<td class="above"' in found._repr_html_() or "&lt;td class" in found._repr_html_()


def test_composition_is_its_definition(random_model) -> None:
    m = random_model
    found = composition(m, ["V", "K"])
    assert found.modes == ("V", "K")
    for (l1, h1), (l2, h2) in [((0, 0), (1, 3)), ((0, 2), (2, 1)), ((1, 1), (2, 2))]:
        out = m.W_V[l1, h1] @ m.W_O[l1, h1]
        keys = m.W_K[l2, h2] @ m.W_Q[l2, h2].T
        expected = (out @ keys).norm() / (out.norm() * keys.norm())
        assert found.score("K", (l1, h1), (l2, h2)) == pytest.approx(float(expected), abs=1e-12)
    assert torch.isnan(found["K"][1, :, :2]).all() and torch.isnan(found["K"][2]).all()
    frame = found.to_frame()
    assert len(frame) == 2 * 3 * 16
    row = frame[(frame["mode"] == "V") & (frame["layer"] == 1) & (frame["later_head"] == 3)
                & (frame["head"] == 2)].iloc[0]  # fmt: skip
    assert row["score"] == found.score("V", "1.2", "2.3")
    assert row["above"] == pytest.approx(row["score"] - 24**-0.5)


def test_folding_is_the_callers_choice_and_said(random_model) -> None:
    plain, folded = composition(random_model), composition(random_model.processed())
    assert "left out (model.processed()" in plain.weights and "weights as they are" in repr(plain)
    assert folded.weights == "layer norms have no gain or shift that is not in the weights"
    gain = random_model.weight("ln_1.weight")[2]
    w_k = gain[:, None] * random_model.W_K[2, 1]
    w_k = w_k - w_k.mean(0)
    w_q = gain[:, None] * random_model.W_Q[2, 1]
    w_q = w_q - w_q.mean(0)
    w_o = random_model.W_O[0, 3] - random_model.W_O[0, 3].mean(1, keepdim=True)
    w_v = random_model.weight("ln_1.weight")[0][:, None] * random_model.W_V[0, 3]
    out, keys = (w_v - w_v.mean(0)) @ w_o, w_k @ w_q.T
    expected = (out @ keys).norm() / (out.norm() * keys.norm())
    assert folded.score("K", "0.3", "2.1") == pytest.approx(float(expected), abs=1e-9)
    assert abs(plain.score("K", "0.3", "2.1") - folded.score("K", "0.3", "2.1")) > 1e-4


# ------------------------------------------------------------------ eigenvalues


def copying_model(ov: Tensor) -> HookedGPT2:
    """One layer of one head whose OV circuit is `ov`, on tokens that are the unit vectors."""
    n = len(ov)
    cfg = HookedGPT2Config(
        n_layers=1, d_model=n, n_heads=1, d_mlp=2, n_ctx=4, d_vocab=n, act_fn="relu",
        tie_word_embeddings=False,
    )  # fmt: skip
    model = blank_model(cfg)
    eye = torch.eye(n, dtype=torch.float64)
    model.W_E[:], model.W_U[:] = eye, eye
    model.W_V[0, 0], model.W_O[0, 0] = ov, eye
    model.W_Q[0, 0], model.W_K[0, 0] = ov, eye
    return model


def turn(angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    block = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    return torch.block_diag(block, block)


@pytest.mark.parametrize(
    ("ov", "score"),
    [
        (torch.eye(4).double(), 1.0),
        (-torch.eye(4).double(), -1.0),
        (turn(math.pi / 2), 0.0),
        (turn(math.pi / 3), 0.5),
        (torch.diag(torch.tensor([3.0, -1.0, 2.0, 0.0])).double(), 4 / 6),
        (torch.zeros(4, 4).double(), math.nan),
    ],
    ids=["identity", "minus identity", "quarter turn", "sixth turn", "diagonal", "nothing"],
)
def test_copying_scores_that_are_known(ov: Tensor, score: float) -> None:
    model = copying_model(ov)
    for circuit in ("OV", "QK"):
        found = head_eigenvalues(model, circuit, ["plain", "mlp0", "residual"])
        for space in found.spaces:
            expected = pytest.approx(score, abs=1e-12, nan_ok=True)
            assert float(found[space][0, 0]) == expected


def test_eigenvalues_are_those_of_the_whole_matrix(random_model) -> None:
    for embedding in ("plain", "mlp0"):
        for circuit in ("OV", "QK"):
            found = head_eigenvalues(random_model, circuit, embedding).eigenvalues[0, 1, 2]
            whole = full_circuit(random_model, "1.2", circuit, embedding).AB
            expected = torch.linalg.eigvals(whole)
            expected = expected[expected.abs().argsort(descending=True)][: len(found)]
            torch.testing.assert_close(found.sum(), expected.sum())
            torch.testing.assert_close(found.abs(), expected.abs())
            assert (found.abs().diff() <= 1e-12).all()


def test_the_full_circuits_are_their_definition(random_model) -> None:
    m = random_model
    ov = m.W_E @ m.W_V[2, 1] @ m.W_O[2, 1] @ m.W_U
    qk = m.W_E @ m.W_Q[2, 1] @ m.W_K[2, 1].T @ m.W_E.T
    torch.testing.assert_close(full_circuit(m, "2.1").AB, ov)
    torch.testing.assert_close(full_circuit(m, (-1, 1), "QK").AB, qk)
    # What the first MLP makes of a token, by hand.
    block = m.blocks[0]
    normed = torch.nn.functional.layer_norm(m.W_E, (24,), block.ln2.w, block.ln2.b, m.cfg.eps)
    pre = normed @ block.mlp.W_in + block.mlp.b_in
    tokens = m.W_E + torch.nn.functional.gelu(pre, approximate="tanh") @ block.mlp.W_out
    tokens = tokens + block.mlp.b_out
    expected = tokens @ m.W_V[2, 1] @ m.W_O[2, 1] @ m.W_U
    torch.testing.assert_close(full_circuit(m, "2.1", embedding="mlp0").AB, expected)
    found = token_circuit(m, "2.1", [3, 7, 1], [2, 5], circuit="QK", top_k=4)
    torch.testing.assert_close(found.values, qk[[3, 7, 1]][:, [2, 5]])
    assert found.strongest is not None and found.own_ranks is None
    torch.testing.assert_close(found.strongest.top_values, qk[[3, 7, 1]].topk(4).values)
    lowest = qk[[3, 7, 1]].topk(4, largest=False)
    assert torch.equal(found.strongest.bottom_ids, lowest.indices)
    square = token_circuit(m, "2.1", torch.tensor([3, 7, 1]), top_k=4)
    own = ov[[3, 7, 1], [3, 7, 1]]
    assert square.own_ranks is not None
    assert square.own_ranks.tolist() == (ov[[3, 7, 1]] > own[:, None]).sum(1).tolist()
    row = square.to_frame().iloc[5]
    assert (row["row_id"], row["column_id"], row["row"]) == (7, 1, "<7>")
    assert row["value"] == pytest.approx(float(ov[7, 1]))
    places = position_circuit(m, "0.3", 5)
    expected = m.W_pos[:5] @ m.W_Q[0, 3] @ m.W_K[0, 3].T @ m.W_pos[:5].T
    torch.testing.assert_close(places.values, expected)


def test_a_previous_token_head_shows_in_its_positions() -> None:
    found = position_circuit(induction_pair(), "0.0")
    scores = found.values.tril()
    assert scores.argmax(1)[1:].tolist() == [0, 1, 2]
    assert found.strongest is None and found.rows == (0, 1, 2, 3)


# ------------------------------------------------------------------ directions


def test_singular_vectors_of_a_known_matrix() -> None:
    """The head turns token 1 into token 2, 3 times as large, and token 0 into minus token 3."""
    ov = torch.zeros(4, 4).double()
    ov[1, 2], ov[0, 3] = 3, -2
    found = singular_vectors(copying_model(ov), "OV", "0.0", n=2, top_k=1)
    torch.testing.assert_close(found.singular_values, torch.tensor([3.0, 2, 0, 0]).double())
    assert found.tokens(0, 1) == [("reads", ["<1>"]), ("writes", ["<2>"])]
    assert found.left_tokens is not None and found.right_tokens is not None
    # With one sign left and right belong together: what is like minus token 0 raises token 3.
    assert found.tokens(1, 1)[1] == ("writes", ["<3>"])
    assert found.tokens(1, -1)[0] == ("reads", ["<0>"])
    torch.testing.assert_close(found.left[1] @ ov, 2 * found.right[1])
    torch.testing.assert_close(found.share[:2], torch.tensor([9 / 13, 4 / 13]).double())
    assert len(found.to_frame()) == 2 * 2 * 2 * 1


@pytest.mark.parametrize("matrix", ["OV", "QK", "W_in", "W_out"])
def test_singular_vectors_belong_together(random_model, matrix: str) -> None:
    m = random_model
    place: Any = "1.3" if matrix in ("OV", "QK") else 1
    whole = {
        "OV": m.W_V[1, 3] @ m.W_O[1, 3],
        "QK": m.W_Q[1, 3] @ m.W_K[1, 3].T,
        "W_in": m.W_in[1],
        "W_out": m.W_out[1],
    }[matrix]
    found = singular_vectors(m, matrix, place, n=4, top_k=3)
    expected = torch.linalg.svdvals(whole)
    torch.testing.assert_close(found.singular_values, expected[: len(found.singular_values)])
    torch.testing.assert_close(found.left @ whole, found.singular_values[:4, None] * found.right)
    if matrix == "W_in":
        assert found.right_tokens is None
    else:
        side = m.W_E if matrix == "QK" else m.W_U.T
        assert found.right_tokens is not None
        product = found.right @ side.T
        torch.testing.assert_close(found.right_tokens.top_values, product.topk(3).values)
        lowest = product.topk(3, largest=False)
        torch.testing.assert_close(found.right_tokens.bottom_values, lowest.values)
        assert torch.equal(found.right_tokens.bottom_ids, lowest.indices)
        assert (
            found.right_tokens.top_values[:, 0] >= -found.right_tokens.bottom_values[:, 0]
        ).all()
    if matrix != "W_out":
        assert found.left_tokens is not None
        torch.testing.assert_close(
            found.left_tokens.top_values, (found.left @ m.W_E.T).topk(3).values
        )


def test_neurons_that_are_known() -> None:
    model = copying_model(torch.eye(4).double())
    model.W_in[0, 2, 0], model.W_in[0, 1, 1] = 2.0, -1.0
    model.W_out[0, 0, 3], model.W_out[0, 1, 1] = 5.0, 1.0
    found = neuron_directions(model, -1, top_k=1)
    assert found.neurons == (0, 1) and found.layer == 0  # the stronger first
    assert found.tokens(0, "reads", 1) == ["<2>"] and found.tokens(0, "writes", 1) == ["<3>"]
    assert found.tokens(1, "reads", -1) == ["<1>"] and found.tokens(1, "writes", 1) == ["<1>"]
    assert found.cosine.tolist() == [0.0, -1.0]
    assert found.in_norm.tolist() == [2.0, 1.0] and found.out_norm.tolist() == [5.0, 1.0]
    assert neuron_directions(model, 0, [1], top_k=2).neurons == (1,)
    assert len(found.to_frame()) == 2 * 2 * 2


# ------------------------------------------------------------------ virtual weights


def virtual_by_hand(m: HookedGPT2, writer: str, reader: str) -> Tensor:
    writes = {
        "embed": m.W_E, "pos_embed": m.W_pos, "0.1": m.W_V[0, 1] @ m.W_O[0, 1],
        "0.mlp": m.W_out[0], "1.mlp.5": m.W_out[1, 5:6],
    }  # fmt: skip
    reads = {
        "2.3.q": m.W_Q[2, 3] @ m.W_K[2, 3].T, "2.3.k": m.W_K[2, 3] @ m.W_Q[2, 3].T,
        "2.3.v": m.W_V[2, 3] @ m.W_O[2, 3], "2.mlp": m.W_in[2], "2.mlp.7": m.W_in[2][:, 7:8],
        "logits": m.W_U,
    }  # fmt: skip
    return writes[writer] @ reads[reader]


@pytest.mark.parametrize("reader", ["2.3.q", "2.3.k", "2.3.v", "2.mlp", "2.mlp.7", "logits"])
@pytest.mark.parametrize("writer", ["embed", "pos_embed", "0.1", "0.mlp", "1.mlp.5"])
def test_virtual_weights_are_products(random_model, writer: str, reader: str) -> None:
    expected = virtual_by_hand(random_model, writer, reader)
    found = virtual_weights(random_model, writer, reader, top_k=7)
    torch.testing.assert_close(found.matrix.AB, expected)
    singular = torch.linalg.svdvals(expected)
    torch.testing.assert_close(found.singular_values, singular[: len(found.singular_values)])
    from_head, to_head = writer == "0.1", "3." in reader
    values = [value for _, _, value in found.entries]
    if from_head and to_head:
        assert not found.entries
    elif from_head or to_head:
        sizes = expected.norm(dim=0 if from_head else 1)
        torch.testing.assert_close(torch.tensor(values).double(), sizes.topk(min(7, len(sizes)))[0])
    else:
        flat = expected.reshape(-1)
        best = flat[flat.abs().argsort(descending=True)][:7]
        torch.testing.assert_close(torch.tensor(values).double(), best)


def test_names_of_the_strongest_connections(random_model) -> None:
    expected = virtual_by_hand(random_model, "1.mlp.5", "logits")[0]
    (a, b, value), *_ = virtual_weights(random_model, "1.mlp.5", "logits").entries
    place = int(expected.abs().argmax())
    assert (a, b) == ("1.mlp.5", f"<{place}>")
    assert value == pytest.approx(float(expected[place]))
    both = virtual_weights(random_model, "0.mlp", "2.mlp")
    a, b, value = both.entries[0]
    i, j = int(a.split(".")[-1]), int(b.split(".")[-1])
    assert (a, b) == (f"0.mlp.{i}", f"2.mlp.{j}")
    assert float(both.matrix.AB[i, j]) == pytest.approx(value)
    same = composition(random_model).score("K", "0.1", "2.3")
    assert virtual_weights(random_model, "0.1", "2.3.k").score == pytest.approx(same, abs=1e-12)


def test_virtual_heads(random_model) -> None:
    m = random_model
    product = m.OV[0, 1].AB @ m.OV[1, 2].AB @ m.OV[2, 0].AB
    found = virtual_head(m, ["0.1", (1, 2), "-1.0"])
    torch.testing.assert_close(found.AB, product)
    assert found.mdim == 6


# ------------------------------------------------------------------ attention weights alone


def test_attention_weights_alone_give_the_same(random_model) -> None:
    alone = AttentionLayers.from_model(random_model)
    ours, theirs = composition(alone), composition(random_model)
    torch.testing.assert_close(ours.scores, theirs.scores, equal_nan=True)
    assert "attention weights alone" in ours.weights
    values = head_eigenvalues(alone)
    assert values.spaces == ("residual",)
    whole = torch.linalg.eigvals(random_model.OV[1, 1].AB)
    torch.testing.assert_close(values.eigenvalues[0, 1, 1].sum(), whole.sum())
    found = singular_vectors(alone, "QK", "2.0", n=3)
    both = singular_vectors(random_model, "QK", "2.0", n=3)
    torch.testing.assert_close(found.singular_values, both.singular_values)
    torch.testing.assert_close(found.left.abs(), both.left.abs())
    assert found.left_tokens is None and len(found.to_frame()) == 6
    assert virtual_weights(alone, "0.1", "2.3.v").score > 0
    torch.testing.assert_close(virtual_head(alone, ["0.1", "2.0"]).AB,
                               virtual_head(random_model, ["0.1", "2.0"]).AB)  # fmt: skip


@pytest.mark.parametrize(
    "ask",
    [
        lambda w: full_circuit(w, "0.0"),
        lambda w: token_circuit(w, "0.0", [1]),
        lambda w: position_circuit(w, "0.0"),
        lambda w: head_eigenvalues(w, "OV", "plain"),
        lambda w: neuron_directions(w, 0),
        lambda w: singular_vectors(w, "W_in", 0),
        lambda w: virtual_weights(w, "embed", "1.0.k"),
        lambda w: virtual_weights(w, "0.0", "logits"),
        lambda w: virtual_weights(w, "0.mlp", "1.0.k"),
    ],
)
def test_what_needs_more_than_attention_says_so(random_model, ask: Callable[[Any], Any]) -> None:
    alone = AttentionLayers.from_model(random_model)
    with pytest.raises(ValueError, match="holds attention weights only"):
        ask(alone)


# ------------------------------------------------------------------ bad inputs


@pytest.mark.usefixtures("unchecked")
def test_what_is_refused(random_model) -> None:
    m = random_model
    wrong: dict[str, Any] = {"name": "gpt2", "ids": [1.5], "n": 2.5, "text": "3"}
    for ask, error, why in (
        (lambda: composition(m, "X"), ValueError, "unknown mode of composition 'X'"),
        (lambda: composition(m, []), ValueError, "each once"),
        (lambda: composition(m, "KK"), ValueError, "unknown mode"),
        (lambda: composition(m, ["K", "K"]), ValueError, "each once"),
        (lambda: composition(wrong["name"]), TypeError, "not str"),
        (lambda: composition(copying_model(torch.eye(4))), ValueError, "only one"),
        (lambda: composition(m)["X"], KeyError, "unknown mode 'X'"),
        (lambda: composition(m).score("K", "0.0", "3.0"), IndexError, "head 3.0 is out of range"),
        (lambda: composition(m).top("K", 0), ValueError, "k=0 is out"),
        (lambda: composition(m).top("K", 49), ValueError, "k=49 is out of range: 1 to 48"),
        (lambda: composition(m).view(0), ValueError, "top_k=0 is out"),
        (lambda: composition(m).view(wrong["n"]), TypeError, "top_k is a whole number, not 2.5"),
        (lambda: head_eigenvalues(m, "W_in"), ValueError, "unknown circuit 'W_in'"),
        (lambda: head_eigenvalues(m, "OV", "mlp"), ValueError, "did you mean 'mlp0'"),
        (lambda: head_eigenvalues(m, "OV", []), ValueError, "each once"),
        (lambda: head_eigenvalues(m).plot_eigenvalues("9.0"), IndexError, "out of range"),
        (lambda: full_circuit(m, "0.0", "OK"), ValueError, "unknown circuit 'OK'"),
        (lambda: full_circuit(m, 3.1), TypeError, "is no head"),
        (lambda: full_circuit(m, "0.0", embedding="mlp"), ValueError, "unknown embedding"),
        (lambda: token_circuit(m, "0.0", []), ValueError, "tokens is empty"),
        (lambda: token_circuit(m, "0.0", [1, 1]), ValueError, "given twice"),
        (lambda: token_circuit(m, "0.0", [30]), IndexError, "tokens 0 to 29"),
        (lambda: token_circuit(m, "0.0", wrong["ids"]), TypeError, "texts or ids"),
        (lambda: token_circuit(m, "0.0", " the"), ValueError, "no tokenizer"),
        (lambda: token_circuit(m, "0.0", [1], top_k=31), ValueError, "top_k=31"),
        (lambda: position_circuit(m, "0.0", 17), ValueError, "1 to 16 positions"),
        (lambda: position_circuit(m, "0.0", wrong["n"]), TypeError, "n is a whole number, not 2.5"),
        (lambda: position_circuit(m, "0.0", wrong["text"]), TypeError, "whole number, not '3'"),
        (lambda: position_circuit(m, "0.0", True), TypeError, "n is a whole number, not True"),
        (lambda: singular_vectors(m, "OV", "0.0", n=7), ValueError, "n=7 is out of range: 1 to 6"),
        (lambda: singular_vectors(m, "MLP", 0), ValueError, "unknown matrix"),
        (lambda: singular_vectors(m, "W_in", 3), IndexError, "layer 3 is out of range"),
        (lambda: neuron_directions(m, 0, [96]), IndexError, "has 96, 0 to 95"),
        (lambda: neuron_directions(m, 0, [1, -95]), ValueError, "twice"),
        (lambda: neuron_directions(m, 0, []), ValueError, "neurons is empty"),
        (lambda: neuron_directions(m, 0, n=0), ValueError, "n=0 is out of range: 1 to 96"),
        (lambda: virtual_weights(m, "1.0", "1.2.k"), ValueError, "does not come after"),
        (lambda: virtual_weights(m, "1.mlp", "1.0.k"), ValueError, "does not come after"),
        (lambda: virtual_weights(m, "1.0.k", "2.0.k"), ValueError, "writes nothing"),
        (lambda: virtual_weights(m, "1.0", "2.0"), ValueError, "reads nothing"),
        (lambda: virtual_weights(m, "1.0", "2.mlp.96"), IndexError, "has 96"),
        (lambda: virtual_weights(m, 1.0, "2.mlp"), TypeError, "no name of a part"),
        (lambda: virtual_weights(m, "0.0", "2.mlp", top_k=0), ValueError, "top_k=0"),
        (lambda: virtual_head(m, ["0.0"]), ValueError, "two or more heads"),
        (lambda: virtual_head(m, ["1.0", "0.0"]), ValueError, "later layer"),
    ):
        with pytest.raises(error, match=why):
            ask()


def test_weights_that_are_not_finite(random_model) -> None:
    broken = random_model.processed()
    broken.get_parameter("attn.c_attn.weight").data[1, 0, 50] = math.nan
    broken.get_parameter("mlp.c_proj.weight").data[1] = math.inf
    for ask in (
        composition,
        head_eigenvalues,
        lambda w: token_circuit(w, "1.0", [1]),
        lambda w: singular_vectors(w, "OV", "1.0"),
        lambda w: neuron_directions(w, 1),
        lambda w: virtual_weights(w, "1.mlp", "logits"),
    ):
        with pytest.raises(ValueError, match="NaN or infinity"):
            ask(broken)


@pytest.mark.parametrize("name", ["W_E", "W_U"])
def test_tokens_that_are_not_finite(name: str) -> None:
    """NaN sorts above all numbers: its token would head every list."""
    model = copying_model(torch.eye(4, dtype=torch.float64))
    neuron_directions(model, 0)
    (model.W_E if name == "W_E" else model.W_U.T)[2] = math.nan
    side = "embeddings W_E" if name == "W_E" else "columns of W_U"
    for ask in (
        lambda w: neuron_directions(w, 0, [1]),
        lambda w: singular_vectors(w, "OV", "0.0"),
        lambda w: singular_vectors(w, *(("W_in", 0) if name == "W_E" else ("W_out", 0))),
    ):
        with pytest.raises(ValueError, match=f"the {side} hold NaN or infinity"):
            ask(model)


def test_models_stay_as_they_are(random_model) -> None:
    before = {name: value.clone() for name, value in random_model.named_parameters()}
    for make in RESULTS.values():
        make(random_model)
    assert all(torch.equal(before[n], v) for n, v in random_model.named_parameters())


def test_nothing_of_the_vocabularys_square_is_made() -> None:
    """At 200,000 tokens a full circuit would take 160 GB."""
    cfg = HookedGPT2Config(n_layers=2, d_model=8, n_heads=2, d_mlp=4, n_ctx=4, d_vocab=200_000)
    model = HookedGPT2.from_config(cfg)
    found = full_circuit(model, "1.1")
    assert found.shape == (200_000, 200_000)
    assert float(found.norm()) > 0 and found.eigenvalues.shape == (4,)
    assert head_eigenvalues(model).scores.isfinite().all()
    assert token_circuit(model, "1.0", [5, 199_999], embedding="mlp0").values.shape == (2, 2)
    assert virtual_weights(model, "embed", "1.0.k").entries[0][2] > 0
    assert virtual_weights(model, "0.mlp", "logits").matrix.shape == (4, 200_000)


# ------------------------------------------------------------------ mini


def test_minis_induction_heads_copy_what_the_first_mlp_makes_of_tokens(mini) -> None:
    found = head_eigenvalues(mini)
    assert {str(head) for head in found.ranked("mlp0")[:4]} >= {"3.3", "3.0", "3.4"}
    assert all(float(found["mlp0"][3, head]) > 0.98 for head in (0, 3, 4))
    # With bare embeddings the same heads look like the opposite: see the docstring.
    assert all(float(found["plain"][3, head]) < -0.5 for head in (0, 3, 4))
    names = [" Mary", " John", " France", " the"]
    copied = token_circuit(mini, "3.3", names, embedding="mlp0")
    assert copied.own_ranks is not None and copied.own_ranks.tolist() == [0, 0, 0, 0]
    assert copied.row_strings == tuple(names)


def test_minis_induction_heads_read_previous_token_heads_with_their_keys(mini) -> None:
    """1.0 and 1.1 attend to the previous token next to 0.0 most; the keys of 3.3 and 3.0 read
    them more than any other head."""
    found = composition(mini)
    for head in (3, 0):
        best = found["K"][:, :, 3, head].nan_to_num(0).reshape(-1).argsort(descending=True)[:2]
        assert {divmod(i, 6) for i in best.tolist()} == {(1, 0), (1, 1)}
    sigmas = found.sigmas[found.modes.index("K")]
    assert float(sigmas[1, 0, 3, 3]) > 15
    # 0.0 itself is hardly above random: what it finds goes through layers 0 to 2 first.
    assert abs(float(found["K"][0, 0, 3, 3]) - found.baseline) < 0.01


def test_minis_previous_token_head_follows_positions(mini) -> None:
    scores = position_circuit(mini, "0.0", 40).values
    allowed = scores.masked_fill(torch.ones(40, 40, dtype=torch.bool).triu(1), -math.inf)
    assert (allowed.argmax(1)[1:] == torch.arange(39)).float().mean() > 0.9


# ------------------------------------------------------------------ results, pages, the command


RESULTS: dict[str, Callable[[Any], Any]] = {
    "composition": composition,
    "eigenvalues": head_eigenvalues,
    "tokens": lambda m: token_circuit(m, "1.0", [1, 2, 3], embedding="mlp0"),
    "positions": lambda m: position_circuit(m, "0.0", 6),
    "singular": lambda m: singular_vectors(m, "QK", "1.1", n=3),
    "singular of an MLP": lambda m: singular_vectors(m, "W_out", 1, n=3),
    "neurons": lambda m: neuron_directions(m, 1),
    "virtual": lambda m: virtual_weights(m, "0.mlp", "2.mlp"),
    "virtual heads": lambda m: virtual_weights(m, "0.0", "2.1.k"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_tidy_plain_and_shown(random_model, name: str) -> None:
    found = RESULTS[name](random_model)
    frame = found.to_frame()
    assert isinstance(frame, pd.DataFrame) and len(frame)
    assert not frame.select_dtypes("number").isna().any().any()
    json.dumps(found.to_dict(), allow_nan=False)
    assert len(found.plot().data)
    assert found.provenance.model in repr(found) and found.weights in repr(found)
    assert "<iframe" in found._repr_html_()
    view = found.view()
    assert view.frames and view.figures
    for table in view.tables:
        assert table.rows and all(len(row) == len(table.headers) for row in table.rows)


def test_a_page_of_every_result(browser: Browser, mini, tmp_path: Path) -> None:
    results = {name: ask(mini) for name, ask in RESULTS.items()}
    views = [found.view() for found in results.values()]
    page(views, results["composition"].provenance).write(tmp_path / "page.html")
    with browser.open(tmp_path / "page.html", width=420) as shown:
        shown.wait_for(
            "[...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))"
        )
        n_plots = shown.evaluate("document.querySelectorAll('.plot').length")
        assert n_plots == sum(len(view.figures) for view in views)
        assert shown.evaluate("document.documentElement.scrollWidth") <= 420
        text = shown.text()
        last = -1
        for view, found in zip(views, results.values(), strict=True):
            last += len(view.frames)
            shown.click("button[data-table]", last)
            assert shown.download().data.decode() == cli.csv_text(found.to_frame())
            assert view.title in text and found.weights[1:] in text
        assert shown.console == [] and shown.requests == []


def test_a_page_has_the_hash_of_the_weights(random_model, tmp_path: Path) -> None:
    found = position_circuit(random_model, "0.0")
    hashed = found.hashed(random_model)
    found.to_html(tmp_path / "page.html", model=random_model)
    sha = hashed.provenance.to_dict()["weights_sha256"]
    assert sha and sha in (tmp_path / "page.html").read_text("utf-8")


def test_a_page_survives_a_hostile_name(browser: Browser, random_model, tmp_path: Path) -> None:
    held = AttentionLayers.from_model(random_model)
    named = AttentionLayers(held.W_Q, held.W_K, held.W_V, held.W_O, NASTY)
    composition(named).to_html(tmp_path / "page.html")
    with browser.open(tmp_path / "page.html") as page:
        assert page.evaluate("document.querySelectorAll('img[src=x], [onerror]').length") == 0
        assert "onerror" in page.text() and page.console == []


def test_many_heads_are_drawn_as_layers() -> None:
    shape = (5, 100, 8, 2)
    q, k, v = torch.randn(3, *shape)
    found = composition(AttentionLayers(q, k, v, torch.randn(5, 100, 2, 8)), "K")
    drawn: Any = found.plot().data[0]
    assert len(drawn.z) == 5
    best = float(found["K"][1, :, 3].max()) - found.baseline
    assert drawn.z[1][3] == pytest.approx(best, abs=1e-6)
    assert "pair of layers" in found.view().figures[0][1]


def run(*arguments: str) -> int:
    return cli.status(circuits.main, "circuits", [*arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ["composition", "--processed"],
        ["copying"],
        ["copying", "--embedding", "residual", "--matrix", "QK"],
        ["tokens", "--head", "3.3", "--token", " Mary", "--token", " John"],
        ["positions", "--head", "0.0"],
        ["singular", "--head", "3.3"],
        ["singular", "--matrix", "W_in", "--layer", "2"],
        ["neurons", "--layer", "-1"],
        ["neurons", "--layer", "3", "--neurons", "5,7"],
        ["virtual", "--writer", "1.0", "--reader", "3.3.k"],
    ],
    ids=" ".join,
)
def test_the_command(arguments: list[str], tmp_path: Path, capsys) -> None:
    paths = {kind: tmp_path / f"a.{kind}" for kind in ("html", "csv", "json")}
    files = [part for kind, path in paths.items() for part in (f"--{kind}", str(path))]
    assert run(*arguments, "--model", "mini", "--top-k", "3", *files) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "model: mini" in printed and "wrote" in printed
    data = json.loads(paths["json"].read_text("utf-8"))
    assert data["provenance"]["weights_sha256"] and len(pd.read_csv(paths["csv"]))
    assert "weights (sha256)" in paths["html"].read_text("utf-8")
    if arguments[-1] == "--processed":
        assert data["weights"].startswith("layer norms have no gain")


def test_the_command_takes_attention_weights_alone(capsys, mini) -> None:
    folder = str(Path(circuits.__file__).parents[1] / "interp" / "mini")
    assert run("--attention", folder, "--csv", "-") == 0
    found = capsys.readouterr()
    frame = pd.read_csv(io.StringIO(found.out))
    expected = composition(mini).to_frame()
    assert frame["score"].tolist() == pytest.approx(expected["score"].tolist(), abs=1e-6)
    assert "attention weights" in found.err


def test_the_command_takes_small_files_of_attention_weights(capsys, tmp_path: Path) -> None:
    """With nothing said, what is listed is no more than there is; what helps is named as options.

    Two layers of three heads of two numbers.
    """
    state = {
        f"h.{layer}.attn.{what}.weight": torch.randn(6, width)
        for layer in range(2)
        for what, width in (("c_attn", 18), ("c_proj", 6))
    }
    path = str(tmp_path / "model.safetensors")
    save_file(state, path)
    for asked in (["composition"], ["singular", "--head", "0.1"], ["copying"]):
        assert run(*asked, "--attention", path, "--n-heads", "3") == 0
    capsys.readouterr()
    for arguments, why in (
        (["composition"], "to say how many heads a layer has: give --n-heads"),
        (["copying", "--n-heads", "3", "--embedding", "plain"], "give --embedding residual"),
    ):
        assert run(*arguments, "--attention", path) == 1
        assert why in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["compositon"], "did you mean 'composition'"),
        (["tokens", "--head", "0.0"], "tokens needs --token"),
        (["virtual", "--writer", "0.0"], "virtual needs --reader"),
        (["composition", "--head", "0.0"], "--head is not of composition: it goes with tokens"),
        (["singular"], "singular of OV needs --head"),
        (["singular", "--matrix", "W_in", "--head", "0.0"], "needs --layer"),
        (["neurons", "--layer", "0", "--neurons", "a"], "--neurons 'a'"),
        (["--top-k", "0"], "--top-k is 0"),
        (["--n-heads", "3"], "--n-heads goes with --attention"),
        (["--attention", "x", "--processed"], "leave out --processed"),
        (["--attention", "nowhere"], "no such folder"),
        (["neurons", "--layer", "9"], "layer 9 is out of range"),
        (["tokens", "--head", "9.9", "--token", " Mary"], "head 9.9 is out of range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_commands(arguments: list[str], why: str, capsys) -> None:
    model = [] if "--attention" in arguments else ["--model", "mini"]
    assert run(*arguments, *model) == 1
    assert why in " ".join(capsys.readouterr().err.split())


def test_help_needs_no_torch() -> None:
    printed = " ".join(help_without_torch("analyses.circuits").split())
    assert "--attention" in printed and "virtual" in printed
