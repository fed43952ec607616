"""Make the bundled model: `python -m training.mini COMMAND`, in the order of the commands.

python -m training.mini tokenizer --corpus ../corpus --work build/mini
python -m training.mini prepare   --corpus ../corpus --work build/mini
python -m training.mini train     --work build/mini          # stops and resumes at any time
python -m training.mini export    --work build/mini
python -m training.mini evaluate  --corpus ../corpus --work build/mini
python -m training.mini card      --corpus ../corpus
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from analyses.tasks.words import all_words
from training import card as card_module
from training import export as export_module
from training import loop, measure, prepare, tokenizer
from training.corpus import documents
from training.mixture import Mixture

FOLDER = Path(__file__).parents[1] / "interp" / "mini"

Corpus = Annotated[Path, typer.Option(help="Folder with the corpus, see training.corpus.")]
Work = Annotated[Path, typer.Option(help="Folder for everything that is not shipped.")]
Folder = Annotated[Path, typer.Option(help="Where the model is shipped.")]

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command("tokenizer")
def train_tokenizer(corpus: Corpus, work: Work) -> None:
    """Train the tokenizer."""
    trained = tokenizer.train_tokenizer(corpus, all_words())
    tokenizer.save_tokenizer(trained, work / "tokenizer", loop.N_CTX)


@app.command("prepare")
def prepare_data(corpus: Corpus, work: Work) -> None:
    """Tokenise the corpus and write the task documents."""
    prepare.prepare(corpus, work)


@app.command()
def train(
    work: Work,
    steps: Annotated[int, typer.Option(help="Steps in all.")] = loop.Plan.steps,
    warmup: Annotated[int, typer.Option(help="Steps of rising rates.")] = loop.Plan.warmup,
    decay: Annotated[int, typer.Option(help="Last steps, of falling rates.")] = loop.Plan.decay,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = loop.Plan.seed,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "cpu",
    workers: Annotated[
        int, typer.Option(help="Threads that share a batch's rows; 1 on a GPU.")
    ] = 1,
    rows: Annotated[
        tuple[int, int, int, int],
        typer.Option(help="Rows per batch: modern, books, packed documents, repeats."),
    ] = (2, 2, 6, 1),
    lr_matrices: Annotated[
        float, typer.Option(help="Muon's learning rate.")
    ] = loop.Plan.lr_matrices,
    lr_others: Annotated[float, typer.Option(help="AdamW's.")] = loop.Plan.lr_others,
    measure_every: Annotated[int, typer.Option(help="Steps between measurements.")] = 500,
) -> None:
    """Train, resuming from the work folder's checkpoint where there is one."""
    plan = loop.Plan(
        steps=steps,
        warmup=warmup,
        decay=decay,
        lr_matrices=lr_matrices,
        lr_others=lr_others,
        seed=seed,
        mixture=Mixture(*rows),
    )
    figures = measure.QuickFigures(work / "tokenizer" / "tokenizer.json")
    trainer = loop.Trainer(work, plan, device=device, workers=workers)
    loop.train(trainer, measure_every=measure_every, measure=figures)


@app.command()
def export(work: Work, folder: Folder = FOLDER) -> None:
    """Write the checkpoint as a Hugging Face folder, and the loss curve beside it."""
    export_module.export(work, folder)


@app.command()
def evaluate(
    corpus: Corpus,
    work: Work,
    folder: Folder = FOLDER,
    n: Annotated[int, typer.Option(help="Examples per task.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the examples.")] = 0,
    hardware: Annotated[str, typer.Option(help="What it was trained on.")] = "two CPU cores",
) -> None:
    """Measure everything that the model card shows, and write it as figures.json."""
    torch.set_grad_enabled(False)
    val_bytes = sum(len(text.encode()) for text in documents(corpus, "val"))
    measure.write_figures(folder, work, val_bytes, n=n, seed=seed, hardware=hardware)


@app.command()
def card(corpus: Corpus, folder: Folder = FOLDER) -> None:
    """Write the model card and the credits from figures.json and the corpus."""
    card_module.write_card(corpus, folder)


if __name__ == "__main__":
    app()
