"""Path patching: against full runs with everything frozen by hooks, and what must hold of it."""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from analyses import path_patching as module
from analyses._path_walk import Receiver, Sender, parse_receiver
from analyses.metrics import kl, prob
from analyses.pairs import PromptPair
from analyses.path_patching import PathPatching, path_patching
from hooks import Ablate, ActivationCache
from interp import HookedGPT2, HookedGPT2Config

CFG = HookedGPT2Config(n_layers=3, d_model=16, n_heads=2, d_mlp=32, n_ctx=24, d_vocab=40)


def build(dtype: torch.dtype = torch.float64, **changes: Any) -> HookedGPT2:
    cfg = HookedGPT2Config(**{**CFG.to_dict(), **changes}) if changes else CFG
    model = HookedGPT2.from_config(cfg, seed=1, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # As initialised, biases are 0 and layer norms 1, which would hide mistakes.
            noise = torch.randn(parameter.shape, generator=generator).to(dtype)
            parameter.mul_(8).add_(noise, alpha=0.1 if "ln" in name or "bias" in name else 0.02)
    return model


@pytest.fixture(scope="module")
def model() -> HookedGPT2:
    return build()


def random_pair(lengths: tuple[int, ...] = (7, 7), seed: int = 0) -> PromptPair:
    """Prompts that differ in two places."""
    generator = torch.Generator().manual_seed(seed)
    n, width = len(lengths), max(lengths)
    clean = torch.randint(CFG.d_vocab, (n, width), generator=generator)
    corrupted = clean.clone()
    corrupted[:, [1, 3]] = (corrupted[:, [1, 3]] + 11) % CFG.d_vocab
    return PromptPair(
        clean=clean,
        corrupted=corrupted,
        attention_mask=torch.arange(width)[None] < torch.tensor(lengths)[:, None],
        answers=torch.arange(n)[:, None],
        wrong=torch.arange(n)[:, None] + 10,
        str_tokens=tuple(
            tuple(f"<{id}>" for id in row[:length])
            for row, length in zip(clean.tolist(), lengths, strict=True)
        ),
        corrupted_str_tokens=tuple(
            tuple(f"<{id}>" for id in row[:length])
            for row, length in zip(corrupted.tolist(), lengths, strict=True)
        ),
        prepend_bos=None,
        positions={"S": torch.tensor([1 + i % 2 for i in range(n)])},
    )


@cache
def both_runs(
    model: HookedGPT2, pair: PromptPair, direction: str
) -> tuple[Tensor, ActivationCache, ActivationCache]:
    runs = [pair.clean, pair.corrupted]
    base, source = runs if direction == "noising" else runs[::-1]
    kept = [
        model.run_with_cache(one, attention_mask=pair.attention_mask, stop_at_layer=3)[1]
        for one in (base, source)
    ]
    return base, kept[0], kept[1]


def naive(
    model: HookedGPT2,
    pair: PromptPair,
    sender: Sender,
    receivers: list[Receiver],
    columns: Tensor,
    *,
    freeze_mlps: bool = False,
    direction: str = "noising",
    metric: Any = None,
) -> Tensor:
    """The IOI paper's four runs, each a whole forward pass with hooks.

    `columns`: `example slot`, where the sender is changed and the receivers are patched.
    """
    base_ids, base, source = both_runs(model, pair, direction)
    mask: dict[str, Any] = {"attention_mask": pair.attention_mask}
    at = (torch.arange(len(pair))[:, None], columns)

    def frozen(value: Tensor, hook: Any) -> Tensor:
        return base[hook.name].clone()

    def sent(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        place = at if sender.head is None else (*at, sender.head)
        value[place] = source[hook.name][place]
        return value

    hooks: list[Any] = [(f"blocks.{layer}.attn.hook_z", frozen) for layer in range(3)]
    if freeze_mlps:
        hooks += [(f"blocks.{layer}.hook_mlp_out", frozen) for layer in range(3)]
    names = {"head": ("z", sender.layer), "mlp": ("mlp_out", sender.layer), "embed": "embed"}
    hooks.append((names[sender.kind], sent))
    seen: dict[Receiver, Tensor] = {}
    for receiver in receivers:

        def record(value: Tensor, hook: Any, receiver: Receiver = receiver) -> None:
            seen[receiver] = value.clone()

        hooks.append(((receiver.point, receiver.layer), record))
    model.run_with_hooks(base_ids, fwd_hooks=hooks, **mask)

    patches: list[Any] = []
    for receiver in receivers:

        def patch(value: Tensor, hook: Any, receiver: Receiver = receiver) -> None:
            place = at if receiver.head is None else (*at, receiver.head)
            value[place] = seen[receiver][place]

        patches.append(((receiver.point, receiver.layer), patch))
    logits = model.run_with_hooks(base_ids, fwd_hooks=patches, **mask)
    assert isinstance(logits, Tensor)
    judge = pair.metric if metric is None else metric
    return judge(logits, base_ids, pair.attention_mask).detach()


def everywhere(pair: PromptPair) -> Tensor:
    return torch.arange(pair.clean.shape[1]).expand(len(pair), -1)


def every_sender() -> list[Sender]:
    found = [Sender("embed"), Sender("mlp", 0), Sender("head", 0, 0), Sender("head", 0, 1)]
    found += [Sender("head", 1, 0), Sender("mlp", 1), Sender("head", 1, 1)]
    return [*found, Sender("head", 2, 0), Sender("head", 2, 1), Sender("mlp", 2)]


def found(result: PathPatching, sender: Sender) -> Tensor:
    values = result.views[sender.kind].values
    if sender.kind == "embed":
        return values[0]
    return values[sender.layer] if sender.head is None else values[sender.layer, sender.head]


SETS = [
    ["logits"],
    ["2.0.q"],
    ["2.1.k"],
    ["1.1.v"],
    ["1.0.q", "2.1.q", "2.1.v", "2.0.v"],
    ["resid_mid.1"],
    ["resid_post.0", "resid_pre.2"],
    ["mlp_in.1", "2.0.k"],
]


@pytest.mark.parametrize("freeze_mlps", [False, True])
@pytest.mark.parametrize("index", range(len(SETS)), ids=[" ".join(names) for names in SETS])
def test_equals_four_hooked_runs(model: HookedGPT2, index: int, freeze_mlps: bool) -> None:
    receivers = SETS[index]
    pair = random_pair((7, 5))
    result = path_patching(model, pair, receivers, freeze_mlps=freeze_mlps)
    names = [receiver.replace("logits", "resid_post.2") for receiver in receivers]
    assert [str(receiver) for receiver in result.receivers] == names
    moved = 0
    for sender in every_sender()[freeze_mlps::3]:
        expected = naive(
            model, pair, sender, list(result.receivers), everywhere(pair), freeze_mlps=freeze_mlps
        )
        torch.testing.assert_close(found(result, sender), expected, atol=1e-10, rtol=0)
        moved += int((expected - result.base).abs().max() > 1e-6)
    assert moved  # the test compares something


@pytest.mark.parametrize("receivers", [["logits"], ["2.0.k", "1.1.v"]])
def test_positions_by_number_by_name_and_per_example(
    model: HookedGPT2, receivers: list[str]
) -> None:
    pair = random_pair((7, 5, 7))
    per_example = torch.tensor([[3, -1], [1, 3], [0, 6]])
    cases: list[tuple[Any, Tensor]] = [
        (-1, torch.tensor([[6], [4], [6]])),
        ([1, -1], torch.tensor([[1, 6], [1, 4], [1, 6]])),
        ("S", torch.tensor([[1], [2], [1]])),
        (per_example, torch.tensor([[3, 6], [1, 3], [0, 6]])),
    ]
    for pos, columns in cases:
        result = path_patching(model, pair, receivers, pos=pos)
        for sender in every_sender()[::5]:
            expected = naive(model, pair, sender, list(result.receivers), columns)
            torch.testing.assert_close(found(result, sender), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("pos", [None, [1, -1]])
def test_each_position_by_itself(model: HookedGPT2, pos: Any) -> None:
    pair = random_pair((7, 7) if pos is None else (7, 5))
    result = path_patching(model, pair, ["2.0.k", "1.1.v"], pos=pos, by_position=True)
    head = result.views["head"]
    assert head.axes == ("layer", "head", "pos")
    assert result.views["mlp"].axes == ("layer", "pos")
    slots = (
        [torch.tensor([[p], [p]]) for p in range(7)]
        if pos is None
        else [
            torch.tensor([[1], [1]]),
            torch.tensor([[6], [4]]),
        ]
    )
    for slot, columns in list(enumerate(slots))[:: 3 if pos is None else 1]:
        for sender in (Sender("head", 0, 1), Sender("mlp", 0)):
            expected = naive(model, pair, sender, list(result.receivers), columns)
            got = found(result, sender)[slot]
            torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)
    if pos is None:
        with pytest.raises(ValueError, match="differ in length"):
            path_patching(model, random_pair((7, 5)), ["2.0.k"], by_position=True)


def test_denoising_swaps_the_runs_and_metrics_are_free(model: HookedGPT2) -> None:
    pair = random_pair((6, 6))
    metric = prob([3, 4])
    result = path_patching(model, pair, ["2.1.v"], direction="denoising", metric=metric)
    assert result.metric == "prob"
    for sender in every_sender()[:4]:
        receivers = list(result.receivers)
        expected = naive(
            model, pair, sender, receivers, everywhere(pair), direction="denoising", metric=metric
        )
        torch.testing.assert_close(found(result, sender), expected, atol=1e-10, rtol=0)


def test_a_small_memory_limit_changes_nothing(model: HookedGPT2) -> None:
    pair = random_pair((7, 5))
    whole = path_patching(model, pair, ["2.0.q", "mlp_in.1"])
    cut = path_patching(model, pair, ["2.0.q", "mlp_in.1"], memory_limit=60_000)
    for kind, effects in whole.views.items():
        torch.testing.assert_close(effects.values, cut.views[kind].values, atol=1e-12, rtol=0)


@pytest.mark.parametrize("act_fn", ["relu", "gelu"])
def test_variants_of_the_architecture(act_fn: str) -> None:
    model = build(act_fn=act_fn, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False)
    pair = random_pair((6,))
    result = path_patching(model, pair, ["2.1.q", "2.0.v"])
    for sender in every_sender()[:5]:
        expected = naive(model, pair, sender, list(result.receivers), everywhere(pair))
        torch.testing.assert_close(found(result, sender), expected, atol=1e-10, rtol=0)


def test_float32_is_as_good_as_naive() -> None:
    model, pair = build(torch.float32), random_pair((7, 5))
    result = path_patching(model, pair, ["2.0.q", "2.1.q"])
    for sender in every_sender()[:6]:
        expected = naive(model, pair, sender, list(result.receivers), everywhere(pair))
        torch.testing.assert_close(found(result, sender).float(), expected, atol=1e-4, rtol=0)


def test_what_must_hold(model: HookedGPT2) -> None:
    pair = random_pair((7, 7))
    # Everything that reaches the last residual directly, with MLPs frozen, is a sum: senders add up
    # at the residual. So with all senders' changes the source run's logits would appear; here the
    # ends of that: a sender after the receiver does nothing, a receiver at the input takes only
    # the embedding, and the embedding at resid_pre.0 is the whole source run.
    result = path_patching(model, pair, "resid_pre.0")
    assert torch.equal(result.views["head"].values, result.base.expand(3, 2, -1))
    source = pair.metric(model(pair.corrupted)).detach()
    torch.testing.assert_close(result.views["embed"].values[0], source, atol=1e-10, rtol=0)
    assert float(path_patching(model, pair, "1.0.q").views["head"].change[1:].abs().max()) == 0
    # A pair of equal prompts has no effect.
    same = random_pair((7, 7))
    same.corrupted.copy_(same.clean)
    for effects in path_patching(model, same, ["2.0.q"]).views.values():
        torch.testing.assert_close(effects.change, torch.zeros_like(effects.change))


def test_percent_is_the_papers(model: HookedGPT2) -> None:
    pair = random_pair((7, 7, 5))
    result = path_patching(model, pair, "logits")
    base = result.base.mean()
    paper = (result.views["head"].values.mean(-1) - base) / base * 100
    torch.testing.assert_close(result.in_percent()["head"].change, paper)
    frame: Any = result.to_frame()
    percent = [row.percent for row in frame.itertuples() if row.view == "head"]
    torch.testing.assert_close(torch.tensor(percent, dtype=torch.float64), paper.flatten())
    assert set(frame["receivers"]) == {"resid_post.2"}


def test_a_base_of_nothing_has_no_percent(model: HookedGPT2) -> None:
    pair = random_pair((6,))
    result = path_patching(model, pair, metric=kl())
    assert float(result.base.mean()) == 0
    with pytest.raises(ValueError, match="no change in percent"):
        result.in_percent()
    frame: Any = result.to_frame()
    assert frame["percent"].count() == 0
    assert result.plot(percent=False).data


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"receivers": "resid_pst.1"}, ValueError, "resid_post"),
        ({"receivers": "2.0.z"}, ValueError, "9.9.q"),
        ({"receivers": "3.0.q"}, IndexError, "layers 0 to 2"),
        ({"receivers": "1.2.q"}, IndexError, "heads 0 to 1"),
        ({"receivers": []}, ValueError, "empty"),
        ({"receivers": ["logits", "resid_post.2"]}, ValueError, "twice"),
        ({"receivers": "0.0.q", "senders": "head"}, ValueError, "nothing reaches"),
        ({"senders": "heads"}, ValueError, "did you mean 'head'"),
        ({"senders": []}, ValueError, "empty"),
        ({"pos": "SS"}, ValueError, "no position 'SS'.*here: S"),
        ({"pos": []}, ValueError, "empty"),
        ({"pos": 6}, IndexError, "prompt 1 has 5 tokens"),
        ({"pos": [1, 1]}, ValueError, "twice"),
        ({"metric": lambda logits: logits.sum()}, ValueError, "1 numbers for 2 examples"),
    ],
)
def test_errors(
    model: HookedGPT2, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        path_patching(model, random_pair((7, 5)), **arguments)


def test_a_model_with_hooks_is_refused(model: HookedGPT2) -> None:
    edit = Ablate(("z", 1), head=0)
    with (
        model.hooks(fwd_hooks=[(edit.point, edit)]),
        pytest.raises(ValueError, match=r"hooks are active.*blocks.1.attn.hook_z"),
    ):
        path_patching(model, random_pair())


def test_receivers_read_back() -> None:
    for text in ("9.11.q", "0.0.k", "3.1.v", "resid_post.11", "resid_mid.2", "mlp_in.7"):
        assert str(parse_receiver(text, 12, 12)) == text
    assert parse_receiver(" logits ", 12, 12) == Receiver(11, "resid_post")


# ------------------------------------------------------------------ the bundled model


def test_mini_names_its_movers(mini: HookedGPT2) -> None:
    """What moves the name is read off at the end: direct effects are those of late heads there,
    and what steers the strongest of them (its queries at END) comes from earlier heads."""
    pair = PromptPair.from_task(mini, "ioi", 16)
    direct = path_patching(mini, pair, "logits", pos="END").in_percent()["head"]
    (layer, head), *_ = direct.strongest(1, "change")
    assert layer >= mini.cfg.n_layers - 2
    assert float(direct.change[layer, head]) < -10
    steered = path_patching(mini, pair, f"{layer}.{head}.q", pos="END").in_percent()["head"]
    assert float(steered.change[layer:].abs().max()) == 0
    assert float(steered.change[:layer].min()) < -2


# ------------------------------------------------------------------ pictures and the command


def test_page_and_plots(model: HookedGPT2, tmp_path: Path) -> None:
    result = path_patching(model, random_pair((6, 6)), ["2.0.q", "2.1.q"], by_position=True)
    result.to_html(tmp_path / "page.html", model=model)
    text = (tmp_path / "page.html").read_text()
    assert text.count('class="plot"') == 3
    assert "2.0.q, 2.1.q" in text
    assert "PathPatching(" in repr(result) and "2.0.q, 2.1.q" in repr(result)
    with pytest.raises(KeyError, match="Did you mean 'head'"):
        result.plot("heads")


def test_command(
    mini: HookedGPT2,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from analyses import cli

    monkeypatch.setattr(cli, "load_model", lambda *_, **__: mini)
    csv, page, data = (tmp_path / name for name in ("t.csv", "t.html", "t.json"))
    arguments = ["--task", "ioi", "--n", "4", "--model", "mini", "--receiver", "3.1.q"]
    arguments += ["--receiver", "3.3.q", "--positions", "END", "--top-k", "3"]
    arguments += ["--csv", str(csv), "--html", str(page), "--json", str(data)]
    monkeypatch.setattr(sys, "argv", ["path_patching.py", *arguments])
    assert cli.status(module.main, "python -m analyses.path_patching", arguments) == 0
    out = capsys.readouterr().out
    assert "3.1.q, 3.3.q together" in out and "head" in out
    assert csv.read_text().startswith('"receivers","view"')
    assert json.loads(data.read_text())["receivers"] == ["3.1.q", "3.3.q"]
    assert "python -m analyses.path_patching --task ioi" in page.read_text()
    for wrong, message in (
        (["--positions", "1,END"], "--positions '1,END'"),
        (["--top-k", "0"], "--top-k is 0"),
        (["--direction", "noise"], "did you mean 'noising'"),
        (["--receiver", "3.1.x"], "no receiver is called"),
    ):
        status = cli.status(module.main, "x", ["--task", "ioi", "--model", "mini", *wrong])
        assert status == 1
        assert message in capsys.readouterr().err
