"""A circuit as a graph, layer above layer, from the input at the bottom to the logits on top.

Heads of a layer stand side by side, its MLP above them, each near what it is joined to. What a head
reads an edge for is told by its line (queries solid, keys dashed, values dotted), how strong it is
by its width, and by its colour whether leaving it out raises or lowers the metric.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analyses import report
from analyses._views.words import count

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses._discovery.circuit import AnyCircuit, Circuit, NodeCircuit
    from analyses._discovery.names import Edge
    from analyses._edges import Part

# Readable on light and on dark paper, as they stand in figures of either theme.
_UP, _DOWN, _PLAIN = "#d0633c", "#3f86c8", "#808790"
_FILL = {"head": "#2f6fae", "mlp": "#8a55a8", "input": "#5c6470", "logits": "#5c6470"}
_ROLES = ("#2f6fae", "#b5502a", "#2b8057", "#8a55a8", "#8a7000", "#b0386a", "#4a7a87", "#6b5fc0")
_DASH = {"q": "solid", "k": "dash", "v": "dot", "mlp": "solid", "logits": "solid"}
_WORDS = {"q": "into queries", "k": "into keys", "v": "into values", "mlp": "into MLPs and logits"}
# Thickness in steps: lines of one thickness and kind are one trace.
_WIDTHS = (0.8, 1.6, 2.8, 4.5)
_BENDS = 14  # points of a line
_ACROSS, _UPWARDS = 50, 52  # pixels between neighbours, and between rows
_SWEEPS = 6
_MOST_NAMED = 12  # edges of a node named when it is pointed at

Place = tuple[float, float]


def figure(circuit: "AnyCircuit") -> "go.Figure":
    """The graph of a circuit (of a node circuit: its nodes, by role)."""
    from analyses._discovery.circuit import Circuit

    if isinstance(circuit, Circuit):
        return _edges(circuit)
    return _nodes(circuit)


# ------------------------------------------------------------------ edges


def _edges(circuit: "Circuit") -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    places = layout([(str(e.sender), _end(e), _row(e.sender), _row(e.reader, circuit))
                     for e in circuit.ordered])  # fmt: skip
    largest = max((abs(score) for score in circuit.scores.values()), default=0.0)
    groups: dict[tuple[str, str, int], list[Edge]] = defaultdict(list)
    for edge in circuit.ordered:
        score = circuit.scores.get(edge)
        colour = _PLAIN if not score else _UP if score > 0 else _DOWN
        width = 1 if not score else _step(abs(score) / largest)
        groups[edge.receiver.kind, colour, width].append(edge)
    for (kind, colour, width), edges in sorted(groups.items(), key=lambda g: g[0][2]):
        xs: list[float | None] = []
        ys: list[float | None] = []
        for edge in edges:
            for x, y in _bent(places[str(edge.sender)], places[_end(edge)]):
                xs.append(round(x, 3))
                ys.append(round(y, 3))
            xs.append(None)
            ys.append(None)
        figure.add_scatter(
            x=xs,
            y=ys,
            mode="lines",
            line={"color": colour, "width": _WIDTHS[width], "dash": _DASH[kind]},
            opacity=0.6 + 0.13 * width,
            hoverinfo="skip",
            showlegend=False,
        )
    _edge_hovers(figure, circuit, places)
    _legend(figure, circuit)
    joined: dict[str, list[str]] = defaultdict(list)
    for edge in sorted(circuit.ordered, key=lambda e: -abs(circuit.scores.get(e, 0.0))):
        for end in (str(edge.sender), _end(edge)):
            joined[end].append(_told(circuit, edge))
    kinds = {end: _kind(end) for end in places}
    for kind, fill in _FILL.items():
        names = [end for end in places if kinds[end] == kind]
        _markers(figure, names, places, fill, {n: _hover(n, joined[n]) for n in names}, "")
    traces: Any = figure.data
    lines = [trace.x for trace in traces if trace.mode == "lines"]
    reached = [x for xs in lines for x in xs if x is not None]
    _frame(figure, places, reached)
    return figure


def _end(edge: "Edge") -> str:
    return "logits" if edge.reader is None else str(edge.reader)


def _kind(end: str) -> str:
    if end in ("input", "logits"):
        return end
    return "mlp" if end.endswith("mlp") else "head"


def _row(part: "Part | None", circuit: "Circuit | None" = None) -> int:
    """The row from below: two to a layer, its heads and its MLP."""
    if part is None:
        return 2 * circuit.shape.n_layers + 1 if circuit else 0
    if part.layer is None:
        return 0
    return 2 * part.layer + (2 if part.kind == "mlp" else 1)


def layout(edges: Sequence[tuple[str, str, int, int]]) -> dict[str, Place]:
    """Where the ends of edges stand: in units of neighbours, and rows from below.

    Each row is put in the order of the means of what its nodes are joined to, a few times up and
    down (Sugiyama et al. 1981), which leaves few crossings.

    Args:
        edges: names of both ends, and the row of each.
    """
    rows: dict[int, list[str]] = defaultdict(list)
    row_of: dict[str, int] = {"input": 0}
    near: dict[str, list[str]] = defaultdict(list)
    for sender, reader, low, high in edges:
        row_of |= {sender: low, reader: high}
        near[sender].append(reader)
        near[reader].append(sender)
    for name in sorted(row_of, key=_natural):
        rows[row_of[name]].append(name)
    # Rows without a node take no room.
    level = {row: place for place, row in enumerate(sorted(rows))}
    x: dict[str, float] = {}
    for row, names in rows.items():
        x |= _spread(names, dict.fromkeys(names, 0.0), row)
    for sweep in range(_SWEEPS):
        for row in sorted(rows, reverse=bool(sweep % 2)):
            names = rows[row]
            middle = {
                n: sum(x[other] for other in near[n]) / len(near[n]) if near[n] else 0.0
                for n in names
            }
            names.sort(key=lambda n: (middle[n], _natural(n)))
            x |= _spread(names, middle, row)
    return {name: (x[name], float(level[row])) for name, row in row_of.items()}


def _spread(names: Sequence[str], wanted: Mapping[str, float], row: int) -> dict[str, float]:
    """Places a unit apart, in this order, around the mean of where they would like to be."""
    centre = sum(wanted[name] for name in names) / len(names)
    if len(names) == 1:
        # What stands alone row after row would stand on the lines between the others.
        centre = 0.6 * centre + (0.0, 1.3, -1.3)[row // 2 % 3] * (row > 0)
    else:
        centre *= 0.5
    return {n: centre + i - (len(names) - 1) / 2 for i, n in enumerate(names)}


def _natural(name: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 99 for part in name.split("."))


def _bent(start: Place, end: Place) -> list[Place]:
    """A line that leaves upwards and arrives from below (a cubic Bézier curve)."""
    (x0, y0), (x1, y1) = start, end
    pull = max(0.5, 0.45 * (y1 - y0))
    # Long lines between nodes that stand above each other go round those between.
    aside = 0.55 * math.log2(1 + y1 - y0) if abs(x1 - x0) < 0.3 and y1 - y0 > 1.5 else 0.0
    found = []
    for i in range(_BENDS + 1):
        t = i / _BENDS
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        found.append(
            (
                a * x0 + b * (x0 + aside) + c * (x1 + aside) + d * x1,
                a * y0 + b * (y0 + pull) + c * (y1 - pull) + d * y1,
            )
        )
    return found


def _step(share: float) -> int:
    return min(len(_WIDTHS) - 1, int(share**0.5 * len(_WIDTHS)))


def _told(circuit: "Circuit", edge: "Edge") -> str:
    score = circuit.scores.get(edge)
    return f"{edge}" + ("" if score is None else f": {score:+.4g}")


def _hover(name: str, edges: Sequence[str]) -> str:
    lines = [f"<b>{report.plotly_text(name)}</b>", count(len(edges), "edge")]
    lines += [report.plotly_text(edge) for edge in edges[:_MOST_NAMED]]
    lines += ["..."] if len(edges) > _MOST_NAMED else []
    return "<br>".join(lines)


def _edge_hovers(figure: "go.Figure", circuit: "Circuit", places: Mapping[str, Place]) -> None:
    """Points on the lines to rest the pointer on, which are not seen."""
    xs, ys, texts = [], [], []
    for edge in circuit.ordered:
        line = _bent(places[str(edge.sender)], places[_end(edge)])
        for place in (_BENDS // 4, _BENDS // 2, 3 * _BENDS // 4):
            xs.append(round(line[place][0], 3))
            ys.append(round(line[place][1], 3))
            texts.append(report.plotly_text(_told(circuit, edge)))
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="markers",
        marker={"size": 9, "opacity": 0},
        text=texts,
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )


def _legend(figure: "go.Figure", circuit: "Circuit") -> None:
    kinds = {edge.receiver.kind for edge in circuit.edges}
    for kind, words in _WORDS.items():
        if kind in kinds or (kind == "mlp" and "logits" in kinds):
            figure.add_scatter(
                x=[None], y=[None], mode="lines", name=words,
                line={"color": _PLAIN, "width": 2, "dash": _DASH.get(kind, "solid")},
            )  # fmt: skip
    for colour, sign, words in (
        (_UP, 1, "score above 0"),
        (_DOWN, -1, "score below 0"),
    ):
        if any(score * sign > 0 for score in circuit.scores.values()):
            figure.add_scatter(
                x=[None], y=[None], mode="lines", name=words, line={"color": colour, "width": 4}
            )


# ------------------------------------------------------------------ nodes


def _nodes(circuit: "NodeCircuit") -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    rows: dict[int, list[Part]] = defaultdict(list)
    for part in circuit.parts:
        rows[_row(part)].append(part)
    places: dict[str, Place] = {}
    for level, (_, parts) in enumerate(sorted(rows.items()), start=1):
        for i, part in enumerate(parts):
            places[str(part)] = (i - (len(parts) - 1) / 2, float(level))
    places |= {"input": (0.0, 0.0), "logits": (0.0, float(len(rows) + 1))}
    by_part: dict[str, list[str]] = defaultdict(list)
    role_of: dict[str, str] = {}
    for node in circuit.ordered:
        name, role = str(node.part), circuit.roles.get(node, "")
        role_of.setdefault(name, role)
        score = circuit.scores.get(node)
        where = "all positions" if node.pos is None else f"at {node.pos}"
        told = f"{where}{f', {role}' if role else ''}"
        by_part[name].append(told + ("" if score is None else f": {score:+.4g}"))
    # Those of a role have its colour, the others that of their kind.
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    named = [role for role in dict.fromkeys(role_of.values()) if role]
    for name, role in role_of.items():
        fill = _ROLES[named.index(role) % len(_ROLES)] if role else _FILL[_kind(name)]
        groups[role, fill].append(name)
    for (role, fill), names in groups.items():
        hovers = {
            name: "<br>".join([f"<b>{name}</b>", *map(report.plotly_text, by_part[name])])
            for name in names
        }
        _markers(figure, names, places, fill, hovers, report.plotly_text(role))
    for end in ("input", "logits"):
        _markers(figure, [end], places, _FILL[end], {end: end}, "")
    _frame(figure, places)
    return figure


# ------------------------------------------------------------------ both


def _markers(
    figure: "go.Figure",
    names: Sequence[str],
    places: Mapping[str, Place],
    fill: str,
    hovers: Mapping[str, str],
    legend: str,
) -> None:
    if not names:
        return
    figure.add_scatter(
        x=[places[name][0] for name in names],
        y=[places[name][1] for name in names],
        mode="markers+text",
        marker={
            "symbol": "square",
            "size": [34 if len(name) < 6 else 38 for name in names],
            "color": fill,
            "line": {"width": 0},
            "opacity": 1,
        },
        text=[name.replace(".mlp", " mlp" if len(name) < 6 else "<br>mlp") for name in names],
        textfont={"color": "#ffffff", "size": 10},
        customdata=[hovers[name] for name in names],
        hovertemplate="%{customdata}<extra></extra>",
        name=legend,
        showlegend=bool(legend),
    )


def _frame(figure: "go.Figure", places: Mapping[str, Place], reached: Sequence[float] = ()) -> None:
    """Room for all nodes, and for lines that reach further to the sides."""
    xs = [*(x for x, _ in places.values()), *reached] or [0.0]
    ys = [y for _, y in places.values()] or [0.0]
    wide, high = max(xs) - min(xs), max(ys) - min(ys)
    room: dict[str, Any] = {"showgrid": False, "showticklabels": False, "zeroline": False}
    figure.update_layout(
        template=report.template(),
        width=max(760, round(_ACROSS * (wide + 2))),
        height=max(320, round(_UPWARDS * (high + 2.2) + 60)),
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={**room, "range": [min(xs) - 1, max(xs) + 1]},
        yaxis={**room, "range": [min(ys) - 0.9, max(ys) + 0.9]},
        legend={"orientation": "h", "y": -0.02, "yanchor": "top"},
        hovermode="closest",
    )
