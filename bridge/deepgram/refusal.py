"""What a refused handshake means to the person who runs bridge. Sans-I/O.

https://developers.deepgram.com/docs/errors
"""

from __future__ import annotations

from typing import Final

import msgspec

from bridge.log import SHORTEST_SECRET
from bridge.text import printable
from bridge.transport.websocket_client import HandshakeFailed

_REMEDIES: Final = {
    401: "the key was refused; check DEEPGRAM_API_KEY",
    402: "the Deepgram project is out of credit",
    403: "the key may not use the Voice Agent; check its permissions in the Deepgram console",
    404: "there is no Voice Agent at this address; check deepgram.url",
    429: "the agent has as many sessions open as it allows",
}

# Characters of Deepgram's own words about a refused handshake.
MAX_TOLD: Final = 200


def meaning(refused: HandshakeFailed, key: str) -> str:
    """Return the remedy for the status of an answer, and what Deepgram says of it, without the
    key."""
    remedy = _REMEDIES.get(refused.status or 0, "an answer that is not a websocket")
    return f"{remedy}{_told(refused, key)}"


def _told(refused: HandshakeFailed, key: str) -> str:
    """Return what Deepgram says of it, in parentheses; "" if it says nothing."""
    try:
        body = msgspec.json.decode(refused.body, type=_Refusal)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        body = _Refusal()
    request_id = refused.headers.get(b"dg-request-id", b"").decode("latin-1") or body.request_id
    said = ": ".join(filter(None, (body.err_code, body.err_msg)))
    facts = [fact for fact in (said, request_id and f"request_id {request_id}") if fact]
    if len(key) >= SHORTEST_SECRET:
        # Before they are cut: half a key would not be found.
        facts = [fact.replace(key, "[secret]") for fact in facts]
    return printable(f" ({'; '.join(fact[:MAX_TOLD] for fact in facts)})") if facts else ""


class _Refusal(msgspec.Struct):
    err_code: str = ""
    err_msg: str = ""
    request_id: str = ""
