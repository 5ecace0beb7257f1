"""Turn an accepted media socket into a `Call` and run it to its end.

Chooses the agent, and opens its sessions or claims a prewarmed one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import trio
from structlog.contextvars import bound_contextvars

from bridge.admission.ticket import NO_TICKET
from bridge.call.call import Call
from bridge.call.goodbye import Transfer
from bridge.call.introduction import NotIntroduced, info_of, introduction
from bridge.call.live_calls import LiveCalls
from bridge.call.observers import Observer
from bridge.call.parts import GOODBYE_SHARE, OpenedAgent, close_code
from bridge.call.report import CallReport
from bridge.caller import OUTBOUND, CallInfo
from bridge.config.settings import Settings
from bridge.deepgram.context_hook import fetch_context
from bridge.deepgram.prewarm import Prepared, Prewarming, Warm
from bridge.deepgram.retry import open_within
from bridge.deepgram.session import AgentFailed, AgentSession, open_session
from bridge.deepgram.settings import settings_message, tagged
from bridge.deepgram.template import fill_in, variables_of
from bridge.ending import Ending
from bridge.functions import Functions
from bridge.functions.builtin import described
from bridge.functions.modules import FunctionModules
from bridge.legs import Legs, call_ended_address, transfer_twiml
from bridge.log import get_logger
from bridge.outcome import Outcome
from bridge.records.wav import CallRecording
from bridge.telemetry.metrics import Metrics
from bridge.transport.websocket_client import OpenStream
from bridge.twilio.media_stream import MediaStream
from bridge.twilio.messages import StartDetails
from bridge.twilio.rest import TwilioError, TwilioRest

log = get_logger(__name__)

# The longest that a caller waits in silence for the context hook's answer.
CONTEXT_SECONDS: Final = 2.0

# A message that the agent cannot read, or will not accept.
_SETTINGS_REFUSED: Final = frozenset({"UNPARSABLE_CLIENT_MESSAGE", "INVALID_SETTINGS"})


class CallSetup:
    """Makes the calls of one application.

    `open_stream` replaces the TCP connection to the agent in tests without sockets. `twilio`
    returns the REST client for transfers, or None without Twilio credentials.
    """

    def __init__(
        self,
        calls: LiveCalls,
        metrics: Metrics,
        prewarming: Prewarming,
        functions: FunctionModules,
        twilio: Callable[[], TwilioRest | None],
        key: Callable[[], str],
        open_stream: OpenStream | None = None,
    ) -> None:
        self._calls = calls
        self._metrics = metrics
        self._prewarming = prewarming
        self._functions = functions
        self._twilio = twilio
        self._key = key
        self.open_stream = open_stream

    async def carry(
        self,
        phone: MediaStream,
        settings: Settings,
        admit: Callable[[StartDetails], object],
        observer: Observer,
        legs: Legs,
        web: str,
    ) -> None:
        """Carry one leg of a call from its socket's first message to its last.

        `admit` raises NotIntroduced to refuse a phone. `web` is this server's address for Twilio. A
        leg of the same call that is still on ends first, and this one continues it. The phone's
        socket is closed on return, and also when this is cancelled.
        """
        info = begun = None
        refusal = NotIntroduced(Outcome.SERVER_SHUTDOWN, "the server is stopping")
        try:
            with self._calls.expecting():
                info = await introduction(phone, settings.call.start_timeout, admit)
                await legs.recall(info)
                await self._calls.end_earlier_legs(info.call_sid)
                begun = info
        except NotIntroduced as error:
            refusal = error
        finally:
            if begun is None:
                await self._turn_away(phone, refusal, settings.call.teardown_seconds)
        if begun is None:
            return
        info = begun
        with bound_contextvars(call_sid=info.call_sid):
            agent = agent_of(settings, info)
            settings = settings.for_agent(agent)
            earlier = legs.earlier(info, settings.words)
            leg = {"leg": earlier.leg} if earlier.leg > 1 else {}
            log.info("call started", caller=info.caller, called=info.called, **leg)
            folder = settings.records.recordings
            try:
                call = Call(
                    phone,
                    info,
                    settings,
                    _AgentOfCall(self, settings, info, agent).open,
                    self._functions.of(settings.functions.module, agent),
                    observer,
                    self._metrics,
                    CallRecording(Path(folder), info.call_sid) if folder else None,
                    self._transfer_over_rest(settings, info, web),
                    earlier,
                )
            except Exception as error:
                # A call without any of this, which ends as if one of its tasks had crashed: with a
                # record, the metrics and the apology.
                crash = partial(_raise, error)
                call = Call(phone, info, settings, crash, Functions(), observer, self._metrics)
            with self._calls.carrying(call):
                await call.run()

    def prewarm(
        self,
        settings: Settings,
        call_sid: str,
        parameters: Mapping[str, str],
    ) -> None:
        """Start opening the agent's session for a call that has just got its slot. `parameters` are
        those of its stream. Does not wait."""
        info = info_of(call_sid, parameters)
        agent = agent_of(settings, info)
        settings = settings.for_agent(agent)
        beside = tagged(settings.deepgram.settings, call_sid)

        async def prepare() -> Prepared:
            functions = self._functions.of(settings.functions.module, agent)
            schemas = (functions + described(settings.functions)).schemas()
            table = await self.filled_in(settings, info)
            return Prepared(agent, table, settings_message(table, schemas, beside=beside))

        self._prewarming.begin(call_sid, prepare, partial(self.open_session, settings))

    def open_session(
        self,
        settings: Settings,
        message: str,
        close_by: Callable[[], float],
    ) -> AbstractAsyncContextManager[AgentSession]:
        """Try once to open a session with `message` as its Settings; see `session.open_session`."""
        return open_session(
            settings.deepgram.url,
            key=self._key(),
            settings=message,
            timeout=settings.deepgram.connect_timeout,
            close_by=close_by,
            open_stream=self.open_stream,
        )

    async def filled_in(self, settings: Settings, info: CallInfo) -> dict[str, Any]:
        """Return the agent's table for this call, greeting and prompt filled in."""
        context: dict[str, str] = {}
        if settings.call.context_url:
            context = await fetch_context(settings.call.context_url, info, CONTEXT_SECONDS)
        variables = variables_of(info, context, settings.words.withheld)
        return fill_in(settings.agent, variables)

    async def claim(self, call_sid: str, close_by: Callable[[], float]) -> Warm | None:
        """Return the prewarmed session of this call, or None if there is no usable one."""
        return await self._prewarming.claim(call_sid, close_by)

    async def _turn_away(
        self, phone: MediaStream, refusal: NotIntroduced, teardown_seconds: float
    ) -> None:
        """Close a socket that does not become a call, within the teardown time."""
        self._metrics.call_not_begun(refusal.outcome)
        by = trio.current_time() + GOODBYE_SHARE * teardown_seconds
        with trio.CancelScope(shield=True, deadline=by):
            await phone.close(close_code(refusal.outcome), by=by)
        # TwiML of somebody's own, in a TwiML Bin or in Studio, opens the socket without a ticket.
        remedy = "have TwiML of your own <Redirect> to /incoming-call instead of this socket"
        log.warning(
            "call ended",
            call_sid="",
            outcome=str(refusal.outcome),
            reason=str(refusal),
            bad_messages=phone.bad_messages,
            **({"remedy": remedy} if str(refusal) == NO_TICKET else {}),
        )

    def _transfer_over_rest(self, settings: Settings, info: CallInfo, web: str) -> Transfer | None:
        """Return how Twilio is told to dial at once, or None to leave it to `/call-ended`.

        The address of an outbound call's `/call-ended` has its variables, which are needed if the
        caller comes back.
        """
        twilio = self._twilio()
        if twilio is None or not web or info.parameters.get("direction") == OUTBOUND:
            return None

        async def transfer(report: CallReport) -> None:
            try:
                document = transfer_twiml(
                    settings.functions,
                    report.transfer_to,
                    info.caller,
                    info.called,
                    call_ended_address(web, report.leg, transfer=report.transfer_name),
                )
                await twilio.update_call(info.call_sid, twiml=document)
            except (TwilioError, ValueError) as error:
                log.warning("transfer by REST failed; leaving it to /call-ended", reason=str(error))

        return transfer


def _raise(error: Exception, *_: object) -> NoReturn:
    """A `bridge.call.parts.OpenAgent` of a call that could not be set up."""
    raise error


class _AgentOfCall:
    """Opens the sessions of one call, all with the same agent: `name`, as `settings` has it."""

    def __init__(self, setup: CallSetup, settings: Settings, info: CallInfo, name: str) -> None:
        self._setup = setup
        self._settings = settings
        self._info = info
        self._name = name
        self._table: dict[str, Any] | None = None

    @asynccontextmanager
    async def open(
        self,
        ending: Ending[Outcome],
        schemas: Sequence[Mapping[str, Any]],
        history: Sequence[Mapping[str, Any]] | None,
        table: dict[str, Any],
    ) -> AsyncIterator[OpenedAgent]:
        """A `bridge.call.parts.OpenAgent`."""
        deepgram, setup = self._settings.deepgram, self._setup
        began = trio.current_time()
        async with AsyncExitStack() as stack:
            # A prewarmed session has begun a new conversation.
            claims = self._table is None and history is None
            if claims and (warm := await setup.claim(self._info.call_sid, ending.by)):
                stack.push_async_callback(warm.aclose)
                prepared, session = warm.prepared, warm.session
                assert prepared is not None
                assert session is not None
                # Not usable if the configuration was edited in between.
                message = self._message(prepared.table, schemas)
                if (prepared.agent, prepared.message) == (self._name, message):
                    self._table = prepared.table
                    yield self._opened(session)
                    return
                await warm.aclose()
            if self._table is None:
                self._table = await setup.filled_in(self._settings, self._info)
            elif table:
                self._table = table
            # The time spent on the prewarmed session counts, but one attempt always remains.
            budget, spent = deepgram.connect_budget, trio.current_time() - began
            budget = max(budget - spent, min(budget, deepgram.connect_timeout))
            try:
                opening = self._open(budget, schemas, history, ending)
                session = await stack.enter_async_context(opening)
            except AgentFailed as error:
                # What is new in the Settings of a resumed session is the conversation.
                if not history or error.code not in _SETTINGS_REFUSED:
                    raise
                log.warning("agent refuses to resume; opening without context", reason=str(error))
                opening = self._open(budget, schemas, (), ending)
                session = await stack.enter_async_context(opening)
            yield self._opened(session)

    def _open(
        self,
        budget: float,
        schemas: Sequence[Mapping[str, Any]],
        history: Sequence[Mapping[str, Any]] | None,
        ending: Ending[Outcome],
    ) -> AbstractAsyncContextManager[AgentSession]:
        assert self._table is not None
        message = self._message(self._table, schemas, history)
        return open_within(
            budget, lambda: self._setup.open_session(self._settings, message, ending.by)
        )

    def _opened(self, session: AgentSession) -> OpenedAgent:
        assert self._table is not None
        return OpenedAgent(session, self._name, self._table)

    def _message(
        self,
        table: Mapping[str, Any],
        schemas: Sequence[Mapping[str, Any]],
        history: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        beside = tagged(self._settings.deepgram.settings, self._info.call_sid)
        return settings_message(table, schemas, history, beside)


def agent_of(settings: Settings, info: CallInfo) -> str:
    """Return the name of the agent that answers a call, "" for the default one."""
    chosen_by_name = info.parameters.get("direction") in (OUTBOUND, "softphone")
    wanted = info.parameters.get("agent", "") if chosen_by_name else None
    return settings.agent_for(info.called, wanted)
