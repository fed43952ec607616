"""Edge attribution patching: against gradients at what receivers read, finite differences of naive
edits, sums that must hold, exact patching; padding, batches; errors; the page and the command."""

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from _commands import help_without_torch
from _random_pairs import N_POS, lively_model, random_pair
from rich.console import Console
from torch import Tensor

from analyses import cli
from analyses import edge_attribution as module
from analyses._views import edge_attribution as views_of
from analyses.attribution_patching import attribution_patching
from analyses.edge_attribution import (
    EdgeAttribution,
    Part,
    edge_attribution,
    receivers,
    senders,
)
from analyses.metrics import kl
from analyses.pairs import PromptPair
from hooks import ActivationCache
from interp import HookedGPT2

N_LAYERS, N_HEADS = 3, 2
N_EDGES = (6 + 3) + (24 + 6) + (42 + 9) + 10  # of each layer: into heads, into the MLP; into logits


@pytest.fixture(scope="module")
def model(reference_model: Callable[..., Any]) -> HookedGPT2:
    return lively_model(reference_model, N_LAYERS, N_HEADS)


def point_of(receiver: Part) -> str:
    """Where a receiver reads."""
    if receiver.kind == "logits":
        return f"blocks.{N_LAYERS - 1}.hook_resid_post"
    what = "mlp_in" if receiver.kind == "mlp" else f"{receiver.kind}_input"
    return f"blocks.{receiver.layer}.hook_{what}"


def sent(cache: ActivationCache, sender: Part) -> Tensor:
    """What a sender wrote: batch pos d_model."""
    if sender.kind == "input":
        return cache["hook_embed"] + cache["hook_pos_embed"]
    if sender.kind == "mlp":
        return cache["mlp_out", sender.layer]
    return cache["result", sender.layer][:, :, sender.head]


def runs(
    model: HookedGPT2, pair: PromptPair, direction: str = "noising"
) -> tuple[ActivationCache, ActivationCache]:
    """The base run, with gradients at everything, and the source run."""
    base, source = (pair.clean, pair.corrupted)
    if direction == "denoising":
        base, source = source, base

    def metric(logits: Tensor) -> Tensor:
        return pair.metric(logits, attention_mask=pair.attention_mask).sum()

    names = ["*embed", "*attn.hook_result", "*hook_mlp_out", "*_input", "*mlp_in", "*resid_post"]
    options: dict[str, Any] = {"names_filter": names, "attention_mask": pair.attention_mask}
    _, of_base = model.run_with_cache(base, incl_bwd=metric, **options)
    _, of_source = model.run_with_cache(source, **options)
    return of_base, of_source


# ------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("lengths", [(N_POS, N_POS), (N_POS, N_POS - 2)])
def test_every_score_is_difference_times_gradient(
    model: HookedGPT2, direction: Any, lengths: tuple[int, ...]
) -> None:
    pair = random_pair(model, lengths)
    found = edge_attribution(model, pair, direction=direction)
    base, source = runs(model, pair, direction)
    assert int(found.exists.sum()) == N_EDGES
    assert found.scores.shape == (10, 22, 2)
    for i, sender in enumerate(found.senders):
        difference = sent(source, sender) - sent(base, sender)
        for j, receiver in enumerate(found.receivers):
            gradient = base[f"{point_of(receiver)}_grad"]
            if receiver.head is not None:
                gradient = gradient[:, :, receiver.head]
            expected = (difference * gradient).sum((1, 2)) * found.exists[i, j]
            torch.testing.assert_close(found.scores[i, j], expected, rtol=1e-9, atol=1e-12)


def test_an_edge_is_there_when_the_sender_comes_first(model: HookedGPT2) -> None:
    found = edge_attribution(model, random_pair(model))
    order = {"input": 0, "q": 1, "k": 1, "v": 1, "head": 2, "mlp": 3}
    for i, sender in enumerate(found.senders):
        for j, receiver in enumerate(found.receivers):
            last = (N_LAYERS, 0) if receiver.kind == "logits" else None
            wrote = (sender.layer or 0, order[sender.kind])
            reads = last or (receiver.layer, order[receiver.kind])
            assert bool(found.exists[i, j]) == (wrote < reads), (sender, receiver)
    assert bool((found.scores[~found.exists] == 0).all())
    assert bool((found.scores[found.exists] != 0).all())


@pytest.mark.parametrize("edge", [("input", "0.1.q"), ("0.1", "2.0.k"), ("1.mlp", "2.1.v"),
                                  ("1.0", "1.mlp"), ("2.1", "logits")])  # fmt: skip
def test_a_score_is_the_effect_of_going_a_little_of_the_way(
    model: HookedGPT2, edge: tuple[str, str]
) -> None:
    pair = random_pair(model, (N_POS, N_POS - 1))
    apart = edge_attribution(model, pair, positions=[1, -1])
    base, source = runs(model, pair)
    sender = next(part for part in apart.senders if str(part) == edge[0])
    receiver = next(part for part in apart.receivers if str(part) == edge[1])
    difference = sent(source, sender) - sent(base, sender)
    index = apart.senders.index(sender), apart.receivers.index(receiver)
    for slot, position in enumerate((1, -1)):

        def metric(share: float, position: int = position) -> Tensor:
            def edit(activation: Tensor, hook: Any) -> None:
                for example, length in enumerate(pair.lengths.tolist()):
                    at: Any = (example, position % length)
                    there = at if receiver.head is None else (*at, receiver.head)
                    activation[there] += share * difference[at]

            logits: Any = model.run_with_hooks(
                pair.clean,
                fwd_hooks=[(point_of(receiver), edit)],
                attention_mask=pair.attention_mask,
            )
            return pair.metric(logits, attention_mask=pair.attention_mask)

        slope = (metric(1e-4) - metric(-1e-4)) / 2e-4
        torch.testing.assert_close(apart.scores[index][slot], slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("steps", [None, 3])
def test_edges_that_leave_a_sender_sum_to_its_estimate(
    model: HookedGPT2, direction: Any, steps: int | None
) -> None:
    pair = random_pair(model)
    edges = edge_attribution(model, pair, direction=direction, steps=steps)
    nodes = attribution_patching(
        model, pair, direction=direction, steps=steps, views=["resid_pre", "z", "mlp_out"]
    )
    expected = []
    for sender in edges.senders:
        if sender.kind == "head":
            expected.append(nodes["z"].change[sender.layer, sender.head])
        else:
            view = "resid_pre" if sender.kind == "input" else "mlp_out"
            expected.append(nodes[view].change[sender.layer or 0].sum())
    torch.testing.assert_close(edges.outgoing, torch.stack(expected))


def test_edges_into_a_receiver_sum_to_all_that_it_reads(model: HookedGPT2) -> None:
    pair = random_pair(model)
    edges = edge_attribution(model, pair)
    base, source = runs(model, pair)
    for j, receiver in enumerate(edges.receivers):
        point = point_of(receiver)
        change = (source[point] - base[point]) * base[f"{point}_grad"]
        change = change if receiver.head is None else change[:, :, receiver.head]
        torch.testing.assert_close(edges.scores[:, j].sum(0), change.sum((1, 2)))


@pytest.mark.parametrize("steps", [None, 3])
def test_positions_sum_to_the_whole(model: HookedGPT2, steps: int | None) -> None:
    pair = random_pair(model)
    whole = edge_attribution(model, pair, steps=steps)
    apart = edge_attribution(model, pair, steps=steps, positions="all")
    assert apart.scores.shape == (10, 22, N_POS, 2)
    torch.testing.assert_close(apart.scores.sum(2), whole.scores)
    torch.testing.assert_close(apart.total, whole.total)
    some = edge_attribution(model, pair, steps=steps, positions=[3, -1])
    torch.testing.assert_close(some.scores, apart.scores[:, :, [3, 4]])


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 2}, {"memory_limit": 1}])
def test_batches_and_padding_change_nothing(
    model: HookedGPT2, steps: int | None, options: dict[str, Any]
) -> None:
    pair = random_pair(model, (N_POS, N_POS - 1, N_POS - 2))
    together = edge_attribution(model, pair, steps=steps)
    apart = edge_attribution(model, pair, steps=steps, **options)
    torch.testing.assert_close(apart.scores, together.scores)
    for example in range(3):
        alone = edge_attribution(model, pair.select([example]), steps=steps)
        torch.testing.assert_close(alone.scores[..., 0], together.scores[..., example])


def test_integrated_edges_are_the_mean_over_midpoints(model: HookedGPT2) -> None:
    pair = random_pair(model)
    found = edge_attribution(model, pair, steps=2)
    base, source = runs(model, pair)
    total = torch.zeros(2, dtype=torch.float64)
    for share in (0.25, 0.75):

        def between(embed: Tensor, hook: Any, share: float = share) -> Tensor:
            return embed + share * (source["hook_embed"] - base["hook_embed"])

        with model.hooks([("hook_embed", between)]):
            there, _ = runs(model, pair)
        gradient = there["blocks.2.hook_k_input_grad"][:, :, 1]
        sender = Part("head", 0, 1)
        total += ((sent(source, sender) - sent(base, sender)) * gradient).sum((1, 2)) / 2
    torch.testing.assert_close(found["0.1", "2.1.k"], total.mean())


def test_edges_from_the_embeddings_sum_to_the_whole_difference(model: HookedGPT2) -> None:
    pair = random_pair(model)
    found = edge_attribution(model, pair, steps=100)
    whole = found.source - found.base
    assert whole.abs().min() > 0.05
    torch.testing.assert_close(found.scores[0].sum(0), whole, rtol=1e-3, atol=1e-4)


def test_one_number_for_all_prompts_together(model: HookedGPT2) -> None:
    pair = random_pair(model)
    together = edge_attribution(model, pair, metric=lambda logits: pair.metric(logits).mean())
    assert together.scores.shape[-1] == 1
    torch.testing.assert_close(together.total, edge_attribution(model, pair).total)


def test_with_exact_patches_the_strongest(model: HookedGPT2) -> None:
    pair = random_pair(model, (N_POS, N_POS - 1))
    found = edge_attribution(model, pair).with_exact(model, 12, progress=False)
    base, source = runs(model, pair)
    sizes = found.total[found.exists].abs().sort(descending=True).values
    assert found.agreement is not None
    assert len(found.patched) == 12
    for place, (i, j) in enumerate(found.patched):
        assert abs(float(found.total[i, j])) == pytest.approx(float(sizes[place]))
        receiver = found.receivers[j]
        difference = sent(source, found.senders[i]) - sent(base, found.senders[i])

        def edit(
            activation: Tensor, hook: Any, to: Part = receiver, d: Tensor = difference
        ) -> None:
            if to.head is None:
                activation += d
            else:
                activation[:, :, to.head] += d

        logits: Any = model.run_with_hooks(
            pair.clean,
            fwd_hooks=[(point_of(receiver), edit)],
            attention_mask=pair.attention_mask,
        )
        change = pair.metric(logits, attention_mask=pair.attention_mask).detach() - found.base
        assert float(found.agreement.exact[place]) == pytest.approx(float(change.mean()), abs=1e-9)
    frame = found.to_frame()
    assert frame["exact"].notna().sum() == 12
    top = found.top(1).iloc[0]
    assert top["exact"] == pytest.approx(float(found.agreement.exact[0]))
    with pytest.raises(ValueError, match="give with_exact the same model and metric"):
        found.with_exact(model, 2, metric=lambda logits: logits[:, 0, 3] + 5)


def test_mini_on_ioi_agrees_with_exact_patching(mini: HookedGPT2) -> None:
    pair = PromptPair.from_task(mini, "ioi", 12, 1)
    found = edge_attribution(mini, pair).with_exact(mini, 60, progress=False)
    assert found.agreement is not None
    # Measured: Pearson 0.91, Spearman 0.95.
    assert found.agreement.pearson > 0.8
    assert found.agreement.spearman > 0.8


# ------------------------------------------------------------------ what does not fit


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "noisy"}, "unknown direction 'noisy'; did you mean 'noising'?"),
        ({"steps": 0}, "steps=0 is out of range"),
        ({"batch_size": -1}, "batch_size=-1 is out of range"),
        ({"positions": [5]}, "position 5 is out of range"),
        ({"metric": lambda logits: logits[:, -1].argmax(-1)}, "not differentiable"),
        ({"metric": lambda logits: logits[:, -1, 0] * math.nan}, "not a finite number"),
        ({"metric": kl()}, "its gradient there is zero"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: HookedGPT2, change: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError, IndexError), match=re.escape(message)):
        edge_attribution(model, random_pair(model), **change)


@pytest.mark.parametrize("name", ["blocks.1.ln1.hook_scale", "blocks.0.hook_attn_out"])
def test_functions_where_scores_are_computed_past_are_refused(model: HookedGPT2, name: str) -> None:
    with (
        model.hooks([(name, lambda activation, hook: None)]),
        pytest.raises(ValueError, match=f"a function listens at '{name}'"),
    ):
        edge_attribution(model, random_pair(model))


def test_functions_elsewhere_count(model: HookedGPT2) -> None:
    def silence(z: Tensor, hook: Any) -> None:
        z[:, :, 1] = 0

    with model.hooks([("blocks.1.attn.hook_z", silence)]):
        found = edge_attribution(model, random_pair(model))
    assert found["1.1", "logits"] == 0
    assert found["input", "1.1.v"] == 0
    assert found["1.0", "logits"] != 0


# ------------------------------------------------------------------ the result


@pytest.fixture(scope="module")
def result(mini: HookedGPT2) -> EdgeAttribution:
    pair = PromptPair.from_task(mini, "ioi", 2, 0)
    return edge_attribution(mini, pair).with_exact(mini, 10, progress=False)


def test_names() -> None:
    assert [str(part) for part in senders(1, 2)] == ["input", "0.0", "0.1", "0.mlp"]
    reading = ["0.0.q", "0.1.q", "0.0.k", "0.1.k", "0.0.v", "0.1.v", "0.mlp", "logits"]
    assert [str(part) for part in receivers(1, 2)] == reading


def test_edges_by_name(result: EdgeAttribution) -> None:
    top = result.top(1).iloc[0]
    assert float(result[top["sender"], top["receiver"]]) == pytest.approx(top["score"])
    with pytest.raises(KeyError, match=r"unknown sender '1\.9'"):
        result["1.9", "logits"]
    with pytest.raises(KeyError, match=r"no edge from 3\.0 to 1\.mlp"):
        result["3.0", "1.mlp"]
    with pytest.raises(ValueError, match="k=0 is out of range"):
        result.top(0)


def test_the_table_has_a_row_per_edge(result: EdgeAttribution) -> None:
    frame = result.to_frame()
    assert len(frame) == int(result.exists.sum()) == 927
    row = frame[(frame["sender"] == "2.3") & (frame["receiver"] == "3.1.k")].iloc[0]
    assert (row["sender_kind"], row["sender_layer"], row["sender_head"]) == ("head", 2, 3)
    assert (row["receiver_kind"], row["receiver_layer"], row["receiver_head"]) == ("k", 3, 1)
    whole = float((result.source - result.base).mean())
    assert row["share"] == pytest.approx(row["score"] / whole)
    assert row["score"] == pytest.approx(float(result["2.3", "3.1.k"]))


def test_the_table_of_positions(mini: HookedGPT2) -> None:
    pair = PromptPair.from_task(mini, "ioi", 2, 0)
    found = edge_attribution(mini, pair, positions=["S2", "END"])
    frame = found.to_frame()
    assert len(frame) == 2 * 927
    assert list(frame["pos_label"][:4]) == ["S2", "END", "S2", "END"]
    assert frame["score"][1] == pytest.approx(float(found["input", "0.0.q"][1]))
    assert set(found.top(5)["pos_label"]) <= {"S2", "END"}


def test_everything_as_plain_data(result: EdgeAttribution) -> None:
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    missing = [cell[0] is None for row in found["scores"] for cell in row]
    assert missing == (~result.exists).flatten().tolist()
    assert found["agreement"]["places"] == 10


def test_the_page_and_the_terminal(result: EdgeAttribution, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    result.to_html(path)
    text = path.read_text()
    assert "The 30 strongest edges" in text and "Agreement with exact patching" in text
    assert "://" not in re.sub(r"(?s)<script.*?</script>", "", text)
    console = Console(file=io.StringIO(), width=120)
    views_of.show(result, console, 5)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the strongest 5 of 927 edges" in shown and "patched one by one" in shown
    assert repr(result).startswith("EdgeAttribution(mini, noising, gradient at the base run")


def test_the_picture_is_blank_where_there_is_no_edge(result: EdgeAttribution) -> None:
    (heat,) = result.plot().data
    blank = torch.tensor([[math.isnan(v) for v in row] for row in heat.z])
    assert torch.equal(blank, ~result.exists)
    assert list(heat.y) == [str(part) for part in result.senders]


# ------------------------------------------------------------------ the command line


def run_command(*arguments: str) -> int:
    return cli.status(module.main, "python -m analyses.edge_attribution", arguments)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--model mini --task ioi --n 2 --steps 2 --exact 5 --top-k 7".split()
    files = [f"--{kind}={tmp_path}/out.{kind}" for kind in ("html", "csv", "json")]
    assert run_command(*options, *files) == 0
    shown = capsys.readouterr().out
    assert "the strongest 7 of 927 edges" in shown
    assert "The 5 strongest edges, patched one by one" in shown
    frame = pd.read_csv(tmp_path / "out.csv")
    assert len(frame) == 927 and frame["exact"].notna().sum() == 5
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["provenance"]["weights_sha256"] in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--direction noisy", "unknown direction 'noisy'; did you mean 'noising'?"),
        ("--exact 0", "--exact is 0: expected at least 1"),
        ("--positions S9", "unknown position 'S9'"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("--model", "mini", "--task", "ioi", *arguments.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_help_needs_no_torch() -> None:
    assert "EAP-IG" in help_without_torch("analyses.edge_attribution")
