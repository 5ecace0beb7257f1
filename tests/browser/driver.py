"""A headless Chromium for the tests of the pages: Debian's, driven by selenium.

    with chromium(folder, microphone=wav) as browser:
        browser.open(f"{base}/softphone")
        browser.click("#call")
        browser.until(lambda: browser.text("#state") == "Connected")

It sees what the page asks of the network and says on its console, and can be made narrow, dark, or
deaf. One start takes a second or two; tests of a module share a browser (`fresh` makes it forget).
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import JavascriptException, StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.world import API_TOKEN

# Nothing on these pages takes longer, and what does is a test that hangs.
PATIENCE = 60.0

WIDE, NARROW = 1280, 390
ARTEFACTS = "BRIDGE_TEST_ARTEFACTS"

_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the tests run as root
    "--disable-gpu",
    "--hide-scrollbars",  # a picture is as wide as the page
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-search-engine-choice-screen",
    "--use-fake-device-for-media-stream",
    # A name that is not this machine's and leads to it: there is no secure context under it.
    "--host-resolver-rules=MAP far.example 127.0.0.1",
)


class Browser:
    """One window. Elements are named by CSS selectors; every wait has an end."""

    def __init__(self, driver: webdriver.Chrome, artefacts: Path) -> None:
        self.driver = driver
        self.artefacts = artefacts

    def open(self, url: str, token: str = API_TOKEN) -> None:
        """Go to an address, as the server prints it; with an empty token, to the bare one."""
        self.driver.get(f"{url}#token={token}" if token and url != "about:blank" else url)

    def find(self, selector: str) -> WebElement:
        """The first element that matches. Raises NoSuchElementException."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """All elements that match."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """What an element shows: nothing while it is hidden."""
        return self.find(selector).text

    def texts(self, selector: str) -> list[str]:
        """What all matching elements show, in order; read at one moment."""
        return list(
            self.run(
                "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)",
                selector,
            )
        )

    def click(self, selector: str) -> None:
        """Click an element, as a person does: again if the page drew it anew meanwhile."""
        self.until(lambda: self._clicked(selector))

    def _clicked(self, selector: str) -> bool:
        try:
            self.find(selector).click()
        except StaleElementReferenceException:
            return False
        return True

    def type(self, keys: str) -> None:
        """Press keys, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(keys)

    def focused(self) -> str:
        """The name of what has the focus: its label, or what it shows."""
        return str(
            self.run(
                """const at = document.activeElement;
                return at.ariaLabel ?? at.labels?.[0]?.textContent ?? at.innerText.trim()"""
            )
        )

    def tab_to(self, name: str, limit: int = 40) -> None:
        """Press Tab until the focus is on what is called so."""
        passed = []
        for _ in range(limit):
            self.type(Keys.TAB)
            passed.append(self.focused())
            if passed[-1] == name:
                return
        raise AssertionError(f"Tab never reaches {name!r}, only {passed}")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page; a promise is waited for."""
        return self.driver.execute_script(script, *arguments)

    def until(
        self, what: Callable[[], Any], seconds: float = PATIENCE, *, why: str = "it never came"
    ) -> Any:
        """Wait until `what` gives something, and return that."""
        end = time.monotonic() + seconds
        while True:
            try:
                if found := what():
                    return found
            except (StaleElementReferenceException, JavascriptException):
                pass  # the page is drawing itself anew
            if time.monotonic() > end:
                raise AssertionError(f"{why}; the page shows:\n{self.text('body')}")
            time.sleep(0.03)

    # ---- the looks -------------------------------------------------------------------------

    def look(self, *, width: int = WIDE, height: int = 900, dark: bool = False) -> None:
        """Make the window so wide, and the system light or dark."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = "dark" if dark else "light"
        self.cdp(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def picture(self, name: str) -> Path:
        """Keep a picture of the page, whole, as NAME.png."""
        shot = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path = self.artefacts / f"{name}.png"
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def pictures(self, name: str, *, height: int = 900) -> None:
        """Keep pictures of the page light and dark, wide and narrow."""
        for width in (WIDE, NARROW):
            for dark in (False, True):
                self.look(width=width, height=height, dark=dark)
                shape = "wide" if width == WIDE else "narrow"
                self.picture(f"{name}-{shape}-{'dark' if dark else 'light'}")
        self.look()

    # ---- what is done to the page before it begins -----------------------------------------

    @contextmanager
    def before_scripts(self, source: str) -> Iterator[None]:
        """Have this JavaScript run in every page that is opened meanwhile, before its own."""
        added = self.cdp("Page.addScriptToEvaluateOnNewDocument", source=source)
        try:
            yield
        finally:
            self.cdp("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])

    # ---- what it sees of the page ----------------------------------------------------------

    def complaints(self) -> list[str]:
        """Errors and warnings on the console since the last time, exceptions and CSP included."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("WARNING", "SEVERE")
        ]

    def hosts(self) -> set[str]:
        """Every host and port the page has asked for something since the last time."""
        hosts = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            parameters = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                url = parameters["request"]["url"]
            elif message["method"] == "Network.webSocketCreated":
                url = parameters["url"]
            else:
                continue
            parts = urlsplit(url)
            if parts.scheme in ("http", "https", "ws", "wss"):
                hosts.add(parts.netloc)
        return hosts

    def microphone(self, setting: str, origin: str) -> None:
        """What the person says whom the browser asks for the microphone: "granted", which is what
        a fresh browser has everywhere, "denied", or nothing yet, "prompt"."""
        self.cdp("Browser.resetPermissions")
        if setting != "prompt":
            name = {"name": "microphone"}
            self.cdp("Browser.setPermission", permission=name, setting=setting, origin=origin)

    def fresh(self) -> None:
        """Forget what tests before have left: the page, its storage, its logs, its looks."""
        self.driver.get("about:blank")
        self.cdp("Browser.resetPermissions")
        self.cdp("Browser.grantPermissions", permissions=["audioCapture"])
        self.cdp("Network.clearBrowserCookies")
        self.look()
        self.complaints()
        self.hosts()

    def cdp(self, command: str, **parameters: Any) -> Any:
        """A command of the Chrome DevTools Protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)


@contextmanager
def chromium(folder: Path, *, microphone: Path | None = None) -> Iterator[Browser]:
    """A browser with a profile of its own in `folder`.

    `microphone` is a WAV file that is heard once from its beginning each time a page opens the
    microphone; it is read then, so it may change between calls. Pictures go to the folder that
    BRIDGE_TEST_ARTEFACTS names, else into `folder`.
    """
    artefacts = Path(os.environ.get(ARTEFACTS, "") or folder / "pictures")
    artefacts.mkdir(parents=True, exist_ok=True)
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*_FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    if microphone is not None:
        options.add_argument(f"--use-file-for-fake-audio-capture={microphone}%noloop")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
    try:
        driver.set_page_load_timeout(PATIENCE)
        driver.set_script_timeout(PATIENCE)
        browser = Browser(driver, artefacts)
        browser.fresh()
        yield browser
    finally:
        driver.quit()
