"""Names of edges and nodes: from text to values, or a clear error."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from analyses._edges import Part, receivers, senders, senders_before
from analyses.tasks import unknown
from interp import HookedGPT2, HookedGPT2Config

_ARROW = re.compile(r"\s*(?:→|->)\s*")


class Shape(NamedTuple):
    """What a circuit needs to know of its model."""

    n_layers: int
    n_heads: int

    @classmethod
    def of(cls, model: "HookedGPT2 | HookedGPT2Config | Shape") -> "Shape":
        """The shape of a model, or of its config."""
        if isinstance(model, Shape):
            return model
        cfg = model.cfg if isinstance(model, HookedGPT2) else model
        if not isinstance(cfg, HookedGPT2Config):
            raise TypeError(
                f"a circuit is of a HookedGPT2, its config or a Shape, not {type(model).__name__}"
            )
        return cls(cfg.n_layers, cfg.n_heads)

    def __str__(self) -> str:
        return f"{self.n_layers} layers of {self.n_heads} heads"

    @property
    def senders(self) -> tuple[Part, ...]:
        """All that writes to the residual stream, in order."""
        return senders(*self)

    @property
    def receivers(self) -> tuple[Part, ...]:
        """All that reads from it, in order."""
        return receivers(*self)

    def sender_index(self, part: Part) -> int:
        """The place of a sender among all."""
        if part.layer is None:
            return 0
        head = self.n_heads if part.kind == "mlp" else part.head or 0
        return 1 + part.layer * (self.n_heads + 1) + head

    def receiver_index(self, part: Part) -> int:
        """The place of a receiver among all."""
        per_layer = 3 * self.n_heads + 1
        if part.layer is None:
            return self.n_layers * per_layer
        first = part.layer * per_layer
        if part.kind == "mlp":
            return first + per_layer - 1
        return first + "qkv".index(part.kind) * self.n_heads + (part.head or 0)

    def before(self, receiver: Part) -> int:
        """How many senders come before a receiver."""
        return senders_before(receiver, *self)


class Edge(NamedTuple):
    """From what a sender writes to what a receiver reads.

    Attributes:
        sender: "input", a head or an MLP.
        receiver: the queries, keys or values of a head, an MLP, or "logits".
    """

    sender: Part
    receiver: Part

    def __str__(self) -> str:
        return f"{self.sender} → {self.receiver}"

    @property
    def reader(self) -> Part | None:
        """The sender that the receiver belongs to; None for the logits."""
        return reader_of(self.receiver)


class Node(NamedTuple):
    """A sender, everywhere or at some position.

    Attributes:
        part: "input", a head or an MLP.
        pos: a position's number, or its name in the prompts (`PromptPair.positions`); None: all.
    """

    part: Part
    pos: int | str | None = None

    def __str__(self) -> str:
        return str(self.part) if self.pos is None else f"{self.part}@{self.pos}"


AnyEdge = Edge | str | tuple[str, str]
AnyNode = Node | Part | str


def reader_of(receiver: Part) -> Part | None:
    """The sender that a receiver belongs to; None for the logits."""
    if receiver.kind == "logits":
        return None
    if receiver.kind == "mlp":
        return receiver
    return Part("head", receiver.layer, receiver.head)


def parse_part(text: str, shape: Shape, what: str) -> Part:
    """The sender or receiver that a name stands for.

    Args:
        what: "sender" or "receiver".

    Raises:
        ValueError: there is none of that name; says which is nearest.
    """
    if not isinstance(text, str):
        raise TypeError(f"a {what} is a name such as '0.mlp', not {text!r}")
    by_name = _by_name(shape, what)
    name = text.strip()
    if name in by_name:
        return by_name[name]
    parts = tuple(by_name.values())
    known = (str(parts[0]), str(parts[1]), "...", str(parts[-1]))
    hint = unknown(what, name, tuple(by_name)).split(" (known:")[0]
    found = re.match(r"(\d+)\.(\d+)?", name)
    if found and int(found[1]) >= shape.n_layers:
        hint = f"unknown {what} {name!r}: layer {found[1]} is out of range"
    elif found and found[2] and int(found[2]) >= shape.n_heads:
        hint = f"unknown {what} {name!r}: head {found[2]} is out of range"
    elif what == "receiver" and re.fullmatch(r"\d+\.\d+", name):
        hint = f"unknown receiver {name!r}: say which of {name}.q, {name}.k and {name}.v it is"
    raise ValueError(f"{hint} (there are {shape}: {', '.join(known)})")


# A circuit has thousands of names, of one or two models.
@lru_cache(maxsize=16)
def _by_name(shape: Shape, what: str) -> Mapping[str, Part]:
    parts = shape.senders if what == "sender" else shape.receivers
    return {str(part): part for part in parts}


def parse_edge(given: AnyEdge, shape: Shape) -> Edge:
    """The edge that `("9.6", "logits")`, `"9.6 → logits"` or `"9.6->logits"` stands for.

    Raises:
        ValueError: an unknown name, or an edge that would run backwards.
        TypeError: something else.
    """
    ends: tuple[object, ...]
    if isinstance(given, str):
        ends = tuple(_ARROW.split(given.strip()))
    elif isinstance(given, tuple):
        ends = tuple(given)
    else:
        raise TypeError(f"an edge is ('9.6', 'logits') or '9.6 → logits', not {given!r}")
    if len(ends) != 2:
        raise ValueError(f"an edge is ('9.6', 'logits') or '9.6 → logits', not {given!r}")
    sender, receiver = (
        parse_part(str(end) if isinstance(end, str | Part) else end, shape, what)  # type: ignore[arg-type]
        for end, what in zip(ends, ("sender", "receiver"), strict=True)
    )
    if shape.sender_index(sender) >= shape.before(receiver):
        raise ValueError(
            f"there is no edge from {sender} to {receiver}: the receiver does not come after the "
            "sender"
        )
    return Edge(sender, receiver)


def parse_node(given: AnyNode, shape: Shape) -> Node:
    """The node that `"9.6"`, `"3.mlp"` or `"9.6@END"` (at one position) stands for.

    Raises:
        ValueError, TypeError: it stands for none.
    """
    if isinstance(given, Node):
        return Node(parse_part(str(given.part), shape, "sender"), given.pos)
    if isinstance(given, Part):
        return Node(parse_part(str(given), shape, "sender"))
    if not isinstance(given, str):
        raise TypeError(f"a node is a name such as '9.6' or '9.6@END', not {given!r}")
    name, at, pos = given.partition("@")
    if at and not pos.strip():
        raise ValueError(f"node {given!r} names no position after the @")
    place = pos.strip()
    number = int(place) if re.fullmatch(r"-?\d+", place) else place
    return Node(parse_part(name, shape, "sender"), number if at else None)


def listed(given: Iterable[object], what: str) -> list[object]:
    """Several names as a list.

    Raises:
        TypeError: a single name.
    """
    if isinstance(given, str | Part):
        raise TypeError(f"{what} are several names in a list, not the one {given!r}")
    return list(given)
