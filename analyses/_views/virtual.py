"""Virtual weights as bars, or as a curve of singular values."""

from typing import TYPE_CHECKING

from analyses import cli, report

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses._circuits.virtual import VirtualWeights

_MOST_BARS = 40
# Readable on light and on dark.
_ABOVE, _BELOW = "#c8553d", "#3a7fbf"


def figure(found: "VirtualWeights") -> "go.Figure":
    """See `VirtualWeights.plot`."""
    import plotly.graph_objects as go

    if not found.entries:
        values = found.singular_values.tolist()
        drawn = go.Figure(go.Scatter(x=list(range(len(values))), y=values, mode="lines+markers"))
        drawn.update_xaxes(title="direction")
        drawn.update_yaxes(title="singular value", rangemode="tozero")
        return _laid_out(drawn, 340)
    some = found.entries[:_MOST_BARS]
    names = [
        report.plotly_text(
            " → ".join(report.isolated(cli.shorten(cli.visible(end), 20)) for end in (a, b))
        )
        for a, b, _ in some
    ]
    values = [value for _, _, value in some]
    bars = go.Bar(
        x=values,
        y=list(range(len(some))),
        orientation="h",
        customdata=names,
        marker={"color": [_ABOVE if value > 0 else _BELOW for value in values]},
        hovertemplate="%{customdata}<br>%{x:.5g}<extra></extra>",
    )
    drawn = go.Figure(bars)
    drawn.update_xaxes(title="weight")
    drawn.update_yaxes(
        tickvals=list(range(len(some))), ticktext=names, autorange="reversed", showgrid=False
    )
    return _laid_out(drawn, 130 + 20 * len(some))


def _laid_out(figure: "go.Figure", height: int) -> "go.Figure":
    return figure.update_layout(
        template=report.template(),
        height=height,
        width=820,
        margin={"l": 20, "r": 20, "t": 40, "b": 50},
    )
