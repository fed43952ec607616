"""The two models that are compared, the tokens they are given, and how far apart they may be."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp import sources, weights
from interp.command import in_one_line
from interp.config import HookedGPT2Config
from interp.hooked import HookedGPT2

HALF = (torch.bfloat16, torch.float16)
# Positions over which the rounding of half-precision models is averaged.
_POSITIONS = 1024


class NotRun(Exception):
    """A check that cannot be run here; says why."""


class Measured(NamedTuple):
    """What one check measured, and how large (or `at_least` how small) that may be."""

    error: float
    tolerance: float
    note: str = ""
    at_least: bool = False


class Whole(NamedTuple):
    """Ours against theirs at the full length, in numbers (the logits are large).

    Attributes:
        error: the largest difference of two logits.
        scale: the largest logit.
        gap: how much likelier, in logits, their top token is than ours, at worst.
        differing: at how many positions the top token is another.
        off: of a half-precision pair, the root mean square from float32 of ours and theirs, with
            the fused attention and with the explicit one that looking needs.
    """

    error: float
    scale: float
    gap: float
    differing: int
    off: dict[str, tuple[float, float]]


@dataclass
class Bench:
    """What the checks work on.

    Attributes:
        model: ours.
        reference: `transformers`' model; None once it is not needed any more.
        described: what the reference is, in words.
        folder: of the checkpoint's tokenizer, if it has one.
        is_checkpoint: whether the reference got its weights without our help.
        why_not: if it did not, why.
        scope: what both sides have in common, a key of `result.SCOPES`.
        exact: of a half-precision pair, the reference's logits in float32 at the full length.
    """

    model: HookedGPT2
    reference: Any
    described: str
    folder: Path | None
    is_checkpoint: bool
    why_not: str = ""
    scope: str = "one source"
    exact: Tensor | None = field(default=None, repr=False)

    @property
    def cfg(self) -> HookedGPT2Config:
        """Of our model."""
        return self.model.cfg

    @property
    def is_half(self) -> bool:
        """Whether both compute in bfloat16 or float16."""
        return self.model.dtype in HALF

    def tokens(self, batch: int, length: int, seed: int = 0) -> Int[Tensor, "batch pos"]:
        """Tokens drawn at random from the whole vocabulary; the same for the same seed."""
        return draw(self.cfg, batch, length, seed).to(self.model.device)

    def some(self, batch: int = 2, at_least: int = 2, at_most: int = 16, seed: int = 0) -> Tensor:
        """Prompts of `at_most` tokens, or as long as the model reads.

        Raises:
            NotRun: that is less than `at_least`.
        """
        if self.cfg.n_ctx < at_least:
            raise NotRun(f"needs {at_least} tokens, this model reads {self.cfg.n_ctx}")
        return self.tokens(batch, min(at_most, self.cfg.n_ctx), seed)

    def theirs(self, tokens: Tensor, **arguments: Any) -> Any:
        """What the reference answers."""
        if self.reference is None:
            raise RuntimeError("the reference has been dropped")
        return self.reference(input_ids=tokens, use_cache=False, **arguments)

    def rounding(self, scale: float) -> float:
        """How far two correct computations may be apart whose results are as large as `scale`."""
        growth = 32 if self.is_half else 8 * math.sqrt(self.cfg.d_model)
        return torch.finfo(self.model.dtype).eps * scale * growth

    @cached_property
    def whole(self) -> Whole:
        """Both at the model's full length, once."""
        size = rows_at_a_time(self.cfg)
        parts = full_tokens(self.cfg).to(self.model.device).split(size)
        exact = [None] * len(parts) if self.exact is None else self.exact.split(size)
        error = scale = gap = 0.0
        differing = 0
        squares = {kind: [0.0, 0.0] for kind in ("sdpa", "eager")}
        for rows, want in zip(parts, exact, strict=True):
            theirs, ours = self.theirs(rows).logits, self.model(rows)
            for a, b in zip(ours, theirs, strict=True):
                error, scale = worst(error, distance(a, b)), worst(scale, largest(b))
                first, other = b.argmax(-1, keepdim=True), a.argmax(-1, keepdim=True)
                gap = worst(gap, largest(b.gather(-1, first) - b.gather(-1, other)))
                differing += int((first != other).sum())
            if want is not None:
                for kind, found in squares.items():
                    with attention(self.reference, kind):
                        theirs = self.theirs(rows).logits
                    if kind == "eager":
                        ours = self.looked_at(rows)
                    for place, got in enumerate((ours, theirs)):
                        found[place] += float((got.cpu().float() - want).pow(2).sum())
        count = self.positions * self.cfg.d_vocab
        off = {k: (math.sqrt(a / count), math.sqrt(b / count)) for k, (a, b) in squares.items()}
        return Whole(error, scale, gap, differing, off)

    def looked_at(self, tokens: Tensor) -> Tensor:
        """Our logits while something listens to every attention pattern: the explicit softmax."""
        watch = [("*hook_pattern", lambda pattern, hook: None)]
        return tensor(self.model.run_with_hooks(tokens, fwd_hooks=watch))

    @property
    def positions(self) -> int:
        """How many positions `whole` compares."""
        return full_tokens(self.cfg).numel()


def draw(cfg: HookedGPT2Config, batch: int, length: int, seed: int) -> Int[Tensor, "batch pos"]:
    """Tokens at random, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, cfg.d_vocab, (batch, length), generator=generator)


def full_tokens(cfg: HookedGPT2Config) -> Int[Tensor, "batch pos"]:
    """Prompts as long as the model reads; of a short one as many as make `_POSITIONS`."""
    return draw(cfg, max(1, min(128, _POSITIONS // cfg.n_ctx)), cfg.n_ctx, seed=1)


def rows_at_a_time(cfg: HookedGPT2Config) -> int:
    """How many of the full prompts are run at a time."""
    return max(1, _POSITIONS // cfg.n_ctx // 4)


def tensor(output: Any) -> Tensor:
    """What a run gave, which is a tensor unless it was asked for something else."""
    if not isinstance(output, Tensor):
        raise TypeError(f"a run gave {type(output).__name__}, a tensor was expected")
    return output


def worst(*values: float) -> float:
    """The largest; NaN where one is NaN, which `max` may lose."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def largest(values: Tensor) -> float:
    """The largest absolute value."""
    return float(values.abs().max()) if values.numel() else 0.0


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference, taken row by row in float64."""
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}")
    wide = torch.float32 if ours.device.type == "mps" else torch.float64
    parts = zip(ours.detach().unbind(0), theirs.detach().unbind(0), strict=True)
    return worst(0.0, *(largest(a.to(wide) - b.to(wide)) for a, b in parts))


# ------------------------------------------------------------------ the two models


def prepare(
    source: Any,
    model: HookedGPT2 | None,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    revision: str | None,
) -> Bench:
    """Load both models. Nothing of what is handed over is changed.

    Raises:
        as `HookedGPT2.from_pretrained`; ValueError: arguments that contradict each other.
    """
    scope = "one source" if model is None else "two sources"
    if isinstance(source, HookedGPT2):
        if model is not None:
            raise ValueError("source is a HookedGPT2 already: model= goes with another source")
        model, scope = source, "lent"
    if model is not None:
        _check_same(model, device, dtype)
        listening = [n for n, p in model.hook_dict.items() if p.fwd_hooks or p.bwd_hooks]
        if listening:
            raise ValueError(
                f"functions listen on the model, at {listening[0]} and {len(listening) - 1} other "
                "points: remove them with reset_hooks()"
            )
    else:
        model = HookedGPT2.from_pretrained(
            source, device="cpu" if device is None else device, dtype=dtype, revision=revision
        )
    bench = _paired(source, model, revision)
    # Also where the checkpoint is in a layout that only we read.
    bench.scope = scope if bench.is_checkpoint else "lent"
    return bench


def _check_same(
    model: HookedGPT2, device: torch.device | str | None, dtype: torch.dtype | str | None
) -> None:
    if dtype is not None and weights.parse_dtype(dtype) != model.dtype:
        raise ValueError(f"dtype={dtype}, but the model is {model.dtype}")
    if device is not None:
        asked = weights.parse_device(device)
        if asked.type != model.device.type or asked.index not in (None, model.device.index):
            raise ValueError(f"device={device}, but the model is on {model.device}")


def _paired(source: Any, model: HookedGPT2, revision: str | None) -> Bench:
    folder, why_not, described, reference = None, "", "", None
    if isinstance(source, HookedGPT2):
        why_not = "the model was handed over in memory: there is no checkpoint to compare with"
    elif weights.is_hf_model(source):
        reference = _language_model(source)
        folder = sources.tokenizer_folder(source.config.name_or_path)
        described = f"the transformers {type(source).__name__} handed over"
    else:
        files = sources.resolve(source, revision)
        folder = files.folder if files.tokenizer else None
        described = f"transformers' GPT2LMHeadModel from {files.folder}"
        try:
            reference = _from_folder(files.folder)
        except _Unreadable as error:
            why_not = str(error)
    if reference is None:
        described = "transformers' GPT2LMHeadModel with our weights"
        reference = _with_our_weights(model)
    bench = Bench(model, reference, described, folder, not why_not, why_not)
    wide = torch.float32 if bench.is_half else model.dtype
    weight = next(reference.parameters())
    moves = weight.dtype != wide or weight.device != model.device
    if weights.is_hf_model(source):
        if bench.is_half or moves:  # what was handed over stays as it is
            reference = copy.deepcopy(reference)
    else:
        reference.eval()
    if moves:
        reference = nn.Module.to(reference, model.device, wide)
    bench.reference = reference
    if bench.is_half:
        with evaluating(reference), torch.no_grad():
            rows = full_tokens(model.cfg).to(model.device).split(rows_at_a_time(model.cfg))
            bench.exact = torch.cat([bench.theirs(row).logits.cpu() for row in rows])
        bench.reference = nn.Module.to(reference, dtype=model.dtype)
    return bench


class _Unreadable(Exception):
    """A checkpoint in a layout that only we read."""


def _from_folder(folder: Path) -> nn.Module:
    """`transformers`' model, in float32.

    Raises:
        _Unreadable: it cannot load the weights, or would fill some with random numbers.
    """
    from transformers import GPT2LMHeadModel

    try:
        loaded: Any = GPT2LMHeadModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        reference, info = loaded
    except (RuntimeError, ValueError, KeyError) as error:
        reason = in_one_line(error)
        raise _Unreadable(f"transformers cannot load this checkpoint: {reason}") from error
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        raise _Unreadable(
            f"transformers finds no weights for {len(missing)} of its names, such as {missing[0]}"
        )
    return reference


def _language_model(source: Any) -> Any:
    """`source`, or a language model around it that shares its weights."""
    if hasattr(source, "lm_head"):
        return source
    from transformers import GPT2LMHeadModel

    with torch.device("meta"):
        whole = GPT2LMHeadModel(source.config)
    whole.transformer = source
    whole.lm_head.weight = source.wte.weight
    return whole


@torch.no_grad()
def _with_our_weights(model: HookedGPT2) -> Any:
    """A `transformers` model of the same config, filled with copies of our weights, in float32 or
    our dtype if that is wider."""
    from transformers import GPT2Config, GPT2LMHeadModel

    dtype = torch.promote_types(model.dtype, torch.float32)
    with torch.random.fork_rng(devices=[]):
        reference: Any = GPT2LMHeadModel(GPT2Config(**model.cfg.to_hf()))
    reference = nn.Module.to(reference.eval().requires_grad_(False), model.device, dtype)
    if "lm_head.bias" in dict(model.named_parameters()):
        head = nn.Linear(model.cfg.d_model, model.cfg.d_vocab, device=model.device, dtype=dtype)
        head.weight = reference.lm_head.weight
        reference.lm_head = head
    for name, parameter in reference.named_parameters():
        parameter.copy_(ours_of(model, name))
    return reference.requires_grad_(False)


def ours_of(model: HookedGPT2, name: str) -> Tensor:
    """Our weights of one of `transformers`' names.

    Raises:
        KeyError: we have none of this name.
    """
    short = name.removeprefix("transformer.")
    parameters = dict(model.named_parameters())
    if short.startswith("h."):
        _, layer, short = short.split(".", 2)
        return parameters[short][int(layer)]
    return parameters[{"wte.weight": "wte", "wpe.weight": "wpe"}.get(short, short)]


@contextmanager
def attention(reference: Any, kind: str) -> Iterator[None]:
    """The reference with another implementation of attention, for a while."""
    before = reference.config._attn_implementation
    reference.set_attn_implementation(kind)
    try:
        yield
    finally:
        reference.set_attn_implementation(before)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def evaluating(reference: nn.Module) -> Iterator[None]:
    """Without dropout, whatever the mode it was handed over in."""
    training = [module for module in reference.modules() if module.training]
    reference.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
