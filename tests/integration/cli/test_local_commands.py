"""`bridge demo` opens a browser, from a thread."""

from __future__ import annotations

from bridge.cli import demo as demo_command


async def test_without_a_browser_open_says_where_to_go(monkeypatch, capsys) -> None:
    monkeypatch.setattr(demo_command.webbrowser, "open", lambda _: False)
    await demo_command._open("http://127.0.0.1:5000/softphone")
    assert "open http://127.0.0.1:5000/softphone yourself" in capsys.readouterr().err
