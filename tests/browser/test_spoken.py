"""A spoken conversation through the browser: a microphone, the real server, and ears that listen.

The caller's voice is synthesised when the test runs, and heard by Chromium's fake microphone; the
local agent recognises it, and answers by a synthesised voice of its own. Both speak at the pace of
speaking, so that this test takes as long as the conversation does.
"""

from __future__ import annotations

import audioop
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from bridge.local_agent import phrases
from bridge.local_agent.agent import local_agent
from bridge.local_agent.dialogue import load_dialogue
from bridge.local_agent.pool import Pool
from bridge.local_agent.synthesis import synthesise_all
from tests.browser.driver import Browser
from tests.browser.house import House, house
from tests.browser.softphone import SILENT, softphone
from tests.world import settings

GREETING = "Good evening!"

# What the caller says, and the seconds of silence before it: for the greeting; for the reply to
# the first; and into the middle of the reply to the second, which takes ten.
SAID = [
    (3.0, "i would like to book a table for four at seven"),
    (7.5, "what can i say"),
    (3.5, "when are you open"),
]


@pytest.fixture(scope="module")
def spoken(microphone: Path) -> None:
    """Fill the microphone with the caller's voice."""
    voices = trio.run(synthesise_all, [words for _, words in SAID])
    ulaw = b"".join(
        b"\xff" * round(8000 * pause) + voice
        for (pause, _), voice in zip(SAID, voices, strict=True)
    )
    with wave.open(str(microphone), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(audioop.ulaw2lin(ulaw + b"\xff" * 8000, 2))


@asynccontextmanager
async def restaurant() -> AsyncIterator[str]:
    """The local agent that `bridge demo` runs."""
    dialogue = load_dialogue()
    pool = Pool(dialogue.setup(), size=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        port = await nursery.start(local_agent(dialogue, pool).serve)
        yield f"ws://127.0.0.1:{port}/v1/agent/converse"
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    database = tmp_path_factory.mktemp("records") / "calls.db"
    using = settings(
        records={"url": f"sqlite:///{database}"},
        functions={"module": "bridge.local_agent.restaurant"},
        agent={"greeting": GREETING},
    )
    with house(restaurant, using=using) as here:
        here.bridge.phrases = tuple(phrases())
        yield here


def test_a_spoken_conversation(browser: Browser, here: House, spoken: None) -> None:
    with softphone(browser, here) as phone:
        phone.call()
        phone.said("Agent", GREETING)
        assert "a table for four at seven" in browser.texts(".chip")
        browser.click("#all-phrases")
        assert len(browser.all("#chips li:not([hidden])")) == len(phrases())

        phone.said("Agent", "Table")  # the first reply, after a function of the server's
        phone.said("Agent", "Say: a table for four")
        phone.said("Agent", "open from five")  # the third, to what cut the second off

        browser.until(lambda: phone.loudness()[-1][1] > SILENT, why="the reply is not heard")
        browser.click('.key[data-digit="5"]')
        browser.click('.key[data-digit="#"]')  # that is all: no pause is waited for
        phone.said("You pressed", "5")
        phone.write("my name is anna")
        phone.said("Agent", "Nice to meet you, Anna.")
        browser.pictures("softphone-spoken")
        interruptions = phone.interruptions()
        phone.hang_up()

    assert interruptions, "the caller spoke into a reply"
    assert max(interruptions) < 200, "ms from `clear` to silence"

    record = phone.record()
    assert record.outcome == "caller_hung_up"
    said = [(line.role, line.words) for line in record.transcript]
    assert [words for role, words in said if role == "caller"][-1] == "my name is anna"
    assert len([role for role, _ in said if role == "caller"]) >= 4
    assert ("keypad", "5") in said
    assert record.barge_ins >= 1
    # A reply comes sentence by sentence, and where in it the caller cut in is a matter of timing.
    help_began = next(i for i, (_, words) in enumerate(said) if words.startswith("Say: a table"))
    help_ended = next(i for i, (role, _) in enumerate(said) if i > help_began and role == "caller")
    help_heard = [line.heard for line in record.transcript[help_began:help_ended]]
    assert set(help_heard) & {"cut", "unheard"}, help_heard
    assert [function.name for function in record.functions] == ["book_table"]
    assert record.functions[0].result == "ok"
    timed = [turn for turn in record.turns if turn.caller_said_at and turn.first_audio_sent_at]
    assert len(timed) >= len(SAID) + 1, "three spoken turns and a typed one"
