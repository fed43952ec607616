"""Beam search: the likeliest continuations as a whole, not token by token.

At every step each prompt has `num_beams` running beams.

1. Of all their continuations by one token, the best `num_beams * max(2, 1 + end tokens)` by total
   log-probability are the candidates: enough that `num_beams` of them go on.
2. Those that end (at an end token, with a stop string, or because there is no room for more) among
   the first `num_beams` candidates compete for `num_beams` places by log-probability over number
   of new tokens to the power `length_penalty`.
3. The best `num_beams` candidates that do not end run on.
4. A prompt is done when its places are taken and the best running beam, valued at its present
   length, is worse than the worst of them (or at once with `early_stopping`).

Checked against `transformers`' `generate(num_beams=...)`, whose rules these are. Penalties act on
log-probabilities here, as they do there.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.generation import Generation, StopReason
from interp.loop import assembled, refuse_not_finite
from interp.plan import Plan
from interp.text_stream import StopStrings, TextStream


@dataclass
class _Beams:
    """Continuations of every prompt.

    Attributes:
        tokens: the new tokens; padding after `length`.
        own, filtered: log-probability of each in the model's distribution, and after penalties.
        score: what they are compared by; -inf where there is none.
        length: how many new tokens.
    """

    tokens: Int[Tensor, "prompt beam step"]
    own: Float[Tensor, "prompt beam step"]
    filtered: Float[Tensor, "prompt beam step"]
    score: Float[Tensor, "prompt beam"]
    length: Int[Tensor, "prompt beam"]

    @staticmethod
    def none(n_prompts: int, n_beams: int, n_steps: int, pad: int, like: Tensor) -> "_Beams":
        shape = (n_prompts, n_beams, n_steps)
        return _Beams(
            torch.full(shape, pad, dtype=torch.long, device=like.device),
            like.new_full(shape, torch.nan),
            like.new_full(shape, torch.nan),
            like.new_full(shape[:2], -torch.inf),
            torch.zeros(shape[:2], dtype=torch.long, device=like.device),
        )

    def take(self, which: Int[Tensor, "prompt chosen"]) -> "_Beams":
        """Some of each prompt's."""
        deep = which[:, :, None].expand(-1, -1, self.tokens.shape[2])
        return _Beams(
            *(x.gather(1, deep) for x in (self.tokens, self.own, self.filtered)),
            *(x.gather(1, which) for x in (self.score, self.length)),
        )

    def best(self, n: int, *others: "_Beams") -> "_Beams":
        """The `n` best of each prompt, of these and others."""
        every = (self, *others)
        merged = _Beams(
            *(
                torch.cat([getattr(one, name) for one in every], dim=1)
                for name in ("tokens", "own", "filtered", "score", "length")
            )
        )
        return merged.take(merged.score.topk(n, dim=1).indices)


def beam_search(plan: Plan) -> Generation:
    """Run a plan with `num_beams` above 1.

    Raises:
        ValueError: the model gave logits that are not finite, or stop strings ended too few beams.
    """
    settings, passes = plan.settings, plan.passes
    n_prompts, k = len(plan.tokens), settings.num_beams
    n_steps = settings.max_new_tokens
    logits = passes.prompts()
    passes.fork(k)
    logits = logits.repeat_interleave(k, 0)
    counts = None
    if settings.sampling.counts_tokens:
        counts = passes.counted_tokens
    exact = logits if logits.dtype == torch.float64 else logits.float()
    running = _Beams.none(n_prompts, k, n_steps, plan.pad_id, exact)
    # All beams of a prompt are the same at first: only one may branch.
    running.score[:, 0] = 0.0
    ended = _Beams.none(n_prompts, k, n_steps, plan.pad_id, exact)
    open_ = torch.ones(n_prompts, dtype=torch.bool, device=exact.device)
    first_row = torch.arange(n_prompts, device=exact.device)[:, None] * k
    ends = _Ends(plan)
    for step in range(n_steps):
        own = logits.log_softmax(-1, dtype=exact.dtype)
        refuse_not_finite(own.amax(1).tolist(), step)
        candidates, parent = _candidates(plan, running, own, counts, step)
        hits = ends.of(candidates, step)
        ended = _with_ended(plan, ended, candidates, hits, open_, step)
        total = candidates.score.masked_fill(hits, -torch.inf)
        order = total.topk(k, dim=1).indices
        running = candidates.take(order)
        running.score = total.gather(1, order)
        best_running = running.score[:, 0] / (step + 1) ** settings.length_penalty
        taken = ended.score.isfinite().all(1)
        open_ = open_ & running.score[:, 0].isfinite()
        open_ &= ~taken | (best_running > ended.score.amin(1))
        if settings.early_stopping:
            open_ &= ~taken
        if not bool(open_.any()):
            break
        rows = (parent.gather(1, order) + first_row).flatten()
        passes.reorder(rows)
        tokens = running.tokens[:, :, step].flatten()
        if counts is not None:
            counts = counts[rows].scatter_add_(1, tokens[:, None], torch.ones_like(tokens)[:, None])
        logits = passes.next(tokens, [True] * len(tokens))
    return _result(plan, ended, ends)


def _candidates(
    plan: Plan,
    running: _Beams,
    own: Float[Tensor, "row d_vocab"],
    counts: Int[Tensor, "row d_vocab"] | None,
    step: int,
) -> tuple[_Beams, Int[Tensor, "prompt candidate"]]:
    """The best continuations of each prompt by one token, and which beams they continue."""
    n_prompts, k = running.score.shape
    d_vocab = own.shape[1]
    processed = plan.settings.sampling.processed(own, counts)
    total = running.score[:, :, None] + processed.view(n_prompts, k, d_vocab)
    n_kept = min(k * max(2, 1 + len(plan.stop_ids)), k * d_vocab)
    best, at = total.view(n_prompts, -1).topk(n_kept, dim=1)
    parent, token = at // d_vocab, at % d_vocab
    candidates = running.take(parent)
    candidates.score, candidates.length = best, candidates.length + 1
    candidates.tokens[:, :, step] = token
    candidates.own[:, :, step] = own.view(n_prompts, -1).gather(1, at)
    normalised = processed.log_softmax(-1) if processed is not own else own
    candidates.filtered[:, :, step] = normalised.view(n_prompts, -1).gather(1, at)
    return candidates, parent


def _with_ended(
    plan: Plan,
    ended: _Beams,
    candidates: _Beams,
    hits: Bool[Tensor, "prompt candidate"],
    open_: Bool[Tensor, " prompt"],
    step: int,
) -> _Beams:
    """The best that have ended, now that some of the candidates have."""
    k = plan.settings.num_beams
    eligible = hits & open_[:, None]
    eligible[:, k:] = False
    score = candidates.score / (step + 1) ** plan.settings.length_penalty
    scored = _Beams(
        candidates.tokens,
        candidates.own,
        candidates.filtered,
        score.masked_fill(~eligible, -torch.inf),
        candidates.length,
    )
    return ended.best(k, scored)


class _Ends:
    """Which beams have ended, and why."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ids = torch.tensor(plan.stop_ids, dtype=torch.long, device=plan.tokens.device)
        self._prompts = plan.prompt_ids()

    def of(self, beams: _Beams, step: int) -> Bool[Tensor, "prompt beam"]:
        """Whether the token of this step ends a beam."""
        last = step == self._plan.settings.max_new_tokens - 1
        hits = torch.isin(beams.tokens[:, :, step], self._ids) | last
        if self._plan.stop_strings:
            for prompt, row in enumerate(beams.tokens[:, :, : step + 1].tolist()):
                for beam, ids in enumerate(row):
                    if self.string(prompt, ids) is not None:
                        hits[prompt, beam] = True
        return hits

    def string(self, prompt: int, ids: list[int]) -> str | None:
        """The stop string in the text of new tokens."""
        tokenizer = self._plan.tokenizer
        if tokenizer is None or not self._plan.stop_strings:
            return None
        stream = TextStream(tokenizer, self._prompts[prompt])
        text = "".join(stream.push(id) for id in ids if id not in self._plan.stop_ids)
        return StopStrings(self._plan.stop_strings).push(text)

    def why(self, prompt: int, ids: list[int]) -> tuple[StopReason, str | None]:
        """Why a beam has ended."""
        if ids[-1] in self._plan.stop_ids:
            return "end_of_text", None
        string = self.string(prompt, ids)
        return ("max_new_tokens", None) if string is None else ("stop_string", string)


def _result(plan: Plan, ended: _Beams, ends: _Ends) -> Generation:
    n = plan.settings.num_return_sequences
    found = ended.score[:, :n]
    if not bool(found.isfinite().all()):
        raise ValueError(
            f"stop strings ended so many beams that fewer than num_return_sequences={n} are left "
            f"for some prompt: use more beams."
        )
    prompt = [i for i in range(len(plan.tokens)) for _ in range(n)]
    lengths = ended.length[:, :n].flatten()
    longest = int(lengths.max())
    chosen, own, filtered = (
        x[:, :n, :longest].flatten(0, 1) for x in (ended.tokens, ended.own, ended.filtered)
    )
    real = torch.arange(longest, device=chosen.device) < lengths[:, None]
    reasons: list[Any] = [
        ends.why(prompt[row], ids[:length])
        for row, (ids, length) in enumerate(zip(chosen.tolist(), lengths.tolist(), strict=True))
    ]
    return assembled(
        plan,
        prompt,
        chosen,
        real,
        own,
        filtered,
        tuple(reason for reason, _ in reasons),
        tuple(string for _, string in reasons),
        scores=found.flatten(),
    )
