"""The hook points of GPT-2, in the order in which tensors are born."""

from hooks import HookPoint
from interp.config import HookedGPT2Config

_RESIDUAL = ("batch", "pos", "d_model")
_SCALE = ("batch", "pos", "one")
_HEAD = ("batch", "pos", "head", "d_head")
_HEAD_RESIDUAL = ("batch", "pos", "head", "d_model")
_ATTENTION = ("batch", "head", "query", "key")
_NEURONS = ("batch", "pos", "d_mlp")

_BEFORE = {"hook_embed": _RESIDUAL, "hook_pos_embed": _RESIDUAL}
_BLOCK = {
    "hook_resid_pre": _RESIDUAL,
    "hook_attn_in": _RESIDUAL,
    "ln1.hook_scale": _SCALE,
    "ln1.hook_normalized": _RESIDUAL,
    "hook_q_input": _HEAD_RESIDUAL,
    "hook_k_input": _HEAD_RESIDUAL,
    "hook_v_input": _HEAD_RESIDUAL,
    "attn.hook_q": _HEAD,
    "attn.hook_k": _HEAD,
    "attn.hook_v": _HEAD,
    "attn.hook_attn_scores": _ATTENTION,
    "attn.hook_pattern": _ATTENTION,
    "attn.hook_z": _HEAD,
    "attn.hook_result": _HEAD_RESIDUAL,
    "hook_attn_out": _RESIDUAL,
    "hook_resid_mid": _RESIDUAL,
    "hook_mlp_in": _RESIDUAL,
    "ln2.hook_scale": _SCALE,
    "ln2.hook_normalized": _RESIDUAL,
    "mlp.hook_pre": _NEURONS,
    "mlp.hook_post": _NEURONS,
    "hook_mlp_out": _RESIDUAL,
    "hook_resid_post": _RESIDUAL,
}
_AFTER = {"ln_final.hook_scale": _SCALE, "ln_final.hook_normalized": _RESIDUAL}

ON_REQUEST = frozenset(
    {
        "hook_attn_in",
        "hook_q_input",
        "hook_k_input",
        "hook_v_input",
        "attn.hook_result",
        "hook_mlp_in",
    }
)


def hook_points(n_layers: int) -> dict[str, HookPoint]:
    """The hook points of a GPT-2 of `n_layers` blocks by full name, in order of the forward pass.

    Those `on_request` are computed only when something listens there.
    """
    points = [HookPoint(name, axes) for name, axes in _BEFORE.items()]
    for layer in range(n_layers):
        points += [
            HookPoint(f"blocks.{layer}.{name}", axes, on_request=name in ON_REQUEST)
            for name, axes in _BLOCK.items()
        ]
    points += [HookPoint(name, axes) for name, axes in _AFTER.items()]
    return {point.name: point for point in points}


def axis_sizes(cfg: HookedGPT2Config) -> dict[str, int]:
    """How long the axes are that a model fixes (a run sets batch, pos, query and key)."""
    return {
        "d_model": cfg.d_model,
        "head": cfg.n_heads,
        "d_head": cfg.d_head,
        "d_mlp": cfg.d_mlp,
    }
