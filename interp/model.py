"""GPT-2 in the order in which data flows, every hook point where its tensor is born.

Checked against `transformers`' GPT2LMHeadModel. Weights stay as GPT-2 stores them (queries, keys
and values in one matrix, `x @ W`), stacked over layers. Activations are `batch pos ...`.

This file computes; [`interp.hooked`][] is what a user holds.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hooks import HookError, Listeners, Tap
from interp.config import ACTIVATIONS, HookedGPT2Config
from interp.kv_cache import KeyValueCache

Residual = Float[Tensor, "batch pos d_model"]
Heads = Float[Tensor, "batch pos head d_head"]


class BlockWeights(NamedTuple):
    """The weights of one block, as GPT-2 stores them; `x @ W + b` throughout."""

    ln1_w: Float[Tensor, "d_model"]
    ln1_b: Float[Tensor, "d_model"]
    W_qkv: Float[Tensor, "d_model three_d_model"]
    b_qkv: Float[Tensor, "three_d_model"]
    W_O: Float[Tensor, "d_model d_model"]
    b_O: Float[Tensor, "d_model"]
    ln2_w: Float[Tensor, "d_model"]
    ln2_b: Float[Tensor, "d_model"]
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, "d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, "d_model"]


STACKED = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)


@dataclass(frozen=True)
class Visibility:
    """Which positions each query may attend to, and where its tokens stand.

    Attributes:
        positions: index into the positional embedding.
        mask: True on real tokens, earlier ones (of a key/value cache) included.
        allowed: True where a query may look at a key; None means: at itself and all before it,
            the queries being the last of the positions.
    """

    positions: Int[Tensor, "#batch pos"]
    mask: Bool[Tensor, "batch key"]
    allowed: Bool[Tensor, "#batch 1 query key"] | None

    @staticmethod
    def of(mask: Bool[Tensor, "batch key"], n_new: int, padded: bool) -> "Visibility":
        """Visibility of the last `n_new` positions of `mask`; `padded` if any of it is False.

        Positions count real tokens only, so a prompt padded on the left is computed as it would
        be alone. A padding token attends to nothing.
        """
        n_keys = mask.shape[1]
        if not padded:
            positions = torch.arange(n_keys - n_new, n_keys, device=mask.device)[None]
            if n_new in (1, n_keys):
                return Visibility(positions, mask, None)
        else:
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -n_new:]
        causal = torch.ones(n_new, n_keys, dtype=torch.bool, device=mask.device)
        allowed = causal.tril(n_keys - n_new)[None, None]
        if padded:
            allowed = allowed & mask[:, None, None, :] & mask[:, None, -n_new:, None]
        return Visibility(positions, mask, allowed)


class GPT2(nn.Module):
    """GPT-2's weights and its computation.

    Args:
        cfg: sizes and variants.
        parameters: weights by the names of `interp.weights.parameter_shapes`, used as they are.
    """

    def __init__(self, cfg: HookedGPT2Config, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.cfg = cfg
        self._act_fn: Callable[[Tensor], Tensor] = ACTIVATIONS[cfg.act_fn]
        for name, value in parameters.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(value))

    # ---------------------------------------------------------------- the parts, in order

    def embed(
        self,
        tokens: Int[Tensor, "batch pos"],
        positions: Int[Tensor, "#batch pos"],
        at: Tap,
        frozen: bool,
    ) -> Residual:
        """Token plus position embeddings."""
        wte, wpe = self._weight("wte", frozen), self._weight("wpe", frozen)
        embed = at("hook_embed", F.embedding(tokens, wte))
        pos_embed = F.embedding(positions, wpe).expand_as(embed)
        return embed + at("hook_pos_embed", pos_embed)

    def block(
        self,
        layer: int,
        residual: Residual,
        w: BlockWeights,
        at: Tap,
        visible: Visibility,
        past: KeyValueCache | None,
    ) -> Residual:
        """One transformer block: attention, then MLP, each reading a normalised residual."""
        resid_pre = at("hook_resid_pre", residual)
        attn_out = at("hook_attn_out", self.attn_out(layer, resid_pre, w, at, visible, past))
        resid_mid = at("hook_resid_mid", resid_pre + attn_out)
        mlp_out = at("hook_mlp_out", self.mlp_out(resid_mid, w, at))
        return at("hook_resid_post", resid_mid + mlp_out)

    def attn_out(
        self,
        layer: int,
        resid_pre: Residual,
        w: BlockWeights,
        at: Tap,
        visible: Visibility,
        past: KeyValueCache | None,
    ) -> Residual:
        """Causal self-attention of one block."""
        q, k, v = self.queries_keys_values(resid_pre, w, at)
        # batch pos head d_head -> batch head pos d_head
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if past is not None:
            k, v = past.extend(layer, k, v)
        z = at("attn.hook_z", self.attend(layer, q, k, v, visible.allowed, at))
        return self.attn_output(z, w, at)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "batch head query d_head"],
        k: Float[Tensor, "batch head key d_head"],
        v: Float[Tensor, "batch head key d_head"],
        allowed: Bool[Tensor, "#batch 1 query key"] | None,
        at: Tap,
    ) -> Float[Tensor, "batch query head d_head"]:
        """What each query gathers from the keys it may look at (None: itself and all before, the
        queries being the last positions)."""
        cfg = self.cfg
        scale = cfg.d_head**-0.5 if cfg.scale_attn_weights else 1.0
        if cfg.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
        upcast = cfg.reorder_and_upcast_attn and q.dtype in (torch.float16, torch.bfloat16)
        if upcast or at.listens("attn.hook_attn_scores", "attn.hook_pattern"):
            q, k = (q.float(), k.float()) if upcast else (q, k)
            scores = _attention_scores(q, k, scale)
            if allowed is None:
                n_query, n_key = scores.shape[-2:]
                future = torch.ones(n_query, n_key, dtype=torch.bool, device=q.device)
                future = future.triu(1 + n_key - n_query)
                scores = at("attn.hook_attn_scores", scores.masked_fill_(future, -torch.inf))
                pattern = scores.softmax(-1).to(v.dtype)
            else:
                scores = at("attn.hook_attn_scores", scores.masked_fill_(~allowed, -torch.inf))
                # A padding token attends to nothing; the softmax of nothing is NaN.
                nowhere = ~allowed.any(-1, keepdim=True)
                pattern = scores.masked_fill(nowhere, 0.0).softmax(-1).to(v.dtype)
                pattern = pattern.masked_fill(nowhere, 0.0)
            z = at("attn.hook_pattern", pattern) @ v
        else:
            # Causal in torch: query i sees the first i + 1 keys. A single query here is the last.
            causal = allowed is None and q.shape[2] > 1
            z = F.scaled_dot_product_attention(
                q, k, v, attn_mask=allowed, is_causal=causal, scale=scale
            )
        return z.transpose(1, 2)  # batch head query d_head -> batch query head d_head

    def attn_output(self, z: Heads, w: BlockWeights, at: Tap) -> Residual:
        """What the heads of one block write to the residual stream, together."""
        if at.listens("attn.hook_result"):
            result = torch.einsum("bphe,hed->bphd", z, w.W_O.view(*z.shape[2:], -1))
            result = at("attn.hook_result", result)
            if at.alters("attn.hook_result"):
                return result.sum(2) + w.b_O
        return _linear(z.flatten(2), w.W_O, w.b_O)

    def queries_keys_values(
        self, resid_pre: Residual, w: BlockWeights, at: Tap
    ) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values of every position of one block."""
        heads = (self.cfg.n_heads, self.cfg.d_head)
        attn_in = at("hook_attn_in", resid_pre)
        shared = self.layer_norm("ln1", attn_in, w.ln1_w, w.ln1_b, at)
        # batch pos (3 head d_head) -> batch pos 3 head d_head
        qkv = _linear(shared, w.W_qkv, w.b_qkv).view(*attn_in.shape[:2], 3, *heads)
        found = []
        for i, name in enumerate("qkv"):
            projected = qkv[:, :, i]
            if at.listens(f"hook_{name}_input"):
                every_head = attn_in.unsqueeze(2).expand(-1, -1, heads[0], -1)
                own_input = at(f"hook_{name}_input", every_head)
                if at.alters(f"hook_{name}_input"):
                    if at.alters("ln1.hook_scale", "ln1.hook_normalized"):
                        raise HookError(
                            f"hook_{name}_input gives each head a layer norm of its own, past "
                            f"ln1.hook_scale and ln1.hook_normalized: in a block, hook (or take "
                            f"the gradient at) the one or the other. For everything else, a filter "
                            f"such as lambda name: not name.endswith('_input')."
                        )
                    normalized = F.layer_norm(
                        own_input, own_input.shape[-1:], w.ln1_w, w.ln1_b, self.cfg.eps
                    )
                    columns = w.W_qkv.view(-1, 3, *heads)[:, i]
                    projected = torch.einsum("bphd,dhe->bphe", normalized, columns)
                    projected = projected + w.b_qkv.view(3, *heads)[i]
            found.append(at(f"attn.hook_{name}", projected))
        return found[0], found[1], found[2]

    def mlp_out(self, resid_mid: Residual, w: BlockWeights, at: Tap) -> Residual:
        """The two-layer perceptron of one block."""
        normalized = self.layer_norm("ln2", at("hook_mlp_in", resid_mid), w.ln2_w, w.ln2_b, at)
        pre = at("mlp.hook_pre", _linear(normalized, w.W_in, w.b_in))
        post = at("mlp.hook_post", self._act_fn(pre))
        return _linear(post, w.W_out, w.b_out)

    def layer_norm(self, name: str, x: Residual, weight: Tensor, bias: Tensor, at: Tap) -> Residual:
        """normalized * weight + bias, where normalized = (x - mean) / scale and
        scale = sqrt(variance + eps)."""
        scale_point, normalized_point = f"{name}.hook_scale", f"{name}.hook_normalized"
        width, eps = x.shape[-1:], self.cfg.eps
        if at.alters(scale_point):
            centred = x - x.mean(-1, keepdim=True)
            scale = at(scale_point, (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt())
            normalized = centred / scale
        elif at.listens(scale_point, normalized_point):
            normalized, _, inverse_scale = torch.native_layer_norm(x, width, None, None, eps)
            if at.listens(scale_point):
                at(scale_point, inverse_scale.reciprocal().to(x.dtype))
        else:
            return F.layer_norm(x, width, weight, bias, eps)
        return torch.addcmul(bias, at(normalized_point, normalized), weight)

    def ln_final(
        self, residual: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The final layer norm, on residuals of any leading shape."""
        weight, bias = self.weight("ln_f.weight"), self.weight("ln_f.bias")
        return F.layer_norm(residual, residual.shape[-1:], weight, bias, self.cfg.eps)

    def unembed(
        self,
        normalized: Float[Tensor, "*batch d_model"],
        ids: Int[Tensor, " d_vocab"] | None = None,
    ) -> Float[Tensor, "*batch d_vocab"]:
        """Logits from what the final layer norm gives, of any leading shape.

        Args:
            ids: of these tokens only; None: of all.
        """
        head = getattr(self, "lm_head", None)
        weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
        weight = self.weight("wte") if weight is None else weight
        if ids is not None:
            weight, bias = weight[ids], None if bias is None else bias[ids]
        return F.linear(normalized, weight, bias)

    # ---------------------------------------------------------------- the whole

    def compute(
        self,
        input: Tensor,
        visible: Visibility,
        listeners: Listeners,
        *,
        start_at_layer: int,
        stop_at_layer: int | None,
        unembed: bool,
        past: KeyValueCache | None,
        frozen: bool,
        blocks: Iterable[tuple[int, BlockWeights]] | None = None,
    ) -> Tensor:
        """From tokens (or the residual that enters block `start_at_layer`) to logits (or the
        residual that enters block `stop_at_layer`, or without `unembed` what the final layer norm
        gives).

        Args:
            input: `batch pos` tokens, or, with `start_at_layer` > 0 or a floating dtype, a
                residual `batch pos d_model`.
            frozen: leave the weights out of the autograd graph.
            blocks: what `block_weights` gave for these layers, for who runs many short passes.
        """
        at = listeners.within("")
        if input.is_floating_point():
            residual = input
        else:
            residual = self.embed(input, visible.positions, at, frozen)
        stop = self.cfg.n_layers if stop_at_layer is None else stop_at_layer
        if blocks is None:
            blocks = self.block_weights(start_at_layer, stop, frozen=frozen)
        for layer, weights in blocks:
            inside = listeners.within(f"blocks.{layer}.")
            residual = self.block(layer, residual, weights, inside, visible, past)
        if stop_at_layer is not None:
            return residual
        weight, bias = self.weight("ln_f.weight"), self.weight("ln_f.bias")
        normalized = self.layer_norm("ln_final", residual, weight, bias, at)
        return self.unembed(normalized) if unembed else normalized

    def block_weights(
        self, start: int = 0, stop: int | None = None, *, frozen: bool = False
    ) -> Iterator[tuple[int, BlockWeights]]:
        """Blocks `start` to `stop` (not included), each with its number.

        Args:
            frozen: leave the weights out of the autograd graph.
        """
        rows = [self._weight(name, frozen).unbind(0) for name in STACKED]
        for layer in range(start, self.cfg.n_layers if stop is None else stop):
            yield layer, BlockWeights(*(row[layer] for row in rows))

    def weight(self, name: str) -> Tensor:
        """A parameter by the names of `interp.weights.parameter_shapes`."""
        # Not `get_parameter`: torch.func.functional_call puts plain tensors in place of parameters.
        return attrgetter(name)(self)

    def _weight(self, name: str, frozen: bool) -> Tensor:
        return self.weight(name).detach() if frozen else self.weight(name)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x @ weight + bias` over the last axis, in one call."""
    out = torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight)
    return out.view(*x.shape[:-1], weight.shape[-1])


def _attention_scores(q: Tensor, k: Tensor, scale: float) -> Float[Tensor, "batch head query key"]:
    """scale * q @ k^T in one pass."""
    batch, n_heads, n_query, d_head = q.shape
    flat_q = q.reshape(batch * n_heads, n_query, d_head)
    flat_k = k.reshape(batch * n_heads, -1, d_head)
    unused = q.new_empty(()).expand(1, 1, 1)
    scores = torch.baddbmm(unused, flat_q, flat_k.transpose(1, 2), beta=0, alpha=scale)
    return scores.view(batch, n_heads, n_query, -1)
