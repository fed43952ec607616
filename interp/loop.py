"""The loop over new tokens: draw (or take the likeliest), see what has ended, go on."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.generation import Generation, GenerationStep, StopReason
from interp.plan import Plan
from interp.text_stream import StopStrings, TextStream


class Loop:
    """Draws (or takes the likeliest of) the next token of every row until all have ended.

    Args:
        plan: what to do.
        text: whether to tell the text of each step.
    """

    def __init__(self, plan: Plan, *, text: bool) -> None:
        self._plan = plan
        n = plan.settings.num_return_sequences
        self.prompt = [i for i in range(len(plan.tokens)) for _ in range(n)]
        self._told: list[GenerationStep] = []
        self._real: list[tuple[bool, ...]] = []
        self._stopped: list[StopReason | None] = [None] * len(self.prompt)
        self._strings: list[str | None] = [None] * len(self.prompt)
        self._streams: list[TextStream] | None = None
        tokenizer = plan.tokenizer
        if tokenizer is not None and (text or plan.stop_strings):
            ids = plan.prompt_ids()
            self._streams = [TextStream(tokenizer, ids[i]) for i in self.prompt]
        self._watches = [StopStrings(plan.stop_strings) for _ in self.prompt]
        self._done = False

    def __iter__(self) -> Iterator[GenerationStep]:
        """The steps, as they come."""
        plan, settings = self._plan, self._plan.settings
        sampling, passes = settings.sampling, plan.passes
        generator = None
        if plan.seed is not None:
            generator = torch.Generator().manual_seed(plan.seed)
        logits = passes.prompts()
        counts = passes.counted_tokens if sampling.counts_tokens else None
        n = settings.num_return_sequences
        if n > 1:
            passes.fork(n)
            logits = logits.repeat_interleave(n, 0)
            counts = None if counts is None else counts.repeat_interleave(n, 0)
        for step in range(settings.max_new_tokens):
            one = self._step(step, logits, counts, generator)
            self._told.append(one)
            real = self._real[-1]
            last = step == settings.max_new_tokens - 1 or None not in one.stopped
            if last and plan.record:
                passes.next(one.tokens, real)
            self._done = last
            yield one
            if last:
                return
            if counts is not None:
                ones = torch.tensor(real, dtype=torch.long, device=counts.device)
                counts.scatter_add_(1, one.tokens[:, None], ones[:, None])
            logits = passes.next(one.tokens, real)

    def _step(
        self,
        step: int,
        logits: Float[Tensor, "row d_vocab"],
        counts: Tensor | None,
        generator: torch.Generator | None,
    ) -> GenerationStep:
        plan = self._plan
        sampling = plan.settings.sampling
        real = tuple(reason is None for reason in self._stopped)
        exact = logits if logits.dtype == torch.float64 else logits.float()
        total = exact.logsumexp(1)
        alive = [n for n, on in zip(total.tolist(), real, strict=True) if on]
        refuse_not_finite(alive, step)  # before a draw from it
        processed = sampling.processed(exact, counts)
        tokens = sampling.choose(processed, generator)
        own = _at(exact, tokens) - total
        filtered = own
        if processed is not exact:
            filtered = _at(processed, tokens) - processed.logsumexp(1)
        if not all(real):
            going = torch.tensor(real, device=tokens.device)
            tokens = tokens.where(going, plan.pad_id)
            own, filtered = (x.masked_fill(~going, torch.nan) for x in (own, filtered))
        ids = tokens.tolist()
        pieces = [self._text(row, id) if real[row] else "" for row, id in enumerate(ids)]
        self._end_rows(step, ids, real, pieces)
        self._real.append(real)
        return GenerationStep(
            step=step,
            tokens=tokens,
            text=None if self._streams is None else tuple(pieces),
            log_probs=own,
            filtered_log_probs=filtered,
            stopped=tuple(self._stopped),
        )

    def _text(self, row: int, id: int) -> str:
        if self._streams is None:
            return ""
        if id in self._plan.stop_ids:
            return self._streams[row].finish()
        return self._streams[row].push(id)

    def _end_rows(self, step: int, ids: list[int], real: Sequence[bool], pieces: list[str]) -> None:
        plan = self._plan
        last = step == plan.settings.max_new_tokens - 1
        for row, id in enumerate(ids):
            if not real[row]:
                continue
            if id in plan.stop_ids:
                self._stopped[row] = "end_of_text"
                continue
            string = self._watches[row].push(pieces[row])
            if string is not None:
                self._stopped[row], self._strings[row] = "stop_string", string
            elif last:
                self._stopped[row] = "max_new_tokens"
            if self._stopped[row] is not None and self._streams is not None:
                pieces[row] += self._streams[row].finish()

    def result(self) -> Generation:
        """All that has come, as one value.

        Raises:
            ValueError: nothing has.
        """
        plan = self._plan
        if not self._told:
            raise ValueError("no token has come yet: take a step of the stream first.")
        chosen = torch.stack([one.tokens for one in self._told], dim=1)
        real = torch.tensor(self._real, device=chosen.device).T
        return assembled(
            plan,
            self.prompt,
            chosen,
            real,
            torch.stack([one.log_probs for one in self._told], dim=1),
            torch.stack([one.filtered_log_probs for one in self._told], dim=1),
            tuple(self._stopped),
            tuple(self._strings),
            recorded=self._done and bool(plan.record),
        )


def refuse_not_finite(numbers: Sequence[float], step: int) -> None:
    """Raise ValueError unless all are finite, of which one stands for the logits of each row."""
    if not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"the logits that predict new token {step} are not finite: a hook, an edit, or the "
            f"dtype made them so."
        )


def _at(logits: Float[Tensor, "row d_vocab"], tokens: Int[Tensor, " row"]) -> Tensor:
    return logits.gather(1, tokens[:, None])[:, 0]


def assembled(
    plan: Plan,
    prompt: Sequence[int],
    chosen: Int[Tensor, "row step"],
    real: Bool[Tensor, "row step"],
    log_probs: Float[Tensor, "row step"],
    filtered_log_probs: Float[Tensor, "row step"],
    stopped: tuple[StopReason | None, ...],
    stop_strings: tuple[str | None, ...],
    *,
    scores: Float[Tensor, " row"] | None = None,
    recorded: bool = False,
) -> Generation:
    """The result of rows of new tokens."""
    rows = torch.tensor(list(prompt), device=plan.tokens.device)
    tokens = torch.cat([plan.tokens[rows], chosen], dim=1)
    mask = torch.cat([plan.mask[rows], real], dim=1)
    tokens = tokens.masked_fill(~mask, plan.pad_id)
    str_tokens = text = new_text = None
    if plan.tokenizer is not None:
        str_tokens = [plan.tokenizer.to_str_tokens(row) for row in tokens]
        prompts = plan.prompt_ids()
        text, new_text = [], []
        for row, (number, reason) in enumerate(zip(prompt, stopped, strict=True)):
            ids = chosen[row][real[row]].tolist()
            ids = ids[:-1] if reason == "end_of_text" else ids
            stream = TextStream(plan.tokenizer, prompts[number][bool(plan.prepend_bos) :])
            new_text.append("".join(map(stream.push, ids)) + stream.finish())
            text.append(stream.text_before + new_text[-1])
    record = None
    if recorded:
        record = plan.passes.record(
            tokens=tokens,
            attention_mask=None if bool(mask.all()) else mask,
            str_tokens=str_tokens,
            prepend_bos=plan.prepend_bos,
            n_layers=plan.model.cfg.n_layers,
        )
    return Generation(
        tokens=tokens,
        attention_mask=mask,
        str_tokens=str_tokens,
        prepend_bos=plan.prepend_bos,
        prompt=tuple(prompt),
        prompt_lengths=tuple(plan.lengths[number] for number in prompt),
        log_probs=log_probs,
        filtered_log_probs=filtered_log_probs,
        stopped=stopped,
        stop_strings=stop_strings,
        text=None if text is None else tuple(text),
        new_text=None if new_text is None else tuple(new_text),
        seed=plan.seed,
        scores=scores,
        record=record,
    )
