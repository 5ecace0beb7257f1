"""`bridge calls`: what it shows of a database, to people and to programs."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from bridge.call.story import FunctionUse, Line, Turn
from bridge.cli import main
from bridge.cli.calls import calls
from bridge.outcome import Outcome
from bridge.records import schema
from bridge.records.record import CallRecord, snapshot, tidy
from bridge.records.store import Store
from bridge.text import printable
from tests.unit.records.samples import NASTY, NOON, SID, record, sid, whole_record


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, own_environment: None) -> None:
    """The configuration of a newcomer."""
    monkeypatch.setenv("TZ", "UTC")
    Path("config.toml").write_text("")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command: exit code, standard output, standard error."""

    def run_(*arguments: str) -> tuple[int, str, str]:
        # As the command line does it, also while the command is not in its list of commands.
        monkeypatch.setattr("bridge.cli.cli", calls)
        monkeypatch.setattr(sys, "argv", ["bridge", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        output = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, output.out, output.err

    return run_


def stored(*records: CallRecord) -> None:
    store = Store("sqlite:///calls.db")
    store.prepare()
    store.write([tidy(snapshot(one)) for one in records])
    store.close()


def test_lists_the_latest_first(run):
    stored(
        *(
            record(
                sid(i),
                revision=1,
                started_at=NOON + timedelta(minutes=i),
                outcome="idle" if i % 2 else "agent_ended",
                seconds=10.0 * i,
            )
            for i in range(30)
        )
    )
    code, out, err = run()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 21
    assert lines[0].split() == [
        *("started", "seconds", "caller", "called", "agent", "outcome", "cost", "call")
    ]
    assert lines[1].split() == ["2126-03-01", "12:29:00", "290.0", "idle", sid(29)]
    _, out, _ = run("--limit", "3", "--outcome", "agent_ended")
    assert [line.split()[-1] for line in out.splitlines()[1:]] == [sid(28), sid(26), sid(24)]


def test_an_outcome_that_does_not_exist_is_an_error_that_names_those_that_do(run):
    stored(record(revision=1))
    code, out, err = run("--outcome", "nonsense")
    assert (code, out) == (2, "")
    assert "nonsense" in err
    assert [outcome for outcome in Outcome if f"'{outcome}'" not in err] == []


def test_shows_one(run):
    """All of it: what was heard, reply times, timings from the end of the caller's words,
    functions, cost."""
    stored(whole_record(revision=1))
    code, out, err = run(SID)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    expected = [
        f"call {SID}",
        "outcome transferred",
        "reason asked for a person",
        "lasted 30.5 s (agent 29.0 s)",
        "caller +15…0001",
        "transfer reception +15…2222: completed, 61 s",
        "Deepgram's request ids 5f3a7c1e-0000-4000-8000-000000000001",
        "direction out",
        "status completed human",
        "cost 0.2500",
        "00:00.5 agent Hello!",
        "00:02.0 caller Sales, please. [en, es]",
        "00:02.6 agent One moment. [cut off after 0.5 s]",
        "00:06.0 agent Never said. [not heard]",
        "00:07.0 keypad 42#",
        "1 00:01.5 1.110 +0.500 +1.100 +1.110 +4.000 ttt=0.350 total=0.550",
        "2 00:07.0 typed 0.400 +0.100 +0.400 +0.400",
        "3 00:09.0 +0.500",
        '00:03.0 look_up 0.200 ok {"name":"x"} "y"',
        "00:00.0 9.0 MZ0 handed_over busy",
        "00:20.0 10.5 MZ1 transferred",
    ]
    assert [line for line in expected if line not in lines] == []


def test_a_call_that_is_on_or_was_never_answered(run):
    stored(
        record(sid(1), revision=1),
        record(sid(2), status="no-answer", status_sequence=3, direction="outbound-api"),
    )
    _, out, _ = run()
    assert "(no end recorded)" in out
    assert "no-answer" in out
    code, out, _ = run(sid(1))
    assert code == 0
    assert "(no end recorded)" in out


def test_json_for_one_and_for_many(run):
    stored(whole_record(revision=1), record(sid(1), revision=1, started_at=NOON - timedelta(1)))
    code, out, _ = run(SID, "--json")
    one = json.loads(out)
    assert code == 0
    assert (one["call_sid"], one["outcome"], one["cost"]) == (SID, "transferred", 0.25)
    assert one["started_at"] == "2126-03-01T12:00:00Z"
    assert one["transcript"][2] == {
        "at": 2.6,
        "role": "agent",
        "words": "One moment.",
        "heard": "cut",
        "heard_seconds": 0.5,
    }
    assert one["caller"] == "+15…0001"
    code, out, _ = run("--json")
    many = json.loads(out)
    assert [each["call_sid"] for each in many] == [SID, sid(1)]
    assert "transcript" not in many[0]
    assert many[0]["caller"] == "+15…0001"


def test_json_of_nothing_is_an_empty_list(run):
    stored()
    assert run("--json") == (0, "[]\n", "")
    assert run() == (0, "", "no calls\n")


def test_numbers_are_shown_when_they_may_be(run):
    Path("config.toml").write_text("[logging]\nmask_numbers = false\n")
    stored(whole_record(revision=1))
    for arguments in ((SID,), (SID, "--json"), (), ("--json",)):
        assert "+15550100001" in run(*arguments)[1]
    Path("config.toml").write_text("")
    for arguments in ((SID,), (SID, "--json"), (), ("--json",)):
        assert "5550100001" not in run(*arguments)[1]


@pytest.mark.parametrize("text", NASTY[1:])
def test_nothing_a_peer_sent_reaches_the_terminal_as_more_than_text(run, text):
    """In every field, by every way of showing it; no markup, no controls, no second line."""
    one = whole_record(
        revision=1,
        caller=text,
        called=text,
        agent=text,
        reason=text,
        transfer_to=text,
        status=text,
        recording=text,
        outcome=text,
        transcript=[Line(words=text)],
        turns=[Turn(latencies={text: 1.0})],
        functions=[FunctionUse(name=text, arguments=text, answer=text, result=text)],
    )
    stored(one)
    for arguments in ((SID,), (SID, "--json"), (), ("--json",)):
        code, out, _ = run(*arguments)
        assert code == 0
        assert [line for line in out.splitlines() if printable(line) != line] == []
        assert out.count("\n") == len(out.splitlines())
    (listed,) = run()[1].splitlines()[1:]
    assert SID in listed
    assert json.loads(run(SID, "--json")[1])["transcript"] == [
        {"words": tidy(snapshot(one)).transcript[0].words}
    ]


def test_markup_is_text(run):
    stored(whole_record(revision=1, transcript=[Line(words="[red]not[/red] :smile: red")]))
    assert "[red]not[/red] :smile: red" in run(SID)[1]


def test_words_that_were_not_kept_are_said_to_be_none(run):
    stored(whole_record(revision=1, words_kept=False))
    out = run(SID)[1]
    assert "not stored (records.transcripts)" in out
    assert "Sales, please." not in out
    assert "00:02.0 caller (not stored)" in " ".join(out.split())


def _newer() -> None:
    stored()
    store = Store("sqlite:///calls.db")
    with store._connect().begin() as connection:
        connection.execute(sa.update(schema.versions).values(version=99))


@pytest.mark.parametrize(
    ("prepare", "arguments", "code", "words"),
    [
        (stored, ["CAnobody"], 1, "no call CAnobody is recorded"),
        (stored, ["\x1b[31m\n'; DROP TABLE calls; --"], 1, "no call \\x1b[31m\\n'; DROP"),
        (lambda: None, [], 1, "no call has been recorded yet"),
        (lambda: Path("calls.db").touch(), [], 1, "holds no calls of bridge's"),
        (lambda: Path("calls.db").write_text("aunt" * 999), [], 1, "not a database"),
        (_newer, [], 1, "newer bridge"),
        (lambda: Path("config.toml").write_text("[records]\nurl = ''"), [], 1, "records.url"),
        (lambda: Path("config.toml").write_text("[records]\nurl = 'x'"), [], 2, "records.url"),
        (lambda: Path("config.toml").write_text("[record"), [], 2, "not valid TOML"),
        (lambda: None, ["--config", "nowhere.toml"], 2, "nowhere.toml: no such file"),
        (lambda: None, ["--limit", "0"], 2, "--limit"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run, prepare, arguments, code, words):
    prepare()
    before = sorted(os.listdir())
    result, out, err = run(*arguments)
    assert (result, out) == (code, "")
    assert words in err
    assert err.strip().splitlines()[-1].isprintable()
    if "--limit" not in arguments:
        assert err.startswith("bridge: ")
        assert err.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_another_configuration(run):
    Path("that.toml").write_text("[records]\nurl = ''")
    assert run("--config", "that.toml")[0] == 1
    os.environ["BRIDGE_CONFIG"] = "that.toml"
    try:
        assert "records.url is empty" in run()[2]
    finally:
        del os.environ["BRIDGE_CONFIG"]
