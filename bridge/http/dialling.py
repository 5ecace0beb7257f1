"""An outbound call before it is placed: what an operator asks for, checked, and what Twilio gets.

What the call needs later (its variables, which agent answers) travels with the call: in the TwiML
given to Twilio or in the address Twilio asks. Nothing is kept here for the media socket to find,
because it may open in another process, and before Twilio has answered the request that placed it.

Answering machines: without `machine_detection` the agent speaks as soon as somebody, or something,
answers. With "Enable" Twilio listens in the background while the agent speaks already, and its
verdict goes into the call's record. With "DetectMessageEnd" its verdict on a machine comes when the
machine has finished its greeting; then `message` is spoken in the agent's place and the call ends.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from bridge.addresses import PublicAddress
from bridge.twilio import twiml
from bridge.twilio.rest import MAX_TWIML, is_number

# Twilio's own limit on a message is that of TwiML; this one has to fit an address, encoded.
MAX_MESSAGE: Final = 600
MAX_VARIABLES: Final = 20
# Twilio states no limit for an address; browsers' and proxies' common one is 8 KiB for the line.
MAX_ADDRESS: Final = 4000

# Parameters of the stream that are ours. Compared without case, so that none looks like another.
RESERVED: Final = frozenset({"from", "to", "callsid", "direction", "agent", "ticket"})

DIRECTION: Final = "outbound-api"  # as in Twilio's own Direction
_VARIABLE_PREFIX: Final = "var."
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_JSON_PATH: Final = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`")
_FIELD_NAMED: Final = re.compile(r"(?:unknown|required) field `([^`]*)`")


class BadRequest(Exception):
    """What was asked cannot be done as it stands: `field`, and what to write instead."""

    def __init__(self, field: str, message: str, status: int = 422) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.status = status


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
    """A checked request. `parameters` are the stream's, by which the call knows itself."""

    to: str
    from_: str
    agent: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    machine_detection: Literal["Enable", "DetectMessageEnd"] | None = None
    message: str = ""

    @property
    def parameters(self) -> dict[str, str]:
        """The `<Parameter>`s of the stream; the call's own facts cannot be overwritten."""
        ours = {"From": self.from_, "To": self.to, "direction": DIRECTION, "agent": self.agent}
        return {**self.variables, **ours}


# What Twilio is told to do when the call is answered: create_call's `twiml` or `url`.
AnswerWith = Callable[[OutboundCall, PublicAddress], Awaitable[dict[str, Any]]]


async def with_twiml(
    call: OutboundCall, address: PublicAddress, extra: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The agent at once: the document that connects the call goes with the request.

    One request fewer while somebody says "Hello?", but the call has no SID yet to which a ticket
    could be bound. `extra` are further parameters. Raises BadRequest for too much of it.
    """
    document = twiml.connect_stream(
        f"{address.socket}/media-stream",
        action=f"{address.web}/call-ended",
        parameters={**call.parameters, **(extra or {})},
    )
    if len(document.decode()) > MAX_TWIML:
        raise BadRequest(
            "variables", f"too long together; Twilio takes {MAX_TWIML} characters of TwiML"
        )
    return {"twiml": document}


async def with_webhook(call: OutboundCall, address: PublicAddress) -> dict[str, Any]:
    """The voice webhook, asked when the call is answered, as for a call that comes in.

    There the call gets its slot and its ticket; `outbound_parameters` reads what the address says.
    Twilio's signature covers the address. Raises BadRequest for too much of it.
    """
    query = {_VARIABLE_PREFIX + name: value for name, value in call.variables.items()}
    if call.agent:
        query["agent"] = call.agent
    url = f"{address.web}/incoming-call" + (f"?{urlencode(query)}" if query else "")
    return {"url": _short_enough(url, "variables")}


def outbound_parameters(query: Mapping[str, str]) -> dict[str, str]:
    """The parameters that `with_webhook` put into the webhook's address: variables, and `agent`.

    Believe them only if Twilio's signature on the request holds.
    """
    found = {
        key.removeprefix(_VARIABLE_PREFIX): value
        for key, value in query.items()
        if key.startswith(_VARIABLE_PREFIX) and _variable_fault(key[len(_VARIABLE_PREFIX) :]) == ""
    }
    if agent := query.get("agent", ""):
        found["agent"] = agent
    return found


def message_address(address: PublicAddress, message: str) -> str:
    """Where Twilio tells who answered. The message goes with the address and comes back with it,
    so that any worker process can leave it."""
    url = f"{address.web}/call-status/answered-by"
    if message:
        url += f"?{urlencode({'message': message})}"
    return _short_enough(url, "message")


def read_request(body: bytes) -> DialRequest:
    """The JSON of a request. Raises BadRequest, and nothing else whatever the bytes."""
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


def check_request(
    request: DialRequest, agents: Mapping[str, Iterable[str]], reserved: Iterable[str] = ()
) -> OutboundCall:
    """The call that is asked for, checked against the agents there are and their numbers.

    `reserved` are names that no variable may have besides `RESERVED`. Raises BadRequest.
    """
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
        variables=_variables(request.variables, frozenset(reserved)),
        machine_detection=detection,
        message=request.message,
    )


_NUMBER: Final = (
    "expected a phone number such as +15551234567; write + and the country code, then digits alone"
)


def _own_number(agent: str, agents: Mapping[str, Iterable[str]]) -> str:
    for name, numbers in agents.items():
        if not agent or name == agent:
            for number in numbers:
                return number
    return ""


def _variables(
    given: Mapping[str, str | int | float | bool], reserved: frozenset[str]
) -> dict[str, str]:
    if len(given) > MAX_VARIABLES:
        raise BadRequest("variables", f"{len(given)} of them; at most {MAX_VARIABLES}")
    taken: dict[str, str] = {}
    for name, value in given.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if fault := _variable_fault(name, reserved):
            raise BadRequest(f"variables.{name[:80]}", fault)
        if len(name) + len(text) > twiml.MAX_PARAMETER:
            limit = twiml.MAX_PARAMETER - len(name)
            raise BadRequest(f"variables.{name}", f"{len(text)} characters; at most {limit}")
        taken[name] = text
    return taken


def _variable_fault(name: str, reserved: frozenset[str] = frozenset()) -> str:
    if not _NAME.fullmatch(name):
        return "a name is of letters, digits and _, at most 64, and begins with no digit"
    if name.lower() in RESERVED or name in reserved:
        return "this name is taken by the call itself; choose another"
    return ""


def _short_enough(url: str, field: str) -> str:
    if len(url) > MAX_ADDRESS:
        raise BadRequest(field, f"too long; it must fit an address of {MAX_ADDRESS} characters")
    return url
