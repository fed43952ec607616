"""What a head writes about a token when it attends to nothing else: copying, from the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from analyses import cli
from analyses._heads.names import Head
from analyses._heads.scores import checked_ids
from analyses._views import heads as views
from analyses.prompts import token_string
from analyses.tasks import unknown, words
from interp import HookedGPT2

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

RESIDUALS = ("first_mlp", "embedding")
# So many bytes of logits are made at a time.
_CHUNK_BYTES = 2**26
_TOKENS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False, repr=False)
class CopyingScores:
    """How often a head's output brings up the token that it attends to.

    Attributes:
        copying: the share of tokens that are among the `top_k` which the head's output raises most.
        negative_copying: the share that are among the `top_k` which it lowers most.
        tokens, str_tokens: the tokens that were tried.
        top_k: how many count as the top.
        residual: where the token was read: "first_mlp", "embedding" or "given".
    """

    copying: Float[Tensor, "layer head"]
    negative_copying: Float[Tensor, "layer head"]
    tokens: tuple[int, ...]
    str_tokens: tuple[str, ...]
    top_k: int
    residual: str

    def to_frame(self) -> "pd.DataFrame":
        """One row per head: `layer`, `head`, `copying`, `negative_copying`."""
        import pandas as pd

        n_layers, n_heads = self.copying.shape
        return pd.DataFrame(
            {
                "layer": [layer for layer in range(n_layers) for _ in range(n_heads)],
                "head": list(range(n_heads)) * n_layers,
                "copying": self.copying.reshape(-1).tolist(),
                "negative_copying": self.negative_copying.reshape(-1).tolist(),
            }
        )

    def plot(self) -> "go.Figure":
        """Heat maps of both side by side, layers down and heads across, from 0 to 1."""
        panels = {"copying": self.copying, "negative_copying": self.negative_copying}
        return views.heat_maps(
            {name: (values, None) for name, values in panels.items()}, "share of tokens"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return {
            "copying": self.copying.tolist(),
            "negative_copying": self.negative_copying.tolist(),
            "tokens": list(self.tokens),
            "str_tokens": list(self.str_tokens),
            "top_k": self.top_k,
            "residual": self.residual,
        }

    def __repr__(self) -> str:
        lines = [
            f"CopyingScores({len(self.tokens)} tokens, top {self.top_k}, residual {self.residual})"
        ]
        for name in ("copying", "negative_copying"):
            values = getattr(self, name)
            best = values.reshape(-1).argsort(descending=True, stable=True)[:3].tolist()
            heads = [Head(*divmod(i, values.shape[1])) for i in best]
            lines.append(f"  {name}: " + ", ".join(f"{h} {float(values[h]):.3f}" for h in heads))
        return "\n".join(lines)


def copying_scores(
    model: HookedGPT2,
    tokens: Int[Tensor, "..."] | Sequence[int] | None = None,
    *,
    residual: str | Float[Tensor, "..."] = "first_mlp",
    top_k: int = 5,
) -> CopyingScores:
    """Which heads copy what they attend to? Wang et al.'s copy score, from the weights.

    1. Take the residual stream at a token: after the first block (its attention and MLP), where
       GPT-2 has made a token's meaning out of its embedding.
    2. Take it through the layer norm of the head's block and the head's value and output weights:
       what the head writes when all its attention is on this token. Biases are left out, which add
       the same whatever is attended to.
    3. Take that through the final layer norm and the unembedding: is the token among the `top_k`?
       For negative copying, with the sign of the head's output turned.

    A token that ties with others counts as behind them. A head that writes nothing is read as the
    final layer norm's bias, as the logits are: it copies what that bias brings up.
    Scores of the first block are hypothetical with `first_mlp`: its heads never see that residual.

    Args:
        model: what is looked into; stays as it is.
        tokens: ids to try, `[token]`. None: the names of `analyses.tasks.ioi` that are one token
            of this model.
        residual: "first_mlp": after the first block, run on `<|endoftext|>` and the token (on the
            token alone where the model has no such token); "embedding": the token's embedding
            without a position; or residuals `token d_model` of your own, such as those after the
            first block at names in prompts, as Wang et al. took them.
        top_k: how many of the highest logits count.

    Returns:
        copying and negative copying of every head, on the CPU.

    Raises:
        ValueError, TypeError, IndexError: no token ids or ids that the model does not have, an
            unknown residual or one of another shape, top_k out of range, no names, NaN or infinity
            in the residual or the weights.

    Source: Wang et al. 2022, arXiv 2211.00593, section 3.1: the copy score (top 5) of name movers,
    and of negative name movers that of the negated output.
    """
    ids = _names(model) if tokens is None else checked_ids(tokens)
    d_vocab = model.cfg.d_vocab
    if not bool(((ids >= 0) & (ids < d_vocab)).all()):
        raise IndexError(f"token ids are 0 to {d_vocab - 1}, these {int(ids.min())} to {ids.max()}")
    if model.cfg.d_vocab_out < d_vocab:
        raise ValueError(
            f"this model reads {d_vocab} tokens and predicts {model.cfg.d_vocab_out}: whether it "
            "copies a token has no meaning"
        )
    if not 1 <= top_k < model.cfg.d_vocab_out:
        raise ValueError(f"top_k={top_k} is out of range: 1 to {model.cfg.d_vocab_out - 1}")
    ids = ids.to(model.device, torch.int64)
    how = residual if isinstance(residual, str) else "given"
    with torch.no_grad():
        read = _residual(model, ids, residual)
        scores = _scores(model, read, ids, top_k)
    copying, negative = scores.double().mean(-1).cpu()
    strings = tuple(token_string(model, id) for id in ids.tolist())
    return CopyingScores(copying, negative, tuple(ids.tolist()), strings, top_k, how)


def _names(model: HookedGPT2) -> Tensor:
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer to find names in: give token ids")
    texts = [f" {name}" for name in words.NAMES_TRAIN + words.NAMES_HELD_OUT]
    ids = [model.to_tokens(text, prepend_bos=False)[0] for text in texts]
    single = [one for one in ids if len(one) == 1]
    if not single:
        raise ValueError(f"none of the {len(texts)} names is one token of this model: give ids")
    return torch.cat(single)


def _residual(model: HookedGPT2, ids: Tensor, residual: Any) -> Tensor:
    if isinstance(residual, Tensor):
        expected = (len(ids), model.cfg.d_model)
        if tuple(residual.shape) != expected:
            raise ValueError(
                f"residual has shape {tuple(residual.shape)}; expected token d_model, {expected}"
            )
        return residual.detach().to(model.W_E)
    if residual not in RESIDUALS:
        raise ValueError(unknown("residual", str(residual), RESIDUALS))
    if residual == "embedding":
        return model.W_E[ids]
    bos = None if model.tokenizer is None else model.tokenizer.bos_token_id
    rows = ids[:, None]
    if bos is not None:
        rows = torch.cat([torch.full_like(rows, bos), rows], dim=1)
    found = []
    for part in rows.split(_TOKENS_AT_ONCE):
        after = model.forward(part, stop_at_layer=1)
        if isinstance(after, Tensor):  # it is, of every run that stops
            found.append(after[:, -1])
    return torch.cat(found)


def _scores(model: HookedGPT2, residual: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """`2 layer head token`: whether each token is on top, and whether it is at the bottom."""
    cfg = model.cfg
    normalised = F.layer_norm(residual, residual.shape[-1:], eps=cfg.eps)
    found = torch.empty(2, cfg.n_layers, cfg.n_heads, len(ids), dtype=torch.bool)
    # Without the token the final layer norm gives its bias: turning the sign turns the rest.
    constant = model.unembed(model.weight("ln_f.bias"))
    at_once = max(1, _CHUNK_BYTES // (cfg.d_vocab_out * normalised.element_size()))
    for layer in cli.progress(range(cfg.n_layers), "copying"):
        block = model.blocks[layer]
        for head in range(cfg.n_heads):
            written = (normalised * block.ln1.w) @ block.attn.W_V[head] @ block.attn.W_O[head]
            for start in range(0, len(ids), at_once):
                here = slice(start, start + at_once)
                logits = model.unembed(model.ln_final(written[here]))
                if not bool(logits.isfinite().all()):
                    raise ValueError(
                        f"head {layer}.{head} writes logits that are not finite: the residual or "
                        "the model's weights hold NaN or infinity"
                    )
                for sign, values in enumerate((logits, 2 * constant - logits)):
                    own = values.gather(1, ids[here, None])
                    # Of its equals the token itself is one.
                    ahead = (values >= own).sum(1) - 1
                    found[sign, layer, head, here] = (ahead < top_k).cpu()
    return found
