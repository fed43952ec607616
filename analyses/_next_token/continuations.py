"""Continuations that callers ask about, as token ids."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analyses._arguments import listed, whole
from analyses.prompts import token_string
from interp import HookedGPT2, Tokenizer
from interp.tokenizer import TokenizerError

# So many tokens before the seam are shown in an error.
_SHOWN = 2


@dataclass(frozen=True)
class Continuation:
    """What may follow a prompt.

    Attributes:
        text: as it was given, or what the ids spell; None for ids of a model without tokenizer.
        ids: its tokens. Text is tokenised on its own, without `<|endoftext|>` before it.
        str_tokens: one string per token.
        from_text: whether it was given as text.
    """

    text: str | None
    ids: tuple[int, ...]
    str_tokens: tuple[str, ...]
    from_text: bool

    @property
    def name(self) -> str:
        """A name for tables and pictures."""
        return "".join(self.str_tokens) if self.text is None else self.text


def checked_continuations(model: HookedGPT2, given: Any) -> tuple[Continuation, ...]:
    """Continuations from what `next_token` takes.

    Raises:
        ValueError, IndexError, TypeError: see `next_token`.
    """
    found: list[Continuation] = []
    for one in listed(given):
        made = of_text(model, one) if isinstance(one, str) else _of_ids(model, one)
        if any(made.ids == other.ids for other in found):
            raise ValueError(f"continuation {one!r} is given twice (tokens {list(made.ids)})")
        found.append(made)
    return tuple(found)


def of_text(model: HookedGPT2, text: str) -> Continuation:
    """A text on its own.

    Raises:
        ValueError: it is empty, or `<|endoftext|>` stands before its end.
    """
    if not text:
        raise ValueError("a continuation is empty: expected text such as ' Mary', or token ids")
    batch = model.tokenize(text, prepend_bos=False)
    ids = tuple(batch.tokens[0].tolist())
    end = None if model.tokenizer is None else model.tokenizer.eos_token_id
    if end in ids[:-1]:
        raise ValueError(
            f"continuation {text!r} goes on after {token_string(model, ids[ids.index(end)])!r}, "
            f"which ends a text: it may be the last token only. (Token ids are taken as they are: "
            f"{list(ids)})"
        )
    return Continuation(text, ids, tuple(batch.str_tokens[0]), from_text=True)


def _of_ids(model: HookedGPT2, given: Any) -> Continuation:
    several = isinstance(given, Iterable) and getattr(given, "ndim", 1) == 1
    rule = "a continuation is text, a token id, or several ids in a list"
    ids = tuple(whole(id, rule) for id in (listed(given) if several else [given]))
    if not ids:
        raise ValueError("a continuation is empty: expected text such as ' Mary', or token ids")
    most = model.cfg.d_vocab_out
    for id in ids:
        if not 0 <= id < most:
            raise IndexError(
                f"token id {id} of a continuation is out of range: this model predicts tokens 0 "
                f"to {most - 1}"
            )
    text = None if model.tokenizer is None else str(model.to_string(list(ids)))
    return Continuation(text, ids, tuple(token_string(model, id) for id in ids), from_text=False)


def check_lengths(
    model: HookedGPT2, prompts: Sequence[Sequence[int]], asked: Sequence[Continuation]
) -> None:
    """Refuse continuations that do not fit into the context after a prompt.

    Raises:
        ValueError: says which.
    """
    n_ctx = model.cfg.n_ctx
    for number, ids in enumerate(prompts):
        for one in asked:
            # The last token of a continuation is predicted and not read.
            if len(ids) + len(one.ids) - 1 > n_ctx:
                which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
                raise ValueError(
                    f"{which} has {len(ids)} tokens and continuation {one.name!r} "
                    f"{len(one.ids)}: all but the last are read, and this model reads at most "
                    f"n_ctx = {n_ctx}"
                )


def check_seams(
    tokenizer: Tokenizer | None,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Continuation],
) -> None:
    """Refuse text that is tokenised in another way with the prompt than on its own.

    A prompt that ends in a blank is the usual case: `"to "` and `"Mary"` are `to`, blank, `Mary`,
    but `"to Mary"` is `to`, ` Mary`, and only that is what the model has learned from.

    Raises:
        ValueError: shows both.
    """
    for number, ids in enumerate(prompts):
        for one in continuations:
            together = None
            if tokenizer is not None and one.from_text:
                together = joint(tokenizer, ids, one)
            if tokenizer is None or together is None:
                continue
            which = f"prompt {number}" if len(prompts) > 1 else "this prompt"
            start = first_difference(together, [*ids, *one.ids])
            start = max(0, min(start, len(ids)) - _SHOWN)
            apart = [*tokenizer.to_str_tokens([*ids, *one.ids][start:])]
            raise ValueError(
                f"continuation {one.text!r} and {which} are tokenised otherwise together than "
                f"apart: together they end in {tokenizer.to_str_tokens(together[start:])}, apart "
                f"in {apart}. Probabilities of the tokens apart would not be those of the text. "
                f"Usually the blank belongs to the continuation and not to the end of the prompt; "
                f"where you do mean these tokens, give their ids (in Python): {list(one.ids)}"
            )


def joint(
    tokenizer: Tokenizer, prompt: Sequence[int], continuation: Continuation
) -> list[int] | None:
    """The tokens of prompt and continuation as one text, if they are others than those apart.

    None as well where the prompt's ids are not those of its text: then there is nothing that the
    tokenizer would say of both together.
    """
    bos = tokenizer.bos_token_id
    own = list(prompt[1:] if bos is not None and prompt[0] == bos else prompt)
    before = list(prompt[: len(prompt) - len(own)])
    try:
        text = str(tokenizer.to_string(own)) if own else ""
        if own and tokenizer.to_tokens(text, prepend_bos=False)[0].tolist() != own:
            return None
        both = text + str(continuation.text)
        together = tokenizer.to_tokens(both, prepend_bos=False)[0].tolist()
    except TokenizerError:  # ids that are in no text
        return None
    return None if together == [*own, *continuation.ids] else [*before, *together]


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first place at which two sequences differ, or the length of the shorter."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
