"""The softphone as a person sees it, and as a probe in the page hears it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.browser.driver import Browser
from tests.browser.house import House
from tests.world import API_TOKEN

PROBE = Path(__file__).with_name("probe.js").read_text(encoding="utf-8")

# Below this nothing is heard; speech's peaks are ten times that.
SILENT = 0.01

# For how many ms a reply may go on after `clear`, on the busiest machine: without it, for seconds.
SOON = 1000


class Softphone:
    """The page, opened in `browser`."""

    def __init__(self, browser: Browser, here: House) -> None:
        self.browser = browser
        self.here = here

    @property
    def state(self) -> str:
        return self.browser.text("#state")

    @property
    def notice(self) -> str:
        return self.browser.text("#notice")

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Who said what, as the transcript shows it: "You", "Agent", "You pressed"."""
        read = """return [...document.querySelectorAll(".line")].map((line) => [
            line.querySelector(".who span").textContent, line.querySelector(".words").innerText])"""
        return [(who, words) for who, words in self.browser.run(read)]

    def call(self) -> None:
        """Press Call, and wait until the line is open."""
        self.browser.click("#call")
        self.connected()

    def connected(self) -> None:
        self.browser.until(
            lambda: self.browser.run("return document.body.dataset.call") == "live",
            why="the call does not begin",
        )

    def write(self, words: str) -> None:
        """Type this into the text field and send it."""
        self.browser.find("#words").send_keys(words + "\n")

    def said(self, who: str, words: str) -> None:
        """Wait until the transcript has a line of `who` with these words in it."""
        self.browser.until(
            lambda: any(who == name and words in line for name, line in self.lines),
            why=f"{who} never says {words!r}",
        )

    def hang_up(self) -> None:
        self.browser.click("#hang-up")
        self.here.quiet()

    def record(self) -> Any:
        """The record of the latest call, from the store."""
        recorder = self.here.bridge.recorder

        async def ended() -> Any:
            (latest,) = await recorder.list_calls(1)
            return await recorder.get(latest.call_sid)

        return self.browser.until(
            lambda: (record := self.here.do(ended)).outcome and record, why="no record"
        )

    # ---- what the probe heard --------------------------------------------------------------

    def messages(self, way: str, event: str) -> list[tuple[float, Any]]:
        """When messages of a kind went which way, in ms, and their mark or digit."""
        return [
            (at, what)
            for at, direction, name, what in self.browser.run("return probe.messages")
            if (direction, name) == (way, event)
        ]

    def loudness(self) -> list[tuple[float, float]]:
        """Peaks of what is heard, by ms."""
        return [(at, peak) for at, peak in self.browser.run("return probe.loudness")]

    def interruptions(self) -> list[float]:
        """For each `clear` that came while the agent was heard: for how many ms it still was."""
        loud = [at for at, peak in self.loudness() if peak > SILENT]
        media = [at for at, _ in self.messages("in", "media")]
        went_on = []
        for cleared, _ in self.messages("in", "clear"):
            if any(cleared - 100 <= at < cleared for at in loud):
                # What comes afterwards is another reply.
                end = min((at for at in media if at > cleared), default=float("inf"))
                went_on.append(max((at for at in loud if cleared <= at < end), default=cleared))
                went_on[-1] -= cleared
        return went_on


@contextmanager
def softphone(
    browser: Browser,
    here: House,
    *,
    path: str = "/softphone?raw",
    host: str = "",
    token: str = API_TOKEN,
) -> Iterator[Softphone]:
    """Open the page with the probe in it, and see to it that it has nothing to complain about."""
    address = here.address.replace("127.0.0.1", host) if host else here.address
    with browser.before_scripts(PROBE):
        browser.open(f"{address}{path}", token)
        phone = Softphone(browser, here)
        yield phone
        assert browser.complaints() == []
        assert browser.hosts() <= {address.partition("://")[2]}
        browser.open("about:blank")
        here.quiet()
