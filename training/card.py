"""Render the model card from figures.json, so that it cannot drift from what was measured."""

import csv
import json
from pathlib import Path
from string import Template
from typing import Any

from interp import HookedGPT2Config

TEMPLATE = Path(__file__).parent / "card_template.md"
CREDITS = {
    "credits_pratham_storyweaver.tsv": "Pratham StoryWeaver (global-asp/pb-source), CC-BY",
    "credits_african_storybook.tsv": "African Storybook (global-asp/asp-source), CC-BY",
}
# Row of the table -> task and split, metric, what was aimed at.
ROWS: dict[str, tuple[str, str, float]] = {
    "IOI: indirect object beats subject": ("ioi/held_out", "accuracy", 0.95),
    "IOI: mean logit difference": ("ioi/held_out", "logit_diff", 2.0),
    "IOI: top-1": ("ioi/held_out", "top1", 0.0),
    "Induction: top-1 on the second copy": ("induction/held_out", "accuracy", 0.9),
    "Greater-than: probability difference": ("greater_than/held_out", "prob_diff", 0.5),
    "Greater-than: accuracy": ("greater_than/held_out", "accuracy", 0.0),
    "Pronouns: accuracy": ("pronouns/held_out", "accuracy", 0.9),
    "Agreement: accuracy": ("agreement/held_out", "accuracy", 0.9),
    "Capitals, held-out templates: accuracy": ("capitals/held_out", "accuracy", 0.9),
    "Capitals, held-out templates: top-1": ("capitals/held_out", "top1", 0.0),
    "Capitals, held-out facts: accuracy": ("capitals/held_out_facts", "accuracy", 0.0),
    "Capitals, held-out facts: top-1": ("capitals/held_out_facts", "top1", 0.0),
}
HEAD_TARGET = 0.5


def write_card(corpus: Path, folder: Path) -> None:
    """Write `README.md` and `CREDITS.md` of a model folder.

    Args:
        corpus: folder with the corpus and its `credits_*.tsv`.
        folder: the model folder, with `config.json` and `figures.json`.
    """
    figures = json.loads((folder / "figures.json").read_text("utf-8"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "README.md").write_text(render(figures, config), encoding="utf-8")
    (folder / "CREDITS.md").write_text(credit_list(corpus), encoding="utf-8")


def render(figures: dict[str, Any], config: dict[str, Any]) -> str:
    """The card's text.

    Args:
        figures: content of figures.json, see `training.measure`.
        config: content of config.json.
    """
    cfg = HookedGPT2Config.from_hf(config)
    validation = figures["validation"]
    missed = missed_targets(figures)
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        n=figures["examples_per_task"],
        seed=figures["seed"],
        figures=_figure_table(figures),
        val_tokens=f"{validation['tokens']:,}",
        ngram_order=validation["ngram_order"],
        targets=_targets(missed),
        samples="\n\n".join(_quoted(sample) for sample in figures["samples"]),
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        d_head=cfg.d_head,
        d_model=cfg.d_model,
        d_mlp=cfg.d_mlp,
        n_ctx=cfg.n_ctx,
        d_vocab=f"{cfg.d_vocab:,}",
        n_parameters=f"{figures['training']['parameters']:,}",
        mixture=_mixture(figures["training"]["runs"][-1]["mixture"]),
        training=_training(figures["training"]),
    )


def missed_targets(figures: dict[str, Any]) -> list[str]:
    """What was aimed at and not reached, one line each."""
    missed = []
    for label, (task, metric, target) in ROWS.items():
        value = figures["tasks"][task][metric][0]
        if value < target:
            missed.append(f"{label}: {value:.3f}, aimed at {target:g}")
    head = figures["heads"]["induction"]
    if head["score"] < HEAD_TARGET:
        missed.append(f"Best induction head: {head['score']:.3f}, aimed at {HEAD_TARGET:g}")
    return missed


def credit_list(corpus: Path) -> str:
    """Titles and authors of the CC-BY stories, as a page."""
    lines = ["# Credits", "", "Stories that mini was trained on, with their authors.", ""]
    for name, source in CREDITS.items():
        lines += [f"## {source}", ""]
        with (corpus / name).open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            lines += [f"- {title}: {author}" for title, author, *_ in rows]
        lines.append("")
    lines += [
        "## Others",
        "",
        "- Sentences: tatoeba.org contributors, CC-BY 2.0 FR",
        "- College Success, Introduction to Anthropology: OpenStax, Rice University, CC-BY 4.0",
    ]
    return "\n".join(lines) + "\n"


def _figure_table(figures: dict[str, Any]) -> str:
    validation, heads = figures["validation"], figures["heads"]
    lines = ["| validation loss | nats per token | bits per byte |", "|---|---|---|"]
    order = validation["ngram_order"]
    models = [("mini", validation)]
    models += [
        (f"{order}-gram trained on {ngram['tokens'] / 1e6:.0f} million tokens", ngram)
        for ngram in validation["ngrams"]
    ]
    lines += [
        f"| {label} | {losses['nats_per_token']:.3f} | {losses['bits_per_byte']:.3f} |"
        for label, losses in models
    ]
    lines += ["", "| task | held out | aimed at |", "|---|---|---|"]
    for label, (task, metric, target) in ROWS.items():
        value, low, high = figures["tasks"][task][metric]
        aim = f"{target:g}" if target else ""
        lines.append(f"| {label} | {value:.3f} [{low:.3f}, {high:.3f}] | {aim} |")
    for label, key, aim in (
        ("Best induction head (layer.head)", "induction", f"{HEAD_TARGET:g}"),
        ("Best previous-token head (layer.head)", "previous_token", ""),
    ):
        lines.append(f"| {label} | {heads[key]['score']:.3f} ({heads[key]['head']}) | {aim} |")
    return "\n".join(lines)


def _targets(missed: list[str]) -> str:
    if not missed:
        return "All that was aimed at was reached."
    lines = ["Not reached:", "", *(f"- {line}" for line in missed), ""]
    lines.append(
        "Over the last stages IOI and the text's likelihood still rose, while agreement wavered "
        "(see curve.csv): a longer run of the last mixture, which mini saw for 300 steps only, "
        "would help first."
    )
    return "\n".join(lines)


def _quoted(sample: dict[str, Any]) -> str:
    prompt, text = sample["prompt"], sample["text"]
    rest = text.removeprefix(prompt)
    first = f"**{prompt}**{rest}" if prompt else rest
    return "\n".join(f"> {line}".rstrip() for line in first.split("\n"))


def _mixture(mixture: dict[str, Any]) -> str:
    excerpts = f"{mixture['excerpt_share']:.0%}"
    names = {
        "modern": "modern text: simple sentences, picture-book stories, school word problems, "
        "country facts, two textbooks, speeches",
        "books": "books: children's, fairy-tale and adventure books, public domain",
        "tasks": f"short documents: texts of the tasks, and ({excerpts} of them) excerpts of the "
        "text above: the first lines of a country's page, lines about one person, lines that "
        "repeat a first name",
        "repeats": "repeated sequences: half of uniformly random tokens, 30 % of tokens random as "
        "frequent as in text, 20 % cut from text",
    }
    total = sum(mixture[name] for name in names)
    lines = ["| share of rows | what |", "|---|---|"]
    lines += [f"| {mixture[name] / total:.0%} | {what} |" for name, what in names.items()]
    return "\n".join(lines)


def _training(training: dict[str, Any]) -> str:
    runs = training["runs"]
    last = runs[-1]
    lines = [
        f"{training['steps']:,} steps, {training['tokens']:,} tokens in rows of 256, float32, "
        f"{training['hardware']}. Muon for the blocks' matrices, AdamW for the rest; warm-up, "
        f"constant rates, linear decay to zero over the last {last['decay']:,} steps; "
        f"seed {last['seed']}. What changed on the way:",
        "",
        "| from step | rows: modern, books, short documents, repeats | learning rates | |",
        "|---|---|---|---|",
    ]
    for run in runs:
        mixture = run["mixture"]
        rows = ", ".join(str(mixture[name]) for name in ("modern", "books", "tasks", "repeats"))
        rates = f"{run['lr_matrices']:g}, {run['lr_others']:g}"
        lines.append(f"| {run['from_step']:,} | {rows} | {rates} | {run.get('note', '')} |")
    return "\n".join(lines)
