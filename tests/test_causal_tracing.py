"""Causal tracing: against full runs with hooks, and what must hold of it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analyses import causal_tracing as module
from analyses import cli
from analyses._subject import subject_positions
from analyses.causal_tracing import (
    ROLES,
    VIEWS,
    CausalTrace,
    Fact,
    average,
    causal_tracing,
    noise_level,
    rome_noise,
    task_facts,
    trace_facts,
)
from analyses.prompts import Prompts
from interp import HookedGPT2, HookedGPT2Config

CFG = HookedGPT2Config(n_layers=4, d_model=16, n_heads=2, d_mlp=32, n_ctx=24, d_vocab=40)
IDS = torch.tensor([5, 17, 3, 22, 9, 30])
SUBJECT = range(1, 3)
NOISE = 0.6
FACT = "The name of the capital of France is"


@pytest.fixture(scope="module")
def model() -> HookedGPT2:
    model = HookedGPT2.from_config(CFG, seed=1, dtype="float64")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(8).add_(noise, alpha=0.05)
    return model


@pytest.fixture(scope="module")
def trace(model: HookedGPT2) -> CausalTrace:
    return causal_tracing(
        model, IDS, SUBJECT, views=VIEWS, window=3, noise=NOISE, samples=3, progress=False
    )


def corrupting(draw: Tensor) -> Callable[..., None]:
    def corrupt(value: Tensor, hook: Any) -> None:
        value[:, SUBJECT.start : SUBJECT.stop] += draw

    return corrupt


def naive(
    model: HookedGPT2, clean: Any, frozen: Any, draw: Tensor, restored: list, severed: list
) -> Tensor:
    """Probabilities of the likeliest answer in one whole run with these places changed.

    restored, severed: (point, layer, position).
    """
    hooks: list[tuple[Any, Callable[..., Any]]] = [("hook_embed", corrupting(draw))]
    for cache, places in ((clean, restored), (frozen, severed)):
        for point, layer, pos in places:

            def put(value: Tensor, hook: Any, cache: Any = cache, pos: int = pos) -> None:
                value[:, pos] = cache[hook.name][:, pos]

            hooks.append(((point, layer), put))
    logits = model.run_with_hooks(IDS.expand(len(draw), -1), fwd_hooks=hooks)
    answer = int(model(IDS[None])[0, -1].argmax())  # type: ignore[index]
    assert isinstance(logits, Tensor)
    return logits[:, -1].softmax(-1)[:, answer].detach()


def test_equals_hooked_runs(model: HookedGPT2, trace: CausalTrace) -> None:
    draw = torch.from_numpy(np.random.RandomState(1).randn(3, 2, CFG.d_model)) * NOISE
    _, clean = model.run_with_cache(IDS[None])
    with model.hooks(fwd_hooks=[("hook_embed", corrupting(draw))]):
        _, frozen = model.run_with_cache(IDS.expand(3, -1))
    plain = naive(model, clean, frozen, draw, [], [])
    for effects in trace.views.values():
        torch.testing.assert_close(effects.base, plain, atol=1e-12, rtol=0)
    for layer in (0, 2, 3):
        windowed = [each for each in (layer - 1, layer, layer + 1) if 0 <= each < 4]
        for pos in (0, 2, 4, 5):
            places = {
                "resid_post": ([("resid_post", layer, pos)], []),
                "mlp_out": ([("mlp_out", each, pos) for each in windowed], []),
                "attn_out": ([("attn_out", each, pos) for each in windowed], []),
                # As the authors do: those of all layers.
                "mlp_severed": (
                    [("resid_post", layer, pos)],
                    [("mlp_out", each, pos) for each in range(4)],
                ),
                "attn_severed": (
                    [("resid_post", layer, pos)],
                    [("attn_out", each, pos) for each in range(4)],
                ),
            }
            for view, (restored, severed) in places.items():
                # Severing comes first: the state restored at its layer is what counts.
                expected = naive(model, clean, frozen, draw, restored, severed)
                got = trace.views[view].values[layer, pos]
                torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


def test_windows_are_the_authors(model: HookedGPT2) -> None:
    """Of an even window, layer l has more before it: `layer - window // 2` to
    `layer - (-window // 2)`, the end excluded."""
    even = causal_tracing(model, IDS, SUBJECT, views="mlp_out", window=2, noise=NOISE, samples=2)
    draw = rome_noise(2, 2, CFG.d_model, NOISE)
    _, clean = model.run_with_cache(IDS[None])
    for layer, windowed in enumerate(([0], [0, 1], [1, 2], [2, 3])):
        places = [("mlp_out", each, 2) for each in windowed]
        expected = naive(model, clean, None, draw, places, [])
        torch.testing.assert_close(even.views["mlp_out"].values[layer, 2], expected)
    # 10 of 48 layers in the paper.
    assert causal_tracing(model, IDS, SUBJECT, views="mlp_out", samples=1).window == 1


def test_what_must_hold(model: HookedGPT2, trace: CausalTrace) -> None:
    state = trace.views["resid_post"]
    clean = torch.full_like(state.base, trace.clean)
    # The last token after the last layer is all that the answer is read from.
    torch.testing.assert_close(state.values[3, 5], clean)
    assert float(state.change[3, 5]) == pytest.approx(trace.total_effect)
    assert float(state.normalised[3, 5]) == pytest.approx(1.0)
    # Nothing before the subject is corrupted; nothing after the last layer is read elsewhere.
    assert float(state.change[:, 0].abs().max()) == 0
    assert float(state.change[3, :5].abs().max()) < 1e-12
    # All MLPs and all attention at the only token that reads them, restored together, are not all:
    # the embedding stays corrupted. Severed, a state can at most come back through the rest.
    assert torch.equal(trace.views["mlp_severed"].values[3], state.values[3])


def test_all_of_the_subject_restored_is_clean(model: HookedGPT2) -> None:
    """With a subject of one token, its state after layer 0 is all that the noise can reach."""
    one = causal_tracing(model, IDS, range(2, 3), views=VIEWS, noise=NOISE, samples=2, window=1)
    assert one.total_effect != 0
    at_first = causal_tracing(model, IDS[:3], range(2, 3), noise=NOISE, samples=2)
    values = at_first.views["resid_post"].values[:, 2]
    torch.testing.assert_close(values, torch.full_like(values, at_first.clean))


def test_no_noise_no_effect(model: HookedGPT2) -> None:
    quiet = causal_tracing(model, IDS, SUBJECT, views=VIEWS, noise=0.0, samples=2)
    assert quiet.total_effect == pytest.approx(0)
    for effects in quiet.views.values():
        assert float(effects.change.abs().max()) < 1e-12


def test_the_noise_is_the_authors(model: HookedGPT2) -> None:
    expected = 0.5 * torch.from_numpy(np.random.RandomState(1).randn(10, 3, 16))
    assert torch.equal(rome_noise(10, 3, 16, 0.5), expected)
    assert torch.equal(rome_noise(4, 3, 16, 0.5), expected[:4])
    assert not torch.equal(rome_noise(10, 3, 16, 0.5, seed=2), expected)

    def run(**options: Any) -> Tensor:
        options = {"samples": 2, "views": "resid_post", **options}
        return causal_tracing(model, IDS, SUBJECT, **options).views["resid_post"].values

    assert torch.equal(run(), run())
    torch.testing.assert_close(run(samples=3)[..., :2], run())
    assert not torch.equal(run(seed=2), run())


def test_noise_level(mini: HookedGPT2) -> None:
    everything = mini.W_E.detach().double()
    assert noise_level(mini) == pytest.approx(3 * float(everything.std()), rel=1e-5)
    ids = [*mini.to_tokens("France", prepend_bos=False)[0], *mini.to_tokens(" Peru", False)[0]]
    expected = 2 * float(everything[torch.stack(ids)].std())
    assert noise_level(mini, ["France", " Peru"], multiple=2.0) == pytest.approx(expected, rel=1e-5)


def test_answers(mini: HookedGPT2) -> None:
    own = causal_tracing(mini, FACT, "France", samples=2, views="resid_post")
    assert own.answer_string == " Paris"
    other = causal_tracing(mini, FACT, "France", samples=2, views="resid_post", answer=" Rome")
    assert other.answer == mini.to_single_token(" Rome") and other.clean < own.clean
    logits = mini(FACT)
    assert isinstance(logits, Tensor)
    expected = float(logits.detach()[0, -1].softmax(-1)[own.answer])
    assert own.clean == pytest.approx(expected, abs=1e-5)


# ------------------------------------------------------------------ the subject


def subject_of(
    mini: HookedGPT2,
    prompt: str,
    subject: Any,
    occurrence: int | None = None,
    prepend_bos: bool = True,
) -> list[str]:
    prompts = Prompts.of(mini, prompt, prepend_bos=prepend_bos)
    found = subject_positions(mini, prompt, subject, prompts, occurrence)
    return list(prompts.str_tokens[0][found.start : found.stop])


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_subjects_are_found(mini: HookedGPT2, prepend_bos: bool) -> None:
    bos: dict[str, Any] = {"prepend_bos": prepend_bos}
    assert subject_of(mini, FACT, "France", **bos) == [" France"]
    assert subject_of(mini, FACT, " capital of France ", **bos) == [" capital", " of", " France"]
    assert subject_of(mini, FACT, "The", **bos) == ["The"]
    assert subject_of(mini, FACT, range(2, 4)) == [" name", " of"]
    twice = "France is big and the capital of France is"
    for occurrence, expected in ((0, "France"), (1, " France")):
        found = subject_of(mini, twice, "France", occurrence=occurrence, **bos)
        assert "".join(found) == expected
    # Letters of several bytes, in one token or in several.
    word = "Zürich \N{GRINNING FACE}"
    assert "".join(subject_of(mini, f"I live in {word} now", word, **bos)).startswith(" Z")


@pytest.mark.parametrize(
    ("prompt", "subject", "options", "error", "message"),
    [
        (FACT, "Spain", {}, ValueError, "'Spain' is not in the prompt"),
        (FACT, "france", {}, ValueError, "Did you mean 'France'"),
        (FACT, " ", {}, ValueError, "empty"),
        (FACT, "Fran", {}, ValueError, "within a token.*Give 'France'.*range"),
        (FACT, "of", {}, ValueError, "2 times, at characters 9, 24.*occurrence"),
        (FACT, "of", {"occurrence": 2}, IndexError, "2 times"),
        (FACT, range(3, 3), {}, ValueError, "one or more tokens"),
        (FACT, range(1, 5, 2), {}, ValueError, "in a row"),
        (FACT, range(7, 10), {}, IndexError, "has 9 tokens"),
        (FACT, range(7, 8), {"occurrence": 0}, ValueError, "occurrence goes with"),
        (IDS, "France", {}, TypeError, "range of positions"),
        (FACT, "France", {"views": "resid_pre"}, ValueError, "did you mean 'resid_post'"),
        (FACT, "France", {"views": []}, ValueError, "empty"),
        (FACT, "France", {"window": 0}, ValueError, "window=0"),
        (FACT, "France", {"samples": 0}, ValueError, "samples=0"),
        (FACT, "France", {"noise": -1.0}, ValueError, "noise=-1"),
        (FACT, "France", {"noise": float("nan")}, ValueError, "noise=nan"),
        (FACT, "France", {"answer": "Par is"}, ValueError, "not one"),
        (FACT, "France", {"answer": 10**6}, IndexError, "1000000"),
    ],
)
def test_errors(
    mini: HookedGPT2,
    prompt: Any,
    subject: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        causal_tracing(mini, prompt, subject, **options)


# ------------------------------------------------------------------ averages


def test_roles(model: HookedGPT2) -> None:
    def roles(subject: range, length: int = 6) -> list[list[int]]:
        trace = causal_tracing(model, IDS[:length], subject, views="resid_post", samples=1)
        assert list(trace.roles) == list(ROLES)
        return [list(pos) for pos in trace.roles.values()]

    assert roles(range(0, 3)) == [[0], [1], [2], [3], [4], [5]]
    assert roles(range(1, 2)) == [[1], [], [1], [2], [3, 4], [5]]
    assert roles(range(2, 5)) == [[2], [3], [4], [5], [], [5]]
    assert roles(range(3, 6)) == [[3], [4], [5], [], [], [5]]


def test_average_is_the_mean_of_the_traces(model: HookedGPT2) -> None:
    traces = [
        causal_tracing(model, IDS, subject, noise=NOISE, samples=2, views=["resid_post", "mlp_out"])
        for subject in (range(1, 2), range(0, 4))
    ]
    together = average(traces)
    assert together.total_effect == pytest.approx(sum(t.total_effect for t in traces) / 2)
    effects = together.views["mlp_out"]
    one, other = (trace.views["mlp_out"].change for trace in traces)
    torch.testing.assert_close(effects.change[:, 0], (one[:, 1] + other[:, 0]) / 2)
    torch.testing.assert_close(effects.change[:, 1], other[:, 1:3].mean(1))  # only one has it
    torch.testing.assert_close(effects.change[:, 2], (one[:, 1] + other[:, 3]) / 2)
    torch.testing.assert_close(effects.change[:, 5], (one[:, 5] + other[:, 5]) / 2)
    assert effects.examples[0].tolist() == [2, 1, 2, 2, 1, 2]
    assert len(together.to_frame()) == 2 * 4 * 6


def test_what_cannot_be_averaged(model: HookedGPT2) -> None:
    def run(**options: Any) -> CausalTrace:
        options = {"samples": 1, "views": "resid_post", **options}
        return causal_tracing(model, IDS, SUBJECT, **options)

    with pytest.raises(ValueError, match="no traces"):
        average([])
    with pytest.raises(ValueError, match="differ in noise"):
        average([run(), run(noise=0.1)])
    with pytest.raises(ValueError, match="different views"):
        average([run(), run(views="mlp_out")])


def test_facts_that_are_not_known_are_left_out(mini: HookedGPT2) -> None:
    facts = [Fact(FACT, "France", " Paris"), Fact(FACT, "France", " Rome"), Fact(FACT, "France")]
    facts.append(Fact(FACT, "France", (" Rome", " Paris")))
    found = trace_facts(mini, facts, samples=1, views="resid_post")
    assert found.unknown == (facts[1],)
    assert [trace.answer_string for trace in found.traces] == [" Paris"] * 3
    anyway = trace_facts(mini, facts[1:2], samples=1, views="resid_post", only_known=False)
    assert anyway.traces[0].answer_string == " Rome" and not anyway.unknown
    assert "1 left out as unknown" in repr(found)
    with pytest.raises(ValueError, match="knows none"):
        trace_facts(mini, facts[1:2], samples=1)
    with pytest.raises(ValueError, match=r"fact 1: .*not in the prompt"):
        trace_facts(mini, [facts[0], Fact(FACT, "Spain")], samples=1, views="resid_post")
    with pytest.raises(ValueError, match="names no SUBJECT"):
        task_facts(mini, "ioi", 2)


def test_mini_looks_its_capitals_up_at_the_subject(mini: HookedGPT2) -> None:
    """The paper's picture: an early site at the subject and a late one at the last token; early
    MLPs at the subject matter, attention at the end."""
    found = trace_facts(mini, task_facts(mini, n=4), samples=2)
    assert found.total_effect > 0.5
    state, mlp, attention = (found.views[name].change for name in module.FIGURE_1)
    subject, end = ROLES.index("last subject token"), ROLES.index("last token")
    assert float(state[0, subject]) > 0.7 and float(state[0, end]) < 0.1
    assert float(state[-1, subject]) < 0.1 and float(state[-1, end]) > 0.7
    assert float(mlp[:, subject].max()) > float(attention[:, subject].max()) + 0.3
    assert float(attention[:, end].max()) > float(mlp[:, end].max())
    assert float(state[:, ROLES.index("further tokens")].abs().max()) < 0.1


# ------------------------------------------------------------------ pictures and the command


def count_traces(figure: Any) -> int:
    return len(figure.data)


def test_page_and_plots(trace: CausalTrace, tmp_path: Path) -> None:
    trace.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count('class="plot"') == 3
    assert [count_traces(trace.plot()), count_traces(trace.plot_severed())] == [3, 3]
    frame = trace.to_frame()
    assert list(frame["subject"]) == [pos in SUBJECT for pos in frame["pos"]]
    assert len(frame) == 5 * 4 * 6
    assert "CausalTrace(" in repr(trace) and "seed 1" in repr(trace)
    together = average([trace, trace])
    together.to_html(tmp_path / "average.html")
    assert [count_traces(together.plot()), count_traces(together.plot_severed())] == [3, 3]
    with pytest.raises(ValueError, match="no view 'mlp_post'"):
        trace.plot("mlp_post")


def test_severed_bars_need_severed_views(model: HookedGPT2) -> None:
    plain = causal_tracing(model, IDS, SUBJECT, samples=1, views="resid_post")
    with pytest.raises(ValueError, match="mlp_severed"):
        plain.plot_severed()


def test_command(
    mini: HookedGPT2,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "load_model", lambda *_, **__: mini)
    prompt, csv, page, data = (tmp_path / name for name in ("p.txt", "t.csv", "t.html", "t.json"))
    prompt.write_text(FACT + "\n")
    arguments = [str(prompt), "--subject", "France", "--model", "mini", "--samples", "2"]
    arguments += ["--csv", str(csv), "--html", str(page), "--json", str(data)]
    monkeypatch.setattr(sys, "argv", ["causal_tracing.py", *arguments])
    assert cli.status(module.main, "python -m analyses.causal_tracing", arguments) == 0
    out = capsys.readouterr().out
    assert "p(·Paris)" in out and "7 ·France*" in out
    assert csv.read_text().startswith('"view","answer"')
    assert json.loads(data.read_text())["answer"] == " Paris"
    assert "--subject France" in page.read_text()

    two = [str(prompt), str(prompt), "--subject", "France", "--subject", "capital"]
    small = ["--samples", "1", "--views", "resid_post", "--model", "mini"]
    assert cli.status(module.main, "x", [*two, *small]) == 0
    assert "2 facts; average total effect" in capsys.readouterr().out
    assert cli.status(module.main, "x", ["--task", "capitals", "--n", "2", *small]) == 0
    assert "by layer and role" in capsys.readouterr().out
    for wrong, message in (
        ([], "expected prompt files, or --task"),
        ([str(prompt), "--task", "capitals"], "not both"),
        ([str(prompt)], "--subject is given 0 times for 1 file"),
        ([str(prompt), "--subject", "Spain"], "p.txt: the subject 'Spain' is not"),
        (["--task", "capitals", "--subject", "x"], "--task brings its own"),
        ([str(prompt), "--subject", "France", "--top-k", "0"], "--top-k is 0"),
    ):
        assert cli.status(module.main, "x", [*wrong, *small]) == 1
        assert message in capsys.readouterr().err

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.looks, "show", interrupted)
    csv.unlink()
    assert cli.status(module.main, "x", arguments) == 130
    assert csv.exists()  # files are written before tables are shown
