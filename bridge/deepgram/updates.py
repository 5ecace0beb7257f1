"""Changes of the agent in mid-call: Deepgram's Update messages. Sans-I/O.

    change    message        what it does to the agent's table
    prompt    UpdatePrompt   adds to the prompt, as Deepgram does
    think     UpdateThink    merged over `think`; sent whole, with bridge's functions
    speak     UpdateSpeak    merged over `speak`; sent whole
    listen    UpdateListen   merged over `listen`; sent without what stays as it is

Tables are merged as `[agents.NAME]` is merged over `[agent]`. The result is the table that a later
session is opened with, so that a change outlives the session it was made in.

An agent that cannot use a change answers with an Error and ends the session. The next one must not
be opened with it, so a change that the agent has not acknowledged by then is taken back.

https://developers.deepgram.com/docs/voice-agent-update-prompt, .../voice-agent-update-think,
.../voice-agent-update-speak and .../voice-agent-update-listen
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bridge.config.agent import ID, merged
from bridge.deepgram import messages
from bridge.deepgram.settings import with_functions

Table = Mapping[str, Any]

# What names a listen provider; Deepgram wants it in every UpdateListen. `language_hints` is the one
# setting that an UpdateListen without it clears.
_REPEATED = ("type", "version", "model", "language_hints")


class Changes(msgspec.Struct, frozen=True):
    """Changes of an agent; tables in the shape of `[agent.think]`, `[agent.speak]` and
    `[agent.listen]`. What is empty changes nothing."""

    prompt: str = ""
    think: Table | list[Table] | None = None
    speak: Table | list[Table] | None = None
    listen: Mapping[str, Table] | None = None


def checked(**changes: object) -> Changes:
    """Return a copy of changes that a user has written. Raises ValueError if they are not JSON of
    the right shape."""
    try:
        return msgspec.convert(msgspec.to_builtins(changes), Changes)
    except (TypeError, msgspec.MsgspecError) as error:
        what, _, path = str(error).partition(" - at `$.")
        raise ValueError(f"{path.rstrip('`') or 'a change'}: {what}") from None


class AgentTable:
    """The table of one call's agent, through all its sessions."""

    def __init__(self) -> None:
        self.now: dict[str, Any] = {}
        """The table with all changes so far; empty before the first session."""
        self._acknowledged: dict[str, Any] = {}
        self._awaited = 0
        self._sent: list[messages.ToAgent] = []

    def opened(self, table: dict[str, Any]) -> list[messages.ToAgent]:
        """A session was opened with this table, and has accepted it.

        Returns the messages to send again: Settings that only name a configuration which Deepgram
        stores cannot hold the changes of it.
        """
        self.now = self._acknowledged = table
        self._awaited = 0
        return self._sent

    def voice(self, name: str) -> Table:
        """Return the change of `speak` that a voice is, by the provider's own key for it.

        Raises ValueError for a provider whose voice is not named by one key.
        """
        speak = self.now.get("speak") or {"provider": {"type": "deepgram"}}
        provider = speak.get("provider", {}) if isinstance(speak, Mapping) else {}
        match provider:
            case {"type": "deepgram"}:
                version = {"version": "v2"} if name.startswith("flux-") else {}
                return {"provider": {"type": "deepgram", **version, "model": name}}
            case {"voice": str()}:
                return {"provider": {"voice": name}}
            case {"voice": {"id": str()}}:
                return {"provider": {"voice": {"id": name}}}
        raise ValueError("voice: the agent's voice is not named by one key; use speak")

    def update(self, changes: Changes, functions: Sequence[Table]) -> list[messages.ToAgent]:
        """Change the table; return the messages that change the session that is open.

        `functions` are the schemas of the functions that bridge runs.
        """
        table, sent = self.now, list[messages.ToAgent]()
        if changes.think:
            table = merged(table, {"think": changes.think})
        if changes.prompt:
            table = merged(table, {"think": _prompted(table.get("think") or {}, changes.prompt)})
        if changes.think:
            sent.append(messages.UpdateThink(with_functions(table["think"], functions)))
        elif changes.prompt:
            sent.append(messages.UpdatePrompt(changes.prompt))
        if changes.speak:
            table = merged(table, {"speak": changes.speak})
            sent.append(messages.UpdateSpeak(table["speak"]))
        if changes.listen:
            table = merged(table, {"listen": changes.listen})
            given = changes.listen.get("provider", {})
            provider = table["listen"].get("provider", {})
            kept = {key: value for key, value in provider.items() if key in (*_REPEATED, *given)}
            sent.append(messages.UpdateListen({"provider": kept}))
        self.now = table
        self._awaited += len(sent)
        if ID in table:
            self._sent += sent
        return sent

    def acknowledged(self) -> None:
        """The agent has acknowledged one message of `update`."""
        self._awaited = max(0, self._awaited - 1)
        if not self._awaited:
            self._acknowledged = self.now

    def take_back(self) -> bool:
        """Return to the table that the agent has acknowledged, because it ended the session with an
        Error. Returns whether that changes anything."""
        changed = self.now is not self._acknowledged
        self._sent = self._sent[: max(0, len(self._sent) - self._awaited)]
        self.now, self._awaited = self._acknowledged, 0
        return changed


def _prompted(think: Any, prompt: str) -> Any:
    if isinstance(think, list):
        return [_prompted(one, prompt) for one in think]
    return {**think, "prompt": f"{think.get('prompt', '')}\n{prompt}".strip()}
