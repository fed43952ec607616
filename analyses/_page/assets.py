"""The style and the scripts that pages carry, each inlined once however many parts need it."""

import base64
import hashlib
from functools import cache
from importlib import resources, util
from pathlib import Path

from analyses._page.text import script_json
from analyses._page.theme import THEMES, variables

# What parts of a page may need, in the order in which it stands there.
SCRIPTS = ("plotly", "circuitsvis", "themes", "figures", "views", "save", "heads", "data")


@cache
def asset(name: str) -> str:
    """The text of a file in this folder."""
    return _read_as_browser(resources.files("analyses._page").joinpath(name).read_text("utf-8"))


@cache
def script(name: str) -> str:
    """One of `SCRIPTS`, `theme`, with which every page ends, or `frame`, for those in notebooks."""
    if name == "plotly":
        from plotly.offline import get_plotlyjs

        return _read_as_browser(get_plotlyjs())
    if name == "circuitsvis":
        return _circuitsvis()
    if name == "themes":
        return f"const THEMES = {script_json(THEMES)};"
    return asset(f"{name}.js")


def _circuitsvis() -> str:
    """The script of circuitsvis, from its wheel. Its Python functions may ask the network."""
    package = util.find_spec("circuitsvis")  # finds it without importing it
    if package is None or package.origin is None:
        raise ModuleNotFoundError("this view needs circuitsvis: pip install circuitsvis")
    bundle = Path(package.origin).parent / "dist" / "cdn" / "iife.js"
    source = _read_as_browser(bundle.read_text("utf-8"))
    # It holds "</script>" in a string, which would end the script; the last line names a file
    # that debuggers would look for.
    source = source.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return source.removesuffix("\n").removesuffix("//# sourceMappingURL=iife.js.map")


def style() -> str:
    """The style sheet of a page."""
    return variables() + asset("style.css")


def source_hash(text: str) -> str:
    """How a content security policy names an inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read_as_browser(text: str) -> str:
    # HTML parsers read \r\n as \n; the hash must be of what they see.
    return text.replace("\r\n", "\n").replace("\r", "\n")
