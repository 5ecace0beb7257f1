"""The stale-audio gate: drops audio of a reply that the caller has interrupted. Sans-I/O.

Theory of operation. When the caller speaks over the agent, the agent sends UserStartedSpeaking and
stops its reply, but audio of that reply may already be on the wire and arrive afterwards. Played,
it would sound as if the agent kept talking. So from UserStartedSpeaking on, audio is dropped until
a message shows that a new turn has begun.

A gate that waits for one particular message can mute the rest of a call, because no message is
certain to come: AgentAudioDone may be missing for an interrupted utterance, AgentThinking usually
is. So there are several ways to open it, and time alone is one.

    shut by    UserStartedSpeaking or a key of the phone, unless the last utterance is known to
               have been sent whole
    opened by  a sign of a new turn: ConversationText of the user, EndOfTurn, AgentThinking,
               AgentStartedSpeaking, FunctionCallRequest
               AgentAudioDone: the interrupted utterance has ended, later audio is new
               a message that bridge injected
               time: STALE_SECONDS after UserStartedSpeaking; after a key, the time of its entry
               more
    not by     ConversationText of the assistant: that of the interrupted reply may come late

https://developers.deepgram.com/docs/voice-agent-user-started-speaking
"""

from __future__ import annotations

from typing import Final

# Stale audio was on the wire when the caller interrupted; two seconds are ten times a bad round
# trip, and the reply to speech that has only begun takes longer.
STALE_SECONDS: Final = 2.0


class StaleAudioGate:
    """Decides for each piece of agent audio whether it belongs to an interrupted reply.

    Times are seconds on a monotonic clock.
    """

    def __init__(self) -> None:
        self._shut_until: float | None = None
        # The agent has not spoken yet, so no stale audio can be on the wire.
        self._sent_whole = True

    def caller_cut_in(self, now: float, seconds: float = STALE_SECONDS) -> None:
        """Shut the gate for `seconds`: the caller interrupted, and audio of the reply may still
        arrive."""
        if not self._sent_whole or self._shut_until is not None:
            self._shut_until = now + seconds

    def new_turn(self) -> None:
        """Open the gate: audio that comes from now on belongs to a new turn."""
        self._shut_until = None
        self._sent_whole = False

    def audio_done(self) -> None:
        """Open the gate on AgentAudioDone: no audio of this utterance can follow."""
        self._shut_until = None
        self._sent_whole = True

    def is_shut(self, now: float) -> bool:
        """Return whether the caller has interrupted a reply that may still arrive."""
        return self._shut_until is not None and now < self._shut_until

    def passes(self, now: float) -> bool:
        """Return whether agent audio that has just come is to be played."""
        if self._shut_until is not None:
            if now < self._shut_until:
                return False
            self._shut_until = None
        self._sent_whole = False
        return True
