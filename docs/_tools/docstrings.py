"""What Griffe is told: several names of one line, `a, b: what both are`, stay several names."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Module, Object


class NameLists(Extension):
    """Mends how lists of names are read: Griffe takes all but the first name for a type."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Go through all docstrings of a package that was loaded."""
        self._mend(pkg)

    def _mend(self, item: Object) -> None:
        if item.docstring is not None:
            for section in item.docstring.parsed:
                for one in section.value if isinstance(section.value, list) else ():
                    if getattr(one, "name", None) and one.name.endswith(","):
                        one.name, one.annotation = f"{one.name} {one.annotation}", None
        for member in item.members.values():
            if not member.is_alias:
                self._mend(member)  # type: ignore[arg-type]
