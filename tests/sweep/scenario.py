"""One short call through the whole stack, repeatable to the last scheduling step, with one fault.

Trio's scheduler shuffles tasks; seeded, it shuffles them the same way each time (as Trio's own test
of determinism does it). So a step is a number: count the steps of a run once, and any later run
can be made to differ from it at exactly that step and nowhere before. An instrument counts the
steps and injects the fault.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import outcome
import structlog
import trio
import trio.testing
from trio._core import _run
from trio_websocket import ConnectionClosed, HandshakeError

from bridge.call.call import Call
from bridge.config.file import FixedConfig
from bridge.deepgram.prewarm import GIVE_BACK_SECONDS, HOLD_SECONDS
from bridge.functions import Functions, PhoneCall, function
from bridge.http.app import create_app
from bridge.server.serve import hypercorn_config
from bridge.testing.agent.server import AgentSession, Behaviour, SimulatedAgent
from tests.world import (
    QUIET,
    SECRETS,
    open_media_socket,
    serve_connection,
    settings,
    start_message,
)

Fault = Literal["cancel", "raise", "lose phone", "lose agent"]

# Bound on virtual time for everything in a run; a run that needs it has lost its way.
GUARD_SECONDS = 200.0

# The call's own tasks, by the names bridge gives them. An exception injected into one is a bug in
# our code, in the library's reader, or in a user's function.
CALL_TASKS = frozenset(
    {
        *("receiver", "sender", "agent reader"),
        *("timekeeper", "silence", "typed input", "function call", "actions"),
    }
)


class Boom(Exception):
    """The injected exception."""


NUMBERS = itertools.count(1)


@dataclass
class Run:
    """What is known after one run."""

    call_sid: str = field(default_factory=lambda: f"CA{next(NUMBERS):032x}")
    """Another one for each run: a call is continued by a stream of the same SID."""
    steps: list[str] = field(default_factory=list)
    """The names of the tasks in the order of their steps, while the call was on."""
    injected_at: float | None = None
    injected_into: str = ""
    outcome_then: str | None = None
    """The call's outcome when the fault was injected: what had been recorded cannot change."""
    agent_ready: bool = False
    """A session was open when the fault was injected."""
    stop_sent: bool = False
    stop_sent_then: bool = False
    """The caller had hung up when the fault was injected."""
    heard_again_at: float | None = None
    """When the caller first heard a session that replaced a lost one."""
    agent_connected: bool = False
    function_answers: list[str] = field(default_factory=list)
    """What the agent was answered when it called the function."""
    outcomes: list[str] = field(default_factory=list)
    """Of every line that says a call ended."""
    call_ended_at: float = 0.0
    connection_ended_at: float = 0.0
    live_calls: int = 0
    open_sessions: int = 0
    agent_streams_open: int = 0
    answered: bool = False
    """The phone's websocket is open."""
    phone_told: bool = False
    """The phone's socket ended: it saw a Close frame or the end of the stream."""
    guard_hit: bool = False
    error: BaseException | None = None
    tracebacks: int = 0
    began: bool = False


class Injector(trio.abc.Instrument):
    """Counts the steps of all tasks from `start` to `stop`, and acts at one of them."""

    def __init__(self, run: Run, at: int | None, only: frozenset[str] | None) -> None:
        self._run = run
        self._at = at
        self._only = only
        self.act: Callable[[trio.lowlevel.Task], None] = lambda task: None
        self.again: Callable[[trio.lowlevel.Task], None] = lambda task: None
        self.gap: int | None = None
        self.on = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self.on:
            return
        name = task.name.rsplit(".", 1)[-1]
        if self._only is not None and name not in self._only:
            return
        if self._at == len(self._run.steps):
            self.act(task)
        elif None not in (self._at, self.gap) and len(self._run.steps) == self._at + self.gap + 1:
            self.again(task)
        self._run.steps.append(name)


# What the agent of the run was answered.
answers: list[str] = []


LATER = b"\x44" * 160


async def script(agent: AgentSession) -> None:
    """Greeting, a reply that is interrupted, a function call, and the result spoken.

    A later session says nothing by itself but its greeting.
    """
    assert agent.settings is not None
    if agent.number > 1:
        if "greeting" in agent.settings["agent"]:
            await agent.say("Hello.", LATER)
        while True:
            await agent.wait_for_user_message()
            await agent.say("It is noon.", LATER)
    await agent.say("Hello.", b"\x11" * 320)
    await agent.wait_until(lambda: agent.received_bytes >= 480)
    await agent.user_said("What time is it?")
    await agent.say("It is a long story.", b"\x22" * 1600)
    await agent.user_started_speaking()
    await agent.user_said("No, the time.")
    called = await agent.call_functions([{"name": "get_time", "arguments": "{}"}], timeout=5)
    answers.extend(str(call.response) for call in called)
    await agent.say("It is noon.", b"\x33" * 160)


FRIENDLY: Behaviour = QUIET
STUBBORN = msgspec.structs.replace(QUIET, answers_close=False, chunk_bytes=(333,), speed=0.0)


async def phone(run: Run, stream: trio.abc.Stream, *, polite: bool) -> None:
    """A caller in few messages: speaks, is interrupted... and hangs up when all was heard."""
    async with trio.open_nursery() as nursery:
        try:
            socket = await open_media_socket(nursery, stream, message_queue_size=64)
            run.answered = True
            await socket.send_message('{"event":"connected","protocol":"Call","version":"1.0.0"}')
            await socket.send_message(start_message(app, run.call_sid, From="+15550001111"))
            await heard(run, socket, 320)
            for _ in range(3):
                await socket.send_message(MEDIA)
            await heard(run, socket, 160, after="clear")
            run.stop_sent = True
            await socket.send_message('{"event":"stop","streamSid":"MZ1"}')
            if polite:
                await socket.aclose()
            else:
                while True:
                    await socket.get_message()
        except (ConnectionClosed, HandshakeError, trio.ClosedResourceError):
            pass
        run.phone_told = True
        nursery.cancel_scope.cancel()


MEDIA = '{"event":"media","media":{"payload":"%s"},"streamSid":"MZ1"}' % ("VVVV" * 53 + "VQ==")


# What the first session says; one byte makes each of its utterances.
FIRST = frozenset(b"\x11\x22\x33")


async def heard(run: Run, socket: Any, nbytes: int, after: str = "") -> None:
    """Read until so much audio has come, counted from the event `after` on; or, once a session was
    replaced, until the next one is heard."""
    waiting, count = bool(after), 0
    while count < nbytes and run.heard_again_at is None:
        message = json.loads(await socket.get_message())
        if message["event"] == after:
            waiting, count = False, 0
        elif message["event"] == "media":
            audio = base64.b64decode(message["media"]["payload"])
            count += 0 if waiting else len(audio)
            if not FIRST.issuperset(audio):
                run.heard_again_at = trio.current_time()
        elif message["event"] == "mark":
            await socket.send_message(json.dumps(message))


@function
async def get_time(call: PhoneCall) -> str:
    """Tell the time, after thinking for a while."""
    call.update(prompt="It is noon.")
    await trio.sleep(0.01)
    return "12:00"


# A try at reaching the agent, and no second one: the fault is the end of the call...
ONCE = settings(deepgram={"max_reconnects": 0, "connect_budget": 0.1})
# ...or it is not, because the agent is called again.
AGAIN = settings(
    deepgram={"max_reconnects": 2, "connect_budget": 8.0}, agent={"greeting": "Hello."}
)
# ...or it has begun before the call, and a call that finds it lost opens its own.
WARM = settings(deepgram={"max_reconnects": 0, "connect_budget": 0.1, "prewarm": True})

app = create_app(FixedConfig(ONCE), SECRETS)
bridge = app.extensions["bridge"]


def play(
    fault: Fault | None = None,
    at: int | None = None,
    *,
    behaviour: Behaviour = FRIENDLY,
    polite: bool = True,
    seed: int = 0,
    second: tuple[Fault, int] | None = None,
    reconnect: bool = False,
    warm: bool = False,
) -> Run:
    """Play the call, with `fault` at step `at` if given; `polite` phones close their socket.

    `second` is another fault, so many steps after the first. With `reconnect` a lost agent is
    called again; with `warm` its session is opened at the webhook, which came just before.
    """
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
    _run._r.seed(seed)
    random.seed(seed)
    answers.clear()
    run = Run()
    injector = Injector(run, at, CALL_TASKS if fault == "raise" else None)

    def log(_logger: Any, _method: str, line: Any) -> Any:
        run.tracebacks += "exc_info" in line
        if line["event"] == "call ended":
            run.outcomes.append(line["outcome"])
            run.call_ended_at = trio.current_time()
        raise structlog.DropEvent

    async def main() -> None:
        if not bridge._prepared:
            await app.startup()
            bridge.functions.loaded[""] = Functions.of(get_time)
        # Each run is a call's first leg.
        bridge.recorder._known.clear()
        # Whatever test ran before may have left the log configured for its own output.
        structlog.configure(processors=[log])
        with trio.move_on_after(GUARD_SECONDS) as guard:
            async with trio.open_nursery() as nursery:
                await world(nursery)
        run.guard_hit = guard.cancelled_caught
        run.live_calls += len(bridge.calls) + len(bridge.entrance.slots)

    async def world(nursery: trio.Nursery) -> None:
        agent = SimulatedAgent(script, behaviour)
        agent_streams: list[tuple[Any, Any]] = []

        async def to_agent(target: object) -> trio.abc.Stream:
            ours, theirs = trio.testing.memory_stream_pair()
            agent_streams.append((ours, theirs))
            nursery.start_soon(agent.serve_stream, theirs)
            return ours

        bridge.setup.open_stream = to_agent
        using = WARM if warm else AGAIN if reconnect else ONCE
        bridge._config = FixedConfig(using)
        bridge.prewarming.nursery = nursery
        bridge.prewarm(using, run.call_sid, {"From": "+15550001111"})
        phone_end, server_end = trio.testing.memory_stream_pair()
        server_scope, phone_scope = trio.CancelScope(), trio.CancelScope()

        def inject(task: trio.lowlevel.Task) -> None:
            calls: list[Call] = list(bridge.calls)
            recorded = calls[0].report.outcome if calls else (run.outcomes or [None])[0]
            run.injected_at = trio.current_time()
            run.injected_into = task.name.rsplit(".", 1)[-1]
            run.outcome_then = None if recorded is None else str(recorded)
            run.began = bool(calls)
            run.agent_ready = bool(calls) and calls[0].has_had_agent
            run.agent_connected = bool(agent_streams)
            run.stop_sent_then = run.stop_sent
            strike(fault, task)

        def strike(kind: Fault | None, task: trio.lowlevel.Task) -> None:
            if kind == "cancel":
                server_scope.cancel(reason="sweep")
            elif kind == "lose phone":
                cut(phone_end)
                run.phone_told = True
                phone_scope.cancel()
            elif kind == "lose agent" and agent_streams:
                cut(agent_streams[-1][1])
            elif kind == "raise" and own(task) and task._next_send is not None:
                task._next_send = outcome.Error(Boom(f"step {at}"))

        if second is not None:
            injector.again = lambda task: strike(second[0], task)
            injector.gap = second[1]
        injector.act = inject
        injector.on = True

        async def serve() -> None:
            with server_scope:
                await serve_connection(app, hypercorn_config(settings()), server_end)
            # As trio.serve_listeners does. A phone whose websocket is not open yet is told by
            # that alone, and the library it uses here would not stop waiting.
            await trio.aclose_forcefully(server_end)
            if not run.answered:
                run.phone_told = True
                phone_scope.cancel()
            run.connection_ended_at = trio.current_time()
            injector.on = False

        async with trio.open_nursery() as connection:
            connection.start_soon(phone_task, run, phone_end, polite, phone_scope)
            connection.start_soon(serve)
        if warm:  # a call that never came is given up by then
            await trio.sleep(HOLD_SECONDS + GIVE_BACK_SECONDS)
            run.live_calls = len(bridge.prewarming)
        # Our sockets must be closed by now; the agent may still be waiting for a goodbye.
        run.agent_streams_open = sum(is_open(ours) for ours, _ in agent_streams)
        await trio.testing.wait_all_tasks_blocked()
        run.open_sessions = 0 if not behaviour.answers_close else agent.active
        nursery.cancel_scope.cancel()

    try:
        trio.run(
            main,
            clock=trio.testing.MockClock(autojump_threshold=0),
            instruments=[injector],
        )
    except BaseException as error:
        run.error = error
    run.function_answers = answers.copy()
    return run


async def phone_task(run: Run, stream: Any, polite: bool, scope: trio.CancelScope) -> None:
    with scope:
        try:
            await phone(run, stream, polite=polite)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, HandshakeError):
            run.phone_told = True


def is_open(stream: Any) -> bool:
    """Whether our end of a stream in memory was not closed: then it can still be written to."""
    return not stream.send_stream._outgoing._closed  # there is no public way to ask


def own(task: trio.lowlevel.Task) -> bool:
    return task.name.rsplit(".", 1)[-1] in CALL_TASKS


def cut(stream: Any) -> None:
    """Lose a connection: both directions, at once, from outside of any task."""
    stream.send_stream.close()
    stream.receive_stream.close()
