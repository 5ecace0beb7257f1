"""`bridge phone`: wrong usage and a server that is not there, each in one line; how it shows who
speaks when, and how long replies took.
"""

from __future__ import annotations

import json

import msgspec
import pytest
import trio
from rich.console import Console

from bridge.cli.phone.caller import Plan, call
from bridge.cli.phone.result import as_json, summary
from bridge.cli.phone.view import CallView
from bridge.testing.agent.server import AgentSession
from tests.unit.cli.commands import bridge_exits
from tests.unit.cli.phone.tones import quiet, tone
from tests.world import QUIET, in_memory

TICK = 800  # bytes of a tenth of a second


def lines_of(capsys, caller: bytes, agent: bytes) -> tuple[CallView, list[str]]:
    """What the view says of these two sides, heard a tenth of a second at a time."""
    view = CallView(Console(stderr=True))
    for at in range(0, max(len(caller), len(agent)), TICK):
        view.hear(agent[at : at + TICK], caller[at : at + TICK])
    view.hear(b"", b"", last=True)
    return view, capsys.readouterr().err.splitlines()


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    code = bridge_exits(monkeypatch, "phone", *arguments)
    return code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nothere.wav"], "cannot read nothere.wav: No such file"),
        (["--save", "no/such/folder/heard.wav"], "there is no folder no/such/folder"),
        (["--press", "12x"], "a keypad has no x"),
        (["--url", "bridge.example"], "must begin with http"),
        (["--dial", "engaged"], "no-answer"),
    ],
)
def test_wrong_usage(monkeypatch, capsys, arguments, why):
    code, line = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert why in line


def test_a_recording_that_is_no_wav(monkeypatch, capsys, tmp_path):
    (tmp_path / "song.mp3").write_bytes(b"ID3")
    code, line = run(monkeypatch, capsys, str(tmp_path / "song.mp3"))
    assert code == 2
    assert "not a WAV file" in line
    assert "sox" in line


@pytest.mark.parametrize("wait", [0.3, 0.9])
def test_a_reply_is_shown_with_its_delay_after_the_caller_has_finished(capsys, wait):
    view, lines = lines_of(
        capsys,
        caller=quiet(2.0) + tone(1.0) + quiet(3.0),
        agent=tone(1.0) + quiet(2.0 + wait) + tone(1.0) + quiet(2.0 - wait),
    )
    assert lines == [
        "00:00.0 agent speaks",
        "00:01.0 agent falls silent (1.0 s)",
        "00:02.0 caller speaks",
        "00:03.0 caller falls silent (1.0 s)",
        f"00:0{3 + wait:.1f} agent speaks ({wait:.1f} s after the caller)",
        f"00:0{4 + wait:.1f} agent falls silent (1.0 s)",
    ]
    assert view.reply_seconds == [pytest.approx(wait)]


def test_an_agent_that_cuts_in_does_not_reply(capsys):
    # In a pause of the caller that is no end: only what follows tells.
    view, lines = lines_of(
        capsys,
        caller=tone(1.0) + quiet(0.4) + tone(1.0) + quiet(1.0),
        agent=quiet(1.2) + tone(1.0) + quiet(1.2),
    )
    assert lines[:2] == ["00:00.0 caller speaks", "00:01.2 agent speaks"]
    assert view.reply_seconds == []


def test_an_agent_that_speaks_on_does_not_reply(capsys):
    view, lines = lines_of(
        capsys,
        caller=quiet(1.0) + tone(0.5) + quiet(3.0),
        agent=tone(2.0) + quiet(0.6) + tone(1.0) + quiet(0.9),
    )
    assert [line for line in lines if "speaks" in line] == [
        "00:00.0 agent speaks",
        "00:01.0 caller speaks",
        "00:02.6 agent speaks",
    ]
    assert view.reply_seconds == []


async def greets_and_replies(session: AgentSession) -> None:
    await session.say("Hello.", tone(1.0))
    await session.wait_for_end_of_speech()
    await trio.sleep(0.3)
    await session.user_said("Hello?")
    await session.say("Hello again.", tone(1.0))


async def test_the_replies_of_a_call(autojump_clock, capsys):
    hearing = msgspec.structs.replace(QUIET, hears=True)
    async with in_memory(greets_and_replies, hearing) as world:
        view = CallView(Console(stderr=True))
        caller = world.phone(on_event=view.event)
        await call(caller, world.base_url, Plan(tone(1.0), transcript=False), view)
        await world.quiet()
    # Half a second until the agent takes it for the end, and 0.3 s of thinking; frames are 20 to
    # 60 ms.
    [seconds] = view.reply_seconds
    assert 0.75 < seconds < 0.95
    shown = [line for line in capsys.readouterr().err.splitlines() if "agent speaks" in line]
    assert [line.partition("speaks")[2] for line in shown] == [
        "",
        f" ({seconds:.1f} s after the caller)",
    ]
    assert f"\nreplies   median {seconds:.2f} s, longest {seconds:.2f} s\n" in summary(
        caller, view, None
    )
    assert json.loads(as_json(caller, view))["reply_seconds"] == [round(seconds, 3)]


async def test_a_call_without_a_reply_says_nothing_of_replies(autojump_clock):
    async with in_memory() as world:
        view = CallView(Console(stderr=True))
        caller = world.phone(on_event=view.event)
        await call(
            caller, world.base_url, Plan(tone(0.5), wait=0.0, linger=1.0, transcript=False), view
        )
        await world.quiet()
    assert "replies" not in summary(caller, view, None)
    assert json.loads(as_json(caller, view))["reply_seconds"] == []
