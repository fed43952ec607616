"""Going on token by token from a prompt: in Python, and as a conversation in the terminal."""

from collections.abc import Iterator
from dataclasses import replace
from io import TextIOBase
from typing import TYPE_CHECKING, NamedTuple, TextIO

import torch
from torch import Tensor

from analyses import cli, report
from analyses._arguments import whole
from analyses._next_token.continuations import first_difference, joint, of_text
from analyses._next_token.result import NextToken
from analyses._next_token.run import (
    checked_temperature,
    checked_top_k,
    hidden_states,
    read,
)
from analyses._next_token.surprisal import Surprisal, surprisal
from analyses.prompts import token_string
from interp import HookedGPT2, KeyValueCache

if TYPE_CHECKING:
    from rich.console import Console

HELP = (
    "a rank (0 is the likeliest) adds that token; u goes back; s shows the surprisal so far; "
    "q ends; any other line is text, blanks included, and after = also u, s, q and numbers are "
    "(=42)"
)


class _State(NamedTuple):
    """Where one can go back to."""

    length: int
    hidden: Tensor  # what the final layer norm gave after that many tokens


class Session:
    """A text that grows, and what the model predicts after it.

    Every token is read once: going back forgets its keys and values, and what was predicted before
    it is still there.

    Args:
        model: what predicts. Functions that are active on it count; they see the prompt in one
            pass, and then what is added.
        prompt: the text to begin with.
        top_k: how many predictions to show.
        temperature: what logits are divided by before the softmax.
        prepend_bos: put `<|endoftext|>` before the prompt.

    Attributes:
        ids: the tokens so far.

    Raises:
        ValueError, TypeError: as `next_token`.
    """

    def __init__(
        self,
        model: HookedGPT2,
        prompt: str,
        *,
        top_k: int = 10,
        temperature: float | int = 1.0,
        prepend_bos: bool = True,
    ) -> None:
        self._model = model
        self._top_k = checked_top_k(model, top_k)
        self._temperature = checked_temperature(temperature)
        self._prepend_bos = prepend_bos
        self._cache = KeyValueCache.init_cache(model.cfg, model.device, dtype=model.dtype)
        self._states: list[_State] = []
        self.ids: list[int] = []
        self._read(model.tokenize(prompt, prepend_bos=prepend_bos).tokens[0].tolist())

    # ---------------------------------------------------------------- what there is

    @property
    def text(self) -> str:
        """The text so far, without the `<|endoftext|>` that was put before it."""
        return str(self._model.to_string(self.ids[1:] if self._prepend_bos else self.ids))

    @property
    def added(self) -> str:
        """What was added to the prompt."""
        return str(self._model.to_string(self.ids[self._states[0].length :]))

    def prediction(self) -> NextToken:
        """What comes next: as `next_token` gives it, for the tokens so far."""
        numbers = read(self._model, self._states[-1].hidden[None], self._top_k, self._temperature)
        shown = sorted({*self.ids, *numbers.top_tokens[0].tolist()})
        none = numbers.top_logits.new_empty(1, 0, 0)
        return NextToken(
            tokens=(tuple(self.ids),),
            prepend_bos=self._prepend_bos,
            strings={id: token_string(self._model, id) for id in shown},
            provenance=report.Provenance.of(self._model, "Session(model, ...).prediction()"),
            temperature=self._temperature,
            top_tokens=numbers.top_tokens,
            top_logits=numbers.top_logits,
            top_log_probs=numbers.top_log_probs,
            entropy=numbers.entropy,
            continuations=(),
            continuation_logits=none,
            continuation_log_probs=none,
            continuation_ranks=none.long(),
            continuation_entropy=none,
        )

    def surprisal(self) -> Surprisal:
        """The surprisal of each token so far, in the model's own distribution (temperature 1)."""
        result = surprisal(self._model, torch.tensor(self.ids))
        return replace(result, prepend_bos=self._prepend_bos)

    # ---------------------------------------------------------------- going on

    def pick(self, rank: int) -> str:
        """Add the token of a rank, 0 being the likeliest; also one that is not shown.

        Returns:
            its string.

        Raises:
            IndexError, TypeError: there is no such rank.
            ValueError: the context is full.
        """
        rank, most = whole(rank, "a rank is a whole number"), self._model.cfg.d_vocab_out
        if not 0 <= rank < most:
            raise IndexError(f"rank {rank} is out of range: 0 to {most - 1}")
        # With ties, the token that is shown at this rank.
        kept = max(self._top_k, rank + 1)
        numbers = read(self._model, self._states[-1].hidden[None], kept, self._temperature)
        id = int(numbers.top_tokens[0, rank])
        self._read([id])
        return token_string(self._model, id)

    def write(self, text: str) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        """Add a text, which is tokenised on its own.

        Returns:
            its tokens; and where it would be tokenised in another way together with the text so
            far, how that would end (from the first token on that is not the same), else None.

        Raises:
            ValueError: the text is empty, or too long for what is left of the context.
            TypeError: no text.
        """
        if not isinstance(text, str):
            raise TypeError(f"write takes a text, not {text!r}")
        one = of_text(self._model, text)
        other = None
        if self._model.tokenizer is not None:
            together = joint(self._model.tokenizer, self.ids, one)
            if together is not None:
                same = first_difference(together, self.ids)
                other = tuple(self._model.to_str_tokens(together[same:]))
        self._read(list(one.ids))
        return one.str_tokens, other

    def back(self) -> None:
        """Take back what was added last.

        Raises:
            ValueError: nothing was added.
        """
        if len(self._states) == 1:
            raise ValueError("there is nothing to take back: this is the prompt")
        self._states.pop()
        del self.ids[self._states[-1].length :]
        self._cache.rewind(len(self.ids))

    def _read(self, ids: list[int]) -> None:
        n_ctx, length = self._model.cfg.n_ctx, len(self.ids) + len(ids)
        if length > n_ctx:
            raise ValueError(
                f"{len(ids)} more token{'s'[: len(ids) != 1]} make {length}, and this model reads "
                f"at most n_ctx = {n_ctx}"
            )
        tokens = torch.tensor([ids], device=self._model.device)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        hidden = hidden_states(self._model, tokens, mask, self._cache, last_only=True)[0, 0]
        self.ids += ids
        self._states.append(_State(length, hidden))


# ------------------------------------------------------------------ in the terminal


def converse(session: Session, console: "Console", stream: TextIO | TextIOBase) -> None:
    """Show what is predicted, read what the reader chooses, go on, until `q` or the end of input.

    Raises:
        CommandError: the input ends before its first line.
    """
    from analyses._views import next_token as views

    console.print(HELP, style="dim")
    views.show_state(session, console)
    said_something = False
    for line in _lines(console, stream):
        said_something = True
        if line == "q":
            break
        try:
            if line == "":
                console.print(HELP, style="dim")
                continue
            if line == "s":
                views.show_surprisal(session.surprisal(), console)
                continue
            _do(session, console, line)
        except (ValueError, LookupError) as error:
            console.print(f"not possible: {error}", style="bold", soft_wrap=True)
            continue
        views.show_state(session, console)
    if not said_something:
        raise cli.CommandError(
            "--interactive reads standard input, which ended at once: run it in a terminal, or "
            "give it lines (0, ' text', u, s, q)"
        )
    console.print()
    views.show_text(session.text, console)


def _do(session: Session, console: "Console", line: str) -> None:
    if line == "u":
        session.back()
    elif line.isdecimal():
        session.pick(int(line))
    else:
        tokens, other = session.write(line[1:] if line.startswith("=") else line)
        console.print(f"added {_shown(tokens)}", style="dim", soft_wrap=True)
        if other is not None:
            console.print(
                f"note: as one text with what stands before it would end in {_shown(other)}; a "
                f"token usually begins with its blank",
                style="bold",
                soft_wrap=True,
            )


def _shown(tokens: tuple[str, ...]) -> str:
    return " ".join(cli.visible(token) for token in tokens)


def _lines(console: "Console", stream: TextIO | TextIOBase) -> Iterator[str]:
    """Lines without their ends; those that come through a pipe are shown as if typed."""
    typed = stream.isatty()
    while True:
        console.print()
        if typed:
            try:
                line = input("> ") + "\n"  # with the editing of lines that Python offers
            except EOFError:
                line = ""
        else:
            line = stream.readline()
        if not line:
            return
        line = line.removesuffix("\n").removesuffix("\r")
        if not typed:
            console.print(f"> {cli.printable_path(line)}", soft_wrap=True)
        yield line
