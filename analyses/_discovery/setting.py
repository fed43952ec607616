"""What running circuits needs of plain runs: what senders write, and what stands in its place.

Kept per layer as the heads' `z` and the MLP's output; what a head writes is `z` times its `W_O`.
The output bias b_O of attention belongs to no head: it is there whatever a circuit leaves out.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses import cli
from analyses._discovery.numbers import whole
from analyses._gradients import Judge, one_metric
from analyses.metrics import AnyMetric
from analyses.pairs import PromptPair
from analyses.prompts import AnyPrompts, Prompts
from analyses.tasks import unknown
from interp import HookedGPT2

ABLATIONS = ("patch", "zero", "mean", "resample")
# So many tokens go through the model at a time.
_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Written:
    """What every sender wrote on some prompts.

    Attributes:
        input: the embeddings of token and position.
        z: per layer, what the heads gathered.
        mlp: per layer, the MLP's output.
    """

    input: Float[Tensor, "example pos d_model"]
    z: tuple[Float[Tensor, "example pos head d_head"], ...]
    mlp: tuple[Float[Tensor, "example pos d_model"], ...]

    def of(self, examples: slice) -> "Written":
        """Of some examples."""
        return Written(
            self.input[examples],
            tuple(z[examples] for z in self.z),
            tuple(mlp[examples] for mlp in self.mlp),
        )

    def map(self, function: Any) -> "Written":
        """The same with every tensor changed."""
        return Written(
            function(self.input), tuple(map(function, self.z)), tuple(map(function, self.mlp))
        )


@dataclass(frozen=True, eq=False)
class Setting:
    """The prompts, the metric, and what stands in place of what a circuit leaves out.

    Attributes:
        model: whose circuits are run.
        pair: the prompts; the clean ones are run.
        tokens, mask: of the clean prompts, on the model's device.
        judge: the metric.
        clean: what senders wrote in the clean run.
        ablated: what stands in place of what is not in a circuit.
        final: the last residual of the clean run (the logits, for a metric that reads them all).
        clean_values: the metric of the clean run: one per example, or one for all.
        ablation, reference: how `ablated` came about, in words.
        memory_limit: bytes that activations may take.
    """

    model: HookedGPT2
    pair: PromptPair
    tokens: Int[Tensor, "example pos"]
    mask: Bool[Tensor, "example pos"]
    judge: Judge
    clean: Written
    ablated: Written
    final: Float[Tensor, "example pos d"]
    clean_values: Float[Tensor, " value"]
    ablation: str
    reference: str
    memory_limit: int

    @classmethod
    def of(
        cls,
        model: HookedGPT2,
        pair: PromptPair,
        metric: AnyMetric | None,
        *,
        ablation: str = "patch",
        reference: AnyPrompts | PromptPair | None = None,
        per_position: bool = True,
        groups: Sequence[str] | None = None,
        reference_groups: Sequence[str] | None = None,
        seed: int = 0,
        memory_limit: int = 2**30,
    ) -> "Setting":
        """Check everything, and run the prompts. See `analyses.circuit_discovery.run_circuit`."""
        active = [n for n, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]
        if active:
            raise ValueError(
                f"hooks are active on the model, at {', '.join(active[:3])}: circuits are run on "
                "the bare model. Call model.reset_hooks()"
            )
        if not isinstance(pair, PromptPair):
            raise TypeError(f"pair is a PromptPair, not {type(pair).__name__}")
        if isinstance(memory_limit, bool) or not isinstance(memory_limit, int) or memory_limit < 1:
            raise ValueError(f"memory_limit={memory_limit!r}: expected bytes, at least 1")
        seed = whole("seed", seed, 0)
        if ablation not in ABLATIONS:
            raise ValueError(unknown("ablation", str(ablation), ABLATIONS))
        name, measure = one_metric(pair.metric if metric is None else metric)
        mask = pair.attention_mask.bool().to(model.device)
        judge = Judge(model, measure, name, mask)
        tokens = pair.clean.to(model.device)
        with torch.no_grad():
            clean, final = _run(model, tokens, mask)
            if judge.whole:
                final = model.unembed(model.ln_final(final))
            ablated, told = _ablated(
                model, pair, mask, clean, ablation, reference, per_position, groups,
                reference_groups, seed,
            )  # fmt: skip
            rows = torch.arange(len(tokens), device=model.device)
            values = judge(final, rows, tokens, final).to("cpu", torch.float64)
        return cls(
            model, pair, tokens, mask, judge, clean, ablated, final, values, ablation, told,
            memory_limit,
        )  # fmt: skip

    @property
    def told(self) -> str:
        """In a few words, what stands in place of the rest."""
        words = {
            "patch": "the corrupted run",
            "zero": "zeros",
            "mean": f"means over {self.reference}",
            "resample": f"single runs of {self.reference}",
        }
        return words[self.ablation]

    def judged_by(self, metric: AnyMetric) -> "Setting":
        """The same with another metric."""
        name, measure = one_metric(metric)
        judge = Judge(self.model, measure, name, self.mask)
        if judge.whole != self.judge.whole:
            raise ValueError(f"metric {name} reads other logits than {self.judge.name}")
        rows = torch.arange(len(self.tokens), device=self.tokens.device)
        with torch.no_grad():
            values = judge(self.final, rows, self.tokens, self.final)
        return replace(self, judge=judge, clean_values=values.to("cpu", torch.float64))

    def judged(
        self, residual: Float[Tensor, "row pos d_model"], examples: slice
    ) -> Float[Tensor, " value"]:
        """The metric of last residuals: circuits, of each the examples given.

        Raises:
            ValueError: it is not finite.
        """
        here = torch.arange(examples.start, examples.stop, device=residual.device)
        if self.judge.whole:
            residual = self.model.unembed(self.model.ln_final(residual))
        rows = here.repeat(len(residual) // len(here))
        found = self.judge(residual, rows, self.tokens, self.final[examples])
        return found.to("cpu", torch.float64)


def _run(
    model: HookedGPT2, tokens: Int[Tensor, "prompt pos"], mask: Bool[Tensor, "prompt pos"]
) -> tuple[Written, Float[Tensor, "prompt pos d_model"]]:
    """What senders write, and the last residual."""
    parts: list[Written] = []
    last: list[Tensor] = []
    for part, residual in _runs(model, tokens, mask):
        parts.append(part)
        last.append(residual)
    together = Written(
        torch.cat([part.input for part in parts]),
        tuple(torch.cat(z) for z in zip(*(part.z for part in parts), strict=True)),
        tuple(torch.cat(mlp) for mlp in zip(*(part.mlp for part in parts), strict=True)),
    )
    return together, torch.cat(last)


def _runs(
    model: HookedGPT2, tokens: Int[Tensor, "prompt pos"], mask: Bool[Tensor, "prompt pos"]
) -> Iterator[tuple[Written, Float[Tensor, "prompt pos d_model"]]]:
    """The same, some prompts at a time."""
    layers = range(model.cfg.n_layers)
    inside = ("attn.hook_z", "hook_mlp_out")
    names = [f"blocks.{layer}.{name}" for layer in layers for name in inside]
    names += ["blocks.0.hook_resid_pre", f"blocks.{layers[-1]}.hook_resid_post"]
    at_once = max(1, _TOKENS_AT_ONCE // tokens.shape[1])
    for start in cli.progress(range(0, len(tokens), at_once), "plain runs"):
        rows = slice(start, start + at_once)
        _, cache = model.run_with_cache(
            tokens[rows],
            return_type=None,
            attention_mask=mask[rows],
            names_filter=names,
        )
        yield (
            Written(
                cache["resid_pre", 0],
                tuple(cache["z", layer] for layer in layers),
                tuple(cache["mlp_out", layer] for layer in layers),
            ),
            cache["resid_post", layers[-1]],
        )


# ------------------------------------------------------------------ what stands in place


def _ablated(
    model: HookedGPT2,
    pair: PromptPair,
    mask: Bool[Tensor, "example pos"],
    clean: Written,
    ablation: str,
    reference: AnyPrompts | PromptPair | None,
    per_position: bool,
    groups: Sequence[str] | None,
    reference_groups: Sequence[str] | None,
    seed: int,
) -> tuple[Written, str]:
    """What stands in place of what is left out, and where it is from."""
    if ablation in ("patch", "zero"):
        given = {
            "reference": reference, "groups": groups, "reference_groups": reference_groups,
        }  # fmt: skip
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name} goes with ablation 'mean' or 'resample', not {ablation}")
    if ablation != "mean" and not per_position:
        raise ValueError(f"per_position=False goes with ablation 'mean', not {ablation!r}")
    if ablation == "zero":
        return clean.map(torch.zeros_like), ""
    if ablation == "patch":
        return _run(model, pair.corrupted.to(model.device), mask)[0], "the corrupted prompts"
    tokens, of_reference, told = _reference(model, pair, reference)
    if groups is not None and reference is None and reference_groups is None:
        reference_groups = groups
    if (groups is None) != (reference_groups is None):
        raise ValueError("groups and reference_groups go together: of the examples, of the prompts")
    of_examples: Sequence[_Key]
    of_prompts: Sequence[_Key]
    of_examples = _keys(groups, pair.lengths.tolist(), len(pair), "groups")
    of_prompts = _keys(
        reference_groups, of_reference.sum(1).tolist(), len(tokens), "reference_groups"
    )
    if ablation == "mean" and not per_position:
        # Lengths need not agree then; groups still do.
        of_examples = [group for _, group in of_examples]
        of_prompts = [group for _, group in of_prompts]
    for key in of_examples:
        if key not in of_prompts:
            raise ValueError(
                f"no reference prompt is like an example of {_words(key)}: values are put in "
                "position by position"
            )
    if ablation == "resample":
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for key in of_examples:
            places = [i for i, other in enumerate(of_prompts) if other == key]
            drawn.append(places[int(torch.randint(len(places), (), generator=generator))])
        width = mask.shape[1]
        found = _run(model, tokens[drawn][:, :width], of_reference[drawn][:, :width])[0]
        return found, told
    keys = sorted(set(of_examples), key=str)
    told += _smallest(keys, of_prompts, per_position)
    sums = _sums(model, tokens, of_reference, [_place(k, keys) for k in of_prompts], per_position)
    rows = torch.tensor([keys.index(key) for key in of_examples], device=mask.device)
    width = mask.shape[1]

    def spread(total: Tensor) -> Tensor:
        """From groups to examples, and to their positions."""
        chosen = total[rows]
        if not per_position:
            return chosen.expand(-1, width, *chosen.shape[2:])
        if chosen.shape[1] >= width:
            return chosen[:, :width]
        return torch.cat(
            [chosen, chosen.new_zeros(len(rows), width - chosen.shape[1], *chosen.shape[2:])], 1
        )

    return sums.map(spread), told + ("" if per_position else ", all positions together")


def _reference(
    model: HookedGPT2, pair: PromptPair, reference: AnyPrompts | PromptPair | None
) -> tuple[Tensor, Tensor, str]:
    """Ids, mask, and in words, of the reference prompts, padded on the right."""
    if reference is None or isinstance(reference, PromptPair):
        of = pair if reference is None else reference
        told = f"{len(of)} corrupted prompt{'s'[: len(of) != 1]}"
        return of.corrupted.to(model.device), of.attention_mask.bool().to(model.device), told
    prompts = Prompts.of(model, reference, None, bool(pair.prepend_bos))
    lengths = torch.tensor(prompts.lengths, device=model.device)
    straight = torch.arange(prompts.tokens.shape[1], device=model.device) < lengths[:, None]
    if not torch.equal(straight, prompts.attention_mask):
        raise ValueError("reference prompts are padded on the right, as the pair's are")
    n = len(prompts.tokens)
    return prompts.tokens, prompts.attention_mask, f"{n} reference prompt{'s'[: n != 1]}"


_Key = tuple[int, str] | str


def _keys(
    groups: Sequence[str] | None, lengths: Sequence[int], n: int, what: str
) -> Sequence[tuple[int, str]]:
    """What must agree between an example and the prompts that stand in: length, and group."""
    if groups is not None and (isinstance(groups, str) or len(groups) != n):
        raise ValueError(f"{what} has {len(groups)} names for {n} prompts")
    names = [""] * n if groups is None else [str(group) for group in groups]
    return list(zip(lengths, names, strict=True))


def _words(key: _Key) -> str:
    if not isinstance(key, tuple):
        return f"group {key!r}"
    length, group = key
    return f"{length} tokens" + (f" and group {group!r}" if group else "")


def _smallest(keys: Sequence[_Key], of_prompts: Sequence[_Key], per_position: bool) -> str:
    """How few prompts a mean is over, in words.

    Raises:
        ValueError: over one at some position, which is that prompt's run and no mean.
    """
    sizes = {key: sum(other == key for other in of_prompts) for key in keys}
    alone = [key for key in keys if sizes[key] == 1]
    if alone and per_position:
        raise ValueError(
            f"only one reference prompt is of {_words(alone[0])}"
            + (f" (so for {len(alone)} of {len(keys)} groups)" if len(keys) > 1 else "")
            + ": a mean over it is its own run, as with ablation 'patch'. Take more prompts, a "
            "reference of more, prompts of one template, per_position=False, or another ablation"
        )
    if len(keys) == 1:
        return ""
    return f" in {len(keys)} groups, the smallest of {min(sizes.values())}"


def _place(key: _Key, keys: Sequence[_Key]) -> int:
    return keys.index(key) if key in keys else -1


def _sums(
    model: HookedGPT2, tokens: Tensor, mask: Tensor, group: Sequence[int], per_position: bool
) -> Written:
    """Means per group (and position), `group pos ...`."""
    n_groups = max(group) + 1
    totals: dict[tuple[str, int], Tensor] = {}
    counts: dict[int, float] = defaultdict(float)
    first = 0
    for part, _ in _runs(model, tokens, mask):
        named = {("input", 0): part.input}
        for layer, (z, mlp) in enumerate(zip(part.z, part.mlp, strict=True)):
            named |= {("z", layer): z, ("mlp", layer): mlp}
        for row in range(len(part.input)):
            place = group[first + row]
            if place < 0:
                continue
            length = int(mask[first + row].sum())
            counts[place] += 1 if per_position else length
            for name, values in named.items():
                own = values[row].double()
                if name not in totals:
                    width = tokens.shape[1] if per_position else 1
                    totals[name] = own.new_zeros(n_groups, width, *own.shape[1:])
                if per_position:
                    totals[name][place] += own
                else:
                    totals[name][place, 0] += own[:length].sum(0)
        first += len(part.input)
    count = torch.tensor([counts[place] for place in range(n_groups)], dtype=torch.float64)
    means = {
        name: (total / count.to(total.device).view(-1, *(1,) * (total.ndim - 1))).to(model.W_E)
        for name, total in totals.items()
    }
    layers = range(model.cfg.n_layers)
    return Written(
        means["input", 0],
        tuple(means["z", layer] for layer in layers),
        tuple(means["mlp", layer] for layer in layers),
    )
