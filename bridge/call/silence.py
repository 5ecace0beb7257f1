"""Silence in a conversation: when to act on it, and what to do. Sans-I/O.

Theory of operation
-------------------

Two clocks, of which at most one runs. The *idle* clock runs while neither side is expected to
speak: the caller has heard the agent's reply and says nothing. The *stall* clock runs while a reply
of the agent is due: the caller's turn is over, or probably is. Each clock has two steps; the first
tries to end the silence, the second gives up:

    idle_seconds    ASK_STILL_THERE, and after the same time again SAY_GOODBYE
    stall_seconds   FILLER, and after the same time again RECONNECT

Events tell this class what happens; it answers two questions: when an action is due (`due_at`), and
which one (`next`). It never sleeps, sends or speaks.

The *state* says which side is expected to speak. The clock restarts with each change of state, and
with each event that the table lists, even where the state stays the same:

    state     meaning                                   clock and step          then
    AWAY      there is no session                       none
    QUIET     neither side is expected to speak         idle   ASK_STILL_THERE  ASKED
    ASKED     the caller was asked                      idle   SAY_GOODBYE      OVER
    OVER      goodbye                                   none
    CALLER    the caller speaks, or made a noise        stall  FILLER           PRODDED
    PRODDED   the agent was given a filler to speak     stall  RECONNECT        AWAY
    DOUBTED   it spoke it: QUIET, but did it hear?      idle   ASK_STILL_THERE  ASKED
    AGAIN     the caller speaks to a doubted agent      stall  RECONNECT        AWAY
    OWING     the caller's turn is over                 stall  FILLER           FILLED
    TOLD      the reply's text came, no audio yet       stall  FILLER           PRODDED
    FILLED    filler given; audio may be only that      stall  RECONNECT        AWAY

    event     source                                    changes (in AWAY: OPENED only)
    OPENED    the session is ready, the first or        any → QUIET
              a new one
    LOST      the session is gone                       any → AWAY
    SPOKE     UserStartedSpeaking                       any → CALLER; DOUBTED, AGAIN → AGAIN
    SAID      ConversationText of the user, EndOfTurn   any → OWING
    PRESSED   a key of the phone                        QUIET, DOUBTED, ASKED, OVER → QUIET
    VOICE     a voice in the caller's audio             CALLER, AGAIN, PRODDED: the clock only
    THINKING  AgentThinking, FunctionCallRequest        QUIET, DOUBTED, CALLER, AGAIN → OWING
    WORDS     ConversationText of the assistant, if     OWING → TOLD; FILLED, DOUBTED → QUIET
              not words that bridge injected
    AUDIO     audio of the agent, sent to the phone     OWING, TOLD → QUIET; PRODDED → DOUBTED
    GIVEN     the agent was given a filler, since a     OWING, TOLD → FILLED
              function takes long
    RESULT    the last running function has ended       QUIET, DOUBTED → OWING
    INJECTED  the agent was given words to say          QUIET, DOUBTED, ASKED, PRODDED, FILLED:
                                                        the clock only

Two things hold the clocks in every state. While the agent can be heard (from AUDIO to
`agent_done_playing`) nothing is due. While a function runs only FILLER is due: the function may be
slow, but the session is healthy and will reply when the function has ended. When a hold ends, the
clock restarts.

Why so many states. The agent's own filler must not count as its reply, nor its question as a
conversation; hence FILLED and ASKED, which AUDIO does not leave. But the watch must not break a
healthy call either. UserStartedSpeaking without any text can mean a stalled session, as reported,
or a cough. The filler tells them apart: a session that is stuck in the caller's turn refuses it, a
healthy one speaks it (DOUBTED), and the session is replaced only if the caller then speaks and is
not heard a second time (AGAIN). A session that sent the text of its reply before the filler need
not send it again to count as healthy (TOLD).

Stall: https://github.com/orgs/deepgram/discussions/1624
Refused injections: https://developers.deepgram.com/docs/voice-agent-inject-agent-message
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Final, NamedTuple


class Action(enum.Enum):
    """An action that ends a silence."""

    ASK_STILL_THERE = enum.auto()  # the agent asks whether the caller is still there
    SAY_GOODBYE = enum.auto()  # the agent says goodbye, then hang up
    FILLER = enum.auto()  # the agent is given something to say
    RECONNECT = enum.auto()  # a new session, with the conversation so far


class State(enum.Enum):
    """Which side is expected to speak; see the table above."""

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
    """An event of the call that affects the clocks; see the table above."""

    OPENED = enum.auto()
    LOST = enum.auto()
    SPOKE = enum.auto()
    SAID = enum.auto()
    PRESSED = enum.auto()
    VOICE = enum.auto()
    THINKING = enum.auto()
    WORDS = enum.auto()
    AUDIO = enum.auto()
    GIVEN = enum.auto()
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


# Event and state to the next state. A pair that is missing changes nothing, not even the clock.
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
    Event.GIVEN: _all_to(State.FILLED, State.OWING, State.TOLD),
    Event.RESULT: _all_to(State.OWING, State.QUIET, State.DOUBTED),
    Event.INJECTED: _clock_only(
        State.QUIET, State.DOUBTED, State.ASKED, State.PRODDED, State.FILLED
    ),
}


class Silence:
    """Tracks silence in one call's conversation.

    `idle_seconds` is how long both sides may be silent, `stall_seconds` how long the agent may take
    to reply. Times are seconds on a monotonic clock. Nothing is due before the first
    `session_opened`. Raises ValueError unless both are above 0.
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
        """Which side is expected to speak: for the log and the live view."""
        return self._state

    # ---- what is due -----------------------------------------------------------------------

    @property
    def due_at(self) -> float:
        """The time of the next action if no event comes before it; inf: none is due."""
        step = _STEPS.get(self._state)
        if step is None or self._playing:
            return math.inf
        if self._functions and step.action is not Action.FILLER:
            return math.inf
        return self._since + (self._stall_seconds if step.stalled else self._idle_seconds)

    def next(self, now: float) -> Action | None:
        """Return the action that is due now, once; None if none is due yet.

        After RECONNECT nothing is due until `session_opened`.
        """
        if now < self.due_at:
            return None
        step = _STEPS[self._state]
        self._go(step.then, now)
        return step.action

    # ---- what happens ----------------------------------------------------------------------

    def session_opened(self, now: float) -> None:
        """The session is ready: the first, or a new one, with no reply due and no function running.

        If the caller's last words have no reply yet, inject them into the session and report SAID.
        """
        self._functions = 0
        self._on(Event.OPENED, now)

    def session_lost(self, now: float) -> None:
        """The session has ended and another is being opened. The phone continues to play."""
        self._on(Event.LOST, now)

    def caller_spoke(self, now: float) -> None:
        """UserStartedSpeaking. `clear`, which silences the agent, is reported by
        `agent_done_playing`."""
        self._on(Event.SPOKE, now)

    def caller_said(self, now: float) -> None:
        """The caller's turn is over: ConversationText of the user, or EndOfTurn."""
        # While the reply is playing, this is a second message about the turn that it answers. A new
        # turn begins with SPOKE, so not in QUIET. The turn injected for a key pressed just now is
        # missed here; the idle clock covers that case.
        if not (self._playing and self._state is State.QUIET):
            self._on(Event.SAID, now)

    def caller_pressed(self, now: float) -> None:
        """The caller pressed a key of the phone: no speech, but the caller is there."""
        self._on(Event.PRESSED, now)

    def caller_voice(self, now: float) -> None:
        """The caller's audio contains a voice now. Optional: without this event, a caller who
        speaks for longer than `stall_seconds` without interruption counts as a stall.
        """
        self._on(Event.VOICE, now)

    def agent_thinking(self, now: float) -> None:
        """AgentThinking: a reply will follow."""
        if not self._playing:
            self._on(Event.THINKING, now)

    def agent_said(self, now: float) -> None:
        """ConversationText of the assistant. Do not report words that bridge injected (filler,
        question, goodbye), which come back in the same message.
        """
        self._on(Event.WORDS, now)

    def agent_audio(self, now: float) -> None:
        """Audio of the agent was sent to the phone; not reported for stale audio."""
        self._playing = True
        # Most audio follows audio, in QUIET: fifty times a second the table need not be asked.
        if self._state is not State.QUIET:
            self._on(Event.AUDIO, now)

    def agent_done_playing(self, now: float) -> None:
        """All audio sent to the phone was heard, as its marks show, or discarded by `clear`."""
        if self._playing:
            self._playing = False
            self._since = now

    def function_began(self, now: float) -> None:
        """bridge has started a function for the agent."""
        self._functions += 1
        self.agent_thinking(now)

    def filler_given(self, now: float) -> None:
        """The agent was given a filler while a function runs; its audio is no reply."""
        self._on(Event.GIVEN, now)

    def function_ended(self, now: float) -> None:
        """One function is over: answered, failed or cancelled. Ignored if no function is known to
        run, because a lost session forgets its functions.
        """
        if self._functions:
            self._functions -= 1
            if not self._functions:
                self._since = now
                self._on(Event.RESULT, now)

    def injected(self, now: float) -> None:
        """The agent was given words to say, and needs a moment to begin them."""
        self._on(Event.INJECTED, now)

    # ---- the machine -----------------------------------------------------------------------

    def _on(self, event: Event, now: float) -> None:
        state = _TABLE[event].get(self._state)
        if state is State.TOLD:
            # Text is not speech yet: the caller has been waiting since the end of the turn.
            self._state = state
        elif state is not None:
            self._go(state, now)

    def _go(self, state: State, now: float) -> None:
        self._state, self._since = state, now
