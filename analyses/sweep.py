"""Thousands of interventions at the price of a few forward passes, with the same numbers.

An intervention is an edit, or several applied together; a sweep judges each on its own by one or
more metrics, on every prompt. One full forward pass per intervention would do. This does the same
arithmetic only where its outcome can differ:

1. Run the model once, unedited, and keep its residual stream, queries, keys and values.
2. Each intervention joins at the layer of its first edit, with the base run's activations there.
3. From there carry only the positions that can differ from the base run: nothing before the first
   edited position, nothing after the last one that the metric reads; earlier keys and values are
   the base run's. An edit that puts in what is there already changes nothing.
4. Climb the layers once with all rows together, as many at a time as memory allows.
5. Unembed only the positions and tokens that the metric reads.

`plan(...).explain()` says what that comes to before anything is computed.

    result = sweep(model, tokens, [Ablate(("z", l), head=h) for l in range(12) for h in range(12)],
                   logit_diff(mary, john))
    result.mean()
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from analyses import cli
from analyses._engine.readout import BaseReadout, Readout, interventions_of
from analyses._engine.schedule import Row, Schedule
from analyses._engine.walk import Base, Walk, needed
from analyses.metrics import AnyMetric, Function, Metric, named_metrics
from analyses.prompts import AnyPrompts, Prompts
from analyses.report import Provenance
from analyses.sweep_result import SweepResult
from hooks import Edit, HookError
from hooks.edits import Intervention
from hooks.located import LocatedEdit, Locator, position_first
from interp import HookedGPT2
from interp.points import axis_sizes

MEMORY_LIMIT = 2**30
# More cells at a time are no faster: by then the matrix products have all the rows they need.
_MOST_CELLS = 2048


class SweepInterrupted(KeyboardInterrupt):
    """The sweep was interrupted.

    Attributes:
        partial: what was found until then; the rest is NaN.
    """

    def __init__(self, partial: SweepResult) -> None:
        done = sum(bool(v.isfinite().all()) for v in next(iter(partial.values.values())))
        super().__init__(
            f"interrupted after {done} of {len(partial.edits)} interventions; they are in .partial"
        )
        self.partial = partial


class NotANumber(ValueError):
    """A metric was NaN somewhere.

    Attributes:
        partial: all that was found, NaN where it was.
    """

    def __init__(self, message: str, partial: SweepResult) -> None:
        super().__init__(message)
        self.partial = partial


def sweep(
    model: HookedGPT2,
    tokens: AnyPrompts,
    edits: Sequence[Intervention],
    metric: AnyMetric | Sequence[AnyMetric] | Mapping[str, AnyMetric],
    *,
    given: Sequence[Edit] = (),
    batch_size: int | Literal["auto"] = "auto",
    memory_limit: int = MEMORY_LIMIT,
    attention_mask: Tensor | None = None,
    prepend_bos: bool = True,
    progress: bool = True,
) -> SweepResult:
    """Judge interventions one by one, each on every prompt.

    Args:
        model: stays as it is.
        tokens: text, several texts, what `model.tokenize` gives, or token ids.
        edits: the interventions, each an edit or several edits applied together (in the order of
            the list where they meet at one point).
        metric: one of `analyses.metrics`, a function of the logits `batch pos d_vocab` that gives
            one number or one per prompt, several, or several by name.
        given: edits that are on in the base run too, such as noise on the embeddings.
        batch_size: how many interventions are carried at a time; "auto": what memory allows.
        memory_limit: bytes that activations and logits may take, as estimated (weights, sources
            and the logits that a function is given not counted).
        attention_mask: `batch pos`, with token ids only.
        prepend_bos: put `<|endoftext|>` before text.
        progress: show a bar on standard error, where that is a terminal.

    Returns:
        the metrics of every intervention on every prompt, and of the base run.

    Raises:
        UnknownHookName, IndexError, ValueError, TypeError: an edit, metric or prompt that does not
            fit; says which and why, before anything is computed.
        NotANumber: a metric that is NaN; what was found is in its `partial`.
        ValueError: hooks that are active on the model, or a memory limit too small for a single
            intervention.
        SweepInterrupted: on Ctrl-C, with what was found so far.
    """
    return plan(
        model,
        tokens,
        edits,
        metric,
        given=given,
        batch_size=batch_size,
        memory_limit=memory_limit,
        attention_mask=attention_mask,
        prepend_bos=prepend_bos,
    ).run(progress=progress)


def plan(
    model: HookedGPT2,
    tokens: AnyPrompts,
    edits: Sequence[Intervention],
    metric: AnyMetric | Sequence[AnyMetric] | Mapping[str, AnyMetric],
    *,
    given: Sequence[Edit] = (),
    batch_size: int | Literal["auto"] = "auto",
    memory_limit: int = MEMORY_LIMIT,
    attention_mask: Tensor | None = None,
    prepend_bos: bool = True,
) -> "Plan":
    """What a sweep would do: to be printed (`explain`) or carried out (`run`). Computes nothing.

    Args, Raises:
        as `sweep`.
    """
    active = [name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]
    if active:
        raise ValueError(
            f"hooks are active on the model, at {', '.join(active[:3])}"
            f"{f' and {len(active) - 3} more points' if len(active) > 3 else ''}: a sweep needs it "
            f"bare. Give them as edits (given=[...]), or call model.reset_hooks()."
        )
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int)):
        raise TypeError(f"batch_size is a whole number or 'auto', not {batch_size!r}.")
    if batch_size != "auto" and batch_size < 1:
        raise ValueError(f"batch_size is at least 1, not {batch_size}.")
    if isinstance(memory_limit, bool) or not isinstance(memory_limit, int):
        raise TypeError(f"memory_limit is a whole number of bytes, not {memory_limit!r}.")
    metrics = named_metrics(metric)
    prompts = Prompts.of(model, tokens, attention_mask, prepend_bos)
    for name, several in (("edits", edits), ("given", given)):
        if isinstance(several, Edit):
            raise TypeError(f"{name} is a list of edits: {name}=[{several!r}].")
    together = tuple((one,) if isinstance(one, Edit) else tuple(one) for one in edits)
    if not together:
        raise ValueError("there are no edits: the list of interventions is empty.")
    locator = Locator(model.hook_dict, axis_sizes(model.cfg), prompts.attention_mask, model.W_E)
    always = tuple(locator.locate(edit) for edit in given)
    return Plan(
        model=model,
        prompts=prompts,
        edits=together,
        located=tuple(_located(locator, i, one, always) for i, one in enumerate(together)),
        given=always,
        readout=Readout(model, prompts.tokens, prompts.attention_mask, metrics, memory_limit),
        metrics=metrics,
        batch_size=None if batch_size == "auto" else batch_size,
        memory_limit=memory_limit,
    )


def _located(
    locator: Locator, number: int, edits: tuple[Edit, ...], given: tuple[LocatedEdit, ...]
) -> tuple[LocatedEdit, ...]:
    if not edits:
        raise ValueError(f"intervention {number} is empty; each is an edit or several.")
    found = tuple(locator.locate(edit) for edit in edits)
    if len(found) + len(given) > 1:
        # What a full run refuses, too.
        points = {one.point.name for one in (*given, *found)}
        for name in points:
            block = name.rsplit("hook_", 1)[0]
            norms = {f"{block}ln1.hook_scale", f"{block}ln1.hook_normalized"} & points
            if name.endswith("_input") and norms:
                raise HookError(
                    f"intervention {number}: an edit at {name!r} gives each head a layer norm of "
                    f"its own, past {norms.pop()!r}, where there is one too: have either."
                )
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A sweep that has been checked and not yet carried out.

    Attributes:
        model, prompts, edits, metrics: as given to `sweep`.
        located: the edits of each intervention, at their places in these prompts.
        given: likewise the edits that are on throughout.
        readout: what the metrics read.
        batch_size: interventions at a time, None for what memory allows.
        memory_limit: in bytes.
    """

    model: HookedGPT2
    prompts: Prompts
    edits: tuple[tuple[Edit, ...], ...]
    located: tuple[tuple[LocatedEdit, ...], ...]
    given: tuple[LocatedEdit, ...]
    readout: Readout
    metrics: Mapping[str, Metric | Function]
    batch_size: int | None
    memory_limit: int

    # -------------------------------------------------------------- carrying it out

    def run(self, *, progress: bool = True) -> SweepResult:
        """Carry it out.

        Raises:
            NotANumber: a metric is NaN.
            ValueError: it is of the wrong shape, or the memory limit is too small.
            SweepInterrupted: on Ctrl-C.
        """
        n_edits, n_prompts = len(self.edits), len(self.prompts.tokens)
        values: dict[str, Tensor] = {}
        base: dict[str, Tensor] = {}

        def result() -> SweepResult:
            return SweepResult(
                edits=self.edits,
                given=tuple(one.edit for one in self.given),
                values=values,
                base=base,
                str_tokens=self.prompts.str_tokens,
                prepend_bos=self.prompts.prepend_bos,
                provenance=Provenance.of(self.model, f"sweep(model, ..., {self._reads()})"),
            )

        try:
            with torch.no_grad(), cli.bar("sweep", shown=progress) as advance:
                for first, n in self._chunks():
                    run = self._base(first, n)
                    read = self.readout.of_base(run, n)
                    here = slice(first, first + n)
                    for name in self.metrics:
                        found = read.values[name]
                        if name not in values:
                            width = n_prompts if name in self.readout.metrics else len(found)
                            values[name] = torch.full((n_edits, width), torch.nan).double()
                            base[name] = torch.full((width,), torch.nan).double()
                        base[name][here] = found
                    rows = self._rows(first, n, run)
                    for number, numbers in self._evaluated(rows, run, read, advance):
                        for name, found in numbers.items():
                            values[name][number, here] = found
        except KeyboardInterrupt:
            if not values:
                raise
            raise SweepInterrupted(result()) from None
        found = result()
        self._refuse_nan(found)
        return found

    def _evaluated(
        self, rows: list[Row], base: Base, read: BaseReadout, advance: Callable[[float], None]
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Each intervention with its metrics, on the prompts of one base run."""
        schedule = self._schedule(rows)
        cost = _Cost.of(schedule)
        n = len(rows) // len(self.edits)
        walks = self._walks(schedule, cost)
        walked = set().union(*map(set, walks))
        for number in range(len(self.edits)):
            if not any(row in walked for row in range(number * n, (number + 1) * n)):
                yield number, dict(read.values)
        total = float(cost.cells.sum()) * len(self.prompts.tokens)
        for walk in walks:
            chosen = [rows[i] for i in walk]
            part = self._schedule(chosen)
            climb = Walk(self.model, base, part, self.given)
            work = float(cost.cells[walk].sum()) / total
            for share in climb.run():
                advance(share * work * n)
            yield from self._read(chosen, part, climb, read)

    def _read(
        self, rows: Sequence[Row], schedule: Schedule, climb: Walk, read: BaseReadout
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        layout, normalized = climb.layout, climb.normalized
        of_rows = read.of_rows(schedule.example, layout.row, layout.column, normalized)
        for number, places in interventions_of([row.intervention for row in rows]):
            prompts = schedule.example[places] - read.first
            found = {name: read.values[name].clone() for name in of_rows}
            for name, values in of_rows.items():
                found[name][prompts] = values[places]
            if self.readout.functions:
                cells = np.isin(layout.row, places).nonzero()[0]
                prompt = schedule.example[layout.row[cells]] - read.first
                at = torch.from_numpy(cells).to(normalized.device)
                found |= read.of_intervention(prompt, layout.column[cells], normalized[at])
            yield number, found

    # -------------------------------------------------------------- parts of the plan

    def _schedule(self, rows: Sequence[Row]) -> Schedule:
        real = self.prompts.attention_mask.cpu().numpy()
        return Schedule(rows, self.given, self.readout.reads, real, self.model.cfg.n_layers)

    def _base(self, first: int, n: int) -> Base:
        here = slice(first, first + n)
        names = [*self._base_points, "ln_final.hook_normalized"]
        return Base.run(
            self.model,
            self.prompts.tokens[here],
            self.prompts.attention_mask[here],
            first,
            self.given,
            names,
        )

    @cached_property
    def _base_points(self) -> list[str]:
        """Where the base run is looked up: where rows join, and where edits are compared with it
        to see what they change (not at points that would be computed for that alone)."""
        edits = {edit.point.name: edit for one in self.located for edit in one}
        compared = {
            edit.point.name
            for one in self.located
            for edit in one
            if not edit.point.on_request and edit.whole_source is not None
        }
        return sorted({*needed(list(edits.values()), self.model.cfg.n_layers), *compared})

    def _rows(self, first: int, n: int, base: Base | None) -> list[Row]:
        """All interventions on some prompts: those of an intervention next to each other.

        With the base run known, edits are seen not to change what they do not.
        """
        differences: dict[tuple[int, str], np.ndarray] = {}

        def changed(edit: LocatedEdit, example: int) -> np.ndarray:
            columns = edit.columns[example]
            source = edit.whole_source
            if base is None or source is None or edit.point.name not in base.cache.tensors:
                return columns
            key = (id(source), edit.point.name)
            if key not in differences:
                here = slice(first, first + n) if len(source) > 1 else slice(None)
                there = position_first(base.cache.tensors[edit.point.name], edit.point.axes)
                differences[key] = (source[here] != there).any(-1).cpu().numpy()
            there = differences[key][example - first][columns]
            if there.ndim == 2:
                heads = slice(None) if edit.heads is None else edit.heads.cpu().numpy()
                there = there[:, heads].any(1)
            return columns[there]

        return [
            Row(number, example, edits, tuple(changed(edit, example) for edit in edits))
            for number, edits in enumerate(self.located)
            for example in range(first, first + n)
        ]

    def _chunks(self) -> list[tuple[int, int]]:
        """Which prompts have their base run together: (first, how many)."""
        n_prompts = len(self.prompts.tokens)
        if self.readout.functions:
            return [(0, n_prompts)]
        fit = max(1, int(self.memory_limit / 2 // self._base_bytes()))
        return [(first, min(fit, n_prompts - first)) for first in range(0, n_prompts, fit)]

    def _base_bytes(self) -> int:
        """What the base run of one prompt keeps."""
        cfg, length = self.model.cfg, self.prompts.tokens.shape[1]
        size = self.model.W_E.element_size()
        names = self._base_points
        attention = sum("attn_scores" in name or "pattern" in name for name in names)
        kept = (len(names) + 1) * cfg.d_model + attention * cfg.n_heads * length
        return length * kept * size + length * length

    def _walks(self, schedule: Schedule, cost: "_Cost") -> list[list[int]]:
        """Which rows climb together: all that fit, those of an intervention always together."""
        changing = [number for number, row in enumerate(schedule.rows) if cost.reaches[number]]
        by_intervention: dict[int, list[int]] = {}
        for row in changing:
            by_intervention.setdefault(schedule.rows[row].intervention, []).append(row)
        # Neighbours join at about the same layer, so that few layers are climbed by few rows.
        order = sorted(by_intervention.values(), key=lambda rows: min(cost.first[rows]))
        room = self.memory_limit / 2
        walks: list[list[int]] = []
        cells = taken = count = 0
        for rows in order:
            more = int(cost.width[rows].sum())
            bytes_more = self._walk_bytes(more, len(rows))
            if bytes_more > room:
                raise ValueError(
                    f"memory_limit={self.memory_limit} is too small: an intervention on "
                    f"{len(rows)} of the prompts takes about {2 * bytes_more} bytes."
                )
            full = (
                cells + more > _MOST_CELLS if self.batch_size is None else count >= self.batch_size
            )
            if not walks or taken + bytes_more > room or full:
                walks.append([])
                cells = taken = count = 0
            walks[-1] += rows
            cells, taken, count = cells + more, taken + bytes_more, count + 1
        return walks

    def _walk_bytes(self, cells: int, rows: int) -> int:
        """About what some rows take while they climb."""
        cfg, length = self.model.cfg, self.prompts.tokens.shape[1]
        per_cell = 12 * cfg.d_model + 2 * cfg.d_mlp
        per_row = length * (2 * cfg.d_model + length)
        return (cells * per_cell + rows * per_row) * self.model.W_E.element_size()

    # -------------------------------------------------------------- saying it

    def explain(self) -> str:
        """The plan in words and numbers: what joins where, and what it costs against one full
        forward pass per intervention.

        Rows are interventions on prompts, cells are their positions. An upper bound: edits that
        turn out to change nothing are left out when it is carried out.
        """
        n_prompts = len(self.prompts.tokens)
        schedule = self._schedule(self._rows(0, n_prompts, None))
        cost = _Cost.of(schedule)
        n_layers = self.model.cfg.n_layers
        lengths = self.prompts.lengths
        span = (
            f"{min(lengths)}" if min(lengths) == max(lengths) else f"{min(lengths)}-{max(lengths)}"
        )
        walks = self._walks(schedule, cost)
        idle = len(schedule.rows) - sum(map(len, walks))
        lines = [
            f"{len(self.edits)} interventions on {n_prompts} prompt{'s'[: n_prompts != 1]} of "
            f"{span} tokens: {len(schedule.rows)} rows"
            + (f", {idle} of which cannot change what is read" if idle else ""),
            f"reads {self._reads()}",
            "",
            f"{'layer':>8} {'rows join':>10} {'rows':>8} {'q k v of':>10} {'mlp of':>8}  (cells)",
        ]
        for layer in range(n_layers):
            joined = int(((cost.first == layer) & cost.reaches).sum())
            entering, leaving = cost.by_layer[layer]
            rows = int((cost.first <= layer)[cost.reaches].sum())
            lines.append(f"{layer:>8} {joined:>10} {rows:>8} {entering:>10} {leaving:>8}")
        flops, naive = self._flops(cost), self._naive_flops()
        memory = max((self._walk_bytes(int(cost.width[w].sum()), len(w)) for w in walks), default=0)
        chunk = max(n for _, n in self._chunks())
        lines += [
            "",
            f"{len(walks)} climb{'s'[: len(walks) != 1]} through the layers; about "
            f"{(memory + chunk * self._base_bytes()) / 2**20:.0f} MiB of activations (limit "
            f"{self.memory_limit / 2**20:.0f} MiB)",
            f"about {flops:.2e} floating-point operations; one forward pass per intervention takes "
            f"{naive:.2e}, {naive / flops:.1f} times that",
        ]
        return "\n".join(lines)

    def _reads(self) -> str:
        positions = int(self.readout.reads.sum())
        return (
            f"{', '.join(self.metrics)} at {positions} position{'s'[: positions != 1]} in all, "
            f"from {self.readout.n_ids} of {self.model.cfg.d_vocab_out} logits each"
        )

    def _flops(self, cost: "_Cost") -> float:
        cfg, length = self.model.cfg, self.prompts.tokens.shape[1]
        entering, leaving = np.array(cost.by_layer).sum(0)
        enter = 6 * cfg.d_model**2
        rest = 2 * cfg.d_model**2 + 4 * cfg.d_model * cfg.d_mlp + 4 * length * cfg.d_model
        read = 2 * cfg.d_model * self.readout.n_ids * cost.read
        return float(enter * entering + rest * leaving + read) + self._naive_flops() / len(
            self.edits
        )

    def _naive_flops(self) -> float:
        cfg = self.model.cfg
        block = 8 * cfg.d_model**2 + 4 * cfg.d_model * cfg.d_mlp
        per_prompt = (
            n * (cfg.n_layers * (block + 4 * n * cfg.d_model) + 2 * cfg.d_model * cfg.d_vocab_out)
            for n in self.prompts.lengths
        )
        return float(len(self.edits) * sum(per_prompt))

    def _refuse_nan(self, found: SweepResult) -> None:
        for name, values in found.values.items():
            base = found.base[name]
            if bool(base.isnan().any()):
                example = int(base.isnan().nonzero()[0])
                message = f"metric {name} of the base run is NaN on prompt {example}."
                raise NotANumber(message, found)
            missing = values.isnan().nonzero()
            if len(missing):
                number, example = missing[0].tolist()
                edits = "; ".join(map(repr, self.edits[number]))
                others = f", and {len(missing) - 1} more times" if len(missing) > 1 else ""
                raise NotANumber(
                    f"metric {name} is NaN under intervention {number} ({edits}) on prompt "
                    f"{example}{others}.",
                    found,
                )

    def __repr__(self) -> str:
        return f"Plan({len(self.edits)} interventions on {len(self.prompts.tokens)} prompts)"


@dataclass(frozen=True, eq=False)
class _Cost:
    """What the rows of a schedule come to.

    Attributes:
        first: per row, the first block in which it carries anything.
        width: per row, the most cells it carries.
        cells: per row, its cells over all blocks.
        reaches: per row, whether it can change anything that is read.
        by_layer: per block, the cells that enter and those that leave.
        read: cells read in the end.
    """

    first: np.ndarray
    width: np.ndarray
    cells: np.ndarray
    reaches: np.ndarray
    by_layer: list[tuple[int, int]]
    read: int

    @classmethod
    def of(cls, schedule: Schedule) -> "_Cost":
        n = len(schedule.rows)
        first = np.full(n, schedule.n_layers)
        width, cells = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        by_layer = [(0, 0)] * schedule.n_layers
        carried = schedule.embedded()
        for layer in schedule.layers():
            entering, leaving = layer.enter.sum(1), layer.mlp.sum(1)
            here = np.maximum(entering, np.maximum(leaving, layer.leave.sum(1)))
            first = np.where((first == schedule.n_layers) & (here > 0), layer.layer, first)
            width = np.maximum(width, here)
            cells += here
            by_layer[layer.layer] = (int(entering.sum()), int(leaving.sum()))
            carried = layer.leave
        final = schedule.final(carried).sum(1)
        return cls(
            first, np.maximum(width, final), cells + 1, final > 0, by_layer, int(final.sum())
        )
