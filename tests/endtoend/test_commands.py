"""The commands as an operator runs them: real processes, a working directory of their own, and what
they print.

Nothing here looks inside a server; what it did is seen by its agent, by its callers and in its
output.
"""

from __future__ import annotations

import array
import bisect
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from bridge.testing.agent.server import AgentSession, SimulatedAgent
from bridge.testing.phone.phone import SimulatedPhone
from tests.ports import free_port
from tests.world import QUIET

# However slow the machine is: an interpreter starts and imports a web framework in this time, and
# a server with nothing to do ends.
START_SECONDS = 60.0
END_SECONDS = 30.0
# A whole call of some seconds, with a process that has to start for it.
CALL_SECONDS = 120.0

# `call.frame_ms` in the test of edits: far enough apart to be told from each other.
FRAMES = (20, 60, 240)

KEY = "dg-key-5EC237-0123456789abcdef"
TOKEN = "tw-token-5EC237-fedcba9876543210"

_SCRIPT = Path(sys.executable).with_name("bridge")
BRIDGE = (
    [str(_SCRIPT)]
    if _SCRIPT.exists()
    else [
        sys.executable,
        "-c",
        "import sys; sys.argv[0] = 'bridge'; from bridge.cli import main; main()",
    ]
)
HYPERCORN = [sys.executable, "-m", "hypercorn", "--worker-class", "trio"]

# The two ways to run the server, given the address to bind.
SERVERS: dict[str, Callable[[str], list[str]]] = {
    "bridge serve": lambda bind: [*BRIDGE, "serve", "--bind", bind],
    "hypercorn": lambda bind: [*HYPERCORN, "--bind", bind, "bridge.asgi:app"],
}
either_server = pytest.mark.parametrize("server", list(SERVERS))

# An agent that does not greet, and repeats what it hears as soon as it has heard it.
ECHO_SCRIPT = """
greeting = ""
repeat = true
[behaviour]
require_key = false
[[turns]]
audio = "echo"
"""


class Running:
    """A process that was started; what it has printed so far can be read at any time."""

    def __init__(self, process: trio.Process, output: Path) -> None:
        self._output = output
        self.process = process

    @property
    def stdout(self) -> str:
        return self._output.with_suffix(".out").read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._output.with_suffix(".err").read_text(encoding="utf-8")

    async def ended(self, seconds: float = END_SECONDS) -> int:
        """Wait for the process to end; its exit code."""
        with trio.fail_after(seconds):
            return await self.process.wait()


class Commands:
    """Starts commands in a working directory, with an environment in which only `env` is ours."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = env
        self._started: list[Running] = []

    @asynccontextmanager
    async def start(self, *command: str, **env: str) -> AsyncIterator[Running]:
        """Run a command in the background; at the end it is killed if it has not ended."""
        output = self.folder / f"process-{len(self._started)}"
        # To files, which nobody has to read for a process to go on, and which outlive it.
        with (
            output.with_suffix(".out").open("wb") as out,
            output.with_suffix(".err").open("wb") as err,
        ):
            process = await trio.lowlevel.open_process(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.folder,
                env={**self.env, **env},
                start_new_session=True,  # a group of its own: hypercorn has a process per worker
            )
        running = Running(process, output)
        self._started.append(running)
        try:
            yield running
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with trio.move_on_after(10, shield=True):
                    await process.wait()

    async def run(self, *command: str, **env: str) -> Running:
        """Run a command to its end."""
        async with self.start(*command, **env) as running:
            await running.ended(CALL_SECONDS)
        return running

    @asynccontextmanager
    async def serve(self, server: str, **env: str) -> AsyncIterator[tuple[Running, str]]:
        """Run a server until it takes connections; gives it and the address to call."""
        port = free_port()
        async with self.start(*SERVERS[server](f"127.0.0.1:{port}"), **env) as running:
            await listening(port, running)
            yield running, f"http://127.0.0.1:{port}"

    def write(self, name: str, text: str) -> Path:
        """Write a file whole, in one step, as editors do."""
        path, new = self.folder / name, self.folder / f"{name}.new"
        new.write_text(text, encoding="utf-8")
        new.replace(path)
        return path

    @property
    def output(self) -> str:
        """Everything that anything printed."""
        return "".join(running.stdout + running.stderr for running in self._started)


async def listening(port: int, running: Running) -> None:
    """Wait until a process takes connections.

    By trying, again and again: another process has no other way to tell that holds for every
    server alike.
    """
    with trio.fail_after(START_SECONDS):
        while True:
            with suppress(OSError):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                await stream.aclose()
                return
            assert running.process.poll() is None, f"ended early:\n{running.stderr}"
            await trio.sleep(0.05)


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    ours = ("BRIDGE_", "DEEPGRAM_", "TWILIO_", "PYTEST_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # Servers check what comes from Twilio, and phones sign it.
    return Commands(tmp_path, {**env, "TWILIO_AUTH_TOKEN": TOKEN})


def configuration(agent_port: int, more: str = "", greeting: str = "") -> str:
    url = f"ws://127.0.0.1:{agent_port}/v1/agent/converse"
    return f'[deepgram]\nurl = "{url}"\n{more}\n[agent]\ngreeting = "{greeting}"\n'


def write_tone(path: Path, seconds: float) -> None:
    """A recording that is heard as speech, in a shape that no phone has: 16 kHz, stereo."""
    rate = 16_000
    samples = array.array("h")
    for n in range(round(rate * seconds)):
        value = round(12_000 * math.sin(2 * math.pi * 440 * n / rate))
        samples.extend((value, value))
    if sys.byteorder == "big":
        samples.byteswap()
    with wave.open(str(path), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())


def read_heard(path: Path) -> array.array[int]:
    """The samples of what a caller heard, which is a WAV that any player opens."""
    with wave.open(str(path), "rb") as recording:
        assert recording.getframerate() == 8000
        assert recording.getnchannels() == 1
        assert recording.getsampwidth() == 2
        samples = array.array("h", recording.readframes(recording.getnframes()))
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


# ---- a call, as in the README -------------------------------------------------------------------


@either_server
async def test_speech_goes_in_and_an_answer_comes_out(commands: Commands, server: str) -> None:
    """Three processes and no accounts: an agent, a server, a phone with a recording."""
    agent_port = free_port()
    config = commands.write("elsewhere.toml", configuration(agent_port))
    commands.write("echo.toml", ECHO_SCRIPT)
    write_tone(commands.folder / "speech.wav", 0.8)
    agent = [*BRIDGE, "agent", "--port", str(agent_port), "--script", "echo.toml"]
    async with (
        commands.start(*agent) as agent_process,
        commands.serve(server, BRIDGE_CONFIG=str(config)) as (server_process, url),
    ):
        await listening(agent_port, agent_process)
        call = ["speech.wav", "--url", url, "--wait", "0", "--save", "heard.wav", "--json"]
        phone = await commands.run(*BRIDGE, "phone", *call)
        server_process.process.terminate()
        await server_process.ended()
    assert phone.process.returncode == 0, phone.stderr
    result = json.loads(phone.stdout)
    assert result["faults"] == []
    assert result["ending"] == "caller_hung_up", server_process.stderr
    assert {turn["who"] for turn in result["turns"]} == {"caller", "agent"}
    heard = read_heard(commands.folder / "heard.wav")
    # The tone, which the agent gave back: for most of its length, and about as loud.
    assert sum(abs(sample) > 2000 for sample in heard) > 8000 * 0.8 / 2
    assert max(heard) < 16_000
    assert server_process.stderr.count("call started") == 1
    assert "outcome=caller_hung_up" in server_process.stderr
    assert "Traceback" not in commands.output


async def test_the_built_in_agent_greets_and_repeats(commands: Commands) -> None:
    """`bridge agent --echo`, and a phone that lets it greet first; nothing is configured but where
    the agent is."""
    agent_port = free_port()
    commands.write("config.toml", configuration(agent_port))
    write_tone(commands.folder / "speech.wav", 0.6)
    async with (
        commands.start(*BRIDGE, "agent", "--echo", "--port", str(agent_port)) as agent_process,
        commands.serve("bridge serve") as (_, url),
    ):
        await listening(agent_port, agent_process)
        phone = await commands.run(*BRIDGE, "phone", "speech.wav", "--url", url, "--json")
        agent_process.process.send_signal(signal.SIGINT)
        assert await agent_process.ended() == 130
    assert phone.process.returncode == 0, phone.stderr
    order = [turn["who"] for turn in json.loads(phone.stdout)["turns"]]
    assert order[0] == "agent"
    assert "caller" in order
    assert order[-1] == "agent"
    assert "Traceback" not in commands.output


async def test_the_agent_takes_any_free_port_and_says_which(commands: Commands) -> None:
    async with commands.start(*BRIDGE, "agent", "--echo", "--port", "0") as agent:
        with trio.fail_after(START_SECONDS):
            while 'converse"\n' not in agent.stderr:  # as in `listening`
                assert agent.process.poll() is None, agent.stderr
                await trio.sleep(0.05)
        port = int(agent.stderr.partition("ws://127.0.0.1:")[2].partition("/")[0])
        await listening(port, agent)
        agent.process.terminate()
        assert await agent.ended() == 0


# ---- a configuration that cannot be used --------------------------------------------------------

LOCAL = '[deepgram]\nurl = "ws://127.0.0.1:9/"\n'

WRONG = {
    "no key for a remote agent": (
        '[server]\npublic_url = ""\n',
        {},
        ["DEEPGRAM_API_KEY", "set it", "bridge agent"],
    ),
    "no file": (None, {}, ["config.toml", "no such file", "BRIDGE_CONFIG"]),
    "not TOML": (
        LOCAL + "[call]\nframe_ms = \n",
        {},
        ["config.toml", "line 4", "not valid TOML"],
    ),
    "an unknown key": (
        LOCAL + "[call]\nframe_mss = 60\n",
        {},
        ["config.toml", "call.frame_mss", "unknown key", "did you mean frame_ms?"],
    ),
}


@either_server
@pytest.mark.parametrize("case", list(WRONG))
async def test_a_server_that_cannot_work_says_why_in_one_line(
    commands: Commands, server: str, case: str
) -> None:
    """Where, what and how to correct it; no traceback, nothing else, and it does not go on. More
    that can be wrong: tests/unit/cli/test_serve_command.py and tests/unit/config."""
    text, env, words = WRONG[case]
    if text is not None:
        commands.write("config.toml", text)
    async with commands.start(*SERVERS[server]("127.0.0.1:0"), **env) as running:
        code = await running.ended()
    (line,) = running.stderr.splitlines()
    assert line.startswith("bridge: ")
    assert [word for word in words if word not in line] == []
    assert KEY not in line
    assert running.stdout == ""
    if server == "bridge serve":
        assert code == 2  # hypercorn's own is always 0 with one worker


async def test_an_address_that_is_taken_is_said_in_one_line(commands: Commands) -> None:
    commands.write("config.toml", LOCAL)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        running = await commands.run(*SERVERS["bridge serve"](bind))
    assert running.process.returncode == 1
    (line,) = running.stderr.splitlines()
    assert line.startswith(f"bridge: cannot listen on {bind}: ")


# ---- editing the configuration under a running server -------------------------------------------


async def call(url: str, agent: SimulatedAgent, number: int) -> AgentSession:
    """Make a call, the agent's so-and-so-many-th: say a little, hang up; the agent's side of it."""
    with trio.fail_after(CALL_SECONDS):
        async with SimulatedPhone(strict=True, auth_token=TOKEN).place_call(url) as phone:
            session = await agent.wait_for_session(number)
            await session.applied.wait()
            # Long enough for several of the longest frames.
            await phone.say(bytes(range(200)) * 60)
            await phone.hang_up()
        await agent.wait_until_idle()
    return session


def frame_of(session: AgentSession) -> int:
    """Milliseconds of the pieces that most of the audio came to the agent in, to the next of those
    that the test sets: a frame is what came meanwhile, the first of all is shorter, and on a slow
    machine some are longer."""
    sizes = sorted(size for _, size in session.audio_log)
    so_far = list(itertools.accumulate(sizes))
    usual = sizes[bisect.bisect(so_far, so_far[-1] / 2)] / 8
    return min(FRAMES, key=lambda frame: abs(frame - usual))


def greeting_of(session: AgentSession) -> str:
    assert session.settings is not None
    greeting: str = session.settings["agent"]["greeting"]
    return greeting


@either_server
async def test_an_edit_takes_effect_with_the_next_call(
    commands: Commands, server: str, nursery: trio.Nursery
) -> None:
    """And a broken one with none: it is reported once, and the last good one stays in force."""
    agent = SimulatedAgent(behaviour=QUIET)
    port = await nursery.start(agent.serve)

    def edit(greeting: str, frame_ms: Any) -> None:
        more = f"[call]\nframe_ms = {frame_ms}\n"
        commands.write("config.toml", configuration(port, more, greeting))

    edit("first", 240)
    async with commands.serve(server, DEEPGRAM_API_KEY=KEY) as (running, url):
        sessions = [await call(url, agent, 1)]
        edit("second", 20)
        sessions.append(await call(url, agent, 2))
        edit("broken", '"twenty"')
        sessions.append(await call(url, agent, 3))
        sessions.append(await call(url, agent, 4))
        edit("mended", 60)
        sessions.append(await call(url, agent, 5))
        (commands.folder / "config.toml").unlink()
        sessions.append(await call(url, agent, 6))
        running.process.terminate()
        await running.ended()
    assert [(greeting_of(session), frame_of(session)) for session in sessions] == [
        ("first", 240),
        ("second", 20),
        ("second", 20),
        ("second", 20),
        ("mended", 60),
        ("mended", 60),
    ]
    assert [session.faults for session in sessions] == [[]] * 6
    complaints = [line for line in running.stderr.splitlines() if "error" in line.split()]
    assert len(complaints) == 2, running.stderr
    assert "call.frame_ms" in complaints[0]
    assert "no such file" in complaints[1]
    assert "Traceback" not in running.stderr


# ---- stopping -----------------------------------------------------------------------------------


# With calls, and with more processes: test_signals.
@pytest.mark.parametrize(
    ("server", "number", "code"),
    [("bridge serve", signal.SIGTERM, 0), ("hypercorn", signal.SIGINT, 0)],
)
async def test_an_idle_server_stops_when_told(
    commands: Commands, server: str, number: signal.Signals, code: int
) -> None:
    commands.write("config.toml", LOCAL)
    async with commands.serve(server) as (running, url):
        await healthy(url)
        running.process.send_signal(number)
        assert await running.ended() == code
    assert "Traceback" not in running.stderr


async def healthy(url: str) -> None:
    """A request is answered: the server has come all the way up."""
    stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
    async with stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        answer = b"".join([part async for part in stream])
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"ok\n")


# ---- usage --------------------------------------------------------------------------------------


async def test_help_explains_itself(commands: Commands) -> None:
    """Each command's own: tests/unit/cli/test_main.py."""
    whole = await commands.run(*BRIDGE, "--help")
    assert whole.process.returncode == 0
    assert whole.stderr == ""
    listed = whole.stdout.partition("Commands:")[2].split("\n")
    names = [line.split()[0] for line in listed if line.strip()]
    assert {"serve", "phone", "agent"} <= set(names)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["serve", "--nonsense"],
        ["serve", "nonsense"],
        ["phone", "--url", "nonsense"],
        ["phone", "nonsense.wav"],
        ["agent", "--port", "nonsense"],
        ["agent", "--script", "nonsense.toml"],
    ],
)
async def test_wrong_usage_is_exit_code_2_and_names_what_is_wrong(
    commands: Commands, arguments: list[str]
) -> None:
    running = await commands.run(*BRIDGE, *arguments)
    assert running.process.returncode == 2
    assert running.stdout == ""
    assert "nonsense" in running.stderr.splitlines()[-1]
    assert "Traceback" not in running.stderr


async def test_a_phone_without_a_server_fails_in_one_line(commands: Commands) -> None:
    """Progress comes before it; the reason is the last line, and the only one of its kind."""
    running = await commands.run(*BRIDGE, "phone", "--url", "http://127.0.0.1:1")
    assert running.process.returncode == 1
    assert running.stdout == ""
    (line,) = [line for line in running.stderr.splitlines() if line.startswith("bridge: ")]
    assert line == running.stderr.splitlines()[-1]
    assert "http://127.0.0.1:1" in line
    assert "bridge serve" in line
    assert "Traceback" not in running.stderr


# ---- secrets ------------------------------------------------------------------------------------


async def test_no_secret_is_ever_printed(commands: Commands, nursery: trio.Nursery) -> None:
    """At the finest level, on the console, with calls that go well and calls that do not. For
    `bridge serve`, JSON and all else that is written and shown: test_secrets."""
    commands.env.update(DEEPGRAM_API_KEY=KEY, TWILIO_AUTH_TOKEN=TOKEN)

    def behaviour(number: int) -> Any:
        return REFUSES if number == 2 else QUIET

    async def script(session: AgentSession) -> None:
        await session.user_said(f"my key is {KEY}")
        if session.number == 2:
            await session.error("INVALID_AUTH", f"{KEY} is no key")

    agent = SimulatedAgent(script, behaviour)
    port = await nursery.start(agent.serve)
    logging = '[logging]\nlevel = "debug"\nformat = "console"\n'
    commands.write("config.toml", configuration(port, logging))
    write_tone(commands.folder / "speech.wav", 0.2)
    async with commands.serve("hypercorn") as (running, url):
        options = ["speech.wav", "--url", url, "--wait", "0", "--linger", "0.2"]
        for _ in range(3):  # taken, refused, failed
            await commands.run(*BRIDGE, "phone", *options)
        commands.write("config.toml", f'[deepgram]\nkey = "{KEY}"\n{TOKEN} = 1\n')
        await commands.run(*BRIDGE, "phone", *options, "--json")
        running.process.terminate()
        await running.ended()
    await commands.run(*BRIDGE, "serve", "--bind", "127.0.0.1:0")
    assert agent.connections >= 4  # a failed session is tried again
    assert [session.authorization for session in agent.sessions] == [f"Token {KEY}"] * agent.opened
    assert running.stderr.count("call ended") == 4
    assert "my key is [secret]" in running.stderr  # the line was there to be read
    assert KEY not in commands.output
    assert TOKEN not in commands.output


REFUSES = type(QUIET)(reject_status=401, reject_body=f"{KEY} is no key")


@pytest.mark.parametrize("workers", ["0", "2"])
async def test_hypercorn_with_its_default_worker_says_what_is_missing(
    commands: Commands, workers: str
) -> None:
    commands.write("config.toml", configuration(9))
    command = [sys.executable, "-m", "hypercorn", "--bind", "127.0.0.1:0", "--workers", workers]
    done = await trio.run_process(
        [*command, "bridge.asgi:app"],
        capture_stderr=True,
        check=False,
        cwd=commands.folder,
        env=commands.env,
    )
    lines = set(done.stderr.decode().splitlines())
    assert lines == {
        "bridge: hypercorn runs asyncio, and this server needs Trio; add --worker-class trio"
    }
