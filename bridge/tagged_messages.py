"""Reading JSON messages whose type is named by one of their fields. Sans-I/O.

Twilio calls that field "event" and Deepgram "type". Both add types at any time, so a type that is
not known is no error; a known type of the wrong shape is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, get_args

import msgspec

# msgspec leaves the last two as they are, though the text is at fault for them as well.
_MALFORMED: Final = (msgspec.DecodeError, RecursionError, UnicodeError)


class BadMessage(ValueError):
    """A peer sent something that is not a message of its protocol. Says what, briefly."""


def message_reader(
    kinds: Any, field: str, unknown: Callable[[str], Any], *, strict: bool = True
) -> Callable[[str | bytes], Any]:
    """Make a function that reads one message from its text.

    `kinds` is a union of structs tagged by `field`. The function returns one of them, or
    `unknown(type)` for a type that is not among them; `strict` is msgspec's. It raises BadMessage
    for what is binary, is not JSON, has no type, or is a known type of the wrong shape.
    """
    decoder = msgspec.json.Decoder(kinds, strict=strict)
    envelope = msgspec.json.Decoder(msgspec.defstruct("Envelope", [(field, str)]))
    known = frozenset(kind.__struct_config__.tag for kind in get_args(kinds))

    def read(text: str | bytes) -> Any:
        if not isinstance(text, str):
            raise BadMessage("a binary frame; messages are text")
        try:
            return decoder.decode(text)
        except _MALFORMED as error:
            # The text is decoded again only here, so the hot path decodes once.
            reason = str(error)
        try:
            kind = getattr(envelope.decode(text), field)
        except _MALFORMED:
            raise BadMessage(reason) from None
        if kind in known:
            raise BadMessage(f"{kind}: {reason}")
        return unknown(kind)

    return read
