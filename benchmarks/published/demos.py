"""Figures of TransformerLens' demos: how each is measured here.

Their runs had processed weights, so `Bench.processed` is run; text gets `<|endoftext|>` before it,
random tokens do not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from analyses.activation_patching import activation_patching
from analyses.attribution import attribution
from analyses.circuits import HeadEigenvalues, head_eigenvalues
from analyses.metrics import evaluate, loss
from analyses.pairs import PromptPair
from benchmarks.published.bench import Bench, Missing, figure
from benchmarks.published.figures import Measured
from hooks import HookPoint
from interp import HookedGPT2

# So many sequences of random tokens go through the model at a time.
_AT_ONCE = 10

# ------------------------------------------------------------------ Exploratory Analysis


@figure("exploratory/mary")
def mary(bench: Bench) -> Measured:
    model = bench.processed
    prompt = "After John and Mary went to the store, John gave a bottle of milk to"
    with torch.no_grad():
        logits = model.forward(prompt)
    assert isinstance(logits, Tensor)
    last, answer = logits[0, -1], model.to_single_token(" Mary")
    rank = int((last > last[answer]).sum())
    return Measured.of([rank, last[answer].item(), last.softmax(-1)[answer].item()])


@figure("exploratory/logit-differences")
def logit_differences(bench: Bench) -> Measured:
    return Measured.of(bench.demo.ends(bench.processed)["clean"])


@figure("exploratory/ends")
def ends(bench: Bench) -> Measured:
    found = bench.demo.ends(bench.processed)
    return Measured.of([found["clean"].mean().item(), found["corrupted"].mean().item()])


@figure("exploratory/accumulated")
def accumulated(bench: Bench) -> Measured:
    # The layer norm's shift and the unembedding's bias, which the demo leaves out, cancel: every
    # answer is the wrong one of another prompt.
    return Measured.of(bench.demo_attribution.views["lens"].mean)


@figure("exploratory/layers")
def layers(bench: Bench) -> Measured:
    # The last two components are that shift and that bias.
    return Measured.of(bench.demo_attribution.views["component"].mean[:-2])


@figure("exploratory/heads")
def heads(bench: Bench) -> Measured:
    return Measured.of(bench.demo_attribution.views["head"].mean)


def _patched(name: str, view: str) -> None:
    @figure(f"exploratory/patch-{name}")
    def patched(bench: Bench) -> Measured:
        return Measured.of(bench.demo_patching.views[view].normalised)


for _name, _view in (
    ("residual", "resid_pre"),
    ("attention", "attn_out"),
    ("mlp", "mlp_out"),
    ("head-output", "z"),
    ("head-value", "v"),
    ("head-pattern", "pattern"),
):
    _patched(_name, _view)


@figure("exploratory/ablated")
def ablated(bench: Bench) -> Measured:
    edit = bench.demo_ablation
    with bench.processed.hooks(fwd_hooks=[(edit.point, edit)]):
        return Measured.of(bench.demo.ends(bench.processed)["clean"].mean())


@figure("exploratory/ablated-heads")
def ablated_heads(bench: Bench) -> Measured:
    edit = bench.demo_ablation
    with bench.processed.hooks(fwd_hooks=[(edit.point, edit)]):
        found = attribution(bench.processed, bench.demo, neurons=False)
    return Measured.of(found.views["head"].mean)


# ------------------------------------------------------------------ random tokens twice


def repeated(model: HookedGPT2, low: int, high: int, n: int, length: int, seed: int) -> Tensor:
    """Random tokens twice, `batch pos`, from `[low, high)`, as far as the model has these.

    Torch's generator on the CPU gives the same numbers on every machine.
    """
    high = min(high, model.cfg.d_vocab)
    once = torch.randint(
        min(low, high // 2), high, (n, length), generator=torch.Generator().manual_seed(seed)
    )
    return once.repeat(1, 2).to(model.device)


def diagonals(model: HookedGPT2, tokens: Tensor, offsets: Sequence[int]) -> list[Tensor]:
    """For each offset the mean attention so many tokens back, `layer head batch`."""
    n = model.cfg.n_layers, model.cfg.n_heads, len(tokens)
    found = [torch.zeros(n, dtype=torch.float64) for _ in offsets]
    for rows in torch.arange(len(tokens)).split(_AT_ONCE):

        def keep(pattern: Tensor, hook: HookPoint, rows=rows) -> None:
            layer = int(hook.name.split(".")[1])
            for scores, offset in zip(found, offsets, strict=True):
                scores[layer][:, rows] = pattern.diagonal(-offset, -2, -1).mean(-1).T.cpu().double()

        with torch.no_grad():
            hooks = [("*attn.hook_pattern", keep)]
            model.run_with_hooks(tokens[rows.to(tokens.device)], return_type=None, fwd_hooks=hooks)
    return found


_SCORES = {"previous-token": 1, "duplicate-token": 100, "induction": 99}


def _score(name: str) -> None:
    def all_scores(bench: Bench) -> list[Tensor]:
        tokens = repeated(bench.model, 100, 20000, 2, 100, seed=0)
        return diagonals(bench.model, tokens, list(_SCORES.values()))

    @figure(f"exploratory/{name}")
    def score(bench: Bench) -> Measured:
        found = bench.once("exploratory scores", lambda: all_scores(bench))
        return Measured.of(found[list(_SCORES).index(name)].mean(-1))


for _name in _SCORES:
    _score(_name)


def _many(bench: Bench) -> Tensor:
    """Four times as many sequences as there, so that most of the sampling error is theirs."""
    return repeated(bench.model, 1000, 10000, 40, 50, seed=0)


@figure("main/loss-by-position")
def loss_by_position(bench: Bench) -> Measured:
    parts = []
    for tokens in _many(bench).split(_AT_ONCE):
        with torch.no_grad():
            part = bench.processed.forward(tokens, return_type="loss", loss_per_token=True)
        assert isinstance(part, Tensor)
        parts.append(part.double())
    found = torch.cat(parts)
    return Measured.of(found.mean(0), found.std(0), len(found))


@figure("main/induction")
@figure("main/induction-distilgpt2")
def induction(bench: Bench) -> Measured:
    (found,) = diagonals(bench.model, _many(bench), [49])
    return Measured.of(found.mean(-1), found.std(-1), found.shape[-1])


# ------------------------------------------------------------------ Main demo


@figure("main/description-loss")
def description_loss(bench: Bench) -> Measured:
    if bench.text is None:
        raise Missing("give the text of cell 19 of the notebook: --text FILE")
    return Measured.of(evaluate(bench.processed, bench.text, loss())["loss"].mean())


@figure("main/patch-residual")
def patch_residual(bench: Bench) -> Measured:
    text = "After John and Mary went to the store,{} gave a bottle of milk to"
    pair = PromptPair.from_text(
        bench.processed, text.format(" Mary"), text.format(" John"), " John", " Mary"
    )
    found = activation_patching(bench.processed, pair, views="resid_pre")
    return Measured.of(found.views["resid_pre"].normalised)


def _eigenvalues(bench: Bench, space: str) -> HeadEigenvalues:
    return bench.once(
        f"eigenvalues {space}", lambda: head_eigenvalues(bench.processed, "OV", space)
    )


@figure("main/ov-copying")
def ov_copying(bench: Bench) -> Measured:
    return Measured.of(_eigenvalues(bench, "residual").scores[0])


@figure("main/full-ov-copying")
def full_ov_copying(bench: Bench) -> Measured:
    return Measured.of(_eigenvalues(bench, "plain").scores[0])


@figure("main/ov-eigenvalues")
def ov_eigenvalues(bench: Bench) -> Measured:
    """Of W_V W_O, those that are not 0, from left to right."""
    values = _eigenvalues(bench, "residual").eigenvalues[0, -1, -1]
    points = sorted(torch.view_as_real(values).tolist())
    return Measured.of(torch.tensor(points))


@figure("tests/hello-world")
def hello_world(bench: Bench) -> Measured:
    return Measured.of(evaluate(bench.processed, "Hello world!", loss())["loss"].mean())
