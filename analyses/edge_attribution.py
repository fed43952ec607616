r"""Edge attribution patching: which connections between parts carry the difference?

The residual stream is a sum, so what each part of the model reads is a sum too, of what the parts
before it wrote: an edge leads from every *sender* (the embeddings, a head, an MLP) to every
*receiver* (the queries, keys or values of a head, an MLP, the logits) after it. Patching an edge
puts the sender's output from a *source* run into what that one receiver reads in a *base* run. To
first order the metric then changes by

    (sender at source - sender at base) . d metric / d (what the receiver reads), at base

and one forward-backward pass and one forward pass give all edges.

1. Run the source prompts and the base prompts; keep what every sender wrote.
2. From one backward pass in the base run: the gradient at what each receiver reads. For a head's
   queries that is the gradient at the queries, back through `W_Q` and through the layer norm as it
   is at this residual (its scale is not held fixed).
3. Multiply, and sum over positions (or keep them apart).

Noising, the default here, is how the papers do it: gradients at the clean run, corrupted
activations put in. A head sends what it writes without the output bias b_O of its layer, which no
head owns; biases are the same in both runs and cancel in the difference. The edges that leave a
sender sum to the estimate of patching its output altogether (`outgoing`), and those into a receiver
to the estimate of patching all that it reads.

With `steps=m` gradients are averaged over m points of the straight line between the two runs'
embeddings (EAP-IG), the midpoints of m equal parts; then the edges from the embeddings sum to the
whole difference of the metric, as m grows. That also helps where a metric is flat at the base run,
such as a divergence from it. Where gradients mislead: see `analyses.attribution_patching`.

Sources: Syed, Rager and Conmy, "Attribution Patching Outperforms Automated Circuit Discovery"
(2023), arXiv 2310.10348, section 3; Hanna, Pezzelle and Belinkov, "Have Faith in Faithfulness"
(2024), arXiv 2403.17806, section 3; Nanda, "Attribution Patching" (2023).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from analyses import cli, pair_options, report
from analyses._positions import parse_positions, positions_of
from analyses._views import edge_attribution as views_of
from analyses.tasks import unknown

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch
    from jaxtyping import Bool, Float
    from torch import Tensor

    from analyses._agreement import Agreement
    from analyses._edges import (
        Part,
        check_hooks,
        points_kept,
        receivers,
        scores_of,
        senders,
        senders_before,
        sent_by,
    )
    from analyses._gradients import (
        RUNS,
        Contrasts,
        check_finite,
        columns_of_places,
        one_metric,
    )
    from analyses.activation_patching import Direction
    from analyses.metrics import AnyMetric
    from analyses.pairs import PromptPair, pair_of
    from analyses.prompts import AnyPrompts
    from analyses.sweep import sweep
    from hooks import Add
    from interp import HookedGPT2

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

DIRECTIONS = ("noising", "denoising")


# ------------------------------------------------------------------ the question


def edge_attribution(
    model: HookedGPT2,
    clean: PromptPair | AnyPrompts,
    corrupted: AnyPrompts | None = None,
    metric: AnyMetric | None = None,
    *,
    direction: Direction = "noising",
    steps: int | None = None,
    positions: Sequence[int] | Sequence[str] | Literal["all"] | None = None,
    attention_mask: Tensor | None = None,
    prepend_bos: bool = True,
    batch_size: int | Literal["auto"] = "auto",
    memory_limit: int = 2**30,
) -> EdgeAttribution:
    """Estimate what patching each edge would do, for all edges at once.

    Costs a forward pass, a forward-backward pass and matrix products of about a fifth of these;
    with `steps`, two forward passes and `steps` forward-backward passes.

    Args:
        model: what is looked into; stays as it is.
        clean, corrupted, metric, attention_mask, prepend_bos: as in
            `analyses.activation_patching.activation_patching`. The metric must be differentiable.
        direction: "noising" puts what senders wrote in the corrupted run into the clean one,
            "denoising" the reverse.
        steps: None for the gradient at the base run (EAP), m for integrated gradients (EAP-IG).
        positions: None for the sum over positions; or those to keep apart, as in
            `activation_patching`.
        batch_size, memory_limit: as in `analyses.attribution_patching.attribution_patching`.

    Returns:
        The estimated change of the metric for each edge, per example.

    Raises:
        ValueError, TypeError, IndexError: as `attribution_patching`; and a function that listens at
            a point which the scores are computed past (`ln1`, `hook_resid_mid`, ...).
    """
    pair = pair_of(model, clean, corrupted, attention_mask, prepend_bos)
    check_hooks(model)
    cfg = model.cfg
    where = None if positions is None else positions_of(pair, positions)
    columns = None if where is None else columns_of_places(where.where, pair)
    sending, receiving = senders(cfg.n_layers, cfg.n_heads), receivers(cfg.n_layers, cfg.n_heads)
    n_pos = pair.clean.shape[1]
    contrasts = Contrasts.checked(
        model,
        pair,
        metric,
        direction=direction,
        steps=steps,
        names=points_kept(cfg.n_layers),
        embeddings=True,
        batch_size=batch_size,
        memory_limit=memory_limit,
        # What every sender wrote, and the gradients of one layer's receivers with the work on them.
        more_bytes=4 * n_pos * cfg.d_model * (len(sending) + 12 * cfg.n_heads),
    )
    scores: list[Tensor] = []
    ends: dict[str, list[Tensor]] = {"base": [], "source": []}
    for contrast in contrasts:
        here = None if columns is None else columns[contrast.examples]
        scores.append(scores_of(model, contrast, here).cpu())
        ends["base"].append(contrast.base_metric.to("cpu", torch.float64))
        ends["source"].append(contrast.source_metric.to("cpu", torch.float64))
        del contrast  # its memory, before the next one takes its own
    base, source = (torch.cat(ends[name]) for name in ("base", "source"))
    found = torch.cat(scores, -1)
    check_finite(found, contrasts.judge.name, "the scores")
    if found.shape[-1] != len(base):
        found = found.sum(-1, keepdim=True)  # one number for all prompts together
    exists = torch.zeros(len(sending), len(receiving), dtype=torch.bool)
    for index, receiver in enumerate(receiving):
        exists[: senders_before(receiver, cfg.n_layers, cfg.n_heads), index] = True
    call = (
        f"edge_attribution(model, ..., metric={contrasts.judge.name}, direction={direction!r}, "
        f"steps={steps}, positions={positions!r}, prepend_bos={pair.prepend_bos})"
    )
    return EdgeAttribution(
        senders=sending,
        receivers=receiving,
        exists=exists,
        scores=found,
        positions=None if where is None else where.labels,
        base=base,
        source=source,
        metric=contrasts.judge.name,
        direction=direction,
        steps=steps,
        pair=pair,
        provenance=report.Provenance.of(model, call),
    )


# ------------------------------------------------------------------ the result


@dataclass(frozen=True, eq=False, repr=False)
class EdgeAttribution:
    """How much the metric would change with each edge patched, estimated.

    Attributes:
        senders, receivers: the two axes.
        exists: where there is an edge: the sender comes before the receiver.
        scores: `[sender receiver example]`, or `[sender receiver pos example]` where positions are
            kept apart; 0 where there is no edge.
        positions: labels of the axis `pos`, or None.
        base, source: `[example]`, the metric of the two runs.
        metric: its name.
        direction: "noising" or "denoising".
        steps: points of integrated gradients, or None.
        pair: the prompts.
        provenance: model, dtype, versions, the call.
        patched: the edges that were also patched one by one, as pairs of indices, strongest first;
            see `with_exact`.
        agreement: how well their scores agree with that; None where none were.
    """

    senders: tuple[Part, ...]
    receivers: tuple[Part, ...]
    exists: Bool[Tensor, "sender receiver"]
    scores: Float[Tensor, "sender receiver *pos example"]
    positions: tuple[str, ...] | None
    base: Float[Tensor, " example"]
    source: Float[Tensor, " example"]
    metric: str
    direction: Direction
    steps: int | None
    pair: PromptPair
    provenance: report.Provenance
    patched: tuple[tuple[int, int], ...] = ()
    agreement: Agreement | None = None

    @property
    def mean(self) -> Float[Tensor, "sender receiver *pos"]:
        """The scores averaged over examples."""
        return self.scores.mean(-1)

    @property
    def stderr(self) -> Float[Tensor, "sender receiver *pos"]:
        """The standard error of `mean`; NaN with a single example."""
        n = self.scores.shape[-1]
        if n < 2:
            return torch.full_like(self.mean, math.nan)
        return self.scores.std(-1) / n**0.5

    @property
    def total(self) -> Float[Tensor, "sender receiver"]:
        """`mean`, summed over positions."""
        return self.mean if self.positions is None else self.mean.sum(-1)

    @property
    def outgoing(self) -> Float[Tensor, " sender"]:
        """The sum of each sender's edges: the estimate of patching its output altogether."""
        return self.total.sum(1)

    def __getitem__(self, edge: tuple[str, str]) -> Float[Tensor, "*pos"]:
        """The mean score of an edge by its names, as in `edges["9.6", "logits"]`.

        Raises:
            KeyError: no such sender or receiver, or no edge between them.
        """
        place = []
        for what, name, parts in zip(
            ("sender", "receiver"), edge, (self.senders, self.receivers), strict=True
        ):
            names = [str(part) for part in parts]
            if name not in names:
                raise KeyError(unknown(what, str(name), tuple(names)))
            place.append(names.index(name))
        if not self.exists[place[0], place[1]]:
            raise KeyError(
                f"there is no edge from {edge[0]} to {edge[1]}: the receiver does not come after "
                "the sender"
            )
        return self.mean[place[0], place[1]]

    def strongest(self, k: int) -> list[tuple[int, int]]:
        """The k edges with the largest scores of either sign, summed over positions, as indices of
        sender and receiver.

        Raises:
            ValueError: k is below 1.
        """
        if k < 1:
            raise ValueError(f"k={k} is out of range: expected at least 1")
        edges = self.exists.nonzero()
        sizes = self.total[self.exists].abs()
        order = sizes.argsort(descending=True, stable=True)[:k]
        return [(sender, receiver) for sender, receiver in edges[order].tolist()]

    def with_exact(
        self,
        model: HookedGPT2,
        k: int = 50,
        metric: AnyMetric | None = None,
        *,
        batch_size: int | Literal["auto"] = "auto",
        memory_limit: int = 2**30,
        progress: bool = True,
    ) -> EdgeAttribution:
        """This result, with the k strongest edges patched one by one and compared.

        Patching an edge adds to what the receiver reads the difference of what the sender wrote in
        the two runs, at all positions, and lets all after the receiver follow.

        Args:
            model: the one that the scores are of.
            k: how many edges. They are chosen by their scores, so that edges which the estimate
                misses are not among them.
            metric: the one that the scores are of; None for the pair's own.
            batch_size, memory_limit, progress: as in `analyses.sweep.sweep`.

        Raises:
            ValueError: k is below 1, or the metric gives other numbers at the base run.
        """
        pair, edges = self.pair, self.strongest(k)
        name, measure = one_metric(pair.metric if metric is None else metric)
        base, source = (getattr(pair, which).to(model.device) for which in RUNS[self.direction])
        mask = pair.attention_mask.to(model.device)
        names = ["hook_embed", "hook_pos_embed", *(
            f"blocks.{layer}.{point}" for layer in range(model.cfg.n_layers)
            for point in ("attn.hook_z", "hook_mlp_out")
        )]  # fmt: skip
        with torch.no_grad():
            of_source, of_base = (
                model.run_with_cache(tokens, None, names_filter=names, attention_mask=mask)[1]
                for tokens in (source, base)
            )
            sent = sent_by(model, of_source, of_base).to(model.dtype)
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        edits = []
        for sender, receiver in edges:
            to = self.receivers[receiver]
            point = f"blocks.{to.layer}.hook_{to.kind}_{'in' if to.kind == 'mlp' else 'input'}"
            point = last if to.kind == "logits" else point
            edits.append(Add(point, head=to.head, value=sent[:, sender]))
        swept = sweep(
            model,
            base,
            edits,
            {name: measure},
            attention_mask=mask,
            batch_size=batch_size,
            memory_limit=memory_limit,
            progress=progress,
        )
        at_base = swept.base[name]
        same = at_base.shape == self.base.shape
        if not same or not torch.allclose(at_base, self.base, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"metric {name} is {float(at_base.mean()):.4g} at the base run, but the scores are "
                f"of {self.metric}, which was {float(self.base.mean()):.4g}: give with_exact the "
                "same model and metric"
            )
        chosen = torch.tensor(edges)
        found = Agreement.of(
            f"the {len(edges)} strongest edges",
            self.metric,
            self.total[chosen[:, 0], chosen[:, 1]].double(),
            (swept.values[name] - at_base).mean(-1),
            [f"{self.senders[s]} → {self.receivers[r]}" for s, r in edges],
        )
        return replace(self, patched=tuple(edges), agreement=found)

    def to_frame(self) -> pd.DataFrame:
        """One row per edge (and position).

        Columns: `sender`, `sender_kind`, `sender_layer`, `sender_head`, the same of `receiver`,
        `pos` and `pos_label` where positions are apart, `metric`, `direction`, `steps`, `score`,
        `stderr` (over examples), and `share`, the score as a part of the whole difference of the
        metric between the runs (source - base). Where edges were patched too and positions are not
        apart, `exact` has what that changed (empty for the other edges).
        """
        import pandas as pd

        edges = self.exists.nonzero()
        sender, receiver = edges.unbind(1)
        columns: dict[str, Any] = {}
        for what, index, parts in (
            ("sender", sender, self.senders),
            ("receiver", receiver, self.receivers),
        ):
            chosen = [parts[i] for i in index.tolist()]
            columns[what] = [str(part) for part in chosen]
            columns[f"{what}_kind"] = [part.kind for part in chosen]
            columns[f"{what}_layer"] = pd.array([part.layer for part in chosen], dtype="Int64")
            columns[f"{what}_head"] = pd.array([part.head for part in chosen], dtype="Int64")
        frame = pd.DataFrame(columns)
        if self.positions is not None:
            n = len(self.positions)
            frame = frame.loc[frame.index.repeat(n)].reset_index(drop=True)
            frame["pos"] = list(range(n)) * len(edges)
            frame["pos_label"] = list(self.positions) * len(edges)
        frame["metric"], frame["direction"] = self.metric, self.direction
        frame["steps"] = pd.array([self.steps] * len(frame), dtype="Int64")
        frame["score"] = self.mean[sender, receiver].reshape(-1).tolist()
        frame["stderr"] = self.stderr[sender, receiver].reshape(-1).tolist()
        difference = float((self.source - self.base).mean())
        frame["share"] = frame["score"] / difference if difference else math.nan
        if self.agreement is not None and self.positions is None:
            exact = torch.full(self.exists.shape, math.nan, dtype=torch.float64)
            exact[tuple(torch.tensor(self.patched).T)] = self.agreement.exact
            frame["exact"] = exact[sender, receiver].tolist()
        return frame

    def top(self, k: int = 20) -> pd.DataFrame:
        """The k rows of `to_frame` with the largest scores, of either sign.

        Raises:
            ValueError: k is below 1.
        """
        if k < 1:
            raise ValueError(f"k={k} is out of range: expected at least 1")
        frame = self.to_frame()
        order = torch.tensor(frame["score"].to_numpy()).abs().argsort(descending=True, stable=True)
        return frame.iloc[order[:k].tolist()].reset_index(drop=True)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON: scores of each example, None where there is no
        edge."""
        missing = (~self.exists).view(*self.exists.shape, *(1,) * (self.scores.ndim - 2))
        scores = self.scores.masked_fill(missing, math.nan).tolist()
        prompts = {"clean": self.pair.str_tokens, "corrupted": self.pair.corrupted_str_tokens}
        return {
            "direction": self.direction,
            "steps": self.steps,
            "metric": self.metric,
            "source_prompts": self.pair.source,
            "prepend_bos": self.pair.prepend_bos,
            **{name: [list(row) for row in rows] for name, rows in prompts.items()},
            "senders": [str(part) for part in self.senders],
            "receivers": [str(part) for part in self.receivers],
            "positions": None if self.positions is None else list(self.positions),
            "scores": cli.finite(scores),
            "base": self.base.tolist(),
            "source": self.source.tolist(),
            "agreement": None if self.agreement is None else self.agreement.to_dict(),
            "provenance": self.provenance.to_dict(),
        }

    def plot(self) -> go.Figure:
        """A heat map: senders from bottom to top, receivers across; blank where no edge is."""
        return views_of.heat_map(self)

    def to_html(self, path: str | PathLike[str], *, model: HookedGPT2 | None = None) -> None:
        """Write a page with prompts, the strongest edges, the heat map and provenance.

        It needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        result = self
        if model is not None:
            result = replace(self, provenance=self.provenance.with_weights(model))
        views_of.page(result).write(path)

    def __repr__(self) -> str:
        n = self.scores.shape[-1]
        how = "gradient at the base run" if self.steps is None else f"{self.steps} steps"
        source = f"{self.pair.source}, " if self.pair.source else ""
        lines = [
            f"EdgeAttribution({self.provenance.model}, {self.direction}, {how}, "
            f"{source}{n} example{'s'[: n != 1]}; {int(self.exists.sum())} edges; "
            f"{self.metric} {self.base.mean():.4g} at base, {self.source.mean():.4g} at source)"
        ]
        for _, row in self.top(3).iterrows():
            at = "" if self.positions is None else f" at {row['pos_label']}"
            lines.append(f"  {row['sender']} -> {row['receiver']}{at}: {row['score']:+.4g}")
        lines += [] if self.agreement is None else [f"  {self.agreement!r}"]
        return "\n".join(lines)


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
    direction: Annotated[
        str, typer.Option(help="noising or denoising.", metavar="NAME")
    ] = "noising",
    steps: Annotated[
        int | None,
        typer.Option(
            help="Integrated gradients over so many points (EAP-IG). Left out: the gradient at one "
            "run (EAP).",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Keep positions apart: all, numbers such as 3,-1, or with --task names such as "
            "S2,END. Left out: summed over positions.",
            metavar="POSITIONS",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[
        int | None,
        typer.Option(
            help="Also patch the N strongest edges, one by one, and say how well they agree.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="How many edges to list.", metavar="N")] = 20,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """Which connections between heads, MLPs, embeddings and logits carry the difference?

    Edge attribution patching (Syed et al. 2023), or with --steps EAP-IG (Hanna et al. 2024): what
    patching each edge would do, estimated for all of them from one backward pass.
    """
    request = pair_options.PairRequest.checked(
        files, answer, wrong, task, n, seed, corruption, template
    )
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=request.inputs)
    if direction not in DIRECTIONS:
        raise cli.CommandError(unknown("direction", direction, DIRECTIONS))
    for option, value in (("--top-k", top_k), ("--steps", steps), ("--exact", exact)):
        if value is not None and value < 1:
            raise cli.CommandError(f"{option} is {value}: expected at least 1")
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses.edge_attribution import edge_attribution

    where: Any = None if positions is None else parse_positions(positions)
    asked: Any = direction
    loaded = cli.load_model(choice, device=device, dtype=dtype)
    pair = request.load(loaded, prepend_bos=prepend_bos)
    result = edge_attribution(loaded, pair, direction=asked, steps=steps, positions=where)
    if exact is not None:
        result = result.with_exact(loaded, exact)
    if html or json_path:
        call = cli.call("analyses.edge_attribution", sys.argv[1:])
        result = replace(result, provenance=result.provenance.with_weights(loaded, call))
    cli.write_outputs(
        console,
        html=html,
        page=lambda: views_of.page(result, top_k),
        csv=csv,
        frame=result.to_frame,
        json=json_path,
        data=result.to_dict,
    )
    views_of.show(result, console, top_k)


if __name__ == "__main__":
    cli.run(main, __spec__)
