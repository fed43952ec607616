"""Scores of heads from a run of the model: a layer and a few prompts at a time."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses import cli
from analyses._heads.names import Head
from analyses._heads.scores import shares
from analyses._heads.targets import Links, Target, links_of
from analyses.prompts import AnyPrompts, Prompts
from analyses.tasks import generate
from analyses.tasks.induction import DEFAULT_LENGTH
from interp import HookedGPT2

# So many bytes of attention of one layer are made at a time.
_CHUNK_BYTES = 2**26
# Patterns that are kept for pictures take no more.
_KEPT_BYTES = 2**26


class Material(NamedTuple):
    """What heads are scored on.

    Attributes:
        prompts: token ids and mask.
        source: what they are, in words.
    """

    prompts: Prompts
    source: str


class KeptPatterns(NamedTuple):
    """Attention patterns of one prompt, kept to be looked at.

    Attributes:
        example: which prompt.
        heads: whose patterns these are.
        values: on the CPU, without padding.
    """

    example: int
    heads: tuple[Head, ...]
    values: Float[Tensor, "component query key"]


def repeated_tokens(
    model: HookedGPT2,
    n: int | None = None,
    length: int | None = None,
    seed: int = 0,
    prepend_bos: bool = True,
) -> Any:
    """Repeated random tokens that fit into the model, by `analyses.tasks.induction`.

    Raises:
        ValueError: no tokenizer, copies that are too long, or what `generate` refuses.
        TypeError: n, length or seed is no whole number.
    """
    n, length = 10 if n is None else n, DEFAULT_LENGTH if length is None else length
    for name, value in (("n", n), ("length", length), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is a whole number, not {value!r}")
    if model.tokenizer is None:
        raise ValueError(
            "this model has no tokenizer to draw random tokens from: from Python, give token ids"
        )
    most = (model.cfg.n_ctx - prepend_bos) // 2
    if length > most:
        raise ValueError(
            f"length={length} makes {2 * length + prepend_bos} tokens, the model's context has "
            f"{model.cfg.n_ctx}: length is at most {most}"
        )
    return generate(
        "induction", model.tokenizer, n, seed=seed, prepend_bos=prepend_bos, length=length
    )


def material(
    model: HookedGPT2,
    tokens: AnyPrompts | None,
    n: int | None,
    length: int | None,
    seed: int,
    attention_mask: Tensor | None,
    prepend_bos: bool,
) -> Material:
    """The prompts given, or repeated random tokens.

    Raises:
        ValueError, TypeError: what `Prompts.of` and `repeated_tokens` refuse.
    """
    if tokens is not None:
        prompts = Prompts.of(model, tokens, attention_mask, prepend_bos)
        many = len(prompts.tokens)
        return Material(prompts, f"{many} prompt{'s'[: many != 1]}")
    if attention_mask is not None:
        raise ValueError("attention_mask goes with token ids; random tokens need none")
    data = repeated_tokens(model, n, length, seed, prepend_bos)
    prompts = Prompts(
        data.clean_tokens.to(model.device),
        data.attention_mask.to(model.device),
        data.str_tokens,
        prepend_bos,
    )
    copies = int(data.positions["SECOND"][0] - data.positions["FIRST"][0])
    bos = "<|endoftext|> and " if prepend_bos else ""
    many = f"{len(data)} sequence{'s'[: len(data) != 1]}"
    return Material(prompts, f"{many} of {bos}{copies} random tokens twice, seed {seed}")


class Measured(NamedTuple):
    """Scores of a run.

    Attributes:
        per_example: score -> NaN where no query of an example has a target.
        queries: score -> how many queries of each example were averaged over.
        even: score -> what evenly spread attention scores on each example.
    """

    per_example: dict[str, Float[Tensor, "layer head example"]]
    queries: dict[str, tuple[int, ...]]
    even: dict[str, tuple[float, ...]]


def measure(model: HookedGPT2, prompts: Prompts, targets: Mapping[str, Target]) -> Measured:
    """Score every head on every prompt.

    Raises:
        ValueError, TypeError: a target that does not fit, attention that is not finite (and what a
            run refuses).
    """
    tokens, mask = prompts.tokens, prompts.attention_mask
    n_layers, n_heads, n_pos = model.cfg.n_layers, model.cfg.n_heads, tokens.shape[1]
    links: list[dict[str, Links]] = []
    for ids, own in zip(tokens, mask, strict=True):
        real = own.nonzero()[:, 0]
        links.append(
            {
                name: links_of(name, target, ids[real], real, n_pos, causal=True)
                for name, target in targets.items()
            }
        )
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    found = {name: torch.empty(n_layers, n_heads, len(tokens), dtype=dtype) for name in targets}
    at_once = max(1, _CHUNK_BYTES // (4 * n_heads * n_pos**2))

    def score(pattern: Tensor, layer: int, start: int) -> None:
        for index, one in enumerate(pattern, start):
            for name, link in links[index].items():
                values = shares(one, link)
                if link.n_queries and not bool(values.isfinite().all()):
                    raise ValueError(
                        f"the attention of layer {layer} on prompt {index} is not finite: did the "
                        f"model overflow in {str(model.dtype).removeprefix('torch.')}?"
                    )
                found[name][layer, :, index] = values.to("cpu", dtype)

    for start in cli.progress(range(0, len(tokens), at_once), "heads"):
        rows = slice(start, start + at_once)
        with torch.no_grad():
            model.run_with_hooks(
                tokens[rows],
                return_type=None,
                attention_mask=mask[rows],
                # A layer's patterns are gone once they are scored.
                fwd_hooks=[
                    (
                        ("pattern", layer),
                        lambda pattern, hook, layer=layer, start=start: score(
                            pattern, layer, start
                        ),
                    )
                    for layer in range(n_layers)
                ],
            )
    queries = {name: tuple(link[name].n_queries for link in links) for name in targets}
    even = {name: tuple(link[name].even for link in links) for name in targets}
    return Measured(found, queries, even)


def fitting(ranking: Sequence[Head], n_pos: int) -> tuple[Head, ...]:
    """As many heads of a ranking as may be kept, in order of layer and head."""
    return tuple(sorted(ranking[: max(1, _KEPT_BYTES // (4 * n_pos**2))]))


def kept_of(
    pattern: Float[Tensor, "layer head query key"],
    real: Int[Tensor, " real"],
    ranking: Sequence[Head],
) -> KeptPatterns:
    """A given pattern, or where it is large that of the first heads of a ranking."""
    heads = fitting(ranking, len(real))
    values = torch.stack([pattern[head][real][:, real].detach().float().cpu() for head in heads])
    return KeptPatterns(0, heads, values)


def keep_patterns(
    model: HookedGPT2, prompts: Prompts, example: int, ranking: Sequence[Head]
) -> KeptPatterns:
    """Patterns of all heads on one prompt, or where these are large of the first of a ranking.

    Args:
        ranking: all heads, in the order in which they are worth keeping.
    """
    ids = prompts.tokens[example][prompts.attention_mask[example]]
    heads = fitting(ranking, len(ids))
    found: dict[Head, Tensor] = {}

    def keep(pattern: Tensor, layer: int) -> None:
        for head in (one for one in heads if one.layer == layer):
            found[head] = pattern[0, head.head].float().cpu()

    with torch.no_grad():
        model.run_with_hooks(
            ids[None],
            return_type=None,
            fwd_hooks=[
                (("pattern", layer), lambda pattern, hook, layer=layer: keep(pattern, layer))
                for layer in sorted({head.layer for head in heads})
            ],
        )
    return KeptPatterns(example, heads, torch.stack([found[head] for head in heads]))
