"""The functions of TransformerLens' `patching` module, over the sweep.

Same names, arguments, shapes and values: each puts activations of a clean run, one place at a time,
into a run on corrupted tokens, and gives what the metric becomes. They are imported from
`analyses.activation_patching`.

A metric that is any function of the full logits is called with exactly these, `batch pos d_vocab`,
once per patch. With one of `analyses.metrics` (such as `logit_diff`) in its place, only the logits
that it reads are computed; of several prompts the mean is taken.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses import cli
from analyses.metrics import AnyMetric, Function, Metric, named_metrics
from analyses.prompts import AnyPrompts, Prompts
from analyses.sweep import sweep
from hooks import ActivationCache, Edit, Patch
from hooks.names import nearest, resolve
from interp import HookedGPT2

Setter = Callable[[Tensor, Sequence[int], Tensor], Tensor | None]


# ------------------------------------------------------------------ setters


def layer_pos_patch_setter(
    corrupted_activation: Float[Tensor, "batch pos ..."],
    index: Sequence[int],
    clean_activation: Float[Tensor, "#batch pos ..."],
) -> Tensor:
    """Patch one position, of every prompt; index = (layer, pos)."""
    _, pos = _checked(index, "layer", "pos")
    corrupted_activation[:, pos] = clean_activation[:, pos]
    return corrupted_activation


def layer_pos_head_vector_patch_setter(
    corrupted_activation: Float[Tensor, "batch pos head ..."],
    index: Sequence[int],
    clean_activation: Float[Tensor, "#batch pos head ..."],
) -> Tensor:
    """Patch one head's vector at one position; index = (layer, pos, head)."""
    _, pos, head = _checked(index, "layer", "pos", "head")
    corrupted_activation[:, pos, head] = clean_activation[:, pos, head]
    return corrupted_activation


def layer_head_vector_patch_setter(
    corrupted_activation: Float[Tensor, "batch pos head ..."],
    index: Sequence[int],
    clean_activation: Float[Tensor, "#batch pos head ..."],
) -> Tensor:
    """Patch one head's vectors at all positions; index = (layer, head)."""
    _, head = _checked(index, "layer", "head")
    corrupted_activation[:, :, head] = clean_activation[:, :, head]
    return corrupted_activation


def layer_head_pattern_patch_setter(
    corrupted_activation: Float[Tensor, "batch head query key"],
    index: Sequence[int],
    clean_activation: Float[Tensor, "#batch head query key"],
) -> Tensor:
    """Patch one head's whole pattern (or scores); index = (layer, head)."""
    _, head = _checked(index, "layer", "head")
    corrupted_activation[:, head] = clean_activation[:, head]
    return corrupted_activation


def layer_head_pos_pattern_patch_setter(
    corrupted_activation: Float[Tensor, "batch head query key"],
    index: Sequence[int],
    clean_activation: Float[Tensor, "#batch head query key"],
) -> Tensor:
    """Patch where one head looks from one position; index = (layer, head, query)."""
    _, head, query = _checked(index, "layer", "head", "dest_pos")
    corrupted_activation[:, head, query] = clean_activation[:, head, query]
    return corrupted_activation


def layer_head_dest_src_pos_pattern_patch_setter(
    corrupted_activation: Float[Tensor, "batch head query key"],
    index: Sequence[int],
    clean_activation: Float[Tensor, "#batch head query key"],
) -> Tensor:
    """Patch one entry of one head's pattern; index = (layer, head, query, key)."""
    _, head, query, key = _checked(index, "layer", "head", "dest_pos", "src_pos")
    corrupted_activation[:, head, query, key] = clean_activation[:, head, query, key]
    return corrupted_activation


def _checked(index: Sequence[int], *names: str) -> Sequence[int]:
    if len(index) != len(names):
        raise ValueError(f"this setter takes an index ({', '.join(names)}), not {list(index)}")
    return index


# The setters that say what an edit can say: which parts of an edit the index after the layer gives,
# at points with these axes.
_VECTORS, _PATTERNS = ("batch", "pos"), ("batch", "head", "query", "key")
_AS_EDIT: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {
    layer_pos_patch_setter: (("pos",), _VECTORS),
    layer_pos_head_vector_patch_setter: (("pos", "head"), (*_VECTORS, "head")),
    layer_head_vector_patch_setter: (("head",), (*_VECTORS, "head")),
    layer_head_pattern_patch_setter: (("head",), _PATTERNS),
    layer_head_pos_pattern_patch_setter: (("head", "pos"), _PATTERNS),
    layer_head_dest_src_pos_pattern_patch_setter: (("head", "pos", "key"), _PATTERNS),
}


# ------------------------------------------------------------------ the general function


def make_df_from_ranges(
    column_max_ranges: Sequence[int], column_names: Sequence[str]
) -> pd.DataFrame:
    """All tuples of indices below the given ends, the last column changing fastest."""
    rows = itertools.product(*map(range, column_max_ranges))
    return pd.DataFrame(list(rows), columns=list(column_names))


def generic_activation_patch(
    model: HookedGPT2,
    corrupted_tokens: AnyPrompts,
    clean_cache: Mapping[Any, Tensor],
    patching_metric: AnyMetric,
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    return_index_df: bool = False,
) -> Any:
    """Run the model once per index, each time with one patch, and return the metric.

    The setters of this module become edits of one sweep. Any other function runs as a hook, in one
    full run per index, and may do what it likes.

    Args:
        model: what is run.
        corrupted_tokens: the prompts that are patched, `batch pos` ids, or text.
        clean_cache: activations to patch in, of as many prompts (or of one) of the same length.
        patching_metric: a function from logits `batch pos d_vocab` to one number, or a metric of
            `analyses.metrics`.
        patch_setter: `setter(corrupted_activation, index, clean_activation)`; changes its first
            argument in place, or returns what stands in its place.
        activation_name: short form of the point, such as "resid_pre", "z", "pattern".
        index_axis_names: the axes to run over completely, the first being "layer"; the others of
            "pos", "head" (or "head_index"), "dest_pos", "src_pos".
        index_df: or the indices themselves, one per row, the layer first.
        return_index_df: return the table of indices too.

    Returns:
        The metric, with one axis per name in `index_axis_names`, or one number per row of
        `index_df`; on the model's device, float32 (of a float64 model float64). With
        `return_index_df` a pair of it and the table.

    Raises:
        UnknownHookName: there is no such point, or the cache has not kept it.
        ValueError: both or neither of `index_axis_names` and `index_df`, an unknown axis, prompts
            of different lengths, padded ones where positions are asked for, or a metric that gives
            anything but one number.
        IndexError: an index is out of range.
    """
    prompts = Prompts.of(model, corrupted_tokens)
    anywhere = patch_setter in (layer_head_vector_patch_setter, layer_head_pattern_patch_setter)
    if not anywhere and not bool(prompts.attention_mask.all()):
        raise ValueError(
            "these prompts are padded, so a position would be another token in each: take prompts "
            "of one length, or activation_patching(...), which counts tokens without padding"
        )
    if (index_axis_names is None) == (index_df is None):
        raise ValueError("give either index_axis_names or index_df, and not both")
    shape: list[int] | None = None
    if index_df is None:
        axes = list(index_axis_names or ())
        shape = _sizes(model, prompts, axes)
        index_df = make_df_from_ranges(shape, axes)
    rows = [[int(i) for i in row] for row in index_df.to_numpy().tolist()]
    if not rows or not rows[0]:
        raise ValueError("there is no index to patch: index_df is empty")
    names = list(model.hook_dict)
    points = {layer: resolve((activation_name, layer), names) for layer in {row[0] for row in rows}}
    # Before any run: what is not in the cache cannot be patched.
    clean = {point: _kept(clean_cache, point) for point in points.values()}
    edits = None
    if isinstance(clean_cache, ActivationCache):
        edits = _edits(model, clean_cache, patch_setter, points, rows)
    if edits is not None:
        values = _swept(model, prompts, edits, patching_metric)
    else:
        values = _hooked(model, prompts, clean, patching_metric, patch_setter, points, rows)
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    found = torch.tensor(values, dtype=dtype, device=model.device)
    found = found if shape is None else found.view(shape)
    return (found, index_df) if return_index_df else found


def _sizes(model: HookedGPT2, prompts: Prompts, axes: Sequence[str]) -> list[int]:
    n_pos, n_heads = prompts.tokens.shape[1], model.cfg.n_heads
    known = {"layer": model.cfg.n_layers, "head": n_heads, "head_index": n_heads}
    known |= dict.fromkeys(("pos", "src_pos", "dest_pos"), n_pos)
    for axis in axes:
        if axis not in known:
            raise ValueError(
                f"unknown axis {axis!r}.{nearest(str(axis), known)} Expected some of "
                f"{', '.join(known)}"
            )
    if not axes or axes[0] != "layer":
        raise ValueError(f"the first axis is 'layer', not {axes[0]!r}" if axes else "no axes given")
    return [known[axis] for axis in axes]


def _kept(cache: Mapping[Any, Tensor], point: str) -> Tensor:
    """What a cache has at a point; an `ActivationCache` says itself what it lacks."""
    if not isinstance(cache, ActivationCache) and point not in cache:
        raise KeyError(f"the clean cache has nothing at {point!r}.{nearest(point, list(cache))}")
    return cache[point]


def _edits(
    model: HookedGPT2,
    cache: ActivationCache,
    setter: Setter,
    points: Mapping[int, str],
    rows: Sequence[Sequence[int]],
) -> list[Edit] | None:
    """The patches as edits, or None where this setter at this point is none."""
    known = next((entry for one, entry in _AS_EDIT.items() if one is setter), None)
    if known is None:
        return None
    where, axes = known
    if any(model.hook_dict[point].axes[: len(axes)] != axes for point in points.values()):
        return None
    for row in rows:
        _checked(row, "layer", *where)
    places: list[dict[str, Any]] = [dict(zip(where, row[1:], strict=True)) for row in rows]
    return [
        Patch(points[row[0]], source=cache, **place)
        for row, place in zip(rows, places, strict=True)
    ]


def _swept(
    model: HookedGPT2, prompts: Prompts, edits: Sequence[Edit], metric: AnyMetric
) -> list[float]:
    result = sweep(
        model,
        prompts.tokens,
        edits,
        {"patching_metric": metric},
        attention_mask=prompts.attention_mask,
    )
    return [_number(row, metric) for row in result.values["patching_metric"]]


def _hooked(
    model: HookedGPT2,
    prompts: Prompts,
    clean: Mapping[str, Tensor],
    metric: AnyMetric,
    setter: Setter,
    points: Mapping[int, str],
    rows: Sequence[list[int]],
) -> list[float]:
    (measure,) = named_metrics({"patching_metric": metric}).values()
    if isinstance(measure, Metric):
        with torch.no_grad():
            plain: Any = model(prompts.tokens, attention_mask=prompts.attention_mask)
        measure = measure.against(plain)
    values = []
    for i in cli.progress(range(len(rows)), "activation patching"):
        point, index = points[rows[i][0]], rows[i]

        def patch(activation: Tensor, hook: object, point=point, index=index) -> Tensor | None:
            return setter(activation, index, clean[point])

        with torch.no_grad():
            logits: Any = model.run_with_hooks(
                prompts.tokens,
                fwd_hooks=[(point, patch)],
                attention_mask=prompts.attention_mask,
            )
            if isinstance(measure, Function):
                answer = measure(logits)
            else:
                answer = measure(logits, prompts.tokens, prompts.attention_mask)
        values.append(_number(answer, metric))
    return values


def _number(answer: Float[Tensor, " value"], metric: AnyMetric) -> float:
    if len(answer) > 1 and not isinstance(metric, Metric):
        raise ValueError(
            f"patching_metric gave {len(answer)} numbers, one per prompt: expected one for all "
            "prompts together, such as their mean"
        )
    return float(answer.mean())


# ------------------------------------------------------------------ one function per kind of patch


@runtime_checkable
class ActPatch(Protocol):
    """What every `get_act_patch_...` function takes and gives."""

    def __call__(
        self,
        model: HookedGPT2,
        corrupted_tokens: AnyPrompts,
        clean_cache: Mapping[Any, Tensor],
        patching_metric: AnyMetric,
        *,
        index_axis_names: Sequence[str] | None = None,
        index_df: pd.DataFrame | None = None,
        return_index_df: bool = False,
    ) -> Any:
        """See `generic_activation_patch`."""
        ...


# A setter, and the axes that its index runs over.
_AT_POS = (layer_pos_patch_setter, ("layer", "pos"))
_HEAD = (layer_head_vector_patch_setter, ("layer", "head"))
_HEAD_AT_POS = (layer_pos_head_vector_patch_setter, ("layer", "pos", "head"))
_PATTERN = (layer_head_pattern_patch_setter, ("layer", "head_index"))
_PATTERN_FROM = (layer_head_pos_pattern_patch_setter, ("layer", "head_index", "dest_pos"))
_PATTERN_ENTRY = (
    layer_head_dest_src_pos_pattern_patch_setter,
    ("layer", "head_index", "dest_pos", "src_pos"),
)


def _over(name: str, point: str, over: tuple[Setter, tuple[str, ...]], what: str) -> ActPatch:
    """A function that patches one kind of activation over all indices (or those of `index_df`)."""
    setter, axes = over

    def patch(
        model: HookedGPT2,
        corrupted_tokens: AnyPrompts,
        clean_cache: Mapping[Any, Tensor],
        patching_metric: AnyMetric,
        *,
        index_axis_names: Sequence[str] | None = None,
        index_df: pd.DataFrame | None = None,
        return_index_df: bool = False,
    ) -> Any:
        if index_axis_names is None and index_df is None:
            index_axis_names = axes
        return generic_activation_patch(
            model,
            corrupted_tokens,
            clean_cache,
            patching_metric,
            setter,
            point,
            index_axis_names,
            index_df,
            return_index_df,
        )

    patch.__name__ = patch.__qualname__ = f"get_act_patch_{name}"
    patch.__doc__ = f"""Patch {what}, one at a time.

    Args:
        model, corrupted_tokens, clean_cache, patching_metric: as `generic_activation_patch`.
        index_axis_names, index_df, return_index_df: likewise; by default all of {", ".join(axes)}.

    Returns:
        The metric, `[{" ".join(axes)}]`.

    Raises:
        As `generic_activation_patch`.
    """
    return patch


get_act_patch_resid_pre = _over(
    "resid_pre", "resid_pre", _AT_POS, "the residual stream before each block at each position"
)
get_act_patch_resid_mid = _over(
    "resid_mid", "resid_mid", _AT_POS, "the residual stream after attention at each position"
)
get_act_patch_attn_out = _over(
    "attn_out", "attn_out", _AT_POS, "the output of each attention layer at each position"
)
get_act_patch_mlp_out = _over(
    "mlp_out", "mlp_out", _AT_POS, "the output of each MLP at each position"
)
get_act_patch_attn_head_out_by_pos = _over(
    "attn_head_out_by_pos", "z", _HEAD_AT_POS, "each head's output (z) at each position"
)
get_act_patch_attn_head_q_by_pos = _over(
    "attn_head_q_by_pos", "q", _HEAD_AT_POS, "each head's query at each position"
)
get_act_patch_attn_head_k_by_pos = _over(
    "attn_head_k_by_pos", "k", _HEAD_AT_POS, "each head's key at each position"
)
get_act_patch_attn_head_v_by_pos = _over(
    "attn_head_v_by_pos", "v", _HEAD_AT_POS, "each head's value at each position"
)
get_act_patch_attn_head_pattern_by_pos = _over(
    "attn_head_pattern_by_pos", "pattern", _PATTERN_FROM, "each head's attention from each position"
)
get_act_patch_attn_head_pattern_dest_src_pos = _over(
    "attn_head_pattern_dest_src_pos",
    "pattern",
    _PATTERN_ENTRY,
    "each head's attention from each position to each position",
)
get_act_patch_attn_head_out_all_pos = _over(
    "attn_head_out_all_pos", "z", _HEAD, "each head's output (z) at all positions"
)
get_act_patch_attn_head_q_all_pos = _over(
    "attn_head_q_all_pos", "q", _HEAD, "each head's queries at all positions"
)
get_act_patch_attn_head_k_all_pos = _over(
    "attn_head_k_all_pos", "k", _HEAD, "each head's keys at all positions"
)
get_act_patch_attn_head_v_all_pos = _over(
    "attn_head_v_all_pos", "v", _HEAD, "each head's values at all positions"
)
get_act_patch_attn_head_pattern_all_pos = _over(
    "attn_head_pattern_all_pos", "pattern", _PATTERN, "each head's whole attention pattern"
)


# ------------------------------------------------------------------ several kinds side by side


def get_act_patch_attn_head_all_pos_every(
    model: HookedGPT2,
    corrupted_tokens: AnyPrompts,
    clean_cache: Mapping[Any, Tensor],
    metric: AnyMetric,
) -> Float[Tensor, "5 layer head"]:
    """Output, query, key, value and pattern of each head at all positions, stacked in this order.

    Args:
        model, corrupted_tokens, clean_cache, metric: as `generic_activation_patch`.
    """
    kinds = (
        get_act_patch_attn_head_out_all_pos,
        get_act_patch_attn_head_q_all_pos,
        get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos,
        get_act_patch_attn_head_pattern_all_pos,
    )
    return torch.stack([one(model, corrupted_tokens, clean_cache, metric) for one in kinds])


def get_act_patch_attn_head_by_pos_every(
    model: HookedGPT2,
    corrupted_tokens: AnyPrompts,
    clean_cache: Mapping[Any, Tensor],
    metric: AnyMetric,
) -> Float[Tensor, "5 layer pos head"]:
    """Output, query, key, value and pattern of each head by position, stacked in this order.

    Args:
        model, corrupted_tokens, clean_cache, metric: as `generic_activation_patch`.
    """
    kinds = (
        get_act_patch_attn_head_out_by_pos,
        get_act_patch_attn_head_q_by_pos,
        get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos,
    )
    found = [one(model, corrupted_tokens, clean_cache, metric) for one in kinds]
    pattern = get_act_patch_attn_head_pattern_by_pos(model, corrupted_tokens, clean_cache, metric)
    # layer head pos -> layer pos head
    return torch.stack([*found, pattern.transpose(1, 2)])


def get_act_patch_block_every(
    model: HookedGPT2,
    corrupted_tokens: AnyPrompts,
    clean_cache: Mapping[Any, Tensor],
    metric: AnyMetric,
) -> Float[Tensor, "3 layer pos"]:
    """Residual stream before each block, attention output and MLP output by position, stacked.

    Args:
        model, corrupted_tokens, clean_cache, metric: as `generic_activation_patch`.
    """
    kinds = (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    return torch.stack([one(model, corrupted_tokens, clean_cache, metric) for one in kinds])
