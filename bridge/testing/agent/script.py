"""Scripts of the simulated agent: from TOML files, and the built-in echo.

A script file; every part is optional:

    greeting = "Hello!"             # in place of the greeting in Settings
    repeat = false                  # start again after the last turn

    [behaviour]                     # the fields of bridge.testing.agent.behaviour.Behaviour
    speed = 4.0

    [[turns]]                       # in order, each after an utterance of the caller
    heard = "What time is it?"      # what the caller is reported to have said
    call = [{ name = "get_time", arguments = { zone = "UTC" } }]
    say = "It is noon."
    audio = "noon.wav"              # or a clip's name, or "echo": the caller's own voice

    [[turns]]
    after_seconds = 20              # not after an utterance, but this long after the turn before
    say = "Goodbye."
    close = 1000

    [[turns]]
    text = "1"                      # whenever this text is injected (a key of the phone)
    say = "You pressed one."
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio

from bridge.testing.agent.behaviour import Behaviour, CloseCode, Seconds
from bridge.testing.agent.hearing import Heard
from bridge.testing.agent.record import CallerTurn
from bridge.testing.agent.session import AgentSession, Script
from bridge.testing.agent.voice import CLIPS, DEFAULT_GREETING
from bridge.testing.speech import load_clip, read_wav
from bridge.testing.tables import tables, unknown_key

ECHO = "echo"


class ScriptError(ValueError):
    """A script file cannot be used; the message names the file, the field and the remedy."""


class ScriptedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One function the agent calls."""

    name: str
    arguments: dict[str, Any] = {}


class Failing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One Error the agent sends."""

    code: str
    description: str = ""


class ScriptTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn: when it comes (after the caller's next utterance, unless it says otherwise), then
    what happens, in the order of these fields."""

    after_seconds: Seconds | None = None
    text: str | None = None
    heard: str | None = None
    call: list[ScriptedCall] = []
    say: str | None = None
    audio: str | None = None
    error: Failing | None = None
    close: CloseCode | None = None


class ScriptFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole script file."""

    greeting: str | None = None
    repeat: bool = False
    behaviour: Behaviour = Behaviour()
    turns: Annotated[list[ScriptTurn], msgspec.Meta(max_length=10_000)] = []


async def echo(session: AgentSession) -> None:
    """The built-in script: repeats each utterance of the caller in the caller's own voice.

    It recognises no words, and its texts say so: "(speech, 1.8 s)".
    """
    you_said = load_clip(CLIPS["You said:"])
    while True:
        turn = await session.wait_for_turn()
        if turn.heard is None:
            await session.say(f"You wrote: {turn.text}")
            continue
        description = speech_as_text(turn.heard)
        await session.user_said(description)
        await session.say(f"You said: {description}", you_said + turn.heard.audio)


ECHO_BEHAVIOUR = Behaviour(require_key=False, greeting=DEFAULT_GREETING)


def speech_as_text(heard: Heard) -> str:
    """Describe speech that was detected but not recognised."""
    return f"(speech, {heard.seconds:.1f} s)"


def load_script(path: Path) -> tuple[Script, Behaviour]:
    """Read a script file; its sounds are read now, so that nothing is missing later.

    Raises:
        ScriptError: it cannot be read, is not TOML, has an unknown or wrong field, or names a
            sound that is not there.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScriptError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScriptError(f"{path}: not TOML: {error}") from None
    try:
        return _parse(data, path.parent)
    except ScriptError as error:
        raise ScriptError(f"{path}: {error}") from None


def _parse(data: dict[str, Any], folder: Path) -> tuple[Script, Behaviour]:
    _check_keys("", data, ScriptFile)
    _check_keys("behaviour", data.get("behaviour"), Behaviour)
    for number, turn in enumerate(tables(data.get("turns"))):
        where = f"turns[{number}]"
        _check_keys(where, turn, ScriptTurn)
        _check_keys(f"{where}.error", turn.get("error"), Failing)
        for index, call in enumerate(tables(turn.get("call"))):
            _check_keys(f"{where}.call[{index}]", call, ScriptedCall)
    try:
        script = msgspec.convert(data, ScriptFile)
    except msgspec.ValidationError as error:
        # msgspec says "Expected `int`, got `str` - at `$.turns[0].close`".
        # TOML has no null.
        problem, _, where = str(error).replace(" | null", "").partition(" - at `$.")
        raise ScriptError(f"{where.rstrip('`') or 'the file'}: {problem}") from None
    sounds: dict[str, bytes] = {}
    for number, item in enumerate(script.turns):
        where = f"turns[{number}]"
        if item.text is not None and item.after_seconds is not None:
            raise ScriptError(f"{where}: has both text and after_seconds; remove one")
        if item.audio is not None and item.audio != ECHO:
            sounds[item.audio] = _sound(f"{where}.audio", item.audio, folder)
    if script.repeat and all(item.text is not None for item in script.turns):
        raise ScriptError("repeat: there is no turn to repeat; add one without text")
    behaviour = script.behaviour
    if script.greeting is not None:
        behaviour = msgspec.structs.replace(behaviour, greeting=script.greeting)
    return _Runner(script, sounds), behaviour


class _Runner:
    """Plays a script file on a session."""

    def __init__(self, script: ScriptFile, sounds: dict[str, bytes]) -> None:
        self._repeat = script.repeat
        self._ordered = [turn for turn in script.turns if turn.text is None]
        self._by_text = {turn.text: turn for turn in script.turns if turn.text is not None}
        self._sounds = sounds

    async def __call__(self, session: AgentSession) -> None:
        async with trio.open_nursery() as nursery:
            if self._by_text:
                nursery.start_soon(self._answer_texts, session)
            while True:
                for turn in self._ordered:
                    await self._when(session, turn)
                if not self._repeat:
                    break

    async def _answer_texts(self, session: AgentSession) -> None:
        while True:
            text = await session.wait_for_user_message()
            turn = self._by_text.get(text)
            if turn is not None:
                await self._take(session, turn, None)

    async def _when(self, session: AgentSession, turn: ScriptTurn) -> None:
        heard = None
        if turn.after_seconds is not None:
            await trio.sleep(turn.after_seconds)
        else:
            heard = await session.wait_for_end_of_speech()
        await self._take(session, turn, heard)

    async def _take(self, session: AgentSession, turn: ScriptTurn, heard: Heard | None) -> None:
        if turn.heard is not None:
            await session.user_said(turn.heard)
        elif heard is not None:
            await session.user_said(speech_as_text(heard))
        if turn.call:
            await session.call_functions([msgspec.to_builtins(call) for call in turn.call])
        if turn.say is not None or turn.audio is not None:
            await session.say(turn.say or "", self._audio(session, turn))
        if turn.error is not None:
            await session.error(turn.error.code, turn.error.description)
        if turn.close is not None:
            await session.close(turn.close)

    def _audio(self, session: AgentSession, turn: ScriptTurn) -> bytes | None:
        if turn.audio != ECHO:
            return None if turn.audio is None else self._sounds[turn.audio]
        last = next(filter(_spoken, reversed(session.turns)), None)
        return b"" if last is None or last.heard is None else last.heard.audio


def _spoken(turn: CallerTurn) -> bool:
    return turn.heard is not None


def _check_keys(where: str, table: Any, kind: type[msgspec.Struct]) -> None:
    if why := unknown_key(where, table, kind):
        raise ScriptError(why)


def _sound(where: str, name: str, folder: Path) -> bytes:
    if name.lower().endswith(".wav"):
        try:
            return read_wav(folder / name)
        except (OSError, ValueError, EOFError) as error:
            raise ScriptError(f"{where}: {error}") from None
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise ScriptError(f'{where}: "{name}" is neither a .wav file, nor a clip, nor "{ECHO}"')
    try:
        return load_clip(name)
    except (OSError, ValueError, KeyError):
        names = ", ".join(sorted(CLIPS.values()))
        raise ScriptError(
            f'{where}: no clip "{name}"; name a .wav file, "{ECHO}" or one of {names}'
        ) from None
