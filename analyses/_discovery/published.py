"""Circuits that were published, as data.

IOI: Wang et al., "Interpretability in the Wild: a Circuit for Indirect Object Identification in
GPT-2 small" (2022), arXiv 2211.00593, section 3 and figure 2 (names of heads by role; each acts at
the position that the figure puts it at). Embeddings and MLPs are not part of the paper's search:
they are always kept.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from analyses._discovery.names import Shape
from analyses.tasks import unknown

if TYPE_CHECKING:
    from analyses._discovery.circuit import NodeCircuit

_IOI = {
    "name mover": ("END", "9.9 10.0 9.6"),
    "negative name mover": ("END", "10.7 11.10"),
    "backup name mover": ("END", "9.0 9.7 10.1 10.2 10.6 10.10 11.2 11.9"),
    "S-inhibition": ("END", "7.3 7.9 8.6 8.10"),
    "induction": ("S2", "5.5 5.8 5.9 6.9"),
    "duplicate token": ("S2", "0.1 0.10 3.0"),
    "previous token": ("S1+1", "2.2 4.11"),
}
PUBLISHED = {"ioi": (Shape(12, 12), _IOI, "Wang et al. 2022, arXiv 2211.00593")}


def published_circuit(name: str) -> "NodeCircuit":
    """A published circuit of GPT-2 small, by the task that it is for: "ioi".

    Each head acts at the position where the paper has it, by the names of `analyses.tasks`' prompts
    (`circuit.anywhere()` for all positions); the input and all MLPs are kept.

    Raises:
        ValueError: there is none of that name.
    """
    from analyses._discovery.circuit import NodeCircuit

    if name not in PUBLISHED:
        raise ValueError(unknown("published circuit", str(name), tuple(PUBLISHED)))
    shape, roles, source = PUBLISHED[name]
    named = {
        role: [f"{head}@{pos}" for head in heads.split()] for role, (pos, heads) in roles.items()
    }
    found = NodeCircuit.of(shape, named, kept=("input", "mlps"), method=source)
    return replace(found, model="gpt2")
