"""The residual stream of a run as a stack of parts: what wrote to it, or what it was on the way.

What `ActivationCache.decompose_resid`, `accumulated_resid`, `stack_head_results`,
`apply_ln_to_stack` and `logit_attrs` are in TransformerLens, as functions of a model and a cache,
under the same names, with the same labels, stacks and defaults. Public in `analyses.attribution`,
which says how they belong together.

Everywhere: `layer` is where the stack ends, at what enters that layer; `n_layers`, None and -1 mean
what enters the final layer norm. `pos_slice` is an index, a slice, a list or a mask of positions;
an index removes the axis. Results have the axes of the cache's residuals behind `component`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.tasks import unknown
from hooks import ActivationCache
from hooks.cache import Index, take
from interp import HookedGPT2

MODES = ("all", "mlp", "attn")
Stack = Float[Tensor, "component *batch_and_pos d_model"]
Tokens = str | int | Int[Tensor, "..."]

_POS = ("pos",)


def decompose_resid(
    model: HookedGPT2,
    cache: ActivationCache,
    layer: int | None = None,
    mlp_input: bool = False,
    mode: Literal["all", "mlp", "attn"] = "all",
    apply_ln: bool = False,
    pos_slice: Index | None = None,
    incl_embeds: bool = True,
    return_labels: bool = False,
) -> Stack | tuple[Stack, list[str]]:
    """What each part wrote to the residual stream that enters a layer; the parts sum to it.

    Labels: `embed`, `pos_embed`, `0_attn_out`, `0_mlp_out`, `1_attn_out`, ...

    Args:
        mlp_input: up to what enters the MLP of `layer`, so with its attention.
        mode: "all", or only "mlp" or "attn".
        apply_ln: divide by the scale of the layer norm that reads this residual, and centre, as in
            `apply_ln_to_stack`.
        incl_embeds: with the embeddings.
        return_labels: return the labels too.

    Raises:
        IndexError, ValueError: a layer or position out of range, an unknown mode, `mlp_input` at
            the end of the model, nothing left.
        UnknownHookName: the cache lacks what is needed; names it.
    """
    end = _end(model, layer, mlp_input)
    if mode not in MODES:
        raise ValueError(unknown("mode", str(mode), MODES))
    names = {"embed": "hook_embed", "pos_embed": "hook_pos_embed"} if incl_embeds else {}
    for at in range(end + mlp_input):
        if mode != "mlp":
            names[f"{at}_attn_out"] = f"blocks.{at}.hook_attn_out"
        if mode != "attn" and at < end:
            names[f"{at}_mlp_out"] = f"blocks.{at}.hook_mlp_out"
    if not names:
        raise ValueError(f"nothing is left: before layer {end} there is no part of mode {mode!r}")
    stack = torch.stack([_at(cache, name, pos_slice) for name in names.values()])
    if apply_ln:
        stack = _normalised(model, cache, stack, end, mlp_input, pos_slice)
    return (stack, list(names)) if return_labels else stack


def accumulated_resid(
    model: HookedGPT2,
    cache: ActivationCache,
    layer: int | None = None,
    incl_mid: bool = False,
    apply_ln: bool = False,
    pos_slice: Index | None = None,
    mlp_input: bool = False,
    return_labels: bool = False,
) -> Stack | tuple[Stack, list[str]]:
    """The residual stream as it enters each layer up to `layer`.

    Labels: `0_pre`, (`0_mid`,) `1_pre`, ..., and `final_post` for what leaves the last layer.

    Args:
        incl_mid: also what enters each MLP before `layer`.
        apply_ln: at the end of the model, apply the final layer norm to each, with a scale of its
            own, gain and shift (the logit lens: `model.unembed` of it are logits); before it,
            divide by the *one* scale with which `layer` reads.
        mlp_input: also what enters the MLP of `layer`.
        return_labels: return the labels too.

    Raises:
        others: as `decompose_resid`.
    """
    end = _end(model, layer, mlp_input)
    names: dict[str, str] = {}
    for at in range(end + 1):
        if at == model.cfg.n_layers:
            names["final_post"] = f"blocks.{at - 1}.hook_resid_post"
            continue
        names[f"{at}_pre"] = f"blocks.{at}.hook_resid_pre"
        if (incl_mid and at < end) or (mlp_input and at == end):
            names[f"{at}_mid"] = f"blocks.{at}.hook_resid_mid"
    stack = torch.stack([_at(cache, name, pos_slice) for name in names.values()])
    if apply_ln and end == model.cfg.n_layers:
        stack = model.ln_final(stack)
    elif apply_ln:
        stack = _normalised(model, cache, stack, end, mlp_input, pos_slice)
    return (stack, list(names)) if return_labels else stack


def stack_head_results(
    model: HookedGPT2,
    cache: ActivationCache,
    layer: int | None = -1,
    return_labels: bool = False,
    incl_remainder: bool = False,
    pos_slice: Index | None = None,
    apply_ln: bool = False,
) -> Stack | tuple[Stack, list[str]]:
    """What each head before `layer` wrote to the residual stream, without the output bias.

    Taken from `attn.hook_result` where the cache has it, else z times `W_O`: a whole `d_model` per
    head, so pass a `pos_slice` where one will do.

    Labels: `L0H0`, `L0H1`, ..., and `remainder`.

    Args:
        return_labels: return the labels too.
        incl_remainder: add what is left of the residual stream that enters `layer`.
        apply_ln: as in `decompose_resid`.

    Raises:
        others: as `decompose_resid`.
    """
    end = _end(model, layer, False)
    parts, labels = [], []
    for at in range(end):
        result = f"blocks.{at}.attn.hook_result"
        if result in cache:
            heads = _at(cache, result, pos_slice)
        else:
            z = _at(cache, f"blocks.{at}.attn.hook_z", pos_slice)
            heads = torch.einsum("...hd,hdm->...hm", z, model.W_O[at])
        parts.append(heads.movedim(-2, 0))
        labels += [f"L{at}H{head}" for head in range(model.cfg.n_heads)]
    if incl_remainder:
        enters = f"blocks.{end}.hook_resid_pre"
        if end == model.cfg.n_layers or (end and enters not in cache):
            enters = f"blocks.{end - 1}.hook_resid_post"
        rest = _at(cache, enters, pos_slice)[None]
        for heads in parts:
            rest = rest - heads.sum(0)
        parts.append(rest)
        labels.append("remainder")
    if not parts:
        raise ValueError("nothing is left: there is no head before layer 0")
    stack = torch.cat(parts)
    if apply_ln:
        stack = _normalised(model, cache, stack, end, False, pos_slice)
    return (stack, labels) if return_labels else stack


def apply_ln_to_stack(
    model: HookedGPT2,
    cache: ActivationCache,
    residual_stack: Stack,
    layer: int | None = None,
    mlp_input: bool = False,
    pos_slice: Index | None = None,
    batch_slice: Index | None = None,
    has_batch_dim: bool = True,
) -> Float[Tensor, "component *batch_and_pos_out d_model"]:
    """Parts of a residual as the layer norm that reads it scaled them in this run.

    Each is centred and divided by the scale of the *whole* residual, kept in the cache: layer norm
    with its scale held fixed is linear, so what holds of the sum holds of the parts. Gain and
    shift are not applied (with weights from `model.processed()` they are 1 and 0).

    Args:
        layer, mlp_input: which layer norm: `ln1` of that layer, its `ln2`, or the final one.
        pos_slice: which positions `residual_stack` was made of.
        batch_slice: which prompts to take, of the stack and of the scale.
        has_batch_dim: whether `residual_stack` has an axis `batch` behind `component`.

    Raises:
        ValueError: the stack is not of the positions and prompts of the cache.
        others: as `decompose_resid`.
    """
    end = _end(model, layer, mlp_input)
    if has_batch_dim and batch_slice is not None:
        axes = ("component", "batch", *("pos",) * (residual_stack.ndim - 3), "d_model")
        residual_stack, _ = take(residual_stack, axes, ("batch",), batch_slice, "residual_stack")
    return _normalised(
        model, cache, residual_stack, end, mlp_input, pos_slice, batch_slice, has_batch_dim
    )


def logit_attrs(
    model: HookedGPT2,
    cache: ActivationCache,
    residual_stack: Stack,
    tokens: Tokens,
    incorrect_tokens: Tokens | None = None,
    pos_slice: Index | None = None,
    batch_slice: Index | None = None,
    has_batch_dim: bool = True,
) -> Float[Tensor, "component *batch_and_pos_out"]:
    """What each part of the final residual adds to a logit, or to the difference of two.

    A part is scaled as in `apply_ln_to_stack`, then multiplied by the final layer norm's gain and
    by the token's column of the unembedding. Parts of the whole residual sum to the logit, less
    the layer norm's shift times that column and less `b_U`, which are no part of a residual. On
    weights from `model.processed()` the numbers are TransformerLens'. Its `logit_attrs` leaves the
    gain out, so that on weights as they are it gives no parts of logits; this one does.

    Args:
        residual_stack: as the functions of this module give; not through a layer norm yet.
        tokens: the text or id of one token; or ids, one per prompt (`batch`; without that axis, per
            position) or one per prompt and position (`batch pos`).
        incorrect_tokens: tokens whose logit is subtracted; of the same shape.
        pos_slice, batch_slice, has_batch_dim: as in `apply_ln_to_stack`. `tokens` are of the
            prompts and positions that are left.

    Raises:
        ValueError: tokens and incorrect tokens, or tokens and stack, differ in shape.
        IndexError: an id that this model does not predict.
        others: as `apply_ln_to_stack`.
    """
    right = _token_ids(model, tokens)
    direction = model.W_U.T[right]
    if incorrect_tokens is not None:
        wrong = _token_ids(model, incorrect_tokens)
        if wrong.shape != right.shape:
            raise ValueError(
                f"tokens and incorrect_tokens must have the same shape, not {tuple(right.shape)} "
                f"and {tuple(wrong.shape)}"
            )
        direction = direction - model.W_U.T[wrong]
    scaled = apply_ln_to_stack(
        model,
        cache,
        residual_stack,
        pos_slice=pos_slice,
        batch_slice=batch_slice,
        has_batch_dim=has_batch_dim,
    )
    places = scaled.shape[1:-1]
    if right.numel() == 1:
        direction = direction.reshape(-1)
    elif right.shape == places[: right.ndim]:
        # One token per prompt is that for all its positions.
        direction = direction.view(*right.shape, *(1,) * (len(places) - right.ndim), -1)
    else:
        raise ValueError(
            f"tokens of shape {tuple(right.shape)} do not fit a residual stack whose prompts and "
            f"positions are {tuple(places)}: expected one token, or one per prompt (and position)"
        )
    return torch.einsum("c...d,...d->c...", scaled, direction * model.weight("ln_f.weight"))


# ------------------------------------------------------------------ what they share


def _end(model: HookedGPT2, layer: int | None, mlp_input: bool) -> int:
    n_layers = model.cfg.n_layers
    if layer is None or layer == -1:
        layer = n_layers
    if not 0 <= layer <= n_layers:
        raise IndexError(
            f"layer {layer} is out of range: this model has {n_layers} layers, so it goes from 0 "
            f"to {n_layers} (-1 and None mean {n_layers})"
        )
    if mlp_input and layer == n_layers:
        raise ValueError(f"mlp_input needs a layer below {n_layers}: the final layer norm has none")
    return layer


def _at(cache: ActivationCache, name: str, pos_slice: Index | None) -> Tensor:
    value = cache[name]
    if pos_slice is None:
        return value
    return take(value, cache.axes[cache.full_name(name)], _POS, pos_slice, name)[0]


def _normalised(
    model: HookedGPT2,
    cache: ActivationCache,
    stack: Tensor,
    end: int,
    mlp_input: bool,
    pos_slice: Index | None,
    batch_slice: Index | None = None,
    has_batch_dim: bool = True,
) -> Tensor:
    """The stack centred and divided by the scale that the cache has of the norm at `end`."""
    name = f"blocks.{end}.{'ln2' if mlp_input else 'ln1'}.hook_scale"
    if end == model.cfg.n_layers:
        name = "ln_final.hook_scale"
    scale, axes = cache[name], cache.axes[cache.full_name(name)]
    if pos_slice is not None:
        scale, axes = take(scale, axes, _POS, pos_slice, name)
    if batch_slice is not None:
        scale, axes = take(scale, axes, ("batch",), batch_slice, name)
    if not has_batch_dim and "batch" in axes and scale.shape[0] == 1:
        scale, axes = scale[0], axes[1:]
    if stack.shape[1:-1] != scale.shape[:-1] or stack.shape[-1] != model.cfg.d_model:
        expected = " ".join(f"{axis}={n}" for axis, n in zip(axes[:-1], scale.shape, strict=False))
        raise ValueError(
            f"the residual stack has shape {tuple(stack.shape)}, but with these slices the cache "
            f"has {expected or 'one place'}: expected component {expected} "
            f"d_model={model.cfg.d_model} (pos_slice must be the one the stack was made with)"
        )
    return (stack - stack.mean(-1, keepdim=True)) / scale


def _token_ids(model: HookedGPT2, tokens: Tokens | Sequence[int]) -> Tensor:
    given = model.to_single_token(tokens) if isinstance(tokens, str) else tokens
    ids = torch.as_tensor(given, device=model.device)
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"tokens are the text of one token or ids, not {ids.dtype}")
    outside = ids[(ids < 0) | (ids >= model.cfg.d_vocab_out)]
    if outside.numel():
        raise IndexError(
            f"token id {int(outside[0])} is out of range: this model predicts tokens 0 to "
            f"{model.cfg.d_vocab_out - 1}"
        )
    return ids.long()
