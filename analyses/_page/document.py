"""A whole page from its parts: head, policy, style, body, scripts."""

from collections.abc import Iterable, Sequence

from analyses._page.assets import SCRIPTS, script, source_hash, style
from analyses._page.text import html_text


def document(title: str, body: Sequence[str], needed: Iterable[str], *, framed: bool) -> str:
    """The source of a page.

    Args:
        title: the name of the browser's tab, in plain text.
        body: what the page shows, as HTML.
        needed: which of `SCRIPTS` it needs.
        framed: whether it tells the frame around it how high it is.
    """
    scripts = [script(name) for name in SCRIPTS if name in set(needed)]
    scripts += [script(name) for name in (("frame", "theme") if framed else ("theme",))]
    allowed = " ".join(source_hash(one) for one in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html_text(title)}</title>\n<style>{style()}</style>\n</head>\n"
        + ('<body class="framed">\n' if framed else "<body>\n")
        + "\n".join(body)
        + "".join(f"\n<script>{one}</script>" for one in scripts)
        + "\n</body>\n</html>\n"
    )
