"""A spoken conversation through the browser: a microphone, the real server, and ears that listen.

The caller's voice is synthesised when the test runs, and comes from a microphone that says each
sentence when it is told to; the local agent recognises it, and answers by a synthesised voice of
its own. Both speak at the pace of speaking, so that this test takes as long as the conversation
does.
"""

from __future__ import annotations

import audioop
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from bridge.local_agent import phrases
from bridge.local_agent.agent import local_agent
from bridge.local_agent.dialogue import load_dialogue
from bridge.local_agent.pool import Pool
from bridge.local_agent.synthesis import synthesise_all
from tests.browser.driver import Browser
from tests.browser.house import House, house
from tests.browser.softphone import SILENT, SOON, softphone
from tests.world import settings

GREETING = "Good evening!"

# What the caller says: after the greeting; after the reply to that; and into the middle of the
# second reply, which takes ten seconds.
SAID = [
    "i would like to book a table for four at seven",
    "what can i say",
    "when are you open",
]

# Gives the page a microphone in which `say(samples)` is heard, 8000 a second, and else silence.
MICROPHONE = """
    navigator.mediaDevices.getUserMedia = async () => {
      const context = new AudioContext(), microphone = context.createMediaStreamDestination();
      window.say = (samples) => {
        const buffer = context.createBuffer(1, samples.length, 8000);
        buffer.copyToChannel(Float32Array.from(samples, (sample) => sample / 32768), 0);
        const voice = context.createBufferSource();
        voice.buffer = buffer;
        voice.connect(microphone);
        voice.start();
      };
      return microphone.stream;
    };
"""


@pytest.fixture(scope="module")
def voices() -> list[list[int]]:
    """The caller's sentences, as samples."""
    ulaw = trio.run(synthesise_all, SAID)
    return [list(memoryview(audioop.ulaw2lin(voice, 2)).cast("h")) for voice in ulaw]


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


def test_a_spoken_conversation(browser: Browser, here: House, voices: list[list[int]]) -> None:
    with browser.before_scripts(MICROPHONE), softphone(browser, here) as phone:

        def heard(replies: int) -> bool:
            """Whether so many were played to their end, and nothing is left to be played."""
            return (
                replies <= len(phone.messages("out", "mark")) == len(phone.messages("in", "mark"))
            )

        phone.call()
        phone.said("Agent", GREETING)
        browser.until(lambda: heard(1), why="the greeting is not heard")
        assert "a table for four at seven" in browser.texts(".chip")
        browser.click("#all-phrases")
        assert len(browser.all("#chips li:not([hidden])")) == len(phrases())

        browser.run("say(arguments[0])", voices[0])
        phone.said("Agent", "Table")  # after a function of the server's
        browser.until(lambda: heard(2), why="the first reply is not heard")
        browser.run("say(arguments[0])", voices[1])
        phone.said("Agent", "Say: a table for four")
        browser.until(lambda: phone.loudness()[-1][1] > SILENT, why="the second is not heard")
        browser.run("say(arguments[0])", voices[2])
        phone.said("Agent", "open from five")  # to what cut the second off

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
    assert max(interruptions) < SOON, "ms from `clear` to silence"

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
    spoken = [turn.reply_seconds for turn in record.turns if turn.reply_seconds is not None]
    typed = [turn for turn in record.turns if turn.typed_reply_seconds is not None]
    assert len(spoken) >= len(SAID)
    assert min(spoken) > 0.3, "the agent waits for the end of the turn"
    assert len(typed) >= 1
