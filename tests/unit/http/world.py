"""The real application, with fakes for calls and records, and the stand-in for Twilio."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx

from bridge.caller import CallInfo
from bridge.config.file import FixedConfig
from bridge.config.secrets import Secrets
from bridge.config.words import Words
from bridge.functions.errors import NotTaken
from bridge.http.app import create_app
from bridge.outcome import Outcome
from bridge.records.recorder import Recorder
from bridge.service import Bridge
from bridge.testing.phone.webhook import sign
from bridge.twilio.rest import TwilioRest
from tests.twilio_standin import ACCOUNT_SID, AUTH_TOKEN, OWN_NUMBER, TwilioStandIn
from tests.world import settings

TOKEN = "api-token-5EC237-0123456789"
TO = "+15551234567"
HOST = "voice.example.com"
BASE = f"https://{HOST}"
SID = "CA" + "a" * 32


class FakeCall:
    """A live call, as far as the API looks into it."""

    seconds_so_far = 12.3456

    def __init__(
        self, call_sid: str = SID, caller: str = TO, called: str = OWN_NUMBER, deaf: str = ""
    ) -> None:
        info = CallInfo(call_sid=call_sid, caller=caller, called=called)
        self.report = SimpleNamespace(info=info)
        self.reasons: list[str] = []
        self.said: list[str] = []
        self.deaf = deaf
        self.words = Words()
        self.actions = FakeActions(deaf)

    def say(self, words: str) -> None:
        if self.deaf:
            raise NotTaken(self.deaf)
        self.said.append(words)

    def end(self, outcome: Outcome, reason: str) -> None:
        assert outcome == Outcome.OPERATOR_HUNG_UP
        self.reasons.append(reason)


class FakeActions:
    """What the API does with a call, in place of `bridge.call.actions.CallActions`."""

    def __init__(self, deaf: str) -> None:
        self.done: list[tuple[str, ...]] = []
        self._deaf = deaf

    def say(self, words: str) -> None:
        self._do("say", words)

    def transfer_now(self, target: str, words: str) -> None:
        if target == "nobody":
            raise ValueError("expected a phone number")
        self._do("transfer", target, words)

    def _do(self, *what: str) -> None:
        if self._deaf:
            raise NotTaken(self._deaf)
        self.done.append(what)


class FakeRecords(Recorder):
    """Records as JSON objects, and the reports that would have been folded into them."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, Any] = {}
        self.reports: list[tuple[str, str, int, str]] = []

    async def list_calls(self, limit: int = 50, **_: Any) -> Any:
        return list(self.stored.values())[:limit]

    async def get(self, call_sid: str) -> Any:
        return self.stored.get(call_sid)

    def note_status(
        self, call_sid: str, status: str, sequence: int, *, answered_by: str = "", **_: Any
    ) -> None:
        self.reports.append((call_sid, status, sequence, answered_by))


class ControlWorld:
    """The application with fakes for calls and records, and the stand-in for Twilio behind it."""

    def __init__(
        self, *, token: str = TOKEN, credentials: bool = True, public_url: str = BASE
    ) -> None:
        self.standin = TwilioStandIn()
        self.api_token = token
        using = settings(
            server={"public_url": public_url},
            agents={
                "sales": {"numbers": [OWN_NUMBER], "words": {"voice": "Polly.Joanna"}},
                "night": {"numbers": []},
            },
        )
        self.app = create_app(
            FixedConfig(using), Secrets(api_token=token, twilio_auth_tokens=(AUTH_TOKEN,))
        )
        self.bridge: Bridge = self.app.extensions["bridge"]
        self.bridge.prepare()
        if credentials:
            transport = self.standin.transport()
            self.bridge.twilio = TwilioRest(ACCOUNT_SID, AUTH_TOKEN, transport=transport)
        self.live: list[FakeCall] = []
        self.bridge.calls = self.live  # type: ignore[assignment]
        self.records = self.bridge.recorder = FakeRecords()
        self.twilio_side = self.client(peer="198.51.100.7", token="")

    async def webhook(self, path: str, form: dict[str, str], query: str = "") -> httpx.Response:
        """One request of Twilio's, signed."""
        url = f"{BASE}{path}{query}"
        signature = sign(url, list(form.items()), AUTH_TOKEN)
        headers = {"X-Twilio-Signature": signature}
        return await self.twilio_side.post(url, data=form, headers=headers)

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
