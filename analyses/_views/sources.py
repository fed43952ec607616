"""Results of several prompts on one page: their table, and the prompts that few will read."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from analyses import cli, report

if TYPE_CHECKING:
    import pandas as pd

# Pages write out no more prompts than this.
_MOST_FOLDED = 200


def add_rest(page: report.Page, first: int, n: int, what: str, add: Callable[[int], None]) -> None:
    """Put the prompts behind the first few on a page, folded away.

    Args:
        first: how many are there already.
        n: how many there are in all.
        what: what they are called.
        add: puts the one of a number on the page.
    """
    if n <= first:
        return
    with page.folded(f"And {n - first} more {what}"):
        for index in range(first, min(n, _MOST_FOLDED)):
            add(index)
        if n > _MOST_FOLDED:
            page.text(f"And {n - _MOST_FOLDED} more, which --json and to_dict() have.")


@runtime_checkable
class _Tabular(Protocol):
    def to_frame(self) -> "pd.DataFrame": ...


def table_of(named: Sequence[tuple[str, _Tabular]]) -> "pd.DataFrame":
    """The table that the command writes for named results: with a column `source`, unless there is
    only one, without a name."""
    if len(named) == 1 and not named[0][0]:
        return named[0][1].to_frame()
    return cli.by_source((name, result.to_frame()) for name, result in named)
