r"""Ablation: how much does the model need a head, a layer, or a neuron?

1. Run the model once as it is, and measure the metric.
2. Take out one unit at a time and measure again. What stands in its place is
   - `zero`: nothing at all;
   - `mean`: what the unit gives on average over reference prompts, which takes out what it says
     about this prompt and leaves what it says about any;
   - `resample`: what it gives on a reference prompt drawn at random.
3. The change of the metric is the unit's effect: a logit difference that falls without a head was
   partly that head's work. Other than direct logit attribution this counts every way in which a
   unit acts, later layers included, and what these do to make up for the loss.

A unit is a head (its `attn.hook_z`), a layer's attention or MLP (`hook_attn_out`, `hook_mlp_out`),
or a neuron (`mlp.hook_post`), at all positions unless some are named. Or a group of heads that are
taken out together; or all heads but those of the group (`keep`), to see what a circuit does alone.

Zero is for most units no neutral value: the mean of an activation can be far from it, and then zero
breaks more than it takes out. The reference prompts say what is kept: of indirect object
identification with three different names (Wang et al.'s p_ABC), all but who is named twice.

Sources: Wang et al., "Interpretability in the Wild" (2022), arXiv 2211.00593, section 2 (mean
ablation, and why not zero) and section 4 (a circuit alone, and all without it); Chan et al.,
"Causal Scrubbing" (2022), Alignment Forum (resampling); Zhang and Nanda 2023, arXiv 2309.16042
(which value to put in place).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from analyses import cli, pair_options, report
from analyses._heads.names import parse_heads
from analyses._views import ablation as views

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch
    from jaxtyping import Bool, Int
    from torch import Tensor

    from analyses._head_groups import by_layer, taken_out
    from analyses._heads.names import Head
    from analyses.effects import Effects
    from analyses.metrics import AnyMetric, named_metrics
    from analyses.pairs import PromptPair
    from analyses.prompts import AnyPrompts, Prompts
    from analyses.sweep import sweep
    from analyses.tasks import unknown
    from hooks import Ablate, ActivationCache
    from hooks.edits import Intervention
    from interp import HookedGPT2

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KINDS = ("zero", "mean", "resample")
UNITS = ("heads", "layers", "neurons")
# With --task, so many other examples give the means and the samples.
_N_REFERENCE = 64
# So many tokens of reference prompts go through the model at a time.
_TOKENS_AT_ONCE = 4096
# The points of each kind of unit, in a layer.
_POINTS = {
    "heads": ("attn.hook_z",),
    "layers": ("hook_attn_out", "hook_mlp_out"),
    "neurons": ("mlp.hook_post",),
}


# ------------------------------------------------------------------ the question


def ablation(
    model: HookedGPT2,
    tokens: AnyPrompts | PromptPair,
    metric: AnyMetric | Mapping[str, AnyMetric] | None = None,
    *,
    kind: str = "zero",
    units: str = "heads",
    groups: Mapping[str, Any] | None = None,
    keep: bool = False,
    layers: int | Sequence[int] | None = None,
    pos: int | Sequence[int] | Int[Tensor, ...] | None = None,
    reference: AnyPrompts | PromptPair | ActivationCache | None = None,
    per_position: bool = False,
    seed: int = 0,
    attention_mask: Tensor | None = None,
    prepend_bos: bool = True,
    batch_size: int | Literal["auto"] = "auto",
    memory_limit: int = 2**30,
) -> Ablation:
    """What the metric becomes without each head, layer or neuron, one at a time.

    Args:
        model: what is looked into; stays as it is.
        tokens: text, several texts, what `model.tokenize` gives, token ids, or a `PromptPair`,
            whose clean prompts are taken.
        metric: one of `analyses.metrics`, or a function of the logits; `{name: metric}` gives it
            another name. Of a `PromptPair` by default the logit difference between its answers and
            its wrong tokens.
        kind: what stands in place of the unit: "zero", "mean" or "resample".
        units: "heads", "layers" (each layer's attention and its MLP) or "neurons" (as many
            interventions as there are: name some `layers`).
        groups: name -> heads (`"3.1"`, a `Head`, a pair `(3, 1)`, or several), each group taken out
            together: one intervention for every group, in place of one for every unit.
        keep: take out all heads but those of the group, which may then be empty. MLPs stay. Heads
            that tell where in a sentence one is are taken out too, unless means are `per_position`
            and of prompts of the same sentence, as in the IOI paper.
        layers: only these; negative ones count from the end. None: all.
        pos: at these positions only, as in `hooks.Edit`: counted without padding, negative ones
            from a prompt's end, a tensor for a position per prompt. None: at all.
        reference: for "mean" and "resample", the prompts to take it from, or a cache of a run on
            them. Of a `PromptPair` the corrupted prompts are taken. Left out, where `tokens` is a
            `PromptPair`: that one's.
        per_position: for "mean", a mean for each position rather than one over all tokens; the
            reference prompts then have the length of those ablated.
        seed: of the draws of "resample".
        attention_mask: `batch pos`, True on real tokens; with token ids only.
        prepend_bos: put `<|endoftext|>` before text, of the reference too.
        batch_size, memory_limit: as in `analyses.sweep.sweep`.

    Returns:
        the metric under every ablation, per example.

    Raises:
        ValueError, IndexError, TypeError: an unknown kind or unit, a layer out of range or named
            twice, a group that takes out nothing, groups next to units or layers, keep without
            groups, a reference that is missing, or not wanted, or does not fit, no metric, or what
            `analyses.sweep.sweep` refuses.
        UnknownHookName: a cache as reference has not kept what is ablated.
    """
    for name, given, known in (("kind of ablation", kind, KINDS), ("unit", units, UNITS)):
        if given not in known:
            raise ValueError(unknown(name, str(given), known))
    if groups is not None and (units != "heads" or layers is not None):
        other = "layers" if layers is not None else f"units={units!r}"
        raise ValueError(f"groups are of heads of any layer: leave out {other}")
    if keep and groups is None:
        raise ValueError("keep goes with groups: name the heads to keep, groups={'circuit': [...]}")
    cfg = model.cfg
    grouped = None if groups is None else taken_out(groups, keep, cfg.n_layers, cfg.n_heads)
    chosen = _layers(model, layers)
    pair: PromptPair | None = None
    if isinstance(tokens, PromptPair):
        pair, prompts = tokens, tokens.clean
        if attention_mask is not None:
            raise ValueError("a PromptPair brings its own mask: leave out attention_mask")
        attention_mask = pair.attention_mask
        metric = pair.metric if metric is None else metric
    else:
        prompts = tokens
    if metric is None:
        raise ValueError("metric is missing: name one of analyses.metrics, such as logit_diff(...)")
    if len(named_metrics(metric)) != 1:
        raise ValueError("ablation takes one metric; analyses.sweep.sweep takes several")
    points = [f"blocks.{layer}.{point}" for layer in chosen for point in _POINTS[units]]
    cache, told = _reference(model, kind, reference, pair, points, prepend_bos, per_position)
    if per_position and kind != "mean":
        raise ValueError(f"per_position goes with kind='mean', not {kind!r}")
    how: dict[str, Any] = {"kind": kind, "reference": cache}
    if kind == "mean":
        how["per_position"] = per_position
    if kind == "resample":
        how["seed"] = seed
    edits: list[Intervention]
    numbers: dict[str, Sequence[int]] = {} if grouped else {"layer": chosen}
    labels: dict[str, tuple[str, ...]] = {} if grouped else {"layer": tuple(map(str, chosen))}
    if grouped is not None:
        units = "all heads but those of a group" if keep else "groups of heads"
        labels["component"] = tuple(grouped)
        edits = [
            [Ablate(("z", layer), pos, own, **how) for layer, own in by_layer(heads).items()]
            for heads in grouped.values()
        ]
    else:
        within: list[dict[str, int]] = [{}]
        if units == "heads":
            within = [{"head": head} for head in range(cfg.n_heads)]
        elif units == "neurons":
            within = [{"neuron": neuron} for neuron in range(cfg.d_mlp)]
        if units == "layers":
            labels["component"] = ("attn_out", "mlp_out")
        else:
            labels[units.removesuffix("s")] = tuple(map(str, range(len(within))))
        edits = [Ablate(point, pos, **part, **how) for point in points for part in within]
    found = sweep(
        model,
        prompts,
        edits,
        metric,
        attention_mask=attention_mask,
        prepend_bos=prepend_bos,
        batch_size=batch_size,
        memory_limit=memory_limit,
    )
    name = found.metric_name()
    asked = f"units={units!r}, layers={list(chosen)}"
    if grouped is not None:
        asked = f"groups={_shown(grouped, keep, cfg.n_layers, cfg.n_heads)}, keep={keep}"
    call = (
        f"ablation(model, ..., {name}, kind={kind!r}, {asked}, "
        f"pos={'...' if isinstance(pos, torch.Tensor) else pos}, per_position={per_position}, "
        f"seed={seed})"
    )
    return Ablation(
        kind=kind,
        units=units,
        reference=f"{told}, per position" if per_position else told,
        effects=Effects.on_axes(
            f"{kind} ablation of {units}",
            labels,
            found.values[name],
            found.base[name],
            name,
            numbers=numbers,
        ),
        str_tokens=found.str_tokens if pair is None else pair.str_tokens,
        prepend_bos=found.prepend_bos if pair is None else pair.prepend_bos,
        source="prompts" if pair is None else pair.source,
        provenance=report.Provenance.of(model, call),
        groups=grouped or {},
        keep=keep,
    )


def _shown(
    taken: Mapping[str, Sequence[Head]], keep: bool, n_layers: int, n_heads: int
) -> dict[str, list[str]]:
    """The heads that groups named, of those they take out."""
    every = [Head(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    return {
        name: [str(head) for head in every if (head in heads) != keep]
        for name, heads in taken.items()
    }


def _layers(model: HookedGPT2, layers: int | Sequence[int] | None) -> tuple[int, ...]:
    n = model.cfg.n_layers
    if layers is None:
        return tuple(range(n))
    given = [layers] if isinstance(layers, int) else list(layers)
    if not given:
        raise ValueError("layers is empty; None means all")
    for layer in given:
        if not -n <= layer < n:
            raise IndexError(
                f"layer {layer} is out of range: this model has {n} layers, 0 to {n - 1} (or "
                f"-{n} to -1)"
            )
    chosen = [layer % n for layer in given]
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"layers {given} name one of them twice")
    return tuple(chosen)


def _reference(
    model: HookedGPT2,
    kind: str,
    reference: Any,
    pair: PromptPair | None,
    points: Sequence[str],
    prepend_bos: bool,
    per_position: bool,
) -> tuple[ActivationCache | None, str]:
    """What the ablated units get: a run on the reference prompts, or its mean; and in words."""
    if kind == "zero":
        if reference is not None:
            raise ValueError("a zero ablation takes no reference: did you mean kind='mean'?")
        return None, ""
    if isinstance(reference, ActivationCache):
        return reference, "a given run"
    if reference is None and pair is None:
        raise ValueError(f"reference is missing: kind={kind!r} takes the prompts to take it from")
    if reference is None:
        reference = pair
    if isinstance(reference, PromptPair):
        told = f"the corrupted prompts of {reference.source}"
        run = reference.corrupted, reference.attention_mask
    else:
        prompts = Prompts.of(model, reference, None, prepend_bos)
        n = len(prompts.tokens)
        told = f"{n} reference prompt{'s'[: n != 1]}"
        run = prompts.tokens, prompts.attention_mask
    run = run[0].to(model.device), run[1].to(model.device)
    if kind == "mean":
        return _means(model, *run, points, per_position), told
    with torch.no_grad():
        _, cache = model.run_with_cache(
            run[0], return_type=None, attention_mask=run[1], names_filter=list(points)
        )
    return cache, told


def _means(
    model: HookedGPT2,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    points: Sequence[str],
    per_position: bool,
) -> ActivationCache:
    """A cache that is its own mean, and the mean of what a run on these prompts would give.

    It holds one prompt (of one token; with `per_position`, one prompt of each length there is), so
    that many reference prompts take no more memory than a few.
    """
    real = [row.nonzero()[:, 0] for row in mask]
    lengths = sorted({len(columns) for columns in real}) if per_position else [1]
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(len(lengths), dtype=torch.float64)
    axes: dict[str, tuple[str, ...]] = {}
    at_once = max(1, _TOKENS_AT_ONCE // tokens.shape[1])
    for start in cli.progress(range(0, len(tokens), at_once), "reference"):
        rows = slice(start, start + at_once)
        with torch.no_grad():
            _, cache = model.run_with_cache(
                tokens[rows],
                return_type=None,
                attention_mask=mask[rows],
                names_filter=list(points),
            )
        axes = dict(cache.axes)
        for index, columns in enumerate(real[rows]):
            row = lengths.index(len(columns)) if per_position else 0
            counts[row] += 1 if per_position else len(columns)
            for name in points:
                values = cache[name][index, columns].to("cpu", torch.float64)
                if name not in sums:
                    sums[name] = values.new_zeros(len(lengths), lengths[-1], *values.shape[1:])
                if per_position:
                    sums[name][row, : len(values)] += values
                else:
                    sums[name][0, 0] += values.sum(0)
    return ActivationCache(
        tensors={
            name: (total / counts.view(-1, *(1,) * (total.ndim - 1))).to(model.W_E)
            for name, total in sums.items()
        },
        axes=axes,
        attention_mask=torch.arange(lengths[-1])[None] < torch.tensor(lengths)[:, None],
        n_layers=model.cfg.n_layers,
    )


# ------------------------------------------------------------------ the result


@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """The metric without each unit.

    Attributes:
        kind, units: as in `ablation`; of groups, units is "groups of heads", or with
            `keep` "all heads but those of a group".
        reference: in words, what the mean or the resampled activations were taken from.
        effects: the metric under every ablation, per example: by layer and head, layer and
            component (`attn_out`, `mlp_out`), layer and neuron, or component (the groups'
            names). `effects.change` is what the
            ablation adds to the metric, with `effects.stderr` and
            `effects.interval(scale="change")`.
        str_tokens: the tokens of each prompt, without padding.
        prepend_bos: whether `<|endoftext|>` was put before the text; None where ids were given.
        source: where the prompts came from.
        provenance: model, dtype, versions, the call.
        groups: group -> the heads that were taken out (with `keep`, all but the group's own).
        keep: whether groups named what stays.
    """

    kind: str
    units: str
    reference: str
    effects: Effects
    str_tokens: tuple[tuple[str, ...], ...]
    prepend_bos: bool | None
    source: str
    provenance: report.Provenance
    groups: Mapping[str, tuple[Head, ...]] = field(default_factory=dict)
    keep: bool = False

    @property
    def views(self) -> Mapping[str, Effects]:
        """The effects by name, as other results have theirs."""
        return {self.units: self.effects}

    def __repr__(self) -> str:
        n = len(self.str_tokens)
        change, effects = self.effects.change, self.effects
        lines = [
            f"Ablation({self.provenance.model}, {views.what(self)}, {n} prompt{'s'[: n != 1]}; "
            f"{effects.metric} {float(effects.base.mean()):.4g} without ablation)"
        ]
        for place in effects.strongest(3, "change"):
            lines.append(f"  {effects.where(place)}: {float(change[place]):+.4g}")
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """One row per unit.

        Columns: `view` (the units), `metric`, `layer`, `head`, `component` or `neuron` with
        their labels (a group's is its name), then of the examples `value` (mean of the metric),
        `change` (what the ablation adds to it), `change_stderr`, `change_low` and `change_high`
        (the ends of its 95 % bootstrap interval), `base` (without ablation) and `examples`, how
        many. Errors and intervals are NaN for a single example.
        """
        frame = self.effects.to_frame().drop(columns="stderr")
        frame["view"] = self.units
        examples = frame.pop("examples")
        low, high = self.effects.interval(scale="change")
        frame["change_low"] = low.reshape(-1).tolist()
        frame["change_high"] = high.reshape(-1).tolist()
        frame["base"] = float(self.effects.base.mean())
        return frame.assign(examples=examples)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return {
            "kind": self.kind,
            "units": self.units,
            "reference": self.reference,
            "taken_out": {name: list(map(str, heads)) for name, heads in self.groups.items()},
            "keep": self.keep,
            "prompts": [list(row) for row in self.str_tokens],
            "prepend_bos": self.prepend_bos,
            "effects": self.effects.to_dict(),
            "provenance": self.provenance.to_dict(),
        }

    def plot(self) -> go.Figure:
        """A heat map of the change of the metric: blue where it falls, red where it rises. Of
        neurons, bars of the 30 that change it most."""
        return views.figure(self)

    def to_html(
        self, path: str | PathLike[str], *, model: HookedGPT2 | None = None, top_k: int = 10
    ) -> None:
        """Write a page with tokens, heat map, table and provenance. It needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
            top_k: how many of the strongest units the table has.
        """
        result = self
        if model is not None:
            result = replace(self, provenance=self.provenance.with_weights(model))
        views.page(result, top_k).write(path)


# ------------------------------------------------------------------ the command line


def main(
    files: pair_options.PairFiles = None,
    model: cli.Model = None,
    answer: pair_options.Answer = None,
    wrong: pair_options.Wrong = None,
    task: pair_options.TaskName = None,
    n: pair_options.N = None,
    seed: pair_options.Seed = None,
    corruption: pair_options.Corruption = None,
    kind: Annotated[
        str, typer.Option(help=f"What to put in place: {', '.join(KINDS)}.", metavar="KIND")
    ] = "mean",
    units: Annotated[str, typer.Option(help=f"{', '.join(UNITS)}.", metavar="UNITS")] = "heads",
    layers: Annotated[
        str | None,
        typer.Option(help="Only these, such as 0,3,-1.", metavar="LAYERS", show_default=False),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="These heads together, such as 3.1,0.0 (layer.head), not one at a time.",
            metavar="HEADS",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="With --heads: take out all heads but these.")
    ] = False,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="A file with a prompt to take means and samples from; may be repeated. Left out: "
            "the corrupted prompt; with --task, those of 64 other examples.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    per_position: Annotated[
        bool, typer.Option("--per-position", help="A mean for every position, not over all.")
    ] = False,
    top_k: Annotated[int, typer.Option(help="How many units the table has.", metavar="N")] = 10,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """How much does the model need each head, layer or neuron?

    Takes out one at a time (with --heads, several together) and shows how the logit difference
    between answer and wrong token changes, on the clean prompts.
    """
    # Without a second prompt to take means from, one is enough.
    alone = kind == "zero" or bool(reference)
    request = pair_options.PairRequest.checked(
        files, answer, wrong, task, n, seed, corruption, alone=alone
    )
    inputs = [*request.inputs, *(reference or ())]
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=inputs)
    for option, given, known in (("--kind", kind, KINDS), ("--units", units, UNITS)):
        if given not in known:
            raise cli.CommandError(f"{option} {given!r}: expected {', '.join(known)}")
    if top_k < 1:
        raise cli.CommandError(f"--top-k is {top_k}: expected at least 1")
    chosen = _parse_layers(layers)
    if heads is None and keep:
        raise cli.CommandError("--keep goes with --heads: it says which heads to keep")
    if heads is not None and (layers is not None or units != "heads"):
        raise cli.CommandError("--heads names heads of any layer: leave out --layers and --units")
    groups = None if heads is None else {heads: parse_heads(heads)}
    if reference and kind == "zero":
        raise cli.CommandError("--reference goes with --kind mean or resample, not zero")
    references = cli.read_prompts(reference or [])
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses.ablation import ablation
    from analyses.pairs import PromptPair

    loaded = cli.load_model(choice, device=device, dtype=dtype)
    pair = request.load(loaded, prepend_bos=prepend_bos)
    source: Any = [one.text for one in references] or None
    if source is None and task is not None and kind != "zero":
        source = PromptPair.from_task(
            loaded,
            task,
            _N_REFERENCE,
            request.seed + 1,
            corruption=corruption,
            prepend_bos=prepend_bos,
        )
    with cli.about(request.name):
        found = ablation(
            loaded,
            pair,
            kind=kind,
            units=units,
            groups=groups,
            keep=keep,
            layers=chosen,
            reference=source,
            per_position=per_position,
            seed=request.seed,
            prepend_bos=prepend_bos,
        )
    if html or json_path:
        call = cli.call("analyses.ablation", sys.argv[1:])
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
    views.show(found, console, top_k)


def _parse_layers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise cli.CommandError(f"--layers {text!r}: expected a list such as 0,3,-1") from None


if __name__ == "__main__":
    cli.run(main, __spec__)
