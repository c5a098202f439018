"""Pages in headless Chromium, for tests marked `browser`. conftest.py has the fixture `chromium`.

    from chromium import opened

    pytestmark = pytest.mark.browser

    def test_page(chromium, tmp_path):
        with opened(chromium, tmp_path / "page.html", width=390) as view:
            view.check()

It is Debian's `chromium` (or the program that CHROMIUM names), driven by playwright of requirements-browser.txt; where
one of them is missing the tests skip and say so. `make test-pages` runs them, `make test` does not.
"""

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SPILLING = """
() => [...document.querySelectorAll("body *")]
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .filter(e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
        if (getComputedStyle(p).overflowX !== "visible") return false; return true; })
    .map(e => e.tagName + "." + e.className + ": " + e.textContent.trim().slice(0, 60)).slice(0, 5)
"""


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright (requirements-browser.txt) is missing")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not program:
        pytest.skip("there is no chromium here (Debian, Ubuntu: apt install chromium)")
    # Chromium refuses to run as root with its sandbox, as in most containers.
    arguments = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@dataclass
class View:
    """An open page: playwright's `page`, and what happened since it was opened.

    messages: errors and warnings of the console with their address, and exceptions of scripts. requests: every address
    asked for, but the page's own and data: addresses.
    """

    page: object
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Assert that nothing was complained of, nothing was asked for, and nothing is wider than the page."""
        assert self.messages == [] and self.requests == []
        assert self.page.evaluate(SPILLING) == []
        widths = self.page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1], f"the page is {widths[0]} px wide in a window of {widths[1]}"

    def bottom(self, selector: str) -> float:
        """How far down the page the first element that matches ends, px."""
        box = self.page.locator(selector).first.bounding_box()
        assert box, f"{selector}: not visible"
        return box["y"] + box["height"]


@contextmanager
def opened(browser, where, *, width: int = 1280, height: int = 900, dark: bool = False):
    """Open a file, or the address of a server, in a window of `width` x `height`; yields a View.

    dark: the preference for dark colours. What a page asks of its own server is no request.
    """
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    address = where if isinstance(where, str) else Path(where).resolve().as_uri()
    origin = "/".join(address.split("/")[:3]) + "/" if isinstance(where, str) else address
    own = (origin, origin.replace("http", "ws", 1), "data:", "blob:")
    view = View(context.new_page())

    def complained(message):
        if message.type in ("error", "warning"):
            view.messages.append(f"{message.text} {message.location['url']}")

    def asked(request):
        if not request.url.startswith(own):
            view.requests.append(request.url)

    view.page.on("console", complained)
    view.page.on("pageerror", lambda error: view.messages.append(str(error)))
    view.page.on("request", asked)
    view.page.on("websocket", asked)
    view.page.on("dialog", lambda dialog: (view.messages.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    try:
        view.page.goto(address)
        yield view
    finally:
        context.close()
