"""The fast path for frames is equivalent to wsproto: both ends against wsproto's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage
from wsproto.utilities import LocalProtocolError

from bridge.transport import websocket_frames
from bridge.transport.websocket_frames import LONGEST, QuickConnection

# For tests in which each short frame has to be whole.
SHORT = 1024

SIDES = (ConnectionType.CLIENT, ConnectionType.SERVER)
OTHER = dict(zip(SIDES, reversed(SIDES), strict=True))

sides = st.sampled_from(SIDES)
messages = st.one_of(
    st.builds(TextMessage, data=st.text(max_size=200), message_finished=st.booleans()),
    st.builds(BytesMessage, data=st.binary(max_size=300), message_finished=st.booleans()),
    st.builds(BytesMessage, data=st.sampled_from([b"x" * 65535, b"x" * 65536, b"x" * 70000])),
    st.builds(Ping, payload=st.binary(max_size=125)),
    st.builds(Pong, payload=st.binary(max_size=125)),
    st.builds(CloseConnection, code=st.sampled_from([1000, 1001, 4000])),
)
cuts = st.lists(st.integers(1, 600), max_size=30)


def said(by: Connection, events: Sequence[Event]) -> bytes:
    """What is written for these; what makes no sense in its place is left out."""
    data = b""
    for event in events:
        try:
            if (
                isinstance(by, QuickConnection)
                and isinstance(event, Message)
                and event.message_finished
            ):
                data += by.send_message(event.data)
            else:
                data += by.send(event)
        except (LocalProtocolError, TypeError):
            pass
    return data


def heard(by: Connection, data: bytes, sizes: Sequence[int]) -> tuple[list[object], object]:
    """What is made of `data` that comes in pieces: messages put together, all else as it comes,
    and the state at the end."""
    found: list[object] = []
    parts: list[str | bytes] = []

    def take(data: bytes) -> None:
        if isinstance(by, QuickConnection):
            events = by.read(data)
        else:
            by.receive_data(data)
            events = [*by.events()]
        event: Any
        for event in events:
            if isinstance(event, str | bytes):
                found.append((TextMessage if isinstance(event, str) else BytesMessage, event))
                continue
            if not isinstance(event, Message):
                found.append(event)
                continue
            parts.append(event.data)
            if event.message_finished:
                kind = type(event)
                empty = "" if kind is TextMessage else b""
                found.append((kind, empty.join(parts)))  # type: ignore[arg-type]
                parts.clear()

    at = 0
    for size in [*sizes, len(data) + 1]:
        take(data[at : at + size])
        at += size
        if by.state not in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING) or at >= len(data):
            break
    return found, by.state


@given(sides, st.lists(messages, max_size=8), cuts)
def test_reads_what_wsproto_reads(
    side: ConnectionType, events: list[Event], sizes: list[int]
) -> None:
    data = said(Connection(OTHER[side]), events)
    assert heard(QuickConnection(side), data, sizes) == heard(Connection(side), data, sizes)


@given(sides, st.lists(messages, max_size=8))
def test_writes_what_wsproto_understands(side: ConnectionType, events: list[Event]) -> None:
    """Not the same bytes, because of the random masks."""
    quick = heard(Connection(OTHER[side]), said(QuickConnection(side), events), [])
    assert quick == heard(Connection(OTHER[side]), said(Connection(side), events), [])


@example(ConnectionType.CLIENT, [], b"\x81\x03\x89\x00", [4])
@given(sides, st.lists(messages, max_size=4), st.binary(max_size=40), cuts)
def test_malformed_frames_are_reported_as_wsproto_reports_them(
    side: ConnectionType, events: list[Event], noise: bytes, sizes: list[int]
) -> None:
    # With enough behind it for every short frame to be whole: of one that is not, wsproto may
    # tell already what is wrong with its first half.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(websocket_frames, "LONGEST", SHORT)
        data = said(Connection(OTHER[side]), events) + noise + bytes(SHORT)
        quick = heard(QuickConnection(side), data, sizes)
        assert quick == heard(Connection(side), data, sizes)


@given(sides, st.lists(messages, max_size=4), st.integers(0), st.integers(1, 255), cuts)
def test_a_flipped_bit_is_told_as_wsproto_tells_it(
    side: ConnectionType, events: list[Event], place: int, change: int, sizes: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(websocket_frames, "LONGEST", SHORT)
        data = bytearray(said(Connection(OTHER[side]), events))
        if data:
            data[place % len(data)] ^= change
        data += bytes(SHORT)  # as above
        one, other = bytes(data), bytes(data)
        assert heard(QuickConnection(side), one, sizes) == heard(Connection(side), other, sizes)


@pytest.mark.parametrize("side", SIDES)
def test_a_short_message_in_pieces_is_one_event(side: ConnectionType) -> None:
    data = Connection(OTHER[side]).send(TextMessage(data="a message"))
    quick = QuickConnection(side)
    events: list[object] = []
    for place in range(len(data)):
        events += quick.read(data[place : place + 1])
    assert events == ["a message"]


def test_a_long_message_is_not_collected_here() -> None:
    """The reader of the events decides how long a message may be."""
    data = Connection(ConnectionType.CLIENT).send(BytesMessage(data=b"x" * (LONGEST + 1)))
    quick = QuickConnection(ConnectionType.SERVER)
    [event] = quick.read(data[:1000])
    assert isinstance(event, BytesMessage)
    assert len(event.data) == 1000 - 14
