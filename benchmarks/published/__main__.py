"""`python -m benchmarks.published`: the command line."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyses import cli
from benchmarks.published.facts import CHECKPOINTS, DATA, Published, published, sources

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.published.figures import Outcome
    from interp import HookedGPT2

# Layers and heads, by which a folder is told from another checkpoint's.
_SHAPES = {"gpt2": (12, 12), "distilgpt2": (6, 12), "gpt2-xl": (48, 25)}
_MINI = "mini"
# Prompts of IOI and of greater-than; the bundled model's record is of the smaller number.
N_PUBLISHED, N_OTHER = 320, 80


def main(
    model: cli.Model = None,
    as_: Annotated[
        str | None,
        typer.Option(
            "--as",
            help=f"Which published checkpoint the model is: {', '.join(CHECKPOINTS)}.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these figures: an id or a pattern such as 'ioi/*'; may be repeated.",
            metavar="ID",
            show_default=False,
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the figures and end.")] = False,
    n: Annotated[
        int | None,
        typer.Option(
            help="Prompts of IOI and of greater-than, at least 80; 320 for published checkpoints.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="A file with the text of the Main demo's cell 19.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            help="Facts for causal tracing: a JSON list of objects with prompt and subject.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write the bundled model's figures as its record.")
    ] = False,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """Published figures of GPT-2 against this package's: paper, ours, difference, verdict.

    Without --model every published checkpoint that can be reached is run. What cannot be run is
    listed with the reason. Exit status 1 if a verdict fails, 2 if no figure could be run.
    """
    inputs = [str(file) for file in (text, facts) if file is not None]
    cli.check_outputs(html=None, csv=csv, json=json_path, inputs=inputs)
    ids = chosen(only or [])
    if n is not None and n < N_OTHER:
        raise cli.CommandError(f"--n is {n}: expected at least {N_OTHER}")
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    if list_:
        _list(console, ids)
        return
    if record and (model != _MINI or only or n is not None or dtype != "float32"):
        raise cli.CommandError("--record goes with --model mini and no other choice")
    if as_ is not None and (model is None or as_ not in CHECKPOINTS):
        raise cli.CommandError(
            f"--as {as_!r} goes with --model, and is one of {', '.join(CHECKPOINTS)}"
        )
    supplied = _supplied(text, facts)
    found: list[tuple[str, Outcome]] = []
    for name, checkpoint in _models(model, as_):
        for outcome in _run(console, name, checkpoint, ids, n, supplied, record, device, dtype):
            found.append((name, outcome))
    if csv:
        cli.write_text(csv, cli.csv_text(_frame(found)))
    if json_path:
        cli.write_text(json_path, cli.json_text(cli.finite(_rows(found))))
    raise typer.Exit(_summary(console, [outcome for _, outcome in found]))


def chosen(only: Sequence[str]) -> list[str]:
    """Ids of figures, by id or pattern; all without any.

    Raises:
        CommandError: one that fits nothing; names the nearest id.
    """
    from hooks.names import nearest

    known = list(published())
    for pattern in only:
        if not fnmatch.filter(known, pattern):
            raise cli.CommandError(
                f"--only {pattern!r} fits no figure.{nearest(pattern, known)} --list names them"
            )
    return [id for id in known if not only or any(fnmatch.fnmatch(id, pattern) for pattern in only)]


def _supplied(text: Path | None, facts: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if text is not None:
        (prompt,) = cli.read_prompts([str(text)])
        found["text"] = prompt.text
    if facts is not None:
        from benchmarks.published.bench import read_facts

        found["facts"] = read_facts(facts)
    return found


def _models(model: str | None, as_: str | None) -> list[tuple[str, str]]:
    """What to load, and which published checkpoint it is ("": none of them)."""
    if model is None:
        return [(name, name) for name in CHECKPOINTS]
    if as_ is not None:
        return [(model, as_)]
    # The published ids, with or without the name of their owner.
    own = model.removeprefix("openai-community/").removeprefix("distilbert/")
    is_one = own in CHECKPOINTS and not Path(model).is_dir()
    return [(model, own if is_one else "")]


def _run(
    console: Console,
    name: str,
    checkpoint: str,
    ids: Sequence[str],
    n: int | None,
    supplied: dict[str, Any],
    record: bool,
    device: str,
    dtype: str,
) -> Iterator[Outcome]:
    """The figures of one model, printed as they come."""
    from benchmarks.published.bench import Bench
    from benchmarks.published.figures import not_run
    from benchmarks.published.run import figures_of, measure, run

    figures = figures_of(checkpoint, ids)
    if not figures:
        return
    console.print(f"\n{name}", style="bold")
    needed = {one.needs for one in figures}
    if checkpoint and needed == {"facts"} and "facts" not in supplied:
        # Not worth gigabytes of download.
        why = "give the paper's facts, --facts FILE (see docs/published.md)"
        yield from _shown(console, (not_run(one, why) for one in figures))
        return
    try:
        loaded = _load(name, checkpoint, device, dtype)
    except (ValueError, OSError) as error:
        if isinstance(error, cli.CommandError) or not checkpoint:
            raise
        why = f"the checkpoint cannot be reached: {' '.join(str(error).split())}"
        yield from _shown(console, (not_run(one, why) for one in figures))
        return
    bench = Bench(loaded, checkpoint, n or (N_PUBLISHED if checkpoint else N_OTHER), **supplied)
    if record:
        _record({one.id: measure(bench, one.id) for one in figures if one.needs != "text"})
    theirs = "paper" if checkpoint else "recorded" if name == _MINI else "(nothing)"
    yield from _shown(console, run(bench, figures, name=name), theirs)


def _load(name: str, checkpoint: str, device: str, dtype: str) -> HookedGPT2:
    loaded = cli.load_model(cli.Choice(name, "as asked"), device=device, dtype=dtype)
    shape = loaded.cfg.n_layers, loaded.cfg.n_heads
    if checkpoint and shape != _SHAPES[checkpoint]:
        expected = _SHAPES[checkpoint]
        raise cli.CommandError(
            f"{name} has {shape[0]} layers of {shape[1]} heads, {checkpoint} {expected[0]} of "
            f"{expected[1]}: it is another model"
        )
    return loaded.requires_grad_(False)


def _shown(
    console: Console, outcomes: Iterable[Outcome], theirs: str = "paper"
) -> Iterator[Outcome]:
    """Print a line of the table for each outcome, when it is there."""
    from rich.table import Table
    from rich.text import Text

    style = {"pass": "green", "FAIL": "bold red", "not run": "yellow"}
    # Figure, paper, ours, difference; verdict. Lines are printed one by one, so widths are fixed.
    longest = max(map(len, published()))
    room = max(console.width, 100) - longest - 12 - 8 - 8
    widths = [longest, room // 2, room // 2, 10]

    def line(*cells: str, cell_style: str = "") -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        for width in (*widths, 7):
            table.add_column(width=width, overflow="fold")
        table.add_row(*(Text(cell) for cell in cells[:4]), Text(cells[4], style=cell_style))
        return table

    console.print(line("figure", theirs, "ours", "difference", "verdict"), style="bold")
    reason = ""
    for one in outcomes:
        verdict = one.verdict or "-"
        cells = (one.id, one.theirs, one.ours, one.difference, verdict)
        console.print(line(*cells, cell_style=style.get(verdict, "")))
        explained = one.detail if verdict in ("FAIL", "not run") else ""
        if explained and explained != reason:
            console.print(f"  {explained}", style="dim", highlight=False, soft_wrap=True)
        reason = explained
        yield one


def _record(measured: dict[str, Any]) -> None:
    import torch

    from benchmarks.published.figures import plain

    rows = [f"  {json.dumps(id)}: {json.dumps(plain(one.value))}" for id, one in measured.items()]
    text = f'{{"torch": {json.dumps(torch.__version__)}, "figures": {{\n'
    (DATA / "mini.json").write_text(text + ",\n".join(rows) + "\n}}\n", encoding="utf-8")
    from benchmarks.published.facts import recorded

    recorded.cache_clear()


def _list(console: Console, ids: Sequence[str]) -> None:
    for id in ids:
        one: Published = published()[id]
        title = sources()[one.source].title
        console.print(f"{id}", style="bold", highlight=False)
        console.print(f"  {one.what}", highlight=False, soft_wrap=True)
        console.print(f"  {title}, {one.place}; {one.model}", highlight=False, soft_wrap=True)


def _rows(found: Sequence[tuple[str, Outcome]]) -> list[dict[str, Any]]:
    return [
        {
            "model": name,
            "id": one.id,
            "what": published()[one.id].what,
            "source": sources()[published()[one.id].source].title,
            "place": published()[one.id].place,
            "paper": one.theirs,
            "ours": one.ours,
            "difference": one.difference,
            "verdict": one.verdict,
            "detail": one.detail,
            "value": one.value,
        }
        for name, one in found
    ]


def _frame(found: Sequence[tuple[str, Outcome]]) -> Any:
    import pandas as pd

    return pd.DataFrame(_rows(found)).drop(columns="value")


def _summary(console: Console, outcomes: Sequence[Outcome]) -> int:
    """A last line, and the exit status."""
    counts = {
        verdict: sum(one.verdict == verdict for one in outcomes)
        for verdict in ("pass", "FAIL", "not run")
    }
    run = sum(one.verdict != "not run" for one in outcomes)
    console.print(
        f"\n{run} figure{'s'[: run != 1]} run: {counts['pass']} pass, {counts['FAIL']} fail; "
        f"{counts['not run']} not run",
        style="bold",
        highlight=False,
    )
    if counts["FAIL"]:
        return 1
    return 0 if run else 2


if __name__ == "__main__":
    cli.run(main, __spec__)
