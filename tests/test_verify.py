"""A check of one's own checkpoint: it passes what is right and finds each fault where it is."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _commands import help_without_torch

from hooks import Ablate, Add, Edit, Patch, Scale
from interp import HookedGPT2, HookError, KeyValueCache
from interp._verify import bench as benches
from interp.tokenizer import Tokenizer
from interp.verify import Verification, verify

SMALL = dict(
    n_layer=2, n_embd=24, n_head=3, n_positions=16, vocab_size=67, bos_token_id=0, eos_token_id=0
)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "context of 8": dict(n_positions=8),
    "one layer, one head": dict(n_layer=1, n_head=1),
    "untied, relu, n_inner": dict(
        tie_word_embeddings=False, activation_function="relu", n_inner=20
    ),
    "scaled by layer, unscaled, eps": dict(
        scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False, layer_norm_epsilon=1e-3
    ),
    "upcast": dict(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True),
    "eos within": dict(eos_token_id=3, activation_function="quick_gelu"),
}
POSITIONS = benches._POSITIONS
HALF_ONLY = {"half precision"}
IN_MEMORY = {"token ids", "text of ids"}


@pytest.fixture
def few_positions(monkeypatch) -> None:
    """Four prompts at the full length are enough, but for the averages of half precision."""
    monkeypatch.setattr(benches, "_POSITIONS", 4 * SMALL["n_positions"])


@pytest.fixture
def many_positions(few_positions, monkeypatch) -> None:
    """As users have it."""
    monkeypatch.setattr(benches, "_POSITIONS", POSITIONS)


@pytest.fixture
def reference(reference_model, unchecked, few_positions) -> Callable[..., Any]:
    """A shared `transformers` model of `SMALL` and changes.

    Annotations are unchecked, as users have it: checking them takes most of a verification's time,
    and the tests of folders and of mini do it.
    """

    def build(**changes: Any) -> Any:
        return reference_model(SMALL | changes)

    return build


def names(rows: Any) -> set[str]:
    return {row.name for row in rows}


# ------------------------------------------------------------------ what is right passes


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [*((variant, "float64") for variant in VARIANTS), ("plain", "float32"), ("upcast", "float32")],
)
def test_every_variant_passes(reference, variant, dtype):
    found = verify(reference(**VARIANTS[variant]), dtype=dtype)
    assert found.passed, found
    cannot_upcast = {"attention patterns"} if (variant, dtype) == ("upcast", "float64") else set()
    assert names(found.not_run) == HALF_ONLY | IN_MEMORY | cannot_upcast
    assert all(row.note for row in found.not_run)
    assert len(found.rows) == 29


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("variant", ["plain", "context of 8", "untied, relu, n_inner"])
def test_half_precision_passes(reference, many_positions, variant, dtype):
    found = verify(reference(**VARIANTS[variant]), dtype=dtype)
    assert found.passed, found
    assert names(found.not_run) == IN_MEMORY | {"attention patterns"}
    assert 0.5 < found["half precision"].error < 1.1


def test_the_bundled_model_passes_with_its_tokenizer():
    found = verify("mini")
    assert found.passed, found
    assert names(found.not_run) == HALF_ONLY
    assert found["token ids"].error == 0 and "10 texts" in found["token ids"].note
    # Measured, not assumed: two programs that add in another order do differ.
    assert 0 < found["logits, full context"].error < found["logits, full context"].tolerance


def test_a_model_that_reads_one_token(reference):
    found = verify(reference(n_positions=1))
    assert found.passed, found
    assert "logits, one token" not in names(found.not_run)
    for name in ("padding on the left", "greedy generation", "points replaced by others", "loss"):
        assert "this model reads 1" in found[name].note


def test_a_model_in_memory_lends_its_weights_to_the_reference(reference):
    model = HookedGPT2.from_pretrained(reference(), dtype="float64")
    for one in (model, model.processed()):  # processed: with a bias of the unembedding
        found = verify(one)
        assert found.passed, found
        assert "no checkpoint" in found["weights"].note
        assert found["logits, some tokens"].error < 1e-12
        assert found.scope.startswith("The reference has the config and weights of the model")


def test_what_is_handed_over_stays_as_it_is(reference_model, unchecked):
    theirs = reference_model(SMALL, seed=3)
    theirs.train()
    theirs.transformer.h[0].attn.requires_grad_(True)
    try:
        model = HookedGPT2.from_pretrained(theirs)
        model.W_E.requires_grad_(False)

        def state(module: Any) -> list:
            return [
                [(n, p.clone(), p.dtype, p.requires_grad) for n, p in module.named_parameters()],
                [part.training for part in module.modules()],
            ]

        before = state(theirs), state(model)
        settings = theirs.generation_config, theirs.config._attn_implementation
        for dtype in ("float32", "bfloat16"):
            assert verify(theirs, dtype=dtype).passed
        assert verify(theirs, model=model).passed
        for old, new in zip(before, (state(theirs), state(model)), strict=True):
            assert old[1] == new[1]
            for a, b in zip(old[0], new[0], strict=True):
                assert (a[0], a[2:]) == (b[0], b[2:]) and a[1].equal(b[1])
        assert settings == (theirs.generation_config, theirs.config._attn_implementation)
        assert all(parameter.grad is None for parameter in theirs.parameters())
    finally:
        theirs.eval().requires_grad_(False)


def test_a_body_without_a_head(reference):
    assert verify(reference().transformer).passed


# ------------------------------------------------------------------ every check can fail


@pytest.fixture
def plant(reference):
    """`plant(change)`: verify a model against its checkpoint after `change(model)`."""

    def check(change: Callable[[HookedGPT2], Any], **changes: Any) -> Verification:
        source = reference(**changes)
        model = HookedGPT2.from_pretrained(source).requires_grad_(False)
        change(model)
        return verify(source, model=model)

    return check


def with_config(**changes: Any) -> Callable[[HookedGPT2], None]:
    def change(model: HookedGPT2) -> None:
        model.__init__(replace(model.cfg, **changes), dict(model.named_parameters()))

    return change


def test_a_wrong_weight(plant):
    def change(model: HookedGPT2) -> None:
        model.W_in[1, 3, 5] += 0.5

    found = plant(change)
    assert {"weights", "weights by head", "logits, some tokens", "loss"} <= names(found.failed)
    assert found["weights"].error == pytest.approx(0.5)
    assert "transformer.h.1.mlp.c_fc.weight" in found["weights"].note
    assert {"residual stream", "gradients of weights"} <= names(found.failed)
    # What the model says of itself is still consistent.
    assert found["whole residual patched"].result == found["folded weights"].result == "pass"


def test_swapped_heads(plant):
    """Two heads of a layer in each other's place: the same logits, but not the same heads."""

    def change(model: HookedGPT2) -> None:
        for weight in (model.W_Q, model.W_K, model.W_V, model.W_O, model.b_Q, model.b_K, model.b_V):
            weight[0, [0, 1]] = weight[0, [1, 0]].clone()

    found = plant(change)
    assert found["logits, full context"].result == "pass"
    assert {"weights", "weights by head", "attention patterns"} <= names(found.failed)
    assert "layer 0" in found["attention patterns"].note


@pytest.mark.parametrize(
    "changes",
    [
        dict(eps=1e-2),
        dict(act_fn="gelu"),
        dict(scale_attn_by_inverse_layer_idx=True),
    ],
    ids=str,
)
def test_a_wrong_config(plant, changes):
    found = plant(with_config(**changes))
    assert found["weights"].result == "pass"
    assert {
        "logits, one token" if "act_fn" in changes else "logits, some tokens",
        "logits, full context", "padding on the left", "padding on the right",
        "keys and values kept", "loss", "gradients of residuals", "residual stream",
    } <= names(found.failed)  # fmt: skip


def test_another_token_at_the_top(plant):
    def change(model: HookedGPT2) -> None:
        model.get_parameter("ln_f.bias").mul_(-3)

    found = plant(change)
    assert {"top tokens", "greedy generation", "weights"} <= names(found.failed)
    assert found["greedy generation"].error > 0.01


def test_tied_or_not(reference):
    source = reference(tie_word_embeddings=False)
    model = HookedGPT2.from_pretrained(source)
    model.__init__(replace(model.cfg, tie_word_embeddings=True), dict(model.named_parameters()))
    found = verify(source, model=model)
    assert names(found.failed) == {"unembedding tied"}
    assert found["unembedding tied"].note == "ours untied, theirs untied, config tied"


def test_weights_left_over_or_missing(reference):
    source = reference()
    model = HookedGPT2.from_pretrained(source)
    found = verify(reference(tie_word_embeddings=False), model=model)
    assert "we have no lm_head.weight" in found["weights"].note
    found = verify(source, model=model.processed(fold_ln=False, center_unembed=False))
    assert "we have" in found["weights"].note and found["weights"].result == "FAIL"


def test_coarse_half_precision(reference, many_positions, monkeypatch):
    """A model that rounds once more than it must: too little for the other tolerances."""
    real = HookedGPT2.unembed

    def coarse(self: HookedGPT2, normalized: torch.Tensor, ids: Any = None) -> torch.Tensor:
        rounded = (normalized * 64).round() / 64
        return real(self, normalized + (rounded - normalized).detach(), ids)

    monkeypatch.setattr(HookedGPT2, "unembed", coarse)
    found = verify(reference(), dtype="bfloat16")
    assert names(found.failed) == {"half precision"}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_attended_to(reference, monkeypatch, side):
    from interp import hooked

    real = hooked.checked_run

    def lost(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        first = attention_mask is not None and bool(attention_mask[:, 0].all())
        if attention_mask is not None and first == (side == "right"):
            attention_mask = torch.ones_like(attention_mask)
        return real(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(hooked, "checked_run", lost)
    found = verify(reference())
    # On the right causality hides padding from what counts, so a lost mask does no harm there.
    expected = {"padding on the left"} if side == "left" else set()
    assert names(found.failed) == expected


def test_positions_of_padding_on_the_right(reference, monkeypatch):
    from interp.model import Visibility

    real = Visibility.of

    def shifted(mask: torch.Tensor, n_new: int, padded: bool) -> Visibility:
        seen = real(mask, n_new, padded)
        moved = padded and not bool(mask[:, -1].all())
        return replace(seen, positions=seen.positions.flip(1)) if moved else seen

    monkeypatch.setattr(Visibility, "of", staticmethod(shifted))
    assert names(verify(reference()).failed) == {"padding on the right"}


def test_a_cache_that_mixes_up(reference, monkeypatch):
    real = KeyValueCache.extend

    def wrong(self: KeyValueCache, layer: int, k: torch.Tensor, v: torch.Tensor) -> Any:
        keys, values = real(self, layer, k, v)
        return keys, values.flip(2)

    monkeypatch.setattr(KeyValueCache, "extend", wrong)
    assert names(verify(reference()).failed) == {"keys and values kept", "greedy generation"}


@pytest.mark.parametrize(
    "point", ["hook_embed", "blocks.1.attn.hook_z", "blocks.0.hook_q_input", "ln_final.hook_scale"]
)
def test_a_dead_point(reference, monkeypatch, point):
    from hooks.scope import Tap
    from interp._verify import inside

    real = Tap.__call__

    def deaf(self: Tap, name: str, value: torch.Tensor) -> torch.Tensor:
        answer = real(self, name, value)
        return value if self._prefix + name == point else answer

    monkeypatch.setattr(Tap, "__call__", deaf)
    with torch.no_grad():
        bench = benches.prepare(reference(), None, None, None, None)
        found = inside.replaced_by_other(bench)
    assert f"1 of 50 points are dead: {point}" in found.note
    assert found.at_least and found.error == found.tolerance == 0  # not above it


def test_all_points_dead(reference, monkeypatch):
    from hooks.scope import Tap

    monkeypatch.setattr(Tap, "__call__", lambda self, name, value: value)
    found = verify(reference())
    assert "points replaced by others" in names(found.failed)


def test_a_point_that_changes_what_passes(reference, monkeypatch):
    from hooks.scope import Tap

    real = Tap.__call__

    def louder(self: Tap, name: str, value: torch.Tensor) -> torch.Tensor:
        answer = real(self, name, value)
        return answer * 1.01 if self.alters(name) and name == "mlp.hook_post" else answer

    monkeypatch.setattr(Tap, "__call__", louder)
    assert "points replaced by themselves" in names(verify(reference()).failed)


def test_a_patch_that_misses_a_part(reference, monkeypatch):
    """The residual goes on beside the point: patching it whole does not give the other's logits."""

    def block(self, layer, residual, w, at, visible, past):  # as in the model, but for the end
        resid_pre = at("hook_resid_pre", residual)
        attn_out = at("hook_attn_out", self.attn_out(layer, resid_pre, w, at, visible, past))
        resid_mid = at("hook_resid_mid", resid_pre + attn_out)
        mlp_out = at("hook_mlp_out", self.mlp_out(resid_mid, w, at))
        return at("hook_resid_post", resid_pre + attn_out + mlp_out)

    monkeypatch.setattr(HookedGPT2, "block", block)
    found = verify(reference())
    assert names(found.failed) == {"whole residual patched"}
    assert "hook_resid_mid" in found["whole residual patched"].note


def test_parts_that_do_not_add_up(reference, monkeypatch):
    from hooks.cache import CacheBuilder

    real = CacheBuilder.__call__

    def doubled(self: CacheBuilder, point: Any, value: torch.Tensor, **kwargs: Any) -> None:
        real(self, point, 1.1 * value if "mlp_out" in point.name else value, **kwargs)

    monkeypatch.setattr(CacheBuilder, "__call__", doubled)
    found = verify(reference())
    assert names(found.failed) == {"parts of the residual"}
    assert "hook_resid_post" in found["parts of the residual"].note


def test_a_lens_that_is_not_the_model(reference, monkeypatch):
    real = HookedGPT2.ln_final
    monkeypatch.setattr(HookedGPT2, "ln_final", lambda self, x: 1.01 * real(self, x))
    found = verify(reference())
    assert "last row of the lens" in names(found.failed)
    assert "logits, some tokens" not in names(found.failed)


@pytest.mark.parametrize("kind", [Ablate, Add, Patch, Scale])
def test_an_edit_that_does_something_else(reference, monkeypatch, kind):
    real = kind.apply

    def other(self: Edit, value: torch.Tensor, *args: Any) -> Any:
        answer = real(self, value, *args)
        (value if answer is None else answer)[0] += 1e-3
        return answer

    monkeypatch.setattr(kind, "apply", other)
    found = verify(reference())
    assert names(found.failed) == {"edits and functions"}
    assert found["edits and functions"].note == f"4 edits; worst: {kind.__name__}"


def test_an_edit_that_does_nothing(reference, monkeypatch):
    monkeypatch.setattr(Patch, "apply", lambda *args: None)
    found = verify(reference())
    assert names(found.failed) == {"edits and functions"}
    assert found["edits and functions"].note == "Patch changes nothing"


def test_folding_that_changes_the_model(reference, monkeypatch):
    from interp import processing

    monkeypatch.setattr(processing, "_fold_layer_norms", lambda cfg, p: p["ln_f.bias"].zero_())
    assert names(verify(reference()).failed) == {"folded weights"}


def test_what_is_left_behind(reference, monkeypatch):
    real = HookedGPT2.run_with_hooks

    def leaking(self: HookedGPT2, *args: Any, fwd_hooks: Any = (), **kwargs: Any) -> Any:
        try:
            return real(self, *args, fwd_hooks=fwd_hooks, **kwargs)
        except Exception:
            for name, fn in fwd_hooks:
                self.add_hook(name, fn)
            raise

    monkeypatch.setattr(HookedGPT2, "run_with_hooks", leaking)
    source = reference()
    model = HookedGPT2.from_pretrained(source)
    found = verify(source, model=model)
    assert names(found.failed) == {"hooks left", "logits again"}
    assert "blocks.0.attn.hook_z" in found["hooks left"].note
    with pytest.raises(ValueError, match=r"functions listen on the model, at blocks\.0\.attn"):
        verify(source, model=model)


def test_weights_that_change_meanwhile(reference, monkeypatch):
    real = HookedGPT2.processed

    def careless(self: HookedGPT2, **kwargs: Any) -> HookedGPT2:
        self.b_O[0, 0] += 1
        return real(self, **kwargs)

    monkeypatch.setattr(HookedGPT2, "processed", careless)
    found = verify(reference())
    assert {"weights left", "logits again"} <= names(found.failed)
    assert found["weights left"].note == "changed: attn.c_proj.bias"


def test_a_tokenizer_that_differs(saved, monkeypatch, unchecked):
    real = Tokenizer.to_tokens

    def lower(self: Tokenizer, text: Any, *args: Any, **kwargs: Any) -> Any:
        return real(self, text.lower(), *args, **kwargs)

    monkeypatch.setattr(Tokenizer, "to_tokens", lower)
    found = verify(saved)
    assert names(found.failed) == {"token ids", "text of ids"}
    assert "differs: 'When Mary" in found["token ids"].note


def test_a_run_that_breaks_is_a_row(reference, monkeypatch):
    def broken(self: HookedGPT2, *args: Any, **kwargs: Any) -> Any:
        raise HookError("no such luck")

    monkeypatch.setattr(HookedGPT2, "generate", broken)
    found = verify(reference())
    assert names(found.failed) == {"greedy generation"}
    assert found["greedy generation"].note == "HookError: no such luck"
    assert found["greedy generation"].error is None


def test_what_is_not_a_number_fails(plant):
    found = plant(lambda model: model.W_out[0, 0].fill_(torch.nan))
    assert {"weights", "logits, some tokens", "top tokens", "loss"} <= names(found.failed)


def test_nearly_tied_tokens_may_differ():
    """Where the reference's own logits are closer than rounding, another top token is no fault."""
    logits = torch.zeros(1, 4, 5)
    logits[..., 2] = 1.0
    logits[..., 3] = 1.0 - 1e-6

    class Same(torch.nn.Module):
        def __init__(self, logits: torch.Tensor) -> None:
            super().__init__()
            self.logits = logits

    model = HookedGPT2.from_pretrained("mini")
    bench = benches.Bench(model, Same(logits), "", None, True)
    assert bench.rounding(1.0) > 1e-6
    assert bench.rounding(1.0) == pytest.approx(8 * 192**0.5 * 2**-23, rel=0.01)


# ------------------------------------------------------------------ folders


@pytest.fixture
def saved(reference_model, tmp_path, few_positions):
    """A folder that `transformers` saved after a step of training, with mini's tokenizer."""
    import copy

    from transformers import AutoTokenizer

    theirs = copy.deepcopy(reference_model(SMALL | dict(vocab_size=8192), seed=4))
    theirs.requires_grad_(True)
    tokenizer = AutoTokenizer.from_pretrained(Path(benches.__file__).parents[1] / "mini")
    ids = tokenizer("A small dog ran home to the house.", return_tensors="pt")["input_ids"]
    ids = ids[:, : SMALL["n_positions"]] % 8192
    theirs(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(theirs.parameters(), lr=0.1).step()
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_fine_tuned_folder(saved, kind):
    if kind == "bin":
        from safetensors.torch import load_file

        torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
        (saved / "model.safetensors").unlink()
    found = verify(saved)
    assert found.passed, found
    assert names(found.not_run) == HALF_ONLY
    assert str(saved) in found.reference


# ------------------------------------------------------------------ folders broken on disk


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _heads_swapped(folder: Path) -> None:
    def swap(weights: dict[str, torch.Tensor]) -> None:
        for name in ("transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_attn.bias"):
            heads = weights[name].unflatten(-1, (3, SMALL["n_head"], -1))
            heads[..., [0, 1], :] = heads[..., [1, 0], :].clone()

    _weights(folder, swap)


def _transposed(folder: Path) -> None:
    name = "transformer.h.0.attn.c_proj.weight"
    _weights(folder, lambda weights: weights.update({name: weights[name].T.contiguous()}))


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _ids_swapped(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    data = json.loads(text)
    vocabulary = data["model"]["vocab"]
    vocabulary["Ġto"], vocabulary["Ġthe"] = vocabulary["Ġthe"], vocabulary["Ġto"]
    (folder / "tokenizer.json").write_text(json.dumps(data))


BROKEN: dict[str, tuple[Callable[[Path], None], set[str], set[str]]] = {
    # what is done to the folder, checks that must fail, checks that cannot see it
    "heads swapped": (_heads_swapped, {"weights", "logits, full context"}, {"token ids"}),
    "transposed": (_transposed, {"weights", "logits, full context"}, {"token ids"}),
    "eps": (_config(layer_norm_epsilon=1e-2), {"logits, full context", "loss"}, {"weights"}),
    "relu": (_config(activation_function="relu"), {"logits, full context", "loss"}, {"weights"}),
    "heads": (_config(n_head=6), {"logits, full context", "attention patterns"}, {"weights"}),
    "unscaled": (_config(scale_attn_weights=False), {"logits, full context"}, {"weights"}),
    "ids swapped": (_ids_swapped, {"token ids"}, {"weights", "logits, full context"}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_passes_alone_and_fails_against_what_was_trained(
    saved, tmp_path_factory, kind, unchecked
):
    from transformers import GPT2LMHeadModel

    trained = GPT2LMHeadModel.from_pretrained(saved)
    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(saved, folder)
    change, must_fail, cannot_see = BROKEN[kind]
    change(folder)

    alone = verify(folder)
    assert alone.passed, alone
    assert "not that they are the ones you trained" in alone.scope
    assert "verify(trained_model, model=HookedGPT2.from_pretrained(folder))" in alone.scope

    found = verify(trained, model=HookedGPT2.from_pretrained(folder))
    assert must_fail <= names(found.failed)
    assert not cannot_see & names(found.failed)
    assert "the ones you trained" not in found.scope and "number by number" in found.scope


def test_the_right_folder_passes_against_what_was_trained(saved, unchecked):
    from transformers import GPT2LMHeadModel

    trained = GPT2LMHeadModel.from_pretrained(saved)
    found = verify(trained, model=HookedGPT2.from_pretrained(saved))
    assert found.passed, found
    assert names(found.not_run) == HALF_ONLY


def test_a_layout_that_only_we_read(reference, tmp_path):
    from safetensors.torch import save_file

    model = HookedGPT2.from_pretrained(reference())
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(model.cfg.to_hf()))
    found = verify(tmp_path)
    assert found.passed, found
    assert "transformers" in found["weights"].note
    assert found.scope.startswith("The reference has the config and weights of the model")
    assert names(found.not_run) == HALF_ONLY | IN_MEMORY | {"weights"}


# ------------------------------------------------------------------ the result


def test_result(reference):
    found = verify(reference(), progress=False)
    frame = found.to_frame()
    assert list(frame) == ["check", "result", "error", "tolerance", "at_least", "note"]
    assert len(frame) == len(found.rows)
    assert frame.set_index("check").loc["weights", "error"] == 0
    assert bool(frame.set_index("check").loc["points replaced by others", "at_least"])
    data = json.loads(json.dumps(found.to_dict()))
    assert data["passed"] and len(data["checks"]) == len(found.rows)
    assert data["versions"]["torch"] == torch.__version__
    assert "26 checks passed, 0 failed, 3 not run" in repr(found)
    assert data["scope"] == found.scope and found.scope in repr(found)
    assert found.scope.startswith("Config, weights and tokenizer are those of SOURCE on both sides")
    with pytest.raises(KeyError, match="Did you mean 'weights'"):
        found["weight"]
    with pytest.raises(AttributeError):
        found.device = "cuda"  # type: ignore[misc]


def test_bad_arguments(reference):
    model = HookedGPT2.from_pretrained(reference())
    with pytest.raises(ValueError, match=r"dtype=float64, but the model is torch\.float32"):
        verify(model, dtype="float64")
    with pytest.raises(ValueError, match="model= goes with another source"):
        verify(model, model=model)
    with pytest.raises(ValueError, match=r"device=cuda, but the model is on cpu|finds 0 CUDA"):
        verify(model, device="cuda")
    with pytest.raises(ValueError, match="no such folder"):
        verify("./nowhere")


# ------------------------------------------------------------------ the command


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "interp.verify", *map(str, arguments)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_help_comes_without_torch():
    plain = " ".join(help_without_torch("interp.verify").split())
    for word in ("SOURCE", "--device", "--dtype", "--json", "1 when one fails"):
        assert word in plain


def test_command(saved, tmp_path):
    out = tmp_path / "found.json"
    run = command(saved, "--json", out)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == f"model: {saved} (as asked)"
    assert "28 checks passed, 0 failed, 1 not run" in lines[-2]
    assert "not that they are the ones you trained" in lines[-1]
    assert run.stderr == ""
    data = json.loads(out.read_text())
    assert data["passed"] and data["call"].endswith(f"--json {out}")
    assert lines[-1] == data["scope"]
    assert {row["result"] for row in data["checks"]} == {"pass", "not run"}


def test_a_failed_check_is_the_status(saved, monkeypatch, capsys, tmp_path, unchecked):
    from interp import command as commands
    from interp.verify import main

    real = HookedGPT2.unembed
    monkeypatch.setattr(HookedGPT2, "unembed", lambda *args: 1.01 * real(*args))
    monkeypatch.setattr(sys, "argv", ["verify", str(saved)])
    assert commands.status(main, "verify", [str(saved), "--json", "-"], on_error=2) == 1
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert not data["passed"]
    failed = {row["check"] for row in data["checks"] if row["result"] == "FAIL"}
    assert "logits, one token" in failed
    assert f"{len(failed)} failed" in " ".join(err.split())
    out_file = tmp_path / "failed.json"  # the same into a file, and the table stays on stdout
    assert commands.status(main, "verify", [str(saved), "--json", str(out_file)], on_error=2) == 1
    written = json.loads(out_file.read_text())
    assert written["checks"] == data["checks"] and written["scope"] == data["scope"]
    assert written["scope"] in capsys.readouterr().out


def test_wrong_input_has_another_status(tmp_path, capsys, monkeypatch):
    from interp import command as commands
    from interp.verify import main

    monkeypatch.setattr(sys, "argv", ["verify"])
    for arguments, message in (
        (["./nowhere"], "no such folder"),
        (["mini", "--dtype", "float8"], "unknown dtype 'float8'"),
        (["mini", "--device", "gpu"], "no such device here"),
        (["mini", "--json", str(tmp_path / "no" / "x.json")], "there is no folder"),
        (["mini", "--jsn", "x"], "No such option"),
    ):
        assert commands.status(main, "verify", arguments, on_error=2) == 2
        assert message in capsys.readouterr().err
