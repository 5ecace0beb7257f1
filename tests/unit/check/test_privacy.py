"""What `bridge check` says of retention and region."""

from __future__ import annotations

import pytest

from bridge.check.privacy import check_privacy
from bridge.config.toml import parse

EU = "deepgram.url = 'wss://api.eu.deepgram.com/v1/agent/converse'\n"
OUT = "deepgram.settings.mip_opt_out = true\n"
SALES = "agents.sales.numbers = ['+15557654321']\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("ok", "keeps audio and transcripts of calls of agent to improve its models")]),
        (OUT, [("ok", "keeps nothing of calls of agent, in any region")]),
        (EU, [("warning", "so they may leave the EU -> set mip_opt_out = true")]),
        (EU + OUT, [("ok", "keeps nothing of calls of agent, and processes them in the EU")]),
        (OUT + SALES, [("ok", "keeps nothing of calls of agent, agents.sales")]),
        (
            SALES + "agents.sales.deepgram.settings.mip_opt_out = true",
            [("ok", "keeps nothing of calls of agents.sales"), ("ok", "of calls of agent to")],
        ),
        ("deepgram.url = 'ws://127.0.0.1:9000/v1/agent/converse'", []),
        ("deepgram.url = 'wss://notdeepgram.com/v1/agent/converse'", []),
    ],
)
async def test_it_says_which_of_the_two_holds(text: str, expected: list[tuple[str, str]]) -> None:
    found = list(await check_privacy(parse(text)))
    assert [one.status for one in found] == [status for status, _ in expected]
    assert all(words in one.line for one, (_, words) in zip(found, expected, strict=True)), found
