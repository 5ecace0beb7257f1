"""The story of a call: one nursery, three tasks, and every way it can end.

    phone ──▶ receiver ──▶ uplink (bounded channel) ──▶ sender ──▶ agent
    phone ◀────────────────────────────────── agent reader ◀── agent

The *receiver* owns the phone's socket: it reads what Twilio says and closes the socket when the
call is over. The *agent reader* owns the agent's session: it opens one as soon as the receiver
knows who is calling, plays what the agent says to the phone, and closes the session. The *sender*
carries the caller's voice between them. They meet in three channels, all bounded: the facts of
the call, once; the open session, once; and the caller's audio, for as long as the call lasts.

However a call ends, it ends like this. Whoever sees the first sign calls `_end`, which records the
outcome, once, and starts one clock: by its deadlines the caller's last words reach the agent, both
sockets say goodbye, and whoever does not answer is cut off. A failure nobody foresaw needs no code
here: it leaves its task as an exception, the nursery cancels the other two, and their cleanup is
the same as in any other ending.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio
from structlog.contextvars import bind_contextvars

from bridge.agent.messages import InjectAgentMessage
from bridge.agent.session import AgentClosed, AgentFailed, AgentSession, AgentUnavailable
from bridge.conversation import Conversation
from bridge.functions import CallInfo, Functions
from bridge.functions.calls import FunctionCalls
from bridge.log import get_logger
from bridge.outcome import Outcome
from bridge.playback import Playback
from bridge.twilio import messages as phone_says
from bridge.twilio.media_stream import MediaStream, PhoneGone
from bridge.uplink import Uplink

log = get_logger(__name__)

# Shares of `call.teardown_seconds`, counted from the first sign of the end. The caller's last
# words first; then the two goodbyes, side by side; the rest is for cutting off who did not answer.
LAST_WORDS_SHARE: Final = 0.25
GOODBYE_SHARE: Final = 0.85

# When the server must stop, the agent says this, in one sentence so that it is one utterance...
FAREWELL: Final = "I'm sorry, this call has to end now, please call again, goodbye."
# ...and the caller has so many seconds to hear it: five to speak it, three for the agent to begin.
FAREWELL_SECONDS: Final = 8.0


GoodbyeBy = Callable[[], float]


class OpenAgent(Protocol):
    """Opens the agent session of one call; see `bridge.agent.session.open_session`."""

    def __call__(
        self, nursery: trio.Nursery, info: CallInfo, *, close_by: GoodbyeBy
    ) -> AbstractAsyncContextManager[AgentSession]: ...


@dataclass
class CallReport:
    """How a call went. `cause` is the exception behind the outcome, if there is one.

    Times in seconds: the whole call; from `start` to an agent that listens; from the first sign of
    the end to the last byte of teardown; from each UserStartedSpeaking to its `clear` written.
    """

    outcome: Outcome | None = None
    reason: str = ""
    cause: BaseException | None = None
    info: CallInfo | None = None
    seconds: float = 0.0
    setup_seconds: float | None = None
    teardown_seconds: float = 0.0
    barge_in_seconds: list[float] = field(default_factory=list)
    dropped_bytes: int = 0


@dataclass
class _Farewell:
    """How far the agent's goodbye has come: asked for, in words, sent up to a mark, heard."""

    asked: bool = False
    said: bool = False
    mark: str | None = None
    heard: trio.Event = field(default_factory=trio.Event)


class Call:
    """One phone call, from the media socket's first message to the last byte of teardown."""

    def __init__(
        self,
        phone: MediaStream,
        open_agent: OpenAgent,
        functions: Functions,
        *,
        frame_ms: int = 60,
        start_timeout: float = 5.0,
        teardown_seconds: float = 2.0,
    ) -> None:
        self.report = CallReport()
        self._phone = phone
        self._open_agent = open_agent
        self._functions = functions
        self._start_timeout = start_timeout
        self._teardown_seconds = teardown_seconds
        self._uplink = Uplink(frame_ms)
        # One slot each: they carry one thing once, and whoever puts it must never wait.
        self._tell_info, self._info = trio.open_memory_channel[CallInfo](1)
        self._offer_session, self._session = trio.open_memory_channel[AgentSession](1)
        self._agent: AgentSession | None = None
        self._playback = Playback()
        self._conversation = Conversation(
            phone,
            self._playback,
            on_said=self._said,
            on_utterance_sent=self._utterance_sent,
            on_barge_in=self.report.barge_in_seconds.append,
        )
        self._farewell = _Farewell()
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._began_at = self._started_at = trio.current_time()
        self._ended_at: float | None = None

    async def run(self) -> CallReport:
        """Carry the call until it ends, for whatever reason, and report how it went.

        When this returns or raises, the call's tasks have ended and both sockets are closed, at
        most `teardown_seconds` after the first sign of the end. Only cancellation and what is not
        an `Exception` are raised; everything else is an outcome.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery, self._scope = nursery, nursery.cancel_scope
                nursery.start_soon(self._receiver, name="receiver")
                nursery.start_soon(self._part, self._sender, name="sender")
                nursery.start_soon(self._part, self._agent_reader, nursery, name="agent reader")
        except* Exception as group:
            self._end(Outcome.INTERNAL_ERROR, "a part of the call failed", group)
            # Whole: with several failures at once, which was first may not be what one looks for.
            self.report.cause = group
        finally:
            # Without an outcome so far, it was cancelled from outside.
            self._end(Outcome.SERVER_SHUTDOWN, "the server is stopping")
            self._log_end()
        return self.report

    # ---- the three tasks -------------------------------------------------------------------

    async def _receiver(self) -> None:
        """Phone to uplink: what Twilio says, in order, until there is no more."""
        try:
            await self._part(self._listen)
        finally:
            self._uplink.end()
            # This task, because it never writes and so is never stuck behind a phone that has
            # stopped reading.
            with trio.CancelScope(shield=True):
                await self._phone.close(self._close_code(), by=self._goodbye_by())

    async def _sender(self) -> None:
        """Uplink to agent: the caller's voice, a frame at a time, silence where there is none."""
        agent = await self._session.receive()
        try:
            while True:
                await agent.send_audio(await self._uplink.take())
        except trio.EndOfChannel:
            # The caller is gone and has been heard to the end.
            self._scope.cancel(reason="the caller's last words are sent")
        except AgentClosed:
            # The agent reader hears of it too, after what the agent said last, which is the cause.
            return

    async def _agent_reader(self, nursery: trio.Nursery) -> None:
        """Agent to phone: what the agent says, from its first word to the end of its session."""
        info = await self._info.receive()
        bind_contextvars(call_sid=info.call_sid)
        try:
            async with self._open_agent(nursery, info, close_by=self._goodbye_by) as agent:
                self._agent = agent
                self.report.setup_seconds = trio.current_time() - self._started_at
                functions = FunctionCalls(self._functions, info, agent.send)
                self._offer_session.send_nowait(agent)
                await self._conversation.follow(agent, functions, nursery)
        except AgentUnavailable as error:
            self._end(Outcome.AGENT_UNREACHABLE, str(error), error)
        except AgentFailed as error:
            self._end(Outcome.AGENT_FAILED, str(error), error)
        except AgentClosed as error:
            outcome = Outcome.AGENT_ENDED if error.clean else Outcome.AGENT_FAILED
            self._end(outcome, str(error), error)

    # ---- what the phone says --------------------------------------------------------------

    async def _listen(self) -> None:
        try:
            with trio.fail_after(self._start_timeout):
                start = await self._phone.start()
        except trio.TooSlowError:
            waited = f"no start message within {self._start_timeout:g} seconds"
            return self._end(Outcome.PROTOCOL_ERROR, waited)
        except PhoneGone:
            return self._end(Outcome.PHONE_LOST, "the phone's socket closed before start")
        if start.media_format != phone_says.MediaFormat():
            return self._end(Outcome.PROTOCOL_ERROR, f"not µ-law at 8 kHz: {start.media_format}")
        self._introduce(start)
        try:
            while True:
                match await self._phone.receive():
                    case phone_says.Media(media=media):
                        self._uplink.put(media.payload)
                    case phone_says.Dtmf(dtmf=dtmf):
                        log.debug("key pressed", digit=dtmf.digit)
                    case phone_says.Mark(mark=mark):
                        self._mark_returned(mark.name)
                    case phone_says.Stop():
                        return self._end(Outcome.CALLER_HUNG_UP, "the phone said stop")
        except PhoneGone:
            self._end(Outcome.PHONE_LOST, "the phone's socket closed without stop")

    def _introduce(self, start: phone_says.StartDetails) -> None:
        """Tell the agent reader who is calling."""
        parameters = start.custom_parameters
        info = CallInfo(
            call_sid=start.call_sid,
            stream_sid=start.stream_sid,
            caller=parameters.get("From", ""),
            called=parameters.get("To", ""),
            parameters=parameters,
        )
        self.report.info = info
        self._started_at = trio.current_time()
        bind_contextvars(call_sid=info.call_sid)
        log.info("call started", caller=info.caller, called=info.called)
        self._tell_info.send_nowait(info)

    # ---- asked to end from outside ---------------------------------------------------------

    def end(self, outcome: Outcome, reason: str) -> None:
        """End the call now, cleanly, unless it is ending already. Returns at once."""
        self._end(outcome, reason)

    def wind_down(self, outcome: Outcome, reason: str) -> None:
        """Let the agent say goodbye and end the call when the caller has heard it, at the latest
        after FAREWELL_SECONDS. Returns at once; a second time changes nothing.
        """
        if self._agent is None or self._nursery is None:
            self._end(outcome, reason)
        elif not self._farewell.asked and self.report.outcome is None:
            self._farewell.asked = True
            self._nursery.start_soon(
                self._say_farewell, self._agent, outcome, reason, name="farewell"
            )

    async def _say_farewell(self, agent: AgentSession, outcome: Outcome, reason: str) -> None:
        with trio.move_on_after(FAREWELL_SECONDS):
            try:
                await agent.send(InjectAgentMessage(FAREWELL, behavior="interrupt"))
            except AgentClosed:
                return  # the agent reader hears of it too, and says why
            await self._farewell.heard.wait()
        self._end(outcome, reason)

    def _said(self, role: str, words: str) -> None:
        if role == "assistant" and self._farewell.asked and words in FAREWELL:
            self._farewell.said = True

    def _utterance_sent(self, mark: str) -> None:
        if self._farewell.said and self._farewell.mark is None:
            self._farewell.mark = mark

    def _mark_returned(self, name: str) -> None:
        self._playback.mark_returned(name)
        # Played or cleared by the caller cutting in: either way the farewell is over.
        if name == self._farewell.mark:
            self._farewell.heard.set()

    # ---- how it ends -----------------------------------------------------------------------

    def _end(self, outcome: Outcome, reason: str, cause: BaseException | None = None) -> None:
        """The first sign of the end: record it, start the clock, stop the call. Later signs are
        symptoms of the first and change nothing."""
        if self.report.outcome is not None:
            return
        self.report.outcome, self.report.reason, self.report.cause = outcome, reason, cause
        self._first_sign()
        if outcome in (Outcome.CALLER_HUNG_UP, Outcome.PHONE_LOST) and self._agent is not None:
            # What the caller said before is still in the uplink. The sender cancels the call when
            # it has sent the last of it.
            self._scope.deadline = self._first_sign() + LAST_WORDS_SHARE * self._teardown_seconds
        else:
            self._scope.cancel(reason=str(outcome))

    async def _part(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Do one part of the call's work. An error that it did not foresee is the end of the call,
        and is known as such before the other parts, cancelled, look for a reason."""
        try:
            await work(*args)
        except Exception as error:
            self._end(Outcome.INTERNAL_ERROR, f"an error nobody foresaw: {error!r}", error)
            raise

    def _first_sign(self) -> float:
        """When the end began: now, if this is the first anybody hears of it."""
        if self._ended_at is None:
            self._ended_at = trio.current_time()
        return self._ended_at

    def _goodbye_by(self) -> float:
        """When, on Trio's clock, a peer that has not answered our goodbye is cut off."""
        return self._first_sign() + GOODBYE_SHARE * self._teardown_seconds

    def _close_code(self) -> int:
        """What our Close frame says (RFC 6455, section 7.4.1)."""
        return {
            Outcome.INTERNAL_ERROR: 1011,
            Outcome.PROTOCOL_ERROR: 1002,
            None: 1001,  # cancelled from outside: going away
        }.get(self.report.outcome, 1000)

    def _log_end(self) -> None:
        report, agent, phone = self.report, self._agent, self._phone
        now = trio.current_time()
        report.seconds = now - self._began_at
        report.teardown_seconds = now - self._first_sign()
        report.dropped_bytes = self._uplink.bytes_dropped
        facts = {
            "call_sid": report.info.call_sid if report.info else "",
            "outcome": str(report.outcome),
            "reason": report.reason,
            "seconds": round(report.seconds, 3),
            "from_phone_bytes": phone.bytes_received,
            "from_phone_frames": phone.frames_received,
            "to_agent_bytes": agent.bytes_sent if agent else 0,
            "to_agent_frames": agent.frames_sent if agent else 0,
            "to_phone_bytes": phone.bytes_sent,
            "to_phone_frames": phone.frames_sent,
            "dropped_bytes": report.dropped_bytes,
            "bad_messages": phone.bad_messages + (agent.bad_messages if agent else 0),
        }
        if report.outcome is Outcome.INTERNAL_ERROR:
            log.error("call ended", exc_info=report.cause, **facts)
        elif report.outcome in _FAILURES:
            log.warning("call ended", **facts)
        else:
            log.info("call ended", **facts)


_FAILURES: Final = {
    Outcome.AGENT_FAILED,
    Outcome.AGENT_UNREACHABLE,
    Outcome.PHONE_LOST,
    Outcome.PROTOCOL_ERROR,
}
