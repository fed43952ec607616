"""Activation patching: which activation carries the answer?

Two prompts that differ in a key detail have different answers. Put one activation of one run into
the other, let that go on, and see how far the answer moves.

1. Run the clean prompts and the corrupted ones, which are alike token by token but for that detail.
2. *Denoising* (the default): in the corrupted run, replace the activation at one place (a layer
   and a position, a head) by the clean run's. What moves the metric towards the clean run's is
   enough to restore the answer. *Noising*: in the clean run, replace it by the corrupted run's.
   What moves the metric away is needed for the answer. The two need not agree (an AND of two parts
   is found by noising, an OR by denoising).
3. Do this for every place, each as an intervention of its own.
4. Normalise: 0 is the metric of the corrupted run and 1 that of the clean one, of means over
   examples.

The ends of that scale are measured like everything else: one is the run without a patch, the other
the run with the whole last residual stream patched, which is the other run.

The functions of TransformerLens' `patching` module are here too, under their names; see
`generic_activation_patch`.

Sources: Vig et al. 2020 (arXiv 2004.12265), Meng et al. 2022 (arXiv 2202.05262, section 2), Wang et
al. 2022 (arXiv 2211.00593); denoising and noising, and what they show: Heimersheim and Nanda 2024
(arXiv 2404.15255); metrics and corruptions: Zhang and Nanda 2023 (arXiv 2309.16042).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from analyses import cli, pair_options, report
from analyses._pair_effects import PairEffects
from analyses._positions import Positions, parse_positions, positions_of
from analyses._views import activation_patching as views_of
from analyses.tasks import unknown

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch
    from torch import Tensor

    from analyses._act_patch import (
        generic_activation_patch,
        get_act_patch_attn_head_all_pos_every,
        get_act_patch_attn_head_by_pos_every,
        get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_out_all_pos,
        get_act_patch_attn_head_out_by_pos,
        get_act_patch_attn_head_pattern_all_pos,
        get_act_patch_attn_head_pattern_by_pos,
        get_act_patch_attn_head_pattern_dest_src_pos,
        get_act_patch_attn_head_q_all_pos,
        get_act_patch_attn_head_q_by_pos,
        get_act_patch_attn_head_v_all_pos,
        get_act_patch_attn_head_v_by_pos,
        get_act_patch_attn_out,
        get_act_patch_block_every,
        get_act_patch_mlp_out,
        get_act_patch_resid_mid,
        get_act_patch_resid_pre,
        layer_head_dest_src_pos_pattern_patch_setter,
        layer_head_pattern_patch_setter,
        layer_head_pos_pattern_patch_setter,
        layer_head_vector_patch_setter,
        layer_pos_head_vector_patch_setter,
        layer_pos_patch_setter,
        make_df_from_ranges,
    )
    from analyses.effects import Effects
    from analyses.metrics import AnyMetric, named_metrics
    from analyses.pairs import PromptPair, pair_of
    from analyses.prompts import AnyPrompts
    from analyses.sweep import sweep
    from hooks import Patch
    from interp import HookedGPT2

__all__ = [
    "GROUPS",
    "VIEWS",
    "ActivationPatching",
    "activation_patching",
    "generic_activation_patch",
    "get_act_patch_attn_head_all_pos_every",
    "get_act_patch_attn_head_by_pos_every",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_out",
    "get_act_patch_block_every",
    "get_act_patch_mlp_out",
    "get_act_patch_resid_mid",
    "get_act_patch_resid_pre",
    "layer_head_dest_src_pos_pattern_patch_setter",
    "layer_head_pattern_patch_setter",
    "layer_head_pos_pattern_patch_setter",
    "layer_head_vector_patch_setter",
    "layer_pos_head_vector_patch_setter",
    "layer_pos_patch_setter",
    "make_df_from_ranges",
]

Direction = Literal["denoising", "noising"]
DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")

_BLOCK = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_HEAD = ("z", "q", "k", "v", "pattern")


class View(NamedTuple):
    """One kind of place to patch.

    Attributes:
        point: short form of the hook point.
        axes: what the effects lie on; of attention, `pos` and `query` are where it looks from.
    """

    point: str
    axes: tuple[str, ...]


VIEWS: Mapping[str, View] = {
    **{name: View(name, ("layer", "pos")) for name in _BLOCK},
    **{name: View(name, ("layer", "head")) for name in _HEAD},
    **{f"{name}_by_pos": View(name, ("layer", "pos", "head")) for name in _HEAD},
    "pattern_by_entry": View("pattern", ("layer", "head", "query", "key")),
}
# Views that are looked at side by side, under one name.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "block_every": ("resid_pre", "attn_out", "mlp_out"),
    "head_all_pos_every": _HEAD,
    "head_by_pos_every": tuple(f"{name}_by_pos" for name in _HEAD),
}
DEFAULT_VIEWS = ("block_every", "z")


# ------------------------------------------------------------------ the question


def activation_patching(
    model: HookedGPT2,
    clean: PromptPair | AnyPrompts,
    corrupted: AnyPrompts | None = None,
    metric: AnyMetric | None = None,
    *,
    direction: Direction = "denoising",
    views: str | Sequence[str] = DEFAULT_VIEWS,
    layers: int | Sequence[int] | None = None,
    positions: int | Sequence[int] | str | Sequence[str] | None = None,
    attention_mask: Tensor | None = None,
    prepend_bos: bool = True,
    batch_size: int | Literal["auto"] = "auto",
    memory_limit: int = 2**30,
    progress: bool = True,
) -> ActivationPatching:
    """Patch every place of one run with the other run's activation there.

    Args:
        model: what is looked into; stays as it is.
        clean: a `PromptPair`; or the clean prompts, as text, several texts, what `model.tokenize`
            gives, or ids.
        corrupted: with clean prompts, as many corrupted ones of the same numbers of tokens.
        metric: one of `analyses.metrics`, or any function from logits `[batch pos d_vocab]` to one
            number, or one per prompt. By default the pair's logit difference of answers and wrong
            tokens. Examples of unequal length stand in the logits padded on the right.
        direction: "denoising" puts clean activations into the corrupted run, "noising" corrupted
            ones into the clean run.
        views: which of `VIEWS`, or of `GROUPS`, which are several views each. By layer and
            position: resid_pre, resid_mid, resid_post, attn_out, mlp_out. By layer and head, all
            positions at once: z, q, k, v, pattern. By layer, position and head: the same with
            `_by_pos`. By layer, head and both positions: pattern_by_entry.
        layers: only this one or these; negative ones count from the last.
        positions: "all"; or some, as numbers counted without padding (negative ones from the end),
            or as names of the pair's `positions`, which may be elsewhere in every example. By
            default all where examples have one length, and otherwise all that have names.
        attention_mask, prepend_bos: as in `model.forward`, of both prompts.
        batch_size, memory_limit, progress: as in `analyses.sweep.sweep`.

    Returns:
        The metric at every place of every view, per example.

    Raises:
        ValueError: an unknown view, direction, position or layer; prompts of unequal length (shows
            both tokenisations); examples of unequal length where "all" positions are asked for; no
            metric; and what a run or a metric refuses.
    """
    pair = pair_of(model, clean, corrupted, attention_mask, prepend_bos)
    if direction not in DIRECTIONS:
        raise ValueError(unknown("direction", str(direction), DIRECTIONS))
    chosen = checked_views(views)
    depth = _layers(layers, model.cfg.n_layers)
    by_position = any({"pos", "query"} & set(VIEWS[name].axes) for name in chosen)
    where = positions_of(pair, positions) if by_position else Positions([], (), ())
    named = named_metrics(pair.metric if metric is None else metric)
    if len(named) != 1:
        raise ValueError(f"activation patching takes one metric, not {len(named)}")
    (name, measure), *_ = named.items()

    into, source = (pair.corrupted, pair.clean), (pair.clean, pair.corrupted)
    tokens, other = into if direction == "denoising" else source
    mask = pair.attention_mask.to(model.device)
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    points = {model_point(VIEWS[view].point, layer) for view in chosen for layer in depth}
    with torch.no_grad():
        _, cache = model.run_with_cache(
            other.to(model.device),
            return_type=None,
            names_filter=sorted({*points, last}),
            attention_mask=mask,
        )
    labels = {
        "layer": tuple(map(str, depth)),
        "head": tuple(map(str, range(model.cfg.n_heads))),
        **dict.fromkeys(("pos", "query", "key"), where.labels),
    }
    numbers = {"layer": tuple(depth)} | dict.fromkeys(("pos", "query", "key"), where.numbers)
    spans = {view: list(_edits(view, depth, model.cfg.n_heads, where, cache)) for view in chosen}
    # The whole last residual stream of the other run makes this run the other one.
    edits = [Patch(last, source=cache), *(edit for span in spans.values() for edit in span)]
    result = sweep(
        model,
        tokens.to(model.device),
        edits,
        {name: measure},
        attention_mask=mask,
        batch_size=batch_size,
        memory_limit=memory_limit,
        progress=progress,
    )
    base, values = result.base[name], result.values[name]
    ends = (base, values[0]) if direction == "denoising" else (values[0], base)
    found: dict[str, Effects] = {}
    start = 1
    for view, span in spans.items():
        axes = VIEWS[view].axes
        found[view] = Effects.on_axes(
            view,
            {axis: labels[axis] for axis in axes},
            values[start : start + len(span)],
            base,
            name,
            corrupted=ends[0],
            clean=ends[1],
            numbers={axis: numbers[axis] for axis in axes if axis in numbers},
        )
        start += len(span)
    call = (
        f"activation_patching(model, ..., metric={name}, direction={direction!r}, "
        f"views={list(chosen)!r}, layers={None if layers is None else list(depth)!r}, "
        f"positions={positions!r}, prepend_bos={pair.prepend_bos})"
    )
    return ActivationPatching(
        views=found,
        direction=direction,
        pair=pair,
        provenance=report.Provenance.of(model, call),
    )


def checked_views(views: str | Sequence[str]) -> tuple[str, ...]:
    """The views asked for, groups resolved, each once.

    Raises:
        ValueError: an unknown one, or none.
    """
    asked = [views] if isinstance(views, str) else list(views)
    found: list[str] = []
    for name in asked:
        if name not in VIEWS and name not in GROUPS:
            raise ValueError(unknown("view", str(name), (*VIEWS, *GROUPS)))
        found += GROUPS.get(name, (name,))
    if not found:
        raise ValueError(f"views is empty; expected some of {', '.join((*VIEWS, *GROUPS))}")
    return tuple(dict.fromkeys(found))


def model_point(point: str, layer: int) -> str:
    """The full name of a view's point in a layer."""
    inside = "attn.hook_" if point in _HEAD else "hook_"
    return f"blocks.{layer}.{inside}{point}"


def _layers(layers: int | Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(n_layers))
    layers = [layers] if isinstance(layers, int) else layers
    found: list[int] = []
    for layer in layers:
        if not -n_layers <= layer < n_layers:
            raise ValueError(
                f"layer {layer} is out of range: there are {n_layers} layers, 0 to "
                f"{n_layers - 1} (or -{n_layers} to -1)"
            )
        if layer % n_layers in found:
            raise ValueError(f"layer {layer % n_layers} is asked for twice")
        found.append(layer % n_layers)
    if not found:
        raise ValueError("layers is empty; leave it out for all")
    return tuple(found)


def _edits(
    view: str, layers: Sequence[int], n_heads: int, where: Positions, cache: Any
) -> Iterator[Patch]:
    """The patches of a view, its last axis fastest."""
    point, axes = VIEWS[view]
    ranges: dict[str, Sequence[Any]] = {"layer": layers, "head": range(n_heads)}
    ranges |= dict.fromkeys(("pos", "query", "key"), where.where)
    places: list[dict[str, Any]] = [{}]
    for axis in axes:
        places = [{**place, axis: one} for place in places for one in ranges[axis]]
    for place in places:
        layer = place.pop("layer")
        if "query" in place:
            place["pos"] = place.pop("query")
        yield Patch(model_point(point, layer), source=cache, **place)


# ------------------------------------------------------------------ the result


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ActivationPatching(PairEffects):
    """What the metric becomes with each activation patched; see `PairEffects`."""

    def page(self, top_k: int = 10) -> report.Page:
        """The page that `to_html` writes, with tables of the `top_k` strongest."""
        return views_of.page(self, top_k)


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
    template: pair_options.Template = None,
    direction: Annotated[
        str, typer.Option(help="denoising or noising.", metavar="NAME")
    ] = "denoising",
    views: Annotated[
        str,
        typer.Option(
            help=f"Some of {', '.join((*VIEWS, *GROUPS))}; comma-separated.", metavar="VIEWS"
        ),
    ] = ",".join(DEFAULT_VIEWS),
    positions: Annotated[
        str | None,
        typer.Option(
            help="all, numbers such as 3,-1, or with --task names such as S2,END. Left out: all, "
            "or those with names where examples differ in length.",
            metavar="POSITIONS",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="How many of the strongest to list.", metavar="N")] = 5,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """Which activation carries the answer? Activation patching between two prompts.

    Puts each activation of one run into the other and shows how far the answer moves: 0 is the
    corrupted run's logit difference, 1 the clean run's.
    """
    request = pair_options.PairRequest.checked(
        files, answer, wrong, task, n, seed, corruption, template
    )
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=request.inputs)
    chosen = checked_views([name.strip() for name in views.split(",")])
    if direction not in DIRECTIONS:
        raise cli.CommandError(unknown("--direction", direction, DIRECTIONS))
    if top_k < 1:
        raise cli.CommandError(f"--top-k is {top_k}: expected at least 1")
    where = None if positions is None else parse_positions(positions)
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses.activation_patching import activation_patching

    loaded = cli.load_model(choice, device=device, dtype=dtype)
    pair = request.load(loaded, prepend_bos=prepend_bos)
    result = activation_patching(loaded, pair, direction=direction, views=chosen, positions=where)
    if html or json_path:
        result = result.hashed(loaded, cli.call("analyses.activation_patching", sys.argv[1:]))
    cli.write_outputs(
        console,
        html=html,
        page=lambda: result.page(top_k),
        csv=csv,
        frame=result.to_frame,
        json=json_path,
        data=result.to_dict,
    )
    views_of.show(result, console, top_k)


if __name__ == "__main__":
    cli.run(main, __spec__)
