"""What all calls of one application share: settings, secrets, functions, metrics, who is live.

The web application asks it; each `Call` is built here and knows nothing of the others.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec
import trio

from bridge import log as logs
from bridge.admission.account_limit import AccountCap, AccountLimit, check_account_limit
from bridge.admission.slots import RESERVED_SECONDS, Admission, Entry, Limits
from bridge.admission.ticket import EpochClock, Purpose, Ticket, Tickets, ticket_keys
from bridge.call.introduction import TICKET, NotIntroduced
from bridge.call.live_calls import LiveCalls
from bridge.call.observers import Observer, Observers
from bridge.call_setup import CallSetup
from bridge.config.file import ConfigFile, SettingsSource, config_path
from bridge.config.settings import ConfigError, Secrets, Settings, check_startup, warnings_for
from bridge.deepgram.prewarm import Prewarming
from bridge.functions import FunctionError, Functions
from bridge.live.hub import Live
from bridge.outcome import Outcome
from bridge.records.from_call import RecordKeeper
from bridge.records.recorder import Recorder, recorder_for
from bridge.telemetry.call_metrics import CallMetrics
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.tracing import Tracing, tracing_for
from bridge.transport.websocket_client import OpenStream
from bridge.twilio.media_stream import MediaStream
from bridge.twilio.messages import StartDetails
from bridge.twilio.rest import TwilioRest

log = logs.get_logger(__name__)

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
        self._settings = Settings()
        self._prepared = False
        self._functions = Functions(())
        self._functions_module = ""
        self.metrics = Metrics()
        self.calls = LiveCalls()
        self.live = Live(self.calls)
        self.stalls = Stalls()
        self.admission = Admission()
        self.prewarming = Prewarming()
        self.setup = CallSetup(
            self.calls,
            self.metrics,
            self.prewarming,
            twilio=lambda: self.twilio,
            key=lambda: self._secrets.deepgram_api_key if self._secrets is not None else "",
            open_stream=open_stream,
        )
        # Whether this is the server's only process; who starts several says so.
        self.alone = True
        self._told_of_prewarming = False
        self.account = AccountLimit("")
        self.tickets = Tickets(ticket_keys())
        self.epoch = EpochClock(time.time, trio.current_time, patience=TICKET_SECONDS)
        # What the agent is known to understand, for the softphone's page; None if nobody has said.
        self.phrases: tuple[str, ...] | None = None
        self.draining = False
        self.started_at = datetime.now(UTC)
        self.recorder = Recorder()
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
        async with self.recorder.running(), trio.open_nursery() as nursery:
            nursery.start_soon(self.account.run)
            self.prewarming.nursery = nursery
            if self.tracing is not None:
                nursery.start_soon(self.tracing.run)
            try:
                yield
            finally:
                self.prewarming.nursery = None
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
            call.polite_end.wind_down(Outcome.SERVER_SHUTDOWN, "the server is stopping")

    def end_calls(self) -> None:
        """End every live call now, cleanly, and give up the sockets that are not calls yet."""
        self.calls.stop_expecting()
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

        def admit(start: StartDetails) -> None:
            if why := self._admit(settings, entry, purpose, start):
                raise NotIntroduced(Outcome.PROTOCOL_ERROR, why)

        observers: list[Observer] = [
            CallMetrics(self.metrics),
            RecordKeeper(self.recorder, settings),
            self.live,
        ]
        if self.tracing is not None:
            observers.append(self.tracing)
        await self.setup.carry(phone, settings, self._functions, admit, Observers(*observers))

    def prewarm(self, settings: Settings, call_sid: str, parameters: Mapping[str, str]) -> None:
        """Open the agent's session for a call that has just got its slot, where that is wanted and
        of use. `parameters` are its stream's. Does not wait."""
        if not settings.deepgram.prewarm:
            return
        if not self._several(settings):
            self.setup.prewarm(settings, self._functions, call_sid, parameters)
        elif not self._told_of_prewarming:
            self._told_of_prewarming = True
            log.warning(
                "deepgram.prewarm is off: with several worker processes, a call's webhook and "
                "its socket may reach different ones"
            )
