"""Pictures of interactive outputs, for places that run no scripts.

Code-hosting sites, and `nbconvert`, show of an output the first kind that they know: HTML before
pictures, without its scripts. So

- a plotly figure stays as it is and gets a picture beside it (`image/png` in the same output);
- HTML with scripts or frames (pages, views of circuitsvis) goes, with its megabytes; the picture of
  what a reader sees there takes its place, and a sentence below says how to have it live;
- other HTML (tables) needs no scripts and stays.
"""

import base64
import io
import json
import math
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_output
from PIL import Image, ImageChops

from notebooks.browser import IDLE, Browser, Page

PLOTLY = "application/vnd.plotly.v1+json"
# How wide outputs are in JupyterLab on a usual screen, in CSS pixels, and how sharp pictures are.
WIDTH = 1000
SCALE = 1.5
MARGIN = 18  # pixels of a picture, where an empty one is cut
LIVE = "*A picture. Run the cell to have it live, and to point at it and click.*"

FIGURE = """(figure, width) => {
    const place = document.getElementById("figure");
    Plotly.purge(place);
    place.style.width = (figure.layout.width || width) + "px";
    place.style.height = (figure.layout.height || 450) + "px";
    const config = {...figure.config, displayModeBar: false};
    return Plotly.newPlot(place, figure.data, figure.layout, config).then(() => null);
}"""
# What waits until it is seen is seen in so high a window. Frames tell how high they are.
WINDOW_HEIGHT = 2000
SETTLED = """new Promise(done => {
    let before = -1, same = 0;
    const look = () => {
        const now = document.body.getBoundingClientRect().height;
        same = now === before ? same + 1 : 0;
        before = now;
        same < 8 ? setTimeout(look, 60) : done(null);
    };
    look();
})"""
# Views are drawn in canvases, a while after they have been put there.
DRAWN = """[...document.querySelectorAll("canvas")].every(canvas => {
    if (!canvas.offsetParent || !canvas.width || !canvas.height) return true;
    const all = canvas.getContext("2d")?.getImageData(0, 0, canvas.width, canvas.height).data;
    return !all || all.some(one => one > 0);
})"""


def add_pictures(notebook: NotebookNode) -> None:
    """Give each interactive output its picture, in place.

    Raises:
        notebooks.browser.BrowserMissing: there are such outputs, and no browser.
    """
    with ExitStack() as stack:
        camera: _Camera | None = None
        for cell in notebook.cells:
            outputs: list[NotebookNode] = []
            for output in cell.get("outputs", []):
                outputs.append(output)
                data = output.get("data", {})
                if PLOTLY not in data and not is_live(data.get("text/html", "")):
                    continue
                camera = camera or stack.enter_context(_camera())
                if PLOTLY in data:
                    picture = camera.figure(data[PLOTLY])
                    data.pop("text/html", None)
                else:
                    picture = camera.html(data.pop("text/html"))
                    note = {"text/markdown": LIVE, "text/plain": LIVE.strip("*")}
                    outputs.append(new_output("display_data", note, metadata={"picture": "note"}))
                picture = small(picture)
                data["image/png"] = base64.b64encode(picture).decode()
                width, height = size(picture)
                # Shown as large as it is live, where there is room; sharp on fine screens.
                output.metadata["image/png"] = {
                    "width": round(width / SCALE),
                    "height": round(height / SCALE),
                }
            if "outputs" in cell:
                cell.outputs = outputs


def is_live(html: str) -> bool:
    """Whether HTML needs scripts or frames to be seen."""
    return "<script" in html or "<iframe" in html


def size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG in pixels."""
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"a PNG does not begin with {png[:8]!r}")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def small(png: bytes) -> bytes:
    """A PNG with a palette of 256 colours, and without empty margins on the right and below."""
    with Image.open(io.BytesIO(png)) as image:
        colours = image.convert("RGB")
    corner = colours.getpixel((colours.width - 1, colours.height - 1))
    paper = Image.new("RGB", colours.size, corner)
    _, _, right, lower = ImageChops.difference(colours, paper).getbbox() or (0, 0, *colours.size)
    right, lower = min(right + MARGIN, colours.width), min(lower + MARGIN, colours.height)
    colours = colours.crop((0, 0, right, lower))
    reduced = colours.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    reduced.save(packed, "PNG", optimize=True)
    return packed.getvalue()


@contextmanager
def _camera() -> "Iterator[_Camera]":
    with ExitStack() as stack:
        yield _Camera(stack.enter_context(Browser()), stack)


class _Camera:
    """A browser; and one page in it for all plotly figures, which loads plotly's script once."""

    def __init__(self, browser: Browser, stack: ExitStack) -> None:
        self._browser = browser
        self._stack = stack
        self._figures: Page | None = None

    def figure(self, spec: dict[str, Any]) -> bytes:
        """A picture of a plotly figure."""
        if self._figures is None:
            from plotly.offline import get_plotlyjs

            page = (
                f'<!doctype html><meta charset="utf-8"><script>{get_plotlyjs()}</script>'
                '<body style="margin:0;background:white"><div id="figure"></div>'
            )
            self._figures = self._stack.enter_context(
                self._browser.open(page, width=WIDTH, height=WINDOW_HEIGHT)
            )
        self._figures.evaluate(f"({FIGURE})({json.dumps(spec)}, {WIDTH})")
        return self._figures.screenshot(selector="#figure", scale=SCALE)

    def html(self, source: str) -> bytes:
        """A picture of an output in HTML, as a notebook shows it."""
        page = (
            '<!doctype html><meta charset="utf-8"><body style="margin:0;background:white">'
            f'<div id="output">{source}</div>'
        )
        with self._browser.open(page, width=WIDTH, height=WINDOW_HEIGHT) as opened:
            opened.evaluate(SETTLED)
            for frame in opened.frames:
                frame.wait_for(DRAWN)
            return _still(opened)


def _still(page: Page) -> bytes:
    """A picture of a page once nothing in it moves any more."""
    taken: list[bytes] = []
    while len(taken) < 3 or len({*taken[-3:]}) > 1:
        if len(taken) > 100:
            raise TimeoutError("an output moves without end: no picture can be taken of it")
        time.sleep(0.2)
        for frame in page.frames:
            frame.evaluate(IDLE)
        taken.append(page.screenshot(selector="#output", scale=SCALE))
    return taken[-1]


def is_picture(png: bytes) -> bool:
    """Whether a PNG shows something: more than a surface of one colour."""
    with Image.open(io.BytesIO(png)) as image:
        counts = [n for n, _ in image.convert("RGB").getcolors(2**24) or ()]
    return math.fsum(counts) - max(counts) > 0.005 * math.fsum(counts)
