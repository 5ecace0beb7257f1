"""The handset of `bridge phone --mic`, with sound cards that are none."""

from __future__ import annotations

import importlib
import io
import sys
from array import array
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
from rich.console import Console
from trio.testing import wait_all_tasks_blocked

from bridge.cli import main
from bridge.cli.phone.caller import Plan, call
from bridge.cli.phone.handset import HANG_UP, Buffer, Handset, SoundCardError, _press
from bridge.cli.phone.sound_card import Converting, SystemSoundCard
from bridge.cli.phone.view import CallView
from bridge.testing.activity import VoiceDetector
from bridge.testing.agent.server import AgentSession
from bridge.testing.speech import RATE
from tests.unit.cli.phone.played_card import Card
from tests.unit.cli.phone.tones import tone
from tests.world import QUIET, in_memory

WORDS = tone(0.6)


# ---- the buffer ---------------------------------------------------------------------------------


def test_a_buffer_gives_what_was_put_in_order():
    buffer = Buffer(most=1000, ready=4)
    buffer.put(b"abc")
    assert buffer.take(2) == b"\xff\xff"  # not ready yet
    buffer.put(b"def")
    assert buffer.take(4) == b"abcd"
    assert buffer.take(4) == b"ef\xff\xff"


def test_an_empty_buffer_waits_until_there_is_a_little():
    buffer = Buffer(most=1000, ready=4)
    buffer.put(b"abcd")
    buffer.take(6)
    buffer.put(b"ef")
    assert buffer.take(2) == b"\xff\xff"
    buffer.put(b"gh")
    assert buffer.take(4) == b"efgh"


def test_a_full_buffer_forgets_the_oldest_and_counts_it():
    buffer = Buffer(most=8, ready=1)
    for number in range(5):
        buffer.put(bytes([number]) * 4)
    assert buffer.dropped == 12
    assert buffer.take(8) == b"\3\3\3\3\4\4\4\4"


# ---- talking ------------------------------------------------------------------------------------


async def typing(*keys: str | float) -> AsyncGenerator[str, None]:
    """Keys, and pauses between them in seconds; then nothing more is typed."""
    for key in keys:
        if isinstance(key, str):
            yield key
        else:
            await trio.sleep(key)
    await trio.sleep_forever()


def turns(audio: bytes) -> list[tuple[float, float]]:
    detector = VoiceDetector()
    found = detector.feed(audio) + detector.finish()
    return [(turn.start, turn.end) for turn in found if turn.end is not None]


async def repeats(session: AgentSession) -> None:
    heard = await session.wait_for_end_of_speech()
    await session.user_said("Something.")
    await session.say("You said something.", heard.audio)


HEARS = msgspec.structs.replace(QUIET, hears=True)


async def test_what_is_said_is_heard_and_what_is_answered_is_played(autojump_clock, nursery):
    async with in_memory(repeats, HEARS) as world:
        card = Card(nursery, WORDS)
        async with world.call() as phone:
            with trio.move_on_after(4.0):
                await Handset(card).talk(phone, typing())
            assert not card.is_open
            await phone.hang_up()
        await world.quiet()
        [session] = world.agent.sessions
    # Of the words nothing is missing and nothing doubled, and they come whole to the agent.
    said = phone.sent_audio.replace(b"\xff", b"")
    assert said == WORDS.replace(b"\xff", b"")
    [(start, end)] = turns(bytes(card.played))
    assert end - start == pytest.approx(0.6, abs=0.1)
    assert session.turns
    assert world.ending["outcome"] == "caller_hung_up"


async def test_keys_are_pressed_as_they_are_typed_and_ctrl_d_hangs_up(autojump_clock, nursery):
    async with in_memory() as world:
        card = Card(nursery)
        async with world.call() as phone:
            async with aclosing(typing("4", "x", "a", 0.5, "#", HANG_UP, "9")) as keys:
                await Handset(card).talk(phone, keys)
        await world.quiet()
    assert [event.text for event in phone.events if event.kind == "dtmf"] == ["4", "A", "#"]
    assert world.ending["outcome"] == "caller_hung_up"


async def goes(session: AgentSession) -> None:
    await trio.sleep(0.5)
    await session.close(1000)


async def test_the_agent_is_lost(autojump_clock, nursery):
    async with in_memory(goes) as world:
        card = Card(nursery)
        async with world.call() as phone:
            await Handset(card).talk(phone, typing())
        await world.quiet()
    assert not card.is_open
    assert world.ending["outcome"] == "agent_failed"


async def test_a_key_after_the_call_is_no_error(autojump_clock):
    async with in_memory() as world:
        async with world.call() as phone:
            await phone.hang_up()
        async with aclosing(typing("1", "2")) as keys:
            assert not await _press(phone, keys)


async def test_the_caller_hangs_up_by_ctrl_c(autojump_clock, nursery, capsys):
    async with in_memory() as world:
        card, hang_up = Card(nursery), trio.Event()
        view = CallView(Console(stderr=True))
        phone = world.phone(on_event=view.event)
        plan = replace(Plan(b"", transcript=False), handset=Handset(card))

        async def press_ctrl_c() -> None:
            await trio.sleep(1.0)
            hang_up.set()

        nursery.start_soon(press_ctrl_c)
        await call(phone, world.base_url, plan, view, hang_up)
        await world.quiet()
    assert not card.is_open
    assert world.ending["outcome"] == "caller_hung_up"


# ---- PortAudio ----------------------------------------------------------------------------------


class PortAudioError(Exception):
    pass


class Library:
    """What of sounddevice is used; `rates` are those that the devices take."""

    PortAudioError = PortAudioError

    def __init__(self, rates: tuple[int, ...] = (8000,), fault: str = "") -> None:
        self._rates = rates
        self._fault = fault
        self.log: list[str] = []
        self.options: dict[str, Any] = {}

    def check_input_settings(self, *, samplerate: int, **_: Any) -> None:
        if samplerate not in self._rates:
            raise PortAudioError(f"Invalid sample rate {samplerate}")

    check_output_settings = check_input_settings

    def RawStream(self, **options: Any) -> SimpleNamespace:  # noqa: N802 - sounddevice's name
        if self._fault:
            raise PortAudioError(self._fault)
        self.options = options

        def note(name: str) -> Callable[[], None]:
            return lambda: self.log.append(name)

        def abort() -> None:
            self.log.append("abort")
            options["finished_callback"]()

        return SimpleNamespace(start=note("start"), abort=abort, close=note("close"))

    def tick(self, pcm: bytes) -> bytes:
        """The card's thread: one block in, one block out."""
        out = bytearray(len(pcm))
        with memoryview(out) as view:
            self.options["callback"](pcm, view, len(pcm) // 2, None, None)
        return bytes(out)


def samples(seconds: float, rate: int) -> bytes:
    return array("h", [1000] * round(seconds * rate)).tobytes()


def test_the_cards_callbacks_reach_the_handset():
    library, heard, why = Library(), [], []
    card = SystemSoundCard(library)
    with card.open(heard.append, lambda count: b"\1\2" * count, why.append):
        assert (library.options["samplerate"], library.options["blocksize"]) == (8000, 160)
        assert library.tick(b"\3\4" * 160) == b"\1\2" * 160
    assert heard == [b"\3\4" * 160]
    assert library.log == ["start", "abort", "close"]
    assert why == []  # it was we who stopped it


def test_a_card_that_stops_by_itself_says_so():
    library, why = Library(), []
    with SystemSoundCard(library).open(lambda _: None, lambda count: b"\0\0" * count, why.append):
        library.options["finished_callback"]()
    [reason] = why
    assert "unplugged" in reason


@pytest.mark.parametrize("rate", [48_000, 44_100, 16_000])
def test_a_card_of_another_rate_is_converted_both_ways(rate):
    library, heard = Library((rate,)), []
    asked: list[int] = []

    def render(count: int) -> bytes:
        asked.append(count)
        return samples(count / RATE, RATE)

    with SystemSoundCard(library).open(heard.append, render, lambda _: None):
        assert library.options["samplerate"] == rate
        played = b"".join(library.tick(samples(0.02, rate)) for _ in range(100))
    # Two seconds in, two seconds out, to within a block; no block is short.
    assert len(b"".join(heard)) / 2 == pytest.approx(2 * RATE, abs=160)
    assert sum(asked) == pytest.approx(2 * RATE, abs=160)
    assert len(played) == 2 * round(0.02 * rate) * 100
    assert abs(array("h", played[-2:])[0] - 1000) < 20


def test_no_device(capsys):
    with pytest.raises(SoundCardError, match="no microphone and loudspeaker"):
        SystemSoundCard(Library(()))  # before anybody is called
    library = Library(fault="Device unavailable\nmore")
    with pytest.raises(SoundCardError, match="Device unavailable"):
        with SystemSoundCard(library).open(lambda _: None, lambda _: b"", lambda _: None):
            pass


def test_converting_does_nothing_at_the_phones_own_rate():
    heard: list[bytes] = []
    same = Converting(RATE, heard.append, lambda count: b"\0\1" * count)
    same.capture(b"\5\6")
    assert (heard, same.render(2)) == ([b"\5\6"], b"\0\1\0\1")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ImportError("No module named sounddevice"), "pip install -e '.[mic]'"),
        (OSError("PortAudio library not found"), "apt install libportaudio2"),
    ],
)
def test_what_is_not_installed_is_said_in_one_line(monkeypatch, capsys, error, remedy):
    real = importlib.import_module

    def imported(name: str, *arguments: Any) -> Any:
        if name == "sounddevice":
            raise error
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", imported)
    monkeypatch.setattr(sys, "argv", ["bridge", "phone", "--mic"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("bridge: --mic needs")
    assert remedy in line


# ---- the keyboard -------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no terminals of this kind")
async def test_keys_are_read_one_by_one_and_the_terminal_is_restored(monkeypatch, nursery):
    import os
    import pty
    import termios

    from bridge.cli.phone.handset import typed_keys

    theirs, ours = pty.openpty()
    try:
        before = termios.tcgetattr(ours)
        with os.fdopen(os.dup(ours), "r") as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)

            async def type_one() -> None:
                # Once somebody reads: what was typed before is not meant for us.
                await wait_all_tasks_blocked()
                os.write(theirs, b"1")

            nursery.start_soon(type_one)
            # No deadline: the virtual clock would jump to it while the kernel passes the key on.
            async with aclosing(typed_keys()) as keys:
                assert await anext(keys) == "1"  # without a line end
                os.write(theirs, b"#")
                assert await anext(keys) == "#"
                assert termios.tcgetattr(ours)[3] != before[3]
        assert termios.tcgetattr(ours)[3] == before[3]
    finally:
        os.close(theirs)
        with suppress(OSError):
            os.close(ours)


async def test_without_a_terminal_there_are_no_keys(monkeypatch):
    from bridge.cli.phone.handset import typed_keys

    monkeypatch.setattr(sys, "stdin", io.StringIO("123"))
    assert [key async for key in typed_keys()] == []
