"""What functions and operators do with a call: say, update, transfer, hang up.

What has to be sent to the agent waits here, in order, until there is a session that takes it; at
most MAX_WAITING at once, and more is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

import msgspec
import trio

from bridge.call.conversation import Conversation
from bridge.call.goodbye import PoliteEnd
from bridge.call.typed import RETRY_SECONDS
from bridge.deepgram.session import AgentClosed
from bridge.deepgram.updates import AgentTable, Changes
from bridge.ending import Ending
from bridge.functions import Functions
from bridge.functions.errors import NotTaken
from bridge.log import get_logger
from bridge.outcome import Outcome
from bridge.twilio.targets import read_target

log = get_logger(__name__)

# A function says a sentence or two; an operator's clicks are fewer.
MAX_WAITING: Final = 16

# How long words wait for a caller who does not stop speaking: later they would answer nothing.
SAY_SECONDS: Final = 15.0


class CallActions:
    """Acts on one call. Every method returns at once."""

    def __init__(
        self,
        conversation: Conversation,
        table: AgentTable,
        functions: Callable[[], Functions],
        end: PoliteEnd,
        ending: Ending[Outcome],
        transfer_to: Mapping[str, str],
    ) -> None:
        self._conversation = conversation
        self._table = table
        self._functions = functions
        self._end = end
        self._ending = ending
        self._transfer_to = transfer_to
        self._waiting: list[Callable[[], Awaitable[None]]] = []

    @property
    def targets(self) -> list[str]:
        """The names that a call may be transferred to."""
        return list(self._transfer_to)

    def say(self, words: str) -> None:
        """Have the agent say these words when neither side speaks."""
        if not words.strip():
            raise ValueError("words: expected something to say")
        self._add(partial(self._say, words))

    def update(self, changes: Changes, voice: str = "") -> None:
        """Change the agent for the rest of the call; `voice` stands for a change of `speak`."""
        if voice:
            if changes.speak:
                raise ValueError("voice: it is a part of speak; give one of them")
            changes = msgspec.structs.replace(changes, speak=self._table.voice(voice))
        if changes == Changes():
            raise ValueError("update: expected prompt, voice, think, speak or listen")
        self._add(partial(self._update, changes))

    def hang_up(self) -> None:
        """End the call behind the agent's next words."""
        self._check()
        self._end.end_after_goodbye(Outcome.AGENT_ENDED, "a function hung up")

    def transfer(self, target: str) -> None:
        """Connect the caller to `target`, a name or an address, behind the agent's next words."""
        to = self._named(target)
        self._check()
        self._end.end_after_goodbye(Outcome.HANDED_OVER, f"a function transferred: {target}", *to)

    def transfer_now(self, target: str, words: str) -> None:
        """Connect the caller to `target`, a name or an address, behind these words of the agent."""
        to = self._named(target)
        self._check()
        self._end.wind_down(Outcome.HANDED_OVER, f"an operator transferred: {target}", words, *to)

    def _named(self, target: str) -> tuple[str, str]:
        """Return whom to connect the caller to, and the name. Raises ValueError, with the remedy,
        for what is neither a name nor an address."""
        if target in self._transfer_to:
            return self._transfer_to[target], target
        try:
            read_target(target)
        except ValueError as error:
            names = ", ".join(self._transfer_to) or "no names yet"
            raise ValueError(f"{error}; functions.transfer_to has {names}") from None
        return target, ""

    # ---- what waits for the agent ---------------------------------------------------------------

    def _check(self) -> None:
        if self._ending.first is not None or self._conversation.goodbye is not None:
            raise NotTaken("the call is ending")

    def _add(self, send: Callable[[], Awaitable[None]]) -> None:
        if self._ending.first is not None:
            raise NotTaken("the call is ending")
        if len(self._waiting) >= MAX_WAITING:
            raise NotTaken("too much is waiting for the agent")
        self._waiting.append(send)
        if len(self._waiting) == 1:
            self._ending.start_soon(self._send_all, name="actions")

    async def _send_all(self) -> None:
        while self._waiting:
            await self._waiting[0]()
            del self._waiting[0]

    async def _say(self, words: str) -> None:
        until = trio.current_time() + SAY_SECONDS
        while trio.current_time() < until:
            await self._conversation.wait_session()
            try:
                if await self._conversation.say(words):
                    return
            except AgentClosed:
                pass  # the agent reader notices, too, and opens another session
            await trio.sleep(RETRY_SECONDS)
        log.warning("words not said: the caller did not stop speaking", seconds=SAY_SECONDS)

    async def _update(self, changes: Changes) -> None:
        await self._conversation.wait_session()
        for message in self._table.update(changes, self._functions().schemas()):
            try:
                await self._conversation.send(message)
            except AgentClosed:
                return  # the next session is opened with it
