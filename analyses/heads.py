r"""What kind of head is it? Scores of attention heads.

1. Say where a head of some kind would look: its *target*, which keys for each query. A
   previous-token head looks at the key before the query, an induction head at the key after an
   earlier occurrence of the query's token.
2. Take the attention that each query pays to its target keys, and average it over the queries that
   have any. That is the head's score: 1 if all of its attention goes there, 0 if none does.
3. Measure it where targets cannot be confused: on `<|endoftext|>` and random tokens twice, in whose
   second copy nothing but the first tells what comes next. Or on prompts of your own.
4. Scores say where a head looks, not what comes of it. Two checks that do: the loss on the second
   copy without the head (`induction_ablation`), and whether what it writes about a token brings
   that token up (`copying_scores`).

Scores are functions of attention patterns and token ids alone, so attention from any model and any
library will do (`head_scores`, `pattern_score`); `detect_heads` runs a model. Scores of all heads
are averages over prompts of averages over queries; padding never counts.

How this compares with what is measured elsewhere, on `R R` with n random tokens:
- the mean of a diagonal of the pattern, as in TransformerLens' Exploratory Analysis demo, is the
  same for previous tokens and for duplicates. For induction it has one query more, the last of the
  first copy, whose token is new: mean = (n * score + its attention to the first token) / (n + 1);
- TransformerLens' `detect_head` divides by all queries, not by those with a target: its score is
  this one times their share, for induction about a half. It also counts the query's own position
  where a token comes twice in a row. `detect_head` here gives its numbers.

Sources: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (previous-token and
induction heads); Olsson et al. 2022, "In-context Learning and Induction Heads", arXiv 2209.11895
(repeated random tokens, prefix matching); Wang et al. 2022, arXiv 2211.00593 (duplicate-token
heads, copying).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyses import cli, report
from analyses._views import heads as views
from analyses.tasks import unknown

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch
    from jaxtyping import Float, Shaped
    from torch import Tensor

    from analyses._heads.copying import CopyingScores, copying_scores
    from analyses._heads.detector import detect_head
    from analyses._heads.names import Head
    from analyses._heads.result import HeadScores
    from analyses._heads.run import keep_patterns, kept_of, material, measure, repeated_tokens
    from analyses._heads.scores import checked_ids, checked_pattern, shares
    from analyses._heads.targets import (
        TARGETS,
        Target,
        checked_scores,
        current_token_target,
        duplicate_token_target,
        first_token_target,
        induction_target,
        links_of,
        previous_token_target,
    )
    from analyses.ablation import Ablation, ablation
    from analyses.metrics import loss
    from analyses.prompts import AnyPrompts
    from interp import HookedGPT2

__all__ = [
    "SCORES",
    "TARGETS",
    "CopyingScores",
    "HeadScores",
    "copying_scores",
    "current_token_target",
    "detect_head",
    "detect_heads",
    "duplicate_token_target",
    "first_token_target",
    "head_scores",
    "induction_ablation",
    "induction_target",
    "pattern_score",
    "previous_token_target",
]

SCORES = tuple(views.EXPLANATIONS)
ABLATIONS = ("zero", "mean")


# ------------------------------------------------------------------ from patterns alone


def pattern_score(
    pattern: Shaped[Tensor, ...],
    target: Shaped[Tensor, ...] | Callable[[Tensor], Tensor],
    tokens: Shaped[Tensor, ...] | Sequence[int] | None = None,
    attention_mask: Shaped[Tensor, ...] | None = None,
    *,
    weighted: bool = False,
    causal: bool = True,
) -> Float[Tensor, "layer head"]:
    """Attention to a target of your own, averaged over the queries that have one.

        pattern_score(pattern, induction_target, ids)
        pattern_score(pattern, duplicate_token_target(ids) | induction_target(ids))

    Args:
        pattern: attention after the softmax, `layer head query key`, of one prompt.
        target: `query key`, where a head of this kind would look: True or False, or numbers that
            attention there counts. Or a function that makes one from the token ids. With padding a
            tensor has its rows and columns too, which are left out; a function never sees it.
        tokens: ids `pos`, for a target that is a function.
        attention_mask: `pos`, 1 or True on real tokens.
        weighted: the pattern is not of probabilities but weighted by something, such as the size of
            values: each row is divided by its sum first.
        causal: whether attention to later keys, or a target there, is refused as a mistake.

    Returns:
        the score of each head, in float64 for a float64 pattern, else in float32.

    Raises:
        TypeError: a pattern that is no floating-point tensor, ids that are no whole numbers, a
            target that is neither.
        ValueError: a pattern of another rank (a batch left on, a single head), with other than one
            position per token, with NaN, negative numbers, rows that sum to more than 1 (scores
            before the softmax), attention to later keys or to padding, or a query to which no head
            of any layer attends; a target of another shape or that no query has; a mask that does
            not fit.
    """
    ids = None if tokens is None else checked_ids(tokens)
    real = checked_pattern(pattern, ids, attention_mask, weighted=weighted, causal=causal)
    given = checked_scores({"pattern_score": target})["pattern_score"]
    own = None if ids is None else ids[real.to(ids.device)]
    links = links_of("pattern_score", given, own, real, pattern.shape[-1], causal=causal)
    if not links.n_queries:
        raise ValueError("no query has a target: there is nothing to score")
    return torch.stack([shares(layer, links, weighted=weighted) for layer in pattern])


def head_scores(
    pattern: Shaped[Tensor, ...],
    tokens: Shaped[Tensor, ...] | Sequence[int],
    *,
    scores: str | Sequence[str] | Mapping[str, str | Target] | None = None,
    attention_mask: Shaped[Tensor, ...] | None = None,
    str_tokens: Sequence[str] | None = None,
    weighted: bool = False,
    causal: bool = True,
    model_name: str = "patterns from elsewhere",
) -> HeadScores:
    """Score heads by their patterns on one prompt, wherever these come from.

        reference = AutoModelForCausalLM.from_pretrained("gpt2", attn_implementation="eager")
        with torch.no_grad():
            attentions = reference(ids, output_attentions=True).attentions
        head_scores(torch.stack(attentions)[:, 0], ids[0])

    Args:
        pattern, attention_mask, weighted, causal: as in `pattern_score`.
        tokens: ids `pos`.
        scores: some of `SCORES`, or `{name: target}` with targets as in `pattern_score`; None: all
            of `SCORES`. One that no query has a target for is NaN, and in `without_target`.
        str_tokens: the tokens as strings, for pictures, padding included.
        model_name: where the patterns are from, for pictures.

    Raises:
        ValueError, TypeError: as `pattern_score`; an unknown score; no score at all has a target.
    """
    targets = checked_scores(scores)
    ids = checked_ids(tokens)
    real = checked_pattern(pattern, ids, attention_mask, weighted=weighted, causal=causal)
    if str_tokens is not None and len(str_tokens) != len(ids):
        raise ValueError(f"there are {len(str_tokens)} str_tokens for {len(ids)} tokens")
    own = ids[real.to(ids.device)]
    links = {
        name: links_of(name, target, own, real, len(ids), causal=causal)
        for name, target in targets.items()
    }
    _some_target({name: (link.n_queries,) for name, link in links.items()})
    found = {
        name: torch.stack([shares(layer, link, weighted=weighted) for layer in pattern])
        for name, link in links.items()
    }
    strings = [f"<{id}>" for id in ids.tolist()] if str_tokens is None else list(str_tokens)
    result = HeadScores(
        per_example={name: values.detach().cpu()[..., None] for name, values in found.items()},
        queries={name: (link.n_queries,) for name, link in links.items()},
        even={name: (link.even,) for name, link in links.items()},
        tokens=(tuple(own.tolist()),),
        str_tokens=(tuple(strings[i] for i in real.tolist()),),
        prepend_bos=None,
        source="one prompt",
        provenance=report.Provenance(
            model=model_name,
            dtype=str(pattern.dtype).removeprefix("torch."),
            device=str(pattern.device),
            call=f"head_scores(pattern, tokens, scores={list(targets)!r}, weighted={weighted})",
            versions={"torch": torch.__version__},
        ),
    )
    return replace(result, patterns=kept_of(pattern, real, _ranking(result)))


def _some_target(queries: Mapping[str, Sequence[int]]) -> None:
    """Refuse to return nothing but NaN."""
    if not any(sum(counts) for counts in queries.values()):
        why = ": no token occurs twice" if set(queries) <= set(views.REPEATS) else ""
        raise ValueError(f"no query has a target for {', '.join(queries)}{why}")


def _ranking(found: HeadScores) -> list[Head]:
    """All heads: the highest of each score, then the second of each, and so on."""
    ranked = [found.ranked(name) for name in found.names]
    rounds = zip(*(heads for heads in ranked if heads), strict=True)
    return list(dict.fromkeys(head for heads in rounds for head in heads))


# ------------------------------------------------------------------ running a model


def detect_heads(
    model: HookedGPT2,
    tokens: AnyPrompts | None = None,
    *,
    scores: str | Sequence[str] | Mapping[str, str | Target] | None = None,
    n: int | None = None,
    length: int | None = None,
    seed: int = 0,
    ablation: str | None = None,
    copying: bool = False,
    attention_mask: Tensor | None = None,
    prepend_bos: bool = True,
) -> HeadScores:
    """Score every head of a model, on repeated random tokens or on prompts.

    Keeps the attention of one layer and a few prompts at a time, however many there are; at the end
    that of the first prompt, for pictures (of the highest heads only where all would be large).

    Args:
        model: stays as it is; hooks that are active on it count.
        tokens: text, several texts, what `model.tokenize` gives, or token ids. None:
            `<|endoftext|>` and random tokens twice, as `analyses.tasks.induction` makes them.
        scores: as in `head_scores`. A target that is a tensor is used for every prompt.
        n, length, seed: of random tokens: how many sequences (10), how many tokens in each copy
            (25), and which.
        ablation: "zero" or "mean": also the loss on repeated random tokens without each head; see
            `induction_ablation`, which takes the same n, length and seed.
        copying: also `copying_scores`.
        attention_mask: `batch pos`, True on real tokens; with token ids only.
        prepend_bos: put `<|endoftext|>` before text and random tokens.

    Returns:
        scores per head and example. An example without target for a score is NaN there.

    Raises:
        ValueError, TypeError: n or length with prompts, a length that does not fit into the model,
            no score with any target, attention that is not finite, or what `head_scores`,
            `analyses.prompts.Prompts` and a run refuse.
    """
    targets = checked_scores(scores)
    if ablation is not None and ablation not in ABLATIONS:
        raise ValueError(unknown("kind of ablation", str(ablation), ABLATIONS))
    if tokens is not None and ablation is None and (n, length) != (None, None):
        raise ValueError("n and length are of random tokens: leave them out, or leave out tokens")
    given = material(model, tokens, n, length, seed, attention_mask, prepend_bos)
    prompts = given.prompts
    found = measure(model, prompts, targets)
    _some_target(found.queries)
    call = (
        f"detect_heads(model, {'None' if tokens is None else '...'}, scores={list(targets)!r}, "
        f"n={n}, length={length}, seed={seed}, ablation={ablation!r}, copying={copying}, "
        f"prepend_bos={prepend_bos})"
    )
    rows = zip(prompts.tokens.cpu(), prompts.attention_mask.cpu(), strict=True)
    result = HeadScores(
        per_example=found.per_example,
        queries=found.queries,
        even=found.even,
        tokens=tuple(tuple(ids[own].tolist()) for ids, own in rows),
        str_tokens=prompts.str_tokens,
        prepend_bos=prompts.prepend_bos,
        source=given.source,
        provenance=report.Provenance.of(model, call),
    )
    return replace(
        result,
        patterns=keep_patterns(model, prompts, 0, _ranking(result)),
        ablation=None
        if ablation is None
        else induction_ablation(
            model, kind=ablation, n=n, length=length, seed=seed, prepend_bos=prepend_bos
        ),
        copying=copying_scores(model) if copying else None,
        hooked=tuple(point.name for point in model.hook_dict.values() if point.fwd_hooks),
    )


def induction_ablation(
    model: HookedGPT2,
    *,
    kind: str = "mean",
    n: int | None = None,
    length: int | None = None,
    seed: int = 0,
    groups: Mapping[str, Any] | None = None,
    layers: int | Sequence[int] | None = None,
    prepend_bos: bool = True,
) -> Ablation:
    """The loss on the second copy of repeated random tokens, without each head.

    Heads that induction needs raise it, those that make the keys for others too. Where two do the
    same, taking out one may change little: a small change does not show that a head does nothing.

    Args:
        model: stays as it is.
        kind: what stands in place of the head's output: "zero", or "mean": what it gives on average
            over all tokens (`<|endoftext|>` included) of sequences whose first copy is of other
            random tokens, where nothing is repeated.
        n, length, seed, prepend_bos: the sequences, as in `detect_heads`.
        groups: name -> heads: without each group instead, as in `analyses.ablation.ablation`.
        layers: only these; None: all.

    Returns:
        the loss in nats per token under every ablation, per sequence; `.effects.change` is what is
        lost. Averaged over the second copy's tokens but the first, which nothing foretells.

    Raises:
        ValueError, IndexError, TypeError: an unknown kind, a layer out of range, groups that
            `ablation` refuses, or what `detect_heads` refuses.

    Source: Olsson et al. 2022, section "Argument 3: direct ablation".
    """
    if kind not in ABLATIONS:
        raise ValueError(unknown("kind of ablation", str(kind), ABLATIONS))
    data = repeated_tokens(model, n, length, seed, prepend_bos)
    second_copy = loss(pos=data.read_positions[0].tolist())
    found = ablation(
        model,
        data.clean_tokens,
        {"loss on the second copy": second_copy},
        kind=kind,
        groups=groups,
        layers=layers,
        reference=None if kind == "zero" else data.corrupted_tokens,
    )
    shown = {name: [str(head) for head in heads] for name, heads in found.groups.items()} or None
    return replace(
        found,
        reference="" if kind == "zero" else "sequences whose first copy is of other tokens",
        source=f"{len(data)} sequences of random tokens twice",
        prepend_bos=prepend_bos,
        provenance=replace(
            found.provenance,
            call=f"induction_ablation(model, kind={kind!r}, n={n}, length={length}, seed={seed}, "
            f"groups={shown}, layers={layers}, prepend_bos={prepend_bos})",
        ),
    )


# ------------------------------------------------------------------ the command line


def main(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Prompt files in UTF-8, one prompt each; - is standard input. Left out: repeated "
            "random tokens.",
            show_default=False,
        ),
    ] = None,
    model: cli.Model = None,
    scores: Annotated[
        str, typer.Option(help=f"Some of {', '.join(SCORES)}; comma-separated.", metavar="SCORES")
    ] = ",".join(SCORES),
    n: Annotated[
        int | None,
        typer.Option(
            help="How many sequences of random tokens; 10.", metavar="N", show_default=False
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            help="How many random tokens come twice; 25.", metavar="N", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Which random tokens.", metavar="SEED")] = 0,
    ablation: Annotated[
        str | None,
        typer.Option(
            help="Also the loss on repeated random tokens without each head; what stands in its "
            f"place: {' or '.join(ABLATIONS)}.",
            metavar="KIND",
            show_default=False,
        ),
    ] = None,
    copying: Annotated[
        bool, typer.Option("--copying", help="Also how often each head's output copies names.")
    ] = False,
    grid: Annotated[
        str | None,
        typer.Option(
            help="The score printed for all heads; left out: induction, or the first.",
            metavar="SCORE",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="How many heads of each score.", metavar="N")] = 5,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """What kind of head is it? Scores every head by where it looks.

    Previous-token, current-token, first-token, duplicate-token and induction heads, on repeated
    random tokens or on prompts.
    """
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=files or [])
    chosen = [name.strip() for name in scores.split(",")]
    _check_options(chosen, ablation, copying, grid, top_k)
    if files and (n is not None or length is not None) and ablation is None:
        raise cli.CommandError("--n and --length are of random tokens; prompt files were given")
    prompts = cli.read_prompts(files or [])
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses.heads import detect_heads

    loaded = cli.load_model(choice, device=device, dtype=dtype)
    with cli.about(", ".join(prompt.source for prompt in prompts) or "random tokens"):
        found = detect_heads(
            loaded,
            [prompt.text for prompt in prompts] or None,
            scores=chosen,
            n=n,
            length=length,
            seed=seed,
            ablation=ablation,
            copying=copying,
            prepend_bos=prepend_bos,
        )
    if prompts:
        named = ", ".join(prompt.source for prompt in prompts)
        found = replace(found, source=named if len(prompts) <= 3 else f"{len(prompts)} files")
    if html or json_path:
        found = found.hashed(loaded, cli.call("analyses.heads", sys.argv[1:]))
    cli.write_outputs(
        console,
        html=html,
        page=lambda: found.page(top_k),
        csv=csv,
        frame=found.to_frame,
        json=json_path,
        data=found.to_dict,
    )
    views.show(found, console, top_k, grid)


def _check_options(
    chosen: Sequence[str], ablation: str | None, copying: bool, grid: str | None, top_k: int
) -> None:
    for name in chosen:
        if name not in SCORES:
            raise cli.CommandError(f"--scores: {unknown('score', name, SCORES)}")
        if chosen.count(name) > 1:
            raise cli.CommandError(f"--scores: {name} is asked for twice")
    if ablation is not None and ablation not in ABLATIONS:
        raise cli.CommandError(f"--ablation: {unknown('kind', ablation, ABLATIONS)}")
    there = [*chosen, *(["ablation"] if ablation else [])]
    there += ["copying", "negative_copying"] if copying else []
    asks = {"ablation": "--ablation", "copying": "--copying", "negative_copying": "--copying"}
    if grid in asks and grid not in there:
        raise cli.CommandError(f"--grid {grid} needs {asks[grid]} too")
    if grid is not None and grid not in there:
        raise cli.CommandError(f"--grid: {unknown('score', grid, tuple(there))}")
    if top_k < 1:
        raise cli.CommandError(f"--top-k is {top_k}: expected at least 1")


if __name__ == "__main__":
    cli.run(main, __spec__)
