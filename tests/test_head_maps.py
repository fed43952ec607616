"""Maps of heads in a page: the numbers that travel are the numbers given, or the page says so."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from torch import Tensor

from analyses._page.head_maps import LINKS
from analyses.report import HeadMaps, MapKind, Page, Shaded
from notebooks import browser as _browser

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
        (
            maps_of(3, MapKind("p", torch.full((3, 3, 3), torch.nan))),
            r"p of head 0\.0 is nan at query 0, key 0",
        ),
        (maps_of(3, token_columns={"": ["a"]}), "token_columns '' has 1 tokens, there are 3"),
        (maps_of(3, MapKind("p", torch.ones(3, 3, 3), limit=0.0)), "limit is 0.0"),
    ],
    ids=[
        "no heads", "no tokens", "no kinds", "head twice", "kind twice", "chosen", "query",
        "positions", "tokens", "rank", "nan", "columns", "limit",
    ],
)  # fmt: skip
def test_errors(maps: HeadMaps, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maps.spec()


def test_what_is_masked_is_not_read() -> None:
    scores = torch.randn(3, 4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, -torch.inf)
    spec = maps_of(4, MapKind("scores", scores, signed=True)).spec()
    assert np.isfinite(numbers(spec["kinds"][0]["values"])).all()
    with pytest.raises(ValueError, match=r"scores of head 0\.0 is -inf at query 0, key 1"):
        maps_of(4, MapKind("scores", scores, signed=True, causal=False)).spec()


# ------------------------------------------------------------------ in a browser

N = 7
PATTERN = random_patterns(N)
SCORES = torch.randn(3, N, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 9
HOSTILE = ["</script>", "<b>bold</b>", 'a"b', "\u202eright", "שלום", "", "x" * 300]


def two_maps() -> Page:
    page = Page("Maps")
    names = [["0.0", "0.1"], ["2.0", "2.1"]]
    page.figure(go.Figure(go.Heatmap(z=[[1, 2], [3, 4]])), opens=names)
    page.table(["head"], [[Shaded("the third", 0.5, opens="2.1")], [Shaded("plain", 0.5)]])
    kinds = [
        MapKind("pattern", PATTERN, "Rows sum to one.", limit=1.0),
        MapKind("q·k", SCORES, "Before the mask.", signed=True, causal=False, column="raw"),
    ]
    tokens = [f"·t{i}" for i in range(N)]
    notes = {(2, 1): "induction 0.9"}
    columns = {"": [f" t{i}" for i in range(N)], "other_": [f" u{i}" for i in range(N)]}
    maps = HeadMaps(HEADS, tokens, kinds, notes=notes, token_columns=columns)
    page.head_maps(maps, "first", side_by_side=True)
    page.head_maps(HeadMaps([(1, 1)], HOSTILE, [MapKind("pattern", PATTERN[:1])]), "second")
    return page


@pytest.fixture
def opened(browser: _browser.Browser, tmp_path: Path) -> Iterator[_browser.Page]:
    two_maps().write(tmp_path / "page.html")
    with browser.open(tmp_path / "page.html") as page:
        yield page
        assert page.console == []
        assert page.requests == []


def titles(page: _browser.Page) -> list[str]:
    script = "[...document.querySelectorAll('.head-maps h3')].map(e => e.textContent)"
    return [title.replace("\u2068", "").replace("\u2069", "") for title in page.evaluate(script)]


def table(page: _browser.Page, section: int = 0) -> list[list[str]]:
    return page.evaluate(
        f"[...document.querySelectorAll('.head-maps')[{section}].querySelectorAll('tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )


def test_a_click_opens_a_head(opened: _browser.Page) -> None:
    assert titles(opened)[0] == "Head 0.0: pattern"
    opened.click(".head-maps .thumb[data-head='2.1']")
    assert titles(opened)[0] == "Head 2.1: pattern"
    assert "induction 0.9" in opened.text()
    pressed = opened.evaluate("[...document.querySelectorAll('.thumb[aria-pressed=true]')]"
                              ".map(e => e.dataset.head)")  # fmt: skip
    assert pressed == ["2.1", "1.1"]  # of either section its own
    shown = opened.evaluate("document.querySelector('.map').data[0].z")
    for row, numbers_shown in enumerate(shown):
        for column, number in enumerate(numbers_shown):
            if column > row:
                assert number is None or np.isnan(number)
            else:
                assert number == np.float32(PATTERN[2, row, column])


def test_tables_and_figures_open_heads(opened: _browser.Page) -> None:
    opened.click("[data-open='2.1']")
    assert titles(opened)[0] == "Head 2.1: pattern"
    assert opened.evaluate("document.querySelectorAll('[data-open]').length") == 1
    opened.click(".plot .nsewdrag", at=(0.75, 0.75))  # row 0, column 1
    opened.wait_for("document.querySelector('.head-maps h3').textContent.includes('0.1')")
    opened.click(".plot .nsewdrag", at=(0.25, 0.25))  # row 1, column 0: there is no 2.0
    assert titles(opened)[0] == "Head 0.1: pattern"


def test_what_a_token_attends_to_in_numbers(opened: _browser.Page) -> None:
    assert titles(opened)[1] == "What ·t6 (position 6) attends to in head 0.0"
    opened.click(".attended .token", 3)
    assert titles(opened)[1] == "What ·t3 (position 3) attends to in head 0.0"
    for key, row in enumerate(table(opened)):
        assert row[0] == str(key)
        assert row[1].strip("\u2068\u2069") == f"·t{key}"
        if key > 3:
            assert row[2] == "masked"
        else:
            assert float(row[2]) == pytest.approx(float(PATTERN[0, 3, key]), rel=1e-5)
        assert float(row[3]) == pytest.approx(float(SCORES[0, 3, key]), rel=1e-5)
    assert len(table(opened)) == N
    opened.hover(".attended .token", 1)  # looks, and does not choose
    assert "·t1 (position 1)" in titles(opened)[1]
    opened.hover("h1")
    assert "·t3 (position 3)" in titles(opened)[1]


def test_what_attends_to_a_token(opened: _browser.Page) -> None:
    opened.click(".attended .token", 4)
    opened.evaluate("[...document.querySelectorAll('button')]"
                    ".find(b => b.textContent === 'what attends to it').click()")  # fmt: skip
    assert titles(opened)[1] == "What attends to ·t4 (position 4) in head 0.0"
    for query, row in enumerate(table(opened)):
        shown = "masked" if query < 4 else pytest.approx(float(PATTERN[0, query, 4]), rel=1e-5)
        assert (row[2] if query < 4 else float(row[2])) == shown


def test_kinds(opened: _browser.Page) -> None:
    assert "Rows sum to one." in opened.text()
    opened.click(".head-maps .buttons button", 1)
    assert titles(opened)[0] == "Head 0.0: q·k"
    assert "Before the mask." in opened.text() and "Rows sum to one." not in opened.text()
    trace = opened.evaluate("(({z, zmin, zmax}) => ({z, zmin, zmax}))"
                            "(document.querySelector('.map').data[0])")  # fmt: skip
    largest = float(SCORES[0].float().abs().max())
    assert (trace["zmin"], trace["zmax"]) == (-largest, largest)
    np.testing.assert_array_equal(np.float32(trace["z"]), SCORES[0].float().numpy())


def test_small_maps_have_the_colours_of_their_numbers(opened: _browser.Page) -> None:
    darkness = opened.evaluate(
        """[...document.querySelectorAll(".head-maps .thumb[data-head='0.1'] canvas")].map(c => {
            const {data} = c.getContext("2d").getImageData(0, 0, c.width, c.height);
            return [c.width, [...Array(c.width * c.height).keys()].map(i =>
                data[4 * i + 3] ? 765 - data[4 * i] - data[4 * i + 1] - data[4 * i + 2] : null)];
        })[0]"""
    )
    width, found = darkness
    assert width == N
    lower = torch.ones(N, N).tril().bool().flatten().tolist()
    assert [one is not None for one in found] == lower
    shown = [
        (float(v), d) for v, d in zip(PATTERN[1].flatten(), found, strict=True) if d is not None
    ]
    dark = [d for _, d in sorted(shown)]
    assert dark == sorted(dark) and len(set(dark)) > N


def test_csv_of_a_head(opened: _browser.Page) -> None:
    opened.click(".head-maps .thumb[data-head='0.1']")
    opened.click(".head-maps .large > button")
    file = opened.download()
    assert file.name == "head_0.1.csv"
    frame = pd.read_csv(io.BytesIO(file.data))
    assert list(frame) == [
        "layer", "head", "query", "query_token", "other_query_token", "key", "key_token",
        "other_key_token", "pattern", "raw",
    ]  # fmt: skip
    assert list(frame["other_key_token"][:N]) == [f" u{i}" for i in range(N)]
    assert len(frame) == N * N and set(frame["layer"]) == {0} and set(frame["head"]) == {1}
    square = frame.pivot(index="query", columns="key", values="raw").to_numpy()
    np.testing.assert_array_equal(square.astype(np.float32), SCORES[1].float().numpy())
    assert frame.loc[frame["key"] > frame["query"], "pattern"].isna().all()


def test_hostile_tokens_are_text(opened: _browser.Page) -> None:
    labels = opened.evaluate(
        "[...document.querySelectorAll('.head-maps:last-of-type .attended .token')]"
        ".map(token => token.textContent)"
    )
    assert labels == [token or "∅" for token in HOSTILE]
    assert opened.evaluate("document.querySelectorAll('.head-maps b').length") == 0
    widest = opened.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert widest <= 0
    opened.click(".attended .token", N + 6)
    assert "x" * 29 + "…" in titles(opened)[3]


def test_pooled_maps_say_so(browser: _browser.Browser) -> None:
    n = 60
    values = random_patterns(n)
    page = Page("Pooled")
    page.head_maps(maps_of(n, MapKind("pattern", values)), side_by_side=True, budget=2500)
    with browser.open(page.html(), theme="dark") as opened:
        assert "maps in blocks of" in opened.text()
        opened.click(".attended .token", 50)
        assert "The 4 strongest of 51, by pattern." in opened.text()
        strongest = values[0, 50].float().topk(LINKS)
        rows = table(opened)
        assert [int(row[0]) for row in rows] == strongest.indices.tolist()
        np.testing.assert_allclose([float(row[2]) for row in rows], strongest.values, rtol=1e-5)
        assert opened.evaluate("document.querySelector('.large > button').hidden")
        opened.click(".layer > summary")
        assert "Too many cells for this view" in opened.text()
        assert opened.console == []


def test_the_theme_can_be_changed(opened: _browser.Page) -> None:
    colour = "document.querySelector('.map').layout.template.layout.paper_bgcolor"
    light = opened.evaluate(colour)
    opened.click(".head-maps .thumb[data-head='2.1']")
    opened.click("#theme")
    assert opened.evaluate(colour) != light
    assert titles(opened)[0] == "Head 2.1: pattern"  # what was chosen stays


def test_heads_of_a_layer_side_by_side(opened: _browser.Page) -> None:
    assert opened.evaluate("document.querySelectorAll('.layer').length") == 1  # of the first maps
    assert opened.evaluate("document.querySelectorAll('.layer canvas').length") == 0
    opened.click(".layer > summary")
    opened.wait_for("document.querySelectorAll('.layer [data-head]').length == 2")
    names = "[...document.querySelectorAll('.layer [data-head]')].map(e => e.dataset.head)"
    assert opened.evaluate(names) == ["0.0", "0.1"]
    opened.click(".head-maps .thumb[data-head='2.1']")
    opened.wait_for("document.querySelectorAll('.layer [data-head]').length == 1")
    assert opened.evaluate(names) == ["2.1"]
    opened.click(".head-maps .thumb[data-head='0.1']")
    opened.wait_for("document.querySelector('.layer').textContent.includes('0.1 Zoomed')")
    opened.click(".head-maps .thumb[data-head='0.0']")
    opened.wait_for("document.querySelector('.layer').textContent.includes('0.0 Zoomed')")
    opened.click(".head-maps .thumb[data-head='2.1']")
    assert "Heads of layer 2 side by side: pattern" in opened.text()


def test_heads_open_under_their_own_heading(browser: _browser.Browser) -> None:
    page = Page("Sections")
    for name in ("one", "two"):
        page.heading(name)
        page.head_maps(maps_of(N))
        page.table(["head"], [[Shaded("2.1", 0.5, opens="2.1")]])
    page.heading("summary")
    page.table(["head"], [[Shaded("0.1", 0.5, opens="0.1")]])
    with browser.open(page.html()) as opened:
        opened.click("[data-open]", 0)
        assert [title for title in titles(opened) if title.startswith("Head")] == [
            "Head 2.1: pattern", "Head 0.0: pattern",
        ]  # fmt: skip
        opened.click("[data-open]", 2)
        assert titles(opened)[2] == "Head 0.1: pattern"
