"""Importing, and loading a checkpoint from a local folder, against torch and transformers.

A GPT-2 small with random weights is saved to a temporary folder and loaded by both, in turn, in
one process; then each loads it once in a process of its own, whose memory is looked at. Importing
is timed in processes of its own too, in turn.

    python -m benchmarks.loading [--rounds 9]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

import torch

from benchmarks._interleaved import interleaved
from interp import HookedGPT2

_MEMORY = """
import os, sys
import torch
{imports}
def memory(field):
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024
before = memory('RssAnon')
model = {load}
print(round(memory('RssAnon') - before), round(memory('VmHWM') - before))
"""
OURS = ("from interp import HookedGPT2", "HookedGPT2.from_pretrained(sys.argv[1])")
THEIRS = (
    "from transformers import GPT2LMHeadModel",
    "GPT2LMHeadModel.from_pretrained(sys.argv[1])",
)


def seconds_to_import(statement: str) -> float:
    """Seconds of a fresh interpreter that runs one import."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def memory(folder: str, imports: str, load: str) -> str:
    """MiB of private memory held after loading, and at most while loading, of a fresh process."""
    code = _MEMORY.format(imports=imports, load=load)
    done = subprocess.run(
        [sys.executable, "-c", code, folder], check=True, capture_output=True, text=True
    )
    return done.stdout.strip().splitlines()[-1].replace(" ", " MiB, at most ") + " MiB"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    os.environ["HF_HUB_OFFLINE"] = "1"

    ours, base = "from interp import HookedGPT2", "import torch"
    imports: dict[str, list[float]] = {base: [], ours: []}
    for i in range(rounds + 1):
        for statement, times in imports.items():
            elapsed = seconds_to_import(statement)
            if i:
                times.append(elapsed)
    ratio = statistics.median(a / b for a, b in zip(imports[ours], imports[base], strict=True))
    print(f"{ours} / {base}: {ratio:.3f}  (target 1.15)")

    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        timing = interleaved(
            {
                "ours": partial(HookedGPT2.from_pretrained, folder),
                "transformers": partial(GPT2LMHeadModel.from_pretrained, folder),
            },
            rounds,
        )
        weights = os.path.getsize(os.path.join(folder, "model.safetensors")) / 2**20
        print(
            f"load GPT-2 small ({weights:.0f} MiB) from a folder / transformers' from_pretrained: "
            f"{timing.ratio('ours', 'transformers'):.3f}  (target 1; "
            f"{1e3 * timing.median('ours'):.0f} ms / {1e3 * timing.median('transformers'):.0f} ms)"
        )
        print(f"private memory held by ours: {memory(folder, *OURS)} resident")
        print(f"private memory held by transformers: {memory(folder, *THEIRS)} resident")


if __name__ == "__main__":
    main()
