"""The page of attention results: maps of all heads, the steps of one, the strongest links."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from analyses import cli, report
from analyses._attention.matrices import MATRICES
from analyses._page.tables import MOST_ROWS
from analyses._views import attention as views

if TYPE_CHECKING:
    from analyses._attention.maps import AttentionMaps
    from analyses._attention.result import AttentionDifference, AttentionPatterns
    from analyses._heads.names import Head

    Result = AttentionPatterns | AttentionDifference

# Kinds of maps, the most important first: where a page cannot hold all, the last are left out.
_MAPS = ("pattern", "output_weighted", "value_weighted", "raw_scores", "scaled_scores")
# So many numbers of maps are kept with a notebook.
_NOTEBOOK_BUDGET = 2**18
# Links per head in the table to download.
_MOST_LINKS = 20
# A table of steps with more keys than this is not followed any more.
_MOST_STEPS = 24
_MOST_MASKED = 2


def page(
    results: "Sequence[tuple[str, Result]]",
    *,
    matrix: str = "pattern",
    top_k: int = 3,
    skip_first: bool = True,
) -> report.Page:
    """A page of one or several results, each with a name (of a file, say), or "" for none.

    Args:
        results: names and results.
        matrix: what the table of links is of, and the maps show at first.
        top_k: how many links per head.
        skip_first: leave links to position 0 out of the table.
    """
    first = results[0][1]
    page = report.Page(
        f"Attention: {first.provenance.model}",
        "Where every head looks. A row of a map is a query, a column a key; a query attends to "
        "itself and to what is before it. Heads are written layer.head. Blanks are shown as ·, "
        "line ends as ⏎.",
    )
    for name, result in results:
        page.heading(name or ("Two prompts" if result.signed else "Prompt"))
        _add_prompts(page, result)
        shown, query = _worth_seeing(result)
        kinds = sorted(_MAPS, key=lambda name: name != matrix)  # the one asked for first
        maps = _maps(result, kinds, shown, query)
        page.head_maps(maps, side_by_side=True, budget=report.BUDGET // len(results))
        _add_steps(page, result, shown, query)
        _add_links(page, result, matrix, top_k, skip_first)
        _add_data(page, result, name, skip_first)
    second = views.second_reader(first)
    page.provenance(first.provenance, **({} if second is None else {"second_prompt": second}))
    return page


def _worth_seeing(result: "AttentionMaps") -> "tuple[Head, int]":
    """A head and a query to begin with: where most goes to a second key besides the strongest, the
    first token left out, so that there is something to compare; in a difference, where most goes
    elsewhere. Of the second half of the prompt, as early queries have little choice."""
    half = len(result.positions) // 2
    values = result.matrix("pattern").abs().masked_fill(~result.shown, 0.0)[:, half:]
    if result.positions[0] == 0:
        values[:, :, 0] = 0.0
    rank = 1 if result.signed else 2
    found = values.nan_to_num(0.0).topk(min(rank, len(result.positions))).values[..., -1]
    head, query = divmod(int(found.argmax()), found.shape[1])
    return result.heads[head], result.positions[half + query]


def _add_prompts(page: report.Page, result: "Result") -> None:
    for note, prompt in views.prompts(result):
        page.tokens([cli.visible(one) for one in prompt.str_tokens], prompt.prepend_bos is True)
        note += "."
        if prompt.hooked:
            note += (
                f" Functions listened at {', '.join(prompt.hooked)}: all numbers are of the run "
                "with them."
            )
        page.text(note)
    if len(result.positions) < result.n_tokens:
        page.text(
            f"Queries and keys: positions {', '.join(map(str, result.positions))} only. What a "
            "query gives to the others is not shown, so a row of a pattern may add up to less "
            "than 1."
        )


def notebook(result: "AttentionMaps") -> str:
    """The heads' maps alone, for a notebook. It asks no network for anything, so plotly's script is
    in it (5 MB); of long prompts the maps are pooled to a few MB more."""
    page = report.Page(f"Attention: {result.provenance.model}")
    page.head_maps(_maps(result, _MAPS[:2], *_worth_seeing(result)), budget=_NOTEBOOK_BUDGET)
    return page.frame(620, bare=True)


def _maps(
    result: "AttentionMaps", names: Sequence[str], shown: "Head", query: int
) -> report.HeadMaps:
    kinds = []
    for name in names:
        kind = MATRICES[name]
        limit = None
        if name == "pattern":
            limit = 1.0
            if result.signed:
                limit = float(result.matrix(name).abs().nan_to_num(0.0).max()) or 1.0
        kinds.append(
            report.MapKind(
                kind.title,
                partial(result.matrix, name),
                explanation=_explained(result, name),
                limit=limit,
                signed=kind.signed or result.signed,
                causal=kind.causal,
                column=name,
            )
        )
    notes = {
        (head.layer, head.head): f"{100 * share:.0f} % rests on the first token"
        for head, share in zip(result.heads, views.rest(result), strict=True)
        if share is not None
    }
    return report.HeadMaps(
        heads=[(head.layer, head.head) for head in result.heads],
        tokens=views.token_labels(result),
        kinds=kinds,
        positions=result.positions,
        token_columns={
            prefix: [tokens[position] for position in result.positions]
            for prefix, tokens in result.token_columns().items()
        },
        notes=notes,
        chosen=(shown.layer, shown.head),
        query=result.slot(query),
    )


def _explained(result: "AttentionMaps", name: str) -> str:
    text = MATRICES[name].explanation
    text = text[0].upper() + text[1:] + "."
    if result.signed:
        return f"First prompt minus second. {text}"
    if name == "pattern" and len(result.positions) == result.n_tokens:
        return f"{text[:-1]}; a row adds up to 1."
    return text


# ------------------------------------------------------------------ the steps


def _add_steps(page: report.Page, result: "Result", head: "Head", query: int) -> None:
    from analyses._attention.result import AttentionPatterns

    if not isinstance(result, AttentionPatterns):
        return
    steps = result.steps(head, query)
    rows, note = _worth_following(steps, query)
    scale = float(result.scale[result.index(head)])
    at = result.label(result.slot(query))
    page.subheading(f"Step by step: head {head} at query {at}")
    page.text(
        "The product of the query with each key; times "
        f"the scale of the head, {scale:.4g}; -∞ (masked) where the key is after the query; e to "
        "the power of the difference to the largest of the row (exp); its share of the sum of all "
        "exp (softmax). What a share moves is as long as the key's value vector v, and in the "
        f"residual stream as long as v W_O. {_worked_out(steps, scale)} {note} "
        "Of another head or query: result.steps(head, query)."
    )
    # What would show in four digits.
    altered = bool(((steps["pattern"] - steps["softmax"]).abs() > 5e-5).any())
    if result.run_scores is not None:
        page.text(
            "The masked scores are the run's own: a function listened at them, or the run computed "
            "in low precision, so they may differ from the products times the scale."
        )
    headers = ["key", "q·k", f"× {scale:.4g}", "masked", "exp", "softmax"]
    if altered:
        headers.append("pattern used")
    headers += ["‖v‖", "pattern × ‖v‖", "‖v W_O‖", "pattern × ‖v W_O‖"]
    table = []
    largest = {
        name: max(map(abs, steps[name].tolist())) or 1.0
        for name in ("value_weighted", "output_weighted")
    }
    for row in rows.to_dict("records"):
        table.append(_step_cells(row, largest, altered))
    page.table(headers, table)


def _worked_out(steps: Any, scale: float) -> str:
    """The key with the largest share, in numbers."""
    row = steps.loc[steps["softmax"].idxmax()]
    return (
        f"For key {row['key']} {cli.visible(row['token'])}: {row['q_dot_k']:.2f} × {scale:.4g} = "
        f"{row['scaled']:.3f}, in exp {row['exp']:.4f}; all exp add up to "
        f"{row['exp'] / row['softmax']:.4f}; {row['exp']:.4f} / {row['exp'] / row['softmax']:.4f} "
        f"= {row['softmax']:.4f}; {row['pattern']:.4f} × {row['output_norm']:.2f} = "
        f"{row['output_weighted']:.3f}."
    )


def _step_cells(
    row: dict[str, Any], largest: dict[str, float], altered: bool
) -> list[str | report.Shaded]:
    def shaded(name: str, text: str, limit: float = 1.0) -> report.Shaded:
        return report.Shaded(text, abs(row[name]) / limit)

    cells: list[str | report.Shaded] = [
        f"{row['key']} {cli.visible(row['token'])}",
        f"{row['q_dot_k']:.2f}",
        f"{row['scaled']:.3f}",
        "-∞" if row["masked"] == -math.inf else f"{row['masked']:.3f}",
        f"{row['exp']:.4f}",
        shaded("softmax", f"{row['softmax']:.4f}"),
    ]
    if altered:
        cells.append(shaded("pattern", f"{row['pattern']:.4f}"))
    cells.append(f"{row['value_norm']:.2f}")
    cells.append(
        shaded("value_weighted", f"{row['value_weighted']:.3f}", largest["value_weighted"])
    )
    cells.append(f"{row['output_norm']:.2f}")
    text = f"{row['output_weighted']:.3f}"
    cells.append(shaded("output_weighted", text, largest["output_weighted"]))
    return cells


def _worth_following(steps: Any, query: int) -> tuple[Any, str]:
    """The rows to show, and a sentence that says what was left out."""
    before, after = steps[steps["key"] <= query], steps[steps["key"] > query]
    masked = after.head(_MOST_MASKED)
    notes = []
    if len(before) > _MOST_STEPS:
        notes.append(
            f"Of {len(before)} keys up to the query the {_MOST_STEPS} with the largest share."
        )
        before = before.sort_values("pattern", ascending=False).head(_MOST_STEPS).sort_index()
    if len(after) > len(masked):
        notes.append(
            f"Of {len(after)} keys after the query the first {len(masked)}, the others being "
            "masked alike."
        )
    import pandas as pd

    return pd.concat([before, masked]), " ".join(notes)


# ------------------------------------------------------------------ the links


def _add_links(
    page: report.Page, result: "AttentionMaps", matrix: str, top_k: int, skip_first: bool
) -> None:
    page.subheading("Strongest links")
    note = views.links_note(result, matrix, skip_first=skip_first)
    page.text(note[0].upper() + note[1:] + ". A click on a head opens it above.")
    found = views.links(result, top_k, matrix, skip_first)
    signed = result.signed or MATRICES[matrix].signed
    table = []
    for index, (head, links) in enumerate(zip(result.heads, found.rows, strict=True)):
        row = [report.Shaded(str(head), math.nan, opens=str(head))]
        row += [report.Shaded(f"{share:.2f}", share) for share in found.rest[index : index + 1]]
        for link in links:
            number = link[matrix]
            sign = (1 if number > 0 else -1) if signed else 0
            text = views.link_text(link, matrix, result)
            row.append(report.Shaded(text, abs(number) / found.limit, sign=sign))
        table.append(row)
    ranks = [f"rank {rank}" for rank in range(max(map(len, found.rows)))]
    page.table(["head", *["rest"][: len(found.rest)], *ranks], table)


def _add_data(page: report.Page, result: "AttentionMaps", name: str, skip_first: bool) -> None:
    """The tables that can be downloaded from the page."""
    prefix = f"{name} " if name else ""
    page.data(f"{prefix}links", result.links(_MOST_LINKS, skip_first=skip_first))
    n = len(result.positions)
    n_rows = len(result.heads) * n * (n + 1) // 2
    if n_rows <= MOST_ROWS:
        page.data(f"{prefix}attention", result.to_frame())
    else:
        page.text(
            f"All numbers are {n_rows:,} rows, of which a page carries at most "
            f"{MOST_ROWS:,}: --csv writes them, and to_frame() has them."
        )
