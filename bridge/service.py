"""What all calls of one application share: settings, secrets, functions, metrics, who is live.

The web application asks it; each `Call` is built here and knows nothing of the others.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec
import trio

from bridge import log as logs
from bridge.admission.account_limit import AccountCap, AccountLimit, check_account_limit
from bridge.admission.slots import RESERVED_SECONDS, Admission, Entry, Limits
from bridge.admission.ticket import EpochClock, Purpose, Ticket, Tickets, ticket_keys
from bridge.call.call import TICKET, Call, GoodbyeBy
from bridge.call.live_calls import Registry
from bridge.caller import CallInfo
from bridge.config.file import ConfigFile, SettingsSource, config_path
from bridge.config.settings import ConfigError, Secrets, Settings, check_startup, warnings_for
from bridge.deepgram.agents import choose_agent, fill_in, variables_of
from bridge.deepgram.context_hook import fetch_context
from bridge.deepgram.prewarm import Prepared, Prewarming
from bridge.deepgram.retry import open_within
from bridge.deepgram.session import AgentSession, open_session
from bridge.deepgram.settings import settings_message
from bridge.functions import FunctionError, Functions
from bridge.functions.builtin import built_in
from bridge.live.hub import Live
from bridge.outcome import Outcome
from bridge.records.from_call import Keepers, RecordKeeper
from bridge.records.recorder import NullRecorder, Recorder, recorder_for
from bridge.records.wav import CallRecording
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.tracing import Tracing, tracing_for
from bridge.transport.websocket_client import OpenStream
from bridge.twilio import twiml
from bridge.twilio.media_stream import MediaStream
from bridge.twilio.messages import StartDetails
from bridge.twilio.rest import TwilioError, TwilioRest

log = logs.get_logger(__name__)

# What a caller waits in silence for an answer about who they are, at most.
CONTEXT_SECONDS: Final = 2.0

# How long a slot is kept where the call may go elsewhere: what Twilio takes on a good day.
SHORTLY: Final = 5.0

# From the webhook's answer to the socket's `start`: longer than a slot is kept, since who comes
# late may still find one.
TICKET_SECONDS: Final = 60.0


class Stalls(NamedTuple):
    """How often and how long the event loop did not run, and when it last did not."""

    times: int = 0
    seconds: float = 0.0
    last: datetime | None = None


class Bridge:
    """What all calls of one application share: where settings come from, and what is remembered.

    `config` None means the file that BRIDGE_CONFIG names, `secrets` None the environment; both are
    looked at by `prepare`, not before, so that importing the application never fails.
    `open_stream` replaces the TCP connection to the agent, for tests without sockets.
    """

    def __init__(
        self,
        config: SettingsSource | None = None,
        secrets: Secrets | None = None,
        open_stream: OpenStream | None = None,
    ) -> None:
        self._config = config
        self._secrets = secrets
        self._open_stream = open_stream
        self._settings = Settings()
        self._prepared = False
        self._functions = Functions(())
        self._functions_module = ""
        self.calls = Registry()
        self.live = Live(self.calls)
        self.stalls = Stalls()
        self.admission = Admission()
        self.prewarming = Prewarming()
        # Whether this is the server's only process; who starts several says so.
        self.alone = True
        self._told_of_prewarming = False
        self.account = AccountLimit("")
        self.tickets = Tickets(ticket_keys())
        self.epoch = EpochClock(time.time, trio.current_time, patience=TICKET_SECONDS)
        # What the agent is known to understand, for the softphone's page; None if nobody has said.
        self.phrases: tuple[str, ...] | None = None
        self.metrics = Metrics()
        self.draining = False
        self.started_at = datetime.now(UTC)
        self.recorder: Recorder | NullRecorder = NullRecorder()
        self.tracing: Tracing | None = None
        self.twilio: TwilioRest | None = None
        self.tunnel = ""

    def prepare(self) -> Settings:
        """Read settings and secrets, set up logging; the first time, that is.

        Raises ConfigError with one line that says what to do.
        """
        if self._config is None:
            self._config = ConfigFile(config_path())
        if self._secrets is None:
            self._secrets = Secrets.from_environment()
        settings = self._settings = self._config.load()
        if not self._prepared:
            check_startup(settings, self._secrets)
            check_account_limit(settings)
            self.tickets = Tickets(self._secrets.ticket_keys())
            logs.configure(settings.logging, secrets=self._secrets)
            for warning in warnings_for(settings):
                log.warning(warning)
            try:
                self._load_functions(settings.functions.module)
            except FunctionError as error:
                raise ConfigError(str(error)) from error
            self.recorder = recorder_for(settings.records)
            self.account = AccountLimit(settings.records.url)
            self.admission.shared = AccountCap(self.account, self._account_calls)
            sid, tokens = self._secrets.twilio_account_sid, self._secrets.twilio_auth_tokens
            if sid and tokens:
                try:
                    self.twilio = TwilioRest(sid, tokens[0])
                except ValueError as error:
                    raise ConfigError(str(error)) from error
            self.tracing = tracing_for()
            self.started_at = datetime.now(UTC)
            self._prepared = True
        return settings

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything that lives as long as the server: records are written while this is open, and
        what is left of them when it closes. Raises ConfigError for a database that cannot be used.
        """
        await self.recorder.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.recorder.run)
            nursery.start_soon(self.account.run)
            self.prewarming.nursery = nursery
            if self.tracing is not None:
                nursery.start_soon(self.tracing.run)
            try:
                yield
            finally:
                self.prewarming.nursery = None
                with trio.CancelScope(shield=True):  # bounded by the recorder's own STOP_SECONDS
                    await self.recorder.aclose()
                if self.tracing is not None:
                    await self.tracing.aclose()
                if self.twilio is not None:
                    with trio.move_on_after(1, shield=True):
                        await self.twilio.aclose()
            nursery.cancel_scope.cancel(reason="the server has stopped")

    @property
    def api_token(self) -> str:
        """BRIDGE_API_TOKEN, "" without one."""
        return self._secrets.api_token if self._secrets is not None else ""

    @property
    def auth_tokens(self) -> tuple[str, ...]:
        """TWILIO_AUTH_TOKEN: any of them may have signed what Twilio sends."""
        return self._secrets.twilio_auth_tokens if self._secrets is not None else ()

    async def settings(self) -> Settings:
        """The settings for a call that begins now."""
        assert self._config is not None
        settings = await self._config.current()
        if settings.functions.module != self._functions_module:
            # A thread, because importing may do anything.
            try:
                await trio.to_thread.run_sync(self._load_functions, settings.functions.module)
            except FunctionError as error:
                self._functions_module = settings.functions.module
                log.error("functions not loaded, the last ones stay", reason=str(error))
        if self.tunnel and not settings.server.public_url:
            server = msgspec.structs.replace(settings.server, public_url=self.tunnel)
            settings = msgspec.structs.replace(settings, server=server)
        self._settings = settings
        return settings

    def _load_functions(self, module: str) -> None:
        self._functions = Functions.from_module(module) if module else Functions(())
        self._functions_module = module

    def settings_now(self) -> Settings:
        """The settings last read: for those who cannot wait for a file."""
        return self._settings

    def _several(self, settings: Settings) -> bool:
        """Whether a call's webhook and its socket may reach different processes of this server."""
        return not self.alone or settings.server.workers > 1

    def _account_calls(self) -> int:
        return self._settings.limits.account_calls

    @property
    def full(self) -> bool:
        """Whether there are as many calls as there may be, announced ones included."""
        return self.admission.is_full(Limits.of(self._settings))

    async def reserve(
        self, settings: Settings, call_sid: str, caller: str, *, seconds: float | None = None
    ) -> str:
        """Take a slot for a call that is about to begin; "", or why there is none."""
        if self.draining:
            return "the server is stopping"
        limits = Limits.of(settings)
        if seconds is None:
            # With several processes its ticket lets the call in, whichever of them it reaches, and
            # the slot here would stand empty when that is another.
            seconds = SHORTLY if self._several(settings) else RESERVED_SECONDS
        return await self.admission.reserve(call_sid, caller, limits, seconds=seconds)

    def ticket(self, call_sid: str, purpose: Purpose = "phone") -> str:
        """A ticket for a call that has a slot."""
        return self.tickets.issue(call_sid, self.epoch(), lifetime=TICKET_SECONDS, purpose=purpose)

    def read_ticket(self, ticket: str, purpose: Purpose = "softphone") -> Ticket:
        """What a ticket says, without using it. Raises BadTicket."""
        return self.tickets.read(ticket, self.epoch(), purpose=purpose)

    def _admit(
        self, settings: Settings, entry: Entry, purpose: Purpose, start: StartDetails
    ) -> str:
        """Bind the slot of a socket that says `start`; "", or why it is not let in."""
        parameters, call_sid = start.custom_parameters, start.call_sid
        announced = settings.twilio.require_ticket or purpose == "softphone"
        if announced:
            ticket = parameters.get(TICKET, "")
            if why := self.tickets.check(ticket, call_sid, self.epoch(), purpose=purpose):
                return why
        # Who has a ticket was let in, perhaps by a worker process that is not this one.
        promised = announced and self._several(settings)
        return entry.bind(call_sid, parameters.get("From", ""), promised=promised)

    async def exposed_metrics(self, accept: str | None) -> tuple[bytes, str]:
        """`Metrics.expose`, in a thread where other processes' files are read for it."""
        if self.metrics.reads_files:
            return await trio.to_thread.run_sync(self.metrics.expose, accept)
        return self.metrics.expose(accept)

    def loop_stalled(self, seconds: float) -> None:
        """The event loop runs again, after it did not for `seconds`."""
        self.metrics.loop_stalled(seconds)
        times, so_far, _ = self.stalls
        self.stalls = Stalls(times + 1, so_far + seconds, datetime.now(UTC))

    def begin_drain(self) -> None:
        """Take no new calls from now on; live ones go on."""
        self.draining = True

    def wind_down(self) -> None:
        """Let the agent of every live call say goodbye, then end it; each has its own deadline."""
        for call in self.calls:
            call.wind_down(Outcome.SERVER_SHUTDOWN, "the server is stopping")

    def end_calls(self) -> None:
        """End every live call now, cleanly."""
        for call in self.calls:
            call.end(Outcome.SERVER_SHUTDOWN, "the server is stopping")

    async def run_call(
        self,
        phone: MediaStream,
        settings: Settings,
        entry: Entry,
        purpose: Purpose = "phone",
    ) -> None:
        """Carry one call from its socket's first message to its last. `entry` is the socket's;
        `purpose` is what its ticket has to be for."""
        functions = self._functions
        chosen: dict[str, Any] | None = None

        @asynccontextmanager
        async def open_agent(
            nursery: trio.Nursery,
            info: CallInfo,
            history: Sequence[Mapping[str, Any]] | None,
            *,
            close_by: GoodbyeBy,
        ) -> AsyncIterator[AgentSession]:
            nonlocal chosen
            budget, began = settings.deepgram.connect_budget, trio.current_time()
            schemas = call.functions.schemas()
            async with AsyncExitStack() as stack:
                if chosen is None and (
                    warm := await self.prewarming.claim(info.call_sid, close_by)
                ):
                    stack.push_async_callback(warm.aclose)
                    prepared, session = warm.prepared, warm.session
                    assert prepared is not None
                    assert session is not None
                    # Or the configuration has been edited in between.
                    if prepared.message == settings_message(prepared.table, schemas):
                        chosen = self._answered_by(call, prepared.agent, prepared.table)
                        yield session
                        return
                    await warm.aclose()
                if chosen is None:
                    chosen = self._answered_by(call, *await self._choose_agent(settings, info))
                message = settings_message(chosen, schemas, history)
                # What was spent on a session ahead of the call counts, but one try is left.
                spent = trio.current_time() - began
                session = await stack.enter_async_context(
                    open_within(
                        max(budget - spent, min(budget, settings.deepgram.connect_timeout)),
                        lambda: self._open_session(settings, message, close_by),
                    )
                )
                yield session

        call = Call(
            phone,
            open_agent,
            functions,
            settings.call,
            max_reconnects=settings.deepgram.max_reconnects,
            keeper=Keepers(RecordKeeper(self.recorder, settings), self.live),
            record=partial(_record_to, settings.records.recordings),
            transfer=self._transfer if self.twilio is not None else None,
            admit=partial(self._admit, settings, entry, purpose),
            delays=self.metrics,
        )
        call.functions += built_in(call, settings.functions)
        self.metrics.call_began()
        try:
            with self.calls.carrying(call):
                await call.run()
        finally:
            self._measure(call)

    async def _transfer(self, call_sid: str, number: str) -> None:
        """Have Twilio dial `number` for the caller, instead of asking us what comes next."""
        assert self.twilio is not None
        try:
            await self.twilio.update_call(call_sid, twiml=twiml.dial(number).decode())
        except (TwilioError, ValueError) as error:
            log.warning("transfer by REST failed, going by /call-ended", reason=str(error))

    def prewarm(self, settings: Settings, call_sid: str, parameters: Mapping[str, str]) -> None:
        """Open the agent's session for a call that has just got its slot, where that is wanted and
        of use. `parameters` are its stream's. Does not wait."""
        if not settings.deepgram.prewarm:
            return
        if self._several(settings):
            if not self._told_of_prewarming:
                self._told_of_prewarming = True
                log.warning(
                    "deepgram.prewarm is off: with several worker processes, a call's webhook and "
                    "its socket may reach different ones"
                )
            return
        known = {name: value for name, value in parameters.items() if value and name != TICKET}
        info = CallInfo(
            call_sid=call_sid,
            stream_sid="",
            caller=known.get("From", ""),
            called=known.get("To", ""),
            parameters=known,
        )
        # Their descriptions alone: those of the call itself are what is called.
        built_ins = built_in(cast("Call", None), settings.functions)
        schemas = (self._functions + built_ins).schemas()

        async def prepare() -> Prepared:
            name, table = await self._choose_agent(settings, info)
            return Prepared(name, table, settings_message(table, schemas))

        self.prewarming.begin(call_sid, prepare, partial(self._open_session, settings))

    def _open_session(
        self, settings: Settings, message: str, close_by: GoodbyeBy
    ) -> AbstractAsyncContextManager[AgentSession]:
        assert self._secrets is not None
        return open_session(
            settings.deepgram.url,
            key=self._secrets.deepgram_api_key,
            settings=message,
            timeout=settings.deepgram.connect_timeout,
            close_by=close_by,
            open_stream=self._open_stream,
        )

    async def _choose_agent(self, settings: Settings, info: CallInfo) -> tuple[str, dict[str, Any]]:
        """The agent's name and table for this call, with what is known of the caller filled in."""
        context: dict[str, str] = {}
        if settings.call.context_url:
            context = await fetch_context(settings.call.context_url, info, CONTEXT_SECONDS)
        chosen_by_name = info.parameters.get("direction") in ("outbound-api", "softphone")
        wanted = info.parameters.get("agent", "") if chosen_by_name else None
        name, table = choose_agent(settings, info.called, wanted)
        return name, fill_in(table, variables_of(info, context))

    def _answered_by(self, call: Call, name: str, table: dict[str, Any]) -> dict[str, Any]:
        call.report.agent = name
        call.timekeeper.force_end_turn = _is_flux(table)
        return table

    def _measure(self, call: Call) -> None:
        report, conversation = call.report, call.conversation
        assert report.outcome is not None
        metrics = self.metrics
        if report.info is None and report.outcome == Outcome.PHONE_LOST:
            # Somebody looked whether the socket opens, as `bridge check` does.
            metrics.call_never_began()
            return
        metrics.call_ended(report.outcome, report.seconds, report.teardown_seconds)
        if report.setup_seconds is not None:
            metrics.setup(report.setup_seconds)
        for seconds in report.barge_in_seconds:
            metrics.barge_in(seconds)
        for turn in conversation.turns.all:
            if turn.latency is not None:
                metrics.turn_latency(turn.latency)
        for _ in range(report.reconnects):
            metrics.reconnected()
        metrics.audio_dropped("uplink", report.dropped_bytes)
        metrics.audio_dropped("downlink", conversation.bytes_dropped)
        if self.tracing is not None:
            self.tracing.call_ended(call)


def _record_to(folder: str, call_sid: str) -> CallRecording | None:
    return CallRecording(Path(folder), call_sid) if folder else None


def _is_flux(agent: Mapping[str, Any]) -> bool:
    """Whether the agent listens with Flux, which alone can be told that a turn is over."""
    listen = agent.get("listen")
    provider = listen.get("provider") if isinstance(listen, Mapping) else None
    return isinstance(provider, Mapping) and provider.get("version") == "v2"
