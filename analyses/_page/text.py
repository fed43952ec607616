"""Text from outside, made safe for where it goes in a page."""

import json
import math
from typing import Any


def plotly_text(text: str) -> str:
    """`text` so that plotly shows it as it is: it reads `<b>`, `<a>` and `&lt;` as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


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
