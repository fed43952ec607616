"""Metrics of what arrived at the top, with no more of the vocabulary unembedded than they need."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses._engine.walk import Base, index
from analyses.metrics import Cells, Function, Metric, next_columns
from interp import HookedGPT2

# Larger pieces are no faster.
_CHUNK_BYTES = 16 * 2**20


class Readout:
    """Metrics of a batch of prompts.

    Args:
        model: whose unembedding is used.
        tokens, mask: the prompts.
        metrics: by name.
        memory_limit: bytes that a sweep may take.

    Attributes:
        chunk_bytes: so many bytes of logits are made at a time.
        reads: `example pos`, where any metric reads.

    Raises:
        ValueError, IndexError: a metric does not fit the prompts.
    """

    def __init__(
        self,
        model: HookedGPT2,
        tokens: Int[Tensor, "example pos"],
        mask: Bool[Tensor, "example pos"],
        metrics: Mapping[str, Metric | Function],
        memory_limit: int,
    ) -> None:
        # What is made of logits takes a few times as much.
        self.chunk_bytes = min(_CHUNK_BYTES, memory_limit // 8)
        self._model, self._tokens = model, tokens
        self._next = next_columns(mask.cpu()).to(tokens.device)
        self.metrics = {n: m for n, m in metrics.items() if isinstance(m, Metric)}
        self.functions = {n: m for n, m in metrics.items() if isinstance(m, Function)}
        for one in self.metrics.values():
            one.check(len(tokens), model.cfg.d_vocab_out)
        self._reads = {n: m.reads(mask.cpu()).numpy() for n, m in self.metrics.items()}
        self._ids = self._vocabulary()
        # A function of all logits reads padding too, for all we know; it never changes.
        nowhere = np.zeros(tuple(mask.shape), dtype=bool)
        everywhere = [~nowhere] if self.functions else []
        self.reads = np.logical_or.reduce([nowhere, *self._reads.values(), *everywhere])

    def _vocabulary(self) -> Tensor | None:
        needed = [m.vocabulary() for m in self.metrics.values()]
        if any(ids is None for ids in needed):
            return None
        ids = sorted(set().union(*(ids for ids in needed if ids is not None)))
        return torch.tensor(ids, dtype=torch.int64, device=self._tokens.device)

    @property
    def n_ids(self) -> int:
        """Of how many tokens logits are made."""
        if self.functions or self._ids is None:
            return self._model.cfg.d_vocab_out
        return len(self._ids)

    def of_base(self, base: Base, n: int) -> "BaseReadout":
        """What the base run of `n` prompts gives."""
        return BaseReadout(self, base, n)


class BaseReadout:
    """Metrics of the base run of some prompts, and of rows that differ from it.

    Attributes:
        first: the first of the prompts.
        values: metric -> `prompt` numbers (one, of a function that gives one for all).
    """

    def __init__(self, readout: Readout, base: Base, n: int) -> None:
        self._readout, self._model, self.first = readout, readout._model, base.first
        here = slice(base.first, base.first + n)
        self._reads = {name: reads[here] for name, reads in readout._reads.items()}
        prompt, column = readout.reads[here].nonzero()
        weight = self._model.weight("ln_f.weight")
        normalized = base.at("ln_final.hook_normalized", prompt + base.first, column)
        self._normalized = torch.addcmul(self._model.weight("ln_f.bias"), normalized, weight)
        # prompt pos -> where in `_normalized` it is
        self._place = np.full(readout.reads[here].shape, -1)
        self._place[prompt, column] = np.arange(len(prompt))
        shape = readout.reads[here].shape
        blank = {name: np.full(shape, np.nan) for name in self._reads}
        self._cells = self._measured(blank, prompt, prompt, column, self._normalized)
        self.values = self._means(self._cells, np.arange(n))
        self._logits = None
        if readout.functions:
            self._logits = self._model.unembed(self._normalized).view(*shape, -1)
            self.values |= {
                name: function(self._logits).to("cpu", torch.float64)
                for name, function in readout.functions.items()
            }

    def of_rows(
        self,
        example: Int[np.ndarray, " row"],
        row: Int[np.ndarray, " cell"],
        column: Int[np.ndarray, " cell"],
        normalized: Float[Tensor, "cell d_model"],
    ) -> dict[str, Float[Tensor, " row"]]:
        """Per-prompt metrics of rows, whose changed cells are given."""
        prompt = example - self.first
        cells = {name: values[prompt] for name, values in self._cells.items()}
        cells = self._measured(cells, row, prompt[row], column, normalized)
        return self._means(cells, prompt)

    def of_intervention(
        self,
        prompt: Int[np.ndarray, " cell"],
        column: Int[np.ndarray, " cell"],
        normalized: Float[Tensor, "cell d_model"],
    ) -> dict[str, Float[Tensor, " value"]]:
        """Functions of all logits, of one intervention on all prompts."""
        assert self._logits is not None
        logits = self._logits.clone()
        logits[index(prompt, logits), index(column, logits)] = self._model.unembed(normalized)
        return {
            name: function(logits).to("cpu", torch.float64)
            for name, function in self._readout.functions.items()
        }

    def _measured(
        self,
        values: dict[str, np.ndarray],
        row: np.ndarray,
        prompt: np.ndarray,
        column: np.ndarray,
        normalized: Tensor,
    ) -> dict[str, np.ndarray]:
        """`values`, `row pos` per metric, with those of the given cells filled in."""
        readout = self._readout
        ids = readout._ids
        n_ids = self._model.cfg.d_vocab_out if ids is None else len(ids)
        if not values:
            return values
        at_once = max(1, readout.chunk_bytes // (n_ids * normalized.element_size()))
        for start in range(0, len(row), at_once):
            part = slice(start, start + at_once)
            logits = self._model.unembed(normalized[part], ids)
            for name, metric in readout.metrics.items():
                read = self._reads[name][prompt[part], column[part]].nonzero()[0]
                if not len(read):
                    continue
                at = prompt[part][read], column[part][read]
                cells = Cells(
                    example=index(at[0] + self.first, logits),
                    column=index(at[1], logits),
                    tokens=readout._tokens,
                    next_column=readout._next,
                    ids=ids,
                    base_logits=lambda at=at: self._base_logits(*at),
                )
                everything = len(read) == len(logits)
                found = metric.measure(logits if everything else logits[index(read, logits)], cells)
                values[name][row[part][read], at[1]] = found.to("cpu", torch.float64).numpy()
        return values

    def _base_logits(self, prompt: np.ndarray, column: np.ndarray) -> Tensor:
        at = index(self._place[prompt, column], self._normalized)
        return self._model.unembed(self._normalized[at], self._readout._ids)

    def _means(self, cells: Mapping[str, np.ndarray], prompt: np.ndarray) -> dict[str, Tensor]:
        found = {}
        for name, values in cells.items():
            reads = self._reads[name][prompt]
            total = np.where(reads, values, 0.0).sum(1)
            found[name] = torch.from_numpy(total / reads.sum(1))
        return found


def interventions_of(rows: Sequence[int]) -> list[tuple[int, np.ndarray]]:
    """Each intervention, with the places of its rows."""
    numbers = np.asarray(rows)
    return [(int(one), (numbers == one).nonzero()[0]) for one in np.unique(numbers)]
