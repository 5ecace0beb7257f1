"""What a process that dies in the middle of a call leaves of it (finding A4)."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from bridge.call.story import Line
from bridge.records.record import CallRecord, Snapshot, tidy
from bridge.records.recorder import UPDATE_SECONDS, Recorder
from bridge.records.writer import RecorderStatistics, Writer
from bridge.testing.agent.server import AgentSession
from tests.unit.records.samples import SID, record
from tests.world import in_memory

Clock = trio.testing.MockClock

SECOND = bytes((n * n // 160 + n) % 251 for n in range(8_000))


class Rows(Writer):
    """A database without threads: `written` has each snapshot, and when it came."""

    def __init__(self) -> None:
        self.written: list[tuple[float, CallRecord]] = []
        self.trouble = ""

    async def open(self) -> None:
        pass

    async def run(self, **_: Any) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def put(self, new: Snapshot) -> None:
        self.written.append((trio.current_time(), tidy(new)))

    def statistics(self) -> RecorderStatistics:
        return RecorderStatistics(trouble=self.trouble)

    def at(self, moment: float) -> CallRecord:
        """The row that a process leaves which dies at that moment."""
        return [one for when, one in self.written if when <= moment][-1]


async def test_no_word_said_more_than_5_s_before_is_missing(autojump_clock: Clock) -> None:
    said: list[tuple[float, str]] = []

    async def script(agent: AgentSession) -> None:
        for number in range(20):
            said.append((trio.current_time(), f"Sentence {number}."))
            await agent.say(said[-1][1], SECOND)
            await trio.sleep(1.5)
            said.append((trio.current_time(), f"Answer {number}."))
            await agent.user_said(said[-1][1])
            await trio.sleep(1.5)

    rows = Rows()
    async with in_memory(script) as world:
        recorder = world.app.extensions["bridge"].recorder = Recorder(rows)
        async with recorder.running(), world.call() as phone:
            began = trio.current_time()
            await trio.sleep(60)
            await phone.hang_up()
        await world.quiet()
    assert len(said) > 30
    for tenth in range(50, 600):
        moment = began + tenth / 10
        row = rows.at(moment)
        words = [line.words for line in row.transcript]
        assert words == [words for _, words in said][: len(words)]
        assert len(words) >= len([when for when, _ in said if when <= moment - 5])
        assert row.outcome == ""
        assert not words or row.agent_seconds > 0
    assert rows.written[-1][1].outcome == "caller_hung_up"
    # Begun, ending, ended; and no more than one in so many seconds.
    assert len(rows.written) <= 3 + 60 / UPDATE_SECONDS


async def test_a_silent_call_is_not_written_again(autojump_clock: Clock) -> None:
    rows = Rows()
    async with in_memory() as world:
        recorder = world.app.extensions["bridge"].recorder = Recorder(rows)
        async with recorder.running(), world.call() as phone:
            await trio.sleep(30)
            assert len(rows.written) == 1
            await phone.hang_up()
        await world.quiet()


async def test_live_calls_are_not_written_while_the_database_is_away(
    autojump_clock: Clock,
) -> None:
    """They would fill the spool. Their words are written as soon as it is back."""
    rows, one = Rows(), record()
    recorder = Recorder(rows)

    def has_grown() -> bool:
        one.transcript.append(Line(words="more"))
        return True

    async with recorder.running():
        recorder.begin(one, has_grown)
        rows.trouble = "no answer"
        await trio.sleep(10 * UPDATE_SECONDS)
        assert len(rows.written) == 1
        rows.trouble = ""
        await trio.sleep(1.5 * UPDATE_SECONDS)
        written = len(rows.written)
        assert written > 1
        recorder.finish(one)
        await trio.sleep(10 * UPDATE_SECONDS)
        assert len(rows.written) == written + 1


async def test_the_end_of_a_leg_does_not_end_the_next_one(autojump_clock: Clock) -> None:
    rows, first, second = Rows(), record(), record(revision=1_000_000)
    recorder = Recorder(rows)
    async with recorder.running():
        recorder.begin(first)
        recorder.begin(second, lambda: True)
        recorder.finish(first)
        written = len(rows.written)
        await trio.sleep(1.5 * UPDATE_SECONDS)
        assert [one.revision for _, one in rows.written[written:]] == [1_000_002]
        assert rows.written[-1][1].call_sid == SID
