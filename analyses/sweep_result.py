"""What a sweep found: every metric of every intervention on every prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.effects import Effects, Interval
from analyses.report import Provenance
from hooks import Edit
from hooks.edit_files import Packed, reading, unpack, write
from hooks.names import nearest

if TYPE_CHECKING:
    import pandas as pd

_HEADER = "hooked_gpt2_sweep"


@dataclass(frozen=True, eq=False, repr=False)
class SweepResult:
    """Metrics of every intervention, in float64 on the CPU.

    Attributes:
        edits: the interventions, each a tuple of edits applied together.
        given: edits that were on throughout, in the base run too.
        values: metric -> `edit example`. A function that gave one number for all prompts together
            has one example.
        base: metric -> `example`, of the run without these edits.
        str_tokens: the real tokens of each prompt.
        prepend_bos: whether `<|endoftext|>` was put before the text; None for token ids.
        provenance: model, dtype, versions, the call.
    """

    edits: tuple[tuple[Edit, ...], ...]
    given: tuple[Edit, ...]
    values: Mapping[str, Float[Tensor, "edit example"]]
    base: Mapping[str, Float[Tensor, " example"]]
    str_tokens: tuple[tuple[str, ...], ...]
    prepend_bos: bool | None
    provenance: Provenance

    def _of(self, metric: str | None) -> Float[Tensor, "edit example"]:
        return self.values[self.metric_name(metric)]

    def metric_name(self, metric: str | None = None) -> str:
        """The metric meant: the one asked for, or the only one there is.

        Raises:
            KeyError: there is none of that name; ValueError: there are several and none was named.
        """
        if metric is None:
            if len(self.values) > 1:
                raise ValueError(f"this sweep has several metrics, {list(self.values)}: name one.")
            return next(iter(self.values))
        if metric not in self.values:
            raise KeyError(
                f"this sweep has no metric {metric!r}.{nearest(metric, self.values)} It has "
                f"{', '.join(self.values)}."
            )
        return metric

    def mean(self, metric: str | None = None) -> Float[Tensor, " edit"]:
        """Mean over examples."""
        return self._of(metric).mean(-1)

    def effects(
        self,
        labels: Mapping[str, Sequence[str]] | None = None,
        metric: str | None = None,
        *,
        name: str = "edits",
        corrupted: Float[Tensor, " example"] | None = None,
        clean: Float[Tensor, " example"] | None = None,
    ) -> Effects:
        """One metric laid out on axes: for pictures, tables and intervals.

        Args:
            labels: axis -> labels, in the order of the axes; the edits run through them with the
                last axis fastest. By default one axis, `edit`.
            metric: which one, if there are several.
            name: what was edited.
            corrupted, clean: the metric in two runs that count as 0 and 1.

        Raises:
            ValueError: there are not as many edits as places on the axes.
        """
        chosen = self.metric_name(metric)
        if labels is None:
            labels = {"edit": ["; ".join(map(repr, edits)) for edits in self.edits]}
        return Effects.on_axes(
            name,
            labels,
            self.values[chosen],
            self.base[chosen],
            chosen,
            corrupted=corrupted,
            clean=clean,
        )

    def stderr(self, metric: str | None = None) -> Float[Tensor, " edit"]:
        """Standard error of the mean over examples; NaN for a single one."""
        return self.effects(metric=metric).stderr

    def interval(
        self, metric: str | None = None, *, level: float = 0.95, seed: int = 0
    ) -> Interval:
        """Percentile bootstrap interval of the mean over examples; NaN for a single one.

        Raises:
            ValueError: a level outside (0, 1).
        """
        return self.effects(metric=metric).interval(level, seed=seed)

    def normalised(
        self, zero: Tensor | float, one: Tensor | float, metric: str | None = None
    ) -> Float[Tensor, " edit"]:
        """Means on the scale on which `zero` is 0 and `one` is 1 (averaged over examples).

        For patching, `zero` is the metric of the corrupted run and `one` that of the clean run.

        Raises:
            ValueError: the two are equal.
        """
        base = self.base[self.metric_name(metric)]
        ends = (torch.as_tensor(end, dtype=base.dtype).expand_as(base) for end in (zero, one))
        corrupted, clean = (end.clone() for end in ends)
        return self.effects(metric=metric, corrupted=corrupted, clean=clean).normalised

    def save(self, path: str | PathLike[str]) -> None:
        """Write the numbers and the edits that gave them to a safetensors file.

        What the edits take their values from is stored too, as by `hooks.save_edits`.

        Raises:
            others: as `hooks.save_edits`.
        """
        packed = Packed()
        about = {
            "edits": packed.add(self.edits),
            "given": packed.add(self.given),
            "caches": packed.caches(),
            "metrics": list(self.values),
            "str_tokens": self.str_tokens,
            "prepend_bos": self.prepend_bos,
            "provenance": self.provenance.to_dict(),
        }
        numbers = {}
        for i, name in enumerate(self.values):
            numbers |= {f"values.{i}": self.values[name], f"base.{i}": self.base[name]}
        held = {name: value.contiguous().clone() for name, value in numbers.items()}
        write(path, _HEADER, packed.tensors | held, about)

    @classmethod
    def load(cls, path: str | PathLike[str], device: str | torch.device = "cpu") -> "SweepResult":
        """Read a result that `save` wrote; what edits take their values from goes onto `device`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no file that `save` wrote.
        """
        with reading(path, _HEADER, "sweep", device) as (about, tensors):
            names, n_edits = about["metrics"], len(about["edits"])
            both = unpack([*about["edits"], *about["given"]], about["caches"], tensors)
            return cls(
                edits=tuple(both[:n_edits]),
                given=tuple(both[n_edits:]),
                values={name: tensors[f"values.{i}"].cpu() for i, name in enumerate(names)},
                base={name: tensors[f"base.{i}"].cpu() for i, name in enumerate(names)},
                str_tokens=tuple(map(tuple, about["str_tokens"])),
                prepend_bos=about["prepend_bos"],
                provenance=Provenance(**about["provenance"]),
            )

    def to_frame(self) -> "pd.DataFrame":
        """One row per number: `edit` (its place), `edits` (as text), `example`, `metric`, `value`,
        `base` (without the edit)."""
        import pandas as pd

        columns: dict[str, list[Any]] = {}
        for name in ("edit", "edits", "example", "metric", "value", "base"):
            columns[name] = []
        texts = ["; ".join(map(repr, edits)) for edits in self.edits]
        for metric, values in self.values.items():
            base = self.base[metric].tolist()
            for index, row in enumerate(values.tolist()):
                columns["edit"] += [index] * len(row)
                columns["edits"] += [texts[index]] * len(row)
                columns["example"] += range(len(row))
                columns["metric"] += [metric] * len(row)
                columns["value"] += row
                columns["base"] += base
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        n_prompts = len(self.str_tokens)
        lines = [
            f"SweepResult({self.provenance.model}, {len(self.edits)} interventions on {n_prompts} "
            f"prompt{'s'[: n_prompts != 1]})"
        ]
        for metric, values in self.values.items():
            change = values.mean(1) - self.base[metric].mean()
            order = change.abs().nan_to_num(-1.0).argsort(descending=True)[:3].tolist()
            lines.append(f"  {metric}: {float(self.base[metric].mean()):.4g} without edits; most")
            lines += [
                f"    {float(values[i].mean()):.4g} ({float(change[i]):+.4g})  "
                f"{'; '.join(map(repr, self.edits[i]))}"
                for i in order
            ]
        return "\n".join(lines)
