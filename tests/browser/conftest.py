"""One browser for all tests of the pages, and a microphone that each of them may fill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.driver import Browser, chromium


@pytest.fixture(scope="session")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WAV file, read by the browser each time a page opens the microphone."""
    return tmp_path_factory.mktemp("microphone") / "voice.wav"


@pytest.fixture(scope="session")
def the_browser(tmp_path_factory: pytest.TempPathFactory, microphone: Path) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser"), microphone=microphone) as browser:
        yield browser


@pytest.fixture
def browser(the_browser: Browser) -> Browser:
    """The browser, as if nobody had used it."""
    the_browser.fresh()
    return the_browser
