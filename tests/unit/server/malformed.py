"""What peers send that no peer should: each entry is the segments of one connection, in order."""

from __future__ import annotations

from typing import Final

from tests.unit.server.wire import UPGRADE, frame, length_header

OPEN: Final = UPGRADE + b"\r\n"
REJECTED: Final = OPEN.replace(b"/ws", b"/rejected")
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

_KEY: Final = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
_H2: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_GET: Final = b"GET / HTTP/1.1\r\nHost: x\r\n"
_POST: Final = b"POST / HTTP/1.1\r\nHost: x\r\n"


def _path(target: bytes) -> bytes:
    return OPEN.replace(b"/ws", target)


HANDSHAKES: Final = {
    "non-ascii subprotocol": [UPGRADE + b"Sec-WebSocket-Protocol: \xff\xfe\r\n\r\n"],
    "non-ascii extensions": [UPGRADE + b"Sec-WebSocket-Extensions: \xff\r\n\r\n"],
    "non-ascii connection": [OPEN.replace(b"n: Upgrade", b"n: Upgrade, \xff")],
    "non-ascii upgrade": [OPEN.replace(b"websocket", b"websocket\xff")],
    "non-ascii key": [OPEN.replace(b"dGhlI", b"\xff\xfe\xfdhI")],
    "non-ascii version": [OPEN.replace(b"13", b"\xb9")],
    "non-ascii host": [OPEN.replace(b"Host: x", b"Host: \xff")],
    "bad extension parameter": [
        UPGRADE + b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=zz\r\n\r\n"
    ],
    "http 1.0": [OPEN.replace(b"HTTP/1.1", b"HTTP/1.0")],
    "no key": [OPEN.replace(_KEY, b"")],
    "two keys": [OPEN.replace(_KEY, _KEY * 2)],
    "bad version": [OPEN.replace(b"13", b"12")],
    "no host": [OPEN.replace(b"Host: x\r\n", b"")],
    "post": [OPEN.replace(b"GET", b"POST"), b"abc"],
    "post with a body": [
        OPEN.replace(b"GET", b"POST").replace(b"Host", b"Content-Length: 5\r\nHost"),
        b"abc",
    ],
    "get with a body": [OPEN.replace(b"Host", b"Content-Length: 5\r\nHost"), b"abcde"],
}
PATHS: Final = {
    "non-ascii path": [_path(b"/w\xff")],
    "broken percent": [_path(b"/%ff%zz")],
    "absolute path": [_path(b"http://x/ws")],
    "star path": [_path(b"*")],
    "no slash": [_path(b"foo")],
    "bracket": [_path(b"//[")],
    "bracket host": [_path(b"http://[")],
    "broken query": [_path(b"/ws?a=%ff&b=%zz")],
    "non-ascii query": [_path(b"/ws?\xff")],
    "nul path": [_path(b"/%00")],
}
FRAMES: Final = {
    "frames with the request": [OPEN + frame(TEXT, b"hi")],
    "junk with the request": [OPEN + b"\xff" * 100],
    "bytes after a rejection": [REJECTED + frame(TEXT, b"hi"), frame(TEXT, b"hi")],
    "junk after a rejection": [REJECTED, b"GET / HTTP/1.1\r\n\r\n", b"\0" * 50],
    "bytes after a refusal": [OPEN.replace(_KEY, b""), frame(TEXT, b"hi"), frame(TEXT, b"hi")],
    "unmasked": [OPEN, frame(TEXT, b"hi", mask=False)],
    "unmasked twice": [OPEN, frame(TEXT, b"hi", mask=False), frame(TEXT, b"hi", mask=False)],
    "reserved bits": [OPEN, frame(TEXT, rsv=7)],
    "compressed without the extension": [OPEN, frame(TEXT, b"hi", rsv=4)],
    "bad opcode": [OPEN, frame(3)],
    "bad utf-8": [OPEN, frame(TEXT, b"\xff\xff")],
    "half a character": [OPEN, frame(TEXT, b"\xc3", fin=False), frame(0, b"")],
    "continuation first": [OPEN, frame(0, b"x")],
    "text within text": [OPEN, frame(TEXT, b"a", fin=False), frame(TEXT, b"b")],
    "binary within text": [OPEN, frame(TEXT, b"a", fin=False), frame(BINARY, b"b")],
    "fragmented ping": [OPEN, frame(PING, b"x", fin=False)],
    "ping of 126 bytes": [OPEN, b"\x89\xfe\x00\x7e" + bytes(4) + b"x" * 126],
    "pong unasked": [OPEN, frame(PONG, b"x")],
    "close of one byte": [OPEN, frame(CLOSE, b"x")],
    "close with code 1": [OPEN, frame(CLOSE, b"\x00\x01")],
    "close with code 1005": [OPEN, frame(CLOSE, b"\x03\xed")],
    "close with bad utf-8": [OPEN, frame(CLOSE, b"\x03\xe8\xff")],
    "close twice": [OPEN, frame(CLOSE, b"\x03\xe8") * 2 + frame(TEXT, b"x")],
    "junk after close": [OPEN, frame(CLOSE, b"\x03\xe8"), b"\xff" * 100],
    "junk with close": [OPEN, frame(CLOSE, b"\x03\xe8") + b"\xff" * 100],
    "ping after close": [OPEN, frame(CLOSE, b"\x03\xe8") + frame(PING, b"x")],
    "longer than memory": [OPEN, length_header(2**62) + b"a" * 100],
    "longer than can be": [OPEN, length_header(2**63 + 5) + b"a" * 100],
    "length not minimal": [OPEN, length_header(5) + b"abcde"],
}
HTTP: Final = {
    "tls hello": [bytes.fromhex("160301020001000 1fc0303".replace(" ", "")) + bytes(500)],
    "binary junk": [bytes(range(256)) * 4],
    "empty lines": [b"\r\n" * 50],
    "endless header": [_GET + b"X: " + b"a" * 20_000, b"a" * 20_000],
    "prior knowledge h2": [_H2 + b"\xa5" * 50],
    "prior knowledge h2, bad preface": [b"PRI * HTTP/2.0\r\n\r\nXX"],
    "prior knowledge h2, settings": [_H2 + bytes.fromhex("000000040000000000")],
    "h2 data for no stream": [
        _H2 + bytes.fromhex("000000040000000000"),
        bytes.fromhex("000001000000000001") + b"x",
    ],
    "h2 going away": [
        _H2 + bytes.fromhex("000000040000000000"),
        bytes.fromhex("000008070000000000") + bytes(8),
    ],
    "h2c upgrade, bad settings": [
        _GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: !!!\r\n\r\n"
    ],
    "h2c upgrade, no settings": [_GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"],
    "bad chunk": [_POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
    "two lengths": [_POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"],
    "expect without a body": [_POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"],
    "pipelined": [(_GET + b"\r\n") * 3],
    "pipelined thirtyfold": [(_GET + b"\r\n") * 30],
    "non-ascii header": [_GET + b"X: \xff\xfe\r\n\r\n"],
    "non-ascii header name": [_GET + b"X\xff: x\r\n\r\n"],
    "huge length": [_POST + b"Content-Length: 99999999999\r\n\r\nabc"],
    "negative length": [_POST + b"Content-Length: -5\r\n\r\nabc"],
    "half a request": [_GET],
    "nothing": [],
}
ALL: Final = HANDSHAKES | PATHS | FRAMES | HTTP

# What ends the whole server, and every call on it, in hypercorn 0.18.
FATAL: Final = {
    "non-ascii subprotocol",
    "non-ascii extensions",
    "non-ascii connection",
    "frames with the request",
    "junk with the request",
    "bytes after a rejection",
}
