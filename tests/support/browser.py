"""The machine's Chromium, driven by Playwright: what a person would do to a page, and what the page did meanwhile.

Used by tests and benchmarks.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from playwright.sync_api import ConsoleMessage, Error, sync_playwright
from playwright.sync_api import Request as PageRequest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_MS = 60_000

T = TypeVar("T")


def program() -> str | None:
    """Return the installed Chromium, if there is one."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One tab. `errors` and `requests` are what the page logged as wrong and requested since it was opened.

    Playwright has a thread of its own, because its event loop would keep others from running one in the test's.
    """

    def __init__(self, program: str) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._thread = ThreadPoolExecutor(1, "browser")
        self._call(lambda: self._start(program))

    def _call(self, action: Callable[[], T]) -> T:
        return self._thread.submit(action).result()

    def _start(self, program: str) -> None:
        self._playwright = sync_playwright().start()
        # Chromium's sandbox does not run as root.
        sandbox = os.geteuid() != 0
        self._chromium = self._playwright.chromium.launch(executable_path=program, chromium_sandbox=sandbox)
        self._page = self._chromium.new_page(viewport={"width": 1400, "height": 1000})
        self._page.set_default_timeout(TIMEOUT_MS)
        self._session = self._page.context.new_cdp_session(self._page)
        self._page.on("pageerror", lambda error: self.errors.append(str(error)))
        self._page.on("console", self._note_message)
        self._page.on("request", self._note_request)

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.errors.append(message.text)

    def _note_request(self, request: PageRequest) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self.requests.append(request.url)

    def close(self) -> None:
        self._call(self._chromium.close)
        self._call(self._playwright.stop)
        self._thread.shutdown()

    def open(self, page: Path | str) -> None:
        """Return once the file, or what is at the address, has loaded; `requests` then has it first."""
        self.errors.clear()
        self.requests.clear()
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self._call(lambda: self._page.goto(address, wait_until="load"))
        self.settle()

    def settle(self) -> None:
        """Return two frames later, when what was to be drawn is drawn."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")

    def until(self, condition: str, seconds: float = 60) -> None:
        """Return once an expression in the page is true; raises `TimeoutError` where it never gets so."""
        deadline = time.monotonic() + seconds
        while not self._is_true(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{condition} has not come true within {seconds:g} s")
            time.sleep(0.1)
        self.settle()

    def _is_true(self, condition: str) -> bool:
        try:
            return bool(self.evaluate(condition))
        except Error as error:
            if "context was destroyed" in error.message:  # another page is being opened
                return False
            raise

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page, awaited; raises where the page does."""
        return self._call(lambda: self._page.evaluate(script))

    def resize(self, width: int = 1400, height: int = 1000, *, touch: bool = False) -> None:
        self._call(lambda: self._page.set_viewport_size({"width": width, "height": height}))
        self._call(lambda: self._session.send("Emulation.setTouchEmulationEnabled", {"enabled": touch}))

    def dark(self, dark: bool) -> None:
        self._call(lambda: self._page.emulate_media(color_scheme="dark" if dark else "light"))
        self.settle()

    def hover(self, x: float, y: float) -> None:
        self._call(lambda: self._page.mouse.move(x, y))
        self.settle()

    def click(self, x: float, y: float) -> None:
        self._call(lambda: self._page.mouse.click(x, y))
        self.settle()

    def tap(self, x: float, y: float) -> None:
        for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            event = {"type": kind, "touchPoints": points}
            self._call(lambda event=event: self._session.send("Input.dispatchTouchEvent", event))
        self.settle()

    def press(self, key: str) -> None:
        self._call(lambda: self._page.keyboard.press(key))
        self.settle()

    def write(self, text: str) -> None:
        """Put text where the focus is, as an input method would."""
        self._call(lambda: self._page.keyboard.insert_text(text))

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._call(lambda: self._page.screenshot(path=path, full_page=whole))
