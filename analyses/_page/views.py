"""Views of circuitsvis, checked and made safe, for pages and notebooks.

circuitsvis (https://github.com/TransformerLensOrg/CircuitsVis, 1.43) draws attention patterns and
coloured tokens with React. Only its script is used here: its Python functions may open the
network, write a container that swallows the rest of the page, and check neither ranks nor lengths.
So numbers are checked for rank, length and finiteness, and rounded to six digits; tokens are made
visible, kept from being read as HTML or from turning their neighbours round, and shortened; and the
limits of the colours are chosen so that no colour is undefined.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analyses._page.text import html_text, script_json
from analyses._page.view_props import Props

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

# circuitsvis draws about 20,000 cells a second, those of all heads anew when another one is chosen.
MOST_CELLS = 2**16
# With more, heads are chosen by a click alone, not by passing over them.
MOST_CELLS_HOVER = 2**13
_CLICK = "So many numbers: choose a head by a click."
# Each token has a tooltip of its own; a thousand are made in about a second.
MOST_TOKENS = 4096

# The width of charts that fit a screen, in CSS pixels; of many tokens they may be wider.
_CHART = 720

# The colours of figures in light pages; in dark ones the whole view is inverted.
_BLUE, _DARK_BLUE, _RED = "#15498a", "#123f7d", "#8c1d18"


@dataclass(frozen=True, eq=False)
class View:
    """A view of circuitsvis, for `Page.view`. In a notebook it shows itself, without any network.

    Attributes:
        component: its name in circuitsvis.
        props: what it is given, as plain data.
        note: what its colours mean.
        shortened: tokens that are shown shortened: where each is, and what it is in full.
        height: about how high it is, in CSS pixels.
        width: how wide it may be, in CSS pixels; None: as wide as the page.
        click_only: whether only a click chooses a head.
    """

    component: str
    props: dict[str, Any]
    note: str = ""
    shortened: tuple[tuple[str, str], ...] = ()
    height: int = 400
    width: int | None = None
    click_only: bool = False

    def part(self, name: str, caption: str) -> str:
        """The view as a part of a page, as HTML.

        Args:
            name: of its numbers, which nothing else in the page has.
            caption: stands below it.
        """
        spec = {"component": self.component, "props": self.props, "clickOnly": self.click_only}
        notes = " ".join(filter(None, (caption, self.note, _CLICK * self.click_only)))
        whole = "".join(
            f"<li>{html_text(where)}: {html_text(text)}</li>" for where, text in self.shortened
        )
        most = "" if self.width is None else f";max-width:{self.width}px"
        if whole:
            whole = (
                f"<details><summary>Shortened above, in full</summary><ul>{whole}</ul></details>"
            )
        return (
            f'<figure><div class="mount" data-spec="{name}" role="group" '
            f'aria-label="{html_text(caption or self.component)}" '
            f'style="min-height:{self.height}px{most}"></div>'
            f"<figcaption>{html_text(notes)}</figcaption>{whole}</figure>"
            f'<script type="application/json" id="{name}">{script_json(spec)}</script>'
        )

    def _repr_html_(self) -> str:
        from analyses.report import Page

        page = Page(f"circuitsvis: {self.component}")
        page.view(self)
        return page.frame(self.height + 60, bare=True)


def attention_heads(
    patterns: "Float[Tensor, 'head query key']",
    tokens: Sequence[str],
    names: Sequence[str],
    *,
    causal: bool | None = None,
    limit: float | None = None,
) -> View:
    """Attention patterns of several heads side by side, one of them large.

    Args:
        patterns: numbers of any kind: attention, differences, scores.
        tokens: one per query, which are also the keys.
        names: one per head.
        causal: keys after the query have no number, whatever `patterns` holds there; by default
            where it holds only 0 or -inf there.
        limit: the number that gets the full colour; by default 1 where all lie from 0 to 1, else
            the largest magnitude.

    Raises:
        ValueError: a wrong rank (a batch axis left on, say), another count of tokens or names, NaN
            or infinity, more than `MOST_CELLS` cells, or a limit that is not positive.
    """
    return _attention("AttentionHeads", patterns, tokens, causal, limit, names)


def attention_pattern(
    pattern: "Float[Tensor, 'query key']",
    tokens: Sequence[str],
    *,
    causal: bool | None = None,
    limit: float | None = None,
) -> View:
    """The attention pattern of one head. Arguments and errors as of `attention_heads`."""
    return _attention("AttentionPattern", pattern, tokens, causal, limit, None)


def _attention(
    component: str,
    given: "Tensor",
    tokens: Sequence[str],
    causal: bool | None,
    limit: float | None,
    names: Sequence[str] | None,
) -> View:
    import torch

    props = Props(component)
    values = torch.as_tensor(given).detach().to("cpu", torch.float64)
    props.check_shape("attention", values.shape)
    n_heads, side = (1, *values.shape)[-3], values.shape[-1]
    future = torch.ones(values.shape[-2:], dtype=torch.bool).triu(1)
    if causal is None:
        beyond = values[..., future]
        causal = bool(((beyond == 0) | (beyond == -torch.inf)).all())
    if causal:
        values = values.masked_fill(future, 0.0)
    cells = n_heads * (side * (side + 1) // 2 if causal else side * side)
    if cells > MOST_CELLS:
        raise ValueError(
            f"{n_heads} heads of {side} tokens are {cells:,} cells; circuitsvis draws at most "
            f"{MOST_CELLS:,} in reasonable time. Choose fewer heads or positions, or use "
            "Page.head_maps, which draws more and pools what is too much"
        )
    props.add("tokens", tokens)
    props.add("attention", values)
    if names is not None:
        props.add("attentionHeadNames", names)
    if causal:  # rows that end with the query: what is not there is not drawn
        props.cut_rows("attention")
    note = _colours(props, values, limit)
    width = min(max(_CHART, 10 * side + 160), 2 * _CHART)
    return View(
        component,
        props.done(maskUpperTri=False, zoomed=True),
        note,
        props.shortened,
        height=min(128 * side, width) + (40 if names is None else 180 + 70 * ((n_heads - 1) // 12)),
        width=width,
        click_only=cells > MOST_CELLS_HOVER,
    )


def colored_tokens(
    tokens: Sequence[str], values: "Float[Tensor, 'pos']", *, limit: float | None = None
) -> View:
    """Tokens in running text, each with a background for its value.

    Args:
        tokens: one string per token.
        values: one number per token.
        limit: as in `attention_heads`.

    Raises:
        ValueError: another count of values, a wrong rank, NaN or infinity, no token, more than
            `MOST_TOKENS`, or a limit that is not positive.
    """
    import torch

    props = Props("ColoredTokens", most={"pos": MOST_TOKENS})
    props.add("tokens", tokens)
    props.add("values", values)
    note = _colours(props, torch.as_tensor(props.props["values"]), limit)
    return View(
        "ColoredTokens",
        props.done(),
        note,
        props.shortened,
        height=_text_height(props.props["tokens"]),
    )


def colored_tokens_multi(
    tokens: Sequence[str], values: "Float[Tensor, 'pos kind']", labels: Sequence[str]
) -> View:
    """Tokens in running text with several values each, one kind of which gives the background.

    circuitsvis shows these numbers with six decimals: much smaller ones should be rescaled. Each
    kind has colours of its own limit, its largest magnitude.

    Args:
        tokens: one string per token.
        values: numbers of every token, one per kind.
        labels: one name per kind.

    Raises:
        ValueError: as of `colored_tokens`.
    """
    import torch

    props = Props("ColoredTokensMulti", most={"pos": MOST_TOKENS})
    props.add("tokens", tokens)
    props.add("values", values)
    props.add("labels", labels)
    # circuitsvis rounds bounds to six decimals, and at a bound of 0 has no colour.
    bounds = torch.as_tensor(props.props["values"]).abs().amax(0).clamp_min(1e-6).tolist()
    return View(
        "ColoredTokensMulti",
        props.done(positiveBounds=bounds, negativeBounds=[-bound for bound in bounds]),
        "Uncoloured is 0, full blue the positive bound, full red the negative one.",
        props.shortened,
        _text_height(props.props["tokens"]) + 80 + 20 * len(labels),
    )


def _text_height(tokens: Sequence[str]) -> int:
    lines = sum(map(len, tokens)) // 110 + sum(token.count("\n") for token in tokens) + 1
    return min(26 * lines + 60, 900)


def circuitsvis_view(component: str, **props: Any) -> View:
    """Any component of circuitsvis by its name, with its props under circuitsvis' own names.

    Lists, arrays and tensors are checked for their axes (equal names have equal lengths; in
    `*pos` the length may differ from sample to sample):

    - `TextNeuronActivations`: tokens [pos], activations [pos layer neuron];
    - `TokenLogProbs`: prompt [pos], and for each token but the last, about the one after it,
      topKLogProbs [next k], topKTokens [next k], correctTokenRank [next],
      correctTokenLogProb [next];
    - `TopkSamples`: tokens and activations [layer neuron sample *pos];
    - `TopkTokens`: tokens [sample *pos], topkVals, topkIdxs, bottomkVals and bottomkIdxs
      [sample layer k neuron], the indices into the tokens of the sample.

    Args:
        component: one of these.
        props: all of its numbers and tokens, and names and labels of its axes
            (`firstDimensionName="Layer"`, `firstDimensionLabels=[...]`) where wanted.

    Raises:
        ValueError: an unknown component; a prop that is missing, unknown, of other axes or
            lengths, or not finite; an index that is out of range.
    """
    checked = Props(component)
    for name, value in props.items():
        checked.add(name, value)
    return View(component, checked.done(), "", checked.shortened, height=480)


def view_colours(signed: bool) -> dict[str, str]:
    """The colours of numbers above and below 0, as circuitsvis takes them."""
    return {"positiveColor": _RED if signed else _BLUE, "negativeColor": _DARK_BLUE}


def _colours(props: Props, values: "Tensor", limit: float | None) -> str:
    """Set the colours and their limits, and say what they are."""
    most, least = float(values.max()), float(values.min())
    if limit is None:
        limit = 1.0 if least >= 0 and 0 < most <= 1 else max(most, -least) or 1.0
    if not 0 < limit < float("inf"):
        raise ValueError(f"limit is {limit}, expected a positive number")
    signed = least < 0
    props.set(minValue=-limit, maxValue=limit, **view_colours(signed))
    if signed:
        return f"Uncoloured is 0, full red {limit:.4g} and above, full blue −{limit:.4g} and below."
    return f"Uncoloured is 0, full blue {limit:.4g}{' and above' if most > limit else ''}."
