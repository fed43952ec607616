"""The documentation: its code runs, its links lead somewhere, and nothing that exists is left out.

`make docs` does the rest: it builds the site with warnings as errors.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs._tools import site
from interp.points import hook_points

ROOT = Path(__file__).parents[1]
WRITTEN = sorted(
    path for folder in (".", "docs", "notebooks") for path in ROOT.glob(f"{folder}/*.md")
)
each = pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
CODE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.S | re.M)


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without importing what it names."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda *_: None)


@pytest.fixture(scope="module")
def nav() -> list[Any]:
    return yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]


def pages(entry: Any) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in pages(part)]


# ------------------------------------------------------------------ code


@pytest.mark.parametrize(
    "path", [p for p in WRITTEN if "```python" in p.read_text()], ids=lambda path: path.name
)
def test_code_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, one after the other, as a reader would type them."""
    blocks = [code for _, kind, code in CODE.findall(path.read_text()) if kind == "python"]
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), path.name, "exec"), {"__name__": path.stem})


def test_commands_exist() -> None:
    """Every `python -m x.y` that is written down is a module that can be run."""
    said = {
        name
        for path in WRITTEN
        for name in re.findall(r"python -m ((?:\w+\.)+\w+)", path.read_text())
    }
    assert len(said) > 10
    for name in said:
        path = ROOT / name.replace(".", "/")
        files = [path.with_suffix(".py"), path / "__main__.py"]
        assert any(f.exists() and "__main__" in f"{f}{f.read_text()}" for f in files), name


def test_targets_of_make_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for path in WRITTEN:
        for target in re.findall(r"(?:`|^)make ([a-z]+)", path.read_text(), re.M):
            assert target in targets, (path.name, target)


# ------------------------------------------------------------------ links


def anchors(text: str) -> set[str]:
    """What headings are called in links, on code-hosting sites as in the site."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each
def test_links_lead_somewhere(path: Path) -> None:
    text = CODE.sub("", path.read_text())
    for match in re.finditer(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text):
        target, _, anchor = (match[1] or match[2]).partition("#")
        if "://" in target:
            continue
        there = (path.parent / target).resolve() if target else path
        assert there.exists() and ROOT in there.parents, target
        if anchor:
            assert anchor in anchors(there.read_text()), f"{target}#{anchor}"


def test_links_are_turned_to_pages() -> None:
    """As they lie in the repository, so they lie in the site."""
    text = "[a](docs/sweeps.md#edits) [b](analyses/heads.py) [c](tests/test_docs.py) [d](LICENSE)"
    assert site.turned(text, "index.md") == (
        "[a](sweeps.md#edits) [b](analyses/heads.md) [c](source/tests/test_docs.py.md) "
        "[d](source/LICENSE.md)"
    )
    assert (
        site.turned("[a](../README.md) [b](speed.md)", "guide.md") == "[a](index.md) [b](speed.md)"
    )
    assert (
        site.turned('<img src="docs/pictures/x.png">', "index.md") == '<img src="pictures/x.png">'
    )
    left = "[a](https://example.org/README.md) [b](nothing.md) cache['x'](y)"
    assert site.turned(left, "index.md") == left


# ------------------------------------------------------------------ nothing left out


def test_every_page_is_in_the_navigation(nav: list[Any]) -> None:
    written = {path.name for path in (ROOT / "docs").glob("*.md")} | {*site.ELSEWHERE.values()}
    assert sorted(pages(nav)) == sorted(written - {"notebooks/index.md"})  # that is added there


def test_every_analysis_has_a_page() -> None:
    assert site.commands() == {*site.analyses()} and len(site.analyses()) >= 12
    for name in site.analyses():
        page = site.analysis_page(name)
        assert (
            f"::: analyses.{name}\n" in page and "## The command" in page and "--help" not in page
        )
        assert name in page.split("members:")[1] or name == "tasks"


def test_every_public_module_has_a_page() -> None:
    shown = {*site.analyses(), *site.modules("analyses"), *site.PLUMBING}
    assert {path.stem for path in (ROOT / "analyses").glob("[!_]*.py")} <= shown
    assert {"hooked", "config", "tokenizer", "verify"} <= {*site.modules("interp")}
    assert {"cache", "edits", "names", "point"} <= {*site.modules("hooks")}
    for package, more in site.MORE_MODULES.items():
        assert all((ROOT / package / f"{name}.py").exists() for name in more)


def test_every_hook_point_is_explained() -> None:
    text = (ROOT / "docs" / "hook_points.md").read_text()
    told = re.findall(r"`(?:blocks\.\{l\}\.)?((?:\w+\.)?hook_\w+)`", text.split("\n- ")[0])
    for name in hook_points(1):
        short = name.removeprefix("blocks.0.")
        assert short in told or short.rpartition(".")[2] in told, name
    table = site.table_of_points().splitlines()
    assert len(table) == 2 + len(hook_points(1))
    assert "| `blocks.{l}.attn.hook_z` | batch pos head d_head | batch pos 6 32 | always |" in table
    assert site.POINTS in text


# ------------------------------------------------------------------ small and true


def test_sizes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 40
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert picture.stat().st_size < 200_000, picture.name


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0" and citation["title"].startswith(project["name"])
    for key in ("version", "license"):
        assert citation[key] == project[key]
    assert [author["name"] for author in citation["authors"]] == [
        a["name"] for a in project["authors"]
    ]


def test_nothing_is_loaded_from_elsewhere() -> None:
    """What the site loads beyond its theme is in the repository; the build looks at all pages."""
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    assert config["theme"]["font"] is False and not config["use_directory_urls"]
    for path in [*config["extra"]["polyfills"], *config["extra_css"]]:
        assert (ROOT / "docs" / path).is_file()
    assert site.elsewhere('<script src="https://a.org/x.js">') == ["https://a.org/x.js"]
    assert site.elsewhere("<link rel=icon href=https://a.org/x.png>") == ["https://a.org/x.png"]
    assert site.elsewhere('<a href="https://a.org"> <img src="x.png">') == []
