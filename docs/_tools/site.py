"""What MkDocs is told beyond mkdocs.yml: the pages that are made from the package itself.

- `index.md` is the README; CHANGELOG.md and CONTRIBUTING.md are themselves.
- `analyses/NAME.md`: one page for each row of the table in `analyses/__init__.py`, from docstrings and
  from the options of its command. A command without a row, or a row without a command, is an error.
- `notebooks/NAME.md`: one page for each notebook, with its stored pictures.
- `reference/NAME.md`: the public modules that are no analyses.
- `source/PATH.md`: a file of the repository that some page links to.

Links are those that work where the repository is browsed; here they are turned to where a page is.
"""

from __future__ import annotations

import ast
import importlib
import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# Shown under "Project" and as the front page.
AS_THEY_ARE = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
REFERENCE = {
    "interp": ("interp", "interp.tokenizer", "interp.weights", "interp.sources", "interp.processing"),
    "hooks": ("hooks", "hooks.names", "hooks.timeline"),
}
log = get_plugin_logger("site")


# ------------------------------------------------------------------ what there is


@cache
def analyses() -> dict[str, str]:
    """Question by name of the analysis: the table in the docstring of the package."""
    text = ast.get_docstring(ast.parse((ROOT / "analyses" / "__init__.py").read_text())) or ""
    return dict(re.findall(r"^\| `analyses\.(\w+)` \| (.+?) \|$", text, re.M))


def commands() -> set[str]:
    """Public modules of the package that can be run: those with a `main`."""
    package = ROOT / "analyses"
    files = {path.stem: path for path in package.glob("*.py") if path.stem[0] != "_"}
    files |= {path.parent.name: path for path in package.glob("[!_]*/__main__.py")}
    return {
        name
        for name, path in files.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(path.read_text()).body)
    }
