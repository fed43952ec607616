r"""The logit lens: what would the model predict if it stopped after this layer?

1. Run the model once and keep the residual stream before, in the middle of and after every block.
2. Take each through the *final* layer norm and the unembedding, as if no layer came after it.
3. Read the result as a next-token distribution: its likeliest tokens, its entropy, the rank and
   log-probability of chosen targets, and how far it is from what the model finally predicts.

The lens at the last residual is the model's own prediction. `attn_out` and `mlp_out` take what one
attention layer or MLP wrote, alone, through the same two maps. The final layer norm then divides by
the scale of that output and not by that of the whole residual, so this shows which tokens it points
to, not how much it adds to their logits.

Sources: nostalgebraist, "interpreting GPT: the logit lens" (2020), LessWrong. What is missing from
it: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (2023),
arXiv 2303.08112: early layers write in other bases than late ones, so a lens without learned
translators is biased there (section 2); they measure it by the same KL divergence as here.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, SupportsIndex

import typer

from analyses import cli, report
from analyses._views import logit_lens as views

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch
    from jaxtyping import Float, Int, Int64
    from torch import Tensor
    from torch.nn.utils.rnn import pad_sequence

    from hooks.names import nearest
    from interp import HookedGPT2, TokenBatch

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

# In order of the forward pass.
POINTS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
RESIDUAL = ("resid_pre", "resid_mid", "resid_post")

# So many bytes of distributions over the vocabulary are made at a time, however many points and
# positions are asked for. They take about ten times that in passing; larger pieces are no faster.
_CHUNK_BYTES = 8 * 2**20


class LensPoint(NamedTuple):
    """Where in the model the lens looks.

    Attributes:
        layer: block, from 0.
        point: one of `POINTS`.
    """

    layer: int
    point: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.point}"

    @property
    def hook(self) -> str:
        """The full name of the hook point."""
        return f"blocks.{self.layer}.hook_{self.point}"


# ------------------------------------------------------------------ the question


def logit_lens(
    model: HookedGPT2,
    tokens: str | Sequence[str] | TokenBatch | Int[Tensor, "batch pos"] | Int[Tensor, " pos"],
    *,
    points: str | Sequence[str] = RESIDUAL,
    positions: SupportsIndex | Sequence[SupportsIndex] | str = -1,
    top_k: SupportsIndex = 5,
    targets: str | SupportsIndex | Sequence[str | SupportsIndex] = (),
    prepend_bos: bool = True,
    attention_mask: Tensor | None = None,
) -> LogitLens:
    """Read every residual as a prediction of the next token.

    Costs about one forward pass for the last position: only the positions asked for are
    unembedded, and distributions over the vocabulary are made a few megabytes at a time, so memory
    does not grow with their number. Points that are one tensor (what leaves a block enters the
    next) are read once; the result answers to both names.

    The final layer norm and unembedding are applied to what the run gives at the points, so hooks
    that are active on the model count, except at `ln_final`. Where a hook listens at a `resid_pre`,
    what enters that block may not be what left the one before: both are read then.

    Args:
        model: what is looked into; stays as it is.
        tokens: text, several texts, what `model.tokenize` gives, or token ids (taken as they are).
        points: which of `POINTS`; by default every point of the residual stream.
        positions: which tokens of each prompt, counted without padding; negative ones from its
            end, -1 being its last token. "all" for all. Whole numbers of numpy and torch do too.
        top_k: how many predictions to keep, 1 to d_vocab.
        targets: tokens to follow, as text that is one token (`" Mary"`) or as ids.
        prepend_bos: put `<|endoftext|>` before text.
        attention_mask: `batch pos` (or `pos`, of one prompt), 1 or True on real tokens; with token
            ids only.

    Returns:
        The lens, on the CPU. Log-probabilities, entropies and divergences are natural (nats), in
        float32, or float64 for a float64 model.

    Raises:
        ValueError, IndexError, TypeError: an unknown point, a position or top_k out of range or no
            whole number, a target that is no single token, a token of a prompt or a target asked
            for twice, or what `model.tokenize` and a run refuse.
    """
    n_layers, d_vocab = model.cfg.n_layers, model.cfg.d_vocab_out
    names = _checked_points(points)
    top_k = _whole(top_k, "top_k is a whole number")
    if not 1 <= top_k <= d_vocab:
        raise ValueError(
            f"top_k={top_k} is out of range: this model has 1 to {d_vocab} predictions"
        )
    asked = _asked_positions(positions)
    target_ids = _target_ids(model, targets)
    call = (
        f"logit_lens(model, ..., points={names!r}, positions={asked!r}, top_k={top_k}, "
        f"targets={_listed(targets)!r}, prepend_bos={prepend_bos})"
    )
    forward: dict[str, Any] = {}
    if isinstance(tokens, torch.Tensor):
        run_input, mask = _checked_ids(tokens, attention_mask)
        if attention_mask is not None:
            forward["attention_mask"] = attention_mask.reshape(run_input.shape)
        all_ids, with_bos = run_input, None
    else:
        if attention_mask is not None:
            raise ValueError("text brings its own mask: attention_mask goes with token ids")
        is_batch = isinstance(tokens, TokenBatch)
        run_input = tokens if is_batch else model.tokenize(tokens, prepend_bos=prepend_bos)
        mask = run_input.attention_mask.cpu()
        all_ids, with_bos = run_input.tokens, run_input.prepend_bos
    columns = [row.nonzero()[:, 0] for row in mask]
    position = _positions(asked, [len(c) for c in columns])

    # Every (prompt, slot) to look at, and the column of the token tensor it is in.
    rows, slots = (position >= 0).nonzero(as_tuple=True)
    wanted = pad_sequence(columns, batch_first=True)[rows, position[rows, slots]]
    kept, place = wanted.unique(return_inverse=True)

    same_as = _second_names(model)
    looked = [
        point
        for layer in range(n_layers)
        for point in (LensPoint(layer, name) for name in names)
        if not (point.point == "resid_pre" and point in same_as and "resid_post" in names)
    ]
    final = LensPoint(n_layers - 1, "resid_post")
    # With the residual as output (`stop_at_layer`) the model unembeds nothing itself.
    with torch.no_grad():
        _, cache = model.run_with_cache(
            run_input,
            stop_at_layer=n_layers,
            names_filter=[point.hook for point in {*looked, final}],
            pos_slice=None if len(kept) == mask.shape[1] else kept.tolist(),
            **forward,
        )
        # point -> what is there at the wanted tokens: [token, d_model]
        at_rows, at_place = rows.to(model.device), place.to(model.device)
        seen = {p: cache[p.hook][at_rows, at_place] for p in {*looked, final}}
        numbers = _read(model, seen, looked, final, top_k, target_ids)

    def unfold(values: Tensor) -> Tensor:
        """From [point, token, ...] to [point, batch, pos, ...]; padding is -1 or NaN."""
        empty = math.nan if values.is_floating_point() else -1
        out = values.new_full((len(looked), *position.shape, *values.shape[2:]), empty)
        out[:, rows, slots] = values
        return out

    ids = [row[m].tolist() for row, m in zip(all_ids.cpu(), mask, strict=True)]
    top_tokens = unfold(numbers.top_tokens)
    shown = {*numbers.top_tokens.unique().tolist(), *target_ids, *(i for row in ids for i in row)}
    return LogitLens(
        n_layers=n_layers,
        tokens=tuple(map(tuple, ids)),
        prepend_bos=with_bos,
        strings={id: _string(model, id) for id in sorted(shown)},
        points=tuple(looked),
        same_as=same_as,
        position=position,
        top_tokens=top_tokens,
        top_log_probs=unfold(numbers.top_log_probs),
        entropy=unfold(numbers.entropy),
        kl_final_lens=unfold(numbers.kl),
        targets=tuple(target_ids),
        target_log_probs=unfold(numbers.target_log_probs),
        target_ranks=unfold(numbers.target_ranks),
        provenance=report.Provenance.of(model, call),
    )


def _second_names(model: HookedGPT2) -> dict[LensPoint, LensPoint]:
    """The other name of each tensor that has two: what leaves a block enters the next."""
    names: dict[LensPoint, LensPoint] = {}
    for layer in range(1, model.cfg.n_layers):
        leaves, enters = LensPoint(layer - 1, "resid_post"), LensPoint(layer, "resid_pre")
        # A function there may let another tensor enter.
        if not model.hook_dict[enters.hook].fwd_hooks:
            names |= {leaves: enters, enters: leaves}
    return names


def lens_logits(
    model: HookedGPT2, residual: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_vocab"]:
    """What the lens sees in residuals: the final layer norm and the unembedding applied to them.

    At the last `resid_post` these are the model's logits.
    """
    return model.unembed(model.ln_final(residual))


class _Numbers(NamedTuple):
    """What is read off the distributions at points and tokens, on the CPU."""

    top_tokens: Tensor  # point token k
    top_log_probs: Tensor  # point token k
    entropy: Tensor  # point token
    kl: Tensor  # point token
    target_log_probs: Tensor  # point token target
    target_ranks: Tensor  # point token target


def _read(
    model: HookedGPT2,
    seen: Mapping[LensPoint, Tensor],
    looked: Sequence[LensPoint],
    final: LensPoint,
    top_k: int,
    target_ids: Sequence[int],
) -> _Numbers:
    """The numbers of every point and token, a few distributions at a time."""
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    at_once = max(1, _CHUNK_BYTES // (model.cfg.d_vocab_out * dtype.itemsize))
    targets = torch.tensor(target_ids, dtype=torch.int64, device=model.device)
    n_tokens = len(seen[final])
    chunks: list[_Numbers] = []
    for start in cli.progress(range(0, n_tokens, at_once), "logit lens"):
        here = slice(start, start + at_once)
        size = min(at_once, n_tokens - start)
        # The final distribution first: all others are compared with it.
        order = [final, *(point for point in looked if point != final)]
        groups = at_once // size
        last = torch.empty(0)
        found: dict[LensPoint, _Numbers] = {}
        for first in range(0, len(order), groups):
            group = order[first : first + groups]
            logits = lens_logits(model, torch.stack([seen[p][here] for p in group]))
            log_probs = logits.log_softmax(-1, dtype=dtype)  # point token d_vocab
            if first == 0:
                last = log_probs[0]
            top_log_probs, top_tokens = log_probs.topk(top_k)
            probs = log_probs.exp()
            of_targets = log_probs[..., targets]
            # Ties share the best rank. Compared in the model's own numbers, where ties are exact.
            ranks = [(logits > logits[..., t, None]).sum(-1) for t in target_ids]
            numbers = _Numbers(
                top_tokens,
                top_log_probs,
                # -0.0 for a distribution that is certain would print as such.
                -torch.where(probs == 0, 0.0, probs * log_probs).sum(-1) + 0.0,
                _kl(last, log_probs),
                of_targets,
                torch.stack(ranks, -1) if ranks else top_tokens[..., :0],
            )
            for index, point in enumerate(group):
                found[point] = _Numbers(*(values[index].cpu() for values in numbers))
        chunks.append(_Numbers(*map(torch.stack, zip(*(found[p] for p in looked), strict=True))))
    return _Numbers(*(torch.cat(parts, dim=1) for parts in zip(*chunks, strict=True)))


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats, from log-probabilities; what p holds impossible counts nothing."""
    probs = p.exp()
    # Rounding can leave a sum that is 0 a hair below it.
    return torch.where(probs == 0, 0.0, probs * (p - q)).sum(-1).clamp_min(0.0)


# ------------------------------------------------------------------ checking arguments


def _checked_points(points: str | Sequence[str]) -> tuple[str, ...]:
    names = [points] if isinstance(points, str) else list(points)
    if not names:
        raise ValueError(f"points is empty; expected some of {', '.join(POINTS)}")
    for name in names:
        if name not in POINTS:
            raise ValueError(
                f"unknown point {name!r}.{nearest(str(name), POINTS)} Expected some of "
                f"{', '.join(POINTS)}"
            )
    return tuple(name for name in POINTS if name in names)


def _checked_ids(tokens: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ids as `batch pos`, and which of them are real; the run checks the rest."""
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ValueError(f"tokens are batch pos, or pos, not of shape {tuple(tokens.shape)}")
    if attention_mask is None:
        return tokens, torch.ones(tokens.shape, dtype=torch.bool)
    if attention_mask.ndim == 1 and len(tokens) == 1:
        attention_mask = attention_mask[None]
    if attention_mask.shape != tokens.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, the tokens "
            f"{tuple(tokens.shape)}"
        )
    mask = attention_mask.cpu().bool()
    if not bool(mask.any(dim=1).all()):
        raise ValueError("attention_mask leaves a prompt without any token")
    return tokens, mask


def _listed(given: Any) -> list[Any]:
    """One thing or several as a list, numbers of numpy and torch as Python's own."""
    one = isinstance(given, str) or not isinstance(given, Iterable)
    several: list[Any] = [given] if one or getattr(given, "ndim", 1) == 0 else list(given)
    return [item.item() if getattr(item, "ndim", None) == 0 else item for item in several]


def _whole(value: Any, rule: str) -> int:
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{rule}, not {value!r}")


def _asked_positions(
    positions: SupportsIndex | Sequence[SupportsIndex] | str,
) -> list[int] | str:
    if isinstance(positions, str):
        if positions != "all":
            raise ValueError(f"positions is 'all', a number or several, not {positions!r}")
        return positions
    asked = [_whole(position, "a position is a whole number") for position in _listed(positions)]
    if not asked:
        raise ValueError("positions is empty; expected 'all', a number or several")
    return asked


def _positions(asked: list[int] | str, lengths: Sequence[int]) -> Int64[Tensor, "batch pos"]:
    """The positions asked for in each prompt, from 0; -1 fills rows of shorter prompts."""
    if isinstance(asked, str):
        each = torch.arange(max(lengths)).expand(len(lengths), -1)
        return torch.where(each < torch.tensor(lengths)[:, None], each, -1)
    for row, length in enumerate(lengths):
        which = f"prompt {row}" if len(lengths) > 1 else "the prompt"
        seen: dict[int, int] = {}
        for position in asked:
            if not -length <= position < length:
                raise IndexError(
                    f"position {position} is out of range: {which} has {length} tokens, 0 to "
                    f"{length - 1} (or -{length} to -1)"
                )
            if position % length in seen:
                raise ValueError(
                    f"positions {seen[position % length]} and {position} are the same token of "
                    f"{which}, which has {length}: ask for it once"
                )
            seen[position % length] = position
    return torch.tensor([[p % length for p in asked] for length in lengths])


def _target_ids(
    model: HookedGPT2, targets: str | SupportsIndex | Sequence[str | SupportsIndex]
) -> list[int]:
    ids: list[int] = []
    for target in _listed(targets):
        if isinstance(target, str):
            id = model.to_single_token(target)
        else:
            id = _whole(target, "a target is the text or the id of a token")
        if not 0 <= id < model.cfg.d_vocab_out:
            raise IndexError(
                f"target {target!r} is out of range: this model predicts tokens 0 to "
                f"{model.cfg.d_vocab_out - 1}"
            )
        if id in ids:
            raise ValueError(f"target {target!r} is given twice (token {id})")
        ids.append(id)
    return ids


def _string(model: HookedGPT2, id: int) -> str:
    return f"<{id}>" if model.tokenizer is None else model.tokenizer.to_single_str_token(id)


# ------------------------------------------------------------------ the result


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens:
    """What each point would predict, at the positions that were asked for.

    Where prompts differ in length, the rows of shorter ones are filled up: `position` and tokens
    with -1, the other numbers with NaN (ranks with -1). `to_frame` leaves the filling out.

    Attributes:
        n_layers: of the model.
        tokens: the ids of each prompt, without padding.
        prepend_bos: whether `<|endoftext|>` was put before the text; None where token ids were
            given, which are taken as they are.
        strings: the token string of every id in this result.
        points: the axis `point`. A tensor that has two names is here under one; see `index`.
        same_as: the other name of each tensor that has two, both ways. What leaves a block enters
            the next, except where a hook listened in between.
        position: the axis `pos`: which tokens of each prompt were looked at, from 0.
        top_tokens, top_log_probs: the likeliest next tokens, likeliest first.
        entropy: of the distribution, in nats.
        kl_final_lens: KL(final || lens) in nats, where *final* is what the model predicts: how
            many nats worse one does with the lens's prediction than with the model's.
        targets: the axis `target`: ids.
        target_log_probs: natural.
        target_ranks: how many tokens are likelier; 0 is the likeliest.
        provenance: model, dtype, versions, the call.
    """

    n_layers: int
    tokens: tuple[tuple[int, ...], ...]
    prepend_bos: bool | None
    strings: Mapping[int, str]
    points: tuple[LensPoint, ...]
    same_as: Mapping[LensPoint, LensPoint]
    position: Int64[Tensor, "batch pos"]
    top_tokens: Int64[Tensor, "point batch pos k"]
    top_log_probs: Float[Tensor, "point batch pos k"]
    entropy: Float[Tensor, "point batch pos"]
    kl_final_lens: Float[Tensor, "point batch pos"]
    targets: tuple[int, ...]
    target_log_probs: Float[Tensor, "point batch pos target"]
    target_ranks: Int64[Tensor, "point batch pos target"]
    provenance: report.Provenance

    @property
    def top_probs(self) -> Float[Tensor, "point batch pos k"]:
        """Probabilities of the likeliest next tokens."""
        return self.top_log_probs.exp()

    @property
    def str_tokens(self) -> list[list[str]]:
        """The tokens of each prompt as strings, without padding."""
        return [[self.strings[id] for id in row] for row in self.tokens]

    def index(self, point: str, layer: int) -> int:
        """Where on the axis `point` a point is, under either of its names.

        `lens.entropy[lens.index("resid_pre", 3)]` is the entropy of what enters block 3.

        Raises:
            KeyError: it was not looked at.
        """
        wanted = LensPoint(layer + self.n_layers if layer < 0 else layer, point)
        for name in (wanted, self.same_as.get(wanted)):
            if name in self.points:
                return self.points.index(name)
        raise KeyError(f"this lens has no {wanted}; it has {', '.join(map(str, self.points))}")

    def __repr__(self) -> str:
        n_prompts, n_positions = self.position.shape
        lengths = sorted({len(row) for row in self.tokens})
        length = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        targets = f", targets={[self.strings[t] for t in self.targets]}" if self.targets else ""
        lines = [
            f"LogitLens({self.provenance.model}, {n_prompts} prompt{'s'[: n_prompts != 1]} of "
            f"{length} tokens, {views.bos_note(self.prepend_bos)}; {len(self.points)} points x "
            f"{n_positions} position{'s'[: n_positions != 1]}, top_k={self.top_tokens.shape[-1]}"
            f"{targets})"
        ]
        if n_prompts * n_positions == 1:
            for index, point in enumerate(self.points):
                lines.append(f"  {point!s:14} {views.best(self, index)}")
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """One row per number.

        Columns: `batch`, `layer`, `point`, `hook` (the point's full name), `same_as` (the other
        name of that tensor, or ""), `position`, `token_id`, `token` (the prompt's token there),
        `quantity`, `k` (place among the predictions, from 0), `predicted_id`, `predicted`,
        `value`.

        Quantities: `prob` and `log_prob` of the top predictions; `target_log_prob` and
        `target_rank` of the targets; `entropy` and `kl_final_lens` in nats (these two without a
        predicted token).
        """
        import pandas as pd

        def records() -> Iterator[tuple[Any, ...]]:
            for row in self.rows():
                where = tuple(row[column] for column in _WHERE)
                for quantity in ("entropy", "kl_final_lens"):
                    yield *where, quantity, None, None, None, row[quantity]
                for k, top in enumerate(row["top"]):
                    for quantity in ("prob", "log_prob"):
                        yield *where, quantity, k, top["id"], top["token"], top[quantity]
                for target in row["targets"]:
                    for quantity in ("log_prob", "rank"):
                        what = (f"target_{quantity}", None, target["id"], target["token"])
                        yield *where, *what, target[quantity]

        columns = [*_WHERE, "quantity", "k", "predicted_id", "predicted", "value"]
        frame = pd.DataFrame.from_records(list(records()), columns=columns)
        return frame.astype({"k": "Int64", "predicted_id": "Int64", "value": "float64"})

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not finite is None."""
        return {
            "prepend_bos": self.prepend_bos,
            "prompts": [
                [{"id": id, "token": self.strings[id]} for id in row] for row in self.tokens
            ],
            "lens": [_finite(row) for row in self.rows()],
            "provenance": self.provenance.to_dict(),
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """What there is about each point, prompt and position, in this order, as plain data.

        Fillings are left out. `to_dict` has the same under "lens".
        """
        names = ("top_tokens", "top_log_probs", "entropy", "kl_final_lens")
        of_targets = ("target_log_probs", "target_ranks")
        numbers = {name: getattr(self, name).tolist() for name in (*names, *of_targets)}
        for index, point in enumerate(self.points):
            same = self.same_as.get(point)
            for batch, positions in enumerate(self.position.tolist()):
                for slot, position in enumerate(positions):
                    if position < 0:
                        continue
                    here = {name: values[index][batch][slot] for name, values in numbers.items()}
                    id = self.tokens[batch][position]
                    yield {
                        "batch": batch,
                        "layer": point.layer,
                        "point": point.point,
                        "hook": point.hook,
                        "same_as": same.hook if same else "",
                        "position": position,
                        "token_id": id,
                        "token": self.strings[id],
                        "entropy": here["entropy"],
                        "kl_final_lens": here["kl_final_lens"],
                        "top": [
                            {"id": t, "token": self.strings[t], "prob": math.exp(p), "log_prob": p}
                            for t, p in zip(here["top_tokens"], here["top_log_probs"], strict=True)
                        ],
                        "targets": [
                            {"id": t, "token": self.strings[t], "log_prob": p, "rank": r}
                            for t, p, r in zip(
                                self.targets,
                                here["target_log_probs"],
                                here["target_ranks"],
                                strict=True,
                            )
                        ],
                    }

    # -------------------------------------------------------------- pictures

    def plot(self, batch: int = 0) -> go.Figure:
        """A heat map: points from bottom to top, the likeliest next token in each cell.

        Across: the positions that were looked at; of a single position, its `top_k` predictions.
        Colour: probability, and with several positions also entropy or divergence, by buttons.
        Hovering shows everything about a cell.

        Args:
            batch: which prompt.

        Raises:
            IndexError: there is no such prompt.
        """
        return views.heat_map(self, self._checked_batch(batch))

    def plot_targets(self, batch: int = 0, slot: int = -1) -> go.Figure:
        """Curves: log-probability of each target from the first point to the last.

        Args:
            batch: which prompt.
            slot: which of the positions that were looked at; by default the last.

        Raises:
            ValueError: no targets were given.
            IndexError: there is no such prompt or position.
        """
        batch = self._checked_batch(batch)
        if not self.targets:
            raise ValueError("this lens has no targets to plot: give logit_lens some")
        count = int((self.position[batch] >= 0).sum())
        if not -count <= slot < count:
            raise IndexError(f"slot {slot} is out of range: {count} positions were looked at")
        return views.target_curves(self, batch, slot % count)

    def to_html(self, path: str | PathLike[str], *, model: HookedGPT2 | None = None) -> None:
        """Write a page with tokens, heat map, table and provenance. It needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        lens = self
        if model is not None:
            lens = replace(self, provenance=self.provenance.with_weights(model))
        views.page([("", lens)]).write(path)

    def _checked_batch(self, batch: int) -> int:
        if not -len(self.tokens) <= batch < len(self.tokens):
            raise IndexError(
                f"prompt {batch} is out of range: this lens has {len(self.tokens)} prompts"
            )
        return batch % len(self.tokens)


_WHERE = ("batch", "layer", "point", "hook", "same_as", "position", "token_id", "token")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return {k: _finite(v) for k, v in value.items()} if isinstance(value, dict) else value


# ------------------------------------------------------------------ the command line


def main(
    files: cli.Files,
    model: cli.Model = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help='A token to follow, such as " Mary"; may be given repeatedly.', metavar="TOKEN"
        ),
    ] = None,
    points: Annotated[
        str, typer.Option(help=f"Some of {', '.join(POINTS)}; comma-separated.", metavar="POINTS")
    ] = ",".join(RESIDUAL),
    positions: Annotated[
        str, typer.Option(help="last, all, or a list such as 0,3,-1.", metavar="POSITIONS")
    ] = "last",
    top_k: cli.TopK = 5,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """What would the model predict next if it stopped after this layer?

    Takes the residual stream before, in the middle of and after every block through the final
    layer norm and the unembedding, and shows the likeliest tokens there (nostalgebraist 2020).
    """
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=files)
    where = parse_positions(positions)
    prompts = cli.read_prompts(files)
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses.logit_lens import logit_lens

    loaded = cli.load_model(choice, device=device, dtype=dtype)
    named = []
    for prompt in prompts:
        with cli.about(prompt.source):
            lens = logit_lens(
                loaded,
                prompt.text,
                points=[point.strip() for point in points.split(",")],
                positions=where,
                top_k=top_k,
                targets=targets or (),
                prepend_bos=prepend_bos,
            )
        named.append((prompt.source, lens))
        console.print()
        console.print(prompt.source, style="bold", soft_wrap=True)
        views.show(lens, console)
    if html or json_path:
        call = cli.call("analyses.logit_lens", sys.argv[1:])
        provenance = named[0][1].provenance.with_weights(loaded, call)
        named = [(source, replace(lens, provenance=provenance)) for source, lens in named]
    cli.write_outputs(
        console,
        html=html,
        page=lambda: views.page(named),
        csv=csv,
        frame=lambda: cli.by_source((source, lens.to_frame()) for source, lens in named),
        json=json_path,
        data=lambda: [{"source": source} | lens.to_dict() for source, lens in named],
    )


def parse_positions(text: str) -> int | list[int] | str:
    """`last`, `all`, or comma-separated numbers.

    Raises:
        CommandError: anything else.
    """
    if text.strip() in ("last", "all"):
        return -1 if text.strip() == "last" else "all"
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise cli.CommandError(
            f"--positions {text!r}: expected last, all, or a list such as 0,3,-1"
        ) from None


if __name__ == "__main__":
    cli.run(main, __spec__)
