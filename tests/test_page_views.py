"""Views of circuitsvis: what is wrong is refused, hostile text is text, and browsers draw all."""

import json
import re
import sys
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from analyses._page import views
from analyses.report import (
    Page,
    View,
    attention_heads,
    attention_pattern,
    circuitsvis_view,
    colored_tokens,
    colored_tokens_multi,
)
from notebooks.browser import Browser
from notebooks.browser import Page as Opened

Tensor = torch.Tensor
HOSTILE = [
    "</script><script>document.title='stolen'</script>",
    "<img src=x onerror=\"document.title='stolen'\">",
    "<!--<script>",
    "&lt;b&gt;",
    "'\"`${1}",
    " שלום",
    "a" * 10_000,
    "\x00\x1b[31m\u202e",
    "\ud83d",
    "",
    "\n",
    " to",
    " to",
]
N = len(HOSTILE)


def causal(*shape: int) -> Tensor:
    """Random attention."""
    future = torch.ones(shape[-2:], dtype=torch.bool).triu(1)
    return torch.randn(shape).masked_fill(future, -torch.inf).softmax(-1)


# ------------------------------------------------------------------ what is given to circuitsvis


def test_attention_stops_at_the_query() -> None:
    patterns = causal(2, 3, 3)
    view = attention_heads(patterns, ["a", "b", "c"], ["0.0", "0.1"])
    assert view.component == "AttentionHeads"
    rows = view.props["attention"][1]
    assert [len(row) for row in rows] == [1, 2, 3]
    assert rows[2] == pytest.approx(patterns[1, 2].tolist(), rel=1e-5)
    assert view.props["attentionHeadNames"] == ["0.0", "0.1"]
    assert (view.props["minValue"], view.props["maxValue"]) == (-1, 1)
    assert view.note == "Uncoloured is 0, full blue 1."


def test_which_patterns_are_causal() -> None:
    scores = torch.randn(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    tokens = ["a", "b", "c"]
    assert [len(row) for row in attention_pattern(scores, tokens).props["attention"]] == [1, 2, 3]
    both_ways = attention_pattern(torch.ones(3, 3), tokens)
    assert [len(row) for row in both_ways.props["attention"]] == [3, 3, 3]
    beyond = torch.tensor([[1.0, torch.nan, 9], [2, 1, torch.inf], [2, 2, 1]])
    forced = attention_pattern(beyond, tokens, causal=True)
    assert forced.props["attention"] == [[1], [2, 1], [2, 2, 1]]
    with pytest.raises(ValueError, match=r"attention\[0\]\[1\] is -inf, expected a finite number"):
        attention_pattern(scores, tokens, causal=False)


@pytest.mark.parametrize(
    ("values", "limit", "expected", "note"),
    [
        ([0.0, 0.5], None, 1.0, "Uncoloured is 0, full blue 1."),
        ([0.0, 3.0], None, 3.0, "Uncoloured is 0, full blue 3."),
        ([-4.0, 3.0], None, 4.0, "Uncoloured is 0, full red 4 and above, full blue −4 and below."),
        ([-4.0, -3.0], None, 4.0, "Uncoloured is 0, full red 4 and above, full blue −4 and below."),
        ([0.0, 0.0], None, 1.0, "Uncoloured is 0, full blue 1."),  # at 0 no colour would be defined
        ([0.0, 3.0], 2.0, 2.0, "Uncoloured is 0, full blue 2 and above."),
    ],
)
def test_limits_of_colours(
    values: list[float], limit: float | None, expected: float, note: str
) -> None:
    view = colored_tokens(["a", "b"], torch.tensor(values), limit=limit)
    assert (view.props["minValue"], view.props["maxValue"]) == (-expected, expected)
    assert view.note == note


def test_bounds_of_kinds_are_never_zero() -> None:
    view = colored_tokens_multi(["a", "b"], torch.tensor([[0.0, -2.0], [0.0, 1.0]]), ["x", "y"])
    assert view.props["positiveBounds"] == [1e-6, 2]
    assert view.props["negativeBounds"] == [-1e-6, -2]


def test_numbers_are_rounded_and_may_be_of_any_kind() -> None:
    third = torch.tensor([1 / 3], dtype=torch.float64, requires_grad=True)
    for given in (third, third.bfloat16().float().detach().numpy(), [1 / 3], [torch.tensor(1 / 3)]):
        (value,) = colored_tokens(["a"], given).props["values"]  # type: ignore[arg-type]
        assert value in (0.333333, 0.333984)


def test_tokens_are_made_safe() -> None:
    view = colored_tokens(HOSTILE, torch.zeros(N))
    shown = view.props["tokens"]
    # A word joiner keeps `<` and `&` from beginning a tag or an entity.
    for token in shown:
        assert not re.search(r"<[^\u2060]|&[^\u2060]", token)
    assert shown[0].replace("\u2060", "") == HOSTILE[0]
    assert shown[5] == "\u2068·שלום\u2069"
    assert len(shown[6]) == 100
    assert shown[6].endswith("…")
    assert shown[7:10] == ["\\x00\\x1b[31m\\u202e", "\\ud83d", "∅"]
    assert shown[10] == "⏎\n"
    assert view.shortened == (("tokens[6]", "a" * 10_000),)
    charts = attention_pattern(causal(N, N), HOSTILE).props["tokens"]
    assert charts[1] == "<img·src=x·onerror=…"  # a canvas knows no tags
    assert charts[10] == "⏎"


# ------------------------------------------------------------------ what is refused

T3 = ["a", "b", "c"]
SQUARE = torch.zeros(3, 3)
LOG_PROBS: dict[str, Any] = {
    "prompt": T3,
    "topKLogProbs": torch.zeros(2, 4),
    "topKTokens": [["x"] * 4] * 2,
    "correctTokenRank": torch.tensor([0, 7]),
    "correctTokenLogProb": torch.zeros(2),
}
TOPK: dict[str, Any] = {
    "tokens": [T3, T3[:2]],
    "topkVals": torch.zeros(2, 1, 2, 5),
    "topkIdxs": torch.ones(2, 1, 2, 5, dtype=torch.int64),
    "bottomkVals": torch.zeros(2, 1, 2, 5),
    "bottomkIdxs": torch.zeros(2, 1, 2, 5, dtype=torch.int64),
}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attention_heads(SQUARE[None, None], T3, ["0.0"]),
         r"attention has the axes head query key, not the shape \(1, 1, 3, 3\). "
         r"Is a batch axis left on\? Take one example"),
        (lambda: attention_heads(SQUARE, T3, ["0.0"]),
         r"axes head query key, not the shape \(3, 3\)$"),
        (lambda: attention_pattern(SQUARE[None], T3),
         r"axes query key, not the shape \(1, 3, 3\). Is a batch"),
        (lambda: attention_pattern(SQUARE[:2], T3), "length 2 along query, expected 3"),
        (lambda: attention_pattern(SQUARE[:, :2], T3), "length 2 along key, expected 3"),
        (lambda: attention_pattern(SQUARE, T3[:2]),
         r"length 3 along query, expected 2 \(as long as tokens\)"),
        (lambda: attention_heads(SQUARE[None], T3, ["0.0", "0.1"]),
         r"attentionHeadNames has length 2 along head, expected 1 \(as long as attention\)"),
        (lambda: attention_heads(torch.zeros(0, 3, 3), T3, []), "attention is empty"),
        (lambda: attention_pattern(SQUARE.clone().fill_diagonal_(torch.nan), T3),
         r"attention\[0\]\[0\] is nan, expected a finite number"),
        (lambda: attention_heads(torch.zeros(25, 100, 100), ["x"] * 100, ["h"] * 25),
         "25 heads of 100 tokens are 126,250 cells; circuitsvis draws at most 65,536"),
        (lambda: attention_pattern(SQUARE, T3, limit=0), "limit is 0, expected a positive number"),
        (lambda: colored_tokens([], torch.zeros(0)), "tokens is empty"),
        (lambda: colored_tokens(T3, torch.zeros(4)), "values has length 4 along pos, expected 3"),
        (lambda: colored_tokens(T3, torch.zeros(1, 3)), "axes pos, .* Is a batch axis left on"),
        (lambda: colored_tokens(T3, torch.tensor([0, torch.inf, 0])), r"values\[1\] is inf"),
        (lambda: colored_tokens([1, 2, 3], torch.zeros(3)),  # type: ignore[list-item]
         r"tokens\[0\] is 1, expected text"),
        (lambda: colored_tokens("abc", torch.zeros(3)), "tokens is 'abc', expected a list"),
        (lambda: colored_tokens(["x"] * 5000, torch.zeros(5000)),
         "tokens has 5,000 entries along pos, expected at most 4,096: show a part of them"),
        (lambda: colored_tokens_multi(T3, torch.zeros(3, 2), ["one"]), "labels has length 1"),
        (lambda: circuitsvis_view("TokenLogprobs", **LOG_PROBS),
         "no component 'TokenLogprobs'. Did you mean 'TokenLogProbs'"),
        (lambda: circuitsvis_view("TokenLogProbs", prompt=T3), "also needs topKLogProbs, topKTok"),
        (lambda: circuitsvis_view("TokenLogProbs", **LOG_PROBS, promt=T3), "no prop 'promt'"),
        (lambda: circuitsvis_view("TokenLogProbs", **LOG_PROBS | {"correctTokenRank": [0.5, 1]}),
         r"correctTokenRank\[0\] is 0.5, expected a whole number"),
        (lambda: circuitsvis_view("TokenLogProbs", **LOG_PROBS | {"topKLogProbs": [[1.0]] * 3}),
         r"length 3 along next, expected 2 \(as long as prompt, less one\)"),
        (lambda: circuitsvis_view("TopkTokens", **TOPK | {"topkIdxs": torch.full((2, 1, 2, 5), 2)}),
         r"topkIdxs\[1\] holds 2, but sample 1 has 2 tokens"),
        (lambda: circuitsvis_view("TopkTokens", **TOPK, sampleLabels=["a"]), "length 1 along"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(unchecked: None, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_samples_may_differ_in_length() -> None:
    view = circuitsvis_view("TopkTokens", **TOPK, firstDimensionName="<Layer>")
    assert [len(tokens) for tokens in view.props["tokens"]] == [3, 2]
    assert view.props["topkIdxs"][0][0][0] == [1] * 5
    with pytest.raises(ValueError, match=r"activations\[0\]\[0\]\[0\] has length 2 along \*pos"):
        circuitsvis_view("TopkSamples", tokens=[[[T3]]], activations=[[[[1, 2]]]])


# ------------------------------------------------------------------ the page's source


def page_of(*shown: View) -> Page:
    page = Page("Views")
    for view in shown:
        page.view(view, "Caption")
    return page


def test_the_script_is_there_once_and_ends_nowhere_else() -> None:
    had = "circuitsvis" in sys.modules
    one = page_of(colored_tokens(["a"], torch.ones(1))).html()
    two = page_of(*[colored_tokens(["a"], torch.ones(1))] * 2).html()
    assert two.count("var CircuitsVis=") == 1
    assert len(two) - len(one) < 2000
    assert 1.2e6 < len(one) < 1.5e6
    assert "plotly" not in one.lower().replace("plotly.com", "")
    assert "sourceMappingURL" not in one
    scripts = re.findall(r"<script>(.*?)</script>", one, re.DOTALL)
    assert len(scripts) == 3
    assert max(map(len, scripts)) > 1.2e6  # and none ended early
    # Its Python part may ask the network; nothing of it is even imported.
    assert had or "circuitsvis" not in sys.modules


def test_hostile_tokens_stay_in_their_block() -> None:
    source = page_of(colored_tokens(HOSTILE, torch.zeros(N))).html()
    assert "document.title='stolen'</script>" not in source
    assert source.encode()
    (block,) = re.findall(r'<script type="application/json" id="view-0">(.*?)</script>', source)
    assert json.loads(block)["props"]["tokens"][4] == "'\"`${1}"
    assert f"<li>tokens[6]: {'a' * 10_000}</li>" in source


def test_many_cells_are_chosen_by_a_click(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOST_CELLS_HOVER", 12)
    few, many = (
        attention_heads(causal(2, n, n), ["x"] * n, ["0.0", "0.1"]) for n in (3, 4)
    )  # 12 and 20 cells
    assert not few.click_only
    assert many.click_only
    assert "choose a head by a click" in page_of(many).html()
    assert "choose a head by a click" not in page_of(few).html()


# ------------------------------------------------------------------ in a browser


def everything(tokens: list[str]) -> Page:
    """A page of all components, with a figure and a table between them."""
    n = len(tokens)
    page = Page("Everything")
    page.attention_heads(causal(3, n, n), tokens, ["0.0", "<b>0.1</b>", "0.2"], "Heads.")
    page.figure(go.Figure(go.Heatmap(z=[[1, 2]])), "A figure.")
    page.attention_pattern(causal(n, n) - causal(n, n), tokens, "Difference.")
    page.colored_tokens(tokens, torch.randn(n), "Tokens.")
    page.table(["a"], [["x"]])
    kinds = torch.tensor([1.0, 50.0]) * torch.linspace(-1, 1, n)[:, None]
    page.colored_tokens_multi(tokens, kinds, ["one", "<b>two</b>"], "Kinds.")
    log_probs = torch.randn(n - 1, 7).log_softmax(-1)
    page.view(circuitsvis_view(
        "TokenLogProbs", prompt=tokens, topKLogProbs=log_probs[:, :3],
        topKTokens=[tokens[:3]] * (n - 1), correctTokenRank=torch.arange(n - 1),
        correctTokenLogProb=log_probs[:, 0],
    ))  # fmt: skip
    page.view(circuitsvis_view(
        "TextNeuronActivations", tokens=tokens, activations=torch.randn(n, 2, 3)
    ))  # fmt: skip
    page.view(circuitsvis_view(
        "TopkSamples", tokens=[[[tokens, tokens[:2]]]],
        activations=[[[torch.randn(n), torch.randn(2)]]],
    ))  # fmt: skip
    page.view(circuitsvis_view("TopkTokens", **TOPK | {"tokens": [tokens, tokens]}))
    page.text("The end.")
    return page


N_VIEWS = 8


def draw_all(page: Opened) -> None:
    """Scroll from view to view, so that all are drawn."""
    for index in range(page.evaluate("document.querySelectorAll('.mount').length")):
        mount = f"document.querySelectorAll('.mount')[{index}]"
        page.evaluate(f"{mount}.scrollIntoView()")
        page.wait_for(f"{mount}.querySelector('.view > *')")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_views_are_drawn_and_stay(
    browser: Browser, tmp_path: Path, theme: Literal["light", "dark"]
) -> None:
    everything(HOSTILE).write(tmp_path / "page.html")
    with browser.open(tmp_path / "page.html", theme=theme) as page:
        draw_all(page)
        drawn = "[...document.querySelectorAll('.mount')].map(e => e.offsetHeight)"
        heights = page.evaluate(drawn)
        assert len(heights) == N_VIEWS
        assert min(heights) > 30
        assert page.evaluate("document.querySelectorAll('.heatmaplayer').length") == 1
        text = page.text()
        assert "The end." in text  # nothing was swallowed
        for token in (HOSTILE[0], HOSTILE[1], HOSTILE[3], "\\x00\\x1b[31m\\u202e", "\\ud83d", "∅"):
            assert token in text.replace("\u2060", "").replace("\xa0", " ").replace("·", " ")
        assert page.evaluate("document.title") == "Everything"
        for tag in (".view img", ".view b", ".view script", ".view a"):
            assert page.evaluate(f"document.querySelectorAll('{tag}').length") == 0, tag
        # In dark the view is inverted, and the canvas with it.
        inverted = page.evaluate("getComputedStyle(document.querySelector('.view')).filter")
        assert (inverted != "none") == (theme == "dark")
        assert page.console == []
        assert page.requests == []


def zoomed(page: Opened) -> str:
    return page.evaluate("document.querySelectorAll('.view h3')[1].textContent")


def test_heads_are_chosen_by_pointer_and_keyboard(browser: Browser) -> None:
    view = attention_heads(causal(4, 5, 5), list("abcde"), [f"2.{h}" for h in range(4)])
    with browser.open(page_of(view).html(), height=1200) as page:
        page.wait_for("document.querySelectorAll('[data-head]').length === 4")
        assert zoomed(page) == "2.0 Zoomed"
        page.hover("[data-head]", 2)
        page.wait_for("document.querySelectorAll('.view h3')[1].textContent === '2.2 Zoomed'")
        page.hover("figcaption")
        page.wait_for("document.querySelectorAll('.view h3')[1].textContent === '2.0 Zoomed'")
        page.click("[data-head]", 1)
        page.hover("figcaption")
        assert zoomed(page) == "2.1 Zoomed"
        page.evaluate("""(() => {
            const head = document.querySelectorAll("[data-head]")[3];
            head.focus();
            if (document.activeElement !== head) throw new Error("no focus");
            head.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
        })()""")
        page.wait_for("document.querySelectorAll('.view h3')[1].textContent === '2.3 Zoomed'")
        assert page.console == []


def test_slow_heads_are_not_drawn_in_passing(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "MOST_CELLS_HOVER", 10)
    view = attention_heads(causal(2, 5, 5), list("abcde"), ["2.0", "2.1"])
    with browser.open(page_of(view).html()) as page:
        page.wait_for("document.querySelectorAll('[data-head]').length === 2")
        page.hover("[data-head]", 1)
        assert zoomed(page) == "2.0 Zoomed"
        page.click("[data-head]", 1)
        page.wait_for("document.querySelectorAll('.view h3')[1].textContent === '2.1 Zoomed'")


def test_each_kind_has_bounds_of_its_own(browser: Browser) -> None:
    values = torch.tensor([[0.5, -100.0], [1.0, 50.0]])
    view = colored_tokens_multi(["a", "b"], values, ["one", "two"])
    bounds = "[...document.querySelectorAll('.view input')].map(e => Number(e.value)).join()"
    with browser.open(page_of(view).html()) as page:
        page.wait_for(f"{bounds} === '1,-1'")
        page.click(".view [role=button]", 1)
        page.wait_for(f"{bounds} === '100,-100'")
        page.click(".view [role=button]", 0)
        page.wait_for(f"{bounds} === '1,-1'")
        page.hover(".colored-tokens > span", 1)
        page.wait_for("document.body.innerText.includes('50.000000')")
        assert page.console == []


def test_the_pointer_brings_tokens_as_text(browser: Browser) -> None:
    with browser.open(page_of(colored_tokens(HOSTILE, torch.zeros(N))).html()) as page:
        page.wait_for("document.querySelectorAll('.colored-tokens > span').length > 1")
        page.hover(".colored-tokens > span", 1)
        page.wait_for("document.querySelector('.view strong')")
        shown = page.evaluate("document.querySelector('.view strong').textContent")
        assert shown.replace("\u2060", "").replace("·", " ") == HOSTILE[1]
        assert page.evaluate("document.querySelectorAll('img').length") == 0


def test_views_far_away_wait_and_printing_draws_them(browser: Browser) -> None:
    page = Page("Long")
    for _ in range(3):
        page.view(colored_tokens(["a"], torch.ones(1)))
        for _ in range(60):
            page.text("text")
    with browser.open(page.html()) as opened:
        drawn = "document.querySelectorAll('.view > *').length"
        opened.wait_for(f"{drawn} === 1")
        opened.evaluate("dispatchEvent(new Event('beforeprint'))")
        opened.wait_for(f"{drawn} === 3")


# ------------------------------------------------------------------ in a notebook


def notebook(*shown: Any) -> str:
    """A document that shows results one after another, as notebooks do."""
    cells = "<p>next cell</p>".join(result._repr_html_() for result in shown)
    return f'<!doctype html><meta charset="utf-8"><body>{cells}<p>last cell</p>'


def test_notebooks_show_views_and_pages(browser: Browser) -> None:
    page = Page("In a notebook")
    for _ in range(9):
        page.text("So that it is not as high as a frame is at first.")
    page.figure(go.Figure(go.Scatter(y=[1, 2])))
    frame = pd.DataFrame({"a": [1.5, 2.5], "b": ["x", "</script>"]})
    page.data("table", frame)
    view = colored_tokens(HOSTILE, torch.zeros(N))
    with browser.open(notebook(view, page), theme="dark", height=2500) as opened:
        opened.wait_for("document.querySelectorAll('iframe').length === 2")
        assert "last cell" in opened.text()
        tokens, results = sorted(opened.frames, key=lambda one: "In a notebook" in one.text())
        tokens.wait_for("document.querySelectorAll('.colored-tokens > span').length > 1")
        assert "In a notebook" not in tokens.text()
        results.wait_for("document.querySelector('.scatterlayer')")
        assert results.evaluate("document.documentElement.dataset.theme") == "dark"
        # Frames are as high as what they show.
        for index, one in enumerate((tokens, results)):
            height = one.evaluate("Math.ceil(document.documentElement.offsetHeight)")
            frame_height = f"document.querySelectorAll('iframe')[{index}].clientHeight"
            opened.wait_for(f"Math.abs({frame_height} - {height}) < 9")
        results.click("button[data-table]")
        name, data = opened.download()
        assert name == "table.csv"
        assert data == b'"a","b"\n1.5,"x"\n2.5,"</script>"\n'
        # What runs in a frame reaches nothing outside it.
        caught = "try { parent.document.title } catch (error) { error.name }"
        assert tokens.evaluate(f"eval({caught!r})") == "SecurityError"
        assert opened.console == []
        assert opened.requests == []


def test_only_its_own_frame_sets_a_height(browser: Browser) -> None:
    view = colored_tokens(["a"], torch.ones(1))
    with browser.open(notebook(view)) as page:
        page.wait_for("document.querySelector('iframe').clientHeight < 150")
        before = page.evaluate("document.querySelector('iframe').clientHeight")
        page.evaluate("postMessage({hookedPageHeight: 900}, '*')")
        page.evaluate("new Promise(done => setTimeout(done, 100))")
        assert page.evaluate("document.querySelector('iframe').clientHeight") == before
