"""The matrices of query and key that [`analyses.attention`][] knows, by name."""

from typing import NamedTuple

from analyses.tasks import unknown


class MatrixKind(NamedTuple):
    """What one of the matrices is.

    Attributes:
        title: what buttons and captions call it.
        explanation: in a sentence.
        signed: whether its numbers may be below zero.
        causal: whether it is blank or zero where the key comes after the query.
    """

    title: str
    explanation: str
    signed: bool = False
    causal: bool = True


MATRICES: dict[str, MatrixKind] = {
    "pattern": MatrixKind("pattern", "share of the query's attention that goes to the key"),
    "value_weighted": MatrixKind(
        "value-weighted",
        "pattern times the length of the key's value vector: a head that rests on a token with "
        "a short value moves little",
    ),
    "output_weighted": MatrixKind(
        "output-weighted",
        "pattern times the length of what the key's value becomes in the residual stream "
        "(v W_O): how much is moved from key to query",
    ),
    "raw_scores": MatrixKind(
        "q·k",
        "products of queries and keys before scale, mask and softmax, later keys included",
        signed=True,
        causal=False,
    ),
    "scaled_scores": MatrixKind(
        "scaled", "q·k times the scale of the head, later keys included", signed=True, causal=False
    ),
    "scores": MatrixKind(
        "scores", "scaled and masked: what the softmax is taken of", signed=True
    ),
}  # fmt: skip


def checked_matrix(name: str) -> str:
    """`name`, if it is one of `MATRICES`.

    Raises:
        ValueError: it is not; names the nearest.
    """
    if name not in MATRICES:
        raise ValueError(unknown("matrix", name, tuple(MATRICES)))
    return name
