"""Measure mini: what the training loop prints, and every figure of the model card.

All figures of the card are those of the shipped files, float16 weights computed in float32, on
held-out names, templates and documents.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GPT2LMHeadModel

from analyses.tasks import TASKS, generate
from analyses.tasks.data import TaskData
from analyses.tasks.evaluate import evaluate
from interp import HookedGPT2
from training.corpus import END_OF_TEXT
from training.ngram import KneserNey

# What the n-gram models are trained on: all of "modern" and this many tokens of "books".
NGRAM_BOOKS = (4_000_000, 12_000_000)
NGRAM_ORDER = 4
PROMPTS = ("", "One day a little girl", "Tom and Mary")


class QuickFigures:
    """The tasks' scores on a few held-out examples, cheap enough to log while training."""

    def __init__(self, tokenizer_file: Path, n: int = 100):
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.data = {
            name: generate(
                name, tokenizer, n if name != "induction" else 16, seed=1, split="held_out"
            )
            for name in TASKS
        }

    def __call__(self, model: GPT2LMHeadModel) -> dict[str, float]:
        """Accuracy of every task, and the logit or probability difference that is aimed at."""
        figures = {}
        for name, data in self.data.items():
            data = data.to(model.device)
            scores = evaluate(lambda tokens: model(tokens).logits, data, progress=False).scores
            figures[name] = scores["accuracy"].value
            if name == "ioi":
                figures["ioi_logit_diff"] = scores["logit_diff"].value
            if name == "greater_than":
                figures["greater_than_prob_diff"] = scores["prob_diff"].value
        return figures


def validation(model: HookedGPT2, tokens: Tensor, stride: int = 128) -> tuple[float, int]:
    """Summed loss in nats over a text, and how many tokens it is a sum of.

    Windows of `n_ctx` move by `stride`; each scores its last `stride` tokens, the first all of
    its own. What is left behind the last full window is not scored.

    Args:
        model: the model.
        tokens: [pos], the text.
        stride: tokens scored per window.
    """
    windows = tokens.unfold(0, model.cfg.n_ctx + 1, stride)
    unscored = model.cfg.n_ctx - stride
    total, count = 0.0, 0
    for first in track(range(0, len(windows), 16), description="validation loss"):
        rows = windows[first : first + 16].long()
        residual = model(rows[:, :-1], stop_at_layer=model.cfg.n_layers)
        parts = [(residual[:, unscored:], rows[:, 1 + unscored :])]
        if first == 0:
            parts.append((residual[:1, :unscored], rows[:1, 1 : 1 + unscored]))
        for hidden, targets in parts:
            logits = model.unembed(model.ln_final(hidden)).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")
            total, count = total + loss.item(), count + targets.numel()
    return total, count


def head_scores(model: HookedGPT2, data: TaskData) -> dict[str, dict[str, float | str]]:
    """The best induction head and the best previous-token head, on repeated random tokens.

    The induction score of a head is its mean attention from a token of the second copy to the token
    behind that token's first occurrence (Olsson et al. 2022, arXiv 2209.11895); the previous-token
    score its mean attention to the position before, over all positions but the first two.
    """
    length = int(data.positions["SECOND"][0] - data.positions["FIRST"][0])
    second = int(data.positions["SECOND"][0])
    _, cache = model.run_with_cache(data.clean_tokens, names_filter="*hook_pattern")
    induction, previous = [], []
    for layer in range(model.cfg.n_layers):
        pattern = cache["pattern", layer]
        queries = torch.arange(second, pattern.shape[2])
        induction.append(pattern[:, :, queries, queries - length + 1].mean(dim=(0, 2)))
        queries = torch.arange(2, pattern.shape[2])
        previous.append(pattern[:, :, queries, queries - 1].mean(dim=(0, 2)))
    return {"induction": _best(induction), "previous_token": _best(previous)}


def _best(scores: list[Tensor]) -> dict[str, float | str]:
    flat = torch.stack(scores)
    layer, head = divmod(int(flat.argmax()), flat.shape[1])
    return {"head": f"{layer}.{head}", "score": float(flat[layer, head])}


def sample(model: HookedGPT2, prompt: str, seed: int, n_tokens: int = 80) -> str:
    """A continuation at temperature 0.8 among the 40 likeliest tokens, as it comes."""
    generator = torch.Generator().manual_seed(seed)
    tokens = model.to_tokens(f"{END_OF_TEXT}{prompt}", prepend_bos=False)
    for _ in range(n_tokens):
        values, ids = (model(tokens)[0, -1] / 0.8).topk(40)
        pick = torch.multinomial(values.softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, ids[pick][None]], dim=1)
    return "".join(model.to_str_tokens(tokens[0, 1:], prepend_bos=False))


def ngram_losses(work: Path, tokens: np.ndarray, d_vocab: int) -> dict[int, float]:
    """Tokens that an n-gram baseline is trained on -> its mean loss in nats per token."""
    losses = {}
    for n_books in NGRAM_BOOKS:
        books = np.load(work / "books.npy")[:n_books]
        text = np.concatenate([np.load(work / "modern.npy"), books])
        model = KneserNey(text, d_vocab, NGRAM_ORDER)
        losses[len(text)] = float(-model.log_probs(tokens).mean())
    return losses


def figures_of(
    folder: Path, work: Path, val_bytes: int, *, n: int, seed: int, hardware: str
) -> dict[str, Any]:
    """Every figure of the model card.

    Args:
        folder: the shipped model.
        work: the work folder of its training.
        val_bytes: UTF-8 bytes of the validation documents.
        n: examples per task.
        seed: of the examples.
        hardware: what it was trained on, in words.
    """
    model = HookedGPT2.from_pretrained(folder)
    val = np.load(work / "val.npy")
    total, count = validation(model, torch.from_numpy(val.astype(np.int32)))
    nats = total / count
    bits = len(val) / val_bytes / math.log(2)
    tasks = {}
    for task in TASKS.values():
        for split in task.templates:
            if split == "train":
                continue
            data = generate(task.name, model.tokenizer, n, seed=seed, split=split)
            scores = evaluate(model, data).scores
            tasks[f"{task.name}/{split}"] = {
                metric: [score.value, score.low, score.high] for metric, score in scores.items()
            }
    heads = generate("induction", model.tokenizer, 100, seed=seed, split="held_out")
    checkpoint = torch.load(work / "checkpoint.pt", map_location="cpu", weights_only=True)
    runs = [json.loads(line) for line in (work / "runs.jsonl").read_text("utf-8").splitlines()]
    return {
        "validation": {
            "nats_per_token": nats,
            "bits_per_byte": nats * bits,
            "tokens": count,
            "ngram_order": NGRAM_ORDER,
            "ngrams": [
                {"tokens": size, "nats_per_token": loss, "bits_per_byte": loss * bits}
                for size, loss in ngram_losses(work, val, model.cfg.d_vocab).items()
            ],
        },
        "tasks": tasks,
        "examples_per_task": n,
        "seed": seed,
        "heads": head_scores(model, heads),
        "samples": [
            {"prompt": prompt, "seed": number, "text": sample(model, prompt, number)}
            for number, prompt in enumerate(PROMPTS)
        ],
        "training": {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "steps": checkpoint["step"],
            "tokens": checkpoint["tokens"],
            "hardware": hardware,
            "runs": runs,
        },
    }


def write_figures(
    folder: Path, work: Path, val_bytes: int, *, n: int, seed: int, hardware: str
) -> None:
    """Measure the model in a folder and write `figures.json` there."""
    figures = figures_of(folder, work, val_bytes, n=n, seed=seed, hardware=hardware)
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    (folder / "figures.json").write_text(text, encoding="utf-8")
