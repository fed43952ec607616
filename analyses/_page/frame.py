"""Pages in notebooks: each in a frame of its own that can reach neither the notebook nor a network.

`sandbox` gives the page an origin of its own, so that its script cannot touch the notebook; its
content security policy holds in the frame as it does in a file.
"""

import html
import secrets

from analyses._page.text import html_text

_HIGHEST = 1200  # what is higher scrolls in its frame

# A frame does not grow with what it shows, so the page tells its height. Only a message from this
# very frame counts, and of it nothing but a number.
_LISTEN = """(() => {{
  const frame = document.getElementById("{name}");
  addEventListener("message", ({{source, data}}) => {{
    const height = data?.hookedPageHeight;
    if (!frame || source !== frame.contentWindow || !Number.isFinite(height)) return;
    frame.style.height = Math.min(Math.max(height, 40), {highest}) + 2 + "px";
  }});
}})();"""


def frame(page: str, title: str, height: int) -> str:
    """A page as part of a notebook.

    Args:
        page: its source, with the script `frame`.
        title: what the frame is called for those who do not see it.
        height: of the frame in CSS pixels, where the notebook runs no scripts.
    """
    name = f"hooked-{secrets.token_hex(8)}"
    # In ASCII: its scripts keep the hashes that the page knows, whatever the notebook is read as.
    source = html.escape(page).encode("ascii", "xmlcharrefreplace").decode()
    listen = _LISTEN.format(name=name, highest=_HIGHEST)
    return (
        f'<iframe id="{name}" sandbox="allow-scripts allow-downloads" '
        f'title="{html_text(title)}" srcdoc="{source}" style="display:block;width:100%;'
        f'height:{min(height, _HIGHEST)}px;border:0;border-radius:6px"></iframe>'
        f"<script>{listen}</script>"
    )
