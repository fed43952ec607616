"""Maps of heads in a page: the numbers that travel are the numbers given, or the page says so."""

import base64
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analyses._page.head_maps import LINKS
from analyses.report import HeadMaps, MapKind

HEADS = [(0, 0), (0, 1), (2, 1)]


def random_patterns(n: int, heads: int = len(HEADS), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(heads, n, n, generator=generator, dtype=torch.float64)
    return scores.masked_fill(torch.ones(n, n).triu(1) > 0, -torch.inf).softmax(-1)


def maps_of(n: int, *kinds: MapKind, **options: Any) -> HeadMaps:
    kinds = kinds or (MapKind("pattern", random_patterns(n), limit=1.0),)
    return HeadMaps(HEADS, [f"t{i}" for i in range(n)], kinds, **options)


def numbers(text: str, dtype: str = "<f4") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def unpacked(kind: dict[str, Any], n_heads: int = len(HEADS)) -> np.ndarray:
    """[head, row, column]; NaN where there is no cell."""
    side = kind["side"]
    cells = numbers(kind["values"]).reshape(n_heads, -1)
    out = np.full((n_heads, side, side), np.nan, np.float32)
    places = [(i, j) for i in range(side) for j in range(i + 1 if kind["causal"] else side)]
    for column, (i, j) in enumerate(places):
        out[:, i, j] = cells[:, column]
    return out


def test_numbers_that_fit_are_exact() -> None:
    pattern, scores = random_patterns(5), torch.randn(3, 5, 5)
    kinds = (MapKind("pattern", pattern), MapKind("q·k", lambda: scores, causal=False, signed=True))
    spec = maps_of(5, *kinds).spec()
    assert spec["block"] == 1 and spec["leftOut"] == ""
    assert [kind["name"] for kind in spec["kinds"]] == ["pattern", "q·k"]
    lower = torch.ones(5, 5).tril().bool().numpy()
    first, second = map(unpacked, spec["kinds"])
    np.testing.assert_array_equal(first[:, lower], pattern.float().numpy()[:, lower])
    assert np.isnan(first[:, ~lower]).all()
    np.testing.assert_array_equal(second, scores.numpy())
    assert spec["heads"] == [[0, 0], [0, 1], [2, 1]]
    assert (spec["chosen"], spec["query"], spec["positions"]) == (0, 4, [0, 1, 2, 3, 4])


def test_what_is_chosen() -> None:
    notes = {(2, 1): "induction 0.9"}
    spec = maps_of(3, chosen=(2, 1), query=1, positions=[4, 7, 9], notes=notes).spec()
    assert (spec["chosen"], spec["query"], spec["positions"]) == (2, 1, [4, 7, 9])
    assert spec["notes"] == ["", "", "induction 0.9"]


def test_the_last_kinds_are_left_out_first_and_never_made() -> None:
    def never() -> Tensor:
        raise AssertionError("made for nothing")

    pattern = random_patterns(8)
    kinds = [MapKind("a", pattern), MapKind("b", pattern), MapKind("c", never), MapKind("d", never)]
    spec = maps_of(8, *kinds).spec(budget=2 * 3 * 36)
    assert [kind["name"] for kind in spec["kinds"]] == ["a", "b"]
    assert spec["block"] == 1
    assert "c, d not shown" in spec["leftOut"] and "3 heads, 8 tokens" in spec["leftOut"]
    assert "blocks" not in spec["leftOut"]


@pytest.mark.parametrize("n", [40, 41, 47])
@pytest.mark.parametrize("causal", [True, False])
def test_pooled_cells_are_the_largest_of_their_block(n: int, causal: bool) -> None:
    values = random_patterns(n) - 0.1 if causal else torch.randn(3, n, n)
    maps = maps_of(n, MapKind("difference", values, signed=True, causal=causal))
    budget = 3 * (n // 3) ** 2 + 2 * LINKS * 3 * n
    spec = maps.spec(budget)
    block, (kind,) = spec["block"], spec["kinds"]
    assert block > 1 and f"blocks of {block} x {block}" in spec["leftOut"]
    size = len(numbers(kind["values"])) + len(numbers(kind["linkValues"])) * 2
    assert size <= budget  # links are a key and a number each
    cells = unpacked(kind)
    side = -(-n // block)
    assert cells.shape == (3, side, side)
    shown = values.float().numpy()
    if causal:
        shown = np.where(np.tril(np.ones((n, n))) > 0, shown, 0.0)
    for head in range(3):
        for i in range(side):
            for j in range(i + 1 if causal else side):
                part = shown[head, i * block : (i + 1) * block, j * block : (j + 1) * block]
                assert cells[head, i, j] == part.flat[np.abs(part).argmax()]


def test_links_are_the_strongest_keys_of_every_query() -> None:
    n = 20
    values = random_patterns(n)
    spec = maps_of(n, MapKind("pattern", values)).spec(budget=600)
    (kind,) = spec["kinds"]
    assert spec["block"] > 1 and kind["nLinks"] == LINKS
    keys = numbers(kind["linkKeys"], "<i4").reshape(3, n, LINKS)
    found = numbers(kind["linkValues"]).reshape(3, n, LINKS)
    for head in range(3):
        for query in range(LINKS, n):
            order = values[head, query].float().topk(LINKS)
            assert keys[head, query].tolist() == order.indices.tolist()
            assert found[head, query].tolist() == order.values.tolist()


def test_a_tiny_budget_still_shows_something() -> None:
    spec = maps_of(9).spec(budget=1)
    assert spec["block"] == 9
    assert unpacked(spec["kinds"][0]).shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (HeadMaps([], ["a"], [MapKind("p", torch.ones(0, 1, 1))]), "at least one head"),
        (HeadMaps([(0, 0)], [], [MapKind("p", torch.ones(1, 0, 0))]), "at least one token"),
        (HeadMaps([(0, 0)], ["a"], []), "at least one kind"),
        (HeadMaps([(0, 0)] * 2, ["a"], [MapKind("p", torch.ones(2, 1, 1))]), "a head twice"),
        (HeadMaps([(0, 0)], ["a"], [MapKind("p", torch.ones(1, 1, 1))] * 2), "a kind twice"),
        (maps_of(3, chosen=(1, 1)), r"head \(1, 1\) is none of"),
        (maps_of(3, query=3), "query 3 is out of range: 3 tokens"),
        (maps_of(3, positions=[0, 1]), "2 positions for 3 tokens"),
        (maps_of(3, MapKind("p", torch.ones(3, 4, 4))), r"p has shape \(3, 4, 4\), expected .*3"),
        (maps_of(3, MapKind("p", torch.ones(1, 3, 3, 3)[0, 0])), r"p has shape \(3, 3\)"),
        (maps_of(3, MapKind("p", torch.full((3, 3, 3), torch.nan))), "p holds NaN or infinity"),
        (maps_of(3, MapKind("p", torch.ones(3, 3, 3), limit=0.0)), "limit is 0.0"),
    ],
    ids=[
        "no heads", "no tokens", "no kinds", "head twice", "kind twice", "chosen", "query",
        "positions", "tokens", "rank", "nan", "limit",
    ],
)  # fmt: skip
def test_errors(maps: HeadMaps, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maps.spec()


def test_what_is_masked_is_not_read() -> None:
    scores = torch.randn(3, 4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, -torch.inf)
    spec = maps_of(4, MapKind("scores", scores, signed=True)).spec()
    assert np.isfinite(numbers(spec["kinds"][0]["values"])).all()
    with pytest.raises(ValueError, match="scores holds NaN or infinity"):
        maps_of(4, MapKind("scores", scores, signed=True, causal=False)).spec()
