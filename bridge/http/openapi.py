"""The description of the HTTP routes in OpenAPI 3.1, at `GET /openapi.json`.

The table is written by hand, since most routes answer Twilio and have no schema; the request bodies
of the control API are msgspec's own schemas. tests/unit/http/test_openapi.py fails when a route is
missing here or does not exist any more; in tests/integration/http, schemathesis sends to each route
what its description allows and what it forbids.

https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from bridge.http.dialling import DialRequest
from bridge.http.json_api import Said, Transferred
from bridge.http.softphone import CallRequest
from bridge.twilio.numbers import CALL_SID_PATTERN

Json = dict[str, Any]

# Pages and files for browsers.
NOT_DESCRIBED: Final = frozenset({"static", "pages.asset", "pages.console", "pages.softphone"})

_REFERENCE: Final = "#/components/schemas/{name}"

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
    401: "the token is missing or wrong; or Twilio is asked for the password of the address",
    403: "a page of another site, or a request that Twilio has not signed",
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
_BODY: Final = (400, 408, 413, 415, 422)
_NOT_TAKEN: Final = (*_BODY, 404, 409, 503)
_NOT_TWILIO: Final = (401, 403, 408, 413)


def description() -> Json:
    """Return the whole description, ready for JSON."""
    types = (DialRequest, Said, Transferred, CallRequest)
    bodies, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    dial, said, transferred, softphone = bodies
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bridge",
            "version": "1",
            "description": "Twilio's webhooks, the control API, health and metrics.",
        },
        "paths": {
            "/calls": {
                "post": _api("dial", dial, {201: "#Placed"}, *_BODY, 502, 503),
                "get": _api("list calls", None, {200: "#Calls"}, 422, parameters=[_LIMIT]),
            },
            "/calls/{call_sid}": {
                "parameters": [_PATH],
                "get": _api("show a call", None, {200: "#Call"}, 404),
                "delete": _api("hang up", None, {200: "#Placed"}, 404, 409, 422, 502, 503),
            },
            **{
                f"/calls/{{call_sid}}/{name}": {
                    "parameters": [_PATH],
                    "post": _api(summary, body, {202: "#Placed"}, *_NOT_TAKEN),
                }
                for name, summary, body in (
                    ("say", "send text to the agent as if the caller had spoken it", said),
                    ("say-as-agent", "have the agent say text", said),
                    ("transfer", "connect the caller to somebody else", transferred),
                )
            },
            "/calls/{call_sid}/events": {
                "parameters": [_PATH],
                "get": _events("one call's events, as they happen"),
            },
            "/events": {"get": _events("all calls' events, as they happen")},
            "/softphone/call": {
                "post": _api("a call from a browser", softphone, {200: "#Softphone"}, *_BODY, 503)
            },
            "/incoming-call": _webhook("the voice webhook", "text/xml", 400),
            "/call-ended": _webhook("what comes after the agent", "text/xml"),
            "/call-status": _webhook("a call's progress", "", 400),
            "/call-status/answered-by": _webhook("who answered a dialled call", "", 400),
            "/healthz": {"get": _page("whether the process is alive", "text/plain", 200)},
            "/readyz": {"get": _page("whether new calls are taken", "text/plain", 200, 503)},
            "/metrics": {"get": _page("Prometheus", "text/plain", 200)},
            "/openapi.json": {"get": _page("this description", "application/json", 200)},
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
                    "required": ["live", "recent", "records_error"],
                    "properties": {
                        "live": {"type": "array", "items": {"$ref": "#/components/schemas/Call"}},
                        "recent": {"type": "array", "items": {"$ref": "#/components/schemas/Call"}},
                        "records_error": {"type": "string"},
                    },
                },
                "Softphone": {
                    "type": "object",
                    "required": ["call_sid", "stream_url", "parameters"],
                    "properties": {
                        "call_sid": {"type": "string", "pattern": CALL_SID_PATTERN},
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
    "schema": {"type": "string", "pattern": CALL_SID_PATTERN},
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
    """Return an operation of the control API: JSON in both directions, with a token."""
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
    """Return a stream of events that lasts until either side ends it."""
    operation = _api(summary, None, {}, 404, 503)
    operation["responses"]["200"] = _answer("server-sent events", "text/event-stream", {})
    return operation


def _webhook(summary: str, answers: str, *bad: int) -> Json:
    """Return a webhook: signed fields of any names, in a form, or for GET in the query."""
    fields: Json = {
        "CallSid": {"type": "string", "pattern": CALL_SID_PATTERN},
        **{name: {"type": "string"} for name in ("From", "To", "Direction", "CallStatus")},
        **{name: {"type": "string"} for name in ("SequenceNumber", "AnsweredBy", "CallDuration")},
    }
    form = {"type": "object", "additionalProperties": {"type": "string"}, "properties": fields}
    good = _answer("TwiML", answers, {"type": "string"}) if answers else {"description": "noted"}
    responses = {"200" if answers else "204": good}
    # In words, or without any.
    responses |= {str(status): {"description": _WORDS[status]} for status in (*bad, *_NOT_TWILIO)}
    content = {"application/x-www-form-urlencoded": {"schema": form}}
    operation = {"summary": summary, "responses": responses}
    query = [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
    return {
        "get": {**operation, "parameters": query},
        "post": {**operation, "requestBody": {"content": content}},
    }


def _page(summary: str, content_type: str, *statuses: int) -> Json:
    answer = _answer(summary, content_type, {})
    return {"summary": summary, "responses": {str(status): answer for status in statuses}}


def _answer(words: str, content_type: str, schema: Json) -> Json:
    return {"description": words, "content": {content_type: {"schema": schema}}}
