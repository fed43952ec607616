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
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, SupportsIndex

import typer

from analyses import cli, report
from analyses._lens import table as lens_table
from analyses._lens.points import POINTS, RESIDUAL, LensPoint
from analyses._views import logit_lens as views
from analyses._views.words import bos_note

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch
    from jaxtyping import Float, Int, Int64
    from torch import Tensor
    from torch.nn.utils.rnn import pad_sequence

    from analyses._lens.arguments import (
        asked_positions,
        checked_ids,
        checked_points,
        checked_targets,
        listed,
        positions_in,
        whole,
    )
    from analyses._lens.numbers import lens_logits, read
    from interp import HookedGPT2, TokenBatch

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["POINTS", "RESIDUAL", "LensPoint", "LogitLens", "lens_logits", "logit_lens"]

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
    names = checked_points(points)
    top_k = whole(top_k, "top_k is a whole number")
    if not 1 <= top_k <= d_vocab:
        raise ValueError(
            f"top_k={top_k} is out of range: this model has 1 to {d_vocab} predictions"
        )
    asked = asked_positions(positions)
    target_ids = checked_targets(model, targets)
    call = (
        f"logit_lens(model, ..., points={names!r}, positions={asked!r}, top_k={top_k}, "
        f"targets={listed(targets)!r}, prepend_bos={prepend_bos})"
    )
    forward: dict[str, Any] = {}
    if isinstance(tokens, torch.Tensor):
        run_input, mask = checked_ids(tokens, attention_mask)
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
    position = positions_in(asked, [len(c) for c in columns])

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
        numbers = read(model, seen, looked, final, top_k, target_ids)

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
            f"{length} tokens, {bos_note(self.prepend_bos)}; {len(self.points)} points x "
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
        return lens_table.frame(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not finite is None."""
        return {
            "prepend_bos": self.prepend_bos,
            "prompts": [
                [{"id": id, "token": self.strings[id]} for id in row] for row in self.tokens
            ],
            "lens": [cli.finite(row) for row in self.rows()],
            "provenance": self.provenance.to_dict(),
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """What there is about each point, prompt and position, in this order, as plain data.

        Fillings are left out. `to_dict` has the same under "lens".
        """
        return lens_table.rows(self)

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
    for source, lens in named:
        console.print()
        console.print(source, style="bold", soft_wrap=True)
        views.show(lens, console)


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
