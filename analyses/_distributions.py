"""What is read off distributions over the vocabulary, in more than one analysis."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def entropy(log_probs: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch"]:
    """In nats; what is impossible counts nothing."""
    probs = log_probs.exp()
    # -0.0 for a distribution that is certain would print as such.
    return -torch.where(probs == 0, 0.0, probs * log_probs).sum(-1) + 0.0


def ranks(
    logits: Float[Tensor, "*batch d_vocab"], wanted: Float[Tensor, "*batch target"]
) -> Int[Tensor, "*batch target"]:
    """How many tokens are likelier than those with the logits `wanted`. Ties share the best rank.

    Compared in the model's own numbers, where ties are exact, and one target at a time: together
    they would be as many distributions.
    """
    found = [(logits > one[..., None]).sum(-1) for one in wanted.unbind(-1)]
    return torch.stack(found, -1) if found else wanted.long()
