"""Targets of attention, and how much of it reaches them: the arithmetic under `analyses.heads`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.tasks import unknown

Target = Tensor | Callable[[Tensor], Tensor]

# A row of a pattern in bfloat16 sums to 1 within less than this, a row of scores hardly ever.
_TOLERANCE = 0.01
# Attention to what a query cannot see is 0, or what a mask of large negative numbers leaves of it.
_LEAK = 1e-4


# ------------------------------------------------------------------ targets


def previous_token_target(ids: Int[Tensor, " pos"]) -> Bool[Tensor, "query key"]:
    """The key just before the query. The first query has none.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", where such
    heads make the keys of induction heads.
    """
    return _square(ids).tril(-1).triu(-1)


def current_token_target(ids: Int[Tensor, " pos"]) -> Bool[Tensor, "query key"]:
    """The query's own position."""
    return _square(ids).tril().triu()


def first_token_target(ids: Int[Tensor, " pos"]) -> Bool[Tensor, "query key"]:
    """The first token, of every query after it: where heads rest that find nothing to do.

    Source: Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks"
    (arXiv 2309.17453), section 3.1.
    """
    target = _square(ids).tril(-1)
    target[:, 1:] = False
    return target


def duplicate_token_target(ids: Int[Tensor, " pos"]) -> Bool[Tensor, "query key"]:
    """Every earlier occurrence of the query's token. A token that is new has none.

    Source: Wang et al. 2022, "Interpretability in the Wild" (arXiv 2211.00593), section 3:
    duplicate token heads.
    """
    return (ids[:, None] == ids[None]).tril(-1)


def induction_target(ids: Int[Tensor, " pos"]) -> Bool[Tensor, "query key"]:
    """Every key just after an earlier occurrence of the query's token: `A B ... A` looks at B.

    A key always comes before its query. So of two equal tokens in a row the second has no target
    in the first: what follows that is the second itself, and a head that looks there may as well
    attend to the current token.

    Sources: Elhage et al. 2021, section "Induction heads"; Olsson et al. 2022, "In-context Learning
    and Induction Heads" (arXiv 2209.11895), "prefix matching".
    """
    target = torch.zeros_like(_square(ids))
    target[:, 1:] = duplicate_token_target(ids)[:, :-1]
    return target.tril(-1)


def _square(ids: Tensor) -> Tensor:
    return torch.ones(len(ids), len(ids), dtype=torch.bool, device=ids.device)


TARGETS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "previous_token": previous_token_target,
    "current_token": current_token_target,
    "first_token": first_token_target,
    "duplicate_token": duplicate_token_target,
    "induction": induction_target,
}


def checked_scores(scores: Any) -> dict[str, Target]:
    """The targets asked for, by the name of their score.

    Raises:
        ValueError: an unknown name, one twice, or none at all.
        TypeError: something that is neither a name nor a target.
    """
    if scores is None:
        return dict(TARGETS)
    if isinstance(scores, str):
        scores = [scores]
    pairs: list[tuple[Any, Any]] = (
        list(scores.items()) if isinstance(scores, Mapping) else [(one, one) for one in scores]
    )
    found: dict[str, Target] = {}
    for name, target in pairs:
        if not isinstance(name, str):
            raise TypeError(
                f"a score is asked for by its name, not {name!r}; a target of your own needs one: "
                "{'my score': target}"
            )
        if name in found:
            raise ValueError(f"the score {name!r} is asked for twice")
        found[name] = _checked_target(name, target)
    if not found:
        raise ValueError(f"scores is empty; expected some of {', '.join(TARGETS)}")
    return found


def _checked_target(name: str, target: Any) -> Any:
    if isinstance(target, str):
        if target not in TARGETS:
            raise ValueError(unknown("score", target, tuple(TARGETS)))
        return TARGETS[target]
    if not isinstance(target, Tensor) and not callable(target):
        raise TypeError(
            f"the target of {name!r} is a tensor [query key], a function of the token ids that "
            f"makes one, or one of {', '.join(TARGETS)}; not {type(target).__name__}"
        )
    return target


class Links(NamedTuple):
    """A target, link by link.

    Attributes:
        query, key: where each link starts and where it ends.
        weight: what attention along it counts.
        n_queries: how many queries have a link.
        even: the score of attention that is spread evenly over all keys that a query sees.
    """

    query: Int[Tensor, " link"]
    key: Int[Tensor, " link"]
    weight: Float[Tensor, " link"]
    n_queries: int
    even: float


def links_of(
    name: str, target: Target, ids: Tensor | None, real: Tensor, n_pos: int, *, causal: bool
) -> Links:
    """The links of a target, at the positions that they have in the pattern.

    Args:
        name: of the score, for errors.
        target: a function of the real ids, or a tensor `query key` over all `n_pos` positions,
            padding included.
        ids: the real token ids.
        real: the positions that are no padding.
        n_pos: of the pattern.
        causal: whether a key after its query is a mistake.

    Raises:
        ValueError, TypeError: no tensor, another shape or dtype, numbers that are not finite, or a
            key after its query.
    """
    if isinstance(target, Tensor):
        found, n = target, n_pos
    elif ids is None:
        raise ValueError(f"the target of {name} is a function of token ids: give tokens")
    else:
        found, n = target(ids), len(ids)
        if not isinstance(found, Tensor):
            raise TypeError(
                f"the target function of {name} gave {type(found).__name__}, not a tensor"
            )
    if tuple(found.shape) != (n, n):
        raise ValueError(
            f"the target of {name} has shape {tuple(found.shape)}; expected query key, {(n, n)}"
        )
    if found.is_complex() or (found.is_floating_point() and not bool(found.isfinite().all())):
        raise ValueError(f"the target of {name} holds numbers that are not finite")
    found = found.detach().to(real.device)
    if isinstance(target, Tensor):
        found = found[real][:, real]
    query, key = found.nonzero(as_tuple=True)
    if causal and bool((key > query).any()):
        raise ValueError(
            f"the target of {name} has keys after their query, which nothing can attend to in a "
            "causal model: take target.tril(), or say causal=False"
        )
    weight = found[query, key].to(torch.float64)
    n_queries = len(query.unique())
    seen = query + 1 if causal else torch.full_like(query, len(real))
    even = float((weight / seen).sum()) / n_queries if n_queries else math.nan
    return Links(real[query], real[key], weight, n_queries, even)


# ------------------------------------------------------------------ scores


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
                "model.to_tokens gives"
            )
        tokens = torch.tensor(list(tokens))
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
        hint = (
            ": stack its layers, torch.stack(attentions)[:, i] for prompt i"
            if isinstance(pattern, tuple | list)
            else ""
        )
        raise TypeError(
            f"pattern is a tensor [layer head query key], not {type(pattern).__name__}{hint}"
        )
    if not pattern.is_floating_point():
        raise TypeError(f"an attention pattern holds floating-point numbers, not {pattern.dtype}")
    _check_rank(pattern)
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
    if not weighted and most > 1 + _TOLERANCE:
        raise ValueError(
            f"{where}: the attention of a query sums to {most:.4g}, more than 1. Scores are no "
            "pattern; of attention weighted by something, such as the size of values, say "
            "weighted=True: each row is divided by its sum then"
        )
    limit = _LEAK * max(most, 1.0)
    if causal:
        ahead = rows.masked_fill(
            torch.arange(values.shape[-1], device=real.device) <= real[:, None], 0.0
        )
        if float(ahead.max()) > limit:
            head, query, key = (ahead > limit).nonzero()[0].tolist()
            raise ValueError(
                f"{where} head {head}: query {int(real[query])} attends to key {key}, which comes "
                "after it. Is the pattern [key query]? Of a model without causal mask say "
                "causal=False"
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
