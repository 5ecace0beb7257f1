"""The watch over a conversation: when something is done about a silence, and when nothing is.

Most tests read as a transcript: what happens at which second, and what is done by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.call import silence as module
from bridge.call.silence import (
    FILLERS,
    SLOW_BELIEVED,
    VOICE_HOLDS,
    WORDS_LAST,
    Action,
    Event,
    Silence,
    State,
)
from bridge.call.voice import Voice

IDLE, STALL = 30, 10
ASK, GOODBYE = Action.ASK_STILL_THERE, Action.SAY_GOODBYE
FILLER, RECONNECT = Action.FILLER, Action.RECONNECT

Happening = tuple[float, str]


def play(script: Iterable[Happening], until: float = 300.0) -> list[tuple[float, Action]]:
    """Play what happens to a watch that is asked the moment something is due, as a call's would.

    Returns what it asked for, and when.
    """
    voice = Voice()
    silence = Silence(IDLE, STALL, voice)
    done: list[tuple[float, Action]] = []

    def wait(end: float) -> None:
        while (at := silence.due_at) <= end:
            if (action := silence.next(at)) is not None:
                done.append((at, action))

    for at, event in script:
        wait(at)
        if event == "voice":
            speaks(voice, at)
        else:
            getattr(silence, event)(at)
    wait(until)
    return done


def speaks(voice: Voice, at: float) -> None:
    """The caller's audio has a voice in it at this moment."""
    if not at - voice.last_voiced_at <= 1:
        voice.voiced_from = at
    voice.last_voiced_at = at


def words(begin: int, end: int) -> list[Happening]:
    """A caller who speaks, in whole seconds."""
    return [(at, "voice") for at in range(begin, end + 1)]


GREETED: list[Happening] = [(0, "session_opened"), (1, "agent_audio"), (5, "agent_done_playing")]


# ---- the documented tables ------------------------------------------------------------------


def rows(header: str) -> list[str]:
    """The lines of the table in the module's docstring that begins with this column."""
    lines = (module.__doc__ or "").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"    {header} "))
    return lines[first : lines.index("", first)]


def test_the_table_of_states_in_the_docstring_is_the_one_in_the_code() -> None:
    header, *states = rows("state")
    column = header.index("clock and step")
    documented = {line.split()[0]: line[column:].split() for line in states}
    assert documented == {
        state.name: [
            "stall" if step.stalled else "idle",
            str(step.percent),
            step.action.name,
            step.then.name,
        ]
        if (step := module._STEPS.get(state))
        else ["none"]
        for state in State
    }


def test_the_table_of_events_in_the_docstring_is_the_one_in_the_code() -> None:
    header, *lines = rows("event")
    column = header.index("changes")
    documented: dict[str, str] = {}
    for line in lines:
        if line[4] != " ":
            documented[event := line.split()[0]] = ""
        documented[event] += " " + line[column:].strip()
    assert {
        Event[event]: changes_in(words, Event[event]) for event, words in documented.items()
    } == module._TABLE


def changes_in(words: str, event: Event) -> dict[State, State]:
    """Read "A, B → C; D: the clock only"; of two changes of one state, the later counts."""
    changes: dict[State, State] = {}
    for change in words.split(";"):
        names, arrow, then = change.partition("→")
        if not arrow:
            names, _, then = change.partition(":")
            assert then.strip() in ("the clock only", "")
        states = [State[name.strip()] for name in names.split(",") if name.strip() != "any"]
        if names.strip() == "any":
            states = [s for s in State if s is not State.AWAY or event is Event.OPENED]
        changes |= {state: State[then.strip()] if arrow else state for state in states}
    return changes


# ---- neither side speaks --------------------------------------------------------------------


def test_nothing_is_due_before_there_is_a_session() -> None:
    assert Silence(IDLE, STALL, Voice()).due_at == math.inf
    assert play([(0, "caller_spoke"), (1, "caller_said"), (2, "caller_pressed")]) == []


def test_a_silent_caller_is_asked_and_then_told_goodbye() -> None:
    assert play([(0, "session_opened")]) == [(30, ASK), (60, GOODBYE)]


def test_the_clock_begins_when_the_greeting_was_heard() -> None:
    assert play(GREETED)[0] == (35, ASK)


def test_the_question_itself_does_not_count_as_conversation() -> None:
    """The agent speaks because it was told to; the caller has still not said a word."""
    assert play(
        [
            *GREETED,
            (35, "injected"),
            (36, "agent_audio"),
            (36, "agent_said"),
            (38, "agent_done_playing"),
        ]
    ) == [(35, ASK), (68, GOODBYE)]


def test_a_caller_who_answers_the_question_stays_in_the_call() -> None:
    answered: list[Happening] = [(40, "caller_spoke"), (41, "caller_said"), (42, "agent_audio")]
    assert play([*GREETED, *answered, (45, "agent_done_playing")]) == [
        (35, ASK),
        (75, ASK),
        (105, GOODBYE),
    ]


def test_the_clock_begins_when_words_were_given_to_the_agent() -> None:
    """A question that waited to be sent, and a word of ours in between."""
    assert play([*GREETED, (20, "injected")], until=50) == [(50, ASK)]
    assert play([*GREETED, (38, "injected")], until=68) == [(35, ASK), (68, GOODBYE)]


def test_a_key_is_an_answer_too() -> None:
    assert play([*GREETED, (40, "caller_pressed")], until=99) == [(35, ASK), (70, ASK)]


def test_goodbye_is_said_once() -> None:
    after: list[Happening] = [(66, "injected"), (67, "agent_audio"), (69, "agent_done_playing")]
    assert play([*GREETED, *after])[2:] == []


def test_a_caller_who_speaks_over_the_goodbye_stays_in_the_call() -> None:
    assert play([*GREETED, (66, "caller_spoke"), (67, "caller_said")], until=80) == [
        (35, ASK),
        (65, GOODBYE),
        (74, FILLER),
        (77, RECONNECT),
    ]


def test_the_idle_clock_stops_while_a_long_answer_plays() -> None:
    assert play([(0, "session_opened"), (1, "agent_audio"), (200, "agent_done_playing")], 229) == []


def test_the_idle_clock_stops_while_a_function_runs() -> None:
    assert play([*GREETED, (6, "function_began"), (90, "function_ended")], until=96) == [
        (13, FILLER)
    ]


# ---- the agent owes a word ------------------------------------------------------------------

ASKED_SOMETHING: list[Happening] = [*GREETED, (10, "caller_spoke"), (12, "caller_said")]


def filler(at: float, seconds: float = 1) -> list[Happening]:
    """The agent speaks the filler it was given just now."""
    return [
        (at, "injected"),
        (at + 0.25, "agent_audio"),
        (at + 0.5, "agent_audio"),
        (at + seconds, "agent_done_playing"),
    ]


def test_an_agent_that_answers_is_not_prodded() -> None:
    reply: list[Happening] = [(13, "agent_said"), (13, "agent_audio"), (20, "agent_done_playing")]
    assert play([*ASKED_SOMETHING, *reply], until=49) == []


def test_a_session_that_does_not_speak_its_filler_is_replaced_within_stall_seconds() -> None:
    assert play(ASKED_SOMETHING, until=50) == [(19, FILLER), (22, RECONNECT)]


def test_a_session_that_is_kept_all_the_same_ends_by_the_idle_clock() -> None:
    assert play(ASKED_SOMETHING) == [
        (19, FILLER),
        (22, RECONNECT),
        (52, ASK),
        (82, GOODBYE),
    ]


def test_the_end_of_the_turn_counts_not_its_beginning() -> None:
    later: list[Happening] = [(10, "caller_spoke"), (16, "caller_spoke"), (22, "caller_said")]
    assert play([*GREETED, *later], until=30) == [(29, FILLER)]


def test_a_session_that_speaks_its_fillers_is_given_more_time() -> None:
    """It is alive; and the caller hears something every few seconds."""
    assert play([*ASKED_SOMETHING, *filler(19), *filler(27)], until=36) == [
        (19, FILLER),
        (27, FILLER),
        (35, RECONNECT),
    ]
    assert FILLERS == 2


def test_a_reply_behind_the_filler_settles_it() -> None:
    """Both in one stretch of audio: only the words tell them apart."""
    both: list[Happening] = [(20, "agent_audio"), (21, "agent_said"), (21, "agent_audio")]
    assert play([*ASKED_SOMETHING, *both, (30, "agent_done_playing")], until=61) == [
        (19, FILLER),
        (60, ASK),
    ]


def test_a_reply_whose_words_come_before_the_filler_is_spoken() -> None:
    both: list[Happening] = [(20, "agent_said"), (21, "agent_audio")]
    assert play([*ASKED_SOMETHING, *both, (30, "agent_done_playing")], until=61) == [
        (19, FILLER),
        (60, ASK),
    ]


def test_text_without_audio_is_not_a_reply() -> None:
    assert play([*ASKED_SOMETHING, (13, "agent_said")], until=50) == [(19, FILLER), (22, RECONNECT)]
    late: list[Happening] = [*filler(19), (23, "agent_said")]
    assert play([*ASKED_SOMETHING, *late], until=50) == [
        (19, FILLER),
        (27, FILLER),
        (30, RECONNECT),
    ]


def test_a_reply_whose_words_came_before_the_filler_is_believed() -> None:
    late: list[Happening] = [(18, "agent_said"), (21, "agent_audio"), (30, "agent_done_playing")]
    assert play([*ASKED_SOMETHING, *late], until=60) == [(19, FILLER), (60, ASK)]


def test_other_words_given_to_the_agent_are_no_reply_either() -> None:
    """The last minute's announcement, or a filler for a slow function, while a reply is due."""
    other: list[Happening] = [(13, "injected"), (14, "agent_audio"), (16, "agent_done_playing")]
    assert play([*ASKED_SOMETHING, *other], until=30)[0] == (23, FILLER)
    unspoken: list[Happening] = [(18, "injected")]
    assert play([*ASKED_SOMETHING, *unspoken], until=30) == [(19, FILLER), (22, RECONNECT)]


def test_thinking_is_not_speaking() -> None:
    thinking: list[Happening] = [(12 + n, "agent_thinking") for n in range(10)]
    assert play([*ASKED_SOMETHING, *thinking], until=50) == [(19, FILLER), (22, RECONNECT)]


def test_the_caller_who_speaks_on_starts_it_again() -> None:
    on: list[Happening] = [(20, "caller_spoke"), (22, "caller_said")]
    assert play([*ASKED_SOMETHING, *on], until=50) == [(19, FILLER), (29, FILLER), (32, RECONNECT)]


def test_the_second_sign_of_a_turns_end_is_no_new_turn() -> None:
    """ConversationText, the reply's audio, and only then EndOfTurn."""
    reply: list[Happening] = [(13, "agent_audio"), (13.2, "caller_said"), (13.3, "agent_thinking")]
    assert play([*ASKED_SOMETHING, *reply, (20, "agent_done_playing")], until=51) == [(50, ASK)]


def test_words_given_as_the_callers_want_a_reply_while_something_plays() -> None:
    """A key pressed during a greeting that cannot be interrupted."""
    keyed: list[Happening] = [(21, "caller_quoted"), (22, "agent_done_playing")]
    assert play([(0, "session_opened"), (1, "agent_audio"), *keyed], until=30) == [(29, FILLER)]


def test_after_a_new_session_nothing_is_owed_until_the_caller_speaks() -> None:
    again: list[Happening] = [(23, "session_opened")]
    assert play([*ASKED_SOMETHING, *again], until=70)[2:] == [(53, ASK)]


def test_a_new_session_is_given_the_last_words_again() -> None:
    again: list[Happening] = [(23, "session_opened"), (23.5, "caller_quoted")]
    assert play([*ASKED_SOMETHING, *again], until=33)[2:] == [(30.5, FILLER)]


def test_a_greeting_that_is_configured_is_due() -> None:
    silent: list[Happening] = [(0, "session_opened"), (0, "agent_thinking")]
    assert play(silent, until=20) == [(7, FILLER), (10, RECONNECT)]
    assert play([*silent, (1, "agent_audio"), (5, "agent_done_playing")], until=40) == [(35, ASK)]


def test_whether_a_reply_is_due() -> None:
    silence = Silence(IDLE, STALL, Voice())
    dues = []
    for at, event in [*ASKED_SOMETHING, (13, "agent_said"), (14, "agent_audio")]:
        getattr(silence, event)(at)
        dues.append(silence.reply_due)
    assert dues == [False, False, False, False, True, True, False]


# ---- slow agents ----------------------------------------------------------------------------


def slow(at: float) -> list[Happening]:
    """The warning that comes every five seconds, while the fillers are spoken."""
    return [(at, "agent_slow")]


def test_an_agent_that_says_that_it_is_slow_is_given_more_time() -> None:
    script: list[Happening] = [*ASKED_SOMETHING, *filler(19)]
    for n in range(12):
        script += [*slow(24 + 8 * n), *filler(27 + 8 * n)]
    done = play(script, until=27 + 8 * 12)
    assert [action for _, action in done[: SLOW_BELIEVED + 2]] == [FILLER] * (SLOW_BELIEVED + 2)
    assert RECONNECT in [action for _, action in done]


def test_a_slow_agent_that_does_not_speak_its_filler_is_given_the_time_it_asks_for() -> None:
    warned: list[Happening] = [(20, "agent_slow"), (22, "agent_slow")]
    assert play([*ASKED_SOMETHING, *warned], until=40) == [(19, FILLER), (25, RECONNECT)]


def test_every_turn_may_be_slow() -> None:
    script: list[Happening] = [*ASKED_SOMETHING, *[(18.0, "agent_slow")] * SLOW_BELIEVED]
    script += [(18.5, "agent_audio"), (19, "agent_done_playing"), (20, "caller_said")]
    script += [*filler(27), (29, "agent_slow"), *filler(35), (37, "agent_slow")]
    assert RECONNECT not in [action for _, action in play(script, until=44)]


# ---- functions ------------------------------------------------------------------------------


def test_a_long_function_gets_fillers_and_never_a_new_session() -> None:
    script: list[Happening] = [*ASKED_SOMETHING, (12.1, "function_began")]
    for n in range(8):
        script += filler(19 + 8 * n)
    done = play([*script, (80, "function_ended")], until=86)
    assert [action for _, action in done] == [FILLER] * 8


def test_a_function_holds_a_session_that_does_not_speak_its_filler() -> None:
    function: list[Happening] = [(12.1, "function_began"), (80, "function_ended")]
    assert play([*ASKED_SOMETHING, *function], until=90) == [
        (19, FILLER),
        (87, FILLER),
        (90, RECONNECT),
    ]


def test_the_result_of_a_function_must_be_followed_by_a_reply() -> None:
    function: list[Happening] = [
        (13, "agent_audio"),  # "One moment, please."
        (14, "function_began"),
        (15, "agent_done_playing"),
        (18, "function_ended"),
    ]
    assert play([*ASKED_SOMETHING, *function], until=40) == [(25, FILLER), (28, RECONNECT)]


def test_all_functions_must_have_ended() -> None:
    functions: list[Happening] = [
        (12, "function_began"),
        (12, "function_began"),
        (40, "function_ended"),
        (50, "function_ended"),
    ]
    assert play([*ASKED_SOMETHING, *functions], until=60) == [
        (19, FILLER),
        (57, FILLER),
        (60, RECONNECT),
    ]


def test_a_lost_session_takes_its_functions_with_it() -> None:
    lost: list[Happening] = [
        (12, "function_began"),
        (13, "session_lost"),
        (50, "session_opened"),
        (51, "function_ended"),
    ]
    assert play([*ASKED_SOMETHING, *lost], until=100) == [(80, ASK)]


def test_nothing_is_due_while_a_session_is_being_opened() -> None:
    assert play([*ASKED_SOMETHING, (13, "session_lost")]) == []


# ---- the reported stall: UserStartedSpeaking and nothing more -------------------------------

UNHEARD: list[Happening] = [*GREETED, (10, "caller_spoke")]


def test_a_session_that_hears_nothing_and_refuses_the_filler_is_replaced() -> None:
    assert play([*UNHEARD, (17, "injected")], until=40) == [(17, FILLER), (20, RECONNECT)]


def test_a_cough_costs_a_filler_and_no_session() -> None:
    assert play([*UNHEARD, *filler(17)], until=50) == [(17, FILLER), (48, ASK)]


def test_the_second_cough_costs_nothing() -> None:
    """However often: the agent speaks what it is given, so it is not stuck."""
    coughs: list[Happening] = [(25 + 15 * n, "caller_spoke") for n in range(30)]
    assert play([*UNHEARD, *filler(17), *coughs], until=460) == [(17, FILLER)]


def test_a_session_that_speaks_but_does_not_hear_is_replaced_at_the_second_try() -> None:
    again: list[Happening] = [(25, "caller_spoke"), *words(25, 27)]
    assert play([*UNHEARD, *filler(17), *again], until=40) == [(17, FILLER), (37, RECONNECT)]
    assert WORDS_LAST < 2


def test_a_session_that_hears_at_the_second_try_is_kept() -> None:
    again: list[Happening] = [
        (25, "caller_spoke"),
        *words(25, 27),
        (27.5, "caller_said"),
        (28, "agent_said"),
        (28, "agent_audio"),
        (30, "agent_done_playing"),
        (31, "caller_spoke"),  # and may cough again
    ]
    assert play([*UNHEARD, *filler(17), *again], until=40) == [(17, FILLER), (38, FILLER)]


# ---- the voice in the caller's audio --------------------------------------------------------


def test_a_caller_who_speaks_for_long_is_not_interrupted() -> None:
    long: list[Happening] = [*words(10, 70), (71, "caller_said"), (72, "agent_audio")]
    assert play([*UNHEARD, *long]) == []


def test_the_clock_begins_with_the_end_of_the_words() -> None:
    assert play([*UNHEARD, *words(10, 40)], until=48) == [(47, FILLER)]
    assert play([*ASKED_SOMETHING, *words(12, 30)], until=38) == [(37, FILLER)]


def test_a_caller_who_speaks_over_a_refused_filler_keeps_the_session() -> None:
    voice = words(18, 48)
    assert play([*UNHEARD, (17, "injected"), *voice, (49, "caller_said")], until=55) == [
        (17, FILLER)
    ]


def test_a_noise_as_loud_as_a_voice_does_not_hold_the_clock_for_good() -> None:
    assert play([*UNHEARD, *words(10, 200)], until=140) == [(10 + VOICE_HOLDS + 7, FILLER)]


def test_a_voice_alone_does_not_end_the_silence() -> None:
    """A television keeps no call alive."""
    assert play([*GREETED, *words(6, 60)], until=66) == [(35, ASK), (65, GOODBYE)]


def test_a_greeting_that_must_not_be_interrupted_holds_the_clock() -> None:
    spoken_over: list[Happening] = [
        (0, "session_opened"),
        (1, "agent_audio"),
        (2, "caller_spoke"),
        (3, "agent_audio"),
        (20, "agent_done_playing"),
    ]
    assert play(spoken_over, until=29) == [(27, FILLER)]


# ---- asking -----------------------------------------------------------------------------------


def test_nothing_is_done_early_and_once_only() -> None:
    silence = Silence(IDLE, STALL, Voice())
    silence.session_opened(0)
    assert silence.next(29.9) is None
    assert silence.next(30) is ASK
    assert silence.next(30) is None
    assert silence.state is State.ASKED


def test_a_late_call_of_next_returns_one_action_at_a_time() -> None:
    silence = Silence(IDLE, STALL, Voice())
    silence.session_opened(0)
    assert silence.next(1000) is ASK
    assert silence.due_at == 1030


@pytest.mark.parametrize("seconds", [(0, 1), (1, 0), (-1, 1), (1, math.nan)])
def test_seconds_are_above_zero(seconds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Silence(*seconds, Voice())


# ---- any sequence of events -------------------------------------------------------------------

EVENTS = [
    "session_opened",
    "session_lost",
    "caller_spoke",
    "caller_said",
    "caller_quoted",
    "caller_pressed",
    "voice",
    "agent_thinking",
    "agent_slow",
    "agent_said",
    "agent_audio",
    "agent_done_playing",
    "function_began",
    "function_ended",
    "injected",
]

# Whole seconds, so that sums are exact; now and then `next` is not called for a while.
steps = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 3), st.integers(0, 40)),
        st.sampled_from(EVENTS),
        st.booleans(),
    ),
    max_size=60,
)


class Witness:
    """Knows of a conversation what its rules are about, and checks each action against it."""

    def __init__(self) -> None:
        self.voice = Voice()
        self.silence = Silence(IDLE, STALL, self.voice)
        self.playing = self.open = self.asked = self.filled = False
        self.speaking = False
        self.functions = 0
        self.last: dict[str, float] = {}
        self.actions: list[Action] = []

    def since(self, now: float, *happenings: str) -> float:
        return min(now - self.last.get(name, -math.inf) for name in happenings)

    def happens(self, event: str, now: float) -> None:
        if event == "voice":
            speaks(self.voice, now)
        else:
            getattr(self.silence, event)(now)
        if event != "agent_done_playing" or self.playing:
            self.last[event] = now
        match event:
            case "session_opened" | "session_lost":
                self.functions = 0
                self.open = event == "session_opened"
                self.asked = self.speaking = False
            case "agent_audio" | "agent_done_playing":
                self.playing = event == "agent_audio"
            case "function_began":
                self.functions += 1
                self.speaking = False
            case "function_ended":
                self.functions = max(0, self.functions - 1)
            case "caller_said" | "caller_quoted":
                self.asked = self.speaking = False
            case "agent_thinking":
                self.speaking = False
            case "caller_pressed":
                self.asked = False
            case "caller_spoke":
                self.asked, self.speaking = False, True

    def asks(self, now: float) -> None:
        state, due_at = self.silence.state, self.silence.due_at
        action = self.silence.next(now)
        if action is None:
            assert now < due_at or state is State.AGAIN
            # What the caller did was a cough.
            self.speaking &= self.silence.state is state
            return
        assert due_at <= now
        assert not self.playing
        assert self.open
        if action is not FILLER:
            assert self.functions == 0
        spoke = self.since(now, "caller_spoke", "caller_said", "agent_done_playing")
        match action:
            case Action.ASK_STILL_THERE:
                assert self.since(now, "ASK_STILL_THERE") >= IDLE
                assert spoke >= IDLE
                assert not self.speaking
                self.asked = True
            case Action.SAY_GOODBYE:
                assert self.since(now, "ASK_STILL_THERE") >= IDLE
                assert spoke >= IDLE
                assert self.asked
            case Action.FILLER:
                assert min(spoke, self.since(now, "voice")) >= 0.7 * STALL
                # Speech that was not heard now counts as a cough.
                self.filled, self.speaking = True, False
            case Action.RECONNECT:
                assert self.filled
                assert min(spoke, self.since(now, "voice", "FILLER")) >= 0.3 * STALL
                self.filled = self.speaking = False
        self.last[action.name] = now
        self.actions.append(action)


@given(steps)
def test_no_sequence_of_events_breaks_the_rules(happenings: list[tuple[int, str, bool]]) -> None:
    witness, now = Witness(), 0
    for waited, event, asks in happenings:
        now += waited
        if asks:
            witness.asks(now)
        witness.happens(event, now)
    for _ in range(200):
        now += 1
        witness.asks(now)


@given(steps)
def test_a_call_in_which_nothing_happens_any_more_comes_to_an_end(
    happenings: list[tuple[int, str, bool]],
) -> None:
    """Whatever came before: with a session, and nothing playing or running, the watch asks for
    the last step of the idle clock, and in good time."""
    witness, now = Witness(), 0
    for waited, event, _ in happenings:
        now += waited
        witness.happens(event, now)
    for _ in range(witness.functions):
        witness.happens("function_ended", now)
    witness.happens("agent_done_playing", now)
    if witness.silence.state in (State.AWAY, State.OVER):
        assert witness.silence.due_at == math.inf
        return
    witness.open = True
    for _ in range(2 * IDLE + 4 * STALL):
        now += 1
        witness.asks(now)
    assert witness.actions[-1] is GOODBYE
    assert witness.silence.due_at == math.inf


@given(steps)
def test_a_caller_whose_turn_is_over_waits_no_longer_than_stall_seconds(
    happenings: list[tuple[int, str, bool]],
) -> None:
    """Whatever came before, and although the session says nothing more."""
    witness, now = Witness(), 0
    for waited, event, _ in happenings:
        now += waited
        witness.happens(event, now)
    for event in ("session_opened", "agent_done_playing", "caller_said"):
        witness.happens(event, now)
    heard = max(now, witness.voice.last_voiced_at)
    done = []
    while (at := witness.silence.due_at) <= heard + STALL:
        done.append(witness.silence.next(at))
    assert done == [FILLER, RECONNECT]
