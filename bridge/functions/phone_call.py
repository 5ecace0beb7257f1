"""The phone call that a function runs in: its facts, and what the function may do with it.

Each method returns at once; bridge does the rest in the order asked for. They work from async
functions and, unchanged, from plain ones, which run in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
import trio

from bridge.caller import CallInfo
from bridge.deepgram.updates import Changes, checked

Table = Mapping[str, Any]


class Actions(Protocol):
    """Acts on one call, from Trio's thread; see `bridge.call.actions.CallActions`."""

    def say(self, words: str) -> None: ...

    def transfer(self, target: str) -> None: ...

    def hang_up(self) -> None: ...

    def update(self, changes: Changes, voice: str) -> None: ...


class PhoneCall(CallInfo, frozen=True):
    """The phone call in which a function runs; a parameter annotated `PhoneCall` gets it.

    It has the facts of CallInfo, and methods that act on the call. All of them raise NotTaken when
    the call is ending or too much is waiting already, and ValueError for what can never be done.
    """

    _actions: Any = None
    _token: Any = None
    _thread: int = 0

    @classmethod
    def of(cls, info: CallInfo, actions: Actions) -> PhoneCall:
        """Make the one of a call, in Trio's thread."""
        return cls(
            **msgspec.structs.asdict(info),
            _actions=actions,
            _token=trio.lowlevel.current_trio_token(),
            _thread=threading.get_ident(),
        )

    def say(self, words: str) -> None:
        """Have the agent say these words, after what it is saying now; not over the caller, who is
        waited for."""
        self._do(partial(self._actions.say, words))

    def transfer(self, target: str) -> None:
        """Connect the caller to somebody else: a name in `functions.transfer_to`, or a number.

        The agent's next words are its last in this call: what `say` was given, or its answer to
        what the function returns. A caller who interrupts them stays.
        """
        self._do(partial(self._actions.transfer, target))

    def hang_up(self) -> None:
        """End the call, behind the agent's next words as `transfer` does."""
        self._do(self._actions.hang_up)

    def update(
        self,
        *,
        prompt: str = "",
        voice: str = "",
        think: Table | Sequence[Table] | None = None,
        speak: Table | Sequence[Table] | None = None,
        listen: Table | None = None,
    ) -> None:
        """Change the agent for the rest of the call.

        `prompt` is added to the prompt. `voice` is another voice of the same provider. The others
        are tables as in `config.toml`, and change the agent's as `[agents.NAME]` would: a prompt in
        `think` replaces the prompt. What Deepgram refuses is taken back.
        """
        changes = checked(prompt=prompt, think=think, speak=speak, listen=listen)
        self._do(partial(self._actions.update, changes, voice))

    def _do(self, act: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            act()
        else:
            trio.from_thread.run_sync(act, trio_token=self._token)
