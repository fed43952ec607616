"""Circuits of the bundled model: small ones that keep the metric; the result, its page, the
command."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from _commands import help_without_torch

from analyses import circuit_discovery as module
from analyses import cli
from analyses.circuit_discovery import (
    Circuit,
    Discovery,
    NodeCircuit,
    compare,
    discover,
    load_circuit,
    run_circuit,
)
from analyses.pairs import PromptPair
from analyses.tasks import generate
from interp import HookedGPT2


@pytest.mark.parametrize(("task", "k"), [("induction", 80), ("ioi", 250)])
def test_a_small_circuit_of_mini_keeps_most(mini: HookedGPT2, task: str, k: int) -> None:
    pair = PromptPair.from_task(mini, task, 8, 0)
    found = discover(mini, pair, "eap-ig", k=k, steps=5)
    assert found.n_all == 927 and len(found.circuit) <= k
    assert found.faithfulness is not None
    # Measured: 76 edges keep 92 % of induction, 250 edges 89 % of IOI.
    assert float(found.faithfulness.share) > 0.8


def test_knocking_out_as_in_the_paper(mini: HookedGPT2) -> None:
    data = generate("ioi", mini.tokenizer, 12, seed=0, split="held_out")
    pair = PromptPair.from_data(data, mini)
    names = {"late": ["3.3@END", "3.0@END"], "early": ["1.5@S2", "0.2@S1+1"]}
    circuit = NodeCircuit.of(mini, names, kept=("input", "mlps"))
    full = NodeCircuit.full(mini, kept=("input", "mlps"))
    others = generate("ioi", mini.tokenizer, 150, seed=1, split="held_out")
    mean: dict[str, Any] = {"ablation": "mean", "reference": PromptPair.from_data(others, mini)}
    options = mean | {"groups": data.templates, "reference_groups": others.templates}
    found = run_circuit(mini, {"some": circuit, "all": full}, pair, **options)
    torch.testing.assert_close(found.values[1], found.clean, rtol=1e-4, atol=1e-4)
    by_length = run_circuit(mini, circuit, pair, **mean)
    assert len(set(data.templates)) > len(set(data.lengths.tolist()))
    assert float((found.values[0] - by_length.values[0]).abs().max()) > 1e-3
    assert float((found.values[0] - found.empty).abs().max()) > 0.1


@pytest.fixture(scope="module")
def result(mini: HookedGPT2) -> Discovery:
    pair = PromptPair.from_task(mini, "ioi", 2, 0)
    return discover(mini, pair, "acdc", threshold=0.3)


def test_the_result(result: Discovery, tmp_path: Path) -> None:
    circuit: Any = result.circuit
    frame = result.to_frame()
    assert len(frame) == len(circuit) and frame["score"].min() >= 0.3
    steps = result.steps_frame()
    assert len(steps) == 927 and steps["kept"].sum() == len(circuit)
    # Guesses that came to nothing were run, too; what leads nowhere was not.
    assert steps["run"].sum() < 927
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert len(data["edges"]) == len(circuit) and data["of"] == 927
    assert repr(result).startswith(
        f"Discovery(ACDC (kl, threshold 0.3, the corrupted run): {len(circuit)} of 927"
    )
    result.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "The search" in text and "://" not in re.sub(r"(?s)<script.*?</script>", "", text)
    held = compare(circuit, Circuit.full(circuit.shape), "edges")
    assert held.precision == 1 and held.recall == len(circuit) / 927


# ------------------------------------------------------------------ the command line


def run_command(*arguments: str) -> int:
    return cli.status(module.main, "python -m analyses.circuit_discovery", arguments)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--model mini --task ioi --n 2 --method eap-ig --k 60 --steps 2".split()
    files = [f"--{kind}={tmp_path}/out.{kind}" for kind in ("html", "csv", "json")]
    saved = str(tmp_path / "circuit.json")
    assert run_command(*options, *files, "--save", saved) == 0
    shown = " ".join(capsys.readouterr().out.split())
    n = len(load_circuit(saved))
    assert (
        f"{n} of 927 edges, found by EAP-IG with 2 steps" in shown and f"20 of {n} edges" in shown
    )
    assert len(pd.read_csv(tmp_path / "out.csv")) == n
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["provenance"]["weights_sha256"] in (tmp_path / "out.html").read_text()
    assert load_circuit(saved).provenance["call"].startswith("python -m analyses.circuit_discovery")
    options = "--model mini --task ioi --n 2 --method acdc --threshold 1 --level nodes".split()
    assert run_command(*options, "--reference", saved) == 0
    assert "Against the reference, nodes: precision" in capsys.readouterr().out
    options = "--model mini --task ioi --n 2 --method greedy --k 22 --level nodes".split()
    assert run_command(*options) == 0
    assert "22 of 28 nodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--method acd", "unknown method 'acd'; did you mean 'acdc'?"),
        ("--method eap", "--method eap takes either --k or --threshold"),
        ("--method greedy", "--method greedy takes --k or --share: where to stop"),
        ("--k 3", "--k does not go with --method acdc: it goes with eap, eap-ig, greedy"),
        ("--at-once 4", "--at-once does not go with --method acdc: it goes with greedy"),
        ("--method eap --k 3 --steps 9", "--steps does not go with --method eap: it goes with eap"),
        ("--level node", "unknown level 'node'; did you mean 'nodes'?"),
        ("--ablation patching", "unknown ablation 'patching'; did you mean 'patch'?"),
        ("--reference ioi", "--reference ioi is of a model with 12 layers of 12 heads; mini has 4"),
        ("--reference nowhere.json", "nowhere.json"),
        ("--save nowhere/x.json", "nowhere"),
        ("--save x.json --json x.json", "would both write to x.json"),
        ("--save -", "--save needs a path"),
        ("--top-k 0", "--top-k is 0: expected at least 1"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("--model", "mini", "--task", "ioi", "--n", "2", *arguments.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_an_interrupted_command_writes_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("analyses._discovery.methods.faithfulness", interrupted)
    options = "--model mini --task ioi --n 2 --method greedy --k 27 --level nodes".split()
    saved, page = tmp_path / "circuit.json", tmp_path / "page.html"
    assert run_command(*options, "--save", str(saved), "--html", str(page)) == 130
    said = capsys.readouterr()
    assert "interrupted after" in said.out and "error: interrupted" in said.err
    assert len(load_circuit(saved)) == 27 and page.exists()


def test_edges_without_a_path_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--model mini --task ioi --n 2 --method eap --k 1 --ablation zero".split()
    assert run_command(*options) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"1 chosen, [01] of them on a path from the input to the logits", shown)
    assert "the estimated change of logit_diff if" in shown


def test_help_needs_no_torch() -> None:
    assert "ACDC" in help_without_torch("analyses.circuit_discovery")
