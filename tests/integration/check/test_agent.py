"""The agent's refusals, each with its remedy."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import SplitResult

import msgspec
import pytest
import trio
import trustme

from bridge.check.agent import check_agents, check_names, hosts
from bridge.config.secrets import Secrets
from bridge.config.settings import Settings
from bridge.testing.agent.server import AgentSession, Behaviour, SimulatedAgent, silent
from tests.world import QUIET, SECRETS, settings

GREETS = msgspec.structs.replace(QUIET, greeting=None)


@asynccontextmanager
async def agent(
    behaviour: Behaviour | Callable[[int], Behaviour] = GREETS, script=silent
) -> AsyncIterator[tuple[SimulatedAgent, str]]:
    """A simulated agent, and its address."""
    async with trio.open_nursery() as nursery:
        made = SimulatedAgent(script, behaviour)
        port = await nursery.start(made.serve)
        yield made, f"ws://127.0.0.1:{port}/v1/agent/converse"
        nursery.cancel_scope.cancel(reason="the test is over")


def using(url: str, **tables) -> Settings:
    deepgram = {"url": url, "connect_timeout": 10.0}
    return settings(deepgram=deepgram, **{"agent": {"greeting": "Hello!"}, **tables})


async def only(url: str, secrets: Secrets = SECRETS, **tables):
    """The one finding."""
    (finding,) = await check_agents(using(url, **tables), secrets)
    return finding


async def test_all_is_well():
    async with agent() as (made, url):
        found = await only(url)
        await made.wait_until_idle()
    assert (found.check, found.status) == ("agent", "ok")
    assert "heard: the greeting" in found.what
    [session] = made.sessions
    # As for a call: the phone's audio, and the functions the agent may call.
    assert session.settings["audio"]["input"]["encoding"] == "mulaw"
    names = [one["name"] for one in session.settings["agent"]["think"]["functions"]]
    assert names == ["end_call"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "DEEPGRAM_API_KEY"),
        (402, "credit"),
        (403, "access"),
        (404, "deepgram.url"),
        (429, "sessions"),
        (503, "try again later"),
    ],
)
async def test_the_session_is_refused(status, words):
    async with agent(msgspec.structs.replace(GREETS, reject_status=status)) as (_, url):
        found = await only(url)
    assert found.status == "wrong"
    assert str(status) in found.why
    assert words in found.remedy


async def test_the_settings_are_refused_in_the_agents_own_words():
    refuses = msgspec.structs.replace(GREETS, settings_error="INVALID_SETTINGS")
    async with agent(refuses) as (_, url):
        found = await only(url)
    assert found.status == "wrong"
    assert "INVALID_SETTINGS" in found.why
    assert "[agent]" in found.remedy


async def no_such_voice(session: AgentSession) -> None:
    await session.error("FAILED_TO_SPEAK", "There is no voice aura-9-nobody")


async def test_a_voice_that_fails_at_the_first_words():
    async with agent(QUIET, no_such_voice) as (_, url):
        found = await only(url)
    assert found.status == "wrong"
    assert "FAILED_TO_SPEAK: There is no voice aura-9-nobody" in found.why


async def warns(session: AgentSession) -> None:
    await session.warning("PROMPT_TOO_LONG", "The prompt was cut off")
    await session.say("Hello.", b"\x55" * 1600)


async def test_a_warning_is_told():
    async with agent(QUIET, warns) as (_, url):
        found = await only(url)
    assert found.status == "warning"
    assert "PROMPT_TOO_LONG (The prompt was cut off)" in found.why


async def test_one_of_several_agents_is_refused():
    def second(number: int) -> Behaviour:
        return msgspec.structs.replace(
            GREETS, settings_error="INVALID_SETTINGS" if number == 2 else ""
        )

    agents = {
        "sales": {"numbers": ["+15557654321"], "greeting": "Sales."},
        "night": {"numbers": ["+15557654322"], "greeting": "We are closed."},
    }
    async with agent(second) as (made, url):
        found = list(await check_agents(using(url, agents=agents), SECRETS))
    assert [(one.check, one.status) for one in found] == [
        ("agent", "ok"),
        ("agents.sales", "wrong"),
        ("agents.night", "ok"),
    ]
    assert "[agents.sales]" in found[1].remedy
    greetings = [session.settings["agent"]["greeting"] for session in made.sessions]
    assert greetings[-1] == "We are closed."


@pytest.mark.parametrize(
    ("agent", "names"),
    [
        ({"greeting": "Hello {caller}, this is {called}. {{not}}"}, None),
        ({"greeting": "Hello {nmae}!"}, "{nmae}"),
        ({"think": {"prompt": "You serve {firm}."}}, "{firm}"),
        ({"think": [{"prompt": "{a} {b} {a}"}, {"prompt": "{c}"}]}, "{a}, {b}, {c}"),
    ],
)
def test_names_that_no_call_has(agent, names):
    found = check_names("", settings(agent=agent))
    assert [one.what for one in found] == ([f"greeting or prompt names {names}"] if names else [])
    asked = settings(agent=agent, call={"context_url": "https://crm.example/caller"})
    assert check_names("", asked) == []


async def test_a_key_that_is_missing_is_not_tried():
    found = await only("wss://agent.deepgram.com/v1/agent/converse", Secrets())
    assert found.status == "wrong"
    assert "DEEPGRAM_API_KEY: not set" in found.why


async def test_a_closed_port():
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))  # bound, not listening: reserves the port
        found = await only(f"ws://127.0.0.1:{taken.getsockname()[1]}/")
    assert found.what.startswith("nothing listens at 127.0.0.1:")
    assert "bridge agent" in found.remedy


async def test_a_name_that_does_not_exist():
    async def resolve(_: SplitResult) -> trio.abc.Stream:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    [found] = await check_agents(using("wss://agent.example/"), SECRETS, resolve)
    assert (found.status, found.what) == ("wrong", "the name agent.example cannot be resolved")
    assert "DNS" in found.remedy


async def serve_tls(context: ssl.SSLContext, task_status=trio.TASK_STATUS_IGNORED) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True)
        with trio.move_on_after(10):
            try:
                await tls.do_handshake()
                await tls.receive_some()
            except trio.BrokenResourceError:
                pass  # the client has left, as it should
        await trio.aclose_forcefully(tls)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        task_status.started(listeners[0].socket.getsockname()[1])


async def test_a_certificate_that_is_not_trusted():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_tls, context)
        found = await only(f"wss://127.0.0.1:{port}/")
        nursery.cancel_scope.cancel(reason="the test is over")
    assert found.status == "wrong"
    assert found.what == f"the certificate of 127.0.0.1:{port} is not trusted"
    assert "unable to get local issuer" in found.why
    assert "SSL_CERT_FILE" in found.remedy


async def test_plain_where_tls_is_expected():
    async with agent() as (_, url):
        found = await only(url.replace("ws://", "wss://"))
    assert found.what.endswith("does not speak TLS")


async def test_a_module_of_functions_that_cannot_be_loaded(monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_functions_of_check.py").write_text("def broken(:\n")
    async with agent() as (_, url):
        found = list(
            await check_agents(
                using(url, functions={"module": "broken_functions_of_check"}), SECRETS
            )
        )
    assert [(one.check, one.status) for one in found] == [("functions", "wrong"), ("agent", "ok")]
    assert "line 1" in found[0].why


def test_the_reference_clock():
    assert hosts(Settings()) == ["https://agent.deepgram.com/"]
    assert hosts(using("ws://127.0.0.1:9000/")) == []
