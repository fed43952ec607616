"""The documentation: its code runs, its links lead somewhere, and nothing that exists is left out."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WRITTEN = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("path", [p for p in WRITTEN if "```python" in p.read_text()], ids=lambda p: p.name)
def test_code_runs(path, tmp_path, monkeypatch, capsys):
    """The blocks of a page, one after the other, as a reader would type them."""
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), path.name, "exec"), {"__name__": path.stem})
