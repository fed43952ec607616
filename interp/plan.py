"""The arguments of a generation, checked before anything is computed."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooks import Edit, select
from hooks.names import NameFilter
from hooks.timeline import Timeline
from interp import points
from interp.kv_cache import KeyValueCache
from interp.model import GPT2
from interp.passes import Passes
from interp.run import Run
from interp.sampling import Sampling, check_flag, check_number
from interp.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `HookedGPT2.generate` is asked, besides prompts and what listens.

    Attributes: as the arguments of `HookedGPT2.generate`.
    """

    max_new_tokens: int
    sampling: Sampling
    stop_at_eos: bool = True
    eos_token_id: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] | None = None
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float | int = 1.0
    early_stopping: bool = False
    use_past_kv_cache: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_return_sequences", "num_beams"):
            what = "a whole number, 1 or more"
            check_number(name, getattr(self, name), what, lambda x: x >= 1, whole=True)
        for name in ("stop_at_eos", "use_past_kv_cache", "early_stopping"):
            check_flag(name, getattr(self, name))
        if isinstance(self.length_penalty, bool) or not isinstance(
            self.length_penalty, int | float
        ):
            raise TypeError(f"length_penalty is a number, not {self.length_penalty!r}.")
        if not abs(self.length_penalty) <= 100:
            raise ValueError(f"length_penalty is from -100 to 100, not {self.length_penalty!r}.")
        if self.seed is not None and (
            isinstance(self.seed, bool) or not isinstance(self.seed, int)
        ):
            raise TypeError(f"seed is a whole number or None, not {self.seed!r}.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed is from -2**63 to 2**64 - 1, not {self.seed}.")
        if self.eos_token_id is not None and not self.stop_at_eos:
            raise ValueError("eos_token_id says where to stop, but stop_at_eos=False.")
        self._check_several()

    def _check_several(self) -> None:
        n, beams = self.num_return_sequences, self.num_beams
        if beams == 1:
            for name, default in (("length_penalty", 1.0), ("early_stopping", False)):
                if getattr(self, name) != default:
                    raise ValueError(f"{name} goes with num_beams above 1.")
            if n > 1 and not self.sampling.draws:
                raise ValueError(
                    f"num_return_sequences={n}, but nothing is drawn: they would be the same."
                )
        elif n > beams:
            raise ValueError(f"num_return_sequences={n} is more than num_beams={beams}.")


@dataclass(eq=False)
class Plan:
    """A generation, checked and ready to run.

    Attributes:
        model, tokenizer: what generates.
        settings: how.
        tokens, mask: the prompts, padded on the left.
        prepend_bos: whether `<|endoftext|>` was put before text; None for token ids.
        lengths: tokens of each prompt, those in a cache included.
        passes: the forward passes.
        record: the points to keep.
        stop_ids: tokens that end a row.
        stop_strings: texts that end a row.
        pad_id: what padding holds.
        seed: of the draws, if there are any.
    """

    model: GPT2
    tokenizer: Tokenizer | None
    settings: Settings
    tokens: Int[Tensor, "prompt pos"]
    mask: Bool[Tensor, "prompt pos"]
    prepend_bos: bool | None
    lengths: tuple[int, ...]
    passes: Passes
    record: list[str]
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    pad_id: int
    seed: int | None

    def prompt_ids(self) -> list[list[int]]:
        """Per prompt, its tokens."""
        return [row[kept].tolist() for row, kept in zip(self.tokens, self.mask, strict=True)]


def plan(
    model: Any,
    run: Run,
    settings: Settings,
    *,
    past: KeyValueCache | None,
    edits: Edit | Sequence[Edit],
    fwd_hooks: Sequence[Any],
    record: NameFilter | None,
) -> Plan:
    """Check everything that can be checked before a generation begins.

    Args:
        model: a `HookedGPT2`.
        run: the prompts, checked as for a forward pass.
        others: as in `HookedGPT2.generate`.

    Raises:
        ValueError, TypeError, IndexError, KeyError: as `HookedGPT2.generate`.
    """
    cfg, tokenizer = model.cfg, model.tokenizer
    tokens, mask = left_padded(run.input, run.mask)
    n_past = 0 if past is None else past.length
    longest = n_past + tokens.shape[1]
    # The positions of padding in a cache are no tokens of the prompt.
    lengths = run.visible.mask.sum(1).tolist()
    room = cfg.n_ctx - max(lengths)
    if settings.max_new_tokens > room:
        raise ValueError(
            f"the longest prompt has {max(lengths)} tokens and max_new_tokens="
            f"{settings.max_new_tokens}, together more than n_ctx = {cfg.n_ctx}: at most {room} "
            f"more tokens fit."
        )
    if record is not None and past is not None:
        raise ValueError("record keeps whole sequences: what is in past_kv_cache has gone by.")
    if record is not None and settings.num_beams > 1:
        raise ValueError(
            "record goes with one sequence per row: with num_beams, run_with_cache over the "
            "result's tokens and attention_mask."
        )
    if past is not None and settings.sampling.counts_tokens:
        raise ValueError(
            "repetition_penalty and freq_penalty count tokens, and past_kv_cache does not know "
            "its own: give the whole prompt."
        )
    if past is not None and not settings.use_past_kv_cache:
        raise ValueError("past_kv_cache is given, but use_past_kv_cache=False.")
    names = [] if record is None else select(record, list(model.hook_dict))
    if settings.num_beams > cfg.d_vocab:
        raise ValueError(f"num_beams={settings.num_beams} is more than d_vocab = {cfg.d_vocab}.")
    stop_ids = _stop_ids(cfg, tokenizer, settings)
    edits = [edits] if isinstance(edits, Edit) else edits
    for name, value in (("edits", edits), ("fwd_hooks", fwd_hooks)):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(f"{name} is a list, not {value!r}.")
    # The last new token is read only if what it does is recorded.
    n_read = settings.max_new_tokens - (0 if names else 1)
    whole = mask if past is None else torch.cat([past.mask[:, :n_past], mask], dim=1)
    timeline = Timeline(
        model.hook_dict,
        points.axis_sizes(cfg),
        whole,
        n_past,
        longest + n_read,
        model.W_E,
        fwd_hooks,
        edits,
    )
    pad_id = None if tokenizer is None else tokenizer.pad_token_id
    if pad_id is None:
        pad_id = stop_ids[0] if stop_ids else 0
    tokens = tokens.masked_fill(~mask, pad_id)
    return Plan(
        model=model,
        tokenizer=tokenizer,
        settings=settings,
        tokens=tokens,
        mask=mask,
        prepend_bos=run.about.get("prepend_bos"),
        lengths=tuple(lengths),
        passes=Passes(
            model,
            tokens,
            mask,
            settings.max_new_tokens,
            timeline,
            past=past,
            cached=settings.use_past_kv_cache,
            record=names,
        ),
        record=names,
        stop_ids=stop_ids,
        stop_strings=_stop_strings(tokenizer, settings.stop_strings),
        pad_id=pad_id,
        seed=_seed(settings),
    )


def left_padded(
    tokens: Int[Tensor, "prompt pos"], mask: Bool[Tensor, "prompt pos"] | None
) -> tuple[Int[Tensor, "prompt width"], Bool[Tensor, "prompt width"]]:
    """The same prompts with their padding on the left, and no more of it than needed."""
    if mask is None:
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
    # Stable: what is padding first, then the tokens in their order.
    order = mask.long().argsort(dim=1, stable=True)
    width = int(mask.sum(1).max())
    return tokens.gather(1, order)[:, -width:], mask.gather(1, order)[:, -width:]


def _stop_ids(cfg: Any, tokenizer: Tokenizer | None, settings: Settings) -> tuple[int, ...]:
    if not settings.stop_at_eos:
        return ()
    ids: Any = settings.eos_token_id
    if ids is None:
        ids = cfg.eos_token_id if tokenizer is None else tokenizer.eos_token_id
        if ids is None:
            raise ValueError(
                "stop_at_eos needs to know the token that ends a text, and this model names none: "
                "pass eos_token_id, or stop_at_eos=False."
            )
    ids = (ids,) if isinstance(ids, int) and not isinstance(ids, bool) else ids
    if not isinstance(ids, Sequence) or isinstance(ids, str) or not ids:
        raise TypeError(f"eos_token_id is a token id or several, not {ids!r}.")
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, int):
            raise TypeError(f"eos_token_id is a token id or several, not {ids!r}.")
        if not 0 <= one < cfg.d_vocab:
            raise IndexError(
                f"eos_token_id {one} is out of range: this model has d_vocab = {cfg.d_vocab}, ids "
                f"0 to {cfg.d_vocab - 1}. Pass another, or stop_at_eos=False."
            )
    return tuple(ids)


def _stop_strings(
    tokenizer: Tokenizer | None, given: str | Sequence[str] | None
) -> tuple[str, ...]:
    if given is None:
        return ()
    strings = (given,) if isinstance(given, str) else given
    if tokenizer is None:
        raise ValueError("stop_strings are found in text, and this model has no tokenizer.")
    if not isinstance(strings, Sequence) or not all(isinstance(one, str) for one in strings):
        raise TypeError(f"stop_strings is a text or several, not {given!r}.")
    if not strings:
        raise ValueError("stop_strings is empty; None means that nothing but tokens stops a row.")
    if "" in strings:
        raise ValueError("an empty stop string would stop before the first token.")
    return tuple(strings)


def _seed(settings: Settings) -> int | None:
    if not settings.sampling.draws:
        return None
    # Not torch's own generator: what a caller draws from it next must not depend on this.
    return secrets.randbits(32) if settings.seed is None else settings.seed
