"""The story of a call: one nursery, three tasks, and every way it can end.

    phone ──▶ receiver ──▶ uplink (bounded channel) ──▶ sender ──▶ agent
    phone ◀────────────────────────────────── agent reader ◀── agent

The *receiver* owns the phone's socket: it reads what Twilio says and closes the socket when the
call is over. The *agent reader* owns the agent's session: it opens one as soon as the receiver
knows who is calling, plays what the agent says to the phone, replaces a session that breaks, and
closes the last one. The *sender* carries the caller's voice between them. They meet in three
channels, all bounded: the facts of the call, once; each open session; and the caller's audio, for
as long as the call lasts.

Beside the three, smaller tasks come and go in the same nursery: the timekeeper, the functions the
agent asks for, a goodbye on its way to the caller's ear, a recording. None outlives the call.

However a call ends, it ends like this. Whoever sees the first sign calls `_end`, which records the
outcome, once, and starts one clock: by its deadlines the caller's last words reach the agent, both
sockets say goodbye, and whoever does not answer is cut off. A failure nobody foresaw needs no code
here: it leaves its task as an exception, the nursery cancels the others, and their cleanup is the
same as in any other ending.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final, Protocol

import trio
from structlog.contextvars import bind_contextvars

from bridge.call.conversation import DELAYS_SAMPLED, Conversation, Recording
from bridge.call.leaving import Leaving, Transfer
from bridge.call.report import CallReport
from bridge.call.silence import Silence
from bridge.call.timekeeper import Timekeeper
from bridge.call.uplink import Uplink
from bridge.caller import CallInfo
from bridge.config.settings import CallSettings
from bridge.deepgram.retry import worth_another_try
from bridge.deepgram.session import AgentClosed, AgentFailed, AgentSession, AgentUnavailable
from bridge.functions import Functions
from bridge.functions.in_flight import FunctionCalls
from bridge.log import get_logger
from bridge.outcome import Outcome
from bridge.twilio import messages as phone_says
from bridge.twilio.media_stream import MediaStream, NotAPhone, PhoneGone

log = get_logger(__name__)

# Shares of `call.teardown_seconds`, counted from the first sign of the end. The caller's last
# words first; then the two goodbyes, side by side; the rest is for cutting off who did not answer.
LAST_WORDS_SHARE: Final = 0.25
GOODBYE_SHARE: Final = 0.85

# What the agent is asked to say when the server stops.
FAREWELL: Final = "I'm sorry, this call has to end now, please call again, goodbye."

# The stream's parameter by which a call proves that it was announced; see
# `bridge.admission.ticket`.
TICKET: Final = "ticket"

GoodbyeBy = Callable[[], float]


class OpenAgent(Protocol):
    """Opens the agent session of one call; see `bridge.deepgram.session.open_session`."""

    def __call__(
        self,
        nursery: trio.Nursery,
        info: CallInfo,
        history: Sequence[Mapping[str, Any]] | None,
        *,
        close_by: GoodbyeBy,
    ) -> AbstractAsyncContextManager[AgentSession]: ...


class Keeper(Protocol):
    """Is told of a call what is to be kept of it. Never waits, never raises."""

    def began(self, call: Call) -> None: ...

    def is_ending(self, call: Call) -> None: ...

    def ended(self, call: Call) -> None: ...


class Delays(Protocol):
    """Is told now and then how long audio was on its way through here, in seconds."""

    def uplink_delay(self, seconds: float) -> None: ...

    def downlink_delay(self, seconds: float) -> None: ...


class _NobodyMeasures:
    def uplink_delay(self, seconds: float) -> None: ...

    def downlink_delay(self, seconds: float) -> None: ...


class Call:
    """One phone call, from the media socket's first message to the last byte of teardown.

    `open_agent` opens a session with the agent, `functions` are those it may ask for, `keeper` is
    told what is to be kept. `record` makes the recording of a call SID, `transfer` has Twilio
    connect a call SID to a number; both are None where there is no such thing. `admit` is asked
    when the phone has introduced itself: "", or why it is not let in, which ends the call before
    anybody else hears of it.
    """

    def __init__(
        self,
        phone: MediaStream,
        open_agent: OpenAgent,
        functions: Functions,
        settings: CallSettings,
        *,
        max_reconnects: int = 0,
        keeper: Keeper | None = None,
        record: Callable[[str], Recording | None] = lambda call_sid: None,
        transfer: Transfer | None = None,
        admit: Callable[[phone_says.StartDetails], str] = lambda start: "",
        delays: Delays | None = None,
    ) -> None:
        self.report = CallReport()
        self._phone = phone
        self._open_agent = open_agent
        self.functions = functions
        self._settings = settings
        self._max_reconnects = max_reconnects
        self._keeper = keeper
        self._record = record
        self._admit = admit
        self._delays = delays or _NobodyMeasures()
        self._recording: Recording | None = None
        self._uplink = Uplink(settings.frame_ms)
        # One slot each: they carry one thing at a time, and whoever puts it must never wait.
        self._tell_info, self._info = trio.open_memory_channel[CallInfo](1)
        self._offer_session, self._session = trio.open_memory_channel[AgentSession](1)
        self._agent: AgentSession | None = None
        self._began_at = self._started_at = trio.current_time()
        self._ended_at: float | None = None
        self._silence = Silence(settings.idle_seconds, settings.stall_seconds)
        self.conversation = Conversation(
            phone,
            self._silence,
            began_at=self._began_at,
            frame_ms=settings.frame_ms,
            delay_sent=self._delays.downlink_delay,
            greeting_protected=not settings.interruptible_greeting,
        )
        self._leaving = Leaving(
            self.conversation,
            self.report,
            end=self.end,
            start=lambda work: self._start(self._part, work, name="leaving"),
            transfer=transfer,
        )
        self.timekeeper = Timekeeper(
            self.conversation,
            self._silence,
            settings,
            began_at=self._began_at,
            agent=lambda: self._agent,
            wind_down=self.wind_down,
        )
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()

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
            self.report.crash = group
        finally:
            # Without an outcome so far, it was cancelled from outside.
            self._end(Outcome.SERVER_SHUTDOWN, "the server is stopping")
            self._write_report()
            if self._keeper is not None:
                self._keeper.ended(self)
        return self.report

    # ---- the three tasks -------------------------------------------------------------------

    async def _receiver(self) -> None:
        """Phone to uplink: what Twilio says, in order, until there is no more."""
        try:
            await self._part(self._listen)
        finally:
            self._uplink.end()
            goodbye_by = self._goodbye_by()
            # This task, because it never writes and so is never stuck behind a phone that has
            # stopped reading.
            with trio.CancelScope(shield=True, deadline=goodbye_by):
                await self._phone.close(self._close_code(), by=goodbye_by)

    async def _sender(self) -> None:
        """Uplink to agent: the caller's voice, a frame at a time, silence where there is none."""
        frame: bytes | None = None
        while True:
            agent = await self._session.receive()
            try:
                while True:
                    # A frame that the last session did not take is the first of the next.
                    frame = frame or await self._uplink.take()
                    await agent.send_audio(frame)
                    frame = None
                    if agent.frames_sent % DELAYS_SAMPLED == 1:
                        self._delays.uplink_delay(trio.current_time() - self._uplink.oldest_at)
            except trio.EndOfChannel:
                # The caller is gone and has been heard to the end.
                return self._scope.cancel(reason="the caller's last words are sent")
            except AgentClosed:
                # The agent reader hears of it too, after what the agent said last, which is the
                # cause; it ends the call, or brings another session.
                continue

    async def _agent_reader(self, nursery: trio.Nursery) -> None:
        """Agent to phone: what the agent says, from its first word to the end of its last session.

        A session that breaks in the middle of the call is replaced by one that knows the
        conversation so far, while the caller stays on the line and the uplink keeps what they say.
        """
        info = await self._info.receive()
        bind_contextvars(call_sid=info.call_sid)
        go_on = True
        while go_on:
            history = None if self._agent is None else self.conversation.history
            try:
                async with self._open_agent(
                    nursery, info, history, close_by=self._goodbye_by
                ) as agent:
                    go_on = await self._converse(agent, info, nursery)
            except (AgentUnavailable, AgentFailed) as error:
                refused = isinstance(error, AgentUnavailable) and self._agent is None
                outcome = Outcome.AGENT_UNREACHABLE if refused else Outcome.AGENT_FAILED
                self._end(outcome, str(error), error)
                return

    async def _converse(self, agent: AgentSession, info: CallInfo, nursery: trio.Nursery) -> bool:
        """Let one session and the caller talk. Returns, when it is over, whether to open another.

        What ended it is recorded here and not where the session has been closed: by then whoever
        else was cut off has a reason of its own to give.
        """
        if self._agent is None:
            self.report.setup_seconds = trio.current_time() - self._started_at
        self._agent = agent
        # The sender has let go of the session before, or never got it.
        with suppress(trio.WouldBlock):
            self._session.receive_nowait()
        self._offer_session.send_nowait(agent)
        silence = self._silence
        functions = FunctionCalls(
            self.functions,
            info,
            agent.send,
            silence.function_began,
            silence.function_ended,
            self.conversation.function_done,
        )
        try:
            # Until the session ends, by an exception.
            await self.conversation.follow(agent, functions, nursery)
        except (AgentFailed, AgentClosed) as error:
            return self._go_on_without(error)
        except Exception as error:
            self._fail(error)
            raise
        finally:
            # Their answers would be for a session that is over.
            functions.cancel_all()
            silence.session_lost(trio.current_time())
            self.conversation.changed()
            self.report.to_agent_bytes += agent.bytes_sent
            self.report.to_agent_frames += agent.frames_sent
            self.report.bad_messages += agent.bad_messages

    def _go_on_without(self, error: AgentFailed | AgentClosed) -> bool:
        """A session is over: end the call, or reconnect if that may help."""
        if isinstance(error, AgentClosed) and error.clean:
            self._end(Outcome.AGENT_ENDED, str(error), error)
        elif self.report.reconnects >= self._max_reconnects or not worth_another_try(error):
            self._end(Outcome.AGENT_FAILED, str(error), error)
        if self.report.outcome is not None:
            return False
        self.report.reconnects += 1
        log.warning("agent lost, reconnecting", reason=str(error))
        return True

    # ---- what the phone says --------------------------------------------------------------

    async def _listen(self) -> None:
        try:
            with trio.fail_after(self._settings.start_timeout):
                start = await self._phone.start()
        except trio.TooSlowError:
            waited = f"no start message within {self._settings.start_timeout:g} seconds"
            return self._end(Outcome.PROTOCOL_ERROR, waited)
        except PhoneGone:
            return self._end(Outcome.PHONE_LOST, "the phone's socket closed before start")
        except NotAPhone as error:
            return self._end(Outcome.PROTOCOL_ERROR, str(error))
        if start.media_format != phone_says.MediaFormat():
            return self._end(Outcome.PROTOCOL_ERROR, f"not µ-law at 8 kHz: {start.media_format}")
        if why := self._admit(start):
            return self._end(Outcome.PROTOCOL_ERROR, why)
        self._introduce(start)
        try:
            while True:
                for message in await self._phone.receive():
                    match message:
                        case phone_says.Media(media=media):
                            self._uplink.put(media.payload)
                            if self._recording is not None:
                                self._recording.caller(media.payload, self.seconds_so_far)
                        case phone_says.Dtmf(dtmf=dtmf):
                            self.timekeeper.key_pressed(dtmf.digit)
                        case phone_says.Mark(mark=mark):
                            self.conversation.mark_returned(mark.name)
                        case phone_says.Stop():
                            hung_up = (Outcome.CALLER_HUNG_UP, "the phone said stop")
                            return self._end(*(self._leaving.handed_over or hung_up))
        except PhoneGone:
            self._end(Outcome.PHONE_LOST, "the phone's socket closed without stop")
        except NotAPhone as error:
            self._end(Outcome.PROTOCOL_ERROR, str(error))

    def _introduce(self, start: phone_says.StartDetails) -> None:
        """Tell the agent reader who is calling."""
        parameters = dict(start.custom_parameters)
        # It has served its purpose, and is nothing for prompts, functions and hooks.
        parameters.pop(TICKET, None)
        info = CallInfo(
            call_sid=start.call_sid,
            stream_sid=start.stream_sid,
            caller=parameters.get("From", ""),
            called=parameters.get("To", ""),
            parameters=parameters,
        )
        self.report.info = info
        self._started_at = trio.current_time()
        self.report.start_after = self._started_at - self._began_at
        bind_contextvars(call_sid=info.call_sid)
        log.info("call started", caller=info.caller, called=info.called)
        self._recording = self.conversation.recording = self._record(info.call_sid)
        if self._keeper is not None:
            self._keeper.began(self)
        # From here, where the call's SID is bound, so that what they log has it.
        self._start(self._part, self.timekeeper.run, name="timekeeper")
        if self._recording is not None:
            self._start(self._recording.run, name="recording")
        self._tell_info.send_nowait(info)

    @property
    def seconds_so_far(self) -> float:
        """How long the call has been on."""
        return trio.current_time() - self._began_at

    def say(self, words: str) -> str:
        """Take `words` for the caller's, as if they had been spoken. Returns at once: "", or why
        not in one line."""
        if self.report.outcome is not None:
            return "the call is ending"
        if not self.timekeeper.say(words):
            return "too much has been written that the agent has not been told yet"
        return ""

    @property
    def uplink(self) -> Uplink:
        """The caller's audio on its way to the agent, for whoever wants to look."""
        return self._uplink

    # ---- asked to end from outside ---------------------------------------------------------

    def end(self, outcome: Outcome, reason: str) -> None:
        """End the call now, cleanly, unless it is ending already. Returns at once."""
        self._end(outcome, reason)

    def wind_down(self, outcome: Outcome, reason: str, words: str = FAREWELL) -> None:
        """Let the agent say `words` and end the call when the caller has heard them, at the latest
        after FAREWELL_SECONDS. Returns at once; a second time changes nothing.
        """
        if self._agent is None:
            self._end(outcome, reason)
        else:
            self._leaving.with_words(self._agent, words, outcome, reason)

    def end_after_goodbye(self, outcome: Outcome, reason: str, transfer_to: str = "") -> None:
        """End the call when the caller has heard what the agent says next; see Leaving."""
        self._leaving.after_goodbye(outcome, reason, transfer_to)

    # ---- how it ends -----------------------------------------------------------------------

    def _end(self, outcome: Outcome, reason: str, cause: BaseException | None = None) -> None:
        """The first sign of the end: record it, start the clock, stop the call. Later signs are
        symptoms of the first and change nothing."""
        if self.report.outcome is not None:
            return
        self.report.outcome, self.report.reason, self.report.cause = outcome, reason, cause
        self._first_sign()
        if self._recording is not None:
            self._recording.finish(self.seconds_so_far)
        if self._keeper is not None:
            self._keeper.is_ending(self)
        if outcome in (Outcome.CALLER_HUNG_UP, Outcome.PHONE_LOST) and self._agent is not None:
            # What the caller said before is still in the uplink. The sender cancels the call when
            # it has sent the last of it.
            self._scope.deadline = (
                self._first_sign() + LAST_WORDS_SHARE * self._settings.teardown_seconds
            )
        else:
            self._scope.cancel(reason=str(outcome))

    async def _part(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Do one part of the call's work. An error that it did not foresee is the end of the call,
        and is known as such before the other parts, cancelled, look for a reason."""
        try:
            await work(*args)
        except Exception as error:
            self._fail(error)
            raise

    def _fail(self, error: Exception) -> None:
        self._end(Outcome.INTERNAL_ERROR, f"an error nobody foresaw: {error!r}", error)

    def _first_sign(self) -> float:
        """When the end began: now, if this is the first anybody hears of it."""
        if self._ended_at is None:
            self._ended_at = trio.current_time()
        return self._ended_at

    def _goodbye_by(self) -> float:
        """When, on Trio's clock, a peer that has not answered our goodbye is cut off."""
        cancelled = trio.current_effective_deadline() == float("-inf")
        going_on = self.report.outcome is None and not cancelled
        # A session that is being replaced is no sign of the call's end.
        since = trio.current_time() if going_on else self._first_sign()
        return since + GOODBYE_SHARE * self._settings.teardown_seconds

    def _close_code(self) -> int:
        """What our Close frame says (RFC 6455, section 7.4.1)."""
        return {
            Outcome.INTERNAL_ERROR: 1011,
            Outcome.PROTOCOL_ERROR: 1002,
            None: 1001,  # cancelled from outside: going away
        }.get(self.report.outcome, 1000)

    def _start(self, work: Callable[..., Awaitable[None]], *args: Any, name: str) -> None:
        """Run a task of the call's, unless the call is over."""
        if self._nursery is not None and not self._scope.cancel_called:
            self._nursery.start_soon(work, *args, name=name)

    def _write_report(self) -> None:
        report, phone, now = self.report, self._phone, trio.current_time()
        report.seconds = now - self._began_at
        report.teardown_seconds = now - self._first_sign()
        report.dropped_bytes = self._uplink.bytes_dropped
        report.barge_in_seconds = self.conversation.barge_in_seconds
        report.bad_messages += phone.bad_messages
        report.write_line(
            from_phone_bytes=phone.bytes_received,
            from_phone_frames=phone.frames_received,
            to_phone_bytes=phone.bytes_sent,
            to_phone_frames=phone.frames_sent,
        )
