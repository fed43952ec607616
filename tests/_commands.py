"""Commands of analyses, run in a process of their own."""

import subprocess
import sys
from pathlib import Path


def help_without_torch(module: str) -> str:
    """What `python -m analyses.x --help` prints; fails where torch is imported for it."""
    code = (
        f"import runpy, sys\nsys.argv = [{module!r}, '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout
