r"""Attention: where does every head look?

1. Run the model once on a prompt, as far as the last layer that is asked for, and keep of the
   chosen heads what attention is made of: queries q, keys k, the pattern that the run used, and
   how long each value vector v is.
2. From these, at each query and key, follow the steps of a head: the product q·k (`raw_scores`);
   times the head's scale, by default 1/sqrt(d_head) (`scaled_scores`); -inf for keys after the
   query (`scores`); the softmax over keys (`pattern`).
3. A head may rest on a token whose value is short, and move little. So there are two more: the
   pattern times the length of the key's value vector (`value_weighted`), and times the length of
   what that value becomes in the residual stream, v W_O (`output_weighted`).
4. List the strongest links from query to key of each head; show every head as a map.
5. Two prompts of as many tokens can be compared position by position: `difference`.

The pattern is the one that the run used, hooks that are active on the model included; a result
says at which points functions listened.

Sources: patterns and their value-weighted form: Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits" (transformer-circuits.pub/2021/framework). Weighting by the transformed value:
Kobayashi et al. 2020, "Attention is Not Only a Weight: Analyzing Transformers with Vector Norms"
(arXiv 2004.10102, section 3). That heads rest on the first token: Vig and Belinkov 2019, "Analyzing
the Structure of Attention in a Transformer Language Model" (arXiv 1906.04284); Xiao et al. 2023,
"Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyses import cli, report
from analyses._attention.matrices import MATRICES, checked_matrix
from analyses._heads.names import Head, chosen_heads, parse_heads, parse_layers

if TYPE_CHECKING or __name__ != "__main__":
    # As a command this file is run under the name __main__, answers --help and wrong options
    # without waiting seconds for torch, and then imports itself under its own name.
    import torch
    from jaxtyping import Int
    from torch import Tensor

    from analyses._attention.result import AttentionDifference, AttentionPatterns
    from analyses.prompts import Prompts
    from hooks import HookPoint
    from interp import HookedGPT2, TokenBatch

__all__ = ["MATRICES", "AttentionDifference", "AttentionPatterns", "Head", "attention", "main"]


# ------------------------------------------------------------------ the question


def attention(
    model: HookedGPT2,
    tokens: str | Sequence[str] | TokenBatch | Int[Tensor, "batch pos"] | Int[Tensor, " pos"],
    *,
    layers: int | Sequence[int] | None = None,
    heads: Any = None,
    prepend_bos: bool = True,
) -> AttentionPatterns:
    """Where heads look in one prompt.

    One run that ends with the last layer needed and keeps of each chosen head its pattern
    (`query key`), queries and keys (`pos d_head`) and the lengths of its values; scores are
    computed from these when asked for.

    Args:
        model: what is looked into; stays as it is. Hooks that are active on it count.
        tokens: one prompt: text, token ids (`pos`, or `batch pos` with a batch of one), or what
            `model.tokenize` gives for it.
        layers: all heads of these layers; negative ones count from the end.
        heads: `"3.1"` (head 1 of layer 3), a `Head`, a pair `(3, 1)`, or several of these. Given
            neither layers nor heads: all heads.
        prepend_bos: put `<|endoftext|>` before text; ids are taken as they are.

    Returns:
        The patterns of these heads, in the order asked for, on the CPU.

    Raises:
        ValueError: several prompts, layers and heads together, a head that is written in another
            way or asked for twice, or what `model.tokenize` refuses.
        IndexError: no such layer or head, or a token id out of range.
        TypeError: what is no prompt, head or layer.
    """
    cfg = model.cfg
    chosen = chosen_heads(layers, heads, cfg.n_layers, cfg.n_heads)
    prompts = Prompts.of(model, tokens, prepend_bos=prepend_bos)
    n_prompts = len(prompts.lengths)
    if n_prompts != 1:
        raise ValueError(
            f"attention takes one prompt, these are {n_prompts}: ask for each on its own, such as "
            "[attention(model, one) for one in texts], or tokens[0] of ids"
        )
    # Padding is left out: a run gives the others the same numbers without it.
    ids = prompts.tokens[prompts.attention_mask]
    kept = _Kept(model, chosen, len(ids))
    with torch.no_grad():
        model.run_with_hooks(
            ids, stop_at_layer=1 + max(head.layer for head in chosen), fwd_hooks=kept.hooks()
        )
    asked = ""
    if layers is not None:
        asked = f", layers={list(dict.fromkeys(head.layer for head in chosen))}"
    elif heads is not None:
        asked = f", heads={[str(head) for head in chosen]}"
    return AttentionPatterns(
        heads=chosen,
        positions=tuple(range(len(ids))),
        n_tokens=len(ids),
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        provenance=report.Provenance.of(
            model, f"attention(model, ...{asked}, prepend_bos={prepend_bos})"
        ),
        tokens=tuple(ids.tolist()),
        str_tokens=prompts.str_tokens[0],
        prepend_bos=prompts.prepend_bos,
        pattern=kept.pattern,
        q=kept.q,
        k=kept.k,
        scale=torch.tensor([_scale(model, head.layer) for head in chosen], dtype=kept.q.dtype),
        value_norms=kept.value_norms,
        output_norms=kept.output_norms,
        run_scores=kept.scores,
        hooked=kept.hooked,
    )


def _scale(model: HookedGPT2, layer: int) -> float:
    """What the products of queries and keys of a layer are multiplied by."""
    cfg = model.cfg
    scale = cfg.d_head**-0.5 if cfg.scale_attn_weights else 1.0
    return scale / (layer + 1) if cfg.scale_attn_by_inverse_layer_idx else scale


class _Kept:
    """What is kept of a run, as it passes: of the chosen heads only, straight to its place."""

    def __init__(self, model: HookedGPT2, heads: Sequence[Head], n_tokens: int) -> None:
        self._model = model
        self._rows: dict[int, list[int]] = {}  # of each layer, places on the axis `component`
        self._heads: dict[int, list[int]] = {}
        for row, head in enumerate(heads):
            self._rows.setdefault(head.layer, []).append(row)
            self._heads.setdefault(head.layer, []).append(head.head)
        dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        n, d_head = len(heads), model.cfg.d_head
        self.pattern = torch.empty(n, n_tokens, n_tokens, dtype=dtype)
        self.q = torch.empty(n, n_tokens, d_head, dtype=dtype)
        self.k = torch.empty(n, n_tokens, d_head, dtype=dtype)
        self.value_norms = torch.empty(n, n_tokens, dtype=dtype)
        self.output_norms = torch.empty(n, n_tokens, dtype=dtype)
        self.hooked = tuple(
            point.name
            for point in model.hook_dict.values()
            if point.fwd_hooks and (_layer_of(point) or 0) <= max(self._rows)
            and not point.name.startswith("ln_final.")
        )  # fmt: skip
        in_scores = any(
            _layer_of(model.hook_dict[name]) in self._rows
            for name in self.hooked
            if name.endswith("hook_attn_scores")
        )
        exact = model.dtype in (torch.float32, torch.float64)
        self.scores = torch.empty_like(self.pattern) if in_scores or not exact else None

    def hooks(self) -> list[tuple[str, Any]]:
        """Functions for a run, that look and change nothing."""
        look = {"q": self._into(self.q), "k": self._into(self.k), "v": self._measure}
        look["pattern"] = self._into(self.pattern)
        if self.scores is not None:
            look["attn_scores"] = self._into(self.scores)
        return [
            (f"blocks.{layer}.attn.hook_{name}", function)
            for layer in self._rows
            for name, function in look.items()
        ]

    def _into(self, place: Tensor) -> Callable[[Tensor, HookPoint], None]:
        def keep(activation: Tensor, hook: HookPoint) -> None:
            place[self._rows[hook.layer()]] = self._chosen(activation, hook).to(place)

        return keep

    def _measure(self, v: Tensor, hook: HookPoint) -> None:
        layer, exact = hook.layer(), self.pattern.dtype
        values = self._chosen(v, hook).to(exact)  # component pos d_head
        written = values @ self._model.W_O[layer, self._heads[layer]].to(exact)
        self.value_norms[self._rows[layer]] = values.norm(dim=-1).cpu()
        self.output_norms[self._rows[layer]] = written.norm(dim=-1).cpu()

    def _chosen(self, activation: Tensor, hook: HookPoint) -> Tensor:
        """Of the one prompt there is, the chosen heads of a layer, their axis first."""
        heads_first = activation[0].movedim(hook.axes.index("head") - 1, 0)
        return heads_first[self._heads[hook.layer()]]


def _layer_of(point: HookPoint) -> int | None:
    return point.layer() if point.name.startswith("blocks.") else None


# ------------------------------------------------------------------ the command line


def main(
    files: cli.Files,
    model: cli.Model = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="A prompt of as many tokens: show each prompt minus this one.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="All heads of these layers, such as 0,3,-1.", metavar="LAYERS", show_default=False
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="These heads, such as 3.1,0.0 (layer.head). Left out, with --layers too: all.",
            metavar="HEADS",
            show_default=False,
        ),
    ] = None,
    positions: Annotated[
        str,
        typer.Option(help="all, or queries and keys such as 0,3,-1 or 5:9.", metavar="POSITIONS"),
    ] = "all",
    matrix: Annotated[
        str,
        typer.Option(
            help=f"What to list and colour: one of {', '.join(MATRICES)}.", metavar="NAME"
        ),
    ] = "pattern",
    top_k: Annotated[int, typer.Option(help="How many links to list per head.", metavar="N")] = 3,
    skip_first: Annotated[
        bool,
        typer.Option(help="Leave links to position 0 out of the list: most heads rest there."),
    ] = True,
    prepend_bos: cli.PrependBos = True,
    device: cli.Device = "cpu",
    dtype: cli.Dtype = "float32",
    html: cli.Html = None,
    csv: cli.Csv = None,
    json_path: cli.Json = None,
) -> None:
    """Where does every head look? Attention patterns of a prompt.

    Lists the strongest links from query to key of each head; of a single head (--heads 3.1) also
    its map. --html writes a page with all heads' maps, that opens one at a click.
    """
    inputs = [*files, *([] if against is None else [against])]
    cli.check_outputs(html=html, csv=csv, json=json_path, inputs=inputs)
    if layers is not None and heads is not None:
        raise cli.CommandError("give --layers (all heads of each) or --heads, not both")
    chosen: dict[str, Any] = {}
    if layers is not None:
        chosen["layers"] = parse_layers(layers)
    if heads is not None:
        chosen["heads"] = parse_heads(heads)
    checked_matrix(matrix)
    parse_positions(positions, 1)  # its errors, before anything is loaded
    if top_k < 1:
        raise cli.CommandError(f"--top-k is {top_k}: expected at least 1")
    prompts = cli.read_prompts(inputs)
    console = cli.console(data_on_stdout=cli.STDIN in (csv, json_path))
    choice = cli.choose_model(model)
    console.print(str(choice), style="bold", soft_wrap=True)
    # Under its own name: here it is __main__, and has no torch.
    from analyses._views import attention as views
    from analyses._views import attention_page
    from analyses.attention import attention

    loaded = cli.load_model(choice, device=device, dtype=dtype)
    found: list[tuple[str, AttentionPatterns]] = []
    for prompt in prompts:
        with cli.about(prompt.source):
            one = attention(loaded, prompt.text, **chosen, prepend_bos=prepend_bos)
            found.append((prompt.source, one))
    named: list[tuple[str, AttentionPatterns | AttentionDifference]] = list(found)
    if against is not None:
        other_name, other = found.pop()
        named = []
        for source, one in found:
            with cli.about(f"{source} against {other_name}"):
                named.append((f"{source} minus {other_name}", one.difference(other)))
    for i, (source, one) in enumerate(named):
        where = parse_positions(positions, one.n_tokens)
        if where is not None:
            with cli.about(source):
                named[i] = (source, one.select(positions=where))
    if html or json_path:
        call = cli.call("analyses.attention", sys.argv[1:])
        provenance = named[0][1].provenance.with_weights(loaded, call)
        named = [(source, replace(one, provenance=provenance)) for source, one in named]
    cli.write_outputs(
        console,
        html=html,
        page=lambda: attention_page.page(named, matrix=matrix, top_k=top_k, skip_first=skip_first),
        csv=csv,
        frame=lambda: cli.by_source((source, one.to_frame()) for source, one in named),
        json=json_path,
        data=lambda: [{"source": source} | one.to_dict() for source, one in named],
    )
    for source, one in named:
        console.print()
        console.print(source, style="bold", soft_wrap=True)
        views.show(one, console, top_k, matrix, skip_first=skip_first)


def parse_positions(text: str, n_tokens: int) -> list[int] | None:
    """`all` (None), or comma-separated numbers and ranges such as `5:9` (9 not included).

    Raises:
        CommandError: anything else.
    """
    if text.strip() == "all":
        return None
    found: list[int] = []
    for part in text.split(","):
        try:
            if ":" in part:
                start, end = (int(end) if end.strip() else None for end in part.split(":"))
                found += range(n_tokens)[start:end]
            else:
                found.append(int(part))
        except ValueError:
            raise cli.CommandError(
                f"--positions {text!r}: expected all, or numbers and ranges such as 0,5:9,-1"
            ) from None
    return found


if __name__ == "__main__":
    cli.run(main, __spec__)
