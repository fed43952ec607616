"""What a receiver gets when one sender is changed and all attention stays as it was.

With every other head frozen, nothing moves between positions any more: a changed residual walks up
its own position, through the layer norms and MLPs, until a receiver reads it. So the walk takes
rows (one per sender and token) through the MLPs from the sender's layer on and needs no attention,
no unembedding and no position that is not asked for.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from analyses._views.path_patching import FORMS
from hooks import ActivationCache
from hooks.names import nearest
from interp import HookedGPT2
from interp.activations import ACTIVATIONS

HEAD_INPUTS = ("q", "k", "v")
RESIDUAL_INPUTS = ("resid_pre", "resid_mid", "mlp_in", "resid_post")

# So many numbers of the MLPs' hidden layers are made at a time.
_HIDDEN = 2**24


class Sender(NamedTuple):
    """What writes to the residual stream: a head, an MLP, or the token embedding.

    Attributes:
        kind: "head", "mlp" or "embed".
        layer: its block; -1 for the embedding.
        head: of a head.
    """

    kind: Literal["head", "mlp", "embed"]
    layer: int = -1
    head: int | None = None

    @property
    def stage(self) -> int:
        """After how many writings to the residual stream its own is in it; see `Receiver.stage`."""
        return 2 * self.layer + (1 if self.kind == "head" else 2)

    def __str__(self) -> str:
        if self.kind == "embed":
            return "embed"
        return f"mlp {self.layer}" if self.kind == "mlp" else f"{self.layer}.{self.head}"


class Receiver(NamedTuple):
    """What reads the residual stream.

    Attributes:
        layer: its block.
        point: "q", "k" or "v" of a head; else "resid_pre", "resid_mid", "mlp_in" or "resid_post".
        head: of "q", "k" and "v".
    """

    layer: int
    point: str
    head: int | None = None

    @property
    def stage(self) -> int:
        """How many attention layers and MLPs have written to what it reads."""
        if self.point == "resid_post":
            return 2 * self.layer + 2
        return 2 * self.layer + (self.point in ("resid_mid", "mlp_in"))

    def __str__(self) -> str:
        if self.head is None:
            return f"{self.point}.{self.layer}"
        return f"{self.layer}.{self.head}.{self.point}"


def parse_receiver(text: str, n_layers: int, n_heads: int) -> Receiver:
    """The receiver that a text such as `9.9.q`, `resid_post.11` or `logits` names.

    `logits` is the last residual: all that the final layer norm and the unembedding read.

    Raises:
        ValueError: it names none.
        IndexError: the model has no such layer or head.
    """
    words = text.strip()
    if words == "logits":
        return Receiver(n_layers - 1, "resid_post")
    found = re.fullmatch(r"(\d+)\.(\d+)\.(\w+)", words)
    residual = re.fullmatch(r"(\w+)\.(\d+)", words)
    if found is not None and found[3] in HEAD_INPUTS:
        receiver = Receiver(int(found[1]), found[3], int(found[2]))
    elif residual is not None and residual[1] in RESIDUAL_INPUTS:
        receiver = Receiver(int(residual[2]), residual[1])
    else:
        name = re.sub(r"[\d.]+", "", words)
        hint = nearest(name, (*RESIDUAL_INPUTS, "logits"))
        raise ValueError(f"no receiver is called {text!r}.{hint} Expected one of: {FORMS}")
    if receiver.layer >= n_layers:
        raise IndexError(
            f"receiver {text!r}: layer {receiver.layer} is out of range, this model has layers 0 "
            f"to {n_layers - 1}"
        )
    if receiver.head is not None and receiver.head >= n_heads:
        raise IndexError(
            f"receiver {text!r}: head {receiver.head} is out of range, this model has heads 0 to "
            f"{n_heads - 1}"
        )
    return receiver


@dataclass(frozen=True, eq=False)
class Cells:
    """The tokens at which senders are changed, and both runs there.

    Attributes:
        example, column: where each token is, `cell`.
        slot: its place among the positions asked for, `cell`.
        base, source: the caches of the two runs.
        kept: the columns that the caches hold.
    """

    example: Int[Tensor, " cell"]
    slot: Int[Tensor, " cell"]
    column: Int[Tensor, " cell"]
    base: ActivationCache
    source: ActivationCache
    kept: Int[Tensor, " column"]

    def of(self, cache: ActivationCache, name: str, layer: int | None) -> Float[Tensor, "cell ..."]:
        """A point of a run at every token."""
        value = cache[name if layer is None else (name, layer)]
        where = torch.searchsorted(self.kept, self.column)
        return value[self.example.to(value.device), where.to(value.device)]

    def change(self, name: str, layer: int | None) -> Float[Tensor, "cell ..."]:
        """Source run minus base run at a point."""
        return self.of(self.source, name, layer) - self.of(self.base, name, layer)

    def unfold(
        self, value: Float[Tensor, "cell ..."], like: Int[Tensor, "example slot"]
    ) -> Float[Tensor, "example slot ..."]:
        """Values per token laid out as `like`, 0 where there is no token."""
        laid = value.new_zeros(*like.shape, *value.shape[1:])
        laid[self.example.to(value.device), self.slot.to(value.device)] = value
        return laid


def points(senders: Sequence[Sender], last_stage: int, freeze_mlps: bool) -> list[str | tuple]:
    """What must be kept of the base run for a walk to `last_stage`."""
    layers = range((last_stage + 1) // 2)
    names: list[str | tuple] = [("resid_pre", 0)]
    names += [(name, layer) for layer in layers for name in ("attn_out", "resid_mid")]
    names += [("resid_post", layer) for layer in range(last_stage // 2)]
    if freeze_mlps:
        names += [("mlp_out", layer) for layer in range(last_stage // 2)]
    return list(dict.fromkeys([*names, *source_points(senders)]))


def source_points(senders: Sequence[Sender]) -> list[str | tuple]:
    """What must be kept of the source run: what the senders write, or for heads write from."""
    written: list[str | tuple] = []
    for sender in senders:
        if sender.kind == "embed":
            written.append("embed")
        else:
            written.append(("z" if sender.kind == "head" else "mlp_out", sender.layer))
    return list(dict.fromkeys(written))


Received = dict[Receiver, Float[Tensor, "cell ..."]]


def walk(
    model: HookedGPT2,
    cells: Cells,
    senders: Sequence[Sender],
    receivers: Sequence[Receiver],
    freeze_mlps: bool,
) -> dict[Sender, Received]:
    """What each receiver reads (for heads: its queries, keys or values) under each sender.

    Receivers that a sender does not reach, because they come before it, are left out.

    Args:
        cells: the tokens; caches with `points`.
        freeze_mlps: keep the outputs of MLPs too as in the base run, rather than computing them
            from what reaches them.
    """
    last = max(receiver.stage for receiver in receivers)
    joining = defaultdict(list)
    for sender in senders:
        joining[sender.stage].append(sender)
    reading = defaultdict(list)
    for receiver in receivers:
        reading[receiver.stage].append(receiver)
    found: dict[Sender, Received] = {sender: {} for sender in senders}
    walking: list[Sender] = []
    rows: list[Tensor] = []  # per sender walking, `cell d_model`
    for stage in range(last + 1):
        layer, after_attention = (stage - 1) // 2, stage % 2 == 1
        if rows and after_attention:
            written = cells.of(cells.base, "attn_out", layer)
            rows = [row + written for row in rows]
        elif rows and freeze_mlps:
            written = cells.of(cells.base, "mlp_out", layer)
            rows = [row + written for row in rows]
        elif rows:
            rows = _through_mlp(model, layer, rows)
        for sender in joining[stage]:
            rows.append(_changed(model, cells, sender))
            walking.append(sender)
        for receiver in reading[stage] if rows else ():
            for sender, read in zip(walking, _reading(model, receiver, rows), strict=True):
                found[sender][receiver] = read
    return found


def _changed(model: HookedGPT2, cells: Cells, sender: Sender) -> Float[Tensor, "cell d_model"]:
    """The base run's residual right after a sender has written what it writes in the source run."""
    layer = sender.layer
    if sender.kind == "embed":
        return cells.of(cells.base, "resid_pre", 0) + cells.change("embed", None)
    if sender.kind == "mlp":
        return cells.of(cells.base, "resid_post", layer) + cells.change("mlp_out", layer)
    written = cells.change("z", layer)[:, sender.head] @ model.W_O[layer, sender.head]
    return cells.of(cells.base, "resid_mid", layer) + written


def _through_mlp(model: HookedGPT2, layer: int, rows: Sequence[Tensor]) -> list[Tensor]:
    w, cfg = model.blocks[layer], model.cfg
    several = max(1, _HIDDEN // (cfg.d_mlp * rows[0].shape[0]))
    found: list[Tensor] = []
    for start in range(0, len(rows), several):
        resid_mid = torch.stack(list(rows[start : start + several]))
        flat = resid_mid.flatten(0, 1)
        normalised = F.layer_norm(flat, flat.shape[-1:], w.ln2.w, w.ln2.b, cfg.eps)
        hidden = ACTIVATIONS[cfg.act_fn](torch.addmm(w.mlp.b_in, normalised, w.mlp.W_in))
        written = torch.addmm(w.mlp.b_out, hidden, w.mlp.W_out)
        found += (resid_mid + written.view_as(resid_mid)).unbind(0)
    return found


def _reading(model: HookedGPT2, receiver: Receiver, rows: Sequence[Tensor]) -> Iterator[Tensor]:
    if receiver.head is None:
        yield from rows
        return
    block = model.blocks[receiver.layer]
    weights = {"q": (block.attn.W_Q, block.attn.b_Q), "k": (block.attn.W_K, block.attn.b_K)}
    weight, bias = weights.get(receiver.point, (block.attn.W_V, block.attn.b_V))
    for row in rows:
        normalised = F.layer_norm(row, row.shape[-1:], block.ln1.w, block.ln1.b, model.cfg.eps)
        yield normalised @ weight[receiver.head] + bias[receiver.head]
