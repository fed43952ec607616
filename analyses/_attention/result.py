"""The results of [`analyses.attention`][]: the heads of one prompt, and how two prompts differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from analyses import cli, report
from analyses._attention.maps import AttentionMaps
from analyses._attention.matrices import checked_matrix

if TYPE_CHECKING:
    from typing import Self

    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AttentionPatterns(AttentionMaps):
    """Where heads look in one prompt. All numbers are on the CPU, in float32 (or float64 for a
    float64 model).

    Attributes:
        heads: the axis `component`, in the order asked for.
        positions: the axes `query` and `key`.
        tokens: ids of the whole prompt.
        str_tokens: the same as strings (`<id>` without a tokenizer).
        prepend_bos: whether `<|endoftext|>` was put before the text; None for ids, taken as given.
        pattern: what the run used.
        q, k: queries and keys of the whole prompt, as they met.
        scale: what `q·k` is multiplied by.
        value_norms: length of each key's value vector.
        output_norms: length of each key's value vector times W_O, that is, in the residual stream;
            without the output bias, which belongs to no key.
        run_scores: the masked scores of the run, of the whole prompt, where they may differ from
            scaled and masked `q·k`: a function listened at them, or the run computed in low
            precision. Else None.
        hooked: the points at which functions listened, other than to look for this result.
    """

    tokens: tuple[int, ...]
    str_tokens: tuple[str, ...]
    prepend_bos: bool | None
    pattern: Float[Tensor, "component query key"]
    q: Float[Tensor, "component pos d_head"]
    k: Float[Tensor, "component pos d_head"]
    scale: Float[Tensor, " component"]
    value_norms: Float[Tensor, "component pos"]
    output_norms: Float[Tensor, "component pos"]
    run_scores: Float[Tensor, "component pos pos"] | None
    hooked: tuple[str, ...]

    @property
    def signed(self) -> bool:
        """False: a pattern has no number below zero."""
        return False

    # -------------------------------------------------------------- matrices

    @property
    def value_weighted(self) -> Float[Tensor, "component query key"]:
        """`pattern` times the length of the key's value vector (Elhage et al. 2021)."""
        return self.matrix("value_weighted")

    @property
    def output_weighted(self) -> Float[Tensor, "component query key"]:
        """`pattern` times the length of the key's value vector times W_O (Kobayashi et al. 2020,
        section 3), without the output bias."""
        return self.matrix("output_weighted")

    @property
    def raw_scores(self) -> Float[Tensor, "component query key"]:
        """`q·k` of every query and key, later keys included."""
        return self.matrix("raw_scores")

    @property
    def scaled_scores(self) -> Float[Tensor, "component query key"]:
        """`raw_scores` times `scale`."""
        return self.matrix("scaled_scores")

    @property
    def scores(self) -> Float[Tensor, "component query key"]:
        """What the softmax was taken of: scaled, and -inf where the key is after the query."""
        return self.matrix("scores")

    def of_heads(self, name: str, index: Sequence[int]) -> Float[Tensor, "component query key"]:
        """`matrix(name)` of the heads at these places of the axis `component` only.

        Raises:
            ValueError: there is no such matrix; names the nearest.
        """
        rows, at = list(index), list(self.positions)
        name = checked_matrix(name)
        if name == "pattern":
            return self.pattern[rows]
        if name == "value_weighted":
            return self.pattern[rows] * self.value_norms[rows][:, None, at]
        if name == "output_weighted":
            return self.pattern[rows] * self.output_norms[rows][:, None, at]
        if name == "scores" and self.run_scores is not None:
            return self.run_scores[rows][:, at][:, :, at]
        numbers = self.q[rows][:, at] @ self.k[rows][:, at].transpose(1, 2)
        if name != "raw_scores":
            numbers *= self.scale[rows, None, None]
        return numbers.masked_fill_(~self.shown, -math.inf) if name == "scores" else numbers

    def steps(self, head: Any, query: int = -1) -> "pd.DataFrame":
        """How one query comes to attend to each key: a row per key, a column per step.

        Columns: `key`, `token`; `q_dot_k`; `scaled` (times the head's scale); `masked` (-inf for
        keys after the query); `exp` (of masked minus the largest masked score of the row: the
        softmax does not change by it, and no exp is too large); `softmax` (exp over its sum);
        `pattern` (what the run used: the softmax, unless a hook changed it); `value_norm` and
        `value_weighted`; `output_norm` and `output_weighted`.

        The softmax is over all keys of the prompt, also those that are not in this selection.

        Args:
            head: `"3.1"`, a `Head` or a pair.
            query: position of the prompt; negative ones count from its end.

        Raises:
            ValueError, IndexError: the head or the position is not here.
        """
        import pandas as pd

        i, slot = self.index(head), self.slot(query)
        position, at = self.positions[slot], list(self.positions)
        raw = self.k[i] @ self.q[i, position]
        scaled = raw * self.scale[i]
        masked = scaled.clone()
        masked[position + 1 :] = -math.inf
        if self.run_scores is not None:
            masked = self.run_scores[i, position]
        exp = (masked - masked.max()).exp()
        pattern = self.pattern[i, slot]
        return pd.DataFrame(
            {
                "key": at,
                "token": [self.str_tokens[p] for p in at],
                "q_dot_k": raw[at].numpy(),
                "scaled": scaled[at].numpy(),
                "masked": masked[at].numpy(),
                "exp": exp[at].numpy(),
                "softmax": (exp / exp.sum())[at].numpy(),
                "pattern": pattern.numpy(),
                "value_norm": self.value_norms[i, at].numpy(),
                "value_weighted": (pattern * self.value_norms[i, at]).numpy(),
                "output_norm": self.output_norms[i, at].numpy(),
                "output_weighted": (pattern * self.output_norms[i, at]).numpy(),
            }
        )

    def difference(self, other: "AttentionPatterns") -> "AttentionDifference":
        """This prompt minus another: positive where this one attends more.

        Args:
            other: of the same heads (in any order) and positions, of a prompt of as many tokens.

        Raises:
            ValueError: the prompts differ in length (both are shown as tokens), or the results
                hold other heads or positions, or are of models of different shape.
            TypeError: other is no such result.
        """
        if not isinstance(other, AttentionPatterns):
            raise TypeError(f"other is AttentionPatterns, not {type(other).__name__}")
        if self.n_tokens != other.n_tokens:
            raise ValueError(
                f"position by position there is a difference only of prompts of as many tokens: "
                f"{_listed(self)}; {_listed(other)}"
            )
        if (self.n_layers, self.n_heads) != (other.n_layers, other.n_heads):
            raise ValueError(
                f"these are of models of {self.n_layers} layers of {self.n_heads} heads and "
                f"{other.n_layers} layers of {other.n_heads} heads"
            )
        if set(self.heads) != set(other.heads):
            first = sorted(set(self.heads) - set(other.heads))
            second = sorted(set(other.heads) - set(self.heads))
            raise ValueError(
                "these hold different heads: only the first has "
                f"{', '.join(map(str, first)) or 'none'}, only the second "
                f"{', '.join(map(str, second)) or 'none'}; select the same"
            )
        if self.positions != other.positions:
            raise ValueError(
                f"these hold different positions: {self.positions} and {other.positions}; select "
                "the same"
            )
        return AttentionDifference(
            heads=self.heads,
            positions=self.positions,
            n_tokens=self.n_tokens,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            provenance=self.provenance,
            first=self,
            second=other.select(heads=self.heads),
        )

    # -------------------------------------------------------------- what there is, elsewhere

    def token_columns(self) -> dict[str, tuple[str, ...]]:
        """The tokens of the prompt, under the name ""."""
        return {"": self.str_tokens}

    def _restricted(self, index: Sequence[int], slots: Sequence[int]) -> "Self":
        rows, at = list(index), list(slots)
        scores = self.run_scores
        return replace(
            self,
            heads=tuple(self.heads[i] for i in rows),
            positions=tuple(self.positions[i] for i in at),
            pattern=self.pattern[rows][:, at][:, :, at],
            **{
                name: getattr(self, name)[rows]
                for name in ("q", "k", "scale", "value_norms", "output_norms")
            },
            run_scores=None if scores is None else scores[rows],
        )

    def page(self) -> report.Page:
        """The page that `to_html` writes."""
        from analyses._views import attention_page as views

        return views.page([("", self)])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not finite is None.

        Rows of `pattern` and `scores` hold the keys up to their query, the others being 0 and
        -inf.
        """
        heads = []
        for i, head in enumerate(self.heads):
            rows = {}
            for name in ("pattern", "scores"):
                matrix = self.of_heads(name, [i])[0].tolist()
                rows[name] = cli.finite([row[: j + 1] for j, row in enumerate(matrix)])
            heads.append(
                {
                    "layer": head.layer,
                    "head": head.head,
                    "scale": float(self.scale[i]),
                    "value_norms": cli.finite(self.value_norms[i, list(self.positions)].tolist()),
                    "output_norms": cli.finite(self.output_norms[i, list(self.positions)].tolist()),
                }
                | rows
            )
        return {
            "prepend_bos": self.prepend_bos,
            "tokens": [
                {"id": id, "token": token}
                for id, token in zip(self.tokens, self.str_tokens, strict=True)
            ],
            "positions": list(self.positions),
            "hooked": list(self.hooked),
            "heads": heads,
            "provenance": self.provenance.to_dict(),
        }

    def __repr__(self) -> str:
        from analyses._views import attention as views

        return views.patterns_repr(self)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AttentionDifference(AttentionMaps):
    """How the heads of one prompt attend otherwise than those of another: first minus second.

    Attributes:
        first, second: of the same heads and positions.
    """

    first: AttentionPatterns
    second: AttentionPatterns

    @property
    def signed(self) -> bool:
        """True: zero is where both attend alike."""
        return True

    def of_heads(self, name: str, index: Sequence[int]) -> Float[Tensor, "component query key"]:
        """`matrix(name)` of the heads at these places of the axis `component` only.

        What is masked in both is 0.

        Raises:
            ValueError: there is no such matrix; names the nearest.
        """
        found = self.first.of_heads(name, index) - self.second.of_heads(name, index)
        return found.masked_fill_(~self.shown, 0.0) if name == "scores" else found

    def token_columns(self) -> dict[str, tuple[str, ...]]:
        """The tokens of the first prompt under the name "", of the second under "other_"."""
        return {"": self.first.str_tokens, "other_": self.second.str_tokens}

    def _restricted(self, index: Sequence[int], slots: Sequence[int]) -> "Self":
        first, second = (one._restricted(index, slots) for one in (self.first, self.second))
        return replace(
            self, heads=first.heads, positions=first.positions, first=first, second=second
        )

    def page(self) -> report.Page:
        """The page that `to_html` writes."""
        from analyses._views import attention_page as views

        return views.page([("", self)])

    def to_dict(self) -> dict[str, Any]:
        """Both prompts' results and the difference of their patterns as plain data."""
        differences = [
            [row[: j + 1] for j, row in enumerate(matrix)]
            for matrix in self.matrix("pattern").tolist()
        ]
        return {
            "heads": [str(head) for head in self.heads],
            "pattern": cli.finite(differences),
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
        }

    def __repr__(self) -> str:
        from analyses._views import attention as views

        return views.difference_repr(self)


def _listed(result: AttentionPatterns) -> str:
    return f"{result.n_tokens} are {list(result.str_tokens)!r}"
