"""Singular values as a curve, neurons as points."""

from typing import TYPE_CHECKING

from analyses import cli, report

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses._circuits.directions import SingularVectors
    from analyses._circuits.neurons import NeuronDirections


def _tokens(texts: list[str]) -> str:
    return report.plotly_text("  ".join(report.isolated(cli.visible(text)) for text in texts))


def spectrum(found: "SingularVectors") -> "go.Figure":
    """See `SingularVectors.plot`."""
    import plotly.graph_objects as go

    values, share = found.singular_values.tolist(), found.share.tolist()
    hover = []
    for i in range(len(values)):
        lines = [f"direction {i}: {values[i]:.4g}", f"{share[i]:.1%} of the squared norm"]
        if i < len(found.left):
            for sign in (1, -1):
                lines += [
                    f"{sign:+d}"[0] + f" {side}: {_tokens(texts)}"
                    for side, texts in found.tokens(i, sign)
                ]
        hover.append("<br>".join(lines))
    figure = go.Figure(
        go.Scatter(
            x=list(range(len(values))),
            y=values,
            mode="lines+markers",
            marker={"size": [8 if i < len(found.left) else 4 for i in range(len(values))]},
            text=hover,
            hovertemplate="%{text}<extra></extra>",
        )
    )
    figure.update_xaxes(title="direction")
    figure.update_yaxes(title="singular value", rangemode="tozero")
    figure.update_layout(
        template=report.template(),
        height=340,
        width=760,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
    )
    return figure


def neurons(found: "NeuronDirections") -> "go.Figure":
    """See `NeuronDirections.plot`."""
    import plotly.graph_objects as go

    hover = [
        "<br>".join(
            [
                f"<b>neuron {found.layer}.{neuron}</b>, cosine {float(found.cosine[i]):+.2f}",
                f"answers to {_tokens(found.tokens(i, 'reads', 1))}",
                f"raises {_tokens(found.tokens(i, 'writes', 1))}",
                f"lowers {_tokens(found.tokens(i, 'writes', -1))}",
            ]
        )
        for i, neuron in enumerate(found.neurons)
    ]
    few = len(found.neurons) <= 40
    figure = go.Figure(
        go.Scatter(
            x=found.in_norm.tolist(),
            y=found.out_norm.tolist(),
            mode="markers+text" if few else "markers",
            text=[str(neuron) for neuron in found.neurons] if few else None,
            textposition="top center",
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            marker={
                "size": 10,
                "color": found.cosine.nan_to_num(0.0).tolist(),
                "coloraxis": "coloraxis",
                "line": {"width": 1},
            },
        )
    )
    figure.update_xaxes(title="length of what it reads")
    figure.update_yaxes(title="length of what it writes")
    figure.update_layout(
        template=report.template(),
        coloraxis={
            "cmin": -1,
            "cmax": 1,
            "cmid": 0,
            "colorbar": {"title": {"text": "cosine", "side": "right"}, "thickness": 12},
        },
        height=420,
        width=760,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
    )
    return figure
