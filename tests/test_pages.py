"""The page of every analysis, in a browser: drawn, silent, without any request, hostile tokens and
all, and its table comes out as the command would write it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analyses import cli
from analyses.ablation import ablation
from analyses.activation_patching import activation_patching
from analyses.attention import attention
from analyses.attribution import attribution
from analyses.attribution_patching import attribution_patching
from analyses.causal_tracing import average, causal_tracing
from analyses.edge_attribution import edge_attribution
from analyses.heads import detect_heads
from analyses.logit_lens import logit_lens
from analyses.next_token import branches, next_token, surprisal
from analyses.pairs import PromptPair
from analyses.path_patching import path_patching
from interp import HookedGPT2
from notebooks.browser import Browser

NASTY = "</script><img src=x onerror=alert(1)> \u05e9\u05dc\u05d5\u05dd \u202e &lt;"
CLEAN = f"{NASTY} When Mary and John went home, John gave a drink to"
CORRUPTED = CLEAN.replace("John gave", "Mary gave")


def pair(model: HookedGPT2) -> PromptPair:
    return PromptPair.from_text(model, CLEAN, CORRUPTED, " Mary", " John")


def patched(model: HookedGPT2) -> Any:
    of = pair(model)
    exact = activation_patching(model, of, views=["mlp_out", "z"], progress=False)
    estimated = attribution_patching(model, of, views=["mlp_out", "z", "z_by_pos"])
    return estimated.compared(exact.views)


def traced(model: HookedGPT2, prompt: str = CLEAN) -> Any:
    return causal_tracing(model, prompt, "John went", samples=1, window=2, progress=False)


RESULTS: dict[str, Callable[[HookedGPT2], Any]] = {
    "ablation": lambda m: ablation(m, pair(m)),
    "activation patching": lambda m: activation_patching(
        m, pair(m), views=["block_every", "z", "pattern"], progress=False
    ),
    "attention": lambda m: attention(m, CLEAN, layers=[0, 2]),
    "attribution": lambda m: attribution(m, pair(m)),
    "attribution patching": patched,
    "causal tracing": traced,
    "causal tracing of several": lambda m: average([traced(m), traced(m, "So " + CLEAN)]),
    "edge attribution": lambda m: edge_attribution(m, pair(m)).with_exact(m, 3, progress=False),
    "heads": lambda m: detect_heads(
        m, [CLEAN, "short"], ablation="zero", n=1, length=4, copying=True
    ),
    "logit lens": lambda m: logit_lens(m, [CLEAN, "short"], positions="all", targets=[" Mary"]),
    "next token": lambda m: next_token(m, [CLEAN, "short"], continuations=[" Mary"]),
    "branches": lambda m: branches(m, CLEAN),
    "surprisal": lambda m: surprisal(m, CLEAN),
    "path patching": lambda m: path_patching(m, pair(m), ["logits", "3.0.q"], progress=False),
}


DRAWN = """[...document.querySelectorAll(".plot")].every(plot => plot.querySelector(".main-svg"))"""


@pytest.mark.parametrize("name", RESULTS)
def test_a_page(browser: Browser, mini: HookedGPT2, tmp_path: Path, name: str) -> None:
    result = RESULTS[name](mini)
    result.to_html(tmp_path / "page.html")
    with browser.open(tmp_path / "page.html", width=420) as page:
        page.wait_for(DRAWN)
        assert page.evaluate("document.querySelectorAll('.plot, canvas, svg').length") > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
        assert page.evaluate("document.querySelectorAll('img[src=x], [onerror]').length") == 0
        assert "onerror" in page.text()
        themes = []
        for _ in range(2):
            page.click("#theme")
            themes.append(page.evaluate("document.documentElement.dataset.theme"))
        assert themes == ["dark", "light"]
        last = page.evaluate("document.querySelectorAll('button[data-table]').length") - 1
        page.click("button[data-table]", last)
        table = page.download()
        assert table.name.endswith(".csv")
        assert table.data.decode() == cli.csv_text(result.to_frame())
        assert page.console == []
        assert page.requests == []
