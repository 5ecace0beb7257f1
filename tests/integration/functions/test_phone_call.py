"""What a function may do with its call, from every thread that a function may run in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio

from bridge.deepgram.updates import Changes
from bridge.functions import PhoneCall
from bridge.functions.phone_call import Actions
from tests.unit.functions.one_call import INFO


class Doing(Actions):
    """Records what was asked for, and in which thread."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.threads: set[int] = set()

    def say(self, words: str) -> None:
        self._note("say", words)
        if not words:
            raise ValueError("nothing")

    def transfer(self, target: str) -> None:
        self._note("transfer", target)

    def hang_up(self) -> None:
        self._note("hang up")

    def update(self, changes: Changes, voice: str) -> None:
        self._note("update", changes, voice)

    def _note(self, *what: Any) -> None:
        self.done.append(what)
        self.threads.add(threading.get_ident())


def all_of_it(call: PhoneCall) -> None:
    call.say("Hello.")
    call.update(prompt="Be brief.", voice="aura-2-agathe-fr")
    call.transfer("reception")
    call.hang_up()
    with pytest.raises(ValueError, match="nothing"):
        call.say("")


def from_the_functions_thread(call: PhoneCall) -> None:
    all_of_it(call)


def from_a_thread_of_its_own(call: PhoneCall) -> None:
    with ThreadPoolExecutor() as pool:
        pool.submit(all_of_it, call).result()


def from_asyncio(call: PhoneCall) -> None:
    async def main() -> None:
        all_of_it(call)

    asyncio.run(main())


@pytest.mark.parametrize(
    "function", [from_the_functions_thread, from_a_thread_of_its_own, from_asyncio]
)
@pytest.mark.parametrize("abandoned", [False, True])
async def test_one_spelling_works_in_every_thread(
    function: Callable[[PhoneCall], None], abandoned: bool
) -> None:
    doing = Doing()
    call = PhoneCall.of(INFO, doing)
    assert (call.caller, call.parameters) == (INFO.caller, INFO.parameters)
    started, ended, begin = trio.Event(), trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def run() -> None:
        token.run_sync_soon(started.set)
        try:
            assert begin.wait(60)
            function(call)
        finally:
            token.run_sync_soon(ended.set)

    async def in_a_thread(scope: trio.CancelScope) -> None:
        with scope:
            await trio.to_thread.run_sync(run, abandon_on_cancel=True)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(in_a_thread, scope)
            await started.wait()
            if abandoned:
                scope.cancel(reason="the function's deadline")
            begin.set()
            await ended.wait()
    wanted = ["say", "update", "transfer", "hang up", "say"]
    assert [what[0] for what in doing.done] == wanted
    assert doing.done[1] == ("update", Changes(prompt="Be brief."), "aura-2-agathe-fr")
    assert doing.threads == {threading.get_ident()}


async def test_an_async_function_uses_the_same() -> None:
    doing = Doing()
    all_of_it(PhoneCall.of(INFO, doing))
    assert len(doing.done) == 5


def test_after_the_server_has_ended() -> None:
    async def main() -> PhoneCall:
        return PhoneCall.of(INFO, Doing())

    call = trio.run(main)
    with ThreadPoolExecutor() as pool, pytest.raises(trio.RunFinishedError):
        pool.submit(call.say, "too late").result()
