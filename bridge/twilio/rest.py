"""The part of Twilio's REST API that bridge needs: place, change and end a call, find a number and
set its webhook.

Every request has a deadline, and is retried by these rules:

- A request that was never sent (no connection) is retried.
- One that may have arrived, and one that Twilio could not serve for the moment, is retried only if
  it is idempotent: reading, ending a call, setting an address. Placing a call twice rings a phone
  twice; transferring a call twice breaks off the first transfer.

https://www.twilio.com/docs/voice/api/call-resource
https://www.twilio.com/docs/phone-numbers/api/incomingphonenumber-resource
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

import httpx
import trio

from bridge.addresses import is_loopback
from bridge.text import printable
from bridge.transport.http_client import open_client, sockets_closed_on_failure
from bridge.twilio.login import api_url, login_names
from bridge.twilio.numbers import check_call_sid, check_number, check_target, is_call_sid

API_URL: Final = api_url()

# For all tries of one request. A caller who is being transferred hears silence until then, and a
# webhook that makes a request has 15 seconds to answer Twilio.
DEADLINE: Final = 10.0
CONNECT_TIMEOUT: Final = 4.0

# Before the second and the third try. Long enough for a load balancer to restart, short enough for
# a caller who waits.
PAUSES: Final = (0.2, 0.6)

# https://www.twilio.com/docs/voice/api/call-resource: of the TwiML given with a request.
MAX_TWIML: Final = 4000
MAX_RING_SECONDS: Final = 600

# What a call's status callback is told of: all that Twilio tells.
_EVENTS: Final = ("initiated", "ringing", "answered", "completed")
MachineDetection = Literal["Enable", "DetectMessageEnd"]

CALL_NOT_IN_PROGRESS: Final = 21220  # https://www.twilio.com/docs/api/errors/21220
NO_SUCH_CALL: Final = 20404  # https://www.twilio.com/docs/api/errors/20404

_ACCOUNT_SID: Final = re.compile(r"AC[0-9a-fA-F]{32}")
_API_KEY: Final = re.compile(r"SK[0-9a-zA-Z]{32}")
_NUMBER_SID: Final = re.compile(r"PN[0-9a-fA-F]{32}")

_MAY_PASS: Final = frozenset({429, 500, 502, 503, 504})

# Errors that come before the request is written.
_NEVER_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)

# At INFO httpx logs every URL, which contains the account's SID; at DEBUG httpcore logs each step.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class TwilioError(Exception):
    """Twilio refused a request, with its explanation.

    `code` is Twilio's error code (0 if it gave none), `status` HTTP's, `more_info` the address of
    Twilio's page about it. The text is one line and contains neither the account's SID nor its
    token.

    https://www.twilio.com/docs/usage/twilios-response#response-formats-exceptions
    """

    def __init__(
        self, code: int, message: str, status: int, more_info: str = "", *, login: str = ""
    ) -> None:
        super().__init__(code, message, status, more_info)
        self._login = login or login_names()
        self.code = code
        self.message = message
        self.status = status
        self.more_info = more_info

    def __str__(self) -> str:
        name = f"Twilio error {self.code}" if self.code else "Twilio's answer"
        text = f"{name}: {self.message} (HTTP {self.status})"
        if self.status == 401:
            text += f"; check {self._login}"
        elif self.more_info:
            text += f"; see {self.more_info}"
        return text

    @property
    def call_is_over(self) -> bool:
        """Whether the call in question has ended or never existed.

        A 404 without Twilio's code is another server's, or a wrong region's or edge's.
        """
        return self.code in (CALL_NOT_IN_PROGRESS, NO_SUCH_CALL)


class TwilioUnreachable(TwilioError):
    """Twilio did not answer. `may_have_arrived`: the request may have been carried out anyway."""

    def __init__(self, why: str, *, may_have_arrived: bool) -> None:
        super().__init__(0, why, 0)
        self.may_have_arrived = may_have_arrived

    def __str__(self) -> str:
        also = "; the request may have been carried out" if self.may_have_arrived else ""
        return f"cannot reach Twilio: {self.message}{also}"


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """A call that Twilio has accepted. `status` is "queued" or a later one."""

    call_sid: str
    status: str


@dataclass(frozen=True, slots=True)
class PhoneNumber:
    """A number of the account, and what answers its calls. Empty texts mean not set.

    With a `trunk_sid` Twilio uses the trunk, with an `application_sid` the application, and ignores
    `voice_url`.
    """

    number_sid: str
    number: str
    name: str
    voice_url: str
    voice_method: str
    application_sid: str
    trunk_sid: str
    status_callback: str
    voice_fallback_url: str = ""


class TwilioRest:
    """A client of Twilio's REST API for one account.

    `secret` is the account's auth token, or that of the API key with the SID `api_key`. `base_url`
    is `api_url`'s. Connections are kept between requests; use it as an async context manager, or
    call `aclose`.
    `deadline` is in seconds, for all tries of one request. `transport` replaces the network.

    *Error handling*: every method raises TwilioError (TwilioUnreachable if there is no answer), and
    ValueError, before any request, for an argument that cannot be part of one. If a method is
    cancelled, its request may have been carried out or not.
    """

    def __init__(
        self,
        account_sid: str,
        secret: str,
        base_url: str = API_URL,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        api_key: str = "",
        deadline: float = DEADLINE,
    ) -> None:
        if not _ACCOUNT_SID.fullmatch(account_sid):
            raise ValueError("TWILIO_ACCOUNT_SID: expected AC and 32 hexadecimal digits")
        if api_key and not _API_KEY.fullmatch(api_key):
            raise ValueError("TWILIO_API_KEY: expected SK and 32 letters and digits")
        if not secret:
            raise ValueError(f"{'TWILIO_API_SECRET' if api_key else 'TWILIO_AUTH_TOKEN'}: not set")
        parts = urlsplit(base_url)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.netloc)):
            raise ValueError("Twilio's address must begin https://, since the token goes with it")
        self._account_sid = account_sid
        self._hidden = (secret, account_sid)
        self._login = login_names(api_key)
        if parts.hostname != urlsplit(API_URL).hostname:
            self._login += f", which must be those of {parts.hostname}"
        self._base_url = base_url.rstrip("/")
        self._deadline = deadline
        self._client = open_client(
            auth=httpx.BasicAuth(api_key or account_sid, secret),
            transport=transport,
            timeout=httpx.Timeout(deadline, connect=min(CONNECT_TIMEOUT, deadline)),
            headers={"Accept": "application/json"},
        )

    def __repr__(self) -> str:
        return f"TwilioRest({self._base_url})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, even if cancelled: nothing here waits for the other end."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._deadline):
            await self._client.aclose()

    # ---- calls -----------------------------------------------------------------------------

    async def create_call(
        self,
        to: str,
        from_: str,
        *,
        twiml: str | bytes | None = None,
        url: str | None = None,
        status_callback: str | None = None,
        machine_detection: MachineDetection | None = None,
        machine_detection_timeout: int | None = None,
        async_amd: bool = False,
        async_amd_status_callback: str | None = None,
        timeout: int | None = None,
        time_limit: int | None = None,
        send_digits: str | None = None,
        call_reason: str | None = None,
        record: bool = False,
        fallback_url: str | None = None,
    ) -> PlacedCall:
        """Place a call. When it is answered, Twilio executes `twiml`, or the answer of `url`.

        `timeout` is how long it may ring and `time_limit` how long it may last, in seconds.
        `send_digits` are keys to press once it is answered, such as "W1234#". With
        `machine_detection` Twilio listens for an answering machine, for
        `machine_detection_timeout` seconds at most: in the background if `async_amd`, and then
        reports to `async_amd_status_callback`; else before the call goes on, and then tells `url`.
        `call_reason` is shown to the called party where the carrier can, `record` has Twilio record
        the call, and `fallback_url` gives the TwiML when `url` fails.

        The media socket can open before this returns, so its TwiML must hold all that it needs.

        https://www.twilio.com/docs/voice/api/call-resource#create-a-call-resource
        """
        if (twiml is None) == (url is None):
            raise ValueError("a call needs either twiml or url")
        if timeout is not None and not 1 <= timeout <= MAX_RING_SECONDS:
            raise ValueError(f"timeout: expected 1 to {MAX_RING_SECONDS} seconds, got {timeout}")
        if time_limit is not None and time_limit < 1:
            raise ValueError(f"time_limit: expected at least 1 second, got {time_limit}")
        form: dict[str, Any] = {"To": check_target(to), "From": check_target(from_)}
        form |= {"Twiml": _document(twiml)} if twiml is not None else {"Url": url}
        if status_callback is not None:
            form |= {"StatusCallback": status_callback, "StatusCallbackMethod": "POST"}
            form["StatusCallbackEvent"] = _EVENTS
        if machine_detection is not None:
            form |= {"MachineDetection": machine_detection, "AsyncAmd": str(async_amd).lower()}
            if machine_detection_timeout is not None:
                form["MachineDetectionTimeout"] = str(machine_detection_timeout)
            if async_amd_status_callback is not None:
                form["AsyncAmdStatusCallback"] = async_amd_status_callback
                form["AsyncAmdStatusCallbackMethod"] = "POST"
        if timeout is not None:
            form["Timeout"] = str(timeout)
        if time_limit is not None:
            form["TimeLimit"] = str(time_limit)
        if send_digits is not None:
            form["SendDigits"] = send_digits
        if call_reason is not None:
            form["CallReason"] = call_reason
        if record:
            form["Record"] = "true"
        if fallback_url is not None:
            form |= {"FallbackUrl": fallback_url, "FallbackMethod": "POST"}
        answer = await self._request("POST", "Calls.json", form=form, repeatable=False)
        call_sid = _text(answer, "sid")
        if not is_call_sid(call_sid):
            raise TwilioError(0, "no call SID in it; the call may have been placed", 201)
        return PlacedCall(call_sid, _text(answer, "status") or "queued")

    async def hang_up(self, call_sid: str) -> bool:
        """End a call, ringing or answered. Idempotent.

        Returns False if the call had ended already, or Twilio does not know it (errors 21220 and
        20404).

        https://www.twilio.com/docs/voice/api/call-resource#update-a-call-resource
        """
        path = f"Calls/{check_call_sid(call_sid)}.json"
        try:
            await self._request("POST", path, form={"Status": "completed"}, repeatable=True)
        except TwilioError as error:
            if error.call_is_over:
                return False
            raise
        return True

    async def update_call(self, call_sid: str, *, twiml: str | bytes) -> None:
        """Make a live call execute `twiml` instead of its present TwiML: a transfer, for example.

        Twilio ends the media stream by itself. Too late, it raises an error whose `call_is_over`.

        https://www.twilio.com/docs/voice/modify-calls
        """
        path = f"Calls/{check_call_sid(call_sid)}.json"
        await self._request("POST", path, form={"Twiml": _document(twiml)}, repeatable=False)

    # ---- numbers ---------------------------------------------------------------------------

    async def find_number(self, number: str) -> PhoneNumber | None:
        """Find the account's phone number `number` (E.164); None if it has no such number.

        https://www.twilio.com/docs/phone-numbers/api/incomingphonenumber-resource#read-multiple-incomingphonenumber-resources
        """
        query = {"PhoneNumber": check_number(number), "PageSize": "50"}
        path = "IncomingPhoneNumbers.json"
        answer = await self._request("GET", path, query=query, repeatable=True)
        found = answer.get("incoming_phone_numbers")
        for item in found if isinstance(found, list) else ():
            # Twilio's filter also finds numbers that contain this one.
            if isinstance(item, dict) and item.get("phone_number") == number:
                return _phone_number(item)
        return None

    async def set_voice_webhook(
        self,
        number_sid: str,
        url: str,
        status_callback: str | None = None,
        fallback_url: str | None = None,
    ) -> PhoneNumber:
        """Set `url`, which Twilio will POST to, as a number's voice webhook. Returns the number as
        it is now.

        An application set on the number is removed, because it would take precedence.
        `status_callback` is requested when a call ends, and `fallback_url` for TwiML where `url`
        fails; None leaves the present one.

        https://www.twilio.com/docs/phone-numbers/api/incomingphonenumber-resource#update-an-incomingphonenumber-resource
        """
        if not _NUMBER_SID.fullmatch(number_sid):
            raise ValueError("a phone number's SID is PN and 32 hexadecimal digits")
        form = {"VoiceUrl": url, "VoiceMethod": "POST", "VoiceApplicationSid": ""}
        if status_callback is not None:
            form |= {"StatusCallback": status_callback, "StatusCallbackMethod": "POST"}
        if fallback_url is not None:
            form |= {"VoiceFallbackUrl": fallback_url, "VoiceFallbackMethod": "POST"}
        path = f"IncomingPhoneNumbers/{number_sid}.json"
        return _phone_number(await self._request("POST", path, form=form, repeatable=True))

    # ---- one request -----------------------------------------------------------------------

    async def _request(
        self,
        method: str,
        path: str,
        *,
        form: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        repeatable: bool,
    ) -> dict[str, Any]:
        address = f"{self._base_url}/2010-04-01/Accounts/{self._account_sid}/{path}"
        pauses = iter(PAUSES)
        with trio.move_on_after(self._deadline):
            while True:
                outcome = await self._try(method, address, form, query)
                if not isinstance(outcome, TwilioError):
                    return outcome
                again = repeatable and outcome.status in _MAY_PASS
                if isinstance(outcome, TwilioUnreachable):
                    again = repeatable or not outcome.may_have_arrived
                pause = next(pauses, None)
                if not again or pause is None:
                    raise outcome
                await trio.sleep(pause)
        why = f"no answer within {self._deadline:g} seconds"
        raise TwilioUnreachable(why, may_have_arrived=True)

    async def _try(
        self,
        method: str,
        address: str,
        form: Mapping[str, Any] | None,
        query: Mapping[str, str] | None,
    ) -> dict[str, Any] | TwilioError:
        # The error is returned, and raised by the caller, so that httpx's error is not its context:
        # that contains the request with its Authorization header.
        try:
            with sockets_closed_on_failure() as trace:
                response = await self._client.request(
                    method, address, data=form, params=query, extensions={"trace": trace}
                )
        except httpx.HTTPError as error:
            why = f"{type(error).__name__} {self._clean(str(error))}".rstrip()
            sent = not isinstance(error, _NEVER_SENT)
            return TwilioUnreachable(why, may_have_arrived=sent)
        body = _json_object(response)
        if response.is_success:
            return body
        code = body.get("code")
        return TwilioError(
            code if type(code) is int else 0,
            self._clean(_text(body, "message") or response.reason_phrase),
            response.status_code,
            self._clean(_text(body, "more_info")),
            login=self._login,
        )

    def _clean(self, text: str) -> str:
        """Text from the network as one line without secrets. Twilio's 404 quotes the URL, which
        contains the account's SID.
        """
        for secret in self._hidden:
            text = text.replace(secret, "[secret]")
        return printable(text[:300])


def _document(twiml: str | bytes) -> str:
    text = twiml.decode() if isinstance(twiml, bytes) else twiml
    if len(text) > MAX_TWIML:
        raise ValueError(f"TwiML of {len(text)} characters; Twilio takes {MAX_TWIML}")
    return text


def _json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _phone_number(fields: Mapping[str, Any]) -> PhoneNumber:
    names: Iterable[str] = (
        "sid",
        "phone_number",
        "friendly_name",
        "voice_url",
        "voice_method",
        "voice_application_sid",
        "trunk_sid",
        "status_callback",
        "voice_fallback_url",
    )
    return PhoneNumber(*(_text(fields, name) for name in names))
