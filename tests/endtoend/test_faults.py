"""Faults that a server of calls has to survive, made for real: processes, sockets, disks, clocks.

Each test prints what it measured; `pytest -rP tests/endtoend/test_faults.py` shows it. Endings of
single calls are in test_endings.py, killed workers and signals in test_signals.py, the database's
failures one by one in tests/integration/records/test_recorder.py.
"""

from __future__ import annotations

import glob
import json
import os
import resource
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from bridge.testing.agent.server import AgentSession, Behaviour, SimulatedAgent
from bridge.testing.speech import SILENCE
from tests.endtoend.lossy import Weather, bad_line
from tests.endtoend.scene import USING, scene, until
from tests.endtoend.servers import SERVE, WORDS, Server, running, talk
from tests.world import QUIET

SECOND = bytes(range(1, 201)) * 40  # a second of audio without silence in it


def show(what: str, **figures: Any) -> None:
    """Print figures, seconds with three digits."""
    words = [
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    ]
    print(f"{what}: {', '.join(words)}")


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"median": ordered[len(ordered) // 2], "worst": ordered[-1]}


# ---- the agent -----------------------------------------------------------------------------------


async def test_an_agent_that_flaps() -> None:
    """Lost three times in one call, and refused twice each time before it takes the call again: the
    caller stays on the line, and both hear each other after each time."""
    falls = 3
    refused = replace_behaviour(reject_status=503)
    using = msgspec.structs.replace(
        USING,
        deepgram=msgspec.structs.replace(USING.deepgram, max_reconnects=falls, connect_budget=8.0),
    )

    def behaviour(number: int) -> Behaviour:
        return QUIET if number % 3 == 1 else refused

    gaps: list[float] = []
    async with scene(behaviour=behaviour, using=using) as stage, stage.call() as phone:
        session = await stage.agent.wait_for_session()
        for fall in range(falls):
            await session.applied.wait()
            await session.say("words", WORDS)
            await phone.wait_heard((fall + 1) * len(WORDS) / 8000)
            lost_at = trio.current_time()
            await session.reset()
            await until(lambda: stage.agent.opened > fall + 1)  # noqa: B023
            session = stage.agent.sessions[-1]
            await session.applied.wait()
            gaps.append(trio.current_time() - lost_at)
            await phone.say(WORDS)
            await until(lambda: WORDS in voice(session))  # noqa: B023
        began = trio.current_time()
        await phone.hang_up()
        await stage.ended("caller_hung_up", since=began)
    show("agent flapping", times=falls, **{f"back after, {k}": v for k, v in spread(gaps).items()})


def replace_behaviour(**knobs: Any) -> Behaviour:
    return msgspec.structs.replace(QUIET, **knobs)


def voice(session: AgentSession) -> bytes:
    """What the agent heard, without the silence that fills gaps."""
    return bytes(session.received_audio).replace(SILENCE, b"")


async def test_an_agent_that_takes_its_time() -> None:
    """Three seconds to get ready: the caller's last two seconds before that are heard."""
    slow = replace_behaviour(welcome_delay=1.5, settings_applied_delay=1.5)
    using = msgspec.structs.replace(
        USING, deepgram=msgspec.structs.replace(USING.deepgram, connect_budget=8.0)
    )
    async with scene(behaviour=slow, using=using) as stage, stage.call() as phone:
        await phone.say(SECOND * 4)
        session = await stage.agent.wait_for_session()
        await session.applied.wait()
        await phone.wait_quiet(0.5)
        ended = trio.current_time()
        await phone.hang_up()
        line = await stage.ended("caller_hung_up", since=ended)
    kept = len(voice(session)) / 8000
    # Four seconds were said, two are kept while nobody listens, and the rest is heard as it comes.
    assert kept >= 2.5
    assert SECOND[4000:] in voice(session)
    show("agent slow", ready_after=3.0, caller_heard=kept, dropped=line["dropped_bytes"] / 8000)


async def test_an_agent_that_stalls() -> None:
    """It has heard the caller and says nothing but what it is given, its socket open: two fillers,
    and then another session, which is asked again, hears and is heard."""
    stall = 1.0
    using = msgspec.structs.replace(
        USING,
        call=msgspec.structs.replace(USING.call, stall_seconds=stall),
        deepgram=msgspec.structs.replace(USING.deepgram, max_reconnects=1),
    )
    async with scene(using=using) as stage, stage.call() as phone:
        session = await stage.agent.wait_for_session()
        await session.applied.wait()
        await session.user_said("What time is it?")
        began = trio.current_time()
        await phone.wait_heard(0.1)
        filler = trio.current_time() - began
        session = await stage.agent.wait_for_session(2)
        await session.applied.wait()
        back = trio.current_time() - began
        await phone.say(WORDS)
        await until(lambda: WORDS in voice(session))
        await session.say("words", WORDS)
        await until(lambda: WORDS in phone.heard)
        began = trio.current_time()
        await phone.hang_up()
        await stage.ended("caller_hung_up", since=began)
    assert filler >= 0.7 * stall
    assert back >= 3 * 0.7 * stall
    show("agent stalled", stall_seconds=stall, filler_after=filler, another_session_after=back)


# ---- the phone -----------------------------------------------------------------------------------


async def test_a_phone_on_a_lossy_line() -> None:
    """Delays, jitter, stalls of up to a second and bursts behind them, both ways: the call goes on,
    every byte the caller said is heard in order, barge-in works, and the end is clean."""
    weather = Weather()
    async with scene() as stage, bad_line(stage.port, weather) as line:
        async with stage.phone(strict=False).place_call(line.address) as phone:
            session = await stage.agent.wait_for_session()
            await session.applied.wait()
            for _ in range(2):
                await phone.say(SECOND)
                await session.say("words", SECOND * 2)
                await phone.wait_heard(phone.heard_seconds + 0.1)
                await session.user_started_speaking()
                await phone.wait_quiet(0.3)
            await until(lambda: len(voice(session)) >= 2 * len(SECOND))
            began = trio.current_time()
            await phone.hang_up()
            ended = await stage.ended("caller_hung_up", since=began, within=weather.stall + 1)
    assert voice(session) == SECOND * 2
    assert ended["dropped_bytes"] == 0
    assert phone.faults == []
    show(
        "lossy line",
        pieces=len(line.late),
        **{f"late, {k}": v for k, v in spread(line.late).items()},
    )


async def test_a_phone_whose_frames_are_missing() -> None:
    """On a line that loses one frame in ten before Twilio, the rest is heard at once and in order,
    and a gap longer than a fifth of a second is filled with silence, so that turns still end."""
    async with scene() as stage, stage.call(silence_frames=False) as phone:
        session = await stage.agent.wait_for_session()
        await session.applied.wait()
        frames = [bytes([n]) * 160 for n in range(1, 101)]
        kept = [frame for n, frame in enumerate(frames) if n % 10]
        before = len(session.received_audio)
        for stretch in (kept[:45], kept[45:]):
            await phone.say(b"".join(stretch))
            await phone.wait_quiet(0.6)
        await until(lambda: len(voice(session)) >= 160 * len(kept))
        silent = len(session.received_audio) - before - len(voice(session))
        began = trio.current_time()
        await phone.hang_up()
        await stage.ended("caller_hung_up", since=began)
    assert voice(session) == b"".join(kept)
    assert silent >= 0.6 * 8000
    show("missing frames", heard=len(kept), of=len(frames), silence_filled_in=silent / 8000)


# ---- the database and the disk -------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Somebody has the database for himself."""
    with sqlite3.connect(folder / "calls.db", isolation_level=None) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield
        db.execute("ROLLBACK")
    db.close()


@contextmanager
def taken_away(folder: Path) -> Iterator[None]:
    """The database's volume is gone, and comes back."""
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    yield
    folder.rmdir() if folder.exists() and not any(folder.iterdir()) else None
    for made in folder.glob("*"):
        made.rename(hidden / made.name) if not (hidden / made.name).exists() else made.unlink()
    if folder.exists():
        folder.rmdir()
    hidden.rename(folder)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Not a byte is free, for the database nor for the spool beside it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def outcomes(folder: Path) -> list[str]:
    """The outcomes of the calls in the database."""
    db = sqlite3.connect(f"file:{folder / 'calls.db'}?mode=ro", uri=True)
    try:
        return [row[0] for row in db.execute("SELECT outcome FROM calls ORDER BY started_at")]
    except sqlite3.OperationalError:
        return []
    finally:
        db.close()


@pytest.mark.parametrize("fault", [locked, taken_away, full])
async def test_a_database_that_is_away(tmp_path: Path, fault: Callable[[Path], Any]) -> None:
    """Locked, gone, or on a disk that is full: calls begin, talk and end as ever, the log says so
    once, and when it is back every call is in it."""
    folder = tmp_path / "data"
    with small_disk(folder) if fault is full else folder_made(folder):
        more = f'[records]\nurl = "sqlite:///{folder}/calls.db"\n'
        async with running(SERVE, tmp_path, more=more) as it:
            async with it.call() as (phone, _):
                await phone.hang_up()
            await until(lambda: outcomes(folder) == ["caller_hung_up"])
            waits: list[float] = []
            with fault(folder):
                for _ in range(2):
                    began = trio.current_time()
                    async with it.call() as (phone, _):
                        waits.append(trio.current_time() - began)
                        await phone.hang_up()
                await it.logged("call ended", 3)
                trouble = await it.logged("records wait in the spool")
            back = trio.current_time()
            await until(lambda: outcomes(folder) == ["caller_hung_up"] * 3)
            written = trio.current_time() - back
            assert len(it.find("event loop stalled")) <= len(waits)
            assert it.find("records lost") == []
    show(f"database {fault.__name__}", calls=len(waits), **spread(waits), written_after=written)
    assert trouble["level"] in ("warning", "error")


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    folder.mkdir()
    yield


# ---- the clock -----------------------------------------------------------------------------------


class WallClock:
    """The wall clock of one process, which can be set; its monotonic clock stays the machine's."""

    def __init__(self, folder: Path) -> None:
        libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        if not libraries:
            pytest.skip("Debian's faketime is not installed; deploy/setup test does")
        self._file = folder / "clock"
        self.env = {
            "LD_PRELOAD": libraries[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set("+0")

    def set(self, offset: str) -> None:
        """Step to so much from now, such as "+2d" or "-3h"."""
        new = self._file.with_suffix(".new")
        new.write_text(offset)
        new.replace(self._file)


async def test_the_wall_clock_steps(tmp_path: Path) -> None:
    """A day forward and two back in mid-call: the call does not notice, its length is the one the
    caller had, and new calls are answered; then 40 days on, the records that are too old go."""
    clock = WallClock(tmp_path)
    folder = tmp_path / "recordings"
    more = (
        f'[records]\nurl = "sqlite:///{tmp_path}/calls.db"\nrecordings = "{folder}"\n'
        "retention_days = 30\n"
    )
    async with running(SERVE, tmp_path, more=more, env=clock.env) as it:
        async with it.call() as (phone, session):
            began = trio.current_time()
            for offset in ("+1d", "-1d"):
                clock.set(offset)
                await talk(phone, session)
                async with it.call() as (another, _):
                    await another.hang_up()
            await phone.hang_up()
        seconds = trio.current_time() - began
        line = next(one for one in await ended(it, 3) if one["call_sid"] == phone.call_sid)
        assert seconds <= line["seconds"] <= seconds + 10
        assert {one["outcome"] for one in it.find("call ended")} == {"caller_hung_up"}
        stamps = [one["time"][:10] for one in it.lines]
        await until(lambda: outcomes(tmp_path) == ["caller_hung_up"] * 3)
        days = sorted(set(stamps))
        assert len(days) >= 3, "the log has the clock's time"
        it.signal(15)
        assert await it.ended() == 0
    assert len(list(folder.glob("*.wav"))) == 3
    show("clock step", steps="+1 d, -2 d", real=seconds, in_log=line["seconds"])

    clock.set("+40d")
    async with running(SERVE, tmp_path, more=more, env=clock.env) as it:
        deleted = await it.logged("old records deleted")
    assert (deleted["calls"], deleted["recordings"]) == (3, 3)
    assert outcomes(tmp_path) == []
    assert list(folder.glob("*.wav")) == []
    show("retention, 40 days on", calls_deleted=3, recordings_deleted=3)


async def ended(it: Server, number: int) -> list[dict[str, Any]]:
    await it.logged("call ended", number)
    return it.find("call ended")


# ---- descriptors ---------------------------------------------------------------------------------


@asynccontextmanager
async def idle_connections(address: str, number: int) -> AsyncIterator[list[trio.SocketStream]]:
    host, _, port = address.removeprefix("http://").partition(":")
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(number):
            stream = await trio.open_tcp_stream(host, int(port))
            streams.append(await stack.enter_async_context(stream))
        yield streams


async def test_strangers_hold_more_connections_than_there_is_room_for(tmp_path: Path) -> None:
    """Those that have asked for nothing longest have to go: the live call does not notice, and the
    next begins as ever."""
    prefix = ("sh", "-c", 'ulimit -n 256; exec "$@"', "sh")
    async with running(SERVE, tmp_path, prefix=prefix) as it, it.call() as (phone, session):
        async with idle_connections(it.base_url, 512):
            await talk(phone, session)
            began = trio.current_time()
            async with it.call() as (another, _):
                during = trio.current_time() - began
                await another.hang_up()
        await talk(phone, session)
        await phone.hang_up()
        await ended(it, 2)
    assert it.find("accept returned") == []
    show("512 strangers, 256 descriptors", call_under_way_after=during)


async def test_descriptors_run_out(tmp_path: Path) -> None:
    """Not one is left: the live call goes on, nothing is accepted, and when the strangers have gone
    the server accepts again by itself."""
    async with running(SERVE, tmp_path) as it, it.call() as (phone, session):
        pid = it.process.pid
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        files = len(os.listdir(f"/proc/{pid}/fd")) + 8
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (files, hard))
        async with idle_connections(it.base_url, 30):
            await it.logged("accept returned EMFILE")
            await talk(phone, session)
        began = trio.current_time()
        await answers(it)
        async with it.call() as (another, _):
            after = trio.current_time() - began
            await another.hang_up()
        await talk(phone, session)
        await phone.hang_up()
        await ended(it, 2)
    failed = len(it.find("accept returned EMFILE"))
    show("no descriptor left", call_afterwards=after, accepts_failed=failed)


async def answers(it: Server) -> None:
    """Wait until the server answers a request again."""
    while True:
        with suppress(OSError, IndexError, trio.BrokenResourceError):
            with trio.move_on_after(2):
                if await it.get("/healthz") == 200:
                    return
        await trio.sleep(0.05)


# ---- somebody's function -------------------------------------------------------------------------

FUNCTIONS = '''
import time

from bridge.functions import function


@function
async def blocks() -> str:
    """Sleep without letting go of the event loop."""
    time.sleep(0.7)
    return "done"


@function
def waits() -> str:
    """Sleep in a thread."""
    time.sleep(0.7)
    return "done"
'''


@pytest.mark.parametrize("name", ["blocks", "waits"])
async def test_a_function_that_blocks(tmp_path: Path, name: str) -> None:
    """A plain one blocks a thread and nobody else. An async one stops every call of its process for
    as long: the watchdog names the line while it lasts, and afterwards both calls go on."""
    (tmp_path / "my_functions.py").write_text(FUNCTIONS)
    more = '[functions]\nmodule = "my_functions"\n'
    done: list[float] = []

    async def script(session: AgentSession) -> None:
        if session.number == 1:
            await asked.wait()
            began = trio.current_time()
            (call,) = await session.call_functions([{"name": name, "arguments": "{}"}])
            assert json.loads(call.response or "") == "done"
            done.append(trio.current_time() - began)

    asked = trio.Event()
    agent = SimulatedAgent(script, QUIET)
    async with (
        running(SERVE, tmp_path, agent=agent, more=more, env={"PYTHONPATH": str(tmp_path)}) as it,
        it.call() as (phone, _),
        it.call() as (other, others),
    ):
        before = len(it.find("event loop stalled"))
        asked.set()
        began = trio.current_time()
        await talk(other, others)
        took = trio.current_time() - began
        await until(lambda: done)
        await talk(other, others)
        await phone.hang_up()
        await other.hang_up()
        await ended(it, 2)
    stalls = [line for line in it.find("event loop stalled")[before:] if "blocks" in line["stack"]]
    assert len(stalls) == (name == "blocks")
    assert {line["outcome"] for line in it.find("call ended")} == {"caller_hung_up"}
    show(f"function that {name}", answered_after=done[0], others_talked_in=took)
