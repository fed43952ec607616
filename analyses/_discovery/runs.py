"""Running the model as a circuit: many circuits at a time, each from where it first differs.

What a receiver reads is the residual of the senders before it, in-circuit ones with what they
write now, the others with what stands in their place. As long as nothing that matters is missing,
what senders write is what they write in the clean run; so a run of some circuits starts at the
first layer in which one of them lacks an edge (or node) that leads to the logits, from the clean
run's values, and heads that lead nowhere in any of them are not computed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses._discovery.circuit import AnyCircuit, Circuit, NodeCircuit
from analyses._discovery.names import AnyNode, Edge, Shape, parse_node
from analyses._discovery.sets import whole_part
from analyses._discovery.setting import Setting
from analyses._edges import Part
from analyses._positions import positions_of
from hooks import Tap
from interp.model import BlockWeights, Visibility

# More cells at a time are no faster: by then the matrix products have all the rows they need.
_MOST_CELLS = 8192
Values = Float[Tensor, "circuit value"]
Advance = Callable[[float], None]


class Runs(ABC):
    """Runs circuits, given as masks, in one setting.

    Attributes:
        setting: prompts, metric, what stands in place.
        shape: of the model.
        n_run: how many circuits have been run so far.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.shape = Shape.of(setting.model)
        self.n_run = 0

    @property
    @abstractmethod
    def full(self) -> Bool[Tensor, "..."]:
        """The mask of the whole model."""

    @abstractmethod
    def mask(self, circuit: AnyCircuit) -> Bool[Tensor, "..."]:
        """The mask of a circuit."""

    @abstractmethod
    def leaving(self, nodes: Sequence[AnyNode]) -> Bool[Tensor, "..."]:
        """The mask of what these nodes send."""

    @abstractmethod
    def _layers(self, masks: Bool[Tensor, "circuit ..."]) -> tuple[Tensor, Int[Tensor, " circuit"]]:
        """The masks without what leads nowhere, and the first layer in which each lacks anything
        (`n_layers`: only at the logits, or nowhere)."""

    @abstractmethod
    def _bytes(self, n_examples: int) -> tuple[int, int]:
        """What some examples take whatever is run, and what they take per circuit."""

    @abstractmethod
    def _residuals(
        self, masks: Bool[Tensor, "circuit ..."], first: int, examples: slice
    ) -> Float[Tensor, "row pos d_model"]:
        """The last residual of each circuit on each of the examples."""

    def values(self, masks: Bool[Tensor, "circuit ..."], advance: Advance | None = None) -> Values:
        """The metric of circuits: per example, or one number where it judges all together.

        Args:
            advance: called with the share of the whole that was done since the last time.
        """
        setting = self.setting
        n = len(setting.tokens)
        masks, first = self._layers(masks.to(setting.model.device))
        order = first.argsort(stable=True).tolist()
        found: list[Tensor | None] = [None] * len(masks)
        with torch.no_grad():
            for chosen in self._batches(order, n):
                start = int(first[chosen].min())
                parts = []
                for examples in self._examples(n):
                    residual = self._residuals(masks[chosen], start, examples)
                    values = setting.judged(residual, examples)
                    parts.append(values.view(len(chosen), -1))
                for index, row in zip(chosen, torch.cat(parts, 1), strict=True):
                    found[index] = row
                self.n_run += len(chosen)
                if advance is not None:
                    advance(len(chosen) / len(masks))
        return torch.stack([row for row in found if row is not None])

    def _examples(self, n: int) -> Iterator[slice]:
        """All examples at a time, or as many as memory allows."""
        step = n
        if not self.setting.judge.together:
            fixed, each = self._bytes(1)
            step = min(n, max(1, self.setting.memory_limit // (fixed + each)))
        for start in range(0, n, step):
            yield slice(start, min(start + step, n))

    def _batches(self, order: Sequence[int], n: int) -> Iterator[list[int]]:
        examples = next(self._examples(n))
        here = examples.stop - examples.start
        fixed, each = self._bytes(here)
        cells = here * self.setting.tokens.shape[1]
        at_once = max(1, (self.setting.memory_limit - fixed) // each)
        at_once = min(at_once, max(1, _MOST_CELLS // cells))
        for start in range(0, len(order), at_once):
            yield list(order[start : start + at_once])

    def _visible(self, examples: slice, n_circuits: int) -> Bool[Tensor, "row 1 query key"] | None:
        mask = self.setting.mask[examples]
        allowed = Visibility.of(mask, mask.shape[1], padded=not bool(mask.all())).allowed
        return None if allowed is None else allowed.repeat(n_circuits, 1, 1, 1)

    def _residual(self, examples: slice, layer: int) -> Float[Tensor, "example pos d_model"]:
        """The clean run's residual that enters a layer, as the sum of what was written."""
        clean, model = self.setting.clean.of(examples), self.setting.model
        if layer == model.cfg.n_layers and not self.setting.judge.whole:
            return self.setting.final[examples]
        found = clean.input
        for earlier, weights in model.block_weights(0, layer):
            found = found + model.attn_output(clean.z[earlier], weights, _NO_TAP)
            found = found + clean.mlp[earlier]
        return found


class EdgeRuns(Runs):
    """Circuits of edges; a mask is `sender receiver`."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._changes: dict[tuple[int, int], tuple[int, Tensor]] = {}
        before = torch.tensor([self.shape.before(one) for one in self.shape.receivers])
        self._full = torch.arange(len(self.shape.senders))[:, None] < before

    @property
    def full(self) -> Bool[Tensor, "sender receiver"]:
        """The mask of the whole model."""
        return self._full

    def mask(self, circuit: AnyCircuit) -> Bool[Tensor, "sender receiver"]:
        """The mask of a circuit."""
        assert isinstance(circuit, Circuit)
        return circuit.mask

    def leaving(self, nodes: Sequence[AnyNode]) -> Bool[Tensor, "sender receiver"]:
        """The mask of the edges that leave these nodes."""
        found = torch.zeros_like(self.full)
        for node in nodes:
            found[self.shape.sender_index(whole_part(node, self.shape))] = True
        return found & self.full

    def edge_of(self, index: tuple[int, int]) -> Edge:
        """The edge at a place of the mask."""
        return Edge(self.shape.senders[index[0]], self.shape.receivers[index[1]])

    def _places(self, layer: int) -> tuple[slice, slice, int]:
        """Of a layer: its heads among senders, their receivers, and that of its MLP."""
        heads = self.shape.sender_index(Part("head", layer, 0))
        reads = self.shape.receiver_index(Part("q", layer, 0))
        n = self.shape.n_heads
        return slice(heads, heads + n), slice(reads, reads + 3 * n), reads + 3 * n

    def _layers(
        self, masks: Bool[Tensor, "circuit sender receiver"]
    ) -> tuple[Tensor, Int[Tensor, " circuit"]]:
        masks = masks.clone()
        full = self.full.to(masks.device)
        n_layers = self.shape.n_layers
        for layer in reversed(range(n_layers)):
            heads, reads, mlp = self._places(layer)
            masks[:, :, mlp] &= masks[:, heads.stop].any(1)[:, None]
            live = masks[:, heads].any(2)  # circuit head
            masks[:, :, reads] &= live.repeat(1, 3)[:, None]
        first = torch.full((len(masks),), n_layers, device=masks.device)
        for layer in reversed(range(n_layers)):
            heads, reads, mlp = self._places(layer)
            own = slice(reads.start, mlp + 1)
            there = masks[:, :, own]
            # Of receivers that read nothing, those that lead nowhere are not missed.
            live = torch.cat(
                [masks[:, heads].any(2).repeat(1, 3), masks[:, heads.stop].any(1)[:, None]], 1
            )
            lacks = (full[None, :, own] & ~there & live[:, None]).flatten(1).any(1)
            first[lacks] = layer
        return masks, first

    def _bytes(self, n_examples: int) -> tuple[int, int]:
        cfg, n_pos = self.setting.model.cfg, self.setting.tokens.shape[1]
        cell = n_examples * n_pos * self.setting.model.dtype.itemsize
        n_senders = len(self.shape.senders)
        fixed = cell * cfg.d_model * n_senders
        each = cell * (cfg.d_model * (n_senders + 9 * cfg.n_heads) + 3 * cfg.d_mlp)
        each += n_examples * cfg.n_heads * n_pos**2 * self.setting.model.dtype.itemsize
        each += cell * cfg.d_vocab_out * 2 if self.setting.judge.whole else 0
        return fixed, each

    def _prefix(self, examples: slice, layer: int) -> Float[Tensor, "sender example pos d_model"]:
        """How far what stands in place of the senders before a layer is from the clean run."""
        key = (examples.start, examples.stop)
        known, changes = self._changes.get(key, (-1, torch.empty(0)))
        n_heads = self.shape.n_heads
        if known < layer:
            clean, ablated = (w.of(examples) for w in (self.setting.clean, self.setting.ablated))
            rows = [(clean.input - ablated.input)[None]]
            for earlier in range(layer):
                z = clean.z[earlier] - ablated.z[earlier]
                rows += [
                    _by_head(z, self.setting.model.W_O[earlier]),
                    (clean.mlp[earlier] - ablated.mlp[earlier])[None],
                ]
            changes = torch.cat(rows)
            # Only of the examples run last: of all of them it could be too much.
            self._changes = {key: (layer, changes)}
        return changes[: 1 + layer * (n_heads + 1)]

    def _residuals(
        self, masks: Bool[Tensor, "circuit sender receiver"], first: int, examples: slice
    ) -> Float[Tensor, "row pos d_model"]:
        setting, model = self.setting, self.setting.model
        cfg, n = model.cfg, len(masks)
        ablated = setting.ablated.of(examples)
        known = self._prefix(examples, first)
        base = self._residual(examples, first)  # example pos d_model
        present: list[Tensor] = []  # of each stage: circuit sender example pos d_model
        senders: list[int] = []
        weights = masks.to(base.dtype)
        visible = self._visible(examples, n)

        def read(receivers: Sequence[int]) -> Float[Tensor, "circuit receiver example pos d_model"]:
            """What receivers read: the clean prefix less what is missing of it, what stands in
            place of later senders, and what those in the circuit add to that."""
            columns = list(receivers)
            lacking = weights[:, : len(known), columns].transpose(1, 2) - 1
            needed = (lacking != 0).flatten(0, 1).any(0).nonzero()[:, 0]
            found = base.expand(n, len(columns), *base.shape)
            if len(needed):
                part = lacking[..., needed].flatten(0, 1) @ known[needed].flatten(1)
                found = found + part.view_as(found)
            if senders:
                later = weights[:, senders][:, :, columns].transpose(1, 2)
                added = torch.bmm(later, torch.cat(present, 1).flatten(2))
                found = found + added.view_as(found)
            return found

        for layer, w in model.block_weights(first):
            heads, reads, mlp = self._places(layer)
            live = masks[:, heads].any(2).any(0).nonzero()[:, 0]  # heads that a circuit uses
            if len(live):
                columns = [reads.start + kind * cfg.n_heads + h for kind in range(3)
                           for h in live.tolist()]  # fmt: skip
                z = self._attention(layer, w, read(columns), live, visible)
                change = z - ablated.z[layer][:, :, live].repeat(n, 1, 1, 1)
                written = _by_head(change, model.W_O[layer][live])  # head row pos d_model
                present.append(written.unflatten(1, (n, -1)).transpose(0, 1))
                senders += [heads.start + h for h in live.tolist()]
            base = base + model.attn_output(ablated.z[layer], w, _NO_TAP)
            if bool(masks[:, heads.stop].any()):
                resid_mid = read([mlp])[:, 0].flatten(0, 1)
                mlp_out = model.mlp_out(resid_mid, w, _NO_TAP).unflatten(0, (n, -1))
                present.append((mlp_out - ablated.mlp[layer])[:, None])
                senders.append(heads.stop)
            base = base + ablated.mlp[layer]
        return read([masks.shape[2] - 1])[:, 0].flatten(0, 1)

    def _attention(
        self,
        layer: int,
        w: BlockWeights,
        resid: Float[Tensor, "circuit receiver example pos d_model"],
        heads: Int[Tensor, " head"],
        visible: Bool[Tensor, "row 1 query key"] | None,
    ) -> Float[Tensor, "row pos head d_head"]:
        """What some heads gather, each of whose queries, keys and values reads apart."""
        model, cfg = self.setting.model, self.setting.model.cfg
        normalized = F.layer_norm(resid, resid.shape[-1:], w.ln1_w, w.ln1_b, cfg.eps)
        of_kind = normalized.unflatten(1, (3, len(heads)))
        shape = (cfg.d_model, 3, cfg.n_heads, cfg.d_head)
        matrices = w.W_qkv.view(shape)[:, :, heads]  # d_model kind head d_head
        bias = w.b_qkv.view(shape[1:])[:, heads]  # kind head d_head
        qkv = torch.einsum("ckhepd,dkha->kcehpa", of_kind, matrices) + bias[:, None, None, :, None]
        q, k, v = qkv.flatten(1, 2)  # each: row head pos d_head
        return model.attend(layer, q, k, v, visible, _NO_TAP)


class NodeRuns(Runs):
    """Circuits of nodes; a mask is `sender example pos`."""

    @property
    def full(self) -> Bool[Tensor, "sender example pos"]:
        """The mask of the whole model."""
        shape = (len(self.shape.senders), *self.setting.tokens.shape)
        return torch.ones(shape, dtype=torch.bool)

    def mask(self, circuit: AnyCircuit) -> Bool[Tensor, "sender example pos"]:
        """The mask of a circuit.

        Raises:
            ValueError, IndexError: a position that the prompts do not have.
        """
        assert isinstance(circuit, NodeCircuit)
        found = self.leaving(circuit.ordered)
        found[0] = "input" in circuit.kept
        if "mlps" in circuit.kept:
            mlps = [i for i, part in enumerate(self.shape.senders) if part.kind == "mlp"]
            found[mlps] = True
        return found

    def leaving(self, nodes: Sequence[AnyNode]) -> Bool[Tensor, "sender example pos"]:
        """The mask of what these nodes send."""
        found = ~self.full
        rows = torch.arange(len(self.setting.tokens))
        for given in nodes:
            node = parse_node(given, self.shape)
            index = self.shape.sender_index(node.part)
            if node.pos is None:
                found[index] = True
                continue
            if isinstance(node.pos, str) and not self.setting.pair.positions:
                raise ValueError(
                    f"node {node} is at a position with a name, and these prompts name none: give "
                    "the PromptPair positions, or take circuit.anywhere()"
                )
            (where,) = positions_of(self.setting.pair, [node.pos]).where
            columns = torch.as_tensor(where).cpu() % self.setting.pair.lengths.cpu()
            found[index, rows, columns] = True
        return found

    def _layers(
        self, masks: Bool[Tensor, "circuit sender example pos"]
    ) -> tuple[Tensor, Int[Tensor, " circuit"]]:
        lacks = ~masks.flatten(2).all(2)  # circuit sender
        n_layers, n_heads = self.shape
        first = torch.full((len(masks),), n_layers, device=masks.device)
        for layer in reversed(range(n_layers)):
            start = 1 + layer * (n_heads + 1)
            first[lacks[:, start : start + n_heads + 1].any(1)] = layer
        first[lacks[:, 0]] = 0
        return masks, first

    def _bytes(self, n_examples: int) -> tuple[int, int]:
        cfg, n_pos = self.setting.model.cfg, self.setting.tokens.shape[1]
        cell = n_examples * n_pos * self.setting.model.dtype.itemsize
        each = cell * (12 * cfg.d_model + 3 * cfg.d_mlp + cfg.n_heads * n_pos)
        each += cell * cfg.d_vocab_out * 2 if self.setting.judge.whole else 0
        return 0, each

    def _residuals(
        self, masks: Bool[Tensor, "circuit sender example pos"], first: int, examples: slice
    ) -> Float[Tensor, "row pos d_model"]:
        setting, model = self.setting, self.setting.model
        n, n_heads = len(masks), self.shape.n_heads
        masks = masks[:, :, examples]
        ablated = setting.ablated.of(examples)
        visible = self._visible(examples, n)
        residual = self._residual(examples, first).expand(n, -1, -1, -1)
        if first == 0:
            residual = torch.where(masks[:, 0][..., None], residual, ablated.input)
        residual = residual.flatten(0, 1)  # (circuit example) pos d_model
        for layer, w in model.block_weights(first):
            start = 1 + layer * (n_heads + 1)
            q, k, v = model.queries_keys_values(residual, w, _NO_TAP)
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            z = model.attend(layer, q, k, v, visible, _NO_TAP).unflatten(0, (n, -1))
            here = masks[:, start : start + n_heads].permute(0, 2, 3, 1)[..., None]
            z = torch.where(here, z, ablated.z[layer]).flatten(0, 1)
            residual = residual + model.attn_output(z, w, _NO_TAP)
            mlp_out = model.mlp_out(residual, w, _NO_TAP).unflatten(0, (n, -1))
            here = masks[:, start + n_heads][..., None]
            mlp_out = torch.where(here, mlp_out, ablated.mlp[layer]).flatten(0, 1)
            residual = residual + mlp_out
        return residual


_NO_TAP = Tap({}, "")


def _by_head(
    z: Float[Tensor, "row pos head d_head"], weight: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "head row pos d_model"]:
    """What each head writes, without the bias."""
    rows = z.permute(2, 0, 1, 3)
    return torch.bmm(rows.flatten(1, 2), weight).unflatten(1, rows.shape[1:3])


def runs_of(setting: Setting, circuit: type[AnyCircuit]) -> Runs:
    """What runs circuits of a kind."""
    return EdgeRuns(setting) if circuit is Circuit else NodeRuns(setting)
