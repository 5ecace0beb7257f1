"""RFC 6455 as cases: frames, what must come of them, and the section that says so.

The Autobahn test suite, which this follows, needs Python 2. Each case is written once and played to
both ends of ours: as a client to the server's media socket, as a server to the agent's session.
https://www.rfc-editor.org/rfc/rfc6455
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

PROTOCOL_ERROR, NOT_UTF_8, TOO_BIG = 1002, 1007, 1009


@dataclass(frozen=True)
class Role:
    """Who we play. A client masks its frames, a server does not (section 5.1).

    `before` and `after` go around each text: what the other end takes for a message at all.
    """

    masks: bool
    before: bytes = b""
    after: bytes = b""

    def text(self, words: str | bytes) -> bytes:
        """The payload of a text message."""
        raw = words.encode() if isinstance(words, str) else words
        return self.before + raw + self.after

    def frame(
        self,
        opcode: int,
        payload: bytes = b"",
        *,
        fin: bool = True,
        rsv: int = 0,
        masked: bool | None = None,
        form: str = "",
        announced: int | None = None,
    ) -> bytes:
        """One frame. `form` is the length's, "" the shortest; `announced` what it says instead of
        the truth."""
        masked = self.masks if masked is None else masked
        length = len(payload) if announced is None else announced
        form = form or ("7" if length < 126 else "16" if length < 65536 else "64")
        seven = {"7": length, "16": 126, "64": 127}[form]
        head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode, (0x80 if masked else 0) | seven])
        head += {"7": b"", "16": struct.pack("!H", length & 0xFFFF)}.get(
            form, struct.pack("!Q", length)
        )
        if masked:
            key = b"\x37\xfa\x21\x3d"
            head += key
            payload = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
        return head + payload

    def message(self, words: str) -> bytes:
        """A whole text message."""
        return self.frame(TEXT, self.text(words))

    def close(self, code: int | None = None, reason: bytes = b"") -> bytes:
        """A Close frame."""
        return self.frame(CLOSE, (b"" if code is None else struct.pack("!H", code)) + reason)


Frames = Callable[[Role], list[bytes]]


@dataclass(frozen=True)
class Case:
    """`frames` are what is sent; `delivers` what the other end's user gets of it, in order, and
    `pongs` the payloads of its pongs. `code` is in its Close frame; None: it goes on."""

    section: str
    name: str
    frames: Frames
    delivers: tuple[str | bytes, ...] = ()
    pongs: tuple[bytes, ...] = ()
    code: int | None = None
    # Long ones are not played byte by byte.
    long: bool = field(default=False)

    def __str__(self) -> str:
        return f"{self.section} {self.name}"


def _split(role: Role, words: str, *cuts: int, between: bytes = b"") -> list[bytes]:
    """A text message in fragments, with something between each two."""
    payload = role.text(words)
    edges = [0, *cuts, len(payload)]
    frames: list[bytes] = []
    for n, (begin, end) in enumerate(pairwise(edges)):
        last = end == len(payload) and n == len(edges) - 2
        frames.append(role.frame(CONT if n else TEXT, payload[begin:end], fin=last))
        if between and not last:
            frames.append(between)
    return frames


def _bad(section: str, name: str, frames: Frames, code: int = PROTOCOL_ERROR) -> Case:
    return Case(section, name, frames, code=code)


_LENGTHS = [0, 1, 125, 126, 127, 128, 1000]

FRAMING: Final = [
    *(
        Case(
            "5.2",
            f"a binary message of {n} bytes",
            lambda r, n=n: [r.frame(BINARY, b"\xfe" * n)],  # type: ignore[misc]
            delivers=(b"\xfe" * n,),
            long=n > 1000,
        )
        for n in [*_LENGTHS, 65535, 65536]
    ),
    *(
        Case(
            "5.2",
            f"a text message of {n} characters",
            lambda r, n=n: [r.message("*" * n)],  # type: ignore[misc]
            delivers=("*" * n,),
            long=n > 1000,
        )
        for n in [*_LENGTHS, 60000]
    ),
    _bad(
        "5.2",
        "a length that announces 2^63 and more",
        lambda r: [r.frame(BINARY, b"x", announced=2**63 + 5, form="64")],
    ),
    _bad("5.2", "5 bytes with a 16-bit length", lambda r: [r.frame(BINARY, b"hello", form="16")]),
    _bad("5.2", "5 bytes with a 64-bit length", lambda r: [r.frame(BINARY, b"hello", form="64")]),
    _bad(
        "5.2",
        "65535 bytes with a 64-bit length",
        lambda r: [r.frame(BINARY, b"", form="64", announced=65535)],
    ),
    _bad(
        "5.1",
        "a mask where there is none, or none where there is one",
        lambda r: [r.frame(TEXT, r.text("x"), masked=not r.masks)],
    ),
    *(
        _bad(
            "5.2",
            f"reserved bits {bits:03b}",
            lambda r, bits=bits: [r.frame(TEXT, r.text("x"), rsv=bits)],
        )  # type: ignore[misc]
        for bits in range(1, 8)
    ),
    _bad("5.2", "a reserved bit in a ping", lambda r: [r.frame(PING, b"x", rsv=1)]),
    _bad("5.2", "a reserved bit in a Close", lambda r: [r.frame(CLOSE, b"\x03\xe8", rsv=1)]),
    *(
        _bad("5.2", f"reserved opcode {op}", lambda r, op=op: [r.frame(op)])  # type: ignore[misc]
        for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    ),
    _bad("5.2", "a reserved opcode with a payload", lambda r: [r.frame(5, b"x" * 126)]),
]

CONTROL: Final = [
    *(
        Case(
            "5.5.2",
            f"a ping of {n} bytes",
            lambda r, n=n: [r.frame(PING, b"\xff" * n)],  # type: ignore[misc]
            pongs=(b"\xff" * n,),
        )
        for n in (0, 1, 125)
    ),
    Case(
        "5.5.2",
        "ten pings",
        lambda r: [r.frame(PING, bytes([n])) for n in range(10)],
        pongs=tuple(bytes([n]) for n in range(10)),
    ),
    Case("5.5.3", "a pong that nobody asked for", lambda r: [r.frame(PONG, b"x")]),
    Case(
        "5.5.3",
        "a pong, then a ping",
        lambda r: [r.frame(PONG, b"x"), r.frame(PING, b"y")],
        pongs=(b"y",),
    ),
    _bad("5.5", "a ping of 126 bytes", lambda r: [r.frame(PING, b"x" * 126)]),
    _bad("5.5", "a pong of 126 bytes", lambda r: [r.frame(PONG, b"x" * 126)]),
    _bad("5.5", "a Close of 126 bytes", lambda r: [r.frame(CLOSE, b"\x03\xe8" + b"x" * 124)]),
    _bad(
        "5.5",
        "a ping in fragments",
        lambda r: [r.frame(PING, b"a", fin=False), r.frame(CONT, b"b")],
    ),
    _bad(
        "5.5",
        "a pong in fragments",
        lambda r: [r.frame(PONG, b"a", fin=False), r.frame(CONT, b"b")],
    ),
    _bad(
        "5.5",
        "a Close in fragments",
        lambda r: [r.frame(CLOSE, b"\x03", fin=False), r.frame(CONT, b"\xe8")],
    ),
]

FRAGMENTS: Final = [
    Case("5.4", "a text in two", lambda r: _split(r, "hello", 3), delivers=("hello",)),
    Case(
        "5.4",
        "a text in one-byte pieces",
        lambda r: _split(r, "hello", *range(1, len(r.text("hello")))),
        delivers=("hello",),
    ),
    Case(
        "5.4", "empty pieces in between", lambda r: _split(r, "hello", 2, 2, 2), delivers=("hello",)
    ),
    Case(
        "5.4",
        "a binary message in three",
        lambda r: [
            r.frame(BINARY, b"\xff", fin=False),
            r.frame(CONT, b"\xfe", fin=False),
            r.frame(CONT, b"\xfd"),
        ],
        delivers=(b"\xff\xfe\xfd",),
    ),
    Case(
        "5.4",
        "a ping between the fragments",
        lambda r: _split(r, "hello", 1, 2, between=r.frame(PING, b"p")),
        delivers=("hello",),
        pongs=(b"p", b"p"),
    ),
    Case(
        "5.4",
        "a pong between the fragments",
        lambda r: _split(r, "hello", 1, 2, between=r.frame(PONG, b"p")),
        delivers=("hello",),
    ),
    Case(
        "5.4",
        "one fragmented message after another",
        lambda r: _split(r, "one", 1) + _split(r, "two", 2),
        delivers=("one", "two"),
    ),
    _bad("5.4", "a continuation of nothing", lambda r: [r.frame(CONT, b"x")]),
    _bad(
        "5.4",
        "a continuation of nothing, to be continued",
        lambda r: [r.frame(CONT, b"x", fin=False)],
    ),
    Case(
        "5.4",
        "a continuation of what is complete",
        lambda r: [r.frame(BINARY, b""), r.frame(CONT, b"x")],
        delivers=(b"",),
        code=PROTOCOL_ERROR,
    ),
    _bad(
        "5.4",
        "a text within a text",
        lambda r: [r.frame(TEXT, b"a", fin=False), r.frame(TEXT, b"b")],
    ),
    _bad(
        "5.4",
        "a binary message within a text",
        lambda r: [r.frame(TEXT, b"a", fin=False), r.frame(BINARY, b"b")],
    ),
]

_WORDS = ["κόσμε", "日本語", "𝄞", "\ufffe\uffff", "\u007f\u0080\u07ff\u0800", "\U0010ffff"]
_NOT_UTF_8 = {
    "a lone continuation": b"\x80",
    "a lone lead": b"\xc3",
    "an overlong slash": b"\xc0\xaf",
    "an overlong of three": b"\xe0\x80\xaf",
    "an overlong of four": b"\xf0\x80\x80\xaf",
    "a surrogate": b"\xed\xa0\x80",
    "a pair of surrogates": b"\xed\xa0\x80\xed\xb0\x80",
    "beyond the last": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "0xfe": b"\xfe",
    "0xff": b"\xff",
    "Latin-1": "für".encode("latin-1"),
}

UTF_8: Final = [
    *(
        Case("8.1", f"text {w!a}", lambda r, w=w: [r.message(w)], delivers=(w,))  # type: ignore[misc]
        for w in _WORDS
    ),
    *(
        Case(
            "8.1",
            f"text {w!a}, a fragment for each byte",
            lambda r, w=w: _split(r, w, *range(1, len(r.text(w)))),
            delivers=(w,),
        )  # type: ignore[misc]
        for w in _WORDS
    ),
    *(
        _bad("8.1", name, lambda r, raw=raw: [r.frame(TEXT, r.text(raw))], NOT_UTF_8)  # type: ignore[misc]
        for name, raw in _NOT_UTF_8.items()
    ),
    _bad(
        "8.1",
        "half a character at the end of the last fragment",
        lambda r: [r.frame(TEXT, b"\xce", fin=False), r.frame(CONT, b"")],
        NOT_UTF_8,
    ),
]

CLOSING: Final = [
    # Without a code the answer may have 1000 or none, which is 1005 to its reader.
    Case("5.5.1", "a Close without a code", lambda r: [r.close()], code=1005),
    *(
        Case("7.4", f"a Close with {code}", lambda r, code=code: [r.close(code, b"bye")], code=code)  # type: ignore[misc]
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    ),
    Case(
        "5.5.1",
        "a Close with a reason of 123 bytes",
        lambda r: [r.close(1000, b"*" * 123)],
        code=1000,
    ),
    _bad("5.5.1", "a Close of one byte", lambda r: [r.frame(CLOSE, b"\x03")]),
    *(
        _bad("7.4", f"a Close with {code}", lambda r, code=code: [r.close(code)])  # type: ignore[misc]
        for code in (0, 1, 999, 1004, 1005, 1006, 1015)
    ),
    _bad("5.5.1", "a reason that is not UTF-8", lambda r: [r.close(1000, b"\xce\xff")], NOT_UTF_8),
    Case(
        "5.5.1",
        "a message after the Close",
        lambda r: [r.close(1000), r.message("late")],
        code=1000,
    ),
    Case(
        "5.5.1",
        "a ping after the Close",
        lambda r: [r.close(1000), r.frame(PING, b"late")],
        code=1000,
    ),
    Case("5.5.1", "a second Close", lambda r: [r.close(1000), r.close(1001)], code=1000),
    Case(
        "7.1.1",
        "a Close within a fragmented message",
        lambda r: [r.frame(TEXT, b"a", fin=False), r.close(1000)],
        code=1000,
    ),
]

ALL: Final = [*FRAMING, *CONTROL, *FRAGMENTS, *UTF_8, *CLOSING]
