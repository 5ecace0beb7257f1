"""SIGTERM, SIGINT and sudden death: real processes, real sockets, live calls.

Draining and SIGINT are tried in every way to run the server: `bridge serve` with one process and
with two, plain hypercorn with none, one and two workers. All else is tried with two workers of
each, or where only one of them can do it.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from bridge.admission.entrance import LAME_DUCK_SECONDS
from bridge.server.stopping import SAME_REQUEST_SECONDS, SETTLE_SECONDS
from bridge.testing.agent.server import AgentSession
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.phone.twiml import ConnectStream, Hangup, Say
from tests.endtoend.servers import (
    HYPERCORN_0,
    HYPERCORN_1,
    HYPERCORN_2,
    PATIENCE,
    SERVE,
    SERVE_2,
    WORDS,
    Mode,
    Server,
    a_call_on_each,
    end_of,
    running,
    stopped,
    talk,
    write_config,
)
from tests.world import AUTH_TOKEN

ALL = [SERVE, SERVE_2, HYPERCORN_0, HYPERCORN_1, HYPERCORN_2]
TWO = [SERVE_2, HYPERCORN_2]


def modes(*wanted: Mode) -> Any:
    return pytest.mark.parametrize("mode", wanted, ids=lambda mode: mode.name)


async def draining(it: Server, workers: int) -> None:
    """Wait until so many workers drain: they take no new calls."""
    await it.logged("draining", workers, logger="bridge.server.stopping")


async def assert_refuses_calls(it: Server) -> None:
    """Those that come when every load balancer knows; /readyz has told them since `draining`."""
    assert await it.get("/readyz") == 503
    assert await it.get("/healthz") == 200
    await trio.sleep(LAME_DUCK_SECONDS)
    async with it.phone().place_call(it.base_url) as late:
        await late.wait_ended()
    assert [type(verb) for verb in late.verbs] == [Say, Hangup]
    assert late.ending == "completed"


def assert_was_shut_down(phone: SimulatedPhone) -> None:
    """The call ended from our side, and what Twilio asked then was answered."""
    assert [type(verb) for verb in phone.verbs] == [ConnectStream, Hangup]
    assert phone.ending == "completed"


def told_goodbye(session: AgentSession) -> bool:
    return any(message["type"] == "InjectAgentMessage" for _, message in session.messages)


# ---- SIGTERM ------------------------------------------------------------------------------------


@modes(SERVE_2, HYPERCORN_1)
async def test_sigterm_with_nothing_live(mode: Mode, tmp_path: Path) -> None:
    async with running(mode, tmp_path) as it:
        assert await it.get("/readyz") == 200
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0
        assert it.other == []


@pytest.mark.parametrize(
    ("mode", "everybody"),
    [*((mode, False) for mode in ALL), *((mode, True) for mode in TWO)],
    ids=lambda value: value.name if isinstance(value, Mode) else "all" if value else "one",
)
async def test_sigterm_lets_a_live_call_go_on(mode: Mode, everybody: bool, tmp_path: Path) -> None:
    """And the server ends when it ends. `everybody`: all processes get it, as from systemd."""
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            (it.signal_all if everybody else it.signal)(signal.SIGTERM)
            await draining(it, mode.workers)
            await assert_refuses_calls(it)
            await talk(phone, session)
            await phone.hang_up()
        assert await it.ended() == 0
        assert it.find("call ended") == it.find("call ended", outcome="caller_hung_up")
        assert not told_goodbye(session)
        assert it.other == []


@modes(SERVE)
async def test_a_call_is_carried_whose_webhook_was_answered_long_before_its_socket_opens(
    mode: Mode, tmp_path: Path
) -> None:
    """The server waits for what it has announced, though it has no call (B1)."""
    async with running(mode, tmp_path) as it:
        asked = False

        async def open_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
            nonlocal asked
            if asked and not it.find("draining"):
                it.signal(signal.SIGTERM)
                await draining(it, 1)
                # Longer than a server stays that expects nobody.
                await trio.sleep(LAME_DUCK_SECONDS + SETTLE_SECONDS + 1)
            asked = True
            return await trio.open_tcp_stream(host, port)

        phone = SimulatedPhone(strict=True, auth_token=AUTH_TOKEN, open_stream=open_stream)
        async with phone.place_call(it.base_url):
            session = await it.agent.wait_for_session()
            await session.applied.wait()
            await talk(phone, session)
            await phone.hang_up()
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="caller_hung_up")) == 1
        assert it.other == []


@modes(SERVE_2, HYPERCORN_1)
async def test_when_drain_seconds_are_over_the_agent_says_goodbye(
    mode: Mode, tmp_path: Path
) -> None:
    async with running(mode, tmp_path, drain_seconds=1) as it:
        async with it.call() as (phone, session):
            it.signal(signal.SIGTERM)
            await session.wait_until(lambda: told_goodbye(session))
            await phone.wait_ended()
        assert_was_shut_down(phone)
        assert phone.heard_seconds > len(WORDS) / 8000
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="server_shutdown")) == 1
        assert it.other == []


@modes(SERVE_2, HYPERCORN_0)
async def test_a_second_sigterm_ends_the_calls_at_once(mode: Mode, tmp_path: Path) -> None:
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            it.signal(signal.SIGTERM)
            await draining(it, mode.workers)
            await trio.sleep(SAME_REQUEST_SECONDS + 0.1)  # sooner, and it is the same request
            it.signal(signal.SIGTERM)
            await phone.wait_ended()
        assert_was_shut_down(phone)
        assert not told_goodbye(session)
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="server_shutdown")) == 1
        assert it.other == []


@modes(HYPERCORN_2)
async def test_hypercorns_parent_cannot_stop_its_workers_at_once(
    mode: Mode, tmp_path: Path
) -> None:
    """However often SIGTERM comes, and to whom: the call goes on."""
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            for _ in range(3):
                it.signal_all(signal.SIGTERM)
                await trio.sleep(SAME_REQUEST_SECONDS + 0.1)
            await talk(phone, session)
            await phone.hang_up()
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="caller_hung_up")) == 1


@modes(*TWO)
async def test_with_calls_on_both_workers_neither_is_cut(mode: Mode, tmp_path: Path) -> None:
    """The first worker ends when its call does. Hypercorn's parent then wants the other's end."""
    async with running(mode, tmp_path) as it, a_call_on_each(it) as (one, other):
        it.signal(signal.SIGTERM)
        await draining(it, 2)
        await talk(*one)
        await talk(*other)
        await one[0].hang_up()
        await end_of(one[2])
        await talk(*other)
        await assert_refuses_calls(it)
        await other[0].hang_up()
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="caller_hung_up")) == 2
        assert it.other == []


# ---- SIGINT -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "everybody", "status", "after_sigterm"),
    [
        (SERVE, False, 130, False),
        (SERVE_2, False, 130, False),
        (SERVE_2, True, 130, False),
        (SERVE_2, True, 130, True),
        (HYPERCORN_0, False, 0, False),
        (HYPERCORN_0, False, 0, True),
        (HYPERCORN_1, True, 0, False),
        (HYPERCORN_2, True, 0, False),
    ],
    ids=lambda value: value.name if isinstance(value, Mode) else str(value),
)
async def test_sigint_ends_the_calls_at_once(
    mode: Mode, everybody: bool, status: int, after_sigterm: bool, tmp_path: Path
) -> None:
    """`everybody`: all processes get it, as from a terminal."""
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            if after_sigterm:
                it.signal(signal.SIGTERM)
                await draining(it, mode.workers)
            (it.signal_all if everybody else it.signal)(signal.SIGINT)
            await phone.wait_ended()
        assert_was_shut_down(phone)
        assert not told_goodbye(session)
        assert await it.ended() == status
        assert len(it.find("call ended", outcome="server_shutdown")) == 1
        assert it.other == []


@modes(HYPERCORN_2)
async def test_sigint_to_hypercorns_parent_alone_drains(mode: Mode, tmp_path: Path) -> None:
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            it.signal(signal.SIGINT)
            await draining(it, mode.workers)
            await talk(phone, session)
            await phone.hang_up()
        assert await it.ended() == 0


# ---- sudden death -------------------------------------------------------------------------------


async def test_a_killed_worker_is_replaced_and_the_others_calls_go_on(tmp_path: Path) -> None:
    async with running(SERVE_2, tmp_path) as it, a_call_on_each(it) as (one, other):
        os.kill(one[2], signal.SIGKILL)
        began = trio.current_time()
        ended = await it.logged("worker ended")
        assert (ended["pid"], ended["status"]) == (one[2], -signal.SIGKILL)
        await one[0].wait_ended()
        await talk(*other)
        replacement = (await it.logged("worker serves", 3))["pid"]
        print(f"worker killed: another serves after {trio.current_time() - began:.2f} s")
        assert replacement in it.workers()
        async with stopped(other[2]), it.call() as (phone, _):
            await phone.hang_up()
        await talk(*other)
        await other[0].hang_up()
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0
        assert it.other == []


async def test_when_a_worker_of_hypercorns_is_killed_the_others_drain(tmp_path: Path) -> None:
    """Hypercorn starts no other: it ends, but not before the calls."""
    async with running(HYPERCORN_2, tmp_path) as it, a_call_on_each(it) as (one, other):
        os.kill(one[2], signal.SIGKILL)
        await draining(it, 1)
        await assert_refuses_calls(it)
        await talk(*other)
        await other[0].hang_up()
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="caller_hung_up")) == 1


@modes(HYPERCORN_2)
async def test_sighup_makes_hypercorn_drain_and_begin_anew(mode: Mode, tmp_path: Path) -> None:
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            it.signal(signal.SIGHUP)
            await draining(it, mode.workers)
            await assert_refuses_calls(it)
            await talk(phone, session)
            await phone.hang_up()
        await it.logged("Running on", 2 * mode.workers)
        assert await it.get("/readyz") == 200
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0
        assert len(it.find("call ended", outcome="caller_hung_up")) == 1


async def test_one_worker_can_be_drained_and_replaced(tmp_path: Path) -> None:
    """By hand: SIGTERM to it alone."""
    async with running(SERVE_2, tmp_path) as it, a_call_on_each(it) as (one, other):
        os.kill(one[2], signal.SIGTERM)
        await draining(it, 1)
        await talk(*one)
        await one[0].hang_up()
        ended = await it.logged("worker ended")
        assert (ended["pid"], ended["status"]) == (one[2], 0)
        await it.logged("worker serves", 3)
        await talk(*other)
        assert await it.get("/readyz") == 200
        await other[0].hang_up()
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0


@modes(*TWO)
async def test_workers_drain_and_end_when_their_parent_is_killed(
    mode: Mode, tmp_path: Path
) -> None:
    async with running(mode, tmp_path) as it:
        async with it.call() as (phone, session):
            it.signal(signal.SIGKILL)
            await draining(it, mode.workers)
            await assert_refuses_calls(it)
            await talk(phone, session)
            await phone.hang_up()
        assert await it.ended() == -signal.SIGKILL
        assert len(it.find("call ended", outcome="caller_hung_up")) == 1


async def test_a_worker_that_hangs_does_not_hold_the_server(tmp_path: Path) -> None:
    """It can do nothing at all, and is killed when its time is over."""
    async with running(SERVE_2, tmp_path) as it, stopped(it.workers()[0]):
        it.signal(signal.SIGINT)
        assert await it.ended() == 130
        assert len(it.find("worker took too long; killing it")) == 1


# ---- what cannot be served ----------------------------------------------------------------------


async def end_of_serve(folder: Path) -> tuple[int, list[str]]:
    """Run `bridge serve` to its end; its status and what it wrote."""
    result = await trio.run_process(
        SERVE.command(),
        capture_stderr=True,
        check=False,
        cwd=folder,
        env={
            "DEEPGRAM_API_KEY": "dg-test-key-0123456789",
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
            "PATH": os.environ.get("PATH", ""),
        },
    )
    return result.returncode, result.stderr.decode().splitlines()


@modes(SERVE, SERVE_2)
async def test_an_address_in_use_is_a_failure_in_one_line(mode: Mode, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        write_config(tmp_path, 9, mode, bind=address)
        with trio.fail_after(PATIENCE):
            status, lines = await end_of_serve(tmp_path)
    assert status == 1
    assert [line for line in lines if not line.startswith("{")] == [
        f"bridge: cannot listen on {address}: Address already in use; choose another with --bind"
    ]


@modes(SERVE, SERVE_2)
async def test_a_broken_configuration_is_reported_once(mode: Mode, tmp_path: Path) -> None:
    write_config(tmp_path, 9, mode, drain_secondz=1)
    with trio.fail_after(PATIENCE):
        status, lines = await end_of_serve(tmp_path)
    assert status == 2
    (line,) = lines
    assert line.startswith("bridge: config.toml")
    assert "drain_seconds" in line


async def test_a_broken_edit_ends_no_call_and_can_be_corrected(tmp_path: Path) -> None:
    """Also when a worker dies before anybody notices: the others serve, and starts are tried."""
    async with running(SERVE_2, tmp_path) as it, a_call_on_each(it) as (one, other):
        config = tmp_path / "config.toml"
        good = config.read_text()
        config.write_text("[server\n")
        os.kill(one[2], signal.SIGKILL)
        await it.logged("worker ended", status=2)
        await talk(*other)
        config.write_text(good)
        await it.logged("worker serves", 3)
        await other[0].hang_up()
        it.signal(signal.SIGTERM)
        assert await it.ended() == 0
        assert {line.partition(":")[0] for line in it.other} == {"bridge"}
