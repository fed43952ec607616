"""How predictions, branches and surprisal look: their words, and tables for the terminal.

Figures are in `analyses._next_token.figures`, the page is in `analyses._next_token.page`. None of
it computes anything about the model.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from analyses import cli
from analyses._views.words import bos_note, count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from analyses._next_token.result import NextToken, PromptsResult
    from analyses._next_token.session import Session
    from analyses._next_token.surprisal import Surprisal
    from analyses._next_token.tree import Branches

# More tokens of a text are not listed in the terminal: the most surprising are.
_MOST_LISTED = 60
_LISTED = 30
# So much of a growing text is shown at each step.
_TAIL = 500


def token(result: "PromptsResult", id: int, width: int | None = None) -> str:
    """A token for reading."""
    text = cli.visible(result.strings[id])
    return text if width is None else cli.shorten(text, width)


def spelled(tokens: Sequence[str]) -> str:
    """Several tokens for reading, a blank between two."""
    return " ".join(cli.visible(token) or "∅" for token in tokens)


def nats_and_bits(nats: float) -> str:
    """A number of nats, with bits."""
    return f"{nats:.3f} nats ({nats / math.log(2):.3f} bits)"


def at_temperature(temperature: float) -> str:
    """A note on the temperature where it is not 1."""
    return "" if temperature == 1 else f" at temperature {temperature:g}"


def after(result: "PromptsResult", batch: int) -> str:
    """Where a prediction is made."""
    ids = result.tokens[batch]
    return f"after position {len(ids) - 1} {token(result, ids[-1])}"


def totals(result: "Surprisal", batch: int) -> str:
    """The surprisal of a whole text, in a line."""
    scored, total = int(result.scored[batch]), float(result.total[batch])
    return (
        f"{count(scored, 'token')} scored: {nats_and_bits(total)} in all, "
        f"{float(result.mean[batch]):.3f} nats per token, perplexity "
        f"{float(result.perplexity[batch]):.4g}"
    )


def mass(tree: "Branches") -> str:
    """How much of all probability is in a tree, in words."""
    shares = ", ".join(f"{share:.3f}" for share in tree.mass.tolist())
    tokens = "1 token" if tree.depth == 1 else f"1 to {tree.depth} tokens"
    text = f"Of the probability of all continuations of {tokens} these branches have {shares}."
    if tree.left_out:
        text += (
            f" {count(len(tree), 'node')} shown, {tree.left_out} more left out that are less "
            f"probable than {tree.min_prob:g}"
            + (" or than these." if len(tree) == tree.max_nodes else ".")
        )
    return text


def notes(result: "Surprisal", batch: int) -> list[str]:
    """Everything about each token of a text, in lines of plain text."""
    rows = [row for row in result.rows() if row["batch"] == batch]
    found = []
    for row in rows:
        where = f"position {row['position']}: {cli.visible(row['token'])}"
        if row["rank"] is None:
            found.append(f"{where}\nno surprisal: nothing was before it")
            continue
        expected = ", ".join(
            f"{token(result, id)} {cli.probability(math.exp(p))}"
            for id, p in zip(
                result.expected_tokens[batch, row["position"]].tolist(),
                result.expected_log_probs[batch, row["position"]].tolist(),
                strict=True,
            )
        )
        seen = ""
        if result.stride is not None and row["context"] < row["position"]:
            seen = f"\npredicted from {row['context']} tokens"
        found.append(
            f"{where}\nsurprisal {nats_and_bits(row['surprisal'])}, probability "
            f"{row['prob']:.4g}\nrank {row['rank']}, entropy {row['entropy']:.3f} nats\n"
            f"expected: {expected}{seen}"
        )
    return found


# ------------------------------------------------------------------ the terminal


def show(found: "Sequence[PromptsResult]", console: "Console") -> None:
    """Print the results about one or several prompts."""
    from analyses._next_token.result import NextToken
    from analyses._next_token.surprisal import Surprisal
    from analyses._next_token.tree import Branches

    first = found[0]
    option = "--no-prepend-bos leaves it out" if first.prepend_bos else "--prepend-bos adds it"
    note = bos_note(first.prepend_bos) + ("" if first.prepend_bos is None else f"; {option}")
    for batch, ids in enumerate(first.tokens):
        console.print(f"{count(len(ids), 'token')} ({note}):", style="dim")
        console.print(" ".join(token(first, id) for id in ids))
        for result in found:
            console.print()
            if isinstance(result, NextToken):
                show_next(result, console, batch)
            elif isinstance(result, Branches):
                show_tree(result, console)
            elif isinstance(result, Surprisal):
                show_surprisal(result, console, batch)


def show_next(
    result: "NextToken", console: "Console", batch: int = 0, *, scale: bool = True
) -> None:
    """Print the likeliest next tokens of a prompt, and its continuations; `scale`: also what
    colours mean."""
    at = at_temperature(result.temperature)
    together = float(result.top_probs[batch].sum())
    console.print(
        f"next token {after(result, batch)}{at}; entropy "
        f"{nats_and_bits(float(result.entropy[batch]))}; log p in nats"
    )
    cli.print_table(console, *next_columns(result, batch), "columns")
    console.print(f"together {together:.3f}", style="dim")
    if result.continuations:
        console.print()
        console.print(f"continuations{at}, each tokenised on its own; log p in nats")
        cli.print_table(console, *continuation_columns(result, batch), "columns")
    if scale:
        cli.print_scale(console, "probability")


def next_columns(result: "NextToken", batch: int) -> tuple[list[cli.Column], list[cli.Column]]:
    """The likeliest next tokens as columns: labels, and the others."""
    probs = result.top_probs[batch].tolist()
    ids = result.top_tokens[batch].tolist()
    return [
        right("rank", [cli.Cell(str(rank)) for rank in range(len(ids))]),
        cli.Column("token", [cli.Cell(token(result, id, 40)) for id in ids]),
    ], [
        right("p", [cli.Cell(cli.probability(p), p) for p in probs]),
        right("log p", _cells(result.top_log_probs[batch], ".3f")),
        right("bits", _cells(-result.top_log_probs[batch] / math.log(2), "z.3f")),
        right("logit", _cells(result.top_logits[batch], ".3f")),
    ]


def continuation_columns(
    result: "NextToken", batch: int
) -> tuple[list[cli.Column], list[cli.Column]]:
    """Continuations as columns: labels, and the others."""
    totals = result.total_log_probs[batch].tolist()
    probs = result.total_probs[batch].tolist()
    lengths = [len(one.ids) for one in result.continuations]
    per_token = [
        row[:n]
        for row, n in zip(result.continuation_log_probs[batch].tolist(), lengths, strict=True)
    ]
    ranks = [
        row[:n] for row, n in zip(result.continuation_ranks[batch].tolist(), lengths, strict=True)
    ]
    names = [spelled(one.str_tokens) for one in result.continuations]
    return [cli.Column("continuation", [cli.Cell(cli.shorten(name, 40)) for name in names])], [
        right("p", [cli.Cell(cli.probability(p), p) for p in probs]),
        right("log p", [cli.Cell(f"{total:.3f}") for total in totals]),
        right("bits", [cli.Cell(f"{-total / math.log(2):z.3f}") for total in totals]),
        cli.Column("rank of each", [cli.Cell(" ".join(map(str, row))) for row in ranks]),
        cli.Column(
            "log p of each", [cli.Cell(" ".join(f"{p:.3f}" for p in row)) for row in per_token]
        ),
    ]


def show_tree(tree: "Branches", console: "Console") -> None:
    """Print a tree: the probability of each token, and of the branch up to it."""
    from rich.text import Text
    from rich.tree import Tree

    console.print(
        f"branches {after(tree, 0)}{at_temperature(tree.temperature)}: the probability of each "
        f"token, and of the branch up to it"
    )
    console.print()
    top = Tree(Text(f"…{token(tree, tree.tokens[0][-1])}"), guide_style="dim")
    grown: dict[int, Tree] = {-1: top}
    for row in tree.rows():
        label = Text.assemble(
            cli.shaded(cli.probability(row["prob"]), row["prob"]),
            f" {token(tree, row['token_id'])}",
            (f"  {cli.probability(row['total_prob'])}" * (row["level"] > 1), "dim"),
            ("  end of text" * row["ended"], "dim"),
        )
        grown[row["node"]] = grown[row["parent"]].add(label)
    console.print(top)
    console.print()
    console.print(mass(tree), style="dim")


def show_surprisal(result: "Surprisal", console: "Console", batch: int = 0) -> None:
    """Print how surprising each token of a text was."""
    ids = result.tokens[batch]
    rows = [row for row in result.rows() if row["batch"] == batch]
    finite = [row["surprisal"] for row in rows if math.isfinite(row["surprisal"])]
    limit = max(finite, default=1.0) or 1.0
    console.print(f"surprisal in the model's own distribution; {result.note()}")
    console.print(totals(result, batch))
    if console.is_terminal and console.color_system is not None:
        console.print()
        for line in _coloured(result, rows, limit, console.width):
            console.print(line)
        console.print(f"full colour: {limit:.2f} nats", style="dim")
    listed = rows
    if len(rows) > _MOST_LISTED:
        listed = sorted(
            (row for row in rows if row["rank"] is not None), key=lambda row: -row["surprisal"]
        )[:_LISTED]
        console.print(f"of {len(ids)} tokens the {len(listed)} most surprising", style="dim")
    cli.print_table(console, *surprisal_columns(listed, limit), "columns")


def surprisal_columns(
    rows: Sequence[dict[str, Any]], limit: float
) -> tuple[list[cli.Column], list[cli.Column]]:
    """Tokens of a text as columns: labels, and the others."""

    def column(header: str, text: Callable[[dict[str, Any]], str]) -> cli.Column:
        return right(header, [cli.Cell("" if r["rank"] is None else text(r)) for r in rows])

    nats = [
        cli.Cell("none")
        if row["rank"] is None
        else cli.Cell(f"{row['surprisal']:.3f}", row["surprisal"] / limit)
        for row in rows
    ]
    expected = [
        ""
        if row["rank"] is None
        else f"{cli.probability(row['expected_prob'])} "
        f"{cli.shorten(cli.visible(row['expected']), 24)}"
        for row in rows
    ]
    return [
        right("pos", [cli.Cell(str(row["position"])) for row in rows]),
        cli.Column("token", [cli.Cell(cli.shorten(cli.visible(r["token"]), 40)) for r in rows]),
    ], [
        right("nats", nats),
        column("bits", lambda row: f"{row['bits']:.3f}"),
        column("rank", lambda row: str(row["rank"])),
        column("entropy", lambda row: f"{row['entropy']:.3f}"),
        cli.Column("expected", [cli.Cell(text) for text in expected]),
    ]


def _coloured(
    result: "Surprisal", rows: Sequence[dict[str, Any]], limit: float, width: int
) -> "list[Text]":
    """Running text, each token on a background for its surprisal; no token broken."""
    from rich.cells import cell_len
    from rich.text import Text

    lines, left = [Text()], width
    for row in rows:
        text = cli.visible(row["token"])
        shade = None if row["rank"] is None else row["surprisal"] / limit
        if cell_len(text) > left and left < width:
            lines.append(Text())
            left = width
        lines[-1].append_text(cli.shaded(text, shade))
        left -= cell_len(text)
        if row["token"].endswith("\n"):
            lines.append(Text())
            left = width
    return lines


def show_state(session: "Session", console: "Console") -> None:
    """Print a text that grows, and what comes next."""
    text = session.text
    console.print()
    show_text(text if len(text) <= _TAIL else f"…{text[-_TAIL:]}", console)
    console.print()
    show_next(session.prediction(), console, scale=False)


def show_text(text: str, console: "Console") -> None:
    """Print a text as it is, but for what a terminal would obey."""
    console.print("\n".join(cli.printable_path(line) for line in text.split("\n")), soft_wrap=True)


def _cells(values: Any, form: str) -> list[cli.Cell]:
    return [cli.Cell(f"{value:{form}}") for value in values.tolist()]


def right(header: str, cells: Sequence[cli.Cell]) -> cli.Column:
    """A column of numbers, which end under one another."""
    wide = max((len(cell.text) for cell in cells), default=0)
    return cli.Column(
        header.rjust(wide),
        [cell._replace(text=cell.text.rjust(max(wide, len(header)))) for cell in cells],
    )
