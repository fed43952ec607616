"""How an ablation looks: a page, and tables for the terminal."""

from typing import TYPE_CHECKING

from analyses import cli, report
from analyses._views import attribution as attribution_views
from analyses._views import effects as effects_views

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Console

    from analyses.ablation import Ablation

# Of more neurons than this, the strongest are drawn.
_MOST_BARS = 30


def what(found: "Ablation") -> str:
    """`mean ablation of heads`, and where the mean is from."""
    text = f"{found.kind} ablation of {found.units}"
    taken = "mean over" if found.kind == "mean" else "drawn from"
    return f"{text} ({taken} {found.reference})" if found.reference else text


def _each(found: "Ablation") -> str:
    """What is taken out by one intervention, in words."""
    if found.keep:
        return "all heads but those of each group"
    return "each group of heads" if found.groups else f"each of the {found.units}, one at a time"


def _summary(found: "Ablation") -> str:
    effects = found.effects
    n = effects.n_examples
    over = f", on average over {n} prompts" if n > 1 else ""
    return f"{effects.metric}: {float(effects.base.mean()):.3f} without ablation{over}."


def figure(found: "Ablation") -> "go.Figure":
    """See `Ablation.plot`."""
    effects = found.effects
    if found.units == "neurons":
        effects = attribution_views.only_strongest(effects, _MOST_BARS, "change")
    return effects.plot("change")


def _strongest(found: "Ablation", top_k: int) -> tuple[list[str], list[list[str]], list[float]]:
    """Headers, rows of text, and how strong each row is, 0 to 1."""
    n_units = found.effects.change.numel()
    effects = attribution_views.only_strongest(found.effects, min(top_k, n_units), "change")
    change, mean, stderr = (
        v.tolist() for v in (effects.change, effects.mean, effects.change_stderr)
    )
    low, high = (ends.tolist() for ends in effects.interval(scale="change"))
    several = effects.n_examples > 1
    headers = [".".join(found.effects.axes), "change", "value"]
    headers += ["± s.e. of change", "95 % interval"] if several else []
    rows = []
    for i, name in enumerate(effects.labels[effects.axes[0]]):
        row = [name, f"{change[i]:+.3f}", f"{mean[i]:.3f}"]
        errors = [f"{stderr[i]:.3f}", f"{low[i]:+.3f} to {high[i]:+.3f}"]
        rows.append(row + errors if several else row)
    most = max(map(abs, change)) or 1.0
    return headers, rows, [one / most for one in change]


def page(found: "Ablation", top_k: int) -> report.Page:
    """A page with the prompts, the heat map, the strongest units and provenance."""
    effects = found.effects
    page = report.Page(
        f"Ablation: {found.provenance.model}",
        f"What the metric becomes without {_each(found)}: "
        f"{what(found)}. Blue: the metric falls without it; red: it rises. Blanks are shown as ·, "
        "line ends as ⏎.",
    )
    page.heading(found.source)
    attribution_views.add_prompts(page, found.str_tokens, found.prepend_bos)
    page.text(_summary(found))
    page.figure(found.plot(), _caption(found))
    headers, rows, shades = _strongest(found, top_k)
    page.text(f"The {len(rows)} strongest, of {effects.change.numel()}:")
    page.table(
        headers,
        [
            [row[0], effects_views.diverging(row[1], shade), *row[2:]]
            for row, shade in zip(rows, shades, strict=True)
        ],
    )
    if found.groups:
        page.text("What was taken out:")
        page.table(
            ["group", "heads"],
            [[name, ", ".join(map(str, heads))] for name, heads in found.groups.items()],
        )
    page.data("ablation", found.to_frame())
    page.provenance(found.provenance)
    return page


def _caption(found: "Ablation") -> str:
    effects = found.effects
    text = f"Change of {effects.metric}."
    if found.units == "neurons":
        text += f" The {min(_MOST_BARS, effects.change.numel())} strongest neurons."
        if effects.n_examples > 1:
            text += " Thin lines: 95 % bootstrap intervals over prompts."
    return text + " Hover for more."


def show(found: "Ablation", console: "Console", top_k: int) -> None:
    """Print an ablation: the prompts, the metric, and the strongest units."""
    from analyses._views.effects import right

    console.print()
    console.print(found.source, style="bold", soft_wrap=True)
    attribution_views.show_prompts(console, found.str_tokens, found.prepend_bos)
    console.print()
    console.print(_summary(found))
    headers, rows, shades = _strongest(found, top_k)
    console.print(
        f"{what(found)}: the {len(rows)} strongest, of {found.effects.change.numel()}",
        soft_wrap=True,
    )
    columns = [cli.Column(headers[0], [cli.Cell(row[0]) for row in rows])]
    for i, header in enumerate(headers[1:], start=1):
        shown = [
            cli.Cell(row[i], abs(shade) if i == 1 else None)
            for row, shade in zip(rows, shades, strict=True)
        ]
        columns.append(right(header, shown))
    cli.print_table(console, columns[:1], columns[1:], "columns")
