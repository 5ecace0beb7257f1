"""The HTTP interface in OpenAPI 3.1, at `GET /openapi.json`. Pure: a table, and what makes it one.

Written by hand, since most of these routes answer Twilio and not a client with a schema; what the
control API takes is msgspec's own schema of the types that read it.
tests/unit/http/test_openapi.py fails when a route is not here or is not there any more; in
tests/integration/http, schemathesis sends to each what its description allows and what it forbids.

https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from bridge.http.dialling import DialRequest
from bridge.http.saying import Said
from bridge.http.softphone import CallRequest

Json = dict[str, Any]

# Read as text by people, or as a page: not for programs.
NOT_DESCRIBED: Final = frozenset({"static", "pages.asset", "pages.console", "pages.softphone"})

_REFERENCE: Final = "#/components/schemas/{name}"
_SID: Final = "^CA[0-9a-fA-F]{32}$"

_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string", "description": "one line, with the remedy"},
        "field": {"type": "string", "description": "the field of the request that is at fault"},
        "twilio": {"type": "object", "description": "Twilio's code and words, where it refused"},
    },
}
_CALL: Final = {
    "type": "object",
    "required": ["call_sid", "live", "status"],
    "properties": {
        "call_sid": {"type": "string"},
        "live": {"type": "boolean"},
        "status": {"type": "string"},
    },
}
_WORDS: Final = {
    400: "not the JSON or the form that is expected",
    401: "the token is missing or wrong",
    403: "not let in: from elsewhere without a token, or not signed by Twilio",
    404: "there is no such call",
    408: "the body took too long",
    409: "another process carries the call, or it is over",
    413: "the body is too large",
    415: "not application/json",
    422: "a field is wrong",
    429: "too many requests without the right token",
    502: "Twilio refused, or did not answer",
    503: "not now: draining, full, or something is not configured",
}
_CLOSED: Final = (401, 403, 429)


def description() -> Json:
    """The whole description, as JSON will have it."""
    types = (DialRequest, Said, CallRequest)
    bodies, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    dial, said, softphone = bodies
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bridge",
            "version": "1",
            "description": "Twilio's webhooks, the control API, health and metrics.",
        },
        "paths": {
            "/calls": {
                "post": _api("dial", dial, {201: "#Placed"}, 400, 408, 413, 415, 422, 502, 503),
                "get": _api("list calls", None, {200: "#Calls"}, 422, parameters=[_LIMIT]),
            },
            "/calls/{call_sid}": {
                "parameters": [_PATH],
                "get": _api("show a call", None, {200: "#Call"}, 404),
                "delete": _api("hang up", None, {200: "#Placed"}, 404, 409, 422, 502, 503),
            },
            "/calls/{call_sid}/say": {
                "parameters": [_PATH],
                "post": _api(
                    "take words for the caller's",
                    said,
                    {202: "#Placed"},
                    400,
                    404,
                    408,
                    409,
                    413,
                    415,
                    422,
                    503,
                ),
            },
            "/calls/{call_sid}/events": {
                "parameters": [_PATH],
                "get": _events("what goes on in a call, as it happens"),
            },
            "/events": {"get": _events("what goes on, as it happens")},
            "/softphone/call": {
                "post": _api(
                    "a call from a browser", softphone, {200: "#Softphone"}, 400, 413, 415, 422, 503
                )
            },
            "/incoming-call": {"post": _webhook("the voice webhook", "text/xml", 400, 403, 413)},
            "/call-ended": {"post": _webhook("what comes after the agent", "text/xml", 403, 413)},
            "/call-status": {"post": _webhook("how far a dialled call is", "", 400, 403, 413)},
            "/call-status/answered-by": {
                "post": _webhook("who answered a dialled call", "", 400, 403, 413)
            },
            "/healthz": {"get": _page("alive", "text/plain", 200)},
            "/readyz": {"get": _page("takes new calls", "text/plain", 200, 503)},
            "/metrics": {"get": _page("Prometheus", "text/plain", 200)},
            "/openapi.json": {"get": _page("this", "application/json", 200)},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                **components,
                "Error": _ERROR,
                "Call": _CALL,
                "Placed": {
                    "type": "object",
                    "required": ["call_sid"],
                    "properties": {"call_sid": {"type": "string"}, "status": {"type": "string"}},
                },
                "Calls": {
                    "type": "object",
                    "required": ["live", "recent"],
                    "properties": {
                        name: {"type": "array", "items": {"$ref": "#/components/schemas/Call"}}
                        for name in ("live", "recent")
                    },
                },
                "Softphone": {
                    "type": "object",
                    "required": ["call_sid", "stream_url", "parameters"],
                    "properties": {
                        "call_sid": {"type": "string", "pattern": _SID},
                        "stream_url": {"type": "string"},
                        "parameters": {"type": "object"},
                    },
                },
            },
        },
    }


_PATH: Final = {
    "name": "call_sid",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": _SID},
}
_LIMIT: Final = {
    "name": "limit",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1, "maximum": 500},
}


def _api(
    summary: str,
    body: Json | None,
    good: dict[int, str],
    *bad: int,
    parameters: list[Json] | None = None,
) -> Json:
    """An operation of the control API: JSON both ways, and a token."""
    responses: Json = {}
    for status, schema in good.items():
        reference = {"$ref": schema.replace("#", "#/components/schemas/")}
        responses[str(status)] = _answer("done", "application/json", reference)
    for status in sorted({*bad, *_CLOSED}):
        reference = {"$ref": "#/components/schemas/Error"}
        responses[str(status)] = _answer(_WORDS[status], "application/json", reference)
    operation: Json = {"summary": summary, "security": [{"token": []}], "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        content = {"application/json": {"schema": body}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _events(summary: str) -> Json:
    """A stream of events that goes on until either side ends it."""
    operation = _api(summary, None, {}, 404, 503)
    operation["responses"]["200"] = _answer("server-sent events", "text/event-stream", {})
    return operation


def _webhook(summary: str, answers: str, *bad: int) -> Json:
    """A request of Twilio's: a form of any fields, signed."""
    form = {"type": "object", "additionalProperties": {"type": "string"}}
    form["properties"] = {
        "CallSid": {"type": "string", "pattern": _SID},
        **{name: {"type": "string"} for name in ("From", "To", "Direction", "CallStatus")},
        **{name: {"type": "string"} for name in ("SequenceNumber", "AnsweredBy", "CallDuration")},
    }
    good = _answer("TwiML", answers, {"type": "string"}) if answers else {"description": "noted"}
    responses = {"200" if answers else "204": good}
    # In words, or without any.
    responses |= {str(status): {"description": _WORDS[status]} for status in bad}
    content = {"application/x-www-form-urlencoded": {"schema": form}}
    return {"summary": summary, "requestBody": {"content": content}, "responses": responses}


def _page(summary: str, content_type: str, *statuses: int) -> Json:
    answer = _answer(summary, content_type, {})
    return {"summary": summary, "responses": {str(status): answer for status in statuses}}


def _answer(words: str, content_type: str, schema: Json) -> Json:
    return {"description": words, "content": {content_type: {"schema": schema}}}
