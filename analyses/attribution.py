r"""Direct logit attribution: which parts of the model wrote the answer into the residual stream?

The logits are read off the last residual stream by a layer norm and the unembedding, and that
residual is a sum: of the embeddings, of what each head and each neuron wrote, and of biases. With
the layer norm's scale held at what it was in this run, all after the sum is linear, so a logit, or
the difference of two, is a sum of one number per part.

1. Run the model once; keep what every part wrote at the positions whose logits are asked about.
2. The direction that the answer is read from is d = gain * (W_U[answer] - W_U[wrong]), centred,
   where gain is the final layer norm's.
3. A part's contribution is (what it wrote . d) / scale, with the scale of the actual run. A head
   writes z @ W_O, a neuron its activation times its row of W_out; the biases b_O and b_out are
   parts of their own. So are the layer norm's shift (`ln_final.b`) and the unembedding's bias
   (`b_U`), which are added after it.
4. The lens sums them up: the residual stream after each layer, read through the same frozen scale.
   Its last row is the model's own logit difference.

The parts sum to the logit difference exactly (`remainder` says how exactly). *Direct* means: by no
way through later layers. A head whose output a later head reads may matter much and have none.

Also here: TransformerLens' views of the residual stream as stacks, `decompose_resid`,
`accumulated_resid`, `stack_head_results`, `apply_ln_to_stack` and `logit_attrs`.

Sources: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021), where logits are
expanded into paths; Wang et al., "Interpretability in the Wild" (2022), arXiv 2211.00593, section 3
(name movers write along W_U[IO] - W_U[S]); nostalgebraist, "interpreting GPT: the logit lens"
(2020).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from analyses import cli, pair_options, report
from analyses._views import attribution as views

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from analyses._residual_stack import (
        accumulated_resid,
        apply_ln_to_stack,
        decompose_resid,
        logit_attrs,
        stack_head_results,
    )
    from analyses.effects import Effects
    from analyses.metrics import LogitDiff, logit_diff
    from analyses.pairs import PromptPair, answer_ids
    from analyses.prompts import AnyPrompts, Prompts, token_string
    from interp import HookedGPT2

    Answers = str | int | Sequence[str] | Sequence[int] | Sequence[Sequence[str]] | Tensor

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = [
    "Attribution",
    "accumulated_resid",
    "apply_ln_to_stack",
    "attribution",
    "decompose_resid",
    "logit_attrs",
    "stack_head_results",
]

SHIFT, BIAS = "ln_final.b", "b_U"
# So many tokens go through the model at a time unless the caller says otherwise.
_TOKENS_AT_ONCE = 4096


# ------------------------------------------------------------------ the question


def attribution(
    model: HookedGPT2,
    tokens: AnyPrompts | PromptPair,
    answers: Answers | None = None,
    wrong: Answers | None = None,
    *,
    pos: int | Sequence[int] | Int[Tensor, ...] | None = -1,
    neurons: bool = True,
    attention_mask: Tensor | None = None,
    prepend_bos: bool = True,
    batch_size: int | Literal["auto"] = "auto",
) -> Attribution:
    """How much each part of the model adds to the logit of the answer minus that of a wrong one.

    Costs one forward pass. Kept are the activations at the positions read and, per example, one
    number per part; with `neurons` that is `layer x d_mlp` numbers for every example.

    Functions that listen on the model take part in the run. What they add to the residual stream is
    no part's, and is found in `remainder`.

    Args:
        model: what is looked into; stays as it is.
        tokens: text, several texts, what `model.tokenize` gives, token ids, or a `PromptPair`,
            whose clean prompts, answers and wrong tokens are taken then.
        answers: the next token asked about: text that is one token or an id, the same for all
            prompts or a list with one per prompt; or ids `example k` for several (their mean
            logit; -1 for none).
        wrong: what its logit is compared with, likewise. None: the answer's logit alone.
        pos: positions after which the logits are read, as in `hooks.Edit`: counted without padding,
            negative ones from a prompt's end, a tensor for a position per prompt, None for all.
            Over several, everything is averaged.
        neurons: whether to attribute to single neurons too.
        attention_mask: `batch pos`, True on real tokens; with token ids only.
        prepend_bos: put `<|endoftext|>` before text.
        batch_size: how many prompts to run at a time.

    Returns:
        contributions in nats of logit (difference), on the CPU, in float32, or float64 for a
        float64 model.

    Raises:
        ValueError, IndexError, TypeError: no answers, answers beside a `PromptPair`, an answer that
            is no single token, a position or id out of range, a batch size below 1, or what
            `model.tokenize` and a run refuse.
    """
    prompts, answers, wrong = _prompts(model, tokens, answers, wrong, attention_mask, prepend_bos)
    n = len(prompts.tokens)
    right_ids = _ids(model, answers, n, "answers")
    wrong_ids = None if wrong is None else _ids(model, wrong, n, "wrong")
    metric = cast(
        LogitDiff, logit_diff(right_ids, right_ids if wrong_ids is None else wrong_ids, pos)
    )
    metric.check(n, model.cfg.d_vocab_out)
    reads = metric.reads(prompts.attention_mask.cpu())
    right_ids, wrong_ids = metric.answer_tokens, None if wrong is None else metric.wrong_tokens
    if batch_size == "auto":
        batch_size = max(1, _TOKENS_AT_ONCE // prompts.tokens.shape[1])
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is out of range: expected at least 1 or 'auto'")
    with torch.no_grad():
        direction = _direction(model, right_ids, wrong_ids)
        pieces = []
        for start in cli.progress(range(0, n, batch_size), "attribution"):
            rows = slice(start, start + batch_size)
            pieces.append(_attributed(model, prompts, reads, direction, rows, neurons))
    joined = {name: torch.cat([piece[name] for piece in pieces], -1) for name in pieces[0]}
    shown = {
        id for ids in (right_ids, wrong_ids) if ids is not None for id in ids[ids >= 0].tolist()
    }
    own = joined.pop("logit_diff")
    call = (
        f"attribution(model, ..., pos={metric.pos if not isinstance(metric.pos, Tensor) else '...'}"
        f", neurons={neurons}, prepend_bos={prepend_bos})"
    )
    return Attribution(
        str_tokens=prompts.str_tokens,
        prepend_bos=prompts.prepend_bos,
        positions=tuple(
            tuple(row[own_tokens].nonzero()[:, 0].tolist())
            for row, own_tokens in zip(reads, prompts.attention_mask.cpu(), strict=True)
        ),
        answers=right_ids.expand(n, -1),
        wrong=None if wrong_ids is None else wrong_ids.expand(n, -1),
        strings={id: token_string(model, id) for id in sorted(shown)},
        logit_diff=own,
        views={name: _effects(model, name, values) for name, values in joined.items()},
        provenance=report.Provenance.of(model, call),
    )


@dataclass(frozen=True)
class _Direction:
    """What the final residual is read along, per example (or one row for all).

    Attributes:
        unembed: difference of the columns of W_U, in what is computed in.
        residual: the same seen from the residual stream: times the gain, centred.
        shift, bias: what the layer norm's shift and `b_U` add.
    """

    unembed: Float[Tensor, "#example d_model"]
    residual: Float[Tensor, "#example d_model"]
    shift: Float[Tensor, "#example"]
    bias: Float[Tensor, "#example"]

    def rows(self, rows: slice) -> _Direction:
        """Of some examples."""
        if len(self.unembed) == 1:
            return self
        return _Direction(
            self.unembed[rows], self.residual[rows], self.shift[rows], self.bias[rows]
        )


def _direction(
    model: HookedGPT2, right: Int[Tensor, "#example k"], wrong: Int[Tensor, "#example w"] | None
) -> _Direction:
    exact = torch.promote_types(model.dtype, torch.float32)

    def mean(ids: Tensor, of: Tensor) -> Tensor:
        """The mean over each row's ids (-1 is none) of what `of` has for them."""
        ids = ids.to(model.device)
        there = (ids >= 0).to(exact)
        weight = (there / there.sum(-1, keepdim=True)).view(*ids.shape, *(1,) * (of.ndim - 1))
        return (of[ids.clamp(min=0)].to(exact) * weight).sum(1)

    unembed, bias = (mean(right, of) for of in (model.W_U.T, model.b_U))
    if wrong is not None:
        # Rows of one for all and of one per example go together.
        unembed, bias = unembed - mean(wrong, model.W_U.T), bias - mean(wrong, model.b_U)
    gained = unembed * model.weight("ln_f.weight").to(exact)
    return _Direction(
        unembed=unembed,
        # Layer norm subtracts the mean of what it reads; the direction can do it for all parts.
        residual=gained - gained.mean(-1, keepdim=True),
        shift=unembed @ model.weight("ln_f.bias").to(exact),
        bias=bias,
    )


def _attributed(
    model: HookedGPT2,
    prompts: Prompts,
    reads: Bool[Tensor, "example pos"],
    direction: _Direction,
    rows: slice,
    neurons: bool,
) -> dict[str, Tensor]:
    """By view, `[*axes example]` for some of the examples, on the CPU; and `logit_diff`."""
    n_layers, reads = model.cfg.n_layers, reads[rows]
    along = direction.rows(rows)
    exact, d = along.unembed.dtype, along.residual
    columns = reads.any(0).nonzero()[:, 0]
    # Where a function replaces what heads wrote, that is what they wrote.
    replaced = {
        layer
        for layer in range(n_layers)
        if model.hook_dict[f"blocks.{layer}.attn.hook_result"].fwd_hooks
    }
    lens = [f"blocks.{layer}.hook_resid_{at}" for layer in range(n_layers) for at in ("pre", "mid")]
    lens.append(f"blocks.{n_layers - 1}.hook_resid_post")
    wrote = ["hook_embed", "hook_pos_embed"]
    wrote += [
        f"blocks.{layer}.hook_{out}" for layer in range(n_layers) for out in ("attn_out", "mlp_out")
    ]
    names = [*lens, *wrote, "ln_final.hook_scale", "ln_final.hook_normalized"]
    heads = {
        layer: f"blocks.{layer}.attn.hook_{'result' if layer in replaced else 'z'}"
        for layer in range(n_layers)
    }
    posts = [f"blocks.{layer}.mlp.hook_post" for layer in range(n_layers)] if neurons else []
    _, cache = model.run_with_cache(
        prompts.tokens[rows],
        return_type=None,
        attention_mask=prompts.attention_mask[rows],
        names_filter=[*names, *heads.values(), *posts],
        pos_slice=None if len(columns) == reads.shape[1] else columns,
    )
    mean = reads[:, columns].to(model.device, exact)
    mean = mean / mean.sum(-1, keepdim=True)
    weight = mean / cache["ln_final.hook_scale"][..., 0].to(exact)

    def read(name: str) -> Tensor:
        """What is at a point, divided by the scale and averaged over positions: `example ...`."""
        return torch.einsum("bp,bp...->b...", weight, cache[name].to(exact))

    def of_residual(name: str) -> Tensor:
        return (read(name) * d).sum(-1)

    shift, bias = (one.expand(len(reads)) for one in (along.shift, along.bias))
    found = {
        "component": [*map(of_residual, wrote), shift, bias],
        "head": [],
        "attn_bias": [],
        "neuron": [],
        "mlp_bias": [],
        "lens": [of_residual(name) + shift + bias for name in lens],
    }
    for layer, name in heads.items():
        if layer in replaced:
            found["head"].append(torch.einsum("bhm,bm->hb", read(name), d.expand(len(reads), -1)))
        else:
            seen = torch.einsum("hem,bm->bhe", model.W_O[layer].to(exact), d)
            found["head"].append((read(name) * seen).sum(-1).T)
        found["attn_bias"].append(weight.sum(1) * (d @ model.b_O[layer].to(exact)))
    for layer, name in enumerate(posts):
        found["neuron"].append((read(name) * (d @ model.W_out[layer].to(exact).T)).T)
        found["mlp_bias"].append(weight.sum(1) * (d @ model.b_out[layer].to(exact)))
    normalised = torch.einsum("bp,bpd->bd", mean, cache["ln_final.hook_normalized"].to(exact))
    gained = normalised * model.weight("ln_f.weight").to(exact)
    own = (gained * along.unembed).sum(-1) + shift + bias
    stacked = {name: torch.stack(parts).cpu() for name, parts in found.items() if parts}
    return {**stacked, "logit_diff": own.cpu()}


def _effects(model: HookedGPT2, view: str, values: Tensor) -> Effects:
    """Contributions on the axes of a view."""
    cfg = model.cfg
    layers = tuple(map(str, range(cfg.n_layers)))
    outs = [f"{layer}.{out}" for layer in layers for out in ("attn_out", "mlp_out")]
    points = [f"{layer}.resid_{at}" for layer in layers for at in ("pre", "mid")]
    labels: dict[str, dict[str, tuple[str, ...]]] = {
        "component": {"component": ("embed", "pos_embed", *outs, SHIFT, BIAS)},
        "head": {"layer": layers, "head": tuple(map(str, range(cfg.n_heads)))},
        "attn_bias": {"layer": layers},
        "neuron": {"layer": layers, "neuron": tuple(map(str, range(cfg.d_mlp)))},
        "mlp_bias": {"layer": layers},
        "lens": {"point": (*points, f"{layers[-1]}.resid_post")},
    }
    return Effects(
        name=view,
        axes=tuple(labels[view]),
        labels=labels[view],
        values=values,
        base=torch.zeros_like(values[(0,) * (values.ndim - 1)]),
        metric="contribution",
    )


# ------------------------------------------------------------------ checking arguments


def _prompts(
    model: HookedGPT2,
    tokens: AnyPrompts | PromptPair,
    answers: Any,
    wrong: Any,
    attention_mask: Tensor | None,
    prepend_bos: bool,
) -> tuple[Prompts, Any, Any]:
    if not isinstance(tokens, PromptPair):
        if answers is None:
            raise ValueError("answers is missing: name the next token whose logit is attributed")
        return Prompts.of(model, tokens, attention_mask, prepend_bos), answers, wrong
    if answers is not None or wrong is not None:
        raise ValueError("a PromptPair brings its answers: leave out answers and wrong")
    if attention_mask is not None:
        raise ValueError("a PromptPair brings its own mask: leave out attention_mask")
    if tokens.answers is None:
        raise ValueError("this PromptPair has no answers: make it with some")
    prompts = Prompts(
        tokens.clean.to(model.device),
        tokens.attention_mask.to(model.device),
        tokens.str_tokens,
        tokens.prepend_bos,
    )
    return prompts, tokens.answers, tokens.wrong


def _ids(model: HookedGPT2, given: Any, n: int, what: str) -> Any:
    """What `logit_diff` takes, of text or ids."""
    return given if isinstance(given, Tensor) else answer_ids(model, given, n, what)


# ------------------------------------------------------------------ the result


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """What each part adds to a logit difference, in nats, per example.

    Attributes:
        str_tokens: the tokens of each prompt, without padding.
        prepend_bos: whether `<|endoftext|>` was put before the text; None where ids were given.
        positions: which positions of each prompt were read, from 0.
        answers, wrong: ids, `example k`, -1 for none; `wrong` is None if the logit was taken alone.
        strings: the token string of every id in `answers` and `wrong`.
        logit_diff: of the model itself.
        views: by name, contributions on their axes: "component" (the embeddings, each layer's
            attention and MLP, the final layer norm's shift, the unembedding's bias); "head" and
            "attn_bias" (these two sum to the attention's components); "neuron" and "mlp_bias" (to
            the MLPs'); "lens", the logit difference that the residual stream had on the way.
        provenance: model, dtype, versions, the call.
    """

    str_tokens: tuple[tuple[str, ...], ...]
    prepend_bos: bool | None
    positions: tuple[tuple[int, ...], ...]
    answers: Int[Tensor, "example answer"]
    wrong: Int[Tensor, "example wrong"] | None
    strings: Mapping[int, str]
    logit_diff: Float[Tensor, " example"]
    views: Mapping[str, Effects]
    provenance: report.Provenance

    def __getitem__(self, view: str) -> Effects:
        """One of `views`.

        Raises:
            KeyError: there is none of that name; the message lists those there are.
        """
        if view not in self.views:
            from hooks.names import nearest

            raise KeyError(
                f"this attribution has no view {view!r}.{nearest(view, self.views)} It has "
                f"{', '.join(self.views)}"
            )
        return self.views[view]

    @property
    def remainder(self) -> Float[Tensor, " example"]:
        """The logit difference less the sum of all components: rounding, and what functions that
        listened on the model added to the residual stream."""
        return self.logit_diff - self.views["component"].values.sum(0)

    def __repr__(self) -> str:
        n, mean = len(self.logit_diff), float(self.logit_diff.mean())
        lines = [
            f"Attribution({self.provenance.model}, {n} prompt{'s'[: n != 1]}, "
            f"{views.asked(self)}: {mean:.4g})"
        ]
        for name in ("component", "head", "neuron"):
            if name in self.views:
                lines.append(f"  {name:10} {views.best(self.views[name], 3)}")
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """One row per part and view.

        Columns: `view`; `component`, `point`, `layer`, `head`, `neuron`, the number of each on its
        axis (empty where the view has no such axis) and its label (`component_label`, ...); then of
        the examples `value` (mean contribution in nats), `stderr` and `examples`, how many.
        """
        from analyses._views.effects import concatenated

        frame = concatenated(self.views)
        # Nothing was edited: what `Effects` calls a change is the value itself.
        return frame.drop(columns=["metric", "change", "change_stderr"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON; neurons as means over examples."""
        return {
            "prompts": [list(row) for row in self.str_tokens],
            "prepend_bos": self.prepend_bos,
            "positions": [list(row) for row in self.positions],
            "answers": views.tokens_of(self, self.answers),
            "wrong": None if self.wrong is None else views.tokens_of(self, self.wrong),
            "logit_diff": self.logit_diff.tolist(),
            "remainder": self.remainder.tolist(),
            "views": {
                name: effects.to_dict()
                if name != "neuron"
                else {"axes": list(effects.axes), "mean": effects.mean.tolist()}
                for name, effects in self.views.items()
            },
            "provenance": self.provenance.to_dict(),
        }

    def plot(self, view: str = "head") -> go.Figure:
        """A picture of one view: bars of the components and of the 30 strongest neurons, a heat
        map of the heads (blue below zero, red above), the lens as a curve. Averaged over examples.

        Raises:
            KeyError: there is no such view.
        """
        return views.figure(self, view)

    def to_html(
        self, path: str | PathLike[str], *, model: HookedGPT2 | None = None, top_k: int = 10
    ) -> None:
        """Write a page with tokens, pictures, tables and provenance. It needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
            top_k: how many of the strongest heads and neurons the tables have.
        """
        result = self
        if model is not None:
            result = replace(self, provenance=self.provenance.with_weights(model))
        views.page([("", result)], top_k).write(path)


# ------------------------------------------------------------------ the command line


def main(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Prompt files in UTF-8, one prompt each; - is standard input. Or leave them out "
            "and name a --task.",
            show_default=False,
        ),
    ] = None,
    model: cli.Model = None,
    answer: pair_options.Answer = None,
    wrong: pair_options.Wrong = None,
    task: pair_options.TaskName = None,
    n: pair_options.N = None,
    seed: pair_options.Seed = None,
    positions: Annotated[
        str,
        typer.Option(help="last, all, or a list such as 0,3,-1: averaged.", metavar="POSITIONS"),
    ] = "last",
    top_k: Annotated[
        int, typer.Option(help="How many components, heads and neurons to show.", metavar="N")
    ] = 10,
    neurons: Annotated[bool, typer.Option(help="Attribute to single neurons too.")] = True,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """Which parts of the model wrote the answer into the residual stream?

    Direct logit attribution: the logit of the answer (minus that of a wrong one) as a sum of what
    the embeddings, heads, MLPs and neurons wrote (Elhage et al. 2021).
    """
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=files or ())
    if top_k < 1:
        raise cli.CommandError(f"--top-k is {top_k}: expected at least 1")
    if task is not None:
        request = pair_options.PairRequest.checked(files, answer, wrong, task, n, seed)
        prompts = []
    else:
        request, prompts = None, _read_prompts(files, answer, n, seed)
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses.attribution import attribution
    from analyses.logit_lens import parse_positions

    where = parse_positions(positions)
    loaded = cli.load_model(choice, device=device, dtype=dtype)
    options: Any = {"pos": None if where == "all" else where, "neurons": neurons}
    named: list[tuple[str, Attribution]] = []
    if request is not None:
        pair = request.load(loaded, prepend_bos=prepend_bos)
        named.append((pair.source, attribution(loaded, pair, **options)))
    for prompt in prompts:
        with cli.about(prompt.source):
            tokens = loaded.tokenize(prompt.text, prepend_bos=prepend_bos)
            found = attribution(loaded, tokens, answer, wrong, **options)
        named.append((prompt.source, found))
    if html or json_path:
        call = cli.call("analyses.attribution", sys.argv[1:])
        provenance = named[0][1].provenance.with_weights(loaded, call)
        named = [(source, replace(found, provenance=provenance)) for source, found in named]
    cli.write_outputs(
        console,
        html=html,
        page=lambda: views.page(named, top_k),
        csv=csv,
        frame=lambda: cli.by_source((source, found.to_frame()) for source, found in named),
        json=json_path,
        data=lambda: [{"source": source} | found.to_dict() for source, found in named],
    )
    for source, found in named:
        console.print()
        console.print(source, style="bold", soft_wrap=True)
        views.show(found, console, top_k)


def _read_prompts(
    files: Sequence[str] | None, answer: Sequence[str] | None, n: int | None, seed: int | None
) -> list[cli.Prompt]:
    """The prompts of a call without --task."""
    if not files:
        raise cli.CommandError("expected prompt files, or --task")
    if not answer:
        raise cli.CommandError('--answer is missing: name a token, for example --answer " Mary"')
    for option, value in (("--n", n), ("--seed", seed)):
        if value is not None:
            raise cli.CommandError(f"{option} goes with --task, not with prompt files")
    return cli.read_prompts(files)


if __name__ == "__main__":
    cli.run(main, __spec__)
