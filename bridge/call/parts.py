"""The parts of one call and how they are connected. `call.py` says what happens between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import trio

from bridge.call.actions import CallActions
from bridge.call.conversation import Conversation
from bridge.call.downlink import Downlink, Recording
from bridge.call.earlier import NOTHING_EARLIER, Earlier
from bridge.call.goodbye import PoliteEnd, Transfer
from bridge.call.observers import Observer
from bridge.call.report import CallReport
from bridge.call.silence import Silence
from bridge.call.story import Story
from bridge.call.timekeeper import Timekeeper
from bridge.call.typed import TypedInput
from bridge.call.uplink import Uplink
from bridge.call.voice import Voice
from bridge.caller import CallInfo
from bridge.config.settings import Settings
from bridge.deepgram.session import AgentSession
from bridge.deepgram.settings import uses_flux
from bridge.deepgram.updates import AgentTable
from bridge.ending import Ending, Sign
from bridge.functions import Functions
from bridge.functions.builtin import built_in
from bridge.functions.errors import NotTaken
from bridge.outcome import Outcome
from bridge.twilio.media_clock import MediaClock
from bridge.twilio.media_stream import MediaStream

# Shares of `call.teardown_seconds`, counted from the first sign of the end: the caller's last words
# first, then both goodbyes in parallel; the rest is for dropping a peer that does not answer.
LAST_WORDS_SHARE: Final = 0.25
GOODBYE_SHARE: Final = 0.85

_CLOSE_CODES: Final = {
    Outcome.INTERNAL_ERROR: 1011,
    Outcome.PROTOCOL_ERROR: 1002,
    Outcome.SERVER_SHUTDOWN: 1001,  # going away
    None: 1001,
}


def close_code(outcome: Outcome | None) -> int:
    """Return the code of the Close frame to the phone (RFC 6455, section 7.4.1)."""
    return _CLOSE_CODES.get(outcome, 1000)


class OpenedAgent(NamedTuple):
    """A session with the agent, the agent's name, and its table in the session's Settings."""

    session: AgentSession
    name: str
    table: dict[str, Any]


class OpenAgent(Protocol):
    """Opens a session with the agent of one call, for as long as the context lasts.

    `history` resumes a conversation; None begins one. `table` is the agent's table as a function
    has changed it; empty for the configured one. Closing takes until `ending.by()` at most.
    Raises AgentUnavailable or AgentFailed on entering.
    """

    def __call__(
        self,
        ending: Ending[Outcome],
        schemas: Sequence[Mapping[str, Any]],
        history: Sequence[Mapping[str, Any]] | None,
        table: dict[str, Any],
    ) -> AbstractAsyncContextManager[OpenedAgent]: ...


class Delays(Protocol):
    """Receives samples of the delay, in seconds, that bridge adds to audio."""

    def uplink_delay(self, seconds: float) -> None: ...

    def downlink_delay(self, seconds: float) -> None: ...


class CallParts:
    """The parts of one call, complete when constructed; the call begins now, with Twilio's `start`.

    `recording` is None if recordings are off. `transfer` has Twilio connect the caller elsewhere;
    None leaves that to `/call-ended`. `earlier` are the call's legs before this one.
    """

    def __init__(
        self,
        phone: MediaStream,
        info: CallInfo,
        settings: Settings,
        open_agent: OpenAgent,
        functions: Functions,
        observer: Observer,
        delays: Delays,
        recording: Recording | None = None,
        transfer: Transfer | None = None,
        earlier: Earlier = NOTHING_EARLIER,
    ) -> None:
        call = settings.call
        self.began_at = trio.current_time()
        self.earlier = earlier
        self.report = CallReport(info, leg=earlier.leg)
        self.words = settings.words
        self.ending = Ending(
            GOODBYE_SHARE * call.teardown_seconds,
            crashed=Outcome.INTERNAL_ERROR,
            cancelled=Outcome.SERVER_SHUTDOWN,
            told=self._is_ending,
        )
        self.last_words_seconds = LAST_WORDS_SHARE * call.teardown_seconds
        self.max_reconnects = settings.deepgram.max_reconnects
        self.losses = 0
        self.phone = phone
        self.open_agent = open_agent
        self.observer = observer
        self.recording = recording
        self.media_clock = MediaClock()
        self.voice = Voice()
        self.story = Story(self.began_at - earlier.seconds, self.voice)
        self.silence = Silence(call.idle_seconds, call.stall_seconds, self.voice)
        self.uplink = Uplink(call.frame_ms, delays.uplink_delay)
        self.downlink = Downlink(phone, self.story, self.silence, recording, delays.downlink_delay)
        self.table = AgentTable()
        self.conversation = Conversation(
            self.downlink,
            self.story,
            self.silence,
            self.table,
            self.words,
            changed=partial(observer.changed, self),
            greeting_protected=not call.interruptible_greeting,
            earlier=earlier,
        )
        self.polite_end = PoliteEnd(
            self.conversation, self.downlink.wait_played, self.ending, self.report, transfer
        )
        self.functions = functions + built_in(self.polite_end, settings.functions)
        self.typed = TypedInput(self.conversation, self.words, lambda: uses_flux(self.table.now))
        self.actions = CallActions(
            self.conversation,
            self.table,
            lambda: self.functions,
            self.polite_end,
            self.ending,
            settings.functions.transfer_to,
        )
        self.timekeeper = Timekeeper(
            self.conversation,
            self.silence,
            self.typed,
            self.polite_end,
            call,
            self.words,
            self.voice,
            suspicions=self.max_reconnects,
            began_at=self.began_at - earlier.seconds,
            filler_seconds=settings.functions.filler_seconds,
        )

    @property
    def seconds_so_far(self) -> float:
        """How many seconds this leg of the call has lasted."""
        return trio.current_time() - self.began_at

    def say(self, words: str) -> None:
        """Treat `words` as the caller's, as if they had been spoken. Returns at once.

        Raises NotTaken when the call is ending, or when too many messages are waiting.
        """
        if self.report.outcome is not None:
            raise NotTaken("the call is ending")
        self.typed.say(words)

    def finish_report(self) -> None:
        """Complete the report when the call is over, and log its line."""
        report, phone = self.report, self.phone
        report.seconds = self.seconds_so_far
        if self.ending.first is not None:
            report.teardown_seconds = trio.current_time() - self.ending.first.at
        report.dropped_bytes = self.uplink.bytes_dropped
        report.bad_messages += phone.bad_messages
        report.write_line(
            from_phone_bytes=phone.bytes_received,
            from_phone_frames=phone.frames_received,
            to_phone_bytes=phone.bytes_sent,
            to_phone_frames=phone.frames_sent,
        )
        self.observer.ended(self)

    def _is_ending(self, sign: Sign) -> None:
        self.report.outcome, self.report.reason, self.report.cause, _ = sign
        self.story.over(sign.at)
        if self.recording is not None:
            self.recording.finish(self.seconds_so_far)
        self.observer.is_ending(self)
