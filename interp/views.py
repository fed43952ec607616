"""GPT-2's weights in TransformerLens' names and layouts: views, never copies.

Writing into a view changes the model. All are differentiable. `b_U` alone is no view where the
model has no unembedding bias, as GPT-2 has none: it is zeros then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from interp.composition import Circuits, composed, later_composition_scores
from interp.model import GPT2


class _Weights:
    """Says where what is looked for on a block is."""

    def __getattr__(self, name: str) -> Any:
        what = f"{type(self).__name__} has no {name!r}"
        if name.startswith("hook_"):
            what += (
                ": blocks hold weights alone. Hook points go by name, as in "
                'run_with_hooks(fwd_hooks=[("blocks.0.attn.hook_z", fn)]), cache["z", 0], or '
                'model.hook_dict["blocks.0.attn.hook_z"]'
            )
        raise AttributeError(what)


@dataclass(frozen=True)
class AttentionWeights(Circuits, _Weights):
    """One block's attention, `x @ W + b` per head."""

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "head d_model d_head"]
    W_V: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_Q: Float[Tensor, "head d_head"]
    b_K: Float[Tensor, "head d_head"]
    b_V: Float[Tensor, "head d_head"]
    b_O: Float[Tensor, "d_model"]


@dataclass(frozen=True)
class MLPWeights(_Weights):
    """One block's MLP: neuron i reads `W_in[:, i]` and writes `W_out[i]`."""

    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, "d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, "d_model"]


@dataclass(frozen=True)
class LayerNormWeights(_Weights):
    """A layer norm's gain and shift."""

    w: Float[Tensor, "d_model"]
    b: Float[Tensor, "d_model"]


@dataclass(frozen=True)
class Block(_Weights):
    """The weights of one block."""

    ln1: LayerNormWeights
    attn: AttentionWeights
    ln2: LayerNormWeights
    mlp: MLPWeights


class WeightViews(Circuits, GPT2):
    """GPT-2 with its weights under TransformerLens' names, per block and stacked over layers."""

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embeddings."""
        return self.weight("wte")

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Position embeddings."""
        return self.weight("wpe")

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding; of tied weights, the transpose of `W_E`."""
        head = getattr(self, "lm_head", None)
        weight = getattr(head, "weight", None)
        return (self.W_E if weight is None else weight).T

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        """Unembedding bias; zeros where the model has none (GPT-2 has none)."""
        bias = getattr(getattr(self, "lm_head", None), "bias", None)
        return torch.zeros_like(self.W_E[:, 0]) if bias is None else bias

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights."""
        return self._qkv_weight(0)

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights."""
        return self._qkv_weight(1)

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights."""
        return self._qkv_weight(2)

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query biases."""
        return self._qkv_bias(0)

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """Key biases."""
        return self._qkv_bias(1)

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """Value biases."""
        return self._qkv_bias(2)

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Attention output weights."""
        cfg = self.cfg
        weight = self.weight("attn.c_proj.weight")
        return weight.view(cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_model)

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Attention output biases."""
        return self.weight("attn.c_proj.bias")

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """MLP input weights."""
        return self.weight("mlp.c_fc.weight")

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """MLP input biases."""
        return self.weight("mlp.c_fc.bias")

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """MLP output weights."""
        return self.weight("mlp.c_proj.weight")

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """MLP output biases."""
        return self.weight("mlp.c_proj.bias")

    def all_composition_scores(
        self, mode: str
    ) -> Float[Tensor, "layer head later_layer later_head"]:
        """How much of what each head writes does each later head read, in one way of three?

        `norm(OV_1 @ M_2) / (norm(OV_1) * norm(M_2))`, where the later head reads with M = QK (mode
        "Q": for its queries), its transpose ("K": for its keys) or OV ("V": to pass it on). 0 where
        the second head is in no later layer. `analyses.circuits.composition` has it beside what
        random matrices give.

        Raises:
            ValueError: another mode.

        Source: Elhage et al. 2021, section "Two-Layer Attention-Only Transformers".
        """
        scores = later_composition_scores(*composed(self.QK, self.OV, mode))
        n = self.cfg.n_layers
        later = torch.ones(n, n, dtype=torch.bool, device=scores.device).triu(1)
        return scores.where(later[:, None, :, None], scores.new_zeros(()))

    @property
    def blocks(self) -> "Blocks":
        """The weights block by block: `model.blocks[3].attn.W_Q`."""
        return Blocks(self)

    def _qkv_weight(self, which: int) -> Float[Tensor, "layer head d_model d_head"]:
        cfg = self.cfg
        weight = self.weight("attn.c_attn.weight")
        split = weight.view(cfg.n_layers, cfg.d_model, 3, cfg.n_heads, cfg.d_head)
        return split[:, :, which].transpose(1, 2)

    def _qkv_bias(self, which: int) -> Float[Tensor, "layer head d_head"]:
        cfg = self.cfg
        bias = self.weight("attn.c_attn.bias")
        return bias.view(cfg.n_layers, 3, cfg.n_heads, cfg.d_head)[:, which]


class Blocks(Sequence[Block]):
    """The blocks of a model, each a group of weight views."""

    def __init__(self, model: WeightViews) -> None:
        self._model = model

    def __len__(self) -> int:
        return self._model.cfg.n_layers

    @overload
    def __getitem__(self, layer: int) -> Block: ...
    @overload
    def __getitem__(self, layer: slice) -> list[Block]: ...
    def __getitem__(self, layer: int | slice) -> Block | list[Block]:
        if isinstance(layer, slice):
            return [self[i] for i in range(*layer.indices(len(self)))]
        n = len(self)
        if not -n <= layer < n:
            raise IndexError(f"layer {layer} is out of range: there are {n}, 0 to {n - 1}.")
        m = self._model

        def stacked(name: str) -> Tensor:
            return m.weight(name)[layer]

        return Block(
            ln1=LayerNormWeights(stacked("ln_1.weight"), stacked("ln_1.bias")),
            attn=AttentionWeights(
                *(w[layer] for w in (m.W_Q, m.W_K, m.W_V, m.W_O)),
                *(b[layer] for b in (m.b_Q, m.b_K, m.b_V, m.b_O)),
            ),
            ln2=LayerNormWeights(stacked("ln_2.weight"), stacked("ln_2.bias")),
            mlp=MLPWeights(m.W_in[layer], m.b_in[layer], m.W_out[layer], m.b_out[layer]),
        )

    def __iter__(self) -> Iterator[Block]:
        return (self[layer] for layer in range(len(self)))
