"""The forward passes of a generation: the prompts, then one column after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooks import ActivationCache, HookPoint
from hooks.timeline import Timeline
from interp.kv_cache import KeyValueCache
from interp.model import Visibility

if TYPE_CHECKING:
    from interp.model import GPT2

Logits = Float[Tensor, "row d_vocab"]


class Passes:
    """Runs the model on prompts, and then on the tokens chosen.

    Args:
        model: what computes.
        tokens, mask: the prompts, padded on the left.
        n_new: how many columns may come.
        timeline: what listens.
        past: keys and values of the tokens before; left as it is.
        cached: keep keys and values; otherwise every pass computes everything again.
        record: the points to keep, or none.
    """

    def __init__(
        self,
        model: "GPT2",
        tokens: Int[Tensor, "prompt pos"],
        mask: Bool[Tensor, "prompt pos"],
        n_new: int,
        timeline: Timeline,
        *,
        past: KeyValueCache | None = None,
        cached: bool = True,
        record: Sequence[str] = (),
    ) -> None:
        self._model, self._timeline, self._cached = model, timeline, cached
        device = tokens.device
        batch, width = tokens.shape
        self._first = 0 if past is None else past.length
        if past is None:
            self._cache = KeyValueCache.init_cache(
                model.cfg, device, batch, dtype=model.weight("wte").dtype
            )
        else:
            self._cache = past.fork()
        n_columns = self._first + width + n_new
        # Columns of padding may make it more than positions.
        self._cache.capacity = max(self._cache.capacity, n_columns)
        self._cache.reserve(n_columns)
        # On the device for attention, as numpy for what decides; both of all columns.
        self._mask = torch.ones(batch, n_columns, dtype=torch.bool, device=device)
        self._mask[:, : self._first] = self._cache.mask[:, : self._first]
        self._mask[:, self._first : self._first + width] = mask
        self._real = self._mask.cpu().numpy().copy()
        self._padded = not self._real[:, : self._first + width].all()
        self._prompt = self._first + width
        self._tokens = tokens
        self._end = self._first
        self._examples = list(range(batch))
        self._blocks = list(model.block_weights())
        self._recorder = Recorder() if record else None
        if record:
            timeline.collect(list(record), self._recorder)

    @property
    def counted_tokens(self) -> Int[Tensor, "row d_vocab"]:
        """How often each row's prompt has each token."""
        counts = torch.zeros(
            len(self._tokens), self._model.cfg.d_vocab, dtype=torch.long, device=self._mask.device
        )
        real = self._mask[:, self._prompt - self._tokens.shape[1] : self._prompt]
        return counts.scatter_add_(1, self._tokens, real.long())

    def prompts(self) -> Logits:
        """The logits after each prompt."""
        return self._run(self._tokens)

    def next(self, tokens: Int[Tensor, " row"], real: Sequence[bool]) -> Logits:
        """The logits after one more token of each row; those not `real` are padding."""
        if not all(real):
            self._padded = True
            self._real[:, self._end] = real
            self._mask[:, self._end] = torch.tensor(real, device=self._mask.device)
        column = tokens[:, None]
        if self._cached:
            return self._run(column)
        self._tokens = torch.cat([self._tokens, column], dim=1)
        self._end, self._cache.length = self._first, self._first
        return self._run(self._tokens)

    def fork(self, copies: int) -> None:
        """Go on with every prompt `copies` times."""
        if copies > 1:
            rows = np.arange(len(self._examples)).repeat(copies)
            self._cache = self._cache.fork(copies)
            self._cache.reserve(self._mask.shape[1])
            self._pick(rows)

    def reorder(self, rows: Int[Tensor, " row"]) -> None:
        """Row `i` goes on from what row `rows[i]` was."""
        self._cache.reorder(rows)
        self._pick(rows.cpu().numpy())

    def _pick(self, rows: np.ndarray) -> None:
        index = torch.from_numpy(rows).to(self._mask.device)
        self._tokens, self._mask = self._tokens[index], self._mask[index]
        self._real = self._real[rows]
        self._examples = [self._examples[row] for row in rows]
        if self._recorder is not None:
            self._recorder.pick(index)

    def _run(self, tokens: Int[Tensor, "row new"]) -> Logits:
        model, start, end = self._model, self._end, self._end + tokens.shape[1]
        listeners = self._timeline.listeners(
            start, self._real[:, :end], self._examples, end - self._prompt
        )
        if self._recorder is not None:
            self._recorder.begin(start, end)
        with _quietly(not self._timeline.listens):
            normalized = model.compute(
                tokens,
                Visibility.of(self._mask[:, :end], tokens.shape[1], self._padded),
                listeners,
                start_at_layer=0,
                stop_at_layer=None,
                unembed=False,
                past=self._cache,
                frozen=False,
                blocks=self._blocks,
            )
            logits = model.unembed(normalized[:, -1])
        self._timeline.ended()
        self._cache.commit(self._mask[:, :end])
        self._end = end
        return logits

    def record(self, **about: object) -> ActivationCache:
        """What was kept, at all columns."""
        assert self._recorder is not None
        return self._recorder.cache(**about)


@contextmanager
def _quietly(nobody_keeps_tensors: bool) -> Iterator[None]:
    """Without gradients; where no one can see the tensors, without what makes gradients possible
    later."""
    with torch.inference_mode() if nobody_keeps_tensors else torch.no_grad():
        yield


class Recorder:
    """Puts what passes the points in several passes together as one pass would have it."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[tuple[int, int, Tensor]]] = {}
        self._axes: dict[str, tuple[str, ...]] = {}
        self._window = (0, 0)

    def begin(self, start: int, end: int) -> None:
        """A pass over these columns begins; what was kept of them is forgotten."""
        self._window = (start, end)
        for name, pieces in self._pieces.items():
            self._pieces[name] = [piece for piece in pieces if piece[1] <= start]

    def __call__(self, point: HookPoint, value: Tensor) -> None:
        """Keep what passed a point."""
        self._axes[point.name] = point.axes
        start, end = self._window
        self._pieces.setdefault(point.name, []).append((start, end, value))

    def pick(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows."""
        for name, pieces in self._pieces.items():
            self._pieces[name] = [(a, b, value[rows]) for a, b, value in pieces]

    def cache(self, **about: object) -> ActivationCache:
        """All of it. Where a query does not look, scores are -inf and patterns 0."""
        made: dict[tuple, Tensor] = {}
        tensors = {}
        for name, pieces in self._pieces.items():
            # What passes two points is kept once.
            key = tuple((v.data_ptr(), v.shape, v.stride()) for _, _, v in pieces)
            if key not in made:
                made[key] = self._whole(name, pieces)
            tensors[name] = made[key]
        cache = ActivationCache(tensors, self._axes)
        return replace(cache, **about)  # pyright: ignore[reportArgumentType]

    def _whole(self, name: str, pieces: list[tuple[int, int, Tensor]]) -> Tensor:
        if "query" not in self._axes[name]:
            return torch.cat([value for _, _, value in pieces], dim=1)
        end = pieces[-1][1]
        rows, heads = pieces[0][2].shape[:2]
        blank = -torch.inf if name.endswith("hook_attn_scores") else 0.0
        whole = pieces[0][2].new_full((rows, heads, end, end), blank)
        for start, stop, value in pieces:
            whole[:, :, start:stop, : value.shape[-1]] = value
        return whole
