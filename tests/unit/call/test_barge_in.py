"""The stale-audio gate as a transcript: what came from the agent, and whether audio was played.

`-` is a piece of audio that must be dropped, `+` one that must be played, a number lets that many
seconds pass, words are messages.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.call.barge_in import STALE_SECONDS, StaleAudioGate


def play(transcript: str) -> str:
    """Return the transcript as the gate would have it."""
    gate, now, out = StaleAudioGate(), 100.0, []
    for word in transcript.split():
        match word:
            case "+" | "-":
                word = "+" if gate.passes(now) else "-"
            case "user-speaks":
                gate.caller_cut_in(now)
            case "done":
                gate.audio_done()
            case "new-turn":
                gate.new_turn()
            case _:
                now += float(word)
        out.append(word)
    return " ".join(out)


@pytest.mark.parametrize(
    "transcript",
    [
        pytest.param("+ + done + done", id="no interruption"),
        pytest.param("+ user-speaks - - new-turn + done", id="interrupted, then a new turn"),
        pytest.param("+ done user-speaks + done", id="all was sent, nothing can be stale"),
        pytest.param("+ user-speaks - done + +", id="the interrupted utterance says it is done"),
        pytest.param("+ user-speaks - 2.1 + +", id="no sign of a new turn ever comes"),
        pytest.param("+ user-speaks 1.9 - 0.2 +", id="time counts from the interruption"),
        pytest.param("user-speaks + + done", id="hello before the greeting does not mute it"),
        pytest.param("new-turn user-speaks -", id="the caller goes on while the agent thinks"),
        pytest.param("+ user-speaks - user-speaks 1.9 - new-turn +", id="the caller speaks twice"),
        pytest.param("+ user-speaks done user-speaks + done", id="done, then the caller again"),
        pytest.param("+ done + user-speaks -", id="interrupted in a second utterance"),
    ],
)
def test_transcript(transcript: str) -> None:
    assert play(transcript) == transcript


@given(st.lists(st.sampled_from(["+", "user-speaks", "done", "new-turn", "0.5"]), max_size=40))
def test_no_order_of_events_mutes_the_rest_of_the_call(events: list[str]) -> None:
    after = play(" ".join([*events, str(STALE_SECONDS), "+"]))
    assert after.endswith("+")
