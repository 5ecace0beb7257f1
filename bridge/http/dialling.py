"""Requests for outbound calls: parsed, checked, and written into the addresses Twilio is given.

The call's variables and its agent travel in the address of the voice webhook. Nothing is stored for
the media socket, because it may open in another process, and before Twilio has answered the request
that placed the call.

Answering machines: without `machine_detection` the agent speaks as soon as the call is answered.
With "Enable" Twilio detects in the background while the agent speaks, and the result goes into the
call's record. With "DetectMessageEnd" the result for a machine comes when its greeting has ended;
then `message` is spoken instead of the agent, and the call ends.
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
from bridge.twilio.numbers import EXPECTED_NUMBER, HOW_TO_WRITE_NUMBERS, is_number

# In characters. Twilio limits a message only as TwiML; here it has to fit an address, encoded.
MAX_MESSAGE: Final = 600
MAX_VARIABLES: Final = 20
# Twilio documents no limit for an address; proxies commonly limit the request line to 8 KiB.
MAX_ADDRESS: Final = 4000

# Parameters of the stream that bridge sets. Compared without case, so that none looks like another.
RESERVED: Final = frozenset({"from", "to", "callsid", "direction", "agent", "ticket"})

_VARIABLE_PREFIX: Final = "var."
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_JSON_PATH: Final = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`")
_FIELD_NAMED: Final = re.compile(r"(?:unknown|required) field `([^`]*)`")


class DialRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON of `POST /calls`. Numbers are E.164; `from` may be left out where the agent, or
    any agent, has a number of its own."""

    to: str
    from_: str = msgspec.field(default="", name="from")
    variables: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    agent: str = ""
    machine_detection: Literal["Enable", "DetectMessageEnd"] | None = None
    message: Annotated[str, Meta(max_length=MAX_MESSAGE)] = ""


@dataclass(frozen=True, slots=True)
class OutboundCall:
    """A checked request."""

    to: str
    from_: str
    agent: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    machine_detection: Literal["Enable", "DetectMessageEnd"] | None = None
    message: str = ""


def webhook_address(address: PublicAddress, call: OutboundCall) -> str:
    """Return the address of the voice webhook that Twilio asks when the call is answered.

    The webhook reserves a slot and makes a ticket, as for an inbound call; `outbound_parameters`
    reads the variables and the agent from the address, which Twilio's signature covers. Raises
    BadRequest if the address is too long.
    """
    query = {_VARIABLE_PREFIX + name: value for name, value in call.variables.items()}
    if call.agent:
        query["agent"] = call.agent
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


def message_address(address: PublicAddress, message: str) -> str:
    """Return the address to which Twilio reports who answered. It carries the message, so that any
    worker process can leave it. Raises BadRequest if it is too long."""
    url = f"{address.web}/call-status/answered-by"
    if message:
        url += f"?{urlencode({'message': message})}"
    return _short_enough(url, "message")


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
    '{"name": "Ann"}, "agent", "machine_detection" (Enable or DetectMessageEnd), "message"'
)


def check_request(request: DialRequest, agents: Mapping[str, Iterable[str]]) -> OutboundCall:
    """Return the requested call. `agents` are the agents' numbers, by name. Raises BadRequest."""
    if not is_number(request.to):
        raise BadRequest("to", _NUMBER)
    if request.agent and request.agent not in agents:
        known = ", ".join(agents) or "none"
        raise BadRequest("agent", f"there is no such agent; there are: {known}")
    from_ = request.from_ or _own_number(request.agent, agents)
    if not from_:
        raise BadRequest("from", "no agent has a number of its own; name the number to call from")
    if not is_number(from_):
        raise BadRequest("from", _NUMBER)
    detection = request.machine_detection
    if request.message:
        if detection == "Enable":
            raise BadRequest(
                "machine_detection", "a message needs DetectMessageEnd, or it would be cut off"
            )
        detection = "DetectMessageEnd"
    return OutboundCall(
        to=request.to,
        from_=from_,
        agent=request.agent,
        variables=_variables(request.variables),
        machine_detection=detection,
        message=request.message,
    )


_NUMBER: Final = f"{EXPECTED_NUMBER}; {HOW_TO_WRITE_NUMBERS}"


def _own_number(agent: str, agents: Mapping[str, Iterable[str]]) -> str:
    for name, numbers in agents.items():
        if not agent or name == agent:
            for number in numbers:
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
