"""This package beside TransformerLens, nnsight and circuitsvis: times, sizes, and what happens.

The same random weights of GPT-2 small's shape for all, float32, as `transformers` saves them.
Each package runs in a process of its own, in the environment of the Python that is named for it;
one works while the others wait, in turn, so that ratios are of neighbouring runs. Prints tables for
docs/comparison.md.

    python -m benchmarks.peers --peer tl3=PYTHON --peer tl4=PYTHON --peer nnsight=PYTHON
        [--rounds 7] [--patch-rounds 3] [--every 12] [--threads 2]

`tl3` is TransformerLens 3 (`HookedTransformer`), `tl4` TransformerLens 4 (`TransformerBridge`).
They and nnsight judge one head by one forward pass: every n-th of the 144 (`--every`) is timed and
counted n-fold, ours are all done. circuitsvis is installed with this package and is measured here.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from benchmarks.forward import reference

_ROOT = Path(__file__).parents[1]
NAMES = {
    "ours": "hooked-gpt2",
    "tl3": "TransformerLens 3",
    "tl4": "TransformerLens 4",
    "nnsight": "nnsight",
}
_IMPORTS = {
    "ours": "from interp import HookedGPT2",
    "tl3": "from transformer_lens import HookedTransformer",
    "tl4": "from transformer_lens.model_bridge import TransformerBridge",
    "nnsight": "from nnsight import LanguageModel",
}
_PACKAGES = {
    "ours": ("hooked-gpt2", ["hooks", "interp", "analyses"]),
    "tl3": ("transformer-lens", ["transformer_lens"]),
    "tl4": ("transformer-lens", ["transformer_lens"]),
    "nnsight": ("nnsight", ["nnsight"]),
}
# Run by each Python: the size of the package, and what it brings along.
_SIZE = r"""
import importlib.util, json, re, sys
from importlib import metadata
from pathlib import Path
name, folders = json.loads(sys.argv[1])
files = [f for folder in folders
         for f in Path(importlib.util.find_spec(folder).origin).parent.rglob("*")
         if f.is_file() and "__pycache__" not in f.parts]
lines = sum(len(f.read_text("utf-8", "replace").splitlines()) for f in files if f.suffix == ".py")
seen, todo = set(), [name]
while todo:
    one = re.sub(r"[-_.]+", "-", todo.pop()).lower()
    if one in seen:
        continue
    try:
        needs = metadata.requires(one) or []
    except metadata.PackageNotFoundError:
        continue
    seen.add(one)
    todo += [re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need]
try:
    version = metadata.version(name)
except metadata.PackageNotFoundError:
    version = "?"
size = sum(f.stat().st_size for f in files)
print(json.dumps({"version": version, "lines": lines, "size": size, "needs": len(seen) - 1}))
"""


class Worker:
    """A package in its process."""

    def __init__(self, kind: str, python: str, folder: str, threads: int) -> None:
        # Threads that wait must not spin: another process is at work meanwhile.
        environment = os.environ | {
            "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": str(threads),
        }  # fmt: skip
        if kind == "ours":
            environment["PYTHONPATH"] = str(_ROOT)
        self._process = subprocess.Popen(
            [python, str(_ROOT / "benchmarks" / "_peer_worker.py"), kind, folder, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        )  # fmt: skip

    def ask(self, what: str) -> dict[str, Any]:
        """Have it do one thing."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended"}

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def working(kind: str, python: str, folder: str, threads: int) -> Iterator[Worker]:
    worker = Worker(kind, python, folder, threads)
    try:
        yield worker
    finally:
        worker.end()


def import_seconds(python: str, statement: str, kind: str) -> float:
    environment = os.environ | ({"PYTHONPATH": str(_ROOT)} if kind == "ours" else {})
    start = time.perf_counter()
    subprocess.run(
        [python, "-W", "ignore", "-c", statement], check=True, capture_output=True, env=environment,
        cwd=tempfile.gettempdir(),
    )  # fmt: skip
    return time.perf_counter() - start


def save(folder: str) -> None:
    """The model that all load, with a tokenizer (which one does not matter)."""
    from transformers import PreTrainedTokenizerFast

    reference("eager", "cpu").save_pretrained(folder)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_file=str(resources.files("interp") / "mini" / "tokenizer.json"),
        bos_token=end, eos_token=end, pad_token=end,
    ).save_pretrained(folder)  # fmt: skip


def timed(workers: dict[str, Worker], what: str, rounds: int, warm_up: int) -> dict[str, list[Any]]:
    """One after the other, in an order that rotates; what each answered in the rounds."""
    found: dict[str, list[Any]] = {kind: [] for kind in workers}
    kinds = list(workers)
    for index in range(-warm_up, rounds):
        for kind in kinds[index % len(kinds) :] + kinds[: index % len(kinds)]:
            answer = workers[kind].ask(what)
            if index >= 0:
                found[kind].append(answer)
    return found


def row(title: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """A row of the table: ours in seconds, others as multiples of ours."""
    ours = statistics.median(answer["seconds"] for answer in found["ours"])
    cells = [f"{_seconds(ours)}"]
    for kind, answers in found.items():
        if kind == "ours":
            continue
        errors = [answer["error"] for answer in answers if "error" in answer]
        theirs = [answer["seconds"] for answer in answers if "error" not in answer]
        cells.append(errors[0] if errors else f"{statistics.median(theirs) / ours:.2f}")
    print(f"| {title} | {' | '.join(cells)} |", flush=True)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def attention_pages() -> None:
    """A page of one layer's attention, from this package and from circuitsvis alone."""
    import circuitsvis

    from analyses.attention import attention
    from interp import HookedGPT2

    model = HookedGPT2.from_pretrained("mini")
    text = "When Mary and John went to the store, John gave a drink to"
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "page.html"
        attention(model, text).to_html(file)
        ours = file.read_text("utf-8")
    _, cache = model.run_with_cache(text)
    page = str(
        circuitsvis.attention.attention_heads(  # type: ignore[attr-defined]
            attention=cache["pattern", 0][0], tokens=model.to_str_tokens(text)
        )
    )
    print("\n| attention of a 15-token prompt | hooked-gpt2, 24 heads | circuitsvis, 6 heads |")
    print("|---|---|---|")
    print(f"| size of the page | {len(ours) / 1e6:.2f} MB | {len(page) / 1e6:.3f} MB |")
    print(f"| scripts it loads when opened | {_loads(ours)} | {_loads(page)} |")


def _loads(page: str) -> str:
    pattern = r"(?:src=|from |import\()\s*[\"'](https?://[^\"']+)"
    return ", ".join(sorted(set(re.findall(pattern, page)))) or "none"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--patch-rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    pythons = {"ours": sys.executable}
    for peer in options.peer:
        name, _, python = peer.partition("=")
        if name not in NAMES or name == "ours" or not Path(python).is_file():
            parser.error(f"--peer {peer}: expected one of tl3, tl4, nnsight, and its Python")
        pythons[name] = python

    print("| | " + " | ".join(NAMES[kind] for kind in pythons) + " |")
    print("|---|" + "---|" * len(pythons))
    sizes = {}
    for kind, python in pythons.items():
        found = subprocess.run(
            [python, "-c", _SIZE, json.dumps(_PACKAGES[kind])], check=True, capture_output=True,
            text=True, cwd=_ROOT if kind == "ours" else tempfile.gettempdir(),
        )  # fmt: skip
        sizes[kind] = json.loads(found.stdout)
    for title, show in (
        ("version", lambda s: s["version"]),
        ("lines of Python", lambda s: f"{s['lines']:,}"),
        ("files of the package", lambda s: f"{s['size'] / 1e6:.1f} MB"),
        ("packages it needs, directly or not", lambda s: str(s["needs"])),
    ):
        print(f"| {title} | {' | '.join(show(s) for s in sizes.values())} |", flush=True)
    imports: dict[str, list[Any]] = {kind: [] for kind in pythons}
    for index in range(-1, max(2, options.rounds // 2)):
        for kind, python in pythons.items():
            seconds = import_seconds(python, _IMPORTS[kind], kind)
            if index >= 0:
                imports[kind].append({"seconds": seconds})
    row("import", imports)

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        save(folder)
        workers = {
            kind: stack.enter_context(working(kind, python, folder, options.threads))
            for kind, python in pythons.items()
        }
        row("load from a folder", timed(workers, "load", 3, warm_up=1))
        row("forward, 15 tokens", timed(workers, "forward", options.rounds, warm_up=2))
        row("keep all activations", timed(workers, "cache", options.rounds, warm_up=2))
        patched = timed(workers, f"patch {options.every}", options.patch_rounds, warm_up=1)
        for kind, answers in patched.items():
            for answer in answers:
                if kind != "ours" and "seconds" in answer:
                    answer["seconds"] *= options.every
        row("patch all 144 heads", patched)
        base = patched["ours"][0]["numbers"]
        for kind, answers in patched.items():
            if kind != "ours" and "numbers" in answers[0]:
                worst = max(abs(a - b) for a, b in zip(base, answers[0]["numbers"], strict=True))
                print(f"(patched numbers of {NAMES[kind]} and ours: {worst:.0e} apart)")
        facts = {kind: worker.ask("facts") for kind, worker in workers.items()}
    for title in facts["ours"]:
        cells = (found.get(title, found.get("error", "?")) for found in facts.values())
        print(f"| {title} | {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    attention_pages()


if __name__ == "__main__":
    main()
