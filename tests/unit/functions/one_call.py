"""One call's functions without a call: what the agent asks for, and what it gets and when."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from structlog.testing import capture_logs

from bridge.caller import CallInfo
from bridge.deepgram.messages import (
    CancelledFunction,
    FunctionCall,
    FunctionCallCancelled,
    FunctionCallRequest,
    FunctionResult,
)
from bridge.functions import Functions
from bridge.functions.in_flight import (
    FunctionCalls,
)

INFO = CallInfo("CA1", "MZ1", "+15551234567", "+15557654321", {"tier": "gold"})


class Phone:
    """One call's functions, and what the agent got and when."""

    def __init__(self, nursery: trio.Nursery, *implementations: Callable[..., Any]) -> None:
        self.nursery = nursery
        self.results: list[tuple[float, FunctionResult]] = []
        self.calls = FunctionCalls(Functions.of(*implementations), INFO, self.answer)
        self.logs: list[Any] = []
        self._answered = trio.Event()

    async def answer(self, result: FunctionResult) -> None:
        await trio.lowlevel.checkpoint()
        self.results.append((trio.current_time(), result))
        self._answered.set()
        self._answered = trio.Event()

    def ask(self, *functions: FunctionCall) -> None:
        self.calls.start(self.nursery, FunctionCallRequest(functions))

    def cancel(self, *ids: str) -> None:
        self.calls.cancel(FunctionCallCancelled(tuple(map(CancelledFunction, ids))))

    async def answered(self, id: str) -> None:
        while id not in self.answers:
            await self._answered.wait()

    @property
    def answers(self) -> dict[str, Any]:
        """Content by id. Fails when an id was answered twice."""
        contents = {result.id: json.loads(result.content) for _, result in self.results}
        assert len(contents) == len(self.results), "each is answered once"
        return contents

    @property
    def lines(self) -> dict[str, str]:
        """How each call ended, by id, from the one line there is for each."""
        lines = [line for line in self.logs if line["event"] == "function call"]
        ended = {line["id"]: line["result"] for line in lines}
        assert len(ended) == len(lines)
        return ended


@asynccontextmanager
async def a_call(*implementations: Callable[..., Any]) -> AsyncIterator[Phone]:
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            phone = Phone(nursery, *implementations)
            phone.logs = logs
            yield phone


def fc(name: str, id: str = "fc_1", **arguments: Any) -> FunctionCall:
    return FunctionCall(id, name, json.dumps(arguments))


async def wait(seconds: float) -> str:
    """Take a while."""
    await trio.sleep(seconds)
    return f"waited {seconds:g}"
