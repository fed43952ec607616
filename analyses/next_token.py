r"""What comes next, and how surprised was the model?

1. `next_token`: run the model on a prompt and read the logits after its last token as a
   distribution: logits, divided by the temperature, through a softmax. List the likeliest tokens.
   Look up given continuations of one or several tokens: the log-probability of each of its tokens
   after the prompt and the tokens before it, and their sum, which is the log-probability of the
   whole. They are read after copies of the prompt's keys and values, so that the prompt is read
   once.
2. `branches`: a tree of the likeliest ways to go on, to a depth.
3. `surprisal`: minus the log-probability of each token of a text, in nats and bits; its rank, the
   entropy of the prediction, what was expected instead; total and perplexity.
4. `Session`: go on token by token, back and forth; `--interactive` does this in the terminal.

Sources: Shannon 1948, "A Mathematical Theory of Communication" (entropy, information); Shannon
1951, "Prediction and Entropy of Printed English" (the guess of the next letter, by rank); Levy
2008, "Expectation-based syntactic comprehension", Cognition 106 (surprisal); `transformers`' guide
"Perplexity of fixed-length models" (texts longer than the context, by windows).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyses import cli, report

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch
    from jaxtyping import Int
    from torch import Tensor

    from analyses._next_token.continuations import (
        Continuation,
        check_lengths,
        check_seams,
        checked_continuations,
    )
    from analyses._next_token.result import NextToken, PromptsResult
    from analyses._next_token.run import (
        checked_temperature,
        checked_top_k,
        ids_of,
        in_groups,
        read,
    )
    from analyses._next_token.session import Session
    from analyses._next_token.surprisal import Surprisal, surprisal
    from analyses._next_token.tree import Branches, branches
    from analyses.prompts import Prompts, token_string
    from interp import HookedGPT2, TokenBatch

__all__ = [
    "Branches",
    "Continuation",
    "NextToken",
    "Session",
    "Surprisal",
    "branches",
    "main",
    "next_token",
    "surprisal",
]


# ------------------------------------------------------------------ the question


def next_token(
    model: HookedGPT2,
    tokens: str | Sequence[str] | TokenBatch | Int[Tensor, "batch pos"] | Int[Tensor, " pos"],
    *,
    top_k: int = 10,
    temperature: float | int = 1.0,
    continuations: Any = (),
    prepend_bos: bool = True,
    attention_mask: Tensor | None = None,
) -> NextToken:
    """The likeliest next tokens after one or several prompts, and how likely continuations are.

    Costs one forward pass over the prompts, of which the last position is unembedded, and one over
    all but the last token of each continuation.

    A continuation that is text is tokenised on its own, nothing put before it: `" Mary"`, with the
    blank. Where prompt and continuation as one text would be other tokens (`"to "` and `"Mary"`),
    it is refused, as probabilities of those tokens are not those of the text. Token ids are taken
    as they are.

    Args:
        model: what predicts; stays as it is. Functions that are active on it count; they see the
            prompts in one pass, and then only what comes after them.
        tokens: text, several texts, what `model.tokenize` gives, or token ids (taken as they are).
        top_k: how many predictions to keep, 1 to d_vocab.
        temperature: what logits are divided by before the softmax: above 1 flatter, below sharper.
        continuations: text (`" Mary"`), a token id, or several of these; each may also be a list
            of ids. All are asked of every prompt.
        prepend_bos: put `<|endoftext|>` before prompts given as text.
        attention_mask: `batch pos` (or `pos`, of one prompt), 1 or True on real tokens; with token
            ids only.

    Returns:
        The predictions, on the CPU. Logarithms are natural, in float32, or float64 for a float64
        model.

    Raises:
        ValueError, IndexError, TypeError: top_k or temperature out of range; a continuation that
            is empty, given twice, out of range, tokenised otherwise together with a prompt, or
            goes on after `<|endoftext|>`; prompt and continuation longer than `n_ctx`; or what
            `model.tokenize` and a run refuse.
    """
    top_k = checked_top_k(model, top_k)
    temperature = checked_temperature(temperature)
    asked = checked_continuations(model, continuations)
    prompts = Prompts.of(model, tokens, attention_mask, prepend_bos)
    ids = ids_of(prompts)
    check_lengths(model, ids, asked)
    check_seams(model.tokenizer, ids, asked)
    longest = max((len(one.ids) for one in asked), default=0)
    shape = (len(ids), len(asked), longest)
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    logits = torch.full(shape, torch.nan, dtype=dtype)
    log_probs, entropy, ranks = logits.clone(), logits.clone(), torch.full(shape, -1)
    tops = []
    for here, prefix in in_groups(model, prompts):
        firsts = torch.tensor([one.ids[0] for one in asked], dtype=torch.long)
        top = read(model, prefix.hidden, top_k, temperature, firsts.expand(len(prefix.hidden), -1))
        tops.append(top)
        if asked:
            logits[here, :, 0], log_probs[here, :, 0] = top.logits, top.log_probs
            ranks[here, :, 0], entropy[here, :, 0] = top.ranks, top.entropy[:, None]
        further = [
            (row, index)
            for row in range(len(prefix.hidden))
            for index, one in enumerate(asked)
            if len(one.ids) > 1
        ]
        if not further:
            continue
        read_on = prefix.after(
            [row for row, _ in further], [asked[index].ids[:-1] for _, index in further]
        )
        for (row, index), hidden in zip(further, read_on, strict=True):
            rest = asked[index].ids[1:]
            found = read(model, hidden, 1, temperature, torch.tensor(rest)[:, None])
            place = (here.start + row, index, slice(1, 1 + len(rest)))
            logits[place], log_probs[place] = found.logits[:, 0], found.log_probs[:, 0]
            ranks[place], entropy[place] = found.ranks[:, 0], found.entropy
    top_tokens = torch.cat([top.top_tokens for top in tops])
    shown = {id for row in (*ids, *(one.ids for one in asked)) for id in row}
    shown |= set(top_tokens.unique().tolist())
    call = (
        f"next_token(model, ..., top_k={top_k}, temperature={temperature:g}, "
        f"continuations={[one.text if one.from_text else list(one.ids) for one in asked]!r}, "
        f"prepend_bos={prepend_bos})"
    )
    return NextToken(
        tokens=ids,
        prepend_bos=prompts.prepend_bos,
        strings={id: token_string(model, id) for id in sorted(shown)},
        provenance=report.Provenance.of(model, call),
        temperature=temperature,
        top_tokens=top_tokens,
        top_logits=torch.cat([top.top_logits for top in tops]),
        top_log_probs=torch.cat([top.top_log_probs for top in tops]),
        entropy=torch.cat([top.entropy for top in tops]),
        continuations=asked,
        continuation_logits=logits,
        continuation_log_probs=log_probs,
        continuation_ranks=ranks,
        continuation_entropy=entropy,
    )


# ------------------------------------------------------------------ the command line


def main(
    files: cli.Files,
    model: cli.Model = None,
    top_k: cli.TopK = 10,
    temperature: Annotated[
        float,
        typer.Option(
            help="What logits are divided by before the softmax; surprisal is always that of the "
            "model's own distribution, at 1.",
            metavar="T",
        ),
    ] = 1.0,
    continuations: Annotated[
        list[str] | None,
        typer.Option(
            "--continuation",
            help='Text to look up, such as " Mary"; may be given repeatedly.',
            metavar="TEXT",
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            help="Also a tree of the likeliest branches, so many tokens deep.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            help="How many tokens the tree looks at in each place; 3 if left out.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    min_prob: Annotated[
        float | None,
        typer.Option(
            help="Leave out branches less probable than this; 0.001 if left out.",
            metavar="P",
            show_default=False,
        ),
    ] = None,
    with_surprisal: Annotated[
        bool, typer.Option("--surprisal", help="Also the surprisal of each token of the prompt.")
    ] = False,
    stride: Annotated[
        int | None,
        typer.Option(
            help="With --surprisal: read texts longer than the model's context in windows that "
            "move on by so many tokens. Left out, such texts are refused.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            help="Go on token by token: a rank picks a token, other lines are text, u goes back.",
        ),
    ] = False,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """What comes next, and how surprised was the model?

    Lists the likeliest next tokens and looks up continuations; with --depth also draws a tree of
    the likeliest branches; with --surprisal also shows how surprising each token of the prompt is.
    """
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=files)
    for name, value in {"--width": width, "--min-prob": min_prob}.items():
        if value is not None and depth is None:
            raise cli.CommandError(f"{name} goes with --depth, the depth of the tree")
    if stride is not None and not with_surprisal:
        raise cli.CommandError("--stride goes with --surprisal")
    if interactive:
        _check_interactive(
            files,
            {
                "--continuation": continuations,
                "--depth": depth is not None,
                "--surprisal": with_surprisal,
                "--html": html is not None,
                "--csv": csv is not None,
                "--json": json_path is not None,
            },
        )
    prompts = cli.read_prompts(files)
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses import next_token as own

    loaded = cli.load_model(choice, device=device, dtype=dtype)
    if interactive:
        from analyses._next_token.session import Session, converse

        with cli.about(prompts[0].source):
            session = Session(
                loaded,
                prompts[0].text,
                top_k=top_k,
                temperature=temperature,
                prepend_bos=prepend_bos,
            )
        converse(session, console, sys.stdin)
        return
    named: list[tuple[str, list[PromptsResult]]] = []
    for prompt in prompts:
        with cli.about(prompt.source):
            found: list[PromptsResult] = []
            if with_surprisal:
                found.append(
                    own.surprisal(loaded, prompt.text, stride=stride, prepend_bos=prepend_bos)
                )
            n_tokens = len(found[0].tokens[0]) if found else 0
            # There is no next token of a text that was read in windows only.
            if n_tokens <= loaded.cfg.n_ctx or continuations or depth is not None:
                predicted = own.next_token(
                    loaded,
                    prompt.text,
                    top_k=top_k,
                    temperature=temperature,
                    continuations=continuations or (),
                    prepend_bos=prepend_bos,
                )
                found.insert(0, predicted)
            if depth is not None:
                tree = own.branches(
                    loaded,
                    prompt.text,
                    depth,
                    3 if width is None else width,
                    temperature=temperature,
                    min_prob=1e-3 if min_prob is None else min_prob,
                    prepend_bos=prepend_bos,
                )
                found.insert(1, tree)
        named.append((prompt.source, found))
    if html or json_path:
        call = cli.call("analyses.next_token", sys.argv[1:])
        provenance = named[0][1][0].provenance.with_weights(loaded, call)
        named = [
            (source, [replace(one, provenance=provenance) for one in found])
            for source, found in named
        ]
    from analyses._next_token import page as pages
    from analyses._views import next_token as views

    cli.write_outputs(
        console,
        html=html,
        page=lambda: pages.page(named),
        csv=csv,
        frame=lambda: pages.table(named),
        json=json_path,
        data=lambda: [
            {"source": source} | {pages.KINDS[type(one)]: one.to_dict() for one in found}
            for source, found in named
        ],
    )
    for source, found in named:
        console.print()
        console.print(source, style="bold", soft_wrap=True)
        views.show(found, console)
        if len(found[0].tokens[0]) > loaded.cfg.n_ctx:
            console.print()
            console.print(
                f"no next token: the text is longer than n_ctx = {loaded.cfg.n_ctx}, and was read "
                "in windows",
                style="dim",
            )


def _check_interactive(files: Sequence[str], others: dict[str, Any]) -> None:
    for name, is_given in others.items():
        if is_given:
            raise cli.CommandError(f"--interactive shows in the terminal: leave out {name}")
    if len(files) != 1:
        raise cli.CommandError(f"--interactive goes on with one prompt, not {len(files)}")
    if files[0] == cli.STDIN:
        raise cli.CommandError(
            "--interactive reads what you choose from standard input: the prompt cannot come from "
            "there too (-)"
        )
    if sys.stdin is None or sys.stdin.closed:
        raise cli.CommandError("--interactive reads standard input, and there is none")


if __name__ == "__main__":
    cli.run(main, __spec__)
