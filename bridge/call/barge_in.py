"""The stale-audio gate: what the agent may still be heard saying after the caller cut in. Pure.

Theory of operation. When the caller speaks over the agent, the agent says UserStartedSpeaking and
stops its reply, but audio of that reply may already be on the wire and arrive afterwards. Played,
it would be heard as the agent talking on. So from UserStartedSpeaking on, audio is dropped until
something shows that a new turn has begun.

A gate that waits for one particular message can mute the rest of a call, since no message is sure
to come: AgentAudioDone may be missing for an interrupted utterance, AgentThinking usually is. So
there are several ways to open it, and time alone is one.

    shut by    UserStartedSpeaking, unless the last utterance is known to have been sent whole
    opened by  a sign of a new turn: ConversationText of the user, EndOfTurn, AgentThinking,
               AgentStartedSpeaking, FunctionCallRequest
               AgentAudioDone: the interrupted utterance has ended, what follows is new
               an injected message of our own
               STALE_SECONDS after the last UserStartedSpeaking
    not by     ConversationText of the assistant: that of the interrupted reply may come late

https://developers.deepgram.com/docs/voice-agent-user-started-speaking
"""

from __future__ import annotations

from typing import Final

# Stale audio was on the wire when the caller cut in; two seconds are ten times a bad round trip,
# and shorter than any reply to what the caller has only begun to say.
STALE_SECONDS: Final = 2.0


class StaleAudioGate:
    """Tells for each piece of agent audio whether it belongs to an interrupted reply.

    Times are seconds on any clock that does not go backwards.
    """

    def __init__(self) -> None:
        self._shut_until: float | None = None
        # Nothing was said yet, so nothing of it can be on the wire.
        self._sent_whole = True

    def user_started_speaking(self, now: float) -> None:
        """The caller cut in: drop what may still come of the reply."""
        if not self._sent_whole or self._shut_until is not None:
            self._shut_until = now + STALE_SECONDS

    def new_turn(self) -> None:
        """A sign that whatever comes now belongs to a new turn."""
        self._shut_until = None
        self._sent_whole = False

    def audio_done(self) -> None:
        """AgentAudioDone: nothing of this utterance can follow."""
        self._shut_until = None
        self._sent_whole = True

    def passes(self, now: float) -> bool:
        """Agent audio has come: is it to be played?"""
        if self._shut_until is not None:
            if now < self._shut_until:
                return False
            self._shut_until = None
        self._sent_whole = False
        return True
