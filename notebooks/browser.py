"""A headless Chromium: opens a page, uses it as a reader would, and tells what it did.

Tests look at pages with it, and `notebooks.build` takes pictures.

    with browser.open(path, theme="dark") as page:  # a `Browser`
        page.click("button.csv")
        assert page.download().name == "scores.csv"
        assert page.console == [] and page.requests == []

It speaks the DevTools protocol (https://chromedevtools.github.io/devtools-protocol) through two
pipes: JSON messages that end in a NUL byte. No port is opened and nothing needs installing but the
browser. Each page is opened in a context of its own: no storage, no cache of another page.
"""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
    "--disable-dev-shm-usage", "--disable-breakpad", "--no-first-run", "--no-default-browser-check",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--mute-audio", "--password-store=basic", "--use-mock-keychain",
    "--hide-scrollbars", "--force-color-profile=srgb", "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows",
    # The frames of a page stay in its process, where all they do is told in order.
    "--disable-site-isolation-trials", "--disable-features=IsolateSandboxedIframes",
    # What a page asks for is seen, and goes nowhere.
    "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
# The browser reads commands from descriptor 3 and writes to 4, which may be in use here.
LAUNCH = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
TIMEOUT_S = 60.0
# Two drawn frames and a moment of leisure: what scripts put off while loading has been done.
IDLE = """new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() =>
    requestIdleCallback(done, {timeout: 5000}))))"""
# Scrolls an element into view and gives the place to point at, which nothing else may cover.
POINT = """((selector, index, across, down) => {
    const found = document.querySelectorAll(selector);
    const element = found[index];
    if (!element)
        throw new Error(`${found.length} elements match ${selector}, asked for [${index}]`);
    element.scrollIntoView({block: "center", inline: "center", behavior: "instant"});
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height) throw new Error(`${selector} [${index}] is not shown`);
    const x = box.left + across * box.width, y = box.top + down * box.height;
    const hit = document.elementFromPoint(x, y);
    if (hit !== element && !element.contains(hit))
        throw new Error(`${selector} [${index}] is covered at this point by ` +
            (hit ? hit.cloneNode(false).outerHTML : "nothing: it is out of view"));
    return [x, y];
})"""

# Where on the page an element is.
BOX = """(selector => {
    const box = document.querySelector(selector)?.getBoundingClientRect();
    if (!box?.width || !box.height) throw new Error(`${selector} is not there, or not shown`);
    return {x: box.left + scrollX, y: box.top + scrollY, width: box.width, height: box.height};
})"""


class BrowserMissing(Exception):
    """There is no browser here, or it does not start."""


class PageError(Exception):
    """JavaScript that was evaluated in a page threw, or the browser refused a command."""


class Download(NamedTuple):
    """A file that a page gave its reader."""

    name: str
    data: bytes


class Browser:
    """A running browser. Use as a context manager, which ends it however the block ends."""

    def __init__(self) -> None:
        program = next(filter(None, map(shutil.which, BROWSERS)), None)
        if program is None:
            raise BrowserMissing(f"no headless browser: none of {', '.join(BROWSERS)} on the PATH")
        self._folder = Path(tempfile.mkdtemp(prefix="hooked-browser-"))
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        with open(self._folder / "stderr.txt", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCH, str(commands), str(answers), program,
                 *FLAGS, f"--user-data-dir={self._folder / 'profile'}"],
                pass_fds=(commands, answers), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._buffer = bytearray()
        self._inbox: deque[bytearray] = deque()
        self._last_id = 0
        self._replies: dict[int, dict[str, Any] | None] = {}  # of the commands that are waited for
        self._pages: dict[str, Page] = {}  # by session; one page may have several
        self._download_names: dict[str, str] = {}
        try:
            self.version: str = self.send("Browser.getVersion")["product"]
            self.send("Target.setDiscoverTargets", discover=True)
        except (TimeoutError, OSError, PageError) as error:
            self.close()
            raise BrowserMissing(f"{program} does not run here: {error}") from error

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser with all its processes, and remove its files."""
        os.close(self._commands)  # it ends by itself when nobody can command it any more
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            os.close(self._answers)
            shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def open(
        self,
        page: Path | str,
        *,
        theme: Literal["light", "dark"] = "light",
        width: int = 1200,
        height: int = 900,
        before: str = "",
    ) -> Iterator["Page"]:
        """Open a page, and wait until it is loaded and idle.

        Args:
            page: a file, or the source of a page.
            theme: what the reader prefers (`prefers-color-scheme`).
            width, height: of the window, in CSS pixels.
            before: JavaScript that runs before any script of the page, in each of its frames.
        """
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        if isinstance(page, str):
            if "<" not in page:
                raise ValueError(f"a page is a Path or HTML, not {page!r}")
            (folder / "page.html").write_text(page, encoding="utf-8")
            page = folder / "page.html"
        context = self.send("Target.createBrowserContext")["browserContextId"]
        try:
            self.send(
                "Browser.setDownloadBehavior", behavior="allowAndName", browserContextId=context,
                downloadPath=str(folder), eventsEnabled=True,
            )  # fmt: skip
            target = self.send("Target.createTarget", url="about:blank", browserContextId=context)
            opened = Page(self, target["targetId"], folder)
            opened._load(page.resolve().as_uri(), theme, width, height, before)
            yield opened
        finally:
            for session in [s for s, p in self._pages.items() if p._folder == folder]:
                del self._pages[session]
            self.send("Target.disposeBrowserContext", browserContextId=context)
            shutil.rmtree(folder, ignore_errors=True)

    # -------------------------------------------------------------- messages

    def post(self, method: str, *, session: str | None = None, **params: Any) -> int:
        """Send a command and do not wait for its answer. Returns its number."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        rest = memoryview(json.dumps(message).encode() + b"\0")
        while rest:
            rest = rest[os.write(self._commands, rest) :]
        return self._last_id

    def send(
        self,
        method: str,
        *,
        session: str | None = None,
        timeout_s: float = TIMEOUT_S,
        **params: Any,
    ) -> dict[str, Any]:
        """Send a command and wait for its result."""
        number = self.post(method, session=session, **params)
        self._replies[number] = None
        try:
            self.wait(lambda: self._replies[number] is not None, method, timeout_s)
        finally:
            reply = self._replies.pop(number)
        assert reply is not None
        if "error" in reply:
            raise PageError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Take in messages of the browser until `done`."""
        deadline = time.monotonic() + timeout_s
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{what}: not within {timeout_s:g} s. {self._last_words()}")
            if select.select([self._answers], [], [], left)[0]:
                read = os.read(self._answers, 1 << 20)
                if not read:
                    raise ConnectionError(f"{what}: the browser has gone. {self._last_words()}")
                self._buffer += read
                *messages, self._buffer = self._buffer.split(b"\0")
                self._inbox.extend(messages)
            while self._inbox:
                self._take(json.loads(self._inbox.popleft()))

    def _last_words(self) -> str:
        return (self._folder / "stderr.txt").read_text("utf-8", "replace")[-500:]

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            if message["id"] in self._replies:
                self._replies[message["id"]] = message
            return
        method, params = message["method"], message["params"]
        if method == "Browser.downloadWillBegin":
            self._download_names[params["guid"]] = params["suggestedFilename"]
        elif method == "Browser.downloadProgress" and params["state"] == "completed":
            for page in set(self._pages.values()):
                page._take_download(params["guid"], self._download_names[params["guid"]])
        elif method == "Target.targetCreated" and "openerId" in params["targetInfo"]:
            # A window that a page opened (`Page.windowOpen` tells it) would stand before the page.
            self.post("Target.closeTarget", targetId=params["targetInfo"]["targetId"])
        elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
            page._take(message["sessionId"], method, params)


class Frame:
    """A document: a page, or what one of its `<iframe>`s shows."""

    def __init__(self, page: "Page", frame_id: str, context: int | None) -> None:
        self._page = page
        self._frame_id = frame_id
        self._context = context  # of its scripts; None for the page's own

    def evaluate(self, script: str, *, timeout_s: float = TIMEOUT_S) -> Any:
        """The value of a JavaScript expression; of a promise, what it resolves to.

        Raises:
            PageError: it threw.
        """
        where = {} if self._context is None else {"contextId": self._context}
        answer = self._page._send(
            "Runtime.evaluate", timeout_s=timeout_s, expression=script, awaitPromise=True,
            returnByValue=True, userGesture=True, **where,
        )  # fmt: skip
        if "exceptionDetails" in answer:
            raise PageError(_exception(answer["exceptionDetails"]))
        return _value(answer["result"])

    def wait_for(self, condition: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a JavaScript expression is true."""
        look = f"""new Promise((done, failed) => {{ (function look() {{
            try {{ ({condition}) ? done(true) : setTimeout(look, 20) }} catch (e) {{ failed(e) }}
        }})() }})"""
        try:
            self.evaluate(look, timeout_s=timeout_s)
        except TimeoutError:
            said = "; ".join(self._page.console) or "nothing"
            raise TimeoutError(
                f"not true within {timeout_s:g} s: {condition} (console: {said})"
            ) from None

    def hover(
        self, selector: str, index: int = 0, *, at: tuple[float, float] = (0.5, 0.5)
    ) -> tuple[float, float]:
        """Scroll an element into view and move the pointer there.

        Args:
            selector: a CSS selector.
            index: which of the elements it matches.
            at: where in the element's box, as parts of its width and height.

        Returns:
            where in the window that is.

        Raises:
            PageError: there is no such element, it is not shown, or something covers it.
        """
        x, y = self.evaluate(f"{POINT}({json.dumps(selector)}, {index}, {at[0]}, {at[1]})")
        left, top = self._corner()
        place = (left + x, top + y)
        self._page._mouse("mouseMoved", place)
        self._page.evaluate(IDLE)
        return place

    def click(self, selector: str, index: int = 0, *, at: tuple[float, float] = (0.5, 0.5)) -> None:
        """Click an element with the mouse; arguments and errors as in `hover`."""
        place = self.hover(selector, index, at=at)
        for event in ("mousePressed", "mouseReleased"):
            self._page._mouse(event, place, button="left", clickCount=1)
        self._page.evaluate(IDLE)

    def text(self) -> str:
        """The text of the document as it is shown."""
        return self.evaluate("document.body.innerText")

    def html(self) -> str:
        """The document as scripts have made it."""
        return self.evaluate("document.documentElement.outerHTML")

    def _corner(self) -> tuple[float, float]:
        return (0.0, 0.0)


class InnerFrame(Frame):
    """What an `<iframe>` shows."""

    def _corner(self) -> tuple[float, float]:
        owner = self._page._send("DOM.getFrameOwner", frameId=self._frame_id)["backendNodeId"]
        self._page._send("DOM.scrollIntoViewIfNeeded", backendNodeId=owner)
        box = self._page._send("DOM.getBoxModel", backendNodeId=owner)["model"]["content"]
        return (box[0], box[1])


class Page(Frame):
    """A page in a tab of its own."""

    def __init__(self, browser: Browser, target: str, folder: Path) -> None:
        attached = browser.send("Target.attachToTarget", targetId=target, flatten=True)
        super().__init__(self, target, None)
        self._browser = browser
        self._session: str = attached["sessionId"]
        self._folder = folder
        self._address = ""
        self._before = ""
        self._loaded: set[str] = set()  # loader ids
        self._console: list[str] = []
        self._requests: list[str] = []
        self._downloads: list[Download] = []
        self._frames: dict[int, str] = {}  # of the context of its scripts, the frame
        self._theme: dict[str, Any] = {}

    def _load(self, address: str, theme: str, width: int, height: int, before: str) -> None:
        self._address, self._before = address, before
        self._theme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self._listen(self._session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._send("Emulation.setDeviceMetricsOverride", **size)
        started = self._send("Page.navigate", url=address)
        if "errorText" in started:
            raise PageError(f"{address}: {started['errorText']}")
        self._browser.wait(lambda: started["loaderId"] in self._loaded, f"loading {address}")
        self.evaluate(IDLE)

    def _listen(self, session: str) -> None:
        """Hear of all that happens in the page, or in a worker of it, from its first line on."""
        self._browser._pages[session] = self
        for method, params in (
            ("Page.enable", {}),
            ("Page.setLifecycleEventsEnabled", {"enabled": True}),
            ("Page.addScriptToEvaluateOnNewDocument", {"source": self._before}),
            ("Emulation.setEmulatedMedia", self._theme),
            ("Runtime.enable", {}),
            ("Log.enable", {}),
            ("Network.enable", {}),
            ("Target.setAutoAttach",
             {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}),
            ("Runtime.runIfWaitingForDebugger", {}),
        ):  # fmt: skip
            self._browser.post(method, session=session, **params)

    # -------------------------------------------------------------- what happened

    @property
    def console(self) -> list[str]:
        """What the page printed, threw or was refused, as `level: text`, oldest first."""
        self._catch_up()
        return list(self._console)

    @property
    def requests(self) -> list[str]:
        """Addresses the page asked for, whether or not it got them.

        The page itself, and what it holds (`data:`, `blob:`), are not among them.
        """
        self._catch_up()
        return list(self._requests)

    @property
    def frames(self) -> list[Frame]:
        """What the `<iframe>`s of the page show."""
        self._catch_up()
        return [InnerFrame(self, frame, context) for context, frame in self._frames.items()]

    def download(self, timeout_s: float = TIMEOUT_S) -> Download:
        """The next file that the page gave its reader; waits for it."""
        self._browser.wait(lambda: bool(self._downloads), "a download", timeout_s)
        return self._downloads.pop(0)

    def screenshot(
        self, path: Path | None = None, *, selector: str = "", scale: float = 1.0
    ) -> bytes:
        """A picture (PNG) of the whole page, or of one element.

        Args:
            path: where it is written too.
            selector: a CSS selector; the first element it matches.
            scale: how many pixels of the picture one CSS pixel gets.

        Raises:
            PageError: there is no such element, or it is not shown.
        """
        clip = self._send("Page.getLayoutMetrics")["cssContentSize"] | {"x": 0, "y": 0}
        if selector:
            clip = self.evaluate(f"{BOX}({json.dumps(selector)})")
        picture = base64.b64decode(
            self._send(
                "Page.captureScreenshot", format="png", captureBeyondViewport=True,
                clip=clip | {"scale": scale},
            )["data"]
        )  # fmt: skip
        if path is not None:
            Path(path).write_bytes(picture)
        return picture

    # -------------------------------------------------------------- messages

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.send(method, session=self._session, **params)

    def _mouse(self, event: str, place: tuple[float, float], **more: Any) -> None:
        self._send("Input.dispatchMouseEvent", type=event, x=place[0], y=place[1], **more)

    def _catch_up(self) -> None:
        # The page and each of its workers answers after what it had to tell.
        for session in [s for s, page in self._browser._pages.items() if page is self]:
            try:
                self._browser.send("Runtime.evaluate", session=session, expression="0")
            except PageError:
                if session == self._session:
                    raise
                self._browser._pages.pop(session, None)  # a worker that has ended meanwhile

    def _take_download(self, guid: str, name: str) -> None:
        if (self._folder / guid).exists():
            self._downloads.append(Download(name, (self._folder / guid).read_bytes()))

    def _take(self, session: str, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Page.lifecycleEvent" if params["name"] == "load":
                self._loaded.add(params["loaderId"])
            case "Target.attachedToTarget":
                self._listen(params["sessionId"])
            case "Target.detachedFromTarget":
                self._browser._pages.pop(params["sessionId"], None)
            case "Target.targetCrashed" | "Inspector.targetCrashed":
                raise ConnectionError(f"the page {self._address} crashed")
            case "Page.javascriptDialogOpening":  # it would stand before the page for ever
                self._browser.post("Page.handleJavaScriptDialog", session=session, accept=True)
                self._console.append(f"{params['type']}: {params['message']}")
            case "Runtime.executionContextCreated":
                context = params["context"]
                about = context.get("auxData", {})  # workers have none
                if about.get("isDefault") and about["frameId"] != self._frame_id:
                    self._frames[context["id"]] = about["frameId"]
            case "Runtime.executionContextDestroyed" if session == self._session:
                self._frames.pop(params["executionContextId"], None)
            case "Runtime.executionContextsCleared" if session == self._session:
                self._frames.clear()
            case "Runtime.consoleAPICalled":
                words = " ".join(map(_printed, params["args"]))
                self._console.append(f"{params['type']}: {words}")
            case "Runtime.exceptionThrown":
                self._console.append(f"exception: {_exception(params['exceptionDetails'])}")
            case "Log.entryAdded" if not _is_about_the_machine(params["entry"]):
                entry = params["entry"]
                where = f" ({entry['url']})" if entry.get("url") else ""
                self._console.append(f"{entry['level']}: {entry['text']}{where}")
            case "Network.requestWillBeSent":
                self._note_request(params["request"]["url"])
            case "Network.webSocketCreated" | "Network.webTransportCreated" | "Page.windowOpen":
                self._note_request(params["url"])

    def _note_request(self, address: str) -> None:
        scheme = address.split(":")[0]
        if scheme not in ("data", "blob", "about") and address.split("#")[0] != self._address:
            self._requests.append(address)


def _value(remote: dict[str, Any]) -> Any:
    """A value of JavaScript; its description where it is no JSON."""
    if "value" in remote:
        return remote["value"]
    special = remote.get("unserializableValue", "")
    if special in ("NaN", "Infinity", "-Infinity", "-0"):
        return float(special)
    return special or remote.get("description")


def _printed(remote: dict[str, Any]) -> str:
    value = _value(remote)
    return value if isinstance(value, str) else json.dumps(value)


def _exception(details: dict[str, Any]) -> str:
    thrown = details.get("exception", {})
    return str(thrown.get("description") or thrown.get("value") or details["text"])


def _is_about_the_machine(entry: dict[str, Any]) -> bool:
    """Whether the browser remarks on its own graphics, which no page can help."""
    return entry["source"] == "rendering" and ("WebGL" in entry["text"] or "GL D" in entry["text"])
