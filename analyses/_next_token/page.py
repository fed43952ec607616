"""The page of predictions, branches and surprisal."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING

from analyses import cli, report
from analyses._next_token.result import NextToken, PromptsResult
from analyses._next_token.surprisal import Surprisal
from analyses._next_token.tree import Branches
from analyses._views import next_token as views
from analyses._views.sources import add_rest, table_of
from analyses._views.words import bos_note, count

if TYPE_CHECKING:
    import pandas as pd

# In files: the key in JSON, the column `table` in CSV, the name of the table in a page.
KINDS: dict[type[PromptsResult], str] = {
    NextToken: "next_token",
    Branches: "branches",
    Surprisal: "surprisal",
}
_MOST_PROMPTS = 20
# More tokens of a text have no bars: they would be slow to draw and unread.
_MOST_BARS = 600
_MOST_SURPRISING = 15

Named = Sequence[tuple[str, Sequence[PromptsResult]]]


def table(named: Named) -> "pd.DataFrame":
    """What the command writes: the tables of all results under one another, with columns `source`
    and `table`. What a table does not have is empty."""
    frames = []
    for source, found in named:
        for result in found:
            frame = result.to_frame()
            frame.insert(0, "table", KINDS[type(result)])
            frames.append((source, frame))
    return cli.by_source(frames)


def page(named: Named) -> report.Page:
    """A page of results, each group with a name (of a file, say), or "" for none."""
    first = named[0][1][0]
    page = report.Page(
        f"Next token: {first.provenance.model}",
        "What comes next, and how surprised the model was. Blanks are shown as ·, line ends as ⏎. "
        "Logarithms are natural (nats); divided by ln 2 they are bits.",
    )
    for name, found in named:
        n = len(found[0].tokens)

        def add(batch: int, name: str = name, found: Sequence[PromptsResult] = found) -> None:
            _add_prompt(page, name, found, batch)

        for batch in range(min(n, _MOST_PROMPTS)):
            add(batch)
        if n > _MOST_PROMPTS:
            page.heading("More prompts")

        def add_tables(
            batch: int, name: str = name, found: Sequence[PromptsResult] = found
        ) -> None:
            _add_prompt(page, name, found, batch, figures=False)

        add_rest(page, _MOST_PROMPTS, n, "prompts", add_tables)
    page.heading("Numbers")
    for kind, label in KINDS.items():
        of_kind = [(name, one) for name, found in named for one in found if type(one) is kind]
        if of_kind:
            page.data(label, table_of(of_kind))
    page.provenance(first.provenance)
    return page


def notebook(result: PromptsResult) -> str:
    """A result in a notebook: without figures, whose script would be 5 MB in each cell."""
    page = report.Page("Next token")
    n = len(result.tokens)
    for batch in range(min(n, _MOST_PROMPTS)):
        _add_prompt(page, "", [result], batch, figures=False)
    if n > _MOST_PROMPTS:
        page.text(f"And {n - _MOST_PROMPTS} more, which to_frame() has.")
    return page.frame(420, bare=True)


def _add_prompt(
    page: report.Page,
    name: str,
    found: Sequence[PromptsResult],
    batch: int,
    figures: bool = True,
) -> None:
    first = found[0]
    ids = first.tokens[batch]
    page.heading((name or "Prompt") + (f", {batch}" if len(first.tokens) > 1 else ""))
    if not isinstance(first, Surprisal):  # that shows them in colours
        page.tokens([views.token(first, id) for id in ids], first.prepend_bos is True)
    page.text(f"{count(len(ids), 'token')}, {bos_note(first.prepend_bos)}.")
    for result in found:
        if isinstance(result, NextToken):
            _add_next(page, result, batch, figures)
        elif isinstance(result, Branches):
            _add_tree(page, result, figures)
        elif isinstance(result, Surprisal):
            _add_surprisal(page, result, batch, figures)


def _add_next(page: report.Page, result: NextToken, batch: int, figures: bool) -> None:
    at = views.at_temperature(result.temperature)
    page.subheading(f"Next token {views.after(result, batch)}{at}")
    together = float(result.top_probs[batch].sum())
    page.text(
        f"Entropy {views.nats_and_bits(float(result.entropy[batch]))}. The "
        f"{count(result.top_tokens.shape[1], 'token')} shown have {together:.3f} of the "
        "probability together."
    )
    if figures:
        page.figure(result.plot(batch), f"The likeliest next tokens{at}. Hover for more.")
    with _below_figure(page, "As a table", figures):
        _add_columns(page, *views.next_columns(result, batch))
    if result.continuations:
        page.subheading(f"Continuations{at}")
        page.text(
            "Text is tokenised on its own, and refused where it would be tokenised otherwise "
            "together with the prompt. log p of the whole is the sum over its tokens, each after "
            "the prompt and the tokens before it; rank: how many tokens are likelier there."
        )
        _add_columns(page, *views.continuation_columns(result, batch))


def _add_tree(page: report.Page, tree: Branches, figures: bool) -> None:
    at = views.at_temperature(tree.temperature)
    page.subheading(f"Branches {views.after(tree, 0)}{at}")
    page.text(views.mass(tree))
    if figures:
        page.figure(
            tree.plot(),
            "The number at a token is its own probability there; a line is as wide as the whole "
            "branch up to it is probable. The likeliest way on goes straight. Hover for more.",
        )
    with _below_figure(page, f"As a table ({count(len(tree), 'node')})", figures):
        page.table(
            ["token", "p", "p of the branch", "log p of the branch"],
            [
                [
                    "   " * (row["level"] - 1)
                    + views.token(tree, row["token_id"])
                    + (" (end of text)" if row["ended"] else ""),
                    report.Shaded(cli.probability(row["prob"]), row["prob"]),
                    report.Shaded(cli.probability(row["total_prob"]), row["total_prob"]),
                    f"{row['total_log_prob']:.3f}",
                ]
                for row in tree.rows()
            ],
        )


def _add_surprisal(page: report.Page, result: Surprisal, batch: int, figures: bool) -> None:
    page.subheading("Surprisal")
    rows = [row for row in result.rows() if row["batch"] == batch]
    limit = max((r["surprisal"] for r in rows if math.isfinite(r["surprisal"])), default=1.0) or 1.0
    note = result.note()
    page.text(f"{views.totals(result, batch)}. {note[0].upper()}{note[1:]}.")
    _add_shaded(page, result, batch, rows, limit)
    page.text(
        f"The stronger the colour, the more surprising; full colour is {limit:.3g} nats. Hover for "
        "rank, entropy and what was expected instead."
    )
    if figures and len(rows) > _MOST_BARS:
        page.text(f"More than {_MOST_BARS} tokens have no bars; plot() draws them.")
    elif figures:
        page.figure(
            result.plot(batch),
            "Surprisal of each token. Where a bar stands above the line, the token was more "
            "surprising than the prediction before it let one expect.",
        )
    scored = [row for row in rows if row["rank"] is not None]
    listed = sorted(scored, key=lambda row: -row["surprisal"])[:_MOST_SURPRISING]
    with page.folded(f"The {count(len(listed), 'most surprising token')}"):
        _add_columns(page, *views.surprisal_columns(listed, limit))


def _add_shaded(
    page: report.Page, result: Surprisal, batch: int, rows: Sequence[dict], limit: float
) -> None:
    """Tokens, each on a background for its surprisal, with everything about it on hovering."""
    shaded = [
        report.Shaded(
            cli.visible(row["token"]),
            math.nan if row["rank"] is None else row["surprisal"] / limit,
            note.split("\n", 1)[1],  # the page names the token itself
        )
        for row, note in zip(rows, views.notes(result, batch), strict=True)
    ]
    page.tokens(shaded, result.prepend_bos is True)


def _below_figure(page: report.Page, summary: str, figures: bool) -> AbstractContextManager[None]:
    """Tables are folded away where a figure shows the same."""
    return page.folded(summary) if figures else nullcontext()


def _add_columns(
    page: report.Page, labels: Sequence[cli.Column], others: Sequence[cli.Column]
) -> None:
    columns = list(chain(labels, others))
    page.table(
        [column.header for column in columns],
        [
            [c.text if c.shade is None else report.Shaded(c.text, c.shade) for c in row]
            for row in zip(*(column.cells for column in columns), strict=True)
        ],
    )
