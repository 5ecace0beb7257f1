"""From an accepted media socket to the facts of a call, or to the reason why there is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from bridge.call.introduction import NotIntroduced, introduction
from bridge.outcome import Outcome
from bridge.twilio.media_stream import MediaStream, PhoneGone

Clock = trio.testing.MockClock


class Phone:
    """A media socket that sends these texts, one after the other, and then nothing or its end."""

    received_at = 0.0

    def __init__(self, *texts: str, goes: bool = False) -> None:
        self._texts = list(texts)
        self._goes = goes

    async def receive(self) -> list[str | bytes]:
        await trio.lowlevel.checkpoint()
        if self._texts:
            return [self._texts.pop(0)]
        if self._goes:
            raise PhoneGone
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def send(self, text: str) -> None:
        raise NotImplementedError

    async def close(self, code: int, *, by: float) -> None:
        raise NotImplementedError


def start(**details: Any) -> str:
    return json.dumps(
        {"event": "start", "start": {"streamSid": "MZ1", "callSid": "CA1", **details}}
    )


async def introduced(*texts: str, goes: bool = False, **admit: Any) -> Any:
    phone = MediaStream(Phone(*texts, goes=goes))
    return await introduction(phone, 5.0, admit.get("admit", lambda start: None))


async def test_the_facts_of_the_call_without_its_ticket(autojump_clock: Clock) -> None:
    parameters = {"From": "+15550001111", "To": "+15552223333", "ticket": "secret", "x": "y"}
    info = await introduced('{"event":"connected"}', start(customParameters=parameters))
    assert (info.call_sid, info.stream_sid) == ("CA1", "MZ1")
    assert (info.caller, info.called) == ("+15550001111", "+15552223333")
    assert info.parameters == {"From": "+15550001111", "To": "+15552223333", "x": "y"}


async def test_a_phone_that_says_nothing_is_waited_for_so_long(autojump_clock: Clock) -> None:
    with pytest.raises(NotIntroduced, match="within 5 seconds") as refused:
        await introduced('{"event":"connected"}')
    assert refused.value.outcome == Outcome.PROTOCOL_ERROR
    assert trio.current_time() == 5


async def test_a_phone_that_goes_first(autojump_clock: Clock) -> None:
    with pytest.raises(NotIntroduced) as refused:
        await introduced(goes=True)
    assert refused.value.outcome == Outcome.PHONE_LOST


async def test_audio_of_another_format(autojump_clock: Clock) -> None:
    other = {"encoding": "audio/x-l16", "sampleRate": 16000, "channels": 1}
    with pytest.raises(NotIntroduced, match="not µ-law") as refused:
        await introduced(start(mediaFormat=other))
    assert refused.value.outcome == Outcome.PROTOCOL_ERROR


async def test_a_phone_that_is_not_let_in(autojump_clock: Clock) -> None:
    def refuse(start: object) -> None:
        raise NotIntroduced(Outcome.PROTOCOL_ERROR, "no ticket")

    with pytest.raises(NotIntroduced, match="no ticket"):
        await introduced(start(), admit=refuse)
