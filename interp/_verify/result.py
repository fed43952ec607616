"""What a verification found: one row per check, shown as a table, a frame or plain data.

Imports no torch, so that the command can be asked for help without waiting for it.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from interp.command import console, finite

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

Result = Literal["pass", "FAIL", "not run"]
_TRAINED = "verify(trained_model, model=HookedGPT2.from_pretrained(folder))"
# What a verification does not tell, by where the two sides came from.
SCOPES = {
    "one source": "Config, weights and tokenizer are those of SOURCE on both sides: this checks "
    "how they are read and computed, not that they are the ones you trained. To check a saved "
    f"model against the one in memory: {_TRAINED}.",
    "lent": "The reference has the config and weights of the model handed over: this checks how "
    "they are computed, not that they are the ones you trained. To check a saved model against "
    f"the one in memory: {_TRAINED}.",
    "two sources": "The model handed over was checked against SOURCE: weights number by number, "
    "config and tokenizer by what comes of them. What SOURCE itself has wrong is not seen.",
}
_COLOURS = {"pass": "green", "FAIL": "bold red", "not run": "dim"}


@dataclass(frozen=True)
class Check:
    """One check and what came of it.

    Attributes:
        name: what was checked.
        result: `"pass"`, `"FAIL"`, or `"not run"` with the reason in `note`.
        error: the worst that was measured; None where nothing was (not run, or an exception).
        tolerance: how large `error` may be; of a check that is `at_least`, what it must exceed.
        at_least: whether large is good (the effect of an edit).
        note: what was compared, where the worst was, why it was not run, or what was raised.
    """

    name: str
    result: Result
    error: float | None = None
    tolerance: float | None = None
    at_least: bool = False
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain data. A number that is not finite is None."""
        return {
            "check": self.name,
            "result": self.result,
            "error": finite(self.error),
            "tolerance": finite(self.tolerance),
            "at_least": self.at_least,
            "note": self.note,
        }


@dataclass(frozen=True, repr=False)
class Verification:
    """All checks of one checkpoint, device and dtype.

    Attributes:
        model: its name.
        reference: what it was compared with.
        device, dtype: where and in what both were computed.
        rows: the checks, in the order in which they are described in `interp.verify`.
        versions: of Python and the packages that matter.
        scope: in a sentence, what the two sides have in common, which is therefore not checked.
    """

    model: str
    reference: str
    device: str
    dtype: str
    rows: tuple[Check, ...]
    versions: Mapping[str, str]
    scope: str

    @property
    def passed(self) -> bool:
        """Whether no check failed. Those that were not run are in `not_run`."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(row for row in self.rows if row.result == "FAIL")

    @property
    def not_run(self) -> tuple[Check, ...]:
        """The checks that could not be run, each with its reason."""
        return tuple(row for row in self.rows if row.result == "not run")

    def __getitem__(self, name: str) -> Check:
        """A check by name.

        Raises:
            KeyError: there is none of this name.
        """
        from hooks.names import nearest

        names = [row.name for row in self.rows]
        if name not in names:
            raise KeyError(f"there is no check {name!r}.{nearest(name, names)}")
        return self.rows[names.index(name)]

    def __repr__(self) -> str:
        lines = [f"Verification({self.summary()})"]
        lines += [f"  {row.result}: {row.name} ({row.note})" for row in (*self.failed,)]
        lines.append(f"  {self.scope}")
        return "\n".join(lines)

    def summary(self) -> str:
        """One line: what was checked, and how many checks passed, failed and were not run."""
        passed = len(self.rows) - len(self.failed) - len(self.not_run)
        return (
            f"{self.model}, {self.dtype} on {self.device}: {passed} checks passed, "
            f"{len(self.failed)} failed, {len(self.not_run)} not run"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per check: `check`, `result`, `error`, `tolerance`, `at_least`, `note`."""
        import pandas as pd

        rows = [
            row.to_dict() | {"error": row.error, "tolerance": row.tolerance} for row in self.rows
        ]
        return pd.DataFrame(rows).astype({"error": float, "tolerance": float})

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return {
            "model": self.model,
            "reference": self.reference,
            "device": self.device,
            "dtype": self.dtype,
            "passed": self.passed,
            "scope": self.scope,
            "checks": [row.to_dict() for row in self.rows],
            "versions": dict(self.versions),
        }

    def table(self) -> None:
        """Print the table: check, worst error, tolerance, pass or fail; and what it cannot tell."""
        self.show(console())

    def show(self, to: Console) -> None:
        """Print the table there, the summary, and `scope`."""
        to.print(_table(self))
        to.print()
        to.print(self.summary(), style="bold red" if self.failed else "bold", soft_wrap=True)
        to.print(self.scope, style="dim", soft_wrap=True, highlight=False, markup=False)


def versions() -> dict[str, str]:
    """Versions of Python and the packages that a verification depends on."""
    found = {"python": platform.python_version()}
    for name in ("hooked-gpt2", "torch", "transformers", "tokenizers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed (run from its source tree)"
    return found


def _table(found: Verification) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("check")
    table.add_column("worst error", justify="right", no_wrap=True)
    table.add_column("tolerance", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what was compared, or why not", overflow="fold")
    for row in found.rows:
        sign = "> " if row.at_least else ""
        table.add_row(
            Text(row.name),
            Text(_number(row.error)),
            Text("" if row.tolerance is None else sign + _number(row.tolerance)),
            Text(row.result, style=_COLOURS[row.result]),
            Text(row.note, style="dim"),
        )
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if not math.isfinite(value) or 0.01 <= abs(value) < 1000 or value == 0:
        return f"{value:.3g}"
    return f"{value:.1e}"
