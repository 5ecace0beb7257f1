"""The SDK's own client, in a process of its own, against the simulated agent."""

from __future__ import annotations

import json
import sys

import trio

from bridge.testing.agent.server import AgentSession, Behaviour, SimulatedAgent
from bridge.testing.agent.voice import speech_for

SDK_CLIENT = """
import sys, json, threading
from deepgram import DeepgramClient
from deepgram.environment import DeepgramClientEnvironment
from deepgram.core.events import EventType
from deepgram.agent.v1.types import *

base = f"127.0.0.1:{sys.argv[1]}"
environment = DeepgramClientEnvironment(
    base=f"http://{base}", production=f"ws://{base}", agent=f"ws://{base}",
    agent_rest=f"http://{base}",
)
heard, audio = [], bytearray()
audio_format = {"encoding": "mulaw", "sample_rate": 8000}
with DeepgramClient(api_key="secret", environment=environment).agent.v1.connect() as agent:
    assert agent.recv().type == "Welcome"
    agent.send_settings(AgentV1Settings.model_validate({
        "type": "Settings",
        "audio": {"input": audio_format, "output": {**audio_format, "container": "none"}},
        "agent": {"greeting": "Hello.", "speak": {
            "provider": {"type": "deepgram", "model": "aura-2-thalia-en"}}},
    }))

    def on_message(message):
        if isinstance(message, bytes):
            audio.extend(message)
            return
        heard.append(type(message).__name__)
        if isinstance(message, dict):  # a type the SDK does not know: EndOfTurn
            return
        if message.type == "AgentAudioDone" and heard.count("AgentV1AgentAudioDone") == 1:
            agent.send_keep_alive()
            agent.send_media(b"\\x7f" * 4001)
            agent.send_update_prompt(AgentV1UpdatePrompt(prompt="Be brief."))
            agent.send_inject_user_message(AgentV1InjectUserMessage(content="What time is it?"))
        if message.type == "FunctionCallRequest":
            call = message.functions[0]
            agent.send_function_call_response(AgentV1SendFunctionCallResponse(
                id=call.id, name=call.name, content="noon"))

    agent.on(EventType.MESSAGE, on_message)
    agent.on(EventType.ERROR, lambda error: heard.append(type(error).__name__))
    agent.start_listening()
print(json.dumps({"heard": heard, "audio": audio.hex()}))
"""


async def test_the_sdks_own_client_holds_a_session_over_tcp() -> None:
    async def script(session: AgentSession) -> None:
        await session.wait_for_user_message()
        (call,) = await session.call_functions([{"name": "get_time"}])
        await session.say(f"It is {call.response}.")
        await session.close(1000)

    agent = SimulatedAgent(script, Behaviour(speed=0, latency_every=0))
    async with trio.open_nursery() as nursery:
        port = await nursery.start(agent.serve)
        with trio.fail_after(60):
            done = await trio.run_process(
                [sys.executable, "-c", SDK_CLIENT, str(port)],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr.decode()
        (session,) = agent.sessions
        nursery.cancel_scope.cancel()
    said = json.loads(done.stdout)
    assert session.faults == []
    assert session.authorization == "Token secret"
    assert session.keepalives == 1
    assert bytes(session.received_audio) == b"\x7f" * 4001
    assert session.prompt == "Be brief."
    assert bytes.fromhex(said["audio"]) == speech_for("Hello.") + speech_for("It is noon.")
    wanted = [
        "SettingsApplied",
        "ConversationText",
        "AgentAudioDone",
        "PromptUpdated",
        "ConversationText",
        "FunctionCallRequest",
        "ReceiveFunctionCallResponse",
        "ConversationText",
        "AgentAudioDone",
    ]
    rest = ("FunctionCallHistoryMessage", "ConversationHistoryMessage")
    kinds = [name.removeprefix("AgentV1") for name in said["heard"] if name not in rest]
    assert [kind for kind in kinds if kind != "dict"] == wanted
