"""`detect_head` in TransformerLens' call form, with its numbers."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses._heads.names import chosen_heads
from analyses._heads.targets import duplicate_token_target, previous_token_target
from analyses.tasks import unknown
from hooks import ActivationCache
from interp import HookedGPT2

DETECTION_PATTERNS = ("previous_token_head", "duplicate_token_head", "induction_head")
ERROR_MEASURES = ("mul", "abs")


def detect_head(
    model: HookedGPT2,
    seq: str | Sequence[str],
    detection_pattern: Float[Tensor, "query key"] | str,
    heads: Sequence[tuple[int, int]] | Mapping[int, Sequence[int]] | None = None,
    cache: ActivationCache | None = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: str = "mul",
) -> Float[Tensor, "layer head"]:
    """TransformerLens' head detector: the share of *all* attention that lies on a pattern.

    Unlike `pattern_score` it divides by all queries, those without a target included, and its
    induction pattern holds the query's own position where a token comes twice in a row.

    Args:
        model: stays as it is.
        seq: a text, or several, whose scores are averaged; `<|endoftext|>` is put before each.
        detection_pattern: one of `DETECTION_PATTERNS`, or numbers `query key`, none of them above
            the diagonal.
        heads: only these, as pairs or as layer -> heads; the others get -1. None: all.
        cache: a run on `seq` (a single text) that kept the patterns, to be used in place of one.
        exclude_bos: leave attention to the first token out.
        exclude_current_token: leave attention of a query to itself out.
        error_measure: "mul": the sum of pattern times detection pattern, divided by the sum of the
            pattern. "abs": 1 minus the sum of their absolute difference per query, rounded to three
            digits.

    Returns:
        the score of every head, -1 for those not asked for.

    Raises:
        ValueError, IndexError: an unknown pattern or error measure, a pattern of another shape or
            with numbers above its diagonal, a cache with several texts or of other tokens, heads
            that there are not; nothing left to look at.
        TypeError: token ids for seq, or a detection_pattern that is neither name nor tensor.

    Source: `head_detector` of TransformerLens 3.
    """
    if error_measure not in ERROR_MEASURES:
        raise ValueError(unknown("error_measure", str(error_measure), ERROR_MEASURES))
    if isinstance(seq, Tensor):
        raise TypeError("seq is a text or several, not token ids: head_scores takes those")
    if not isinstance(seq, str):
        if cache is not None:
            raise ValueError("a cache is of one text: leave it out, or give the texts one by one")
        found = [
            detect_head(
                model,
                text,
                detection_pattern,
                heads,
                exclude_bos=exclude_bos,
                exclude_current_token=exclude_current_token,
                error_measure=error_measure,
            )
            for text in seq
        ]
        if not found:
            raise ValueError("seq is empty; expected a text or several")
        return torch.stack(found).mean(0)
    ids = model.to_tokens(seq)[0]
    wanted = _detection_pattern(detection_pattern, ids)
    if exclude_bos and exclude_current_token and len(ids) < 3:
        raise ValueError("without the first token and the query itself, 2 tokens leave nothing")
    if isinstance(heads, Mapping):
        heads = [(layer, head) for layer, several in heads.items() for head in several]
    chosen = chosen_heads(None, heads, model.cfg.n_layers, model.cfg.n_heads)
    if cache is None:
        layers = sorted({head.layer for head in chosen})
        with torch.no_grad():
            _, cache = model.run_with_cache(
                ids[None], None, names_filter=[("pattern", layer) for layer in layers]
            )
    elif cache.tokens is not None and not torch.equal(cache.tokens.reshape(-1).to(ids.device), ids):
        raise ValueError(
            f"the cache is of other tokens, {cache.tokens.tolist()}; this text has {ids.tolist()}"
        )
    scores = torch.full((model.cfg.n_layers, model.cfg.n_heads), -1.0, dtype=model.dtype)
    for layer, head in chosen:
        pattern = cache["pattern", layer]
        pattern = (pattern[0] if pattern.ndim == 4 else pattern)[head].to(wanted.device)
        if pattern.shape != wanted.shape:
            raise ValueError(
                f"the cache's pattern is {tuple(pattern.shape)}, this text has {len(ids)} tokens"
            )
        kept = torch.ones_like(pattern)
        if exclude_bos:
            kept[:, 0] = 0
        if exclude_current_token:
            kept.fill_diagonal_(0)
        if error_measure == "mul":
            scores[layer, head] = (pattern * kept * wanted).sum() / (pattern * kept).sum()
        else:
            off = ((pattern - wanted).abs() * kept).sum() / len(ids)
            scores[layer, head] = 1 - round(float(off), 3)
    return scores


def _detection_pattern(asked: Tensor | str, ids: Tensor) -> Tensor:
    if isinstance(asked, Tensor):
        if tuple(asked.shape) != (len(ids), len(ids)):
            raise ValueError(
                f"detection_pattern has shape {tuple(asked.shape)}; this text has {len(ids)} "
                "tokens, so expected as many queries and keys"
            )
        if bool(asked.triu(1).any()):
            raise ValueError("detection_pattern has numbers above its diagonal: take .tril()")
        return asked.to(ids.device)
    if not isinstance(asked, str):
        raise TypeError(
            f"detection_pattern is a tensor or one of {', '.join(DETECTION_PATTERNS)}, not "
            f"{type(asked).__name__}"
        )
    if asked not in DETECTION_PATTERNS:
        raise ValueError(unknown("detection_pattern", asked, DETECTION_PATTERNS))
    if asked == "previous_token_head":
        target = previous_token_target(ids)
    else:
        target = duplicate_token_target(ids)
        if asked == "induction_head":
            shifted = target.roll(1, dims=1)
            shifted[:, 0] = False
            target = shifted.tril()
    return target.float()
