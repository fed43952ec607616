"""The input and output directions of neurons, read as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from analyses import cli
from analyses._arguments import listed, whole
from analyses._circuits.reading import Readings, ids_in, read
from analyses._circuits.result import WeightResult
from analyses._circuits.source import (
    Weights,
    check_finite,
    number_of,
    provenance_of,
    strings,
    weights_note,
    whole_model,
)
from analyses._heads.names import checked_layers
from analyses._views import circuits as views
from analyses._views import directions as pictures

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class NeuronDirections(WeightResult):
    """What neurons read and write, as tokens.

    Attributes:
        layer: of the MLP.
        neurons: which.
        in_norm: length of what each reads, `W_in[:, i]`.
        out_norm: length of what each writes, `W_out[i]`.
        cosine: between both: near 1 for a neuron that makes more of what it finds, near -1 for one
            that takes it away.
        reads, writes: these directions as tokens.
        strings: the text of every token in this result.
    """

    layer: int
    neurons: tuple[int, ...]
    in_norm: Float[Tensor, " neuron"]
    out_norm: Float[Tensor, " neuron"]
    cosine: Float[Tensor, " neuron"]
    reads: Readings
    writes: Readings
    strings: dict[int, str]

    def to_frame(self) -> "pd.DataFrame":
        """One row per token of a direction: `layer`, `neuron`, `in_norm`, `out_norm`, `cosine`,
        `side` (`reads`, `writes`), `sign`, `k`, `token_id`, `token`, `value` (its inner product
        with the direction, times `sign`)."""
        import pandas as pd

        rows = []
        for place, neuron in enumerate(self.neurons):
            about = {"layer": self.layer, "neuron": neuron} | {
                name: float(getattr(self, name)[place])
                for name in ("in_norm", "out_norm", "cosine")
            }
            for side in ("reads", "writes"):
                for sign in (1, -1):
                    for k, (id, value) in enumerate(getattr(self, side).of(place, sign)):
                        rows.append(
                            about
                            | {"side": side, "sign": sign, "k": k, "token_id": id}
                            | {"token": self.strings[id], "value": value}
                        )
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return {
            "layer": self.layer,
            "neurons": list(self.neurons),
            "in_norm": self.in_norm.tolist(),
            "out_norm": self.out_norm.tolist(),
            "cosine": cli.finite(self.cosine.tolist()),
            "reads": self.reads.to_dict(),
            "writes": self.writes.to_dict(),
            "strings": {str(id): text for id, text in self.strings.items()},
        } | self._about()

    def plot(self) -> "go.Figure":
        """One point per neuron: how much it writes over how much it reads, coloured by cosine."""
        return pictures.neurons(self)

    def tokens(self, place: int, side: str, sign: int) -> list[str]:
        """What one neuron reads or writes, times `sign`."""
        return [self.strings[id] for id, _ in getattr(self, side).of(place, sign)]

    def view(self) -> views.View:
        """What pages and the terminal show."""
        verbs = {
            ("reads", 1): "answers to",
            ("reads", -1): "is quieted by",
            ("writes", 1): "raises",
            ("writes", -1): "lowers",
        }
        rows: list[list[views.Text]] = []
        for place, neuron in enumerate(self.neurons):
            for (side, sign), verb in verbs.items():
                texts = views.token_list(self.tokens(place, side, sign))
                cosine = views.number(float(self.cosine[place]), 2)
                rows.append([f"{self.layer}.{neuron}", cosine, verb, texts])
        return views.View(
            f"Neurons of layer {self.layer}",
            "Which tokens does a neuron answer to, and which does it raise when it fires?",
            (
                "What a neuron reads is compared with token embeddings, what it writes with the "
                "unembedding, without layer norm and biases. What a neuron of a later layer "
                "answers to in the running model is seldom a bare embedding.",
                self.weights[0].upper() + self.weights[1:] + ".",
            ),
            ((self.plot(), "Each neuron: length of what it reads and writes; hover for tokens."),),
            (views.Table("Neurons", ("neuron", "cosine", "", "tokens"), rows),),
            {"neurons": self.to_frame()},
        )

    def __repr__(self) -> str:
        lines = [
            f"NeuronDirections({self.provenance.model}, layer {self.layer}, {len(self.neurons)} "
            f"neurons; {self.weights})"
        ]
        for place, neuron in enumerate(self.neurons[:3]):
            reads = views.token_list(self.tokens(place, "reads", 1)[:4])
            writes = views.token_list(self.tokens(place, "writes", 1)[:4])
            lines.append(f"  {neuron}: answers to {reads}, raises {writes}")
        return "\n".join(lines)


@torch.no_grad()
def neuron_directions(
    weights: Weights,
    layer: SupportsIndex,
    neurons: SupportsIndex | Sequence[SupportsIndex] | None = None,
    *,
    n: SupportsIndex | None = None,
    top_k: SupportsIndex | None = None,
) -> NeuronDirections:
    """The input and output directions of neurons, read as tokens.

    Neuron i of an MLP reads the direction `W_in[:, i]` of the (normalised) residual stream and
    writes `W_out[i]`: inner products of the one with token embeddings say which tokens drive it, of
    the other with the unembedding which logits it raises.

    Args:
        weights: a model; stays as it is.
        layer: of the MLP; a negative one counts from the end.
        neurons: which; None: the n with the largest product of both lengths.
        n: how many, where `neurons` is None; None: 10, or all where there are fewer.
        top_k: how many tokens of each sign; None: 8, or all where there are fewer.

    Raises:
        ValueError, IndexError, TypeError: no such layer or neuron, one twice or none; n or top_k
            out of range; attention weights alone; NaN or infinity in the layer's MLP, W_E or W_U.

    Source: Geva et al. 2021, "Transformer Feed-Forward Layers Are Key-Value Memories",
    arXiv 2012.14913, section 4 (values as distributions over the vocabulary; keys they read from
    training examples instead).
    """
    model = whole_model(weights, "neurons are of an MLP")
    (chosen,) = checked_layers(layer, model.cfg.n_layers)
    d_mlp = model.cfg.d_mlp
    w_in, w_out = model.W_in[chosen].mT, model.W_out[chosen]
    check_finite(f"the MLP weights of layer {chosen}", w_in, w_out)
    in_norm, out_norm = w_in.norm(dim=1), w_out.norm(dim=1)
    if neurons is None:
        n = number_of(n, d_mlp, 10, "n")
        asked = (in_norm * out_norm).argsort(descending=True, stable=True)[:n].tolist()
    else:
        asked = []
        for one in listed(neurons):
            neuron = whole(one, "a neuron is a whole number")
            if not -d_mlp <= neuron < d_mlp:
                raise IndexError(
                    f"neuron {neuron} is out of range: layer {chosen} has {d_mlp}, 0 to {d_mlp - 1}"
                )
            if neuron % d_mlp in asked:
                raise ValueError(f"neuron {neuron % d_mlp} is asked for twice")
            asked.append(neuron % d_mlp)
        if not asked:
            raise ValueError("neurons is empty; leave it out for the largest")
    k = number_of(top_k, min(model.cfg.d_vocab, model.cfg.d_vocab_out), 8)
    reads = read(model, w_in[asked], "reads", k)
    writes = read(model, w_out[asked], "writes", k)
    named = ids_in(reads, writes)
    return NeuronDirections(
        layer=chosen,
        neurons=tuple(asked),
        in_norm=in_norm[asked].cpu(),
        out_norm=out_norm[asked].cpu(),
        cosine=((w_in * w_out).sum(1) / (in_norm * out_norm))[asked].cpu(),
        reads=reads,
        writes=writes,
        strings=dict(zip(named, strings(model, named), strict=True)),
        weights=weights_note(model),
        provenance=provenance_of(
            model, f"neuron_directions(model, {chosen}, {asked!r}, top_k={k})"
        ),
    )
