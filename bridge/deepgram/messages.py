"""Deepgram Voice Agent messages, in both directions: text to typed structs and back. Sans-I/O.

Shapes: https://developers.deepgram.com/docs/voice-agent-message-flow and the pages it links to.
Audio is not covered here: both sides send it as raw binary messages. Every field that the agent
may leave out has a default, and every unlisted type becomes `Unknown`, because this protocol grows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, get_args

import msgspec

from bridge.deepgram.lenient import nearest
from bridge.tagged_messages import BadMessage as BadMessage
from bridge.tagged_messages import message_reader


class _FromAgent(msgspec.Struct, frozen=True, tag_field="type"):
    pass


class Welcome(_FromAgent, frozen=True, tag="Welcome"):
    """The session is open. Deepgram's support asks for the `request_id`."""

    request_id: str = ""


class SettingsApplied(_FromAgent, frozen=True, tag="SettingsApplied"):
    """The agent now accepts audio and injected messages."""


class ConversationText(_FromAgent, frozen=True, tag="ConversationText"):
    """Words that one side said: `role` is "user" or "assistant".

    `languages` are those of the user's words, the most spoken first; only flux-general-multi tells.
    https://developers.deepgram.com/docs/voice-agent-conversation-text,
    https://developers.deepgram.com/docs/voice-agent-think-live
    """

    role: str = ""
    content: str = ""
    languages: Any = None
    conversational_behavior: str = "default"

    @property
    def is_reply(self) -> bool:
        """Whether this is a turn of the conversation, rather than "backchannel" ("mhm" while the
        other side speaks), "presence_check" or "filler"."""
        return self.conversational_behavior in ("default", "")


class UserStartedSpeaking(_FromAgent, frozen=True, tag="UserStartedSpeaking"):
    """The caller began to speak: the barge-in signal."""


class AgentThinking(_FromAgent, frozen=True, tag="AgentThinking"):
    """The agent works on its reply."""

    content: str = ""


class AgentStartedSpeaking(_FromAgent, frozen=True, tag="AgentStartedSpeaking"):
    """A reply begins; latencies in seconds."""

    total_latency: float | None = None
    tts_latency: float | None = None
    ttt_latency: float | None = None


class AgentAudioDone(_FromAgent, frozen=True, tag="AgentAudioDone"):
    """The agent has sent the last audio of an utterance; the caller has not heard it yet."""


class EndOfTurn(_FromAgent, frozen=True, tag="EndOfTurn"):
    """The caller's turn ended (seen with Flux; not documented)."""

    trigger: str = ""


class FunctionCall(msgspec.Struct, frozen=True):
    """One function that the agent calls. `arguments` is JSON in a string, possibly empty. If it has
    no `id`, it is answered by its name."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    client_side: bool = True
    thought_signature: str | None = None


class FunctionCallRequest(_FromAgent, frozen=True, tag="FunctionCallRequest"):
    """The agent calls functions; bridge runs those with `client_side`."""

    functions: tuple[FunctionCall, ...] = ()


class CancelledFunction(msgspec.Struct, frozen=True):
    """A function call that is no longer wanted."""

    id: str = ""
    name: str = ""


class FunctionCallCancelled(_FromAgent, frozen=True, tag="FunctionCallCancelled"):
    """The caller went on speaking: the agent no longer wants these answers."""

    functions: tuple[CancelledFunction, ...] = ()


class FunctionCallResponse(_FromAgent, frozen=True, tag="FunctionCallResponse"):
    """The answer of a function that Deepgram ran itself, or the echo of bridge's answer."""

    id: str = ""
    name: str = ""
    content: str = ""


class LatencyReport(_FromAgent, frozen=True, tag="LatencyReport"):
    """Latencies in seconds; usually one per message, and several messages a second."""

    stt_latency: float | None = None
    ttt_token_latency: float | None = None
    ttt_text_latency: float | None = None
    ttt_tool_latency: float | None = None
    ttt_thinking_latency: float | None = None
    tts_latency: float | None = None
    total_latency: float | None = None


class History(_FromAgent, frozen=True, tag="History"):
    """One item of the conversation, in the shape `agent.context.messages` takes back."""

    role: str | None = None
    content: str | None = None
    function_calls: tuple[dict[str, Any], ...] | None = None


class PromptUpdated(_FromAgent, frozen=True, tag="PromptUpdated"):
    """The answer to UpdatePrompt."""


class SpeakUpdated(_FromAgent, frozen=True, tag="SpeakUpdated"):
    """The answer to UpdateSpeak."""


class ThinkUpdated(_FromAgent, frozen=True, tag="ThinkUpdated"):
    """The answer to UpdateThink."""


class ListenUpdated(_FromAgent, frozen=True, tag="ListenUpdated"):
    """The answer to UpdateListen."""


class InjectionRefused(_FromAgent, frozen=True, tag="InjectionRefused"):
    """The agent refused an injected message because one side was speaking."""

    message: str = ""


class Error(_FromAgent, frozen=True, tag="Error"):
    """A fatal error; the agent usually closes the socket soon after. Older servers send `message`
    instead of `description`."""

    code: str = ""
    description: str = ""
    message: str = ""

    @property
    def reason(self) -> str:
        """The agent's description, from whichever field it used."""
        return self.description or self.message


class Warning(_FromAgent, frozen=True, tag="Warning"):
    """A warning to log; the session continues."""

    code: str = ""
    description: str = ""


class Unknown(msgspec.Struct, frozen=True):
    """A message type this version does not know."""

    type: str


Message = (
    Welcome
    | SettingsApplied
    | ConversationText
    | UserStartedSpeaking
    | AgentThinking
    | AgentStartedSpeaking
    | AgentAudioDone
    | EndOfTurn
    | FunctionCallRequest
    | FunctionCallCancelled
    | FunctionCallResponse
    | LatencyReport
    | History
    | PromptUpdated
    | SpeakUpdated
    | ThinkUpdated
    | ListenUpdated
    | InjectionRefused
    | Error
    | Warning
)


parse: Callable[[str], Message | Unknown] = message_reader(Message, "type", Unknown)
"""Read one text message from the agent.

Raises BadMessage when it is not JSON or a known type of the wrong shape.
"""

_KINDS: Final = {kind.__struct_config__.tag: kind for kind in get_args(Message)}


def parse_leniently(text: str) -> Message:
    """Read one text message of a known type whose shape is not the documented one; see `lenient`.

    Raises BadMessage when there is nothing to be understood.
    """
    try:
        data = msgspec.json.decode(text)
        message: Message = nearest(data, _KINDS[data["type"]])
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise BadMessage(str(error)) from None
    return message


class _ToAgent(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    pass


class KeepAlive(_ToAgent, frozen=True, tag="KeepAlive"):
    """Keep a session open while no audio is sent; the agent does not answer.

    https://developers.deepgram.com/docs/agent-keep-alive
    """


class UpdatePrompt(_ToAgent, frozen=True, tag="UpdatePrompt"):
    """Text to add to the prompt; the agent answers PromptUpdated.

    https://developers.deepgram.com/docs/voice-agent-update-prompt
    """

    prompt: str


class UpdateThink(_ToAgent, frozen=True, tag="UpdateThink"):
    """The whole `agent.think` from now on, functions included; answered with ThinkUpdated.

    https://developers.deepgram.com/docs/voice-agent-update-think
    """

    think: Any


class UpdateSpeak(_ToAgent, frozen=True, tag="UpdateSpeak"):
    """The whole `agent.speak` from now on; answered with SpeakUpdated.

    https://developers.deepgram.com/docs/voice-agent-update-speak
    """

    speak: Any


class UpdateListen(_ToAgent, frozen=True, tag="UpdateListen"):
    """Changes of `agent.listen`, with the provider's type, version and model; answered with
    ListenUpdated.

    https://developers.deepgram.com/docs/voice-agent-update-listen
    """

    listen: Any


class InjectAgentMessage(_ToAgent, frozen=True, tag="InjectAgentMessage"):
    """Words for the agent to speak. `behavior`: "default", "queue" or "interrupt".

    https://developers.deepgram.com/docs/voice-agent-inject-agent-message
    """

    message: str
    behavior: str | None = None


class InjectUserMessage(_ToAgent, frozen=True, tag="InjectUserMessage"):
    """Words for the agent to treat as the caller's.

    https://developers.deepgram.com/docs/voice-agent-inject-user-message
    """

    content: str


class ForceEndTurn(_ToAgent, frozen=True, tag="ForceEndTurn"):
    """End the caller's turn, regardless of what the agent hears; Flux (listen v2) only."""


class FunctionResult(_ToAgent, frozen=True, tag="FunctionCallResponse"):
    """The answer to one FunctionCall; `content` is usually JSON. Without an `id`, which a call may
    lack, the name tells which.

    https://developers.deepgram.com/docs/voice-agent-function-call-response
    """

    id: str | msgspec.UnsetType
    name: str
    content: str
    thought_signature: str | None = None


ToAgent = (
    KeepAlive
    | UpdatePrompt
    | UpdateThink
    | UpdateSpeak
    | UpdateListen
    | InjectAgentMessage
    | InjectUserMessage
    | ForceEndTurn
    | FunctionResult
)


def encode(message: ToAgent) -> str:
    """Write one message to the agent as JSON text."""
    return msgspec.json.encode(message).decode()
