"""Path patching: which heads reach a part of the model directly, and what comes of it?

Two runs differ: the *base* run, which gives the answer, and the *source* run, which does not. For
every sender h (each head, each MLP, the token embedding) and one set of receivers R:

1. Keep the activations of both runs.
2. In the base run, let h write what it writes in the source run. Every other head keeps what it
   wrote in the base run, so that nothing passes through another head. MLPs and layer norms between
   h and R are computed from what then reaches them (`freeze_mlps=True`: MLPs too are kept as in the
   base run, and only the residual stream itself leads from h to R). Record what R reads.
3. In the base run again, give the receivers what was recorded, and compute all that comes after
   them. The metric minus that of the base run is the effect of h through R.

Receivers are the queries, keys or values of heads (several together are one set, with one effect),
or the residual stream at a point; at the last residual (`logits`) this is the direct effect on the
logits. As attention is frozen in step 2, a position of R depends on the same position of h only.

Step 2 costs no forward pass: only what is changed is taken through the MLPs
(`analyses._path_walk`). Step 3 is a sweep. Both are exact.

Sources: Wang et al. 2022, "Interpretability in the Wild" (arXiv 2211.00593), section 3.1 and
appendix B; Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching" (arXiv
2304.05969), section 3.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from analyses import cli, pair_options, report
from analyses._views import path_patching as views
from analyses._views.effects import concatenated
from analyses.tasks import unknown

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from analyses._path_positions import Positions, Where
    from analyses._path_walk import (
        Cells,
        Receiver,
        Sender,
        parse_receiver,
        points,
        source_points,
        walk,
    )
    from analyses.effects import Effects
    from analyses.metrics import AnyMetric
    from analyses.pairs import PromptPair
    from analyses.sweep import sweep
    from hooks import ActivationCache
    from hooks.names import nearest
    from interp import HookedGPT2

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Direction = Literal["noising", "denoising"]
DIRECTIONS: tuple[Direction, ...] = ("noising", "denoising")
SENDERS = ("head", "mlp", "embed")

# ------------------------------------------------------------------ the question


def path_patching(
    model: HookedGPT2,
    pair: PromptPair,
    receivers: str | Receiver | Sequence[str | Receiver] = "logits",
    *,
    senders: str | Sequence[str] = SENDERS,
    pos: Positions = None,
    by_position: bool = False,
    freeze_mlps: bool = False,
    direction: Direction = "noising",
    metric: AnyMetric | None = None,
    batch_size: int | Literal["auto"] = "auto",
    memory_limit: int = 2**30,
    progress: bool = True,
) -> PathPatching:
    """The effect of every sender through one set of receivers.

    A sender that comes after all receivers cannot reach them: its effect is exactly 0.

    Args:
        model: what is looked into.
        pair: the prompts.
        receivers: one, or several that are patched together, such as `["9.9.q", "10.0.q"]`: a
            head's "q", "k" or "v"; `resid_pre.8` (`resid_mid`, `mlp_in`, `resid_post`); `logits`.
        senders: which kinds: "head", "mlp", "embed" (the token embedding; position embeddings are
            the same in both runs).
        pos: the positions at which senders are changed and receivers patched; None: all. A name in
            `pair.positions` such as "END", a number (negative ones from each prompt's end),
            several of those, or a tensor with a row per example.
        by_position: an effect of its own for each position, rather than one for all together.
        freeze_mlps: keep MLPs as in the base run in step 2. The IOI paper does not.
        direction: "noising", as in the paper: the clean run is the base, and senders send what they
            send in the corrupted run. "denoising" swaps the two.
        metric: one metric of `analyses.metrics`; by default `pair.metric`, the logit difference.
        batch_size, memory_limit, progress: as `analyses.sweep.sweep`; `memory_limit` (bytes) also
            bounds what is recorded in step 2.

    Returns:
        Effects per sender, in the metric's units; `in_percent` has them as in the IOI paper.

    Raises:
        ValueError, IndexError, TypeError: a receiver, sender or position there is not, the same
            one twice, receivers that no sender reaches, hooks that are active on the model, a
            metric with anything but one number per example.
    """
    if direction not in DIRECTIONS:
        raise ValueError(unknown("direction", str(direction), DIRECTIONS))
    chosen_receivers = _receivers(model, receivers)
    kinds = _kinds(senders)
    last = max(receiver.stage for receiver in chosen_receivers)
    chosen = [s for s in _senders(model, kinds) if s.stage <= last]
    if not chosen:
        raise ValueError(
            f"no {' or '.join(kinds)} comes before {', '.join(map(str, chosen_receivers))}: "
            "nothing reaches it directly"
        )
    where = Where.of(pair, pos, by_position)
    with torch.no_grad():
        cells = _both_runs(model, pair, where, chosen, last, freeze_mlps, direction)
        base: Tensor = torch.empty(0)
        name = ""
        values: dict[Sender, list[Tensor]] = {}
        for group in _groups(model, chosen, chosen_receivers, len(cells.example), memory_limit):
            received = walk(model, cells, group, chosen_receivers, freeze_mlps)
            edits = {s: where.patches(received[s], cells) for s in group}
            result = sweep(
                model,
                _tokens(pair, direction)[0],
                [patches for several in edits.values() for patches in several],
                pair.metric if metric is None else metric,
                batch_size=batch_size,
                memory_limit=memory_limit,
                attention_mask=pair.attention_mask,
                progress=progress,
            )
            name = result.metric_name()
            base = result.base[name]
            rows = iter(result.values[name])
            values |= {s: [next(rows) for _ in several] for s, several in edits.items()}
    if len(base) != len(pair):
        raise ValueError(
            f"metric {name} gives {len(base)} numbers for {len(pair)} examples: path patching "
            "needs one for each"
        )
    call = (
        f"path_patching(model, ..., receivers={[str(r) for r in chosen_receivers]!r}, "
        f"senders={list(kinds)!r}, pos={where.shown!r}, by_position={by_position}, "
        f"freeze_mlps={freeze_mlps}, direction={direction!r}, metric={name!r})"
    )
    return PathPatching(
        pair=pair,
        receivers=chosen_receivers,
        views={kind: _effects(model, kind, values, base, name, where) for kind in kinds},
        positions=where.shown,
        freeze_mlps=freeze_mlps,
        direction=direction,
        provenance=report.Provenance.of(model, call),
    )


def _both_runs(
    model: HookedGPT2,
    pair: PromptPair,
    where: Where,
    senders: Sequence[Sender],
    last_stage: int,
    freeze_mlps: bool,
    direction: Direction,
) -> Cells:
    """Step 1: what a walk needs of the two runs, at the tokens asked for."""
    example, slot = where.present.nonzero(as_tuple=True)
    column = where.columns[example, slot]
    kept = column.unique()

    def run(tokens: Tensor, names: list[str | tuple]) -> ActivationCache:
        _, cache = model.run_with_cache(
            tokens.to(model.device),
            stop_at_layer=max(1, (last_stage + 1) // 2),
            names_filter=names,
            pos_slice=None if len(kept) == tokens.shape[1] else kept.tolist(),
            attention_mask=pair.attention_mask.to(model.device),
        )
        return cache

    base, source = _tokens(pair, direction)
    return Cells(
        example=example,
        slot=slot,
        column=column,
        base=run(base, points(senders, last_stage, freeze_mlps)),
        source=run(source, source_points(senders)),
        kept=kept,
    )


def _tokens(pair: PromptPair, direction: Direction) -> tuple[Tensor, Tensor]:
    """The tokens of the base run and of the source run."""
    both = (pair.clean, pair.corrupted)
    return both if direction == "noising" else (both[1], both[0])


def _groups(
    model: HookedGPT2,
    senders: Sequence[Sender],
    receivers: Sequence[Receiver],
    n_cells: int,
    memory_limit: int,
) -> list[list[Sender]]:
    """The senders in groups whose recorded values fit in the memory."""
    cfg = model.cfg
    widths = [cfg.d_model if r.head is None else cfg.d_head for r in receivers]
    # Two copies of what is recorded, and the residuals on their way.
    each = n_cells * (2 * sum(widths) + 3 * cfg.d_model) * model.dtype.itemsize
    several = max(1, memory_limit // max(each, 1))
    return [list(senders[i : i + several]) for i in range(0, len(senders), several)]


def _receivers(
    model: HookedGPT2, given: str | Receiver | Sequence[str | Receiver]
) -> tuple[Receiver, ...]:
    one = isinstance(given, str | Receiver)
    several: list[Any] = [given] if one else list(given)
    if not several:
        raise ValueError("receivers is empty; expected at least one, such as 'logits'")
    found = tuple(
        parse_receiver(str(receiver), model.cfg.n_layers, model.cfg.n_heads) for receiver in several
    )
    for receiver in found:
        if found.count(receiver) > 1:
            raise ValueError(f"receiver {receiver} is given twice")
    return found


def _kinds(senders: str | Sequence[str]) -> tuple[str, ...]:
    asked = [senders] if isinstance(senders, str) else list(senders)
    if not asked:
        raise ValueError(f"senders is empty; expected some of {', '.join(SENDERS)}")
    for kind in asked:
        if kind not in SENDERS:
            raise ValueError(unknown("kind of sender", str(kind), SENDERS))
    return tuple(kind for kind in SENDERS if kind in asked)


def _senders(model: HookedGPT2, kinds: Sequence[str]) -> list[Sender]:
    """All senders of these kinds, layer by layer."""
    cfg = model.cfg
    found = [Sender("embed")] if "embed" in kinds else []
    for layer in range(cfg.n_layers):
        if "head" in kinds:
            found += [Sender("head", layer, head) for head in range(cfg.n_heads)]
        if "mlp" in kinds:
            found.append(Sender("mlp", layer))
    return found


def _effects(
    model: HookedGPT2,
    kind: str,
    values: Mapping[Sender, list[Tensor]],
    base: Float[Tensor, " example"],
    metric: str,
    where: Where,
) -> Effects:
    """What was found for one kind of sender, on axes."""
    cfg = model.cfg
    n_slots = len(where.labels) if where.apart else 1
    unreached = [base] * n_slots
    rows = [
        row
        for sender in _senders(model, [kind])
        for row in values.get(sender, unreached) or unreached
    ]
    laid = torch.stack(rows)
    labels: dict[str, Sequence[str]] = {"component": ("embed",)}
    if kind != "embed":
        labels = {"layer": [str(i) for i in range(cfg.n_layers)]}
    if kind == "head":
        labels["head"] = [str(i) for i in range(cfg.n_heads)]
    if where.apart:
        labels["pos"] = where.labels
    numbers = {"pos": where.numbers} if where.apart and where.numbers else {}
    return Effects.on_axes(kind, labels, laid, base, metric, numbers=numbers)


# ------------------------------------------------------------------ the result


@dataclass(frozen=True, eq=False, repr=False)
class PathPatching:
    """The effect of every sender through one set of receivers.

    Attributes:
        pair: the prompts.
        receivers: patched together.
        views: kind of sender -> its effects, in the metric's units. Axes: `layer head` ("head"),
            `layer` ("mlp"), `component` ("embed"); then `pos` where positions were apart.
        positions: which positions were asked for, as text.
        freeze_mlps: whether MLPs between sender and receivers were kept as in the base run.
        direction: "noising" (the clean run was the base) or "denoising".
        provenance: model, dtype, versions, the call.
    """

    pair: PromptPair
    receivers: tuple[Receiver, ...]
    views: Mapping[str, Effects]
    positions: str
    freeze_mlps: bool
    direction: Direction
    provenance: report.Provenance

    @property
    def base(self) -> Float[Tensor, " example"]:
        """The metric of the base run."""
        return next(iter(self.views.values())).base

    @property
    def metric(self) -> str:
        """The metric's name."""
        return next(iter(self.views.values())).metric

    def in_percent(self) -> Mapping[str, Effects]:
        """The effects in percent of the size of the base run's mean: `change` is what the IOI
        paper shows.

        `result.in_percent()["head"].change[9, 6]` is -20 where letting head 9.6 send what it sends
        in the source run takes a fifth off the logit difference.

        Raises:
            ValueError: the base run's mean is 0.
        """
        # Of its size: a change up stays one where the base run's mean is below 0.
        unit = abs(float(self.base.mean())) / 100
        if unit == 0:
            raise ValueError(
                f"the base run's mean {self.metric} is 0, so there is no change in percent of it; "
                "`views` has the effects themselves"
            )
        return {
            kind: replace(
                effects,
                values=effects.values / unit,
                base=effects.base / unit,
                metric=f"{self.metric}, %",
            )
            for kind, effects in self.views.items()
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per sender (and position), as `Effects.to_frame`, with the change also in
        `percent` of the base run's mean (NaN where that is 0).

        Where a position differs between examples, `pos` counts the positions asked for.
        """
        frame = concatenated(self.views)
        mean = float(self.base.mean())
        frame["percent"] = 100 * frame["change"] / abs(mean) if mean else math.nan
        frame.insert(0, "receivers", " ".join(map(str, self.receivers)))
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return {
            "receivers": [str(receiver) for receiver in self.receivers],
            "positions": self.positions,
            "freeze_mlps": self.freeze_mlps,
            "direction": self.direction,
            "pair": {
                "source": self.pair.source,
                "prepend_bos": self.pair.prepend_bos,
                "clean": [list(row) for row in self.pair.str_tokens],
                "corrupted": [list(row) for row in self.pair.corrupted_str_tokens],
            },
            "views": {kind: effects.to_dict() for kind, effects in self.views.items()},
            "provenance": self.provenance.to_dict(),
        }

    def plot(self, view: str | None = None, *, percent: bool | None = None) -> go.Figure:
        """A heat map of heads (bars of MLPs): what each adds to the metric through the receivers.

        Args:
            view: "head", "mlp" or "embed"; by default the first there is.
            percent: in percent of the base run, as the IOI paper has it, rather than in the
                metric's units; by default where the base run's mean is not 0.

        Raises:
            KeyError: no such view; ValueError: as `in_percent`.
        """
        view = next(iter(self.views)) if view is None else view
        if view not in self.views:
            raise KeyError(
                f"there is no view {view!r}.{nearest(view, self.views)} There is "
                f"{', '.join(self.views)}"
            )
        if percent is None:
            percent = float(self.base.mean()) != 0
        shown = self.in_percent() if percent else self.views
        return shown[view].plot("change")

    def to_html(self, path: str | PathLike[str], *, model: HookedGPT2 | None = None) -> None:
        """Write a page with prompts, heat maps, tables and provenance. It needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        found = self
        if model is not None:
            found = replace(self, provenance=self.provenance.with_weights(model))
        views.page(found).write(path)

    def __repr__(self) -> str:
        n = len(self.pair)
        mlps = "MLPs frozen" if self.freeze_mlps else "MLPs recomputed"
        lines = [
            f"PathPatching({self.provenance.model} -> {', '.join(map(str, self.receivers))}; "
            f"positions {self.positions}, {mlps}, "
            f"{n} example{'s'[: n != 1]}; {self.metric} {self.base.mean():.4g} in the base run)"
        ]
        for effects in self.views.values():
            changes = effects.change
            for place in effects.strongest(3, "change"):
                lines.append(
                    f"  {effects.name}: {effects.where(place)}: {float(changes[place]):+.4g}"
                )
        return "\n".join(lines)


# ------------------------------------------------------------------ the command line


def main(
    files: pair_options.PairFiles = None,
    answer: pair_options.Answer = None,
    wrong: pair_options.Wrong = None,
    task: pair_options.TaskName = None,
    n: pair_options.N = None,
    seed: pair_options.Seed = None,
    corruption: pair_options.Corruption = None,
    receivers: Annotated[
        list[str] | None,
        typer.Option(
            "--receiver",
            help=f"What is reached: {views.FORMS}. May be repeated: all together are one set. "
            "Left out: logits.",
            metavar="RECEIVER",
            show_default=False,
        ),
    ] = None,
    senders: Annotated[
        str,
        typer.Option(help=f"Some of {', '.join(SENDERS)}; comma-separated.", metavar="SENDERS"),
    ] = ",".join(SENDERS),
    positions: Annotated[
        str,
        typer.Option(
            help="all, or a list of numbers such as 3,-1, or with --task of names such as S2,END.",
            metavar="POSITIONS",
        ),
    ] = "all",
    by_position: Annotated[
        bool, typer.Option("--by-position", help="An effect for each position by itself.")
    ] = False,
    freeze_mlps: Annotated[
        bool,
        typer.Option("--freeze-mlps", help="Keep MLPs too as they were; the IOI paper does not."),
    ] = False,
    direction: Annotated[
        str,
        typer.Option(
            help="noising: senders change from the clean run to the corrupted one; or denoising.",
            metavar="NAME",
        ),
    ] = "noising",
    model: cli.Model = None,
    top_k: Annotated[int, typer.Option(help="How many senders to list.", metavar="N")] = 10,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """Which heads and MLPs reach a part of the model directly, and what comes of it?

    Every sender in turn writes what it writes in the corrupted run; all other heads keep what they
    wrote in the clean run. Only the receivers get to see the difference (Wang et al. 2022).
    """
    request = pair_options.PairRequest.checked(files, answer, wrong, task, n, seed, corruption)
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=request.inputs)
    pos = _parsed_positions(positions)
    if direction not in DIRECTIONS:
        raise cli.CommandError(unknown("--direction", direction, DIRECTIONS))
    if top_k < 1:
        raise cli.CommandError(f"--top-k is {top_k}: expected at least 1")
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses.path_patching import path_patching

    loaded = cli.load_model(choice, device=device, dtype=dtype)
    pair = request.load(loaded, prepend_bos=prepend_bos)
    found = path_patching(
        loaded,
        pair,
        receivers or ["logits"],
        senders=[kind.strip() for kind in senders.split(",")],
        pos=pos,
        by_position=by_position,
        freeze_mlps=freeze_mlps,
        direction=cast(Direction, direction),
    )
    if html or json_path:
        call = cli.call("analyses.path_patching", sys.argv[1:])
        found = replace(found, provenance=found.provenance.with_weights(loaded, call))
    cli.write_outputs(
        console,
        html=html,
        page=lambda: views.page(found, top_k),
        csv=csv,
        frame=found.to_frame,
        json=json_path,
        data=found.to_dict,
    )
    console.print()
    views.show(found, console, top_k)


def _parsed_positions(text: str) -> list[int] | list[str] | None:
    """`all`, numbers or names, comma-separated.

    Raises:
        CommandError: numbers and names mixed, or nothing.
    """
    if text.strip() == "all":
        return None
    parts = [part.strip() for part in text.split(",")]
    try:
        return [int(part) for part in parts]
    except ValueError:
        pass
    if not all(parts) or any(part.lstrip("-").isdigit() for part in parts):
        raise cli.CommandError(
            f"--positions {text!r}: expected all, numbers such as 3,-1, or names such as S2,END"
        )
    return parts


if __name__ == "__main__":
    cli.run(main, __spec__)
