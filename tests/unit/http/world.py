"""The control API on an application of its own: fakes for calls, records and rules, and the
stand-in for Twilio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from quart_trio import QuartTrio

from bridge.http.call_status import StatusUpdate, fold
from bridge.http.dialling import AnswerWith, OutboundCall, with_twiml
from bridge.http.operator_api import control_blueprint
from bridge.http.operator_host import DialRefused
from bridge.twilio.rest import TwilioRest
from tests.twilio_standin import ACCOUNT_SID, AUTH_TOKEN, OWN_NUMBER, TwilioStandIn

TOKEN = "api-token-5EC237-0123456789"
TO = "+15551234567"
HOST = "voice.example.com"
BASE = f"https://{HOST}"
SID = "CA" + "a" * 32


@dataclass
class FakeCall:
    call_sid: str = SID
    caller: str = TO
    called: str = OWN_NUMBER
    seconds: float = 12.3456
    reasons: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    deaf: str = ""

    def say(self, words: str) -> str:
        if not self.deaf:
            self.said.append(words)
        return self.deaf

    def hang_up(self, reason: str) -> None:
        self.reasons.append(reason)


class FakeRecords:
    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {}

    async def list(self, limit: int) -> Sequence[Mapping[str, Any]]:
        return list(self.stored.values())[:limit]

    async def get(self, call_sid: str) -> Mapping[str, Any] | None:
        return self.stored.get(call_sid)


class FakePolicy:
    def __init__(self) -> None:
        self.url = BASE
        self.refusal = ""
        self.admitted: list[OutboundCall] = []
        self.lines = 0
        self.known: dict[str, Sequence[str]] = {"sales": [OWN_NUMBER], "night": []}

    async def public_url(self) -> str:
        return self.url

    async def agents(self) -> Mapping[str, Sequence[str]]:
        return self.known

    async def limits(self) -> tuple[int | None, int | None]:
        return 30, 3660

    async def admit(self, call: OutboundCall) -> AbstractContextManager[Any]:
        if self.refusal:
            raise DialRefused(self.refusal)
        self.admitted.append(call)
        return self._line()

    @contextmanager
    def _line(self) -> Iterator[Callable[[str], None]]:
        self.lines += 1
        placed: list[str] = []
        try:
            yield placed.append
        finally:
            self.lines -= not placed


class ControlWorld:
    """An application with the control API, and everybody it talks to."""

    def __init__(
        self, *, token: str = TOKEN, credentials: bool = True, answer: AnswerWith = with_twiml
    ) -> None:
        self.standin = TwilioStandIn()
        self.api_token = token
        self.twilio: TwilioRest | None = None
        if credentials:
            self.twilio = TwilioRest(ACCOUNT_SID, AUTH_TOKEN, transport=self.standin.transport())
        self.live: list[FakeCall] = []
        self.records = FakeRecords()
        self.policy = FakePolicy()
        self.updates: list[StatusUpdate] = []
        self.app = QuartTrio("control")
        self.app.register_blueprint(control_blueprint(self, answer=answer, reserved=["secret"]))
        self.twilio_side = self.client(peer="198.51.100.7", token="")

    async def call_status(self, update: StatusUpdate) -> None:
        self.updates.append(update)

    def known(self, call_sid: str) -> StatusUpdate | None:
        """What an owner who folds every report would have stored."""
        known = None
        for update in self.updates:
            if update.call_sid == call_sid:
                known = fold(known, update)
        return known

    def client(
        self, *, peer: str = "203.0.113.9", token: str | None = None, host: str = HOST
    ) -> httpx.AsyncClient:
        given = self.api_token if token is None else token
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, client=(peer, 40000)),
            base_url=f"https://{host}",
            headers={"Authorization": f"Bearer {given}"} if given else {},
        )

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request of the operator's."""
        async with self.client() as client:
            return await client.request(method, path, **options)

    async def dial(self, **fields: Any) -> httpx.Response:
        body = {"to": TO, "from": OWN_NUMBER, **fields}
        return await self.ask("POST", "/calls", json=body)
