"""Where a head of some kind would look: targets, made from token ids."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.tasks import unknown

Target = Tensor | Callable[[Tensor], Tensor]


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
