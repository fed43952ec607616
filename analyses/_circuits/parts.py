"""What writes to the residual stream and what reads from it, by name, as matrices."""

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from analyses._circuits.source import Weights, heads_of, whole_model
from analyses._heads.names import Head, checked_layers, one_head
from interp import FactoredMatrix

WRITERS = "a head '3.1', an MLP '3.mlp', a neuron '3.mlp.7', 'embed' or 'pos_embed'"
READERS = "a head's 'q', 'k' or 'v' as '3.1.k', an MLP '3.mlp', a neuron '3.mlp.7', or 'logits'"
_MLP = re.compile(r"(-?\d+)\.mlp(?:\.(-?\d+))?")
_READING = re.compile(r"(-?\d+\.-?\d+)\.([qkv])")


class Part(NamedTuple):
    """A part of the model, from the side of the residual stream.

    Attributes:
        name: of it, with numbers from 0.
        stage: when it comes; of two parts the later one can read what the earlier one writes.
        matrix: `n d_model` of what writes, `d_model n` of what reads.
        basis: what the n are: "token", "position", "neuron", or "residual" for heads, whose circuit
            begins and ends in the residual stream.
        first: the number of the first of the n (of a single neuron, its own).
    """

    name: str
    stage: int
    matrix: FactoredMatrix
    basis: str
    first: int = 0


def writer(weights: Weights, name: Any) -> Part:
    """What writes; a head by its OV circuit.

    Raises:
        ValueError, IndexError: it names none, or attention weights alone do not have it.
    """
    text = _text(name, WRITERS)
    heads = heads_of(weights)
    if text in ("embed", "pos_embed"):
        model = whole_model(weights, f"{text} is of a whole model", "; it has heads such as '3.1'")
        rows = model.W_E if text == "embed" else model.W_pos
        return Part(text, -1, _plain(rows), "token" if text == "embed" else "position")
    if found := _MLP.fullmatch(text):
        layer, neuron, model = _mlp(weights, found)
        values = model.W_out[layer]
        shown = f"{layer}.mlp"
        if neuron is not None:
            values, shown = values[neuron : neuron + 1], f"{shown}.{neuron}"
        return Part(shown, 2 * layer + 1, _plain(values), "neuron", neuron or 0)
    if re.fullmatch(r"-?\d+\.-?\d+", text):
        head = one_head(text, *heads.W_Q.shape[:2])
        return Part(str(head), 2 * head.layer, heads.OV[head].detach(), "residual")
    raise ValueError(f"{text!r} writes nothing to the residual stream: expected {WRITERS}")


def reader(weights: Weights, name: Any) -> Part:
    """What reads; a head by its QK circuit from the side of queries or keys, or its OV circuit.

    Raises:
        ValueError, IndexError: it names none, or attention weights alone do not have it.
    """
    text = _text(name, READERS)
    heads = heads_of(weights)
    if text == "logits":
        model = whole_model(
            weights, "logits need the unembedding", "; it has readers such as '3.1.k'"
        )
        return Part(text, 2 * model.cfg.n_layers, _plain(model.W_U), "token")
    if found := _MLP.fullmatch(text):
        layer, neuron, model = _mlp(weights, found)
        values = model.W_in[layer]
        shown = f"{layer}.mlp"
        if neuron is not None:
            values, shown = values[:, neuron : neuron + 1], f"{shown}.{neuron}"
        return Part(shown, 2 * layer + 1, _plain(values), "neuron", neuron or 0)
    if found := _READING.fullmatch(text):
        head = one_head(found[1], *heads.W_Q.shape[:2])
        matrix = {"q": heads.QK, "k": heads.QK.T, "v": heads.OV}[found[2]][head].detach()
        return Part(f"{head}.{found[2]}", 2 * head.layer, matrix, "residual")
    raise ValueError(f"{text!r} reads nothing from the residual stream: expected {READERS}")


def _text(name: Any, expected: str) -> str:
    if isinstance(name, Head):
        return str(name)
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no name of a part: expected {expected}")
    return name.strip()


def _mlp(weights: Weights, found: re.Match[str]) -> tuple[int, int | None, Any]:
    model = whole_model(weights, f"{found[0]} is of an MLP", "; it has heads such as '3.1'")
    (layer,) = checked_layers(int(found[1]), model.cfg.n_layers)
    if found[2] is None:
        return layer, None, model
    neuron, d_mlp = int(found[2]), model.cfg.d_mlp
    if not -d_mlp <= neuron < d_mlp:
        raise IndexError(
            f"neuron {found[0]} is out of range: layer {layer} has {d_mlp}, 0 to {d_mlp - 1}"
        )
    return layer, neuron % d_mlp, model


def _plain(values: Tensor) -> FactoredMatrix:
    """A matrix as one factor, the identity being the thin other."""
    values = values.detach()
    tall, wide = values.shape
    if tall > wide:
        return FactoredMatrix(values, torch.eye(wide, dtype=values.dtype, device=values.device))
    return FactoredMatrix(torch.eye(tall, dtype=values.dtype, device=values.device), values)
