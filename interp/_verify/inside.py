"""The checks that need no other model: every point is live, patching is exact, nothing leaks."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooks import Ablate, Add, HookPoint, Patch, Scale
from interp._verify.bench import Bench, Measured, distance, largest, tensor, worst
from interp.hooked import HookedGPT2

_OWN_INPUTS = ("hook_q_input", "hook_k_input", "hook_v_input")


def replaced_by_itself(bench: Bench) -> Measured:
    """Every point replaced by a copy of what passes it: nothing changes."""
    error = worst(*(found.unchanged for found in _segments(bench)))
    return Measured(error, bench.rounding(_scale(bench)), f"{len(bench.model.hook_dict)} points")


def replaced_by_other(bench: Bench) -> Measured:
    """Every point, one at a time, replaced by something else: the logits change.

    Each point has a row of its own in a batch that starts at its block, and is compared with the
    same row of a batch in which every point is replaced by itself. Both go through the same
    kernels, so a dead point changes not one bit.
    """
    changes: dict[str, float] = {}
    for found in _segments(bench):
        changes |= found.changes
    dead = [name for name, change in changes.items() if not change > 0]
    weakest = min(changes, key=lambda name: changes[name])
    note = f"{len(changes)} points; weakest: {weakest}"
    if dead:
        note = f"{len(dead)} of {len(changes)} points are dead: {', '.join(dead[:4])}"
        note += " ..." if len(dead) > 4 else ""
    return Measured(changes[weakest], 0.0, note, at_least=True)


class _Segment:
    """The points of one block (or those before, or after) replaced, each in a row of its own."""

    def __init__(self, model: HookedGPT2, start: Tensor, layer: int | None, names: list[str]):
        # A layer: the residual that enters it is given, else the tokens.
        batch = start.expand(len(names), *start.shape[1:]).contiguous()
        begin: dict[str, Any] = {} if layer is None else {"start_at_layer": layer}
        row = {name: index for index, name in enumerate(names)}

        def same(value: Tensor, hook: HookPoint) -> Tensor:
            return value.clone()

        def other(value: Tensor, hook: HookPoint) -> Tensor:
            changed = value.clone()
            changed[row[hook.name]] = _else(value[row[hook.name]], hook)
            return changed

        def run(fn: Callable[..., Tensor]) -> Tensor:
            hooks = [(name, fn) for name in names]
            return tensor(model.run_with_hooks(batch, fwd_hooks=hooks, **begin))

        kept, plain = run(same), model(batch, **begin)
        edited = run(other)
        self.unchanged = distance(kept, plain)
        # Not a number is a change too, and a large one.
        self.changes = {
            name: float((edited[i] - kept[i]).abs().nan_to_num(nan=1e9, posinf=1e9).max())
            for name, i in row.items()
        }


def _else(value: Tensor, hook: HookPoint) -> Tensor:
    """Something that differs from `value` everywhere by about as much as it is large, or by 1."""
    generator = torch.Generator().manual_seed(7)
    if hook.axes[-1] == "one":  # a scale: it stays above 0
        noise = torch.rand(value.shape, generator=generator)
        return value * (1 + noise).to(value)
    noise = torch.randn(value.shape, generator=generator).to(value)
    finite = value[value.isfinite()].float()
    size = 1 + float(finite.pow(2).mean().sqrt())
    return value + 2 * size * noise


def _segments(bench: Bench) -> list[_Segment]:
    found = getattr(bench, "_found_segments", None)
    if found is None:
        found = _all_segments(bench)
        bench._found_segments = found  # pyright: ignore[reportAttributeAccessIssue]
    return found


def _all_segments(bench: Bench) -> list[_Segment]:
    model, n_layers = bench.model, bench.cfg.n_layers
    tokens = bench.some(1, at_least=2, at_most=6)
    residuals = [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)]
    last, cache = model.run_with_cache(tokens, stop_at_layer=n_layers, names_filter=residuals)
    entering = [*(cache[name] for name in residuals), last]
    found = []
    groups: dict[int, list[str]] = {layer: [] for layer in range(-1, n_layers + 1)}
    for name, point in model.hook_dict.items():
        outside = -1 if "embed" in name else n_layers
        groups[point.layer() if name.startswith("blocks.") else outside].append(name)
    for layer, names in groups.items():
        if layer == -1:
            found.append(_Segment(model, tokens, None, names))
            continue
        # Heads with inputs of their own have layer norms of their own, past the shared one.
        own = [name for name in names if name.endswith(_OWN_INPUTS)]
        rest = [name for name in names if name not in own]
        found.append(_Segment(model, entering[layer], layer, rest))
        if own:
            found.append(_Segment(model, entering[layer], layer, own))
    return found


def _scale(bench: Bench) -> float:
    return largest(bench.model(bench.some(1, at_least=2, at_most=6)))


def whole_residual(bench: Bench) -> Measured:
    """Run B's whole residual stream put into run A, at every layer: B's logits come out."""
    model, n_layers = bench.model, bench.cfg.n_layers
    a, b = bench.some(1, at_least=1, at_most=8), bench.some(1, at_least=1, at_most=8, seed=2)
    places = ("resid_pre", "resid_mid", "resid_post")
    names = [f"blocks.{layer}.hook_{place}" for layer in range(n_layers) for place in places]
    output, source = model.run_with_cache(b, names_filter=names)
    want = tensor(output)
    _, entering = model.run_with_cache(a, names_filter="*hook_resid_pre")
    error, where = 0.0, ""
    for layer in range(n_layers):
        rows = [f"blocks.{layer}.hook_{place}" for place in places]

        def patch(value: Tensor, hook: HookPoint, rows: list[str] = rows) -> Tensor:
            changed = value.clone()
            changed[rows.index(hook.name)] = source[hook.name][0]
            return changed

        begin = entering["resid_pre", layer].expand(3, -1, -1).contiguous()
        hooks = [(name, patch) for name in rows]
        got = tensor(model.run_with_hooks(begin, fwd_hooks=hooks, start_at_layer=layer))
        for row, name in enumerate(rows):
            if not (apart := distance(got[row][None], want)) <= error:
                error, where = worst(error, apart), name
    note = f"{len(names)} points" + (f"; worst: {where}" if where else "")
    return Measured(error, bench.rounding(largest(want)), note)


def parts_sum(bench: Bench) -> Measured:
    """Embeddings and what every layer, and every head, wrote add up to the residual stream."""
    model = bench.model
    tokens = bench.some(2, at_least=1)
    _, cache = model.run_with_cache(
        tokens,
        names_filter=[
            "hook_embed", "hook_pos_embed", "*hook_resid_*", "*attn.hook_result",
            "*hook_attn_out", "*hook_mlp_out",
        ],
    )  # fmt: skip
    wide = torch.float32 if model.device.type == "mps" else torch.float64
    error, where = 0.0, ""

    def compare(name: str, parts: Tensor) -> None:
        nonlocal error, where
        apart = distance(cache[name], parts) / max(largest(cache[name]), 1e-30)
        if not apart <= error:
            error, where = worst(error, apart), name

    total = cache["hook_embed"].to(wide) + cache["hook_pos_embed"].to(wide)
    for layer in range(bench.cfg.n_layers):
        compare(f"blocks.{layer}.hook_resid_pre", total)
        heads = cache["result", layer].to(wide).sum(2) + model.b_O[layer].to(wide)
        compare(f"blocks.{layer}.hook_attn_out", heads)
        total = total + cache["attn_out", layer].to(wide)
        compare(f"blocks.{layer}.hook_resid_mid", total)
        total = total + cache["mlp_out", layer].to(wide)
        compare(f"blocks.{layer}.hook_resid_post", total)
    return Measured(error, bench.rounding(1.0), where and f"relative; worst: {where}")


def last_residual(bench: Bench) -> Measured:
    """The last row of a logit lens: the last residual, normalised and unembedded, is the logits."""
    tokens = bench.some(2, at_least=1)
    output, cache = bench.model.run_with_cache(tokens, names_filter=("resid_post", -1))
    logits = tensor(output)
    got = bench.model.unembed(bench.model.ln_final(cache["resid_post", -1]))
    return Measured(distance(got, logits), bench.rounding(largest(logits)), "ln_final and unembed")


def edits_as_data(bench: Bench) -> Measured:
    """`Ablate`, `Scale`, `Add` and `Patch` do what a function that does the same does."""
    model, layer = bench.model, bench.cfg.n_layers // 2
    tokens = bench.some(2, at_least=2, at_most=8)
    _, source = model.run_with_cache(bench.some(2, at_least=2, at_most=8, seed=2))
    head, direction = bench.cfg.n_heads - 1, source["resid_mid", layer][0, -1].clone()

    def ablate(value: Tensor, hook: HookPoint) -> None:
        value[:, :, head] = 0

    def scale(value: Tensor, hook: HookPoint) -> Tensor:
        return value * -0.5

    def add(value: Tensor, hook: HookPoint) -> None:
        value[:, -1] += direction

    def patch(value: Tensor, hook: HookPoint) -> None:
        value[:, 0] = source[hook.name][:, 0]

    pairs: list[tuple[Any, Any]] = [
        (Ablate(("z", layer), head=head), ablate),
        (Scale(("mlp_out", layer), factor=-0.5), scale),
        (Add(("resid_mid", layer), pos=-1, value=direction), add),
        (Patch(("resid_pre", layer), pos=0, source=source), patch),
    ]
    error, where = 0.0, ""
    plain = model(tokens)
    for edit, fn in pairs:
        by_edit, by_function = (
            tensor(model.run_with_hooks(tokens, fwd_hooks=[(edit.point, one)]))
            for one in (edit, fn)
        )
        apart = distance(by_edit, by_function)
        if distance(by_edit, plain) == 0:
            return Measured(float("inf"), 0.0, f"{type(edit).__name__} changes nothing")
        if not apart <= error:
            error, where = worst(error, apart), type(edit).__name__
    return Measured(error, 0.0, f"{len(pairs)} edits" + (f"; worst: {where}" if where else ""))


def processed(bench: Bench) -> Measured:
    """Layer norms folded and weights centred: the same log-probabilities.

    The weights of `processed()` are rounded once more: twice the tolerance.
    """
    tokens = bench.some(2, at_least=1)
    logits = bench.model(tokens)
    other = bench.model.processed()(tokens)
    wide = torch.float32 if bench.model.device.type == "mps" else torch.float64
    error = distance(other.to(wide).log_softmax(-1), logits.to(wide).log_softmax(-1))
    return Measured(error, 2 * bench.rounding(largest(logits)), "log-probabilities in nats")


# ------------------------------------------------------------------ nothing leaks


class State:
    """What must be as before, however many runs there were."""

    def __init__(self, bench: Bench) -> None:
        model = bench.model
        self.digest = _digest(model)
        self.hooks = _hooks(model)
        self.tokens = bench.some(2, at_least=1)
        self.logits = model(self.tokens)

    def weights(self, bench: Bench) -> Measured:
        """The bits of all weights."""
        changed = [n for n, value in _digest(bench.model).items() if self.digest.get(n) != value]
        note = f"changed: {', '.join(changed[:3])}" if changed else f"{len(self.digest)} tensors"
        return Measured(float(len(changed)), 0.0, note)

    def listeners(self, bench: Bench) -> Measured:
        """The functions at every point, also after a run that a hook ended by an exception."""

        def broken(value: Tensor, hook: HookPoint) -> None:
            raise _Ended

        model = bench.model
        for run in (
            lambda: model.run_with_hooks(self.tokens, fwd_hooks=[(("z", 0), broken)]),
            lambda: _in_context(model, self.tokens, broken),
        ):
            try:
                run()
            except _Ended:
                continue
            return Measured(float("inf"), 0.0, "a hook raised, but the run went on")
        after = _hooks(model)
        left = [name for name in after if after[name] != self.hooks[name]]
        note = f"left at {', '.join(left[:3])}" if left else f"{len(after)} points"
        return Measured(float(len(left)), 0.0, note)

    def repeatable(self, bench: Bench) -> Measured:
        """The logits of a run at the end against those of one at the beginning."""
        return Measured(distance(bench.model(self.tokens), self.logits), 0.0, "bit by bit")


class _Ended(Exception):
    """Raised by a hook to end a run."""


def _in_context(model: HookedGPT2, tokens: Tensor, fn: Any) -> None:
    with model.hooks(fwd_hooks=[(("resid_post", 0), fn)]):
        model(tokens)


def _hooks(model: HookedGPT2) -> dict[str, tuple[list[Any], list[Any]]]:
    return {n: (list(p.fwd_hooks), list(p.bwd_hooks)) for n, p in model.hook_dict.items()}


def _digest(model: HookedGPT2) -> dict[str, str]:
    """A hash of each weight's bits; the bytes of one layer at a time are brought to the CPU."""
    found = {}
    for name, parameter in model.named_parameters():
        digest = hashlib.blake2b(digest_size=16)
        value = parameter.detach()
        for part in value if value.dim() == 3 else (value,):
            data = part.cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(data.numpy().data)
        found[name] = digest.hexdigest()
    return found
