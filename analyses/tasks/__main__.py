"""Evaluate a model on a task: `python -m analyses.tasks ioi --model gpt2`."""

import json
import math
from typing import TYPE_CHECKING, Annotated

import typer

from analyses import cli
from analyses.tasks import TASKS, generate, get_task

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from analyses.tasks.evaluate import Estimate, Evaluation

METRICS = ("accuracy", "top1", "logit_diff", "prob_diff")


def main(
    task: Annotated[str, typer.Argument(metavar="TASK", help=f"{', '.join(TASKS)}, or all.")],
    model: cli.Model = None,
    n: Annotated[int, typer.Option(help="Examples per task, at least 2.", metavar="N")] = 500,
    seed: Annotated[
        int, typer.Option(help="Seed of the examples and of the bootstrap.", metavar="N")
    ] = 0,
    split: Annotated[
        str,
        typer.Option(help="train or held_out; for capitals also held_out_facts.", metavar="SPLIT"),
    ] = "held_out",
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """Accuracy, logit difference and probability difference, with 95 % intervals."""
    cli.check_outputs(html=None, csv=csv, json=json_path)
    names = list(TASKS) if task == "all" else [get_task(task).name]
    if n < 2:
        raise cli.CommandError(f"n must be at least 2 to have intervals, got {n}")
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    from analyses.tasks.evaluate import evaluate

    loaded = cli.load_model(choice, device=device, dtype=dtype)
    results = []
    for name in names:
        data = generate(name, loaded.tokenizer, n, seed=seed, split=split, prepend_bos=prepend_bos)
        results.append(evaluate(loaded, data.to(loaded.device)))
    if csv:
        cli.write_text(csv, cli.csv_text(as_frame(choice.name, results)))
    if json_path:
        cli.write_text(json_path, as_json(choice.name, results))
    show(choice.name, results, console)


def as_frame(model: str, results: "list[Evaluation]") -> "pd.DataFrame":
    """All results in one tidy table."""
    import pandas as pd

    frame = pd.concat([result.to_frame() for result in results], ignore_index=True)
    frame.insert(0, "model", model)
    return frame


def as_json(model: str, results: "list[Evaluation]") -> str:
    """The tidy table's rows and the dropped words as JSON."""
    content = {
        "model": model,
        "results": as_frame(model, results).to_dict(orient="records"),
        "dropped": {result.data.task: result.data.dropped for result in results},
    }
    return json.dumps(content, indent=2) + "\n"


def show(model: str, results: "list[Evaluation]", console: "Console") -> None:
    """Print the results as a table, and below it what was dropped."""
    data = results[0].data
    title = f"{model}, {len(data)} {data.split} examples, seed {data.seed}"
    console.print(f"{title}, prepend_bos={data.prepend_bos}", soft_wrap=True)
    tasks = cli.Column("task", [cli.Cell(result.data.task) for result in results])
    columns = [
        cli.Column(metric, [cli.Cell(cell(result.scores.get(metric))) for result in results])
        for metric in METRICS
    ]
    cli.print_table(console, [tasks], columns, "metrics")
    for result in results:
        if line := result.data.dropped_line():
            console.print(f"{result.data.task}: {line}")


def cell(score: "Estimate | None") -> str:
    """A score over its interval, narrow enough for a terminal of 80 columns."""
    if score is None:
        return ""
    interval = "no interval" if math.isnan(score.low) else f"{score.low:.2f}..{score.high:.2f}"
    return f"{score.value:.3f}\n{interval}"


if __name__ == "__main__":
    cli.run(main, __spec__)
