"""The agent's audio on its way to the phone, without an agent and without a socket."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest
import trio
import trio.testing

from bridge.call.downlink import MAX_MEDIA_BYTES, Downlink
from bridge.call.silence import Silence
from bridge.call.story import Story
from bridge.call.voice import Voice
from bridge.twilio.media_stream import MediaStream

Clock = trio.testing.MockClock
SECOND = b"\x11" * 8000
START = json.dumps({"event": "start", "start": {"streamSid": "MZ1", "callSid": "CA1"}})


class Phone:
    """A media socket that notes what it is sent, and takes `seconds` for each message."""

    received_at = 0.0

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> list[str | bytes]:
        return [START]

    async def send(self, text: str) -> None:
        await trio.sleep(self.seconds)
        self.sent.append(json.loads(text))

    async def close(self, code: int, *, by: float) -> None:
        raise NotImplementedError

    @property
    def events(self) -> list[str]:
        return [message["event"] for message in self.sent]

    @property
    def audio(self) -> list[int]:
        """The lengths of the media messages."""
        media = [message["media"] for message in self.sent if message["event"] == "media"]
        return [len(b64decode(one["payload"])) for one in media]


async def downlink_to(phone: Phone) -> tuple[Downlink, Story]:
    stream = MediaStream(phone)
    await stream.start()
    voice = Voice()
    story = Story(trio.current_time(), voice)
    return Downlink(stream, story, Silence(30, 10, voice), None, lambda seconds: None), story


async def test_audio_that_came_together_is_one_message(autojump_clock: Clock) -> None:
    phone = Phone()
    downlink, story = await downlink_to(phone)
    for _ in range(3):
        downlink.put(b"\x11" * 160, trio.current_time())
    assert await downlink.play(), "the agent begins to be heard"
    assert phone.audio == [480]
    downlink.put(b"\x11" * 160, trio.current_time())
    assert not await downlink.play()
    assert story.turns[0].first_audio_sent_at == 0.0


async def test_a_burst_goes_out_in_messages_that_a_clear_can_overtake(
    autojump_clock: Clock,
) -> None:
    phone = Phone()
    downlink, _ = await downlink_to(phone)
    downlink.put(SECOND * 2 + b"\x11" * 160, trio.current_time())
    await downlink.play()
    assert phone.audio == [MAX_MEDIA_BYTES, MAX_MEDIA_BYTES, 160]


async def test_a_rest_shorter_than_a_frame_waits_for_the_end_of_the_utterance(
    autojump_clock: Clock,
) -> None:
    phone = Phone()
    downlink, _ = await downlink_to(phone)
    downlink.put(b"\x11" * 200, trio.current_time())
    await downlink.play()
    assert phone.audio == [160]
    mark = await downlink.finish_utterance()
    assert phone.audio == [160, 40]
    assert phone.sent[-1] == {"event": "mark", "streamSid": "MZ1", "mark": {"name": mark}}


async def test_silence_needs_no_mark(autojump_clock: Clock) -> None:
    phone = Phone()
    downlink, _ = await downlink_to(phone)
    assert await downlink.finish_utterance() is None
    assert phone.events == []


async def test_after_clear_nothing_of_the_reply_is_sent_any_more(autojump_clock: Clock) -> None:
    phone = Phone()
    downlink, story = await downlink_to(phone)
    downlink.put(SECOND, trio.current_time())
    await downlink.play()
    story.agent_line("A long story.", trio.current_time())
    await trio.sleep(0.25)
    downlink.put(SECOND, trio.current_time())
    await downlink.clear(trio.current_time())
    downlink.put(SECOND, trio.current_time())  # stale: it was on the wire
    await downlink.play()
    assert phone.events == ["media", "clear"]
    assert downlink.bytes_dropped == 2 * len(SECOND)
    assert story.barge_ins == 1


async def test_a_clear_from_another_task_stops_a_burst_that_is_being_sent(
    autojump_clock: Clock,
) -> None:
    """Words that the caller writes cut in while the agent reader is writing."""
    phone = Phone(seconds=1.0)
    downlink, _ = await downlink_to(phone)
    downlink.put(SECOND * 3, trio.current_time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(downlink.play)
        await trio.sleep(0.5)
        nursery.start_soon(downlink.clear, trio.current_time())
    assert phone.events == ["media", "clear"]


@pytest.mark.parametrize("cleared", [False, True])
async def test_a_mark_that_returns_was_heard_unless_it_was_cleared(
    autojump_clock: Clock, cleared: bool
) -> None:
    phone = Phone()
    downlink, story = await downlink_to(phone)
    story.agent_line("Hello.", trio.current_time())
    downlink.put(SECOND, trio.current_time())
    mark = await downlink.finish_utterance()
    assert mark is not None
    if cleared:
        await downlink.clear(trio.current_time())
    await trio.sleep(1)
    assert downlink.mark_returned(mark, trio.current_time()) == ([] if cleared else [mark])
    assert story.lines[0].heard == ("unheard" if cleared else "heard")


async def test_waiting_until_all_is_played(autojump_clock: Clock) -> None:
    downlink, _ = await downlink_to(Phone())
    downlink.put(SECOND * 2, trio.current_time())
    await downlink.play()
    await downlink.wait_played()
    assert trio.current_time() == pytest.approx(2.0)
