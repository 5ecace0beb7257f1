"""The agent of the benchmarks: a server that returns each audio message at once.

It speaks Deepgram's Voice Agent protocol, which bridge and the floor use, and the part of OpenAI's
Realtime protocol that Twilio Agent Connect uses: the server under measurement chooses by what it
sends. Deepgram sessions also carry a line of the transcript now and then, so that its cost is in
the figures.
"""

from __future__ import annotations

from typing import Final

import msgspec

from bridge.testing.load.ends import AgentEnd
from bridge.testing.load.wire import BINARY, TEXT

LINE_EVERY: Final = 100
"""Messages between two lines of the transcript: two seconds of speech, a fast conversation."""

_LINES: Final = tuple(
    msgspec.json.encode({"type": "ConversationText", "role": role, "content": content})
    for role, content in (
        ("user", "Could I have a table for two on Friday evening?"),
        ("assistant", "Certainly. A table for two on Friday, at what time?"),
    )
)


class _Append(msgspec.Struct):
    audio: str


_append = msgspec.json.Decoder(_Append)


class EchoEnd(AgentEnd):
    """The agent's end of one session. Returns audio; confirms Settings."""

    _messages = 0

    def on_message(self, kind: int, payload: bytes, now: int) -> None:
        """Return audio at once; confirm Settings as `AgentEnd` does."""
        if kind == BINARY:
            self.send(BINARY, payload)
            self._messages += 1
            if self._messages % LINE_EVERY == 0:
                self.send(TEXT, _LINES[self._messages // LINE_EVERY % len(_LINES)])
        elif b'"input_audio_buffer.append"' in payload:
            audio = _append.decode(payload).audio
            self.send(
                TEXT,
                f'{{"type":"response.output_audio.delta","item_id":"i","delta":"{audio}"}}'.encode(),
            )
        elif b'"session.update"' in payload:
            self._on_ready(self)
        else:
            super().on_message(kind, payload, now)
