"""What MkDocs is told beyond mkdocs.yml: the pages that are made from the package itself.

- `index.md` is the README; CHANGELOG.md, CONTRIBUTING.md and LICENSE stand beside it.
- `analyses/NAME.md`: a page for each row of the table in `analyses/__init__.py`, from docstrings
  and the options of its command. A command without a row, or a row without one, is an error.
- `notebooks/NAME.md`: a page for each notebook, with the pictures stored in it.
- `reference/MODULE.md`: the public modules that are no analyses.
- `source/PATH.md`: any other file of the repository that a page links to.

Links are written as they work where the repository is browsed; here they are turned to the pages.
"""

from __future__ import annotations

import ast
import importlib
import json
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# Pages that are files of the repository elsewhere.
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "notebooks/README.md": "notebooks/index.md",
}
# Modules that users import from although the package does not export from them.
MORE_MODULES = {
    "hooks": ("timeline",),
    "interp": ("familiar", "model", "processing", "sources", "verify", "weights"),
}
# Parts of the commands, of no use to who imports.
PLUMBING = ("cli", "pair_options")
# A picture in two versions: code-hosting sites follow the reader's system, the site its own button.
PICTURE = re.compile(
    r"<picture>\s*<source media=\"\(prefers-color-scheme: dark\)\" srcset=\"(?P<dark>[^\"]+)\""
    r"\s*/?>\s*<img src=\"(?P<light>[^\"]+)\" alt=\"(?P<alt>[^\"]*)\"[^>]*>\s*</picture>"
)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=(?:#[^)\s]*)?\))|(?<=(?:src|set)=\")([^\"]+)(?=\")")
# Where the table of hook points goes, in docs/hook_points.md.
POINTS = "<!-- the table of points -->"
log = get_plugin_logger("site")


# ------------------------------------------------------------------ what there is


@cache
def analyses() -> dict[str, str]:
    """Question by name of the analysis: the table in the docstring of the package."""
    text = ast.get_docstring(_parsed("analyses/__init__.py")) or ""
    return dict(re.findall(r"^\| `analyses\.(\w+)` \| (.+?) \|$", text, re.M))


def commands() -> set[str]:
    """Public modules of `analyses` that can be run: those with a `main`."""
    found = {path.stem for path in (ROOT / "analyses").glob("[!_]*.py") if _has_main(path)}
    return found | {path.parent.name for path in (ROOT / "analyses").glob("[!_]*/__main__.py")}


def modules(package: str) -> list[str]:
    """The modules of a package that get a page of reference."""
    if package == "analyses":
        found = {path.stem for path in (ROOT / package).glob("[!_]*.py")}
        return sorted(found - commands() - {*PLUMBING})
    exporting = {
        node.module.removeprefix(f"{package}.")
        for node in ast.walk(_parsed(f"{package}/__init__.py"))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package)
    }
    return sorted({*exporting, *(m for m in MORE_MODULES[package] if _path(package, m).exists())})


def notebooks() -> list[str]:
    """Names of the notebooks, in order."""
    return sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def members(module: str) -> list[str]:
    """What a module offers: what it is named after, its own in order, what it passes on."""
    path = ROOT / module.replace(".", "/")
    body = _parsed(file := path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).body
    lists = [
        ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign) and _assigned(node) == "__all__"
    ]
    if not lists and "__all__ =" in file.read_text():
        raise ValueError(f"{module}: __all__ is not at the top level, where readers find it")
    own = [name for node in body if (name := getattr(node, "name", None) or _assigned(node))]
    exported = lists[0] if lists else [name for name in own if name[0] != "_"]
    order = [module.rpartition(".")[2], *own, *exported]
    found = [name for name in dict.fromkeys(order) if name in exported and name != "main"]
    return sorted(found, key=str.isupper)  # constants last


def _assigned(node: ast.stmt) -> str | None:
    """The name that a statement gives a value."""
    given = node.targets[0] if isinstance(node, ast.Assign) else None
    if isinstance(node, ast.AnnAssign):
        given = node.target
    return given.id if isinstance(given, ast.Name) else None


def _path(package: str, module: str) -> Path:
    return ROOT / package / f"{module}.py"


def _parsed(path: str | Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def _has_main(path: Path) -> bool:
    return any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in _parsed(path).body)


# ------------------------------------------------------------------ pages


def analysis_page(name: str) -> str:
    """The page of an analysis: docstrings, and the options of its command."""
    package = (ROOT / "analyses" / name).is_dir()
    options = command(f"analyses.{name}", f"analyses.{name}.__main__" if package else None)
    return f"{_documented(f'analyses.{name}', _title(name))}\n{options}"


def reference_page(module: str) -> str:
    """The page of a module."""
    has_main = _has_main(ROOT / f"{module.replace('.', '/')}.py")
    return f"{_documented(module, module)}\n{command(module) if has_main else ''}"


def _documented(module: str, title: str) -> str:
    return (
        f"---\ntitle: {title}\n---\n\n::: {module}\n"
        f"    options:\n      heading: {title}\n      heading_level: 1\n"
        f"      members: {json.dumps(members(module))}\n"
    )


def command(name: str, module: str | None = None) -> str:
    """Usage and options of `python -m NAME`, as its `--help` has them."""
    import typer

    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(module or name).main)
    found = typer.main.get_command(app)
    rows, usage = [], [f"python -m {name}", "[OPTIONS]"]
    for parameter in found.params:
        about = getattr(parameter, "help", None) or ""
        if parameter.param_type_name == "argument":
            usage.append(_metavar(parameter) + ("..." if parameter.nargs == -1 else ""))
            rows.append((usage[-1], about, ""))
        else:
            names = ", ".join(parameter.opts + parameter.secondary_opts)
            value = "" if getattr(parameter, "is_flag", False) else f" {_metavar(parameter)}"
            rows.append((names + value, about, _shown(parameter.default)))
    table = [f"| `{_cell(a)}` | {_cell(b)} | {f'`{_cell(c)}`' if c else ''} |" for a, b, c in rows]
    return "\n".join(
        [
            *("## The command", "", "```", " ".join(usage), "```", ""),
            *("| option | | unless said |", "|---|---|---|", *table, ""),
        ]
    )


def _metavar(parameter: Any) -> str:
    return parameter.metavar or parameter.type.name.upper()


def _shown(default: Any) -> str:
    if default is None or callable(default) or default == () or default == []:
        return ""
    return (
        {True: "yes", False: "no"}.get(default, str(default))
        if isinstance(default, bool)
        else str(default)
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _title(name: str) -> str:
    words = name.replace("_", " ")
    start = next(at for at, letter in enumerate(words) if letter.isalpha())
    return words[:start] + words[start].upper() + words[start + 1 :]


def index_of_analyses() -> str:
    """The table of analyses, with links."""
    rows = [f"| [{_title(n)}]({n}.md) | {q} | `{_call(n)}` |" for n, q in analyses().items()]
    return "\n".join(
        [
            "# Analyses",
            "",
            "Each is a function, a result with `.to_frame() .plot() .to_html(path)`, a command.",
            "",
            "| | question | command |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _call(name: str) -> str:
    return f"python -m analyses.{name} --help"


def notebook_page(name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name."""
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter()
    priority = ["image/png", "text/html", "text/markdown", "text/plain"]
    exporter.config.NbConvertBase.display_data_priority = priority
    files = f"{name}_files"
    text, resources = exporter.from_filename(
        str(ROOT / "notebooks" / f"{name}.ipynb"), {"output_files_dir": files, "unique_key": name}
    )
    note = f"*This page is the notebook `notebooks/{name}.ipynb`, with what it printed and drew.*"
    return f"{text}\n\n---\n\n{note}\n", resources["outputs"]


def table_of_points() -> str:
    """Every hook point, its axes, and their lengths in the bundled model."""
    from interp import HookedGPT2
    from interp.points import axis_sizes, hook_points

    model = HookedGPT2.from_pretrained("mini")
    sizes = {**axis_sizes(model.cfg), "one": 1}
    rows = ["| name | axes | in `mini` | computed |", "|---|---|---|---|"]
    for name, point in hook_points(1).items():
        axes = " ".join("1" if axis == "one" else axis for axis in point.axes)
        lengths = " ".join(str(sizes.get(axis, axis)) for axis in point.axes)
        when = "on request" if point.on_request else "always"
        rows.append(
            f"| `{name.replace('blocks.0.', 'blocks.{l}.')}` | {axes} | {lengths} | {when} |"
        )
    return "\n".join(rows)


def source_page(path: str) -> str:
    """A file of the repository, to read."""
    text = (ROOT / path).read_text()
    fence = "`" * (3 + max(map(len, re.findall(r"`{3,}", text)), default=0))
    suffix = Path(path).suffix.lstrip(".")
    kind = {"py": "python", "toml": "toml", "yml": "yaml", "json": "json"}.get(suffix, "text")
    about = f"---\ntitle: {path}\nsearch:\n  exclude: true\n---\n\n# `{path}`\n\n"
    return f"{about}{fence}{kind}\n{text}\n{fence}\n"


# ------------------------------------------------------------------ links


def repository_path(page: str) -> str | None:
    """The file of the repository that a page shows; None for one that is generated."""
    for path, shown in ELSEWHERE.items():
        if page == shown:
            return path
    if page.startswith("notebooks/"):
        return page.removesuffix(".md") + ".ipynb"
    return None if page.startswith(("analyses/", "reference/", "source/")) else f"docs/{page}"


def site_path(path: str) -> str | None:
    """What of the site shows a file of the repository; None if there is no such file."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in ("notebooks", "analyses"):
        return f"{path}/index.md"
    name = Path(path).stem
    if path == f"notebooks/{name}.ipynb" and name in notebooks():
        return f"notebooks/{name}.md"
    if path == f"analyses/{name}.py" and name in analyses():
        return f"analyses/{name}.md"
    return f"source/{path}.md" if (ROOT / path).is_file() else None


def targets(text: str, page: str) -> Iterator[tuple[re.Match, str]]:
    """Links of a page to files of the repository: the match, and the page of the site."""
    home = repository_path(page)
    if home is None:
        return
    for match in LINK.finditer(text):
        if "://" in match[0]:
            continue
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), match[0]))
        shown = site_path(path)
        if shown is not None:
            yield match, shown


def turned(text: str, page: str) -> str:
    """The text with links to files of the repository turned to pages of the site."""
    done, parts = 0, []
    for match, shown in targets(text, page):
        parts += [
            text[done : match.start()],
            posixpath.relpath(shown, posixpath.dirname(page) or "."),
        ]
        done = match.end()
    return "".join([*parts, text[done:]])


# ------------------------------------------------------------------ MkDocs' events


def on_config(config: MkDocsConfig) -> None:
    """Put the generated pages into the navigation."""
    if missing := commands() - {*analyses()}:
        log.warning(f"commands without a row in analyses/__init__.py: {sorted(missing)}")
    if missing := {*analyses()} - commands():
        log.warning(f"rows of analyses/__init__.py without a command: {sorted(missing)}")
    assert config.nav is not None
    for entry in config.nav:
        if "Analyses" in entry:
            entry["Analyses"] = ["analyses/index.md", *(f"analyses/{n}.md" for n in analyses())]
        if "Notebooks" in entry:
            entry["Notebooks"] = [
                "notebooks/index.md",
                *({_title(n.replace("_", ". ", 1)): f"notebooks/{n}.md"} for n in notebooks()),
            ]
        if "Reference" in entry:
            entry["Reference"] = [
                {package: [f"reference/{package}.{name}.md" for name in modules(package)]}
                for package in ("interp", "hooks", "analyses")
            ]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the generated pages, and every file of the repository that a page links to."""
    texts: dict[str, str | bytes] = {
        shown: (ROOT / path).read_text() for path, shown in ELSEWHERE.items()
    }
    texts["analyses/index.md"] = index_of_analyses()
    texts |= {f"analyses/{name}.md": analysis_page(name) for name in analyses()}
    for package in ("interp", "hooks", "analyses"):
        for name in modules(package):
            texts[f"reference/{package}.{name}.md"] = reference_page(f"{package}.{name}")
    for name in notebooks():
        texts[f"notebooks/{name}.md"], pictures = notebook_page(name)
        texts |= {f"notebooks/{path}": data for path, data in pictures.items()}
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for page, text in [*texts.items(), *written.items()]:
        for _, shown in targets(text, page) if isinstance(text, str) else ():
            if shown.startswith("source/"):
                texts[shown] = source_page(shown.removeprefix("source/").removesuffix(".md"))
    for path, content in texts.items():
        file = File.generated(config, path, content=content)
        if path.startswith("source/"):
            file.inclusion = file.inclusion.NOT_IN_NAV
        files.append(file)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page, and put in the table of points."""
    text = PICTURE.sub(
        r"![\g<alt>](\g<light>#only-light)![\g<alt>](\g<dark>#only-dark)",
        turned(markdown, page.file.src_uri),
    )
    return text.replace(POINTS, table_of_points()) if POINTS in text else text


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Tell of anything that a page would load from elsewhere."""
    for address in elsewhere(output):
        log.warning(f"{page.file.src_uri} would load {address}")
    return output


def elsewhere(html: str) -> list[str]:
    """Addresses of other servers that a page loads from by itself."""
    return re.findall(
        r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href|srcset)=\"?(https?:[^\"\s>]+)", html
    )
