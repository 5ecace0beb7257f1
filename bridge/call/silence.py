"""Watches a conversation for silence, and says what must be done about it. Pure.

Theory of operation
-------------------

Two clocks, of which at most one runs. The *idle* clock runs while nobody owes a word: the caller
has heard the agent out and says nothing. The *stall* clock runs while the agent owes one: the
caller's turn is over, or, as far as anybody knows, has been for a while. Each has two steps, one
that mends the silence and one that ends it:

    idle_seconds    ASK_STILL_THERE, and after as long again SAY_GOODBYE
    stall_seconds   FILLER, and after as long again RECONNECT

This is told what happens, by events, and asked two things: when something is due (`due_at`), and
what (`next`). It never sleeps, sends or speaks.

Whose word is awaited is the *state*. The clock begins anew with every change of state, and with
every event that the table lists, even where the state stays:

    state     meaning                                   clock and step          then
    AWAY      there is no session                       none
    QUIET     nobody owes a word                        idle   ASK_STILL_THERE  ASKED
    ASKED     the caller was asked                      idle   SAY_GOODBYE      OVER
    OVER      goodbye                                   none
    CALLER    the caller speaks, or made a noise        stall  FILLER           PRODDED
    PRODDED   the agent was given a filler to speak     stall  RECONNECT        AWAY
    DOUBTED   it spoke it: QUIET, but did it hear?      idle   ASK_STILL_THERE  ASKED
    AGAIN     the caller speaks to a doubted agent      stall  RECONNECT        AWAY
    OWING     the caller's turn is over                 stall  FILLER           FILLED
    TOLD      words of the reply came, no audio yet     stall  FILLER           PRODDED
    FILLED    filler; what is heard may be just that    stall  RECONNECT        AWAY

    event     comes with                                changes (in AWAY: OPENED alone)
    OPENED    the session is ready, the first or        any → QUIET
              a new one
    LOST      the session is gone                       any → AWAY
    SPOKE     UserStartedSpeaking                       any → CALLER; DOUBTED, AGAIN → AGAIN
    SAID      ConversationText of the user, EndOfTurn   any → OWING
    PRESSED   a key of the phone                        QUIET, DOUBTED, ASKED, OVER → QUIET
    VOICE     a voice in the caller's audio             CALLER, AGAIN, PRODDED: the clock only
    THINKING  AgentThinking, FunctionCallRequest        QUIET, DOUBTED, CALLER, AGAIN → OWING
    WORDS     ConversationText of the assistant, if     OWING → TOLD; FILLED, DOUBTED → QUIET
              not what it was given to say
    AUDIO     audio of the agent, sent to the phone     OWING, TOLD → QUIET; PRODDED → DOUBTED
    RESULT    the last running function has ended       QUIET, DOUBTED → OWING
    INJECTED  the agent was given words to say          QUIET, DOUBTED, ASKED, PRODDED, FILLED:
                                                        the clock only

Two things hold the clocks whatever the state: nothing is due while the agent can be heard (from
AUDIO to `agent_done_playing`), and while a function runs only FILLER is, since the function may
have taken long but the session is well, and will owe its words when the function has ended. When a
hold ends the clock begins anew.

Why so many states. The agent's own filler must not pass for its reply, nor its question for a
conversation; hence FILLED and ASKED, which AUDIO does not leave. But the watch must not break a
healthy call either. UserStartedSpeaking without any text is a stalled session, as reported, and
just as well a cough. The filler tells them apart: a session that is stuck in the caller's turn
refuses it, one that is well speaks it (DOUBTED), and only if then the caller is not heard a second
time is the session replaced (AGAIN). A session whose reply is in sight, since its words came
before the filler, need not say them again to be believed (TOLD).

Stall: https://github.com/orgs/deepgram/discussions/1624
Refused injections: https://developers.deepgram.com/docs/voice-agent-inject-agent-message
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Final, NamedTuple


class Action(enum.Enum):
    """What must be done about a silence."""

    ASK_STILL_THERE = enum.auto()  # the agent asks whether the caller is still there
    SAY_GOODBYE = enum.auto()  # the agent says goodbye, then hang up
    FILLER = enum.auto()  # the agent is given something to say
    RECONNECT = enum.auto()  # a new session, with the conversation so far


class State(enum.Enum):
    """Whose word is awaited; the table above says it in full."""

    AWAY = enum.auto()
    QUIET = enum.auto()
    ASKED = enum.auto()
    OVER = enum.auto()
    CALLER = enum.auto()
    PRODDED = enum.auto()
    DOUBTED = enum.auto()
    AGAIN = enum.auto()
    OWING = enum.auto()
    TOLD = enum.auto()
    FILLED = enum.auto()


class Event(enum.Enum):
    """What happens in a call, as far as it matters here; the table above says it in full."""

    OPENED = enum.auto()
    LOST = enum.auto()
    SPOKE = enum.auto()
    SAID = enum.auto()
    PRESSED = enum.auto()
    VOICE = enum.auto()
    THINKING = enum.auto()
    WORDS = enum.auto()
    AUDIO = enum.auto()
    RESULT = enum.auto()
    INJECTED = enum.auto()


class _Step(NamedTuple):
    stalled: bool  # on the stall clock, else on the idle clock
    action: Action
    then: State


_STEPS: Final[Mapping[State, _Step]] = {
    State.QUIET: _Step(False, Action.ASK_STILL_THERE, State.ASKED),
    State.DOUBTED: _Step(False, Action.ASK_STILL_THERE, State.ASKED),
    State.ASKED: _Step(False, Action.SAY_GOODBYE, State.OVER),
    State.CALLER: _Step(True, Action.FILLER, State.PRODDED),
    State.OWING: _Step(True, Action.FILLER, State.FILLED),
    State.TOLD: _Step(True, Action.FILLER, State.PRODDED),
    State.PRODDED: _Step(True, Action.RECONNECT, State.AWAY),
    State.AGAIN: _Step(True, Action.RECONNECT, State.AWAY),
    State.FILLED: _Step(True, Action.RECONNECT, State.AWAY),
}

_LIVE: Final = frozenset(State) - {State.AWAY}


def _all_to(target: State, *states: State) -> dict[State, State]:
    return dict.fromkeys(states, target)


def _clock_only(*states: State) -> dict[State, State]:
    return {state: state for state in states}


# Event and state to the next state. What is not here changes nothing, the clock included.
_TABLE: Final[Mapping[Event, Mapping[State, State]]] = {
    Event.OPENED: _all_to(State.QUIET, *State),
    Event.LOST: _all_to(State.AWAY, *_LIVE),
    Event.SPOKE: {
        **_all_to(State.CALLER, *_LIVE),
        **_all_to(State.AGAIN, State.DOUBTED, State.AGAIN),
    },
    Event.SAID: _all_to(State.OWING, *_LIVE),
    Event.PRESSED: _all_to(State.QUIET, State.QUIET, State.DOUBTED, State.ASKED, State.OVER),
    Event.VOICE: _clock_only(State.CALLER, State.AGAIN, State.PRODDED),
    Event.THINKING: _all_to(State.OWING, State.QUIET, State.DOUBTED, State.CALLER, State.AGAIN),
    Event.WORDS: {
        State.OWING: State.TOLD,
        **_all_to(State.QUIET, State.FILLED, State.DOUBTED),
    },
    Event.AUDIO: {
        **_all_to(State.QUIET, State.OWING, State.TOLD),
        State.PRODDED: State.DOUBTED,
    },
    Event.RESULT: _all_to(State.OWING, State.QUIET, State.DOUBTED),
    Event.INJECTED: _clock_only(
        State.QUIET, State.DOUBTED, State.ASKED, State.PRODDED, State.FILLED
    ),
}


class Silence:
    """The watch over one call's conversation.

    `idle_seconds` is how long nobody may say a word, `stall_seconds` how long the agent may owe
    one. Times are seconds on a clock that does not go backwards. Nothing is due before the first
    `session_opened`. Raises ValueError for seconds that are not above 0.
    """

    def __init__(self, idle_seconds: float, stall_seconds: float) -> None:
        if not (idle_seconds > 0 and stall_seconds > 0):
            raise ValueError("idle_seconds and stall_seconds are above 0")
        self._idle_seconds = idle_seconds
        self._stall_seconds = stall_seconds
        self._state = State.AWAY
        self._since = 0.0  # when the clock began
        self._playing = False
        self._functions = 0

    @property
    def state(self) -> State:
        """Whose word is awaited: for the log and for the curious."""
        return self._state

    # ---- what is due -----------------------------------------------------------------------

    @property
    def due_at(self) -> float:
        """When something must be done if nothing happens until then; inf: never."""
        step = _STEPS.get(self._state)
        if step is None or self._playing:
            return math.inf
        if self._functions and step.action is not Action.FILLER:
            return math.inf
        return self._since + (self._stall_seconds if step.stalled else self._idle_seconds)

    def next(self, now: float) -> Action | None:
        """Return what must be done now, once; None if nothing is due yet.

        After RECONNECT nothing is due until `session_opened`.
        """
        if now < self.due_at:
            return None
        step = _STEPS[self._state]
        self._go(step.then, now)
        return step.action

    # ---- what happens ----------------------------------------------------------------------

    def session_opened(self, now: float) -> None:
        """The session is ready: the first, or a new one, which owes nothing and runs nothing.

        If the caller's last words have no reply yet, they have to be injected: that is SAID.
        """
        self._functions = 0
        self._on(Event.OPENED, now)

    def session_lost(self, now: float) -> None:
        """The session has ended and another is being opened. What the phone plays, it plays on."""
        self._on(Event.LOST, now)

    def caller_spoke(self, now: float) -> None:
        """UserStartedSpeaking. What `clear` silences is told by `agent_done_playing`."""
        self._on(Event.SPOKE, now)

    def caller_said(self, now: float) -> None:
        """The caller's turn is over: ConversationText of the user, or EndOfTurn."""
        # While its reply can be heard, this is a second word about the turn it replies to. A new
        # turn begins with SPOKE, and so not in QUIET; what is injected for a key pressed just now
        # is missed, and then the idle clock will do.
        if not (self._playing and self._state is State.QUIET):
            self._on(Event.SAID, now)

    def caller_pressed(self, now: float) -> None:
        """The caller pressed a key of the phone: no word, but somebody is there."""
        self._on(Event.PRESSED, now)

    def caller_voice(self, now: float) -> None:
        """There is a voice in the caller's audio, just now. Optional: without it, who speaks for
        longer than `stall_seconds` and is not interrupted is taken for a stall.
        """
        self._on(Event.VOICE, now)

    def agent_thinking(self, now: float) -> None:
        """AgentThinking: a word will follow."""
        if not self._playing:
            self._on(Event.THINKING, now)

    def agent_said(self, now: float) -> None:
        """ConversationText of the assistant; not for words that it was given to say (filler,
        question, goodbye), which come back the same way.
        """
        self._on(Event.WORDS, now)

    def agent_audio(self, now: float) -> None:
        """Audio of the agent was sent to the phone (not: dropped as stale)."""
        self._playing = True
        # Most audio follows audio, in QUIET: fifty times a second the table need not be asked.
        if self._state is not State.QUIET:
            self._on(Event.AUDIO, now)

    def agent_done_playing(self, now: float) -> None:
        """All audio sent to the phone was heard, as its marks tell, or thrown away by `clear`."""
        if self._playing:
            self._playing = False
            self._since = now

    def function_began(self, now: float) -> None:
        """A function that the agent asked for runs here."""
        self._functions += 1
        self.agent_thinking(now)

    def function_ended(self, now: float) -> None:
        """One function is over: answered, failed or cancelled. One that is not known is ignored,
        since a lost session forgets its own.
        """
        if self._functions:
            self._functions -= 1
            if not self._functions:
                self._since = now
                self._on(Event.RESULT, now)

    def injected(self, now: float) -> None:
        """The agent was given words to say, which take it a moment."""
        self._on(Event.INJECTED, now)

    # ---- the machine -----------------------------------------------------------------------

    def _on(self, event: Event, now: float) -> None:
        state = _TABLE[event].get(self._state)
        if state is State.TOLD:
            # Words are not yet speech: the caller has been waiting since the turn's end.
            self._state = state
        elif state is not None:
            self._go(state, now)

    def _go(self, state: State, now: float) -> None:
        self._state, self._since = state, now
