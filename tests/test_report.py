"""Pages: nothing from outside breaks out, nothing is loaded into them, and browsers draw them."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go
import pytest
import torch

from analyses._page.text import html_text
from analyses.report import (
    Page,
    Provenance,
    Shaded,
    plotly_text,
    script_json,
    template,
    weights_sha256,
)
from interp import HookedGPT2, HookedGPT2Config
from notebooks.browser import Browser

HOSTILE = [
    "</script><script>document.title='stolen'</script>",
    "<!--<script>",
    "]]>",
    "<img src=x onerror=\"document.title='stolen'\">",
    "\"'>&lt;b&gt;",
    "</title></style></textarea>",
    "<a href='https://example.com/x'>link</a>",
    "%{customdata}",
    "\u2028\u2029\x00",
    "\u202e\u2067desrever",
    "\ud83d half of two",
]
SOURCE = Provenance("model <b>", "float32", "cpu", "call </dd> `x`", {"python": "3"})


def page_of(texts: list[str]) -> Page:
    page = Page("Title " + texts[0], "Lead " + texts[0])
    page.heading(texts[0])
    page.text(texts[0])
    page.tokens(texts, prepended=True)
    shown = [plotly_text(text) for text in texts]
    figure = go.Figure(
        go.Heatmap(
            z=[[float(i) for i in range(len(texts))]],
            text=[shown],
            texttemplate="%{text}",
            customdata=[shown],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    figure.update_layout(
        xaxis={"tickvals": list(range(len(texts))), "ticktext": shown},
        updatemenus=[
            {
                "type": "buttons",
                "buttons": [
                    {"label": "one", "method": "restyle", "args": [{"zmax": [1]}]},
                    {"label": texts[0], "method": "restyle", "args": [{"zmax": [2]}]},
                ],
            }
        ],
    )
    page.figure(figure, "Caption " + texts[0])
    page.table([texts[0], "b"], [[text, Shaded(text, 0.7, text)] for text in texts])
    page.provenance(SOURCE, more=texts[0])
    return page


class Elements(HTMLParser):
    """What a browser would find in a page: elements with their attributes, and their text."""

    def __init__(self, source: str, *, strict: bool = True) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.strict = strict
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert not self.strict or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))


def test_hostile_text_stays_text() -> None:
    source = page_of(HOSTILE).html()
    found = Elements(source)
    harmless = Elements(page_of(["plain"] * len(HOSTILE)).html())
    names = [tag for tag, _ in found.elements]
    assert names == [tag for tag, _ in harmless.elements]  # no text became an element
    assert not found.open  # and none closed one
    for tag, attributes in found.elements:
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), attributes
    body = "".join(text for tag, text in found.texts if tag not in ("script", "style"))
    for text in HOSTILE:
        assert html.unescape(html_text(text)) in body


def test_what_a_page_cannot_hold_is_escaped(tmp_path: Path) -> None:
    assert html_text("a\x00\x1b\r\x85<\n\t") == "a\\x00\\x1b\\r\\x85&lt;\n\t"
    assert html_text("\ud83d\ude00 😀") == "\\ud83d\\ude00 😀"
    assert html_text("\u202eabc\u202c \u2067 \u2068ok\u2069") == (
        "\\u202eabc\\u202c \\u2067 \u2068ok\u2069"
    )
    page_of(HOSTILE).write(tmp_path / "page.html")  # lone surrogates have no UTF-8
    assert b"\x00" not in (tmp_path / "page.html").read_bytes()


def test_long_and_many_tokens() -> None:
    page = Page("x")
    page.tokens(["a" * 10_000, "b"], prepended=False)
    page.tokens(["b"] * 401, prepended=False)
    source = page.html()
    assert "a" * 260 + "… (10,000 characters)</span>" in source
    assert f"position 0: &#x27;{'a' * 10_000}&#x27;" in source
    classes = [a.get("class") for tag, a in Elements(source).elements if tag == "p"]
    assert classes == ["tokens", "tokens many"]


def test_folded_parts() -> None:
    page = Page("x")
    with page.folded("And 2 <more>"):
        page.text("hidden")
    page.subheading("<after>")
    found = Elements(page.html())
    assert ("summary", "And 2 <more>") in found.texts
    assert ("h3", "<after>") in found.texts
    assert not found.open


def test_only_the_pages_own_scripts_may_run() -> None:
    source = page_of(HOSTILE).html()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', source)
    assert policy is not None
    assert policy[1].startswith("default-src 'none';")
    allowed = re.findall(r"'sha256-([^']+)'", policy[1])
    scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert digests == allowed
    assert "unsafe-eval" not in policy[1]
    assert "script-src 'unsafe-inline'" not in policy[1]


def test_plotlys_script_is_there_once_and_only_with_figures() -> None:
    page = page_of(["x"])
    page.figure(go.Figure(go.Scatter(y=[1, 2])))
    assert page.html().count("Plotly.newPlot(plot") == 1
    assert 4e6 < len(page.html()) < 6e6
    plain = Page("no figures")
    plain.text("text")
    assert len(plain.html()) < 10_000


def figure_specs(page: Page) -> list[dict[str, Any]]:
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page.html())
    return [json.loads(block) for block in blocks]


def test_figures_are_whole_rounded_and_without_template() -> None:
    page = Page("x")
    values = [1 / 3, float("nan"), 1234567.891]
    page.figure(go.Figure(go.Scatter(y=values)).update_layout(template=template("dark")))
    (spec,) = figure_specs(page)
    assert spec["data"][0]["y"] == [0.333333, None, 1234570.0]
    assert "template" not in spec["layout"]


def test_buttons_of_a_figure_become_buttons_of_the_page() -> None:
    page = page_of(HOSTILE)
    (spec,) = figure_specs(page)
    assert spec["buttons"] == [["restyle", {"zmax": [1]}], ["restyle", {"zmax": [2]}]]
    assert "updatemenus" not in spec["layout"]
    pressed = [a.get("aria-pressed") for t, a in Elements(page.html()).elements if t == "button"]
    assert pressed == [None, "true", "false"]  # the first one changes the theme


def test_a_shade_that_is_no_number_is_none() -> None:
    page = Page("x")
    page.table(["a"], [[Shaded("nan", float("nan"))], [Shaded("one", 1.5)]])
    shades = [a.get("style") for tag, a in Elements(page.html()).elements if tag == "td"]
    assert shades == ["--shade:0%", "--shade:100%"]


def test_tokens_may_have_backgrounds() -> None:
    page = Page("x")
    page.tokens(["plain", Shaded("deep", 0.8, "3.2 nats"), Shaded("under", 0.5, sign=-1)], True)
    spans = [a for tag, a in Elements(page.html()).elements if tag == "span"]
    assert [a["class"] for a in spans] == ["token added", "token strong", "token below"]
    assert [a.get("style") for a in spans] == [None, "--shade:80%", "--shade:32%"]
    assert spans[1]["title"] == "position 1: 'deep'\n3.2 nats"


@pytest.mark.usefixtures("unchecked")
def test_tables_and_tokens_are_checked() -> None:
    page = Page("x")
    with pytest.raises(ValueError, match=r"a cell for each of \['a'\]; this one is \['1', '2'\]"):
        page.table(["a"], [["1", "2"]])
    with pytest.raises(TypeError, match=r"under 'a' stands 1\.0, float"):
        page.table(["a"], [[1.0]])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="not the string 'abc'"):
        page.tokens("abc", False)
    for add, what in ((page.figure, "a figure is"), (page.view, "a view is")):
        with pytest.raises(TypeError, match=f"{what} .*, not str"):
            add("x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a table is a pandas DataFrame, not dict"):
        page.data("x", {"a": [1]})  # type: ignore[arg-type]
    page.tokens([" Mary", "", "\n"], False)
    spans = [text for tag, text in Elements(page.html()).texts if tag == "span"]
    assert spans == ["·Mary", "∅", "⏎"]


def test_a_fold_ends_however_its_block_does() -> None:
    page = Page("x")
    with pytest.raises(KeyError), page.folded("y"):
        raise KeyError
    page.text("after")
    assert "</details><p>after" in page.html().replace("\n", "")


def test_script_json() -> None:
    value = {"a": HOSTILE, "b": [1.5, None, True]}
    assert not set("<>&") & set(script_json(value))
    assert json.loads(script_json(value)) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        script_json(float("nan"))


def test_plotly_text() -> None:
    assert plotly_text("<b>&lt;</b>") == "&lt;b&gt;&amp;lt;&lt;/b&gt;"
    assert html.unescape(plotly_text(HOSTILE[0])) == HOSTILE[0]


def test_templates_differ_in_colours_only() -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(item) for item in value] if isinstance(value, list) else type(value)

    light, dark = template("light"), template("dark")
    go.layout.Template(light)  # plotly knows every name in it
    assert light != dark
    assert shape(light["layout"]["xaxis"]) == shape(dark["layout"]["xaxis"])
    with pytest.raises(KeyError):
        template("sepia")


# ------------------------------------------------------------------ provenance

CFG = HookedGPT2Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=16, n_ctx=8, d_vocab=11,
                       act_fn="gelu_new")  # fmt: skip


def test_weights_hash_is_of_the_weights() -> None:
    model, same = HookedGPT2.from_config(CFG, seed=0), HookedGPT2.from_config(CFG, seed=0)
    digest = weights_sha256(model)
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert weights_sha256(same) == digest
    assert weights_sha256(HookedGPT2.from_config(CFG, seed=1)) != digest
    assert weights_sha256(HookedGPT2.from_config(CFG, seed=0, dtype="bfloat16")) != digest
    with torch.no_grad():
        same.get_parameter("ln_f.bias")[3] += 1
    assert weights_sha256(same) != digest


def test_provenance_of_a_model() -> None:
    model = HookedGPT2.from_config(CFG, dtype="bfloat16")
    provenance = Provenance.of(model, "f(x)")
    assert (provenance.dtype, provenance.device, provenance.call) == ("bfloat16", "cpu", "f(x)")
    assert provenance.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert provenance.weights_sha256 is None
    assert provenance.with_weights(model).weights_sha256 == weights_sha256(model)
    assert json.loads(json.dumps(provenance.to_dict()))["versions"]["python"]


def test_page_shows_provenance() -> None:
    page = Page("x")
    page.provenance(SOURCE, extra_line="here")
    text = "".join(text for tag, text in Elements(page.html()).texts if tag in ("dt", "dd"))
    for part in ("model <b>", "float32 on cpu", "call </dd> `x`", "extra line", "here"):
        assert part in text
    assert "not hashed" in text


# ------------------------------------------------------------------ in a browser


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_browser_draws_hostile_page_offline(
    browser: Browser, tmp_path: Path, theme: Literal["light", "dark"]
) -> None:
    page_of(HOSTILE).write(tmp_path / "page.html")
    with browser.open(tmp_path / "page.html", theme=theme) as page:
        page.wait_for("document.querySelector('.heatmaplayer')")  # the policy let plotly run
        assert page.evaluate("document.title").startswith("Title </script>")
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        for tag, attributes in Elements(page.html(), strict=False).elements:
            assert "onerror" not in attributes
            assert tag not in ("img", "textarea", "b", "a") or attributes.get("rel") == "tooltip"
        ticks = page.evaluate(
            "[...document.querySelectorAll('.xtick text')].map(e => e.textContent)"
        )
        assert len(ticks) == len(HOSTILE)
        assert "<img src=x onerror=" in ticks[3]
        assert page.console == []
        assert page.requests == []


def test_paper_is_light(browser: Browser) -> None:
    page = Page("x")
    page.figure(go.Figure(go.Scatter(y=[1, 2])))
    ink = "getComputedStyle(document.querySelector('.plot text')).fill"
    with browser.open(page.html(), theme="dark") as opened:
        opened.wait_for("document.querySelector('.plot text')")
        dark = opened.evaluate(ink)
        opened.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert opened.evaluate("document.documentElement.dataset.theme") == "light"
        opened.wait_for(f"{ink} !== {dark!r}")
        opened.evaluate("dispatchEvent(new Event('afterprint'))")
        opened.wait_for(f"{ink} === {dark!r}")


def test_tokens_stand_in_order_and_in_one_box_each(browser: Browser, tmp_path: Path) -> None:
    tokens = ["·שלום", "·עולם", ",", "·12", "·مرحبا", "x" * 400, "·two·halves·of·one"] * 4
    page = Page("order")
    page.tokens(tokens, prepended=False)
    page.table(["a", "b"], [["שלום", "עולם"]])
    page.write(tmp_path / "page.html")
    measure = """[...document.querySelectorAll(".token, td")].map(e =>
        [...e.getClientRects()].map(r => [r.left, r.top, r.right]))"""
    with browser.open(tmp_path / "page.html", width=500, height=500) as opened:
        boxes = opened.evaluate(measure)
    assert [len(box) for box in boxes] == [1] * (len(tokens) + 2)  # none is in two pieces
    places = [box[0] for box in boxes]
    for (left, top, _), (next_left, next_top, _) in pairwise(places):
        assert next_top > top or (next_top == top and next_left > left)
    assert max(right for _, _, right in places) <= 500


def test_what_got_in_could_neither_run_nor_load(browser: Browser) -> None:
    # As if escaping had failed.
    inside = (
        "<p><script>document.title = 'stolen'</script><img src='http://example.com/x.png'>"
        "<img src='data:,' onerror=\"document.title = 'stolen'\">"
        "<iframe src='http://example.com/'></iframe></p>"
    )
    page = Page("Whole")
    page._parts.append(inside)
    with browser.open(page.html()) as opened:
        assert opened.evaluate("document.title") == "Whole"
        assert opened.evaluate("document.querySelectorAll('img').length") == 2
        # The script, the handler, the picture and the frame.
        refused = [line for line in opened.console if "Content Security Policy" in line]
        assert len(refused) == 4
        assert sum("http://example.com/" in line for line in refused) == 2
