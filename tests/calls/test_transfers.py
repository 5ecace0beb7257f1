"""What becomes of a caller who is handed over to somebody else, on the virtual clock."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from bridge.testing.agent.server import AgentSession, Script
from bridge.testing.phone.twiml import ConnectStream, Dial, Hangup, Say
from bridge.testing.phone.webhook import sign
from bridge.twilio.rest import TwilioRest
from tests.twilio_standin import ACCOUNT_SID, TwilioStandIn
from tests.twilio_standin import AUTH_TOKEN as REST_TOKEN
from tests.world import AUTH_TOKEN, QUIET, World, in_memory, injected, settings

Clock = trio.testing.MockClock
SECOND = bytes((n * n // 160 + n) % 251 for n in range(8_000))

RECEPTION = {"reception": "+15551112222"}
SORRY = "I'm sorry, nobody could take your call."


async def transfers(agent: AgentSession, to: str = "reception") -> None:
    await agent.user_said("A person please.")
    arguments = json.dumps({"destination": to})
    await agent.call_functions([{"name": "transfer_call", "arguments": arguments}])
    await agent.say("I connect you.", SECOND)


def script(first: Script = transfers, later: Script | None = None) -> Script:
    """An agent whose first session does one thing, and later ones another."""

    async def play(agent: AgentSession) -> None:
        if agent.number == 1:
            await first(agent)
        elif later is not None:
            await later(agent)

    return play


def using(**tables: Any) -> Any:
    functions = {"transfer_to": RECEPTION, **tables.pop("functions", {})}
    return settings(functions=functions, **tables)


def lines(world: World, event: str) -> list[dict[str, Any]]:
    return [dict(line) for line in world.logs if line["event"] == event]


async def total(world: World, outcome: str) -> float:
    page, _ = await world.app.extensions["bridge"].scrapes.answer(None)
    for line in page.decode().splitlines():
        if line.startswith(f'bridge_calls_total{{outcome="{outcome}"}} '):
            return float(line.rpartition(" ")[2])
    raise AssertionError(outcome)


async def test_somebody_answers(autojump_clock: Clock) -> None:
    async with in_memory(script(), QUIET, using()) as world:
        async with world.call(talk_seconds=45) as phone:
            await phone.wait_event("twiml", "dials +15551112222")
            await world.quiet()
            # It is not known yet whether anybody answers.
            assert world.record_of(phone).outcome == "handed_over"
            assert await total(world, "transferred") == 0
            assert lines(world, "call ended") == []
            await phone.wait_ended()
        assert await total(world, "transferred") == 1
    connect, dial, hangup = phone.verbs
    assert isinstance(connect, ConnectStream)
    assert dial == Dial(
        "+15551112222", "+15550100001", 20, f"{world.base_url}/call-ended?transfer=reception"
    )
    assert (hangup, phone.ending) == (Hangup(), "dialled")
    record = world.record_of(phone)
    assert (record.outcome, record.transfer_status, record.transfer_seconds) == (
        *("transferred", "completed"),
        45.0,
    )
    assert (record.transfer_name, record.transfer_to) == ("reception", "+15551112222")
    assert record.reason == "the agent called transfer_call: reception"
    (leg,) = record.legs
    assert (leg.outcome, leg.transfer_status) == ("handed_over", "completed")
    (line,) = lines(world, "call handed over")
    assert line["transfer_name"] == "reception"
    assert world.ending["outcome"] == "transferred"
    assert world.ending["transfer_seconds"] == 45.0


@pytest.mark.parametrize("status", ["busy", "no-answer", "failed", "canceled"])
async def test_nobody_answers_and_the_agent_has_the_caller_again(
    autojump_clock: Clock, status: str
) -> None:
    async def goes_on(agent: AgentSession) -> None:
        await agent.wait_for_message("InjectAgentMessage")
        await trio.sleep(3)
        await agent.user_said("Then take a message.")
        await agent.say("I note it.", SECOND)

    async with in_memory(script(later=goes_on), QUIET, using()) as world:
        async with world.call(dials=[status]) as phone:
            again = await world.agent.wait_for_session(2)
            await again.applied.wait()
            await trio.sleep(8)
            await phone.hang_up()
        await world.quiet()
    # The conversation so far, with the reason, and no second greeting.
    assert again.settings is not None
    agent = again.settings["agent"]
    assert "greeting" not in agent
    said = [one.get("content") for one in agent["context"]["messages"]]
    assert said[0] == "A person please."
    assert "I connect you." in said
    (call,) = [one for one in agent["context"]["messages"] if "function_calls" in one]
    (function,) = call["function_calls"]
    assert json.loads(function["response"]) == {"DialCallStatus": status}
    # The agent itself says it, in its own voice, and first.
    assert injected(again) == [SORRY]
    assert not any(isinstance(verb, Say) for verb in phone.verbs)
    # One call: one record, one line, one outcome.
    record = world.record_of(phone)
    assert record.outcome == "caller_hung_up"
    assert record.transfer_status == ""
    assert [(leg.outcome, leg.transfer_status) for leg in record.legs] == [
        ("handed_over", status),
        ("caller_hung_up", ""),
    ]
    words = [line.words for line in record.transcript]
    assert words == [
        *("A person please.", "I connect you.", SORRY, "Then take a message.", "I note it."),
    ]
    times = [line.at for line in record.transcript]
    assert times == sorted(times)
    assert record.seconds == pytest.approx(phone.elapsed, abs=0.5)
    assert record.legs[1].at >= record.legs[0].seconds + (20 if status == "no-answer" else 0)
    assert len(record.request_ids) == 2
    assert world.ending["leg"] == 2
    # Ringing is heard until the new leg; then the agent speaks within a second.
    heard = [event.at for event in phone.events if event.kind == "media"]
    assert min(at for at in heard if at >= record.legs[1].at) < record.legs[1].at + 1


async def test_a_second_transfer_of_the_same_call(autojump_clock: Clock) -> None:
    async with in_memory(script(later=transfers), QUIET, using()) as world:
        async with world.call(dials=["busy", "completed"], talk_seconds=30) as phone:
            await phone.wait_ended()
        assert await total(world, "transferred") == 1
    assert [type(verb) for verb in phone.verbs] == [ConnectStream, Dial] * 2 + [Hangup]
    record = world.record_of(phone)
    assert (record.outcome, record.transfer_seconds) == ("transferred", 30.0)
    assert [leg.transfer_status for leg in record.legs] == ["busy", "completed"]
    assert phone.ending == "dialled"


async def test_hang_up_where_the_agent_is_not_wanted(autojump_clock: Clock) -> None:
    with_words = using(
        functions={"after_failed_transfer": "hang_up"},
        words={"language": "fr-FR", "transfer_failed": "Personne."},
    )
    async with in_memory(script(), QUIET, with_words) as world:
        async with world.call(dials=["busy"]) as phone:
            await phone.wait_ended()
        assert await total(world, "agent_ended") == 1
    assert phone.verbs[-2:] == [Say("Personne.", "fr-FR"), Hangup()]
    record = world.record_of(phone)
    assert (record.outcome, record.reason) == ("agent_ended", "transfer to reception: busy")
    assert world.agent.connections == 1


async def test_a_caller_who_hangs_up_while_it_rings(autojump_clock: Clock) -> None:
    async with in_memory(script(), QUIET, using()) as world:
        async with world.call(dials=["no-answer"]) as phone:
            await phone.wait_event("twiml", "dials +15551112222")
            await trio.sleep(5)
            await phone.hang_up()
        assert await total(world, "caller_hung_up") == 1
    record = world.record_of(phone)
    assert (record.outcome, record.transfer_status) == ("caller_hung_up", "no-answer")
    assert world.agent.connections == 1


async def test_a_full_server_says_so_and_hangs_up(autojump_clock: Clock) -> None:
    """The line that the caller gave back is taken: no agent, but words and an end."""
    async with in_memory(script(), QUIET, using(server={"max_calls": 1})) as world:
        async with world.call(dials=["no-answer"]) as phone:
            await phone.wait_event("twiml", "dials +15551112222")
            await world.quiet()
            async with world.call() as other:
                await world.agent.wait_for_session(2)
                await phone.wait_ended()
                await other.hang_up()
        await world.quiet()
    assert phone.verbs[-2:] == [Say(SORRY), Hangup()]
    assert world.record_of(phone).outcome == "agent_ended"


@pytest.mark.parametrize("caller", ["client:ada", "sip:ada@example.sip.twilio.com", "Anonymous"])
async def test_a_caller_without_a_number_is_shown_with_the_called_one(
    autojump_clock: Clock, caller: str
) -> None:
    """Without that Twilio refuses the transfer, which the strict phone would tell."""
    async with in_memory(script(), QUIET, using()) as world:
        async with world.call(from_number=caller) as phone:
            await phone.wait_ended()
    (dial,) = [verb for verb in phone.verbs if isinstance(verb, Dial)]
    assert dial.caller_id == "+15550100002"


@pytest.mark.parametrize(
    ("target", "digits"),
    [("+15551112222;ext=12", "wwww12"), ("sip:desk@example.com", ""), ("client:ann", "")],
)
async def test_other_targets(autojump_clock: Clock, target: str, digits: str) -> None:
    functions = {"transfer_to": {"reception": target}, "transfer_caller_id": "+15550009999"}
    async with in_memory(script(), QUIET, using(functions=functions)) as world:
        async with world.call() as phone:
            await phone.wait_ended()
    (dial,) = [verb for verb in phone.verbs if isinstance(verb, Dial)]
    assert (dial.number, dial.send_digits) == (target.partition(";")[0], digits)
    assert dial.caller_id == "+15550009999"
    assert world.record_of(phone).transfer_to == target


async def test_twilio_repeats_the_request_for_what_comes_next(autojump_clock: Clock) -> None:
    """The answer is the same, and nothing is counted or written twice."""
    async with in_memory(script(), QUIET, using()) as world:
        async with world.call(talk_seconds=5) as phone:
            await phone.wait_ended()
        before = world.record_of(phone)
        client = world.app.test_client()
        url = "http://127.0.0.1:5000/call-ended?transfer=reception"
        form = {
            "CallSid": phone.call_sid,
            "CallStatus": "in-progress",
            "DialCallStatus": "completed",
            "DialCallDuration": "5",
        }
        signature = sign(url, list(form.items()), AUTH_TOKEN)
        answer = await client.post(
            "/call-ended?transfer=reception",
            form=form,
            headers={"X-Twilio-Signature": signature, "Host": "127.0.0.1:5000"},
        )
        assert answer.status_code == 200
        assert b"<Hangup />" in await answer.get_data()
        assert await total(world, "transferred") == 1
        assert world.record_of(phone) is before
    assert len(lines(world, "call ended")) == 1


async def test_a_call_that_we_placed_keeps_its_variables(autojump_clock: Clock) -> None:
    """They came with the address of the first webhook; the agent that has the called person back is
    the same, with the same prompt."""
    agents = {"sales": {"numbers": [], "think": {"prompt": "You talk to {name}."}}}
    async with in_memory(script(), QUIET, using(agents=agents)) as world:
        query = "var.name=Ada+%26+Co&amp;agent=sales"
        page = f"<Response><Redirect>{world.base_url}/incoming-call?{query}</Redirect></Response>"
        async with world.phone(dials=["busy"]).answer(page, world.base_url) as phone:
            again = await world.agent.wait_for_session(2)
            await again.applied.wait()
            await trio.sleep(3)
            await phone.hang_up()
        await world.quiet()
    first, _ = world.agent.sessions
    assert first.prompt == again.prompt == "You talk to Ada & Co."
    assert injected(again) == [SORRY]
    record = world.record_of(phone)
    assert (record.agent, record.direction, len(record.legs)) == ("sales", "outbound-api", 2)


async def test_the_fallback_after_an_apology(autojump_clock: Clock) -> None:
    """Its outcome stays the first cause; the record says who was dialled, and how that ended."""

    async def fails(agent: AgentSession) -> None:
        await agent.error("INVALID_SETTINGS", "no such model")

    with_fallback = using(call={"fallback_number": "+15553334444"})
    for status, more in (("completed", []), ("busy", [Say(SORRY)])):
        async with in_memory(fails, QUIET, with_fallback) as world:
            async with world.call(dials=[status], talk_seconds=9) as phone:
                await phone.wait_ended()
            assert await total(world, "agent_failed") == 1
            assert await total(world, "transferred") == 0
        _, apology, dial, *rest = phone.verbs
        assert isinstance(apology, Say)
        assert isinstance(dial, Dial)
        assert (dial.number, dial.caller_id) == ("+15553334444", "+15550100001")
        assert rest == [*more, Hangup()]
        record = world.record_of(phone)
        assert (record.outcome, record.transfer_name) == ("agent_failed", "fallback")
        assert (record.transfer_to, record.transfer_status) == ("+15553334444", status)


async def test_over_rest_it_is_the_same(autojump_clock: Clock) -> None:
    """With credentials Twilio is told at once; what it dials reports to the same address."""
    standin = TwilioStandIn()
    async with in_memory(script(), QUIET, using()) as world:
        bridge = world.app.extensions["bridge"]
        rest = TwilioRest(ACCOUNT_SID, REST_TOKEN, transport=standin.transport())
        bridge.twilio = rest
        async with world.call(dials=["busy"]) as phone:

            async def update_call(call_sid: str, *, twiml: bytes) -> None:
                await phone.update(twiml, world.base_url)

            rest.update_call = update_call  # type: ignore[method-assign,assignment]
            again = await world.agent.wait_for_session(2)
            await again.applied.wait()
            await trio.sleep(1)
            await phone.hang_up()
        await world.quiet()
    dial = phone.verbs[1]
    assert isinstance(dial, Dial)
    assert dial.action == f"{world.base_url}/call-ended?transfer=reception"
    assert injected(again) == [SORRY]
    record = world.record_of(phone)
    assert [(leg.outcome, leg.transfer_status) for leg in record.legs] == [
        ("handed_over", "busy"),
        ("caller_hung_up", ""),
    ]
