"""Composition of heads, beside what random matrices would give."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from analyses import cli
from analyses._arguments import whole
from analyses._circuits.result import WeightResult
from analyses._circuits.source import (
    Weights,
    check_finite,
    heads_of,
    number_of,
    provenance_of,
    weights_note,
)
from analyses._heads.names import one_head
from analyses._views import circuits as views
from analyses._views import composition as pictures
from analyses.tasks import unknown
from interp.composition import (
    COMPOSITION_MODES,
    composed,
    later_composition_scores,
    random_composition,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MEANINGS = {
    "Q": "the later head's queries read what the earlier one writes",
    "K": "the later head's keys read what the earlier one writes",
    "V": "the later head passes on what the earlier one writes",
}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Composition(WeightResult):
    """Composition scores of all pairs of heads; NaN where the second is in no later layer.

    Attributes:
        modes: the axis `mode`: some of "Q", "K", "V".
        scores: Frobenius ratios, 0 to 1; NaN also where a head's weights are all 0.
        baseline: what random matrices give: the root of the expected squared score.
        sigmas: by how many standard deviations the squared score of a pair is above what it would
            be, were the one head's circuit turned at random against the other's.
    """

    modes: tuple[str, ...]
    scores: Float[Tensor, "mode layer head later_layer later_head"]
    baseline: float
    sigmas: Float[Tensor, "mode layer head later_layer later_head"]

    @property
    def above(self) -> Float[Tensor, "mode layer head later_layer later_head"]:
        """Scores without the baseline, as Elhage et al. draw them."""
        return self.scores - self.baseline

    def __getitem__(self, mode: str) -> Float[Tensor, "layer head later_layer later_head"]:
        """The scores of one mode.

        Raises:
            KeyError: it was not asked for.
        """
        if mode not in self.modes:
            raise KeyError(unknown("mode", str(mode), self.modes))
        return self.scores[self.modes.index(mode)]

    def score(self, mode: str, writer: Any, reader: Any) -> float:
        """The score of one pair of heads, such as `score("K", "4.11", "5.5")`.

        Raises:
            KeyError: the mode was not asked for. ValueError, IndexError: no such head.
        """
        n_layers, n_heads = self.scores.shape[1:3]
        first, second = (one_head(h, n_layers, n_heads) for h in (writer, reader))
        return float(self[mode][(*first, *second)])

    def top(self, mode: str | None = None, k: SupportsIndex | None = None) -> "pd.DataFrame":
        """The k rows of `to_frame` with the highest scores, highest first, of one mode or of all.

        Args:
            mode: None: all that there are.
            k: None: 10, or all where there are fewer.

        Raises:
            KeyError: there is no such mode. ValueError, TypeError: k is no whole number, or there
                are not so many.
        """
        frame = self.to_frame()
        if mode is not None:
            frame = frame[frame["mode"] == self.modes[self._place(mode)]]
        k = number_of(k, len(frame), 10, "k")
        order = (-frame["score"]).argsort(kind="stable")  # NaN comes last
        return frame.iloc[order[:k]].reset_index(drop=True)

    def _place(self, mode: str) -> int:
        if mode not in self.modes:
            raise KeyError(unknown("mode", str(mode), self.modes))
        return self.modes.index(mode)

    def to_frame(self) -> "pd.DataFrame":
        """One row per mode and pair of heads, the second in a later layer.

        Columns: `mode`, `layer`, `head` (that writes), `later_layer`, `later_head` (that reads),
        `score`, `baseline`, `above` (their difference), `sigmas`.
        """
        import pandas as pd

        n_layers, n_heads = self.scores.shape[1:3]
        later = torch.ones(n_layers, n_layers, dtype=torch.bool).triu(1)
        later = later[:, None, :, None].expand(n_layers, n_heads, n_layers, n_heads)
        places = later.nonzero()
        parts = []
        for index, mode in enumerate(self.modes):
            names = ("layer", "head", "later_layer", "later_head")
            scores = self.scores[index][later].double()
            parts.append(
                pd.DataFrame(
                    {"mode": mode}
                    | {name: places[:, i].numpy() for i, name in enumerate(names)}
                    | {
                        "score": scores.numpy(),
                        "baseline": self.baseline,
                        "above": (scores - self.baseline).numpy(),
                        "sigmas": self.sigmas[index][later].double().numpy(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not there is None."""
        return {
            "modes": list(self.modes),
            "scores": cli.finite(self.scores.tolist()),
            "baseline": self.baseline,
            "sigmas": cli.finite(self.sigmas.tolist()),
        } | self._about()

    def plot(self, mode: str | None = None) -> "go.Figure":
        """Heat maps of scores, heads that write down and heads that read across: one mode, or all
        with buttons. Colours show by how much a score is above (red) or below (blue) the baseline.

        With very many heads a cell is a pair of layers and shows its highest score.

        Raises:
            KeyError: there is no such mode.
        """
        modes = self.modes if mode is None else (self.modes[self._place(mode)],)
        return pictures.heat_maps(self, modes)

    def view(self, top_k: SupportsIndex = 10) -> views.View:
        """What pages and the terminal show, with the `top_k` highest pairs of each mode, or all
        where there are fewer.

        Raises:
            ValueError, TypeError: top_k is no whole number above 0.
        """
        n_layers, n_heads = self.scores.shape[1:3]
        # Of each two layers the later one reads.
        n_pairs = math.comb(n_layers, 2) * n_heads**2
        shown = number_of(min(whole(top_k, "top_k is a whole number"), n_pairs), n_pairs, 10)
        tables = []
        for mode in self.modes:
            frame = self.top(mode, shown).dropna(subset="score")
            scores: list[float] = frame["score"].tolist()
            most = max([abs(score - self.baseline) for score in scores], default=0.0)
            rows: list[list[views.Text]] = []
            for score, row in zip(scores, frame.to_dict("records"), strict=True):
                above = score - self.baseline
                shade = abs(above) / most if most else 0.0
                rows.append(
                    [
                        f"{row['layer']}.{row['head']}",
                        f"{row['later_layer']}.{row['later_head']}",
                        views.Shade(f"{score:.3f}", shade, 1 if above > 0 else -1),
                        f"{score / self.baseline:.2f}",
                        f"{row['sigmas']:+.1f}",
                    ]
                )
            tables.append(
                views.Table(
                    f"{mode}-composition: {MEANINGS[mode]}",
                    ("writes", "reads", "score", "times the baseline", "sigmas"),
                    rows,
                )
            )
        pooled = pictures.is_pooled(self)
        return views.View(
            "Composition",
            "How much of what one head writes does a later head read? |W_out W_in| / (|W_out| "
            "|W_in|) in Frobenius norms, for every pair of heads.",
            (
                f"Two matrices that know nothing of each other score {self.baseline:.4f} (the root "
                "of 1/d_model). Sigmas: by how many standard deviations the squared score is above "
                "that, were one head's circuit turned at random against the other's.",
                self.weights[0].upper() + self.weights[1:] + ".",
            ),
            (
                (
                    self.plot(),
                    "Red: more than random, blue: less. Down: the head that writes; across: the "
                    "head that reads." + (pictures.POOLED if pooled else ""),
                ),
            ),
            tuple(tables),
            {"composition": self.to_frame()},
        )

    def __repr__(self) -> str:
        n_layers, n_heads = self.scores.shape[1:3]
        lines = [
            f"Composition({self.provenance.model}, {n_layers} layers x {n_heads} heads; baseline "
            f"{self.baseline:.4f}; {self.weights})"
        ]
        for mode in self.modes:
            best = [
                f"{row['layer']}.{row['head']} -> {row['later_layer']}.{row['later_head']} "
                f"{row['score']:.3f}"
                for row in self.top(mode, min(3, n_heads)).to_dict("records")
            ]
            lines.append(f"  {mode}: " + ", ".join(best))
        return "\n".join(lines)


@torch.no_grad()
def composition(weights: Weights, modes: str | Sequence[str] = COMPOSITION_MODES) -> Composition:
    """How much of what each head writes does each later head read?

    For heads 1 and 2 in a later layer, `|OV_1 M_2| / (|OV_1| |M_2|)` in Frobenius norms, where M is
    what reads: `QK` for queries, its transpose for keys, `OV` for values (row vectors). Never more
    than `d_model x head d_head` numbers of a product are held; how long GPT-2 small's 28,512
    scores take, `benchmarks/circuits.py` measures.

    The baseline is exact: of a random turn of the one circuit against the other, and so of products
    of independent Gaussian factors of any inner size, the *squared* score has the mean `1/d_model`
    (`interp.composition.random_composition`, which also has its spread). The mean of the score
    itself is a little below the root of that.

    Scores say which heads could talk to each other, not that they do: they know nothing of what the
    residual stream holds. Layer norm between the heads is left out, but for its gain where it is
    folded in.

    Args:
        weights: a model, or `AttentionLayers`; stays as it is.
        modes: some of "Q", "K", "V".

    Returns:
        scores of all pairs, on the CPU; NaN where the second head is in no later layer.

    Raises:
        ValueError: an unknown mode, one twice or none; a model of a single layer; NaN or infinity
            in the weights. TypeError: something that has no attention weights.

    Source: Elhage et al. 2021, section "Two-Layer Attention-Only Transformers", whose figure shows
    scores above those of random matrices.
    """
    chosen = tuple(modes) if not isinstance(modes, str) else (modes,)
    for mode in chosen:
        if mode not in COMPOSITION_MODES:
            raise ValueError(unknown("mode of composition", str(mode), COMPOSITION_MODES))
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"modes are some of {', '.join(COMPOSITION_MODES)}, each once: {chosen}")
    heads = heads_of(weights)
    if len(heads.W_Q) < 2:
        raise ValueError("composition is between layers, and this model has only one")
    check_finite("the attention weights", heads.W_Q, heads.W_K, heads.W_V, heads.W_O)
    scores, sigmas, baseline = [], [], 0.0
    for mode in cli.progress(range(len(chosen)), "composition"):
        pair = composed(heads.QK, heads.OV, chosen[mode])
        found = later_composition_scores(*pair)
        mean, spread = random_composition(*pair)
        baseline = math.sqrt(float(mean))
        scores.append(found.cpu())
        sigmas.append(((found.double() ** 2 - mean) / spread).to(found.dtype).cpu())
    return Composition(
        modes=chosen,
        scores=torch.stack(scores),
        baseline=baseline,
        sigmas=torch.stack(sigmas),
        weights=weights_note(weights),
        provenance=provenance_of(weights, f"composition(weights, modes={chosen!r})"),
    )
