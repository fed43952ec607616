"""How a sweep runs: within its memory, by its plan, until it is stopped; nothing stays behind."""

import weakref
from collections.abc import Iterable
from random import Random

import pytest
import torch
from _random_edits import random_edit
from _sweeps import check, run, worlds
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from analyses.metrics import kl, logit_diff, loss
from analyses.sweep import sweep
from hooks import Ablate, Patch
from interp import HookedGPT2, HookedGPT2Config


@pytest.fixture(scope="module")
def world(reference_model):
    return worlds(reference_model)


def test_nothing_is_left_behind(world, capfd):
    here = world("left")
    before = {n: p.clone() for n, p in here.model.named_parameters()}
    tensors = {n: t.clone() for n, t in here.source.tensors.items()}
    edits = [random_edit(Random(6), here) for _ in range(10)]
    with torch.enable_grad():
        sweep(here.model, here.tokens, edits, loss(), attention_mask=here.mask)
    assert all(not p.fwd_hooks and not p.bwd_hooks for p in here.model.hook_dict.values())
    for name, parameter in here.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    assert all(torch.equal(t, tensors[n]) for n, t in here.source.tensors.items())
    assert torch.is_grad_enabled()
    assert capfd.readouterr() == ("", "")  # no progress bar where there is no terminal


class LiveBytes(TorchDispatchMode):
    """How much memory tensors take that are made while it is on."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._storages = [tensor.untyped_storage() for tensor in known]
        self._sizes = {storage._cdata: 0 for storage in self._storages}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, storage._cdata)
        return out

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@pytest.mark.parametrize("metric", [logit_diff(1, 2), kl(), loss()], ids=lambda m: m.name)
@pytest.mark.parametrize("short", ["resid_pre", "pattern"])
def test_the_memory_limit_holds(metric, short):
    """More would be taken, were there room."""
    cfg = HookedGPT2Config(n_layers=3, d_model=64, n_heads=4, n_ctx=32, d_vocab=400)
    model = HookedGPT2.from_config(cfg).requires_grad_(False)
    tokens = torch.randint(400, (8, 32))
    _, source = model.run_with_cache(tokens.flip(0), names_filter=[f"*hook_{short}"])
    edits = [
        Patch((short, layer), pos=pos, source=source)
        for layer in range(3)
        for pos in range(0, 32, 3)
    ]
    peaks, values = [], []
    for limit in (2**21, 2**26):
        with LiveBytes([tokens, *model.parameters(), *source.tensors.values()]) as live:
            result = sweep(model, tokens, edits, metric, memory_limit=limit, progress=False)
        peaks.append(live.peak)
        values.append(result.values[metric.name])
    assert peaks[0] < 2**21 < peaks[1] < 2**26
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_with_gradients_off(world, mode):
    here = world("right")
    edits = [random_edit(Random(7), here) for _ in range(4)]
    with mode():
        check(here, edits)


# ------------------------------------------------------------------ the plan


def test_plan(world):
    from analyses.sweep import plan

    here = world("even")
    edits = [
        Patch(("resid_pre", layer), pos=pos, source=here.source)
        for layer in range(2)
        for pos in range(6)
    ]
    planned = plan(here.model, here.tokens, edits, logit_diff(1, 2))
    text = planned.explain()
    assert isinstance(text, str)
    for word in ("rows", "floating-point operations", "MiB", "layer"):
        assert word in text
    result = planned.run()
    same = sweep(here.model, here.tokens, edits, logit_diff(1, 2), progress=False)
    assert torch.equal(result.values["logit_diff"], same.values["logit_diff"])


# ------------------------------------------------------------------ stopped in the middle


def test_interrupt(world):
    from analyses.sweep import SweepInterrupted

    here = world("right")
    edits = [random_edit(Random(8), here) for _ in range(6)]
    calls = 0

    def stopped(logits):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return logits[:, -1, 0]

    with pytest.raises(KeyboardInterrupt) as caught:
        run(here, edits, {"last": logit_diff(1, 2), "f": stopped}, batch_size=1)
    assert isinstance(caught.value, SweepInterrupted)
    partial = caught.value.partial
    assert partial.edits == tuple((edit,) for edit in edits)
    whole = run(here, edits, {"last": logit_diff(1, 2), "f": lambda logits: logits[:, -1, 0]})
    done = ~partial.values["f"].isnan().any(1)
    assert 0 < int(done.sum()) < len(edits)
    for name in whole.values:
        assert torch.equal(partial.values[name].isnan().any(1), ~done)
        got, wanted = partial.values[name][done], whole.values[name][done]
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)
    assert all(not p.fwd_hooks for p in here.model.hook_dict.values())
    repr(partial), partial.to_frame()


def test_interrupt_before_there_is_anything(world):
    here = world("right")

    def stopped(logits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(here, [Ablate(("z", 0))], stopped, given=[Ablate(("z", 1))])
    assert all(not p.fwd_hooks for p in here.model.hook_dict.values())
