"""Parameters for what is undocumented or varies in a real Voice Agent server.

Deepgram documents no idle timeout, close codes, frame sizes or rejection bodies for the agent, and
real sessions differ in the events they send. A client must work with all variants, so each is a
parameter here, with the most common value as its default.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
CloseCode = Annotated[int, msgspec.Meta(ge=1000, le=4999)]
ChunkSize = Annotated[int, msgspec.Meta(ge=1, le=65536)]
ChunkSizes = Annotated[tuple[ChunkSize, ...], msgspec.Meta(min_length=1)]


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the simulated agent behaves. Times are seconds; sizes are bytes of µ-law at 8 kHz."""

    # The handshake (developers.deepgram.com/docs/errors, .../reference/api-rate-limits)
    require_key: bool = True
    """Whether a connection without a key (header or subprotocol) is rejected with 401."""
    reject_status: Annotated[int, msgspec.Meta(ge=0, le=599)] = 0
    """Reject the handshake with this HTTP status: 401, 402, 403, 429, 500...; 0 accepts."""
    reject_body: str = ""
    """The body of that rejection; empty: JSON with err_code, err_msg and request_id."""
    reject_times: Count = 0
    """Reject only this many connections, then accept; 0: all."""
    max_sessions: Count = 0
    """More sessions than this at once get 429; 0: no limit."""
    full_message: str = ""
    """The err_msg of that 429; empty: Deepgram's."""
    answers_handshake: bool = True
    """False: TCP is accepted and the request read, but no answer ever comes."""
    handshake_timeout: Seconds = 10.0
    """A client that has not sent its request by then is dropped."""

    # The opening (developers.deepgram.com/docs/voice-agent-message-flow)
    sends_welcome: bool = True
    welcome_delay: Seconds = 0.0
    applies_settings: bool = True
    """False: Settings are checked, but SettingsApplied never comes."""
    settings_applied_delay: Seconds = 0.0
    settings_error: str = ""
    """Answer Settings with an Error of this code, e.g. "INVALID_SETTINGS"."""
    greeting: str | None = None
    """Spoken in place of the greeting in Settings; "" says nothing, None leaves it to Settings."""

    # The agent's voice (developers.deepgram.com/docs/voice-agent-agent-audio-done)
    chunk_bytes: ChunkSizes = (1280, 517, 2003, 960)
    """Sizes of the binary messages, used in rotation."""
    speed: Seconds = 2.0
    """How many times faster than real time audio is sent; 0: all at once."""
    reply_delay: Seconds = 0.0
    """Silence before each reply, like the think provider's time to the first word."""
    audio_before_text: bool = False
    """True: an utterance's first audio comes before its ConversationText."""

    # Hearing and barge-in (developers.deepgram.com/docs/voice-agent-user-started-speaking)
    hears: bool = True
    """False: no speech is detected; only the script says when the caller speaks."""
    speech_threshold: Count = 400
    """Loudness that counts as speech: root mean square of the samples as 16-bit linear."""
    speech_onset: Seconds = 0.1
    """This long above the threshold is the start of speech."""
    speech_end: Seconds = 0.5
    """This long below the threshold is the end of speech."""
    stale_chunks: Count = 2
    """Chunks of the interrupted reply that still come after UserStartedSpeaking."""
    stale_delay: Seconds = 0.02
    """How long after UserStartedSpeaking the first of them comes."""
    stale_text: bool = False
    """Whether the interrupted reply's next ConversationText still comes, too."""
    audio_done_when_interrupted: bool = False
    """Whether an interrupted utterance ends with AgentAudioDone."""

    injected_words_interrupt: bool = True
    """Whether InjectUserMessage interrupts the agent, as the caller's speech does; undocumented."""
    answers_context: bool = False
    """Whether a session whose context ends with a user message answers it by itself, with "You
    asked: " and the words; undocumented."""

    # Optional messages
    history: bool = True
    """History messages; Settings.flags.history = false turns them off as well."""
    agent_thinking: bool = False
    """AgentThinking before each reply; documented, never seen in real sessions."""
    agent_started_speaking: Literal["experimental", "always", "never"] = "experimental"
    """AgentStartedSpeaking; "experimental": only when Settings.experimental is true."""
    end_of_turn: Literal["flux", "always", "never"] = "flux"
    """EndOfTurn after the user's text; undocumented, seen with Flux (listen v2)."""
    conversational_behavior: bool = True
    """Whether ConversationText has this field, which older servers leave out."""
    latency_every: Seconds = 0.25
    """One stt_latency LatencyReport for so much caller audio; 0: no LatencyReport at all."""
    unknown_messages: bool = False
    """Sprinkle messages of types no client knows yet."""
    injection_refused_message: bool = True
    """Whether InjectionRefused has its `message`, which the documentation's example lacks."""

    # Errors (developers.deepgram.com/docs/voice-agent-errors-warnings)
    closes_after_error: bool = True
    """False: after an Error the socket stays open and nothing is answered any more."""
    error_close_delay: Seconds = 0.0
    error_close_code: CloseCode = 1000
    legacy_errors: bool = False
    """True: Error has `message` in place of `description`, as older servers sent it."""

    # How long a session may live
    idle_timeout: Seconds = 10.0
    """Nothing from the client for so long: Error CLIENT_MESSAGE_TIMEOUT; 0: never."""
    keep_alive_counts: bool = True
    """False: only audio keeps the session alive, as some users report."""
    max_session: Seconds = 7200.0
    """Then Error MAXIMUM_SESSION_LENGTH_REACHED; a Warning comes 300 s earlier. 0: never."""

    # The socket
    answers_close: bool = True
    """False: the client's Close frame is never answered and TCP stays open."""
    closes_tcp: bool = True
    """False: the closing handshake is done, but TCP stays open."""
    answers_pings: bool = True
    stops_reading_after: Seconds = 0.0
    """So long after SettingsApplied the server reads nothing more; 0: never."""
    freezes_after: Seconds = 0.0
    """So long after SettingsApplied the server's process hangs: it reads nothing and answers
    nothing any more, not even a ping, and its connection stays; 0: never."""
    send_timeout: Seconds = 10.0
    """A client that does not take a message for so long is dropped."""
    close_timeout: Seconds = 2.0
    """How long the server waits for the client's answer to its Close frame."""
    linger: Seconds = 60.0
    """How long a connection may stay that is held open on purpose (the knobs above)."""

    # What is kept to look at
    max_recorded_bytes: Count = 64 * 1024 * 1024
    """Caller audio kept in `received_audio` (the first so many bytes: over two hours)."""
