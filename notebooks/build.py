"""Runs notebooks in place and keeps what they print and draw, so that it can be read anywhere.

    python -m notebooks.build                 # all of them
    python -m notebooks.build 2_logit_lens    # some

1. Run it from top to bottom in a fresh kernel, offline, on the bundled model (`notebooks.run`).
2. Take out what changes from run to run (`notebooks.clean`): a second build on the same machine
   gives the same bytes.
3. Put a picture beside each interactive figure and in place of each page (`notebooks.pictures`).
4. Check it, and write it back. What fails is not written.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

from notebooks.browser import BrowserMissing
from notebooks.clean import TERMINAL_COLOURS, clean, problems
from notebooks.pictures import add_pictures
from notebooks.run import run

FOLDER = Path(__file__).parent


class BuildError(Exception):
    """Why a notebook could not be built."""


def read(path: Path) -> NotebookNode:
    """A notebook from disk.

    Raises:
        BuildError: it is not there, or no notebook.
    """
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise BuildError(f"{path.name}: {error}") from error


def build(path: Path) -> None:
    """Run a notebook and write it back with its outputs and their pictures.

    Raises:
        BuildError: it cannot be read, a cell fails, or something is wrong with what came out; the
            file is as it was then.
        BrowserMissing: no browser to take pictures with.
    """
    notebook = read(path)
    for cell in notebook.cells:  # before anything is run: ids that are missing are a warning
        cell.setdefault("id", "new")
    with tempfile.TemporaryDirectory(prefix="hooked-notebook-") as folder:
        try:
            run(notebook, Path(folder))
        except (CellExecutionError, CellTimeoutError) as error:
            raise BuildError(f"{path.name}: {TERMINAL_COLOURS.sub('', str(error))}") from error
    clean(notebook)
    add_pictures(notebook)
    beside = path.with_name(f".{path.name}.new")
    try:
        with open(beside, "w", encoding="utf-8", newline="\n") as file:
            nbformat.write(notebook, file)
        if wrong := problems(beside, notebook):
            raise BuildError("\n".join(f"{path.name}: {line}" for line in wrong))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def paths(names: Sequence[str], folder: Path = FOLDER) -> list[Path]:
    """The notebooks of these names, with or without ".ipynb"; of none: all.

    Raises:
        BuildError: no such notebook.
    """
    known = {path.stem: path for path in sorted(folder.glob("[!.]*.ipynb"))}
    stems = [Path(name).name.removesuffix(".ipynb") for name in names]
    if unknown := [stem for stem in stems if stem not in known]:
        raise BuildError(f"no notebook {unknown[0]!r} in {folder.name}/: it has {', '.join(known)}")
    return [known[stem] for stem in stems] or list(known.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m notebooks.build", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("name", nargs="*", help="such as 2_logit_lens; left out: all notebooks")
    try:
        for path in paths(parser.parse_args(arguments).name):
            began = time.monotonic()
            build(path)
            took, size = time.monotonic() - began, path.stat().st_size
            print(f"{path.name}: {took:.0f} s, {size / 1000:.0f} kB", flush=True)
    except (BuildError, BrowserMissing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
