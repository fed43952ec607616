r"""Attribution patching: what would patching each node do, estimated for all nodes at once?

Activation patching puts one activation of a *source* run into a *base* run, a whole run for each.
To first order the metric then changes by

    (source - base) . d metric / d activation, at the base run,

and one backward pass gives that gradient for every activation of the model.

1. Run the source prompts; keep the activations.
2. Run the base prompts; keep the activations, and their gradients from one backward pass.
3. At each node multiply difference and gradient, and sum over the node's numbers.

Denoising has the corrupted prompts as base and patches clean activations in, noising the reverse.
Estimates add up: the sum over positions estimates patching a head everywhere.

With `steps=m` gradients are averaged over m points between the runs (integrated gradients), in m
forward-backward passes for all nodes together. The straight line is drawn at the *embeddings*, as
in EAP-IG: a line at every activation would be exact in more cases but take m passes per layer and
kind of node. So the estimates at what enters block 0 sum to the metric's whole difference, as m
grows; at later nodes the activations of the m runs lie on no straight line and nothing need sum.
Points are the midpoints of m equal parts, which err by the order of 1/m^2, where the right ends
(k/m) of both papers err by 1/m.

Averaging over the whole way asks another question than patching one node into the base run, and
agrees less with it. With 12 or 24 IOI examples on the bundled model, plain estimates correlate with
exact patching by 0.88 to 1.00 in every view (Pearson; queries are the worst), those with 5 steps by
0.13 to 0.99. Take steps where the gradient at the base run says nothing, as with a metric that is
flat there, or to find the strongest edges (`analyses.edge_attribution`).

Where it fails (Kramar et al., section 3): where what lies between is not nearly linear over the
step from base to source. A saturated softmax has almost no gradient, so queries and keys of heads
that attend firmly seem to do nothing; large steps early in the residual stream go through many
layer norms and softmaxes and are estimated badly; a direct and an indirect effect of opposite sign
may cancel in the gradient and not in fact. So take it to find candidates, and patch these:
`agreement` says how well the estimates went with exact patching.

Sources: Nanda, "Attribution Patching: Activation Patching At Industrial Scale" (2023); Kramar et
al., "AtP*" (2024), arXiv 2403.00745; integrated gradients: Sundararajan et al. (2017), arXiv
1703.01365, section 3; along the embeddings of two prompts: Hanna et al., "Have Faith in
Faithfulness" (2024), arXiv 2403.17806, section 3 (EAP-IG).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from analyses import cli, pair_options, report
from analyses._pair_effects import PairEffects
from analyses._positions import parse_positions, positions_of
from analyses._views import attribution_patching as views_of
from analyses.tasks import unknown

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from analyses._agreement import Agreement, agreement
    from analyses._gradients import (
        Contrast,
        Contrasts,
        check_finite,
        columns_of_places,
        take,
        upcast,
    )
    from analyses.activation_patching import (
        VIEWS,
        Direction,
        View,
        checked_views,
        model_point,
    )
    from analyses.effects import Effects
    from analyses.metrics import AnyMetric
    from analyses.pairs import PromptPair, pair_of
    from analyses.prompts import AnyPrompts
    from interp import HookedGPT2

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Agreement", "AttributionPatching", "agreement", "attribution_patching"]

DIRECTIONS = ("denoising", "noising")
# A number per neuron: the only view that activation patching does not have.
NEURONS = "mlp_post"


# ------------------------------------------------------------------ the question


def attribution_patching(
    model: HookedGPT2,
    clean: PromptPair | AnyPrompts,
    corrupted: AnyPrompts | None = None,
    metric: AnyMetric | None = None,
    *,
    direction: Direction = "denoising",
    steps: int | None = None,
    views: str | Sequence[str] | None = None,
    positions: Sequence[int] | Sequence[str] | Literal["all"] | None = None,
    attention_mask: Tensor | None = None,
    prepend_bos: bool = True,
    batch_size: int | Literal["auto"] = "auto",
    memory_limit: int = 2**30,
) -> AttributionPatching:
    """Estimate what `activation_patching` would find, at every place at once.

    Costs a forward pass and a forward-backward pass, whatever the views; with `steps`, two forward
    passes and `steps` forward-backward passes.

    Args:
        model: what is looked into; stays as it is. Hooks that are active on it count.
        clean, corrupted, metric, direction, positions, attention_mask, prepend_bos: as in
            `activation_patching`. The metric must be differentiable. A function that gives one
            number for all prompts together is differentiated as that; its effects have one example.
        steps: None for the gradient at the base run; m for integrated gradients over m points
            between the two runs.
        views: which of `activation_patching`'s, or its groups, or mlp_post (by layer, position and
            neuron). By default every view but the two with the most numbers, pattern_by_entry and
            mlp_post. In `pattern_by_pos`, `pos` is the query.
        batch_size: how many prompts are run at a time (with `steps`, points between two prompts
            count as prompts). A function of the logits always gets all prompts.
        memory_limit: with "auto", about how many bytes the runs may take.

    Returns:
        As activation patching gives, the metric at every place of every view, per example: that of
        the base run plus the estimated change.

    Raises:
        ValueError, TypeError, IndexError: as `activation_patching`; a metric that is not
            differentiable, or is NaN or infinite, or gives anything but one number (or one per
            prompt); `kl()` from the base run itself without `steps`, whose gradient is zero.
    """
    pair = pair_of(model, clean, corrupted, attention_mask, prepend_bos)
    chosen = checked(views)
    axes = {axis for name in chosen for axis in _view(name).axes}
    where = positions_of(pair, positions) if {"pos", "query"} & axes else None
    columns = columns_of_places([] if where is None else where.where, pair)
    n_layers = model.cfg.n_layers
    contrasts = Contrasts.checked(
        model,
        pair,
        metric,
        direction=direction,
        steps=steps,
        names=list({_point(name, layer): 0 for name in chosen for layer in range(n_layers)}),
        batch_size=batch_size,
        memory_limit=memory_limit,
    )
    parts: dict[str, list[Tensor]] = {name: [] for name in chosen}
    ends: dict[str, list[Tensor]] = {"base": [], "source": []}
    for contrast in contrasts:
        here = columns[contrast.examples]
        for name, scores in _scores(contrast, chosen, n_layers, here).items():
            parts[name].append(scores.to("cpu", torch.float64))
        ends["base"].append(contrast.base_metric.to("cpu", torch.float64))
        ends["source"].append(contrast.source_metric.to("cpu", torch.float64))
        del contrast  # its memory, before the next one takes its own
    base, source = (torch.cat(ends[name]) for name in ("base", "source"))
    low, high = (base, source) if direction == "denoising" else (source, base)
    labels: dict[str, Sequence[str]] = {
        "layer": [str(layer) for layer in range(n_layers)],
        "head": [str(head) for head in range(model.cfg.n_heads)],
        "neuron": [str(neuron) for neuron in range(model.cfg.d_mlp)],
    }
    numbers: dict[str, Sequence[int]] = {"layer": range(n_layers)}
    if where is not None:
        labels |= dict.fromkeys(("pos", "query", "key"), where.labels)
        numbers |= dict.fromkeys(("pos", "query", "key"), where.numbers)
    found = {}
    for name in chosen:
        change = torch.cat(parts[name], -1)
        check_finite(change, contrasts.judge.name, f"the estimates of {name}")
        if len(base) != change.shape[-1]:
            change = change.sum(-1, keepdim=True)  # one number for all prompts together
        found[name] = Effects(
            name=name,
            axes=_view(name).axes,
            labels={axis: tuple(labels[axis]) for axis in _view(name).axes},
            values=base + change,
            base=base,
            metric=contrasts.judge.name,
            corrupted=low,
            clean=high,
            numbers={axis: tuple(numbers[axis]) for axis in _view(name).axes if axis in numbers},
        )
    call = (
        f"attribution_patching(model, ..., metric={contrasts.judge.name}, "
        f"direction={direction!r}, steps={steps}, views={list(chosen)!r}, "
        f"positions={positions!r}, prepend_bos={pair.prepend_bos})"
    )
    return AttributionPatching(
        views=found,
        direction=direction,
        steps=steps,
        pair=pair,
        provenance=report.Provenance.of(model, call),
    )


def _view(name: str) -> View:
    return View("mlp_post", ("layer", "pos", "neuron")) if name == NEURONS else VIEWS[name]


def _point(name: str, layer: int) -> str:
    if name == NEURONS:
        return f"blocks.{layer}.mlp.hook_post"
    return model_point(VIEWS[name].point, layer)


def checked(views: str | Sequence[str] | None) -> tuple[str, ...]:
    """The views asked for, groups resolved, each once.

    Raises:
        ValueError: an unknown one, or none.
    """
    if views is None:
        return tuple(name for name in VIEWS if name != "pattern_by_entry")
    asked = [views] if isinstance(views, str) else list(views)
    others = [name for name in asked if name != NEURONS]
    found = checked_views(others) if others or not asked else ()
    return (*found, *((NEURONS,) if NEURONS in asked else ()))


def _scores(
    contrast: Contrast, views: Sequence[str], n_layers: int, where: Int[Tensor, "example place"]
) -> dict[str, Float[Tensor, "*axes example"]]:
    """Per view the estimated changes.

    Args:
        where: the columns of the positions asked for, of these examples.
    """
    points = {_point(name, layer) for name in views for layer in range(n_layers)}
    gradients = _mean_gradients(contrast, points)
    found: dict[str, list[Tensor]] = {name: [] for name in views}
    for layer in range(n_layers):
        products: dict[str, Tensor] = {}
        for name in views:
            point = _point(name, layer)
            if point not in products:
                difference = upcast(contrast.source[point]) - upcast(contrast.base[point])
                products[point] = difference * gradients[point]
            found[name].append(_reduced(name, products[point], where))
    return {name: torch.stack(layers).movedim(1, -1) for name, layers in found.items()}


def _reduced(name: str, product: Tensor, where: Tensor) -> Tensor:
    """One layer's `example ...`: the axes of a view, the others summed."""
    if name.startswith("pattern"):  # example head query key
        if name == "pattern":
            return product.sum((-2, -1))
        if name == "pattern_by_pos":
            return take(product.sum(-1).movedim(1, 2), 1, where)
        return take(take(product, 2, where), 3, where)
    if name != NEURONS:
        product = product.sum(-1)
    if "pos" not in _view(name).axes:
        return product.sum(1)
    return take(product, 1, where)


def _mean_gradients(contrast: Contrast, points: Collection[str]) -> dict[str, Tensor]:
    """Gradients at the points, averaged over the steps."""
    n = contrast.examples.stop - contrast.examples.start
    total: dict[str, Tensor] = {}
    count = 0
    for steps, cache in contrast.gradients:
        count += steps
        for point in points:
            found = upcast(cache[f"{point}_grad"])
            found = found if steps == 1 else found.unflatten(0, (steps, n)).sum(0)
            total[point] = total[point] + found if point in total else found
        del cache
    return total if count == 1 else {point: value / count for point, value in total.items()}


# ------------------------------------------------------------------ the result


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AttributionPatching(PairEffects):
    """What the metric would become with each activation patched, estimated; see `PairEffects`.

    Attributes:
        steps: points of integrated gradients, or None.
        agreements: how well the estimates agree with exact patching, by view; see `compared`.
    """

    steps: int | None
    agreements: Mapping[str, Agreement] = field(default_factory=dict)

    def compared(self, exact: Mapping[str, Effects]) -> AttributionPatching:
        """This result with its agreement with exact patching.

        Args:
            exact: effects by view, such as the `views` of an `ActivationPatching` of the same pair
                in the same direction.

        Raises:
            KeyError: a view that is not here.
            ValueError: as `agreement`.
        """
        found = {name: agreement(self[name], effects) for name, effects in exact.items()}
        return replace(self, agreements=found)

    def to_frame(self) -> pd.DataFrame:
        """The tables of all views (see `Effects.to_frame`), with columns `direction` and `steps`.

        An axis that a view does not have is empty there. Where exact patching was compared with,
        `exact_change` has what it found.
        """
        frame = super().to_frame()
        frame.insert(2, "steps", self.steps)
        frame = frame.astype({"steps": "Int64"})
        if self.agreements:
            frame["exact_change"] = math.nan
            for name, found in self.agreements.items():
                frame.loc[frame["view"] == name, "exact_change"] = found.exact.numpy()
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not finite is None."""
        agreements = [found.to_dict() for found in self.agreements.values()]
        return super().to_dict() | {"steps": self.steps, "agreements": agreements}

    def page(self, top_k: int = 10) -> report.Page:
        """The page that `to_html` writes, with tables of the `top_k` strongest."""
        return views_of.page(self, top_k)

    def __repr__(self) -> str:
        how = "gradient at the base run, " if self.steps is None else f"{self.steps} steps, "
        return "\n".join([*self._lines(how), *(f"  {one!r}" for one in self.agreements.values())])


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
        str, typer.Option(help="denoising or noising.", metavar="NAME")
    ] = "denoising",
    steps: Annotated[
        int | None,
        typer.Option(
            help="Integrated gradients over so many points. Left out: the gradient at one run.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    views: Annotated[
        str,
        typer.Option(
            help="Comma-separated: as analyses.activation_patching has them, or mlp_post for "
            "neurons.",
            metavar="VIEWS",
        ),
    ] = "block_every,head_all_pos_every",
    positions: Annotated[
        str | None,
        typer.Option(
            help="all, numbers such as 3,-1, or with --task names such as S2,END. Left out: all, "
            "or those with names where examples differ in length.",
            metavar="POSITIONS",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Also patch every place, one by one, and say how well they agree."
        ),
    ] = False,
    top_k: Annotated[int, typer.Option(help="How many of the strongest to list.", metavar="N")] = 5,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """What would patching each activation do? Estimated for all of them from one backward pass.

    To first order, the metric changes by the difference of the activation between two prompts times
    the metric's gradient there (Nanda 2023). --exact says how good the estimates are.
    """
    request = pair_options.PairRequest.checked(
        files, answer, wrong, task, n, seed, corruption, template
    )
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=request.inputs)
    if direction not in DIRECTIONS:
        raise cli.CommandError(unknown("direction", direction, DIRECTIONS))
    for option, value in (("--top-k", top_k), ("--steps", steps)):
        if value is not None and value < 1:
            raise cli.CommandError(f"{option} is {value}: expected at least 1")
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses.activation_patching import activation_patching
    from analyses.attribution_patching import NEURONS, attribution_patching, checked

    chosen = checked([name.strip() for name in views.split(",")])
    if exact and chosen == (NEURONS,):
        raise cli.CommandError(f"--exact: activation patching has no view {NEURONS}")
    where = None if positions is None else parse_positions(positions)
    loaded = cli.load_model(choice, device=device, dtype=dtype)
    pair = request.load(loaded, prepend_bos=prepend_bos)
    options: Any = {"direction": direction, "positions": where}
    result = attribution_patching(loaded, pair, views=chosen, steps=steps, **options)
    if exact:
        comparable = [name for name in result.views if name != NEURONS]
        truth = activation_patching(loaded, pair, views=comparable, **options)
        result = result.compared(truth.views)
    if html or json_path:
        result = result.hashed(loaded, cli.call("analyses.attribution_patching", sys.argv[1:]))
    cli.write_outputs(
        console,
        html=html,
        page=lambda: result.page(top_k),
        csv=csv,
        frame=result.to_frame,
        json=json_path,
        data=result.to_dict,
    )
    views_of.show(result, console, top_k)


if __name__ == "__main__":
    cli.run(main, __spec__)
