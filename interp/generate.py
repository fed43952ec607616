"""`generate` and `generate_stream`: the model speaks, one token at a time."""

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from hooks import Edit, HookFunction, HookPoint, When
from hooks.names import NameFilter, nearest
from interp.beams import beam_search
from interp.generation import Generation, GenerationStep
from interp.kv_cache import KeyValueCache
from interp.loop import Loop
from interp.plan import Plan, Settings, plan
from interp.run import Run, known_arguments
from interp.sampling import Sampling
from interp.tokenizer import TokenBatch
from interp.views import WeightViews

Listening = Sequence[tuple[NameFilter, HookFunction] | tuple[NameFilter, HookFunction, When]]
ReturnType = Literal["input", "text", "str", "tokens", "result"]

_RETURN_TYPES = {"input": "input", "text": "text", "str": "text", "tokens": "tokens"}
_RETURN_TYPES |= {"tensor": "tokens", "result": "result"}
_ELSEWHERE = {
    "padding_side": "Prompts of unequal length are always padded on the left here",
    "input_ids": "It is input",
    "inputs": "It is input",
    "max_tokens": "It is max_new_tokens",
    "max_length": "It is max_new_tokens, which leaves the prompt out",
    "stop": "It is stop_strings",
    "names_filter": "It is record",
    "n": "It is num_return_sequences",
    "n_samples": "It is num_return_sequences",
    "max_tokens_per_yield": "Every step is given out as it comes",
}


class GenerationStream(Iterator[Any]):
    """The steps of a generation as they come; `result` is what has come so far.

    Args:
        loop: the generation.
        kind: "text", "tokens" or "result".
        single: whether text is one string rather than one per row.
    """

    def __init__(self, loop: Loop, kind: str, single: bool) -> None:
        self._loop, self._kind, self._single = loop, kind, single
        self._steps = iter(loop)

    def __next__(self) -> Any:
        while True:
            step: GenerationStep = next(self._steps)
            if self._kind == "result":
                return step
            if self._kind == "tokens":
                return step.tokens
            text = list(step.text or ())
            if any(text):
                return text[0] if self._single else text

    @property
    def result(self) -> Generation:
        """What has come so far, as `generate(return_type="result")` gives it.

        Raises:
            ValueError: nothing has come yet.
        """
        return self._loop.result()


class Generating(WeightViews):
    """A model that generates. The methods are those of `HookedGPT2`."""

    tokenizer: Any
    hook_dict: dict[str, HookPoint]

    if TYPE_CHECKING:

        def _checked_run(self, *args: Any, **kwargs: Any) -> Run: ...

    def generate(
        self,
        input: str | Sequence[str] | TokenBatch | Tensor,
        max_new_tokens: int = 10,
        *,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        do_sample: bool | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        min_p: float | int | None = None,
        repetition_penalty: float | int = 1.0,
        freq_penalty: float | int = 0.0,
        num_beams: int = 1,
        length_penalty: float | int = 1.0,
        early_stopping: bool = False,
        num_return_sequences: int = 1,
        seed: int | None = None,
        edits: Edit | Sequence[Edit] = (),
        fwd_hooks: Listening = (),
        record: NameFilter | None = None,
        use_past_kv_cache: bool = True,
        past_kv_cache: KeyValueCache | None = None,
        prepend_bos: bool = True,
        attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
        return_type: ReturnType = "input",
        verbose: bool = False,
        **unknown: Any,
    ) -> str | list[str] | Int[Tensor, "row pos_plus_new"] | Generation:
        """Continue prompts.

        As in TransformerLens, tokens are drawn from the model's own distribution unless you say
        otherwise: `do_sample=False` (or `temperature=0`) takes the likeliest each time.

        Args:
            input: text, several texts (of any lengths), what `tokenize` gave, or token ids.
            max_new_tokens: how many at most. Prompt and new tokens together must fit into
                `n_ctx`: nothing is ever dropped to make room.
            stop_at_eos: end a row at a token that ends a text.
            eos_token_id: which token or tokens end a text; None: the tokenizer's end-of-text
                token (without tokenizer: the config's).
            stop_strings: texts that end a row when its new tokens spell one, wherever the borders
                between tokens are. They are looked for in the new text only. Everything the
                tokens spell is returned, the stop string and what its last token has beyond it
                included.
            do_sample: draw; None: yes, unless `num_beams` is above 1.
            temperature: what logits are divided by; 0 takes the likeliest token.
            top_k, top_p, min_p: draw from the `top_k` likeliest tokens; from the likeliest that
                together have probability `top_p`; from those at least `min_p` times as probable as
                the likeliest. All that are given apply, in this order, after the temperature.
            repetition_penalty: divides positive and multiplies negative logits of tokens that are
                in the row already (padding is not).
            freq_penalty: subtracted from a token's logit for each time it is in the row already.
            num_beams: above 1: beam search with so many beams.
            length_penalty: of beam search: a beam's score is its log-probability over its number
                of new tokens to this power.
            early_stopping: of beam search: end when `num_beams` have ended, whether or not others
                could still do better.
            num_return_sequences: continuations of each prompt, drawn one by one; of beam search,
                the best ones. Rows of one prompt stand next to each other.
            seed: of the draws; None: a new one each time, told by the result. No other random
                numbers are touched.
            edits: edits that are on all the while, or while their `when=` says. Positions are
                absolute: position 5 is edited in whichever pass it is computed. Negative ones
                need `when=PromptTokens()`.
            fwd_hooks: `(name, function)`, or `(name, function, when)`. A function gets what a pass
                computes: first the whole prompts, then one position at a time; `hook.positions`
                (`row pos`, -1 on padding) and `hook.step` say where that is. Functions added by
                `add_hook` or `hooks` take part too.
            record: points to keep, given as `names_filter` is: the result's `record` has them at
                all positions, as one forward pass over `tokens` would. That takes one pass more,
                over the last token.
            use_past_kv_cache: keep keys and values; otherwise every step computes everything
                again.
            past_kv_cache: keys and values of what comes before `input`; left as it is. Positions
                count from its beginning.
            prepend_bos: put `<|endoftext|>` before text; ids are taken as they are.
            attention_mask: `batch pos`, 1 or True on real tokens, with token ids.
            return_type: "text" (or "str"): prompt and continuation; a string for one string,
                unless there are several rows. "tokens": `row pos`, prompts padded on the left, new
                tokens on the right. "result": a `Generation`, with masks, log-probabilities and
                why each row ended. "input": text for text, tokens for tokens.
            verbose: show a bar (not for beams).

        Raises:
            ValueError, TypeError, IndexError, KeyError: an argument that does not fit, before
                anything is computed; says which and why.
            others: what a hook raises.
        """
        known_arguments(unknown, _TAKEN, "generate", _ELSEWHERE)
        one, ready = self._plan(
            input,
            max_new_tokens,
            stop_at_eos=stop_at_eos,
            eos_token_id=eos_token_id,
            stop_strings=stop_strings,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            freq_penalty=freq_penalty,
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            num_return_sequences=num_return_sequences,
            seed=seed,
            edits=edits,
            fwd_hooks=fwd_hooks,
            record=record,
            use_past_kv_cache=use_past_kv_cache,
            past_kv_cache=past_kv_cache,
            prepend_bos=prepend_bos,
            attention_mask=attention_mask,
        )
        kind = self._kind(input, return_type)
        if num_beams > 1:
            result = beam_search(ready)
        else:
            loop = Loop(ready, text=False)
            for _ in _shown(loop, max_new_tokens, verbose):
                pass
            result = loop.result()
        if kind == "result":
            return result
        if kind == "tokens":
            return result.tokens
        text = list(result.text or ())
        return text[0] if one and len(text) == 1 else text

    def generate_stream(
        self,
        input: str | Sequence[str] | TokenBatch | Tensor,
        max_new_tokens: int = 10,
        *,
        return_type: ReturnType = "input",
        **settings: Any,
    ) -> GenerationStream:
        """Continue prompts and give out each step as it comes.

        Args:
            input, max_new_tokens, settings: as in `generate` (without `num_beams` and `verbose`).
            return_type: "text": what became readable, whole characters only (a string; several
                rows: one string each, some empty); steps with which nothing did are passed over.
                "tokens": the new token of each row. "result": a `GenerationStep` with both,
                log-probabilities, and which rows have ended. "input": text for text, tokens for
                tokens.

        Returns:
            an iterator; its `result` is what has come so far, as a `Generation`. Leaving it early
            leaves nothing behind.

        Raises:
            others: as `generate`, at this call and not at the first step.
        """
        known = [name for name in _TAKEN if name != "verbose"]
        known_arguments(settings, known, "generate_stream", _ELSEWHERE)
        if settings.get("num_beams", 1) != 1:
            raise ValueError(
                "beams are decided at the end: generate() takes num_beams, a stream no."
            )
        one, ready = self._plan(input, max_new_tokens, **settings)
        kind = self._kind(input, return_type)
        rows = len(ready.tokens) * ready.settings.num_return_sequences
        text = kind != "tokens" and self.tokenizer is not None
        return GenerationStream(Loop(ready, text=text), kind, one and rows == 1)

    def _plan(
        self,
        input: Any,
        max_new_tokens: int,
        *,
        do_sample: bool | None = None,
        num_beams: int = 1,
        edits: Any = (),
        fwd_hooks: Any = (),
        record: NameFilter | None = None,
        past_kv_cache: KeyValueCache | None = None,
        prepend_bos: bool = True,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> tuple[bool, Plan]:
        """Whether the input is one text, and the generation, checked."""
        if past_kv_cache is not None and not isinstance(past_kv_cache, KeyValueCache):
            raise TypeError(f"past_kv_cache is a KeyValueCache, not {past_kv_cache!r}.")
        if not isinstance(input, str | Sequence | TokenBatch | Tensor):
            raise TypeError(
                f"input is text, several texts, a TokenBatch or token ids, not {input!r}."
            )
        max_new_tokens, num_beams = _plain(max_new_tokens), _plain(num_beams)
        others = {name: _plain(value) for name, value in others.items()}
        by_beams = isinstance(num_beams, int) and num_beams > 1
        if by_beams and do_sample:
            raise ValueError("beam search draws nothing: do_sample=True goes with num_beams=1.")
        drawn = {n: others.pop(n) for n in list(others) if n in Sampling.__dataclass_fields__}
        sampling = Sampling(do_sample=not by_beams if do_sample is None else do_sample, **drawn)
        settings = Settings(
            max_new_tokens=max_new_tokens, sampling=sampling, num_beams=num_beams, **others
        )
        run = self._checked_run(
            input,
            None,
            prepend_bos=prepend_bos,
            attention_mask=attention_mask,
            past_kv_cache=past_kv_cache,
        )
        ready = plan(
            self, run, settings, past=past_kv_cache, edits=edits, fwd_hooks=fwd_hooks, record=record
        )
        return isinstance(input, str), ready

    def _kind(self, input: object, return_type: object) -> str:
        kind = _RETURN_TYPES.get(return_type) if isinstance(return_type, str) else None
        if kind is None:
            raise ValueError(
                f"return_type is 'input', 'text' (or 'str'), 'tokens' or 'result', not "
                f"{return_type!r}.{nearest(str(return_type), _RETURN_TYPES)}"
            )
        if kind == "input":
            kind = "tokens" if isinstance(input, Tensor | TokenBatch) else "text"
        if kind == "text" and self.tokenizer is None:
            raise ValueError("return_type='text' needs a tokenizer, and this model has none.")
        return kind


def _plain(value: Any) -> Any:
    """A number of numpy as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _shown(loop: Loop, n: int, verbose: bool) -> Iterator[GenerationStep]:
    if not verbose:
        yield from loop
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(loop, "generating", total=n, console=Console(stderr=True), transient=True)


_TAKEN = [n for n in signature(Generating.generate).parameters if n not in ("self", "unknown")]
