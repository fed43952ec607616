"""Plain version of the sweep: one full run per intervention."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from analyses import cli
from analyses.metrics import AnyMetric, Function, named_metrics
from analyses.prompts import AnyPrompts, Prompts
from analyses.report import Provenance
from analyses.sweep_result import SweepResult
from hooks import Edit
from hooks.edits import Intervention
from hooks.located import Locator
from interp import HookedGPT2
from interp.points import axis_sizes


def sweep(
    model: HookedGPT2,
    tokens: AnyPrompts,
    edits: Sequence[Intervention],
    metric: AnyMetric | Sequence[AnyMetric] | Mapping[str, AnyMetric],
    *,
    given: Sequence[Edit] = (),
    batch_size: int | Literal["auto"] = "auto",
    memory_limit: int = 2**30,
    attention_mask: Tensor | None = None,
    prepend_bos: bool = True,
    progress: bool = True,
) -> SweepResult:
    """Metrics of every intervention."""
    metrics = named_metrics(metric)
    prompts = Prompts.of(model, tokens, attention_mask, prepend_bos)
    locator = Locator(model.hook_dict, axis_sizes(model.cfg), prompts.attention_mask, model.W_E)
    together = tuple((one,) if isinstance(one, Edit) else tuple(one) for one in edits)

    def run(edits: Sequence[Edit]) -> dict[str, Tensor]:
        located = [locator.locate(edit) for edit in (*given, *edits)]
        with torch.no_grad():
            logits: Any = model.run_with_hooks(
                prompts.tokens,
                fwd_hooks=[(one.point.name, one) for one in located],
                attention_mask=prompts.attention_mask,
            )
        return {
            name: (
                one(logits)
                if isinstance(one, Function)
                else one(logits, prompts.tokens, prompts.attention_mask)
            )
            .to("cpu", torch.float64)
            .detach()
            for name, one in metrics.items()
        }

    base = run(())
    found = [run(one) for one in (cli.progress(together, "sweep") if progress else together)]
    return SweepResult(
        edits=together,
        given=tuple(given),
        values={name: torch.stack([one[name] for one in found]) for name in metrics},
        base=base,
        str_tokens=prompts.str_tokens,
        prepend_bos=prompts.prepend_bos,
        provenance=Provenance.of(model, "sweep"),
    )
