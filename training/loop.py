"""The training loop: a transformers GPT-2, two optimisers, checkpoints it can resume from.

The learning rate rises over `warmup` steps, stays, and falls linearly to zero over the last
`decay` steps. Because it stays constant in between, the end of a run can be moved while it runs:
stop it and resume with other `steps`.
"""

import csv
import json
import math
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from training.corpus import END_OF_TEXT
from training.loss import weighted_loss
from training.mixture import Mixture, Rows
from training.muon import Muon
from training.prepare import load_documents
from training.prime import prime

N_CTX = 256


@dataclass(frozen=True)
class Plan:
    """What a run is: schedule, learning rates, mixture, seed; when attention is primed."""

    steps: int = 5100
    warmup: int = 40
    decay: int = 1500
    lr_matrices: float = 0.005
    lr_others: float = 0.001
    prime_at: int = 2000
    seed: int = 0
    mixture: Mixture = field(default_factory=Mixture)

    def lr_factor(self, step: int) -> float:
        """Share of the full learning rates at a step."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / self.decay)


def mini_config(end_of_text: int, d_vocab: int, *, fused_gelu: bool = False) -> GPT2Config:
    """Mini's architecture.

    `fused_gelu` names the same tanh approximation of GELU by the name under which PyTorch computes
    it in one pass; the shipped config names it as GPT-2's does.
    """
    return GPT2Config(
        vocab_size=d_vocab,
        n_positions=N_CTX,
        n_embd=192,
        n_layer=4,
        n_head=6,
        n_inner=768,
        activation_function="gelu_pytorch_tanh" if fused_gelu else "gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )


def new_model(config: GPT2Config, seed: int) -> GPT2LMHeadModel:
    """A freshly initialised model that attends through scaled_dot_product_attention."""
    torch.manual_seed(seed)
    config._attn_implementation = "sdpa"
    return GPT2LMHeadModel(config)


def make_optimisers(
    model: GPT2LMHeadModel, plan: Plan, pool: Executor
) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, biases and layer norms."""
    matrices = [p for name, p in model.named_parameters() if ".h." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=plan.lr_matrices, weight_decay=0.01, pool=pool),
        torch.optim.AdamW(
            others, lr=plan.lr_others, betas=(0.9, 0.97), weight_decay=0.0, fused=True
        ),
    ]


def load_rows(work: Path, seed: int) -> Rows:
    """Read everything that `prepare` wrote."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    newline_ids = [i for entry, i in tokenizer.get_vocab().items() if set(entry) == {"Ċ"}]
    return Rows(
        {name: np.load(work / f"{name}.npy") for name in ("modern", "books")},
        load_documents(work / "tasks.npz"),
        load_documents(work / "excerpts.npz"),
        end_of_text=tokenizer.get_vocab()[END_OF_TEXT],
        newline_ids=sorted(newline_ids),
        d_vocab=tokenizer.get_vocab_size(),
        n_ctx=N_CTX,
        seed=seed,
    )


def batch_loss(model: GPT2LMHeadModel, tokens: Tensor, weights: Tensor) -> Tensor:
    """Sum of weighted losses of rows of n_ctx + 1 tokens, in nats."""
    hidden = model.transformer(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    return weighted_loss(hidden, model.lm_head.weight, tokens[:, 1:], weights[:, 1:])


@torch.no_grad()
def quick_validation(model: GPT2LMHeadModel, val: np.ndarray, n_rows: int = 48) -> float:
    """Loss in nats per token on evenly spaced rows of the validation text."""
    starts = np.linspace(0, len(val) - N_CTX - 1, n_rows).astype(int)
    tokens = torch.from_numpy(np.stack([val[s : s + N_CTX + 1] for s in starts]).astype(np.int64))
    losses = [batch_loss(model, rows, torch.ones(rows.shape)) for rows in tokens.split(16)]
    return torch.stack(losses).sum().item() / (n_rows * N_CTX)


class Workers:
    """Forward and backward passes of a batch, its rows shared among Python threads.

    PyTorch splits every operation over the cores, and each operation then waits for the slower
    core. On a machine with other work to do that is most of the time; threads that take two rows
    whenever they are free wait once per step.
    """

    ROWS = 2

    def __init__(self, model: GPT2LMHeadModel, count: int):
        self.model = model
        threads = max(1, torch.get_num_threads() // count)
        # OpenMP counts threads per calling thread, so each worker sets its own.
        self.pool = ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(threads))

    def accumulate(self, tokens: Tensor, weights: Tensor) -> float:
        """Set every parameter's `.grad` to that of the batch's weighted mean loss; return it."""
        weights = weights / weights[:, 1:].sum()
        parameters = list(self.model.parameters())

        def part(index: int) -> tuple[float, tuple[Tensor, ...]]:
            rows = slice(index, index + self.ROWS)
            loss = batch_loss(self.model, tokens[rows], weights[rows])
            return loss.item(), torch.autograd.grad(loss, parameters)

        parts = list(self.pool.map(part, range(0, len(tokens), self.ROWS)))
        for parameter, *grads in zip(parameters, *(grads for _, grads in parts), strict=True):
            parameter.grad = sum(grads[1:], grads[0])
        return sum(loss for loss, _ in parts)


class Trainer:
    """A model, its optimisers and its data, at some step of a plan.

    Args:
        work: folder with what `prepare` wrote. A checkpoint in it is resumed from.
        plan: schedule and mixture.
        device: "cpu", "cuda", ...
        workers: Python threads that share a batch's rows; see `Workers`.
    """

    def __init__(self, work: Path, plan: Plan, *, device: str = "cpu", workers: int = 1):
        self.plan, self.device = plan, device
        self.checkpoint, self.curve = work / "checkpoint.pt", work / "curve.csv"
        self.rows = load_rows(work, plan.seed)
        self.val = np.load(work / "val.npy")
        config = mini_config(self.rows.end_of_text, self.rows.d_vocab, fused_gelu=True)
        self.model = new_model(config, plan.seed)
        torch.nn.Module.to(self.model, device)
        self.workers = Workers(self.model, workers)
        self.optimisers = make_optimisers(self.model, plan, self.workers.pool)
        self.step, self.n_tokens = 0, 0
        if self.checkpoint.exists():
            self._resume()
        with (work / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"from_step": self.step, **asdict(plan)}) + "\n")

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.n_tokens = state["step"], state["tokens"]

    def save(self) -> None:
        """Write atomically: a run killed while writing keeps the checkpoint before."""
        state = {
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "tokens": self.n_tokens,
        }
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        os.replace(self.checkpoint.with_suffix(".tmp"), self.checkpoint)

    def advance(self) -> float:
        """One step; returns the batch's loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if self.step == self.plan.prime_at:
            prime(self.model.cpu(), self.plan.seed)
            torch.nn.Module.to(self.model, self.device)
        arrays = self.rows.batch(self.step, self.plan.mixture)
        tokens, weights = (torch.from_numpy(array).to(self.device) for array in arrays)
        loss = self.workers.accumulate(tokens, weights)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {self.step}")
        factor = self.plan.lr_factor(self.step)
        for optimiser, rate in zip(
            self.optimisers, (self.plan.lr_matrices, self.plan.lr_others), strict=True
        ):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        self.n_tokens += self.plan.mixture.n_rows * N_CTX
        return loss

    def figures(
        self, measure: Callable[[GPT2LMHeadModel], dict[str, float]] | None
    ) -> dict[str, float]:
        """A quick validation loss, and what `measure` measures."""
        self.model.eval()
        with torch.no_grad():
            figures = {"val_loss": quick_validation(self.model, self.val)}
            figures |= measure(self.model) if measure else {}
        self.model.train()
        return figures

    def log(self, loss: float, shown: str) -> None:
        """Append a line to the loss curve."""
        is_new = not self.curve.exists()
        with self.curve.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["step", "tokens", "lr_factor", "train_loss", "figures"])
            factor = f"{self.plan.lr_factor(self.step - 1):.4f}"
            writer.writerow([self.step, self.n_tokens, factor, f"{loss:.4f}", shown])


def train(
    trainer: Trainer,
    *,
    log_every: int = 50,
    save_every: int = 250,
    measure_every: int = 500,
    measure: Callable[[GPT2LMHeadModel], dict[str, float]] | None = None,
) -> None:
    """Train to the plan's end, or until the process is told to stop (SIGINT, SIGTERM).

    Either way the checkpoint is of the last step done.

    Args:
        trainer: what to train.
        log_every: steps between lines of the loss curve.
        save_every: steps between checkpoints.
        measure_every: steps between measurements, a multiple of `log_every`.
        measure: figures to log besides the validation loss.
    """
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    losses: list[float] = []
    started, first_step = time.monotonic(), trainer.step
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=trainer.plan.steps, completed=trainer.step)
        while trainer.step < trainer.plan.steps and not stop.is_set():
            losses.append(trainer.advance())
            step, is_last = trainer.step, trainer.step == trainer.plan.steps
            progress.update(task, completed=step)
            if step % log_every == 0 or is_last:
                is_due = step % measure_every == 0 or is_last
                figures = trainer.figures(measure) if is_due else {}
                shown = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
                loss = sum(losses) / len(losses)
                trainer.log(loss, shown)
                speed = (step - first_step) / (time.monotonic() - started)
                progress.console.print(f"{step} loss {loss:.3f} {speed:.2f} steps/s {shown}")
                losses.clear()
            if step % save_every == 0:
                trainer.save()
    trainer.save()
