"""What bridge itself says to callers and agents, in any language."""

from __future__ import annotations

import re

from msgspec import Struct

from bridge.twilio.twiml import Voice

DIGITS = "{digits}"


class Words(Struct, frozen=True, kw_only=True):
    """`[words]`: every sentence that is bridge's own.

    Twilio speaks `busy`, `apology` and `transfer_failed`, in `language` and with `voice`; the agent
    speaks the others in its own voice. `keypad` and `withheld` are read by the agent's model.

    https://www.twilio.com/docs/voice/twiml/say
    """

    language: str = "en-US"
    voice: str = ""
    busy: str = "All our lines are busy. Please call again in a few minutes."
    apology: str = "I'm sorry, something went wrong. Please call again."
    transfer_failed: str = "I'm sorry, nobody could take your call."
    still_there: str = "Are you still there?"
    one_moment: str = "One moment, please."
    idle_goodbye: str = "I can't hear you any more, so I will hang up now. Goodbye."
    last_minute: str = "Just so you know, this call will end in one minute."
    time_is_up: str = "We have come to the end of our time. Thank you for calling, goodbye."
    stopping: str = "I'm sorry, I have to end this call now; please call again. Goodbye."
    cut_off: str = "I'm sorry, the line was interrupted. Please go on."
    keypad: str = "I pressed {digits} on my phone's keypad."
    withheld: str = "an unknown number"

    @property
    def spoken(self) -> Voice:
        """How Twilio speaks them."""
        return Voice(self.language, self.voice)

    @property
    def voices_language(self) -> str:
        """The language that the voice names, "" where it names none, as Amazon's do not."""
        match = re.match(r"Google\.([a-z]+-[A-Z]+)-", self.voice)
        return match[1] if match else ""

    def pressed(self, digits: str) -> str:
        """Return the sentence that tells the agent the entered digits, as an InjectUserMessage.

        The conversation contains it as the caller's own words, so it is worded as a caller would
        say it: a model may read a note in the third person or in brackets aloud, or ask who is
        meant. It names the keypad because keys are not speech: the agent should neither doubt what
        it heard nor ask the caller to speak up. The digits stand together, as functions expect
        them, and not before a full stop, which a model could take for a part of them.

        https://developers.deepgram.com/docs/voice-agent-inject-user-message
        """
        return self.keypad.replace(DIGITS, digits)


MAY_BE_EMPTY = ("language", "voice", "busy", "apology", "transfer_failed")
