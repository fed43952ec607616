"""Results of several prompts in one table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from analyses import cli

if TYPE_CHECKING:
    import pandas as pd


@runtime_checkable
class _Tabular(Protocol):
    def to_frame(self) -> "pd.DataFrame": ...


def table_of(named: Sequence[tuple[str, _Tabular]]) -> "pd.DataFrame":
    """The table that the command writes for named results: with a column `source`, unless there is
    only one, without a name."""
    if len(named) == 1 and not named[0][0]:
        return named[0][1].to_frame()
    return cli.by_source((name, result.to_frame()) for name, result in named)
