"""The legs of a call: a second media stream continues what the first one began.

A call has several legs when a transfer that nobody answers brings the caller back to the agent,
when its TwiML was replaced and leads to the voice webhook again, or when Twilio opens two media
streams at once. The call has one record, and the agent gets the conversation so far.

What the earlier legs were is known to the process that carried them, for the last calls, and to
every other process from the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
import trio

from bridge.call.earlier import NOTHING_EARLIER, Earlier
from bridge.caller import CallInfo
from bridge.config.settings import FunctionSettings
from bridge.config.words import Words
from bridge.records.record import CallRecord
from bridge.records.recorder import Recorder
from bridge.twilio import twiml
from bridge.twilio.targets import caller_id

# Parameters of a stream: which leg it is, if not the first, and the result of a transfer that
# nobody answered.
LEG: Final = "leg"
DIAL_STATUS: Final = "DialCallStatus"

# What bridge puts into the address of `/call-ended`.
OURS: Final = frozenset({LEG, "transfer", "fallback"})

# Items of the conversation that a new leg resumes; a model needs no more of a phone call.
HISTORY_ITEMS: Final = 300


class Legs:
    """What is known of the earlier legs of calls."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def recall(self, info: CallInfo) -> None:
        """Look up the earlier legs of a call that says it has some. Bounded; never raises."""
        if LEG in info.parameters:
            await self._recorder.recall(info.call_sid)

    def earlier(self, info: CallInfo, words: Words) -> Earlier:
        """Return the earlier legs of the call, as far as they are known. Does not wait."""
        known = self._recorder.known(info.call_sid)
        if known is None:
            return NOTHING_EARLIER
        status = info.parameters.get(DIAL_STATUS, "")
        history = history_of(known.record, words, status)
        first = (status and words.transfer_failed) or words.cut_off
        return Earlier(
            leg=len(known.record.legs) + 1,
            seconds=trio.current_time() - known.began_at,
            history=history,
            words=first if history else "",
        )


def call_ended_address(
    web: str, leg: int, query: Mapping[str, str] = MappingProxyType({}), **more: str
) -> str:
    """Return the address of `/call-ended` that Twilio requests after this leg, or after `<Dial>`.

    Twilio resolves it against the document's own address where `web` is "". `query` is kept from
    address to address: an outbound call's variables are in it. `more` is `transfer` with its name,
    or `fallback`, after `<Dial>`.
    """
    kept = {name: value for name, value in query.items() if name not in OURS}
    facts = {**kept, **({LEG: str(leg)} if leg > 1 else {}), **more}
    path = f"{web}/call-ended" if web else "call-ended"
    return f"{path}?{urlencode(facts)}" if facts else path


def transfer_twiml(
    functions: FunctionSettings, target: str, caller: str, called: str, action: str
) -> bytes:
    """Return the TwiML that connects the caller to `target`, and asks `action` what comes next.

    Raises ValueError for a target that is none, such as that of an edited configuration.
    """
    shown = caller_id(functions.transfer_caller_id, caller, called)
    return twiml.dial(target, caller_id=shown, action=action)


def history_of(record: CallRecord, words: Words, dial_status: str = "") -> list[dict[str, Any]]:
    """Return the conversation of a record as History messages, the latest HISTORY_ITEMS.

    What the caller did not hear was not said. `dial_status`, of a transfer that nobody answered,
    takes the place of the answer to the function that asked for it, so that the model knows.

    https://developers.deepgram.com/docs/voice-agent-history
    """
    items: list[tuple[float, dict[str, Any]]] = []
    for line in record.transcript:
        if line.words and line.heard != "unheard":
            role = "assistant" if line.role == "agent" else "user"
            text = words.pressed(line.words) if line.role == "keypad" else line.words
            items.append((line.at, {"type": "History", "role": role, "content": text}))
    transfers = [one for one in record.functions if one.name == "transfer_call"]
    for number, one in enumerate(record.functions):
        if not one.arguments:
            continue  # the words are not kept
        answer = one.answer
        if dial_status and transfers and one is transfers[-1]:
            answer = msgspec.json.encode({DIAL_STATUS: dial_status}).decode()
        call = _function_call(f"earlier_{number}", one.name, one.arguments, answer)
        items.append((one.at, {"type": "History", "function_calls": [call]}))
    items.sort(key=lambda item: item[0])
    return [item for _, item in items[-HISTORY_ITEMS:]]


def _function_call(id: str, name: str, arguments: str, response: str) -> Mapping[str, Any]:
    return {
        "id": id,
        "name": name,
        "client_side": True,
        "arguments": arguments,
        "response": response,
    }
