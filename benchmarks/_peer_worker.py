"""One package at work, in a process and an environment of its own: see `benchmarks.peers`.

Run by `benchmarks.peers` as `PYTHON benchmarks/_peer_worker.py KIND FOLDER THREADS`. Reads an order
a line from standard input (`load`, `forward`, `cache`, `patch N`, `facts`) and answers each with a
line of JSON: seconds, or facts. `patch N` judges every N-th head, ours always all. Imports nothing
of this repository but for KIND `ours`.
"""

import json
import os
import sys
import time
import warnings
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
# All that a package prints goes to standard error: standard output is for the answers.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch  # noqa: E402

N_TOKENS = 15
N_LAYERS, N_HEADS = 12, 12


def prompts() -> torch.Tensor:
    """Two prompts that differ in every token."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 8000, (2, N_TOKENS), generator=generator)


def every_head() -> list[tuple[int, int]]:
    """Layer and head of all heads."""
    return [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]


class Lens:
    """TransformerLens' call forms, which are ours too."""

    def __init__(self, kind: str, folder: str) -> None:
        self.kind, self.folder, self.tokens = kind, folder, prompts()
        self.model: Any = None

    def load(self) -> None:
        if self.kind == "ours":
            from interp import HookedGPT2

            self.model = HookedGPT2.from_pretrained(self.folder)
        elif self.kind == "tl4":
            from transformer_lens.model_bridge import TransformerBridge  # type: ignore

            self.model = TransformerBridge.boot_transformers(self.folder).eval()
        else:
            self.model = self._hooked_transformer()

    def _hooked_transformer(self) -> Any:
        """Its `from_pretrained` asks the Hub for a config; this is what it does then."""
        from transformer_lens import HookedTransformer, HookedTransformerConfig  # type: ignore
        from transformer_lens.pretrained.weight_conversions import (  # type: ignore
            convert_gpt2_weights,
        )
        from transformers import AutoTokenizer, GPT2LMHeadModel

        theirs = GPT2LMHeadModel.from_pretrained(self.folder)
        c = theirs.config
        cfg = HookedTransformerConfig(
            n_layers=c.n_layer, d_model=c.n_embd, n_ctx=c.n_positions, n_heads=c.n_head,
            d_head=c.n_embd // c.n_head, d_mlp=4 * c.n_embd, d_vocab=c.vocab_size, device="cpu",
            act_fn="gelu_new", normalization_type="LN", eps=c.layer_norm_epsilon,
        )  # fmt: skip
        model = HookedTransformer(cfg, tokenizer=AutoTokenizer.from_pretrained(self.folder))
        model.load_and_process_state_dict(
            convert_gpt2_weights(theirs, cfg), fold_ln=False, center_writing_weights=False,
            center_unembed=False, fold_value_biases=False,
        )  # fmt: skip
        return model.eval()

    def forward(self) -> Any:
        return self.model(self.tokens[:1])

    def cache(self) -> Any:
        return self.model.run_with_cache(self.tokens[:1])

    def patch(self, every: int) -> Any:
        """Heads' outputs from the other prompt, one at a time: a number for each."""
        clean, other = self.tokens[:1], self.tokens[1:]
        if self.kind == "ours":
            from analyses.metrics import logit_diff
            from analyses.sweep import sweep
            from hooks import Patch

            _, source = self.model.run_with_cache(other, names_filter="*hook_z")
            edits = [Patch(("z", layer), head=head, source=source) for layer, head in every_head()]
            found = sweep(self.model, clean, edits, logit_diff(11, 12), progress=False)
            return found.mean().tolist()[::every]
        _, source = self.model.run_with_cache(other, names_filter=lambda n: n.endswith("hook_z"))
        numbers = []
        for layer, head in every_head()[::every]:
            name = f"blocks.{layer}.attn.hook_z"

            def put(z: Any, hook: Any, name: str = name, head: int = head) -> Any:
                z[:, :, head] = source[name][:, :, head]
                return z

            last = self.model.run_with_hooks(clean, fwd_hooks=[(name, put)])[0, -1]
            numbers.append(float(last[11] - last[12]))
        return numbers

    def misspelt(self) -> None:
        self.model.run_with_hooks(
            self.tokens[:1], fwd_hooks=[("blocks.3.atn.hook_z", lambda z, hook: z * 0)]
        )

    def filtered(self) -> Any:
        cache = self.model.run_with_cache(self.tokens[:1], names_filter="blocks.3.atn.hook_z")[1]
        return f"no error, {len(cache)} activations"

    def mid(self) -> tuple[torch.Tensor, torch.Tensor]:
        name = "blocks.5.hook_resid_mid"
        want, source = self.model.run_with_cache(self.tokens[1:])
        got = self.model.run_with_hooks(
            self.tokens[:1], fwd_hooks=[(name, lambda x, hook: source[name])]
        )
        return got, want

    def masked(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(tokens, attention_mask=mask)


class NNsight:
    """`nnsight`, as its documentation has it: a trace for each run, edits in its body."""

    def __init__(self, folder: str) -> None:
        self.folder, self.tokens = folder, prompts()
        self.model: Any = None

    def load(self) -> None:
        from nnsight import NNsight as Wrapped  # type: ignore
        from transformers import GPT2LMHeadModel

        self.model = Wrapped(GPT2LMHeadModel.from_pretrained(self.folder).eval())

    def forward(self) -> Any:
        model = self.model
        with model.trace(self.tokens[:1]):
            logits = model.output.logits.save()
        return logits

    def cache(self) -> Any:
        """The inputs and outputs of every module in every block: what it has of activations."""
        model = self.model
        with model.trace(self.tokens[:1]) as tracer:
            kept = tracer.cache(include_inputs=True)
        return kept

    def _heads(self) -> Any:
        model = self.model
        with model.trace(self.tokens[1:]):
            kept = list().save()  # type: ignore[attr-defined]  (nnsight gives objects a `save`)
            for layer in range(N_LAYERS):
                kept.append(model.transformer.h[layer].attn.c_proj.input)
        return list(kept)

    def patch(self, every: int) -> Any:
        """A head's output is a slice of what the attention's last matrix reads."""
        model, source, numbers = self.model, self._heads(), []
        for layer, head in every_head()[::every]:
            values, low, high = source[layer], 64 * head, 64 * head + 64
            with model.trace(self.tokens[:1]):
                reads = model.transformer.h[layer].attn.c_proj.input
                reads[:, :, low:high] = values[:, :, low:high]
                logits = model.output.logits.save()
            numbers.append(float(logits[0, -1, 11] - logits[0, -1, 12]))
        return numbers

    def misspelt(self) -> None:
        model = self.model
        with model.trace(self.tokens[:1]):
            model.transformer.h[3].atn.output[0][:] = 0

    def filtered(self) -> Any:
        model = self.model
        with model.trace(self.tokens[:1]):
            kept = model.transformer.h[3].atn.output.save()
        return f"no error: {type(kept)}"

    def mid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """There is no such module; the nearest is what the second layer norm reads."""
        model = self.model
        with model.trace(self.tokens[1:]):
            source = model.transformer.h[5].ln_2.input.save()
            want = model.output.logits.save()
        with model.trace(self.tokens[:1]):
            model.transformer.h[5].ln_2.input = source
            got = model.output.logits.save()
        return got, want

    def masked(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        model = self.model
        with model.trace(tokens, attention_mask=mask):
            logits = model.output.logits.save()
        return logits


def facts(worker: Any) -> dict[str, str]:
    """What happens, in words."""
    found: dict[str, str] = {}
    for name, run in (("misspelt hook", worker.misspelt), ("misspelt filter", worker.filtered)):
        try:
            found[name] = run() or "nothing: the run goes on without the edit"
        except Exception as error:
            words = " ".join(str(error).split())
            found[name] = f"{type(error).__name__}: {words[:140]}"
    got, want = worker.mid()
    found["resid_mid replaced"] = (
        f"off by {float((got - want).abs().max()):.1e}, logits up to {float(want.abs().max()):.1f}"
    )
    tokens = worker.tokens.clone()
    for side in ("left", "right"):
        mask = torch.ones_like(tokens)
        kept = slice(5, None) if side == "left" else slice(0, N_TOKENS - 5)
        mask[1] = 0
        mask[1, kept] = 1
        try:
            padded = worker.masked(tokens, mask)[1, kept]
            alone = worker.masked(tokens[1:, kept], mask[1:, kept])[0]
            found[f"padded on the {side}"] = f"off by {float((padded - alone).abs().max()):.1e}"
        except Exception as error:
            found[f"padded on the {side}"] = f"{type(error).__name__}: {str(error)[:140]}"
    return found


def main() -> None:
    kind, folder, threads = sys.argv[1:4]
    torch.set_num_threads(int(threads))
    torch.set_grad_enabled(False)
    worker: Any = NNsight(folder) if kind == "nnsight" else Lens(kind, folder)
    for line in sys.stdin:
        what, *numbers = line.split()
        try:
            if what == "facts":
                answer: Any = facts(worker)
            else:
                start = time.perf_counter()
                kept = getattr(worker, what)(*map(int, numbers))
                answer = {"seconds": time.perf_counter() - start}
                if what == "patch":
                    answer["numbers"] = kept
                del kept
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
