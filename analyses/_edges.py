"""The arithmetic of edges: what every sender writes, the gradient at what every receiver reads.

Both are made for all heads of a layer in one product each, and neither twice: an edge's score is a
product of the two, so all edges into a layer are one product of matrices.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses._gradients import Contrast, take, upcast
from hooks import ActivationCache
from interp import HookedGPT2

# Between a residual and what is read from it, or between what is written and the residual, these
# are computed past: a function there would have no part in the scores.
_PAST = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "attn.hook_result",
    "hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in",
    "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v",
)  # fmt: skip


class Part(NamedTuple):
    """A sender or a receiver.

    Attributes:
        kind: "input" (the embeddings of token and position), "head" or "mlp" of a sender; "q",
            "k", "v" (of a head), "mlp" or "logits" of a receiver.
        layer, head: where it has one.
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        if self.layer is None:
            return self.kind
        if self.kind == "mlp":
            return f"{self.layer}.mlp"
        return f"{self.layer}.{self.head}" + ("" if self.kind == "head" else f".{self.kind}")


def senders(n_layers: int, n_heads: int) -> tuple[Part, ...]:
    """All that writes to the residual stream, in order."""
    found = [Part("input")]
    for layer in range(n_layers):
        found += [Part("head", layer, head) for head in range(n_heads)]
        found.append(Part("mlp", layer))
    return tuple(found)


def receivers(n_layers: int, n_heads: int) -> tuple[Part, ...]:
    """All that reads from the residual stream, in order: of a layer its queries, keys, values."""
    found = []
    for layer in range(n_layers):
        found += [Part(kind, layer, head) for kind in "qkv" for head in range(n_heads)]
        found.append(Part("mlp", layer))
    return (*found, Part("logits"))


# ------------------------------------------------------------------ scores


def check_hooks(model: HookedGPT2) -> None:
    for name, point in model.hook_dict.items():
        if name.endswith(_PAST) and (point.fwd_hooks or point.bwd_hooks):
            raise ValueError(
                f"a function listens at {name!r}: edge scores are computed past that point and "
                f"would not have it in them. Remove it (model.reset_hooks()), or listen elsewhere"
            )


def points_kept(n_layers: int) -> list[str]:
    """What is kept of a run: what senders wrote, what receivers read, the gradients there."""
    inside = ("hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z",
              "hook_mlp_in", "hook_mlp_out")  # fmt: skip
    each = [f"blocks.{layer}.{name}" for layer in range(n_layers) for name in inside]
    return [*each, f"blocks.{n_layers - 1}.hook_resid_post"]


def senders_before(receiver: Part, n_layers: int, n_heads: int) -> int:
    """How many of the senders come before a receiver."""
    layer = n_layers if receiver.layer is None else receiver.layer
    return 1 + layer * (n_heads + 1) + (n_heads if receiver.kind == "mlp" else 0)


def scores_of(
    model: HookedGPT2, contrast: Contrast, where: Int[Tensor, "example place"] | None
) -> Float[Tensor, "sender receiver *pos example"]:
    """The estimates for some examples; 0 where there is no edge.

    Args:
        where: columns of the positions to keep apart, of these examples; None for the sum.
    """
    cfg = model.cfg
    with torch.no_grad():
        sent = sent_by(model, contrast.source, contrast.base)  # example sender pos d_model
        if where is not None:
            sent = take(sent, 2, where)
        receiving = receivers(cfg.n_layers, cfg.n_heads)
        places = () if where is None else (where.shape[1],)
        scores = sent.new_zeros(len(sent), *places, sent.shape[1], len(receiving))
        n_steps = 0
        for steps, cache in contrast.gradients:
            first = 0
            for read in _read(model, cache, steps):  # example receiver pos d_model
                read = read if where is None else take(read, 2, where)
                after = first + read.shape[1]
                n_before = senders_before(receiving[first], cfg.n_layers, cfg.n_heads)
                scores[..., :n_before, first:after] += _products(
                    sent[:, :n_before], read, apart=where is not None
                )
                first = after
            n_steps += steps
            del cache  # its memory, before the next steps take their own
    return (scores / n_steps).permute((1, 2, 0) if where is None else (2, 3, 1, 0))


def _products(sent: Tensor, read: Tensor, apart: bool) -> Tensor:
    """`example sender pos d_model` times `example receiver pos d_model`, summed over `d_model`, and
    over `pos` unless kept apart: `example (pos) sender receiver`."""
    if apart:
        return sent.transpose(1, 2) @ read.permute(0, 2, 3, 1)
    return sent.flatten(2) @ read.flatten(2).transpose(1, 2)


def sent_by(
    model: HookedGPT2, source: ActivationCache, base: ActivationCache
) -> Float[Tensor, "example sender pos d_model"]:
    """By how much what each sender wrote differs between the runs."""
    cfg = model.cfg

    def difference(name: str | tuple[str, int]) -> Tensor:
        return upcast(source[name]) - upcast(base[name])

    embedded = difference("hook_embed") + difference("hook_pos_embed")
    # Senders first: then one product per head fills its place, for all examples together.
    found = embedded.new_empty(1 + cfg.n_layers * (cfg.n_heads + 1), *embedded.shape)
    found[0] = embedded
    for layer in range(cfg.n_layers):
        first = 1 + layer * (cfg.n_heads + 1)
        last = first + cfg.n_heads
        written = found[first:last].flatten(1, 2)  # head (example pos) d_model, a view
        torch.bmm(
            _by_head(difference(("z", layer))), upcast(model.W_O[layer].detach()), out=written
        )
        found[last] = difference(("mlp_out", layer))
    return found.movedim(0, 1)


def _by_head(values: Float[Tensor, "row pos head d_head"]) -> Float[Tensor, "head row_pos d_head"]:
    """Rows and positions as one axis: a product with per-head weights then copies no weights."""
    return values.permute(2, 0, 1, 3).flatten(1, 2)


def _read(
    model: HookedGPT2, cache: ActivationCache, steps: int
) -> Iterator[Float[Tensor, "example receiver pos d_model"]]:
    """Gradients at what receivers read, summed over the steps that a cache holds.

    In order of `receivers`: of each layer its queries, keys and values, then its MLP; then the
    logits.
    """

    def gradient(point: str, layer: int) -> Tensor:
        return upcast(cache[f"blocks.{layer}.{point}_grad"])

    def over_steps(values: Tensor) -> Tensor:
        return values if steps == 1 else values.unflatten(0, (steps, -1)).sum(0)

    for layer in range(model.cfg.n_layers):
        projected = []
        for kind, weight in (("q", model.W_Q), ("k", model.W_K), ("v", model.W_V)):
            there = _by_head(gradient(f"attn.hook_{kind}", layer))
            projected.append(torch.bmm(there, upcast(weight[layer].detach()).transpose(1, 2)))
        residual = upcast(cache["resid_pre", layer])
        # (kind head) row pos d_model, seen as row (kind head) pos d_model
        at_norm = torch.cat(projected).unflatten(1, residual.shape[:2]).transpose(0, 1)
        yield over_steps(
            _through_norm(at_norm, residual, model.blocks[layer].ln1.w.detach(), model.cfg.eps)
        )
        yield over_steps(gradient("hook_mlp_in", layer))[:, None]
    yield over_steps(gradient("hook_resid_post", model.cfg.n_layers - 1))[:, None]


def _through_norm(
    gradient: Float[Tensor, "row receiver pos d_model"],
    residual: Float[Tensor, "row pos d_model"],
    gain: Float[Tensor, " d_model"],
    eps: float,
) -> Float[Tensor, "row receiver pos d_model"]:
    """From the gradient at what a layer norm gives (overwritten) to that at what it gets.

    A layer norm's derivative is symmetric: the same map, gradient by gradient, takes out what lies
    along the mean and along the normalised residual, and divides by the scale.
    """
    scale = (residual.var(-1, correction=0, keepdim=True) + eps).sqrt()
    normalized = ((residual - residual.mean(-1, keepdim=True)) / scale)[:, None]
    found = gradient.mul_(gain)
    along = torch.einsum("rhpd,rpd->rhp", found, normalized[:, 0])[..., None] / found.shape[-1]
    found.sub_(found.mean(-1, keepdim=True)).addcmul_(normalized, along, value=-1)
    return found.div_(scale[:, None])
