"""Runs all checks at once, each with its own deadline; one that fails or hangs affects no other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

import trio

from bridge.check.account import OpenRest, check_account
from bridge.check.agent import check_agents, hosts
from bridge.check.clock import check_clock
from bridge.check.finding import Finding, warning, wrong
from bridge.check.privacy import check_privacy
from bridge.check.public import check_server
from bridge.check.records import check_recordings, check_records
from bridge.config.secrets import Secrets, quoted_warning
from bridge.config.settings import Settings
from bridge.config.warnings import warnings_for
from bridge.transport.websocket_client import OpenStream
from bridge.twilio.login import api_url
from bridge.twilio.rest import TwilioRest

# For one check with all its requests; each request has a shorter deadline.
CHECK_SECONDS = 30.0
# For each configured agent: connecting, Settings, the greeting, the goodbye.
AGENT_SECONDS = 20.0

Check = Callable[[], Awaitable[Iterable[Finding]]]


@dataclass(frozen=True)
class Checks:
    """What to check. `url` replaces server.public_url; `number` is looked up at Twilio.

    `open_rest` and `open_stream` replace the network in tests.
    """

    settings: Settings
    secrets: Secrets
    url: str = ""
    number: str = ""
    open_rest: OpenRest = TwilioRest
    open_stream: OpenStream | None = None

    def all(self) -> dict[str, tuple[Check, float]]:
        """Return each check by name with its deadline in seconds, in the order of the findings."""
        settings, secrets = self.settings, self.secrets
        clocks = hosts(settings)
        if secrets.twilio_account_sid:
            clocks.append(f"{api_url(secrets.twilio_region, secrets.twilio_edge)}/")
        agents = 1 + len(settings.agents)
        return {
            "config": (partial(_check_config, settings, secrets), CHECK_SECONDS),
            "agent": (
                partial(check_agents, settings, secrets, self.open_stream),
                AGENT_SECONDS * agents,
            ),
            "privacy": (partial(check_privacy, settings), CHECK_SECONDS),
            "server": (partial(check_server, settings, secrets, self.url), 2 * CHECK_SECONDS),
            "twilio": (
                partial(check_account, secrets, settings, self.number, self.open_rest),
                CHECK_SECONDS,
            ),
            "records": (partial(check_records, settings.records), CHECK_SECONDS),
            "recordings": (
                partial(check_recordings, settings.records.recordings),
                CHECK_SECONDS,
            ),
            "clock": (partial(check_clock, clocks), CHECK_SECONDS),
        }


async def _check_config(settings: Settings, secrets: Secrets) -> Iterable[Finding]:
    """Return the warnings that the server logs when it starts."""
    await trio.lowlevel.checkpoint()
    lines = (*warnings_for(settings), *map(quoted_warning, secrets.quoted))
    return [warning("config", *line.split(": ", 1)) for line in lines]


async def run_checks(checks: dict[str, tuple[Check, float]]) -> list[Finding]:
    """Run all checks at once; return their findings in the order of `checks`.

    An exception of a check becomes a finding, and so does a deadline that passes.
    """
    found: dict[str, Iterable[Finding]] = dict.fromkeys(checks, ())

    async def run(name: str, check: Check, seconds: float) -> None:
        with trio.move_on_after(seconds) as patience:
            try:
                found[name] = await check()
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                found[name] = [wrong(name, "the check itself failed", why)]
        if patience.cancelled_caught:
            found[name] = [wrong(name, f"not done within {seconds:g} s", remedy="try again")]

    async with trio.open_nursery() as nursery:
        for name, (check, seconds) in checks.items():
            nursery.start_soon(run, name, check, seconds)
    return [finding for findings in found.values() for finding in findings]
