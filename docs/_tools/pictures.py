"""The pictures of the README, from what the analyses draw: `python -m docs._tools.pictures`.

They are parts of the pages of two analyses of `mini`, as headless Chromium shows them, light and
dark. Run it again when the pages or the bundled model change.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from analyses.activation_patching import activation_patching
from analyses.attention import attention
from analyses.pairs import PromptPair
from interp import HookedGPT2
from notebooks.browser import Browser, Page

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = CLEAN.replace(", John", ", Mary")
TITLES = (
    "“When Mary and John went to the store, John gave a drink to”: what carries the answer?",
    "Where does every head look?",
    "Which head alone brings it back?",
)
SCALE, GAP, TITLE = 1.5, 30, 20
PAPER = {"light": "#ffffff", "dark": "#14171d"}
INK = {"light": "#1c2026", "dark": "#e6e8eb"}
# Buttons that are shown to who points at a figure are of no use in a picture.
TIDY = "document.querySelectorAll('.modebar-container').forEach(one => one.remove())"


def main() -> None:
    """Write both pictures."""
    model = HookedGPT2.from_pretrained("mini")
    pair = PromptPair.from_text(model, CLEAN, CORRUPTED, " Mary", " John")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        patching, looking = Path(folder, "patching.html"), Path(folder, "attention.html")
        activation_patching(model, pair, progress=False).to_html(patching)
        attention(model, CLEAN).to_html(looking)
        for theme in ("light", "dark"):
            with browser.open(patching, theme=theme, width=1180, height=2000) as page:
                page.evaluate(TIDY)
                across, heads = (_part(page, "figure", n) for n in (0, 1))
            with browser.open(looking, theme=theme, width=1180, height=2000) as page:
                maps = _part(page, ".grid", 0)
            picture = _composed(theme, across, maps, heads)
            path = FOLDER / f"overview-{theme}.png"
            picture.save(path, optimize=True)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, {picture.size}")


def _part(page: Page, selector: str, index: int) -> Image.Image:
    """A picture of the n-th element that a selector matches, without its caption."""
    page.evaluate(
        f"document.querySelectorAll('{selector}')[{index}].id = 'part{index}';"
        "document.querySelectorAll('figcaption').forEach(one => one.remove())"
    )
    return Image.open(io.BytesIO(page.screenshot(selector=f"#part{index}", scale=SCALE)))


def _composed(theme: str, across: Image.Image, *below: Image.Image) -> Image.Image:
    font = ImageFont.load_default(size=TITLE * SCALE * 0.8)
    gap, title = round(GAP * SCALE), round((TITLE + 14) * SCALE)
    width = across.width + 2 * gap
    height = 3 * gap + 2 * title + across.height + max(part.height for part in below)
    picture = Image.new("RGB", (width, height), PAPER[theme])
    draw = ImageDraw.Draw(picture)
    left = [gap, gap + max(below[0].width, width // 2) + gap // 2]
    rows: Sequence[tuple[int, int, str, Image.Image]] = (
        (gap, gap, TITLES[0], across),
        *(
            (x, 2 * gap + title + across.height, text, part)
            for x, text, part in zip(left, TITLES[1:], below, strict=True)
        ),
    )
    for x, y, text, part in rows:
        draw.text((x, y), text, fill=INK[theme], font=font)
        picture.paste(part, (x, y + title))
    return picture


if __name__ == "__main__":
    main()
