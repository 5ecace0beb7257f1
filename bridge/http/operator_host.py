"""What the control API needs of the application it is a part of, as protocols: live calls, records,
the rules for dialling, and Twilio's REST API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from bridge.config.settings import Settings
from bridge.http.call_status import StatusUpdate
from bridge.http.dialling import OutboundCall
from bridge.twilio.rest import TwilioRest

# The longest call that Twilio allows an account without asking it for more.
# https://www.twilio.com/docs/voice/api/call-resource#create-a-call-resource (TimeLimit)
TWILIO_TIME_LIMIT: Final = 14_400

# Our own end of a call, with its warning and goodbye, comes first; Twilio's is for when we fail.
TIME_LIMIT_SLACK: Final = 60


NO_CREDENTIALS: Final = "no Twilio credentials; set TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN"


class LiveCall(Protocol):
    """A call that this process carries. `seconds` since it began; "" for what is not known yet."""

    @property
    def call_sid(self) -> str: ...
    @property
    def caller(self) -> str: ...
    @property
    def called(self) -> str: ...
    @property
    def seconds(self) -> float: ...

    def say(self, words: str) -> str:
        """Take `words` for the caller's, as if they had been spoken. Returns at once: "", or why
        not."""
        ...

    def hang_up(self, reason: str) -> None:
        """End it with the outcome `operator_hung_up`. Returns at once, harmless twice."""
        ...


class Records(Protocol):
    """Calls that are stored, as JSON-able objects with `call_sid`, `outcome` and whatever else."""

    async def list(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """The latest ones, latest first."""
        ...

    async def get(self, call_sid: str) -> Mapping[str, Any] | None:
        """One, None if there is none."""
        ...


class NoRecords:
    """`Records` where none are kept."""

    async def list(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """None."""
        return ()

    async def get(self, call_sid: str) -> Mapping[str, Any] | None:
        """None."""
        return None


class DialRefused(Exception):
    """No call may be placed now: one line that says why, and HTTP's status for it."""

    def __init__(self, why: str, status: int = 503) -> None:
        super().__init__(why)
        self.status = status


# A line that is taken: entered while Twilio is asked for the call, and told the call's SID if there
# is one. Left without, it is given back.
Line = AbstractContextManager[Callable[[str], None]]


class DialPolicy(Protocol):
    """The rules for dialling, asked anew for each call."""

    async def public_url(self) -> str:
        """Where Twilio reaches us, "" if only the request itself can tell."""
        ...

    async def agents(self) -> Mapping[str, Sequence[str]]:
        """The agents that may be named, and the numbers each answers."""
        ...

    async def limits(self) -> tuple[int | None, int | None]:
        """How long to ring and how long to talk at most, in seconds; None for Twilio's own."""
        ...

    async def admit(self, call: OutboundCall) -> Line:
        """Take a line for this call; raises DialRefused if none may be placed now."""
        ...


class SettingsPolicy:
    """The rules as config.toml has them. `settings` is asked for each call; `admit` takes a line
    for one, or raises DialRefused: the server drains, or is full."""

    def __init__(
        self,
        settings: Callable[[], Awaitable[Settings]],
        admit: Callable[[OutboundCall], Awaitable[Line]],
    ) -> None:
        self._settings = settings
        self._admit = admit

    async def public_url(self) -> str:
        """`server.public_url`."""
        return (await self._settings()).server.public_url

    async def agents(self) -> Mapping[str, Sequence[str]]:
        """`[agents.NAME]` with `numbers`."""
        agents = (await self._settings()).agents
        return {name: tuple(agent.get("numbers", ())) for name, agent in agents.items()}

    async def limits(self) -> tuple[int | None, int | None]:
        """Twilio's own ringing time; `call.max_minutes` and a little, where Twilio allows it."""
        longest = round((await self._settings()).call.max_minutes * 60) + TIME_LIMIT_SLACK
        return None, longest if longest <= TWILIO_TIME_LIMIT else None

    async def admit(self, call: OutboundCall) -> Line:
        """Whatever `admit` says."""
        return await self._admit(call)


class ControlHost(Protocol):
    """The application, as the control API sees it. Everything is asked at each request, because
    secrets and settings are read after the routes are made."""

    @property
    def api_token(self) -> str:
        """BRIDGE_API_TOKEN, "" without one."""
        ...

    @property
    def twilio(self) -> TwilioRest | None:
        """None without TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN."""
        ...

    @property
    def live(self) -> Iterable[LiveCall]:
        """The calls this process carries."""
        ...

    @property
    def records(self) -> Records: ...

    @property
    def policy(self) -> DialPolicy: ...

    async def call_status(self, update: StatusUpdate) -> None:
        """Fold a report of Twilio's into the call's record; see `bridge.http.call_status.fold`.

        Called for every report, in the order in which they arrive, which is not that of the call.
        """
        ...
