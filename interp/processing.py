"""Rewriting weights so that they are easier to read, without changing what the model predicts.

The four steps are those of TransformerLens' `HookedTransformer.process_weights_`
(source: TransformerLens documentation, "Weight processing"; Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits", section "Privileged vs free basis" and appendix).
"""

import torch
from torch import Tensor

from interp.config import HookedGPT2Config


def process(
    cfg: HookedGPT2Config,
    parameters: dict[str, Tensor],
    *,
    fold_ln: bool,
    center_writing_weights: bool,
    center_unembed: bool,
    fold_value_biases: bool,
) -> dict[str, Tensor]:
    """New parameters after the chosen steps; `parameters` (stacked layout) stay as they are.

    The result always has an unembedding and an unembedding bias of its own. Sums are taken in
    float64 and rounded once.
    """
    p = {name: value.detach().clone() for name, value in parameters.items()}
    p.setdefault("lm_head.weight", p["wte"].clone())
    p.setdefault("lm_head.bias", torch.zeros_like(p["wte"][:, 0]))
    if fold_ln:
        _fold_layer_norms(cfg, p)
    if center_writing_weights:
        for name in ("wte", "wpe", "attn.c_proj.weight", "attn.c_proj.bias"):
            _subtract_mean(p[name], -1)
        for name in ("mlp.c_proj.weight", "mlp.c_proj.bias"):
            _subtract_mean(p[name], -1)
    if center_unembed:
        _subtract_mean(p["lm_head.weight"], 0)
        _subtract_mean(p["lm_head.bias"], 0)
    if fold_value_biases:
        for layer in range(cfg.n_layers):
            b_v = p["attn.c_attn.bias"][layer, 2 * cfg.d_model :]
            w_o, b_o = p["attn.c_proj.weight"][layer], p["attn.c_proj.bias"][layer]
            b_o.copy_(b_o.double() + b_v.double() @ w_o.double())
            b_v.zero_()
    return p


def _fold_layer_norms(cfg: HookedGPT2Config, p: dict[str, Tensor]) -> None:
    for ln, reads in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
        for layer in range(cfg.n_layers):
            weight, bias = p[f"{reads}.weight"][layer], p[f"{reads}.bias"][layer]
            gain, shift = p[f"{ln}.weight"][layer], p[f"{ln}.bias"][layer]
            _fold(weight, bias, gain, shift, reads_rows=True)
    _fold(
        p["lm_head.weight"], p["lm_head.bias"], p["ln_f.weight"], p["ln_f.bias"], reads_rows=False
    )


def _fold(weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, *, reads_rows: bool) -> None:
    """Fold a layer norm into the linear map that reads it, and centre what that map reads.

    `reads_rows`: the map is `x @ weight` (else `x @ weight.T`).
    """
    w = weight.double() if reads_rows else weight.double().T
    bias.copy_(bias.double() + shift.double() @ w)
    w = gain.double()[:, None] * w
    # A normalised residual has mean zero, so a constant along what is read does nothing.
    w = w - w.mean(0, keepdim=True)
    weight.copy_(w if reads_rows else w.T)
    gain.fill_(1.0)
    shift.zero_()


def _subtract_mean(value: Tensor, dim: int) -> None:
    value.copy_(value.double() - value.double().mean(dim, keepdim=True))
