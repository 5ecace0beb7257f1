"""The story of a call: one nursery, three tasks, and one way to end.

    phone ──▶ receiver ──▶ uplink (bounded channel) ──▶ sender ──▶ agent
    phone ◀── downlink ◀────────────────────────── agent reader ◀── agent

The *receiver* owns the phone's socket: it reads what Twilio sends, and closes the socket when the
call is over. The *agent reader* owns the agent's session: it opens one, plays what the agent says,
and replaces a session that breaks while the caller stays on the line. The *sender* carries the
caller's voice between them. They meet in two bounded memory channels: one for the caller's audio,
one for the sessions.

Beside the three, smaller tasks run in the same nursery: the timekeeper, the silence that the agent
is sent for a phone that sends none, typed input, a recording, the functions that the agent calls, a
goodbye. None outlives the call.

However a call ends, it ends like this. The first task to notice the end calls `end`, which records
the outcome, once, and cancels the tasks; later signs change nothing. All deadlines count from that
moment: by them the caller's last words reach the agent, both sockets say goodbye, and a peer that
does not answer is cut off. An unexpected exception needs no special handling: it is a sign like any
other. The rules are in `bridge.ending`, and what each of them prevents in README.md beside this.
"""

from __future__ import annotations

import trio

from bridge.call.parts import CallParts, OpenedAgent, close_code
from bridge.call.report import CallReport
from bridge.deepgram.retry import worth_another_try
from bridge.deepgram.session import AgentClosed, AgentFailed, AgentSession, AgentUnavailable
from bridge.functions.in_flight import FunctionCalls
from bridge.functions.phone_call import PhoneCall
from bridge.log import get_logger
from bridge.outcome import Outcome
from bridge.twilio import messages as phone_says
from bridge.twilio.media_stream import NotAPhone, PhoneGone

log = get_logger(__name__)


class Call(CallParts):
    """One phone call, from Twilio's `start` to the last byte of teardown."""

    async def run(self) -> CallReport:
        """Carry the call until it ends, for whatever reason, and report how it went.

        When this returns or raises, the call's tasks have ended and both sockets are closed, at
        most `teardown_seconds` after the first sign of the end. Only cancellation and what is not
        an `Exception` are raised; everything else is an outcome.
        """
        # Room for every session that the call may have: the agent reader never waits to offer one.
        offered, sessions = trio.open_memory_channel[AgentSession](1 + 2 * self.max_reconnects)
        self.observer.began(self)
        try:
            async with self.ending.tasks() as tasks:
                tasks.start_soon(self._receiver, name="receiver")
                tasks.start_soon(self._sender, sessions, name="sender")
                tasks.start_soon(self._agent_reader, offered, name="agent reader")
                tasks.start_soon(self.uplink.fill_silence, name="silence")
                tasks.start_soon(self.timekeeper.run, name="timekeeper")
                tasks.start_soon(self.typed.run, name="typed input")
                if self.recording is not None:
                    tasks.start_soon(self.recording.run, name="recording")
        except* Exception as group:
            # All of them: the first failure may not be the interesting one.
            self.report.crash = group
        finally:
            self.finish_report()
        return self.report

    # ---- the three tasks ------------------------------------------------------------------------

    async def _receiver(self) -> None:
        """Phone to uplink: what Twilio sends, in order, until there is no more."""
        try:
            with self.ending.watch():
                await self._listen()
        finally:
            self.uplink.end()
            # This task closes the socket because it never writes, and so is never stuck behind a
            # phone that has stopped reading.
            with self.ending.goodbye() as by:
                await self.phone.close(close_code(self.report.outcome), by=by)

    async def _sender(self, sessions: trio.MemoryReceiveChannel[AgentSession]) -> None:
        """Uplink to agent: the caller's voice, frame by frame, silence where there is none."""
        frame = b""
        async for agent in sessions:
            try:
                while True:
                    # A frame that the last session did not take is the first of the next.
                    frame = frame or await self.uplink.take()
                    await agent.send_audio(frame)
                    frame = b""
                    self.uplink.sent()
            except trio.EndOfChannel:
                # The caller is gone and has been heard to the end.
                self.ending.now()
            except AgentClosed:
                pass  # the agent reader notices, too: it offers another session, or ends the call

    async def _agent_reader(self, offer: trio.MemorySendChannel[AgentSession]) -> None:
        """Agent to phone: what the agent says, from the first session to the end of the last."""
        while self.ending.first is None:
            schemas = self.functions.schemas()
            history = self.conversation.memory.resume()
            try:
                table = self.table.now
                async with self.open_agent(self.ending, schemas, history, table) as agent:
                    offer.send_nowait(agent.session)
                    # What ends a session is recorded before it is closed: closing takes time, in
                    # which other tasks would find reasons of their own.
                    with self.ending.watch():
                        await self._converse(agent, resumed=history is not None)
            except (AgentUnavailable, AgentFailed) as error:
                if isinstance(error, AgentFailed) and self.table.take_back():
                    continue  # without a change that no session has acknowledged
                never = isinstance(error, AgentUnavailable) and not self.has_had_agent
                outcome = Outcome.AGENT_UNREACHABLE if never else Outcome.AGENT_FAILED
                self.end(outcome, str(error), error)

    # ---- what they do ---------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Route what the phone sends until it is gone."""
        try:
            while True:
                for message in await self.phone.receive():
                    match message:
                        case phone_says.Media(media=media):
                            received_at = self.phone.received_at
                            spoken_at = self.media_clock.spoken_at(media.timestamp, received_at)
                            self.uplink.put(media.payload, received_at)
                            self.voice.heard(media.payload, spoken_at)
                            if self.recording is not None:
                                self.recording.caller(media.payload, spoken_at - self.began_at)
                        case phone_says.Dtmf(dtmf=dtmf):
                            self.ending.start_soon(self.conversation.key_cut_in, name="cut in")
                            self.typed.key_pressed(dtmf.digit)
                        case phone_says.Mark(mark=mark):
                            self.conversation.mark_returned(mark.name)
                        case phone_says.Stop() if self.polite_end.handed_over is not None:
                            return self.end(*self.polite_end.handed_over)
                        case phone_says.Stop():
                            return self._hear_out(Outcome.CALLER_HUNG_UP, "the phone said stop")
        except PhoneGone:
            self._hear_out(Outcome.PHONE_LOST, "the phone's socket closed without stop")
        except NotAPhone as error:
            self.end(Outcome.PROTOCOL_ERROR, str(error))

    async def _converse(self, agent: OpenedAgent, *, resumed: bool) -> None:
        """Let one session and the caller talk until it is over, and decide what comes next."""
        session, self.report.agent, table = agent
        again = self.table.opened(table)
        if not self.has_had_agent:
            self.report.setup_seconds = self.seconds_so_far
        if session.request_id:
            self.report.request_ids.append(session.request_id)
        functions = FunctionCalls(
            self.functions,
            PhoneCall.of(self.report.info, self.actions),
            self.conversation.answer,
            self.silence.function_began,
            self.silence.function_ended,
            self.conversation.function_over,
        )
        try:
            for message in again:
                await session.send(message)
            greets = not resumed and bool(table.get("greeting"))
            await self.conversation.follow(
                session, functions, self.ending, greets=greets, resumed=resumed
            )
        except (AgentFailed, AgentClosed) as error:
            await self.polite_end.finish()
            refused = isinstance(error, AgentFailed) and self.table.take_back()
            self.losses += not session.is_abandoned
            if self.losses > self.max_reconnects or not (refused or worth_another_try(error)):
                self.end(Outcome.AGENT_FAILED, str(error), error)
            elif self.ending.first is None:
                self.report.reconnects += 1
                log.warning("agent lost, reconnecting", reason=str(error))
        finally:
            self.report.add(session)

    @property
    def has_had_agent(self) -> bool:
        """Whether a session was ever open."""
        return self.report.setup_seconds is not None

    # ---- how it ends ----------------------------------------------------------------------------

    def end(self, outcome: Outcome, reason: str, cause: BaseException | None = None) -> None:
        """End the call now, cleanly, unless it is ending already. Returns at once."""
        self.ending.begin(outcome, reason, cause)

    def _hear_out(self, outcome: Outcome, reason: str) -> None:
        """End the call when the caller's last words have left the uplink for the agent."""
        after = self.last_words_seconds if self.has_had_agent else 0.0
        self.ending.begin(outcome, reason, after=after)
