"""Silence in a conversation: when to act on it, and what to do. Sans-I/O.

Theory of operation
-------------------

Two clocks, of which at most one runs. The *idle* clock runs while neither side is expected to
speak: the caller has heard the agent's reply and says nothing. The *stall* clock runs while a reply
of the agent is due: the caller's turn is over, or probably is. Each first tries to end the silence
and then gives up, at a share of `idle_seconds` or `stall_seconds` after the last step:

    idle    ASK_STILL_THERE, and after the same time again SAY_GOODBYE
    stall   FILLER at 70 %; RECONNECT at 100 % if the agent did not speak it

So a caller hears something within `stall_seconds` even if the session is dead. A session that
speaks its filler is not dead: a reply that is slow gets FILLERS of them before RECONNECT.

Events tell this class what happens; it answers two questions: when an action is due (`due_at`), and
which one (`next`). It never sleeps, sends or speaks.

The *state* says which side is expected to speak. The clock restarts with each change of state (but
not on entering TOLD or FILLED), and with each event that the table lists, even where the state
stays the same:

    state     meaning                                   clock and step             then
    AWAY      there is no session                       none
    QUIET     neither side is expected to speak         idle 100 ASK_STILL_THERE   ASKED
    ASKED     the caller was asked                      idle 100 SAY_GOODBYE       OVER
    OVER      goodbye                                   none
    CALLER    the caller speaks, or made a noise        stall 70 FILLER            PRODDED
    PRODDED   filler given; audio settles it            stall 30 RECONNECT         QUIET
    DOUBTED   it spoke it: QUIET, but did it hear?      idle 100 ASK_STILL_THERE   ASKED
    AGAIN     the caller speaks to a doubted agent      stall 100 RECONNECT        QUIET
    OWING     a reply is due                            stall 70 FILLER            FILLING
    TOLD      the reply's text came, no audio yet       stall 70 FILLER            PRODDED
    FILLING   filler given; audio may be only that      stall 30 RECONNECT         QUIET
    FILLED    what it spoke was no reply                stall 70 FILLER            FILLING

    event     source                                    changes (in AWAY: OPENED only)
    OPENED    the session is ready, the first or        any → QUIET
              a new one
    LOST      the session is gone                       any → AWAY
    SPOKE     UserStartedSpeaking                       any → CALLER; DOUBTED, AGAIN → AGAIN
    SAID      ConversationText of the user, EndOfTurn,  any → OWING
              InjectUserMessage
    PRESSED   a key of the phone                        QUIET, DOUBTED, ASKED, OVER → QUIET
    THINKING  AgentThinking, FunctionCallRequest, a     QUIET, DOUBTED, CALLER, AGAIN → OWING;
              greeting that is to come                  PRODDED → FILLING
    SLOW      the agent says that it needs time         FILLING: the clock only
    WORDS     ConversationText of the assistant, if     OWING, FILLED → TOLD; FILLING → PRODDED;
              its own reply                             DOUBTED → QUIET
    AUDIO     audio of the agent, sent to the phone     OWING, TOLD → QUIET; FILLING → FILLED;
                                                        PRODDED → DOUBTED
    RESULT    the last running function has ended       QUIET, DOUBTED, FILLING → OWING
    INJECTED  the agent was given words to say, or      QUIET, DOUBTED, ASKED: the clock only;
              says some that are no reply               OWING → FILLED

What holds the clocks, in every state. While the agent can be heard (from AUDIO to
`agent_done_playing`) nothing is due. While a function runs only FILLER is due: the function may be
slow, but the session is healthy and will reply when the function has ended. When a hold ends, the
clock restarts. The stall clock counts from the end of the caller's voice, as heard in the audio: a
long turn, an announcement and hold music are no stall, for VOICE_HOLDS seconds.

Why so many states. The agent's own filler must not count as its reply, nor its question as a
conversation; hence FILLING and ASKED. But the watch must not break a healthy call either.
UserStartedSpeaking without any text can mean a stalled session, as reported, or a cough. The filler
tells them apart: a session that is stuck in the caller's turn refuses it, a healthy one speaks it
(DOUBTED). The session is replaced only if the caller then says something that takes WORDS_LAST
seconds, by the audio, and is not heard a second time (AGAIN); another cough changes nothing. A
session that sent the text of its reply before the filler need not send it again to count as healthy
(TOLD).

Stall: https://github.com/orgs/deepgram/discussions/1624
Refused injections: https://developers.deepgram.com/docs/voice-agent-inject-agent-message
Slow replies: https://developers.deepgram.com/docs/voice-agent-errors-warnings
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from bridge.call.voice import Voice

# Fillers that a session may speak without a reply: with stall_seconds = 10 it has 23 s and more.
FILLERS: Final = 2

# Warnings of a slow reply that are believed, of each turn. They come every 5 s.
SLOW_BELIEVED: Final = 6

# The longest that a voice holds the stall clock, in seconds: noise may be as loud as a voice.
VOICE_HOLDS: Final = 120.0

# The shortest speech that is not a cough, in seconds.
WORDS_LAST: Final = 0.7


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
    FILLING = enum.auto()
    FILLED = enum.auto()


class Event(enum.Enum):
    """An event of the call that affects the clocks; see the table above."""

    OPENED = enum.auto()
    LOST = enum.auto()
    SPOKE = enum.auto()
    SAID = enum.auto()
    PRESSED = enum.auto()
    THINKING = enum.auto()
    SLOW = enum.auto()
    WORDS = enum.auto()
    AUDIO = enum.auto()
    RESULT = enum.auto()
    INJECTED = enum.auto()


class _Step(NamedTuple):
    stalled: bool  # on the stall clock, else on the idle clock
    percent: int
    action: Action
    then: State


_STEPS: Final[Mapping[State, _Step]] = {
    State.QUIET: _Step(False, 100, Action.ASK_STILL_THERE, State.ASKED),
    State.DOUBTED: _Step(False, 100, Action.ASK_STILL_THERE, State.ASKED),
    State.ASKED: _Step(False, 100, Action.SAY_GOODBYE, State.OVER),
    State.CALLER: _Step(True, 70, Action.FILLER, State.PRODDED),
    State.OWING: _Step(True, 70, Action.FILLER, State.FILLING),
    State.TOLD: _Step(True, 70, Action.FILLER, State.PRODDED),
    State.FILLED: _Step(True, 70, Action.FILLER, State.FILLING),
    # If the session is kept all the same, the idle clock bounds the call.
    State.PRODDED: _Step(True, 30, Action.RECONNECT, State.QUIET),
    State.FILLING: _Step(True, 30, Action.RECONNECT, State.QUIET),
    State.AGAIN: _Step(True, 100, Action.RECONNECT, State.QUIET),
}

# In FILLED, after FILLERS of them.
_GIVE_UP: Final = _Step(True, 70, Action.RECONNECT, State.QUIET)

_LIVE: Final = frozenset(State) - {State.AWAY}

_REPLY_DUE: Final = frozenset({State.OWING, State.TOLD, State.FILLING, State.FILLED})


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
    Event.THINKING: {
        **_all_to(State.OWING, State.QUIET, State.DOUBTED, State.CALLER, State.AGAIN),
        State.PRODDED: State.FILLING,
    },
    Event.SLOW: _clock_only(State.FILLING),
    Event.WORDS: {
        **_all_to(State.TOLD, State.OWING, State.FILLED),
        State.FILLING: State.PRODDED,
        State.DOUBTED: State.QUIET,
    },
    Event.AUDIO: {
        **_all_to(State.QUIET, State.OWING, State.TOLD),
        State.FILLING: State.FILLED,
        State.PRODDED: State.DOUBTED,
    },
    Event.RESULT: _all_to(State.OWING, State.QUIET, State.DOUBTED, State.FILLING),
    Event.INJECTED: {
        **_clock_only(State.QUIET, State.DOUBTED, State.ASKED),
        State.OWING: State.FILLED,
    },
}

# Neither text nor words of ours are a reply: the caller has been waiting since the turn ended.
_CLOCK_GOES_ON: Final = frozenset({State.TOLD, State.FILLED})


class Silence:
    """Tracks silence in one call's conversation.

    `idle_seconds` is how long both sides may be silent, `stall_seconds` how long the agent may take
    to reply. `voice` follows the caller's audio, on the same clock. Times are seconds on a
    monotonic clock. Nothing is due before the first `session_opened`. Raises ValueError unless both
    are above 0.
    """

    def __init__(self, idle_seconds: float, stall_seconds: float, voice: Voice) -> None:
        if not (idle_seconds > 0 and stall_seconds > 0):
            raise ValueError("idle_seconds and stall_seconds are above 0")
        self._idle_seconds = idle_seconds
        self._stall_seconds = stall_seconds
        self._voice = voice
        self._state = State.AWAY
        self._since = 0.0  # when the clock began
        self._playing = False
        self._functions = 0
        # Of the turn that has no reply yet.
        self._fillers = 0
        self._slow = 0

    @property
    def state(self) -> State:
        """Which side is expected to speak: for the log and the live view."""
        return self._state

    @property
    def reply_due(self) -> bool:
        """Whether the agent owes the caller a reply of which nothing was sent to the phone yet."""
        return self._state in _REPLY_DUE

    # ---- what is due -----------------------------------------------------------------------

    @property
    def due_at(self) -> float:
        """The time of the next action if no event comes before it; inf: none is due."""
        step = self._step
        if step is None or self._playing:
            return math.inf
        if self._functions and step.action is not Action.FILLER:
            return math.inf
        if not step.stalled:
            return self._since + self._idle_seconds
        voice = min(self._voice.last_voiced_at, self._since + VOICE_HOLDS)
        return max(self._since, voice) + self._stall_seconds * step.percent / 100

    def next(self, now: float) -> Action | None:
        """Return the action that is due now, once; None if none is due.

        After RECONNECT the session is to be replaced, or to be kept for good.
        """
        step = self._step
        if step is None or now < self.due_at:
            return None
        if self._state is State.AGAIN and not self._words_heard:
            self._go(State.DOUBTED, now)
            return None
        self._fillers += step.action is Action.FILLER
        self._go(step.then, now)
        return step.action

    # ---- what happens ----------------------------------------------------------------------

    def session_opened(self, now: float) -> None:
        """The session is ready: the first, or a new one, with no reply due and no function running.

        If it is expected to speak first, report `agent_thinking`.
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
        # turn begins with SPOKE, so not in QUIET.
        if not (self._playing and self._state is State.QUIET):
            self._on(Event.SAID, now)

    def caller_quoted(self, now: float) -> None:
        """The agent was given words as the caller's: InjectUserMessage."""
        self._on(Event.SAID, now)

    def caller_pressed(self, now: float) -> None:
        """The caller pressed a key of the phone: no speech, but the caller is there."""
        self._on(Event.PRESSED, now)

    def agent_thinking(self, now: float) -> None:
        """AgentThinking, or a greeting that is configured: the agent will speak."""
        if not self._playing:
            self._on(Event.THINKING, now)

    def agent_slow(self, now: float) -> None:
        """The agent needs more time for its reply: the warning SLOW_THINK_REQUEST and the like.
        Believed SLOW_BELIEVED times in a turn."""
        if self._slow < SLOW_BELIEVED:
            self._slow += 1
            self._fillers = 0
            self._on(Event.SLOW, now)

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
        """A function runs for the agent, here or at Deepgram's."""
        self._functions += 1
        self.agent_thinking(now)

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
        """The agent was given words to say, and needs a moment to begin them; or it says words that
        are no reply, such as a filler of its own."""
        self._on(Event.INJECTED, now)

    # ---- the machine -----------------------------------------------------------------------

    @property
    def _step(self) -> _Step | None:
        step = _STEPS.get(self._state)
        if self._state is State.FILLED and self._fillers >= FILLERS and not self._functions:
            return _GIVE_UP
        return step

    @property
    def _words_heard(self) -> bool:
        """Whether what the caller said last took longer than a cough."""
        voice = self._voice
        return voice.last_voiced_at - voice.voiced_from >= WORDS_LAST

    def _on(self, event: Event, now: float) -> None:
        state = _TABLE[event].get(self._state)
        if state in _CLOCK_GOES_ON:
            self._state = state
        elif state is not None:
            self._go(state, now)

    def _go(self, state: State, now: float) -> None:
        if state not in (State.FILLING, State.FILLED):
            self._fillers = self._slow = 0
        self._state, self._since = state, now
