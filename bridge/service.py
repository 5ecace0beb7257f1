"""The parts that all calls of one application share: settings, functions, records, metrics.

The routes find it in their application; each `Call` is built here and knows nothing of the others.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any, Final, NamedTuple

import msgspec
import trio

from bridge import log as logs
from bridge.admission.account_limit import AccountCap, AccountLimit, check_account_limit
from bridge.admission.entrance import LAME_DUCK_SECONDS, Entrance, tickets_from
from bridge.admission.slots import Entry, NotAdmitted
from bridge.admission.ticket import Purpose
from bridge.call.introduction import TICKET, NotIntroduced, info_of
from bridge.call.live_calls import LiveCalls
from bridge.call.observers import Observer, Observers
from bridge.call_setup import CallSetup, agent_of
from bridge.config.file import ConfigFile, SettingsSource, config_path
from bridge.config.secrets import Secrets, check_startup, quoted_warning
from bridge.config.settings import ConfigError, Settings
from bridge.config.warnings import warnings_for
from bridge.deepgram.prewarm import Prewarming
from bridge.functions import FunctionError
from bridge.functions.modules import FunctionModules, modules_of
from bridge.legs import Legs
from bridge.live.hub import Live
from bridge.outcome import Outcome
from bridge.records.from_call import RecordKeeper
from bridge.records.lease import REASON, LostCall
from bridge.records.recorder import Recorder, recorder_for
from bridge.telemetry.call_metrics import CallMetrics
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.scrapes import Scrapes
from bridge.telemetry.tracing import Tracing, tracing_for
from bridge.transport.websocket_client import OpenStream
from bridge.twilio.call_status import Progress, StatusUpdate
from bridge.twilio.dialled import DialResult
from bridge.twilio.media_stream import MediaStream
from bridge.twilio.messages import StartDetails
from bridge.twilio.numbers import counted_as, is_number
from bridge.twilio.rest import TwilioRest

log = logs.get_logger(__name__)


NO_CREDENTIALS: Final = "no Twilio credentials; set TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN"


class Stalls(NamedTuple):
    """How often the event loop was blocked, for how many seconds in all, and when last."""

    times: int = 0
    seconds: float = 0.0
    last: datetime | None = None


class Bridge:
    """The composition root: makes the parts that all calls of one application share.

    Without `config`, the settings are those of the file that BRIDGE_CONFIG names; without
    `secrets`, the secrets are the environment's. Both are read by `prepare`, so that importing the
    application never fails. `open_stream` replaces the TCP connection to the agent, for tests
    without sockets.
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
        self._checked: Settings | None = None
        self._warned: frozenset[str] = frozenset()
        self.functions = FunctionModules()
        self.metrics = Metrics()
        self.scrapes = Scrapes(self.metrics)
        self.calls = LiveCalls()
        self.live = Live(self.calls, self.facts)
        self.progress = Progress()
        self.stalls = Stalls()
        self.entrance = Entrance()
        self.prewarming = Prewarming()
        self.setup = CallSetup(
            self.calls,
            self.metrics,
            self.prewarming,
            self.functions,
            twilio=lambda: self.twilio,
            key=lambda: self.secrets.deepgram_api_key,
            open_stream=open_stream,
        )
        self._told_of_prewarming = False
        self.account = AccountLimit("")
        # For the softphone's page; known only where this process runs the agent, in `bridge demo`.
        self.phrases: tuple[str, ...] = ()
        self.started_at = datetime.now(UTC)
        self.recorder = Recorder()
        self.tracing: Tracing | None = None
        self.twilio: TwilioRest | None = None
        self.tunnel = ""

    def prepare(self) -> Settings:
        """Read the settings; at the first call also read the secrets and make the parts.

        Raises ConfigError with one line that says what to do.
        """
        if self._config is None:
            self._config = ConfigFile(config_path())
        if self._secrets is None:
            self._secrets = Secrets.from_environment()
        if not (self._secrets.api_token or self._secrets.run_token):
            self._secrets = replace(self._secrets, run_token=token_hex(16))
        settings = self._settings = self._config.load()
        if not self._prepared:
            check_startup(settings, self._secrets)
            check_account_limit(settings)
            self.entrance.tickets = tickets_from(self._secrets)
            logs.configure(
                level=settings.logging.level,
                format=settings.logging.format,
                mask_numbers=settings.logging.mask_numbers,
                secrets=self._secrets.values(),
            )
            self._warn_of_protections(settings)
            for name in self._secrets.quoted:
                log.warning(quoted_warning(name))
            try:
                self.functions.load(modules_of(settings))
            except FunctionError as error:
                raise ConfigError(str(error)) from error
            self.recorder = recorder_for(settings.records, lost=self._note_lost)
            self.account = AccountLimit(settings.records.url)
            self.entrance.slots.shared = AccountCap(self.account, self._account_calls)
            if login := self._secrets.twilio_login():
                account_sid, secret, options = login
                try:
                    self.twilio = TwilioRest(account_sid, secret, **options)
                except ValueError as error:
                    raise ConfigError(str(error)) from error
            self.tracing = tracing_for()
            self.started_at = datetime.now(UTC)
            self._prepared = True
        return settings

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run what lives as long as the server, such as writing records.

        *Resource handling.* On exit, also by cancellation, the records that wait are written, and
        connections are closed, each within a deadline.

        *Error handling.* Raises ConfigError for a database that cannot be used.
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
        """BRIDGE_API_TOKEN, or else the token of this run; "" before `prepare`."""
        return self.secrets.api_token or self.secrets.run_token

    @property
    def run_token(self) -> str:
        """The token that was made for this run; "" if BRIDGE_API_TOKEN is set."""
        return "" if self.secrets.api_token else self.secrets.run_token

    @property
    def secrets(self) -> Secrets:
        """The secrets; none before `prepare`."""
        return self._secrets or Secrets()

    async def settings(self) -> Settings:
        """Return the settings for a call that begins now, from the file if it has changed."""
        assert self._config is not None
        settings = await self._config.current()
        await self.functions.bring_up_to_date(modules_of(settings))
        self._warn_of_protections(settings)
        if self.tunnel and not settings.server.public_url:
            server = msgspec.structs.replace(settings.server, public_url=self.tunnel)
            settings = msgspec.structs.replace(settings, server=server)
        self._settings = settings
        return settings

    def _warn_of_protections(self, settings: Settings) -> None:
        """Log each protection that is switched off, once, also when an edit has done it."""
        if settings is not self._checked:
            self._checked, warned = settings, self._warned
            self._warned = frozenset(warnings_for(settings))
            for warning in sorted(self._warned - warned):
                log.warning(warning)

    def settings_now(self) -> Settings:
        """Return the settings last read, without waiting for the file."""
        return self._settings

    def _account_calls(self) -> int:
        return self._settings.limits.account_calls

    def note_status(self, update: StatusUpdate) -> StatusUpdate:
        """Add a report of Twilio's to the call's record, and return what is known of the call.

        Frees the slot of a call that was not answered.
        """
        if update.is_terminal:
            self.entrance.slots.release(update.call_sid)
        self.recorder.note_status(
            update.call_sid,
            update.status,
            -1 if update.sequence is None else update.sequence,
            answered_by=update.answered_by,
            caller=update.caller,
            called=update.called,
            direction=update.direction,
        )
        return self.progress.fold(update)

    async def note_dialled(
        self,
        call_sid: str,
        leg: int,
        result: DialResult,
        outcome: Outcome,
        *,
        name: str,
        fallback: str = "",
    ) -> None:
        """Add what became of a dialled phone, once, to the call's record, the log and the metrics.

        `outcome` is the call's, HANDED_OVER if it goes on; `name` is the transfer's; `fallback` is
        the phone, where it was dialled after an apology.
        """
        reason = "" if result.answered else f"transfer to {name}: {result.status}"
        if not await self.recorder.note_dialled(
            call_sid, leg, result, outcome, reason=reason, fallback=fallback
        ):
            return
        facts: dict[str, Any] = {"transfer_name": name, "transfer_status": result.status}
        if result.seconds is not None:
            facts["transfer_seconds"] = result.seconds
        if fallback:
            log.info("fallback dialled", call_sid=call_sid, **facts)
        elif not outcome.is_final:
            log.warning("transfer failed; the caller returns", call_sid=call_sid, **facts)
        else:
            self.metrics.call_over(outcome)
            if (known := self.recorder.known(call_sid)) is not None:
                reason = known.record.reason
            log.info("call ended", call_sid=call_sid, outcome=str(outcome), reason=reason, **facts)

    def _note_lost(self, call: LostCall) -> None:
        """Count and log the end of a call whose process is gone."""
        self.metrics.call_over(Outcome.SERVER_LOST)
        facts = {"outcome": str(Outcome.SERVER_LOST), "reason": REASON, "seconds": call.seconds}
        log.error("call ended", call_sid=call.call_sid, **facts)

    def facts(self) -> dict[str, Any]:
        """Return the state of this server process for viewers, as JSON. Does not wait."""
        settings, stalls = self._settings, self.stalls
        records = self.recorder.statistics()
        return {
            "live": len(self.calls),
            "max_calls": settings.server.max_calls,
            "draining": self.entrance.draining,
            "workers": settings.server.workers,
            "pid": os.getpid(),
            "started_at": self.started_at.isoformat(),
            "stalls": stalls.times,
            "stall_seconds": round(stalls.seconds, 3),
            "last_stall_at": stalls.last.isoformat() if stalls.last else None,
            "records": self.recorder.keeps_records,
            "database_trouble": records.trouble,
            "records_waiting": records.waiting,
            "records_lost": records.lost,
            "viewers": len(self.live),
            "agents": {
                name: list(filter(is_number, table.get("numbers", ())))
                for name, table in settings.agents.items()
            },
            "cannot_dial": "" if self.twilio is not None else NO_CREDENTIALS,
        }

    def loop_stalled(self, seconds: float) -> None:
        """Note that the event loop runs again, after it was blocked for `seconds`."""
        self.metrics.loop_stalled(seconds)
        times, so_far, _ = self.stalls
        self.stalls = Stalls(times + 1, so_far + seconds, datetime.now(UTC))

    @property
    def expects_calls(self) -> bool:
        """Whether a call may still begin: see `Entrance.expects_calls`."""
        return self.entrance.expects_calls

    def begin_drain(self) -> None:
        """Send new calls elsewhere, and soon admit no more; live calls go on."""
        self.entrance.drain(min(LAME_DUCK_SECONDS, self._settings.server.drain_seconds))

    def wind_down(self) -> None:
        """Let the agent of every live call say goodbye, then end it; each has its own deadline."""
        for call in self.calls:
            words = call.words.stopping
            call.polite_end.wind_down(Outcome.SERVER_SHUTDOWN, "the server is stopping", words)

    def end_calls(self) -> None:
        """End every live call now, cleanly, and give up the sockets that are not calls yet. No
        other call is admitted."""
        self.entrance.drain()
        self.calls.stop_expecting()
        for call in self.calls:
            call.end(Outcome.SERVER_SHUTDOWN, "the server is stopping")

    async def run_call(
        self,
        phone: MediaStream,
        settings: Settings,
        entry: Entry,
        purpose: Purpose = "phone",
        web: str = "",
    ) -> None:
        """Carry one call from its socket's first message to its last.

        `entry` is the socket's, and `purpose` is what its ticket has to be for. `web` is the
        address at which Twilio reaches this server.
        """

        def admit(start: StartDetails) -> None:
            parameters = start.custom_parameters
            caller, ticket = parameters.get("From", ""), parameters.get(TICKET, "")
            agent = agent_of(settings, info_of(start.call_sid, parameters))
            try:
                self.entrance.admit(
                    settings.for_agent(agent),
                    entry,
                    purpose,
                    call_sid=start.call_sid,
                    caller=counted_as(caller),
                    ticket=ticket,
                    parameters=parameters,
                )
            except NotAdmitted as error:
                raise NotIntroduced(Outcome.PROTOCOL_ERROR, str(error)) from None

        observers: list[Observer] = [
            CallMetrics(self.metrics),
            RecordKeeper(self.recorder, settings),
            self.live,
        ]
        if self.tracing is not None:
            observers.append(self.tracing)
        legs = Legs(self.recorder)
        await self.setup.carry(phone, settings, admit, Observers(*observers), legs, web)

    def prewarm(self, settings: Settings, call_sid: str, parameters: Mapping[str, str]) -> None:
        """Open the agent's session for a call that has a slot, if `deepgram.prewarm` is set.

        `parameters` are its stream's. Does not wait.
        """
        if not settings.deepgram.prewarm:
            return
        if not self.entrance.spans_processes(settings):
            self.setup.prewarm(settings, call_sid, parameters)
        elif not self._told_of_prewarming:
            self._told_of_prewarming = True
            log.warning(
                "deepgram.prewarm is off: with several processes or servers, a call's webhook and "
                "its socket may reach different ones"
            )
