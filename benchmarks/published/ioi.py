"""Figures of "Interpretability in the Wild" (Wang et al. 2022): how each is measured here.

Weights as they are, nothing prepended. The prompts are those of `analyses.tasks.ioi`, whose
training templates are like the paper's; names, places and things are this package's. What says a
head's role is the paper's criterion: path patching to the logits or through the name movers'
queries, scores on repeated random tokens, attribution once the name movers are taken out.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from analyses.attribution import attribution
from analyses.heads import copying_scores, detect_heads
from analyses.metrics import evaluate, logit_diff, prob
from analyses.pairs import PromptPair
from analyses.path_patching import path_patching
from analyses.tasks import TaskData, generate
from benchmarks.published.bench import Bench, by_group, figure, parsed, ranked
from benchmarks.published.facts import published
from benchmarks.published.figures import Measured
from hooks import HookPoint, Patch

# So many ABC prompts of each template give the means that ablated heads get.
_REFERENCE = 24
# So many prompts go through the model at a time.
_AT_ONCE = 40
# Where the circuit's heads act: section 3 of the paper.
_WHERE = {
    "ioi/name-movers": "END",
    "ioi/negative-name-movers": "END",
    "ioi/s-inhibition": "END",
    "ioi/induction": "S2",
    "ioi/duplicate-token": "S2",
    "ioi/previous-token": "S1+1",
    "ioi/backup-name-movers": "END",
}


def prompts(bench: Bench) -> TaskData:
    """All prompts."""
    return bench.once("ioi prompts", lambda: _generated(bench, bench.n_prompts))


def some(bench: Bench) -> PromptPair:
    """A quarter of them (two of each template), corrupted to three different names."""
    return bench.once(
        "ioi pairs",
        lambda: PromptPair.from_data(_generated(bench, max(40, bench.n_prompts // 4)), bench.model),
    )


def _generated(bench: Bench, n: int, seed: int = 0, template: str | None = None) -> TaskData:
    return generate(
        "ioi",
        bench.model.tokenizer,
        n,
        seed=seed,
        split="train",
        prepend_bos=False,
        corruption="abc",
        template=template,
    )


def in_parts(data: TaskData) -> Iterator[TaskData]:
    """So many at a time that their logits fit into any memory."""
    for start in range(0, len(data), _AT_ONCE):
        yield data.select(range(start, min(start + _AT_ONCE, len(data))))


# ------------------------------------------------------------------ how well it does


def _judged(bench: Bench, data: TaskData) -> dict[str, Tensor]:
    device = bench.model.device
    return evaluate(
        bench.model,
        data.clean_tokens.to(device),
        {"diff": logit_diff(data.answers, data.wrong), "prob": prob(data.answers)},
        attention_mask=data.attention_mask.to(device),
    )


def _answers(bench: Bench) -> dict[str, Tensor]:
    def make() -> dict[str, Tensor]:
        parts = [_judged(bench, part) for part in in_parts(prompts(bench))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return bench.once("ioi answers", make)


@figure("ioi/logit-difference")
def logit_difference(bench: Bench) -> Measured:
    return by_group(_answers(bench)["diff"], prompts(bench).templates)


@figure("ioi/io-above-subject")
def io_above_subject(bench: Bench) -> Measured:
    return by_group(_answers(bench)["diff"] > 0, prompts(bench).templates)


@figure("ioi/probability")
def probability(bench: Bench) -> Measured:
    return by_group(_answers(bench)["prob"], prompts(bench).templates)


# ------------------------------------------------------------------ which head does what


def _direct(bench: Bench) -> Tensor:
    """What each head's direct path to the logits does to the logit difference, `layer head`."""

    def make() -> Tensor:
        found = path_patching(bench.model, some(bench), "logits", senders="head", pos="END")
        return -found.views["head"].change

    return bench.once("ioi direct", make)


def _name_movers(bench: Bench) -> list[tuple[int, int]]:
    return bench.heads("ioi/name-movers", lambda: ranked(_direct(bench)))


@figure("ioi/name-movers")
def name_movers(bench: Bench) -> Measured:
    return _first(bench, "ioi/name-movers", ranked(_direct(bench)))


@figure("ioi/negative-name-movers")
def negative_name_movers(bench: Bench) -> Measured:
    return _first(bench, "ioi/negative-name-movers", ranked(-_direct(bench)))


@figure("ioi/s-inhibition")
def s_inhibition(bench: Bench) -> Measured:
    return _first(bench, "ioi/s-inhibition", _through_queries(bench))


def _through_queries(bench: Bench) -> tuple[str, ...]:
    def make() -> tuple[str, ...]:
        receivers = [f"{layer}.{head}.q" for layer, head in _name_movers(bench)]
        found = path_patching(bench.model, some(bench), receivers, senders="head", pos="END")
        return ranked(-found.views["head"].change)

    return bench.once("ioi through queries", make)


def _scores(bench: Bench, name: str) -> tuple[str, ...]:
    wanted = ("induction", "duplicate_token", "previous_token")
    found = bench.once("ioi scores", lambda: detect_heads(bench.model, scores=wanted))
    return ranked(found[name])


@figure("ioi/induction")
def induction(bench: Bench) -> Measured:
    return _first(bench, "ioi/induction", _scores(bench, "induction"))


@figure("ioi/duplicate-token")
def duplicate_token(bench: Bench) -> Measured:
    return _first(bench, "ioi/duplicate-token", _scores(bench, "duplicate_token"))


@figure("ioi/previous-token")
def previous_token(bench: Bench) -> Measured:
    return _first(bench, "ioi/previous-token", _scores(bench, "previous_token"))


@figure("ioi/backup-name-movers")
def backup_name_movers(bench: Bench) -> Measured:
    return _first(bench, "ioi/backup-name-movers", _backups(bench))


def _backups(bench: Bench) -> tuple[str, ...]:
    def make() -> tuple[str, ...]:
        model, pair, movers = bench.model, some(bench), _name_movers(bench)
        with torch.no_grad():
            _, cache = model.run_with_cache(
                pair.corrupted.to(model.device),
                return_type=None,
                attention_mask=pair.attention_mask.to(model.device),
                names_filter=[f"blocks.{layer}.attn.hook_z" for layer, _ in movers],
            )
        rows = torch.arange(len(pair))
        edits = [
            Patch(
                ("z", layer),
                head=head,
                pos=-1,
                source=cache["z", layer][rows, pair.lengths - 1, head].mean(0),
            )
            for layer, head in movers
        ]
        with model.hooks(fwd_hooks=[(edit.point, edit) for edit in edits]):
            found = attribution(model, pair, neurons=False)
        names = ranked(found.views["head"].mean)
        return tuple(name for name in names if parsed(name) not in movers)

    return bench.once("ioi backups", make)


def _first(bench: Bench, id: str, names: Sequence[str]) -> Measured:
    """As many as are asked for."""
    return Measured(tuple(names[: published()[id].tolerance.among]))


# ------------------------------------------------------------------ what the heads do


def _attention(bench: Bench, heads: Sequence[tuple[int, int]], key: str) -> Measured:
    """Mean attention of heads from the last token to a named one."""
    model, shares = bench.model, []
    points = {f"blocks.{layer}.attn.hook_pattern" for layer, _ in heads}
    for data in in_parts(prompts(bench)):
        with torch.no_grad():
            _, cache = model.run_with_cache(
                data.clean_tokens.to(model.device),
                return_type=None,
                attention_mask=data.attention_mask.to(model.device),
                names_filter=sorted(points),
                stop_at_layer=1 + max(layer for layer, _ in heads),
            )
        rows, query = torch.arange(len(data)), data.positions["END"]
        found = [
            cache["pattern", layer].cpu()[rows, head, query, data.positions[key]]
            for layer, head in heads
        ]
        shares.append(torch.stack(found).mean(0))
    return by_group(torch.cat(shares), prompts(bench).templates)


@figure("ioi/name-mover-attention")
def name_mover_attention(bench: Bench) -> Measured:
    return _attention(bench, _name_movers(bench), "IO")


@figure("ioi/s-inhibition-attention")
def s_inhibition_attention(bench: Bench) -> Measured:
    heads = bench.heads("ioi/s-inhibition", lambda: _through_queries(bench))
    return _attention(bench, heads, "S2")


@figure("ioi/copy-score")
def copy_score(bench: Bench) -> Measured:
    """The lowest of the name movers."""
    scores = copying_scores(bench.model).copying
    return Measured.of(min(scores[head].item() for head in _name_movers(bench)))


# ------------------------------------------------------------------ the circuit alone


def circuit(bench: Bench) -> dict[str, list[tuple[int, int]]]:
    """Position -> the heads that are kept there."""
    found: dict[str, Callable[[], Sequence[str]]] = {
        "ioi/name-movers": lambda: ranked(_direct(bench)),
        "ioi/negative-name-movers": lambda: ranked(-_direct(bench)),
        "ioi/s-inhibition": lambda: _through_queries(bench),
        "ioi/induction": lambda: _scores(bench, "induction"),
        "ioi/duplicate-token": lambda: _scores(bench, "duplicate_token"),
        "ioi/previous-token": lambda: _scores(bench, "previous_token"),
        "ioi/backup-name-movers": lambda: _backups(bench),
    }
    kept: dict[str, list[tuple[int, int]]] = {}
    for id, position in _WHERE.items():
        heads = bench.heads(id, found[id])
        if bench.checkpoint == published()[id].model:
            heads += [parsed(name) for name in published()[id].also]
        kept[position] = sorted({*kept.get(position, ()), *heads})
    return kept


@figure("ioi/faithfulness")
def faithfulness(bench: Bench) -> Measured:
    """All heads outside get their mean over ABC prompts of the same template, by position."""
    data, model, kept = prompts(bench), bench.model, circuit(bench)
    alone = torch.zeros(len(data), dtype=torch.float64)
    for template in dict.fromkeys(data.templates):
        rows = [i for i, name in enumerate(data.templates) if name == template]
        own = data.select(rows)
        reference = _generated(bench, _REFERENCE, seed=1, template=template)
        with torch.no_grad():
            _, cache = model.run_with_cache(
                reference.corrupted_tokens.to(model.device),
                return_type=None,
                names_filter="*hook_z",
            )

        def knock_out(z: Tensor, hook: HookPoint, cache=cache, own=own) -> Tensor:
            layer = int(hook.name.split(".")[1])
            left = cache[hook.name].mean(0, keepdim=True).repeat(len(z), 1, 1, 1)
            example = torch.arange(len(z))
            for position, heads in kept.items():
                for head in (head for at, head in heads if at == layer):
                    where = own.positions[position]
                    left[example, where, head] = z[example, where, head]
            return left

        with model.hooks(fwd_hooks=[("*hook_z", knock_out)]):
            alone[torch.tensor(rows)] = _judged(bench, own)["diff"]
    return by_group(alone / _answers(bench)["diff"].mean(), data.templates)
