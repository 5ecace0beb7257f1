"""JSON in both directions: reads the bodies of requests, and answers errors."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
import trio
from quart import Blueprint, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from bridge.addresses import BadHost

T = TypeVar("T", bound=msgspec.Struct)

# Twenty variables of 500 characters, each six bytes in JSON's longest spelling, fit.
MAX_BODY: Final = 64 * 1024
BODY_SECONDS: Final = 5

# The longest text that is said in a call by request, in characters; one sentence is a fifth of it.
MAX_WORDS: Final = 1000


Answer = tuple[Response, int] | tuple[Response, int, dict[str, str]]


class ApiError(Exception):
    """The request is answered with an error: the message is one line, `status` is HTTP's."""

    field = ""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class BadRequest(ApiError):
    """The request is invalid: `field` is at fault, and the message says what to write instead."""

    def __init__(self, field: str, message: str, status: int = 422) -> None:
        super().__init__(f"{field}: {message}" if field else message, status)
        self.field = field


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON of `POST /calls/{sid}/say` and `/calls/{sid}/say-as-agent`."""

    text: str


class Transferred(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON of `POST /calls/{sid}/transfer`: a name of `functions.transfer_to`, or a number, SIP
    address or Twilio client."""

    to: str


async def json_body() -> bytes:
    """Return the body of the current request.

    Raises BadRequest for one that is not JSON by its type, too long, or too slow.
    """
    # Another site's page can send any other type without a preflight request.
    if request.mimetype != "application/json":
        raise BadRequest("", "send the header Content-Type: application/json", status=415)
    body = bytearray()
    try:
        with trio.fail_after(BODY_SECONDS):
            async for part in request.body:
                body += part
                if len(body) > MAX_BODY:
                    raise BadRequest("", f"the body has at most {MAX_BODY} bytes", status=413)
    except trio.TooSlowError:
        raise BadRequest(
            "", f"the body took more than {BODY_SECONDS} seconds", status=408
        ) from None
    return bytes(body)


def answer_errors_in_json(blueprint: Blueprint) -> None:
    """Answer the errors that any route of `blueprint` may raise as `{"error": one line}`."""

    @blueprint.errorhandler(ApiError)
    async def api_error(error: ApiError) -> Answer:
        field = {"field": error.field} if error.field else {}
        return jsonify(error=str(error), **field), error.status

    @blueprint.errorhandler(BadHost)
    async def bad_host(error: BadHost) -> Answer:
        return jsonify(error=str(error)), 400

    @blueprint.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Answer:
        return jsonify(error=error.description or error.name), error.code or 500


def read_words(body: bytes) -> str:
    """Return the text of `{"text": "..."}` on one line, without control characters.

    Raises BadRequest, with status 400 for other JSON, and 422 for an empty or too long text.
    """
    text = _decoded(body, Said).text
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not words:
        raise BadRequest("text", "expected some words")
    if len(words) > MAX_WORDS:
        raise BadRequest("text", f"expected at most {MAX_WORDS} characters")
    return words


def read_transfer(body: bytes) -> str:
    """Return what `{"to": "..."}` names. Raises BadRequest, with status 400, for other JSON."""
    return _decoded(body, Transferred).to


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        (field,) = (one.name for one in msgspec.structs.fields(kind))
        raise BadRequest("", f'expected {{"{field}": "..."}}: {error}', status=400) from error
