"""Calls that an operator places: the real server on real sockets between a stand-in for Twilio,
whose REST API it asks and whose requests it answers, a phone that is called, and an agent.

What the phone does is what Twilio was told to do, to the letter: the TwiML it carries out is that
of the request, and the status reports go to the address in the request.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import msgspec
import pytest
import trio

from bridge.config.file import FixedConfig
from bridge.config.secrets import Secrets
from bridge.config.settings import Settings
from bridge.config.words import Words
from bridge.http.app import create_app
from bridge.server.serve import hypercorn_config, serve
from bridge.testing.agent.server import AgentSession, Script, SimulatedAgent, silent
from bridge.testing.agent.voice import speech_for
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.phone.twiml import ConnectStream, Hangup, Say
from bridge.twilio.rest import TwilioRest
from tests.twilio_standin import ACCOUNT_SID, AUTH_TOKEN, OWN_NUMBER, Answer, Call, TwilioStandIn
from tests.twilio_standin import error as twilio_error
from tests.world import OPERATOR, QUIET, SECRETS, settings

TO = "+15551234567"

# Nothing here takes longer on the slowest machine, interpreters that start included; what does is a
# test that hangs.
PATIENCE = 120.0

SECRETS_WITH_TWILIO = Secrets(
    deepgram_api_key=SECRETS.deepgram_api_key,
    api_token=SECRETS.api_token,
    twilio_account_sid=ACCOUNT_SID,
    twilio_auth_tokens=(AUTH_TOKEN,),
)

# An agent that speaks the greeting in its settings, and otherwise what the script says.
GREETS = msgspec.structs.replace(QUIET, greeting=None)

AGENT = {
    "greeting": "Hello {name}!",
    "think": {
        "prompt": "You talk to {name} about order {order}. Keep {unknown}.",
        "provider": {"type": "open_ai", "model": "gpt-4o-mini"},
    },
}

BRIDGE = "import sys; sys.argv[0] = 'bridge'; from bridge.cli import main; main()"


class PublicAddress(FixedConfig):
    """Settings whose public_url is known only once the server has its port."""

    def publish(self, url: str) -> None:
        server = msgspec.structs.replace(self._settings.server, public_url=url)
        self._settings = msgspec.structs.replace(self._settings, server=server)


class Office:
    """The server at `address`, `client` to its control API, and Twilio and the agent around it."""

    def __init__(self, bridge: Any, agent: SimulatedAgent, twilio: TwilioStandIn) -> None:
        self.bridge = bridge
        self.agent = agent
        self.twilio = twilio
        self.address = ""
        self.client: httpx.AsyncClient
        self.outside: httpx.AsyncClient  # Twilio's own requests to the server

    async def dial(self, **request: Any) -> Call:
        """Have a call placed; the call as Twilio has it."""
        response = await self.client.post("/calls", json={"to": TO, "from": OWN_NUMBER, **request})
        assert response.status_code == 201, response.text
        call_sid = response.json()["call_sid"]
        assert response.json() == {"call_sid": call_sid, "status": "queued"}
        assert response.headers["Location"] == f"/calls/{call_sid}"
        return self.twilio.calls[call_sid]

    @asynccontextmanager
    async def picked_up(self, call: Call) -> AsyncIterator[SimulatedPhone]:
        """Somebody answers: a phone that carries out the very TwiML of the request."""
        document = await self.twilio.answer(self.outside, call)
        phone = SimulatedPhone(
            strict=True,
            from_number=call.asked("From"),
            to_number=call.asked("To"),
            account_sid=ACCOUNT_SID,
            call_sid=call.sid,
            auth_token=AUTH_TOKEN,
        )
        async with phone.answer(document, self.address):
            yield phone

    async def report(self, call: Call, forms: Any) -> None:
        """Twilio's reports, in the order given."""
        for response in await self.twilio.report(self.outside, call, forms):
            assert (response.status_code, response.text) == (204, "")

    async def shown(self, call: Call) -> dict[str, Any]:
        response = await self.client.get(f"/calls/{call.sid}")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def over(self) -> None:
        """Wait until no call is left on any side, and its record, if any, is stored."""
        await self.bridge.calls.wait_until_empty()
        await self.agent.wait_until_idle()
        if (writer := self.bridge.recorder.writer) is not None:
            await writer.settle()


@asynccontextmanager
async def office(using: Settings | None = None, script: Script = silent) -> AsyncIterator[Office]:
    """Open for calls. When it closes, no call may be left, and nothing that failed unnoticed."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            agent, twilio = SimulatedAgent(script, GREETS), TwilioStandIn()
            agent_port = await nursery.start(agent.serve)
            twilio_url = await nursery.start(twilio.serve)
            base = using or settings(agent=AGENT)
            url = f"ws://127.0.0.1:{agent_port}/v1/agent/converse"
            chosen = msgspec.structs.replace(
                base,
                deepgram=msgspec.structs.replace(base.deepgram, url=url),
                server=msgspec.structs.replace(base.server, bind="127.0.0.1:0"),
            )
            config = PublicAddress(chosen)
            app = create_app(config, SECRETS_WITH_TWILIO)
            place = Office(app.extensions["bridge"], agent, twilio)
            stop = trio.Event()
            # Inside the agent's and Twilio's, which are there until the server has stopped.
            async with trio.open_nursery() as house:
                (place.address,) = await house.start(
                    partial(serve, app, hypercorn_config(chosen), shutdown=stop)
                )
                config.publish(place.address)
                await place.bridge.twilio.aclose()
                place.bridge.twilio = TwilioRest(ACCOUNT_SID, AUTH_TOKEN, twilio_url)
                async with (
                    httpx.AsyncClient(
                        base_url=place.address, headers=OPERATOR, trust_env=False
                    ) as place.client,
                    httpx.AsyncClient(trust_env=False) as place.outside,
                ):
                    place.client.timeout = place.outside.timeout = httpx.Timeout(PATIENCE)
                    yield place
                    await place.over()
                    assert agent.failures == []
                stop.set()
            nursery.cancel_scope.cancel(reason="the test is over")


@pytest.fixture
def recorded(tmp_path: Path) -> Settings:
    """Settings with a database of their own; `config.toml` beside it names the same."""
    url = f"sqlite:///{tmp_path / 'calls.db'}"
    (tmp_path / "config.toml").write_text(f"[records]\nurl = {json.dumps(url)}\n", encoding="utf-8")
    return settings(agent=AGENT, records={"url": url})


async def bridge(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end in an environment in which only the API token is set for it."""
    ours = ("BRIDGE_", "DEEPGRAM_", "TWILIO_", "PYTEST_")
    others = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return await trio.run_process(
        [sys.executable, "-c", BRIDGE, *arguments],
        cwd=folder,
        env={**others, "BRIDGE_API_TOKEN": SECRETS.api_token},
        stdin=b"",
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


async def until(what: Callable[[], object]) -> None:
    """Wait for something that nobody tells of; how long is up to the deadline around it."""
    while not what():  # noqa: ASYNC110 - there is no event
        await trio.sleep(0.005)


def hangs_up_at_twilio(place: Office, phone: SimulatedPhone) -> None:
    """Have Twilio do what it is told before it answers: its `stop` reaches the server first."""
    handle = place.twilio.handle

    async def handle_and_end(method: str, *request: Any) -> Answer:
        answer = await handle(method, *request)
        if method == "POST" and place.twilio.calls[phone.call_sid].status == "completed":
            await phone.hang_up()
        return answer

    place.twilio.handle = handle_and_end  # type: ignore[method-assign]


# ---- a call from the request to its end ----------------------------------------------------------


async def test_twilio_is_asked_for_the_call_with_all_that_it_will_need() -> None:
    """One request to Twilio, and in it everything the call is going to know about itself."""
    async with office() as place:
        call = await place.dial(variables={"name": "Ann & <Bob>", "order": 42, "vip": True})
        ((method, path, _),) = place.twilio.requests
        assert (method, path) == ("POST", f"/2010-04-01/Accounts/{ACCOUNT_SID}/Calls.json")
        assert (call.asked("To"), call.asked("From")) == (TO, OWN_NUMBER)
        assert call.asked("StatusCallback") == f"{place.address}/call-status"
        assert call.events == ["initiated", "ringing", "answered", "completed"]
        async with place.picked_up(call) as phone:
            (connect,) = phone.verbs
            assert isinstance(connect, ConnectStream)
            media = place.address.replace("http://", "ws://")
            assert connect.url == f"{media}/media-stream"
            # With the variables, for the case that a transfer brings the person back.
            variables = urlencode({"var.name": "Ann & <Bob>", "var.order": 42, "var.vip": "true"})
            assert connect.action == f"{place.address}/call-ended?{variables}"
            parameters = dict(connect.parameters)
            assert parameters.pop("ticket")
            assert parameters == {
                "CallSid": call.sid,
                "name": "Ann & <Bob>",
                "order": "42",
                "vip": "true",
                "From": OWN_NUMBER,
                "To": TO,
                "direction": "outbound-api",
            }


async def test_the_agent_greets_the_one_who_was_called_by_name() -> None:
    """The variables are in the greeting and the prompt of this call's Settings, and are heard."""
    async with office() as place:
        call = await place.dial(variables={"name": "Ann", "order": 42})
        async with place.picked_up(call) as phone:
            session = await place.agent.wait_for_session()
            greeting = speech_for("Hello Ann!")
            await phone.wait_heard(len(greeting) / 8000)
            assert phone.received_audio == greeting
            assert session.settings is not None
            agent = session.settings["agent"]
            assert agent["greeting"] == "Hello Ann!"
            assert agent["think"]["prompt"] == "You talk to Ann about order 42. Keep {unknown}."


async def test_two_calls_at_once_keep_their_variables_apart() -> None:
    async with office() as place:
        calls = {name: await place.dial(variables={"name": name}) for name in ("Ann", "Bob")}
        async with place.picked_up(calls["Bob"]) as bob, place.picked_up(calls["Ann"]) as ann:
            for name, phone in (("Ann", ann), ("Bob", bob)):
                greeting = speech_for(f"Hello {name}!")
                await phone.wait_heard(len(greeting) / 8000)
                assert phone.received_audio == greeting


async def test_the_agent_that_was_asked_for_speaks() -> None:
    """`agent` names who speaks, whatever number is called."""
    using = settings(
        agent=AGENT, agents={"sales": {"numbers": [OWN_NUMBER], "greeting": "Sales for {name}."}}
    )
    async with office(using) as place:
        call = await place.dial(agent="sales", variables={"name": "Ann"})
        async with place.picked_up(call):
            session = await place.agent.wait_for_session()
            await session.applied.wait()
            assert session.settings is not None
            assert session.settings["agent"]["greeting"] == "Sales for Ann."


async def test_a_call_is_shown_from_ringing_to_its_end(recorded: Settings) -> None:
    """Whatever the order in which Twilio's reports come, what is shown goes forward only."""
    async with office(recorded) as place:
        call = await place.dial(variables={"name": "Ann"})
        assert (await place.shown(call))["status"] == "queued"

        initiated, ringing, answered = place.twilio.reports(
            call, ["initiated", "ringing", "answered"]
        )
        await place.report(call, [ringing, initiated])
        shown = await place.shown(call)
        assert (shown["live"], shown["status"]) == (False, "ringing")
        await place.report(call, [answered, ringing])
        assert (await place.shown(call))["status"] == "in-progress"

        async with place.picked_up(call) as phone:
            await place.agent.wait_for_session()
            shown = await place.shown(call)
            assert (shown["live"], shown["status"]) == (True, "in-progress")
            assert (shown["caller"], shown["called"]) == (OWN_NUMBER, TO)
            listed = (await place.client.get("/calls")).json()
            assert [one["call_sid"] for one in listed["live"]] == [call.sid]
            assert listed["recent"] == []
            await phone.hang_up()
        (completed,) = place.twilio.reports(call, ["completed"])
        await place.report(call, [completed, answered, ringing, initiated])
        await place.over()

        shown = await place.shown(call)
        assert (shown["live"], shown["status"]) == (False, "completed")
        assert shown["outcome"] == "caller_hung_up"
        assert shown["direction"] == "outbound-api"
        listed = (await place.client.get("/calls")).json()
        assert listed["live"] == []
        (recent,) = listed["recent"]
        assert recent.items() <= shown.items()  # all but what only a whole record has
        assert recent["outcome"] == "caller_hung_up"


async def test_a_call_that_is_dialled_has_a_line_from_the_first_ring_on() -> None:
    """Whoever picks up is never told that all lines are busy; and nobody else gets that line."""
    using = settings(agent=AGENT, server={"max_calls": 1})
    async with office(using) as place:
        call = await place.dial()
        second = await place.client.post("/calls", json={"to": TO, "from": OWN_NUMBER})
        assert second.status_code == 503
        assert "server.max_calls" in second.json()["error"]
        caller = SimulatedPhone(strict=True, auth_token=AUTH_TOKEN)
        async with caller.place_call(place.address) as phone:
            await phone.wait_ended()
        assert phone.verbs == [Say(Words().busy), Hangup()]
        async with place.picked_up(call) as phone:
            await place.agent.wait_for_session()
            assert len(place.bridge.entrance.slots) == 1
            await phone.hang_up()
        await place.over()
        # Nobody answers: the line is free when Twilio says so.
        call = await place.dial()
        assert len(place.bridge.entrance.slots) == 1
        await place.report(call, place.twilio.reports(call, ["completed"], "no-answer"))
        assert len(place.bridge.entrance.slots) == 0


async def test_an_unanswered_call_is_recorded_as_that(recorded: Settings) -> None:
    """Reports are all that is ever known of it, and the last word stays the last word."""
    async with office(recorded) as place:
        call = await place.dial()
        forms = place.twilio.reports(call, ["initiated", "ringing", "completed"], "no-answer")
        await place.report(call, reversed(forms))
        await place.over()
        shown = await place.shown(call)
        assert (shown["live"], shown["status"]) == (False, "no-answer")
        assert (shown["caller"], shown["called"]) == (OWN_NUMBER, TO)
        record = await place.bridge.recorder.get(call.sid)
        assert (record.status, record.outcome) == ("no-answer", "")
        assert place.agent.opened == 0


async def test_who_answered_is_recorded(recorded: Settings) -> None:
    """Twilio's verdict on who answered comes in a report without status or number, and lasts."""
    async with office(recorded) as place:
        call = await place.dial(machine_detection="Enable", async_amd=True)
        reports = place.twilio.reports(call)
        await place.report(call, reports[:3])
        response = await place.twilio.report_answerer(place.outside, call, "human")
        assert response.status_code == 204
        await place.report(call, reports[3:])
        await place.over()
        assert (await place.shown(call))["answered_by"] == "human"
        record = await place.bridge.recorder.get(call.sid)
        assert (record.status, record.answered_by) == ("completed", "human")


@pytest.mark.parametrize("twilio_is_first", [False, True])
async def test_an_operator_hangs_up(recorded: Settings, twilio_is_first: bool) -> None:
    """It is the operator who ended the call, whether the server closes the socket or Twilio, which
    is told to end the call, is faster with its `stop`. Twice is once."""
    async with office(recorded) as place:
        call = await place.dial(variables={"name": "Ann"})
        async with place.picked_up(call) as phone:
            await place.agent.wait_for_session()
            if twilio_is_first:
                hangs_up_at_twilio(place, phone)
            for _ in range(2):
                response = await place.client.delete(f"/calls/{call.sid}")
                assert response.status_code == 200
                assert response.json() == {"call_sid": call.sid, "status": "completed"}
            await phone.wait_ended()
        assert call.updates == [[("Status", "completed")]]
        await place.over()
        shown = await place.shown(call)
        assert (shown["live"], shown["outcome"]) == (False, "operator_hung_up")
        assert shown["reason"] == "an operator hung up"
        # Whether there was time for the TwiML that follows is up to who was first.
        assert phone.verbs[1:] in ([], [Hangup()])


async def test_an_operator_hangs_up_before_anybody_answers() -> None:
    """Twilio alone can end a call that rings, and is asked to."""
    async with office() as place:
        call = await place.dial()
        response = await place.client.delete(f"/calls/{call.sid}")
        assert response.status_code == 200
        assert call.status == "canceled"
        (report,) = place.twilio.reports(call, ["completed"], "canceled")
        await place.report(call, [report])
        assert (await place.shown(call))["status"] == "canceled"


async def test_a_call_that_was_never_placed_is_not_found() -> None:
    async with office() as place:
        for method in ("GET", "DELETE"):
            response = await place.client.request(method, f"/calls/CA{'f' * 32}")
            assert response.status_code == 404
            assert "no such call" in response.json()["error"]


# ---- what Twilio refuses -------------------------------------------------------------------------


async def test_what_twilio_refuses_comes_back_in_its_words() -> None:
    """A number that is not the account's: the operator reads Twilio's code and words, and there is
    no call."""
    async with office() as place:
        response = await place.client.post("/calls", json={"to": TO, "from": "+15550000000"})
        assert response.status_code == 422
        body = response.json()
        assert body["twilio"]["code"] == 21210
        assert "not yet verified" in body["twilio"]["message"]
        assert body["twilio"]["more_info"].endswith("/21210")
        assert "21210" in body["error"]
        assert "not yet verified" in body["error"]
        assert "\n" not in body["error"]
        assert (await place.client.get("/calls")).json() == {
            "live": [],
            "recent": [],
            "records_error": "",
        }


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (twilio_error(401, 20003, "Authenticate"), 502),
        (twilio_error(429, 20429, "Too Many Requests"), 503),
        (twilio_error(503, 20503, "Service Unavailable"), 502),
    ],
)
async def test_twilio_at_odds_with_the_account_is_said_as_such(fault: Answer, status: int) -> None:
    """No fault of the request: another status, and one request only, since a phone may ring."""
    async with office() as place:
        place.twilio.faults.append(fault)
        response = await place.client.post("/calls", json={"to": TO, "from": OWN_NUMBER})
        assert response.status_code == status
        said = json.loads(fault.body)
        assert response.json()["twilio"]["code"] == said["code"]
        assert response.json()["twilio"]["message"] == said["message"]
        assert AUTH_TOKEN not in response.text
        assert ACCOUNT_SID not in response.text
        assert len(place.twilio.requests) == 1
        # And the next one is not the worse for it.
        await place.dial()


# ---- the commands --------------------------------------------------------------------------------


async def test_the_dial_command_places_a_call_and_prints_its_sid(tmp_path: Path) -> None:
    async with office() as place:
        arguments = (TO, "--from", OWN_NUMBER, "--var", "name=Ann", "--url", place.address)
        done = await bridge(tmp_path, "dial", *arguments)
        assert (done.returncode, done.stderr) == (0, b"")
        (call,) = place.twilio.calls.values()
        assert done.stdout.decode().split() == [call.sid, "queued"]
        async with place.picked_up(call) as phone:
            await phone.wait_heard(len(speech_for("Hello Ann!")) / 8000)
            assert phone.received_audio == speech_for("Hello Ann!")


async def test_the_dial_command_says_what_twilio_refused(tmp_path: Path) -> None:
    async with office() as place:
        arguments = (TO, "--from", "+15550000000", "--url", place.address)
        done = await bridge(tmp_path, "dial", *arguments)
        assert (done.returncode, done.stdout) == (1, b"")
        (line,) = done.stderr.decode().splitlines()
        assert "21210" in line
        assert "not yet verified" in line


async def test_the_dial_command_without_a_server_fails_in_one_line(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        # Bound and not listening: nobody answers here, and nobody else can take the port.
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            done = await bridge(tmp_path, "dial", TO, "--url", url)
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("bridge: cannot reach ")
    assert "is `bridge serve` running?" in line


async def test_the_calls_command_shows_what_was_said_and_heard(
    recorded: Settings, tmp_path: Path
) -> None:
    """A record outlives the server: how the call ended, who said what, what was heard, and when."""
    greeted, replied = trio.Event(), trio.Event()

    async def script(session: AgentSession) -> None:
        await greeted.wait()
        await session.user_said("Is it noon?")
        await session.say("It is noon.")
        replied.set()

    async with office(recorded, script) as place:
        call = await place.dial(variables={"name": "Ann"})
        await place.report(call, place.twilio.reports(call, ["initiated", "ringing", "answered"]))
        async with place.picked_up(call) as phone:
            greeting, reply = speech_for("Hello Ann!"), speech_for("It is noon.")
            await phone.wait_heard(len(greeting) / 8000)
            greeted.set()
            await replied.wait()
            await phone.wait_heard(len(greeting + reply) / 8000)
            assert phone.received_audio == greeting + reply
            (live,) = place.bridge.calls
            lines = live.story.lines
            await until(
                lambda: [one.heard for one in lines if one.role == "agent"] == ["heard"] * 2
            )
            await place.client.delete(f"/calls/{call.sid}")
            await phone.wait_ended()
        await place.report(call, place.twilio.reports(call, ["completed"]))
        await place.over()

    with trio.fail_after(PATIENCE):
        done = await bridge(tmp_path, "calls", call.sid, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    record = json.loads(done.stdout)
    assert record["call_sid"] == call.sid
    assert (record["direction"], record["status"]) == ("outbound-api", "completed")
    assert (record["outcome"], record["reason"]) == ("operator_hung_up", "an operator hung up")
    # Fields that have their default are left out.
    said = [(one.get("role", "caller"), one["words"]) for one in record["transcript"]]
    assert said == [("agent", "Hello Ann!"), ("caller", "Is it noon?"), ("agent", "It is noon.")]
    spoken = [one for one in record["transcript"] if one.get("role") == "agent"]
    assert [one["heard"] for one in spoken] == ["heard", "heard"]
    assert record["turns"]
    received, sent, heard = (
        record["turns"][-1][name]
        for name in ("first_audio_received_at", "first_audio_sent_at", "heard_at")
    )
    assert 0 < received <= sent <= heard <= record["seconds"]
    # Numbers are masked, as in the log.
    assert TO not in done.stdout.decode()
