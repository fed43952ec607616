"""How much of a pattern's attention reaches a target, and checks that it is a pattern."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses._heads.targets import Links

# A row of a pattern in bfloat16 sums to 1 within less than this, a row of scores hardly ever.
_TOLERANCE = 0.01
# Attention to what a query cannot see is 0, or what a mask of large negative numbers leaves of it.
_LEAK = 1e-4


def shares(
    pattern: Float[Tensor, "*heads query key"], links: Links, *, weighted: bool = False
) -> Float[Tensor, "*heads"]:
    """Attention along the links, averaged over the queries that have one; NaN if none has.

    Args:
        weighted: divide each row of the pattern by its sum.
    """
    dtype = torch.float64 if pattern.dtype == torch.float64 else torch.float32
    found = pattern[..., links.query, links.key].to(dtype)
    if weighted:
        total = pattern.to(dtype).sum(-1)[..., links.query]
        found = torch.where(total > 0, found / total, 0.0)
    total = (found * links.weight.to(found)).sum(-1)
    return total / links.n_queries if links.n_queries else torch.full_like(total, math.nan)


def checked_ids(tokens: Any) -> Int[Tensor, " pos"]:
    """Token ids of one prompt.

    Raises:
        TypeError: no whole numbers. ValueError: none, or several prompts.
    """
    if not isinstance(tokens, Tensor):
        if isinstance(tokens, str) or not isinstance(tokens, Sequence):
            raise TypeError(
                f"tokens are token ids, a tensor [pos], not {type(tokens).__name__}; of text, what "
                "model.to_tokens gives, of a numpy array torch.from_numpy"
            )
        if not all(isinstance(id, Integral) for id in tokens):
            kinds = sorted({type(id).__name__ for id in tokens})
            raise TypeError(f"token ids are whole numbers, not {' or '.join(kinds)}")
        tokens = torch.tensor(list(tokens), dtype=torch.int64)
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"token ids are whole numbers, not {tokens.dtype}")
    if tokens.ndim == 2 and len(tokens) == 1:
        tokens = tokens[0]
    if tokens.ndim != 1 or not len(tokens):
        raise ValueError(
            f"tokens are those of one prompt, [pos], not of shape {tuple(tokens.shape)}: score "
            "prompts one by one"
        )
    return tokens


def checked_pattern(
    pattern: Any,
    tokens: Tensor | None = None,
    attention_mask: Any = None,
    *,
    weighted: bool = False,
    causal: bool = True,
) -> Int[Tensor, " real"]:
    """The positions of a pattern that are no padding, after a check that it is one.

    Raises:
        TypeError: no floating-point tensor. ValueError: another rank, not as many positions as
            tokens or the mask has, or numbers that no attention pattern has; see `pattern_score`.
    """
    if not isinstance(pattern, Tensor):
        hint = ""
        if isinstance(pattern, tuple | list):
            hint = ": stack its layers, torch.stack(attentions)[:, i] for prompt i"
        elif type(pattern).__module__ == "numpy":
            hint = ": torch.from_numpy(pattern)"
        raise TypeError(
            f"pattern is a tensor [layer head query key], not {type(pattern).__name__}{hint}"
        )
    if not pattern.is_floating_point():
        raise TypeError(f"an attention pattern holds floating-point numbers, not {pattern.dtype}")
    _check_rank(pattern)
    pattern = pattern.detach()
    n = pattern.shape[-1]
    if tokens is not None and len(tokens) != n:
        bos = "; was <|endoftext|> prepended to one of them only?" * (abs(len(tokens) - n) == 1)
        raise ValueError(f"the pattern has {n} positions, there are {len(tokens)} tokens{bos}")
    real = _real(attention_mask, n).to(pattern.device)
    for layer, values in enumerate(pattern):  # one at a time: a pattern can be large
        _check_layer(f"layer {layer}", values, real, weighted, causal)
    nowhere = pattern.new_zeros(n, dtype=torch.bool)
    nowhere[real] = True
    for values in pattern:
        nowhere &= (values == 0).all(-1).all(0)
    if bool(nowhere.any()):
        raise ValueError(
            f"no head attends to anything at query {int(nowhere.nonzero()[0])}: if that is padding "
            "give attention_mask"
        )
    return real


def _check_rank(pattern: Tensor) -> None:
    shape = tuple(pattern.shape)
    hints = {
        5: "is a batch left on? Score its prompts one by one (pattern[:, i] of layer batch head "
        "query key), or average over it first",
        3: "of a single layer give pattern[None]",
        2: "of a single head give pattern[None, None]",
    }
    if pattern.ndim != 4:
        hint = hints.get(pattern.ndim, "")
        raise ValueError(
            f"pattern is layer head query key, 4 axes; this one has {pattern.ndim}, {shape}"
            + (f": {hint}" if hint else "")
        )
    if shape[-1] != shape[-2]:
        raise ValueError(
            f"the pattern has {shape[-2]} queries and {shape[-1]} keys, {shape}; expected as many: "
            "all positions of one prompt"
        )
    if not pattern.numel():
        raise ValueError(f"the pattern is empty: {shape}")


def _real(attention_mask: Any, n: int) -> Tensor:
    if attention_mask is None:
        return torch.arange(n)
    mask = torch.as_tensor(attention_mask)
    if mask.ndim == 2 and len(mask) == 1:
        mask = mask[0]
    if tuple(mask.shape) != (n,):
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; expected one entry for each of the {n} "
            "positions"
        )
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask holds other values than 0 and 1")
    if not bool(mask.any()):
        raise ValueError("attention_mask leaves no token")
    return mask.nonzero()[:, 0]


def _check_layer(where: str, values: Tensor, real: Tensor, weighted: bool, causal: bool) -> None:
    """Refuse what no attention pattern of one layer, `head query key`, holds."""
    rows = values[:, real]
    finite = rows.isfinite()
    if not bool(finite.all()):
        head, query, key = (~finite).nonzero()[0].tolist()
        query = int(real[query])
        scores = " (scores before the softmax? Give the pattern)" if rows.isinf().any() else ""
        raise ValueError(
            f"{where} head {head}: attention of query {query} to key {key} is "
            f"{float(values[head, query, key])}{scores}"
        )
    least = float(rows.min())
    if least < 0:
        raise ValueError(
            f"{where} holds a negative number, {least:.3g}: attention is 0 or more. Scores before "
            "the softmax are no pattern (attn.hook_attn_scores instead of attn.hook_pattern?)"
        )
    sums = rows.sum(-1, dtype=torch.float64 if rows.dtype == torch.float64 else torch.float32)
    most = float(sums.max())
    limit = _LEAK * max(most, 1.0)
    if causal:
        ahead = rows.masked_fill(
            torch.arange(values.shape[-1], device=real.device) <= real[:, None], 0.0
        )
        if float(ahead.max()) > limit:
            head, query, key = (ahead > limit).nonzero()[0].tolist()
            raise ValueError(
                f"{where} head {head}: query {int(real[query])} attends to key {key}, which comes "
                "after it. Is the pattern [key query]? Of padding give attention_mask, of a model "
                "without causal mask say causal=False"
            )
    if not weighted and most > 1 + _TOLERANCE:
        raise ValueError(
            f"{where}: the attention of a query sums to {most:.4g}, more than 1. Scores are no "
            "pattern, nor is what dropout leaves of one (model.eval()); of attention weighted by "
            "something, such as the size of values, say weighted=True: each row is divided by its "
            "sum then"
        )
    if len(real) < values.shape[-1]:
        outside = rows.clone()
        outside[..., real] = 0
        if float(outside.max()) > limit:
            head, query, key = (outside > limit).nonzero()[0].tolist()
            raise ValueError(
                f"{where} head {head}: query {int(real[query])} attends to key {key}, which is "
                "padding by attention_mask"
            )
