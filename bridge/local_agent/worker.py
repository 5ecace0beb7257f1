"""The speech worker: a process that recognises and synthesises speech for one call.

`python -m bridge.local_agent.worker` reads frames (see `frames`) from standard input and writes
frames to standard output until its input ends. It is a separate process because the recogniser
holds the GIL for up to a second, and because its crash must end one call only.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from bridge.local_agent import frames
from bridge.local_agent.events import Event, Ready, Setup, SetupError, Unable
from bridge.local_agent.voices import Engine, EngineMissing, choose, speech_of

if TYPE_CHECKING:
    from bridge.local_agent.ears import Ears

_READ_BYTES = 65536

# Utterances synthesised in advance: a few seconds each, at 8 kB a second.
MAX_LIKELY = 100


class Worker:
    """Handles the server's frames in order; answers go to `out`."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._voice: Engine | None = None
        self._ears: Ears | None = None
        self._likely: list[str] = []
        self._at_hand: dict[str, bytes] = {}

    def take(self, kind: bytes, content: bytes) -> None:
        """Handle one frame. An exception means that this worker cannot go on."""
        if kind == frames.SETUP:
            self._set_up(msgspec.json.decode(content, type=Setup))
        elif kind == frames.HEAR and self._ears is not None:
            for found in self._ears.hear(content):
                self._tell(found)
        elif kind == frames.END_TURN and self._ears is not None:
            if (ended := self._ears.end_turn()) is not None:
                self._tell(ended)
        elif kind == frames.SPEAK and self._voice is not None:
            number, text = frames.split_number(content)
            speech = self._speech(text.decode())
            self._send(frames.SPEECH, frames.numbered(number, speech))
        elif kind == frames.PING:
            self._send(frames.PONG)

    def prepare(self) -> bool:
        """Synthesise one likely utterance in advance; return False if none is left."""
        if not self._likely:
            return False
        text = self._likely.pop()
        self._at_hand[text] = self._speech(text)
        return True

    def _speech(self, text: str) -> bytes:
        assert self._voice is not None
        return self._at_hand.get(text) or speech_of(self._voice, text)

    def _set_up(self, setup: Setup) -> None:
        self._likely = setup.likely[:MAX_LIKELY]
        self._voice = choose(setup.voice)
        if setup.grammar:
            # A worker that only speaks needs no recogniser.
            from bridge.local_agent.ears import Ears

            self._ears = Ears(setup)
        self._tell(Ready(self._voice.name))

    def _tell(self, event: Event) -> None:
        self._send(frames.EVENT, msgspec.json.encode(event))

    def _send(self, kind: bytes, content: bytes = b"") -> None:
        self._out.write(frames.frame(kind, content))
        self._out.flush()


def main() -> int:
    """Work until standard input ends. Exit code 1 when it cannot."""
    # Ctrl-C in a terminal reaches the whole process group; the server ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Output that a library prints must not mix with the frames: send it to standard error.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker, reader = Worker(out), frames.FrameReader()
    try:
        while data := _input(worker):
            for kind, content in reader.feed(data):
                worker.take(kind, content)
    except (EngineMissing, SetupError) as error:
        out.write(frames.frame(frames.EVENT, msgspec.json.encode(Unable(str(error)))))
        out.flush()
        return 1
    except BrokenPipeError:
        pass  # the server has ended
    return 0


def _input(worker: Worker) -> bytes:
    """Read from standard input; while there is nothing to read, synthesise in advance."""
    # On Windows select works on sockets only.
    while os.name != "nt" and not select.select([0], [], [], 0)[0] and worker.prepare():
        pass
    return os.read(0, _READ_BYTES)


if __name__ == "__main__":
    sys.exit(main())
