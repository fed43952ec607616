"""Evaluate a model on a task: `python -m analyses.tasks ioi --model gpt2`."""

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from analyses.tasks import TASKS, generate, get_task
from analyses.tasks.evaluate import Estimate, Evaluation, evaluate
from interp import HookedGPT2

app = typer.Typer(add_completion=False)


@app.command()
def main(
    task: Annotated[str, typer.Argument(help=f"{', '.join(TASKS)}, or all.")],
    model: Annotated[str, typer.Option(help="Name, local folder, or mini.")] = "mini",
    n: Annotated[int, typer.Option(help="Examples per task.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the examples and of the bootstrap.")] = 0,
    split: Annotated[
        str, typer.Option(help="train, held_out; for capitals also held_out_facts.")
    ] = "held_out",
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16.")] = "float32",
    prepend_bos: Annotated[bool, typer.Option(help="Begin with the end-of-text token.")] = True,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the results here as JSON.")
    ] = None,
    csv_path: Annotated[
        Path | None, typer.Option("--csv", help="Write the table here, one row per metric.")
    ] = None,
) -> None:
    """Accuracy, logit difference and probability difference, with 95 % intervals."""
    try:
        names = list(TASKS) if task == "all" else [get_task(task).name]
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        loaded = HookedGPT2.from_pretrained(model, device=device, dtype=dtype)
        results = []
        for name in names:
            data = generate(
                name, loaded.tokenizer, n, seed=seed, split=split, prepend_bos=prepend_bos
            )
            results.append(evaluate(loaded, data.to(loaded.device)))
        if json_path is not None:
            json_path.write_text(as_json(model, results), encoding="utf-8")
        if csv_path is not None:
            as_frame(model, results).to_csv(csv_path, index=False)
    except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        # One line: the message is the help, a traceback would bury it.
        typer.echo(" ".join(f"error: {error}".split()), err=True)
        raise typer.Exit(1) from None
    show(model, results)


def as_frame(model: str, results: list[Evaluation]) -> pd.DataFrame:
    """All results in one tidy table."""
    frame = pd.concat([result.to_frame() for result in results], ignore_index=True)
    frame.insert(0, "model", model)
    return frame


def as_json(model: str, results: list[Evaluation]) -> str:
    """The tidy table's rows and the dropped words as JSON."""
    content = {
        "model": model,
        "results": as_frame(model, results).to_dict(orient="records"),
        "dropped": {result.data.task: result.data.dropped for result in results},
    }
    return json.dumps(content, indent=2) + "\n"


def show(model: str, results: list[Evaluation]) -> None:
    """Print the results as a table, and below it what was dropped."""
    data = results[0].data
    title = f"{model}, {len(data)} {data.split} examples, seed {data.seed}"
    table = Table(title=f"{title}, prepend_bos={data.prepend_bos}")
    table.add_column("task")
    metrics = ("accuracy", "top1", "logit_diff", "prob_diff")
    for metric in metrics:
        table.add_column(metric, justify="right")
    for result in results:
        scores = [cell(result.scores.get(metric)) for metric in metrics]
        table.add_row(result.data.task, *scores)
    console = Console()
    console.print(table)
    for result in results:
        if line := result.data.dropped_line():
            console.print(f"{result.data.task}: {line}", markup=False)


def cell(score: Estimate | None) -> str:
    """A score over its interval, narrow enough for a terminal of 80 columns."""
    return "" if score is None else f"{score.value:.3f}\n{score.low:.2f}..{score.high:.2f}"


if __name__ == "__main__":
    app()
