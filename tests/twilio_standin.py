"""A stand-in for Twilio's REST API and for the requests Twilio makes itself.

Written from Twilio's published OpenAPI description (twilio_api_v2010: which parameters each request
has and requires, form encoding, status codes, the fields of a call and of a phone number, the
values of a status) and its pages on errors. It is strict: a parameter the description does not
have, a value outside its list, a body that is no form, are refused as Twilio would refuse them.

`transport()` serves it without sockets; `serve` is a small real HTTP server. `report` sends what
Twilio would send to the status callback, in any order; `answer` says what the call would do.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11
import httpx
import trio
from twilio.request_validator import RequestValidator

ACCOUNT_SID = "AC" + "0123456789abcdef" * 2
AUTH_TOKEN = "tw-token-5EC237-0123456789"
OWN_NUMBER = "+15557654321"

TERMINAL = ("completed", "busy", "failed", "no-answer", "canceled")
EVENTS = ("initiated", "ringing", "answered", "completed")

_METHODS = {"GET", "POST"}
_BOOLEANS = {"true", "false"}
_ANY = None

# What each request may say, and the values where the description lists them. Of the parameters
# that bridge has no use for, enough to tell a misspelling from a feature.
CREATE_CALL: dict[str, set[str] | None] = {
    "To": _ANY,
    "From": _ANY,
    "Url": _ANY,
    "Twiml": _ANY,
    "ApplicationSid": _ANY,
    "Method": _METHODS,
    "FallbackUrl": _ANY,
    "FallbackMethod": _METHODS,
    "StatusCallback": _ANY,
    "StatusCallbackEvent": set(EVENTS),
    "StatusCallbackMethod": _METHODS,
    "SendDigits": _ANY,
    "CallReason": _ANY,
    "Timeout": _ANY,
    "TimeLimit": _ANY,
    "Record": _BOOLEANS,
    "CallerId": _ANY,
    "MachineDetection": {"Enable", "DetectMessageEnd"},
    "MachineDetectionTimeout": _ANY,
    "AsyncAmd": _BOOLEANS,
    "AsyncAmdStatusCallback": _ANY,
    "AsyncAmdStatusCallbackMethod": _METHODS,
}
UPDATE_CALL: dict[str, set[str] | None] = {
    "Url": _ANY,
    "Method": _METHODS,
    "Status": {"canceled", "completed"},
    "FallbackUrl": _ANY,
    "FallbackMethod": _METHODS,
    "StatusCallback": _ANY,
    "StatusCallbackMethod": _METHODS,
    "Twiml": _ANY,
    "TimeLimit": _ANY,
}
UPDATE_NUMBER: dict[str, set[str] | None] = {
    "FriendlyName": _ANY,
    "StatusCallback": _ANY,
    "StatusCallbackMethod": _METHODS,
    "VoiceApplicationSid": _ANY,
    "VoiceFallbackMethod": _METHODS,
    "VoiceFallbackUrl": _ANY,
    "VoiceMethod": _METHODS,
    "VoiceUrl": _ANY,
    "TrunkSid": _ANY,
}
LIST_NUMBERS = {"Beta", "FriendlyName", "PhoneNumber", "Origin", "PageSize", "Page", "PageToken"}

_E164 = re.compile(r"\+[1-9][0-9]{1,14}")

Form = list[tuple[str, str]]


@dataclass
class Call:
    """A call as Twilio has it, and what it was asked to do."""

    sid: str
    form: Form
    status: str = "queued"
    twiml: str = ""
    updates: list[Form] = field(default_factory=list)
    sequence: int = 0

    def asked(self, name: str) -> str:
        """The last value of a parameter of the request, "" without it."""
        return dict(self.form).get(name, "")

    @property
    def events(self) -> list[str]:
        return [value for name, value in self.form if name == "StatusCallbackEvent"]

    def resource(self) -> dict[str, Any]:
        now = formatdate(usegmt=False)
        return {
            "account_sid": ACCOUNT_SID,
            "answered_by": None,
            "api_version": "2010-04-01",
            "date_created": now,
            "date_updated": now,
            "direction": "outbound-api",
            "duration": None,
            "from": self.asked("From"),
            "sid": self.sid,
            "status": self.status,
            "to": self.asked("To"),
            "uri": f"/2010-04-01/Accounts/{ACCOUNT_SID}/Calls/{self.sid}.json",
        }


def number(phone_number: str, index: int = 1, **fields: Any) -> dict[str, Any]:
    """A phone number's resource."""
    return {
        "account_sid": ACCOUNT_SID,
        "friendly_name": "Office",
        "phone_number": phone_number,
        "sid": f"PN{index:032x}",
        "status_callback": "",
        "status_callback_method": "POST",
        "trunk_sid": None,
        "voice_application_sid": "",
        "voice_fallback_url": None,
        "voice_method": "POST",
        "voice_url": None,
        **fields,
    }


@dataclass
class Answer:
    """What goes back for a request."""

    status: int
    body: bytes
    content_type: str = "application/json"


def error(status: int, code: int, message: str) -> Answer:
    """Twilio's error body."""
    return _json(
        status,
        {
            "code": code,
            "message": message,
            "more_info": f"https://www.twilio.com/docs/errors/{code}",
            "status": status,
        },
    )


class TwilioStandIn:
    """One account. `calls` and `numbers` are its state, `requests` what came in, in order.

    `faults` happen to the next requests, one each: an Answer goes back in place of the right one;
    an exception is raised (or, on a real socket, the connection closed) without the request being
    looked at; `Lost()` carries the request out and loses the answer.
    """

    def __init__(self, *numbers: dict[str, Any]) -> None:
        self.calls: dict[str, Call] = {}
        self.numbers = {item["sid"]: item for item in numbers or (number(OWN_NUMBER),)}
        self.requests: list[tuple[str, str, Form]] = []
        self.faults: deque[Answer | Exception | Lost | None] = deque()
        self.before_answer: Callable[[Call], Awaitable[None]] | None = None
        self._sids = itertools.count(1)

    # ---- requests to Twilio ----------------------------------------------------------------

    async def handle(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        """Answer one request; `target` is path and query, header names are in lower case."""
        parts = urlsplit(target)
        form = parse_qsl(body.decode() if method == "POST" else parts.query, keep_blank_values=True)
        self.requests.append((method, parts.path, form))
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, Answer):
            return fault
        answer = await self._answer(method, parts.path, headers, form)
        if isinstance(fault, Lost):
            raise httpx.ReadError("the connection was reset")
        return answer

    async def _answer(self, method: str, path: str, headers: dict[str, str], form: Form) -> Answer:
        given = f"{ACCOUNT_SID}:{AUTH_TOKEN}".encode()
        if headers.get("authorization") != f"Basic {base64.b64encode(given).decode()}":
            return error(401, 20003, "Authenticate")
        kind = headers.get("content-type", "")
        if method == "POST" and not kind.startswith("application/x-www-form-urlencoded"):
            form = []  # Twilio sees no parameters in it
        base = f"/2010-04-01/Accounts/{ACCOUNT_SID}/"
        resource = path.removeprefix(base) if path.startswith(base) else ""
        sid = resource.rpartition("/")[2].removesuffix(".json")
        match method, resource.partition("/")[0], sid:
            case "POST", "Calls.json", _:
                return await self._create_call(form)
            case (("POST" | "GET"), "Calls", _) if sid in self.calls:
                call = self.calls[sid]
                return (
                    self._update_call(call, form)
                    if method == "POST"
                    else _json(200, call.resource())
                )
            case "GET", "IncomingPhoneNumbers.json", _:
                return self._list_numbers(form)
            case "POST", "IncomingPhoneNumbers", _ if sid in self.numbers:
                return self._update_number(self.numbers[sid], form)
            case _:
                return error(404, 20404, f"The requested resource {path} was not found")

    async def _create_call(self, form: Form) -> Answer:
        if wrong := _wrong(form, CREATE_CALL, repeatable={"StatusCallbackEvent"}):
            return wrong
        asked = dict(form)
        if not asked.get("To"):
            return error(400, 21201, "No 'To' number is specified")
        if not asked.get("From"):
            return error(400, 21213, "No 'From' number is specified")
        if not _E164.fullmatch(asked["To"]) and not asked["To"].startswith(("sip:", "client:")):
            return error(
                400,
                21211,
                f"The phone number you are attempting to call, {asked['To']}, is not valid.",
            )
        if asked["From"] not in {item["phone_number"] for item in self.numbers.values()}:
            return error(
                400,
                21210,
                f"The source phone number provided, {asked['From']}, is not yet verified for your "
                "account.",
            )
        if not any(asked.get(name) for name in ("Url", "Twiml", "ApplicationSid")):
            return error(400, 21205, "Url parameter is required.")
        if "Url" in asked and not asked["Url"].startswith(("http://", "https://")):
            return error(400, 21205, f"Url is not a valid URL: {asked['Url']}")
        if len(asked.get("Twiml", "")) > 4000:
            return error(400, 20001, "Twiml: at most 4000 characters")
        if "Timeout" in asked and not 1 <= int(asked["Timeout"]) <= 600:
            return error(400, 20001, "Timeout: at most 600")
        call = Call(f"CA{next(self._sids):032x}", form, twiml=asked.get("Twiml", ""))
        self.calls[call.sid] = call
        body = call.resource()
        if self.before_answer is not None:
            await self.before_answer(call)
        return _json(201, body)

    def _update_call(self, call: Call, form: Form) -> Answer:
        if wrong := _wrong(form, UPDATE_CALL):
            return wrong
        asked = dict(form)
        if call.status in TERMINAL:
            return error(400, 21220, "Call is not in-progress. Cannot redirect.")
        if asked.get("Url") and asked.get("Twiml"):
            return error(400, 20001, "Url and Twiml exclude each other")
        if "Status" in asked:
            waiting = call.status in ("queued", "ringing")
            if asked["Status"] == "canceled" and not waiting:
                return error(400, 21220, "Call is not queued or ringing.")
            call.status = "canceled" if waiting else "completed"
        call.updates.append(form)
        call.twiml = asked.get("Twiml", call.twiml)
        return _json(200, call.resource())

    def _list_numbers(self, query: Form) -> Answer:
        asked = dict(query)
        if strange := set(asked) - LIST_NUMBERS:
            return error(400, 20001, f"unknown parameters {sorted(strange)}")
        wanted = asked.get("PhoneNumber", "").replace("*", "").removeprefix("+")
        found = [item for item in self.numbers.values() if wanted in item["phone_number"]]
        path = f"/2010-04-01/Accounts/{ACCOUNT_SID}/IncomingPhoneNumbers.json"
        return _json(
            200,
            {
                "end": max(0, len(found) - 1),
                "first_page_uri": f"{path}?PageSize=50&Page=0",
                "incoming_phone_numbers": found,
                "next_page_uri": None,
                "page": 0,
                "page_size": int(asked.get("PageSize", "50")),
                "previous_page_uri": None,
                "start": 0,
                "uri": path,
            },
        )

    def _update_number(self, item: dict[str, Any], form: Form) -> Answer:
        if wrong := _wrong(form, UPDATE_NUMBER):
            return wrong
        fields = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): value for name, value in form}
        if fields.get("voice_application_sid"):
            fields["trunk_sid"] = ""
        item.update(fields)
        return _json(200, item)

    # ---- without and with sockets ----------------------------------------------------------

    def transport(self) -> httpx.MockTransport:
        """For an httpx client: everything but the sockets."""

        async def respond(request: httpx.Request) -> httpx.Response:
            answer = await self.handle(
                request.method,
                request.url.raw_path.decode(),
                dict(request.headers),
                await request.aread(),
            )
            return httpx.Response(
                answer.status, content=answer.body, headers={"Content-Type": answer.content_type}
            )

        return httpx.MockTransport(respond)

    async def serve(self, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve on a free port of this machine; started with the base URL."""
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(partial(trio.serve_listeners, self._connection, listeners))
            task_status.started(f"http://127.0.0.1:{port}")

    async def _connection(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while connection.our_state is h11.IDLE:
                await self._exchange(connection, stream)
                if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
                    connection.start_next_cycle()
        except (trio.BrokenResourceError, h11.RemoteProtocolError, httpx.HTTPError):
            pass  # the other side is gone, or a fault that was asked for: the connection closes
        finally:
            await trio.aclose_forcefully(stream)

    async def _exchange(self, connection: h11.Connection, stream: trio.SocketStream) -> None:
        request, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise h11.RemoteProtocolError("closed")
        assert request is not None
        headers = {name.decode(): value.decode() for name, value in request.headers}
        answer = await self.handle(request.method.decode(), request.target.decode(), headers, body)
        reply = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
        ]
        for event in (
            h11.Response(status_code=answer.status, headers=reply),
            h11.Data(data=answer.body),
            h11.EndOfMessage(),
        ):
            await stream.send_all(connection.send(event) or b"")

    # ---- requests by Twilio ----------------------------------------------------------------

    def reports(
        self, call: Call, steps: Sequence[str] = EVENTS, ending: str = "completed", **more: str
    ) -> list[Form]:
        """The forms of the status callbacks that the call asked for, in the order of the call.
        Each takes the next SequenceNumber; an event that was not asked for has none."""
        forms = []
        for event in steps:
            status = {"answered": "in-progress", "completed": ending}.get(event, event)
            call.status = status if status != "initiated" else call.status
            if event not in (call.events or ["completed"]):
                continue
            form = [
                ("CallSid", call.sid),
                ("AccountSid", ACCOUNT_SID),
                ("From", call.asked("From")),
                ("To", call.asked("To")),
                ("CallStatus", status),
                ("ApiVersion", "2010-04-01"),
                ("Direction", "outbound-api"),
                ("Timestamp", formatdate(usegmt=False)),
                ("CallbackSource", "call-progress-events"),
                ("SequenceNumber", str(call.sequence)),
            ]
            if event == "completed":
                form += [("Duration", "1"), ("CallDuration", "42"), ("SipResponseCode", "200")]
            form += list(more.items())
            call.sequence += 1
            forms.append(form)
        return forms

    async def report(
        self, client: httpx.AsyncClient, call: Call, forms: Iterable[Form]
    ) -> list[httpx.Response]:
        """Send these forms to the call's status callback, in the order given, signed."""
        return [await _post(client, call.asked("StatusCallback"), form) for form in forms]

    async def report_answerer(
        self, client: httpx.AsyncClient, call: Call, answered_by: str
    ) -> httpx.Response:
        """Tell the call's AsyncAmdStatusCallback who answered."""
        form = [
            ("CallSid", call.sid),
            ("AccountSid", ACCOUNT_SID),
            ("AnsweredBy", answered_by),
            ("MachineDetectionDuration", "4300"),
        ]
        return await _post(client, call.asked("AsyncAmdStatusCallback"), form)

    async def answer(self, client: httpx.AsyncClient, call: Call, answered_by: str = "") -> bytes:
        """Somebody answers: the TwiML the call carries out. `Url` wins over `Twiml`.

        With synchronous detection of machines, `answered_by` is the verdict.
        """
        call.status = "in-progress"
        url = call.asked("Url")
        if not url:
            return call.twiml.encode()
        form = [
            ("CallSid", call.sid),
            ("AccountSid", ACCOUNT_SID),
            ("From", call.asked("From")),
            ("To", call.asked("To")),
            ("CallStatus", "in-progress"),
            ("ApiVersion", "2010-04-01"),
            ("Direction", "outbound-api"),
        ]
        if answered_by:
            assert call.asked("AsyncAmd") == "false", "the verdict would come later"
            form.append(("AnsweredBy", answered_by))
        return (await _post(client, url, form)).content


class Lost:
    """The request is carried out, and its answer lost."""

    def __repr__(self) -> str:
        # Without its address, which would give a test another name in every process.
        return "Lost()"


async def _post(client: httpx.AsyncClient, url: str, form: Form) -> httpx.Response:
    signature = RequestValidator(AUTH_TOKEN).compute_signature(url, dict(form))
    headers = {"X-Twilio-Signature": signature}
    return await client.post(url, data=dict(form), headers=headers)


def _wrong(
    form: Form, known: dict[str, set[str] | None], repeatable: Iterable[str] = ()
) -> Answer | None:
    names = [name for name, _ in form]
    for name, value in form:
        if name not in known:
            return error(400, 20001, f"there is no parameter {name}")
        if names.count(name) > 1 and name not in repeatable:
            return error(400, 20001, f"{name} is given twice")
        values = known[name]
        if values is not None and value not in values:
            return error(400, 20001, f"{name}: {value} is none of {sorted(values)}")
    return None


def _json(status: int, body: dict[str, Any]) -> Answer:
    return Answer(status, json.dumps(body).encode())
