r"""Circuits in the weights: what could each part of the model do, whatever the prompt?

A head reads and writes the residual stream through two matrices of low rank: `QK = W_Q W_K^T`
says who attends to whom, `OV = W_V W_O` what is passed on. Between any two parts lie virtual
weights, `W_out W_in`. All of it follows from the weights alone, without running the model.

1. **Composition** (`composition`): for all pairs of heads, how much of what the earlier one writes
   does the later one read, for its queries, keys or values? As a ratio of Frobenius norms, beside
   what random matrices give (the root of 1/d_model, exactly) and how far above that it is.
2. **Copying** (`head_eigenvalues`): the eigenvalues of every head's full OV circuit. Positive ones
   stand for tokens that raise their own logits: their sum over the sum of magnitudes is 1 for a
   head that copies. Likewise of QK, for heads that attend to what is like the query.
3. **Tokens** (`token_circuit`, `position_circuit`, `full_circuit`): a head's full OV and QK circuit
   between tokens of your choice, and between positions.
4. **Singular vectors** (`singular_vectors`) of OV, QK and MLP weights, read as tokens.
5. **Neurons** (`neuron_directions`): what neurons answer to and what they raise, as tokens.
6. **Virtual weights** (`virtual_weights`, `virtual_head`) between heads, MLPs, neurons, embeddings
   and logits.

What is left out, always: biases, and the division by layer norm's scale. Of scores that loses
nothing but `b_Q` and `b_K` terms: `b_Q` adds a number per key, `b_K` one per query, to which the
softmax is blind. The gains of layer norms count where they are folded into the weights: give
`model.processed()`. Results say which it was. In GPT-2 the first MLP remakes the embeddings, so
what tokens are at the input of later heads is closer to `embedding="mlp0"` than to "plain".

Composition, singular vectors and eigenvalues of heads need attention weights only:
`AttentionLayers` holds them, from tensors, from a state dict or from a folder. `FactoredMatrix`
keeps `A @ B` as its factors, so nothing `d_vocab x d_vocab` is ever made; `model.QK`, `model.OV`
and `model.blocks[i].attn.QK` are such.

Sources: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Geva et al. 2021,
"Transformer Feed-Forward Layers Are Key-Value Memories", arXiv 2012.14913; Millidge & Black 2022,
"The Singular Value Decompositions of Transformer Weight Matrices are Highly Interpretable".
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyses import cli
from analyses._views import circuits as views
from analyses.tasks import unknown

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    from analyses._circuits.composition import Composition, composition
    from analyses._circuits.directions import SingularVectors, singular_vectors
    from analyses._circuits.eigenvalues import HeadEigenvalues, head_eigenvalues
    from analyses._circuits.neurons import NeuronDirections, neuron_directions
    from analyses._circuits.result import WeightResult
    from analyses._circuits.source import EMBEDDINGS
    from analyses._circuits.tokens import (
        TokenCircuit,
        full_circuit,
        position_circuit,
        token_circuit,
    )
    from analyses._circuits.virtual import VirtualWeights, virtual_head, virtual_weights
    from interp import AttentionLayers, FactoredMatrix
    from interp.attention_layers import HeadsUnknown

__all__ = [
    "AttentionLayers",
    "Composition",
    "FactoredMatrix",
    "HeadEigenvalues",
    "NeuronDirections",
    "SingularVectors",
    "TokenCircuit",
    "VirtualWeights",
    "composition",
    "full_circuit",
    "head_eigenvalues",
    "neuron_directions",
    "position_circuit",
    "singular_vectors",
    "token_circuit",
    "virtual_head",
    "virtual_weights",
]

# What each question takes; those in the second list must be given.
QUESTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "composition": ((), ()),
    "copying": (("matrix", "embedding"), ()),
    "tokens": (("head", "token", "to", "matrix", "embedding"), ("head", "token")),
    "positions": (("head",), ("head",)),
    "singular": (("matrix", "head", "layer"), ()),
    "neurons": (("layer", "neurons"), ("layer",)),
    "virtual": (("writer", "reader"), ("writer", "reader")),
}

# So many pairs of heads, heads or connections are listed where nothing else is said.
_USUAL = 10

# ------------------------------------------------------------------ the command line


def main(
    what: Annotated[
        str,
        typer.Argument(
            metavar="[QUESTION]", help=f"One of {', '.join(QUESTIONS)}.", show_default=True
        ),
    ] = "composition",
    model: cli.Model = None,
    attention: Annotated[
        str | None,
        typer.Option(
            help="Attention weights alone, instead of a model: a folder or a file of weights. For "
            "composition, copying, singular, virtual.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    n_heads: Annotated[
        int | None,
        typer.Option(
            help="Heads per layer of --attention, where no config.json beside it says so.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    processed: Annotated[
        bool,
        typer.Option(
            "--processed", help="Fold layer norms into the weights and centre them, first."
        ),
    ] = False,
    head: Annotated[
        str | None,
        typer.Option(
            help="Of tokens, positions, singular: such as 3.1.", metavar="HEAD", show_default=False
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            help="Of neurons, and of singular with W_in or W_out.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    matrix: Annotated[
        str | None,
        typer.Option(
            help="OV or QK (copying, tokens, singular), W_in or W_out (singular); OV if left out.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            help="What stands for a token: plain, or mlp0 (what the first MLP makes of it too); of "
            "copying also residual. Left out: plain; of copying both.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option(
            help='Of tokens: one such as " Mary"; given repeatedly.',
            metavar="TOKEN",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="Of tokens: the columns; the same tokens if left out.",
            metavar="TOKEN",
            show_default=False,
        ),
    ] = None,
    neurons: Annotated[
        str | None,
        typer.Option(
            help="Of neurons: such as 3,17; the largest if left out.",
            metavar="LIST",
            show_default=False,
        ),
    ] = None,
    writer: Annotated[
        str | None,
        typer.Option(
            help="Of virtual: 3.1, 3.mlp, 3.mlp.7, embed or pos_embed.",
            metavar="PART",
            show_default=False,
        ),
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(
            help="Of virtual: 3.1.q, 3.1.k, 3.1.v, 3.mlp, 3.mlp.7 or logits.",
            metavar="PART",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="How many to list: pairs of heads, heads, tokens, directions, neurons (of chosen "
            "neurons: tokens), connections. Left out: 10 (tokens: 8), or all where there are "
            "fewer.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """Circuits in the weights: what could each part of the model do, whatever the prompt?

    composition: which heads read what others write. copying: eigenvalues of heads. tokens,
    positions: a head's full circuit between some. singular: singular vectors as tokens. neurons:
    what they answer to and raise. virtual: the weights between any two parts.
    """
    cli.check_outputs(html=html, csv=csv, json=json_path)
    options: dict[str, Any] = {
        "head": head,
        "layer": layer,
        "matrix": matrix,
        "embedding": embedding,
        "token": token,
        "to": to,
        "neurons": neurons,
        "writer": writer,
        "reader": reader,
    }
    _check_options(what, options, top_k)
    if attention is not None and (model is not None or processed):
        other = "--model" if model is not None else "--processed"
        raise cli.CommandError(f"--attention gives attention weights alone: leave out {other}")
    if attention is None and n_heads is not None:
        raise cli.CommandError("--n-heads goes with --attention")
    given = {name: value for name, value in options.items() if value is not None}
    if neurons is not None:
        given["neurons"] = _numbers(neurons)
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    call = cli.call("analyses.circuits", sys.argv[1:])
    # Under its own name: here it is __main__, and has no torch.
    from analyses import circuits as own

    if attention is not None:
        weights: Any = own.attention_weights(attention, n_heads, device, dtype)
        console.print(f"attention weights: {cli.printable_path(attention)}", style="bold")
    else:
        choice = cli.choose_model(model)
        console.print(str(choice), style="bold", soft_wrap=True)
        weights = cli.load_model(choice, device=device, dtype=dtype)
        if processed:
            weights = weights.processed()
    found = own.answer(weights, what, given, top_k)
    if attention is None and (html or json_path):
        found = found.hashed(weights, call)
    listed = isinstance(found, own.Composition | own.HeadEigenvalues)
    view = found.view(top_k or _USUAL) if listed else found.view()
    cli.write_outputs(
        console,
        html=html,
        page=lambda: views.page([view], found.provenance),
        csv=csv,
        frame=found.to_frame,
        json=json_path,
        data=found.to_dict,
    )
    views.show(view, console)


def attention_weights(path: str, n_heads: int | None, device: str, dtype: str) -> AttentionLayers:
    """Attention weights as the command line names them; see `AttentionLayers.from_folder`.

    Raises:
        CommandError: nothing says how many heads a layer has. Others: as that.
    """
    try:
        return AttentionLayers.from_folder(path, n_heads, device=device, dtype=dtype)
    except HeadsUnknown as error:
        raise cli.CommandError(f"{error.why}: give --n-heads") from None


def answer(weights: Any, what: str, given: dict[str, Any], top_k: int | None) -> WeightResult:
    """The result of one question of the command line.

    Args:
        weights: a model or attention weights.
        what: one of `QUESTIONS`.
        given: the options of it that were given, by name.
        top_k: how many to list; None: the usual number, or all where there are fewer.

    Raises:
        ValueError, IndexError, TypeError: as the function of the question.
    """
    matrix, embedding = given.get("matrix", "OV"), given.get("embedding")
    if what == "copying" and embedding in EMBEDDINGS and isinstance(weights, AttentionLayers):
        raise cli.CommandError(
            f"--embedding {embedding} needs embeddings, which --attention does not read: give "
            "--embedding residual, or --model"
        )
    head, layer = given.get("head"), given.get("layer")
    if what == "singular":
        place = layer if matrix in ("W_in", "W_out") else head
        if place is None:
            needed = "--layer" if matrix in ("W_in", "W_out") else "--head"
            raise cli.CommandError(f"singular of {matrix} needs {needed}")
        return singular_vectors(weights, matrix, place, n=top_k)
    answers: dict[str, Callable[[], WeightResult]] = {
        "composition": lambda: composition(weights),
        "copying": lambda: head_eigenvalues(weights, matrix, embedding),
        "tokens": lambda: token_circuit(
            weights,
            head,
            given["token"],
            given.get("to"),
            circuit=matrix,
            embedding=embedding or "plain",
            top_k=top_k,
        ),
        "positions": lambda: position_circuit(weights, head),
        "neurons": lambda: (
            neuron_directions(weights, layer or 0, n=top_k)
            if given.get("neurons") is None
            else neuron_directions(weights, layer or 0, given["neurons"], top_k=top_k)
        ),
        "virtual": lambda: virtual_weights(
            weights, given["writer"], given["reader"], top_k=top_k or _USUAL
        ),
    }
    return answers[what]()


def _check_options(what: str, options: dict[str, Any], top_k: int | None) -> None:
    if what not in QUESTIONS:
        raise cli.CommandError(unknown("question", what, tuple(QUESTIONS)))
    takes, needs = QUESTIONS[what]
    for name, value in options.items():
        if value is not None and name not in takes:
            fit = [question for question, (some, _) in QUESTIONS.items() if name in some]
            raise cli.CommandError(f"--{name} is not of {what}: it goes with {', '.join(fit)}")
        if value is None and name in needs:
            raise cli.CommandError(f"{what} needs --{name}")
    if top_k is not None and top_k < 1:
        raise cli.CommandError(f"--top-k is {top_k}: expected at least 1")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise cli.CommandError(f"--neurons {text!r}: expected numbers such as 3 or 3,17") from None


if __name__ == "__main__":
    cli.run(main, __spec__)
