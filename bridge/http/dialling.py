"""Requests for outbound calls: parsed, checked, and written into the addresses Twilio is given.

The call's variables and its agent travel in the address of the voice webhook. Nothing is stored for
the media socket, because it may open in another process, and before Twilio has answered the request
that placed the call.

Answering machines: without `machine_detection` the agent speaks as soon as the call is answered.
With it Twilio listens first, for `machine_detection_timeout` seconds at most, and requests the
webhook with its verdict: so the agent is connected, and greets, only when it is known who answered.
A machine is hung up on, gets `message`, or gets the agent, as `on_machine` says. With
"DetectMessageEnd" the verdict on a machine comes when its own greeting has ended.

With `async_amd` the agent speaks at once, and the verdict comes during the call.

https://www.twilio.com/docs/voice/answering-machine-detection
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from bridge.addresses import PublicAddress
from bridge.http.json_api import BadRequest
from bridge.twilio import twiml
from bridge.twilio.numbers import (
    EXPECTED_NUMBER,
    EXPECTED_TARGET,
    HOW_TO_WRITE_NUMBERS,
    is_number,
    is_target,
)
from bridge.twilio.rest import MAX_RING_SECONDS, MachineDetection

OnMachine = Literal["hang_up", "message", "stay"]

# Twilio's, in seconds. https://www.twilio.com/docs/voice/api/call-resource
DEFAULT_TIMEOUT: Final = 60
DEFAULT_DETECTION_TIMEOUT: Final = 30

# In characters. Twilio limits a message only as TwiML; here it has to fit an address, encoded.
MAX_MESSAGE: Final = 600
MAX_REASON: Final = 100
MAX_VARIABLES: Final = 20
# Twilio documents no limit for an address; proxies commonly limit the request line to 8 KiB.
MAX_ADDRESS: Final = 4000

# Parameters of the stream that bridge sets. Compared without case, so that none looks like another.
RESERVED: Final = frozenset(
    {"from", "to", "callsid", "direction", "agent", "ticket", "leg", "dialcallstatus"}
)

_VARIABLE_PREFIX: Final = "var."
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_JSON_PATH: Final = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`")
_FIELD_NAMED: Final = re.compile(r"(?:unknown|required) field `([^`]*)`")


class DialRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON of `POST /calls`. `to` is a number in E.164, `sip:name@host` or `client:name`;
    `from` may be left out where the agent, or any agent, has a number of its own. Times are in
    seconds. Fields that Twilio has, too, mean what they mean there."""

    to: str
    from_: str = msgspec.field(default="", name="from")
    variables: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    agent: str = ""
    timeout: Annotated[int, Meta(ge=1, le=MAX_RING_SECONDS)] | None = None
    send_digits: Annotated[str, Meta(max_length=32, pattern=r"^[0-9A-D#*wW]*$")] = ""
    machine_detection: MachineDetection | None = None
    machine_detection_timeout: Annotated[int, Meta(ge=3, le=59)] | None = None
    async_amd: bool = False
    on_machine: OnMachine | None = None
    message: Annotated[str, Meta(max_length=MAX_MESSAGE)] = ""
    call_reason: Annotated[str, Meta(max_length=MAX_REASON)] = ""
    record: bool = False
    fallback_url: Annotated[
        str, Meta(max_length=MAX_ADDRESS, pattern=r"^(https?://[^\s/]\S*)?$")
    ] = ""


@dataclass(frozen=True, slots=True)
class OutboundCall:
    """A checked request."""

    to: str
    from_: str
    agent: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    timeout: int | None = None
    send_digits: str = ""
    machine_detection: MachineDetection | None = None
    machine_detection_timeout: int | None = None
    async_amd: bool = False
    on_machine: OnMachine = "stay"
    message: str = ""
    call_reason: str = ""
    record: bool = False
    fallback_url: str = ""

    @property
    def seconds_to_answer(self) -> int:
        """How long it may take until Twilio asks the webhook, if nothing is slow."""
        seconds = self.timeout or DEFAULT_TIMEOUT
        if self.machine_detection is not None and not self.async_amd:
            seconds += self.machine_detection_timeout or DEFAULT_DETECTION_TIMEOUT
        return seconds


def webhook_address(address: PublicAddress, call: OutboundCall) -> str:
    """Return the address of the voice webhook that Twilio asks when the call is answered.

    The webhook reserves a slot and makes a ticket, as for an inbound call; `outbound_parameters`
    reads the variables and the agent from the address, which Twilio's signature covers. Raises
    BadRequest if the address is too long.
    """
    query = {_VARIABLE_PREFIX + name: value for name, value in call.variables.items()}
    if call.agent:
        query["agent"] = call.agent
    if call.machine_detection is not None and not call.async_amd:
        query |= _machine_query(call)
    url = f"{address.web}/incoming-call" + (f"?{urlencode(query)}" if query else "")
    return _short_enough(url, "variables")


def outbound_parameters(query: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that `webhook_address` put into the query: variables, and `agent`.

    Trust them only if Twilio's signature on the request is valid.
    """
    found = {
        key.removeprefix(_VARIABLE_PREFIX): value
        for key, value in query.items()
        if key.startswith(_VARIABLE_PREFIX) and _is_variable(key[len(_VARIABLE_PREFIX) :])
    }
    if agent := query.get("agent", ""):
        found["agent"] = agent
    return found


def outbound_query(query: Mapping[str, str]) -> dict[str, str]:
    """Return what `outbound_parameters` reads of the query, for the address that Twilio asks
    next."""
    return {
        key: value
        for key, value in query.items()
        if key.startswith(_VARIABLE_PREFIX) or key == "agent"
    }


def verdict_address(address: PublicAddress, call: OutboundCall) -> str:
    """Return the address to which Twilio reports who answered, with `async_amd`. It carries what a
    machine gets, and whose words these are, so that any worker process can see to it. Raises
    BadRequest if it is too long."""
    query = _machine_query(call) | ({"agent": call.agent} if call.agent else {})
    url = f"{address.web}/call-status/answered-by" + (f"?{urlencode(query)}" if query else "")
    return _short_enough(url, "message")


def words_for(answered_by: str, query: Mapping[str, str]) -> str | None:
    """Return what a machine that answered is told before the call ends, "" for nothing; None if the
    agent takes the call.

    `answered_by` is Twilio's verdict, and `query` that of `webhook_address` or `verdict_address`.
    """
    message, hangs_up = query.get("message", ""), query.get("on_machine") == "hang_up"
    if answered_by.startswith("machine_end_") and message:
        return message
    if answered_by == "fax" and (message or hangs_up):
        return ""
    return "" if answered_by.startswith("machine_") and hangs_up else None


def _machine_query(call: OutboundCall) -> dict[str, str]:
    if call.message:
        return {"message": call.message}
    return {"on_machine": "hang_up"} if call.on_machine == "hang_up" else {}


def read_request(body: bytes) -> DialRequest:
    """Parse the JSON of a request. Raises BadRequest, whatever the bytes."""
    try:
        return msgspec.json.decode(body, type=DialRequest)
    except msgspec.ValidationError as error:
        # It comes as "Expected `str`, got `int` - at `$.to`".
        text = str(error)
        path = _JSON_PATH.search(text) or _FIELD_NAMED.search(text)
        what = _JSON_PATH.sub("", text).replace("`", "")
        raise BadRequest(path[1] if path else "", f"{what}; {_REMEDY}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("", f"the body is not JSON; {_REMEDY}", status=400) from None


_REMEDY: Final = (
    'write {"to": "+15551234567", "from": "+15557654321"}, and if wanted "variables": '
    '{"name": "Ann"}, "agent", "timeout", "send_digits", "machine_detection" (Enable or '
    'DetectMessageEnd), "on_machine" (hang_up, message or stay), "message"; see GET /openapi.json'
)


def check_request(request: DialRequest, agents: Mapping[str, Iterable[str]]) -> OutboundCall:
    """Return the requested call. `agents` are what each agent answers, by name. Raises
    BadRequest."""
    if not is_target(request.to):
        raise BadRequest("to", EXPECTED_TARGET)
    if request.agent and request.agent not in agents:
        known = ", ".join(agents) or "none"
        raise BadRequest("agent", f"there is no such agent; there are: {known}")
    from_ = request.from_ or _own_number(request.agent, agents)
    if not from_:
        raise BadRequest("from", "no agent has a number of its own; name the number to call from")
    if not is_number(from_) and (is_number(request.to) or not is_target(from_)):
        raise BadRequest("from", _NUMBER)
    detection, on_machine = _detection(request)
    return OutboundCall(
        to=request.to,
        from_=from_,
        agent=request.agent,
        variables=_variables(request.variables),
        timeout=request.timeout,
        send_digits=request.send_digits,
        machine_detection=detection,
        machine_detection_timeout=request.machine_detection_timeout,
        async_amd=request.async_amd,
        on_machine=on_machine,
        message=request.message,
        call_reason=request.call_reason,
        record=request.record,
        fallback_url=request.fallback_url,
    )


def _detection(request: DialRequest) -> tuple[MachineDetection | None, OnMachine]:
    """Return how to detect a machine, and what it gets. Raises BadRequest for contradictions."""
    detection, on_machine = request.machine_detection, request.on_machine
    if on_machine is None:
        on_machine = "message" if request.message else "hang_up"
        if detection is None and not request.message:
            if request.machine_detection_timeout or request.async_amd:
                raise BadRequest("machine_detection", "set it, or leave out what belongs to it")
            return None, "stay"
    if (on_machine == "message") != bool(request.message):
        raise BadRequest("message", "goes with on_machine = message, and with no other")
    if request.send_digits:
        # https://www.twilio.com/docs/voice/api/call-resource (SendDigits)
        raise BadRequest("send_digits", "Twilio detects no machine when it sends digits")
    if on_machine == "message" and detection == "Enable":
        raise BadRequest(
            "machine_detection", "a message needs DetectMessageEnd, or it would be cut off"
        )
    return detection or ("DetectMessageEnd" if request.message else "Enable"), on_machine


_NUMBER: Final = f"{EXPECTED_NUMBER}; {HOW_TO_WRITE_NUMBERS}"


def _own_number(agent: str, agents: Mapping[str, Iterable[str]]) -> str:
    for name, numbers in agents.items():
        if not agent or name == agent:
            for number in filter(is_number, numbers):
                return number
    return ""


def _variables(given: Mapping[str, str | int | float | bool]) -> dict[str, str]:
    if len(given) > MAX_VARIABLES:
        raise BadRequest("variables", f"{len(given)} of them; at most {MAX_VARIABLES}")
    taken: dict[str, str] = {}
    for name, value in given.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if not _NAME.fullmatch(name):
            raise BadRequest(
                f"variables.{name[:80]}",
                "a name is of letters, digits and _, at most 64, and begins with no digit",
            )
        if not _is_variable(name):
            raise BadRequest(
                f"variables.{name}", "this name is taken by the call itself; choose another"
            )
        if len(name) + len(text) > twiml.MAX_PARAMETER:
            limit = twiml.MAX_PARAMETER - len(name)
            raise BadRequest(f"variables.{name}", f"{len(text)} characters; at most {limit}")
        taken[name] = text
    return taken


def _is_variable(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name.lower() not in RESERVED


def _short_enough(url: str, field: str) -> str:
    if len(url) > MAX_ADDRESS:
        raise BadRequest(field, f"too long; it must fit an address of {MAX_ADDRESS} characters")
    return url
