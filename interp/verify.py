r"""Is this checkpoint, on this device and in this dtype, the model that `transformers` has?

1. Load the checkpoint twice, here and with `transformers`, both in the dtype asked for.
2. Compare them: weights, tokens, logits (one token, some, as many as the model reads; padded; given
   in parts; generated), loss, gradients, the residual stream at every layer, attention patterns.
3. Check what this package promises beyond that, on the model itself: every hook point is live,
   patching is exact, the parts of the residual stream add up, an edit does what the function does,
   folded weights predict the same, and nothing is left behind.
4. One row each: the worst error, the tolerance, pass or fail. A check that cannot be run is shown
   with the reason.

**What it cannot tell.** `verify(folder)` reads one folder twice. Where the files themselves are
wrong (a conversion that swapped heads, transposed a square matrix, wrote another eps, activation or
number of heads, or mixed up the tokenizer) both sides are wrong alike, and it passes: it checks how
a checkpoint is read and computed, not that it is the model you trained. That takes a second source.
While the trained model is in memory, or can be loaded from where it was trained:

    verify(trained_model, model=HookedGPT2.from_pretrained(folder))

compares the two. `Verification.scope`, printed under the table, says which of the two was done.

**Tolerances.** Two correct programs add the same numbers in another order, and each rounds. With
`eps` the distance from 1 to the next number of the dtype (1.2e-7 in float32, 2.2e-16 in float64)
and `scale` the largest number of what is compared, results may differ by

    8 * sqrt(d_model) * eps * scale     in float32 and float64
    32 * eps * scale                    in bfloat16 and float16, whose sums are kept in float32

because the rounding errors of a sum of n terms grow as sqrt(n) (Higham and Mary 2019, "A New
Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41(5), A2815). The factors
are measured: over random and trained models of 1 to 24 layers and width 48 to 768, padded, cached
and hooked, the largest difference was 2.4 * sqrt(d_model) * eps * scale, and 11 * eps * scale in
half precision. Of GPT-2 small's logits (around 100) that is 2.6e-3 in float32: a wrong constant of
an activation function is found; of smaller faults `--dtype float64` (5e-12) finds what there is.
Half precision is judged by a check of its own: root mean square from the float32 reference, no more
than 1.05 times what the reference's own half precision is off (and 1 / sqrt(positions) for chance).

Gradients and the folded model pass through twice as many roundings and have twice the tolerance.
Top tokens and greedy tokens may differ where the reference's own logits of the two are closer than
twice the tolerance. Weights, tokens, tying, edits and what is left behind have no tolerance at all.

**Costs.** Two models are in memory at a time, never three (one more where a `transformers` object
is handed over, which stays as it is: in another dtype or on another device, in half precision, and
for the folded model). The longest run is one prompt of n_ctx tokens in each.

The idea of checking on the user's own checkpoint what the points mean is nnterp's (Dumas 2025).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import command
from interp._verify.result import SCOPES, Check, Result, Verification, versions

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch

    from interp._verify import against, inside
    from interp._verify.bench import Bench, NotRun, evaluating, prepare, quiet_transformers
    from interp.hooked import HookedGPT2
    from interp.weights import is_hf_model

__all__ = ["Check", "Verification", "verify"]


def verify(
    source: Any,
    *,
    model: HookedGPT2 | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    progress: bool = True,
) -> Verification:
    """Check a checkpoint, or a model, against `transformers` and against what we promise.

    Args:
        source: what `HookedGPT2.from_pretrained` takes: a Hub id, a folder, `mini`, or a
            `transformers` model object (left as it is). Or a `HookedGPT2`: the reference then gets
            its weights and config, so that where these came from is not checked.
        model: the model to check against `source`; loaded from it when left out. Left as it is.
            With a trained `transformers` model as `source` and the saved folder loaded as `model`,
            this tells whether the folder is what was trained. The tokenizer it is compared with is
            then that of the folder or Hub id which the trained model was loaded from
            (`config.name_or_path`), if that is on disk.
        device: where both run; that of `model`, else the CPU.
        dtype: what both compute in; that of `model`, else float32.
        revision: branch, tag or commit on the Hub.
        progress: show a bar, on a terminal.

    Returns:
        One row per check, and in `scope` what they cannot tell.

    Raises:
        ValueError: `model` has another dtype or device than asked for, or functions listen on it.
        others: as `HookedGPT2.from_pretrained`. What goes wrong in a check is a row that failed.
    """
    with quiet_transformers(), torch.no_grad():
        bench = prepare(source, model, device, dtype, revision)
        before = inside.State(bench)
        if is_hf_model(source):
            with evaluating(bench.reference):
                rows = _rows(bench, before, progress, keep=True)
        else:
            rows = _rows(bench, before, progress, keep=False)
    return Verification(
        model=str(bench.cfg.model_name),
        reference=bench.described,
        device=str(bench.model.device),
        dtype=str(bench.model.dtype).removeprefix("torch."),
        rows=rows,
        versions=versions(),
        scope=SCOPES[bench.scope],
    )


def _rows(bench: Bench, before: inside.State, progress: bool, *, keep: bool) -> tuple[Check, ...]:
    """Run every check. Unless it is to be kept, the reference makes room for the folded model."""
    checks, rows = _checks(before), []
    with command.bar("checking", shown=progress) as advance:
        for name, check in checks.items():
            if check is inside.processed and not keep:
                bench.reference = None
            rows.append(_row(name, check, bench))
            advance(1 / len(checks))
    return tuple(rows)


def _checks(before: inside.State) -> dict[str, Callable[[Bench], Any]]:
    """The checks by name, in the order in which they run: first those that need the reference."""
    return {
        "weights": against.same_weights,
        "weights by head": against.same_layout,
        "unembedding tied": against.same_tying,
        "token ids": against.same_tokens,
        "text of ids": against.same_text,
        "logits, one token": against.one_token,
        "logits, some tokens": against.some_tokens,
        "logits, full context": against.full_length,
        "top tokens": against.top_tokens,
        "half precision": against.half_precision,
        "padding on the left": against.left_padding,
        "padding on the right": against.right_padding,
        "keys and values kept": against.step_by_step,
        "greedy generation": against.greedy,
        "loss": against.same_loss,
        "gradients of residuals": against.residual_gradients,
        "gradients of weights": against.weight_gradients,
        "residual stream": against.residual_stream,
        "attention patterns": against.patterns,
        "points replaced by themselves": inside.replaced_by_itself,
        "points replaced by others": inside.replaced_by_other,
        "whole residual patched": inside.whole_residual,
        "parts of the residual": inside.parts_sum,
        "last row of the lens": inside.last_residual,
        "edits and functions": inside.edits_as_data,
        "folded weights": inside.processed,
        "weights left": before.weights,
        "hooks left": before.listeners,
        "logits again": before.repeatable,
    }


def _row(name: str, check: Callable[[Bench], Any], bench: Bench) -> Check:
    try:
        error, tolerance, note, at_least = check(bench)
    except NotRun as reason:
        return Check(name, "not run", note=str(reason))
    except Exception as error:
        # A model that cannot even be run in some way is what this is here to tell.
        return Check(name, "FAIL", note=f"{type(error).__name__}: {command.in_one_line(error)}")
    # Written so that what is not a number fails.
    good = error > tolerance if at_least else error <= tolerance
    result: Result = "pass" if good else "FAIL"
    return Check(name, result, float(error), float(tolerance), at_least, note)


# ------------------------------------------------------------------ the command line


def main(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="Hub id, local folder, or mini (comes with this package). Left out: gpt2 if it is "
            "in the local Hub cache or the Hub answers at once, else mini; the first line says "
            "which.",
            show_default=False,
        ),
    ] = None,
    device: command.Device = "cpu",
    dtype: command.Dtype = "float32",
    json_path: command.Json = None,
) -> int:
    """Check your own checkpoint, device and dtype against transformers.

    Prints each check with its worst error and its tolerance. Both sides read SOURCE: that it is the
    model you trained is another question, which the last line says how to ask. The status
    is 0 when all pass, 1 when one fails, 2 when the input is wrong.
    """
    command.check_outputs(html=None, csv=None, json=json_path)
    console = command.console(data_on_stdout=json_path == command.STDIN)
    choice = command.choose_model(source, "SOURCE")
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from interp.verify import verify

    command.check_device_and_dtype(device, dtype)
    found = verify(choice.name, device=device, dtype=dtype)
    console.print(f"against {found.reference}", style="dim", soft_wrap=True)
    if json_path:
        data = found.to_dict() | {"call": command.call("interp.verify", sys.argv[1:])}
        command.write_text(json_path, command.json_text(data))
        if json_path != command.STDIN:
            shown = command.printable_path(json_path)
            console.print(f"wrote {shown}", style="dim", soft_wrap=True)
    console.print()
    found.show(console)
    return 0 if found.passed else 1


if __name__ == "__main__":
    command.run(main, __spec__, on_error=2)
