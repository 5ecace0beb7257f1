"""Authentication: Twilio by its signature, a call by its ticket, a page by its origin and a ticket.

The whole application under hypercorn's connection class, in memory. A refused peer is refused
before the agent is called.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import h11
import msgspec
import pytest
import trio
from structlog.testing import capture_logs
from trio_websocket import ConnectionClosed, ConnectionRejected, wrap_client_stream
from twilio.request_validator import RequestValidator

from bridge.admission.entrance import TICKET_SECONDS
from bridge.admission.slots import LEAST_WAITING
from bridge.config.file import FixedConfig
from bridge.config.secrets import Secrets
from bridge.config.words import Words
from bridge.http.app import create_app
from bridge.http.twilio_auth import SECONDS_BETWEEN_LINES
from bridge.testing.phone.twiml import ConnectStream, Hangup, Say, read_twiml
from bridge.testing.phone.webhook import WebhookError, request, sign
from tests.world import (
    AUTH_TOKEN,
    OPERATOR,
    SECRETS,
    World,
    in_memory,
    open_media_socket,
    settings,
    signed,
    start_message,
)

Clock = Any
HOST = "127.0.0.1:5000"
SID = "CA" + "5" * 32
FORM = [("CallSid", SID), ("From", "+15550100001"), ("To", "+15550100002"), ("FromCity", "")]

WEBHOOKS = ["/incoming-call", "/call-ended", "/call-status", "/call-status/answered-by"]
every_webhook = pytest.mark.parametrize("path", WEBHOOKS)


async def ask(
    world: World, path: str, *, token: str | None, form: Any = FORM, method: str = "POST"
) -> int:
    """The status of a webhook's answer."""
    try:
        answer = await request(
            world.base_url + path,
            form,
            method=method,
            token=token,
            open_stream=world.phone_options["open_stream"],
        )
    except WebhookError as error:
        return int(error.detail.rpartition(" ")[2])
    return answer.status


async def fetch(
    world: World, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
) -> tuple[int, bytes]:
    """One request with these headers and no others; status and body of its answer."""
    stream = await world.phone_options["open_stream"]("127.0.0.1", 5000, False)
    client = h11.Connection(h11.CLIENT)
    given = {"Host": HOST, "Content-Length": str(len(body)), "Connection": "close", **headers}
    events = [
        h11.Request(method=method, target=path, headers=list(given.items())),
        h11.Data(data=body),
        h11.EndOfMessage(),
    ]
    await stream.send_all(b"".join(client.send(event) or b"" for event in events))
    status, answer = 0, b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            answer += bytes(event.data)
        else:
            await stream.aclose()
            return status, answer


@asynccontextmanager
async def media_socket(
    world: World, headers: Any = None, path: str = "/media-stream"
) -> AsyncIterator[Any]:
    """A media socket with these headers, Twilio's signature by default."""
    stream = await world.phone_options["open_stream"]("127.0.0.1", 5000, False)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            given = signed(HOST) if headers is None else headers
            yield await wrap_client_stream(nursery, stream, HOST, path, extra_headers=given)
        except Exception as error:
            failure = error
        await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel(reason="the test has let go of the socket")
    if failure is not None:
        raise failure


async def status_of(world: World, headers: Any = None, path: str = "/media-stream") -> int:
    """What the handshake is answered."""
    try:
        async with media_socket(world, headers, path):
            return 101
    except* ConnectionRejected as group:
        (rejection,) = group.exceptions
        assert isinstance(rejection, ConnectionRejected)
        status: int = rejection.status_code
    return status


async def closed_with(socket: Any) -> int:
    with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012
        while True:
            await socket.get_message()
    return int(closed.value.reason.code)


def refusals(world: World) -> list[Mapping[str, Any]]:
    return [line for line in world.logs if line["event"].startswith("refused ")]


# ---- webhooks -----------------------------------------------------------------------------------


@every_webhook
async def test_a_webhook_is_twilios(autojump_clock: Clock, path: str) -> None:
    async with in_memory() as world:
        assert await ask(world, path, token=AUTH_TOKEN) in (200, 204)
        assert await ask(world, path, token=None) == 403
        assert await ask(world, path, token="another-token") == 401
        assert await ask(world, path, token=AUTH_TOKEN, form=[*FORM, ("Empty", "")]) in (200, 204)


@every_webhook
async def test_a_webhook_that_twilio_requests_by_get(autojump_clock: Clock, path: str) -> None:
    """A number may be set to HTTP GET: the fields are in the query, and signed with it."""
    async with in_memory() as world:
        assert await ask(world, path, token=AUTH_TOKEN, method="GET") in (200, 204)
        assert await ask(world, path, token=None, method="GET") == 403
        assert await ask(world, path, token="another-token", method="GET") == 401
        assert len(world.app.extensions["bridge"].entrance.slots) == (path == "/incoming-call")


@pytest.mark.parametrize("status", ["completed", "busy", "failed", "no-answer", "canceled"])
async def test_the_end_of_a_call_reported_to_the_voice_webhook_takes_no_line(
    autojump_clock: Clock, status: str
) -> None:
    """A number whose status callback is the voice webhook, too."""
    async with in_memory() as world:
        slots = world.app.extensions["bridge"].entrance.slots
        assert await ask(world, "/incoming-call", token=AUTH_TOKEN) == 200
        assert len(slots) == 1
        form = [*FORM, ("CallStatus", status)]
        answer = await request(
            world.base_url + "/incoming-call",
            form,
            token=AUTH_TOKEN,
            open_stream=world.phone_options["open_stream"],
        )
        assert read_twiml(answer.body, answer.content_type, world.base_url) == []
        assert len(slots) == 0  # the caller who hung up before the socket gives it back, too
        (line,) = [one for one in world.logs if one["log_level"] == "warning"]
    assert line["call_status"] == status
    assert "/call-status" in line["remedy"]


@every_webhook
async def test_without_the_check_it_is_anybodys(autojump_clock: Clock, path: str) -> None:
    async with in_memory(using=settings(twilio={"validate_signatures": False})) as world:
        assert await ask(world, path, token=None) in (200, 204)


async def test_an_unsigned_request_takes_no_slot_and_gets_no_answer(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        form = b"CallSid=" + SID.encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        status, body = await fetch(world, "POST", "/incoming-call", headers, form)
        assert (status, body) == (403, b"")
        assert len(world.app.extensions["bridge"].entrance.slots) == 0


async def test_refusals_are_logged_at_a_limited_rate(autojump_clock: Clock) -> None:
    """The address, so that a proxy's part in it can be seen; and how often it happened."""
    async with in_memory() as world:
        for _ in range(20):
            await ask(world, "/incoming-call?a=%41&name=Ann", token="another-token")
        await trio.sleep(SECONDS_BETWEEN_LINES)
        await ask(world, "/call-ended", token=None)
        first, second = refusals(world)
    assert first["checked_against"] == "http://127.0.0.1:5000/incoming-call?a=…&name=…"
    assert (first["signature"], first["others_since_the_last_line"]) == ("wrong", 0)
    assert (second["signature"], second["others_since_the_last_line"]) == ("none", 19)


async def test_several_tokens_while_they_are_rotated(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = Secrets(deepgram_api_key="key", twilio_auth_tokens=("new", AUTH_TOKEN))
    monkeypatch.setattr("tests.world.SECRETS", secrets)
    async with in_memory() as world:
        assert await ask(world, "/incoming-call", token="new") == 200
        async with world.call() as phone:
            await world.agent.wait_for_session()
            await phone.hang_up()


SHARED = {"webhooks_sharedkey_1": "shared-secret"}


@pytest.mark.parametrize(
    ("key", "secret", "expected"),
    [
        ("webhooks_sharedkey_1", "shared-secret", 200),
        ("webhooks_sharedkey_1", AUTH_TOKEN, 401),
        ("webhooks_sharedkey_2", "shared-secret", 403),
    ],
)
async def test_a_webhook_signed_with_a_shared_key(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, key: str, secret: str, expected: int
) -> None:
    secrets = replace(SECRETS, twilio_signing_keys=SHARED)
    monkeypatch.setattr("tests.world.SECRETS", secrets)
    url = f"http://{HOST}/incoming-call"
    validator = RequestValidator(secret)
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Twilio-Signature": validator.compute_signature(url, {"CallSid": SID}, "HMAC_SHA256"),
        "X-Twilio-Webhooks-Signature-Settings": f"key={key},algorithm=HMAC_SHA256",
    }
    async with in_memory() as world:
        body = f"CallSid={SID}".encode()
        assert (await fetch(world, "POST", "/incoming-call", headers, body))[0] == expected
        # Other webhooks, and the socket, may still be signed with the token.
        assert await ask(world, "/call-ended", token=AUTH_TOKEN) == 200
    if key not in SHARED:
        (line,) = refusals(world)
        assert "X-Twilio-Webhooks-Signature-Settings" in line["remedy"]
        assert "TWILIO_SIGNING_KEYS" in line["remedy"]


@pytest.mark.parametrize("user", ["ann:pw", "ann", "an/n:p w@d"])
@pytest.mark.parametrize("safe", ["", "/ @"])
async def test_a_webhook_address_with_user_and_password(
    autojump_clock: Clock, user: str, safe: str
) -> None:
    """Twilio signs the address with both, and sends them when it is asked to."""
    name, colon, password = user.partition(":")
    written = f"{quote(name, safe=safe)}{colon}{quote(password, safe=safe)}"
    url = f"http://{written}@{HOST}/incoming-call"
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Twilio-Signature": sign(url, [("CallSid", SID)], AUTH_TOKEN),
        "Authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode(),
    }
    body = f"CallSid={SID}".encode()
    asked = {name: value for name, value in headers.items() if name != "Authorization"}
    async with in_memory() as world:
        assert (await fetch(world, "POST", "/incoming-call", asked, body))[0] == 401
        assert (await fetch(world, "POST", "/incoming-call", headers, body))[0] == 200
        headers["Authorization"] = "Basic " + b64encode(b"ann:other").decode()
        assert (await fetch(world, "POST", "/incoming-call", headers, body))[0] == 403
        for nonsense in ("Basic", "Basic ?", "Basic /w==", "Bearer x"):
            headers["Authorization"] = nonsense
            assert (await fetch(world, "POST", "/incoming-call", headers, body))[0] == 403


async def test_a_token_in_quotation_marks_is_named_and_not_the_proxy(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = replace(SECRETS, twilio_auth_tokens=(f'"{AUTH_TOKEN}"',))
    monkeypatch.setattr("tests.world.SECRETS", secrets)
    async with in_memory() as world:
        assert await ask(world, "/incoming-call", token=AUTH_TOKEN) == 401
    (line,) = refusals(world)
    assert line["remedy"].startswith("TWILIO_AUTH_TOKEN: its value is in quotation marks")


async def test_a_refusal_says_what_helps(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        await ask(world, "/incoming-call", token="another-token")
        await trio.sleep(SECONDS_BETWEEN_LINES)
        await ask(world, "/incoming-call", token=None)
    wrong, none = (line["remedy"] for line in refusals(world))
    assert "server.public_url" in wrong
    assert "TWILIO_AUTH_TOKEN" in wrong
    assert "X-Twilio-Signature" in none


async def test_behind_a_proxy_that_is_trusted(autojump_clock: Clock) -> None:
    """The public address is signed; the connection in memory comes from 127.0.0.1."""
    url = "https://voice.example.com/incoming-call"
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Twilio-Signature": sign(url, [("CallSid", SID)], AUTH_TOKEN),
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "voice.example.com",
    }
    body = f"CallSid={SID}".encode()
    using = settings(server={"trusted_proxies": ("127.0.0.1",)})
    async with in_memory(using=using) as world:
        status, answer = await fetch(world, "POST", "/incoming-call", headers, body)
        assert status == 200
        assert b"wss://voice.example.com/media-stream" in answer
    async with in_memory() as world:
        status, _ = await fetch(world, "POST", "/incoming-call", headers, body)
        assert status == 401


# ---- the media socket ---------------------------------------------------------------------------


async def test_an_upgrade_is_twilios(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        assert await status_of(world) == 101
        assert await status_of(world, []) == 403
        assert await status_of(world, [(b"X-Twilio-Signature", b"bm9uc2Vuc2U=")]) == 403
        assert await status_of(world, signed("voice.example.com")) == 403
        assert [line["event"] for line in refusals(world)] == ["refused a media socket"]


async def test_the_check_of_upgrades_can_be_switched_off(autojump_clock: Clock) -> None:
    async with in_memory(using=settings(twilio={"validate_signatures": False})) as world:
        assert await status_of(world, []) == 101


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1:5000", 101), ("https://evil.example", 403), ("null", 403)],
)
async def test_a_page_of_another_site_is_refused(
    autojump_clock: Clock, origin: str, status: int
) -> None:
    """Twilio sends no Origin; a client that does is a browser, whose page must be bridge's."""
    async with in_memory() as world:
        headers = [*signed(HOST), (b"Origin", origin.encode())]
        assert await status_of(world, headers) == status


# ---- the ticket ---------------------------------------------------------------------------------


async def refused_at_start(world: World, start: str) -> str:
    """Say this `start`; why it was refused, the agent not having been called."""
    before = world.agent.connections
    async with media_socket(world) as socket:
        await socket.send_message(start)
        assert await closed_with(socket) == 1002
    await world.quiet()
    assert world.agent.connections == before
    ended = [line for line in world.logs if line["event"] == "call ended"][-1]
    assert ended["outcome"] == "protocol_error"
    assert len(world.app.extensions["bridge"].entrance.slots) == 0
    reason: str = ended["reason"]
    return reason


def changed(start: str, **facts: Any) -> str:
    message = json.loads(start)
    message["start"].update(facts)
    return json.dumps(message)


async def test_a_start_needs_its_calls_ticket(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        good = start_message(world.app, SID)
        without = changed(good, customParameters={"From": "+15550100001"})
        assert await refused_at_start(world, without) == "no ticket"
        ended = [line for line in world.logs if line["event"] == "call ended"][-1]
        assert "<Redirect> to /incoming-call" in ended["remedy"]
        nonsense = changed(good, customParameters={"ticket": "nonsense"})
        assert await refused_at_start(world, nonsense) == "not a ticket"
        other = changed(good, callSid="CA" + "6" * 32)
        assert await refused_at_start(world, other) == "the ticket of another call"
        page = world.app.extensions["bridge"].entrance.ticket(SID, "softphone")
        page_s = changed(good, customParameters={"ticket": page})
        assert "for a softphone" in await refused_at_start(world, page_s)


async def test_a_ticket_lets_in_once(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        start = start_message(world.app, SID)
        async with media_socket(world) as socket:
            await socket.send_message(start)
            await world.agent.wait_for_session()
        await world.quiet()
        assert await refused_at_start(world, start) == "a ticket that was used before"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("From", "+15550009999"),
        ("To", "+15550009999"),
        ("agent", "sales"),
        ("direction", "outbound-api"),
    ],
)
async def test_a_ticket_is_for_who_calls_whom(autojump_clock: Clock, name: str, value: str) -> None:
    """Finding B3: whoever was given a ticket could say any From, To, direction and agent."""
    form = [*FORM, ("CallerName", "Ann")]
    async with in_memory() as world:
        answer = await request(
            world.base_url + "/incoming-call",
            form,
            token=AUTH_TOKEN,
            open_stream=world.phone_options["open_stream"],
        )
        (stream,) = read_twiml(answer.body, answer.content_type, world.base_url)
        assert isinstance(stream, ConnectStream)
        given = dict(stream.parameters)
        good = changed(start_message(world.app, SID), customParameters=given)
        forged = changed(good, customParameters={**given, name: value})
        world.app.extensions["bridge"].entrance.slots.release(SID)
        assert "not for this caller" in await refused_at_start(world, forged)
        async with media_socket(world) as socket:
            await socket.send_message(good)
            await world.agent.wait_for_session()


async def test_a_ticket_expires(autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with in_memory() as world:
        start = start_message(world.app, SID)
        bridge = world.app.extensions["bridge"]
        before = bridge.entrance.epoch
        monkeypatch.setattr(bridge.entrance, "epoch", lambda: before() + TICKET_SECONDS + 3)
        assert "a ticket that expired" in await refused_at_start(world, start)


async def test_the_ticket_is_not_shown_to_agents_or_in_the_log(autojump_clock: Clock) -> None:
    """Not for prompts, functions and hooks, nor for the log."""
    using = settings(agent={"greeting": "{caller} {ticket}"})
    async with in_memory(using=using) as world, world.call() as phone:
        session = await world.agent.wait_for_session()
        await session.applied.wait()
        assert session.settings is not None
        assert session.settings["agent"]["greeting"] == "+15550100001 {ticket}"
        await phone.hang_up()
        await world.quiet()
        assert "phone." + phone.call_sid not in repr(world.logs)


async def test_without_the_rule_no_ticket_is_needed(autojump_clock: Clock) -> None:
    async with in_memory(using=settings(twilio={"require_ticket": False})) as world:
        start = changed(start_message(world.app, SID), customParameters={})
        async with media_socket(world) as socket:
            await socket.send_message(start)
            await world.agent.wait_for_session()
            assert len(world.app.extensions["bridge"].entrance.slots) == 1
        await world.quiet()
        assert len(world.app.extensions["bridge"].entrance.slots) == 0


async def test_a_server_that_is_full_lets_no_socket_past_it(autojump_clock: Clock) -> None:
    """A ticket is only valid with its slot, which has expired and now belongs to another call."""
    async with in_memory(using=settings(server={"max_calls": 1})) as world:
        late = start_message(world.app, SID)
        async with world.call() as phone:
            await world.agent.wait_for_session()
            async with media_socket(world) as socket:
                await socket.send_message(late)
                assert await closed_with(socket) == 1002
            await phone.hang_up()
        await world.quiet()
        assert world.agent.connections == 1
        reasons = [line["reason"] for line in world.logs if line["event"] == "call ended"]
        assert any("server.max_calls" in reason for reason in reasons)


async def test_sockets_that_do_not_start_are_bounded(autojump_clock: Clock) -> None:
    using = settings(server={"max_calls": 1}, call={"start_timeout": 5})
    async with in_memory(using=using) as world, trio.open_nursery() as nursery:

        async def wait_in_vain() -> None:
            async with media_socket(world) as socket:
                assert await closed_with(socket) == 1002

        for _ in range(LEAST_WAITING):
            nursery.start_soon(wait_in_vain)
        await trio.sleep(1)
        assert await status_of(world) == 503
        await trio.sleep(5)
        assert await status_of(world) == 101
        assert world.agent.connections == 0


# ---- the softphone ------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json", "Origin": f"http://{HOST}", **OPERATOR}


async def ask_for_a_call(world: World, body: bytes = b"{}", **headers: str) -> tuple[int, Any]:
    given = {**JSON, **headers}
    status, answer = await fetch(world, "POST", "/softphone/call", given, body)
    return status, msgspec.json.decode(answer)


def start_of(call: Mapping[str, Any], **facts: Any) -> str:
    """The `start` that a page sends."""
    given = {
        "streamSid": "MZ1",
        "callSid": call["call_sid"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": call["parameters"],
        **facts,
    }
    return json.dumps({"event": "start", "start": given, "streamSid": "MZ1"})


ORIGIN = [(b"Origin", f"http://{HOST}".encode())]


async def test_a_page_calls(autojump_clock: Clock) -> None:
    sales = {"numbers": ["+15557654321"], "greeting": "Sales."}
    async with in_memory(using=settings(agents={"sales": sales})) as world:
        bridge = world.app.extensions["bridge"]
        status, call = await ask_for_a_call(world, b'{"agent": "sales"}')
        assert status == 200
        assert call["phrases"] == [], "an agent on this machine need not be the restaurant's"
        assert call["parameters"].items() >= {"From": "softphone", "To": "+15557654321"}.items()
        assert len(bridge.entrance.slots) == 1
        address, _, path = call["stream_url"].partition(HOST)
        assert address == "ws://"
        async with media_socket(world, ORIGIN, path) as socket:
            await socket.send_message(start_of(call))
            session = await world.agent.wait_for_session()
            await session.applied.wait()
            assert session.settings is not None
            assert session.settings["agent"]["greeting"] == "Sales."
            assert len(bridge.entrance.slots) == 1
        await world.quiet()
        assert len(bridge.entrance.slots) == 0


async def test_a_pages_socket_needs_the_ticket_and_a_page_of_ours(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        _, call = await ask_for_a_call(world)
        path = call["stream_url"].partition(HOST)[2]
        assert await status_of(world, [], path) == 403
        assert await status_of(world, [(b"Origin", b"http://evil.example")], path) == 403
        assert await status_of(world, ORIGIN, path.partition("?")[0]) == 403
        assert await status_of(world, ORIGIN, path[:-1] + "_") == 403
        phones = world.app.extensions["bridge"].entrance.ticket(SID)
        assert await status_of(world, ORIGIN, f"/media-stream?ticket={phones}") == 403
        # The ticket that let the socket in must come again, once, for the same call.
        for start in (
            start_of(call, callSid=SID),
            start_of(call, customParameters={}),
            start_of(call, customParameters={"ticket": phones}),
        ):
            async with media_socket(world, ORIGIN, path) as socket:
                await socket.send_message(start)
                assert await closed_with(socket) == 1002
        assert world.agent.connections == 0
        async with media_socket(world, ORIGIN, path) as socket:
            await socket.send_message(start_of(call))
            await world.agent.wait_for_session()
        async with media_socket(world, ORIGIN, path) as socket:
            await socket.send_message(start_of(call))
            assert await closed_with(socket) == 1002


async def test_a_page_needs_what_the_control_api_needs(autojump_clock: Clock) -> None:
    async with in_memory() as world:
        assert (await ask_for_a_call(world, Origin="https://evil.example"))[0] == 403
        assert (await ask_for_a_call(world, Authorization=""))[0] == 401
        assert (await ask_for_a_call(world, **{"Content-Type": "text/plain"}))[0] == 415
        for body in (b"", b"[]", b'{"agent": 1}', b'{"more": 1}', b"\xff", b"[" * 5000):
            assert (await ask_for_a_call(world, body))[0] == 400
        status, answer = await ask_for_a_call(world, b'{"agent": "nobody"}')
        assert (status, answer["field"]) == (422, "agent")
        assert len(world.app.extensions["bridge"].entrance.slots) == 0


async def test_a_page_shares_the_lines_with_everybody(autojump_clock: Clock) -> None:
    async with in_memory(using=settings(server={"max_calls": 1})) as world:
        async with world.call() as phone:
            await world.agent.wait_for_session()
            status, answer = await ask_for_a_call(world)
            assert (status, list(answer)) == (503, ["error"])
            await phone.hang_up()
        await world.quiet()
        assert (await ask_for_a_call(world))[0] == 200
        async with world.call() as phone:
            await phone.wait_ended()
        assert phone.verbs == [Say(Words().busy), Hangup()]


# ---- several worker processes -------------------------------------------------------------------


async def test_a_call_that_another_process_let_in_is_carried(autojump_clock: Clock) -> None:
    """Its webhook reached a worker with a line; the one that gets its socket may have none left."""
    using = settings(server={"max_calls": 1, "workers": 2})
    async with in_memory(using=using) as here, in_memory(using=using) as there:
        bridge = here.app.extensions["bridge"]
        async with here.call() as phone:
            await here.agent.wait_for_session()
            start = start_message(there.app, SID)
            async with media_socket(here) as socket:
                await socket.send_message(start)
                await here.agent.wait_for_session(2)
                assert len(bridge.entrance.slots) == 2
                # But it says busy to the next, and is not ready for more.
                async with here.call() as one_more:
                    await one_more.wait_ended()
                assert one_more.verbs == [Say(Words().busy), Hangup()]
                assert bridge.entrance.is_full(bridge.settings_now())
            await phone.hang_up()
        await here.quiet()
        assert len(bridge.entrance.slots) == 0


async def test_a_socket_that_closes_without_a_message_was_no_call(autojump_clock: Clock) -> None:
    """`bridge check` does so, and monitors may, again and again."""
    async with in_memory() as world, trio.open_nursery() as nursery:
        stream = await world.phone_options["open_stream"]("127.0.0.1", 5000, False)
        looking = await open_media_socket(nursery, stream)
        await looking.aclose()
        await world.quiet()
        exposed = world.app.extensions["bridge"].metrics.expose(None)[0].decode()
        nursery.cancel_scope.cancel(reason="the test is over")
    assert "\nbridge_calls_active 0.0\n" in exposed
    assert '\nbridge_calls_total{outcome="phone_lost"} 0.0\n' in exposed
    assert "\nbridge_call_duration_seconds_count 0.0\n" in exposed


# ---- what strangers can write into the log ------------------------------------------------------


async def test_bytes_behind_a_refused_handshake_leave_no_traceback(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Finding B6: 594 tracebacks in 5 seconds. Now a line for each kind, every few seconds."""
    head = (
        f"GET /media-stream HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    )
    async with in_memory() as world:
        for number in range(40):
            stream = await world.phone_options["open_stream"]("127.0.0.1", 5000, False)
            await stream.send_all(head.encode())
            for _ in range(number % 4):
                await trio.lowlevel.checkpoint()
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"\x81\x80aaaa" * (number + 1))
            await trio.testing.wait_all_tasks_blocked()
            await trio.aclose_forcefully(stream)
        events = [line["event"] for line in world.logs]
    assert 0 < len(events) == len(set(events)) < 5
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_protection_that_an_edit_switches_off_is_announced(autojump_clock: Clock) -> None:
    """Finding C1: unsigned webhooks were 403 before and 200 after, without a word."""
    config = FixedConfig(settings())
    app = create_app(config, SECRETS)
    bridge = app.extensions["bridge"]
    bridge.prepare()

    async def warned() -> list[str]:
        with capture_logs() as logs:
            await bridge.settings()
        return [line["event"] for line in logs]

    assert await warned() == []
    config._settings = settings(twilio={"validate_signatures": False})
    (line,) = await warned()
    assert line.startswith("twilio.validate_signatures is false")
    assert await warned() == []
    config._settings = settings()
    assert await warned() == []
    config._settings = settings(twilio={"validate_signatures": False, "require_ticket": False})
    assert len(await warned()) == 2
