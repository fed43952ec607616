"""The style and the scripts that pages carry, each inlined once however many parts need it."""

import base64
import hashlib
from functools import cache
from importlib import resources

from analyses._page.text import script_json
from analyses._page.theme import THEMES, variables

# What parts of a page may need, in the order in which it stands there.
SCRIPTS = ("plotly", "themes", "figures", "heads")


@cache
def asset(name: str) -> str:
    """The text of a file in this folder."""
    return _read_as_browser(resources.files("analyses._page").joinpath(name).read_text("utf-8"))


@cache
def script(name: str) -> str:
    """One of `SCRIPTS`, or `theme`, which every page ends with."""
    if name == "plotly":
        from plotly.offline import get_plotlyjs

        return _read_as_browser(get_plotlyjs())
    if name == "themes":
        return f"const THEMES = {script_json(THEMES)};"
    return asset(f"{name}.js")


def style() -> str:
    """The style sheet of a page."""
    return variables() + asset("style.css")


def source_hash(text: str) -> str:
    """How a content security policy names an inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read_as_browser(text: str) -> str:
    # HTML parsers read \r\n as \n; the hash must be of what they see.
    return text.replace("\r\n", "\n").replace("\r", "\n")
