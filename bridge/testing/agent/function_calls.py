"""The agent's side of function calls: requests and the client's responses.

Rules: developers.deepgram.com/docs/voice-agent-function-call-request, .../function-call-response
and .../function-call-cancelled. Responses are matched by id; one that comes after the call was
cancelled is dropped.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import trio

Json = dict[str, Any]


@dataclass(eq=False)
class SimulatedFunctionCall:
    """One requested function call. `response` is None until it is answered."""

    id: str
    name: str
    arguments: str
    client_side: bool
    thought_signature: str | None = None
    response: str | None = None
    cancelled: bool = False
    settled: trio.Event = field(default_factory=trio.Event, repr=False)

    def request(self) -> Json:
        """The call as an item of FunctionCallRequest."""
        item: Json = {
            "id": self.id,
            "name": self.name,
            "arguments": self.arguments,
            "client_side": self.client_side,
        }
        if self.thought_signature is not None:
            item["thought_signature"] = self.thought_signature
        return item

    def history(self) -> Json:
        """The call as an item of History.function_calls."""
        return {**self.request(), "response": self.response or ""}


class SimulatedFunctionCalls:
    """All function calls of a session, by id. Tolerated mistakes of the client go to `faults`."""

    def __init__(self, faults: list[str]) -> None:
        self._faults = faults
        self._numbers = itertools.count(1)
        self.all: dict[str, SimulatedFunctionCall] = {}
        self.late_responses: list[Json] = []

    def new(self, functions: Iterable[Json]) -> list[SimulatedFunctionCall]:
        """Make calls from plain items: name, and optionally arguments (object or JSON text), id,
        client_side, thought_signature, and response (for server-side ones)."""
        calls = []
        for item in functions:
            arguments = item.get("arguments", {})
            call = SimulatedFunctionCall(
                id=item.get("id") or f"fc_{next(self._numbers):08x}",
                name=item["name"],
                arguments=arguments if isinstance(arguments, str) else json.dumps(arguments),
                client_side=item.get("client_side", True),
                thought_signature=item.get("thought_signature"),
            )
            if not call.client_side:
                call.response = item.get("response", "{}")
                call.settled.set()
            self.all[call.id] = call
            calls.append(call)
        return calls

    def answer(self, message: Json) -> SimulatedFunctionCall | None:
        """Return the call that a FunctionCallResponse answers; None if it is late or unmatched."""
        call = self._asked(message)
        if call is None:
            return None
        if call.cancelled:
            self.late_responses.append(message)
            return None
        if call.settled.is_set():
            self._faults.append(f"FunctionCallResponse: {call.id} is already answered")
            return None
        if message["name"] != call.name:
            self._faults.append(f"FunctionCallResponse: {call.id} is {call.name}")
        if message.get("thought_signature") != call.thought_signature:
            self._faults.append(f"FunctionCallResponse: {call.id} lacks its thought_signature")
        call.response = message["content"]
        call.settled.set()
        return call

    def cancel(self, ids: Iterable[str] | None = None) -> list[SimulatedFunctionCall]:
        """Cancel these calls (None: all pending) and return those that were pending."""
        wanted = list(self.all) if ids is None else list(ids)
        waiting = [self.all[i] for i in wanted if not self.all[i].settled.is_set()]
        for call in waiting:
            call.cancelled = True
            call.settled.set()
        return waiting

    def _asked(self, message: Json) -> SimulatedFunctionCall | None:
        if message.get("id") is not None:
            call = self.all.get(message["id"])
            if call is None or not call.client_side:
                self._faults.append(f"FunctionCallResponse: {message['id']} was never asked for")
                return None
            return call
        self._faults.append("FunctionCallResponse: no id")
        waiting = [call for call in self.all.values() if not call.settled.is_set()]
        return next((call for call in waiting if call.name == message["name"]), None)
