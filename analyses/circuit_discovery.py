r"""Circuit discovery: which connections of the model do the work, and are they enough?

The residual stream is a sum, so the model is a graph: an *edge* leads from what each part writes (a
*sender*: the embeddings, a head, an MLP) to what each later part reads (a *receiver*: the queries,
keys or values of a head, an MLP, the logits). A *circuit* is a set of edges, or of nodes.

1. **Run it** (`run_circuit`): along the edges of the circuit senders send what they write now,
   along all others what stands in their place: what they wrote in the corrupted run, a mean over
   reference prompts, what they wrote on one of these, or zeros. The metric F(C) of that, next to
   F(M) of the whole model, is how *faithful* the circuit is.
2. **Find it**: by the largest scores of edge attribution (`threshold_circuit`, and for all sizes
   `faithfulness_curve`); by leaving out edges from the logits down that change the metric by less
   than a threshold (`acdc`); by leaving out the least needed again and again (`greedy_circuit`).
3. **Judge it**: `completeness` (does it fall as the model does, without any set of its nodes?) and
   `minimality` (is each of its nodes needed?) as in the IOI paper; `compare`, `roc` against a
   circuit that is known (`published_circuit`).

Circuits are values (`Circuit`, `NodeCircuit`): made from names, combined as sets, saved and loaded,
printed, drawn.

    scores = edge_attribution(model, pair, steps=5)
    circuit = threshold_circuit(scores, k=100)
    run_circuit(model, circuit, pair)

Heads own no bias: a layer's b_O is there whatever is left out, while an MLP's b_out is part of what
it writes and goes with it ("zero" leaves nothing of it). Hooks of the toolkit that are active are
refused; a function registered by PyTorch's own `register_forward_hook` is not noticed. With
"mean" and "zero" the embeddings too are replaced where an edge from the input is outside (a
`NodeCircuit` keeps them).

Sources: Conmy et al., "Towards Automated Circuit Discovery for Mechanistic Interpretability"
(2023), arXiv 2304.14997, section 3 (ACDC); Syed, Rager and Conmy 2023, arXiv 2310.10348 (EAP);
Hanna, Pezzelle and Belinkov 2024, arXiv 2403.17806 (EAP-IG, faithfulness over sizes); Wang et al.,
"Interpretability in the Wild" (2022), arXiv 2211.00593, sections 2 and 4 (knock-outs, faithfulness,
completeness, minimality).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from analyses import cli, pair_options, report
from analyses._views import circuit_discovery as views
from analyses.tasks import unknown

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    from analyses._discovery.circuit import AnyCircuit, Circuit, NodeCircuit, load_circuit
    from analyses._discovery.comparison import (
        ROC,
        Comparison,
        compare,
        roc,
        roc_of_circuits,
        scores_of,
    )
    from analyses._discovery.criteria import (
        Completeness,
        Minimality,
        completeness,
        minimality,
    )
    from analyses._discovery.faithfulness import Ablation, Faithfulness, run_circuit
    from analyses._discovery.methods import (
        acdc,
        faithfulness_curve,
        greedy_circuit,
        threshold_circuit,
    )
    from analyses._discovery.names import Edge, Node, Shape
    from analyses._discovery.published import published_circuit
    from analyses._discovery.result import Discovery, DiscoveryInterrupted
    from analyses._edges import Part
    from analyses.edge_attribution import edge_attribution
    from analyses.metrics import AnyMetric
    from analyses.pairs import PromptPair
    from interp import HookedGPT2

__all__ = [
    "ABLATIONS",
    "LEVELS",
    "METHODS",
    "ROC",
    "AnyCircuit",
    "Circuit",
    "Comparison",
    "Completeness",
    "Discovery",
    "DiscoveryInterrupted",
    "Edge",
    "Faithfulness",
    "Minimality",
    "Node",
    "NodeCircuit",
    "Part",
    "Shape",
    "acdc",
    "compare",
    "completeness",
    "discover",
    "faithfulness_curve",
    "greedy_circuit",
    "load_circuit",
    "minimality",
    "published_circuit",
    "roc",
    "roc_of_circuits",
    "run_circuit",
    "scores_of",
    "threshold_circuit",
]

METHODS = ("acdc", "eap", "eap-ig", "greedy")
LEVELS = ("edges", "nodes")
ABLATIONS = ("patch", "zero", "mean", "resample")
_STEPS = 5
# Which methods each option is of.
_TAKEN_BY = {
    "threshold": ("acdc", "eap", "eap-ig"),
    "k": ("eap", "eap-ig", "greedy"),
    "share": ("greedy",),
    "steps": ("eap-ig",),
    "at_once": ("greedy",),
}


# ------------------------------------------------------------------ the question


def discover(
    model: HookedGPT2,
    pair: PromptPair,
    method: Literal["acdc", "eap", "eap-ig", "greedy"] = "acdc",
    *,
    threshold: float | None = None,
    k: int | None = None,
    share: float | None = None,
    steps: int | None = None,
    level: Literal["edges", "nodes"] = "edges",
    metric: AnyMetric | None = None,
    ablation: Ablation = "patch",
    at_once: int | None = None,
    progress: bool = True,
) -> Discovery:
    """Find a circuit by one of the methods, and run it.

    Args:
        model: what is looked into; stays as it is.
        pair: the prompts.
        method: "acdc" (`acdc`, with `threshold`), "eap" or "eap-ig" (`edge_attribution` and
            `threshold_circuit`, with `k` or `threshold`), "greedy" (`greedy_circuit`, with `k` or
            `share`).
        threshold, k, share: how far to go.
        steps: of "eap-ig": points of integrated gradients, by default 5.
        level: "edges" or "nodes".
        metric: by default the divergence from the clean run for "acdc", otherwise the pair's.
        ablation: what stands in place of what is not in the circuit, as in `run_circuit`. Scores of
            edge attribution are of "patch".
        at_once: of "greedy", by default 1.
        progress: show bars on standard error, where that is a terminal.

    Returns:
        the circuit, how it was found, and what it keeps of the pair's metric.

    Raises:
        ValueError: an unknown method, an option that does not go with it or is missing, or what the
            functions named refuse.
    """
    if method not in METHODS:
        raise ValueError(unknown("method", str(method), METHODS))
    given = {
        "threshold": threshold, "k": k, "share": share, "steps": steps, "at_once": at_once,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None and method not in _TAKEN_BY[name]:
            raise ValueError(
                f"{name} does not go with method {method!r}: it goes with "
                f"{', '.join(_TAKEN_BY[name])}"
            )
    ends = [name for name in ("threshold", "k", "share") if method in _TAKEN_BY[name]]
    if not any(given[name] is not None for name in ends):
        raise ValueError(f"method {method!r} needs {' or '.join(ends)}")
    steps, at_once = _STEPS if steps is None else steps, 1 if at_once is None else at_once
    if method == "acdc":
        return acdc(
            model, pair, 0.0 if threshold is None else threshold, metric=metric, level=level,
            ablation=ablation, progress=progress,
        )  # fmt: skip
    if method == "greedy":
        return greedy_circuit(
            model, pair, k=k, share=share, level=level, metric=metric, ablation=ablation,
            at_once=at_once, progress=progress,
        )  # fmt: skip
    scores = edge_attribution(
        model, pair, metric=metric, steps=steps if method == "eap-ig" else None
    )
    circuit = threshold_circuit(scores, k=k, threshold=threshold, level=level)
    whole = run_circuit(
        model, {"found": circuit}, pair, metric, ablation=ablation, progress=progress
    )
    call = (
        f"discover(model, ..., {method!r}, k={k}, threshold={threshold}, steps={steps}, "
        f"level={level!r}, ablation={ablation!r})"
    )
    return Discovery(
        circuit, circuit.method, scores.metric, (), 1, whole, report.Provenance.of(model, call)
    )


# ------------------------------------------------------------------ the command line


def main(
    files: pair_options.PairFiles = None,
    model: cli.Model = None,
    answer: pair_options.Answer = None,
    wrong: pair_options.Wrong = None,
    task: pair_options.TaskName = None,
    n: pair_options.N = None,
    seed: pair_options.Seed = None,
    corruption: pair_options.Corruption = None,
    template: pair_options.Template = None,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.", metavar="NAME")] = "acdc",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="acdc: leave out what changes the divergence from the clean run by less (0.01 "
            "where nothing is said). eap, eap-ig: keep scores at least so large.",
            metavar="X",
            show_default=False,
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "--k", help="eap, eap-ig, greedy: how many edges (or nodes).", metavar="N",
            show_default=False,
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="greedy: keep so much of the metric, such as 0.8.",
            metavar="X",
            show_default=False,
        ),
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(
            help="greedy: leave out so many in a round (1).", metavar="N", show_default=False
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help=f"eap-ig: points of integrated gradients ({_STEPS}).", metavar="N",
            show_default=False,
        ),
    ] = None,
    level: Annotated[str, typer.Option(help="edges or nodes.", metavar="NAME")] = "edges",
    ablation: Annotated[
        str,
        typer.Option(
            help="What stands in place of the rest: patch (the corrupted run), zero, mean or "
            "resample (of the corrupted prompts).",
            metavar="NAME",
        ),
    ] = "patch",
    reference: Annotated[
        str | None,
        typer.Option(
            help="Compare with the circuit in this file, or with a published one: ioi.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(help="Write the circuit to a file, to be loaded again.", metavar="PATH",
                     show_default=False),
    ] = None,
    top_k: Annotated[int, typer.Option(help="How many edges to list.", metavar="N")] = 20,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> int | None:  # fmt: skip
    """Which connections do the work, and how much of the answer do they keep alone?

    ACDC (Conmy et al. 2023), edge attribution (EAP, EAP-IG) with a threshold, or greedy removal;
    the circuit is then run with all other edges replaced.
    """
    request = pair_options.PairRequest.checked(
        files, answer, wrong, task, n, seed, corruption, template
    )
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=request.inputs)
    _check_save(save, (html, csv, json_path), request.inputs)
    for what, given, known in (
        ("method", method, METHODS), ("level", level, LEVELS), ("ablation", ablation, ABLATIONS),
    ):  # fmt: skip
        if given not in known:
            raise cli.CommandError(unknown(what, given, known))
    for option, value in (("--top-k", top_k), ("--steps", steps), ("--at-once", at_once)):
        if value is not None and value < 1:
            raise cli.CommandError(f"{option} is {value}: expected at least 1")
    if k is not None and k < 0:
        raise cli.CommandError(f"--k is {k}: expected at least 0")
    options = {
        "threshold": threshold, "k": k, "share": share, "steps": steps, "at_once": at_once,
    }  # fmt: skip
    for name, value in options.items():
        if value is not None and method not in _TAKEN_BY[name]:
            raise cli.CommandError(
                f"--{name.replace('_', '-')} does not go with --method {method}: it goes with "
                f"{', '.join(_TAKEN_BY[name])}"
            )
    if method == "acdc" and threshold is None:
        threshold = 0.01
    if method in ("eap", "eap-ig") and (k is None) == (threshold is None):
        raise cli.CommandError(f"--method {method} takes either --k or --threshold")
    if method == "greedy" and k is None and share is None:
        raise cli.CommandError("--method greedy takes --k or --share: where to stop")
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses import circuit_discovery as own
    from analyses._discovery.published import PUBLISHED

    asked: Any = {"method": method, "level": level, "ablation": ablation}
    loaded = cli.load_model(choice, device=device, dtype=dtype)
    known: Any = None
    if reference is not None:
        known = (
            own.published_circuit(reference)
            if reference in PUBLISHED
            else own.load_circuit(reference)
        )
        if known.shape != own.Shape.of(loaded):
            raise cli.CommandError(
                f"--reference {cli.printable_path(reference)} is of a model with {known.shape}; "
                f"{choice.name} has {own.Shape.of(loaded)}"
            )
    pair = request.load(loaded, prepend_bos=prepend_bos)
    interrupted = False
    try:
        result = own.discover(
            loaded, pair, threshold=threshold, k=k, share=share, steps=steps, at_once=at_once,
            **asked,
        )  # fmt: skip
    except own.DiscoveryInterrupted as error:
        # What was found by then may have taken hours: it is written and shown all the same.
        result, interrupted = error.partial, True
        console.print(
            f"interrupted after {len(result.steps)} decisions: this is the circuit by then, with "
            "all that was not decided on in it",
            soft_wrap=True,
        )
    comparison = None
    if known is not None:
        at = "edges" if isinstance(known, own.Circuit) and level == "edges" else "nodes"
        comparison = own.compare(result.circuit, known, at)
    if html or json_path or save:
        call = cli.call("analyses.circuit_discovery", sys.argv[1:])
        provenance = result.provenance.with_weights(loaded, call)
        circuit = replace(result.circuit, provenance=provenance.to_dict())
        result = replace(result, provenance=provenance, circuit=circuit)
    if save:
        result.circuit.save(save)
        console.print(f"wrote {cli.printable_path(save)}", style="dim", soft_wrap=True)
    data = {"comparison": None if comparison is None else comparison.to_dict()}
    cli.write_outputs(
        console,
        html=html,
        page=lambda: views.page(result, top_k, comparison),
        csv=csv,
        frame=result.to_frame,
        json=json_path,
        data=lambda: result.to_dict() | data,
    )
    views.show(result, console, top_k, comparison)
    return 130 if interrupted else None


def _check_save(save: str | None, others: tuple[str | None, ...], inputs: tuple[str, ...]) -> None:
    """Refuse a path that cannot be written, as for the other outputs."""
    if save is None:
        return
    if save == cli.STDIN:
        raise cli.CommandError("--save needs a path")
    for other in others:
        if other not in (None, cli.STDIN):
            # Both places are looked at, under whatever names.
            cli.check_outputs(html=None, csv=other, json=save)
    cli.check_outputs(html=None, csv=None, json=save, inputs=inputs)


if __name__ == "__main__":
    cli.run(main, __spec__)
