"""A server that has seen everything, at the finest level, and its secrets: they are in nothing that
it wrote or shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import trio

from bridge.testing.agent.server import AgentSession, Behaviour, SimulatedAgent
from bridge.testing.phone.phone import SimulatedPhone
from tests.endtoend.servers import SERVE_2, Server, children_of, command_of, running
from tests.world import AUTH_TOKEN, QUIET

SECRETS = {
    "DEEPGRAM_API_KEY": "dg-5EC237-a0b1c2d3e4f5a0b1c2d3e4f5",
    "TWILIO_ACCOUNT_SID": "AC" + "5ec237" * 5 + "00",
    "TWILIO_AUTH_TOKEN": f"{AUTH_TOKEN},tw-5EC237-0123456789abcdef",
    "BRIDGE_API_TOKEN": "api-5EC237-0123456789abcdef",
}
# An account's SID is its name: Twilio sends it with every call. The others are nobody's business.
NEVER = [
    word.encode()
    for name, value in SECRETS.items()
    if name != "TWILIO_ACCOUNT_SID"
    for word in value.split(",")
]
KEY, TOKEN = SECRETS["DEEPGRAM_API_KEY"], SECRETS["BRIDGE_API_TOKEN"]
CALLER, CALLED = "+15550109876", "+15550105432"
SAID = "the caller's own words"


async def script(session: AgentSession) -> None:
    """Say the key in every way that an agent can."""
    await session.user_said(f"{SAID}, my key is {KEY}")
    await session.warning("KEY", f"{KEY} is old")
    await session.call_functions([{"name": f"no_{KEY}", "arguments": json.dumps({"key": KEY})}])
    await session._ws.send_message('{"type":"History","content":7,"x":"' + KEY + '"}')
    if session.number % 4 == 1:
        await session.error("INVALID_AUTH", f"{KEY} is no key")
    elif session.number % 4 == 2:
        await session.close(1008, f"bye {KEY}")


def behaviour(number: int) -> Behaviour:
    if number % 4 == 3:
        return type(QUIET)(reject_status=401, reject_body=f"{KEY} is no key")
    return QUIET


async def test_no_secret_is_in_anything_that_was_written_or_shown(tmp_path: Path) -> None:
    """Two workers, four calls that go well, break, reconnect and are refused; webhooks, console and
    control API with the right token, a wrong one and none; then the log, every file, every page,
    every process's command line and its threads' names are searched."""
    folder = tmp_path / "recordings"
    more = (
        'level = "debug"\n'
        f'[records]\nurl = "sqlite:///{tmp_path}/calls.db"\nrecordings = "{folder}"\n'
    )
    shown: list[bytes] = []
    agent = SimulatedAgent(script, behaviour)
    async with running(SERVE_2, tmp_path, agent=agent, more=more, env=SECRETS) as it:
        for _ in range(4):
            phone = SimulatedPhone(
                from_number=CALLER, to_number=CALLED, auth_token=AUTH_TOKEN, strict=False
            )
            async with phone.place_call(it.base_url):
                # Those whose agent fails end by themselves; the others are only listened to.
                with trio.move_on_after(3):
                    await phone.wait_ended()
                await phone.hang_up()
        await it.logged("call ended", 4)
        shown += await pages(it)
        for pid in {it.process.pid, *children_of(it.process.pid)}:
            shown += [command_of(pid), *thread_names(pid)]
        it.signal(15)
        assert await it.ended() == 0
    log = [json.dumps(line, ensure_ascii=False) for line in it.lines] + it.other
    written = files(tmp_path)
    for secret in NEVER:
        assert [line for line in log if secret.decode() in line] == []
        assert [page for page in shown if secret in page] == []
        assert [file for file, content in written.items() if secret in content] == []

    # The test had something to find.
    assert len({line["outcome"] for line in it.find("call ended")}) >= 2
    assert any("[secret]" in line for line in log)
    assert any(file.suffix == ".wav" for file in written)
    assert any(SAID.encode() in content for content in written.values())

    # What belongs to a person: numbers masked, words at debug level alone.
    for number in (CALLER, CALLED):
        assert [line for line in log if number in line] == []
    assert {line["level"] for line in it.lines if SAID in json.dumps(line)} <= {"debug"}


def thread_names(pid: int) -> list[bytes]:
    return [task.read_bytes() for task in Path(f"/proc/{pid}/task").glob("*/comm")]


def files(folder: Path) -> dict[Path, bytes]:
    """All there are, but for the operator's own."""
    found = (file for file in folder.rglob("*") if file.is_file() and file.name != "config.toml")
    return {file: file.read_bytes() for file in found}


async def pages(it: Server) -> list[bytes]:
    """What the server answers, to those who have the token and to those who do not."""
    answers: list[bytes] = []
    async with httpx.AsyncClient(base_url=it.base_url, timeout=20) as client:
        for token in (TOKEN, "wrong", ""):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            for method, path in [
                ("GET", "/calls"),
                ("GET", "/calls/CA" + "0" * 32),
                ("DELETE", "/calls/CA" + "0" * 32),
                ("GET", "/metrics"),
                ("GET", "/readyz"),
                ("GET", "/"),
                ("GET", "/softphone"),
                ("GET", "/nothing"),
                ("POST", "/incoming-call"),
                ("POST", "/call-ended"),
                ("POST", "/call-status"),
                ("POST", "/calls"),
            ]:
                body: dict[str, Any] = {}
                if path == "/calls" and method == "POST":
                    body = {"json": {"to": "nobody", "from": TOKEN}}
                answer = await client.request(method, path, headers=headers, **body)
                head = f"{answer.status_code} {dict(answer.headers)}".encode()
                answers += [head, answer.content]
        calls: list[dict[str, Any]] = []
        while not calls:  # the other worker's may not be written yet
            answer = await client.get("/calls", headers={"Authorization": f"Bearer {TOKEN}"})
            calls = answer.json()["recent"]
        for call in calls[:3]:
            path = f"/calls/{call['call_sid']}"
            answer = await client.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
            assert answer.status_code == 200
            answers.append(answer.content)
    return answers
