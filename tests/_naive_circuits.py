"""The model run as a circuit, one edge at a time and without any cleverness."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from analyses.circuit_discovery import AnyCircuit, Circuit, Part
from analyses.pairs import PromptPair
from hooks import ActivationCache
from interp import HookedGPT2
from interp.activations import ACTIVATIONS

Sent = dict[Part, Tensor]  # what each sender writes: example pos d_model


def sent_in(model: HookedGPT2, cache: ActivationCache) -> Sent:
    """What every sender wrote in a run (with a cache of everything)."""
    found = {Part("input"): cache["hook_embed"] + cache["hook_pos_embed"]}
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            found[Part("head", layer, head)] = cache["result", layer][:, :, head]
        found[Part("mlp", layer)] = cache["mlp_out", layer]
    return found


def run_of(model: HookedGPT2, tokens: Tensor, mask: Tensor) -> Sent:
    names = ["*embed", "*attn.hook_result", "*hook_mlp_out"]
    _, cache = model.run_with_cache(tokens, names_filter=names, attention_mask=mask)
    return sent_in(model, cache)


@torch.no_grad()
def naive_logits(
    model: HookedGPT2,
    tokens: Tensor,
    mask: Tensor,
    instead: Sent,
    has_edge: Callable[[Part, Part], Any],
) -> Tensor:
    """The logits of the model in which `has_edge(sender, receiver)` edges are present.

    `has_edge` gives True, False, or a mask `example pos`.
    """
    cfg = model.cfg
    sent: Sent = {}
    b_O = model.b_O

    def read(receiver: Part) -> Tensor:
        total = torch.zeros_like(instead[Part("input")])
        for layer in range(cfg.n_layers if receiver.layer is None else receiver.layer):
            total = total + b_O[layer]
        if receiver.kind == "mlp":
            total = total + b_O[receiver.layer]
        for sender, value in sent.items():
            here = torch.as_tensor(has_edge(sender, receiver))
            here = here if here.ndim == 0 else here[..., None]
            total = total + torch.where(here, value, instead[sender])
        return total

    n_pos = tokens.shape[1]
    sent[Part("input")] = model.W_E[tokens] + model.W_pos[:n_pos]
    future = torch.ones(n_pos, n_pos, dtype=torch.bool).triu(1)
    weights = {
        "q": (model.W_Q, model.b_Q),
        "k": (model.W_K, model.b_K),
        "v": (model.W_V, model.b_V),
    }
    W_O, W_in, b_in, W_out, b_out = model.W_O, model.W_in, model.b_in, model.W_out, model.b_out
    for layer in range(cfg.n_layers):
        norm1, norm2 = model.blocks[layer].ln1, model.blocks[layer].ln2
        wrote: Sent = {}
        for head in range(cfg.n_heads):
            q, k, v = (
                F.layer_norm(
                    read(Part(kind, layer, head)), (cfg.d_model,), norm1.w, norm1.b, cfg.eps
                )
                @ weight[layer, head]
                + bias[layer, head]
                for kind, (weight, bias) in weights.items()
            )
            scores = (q @ k.transpose(1, 2)) / cfg.d_head**0.5
            pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
            wrote[Part("head", layer, head)] = pattern @ v @ W_O[layer, head]
        sent |= wrote
        x = read(Part("mlp", layer))
        x = F.layer_norm(x, (cfg.d_model,), norm2.w, norm2.b, cfg.eps)
        hidden = ACTIVATIONS[cfg.act_fn](x @ W_in[layer] + b_in[layer])
        sent[Part("mlp", layer)] = hidden @ W_out[layer] + b_out[layer]
    x = read(Part("logits"))
    return model.unembed(model.ln_final(x))


def naive_value(
    model: HookedGPT2, circuit: AnyCircuit, pair: PromptPair, metric: Any, instead: Sent
) -> Tensor:
    """The metric of a circuit, per example."""
    if isinstance(circuit, Circuit):
        edges = {(edge.sender, edge.receiver) for edge in circuit}

        def has_edge(sender: Part, receiver: Part) -> Any:
            return (sender, receiver) in edges

    else:
        where = inside(circuit, pair)

        def has_edge(sender: Part, receiver: Part) -> Any:
            return where[sender]

    logits = naive_logits(model, pair.clean, pair.attention_mask, instead, has_edge)
    return metric(logits, pair.clean, pair.attention_mask)


def inside(circuit: Any, pair: PromptPair) -> dict[Part, Tensor]:
    """Where each sender is in a node circuit: example pos."""
    found = {part: torch.zeros(pair.clean.shape, dtype=torch.bool)
             for part in circuit.shape.senders}  # fmt: skip
    for part, where in found.items():
        kept = {"input": "input", "mlp": "mlps"}.get(part.kind)
        if kept in circuit.kept:
            where[:] = True
        for node in circuit:
            if node.part != part:
                continue
            for example, length in enumerate(pair.lengths.tolist()):
                if node.pos is None:
                    where[example] = True
                else:
                    at = (
                        node.pos if isinstance(node.pos, int) else pair.positions[node.pos][example]
                    )
                    where[example, int(at) % length] = True
    return found
