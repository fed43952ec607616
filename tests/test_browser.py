"""The browser that tests of pages use sees what happens: what it did not see could not fail."""

import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest

from notebooks.browser import Browser, BrowserMissing, PageError

QUIET = """<!doctype html><meta charset="utf-8"><title>quiet</title>
<p id="p">Text <b>in bold</b> שלום</p><img src="data:,"><script>const here = 1</script>"""


def test_a_quiet_page_is_quiet(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "a name with spaces & ü.html"
    path.write_text(QUIET.replace("data:,", "data:image/gif;base64,R0lGODlhAQABAAAAACw="), "utf-8")
    with browser.open(path) as page:
        assert page.console == []
        assert page.requests == []
        assert page.text() == "Text in bold שלום"
        assert "<b>in bold</b>" in page.html()
        assert page.frames == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("<script>console.log('one', 2, true, {a: 1})</script>", "log: one 2 true Object"),
        ("<script>console.error('bad')</script>", "error: bad"),
        ("<script>throw new Error('thrown')</script>", "exception: Error: thrown"),
        ("<script>throw 'a string'</script>", "exception: a string"),
        ("<script>setTimeout(() => { throw Error('later') })</script>", "exception: Error: later"),
        ("<script>Promise.reject(Error('refused'))</script>", "exception: Error: refused"),
        ("<script>oops(</script>", "exception: SyntaxError"),
        ("<script>alert('stolen')</script>", "alert: stolen"),
        ("<img src='not-there.png'>", "error: Failed to load resource: net::ERR_FILE_NOT_FOUND"),
        ("<iframe srcdoc='<script>console.log(1)</script>'></iframe>", "log: 1"),
        ("<iframe sandbox='allow-scripts' srcdoc='<script>x()</script>'></iframe>",
         "exception: ReferenceError: x is not defined"),
    ],
)  # fmt: skip
def test_what_a_page_says_is_seen(browser: Browser, source: str, said: str) -> None:
    with browser.open(source) as page:
        assert [line for line in page.console if line.startswith(said)]


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("<img src='http://a.example/x.png'>", "http://a.example/x.png"),
        ("<link rel='stylesheet' href='https://a.example/x.css'>", "https://a.example/x.css"),
        ("<p style='background: url(http://a.example/x)'>text</p>", "http://a.example/x"),
        ("<script src='//a.example/x.js'></script>", "file://a.example/x.js"),
        ("<script>fetch('https://a.example/x')</script>", "https://a.example/x"),
        ("<script>navigator.sendBeacon('https://a.example/x')</script>", "https://a.example/x"),
        ("<script>new WebSocket('ws://a.example/')</script>", "ws://a.example/"),
        ("<script src='beside.js'></script>", "beside.js"),
        ("<iframe src='http://a.example/'></iframe>", "http://a.example/"),
        ("<iframe sandbox srcdoc=\"<img src='http://a.example/'>\"></iframe>", "http://a.example/"),
        ("<img src='http://127.0.0.1:9/'>", "http://127.0.0.1:9/"),
    ],
)
def test_what_a_page_asks_for_is_seen(browser: Browser, source: str, address: str) -> None:
    with browser.open("<!doctype html>" + source) as page:
        assert [asked for asked in page.requests if asked.endswith(address)]


def test_what_a_worker_asks_for_is_seen(browser: Browser) -> None:
    said = "`fetch('http://a.example/').catch(() => postMessage('failed'))`"
    source = f"""<script>const worker = new Worker(URL.createObjectURL(new Blob([{said}])));
    worker.onmessage = message => document.title = message.data</script>"""
    with browser.open(source) as page:
        page.wait_for("document.title === 'failed'")
        assert page.requests == ["http://a.example/"]


def test_what_a_window_is_opened_for_is_seen(browser: Browser) -> None:
    with browser.open("<a target='_blank' href='http://a.example/'>link</a>") as page:
        page.click("a")
        assert page.requests == ["http://a.example/"]
        assert page.evaluate("document.visibilityState") == "visible"


POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'">"""


def test_a_strict_policy_is_heard_of_and_no_hindrance(browser: Browser) -> None:
    source = POLICY + "<p>text</p><script>document.title = 'ran'</script><img src='http://a.b/c'>"
    with browser.open(source) as page:
        script, image = sorted(page.console)
        assert script.startswith("error: Executing inline script violates")
        assert image.startswith("error: Loading the image 'http://a.b/c' violates")
        assert page.requests == ["http://a.b/c"]
        assert page.evaluate("document.title") == ""
        page.evaluate("document.querySelector('p').onclick = () => document.title = 'clicked'")
        page.click("p")
        page.wait_for("document.title === 'clicked'", timeout_s=5)


def test_theme_and_size_are_those_asked_for(browser: Browser) -> None:
    ask = "[matchMedia('(prefers-color-scheme: dark)').matches, innerWidth, innerHeight]"
    with browser.open("<p>text") as page:
        assert page.evaluate(ask) == [False, 1200, 900]
    with browser.open("<p>text", theme="dark", width=400, height=300) as page:
        assert page.evaluate(ask) == [True, 400, 300]


def test_a_script_comes_before_those_of_the_page(browser: Browser) -> None:
    source = "<script>document.title = window.first + 1</script><iframe srcdoc='text'></iframe>"
    with browser.open(source, before="window.first = 41") as page:
        assert page.evaluate("document.title") == "42"
        assert page.frames[0].evaluate("window.first") == 41


def test_values(browser: Browser) -> None:
    with browser.open("<p>text") as page:
        assert page.evaluate("({a: [1, 'two', null, true]})") == {"a": [1, "two", None, True]}
        assert page.evaluate("undefined") is None
        assert page.evaluate("1 / 0") == float("inf")
        assert page.evaluate("new Promise(done => setTimeout(done, 5, 'late'))") == "late"
        with pytest.raises(PageError, match=r"TypeError: Cannot read .*null"):
            page.evaluate("document.querySelector('b').textContent")
        with pytest.raises(PageError, match="refused"):
            page.evaluate("Promise.reject(Error('refused'))")
        with pytest.raises(PageError, match="SyntaxError"):
            page.evaluate("1 +")


def test_waiting(browser: Browser) -> None:
    source = "<script>setTimeout(() => document.title = 'done', 50); console.log('hint')</script>"
    with browser.open(source) as page:
        page.wait_for("document.title === 'done'")
        with pytest.raises(TimeoutError, match=r"not true within 0\.1 s: 1 > 2 .*log: hint"):
            page.wait_for("1 > 2", timeout_s=0.1)
        with pytest.raises(PageError, match="ReferenceError"):
            page.wait_for("no_such_name > 2")
        with pytest.raises(TimeoutError, match="a download"):
            page.download(timeout_s=0.1)


BUTTONS = """<style>div { height: 3000px } button:hover { color: rgb(1, 2, 3) }</style>
<button>one</button><div></div><button>two</button><button hidden>three</button>
<button style="position: relative">four<i style="position: absolute; inset: 0"></i></button>
<p style="position: relative"><button>five</button><b style="position: absolute; inset: 0"></b>
<script>
const clicks = [];
for (const button of document.querySelectorAll("button"))
    button.onclick = event => clicks.push([button.textContent, event.isTrusted, event.offsetX > 9]);
</script>"""


def test_clicks_are_a_readers(browser: Browser) -> None:
    with browser.open(BUTTONS) as page:
        page.click("button", 1)  # far below
        page.click("button")
        page.click("button", at=(0.1, 0.5))
        page.click("button", 3)  # through what is in it
        assert page.evaluate("clicks") == [
            ["two", True, True], ["one", True, True], ["one", True, False], ["four", True, True]
        ]  # fmt: skip
        with pytest.raises(PageError, match=r"5 elements match button, asked for \[5\]"):
            page.click("button", 5)
        with pytest.raises(PageError, match=r"button \[2\] is not shown"):
            page.click("button", 2)
        with pytest.raises(PageError, match=r"button \[4\] is covered at this point by <b "):
            page.click("button", 4)


def test_hovering(browser: Browser) -> None:
    ask = "[...document.querySelectorAll('button')].map(b => getComputedStyle(b).color).slice(0, 2)"
    with browser.open(BUTTONS) as page:
        page.hover("button", 1)
        assert page.evaluate(ask) == ["rgb(0, 0, 0)", "rgb(1, 2, 3)"]
        page.hover("button", 0)
        assert page.evaluate(ask) == ["rgb(1, 2, 3)", "rgb(0, 0, 0)"]


@pytest.mark.parametrize("sandbox", ["", "sandbox='allow-scripts allow-downloads'"])
def test_frames(browser: Browser, sandbox: str) -> None:
    inner = "<title>inner</title>" + BUTTONS.replace('"', "'")
    source = f"<p style='height: 2000px'>outer</p><iframe {sandbox} srcdoc=\"{inner}\"></iframe>"
    with browser.open(source) as page:
        (frame,) = page.frames
        assert frame.evaluate("document.title") == "inner"
        assert "two" in frame.text() and "two" not in page.text()
        frame.click("button", 1)
        frame.wait_for("clicks.length")
        assert frame.evaluate("clicks") == [["two", True, True]]
        page.evaluate("document.querySelector('iframe').remove()")
        assert page.frames == []


LINKS = """<button>save</button><script>
const texts = ["first, é", "second"];
document.querySelector("button").onclick = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([texts.shift()]));
    link.download = "table.csv";
    link.click();
}</script>"""


def test_downloads(browser: Browser) -> None:
    with browser.open(LINKS) as page:
        for text in ("first, é", "second"):
            page.click("button")
            assert page.download() == ("table.csv", text.encode())
        assert page.console == page.requests == []


def test_screenshot_is_of_the_whole_page(browser: Browser, tmp_path: Path) -> None:
    with browser.open("<body style='margin: 0'><p style='margin: 0; height: 2000px'>") as page:
        page.screenshot(tmp_path / "page.png")
    start = (tmp_path / "page.png").read_bytes()[:24]
    assert start[1:4] == b"PNG"
    assert struct.unpack(">II", start[16:]) == (1200, 2000)


def test_pages_are_apart(browser: Browser) -> None:
    with browser.open("<p>one") as one, browser.open("<p>two") as two:
        one.evaluate("localStorage.setItem('a', 'b'); console.log('one')")
        two.evaluate("fetch('http://a.example/').catch(() => 0)")
        assert two.evaluate("localStorage.getItem('a')") is None
        assert (one.requests, two.requests[:1]) == ([], ["http://a.example/"])
        assert (one.console, "log: one" in two.console) == (["log: one"], False)


def test_what_cannot_be_opened(browser: Browser, tmp_path: Path) -> None:
    with (
        pytest.raises(PageError, match="ERR_FILE_NOT_FOUND"),
        browser.open(tmp_path / "not there.html"),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"a page is a Path or HTML, not 'page\.html'"),
        browser.open("page.html"),
    ):
        pass


def test_a_page_that_breaks_does_not_break_the_next(browser: Browser) -> None:
    with pytest.raises(ConnectionError, match="crashed"), browser.open("<p>text") as page:
        page._send("Page.crash")
    with browser.open("<p>text") as page:
        assert page.text() == "text"


def processes_with(folder: Path) -> list[str]:
    """The processes whose command line names a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [process.parent.name] * (str(folder).encode() in process.read_bytes())
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are not in /proc")
def test_nothing_is_left_of_a_browser(browser: Browser) -> None:
    with pytest.raises(KeyboardInterrupt), Browser() as other, other.open("<p>text"):
        folder = other._folder
        assert folder.exists() and folder != browser._folder
        assert processes_with(folder)
        raise KeyboardInterrupt
    deadline = time.monotonic() + 20
    while (left := processes_with(folder)) and time.monotonic() < deadline:
        time.sleep(0.01)  # killed, and the system is a moment behind
    assert not left
    assert other._process.returncode is not None
    assert not folder.exists()


def test_no_browser_and_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrowserMissing, match="no headless browser: none of chromium, "):
        Browser()
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho no display >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(BrowserMissing, match=r"(?s)chromium does not run here: .*no display"):
        Browser()
