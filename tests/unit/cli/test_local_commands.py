"""`bridge demo` and `bridge agent`: without the packages, with a wrong file, with wrong options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bridge import local_agent
from bridge.cli import agent as agent_command
from bridge.cli import demo as demo_command
from bridge.cli import main
from bridge.cli.demo import local_requirements, transcript
from bridge.cli.phone.live_call import LiveCall
from bridge.cli.phone.view import CallView
from bridge.local_agent.dialogue import load_dialogue


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["bridge", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    lines = capsys.readouterr().err.splitlines()
    return exit_.value.code, lines[-1]


@pytest.mark.parametrize("command", ["agent", "demo"])
def test_a_dialogue_with_a_mistake(command, monkeypatch, capsys, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[[turns]]\nname = "a"\nphrases = ["Hello!"]\nreply = "Hi."\n')
    code, line = run(monkeypatch, capsys, command, "--dialogue", str(file))
    assert code == 2
    assert line.startswith(f'bridge: {file}: turns[0].phrases[0]: has "Hello!"; write words')


@pytest.mark.parametrize(
    "arguments",
    [
        ("agent", "--echo", "--dialogue", "x.toml"),
        ("agent", "--script", "x.toml", "--echo"),
        ("demo", "--echo", "--dialogue", "x.toml"),
        ("demo", "--save", "no/such/folder/heard.wav"),
    ],
)
def test_options_that_do_not_go_together(arguments, monkeypatch, capsys) -> None:
    code, line = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "--" in line


def test_the_agent_without_its_packages_says_how_to_get_them(monkeypatch, capsys) -> None:
    monkeypatch.setattr(agent_command, "missing", lambda: "needs ears: pip install them")
    code, line = run(monkeypatch, capsys, "agent", "--port", "0")
    assert (code, line) == (
        1,
        "bridge: needs ears: pip install them; or bridge agent --echo, which recognises no words",
    )


def test_the_demo_shows_commands_as_they_can_be_typed(tmp_path, monkeypatch) -> None:
    """`bridge` alone only where that is this one: iproute2 has a command of that name, too."""
    ours, another = tmp_path / "my venv" / "bridge", tmp_path / "sbin" / "bridge"
    for program in (ours, another):
        program.parent.mkdir()
        program.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(ours), "demo"])
    shown = []
    for path in (ours.parent, another.parent, tmp_path):
        monkeypatch.setenv("PATH", str(path))
        shown.append(demo_command._this_command())
    assert shown == ["bridge", f"'{ours}'", f"'{ours}'"]


def test_the_demo_gives_examples_that_its_dialogue_knows(tmp_path) -> None:
    (tmp_path / "mine.toml").write_text("""
        [[turns]]
        name = "tea"
        phrases = ["a cup of tea", "some tea"]
        reply = "Here you are."
        """)
    dialogue = load_dialogue(tmp_path / "mine.toml")
    assert demo_command._examples(dialogue) == ["a cup of tea", "some tea"]
    assert demo_command._examples(load_dialogue())[0] == "when are you open"


class Pip:
    """Stands in for `subprocess.run`: pip that fails, or succeeds without effect."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        self.commands.append(command)
        return subprocess.CompletedProcess(command, self.code)


@pytest.mark.parametrize("code", [0, 1])
def test_the_demo_installs_what_it_needs_after_saying_so(code, monkeypatch, capsys) -> None:
    pip = Pip(code)
    monkeypatch.setattr(demo_command, "missing", lambda: "needs ears: pip install them")
    monkeypatch.setattr(demo_command.subprocess, "run", pip)
    monkeypatch.setattr(demo_command, "stderr_descriptor", lambda: 2)
    monkeypatch.setattr(sys, "argv", ["bridge", "demo"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("Installing the local agent's packages (half a minute): ")
    assert said[-1] == (
        "bridge: needs ears: pip install them; or bridge demo --echo, which needs none"
    )
    ((python, *arguments),) = pip.commands
    assert python == sys.executable
    assert arguments[:3] == ["-m", "pip", "install"]
    assert any(argument.startswith("pocketsphinx") for argument in arguments)


def test_a_python_that_recognition_cannot_be_installed_for_is_told_so(monkeypatch, capsys) -> None:
    """Nothing is installed, and no command is named that would change nothing."""
    pip = Pip(0)
    monkeypatch.setattr(local_agent, "find_spec", lambda _: None)
    monkeypatch.setattr(local_agent, "PYTHON_WITHOUT_RECOGNITION", (3, 11))
    monkeypatch.setattr(demo_command.subprocess, "run", pip)
    monkeypatch.setattr(sys, "argv", ["bridge", "demo"])
    with pytest.raises(SystemExit):
        main()
    assert pip.commands == []
    (said,) = capsys.readouterr().err.splitlines()
    have = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"for this Python {have}: make bridge's .venv with a Python older than 3.11" in said
    assert said.endswith("; or bridge demo --echo, which needs no recognition")


def test_which_packages_those_are() -> None:
    requirements = [
        "trio>=0.31",
        "numpy>=1.26; extra == 'local'",
        'pocketsphinx<6,>=5.0.4; (python_version < "3.14") and extra == "local"',
        "ruff; extra == 'test'",
    ]
    assert local_requirements(requirements) == [
        "numpy>=1.26",
        'pocketsphinx<6,>=5.0.4; python_version < "3.14"',
    ]


def test_the_transcript_says_who_when_and_how_soon() -> None:
    view = CallView(Console(stderr=True))
    assert transcript(view) == ""
    view.live = LiveCall(
        transcript=[
            {"at": 1.24, "role": "agent", "words": "Good evening!", "heard": "heard"},
            {"at": 4.0, "role": "caller", "words": "When are\x1b you open"},
            {"at": 4.5, "role": "agent", "words": "We are open.", "heard": "cut"},
            {"at": 4.6, "role": "agent", "words": "From five."},
            {"at": 9.0, "role": "keypad", "words": "1"},
            {"at": 9.5, "role": "agent", "words": "One."},
        ],
        turns=[
            {"confirmed_at": None, "reply_seconds": None},
            {"confirmed_at": 4.0, "reply_seconds": 1.25},
            {"confirmed_at": 9.1, "reply_seconds": None, "typed_reply_seconds": 0.5},
        ],
    )
    first, second, third, *rest = transcript(view).splitlines()
    assert first == "   1.2 s  agent   Good evening!"
    assert second.startswith("   4.0 s  caller  When are")
    assert "\x1b" not in second
    assert third == "   4.5 s  agent   We are open.  [cut off]  (1.25 s after the caller)"
    assert [line for line in rest if "after" in line] == []
