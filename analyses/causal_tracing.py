"""Causal tracing: which hidden states, restored one at a time, bring a forgotten fact back?

1. Clean run: the model reads a fact, "The Space Needle is in the city of", and predicts its answer.
2. Corrupted run: Gaussian noise is added to the token embeddings of the subject ("Space Needle"),
   and the probability of the answer falls. The fall is the *total effect*. Everything is repeated
   with several draws of the noise.
3. Corrupted with restoration: as 2, but at one token and layer a state is given its value of the
   clean run. What the probability gains is the *indirect effect* of that state:
   `resid_post`: a single state of the residual stream, after a block;
   `mlp_out`, `attn_out`: what the MLPs (attention layers) of a window of layers around it wrote.
4. Severed: as 3 for `resid_post`, with the outputs of all later MLPs (`mlp_severed`) or attention
   layers (`attn_severed`) at that token kept as in the corrupted run. What is left is the effect
   that does not pass through them.

Averaged over facts, by the role of the token (first, middle, last of the subject, ...), these are
the average indirect effects.

The noise is that of the authors' code, with its seed: `numpy.random.RandomState(1).randn(samples,
subject tokens, d_model)` anew for every fact and every restoration, so all of them share one draw.
It is added to `hook_embed` (the code's `transformer.wte`); position embeddings are added after it,
so the result is as if the noise were added to their sum, as the paper writes it.
One thing differs: for the severed views the authors' notebook draws a second time, so that the
outputs it freezes come from other noise than the run they are put into. Here both have the same.

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (arXiv 2202.05262),
section 2.1 and appendix B. Caution: Zhang and Nanda 2023 (arXiv 2309.16042), section 3, find that
corrupting with noise and corrupting with another subject can point to different places.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from analyses import cli, report
from analyses._views import causal_tracing as looks
from analyses.tasks import unknown

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import numpy as np
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from analyses._subject import subject_positions
    from analyses._traces import ROLES as ROLES
    from analyses._traces import AverageTrace, CausalTrace, Fact, average
    from analyses.effects import Effects
    from analyses.metrics import evaluate, prob
    from analyses.prompts import Prompts, token_string
    from analyses.sweep import sweep
    from analyses.tasks import generate
    from analyses.tasks.data import NO_TOKEN
    from hooks import ActivationCache, Add, Patch
    from interp import HookedGPT2

VIEWS, FIGURE_1 = looks.VIEWS, looks.FIGURE_1
SAMPLES = 10
ROME_SEED = 1
_UNKNOWN = -1


# ------------------------------------------------------------------ the noise


def noise_level(model: HookedGPT2, subjects: Sequence[str] = (), multiple: float = 3.0) -> float:
    """The standard deviation of the noise: a multiple of that of the token embeddings.

    Args:
        subjects: take the embeddings of these texts' tokens, as the authors' code does with the
            subjects of its facts; without any, those of the whole vocabulary.
        multiple: 3 in the paper.

    Returns:
        `multiple` times the standard deviation of all numbers in these embeddings.
    """
    embeddings = model.W_E.detach()
    if embeddings.dtype.itemsize < 4:
        embeddings = embeddings.float()
    if subjects:
        ids = [model.to_tokens(text, prepend_bos=False)[0] for text in subjects]
        embeddings = embeddings[torch.cat(ids)]
    return multiple * float(embeddings.std())


def rome_noise(
    samples: int, n_tokens: int, d_model: int, level: float, seed: int = ROME_SEED
) -> Float[Tensor, "sample token d_model"]:
    """The noise of the authors' code, in float64: the same for every fact of as many tokens.

    A sample does not depend on how many there are. With `seed=1` it is their draw.
    """
    draw = np.random.RandomState(seed).randn(samples, n_tokens, d_model)
    return level * torch.from_numpy(draw)


# ------------------------------------------------------------------ the question


def causal_tracing(
    model: HookedGPT2,
    prompt: str | Int[Tensor, " pos"],
    subject: str | range,
    *,
    answer: str | int | None = None,
    views: str | Sequence[str] = FIGURE_1,
    window: int | None = None,
    noise: float | None = None,
    samples: int = SAMPLES,
    seed: int = ROME_SEED,
    occurrence: int | None = None,
    prepend_bos: bool = True,
    batch_size: int | Literal["auto"] = "auto",
    memory_limit: int = 2**30,
    progress: bool = True,
) -> CausalTrace:
    """Trace one fact.

    Tokens before the subject see nothing of the noise: to restore them changes nothing, and their
    effect is exactly 0.

    Args:
        model: what is looked into; stays as it is.
        prompt: a text up to the answer, or token ids.
        subject: a part of the text, in whole tokens; or a range of positions, `range(2, 4)`,
            counted with a prepended `<|endoftext|>`.
        answer: the token whose probability is traced, as text that is one token or as an id; by
            default what the model itself predicts.
        views: which of `VIEWS`; by default the three of the paper's figure 1.
        window: how many layers `mlp_out` and `attn_out` restore together. 10 of GPT-2 XL's 48 in
            the paper; by default the same share of this model's, rounded up. As in the authors'
            code, layer l is restored with `window // 2` layers before it and the rest after it,
            those that there are.
        noise: its standard deviation; by default `noise_level(model)`.
        samples: draws of the noise.
        seed: of the noise; 1 gives the draw of the authors' code.
        occurrence: which one, from 0, where the subject is in the text several times (the authors'
            code takes the first).
        prepend_bos: put `<|endoftext|>` before text. The authors' code does not.
        batch_size, memory_limit, progress: as `analyses.sweep.sweep`.

    Raises:
        ValueError, IndexError, TypeError: a subject that is not in the prompt, or in it several
            times, or ends within a token; an unknown view; a number out of range; what
            `model.tokenize` refuses.
    """
    names = _checked_views(views)
    n_layers = model.cfg.n_layers
    window = math.ceil(10 * n_layers / 48) if window is None else window
    level = noise_level(model) if noise is None else float(noise)
    _check_numbers(window, n_layers, level, samples)
    prompts = Prompts.of(model, prompt, prepend_bos=prepend_bos)
    if len(prompts.tokens) != 1:
        raise ValueError(f"one prompt at a time, not {len(prompts.tokens)}: trace_facts takes many")
    tokens = prompts.tokens
    where = subject_positions(model, prompt, subject, prompts, occurrence)
    rows = tokens.expand(samples, -1)
    draw = rome_noise(samples, len(where), model.cfg.d_model, level, seed)
    corruption = Add("hook_embed", pos=list(where), value=draw.to(model.device, model.dtype))
    with torch.no_grad():
        logits = model(tokens)
        assert isinstance(logits, Tensor)
        target = int(logits[0, -1].argmax()) if answer is None else _token(model, answer)
        _, clean = model.run_with_cache(
            tokens,
            stop_at_layer=n_layers,
            names_filter=[f"*hook_{point}" for point in ("resid_post", "mlp_out", "attn_out")],
        )
        frozen: ActivationCache | None = None
        if "mlp_severed" in names or "attn_severed" in names:
            with model.hooks(fwd_hooks=[(corruption.point, corruption)]):
                _, frozen = model.run_with_cache(
                    rows, stop_at_layer=n_layers, names_filter=["*hook_mlp_out", "*hook_attn_out"]
                )
    # Every (layer, token that the noise can reach), the last fastest.
    n_pos = tokens.shape[1]
    places = [(layer, pos) for layer in range(n_layers) for pos in range(where.start, n_pos)]
    metric = prob(target)
    result = sweep(
        model,
        rows,
        [
            _restoration(name, layer, pos, clean, frozen, window, n_layers)
            for name in names
            for layer, pos in places
        ],
        metric,
        given=[corruption],
        batch_size=batch_size,
        memory_limit=memory_limit,
        progress=progress,
    )
    corrupted = result.base["prob"]
    p_clean = evaluate(model, tokens, metric)["prob"].expand(samples).clone()
    found = result.values["prob"].view(len(names), n_layers, -1, samples)
    before = corrupted.expand(len(names), n_layers, where.start, samples)
    strings = prompts.str_tokens[0]
    labels = {
        "layer": [str(layer) for layer in range(n_layers)],
        "pos": [
            f"{pos} {cli.visible(text)}{'*' if pos in where else ''}"
            for pos, text in enumerate(strings)
        ],
    }
    call = (
        f"causal_tracing(model, ..., subject={where!r}, answer={target}, views={names!r}, "
        f"window={window}, noise={level!r}, samples={samples}, seed={seed})"
    )
    return CausalTrace(
        str_tokens=strings,
        prepend_bos=prompts.prepend_bos,
        subject=where,
        answer=target,
        answer_string=token_string(model, target),
        views={
            name: Effects.on_axes(
                name,
                labels,
                values.flatten(0, 1),
                corrupted,
                f"p({cli.visible(token_string(model, target))})",
                corrupted=corrupted,
                clean=p_clean,
            )
            for name, values in zip(names, torch.cat([before, found], dim=2), strict=True)
        },
        window=window,
        noise=level,
        seed=seed,
        provenance=report.Provenance.of(model, call),
    )


def _restoration(
    name: str,
    layer: int,
    pos: int,
    clean: ActivationCache,
    frozen: ActivationCache | None,
    window: int,
    n_layers: int,
) -> list[Patch]:
    """What is restored (and frozen) for one place of a view."""
    if name in ("mlp_out", "attn_out"):
        first, last = max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2)
        return [Patch((name, each), pos=pos, source=clean) for each in range(first, last)]
    patches = [Patch(("resid_post", layer), pos=pos, source=clean)]
    if frozen is not None and name != "resid_post":
        # Up to this layer they are as in the corrupted run already.
        point = f"{name.removesuffix('_severed')}_out"
        later = range(layer + 1, n_layers)
        patches += [Patch((point, each), pos=pos, source=frozen) for each in later]
    return patches


def trace_facts(
    model: HookedGPT2,
    facts: Sequence[Fact],
    *,
    only_known: bool = True,
    **options: Any,
) -> AverageTrace:
    """Trace several facts and average them by the roles of tokens.

    Args:
        facts: what is asked.
        only_known: leave out facts whose answer the model does not predict, as the authors do; the
            result lists them.
        options: as `causal_tracing`.

    Raises:
        ValueError: no fact is left; and as `causal_tracing`, with the number of the fact.
    """
    traces, unknown_facts = [], []
    level = noise_level(model) if options.get("noise") is None else options["noise"]
    for index in cli.progress(range(len(facts)), "causal tracing"):
        fact = facts[index]
        try:
            answer = _expected(model, fact, only_known, options.get("prepend_bos", True))
            if answer == _UNKNOWN:
                unknown_facts.append(fact)
                continue
            one = {"progress": False, **options, "answer": answer, "noise": level}
            traces.append(causal_tracing(model, fact.prompt, fact.subject, **one))
        except (ValueError, IndexError) as error:
            raise type(error)(f"fact {index}: {error}") from error
    if not traces:
        raise ValueError(
            f"there is nothing to trace: of {len(facts)} facts, the model knows none"
            if facts
            else "there are no facts to trace"
        )
    return average(traces, unknown=unknown_facts)


def task_facts(
    model: HookedGPT2,
    task: str = "capitals",
    n: int = 16,
    seed: int = 0,
    *,
    split: str = "held_out",
) -> list[Fact]:
    """Facts of a task that has a subject (`analyses.tasks`), with their answers.

    Raises:
        ValueError: a task without a subject; and as `analyses.tasks.generate`.
    """
    data = generate(task, model.tokenizer, n, seed=seed, split=split, prepend_bos=False)
    if "SUBJECT" not in data.positions:
        raise ValueError(
            f"the task {task} names no SUBJECT; its positions are {', '.join(data.positions)}"
        )
    facts = []
    for example, prompt in enumerate(data.clean_prompts):
        # The words of a task are single tokens.
        subject = data.str_tokens[example][int(data.positions["SUBJECT"][example])].strip()
        answers = [id for id in data.answers[example].tolist() if id != NO_TOKEN]
        facts.append(Fact(prompt, subject, tuple(answers)))
    return facts


def _expected(model: HookedGPT2, fact: Fact, only_known: bool, prepend_bos: bool) -> int | None:
    """The answer to trace (None: whatever the model predicts), or `_UNKNOWN`."""
    if fact.answer is None:
        return None
    several = fact.answer if isinstance(fact.answer, tuple) else (fact.answer,)
    if not several:
        raise ValueError("its answer is empty; expected a token, or None for the prediction")
    ids = [_token(model, answer) for answer in several]
    if not only_known:
        return ids[0]
    with torch.no_grad():
        logits = model(fact.prompt, prepend_bos=prepend_bos)
    assert isinstance(logits, Tensor)
    predicted = int(logits[0, -1].argmax())
    return predicted if predicted in ids else _UNKNOWN


# ------------------------------------------------------------------ checking arguments


def _checked_views(views: str | Sequence[str]) -> tuple[str, ...]:
    names = [views] if isinstance(views, str) else list(views)
    if not names:
        raise ValueError(f"views is empty; expected some of {', '.join(VIEWS)}")
    for name in names:
        if name not in VIEWS:
            raise ValueError(unknown("view", str(name), VIEWS))
    return tuple(name for name in VIEWS if name in names)


def _check_numbers(window: int, n_layers: int, level: float, samples: int) -> None:
    for name, given in (("window", window), ("samples", samples)):
        if isinstance(given, bool) or not isinstance(given, int):
            raise TypeError(f"{name} is a whole number, not {given!r}")
    if window < 1:
        raise ValueError(f"window={window} is out of range: expected at least 1 layer")
    if not (math.isfinite(level) and level >= 0):
        raise ValueError(f"noise={level} is no standard deviation: expected a number from 0 up")
    if samples < 1:
        raise ValueError(f"samples={samples} is out of range: expected at least 1")


def _token(model: HookedGPT2, answer: str | int) -> int:
    id = model.to_single_token(answer) if isinstance(answer, str) else answer
    if not 0 <= id < model.cfg.d_vocab_out:
        raise IndexError(
            f"answer {answer!r} is out of range: this model predicts tokens 0 to "
            f"{model.cfg.d_vocab_out - 1}"
        )
    return id


# ------------------------------------------------------------------ the command line


def main(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Prompt files in UTF-8, one fact each, up to its answer; - is standard input. Or "
            "leave them out and name a --task.",
            show_default=False,
        ),
    ] = None,
    subjects: Annotated[
        list[str] | None,
        typer.Option(
            "--subject",
            help="The part of the prompt to corrupt; one for each file, in their order.",
            metavar="TEXT",
            show_default=False,
        ),
    ] = None,
    answers: Annotated[
        list[str] | None,
        typer.Option(
            "--answer",
            help='The token to trace, such as " Paris"; one for each file. Left out: what the '
            "model predicts.",
            metavar="TOKEN",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Facts of a task instead of files, averaged: capitals.",
            metavar="TASK",
            show_default=False,
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="With --task: how many facts.", metavar="N")] = 16,
    seed: Annotated[int, typer.Option(help="With --task: seed of the facts.", metavar="N")] = 0,
    names: Annotated[
        str, typer.Option("--views", help=f"Some of {', '.join(VIEWS)}.", metavar="VIEWS")
    ] = ",".join(FIGURE_1),
    window: Annotated[
        int | None,
        typer.Option(
            help="Layers that mlp_out and attn_out restore together. Left out: 10 of every 48, as "
            "in the paper.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of the noise. Left out: 3 times that of the token embeddings.",
            metavar="X",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Draws of the noise.", metavar="N")] = SAMPLES,
    noise_seed: Annotated[
        int, typer.Option(help="Seed of the noise; 1 is the authors'.", metavar="N")
    ] = ROME_SEED,
    occurrence: Annotated[
        int | None,
        typer.Option(
            help="Which one, from 0, where the subject is in a prompt several times.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    model: cli.Model = None,
    top_k: Annotated[int, typer.Option(help="How many places to list.", metavar="N")] = 10,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """Which hidden states, restored one at a time, bring a forgotten fact back?

    Noise on the subject makes the model forget the answer; then one state at a time gets its clean
    value back (Meng et al. 2022).
    """
    files = list(files or ())
    if (task is None) == (not files):
        raise cli.CommandError("expected prompt files, or --task; not both")
    if task is None:
        _check_per_file("--subject", subjects or (), files)
        if answers:
            _check_per_file("--answer", answers, files)
    elif subjects or answers or occurrence is not None:
        raise cli.CommandError("--task brings its own subjects and answers")
    if top_k < 1:
        raise cli.CommandError(f"--top-k is {top_k}: expected at least 1")
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=files)
    prompts = cli.read_prompts(files)
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses import causal_tracing as tracing

    loaded = cli.load_model(choice, device=device, dtype=dtype)
    options: dict[str, Any] = {
        "views": [name.strip() for name in names.split(",")],
        "window": window,
        "noise": noise,
        "samples": samples,
        "seed": noise_seed,
        "prepend_bos": prepend_bos,
    }
    found: list[tuple[str, CausalTrace]] = []
    together: AverageTrace | None = None
    if task is not None:
        facts = tracing.task_facts(loaded, task, n, seed)
        together = tracing.trace_facts(loaded, facts, **options)
    else:
        for index, prompt in enumerate(prompts):
            with cli.about(prompt.source):
                trace = tracing.causal_tracing(
                    loaded,
                    prompt.text,
                    (subjects or ())[index],
                    answer=answers[index] if answers else None,
                    occurrence=occurrence,
                    **options,
                )
            found.append((prompt.source, trace))
        if len(found) > 1:
            together = tracing.average([trace for _, trace in found])
    last: Any = together or found[0][1]
    if html or json_path:
        call = cli.call("analyses.causal_tracing", sys.argv[1:])
        last = replace(last, provenance=last.provenance.with_weights(loaded, call))

    def page() -> report.Page:
        if together is None:
            return looks.page(found[0][0], last, top_k)
        return looks.average_page(last, top_k, found)

    cli.write_outputs(
        console,
        html=html,
        page=page,
        csv=csv,
        frame=last.to_frame,
        json=json_path,
        data=last.to_dict,
    )
    for source, trace in found:
        console.print()
        console.print(source, style="bold", soft_wrap=True)
        looks.show(trace, console, top_k)
    if together is not None:
        console.print()
        looks.show_average(together, console, top_k)


def _check_per_file(option: str, given: Sequence[str], files: Sequence[str]) -> None:
    if len(given) != len(files):
        raise cli.CommandError(
            f"{option} is given {len(given)} times for {len(files)} file{'s'[: len(files) != 1]}: "
            "expected one for each, in their order"
        )


if __name__ == "__main__":
    cli.run(main, __spec__)
