"""Take the pictures of the README pages: `python -m tests.browser.pictures [FOLDER]`.

Two callers talk to the local agent through softphones in Chromium, under the real server; one of
them books a table. Pictures of that softphone and of the console go to deploy/images, or FOLDER.
"""

from __future__ import annotations

import sys
import wave
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from bridge.local_agent.agent import local_agent
from bridge.local_agent.dialogue import load_dialogue
from bridge.local_agent.pool import Pool
from tests.browser.driver import Browser, chromium
from tests.browser.house import house
from tests.browser.softphone import Softphone
from tests.world import settings

IMAGES = Path(__file__).parents[2] / "deploy" / "images"


@asynccontextmanager
async def restaurant() -> AsyncIterator[str]:
    """Run the agent of `bridge demo`, for two calls at once."""
    dialogue = load_dialogue()
    pool = Pool(dialogue.setup(), size=2)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        port = await nursery.start(local_agent(dialogue, pool).serve)
        yield f"ws://127.0.0.1:{port}/v1/agent/converse"
        nursery.cancel_scope.cancel(reason="the pictures are taken")


BOOKING = [
    ("i would like to book a table", "For how many people?"),
    ("for four", "At what time?"),
    ("at half past seven", "is yours: for four"),
]


def main(folder: Path) -> None:
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        using = settings(
            records={"url": f"sqlite:///{scratch / 'calls.db'}"},
            functions={"module": "bridge.local_agent.restaurant"},
            agent={"greeting": load_dialogue().file.greeting},
        )
        here = stack.enter_context(house(restaurant, using=using))
        browser = stack.enter_context(chromium(scratch, microphone=silence(scratch / "mic.wav")))
        browser.artefacts = folder
        browser.open(f"{here.address}/softphone")
        phone = Softphone(browser, here)
        phone.call()
        listen(phone, "what you can say")
        for words, reply in BOOKING:
            phone.write(words)
            listen(phone, reply)
        take(browser, "softphone", height=900)
        browser.driver.switch_to.new_window("tab")
        browser.open(f"{here.address}/softphone")
        other = Softphone(browser, here)
        other.call()
        listen(other, "what you can say")
        other.write("when are you open")
        other.said("Agent", "every day but Monday")
        browser.driver.switch_to.new_window("tab")
        browser.open(f"{here.address}/")
        browser.until(lambda: "every day but Monday" in browser.text("body"))
        take(browser, "console", height=900)


def silence(path: Path) -> Path:
    """Write a microphone's WAV in which nobody speaks: Chromium's own would beep."""
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(16_000))
    return path


def listen(phone: Softphone, reply: str) -> None:
    """Hear the agent out."""
    phone.said("Agent", reply)
    phone.browser.until(lambda: "istening" in phone.state)


def take(browser: Browser, name: str, *, height: int) -> None:
    browser.look(height=height)
    browser.run("document.activeElement.blur()")
    print(browser.picture(name))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
