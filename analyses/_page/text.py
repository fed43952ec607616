"""Text from outside, made safe for where it goes in a page."""

import html
import json
import math
import re
from typing import Any

# Control characters but line ends and tabs, halves of surrogate pairs, which no file in UTF-8 can
# hold, and marks that turn the order of all letters after them.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066\u2067]")


def html_text(text: str) -> str:
    """`text` so that HTML shows it as it is, in an element or an attribute.

    What a page cannot hold or should not obey is shown as an escape: `\\x00`, `\\ud83d`, `\\u202e`.
    """
    return html.escape(_UNFIT.sub(_escape, text))


def clipped(text: str, longest: int = 300) -> tuple[str, str]:
    """`text` as HTML, shortened where it is very long, and then also the whole as plain text."""
    if len(text) <= longest:
        return html_text(text), ""
    return f"{html_text(text[: longest - 40])}… ({len(text):,} characters)", text


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def plotly_text(text: str) -> str:
    """`text` so that plotly shows it as it is: it reads `<b>`, `<a>` and `&lt;` as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def isolated(text: str) -> str:
    """`text` so that, written from right to left, it does not turn what stands beside it round."""
    return f"\u2068{text}\u2069"


def script_json(value: Any) -> str:
    """JSON that is safe inside `<script>`: no `<`, so neither `</script>` nor `<!--` can occur."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def rounded(value: Any) -> Any:
    """Numbers with six digits: what a picture can show, at half the size. Not finite: null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return value
