"""Weights as callers give them, and what is to be said about them."""

import platform
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analyses import report
from analyses._arguments import listed, whole
from analyses._page.provenance import package_version
from analyses.prompts import token_string
from analyses.tasks import unknown
from hooks import Listeners
from interp import AttentionLayers, HookedGPT2

Weights = HookedGPT2 | AttentionLayers
Tokens = str | SupportsIndex | Sequence[str | SupportsIndex] | Tensor

EMBEDDINGS = ("plain", "mlp0")
# So many numbers over the vocabulary are held at a time.
AT_ONCE = 2**24


def heads_of(weights: Any) -> AttentionLayers:
    """The attention weights of a model, or of what is nothing but these.

    Raises:
        TypeError: something else.
    """
    if isinstance(weights, AttentionLayers):
        return weights
    if isinstance(weights, HookedGPT2):
        return AttentionLayers.from_model(weights)
    raise TypeError(
        "weights are a HookedGPT2 or AttentionLayers (made of tensors, a state dict or a folder), "
        f"not {type(weights).__name__}"
    )


def whole_model(weights: Any, needs: str, instead: str = "") -> HookedGPT2:
    """The model, for what attention weights alone cannot give.

    Args:
        needs: what is asked for and what that takes, as the beginning of a sentence.
        instead: what can be had without, as its end.

    Raises:
        ValueError: these are attention weights only. TypeError: something else.
    """
    if isinstance(weights, HookedGPT2):
        return weights
    heads_of(weights)
    raise ValueError(
        f"{needs}, which {weights.name!r} does not have: it holds attention weights only{instead}"
    )


def weights_note(weights: Weights) -> str:
    """Whether layer norms are folded into these weights, in words."""
    if isinstance(weights, AttentionLayers):
        return "attention weights alone, as given; layer norms are not at hand"
    with torch.no_grad():
        folded = all(
            bool((weights.weight(f"{name}.weight") == 1).all())
            and not bool(weights.weight(f"{name}.bias").any())
            for name in ("ln_1", "ln_2", "ln_f")
        )
    if folded:
        return "layer norms have no gain or shift that is not in the weights"
    return (
        "weights as they are; gains and shifts of layer norms are left out (model.processed() "
        "folds them in)"
    )


def provenance_of(weights: Weights, call: str) -> report.Provenance:
    """Where the numbers of a result come from."""
    if isinstance(weights, HookedGPT2):
        return report.Provenance.of(weights, call)
    return report.Provenance(
        model=weights.name,
        dtype=str(weights.W_Q.dtype).removeprefix("torch."),
        device=str(weights.W_Q.device),
        call=call,
        versions={"python": platform.python_version()}
        | {name: package_version(name) for name in ("hooked-gpt2", "torch", "plotly")},
    )


def token_ids(model: HookedGPT2, tokens: Tokens, what: str, size: int) -> list[int]:
    """Ids of tokens given as texts of one token each, or as ids.

    Args:
        tokens: one or several.
        what: they are called, in errors.
        size: how many tokens there are.

    Raises:
        ValueError: none, one twice, or a text that is several tokens. IndexError: no such id.
        TypeError: no whole number.
    """
    ids: list[int] = []
    for token in listed(tokens):
        if isinstance(token, str):
            id = model.to_single_token(token)
        else:
            id = whole(token, f"{what} are texts or ids of tokens")
        if not 0 <= id < size:
            raise IndexError(f"{what}: {token!r} is out of range: there are tokens 0 to {size - 1}")
        if id in ids:
            raise ValueError(f"{what}: {token!r} is given twice (token {id})")
        ids.append(id)
    if not ids:
        raise ValueError(f"{what} is empty; expected texts of one token each, or ids")
    return ids


def strings(model: HookedGPT2, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token."""
    return tuple(token_string(model, id) for id in ids)


def number_of(value: Any, most: int, usual: int, name: str = "top_k") -> int:
    """How many things to list, checked; None: the usual number, or all where there are fewer."""
    if value is None:
        return min(usual, most)
    k = whole(value, f"{name} is a whole number")
    if not 1 <= k <= most:
        raise ValueError(f"{name}={k} is out of range: 1 to {most}")
    return k


@torch.no_grad()
def embedded(
    model: HookedGPT2, embedding: str, ids: Int64[Tensor, " token"] | None = None
) -> Float[Tensor, "token d_model"]:
    """What stands for a token at the input of a circuit.

    Args:
        embedding: "plain": its row of `W_E`. "mlp0": that row and what the first block's MLP makes
            of it alone, its attention left out: what later layers of GPT-2 see of a token.
        ids: of these tokens; None: of all.

    Raises:
        ValueError: an unknown embedding.
    """
    if embedding not in EMBEDDINGS:
        raise ValueError(unknown("embedding", str(embedding), EMBEDDINGS))
    plain = model.W_E if ids is None else model.W_E[ids]
    if embedding == "plain":
        return plain.detach()
    found = torch.empty_like(plain)
    _, block = next(model.block_weights(0, 1, frozen=True))
    unwatched = Listeners({}).within("")
    rows = max(1, AT_ONCE // model.cfg.d_mlp)
    for start in range(0, len(plain), rows):
        part = plain[start : start + rows]
        found[start : start + rows] = part + model.mlp_out(part[None], block, unwatched)[0]
    return found


def check_finite(what: str, *tensors: Tensor) -> None:
    """Refuse weights from which no number would follow.

    Raises:
        ValueError: NaN or infinity; `what` names the weights.
    """
    if not all(bool(one.isfinite().all()) for one in tensors):
        raise ValueError(f"{what} hold NaN or infinity")
