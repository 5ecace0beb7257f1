"""A call in miniature: three tasks, two sockets, one ending. The page is bridge/call/README.md."""

import math
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

TEARDOWN = 2.0  # seconds, from the first sign of the end until everything is closed
GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class Call:
    def __init__(self, phone: trio.abc.Stream, agent: trio.abc.Stream) -> None:
        self.phone, self.agent = phone, agent
        self.outcome, self.close_by = "", math.inf
        self.scope = trio.CancelScope()
        self.put, self.take = trio.open_memory_channel[bytes](100)

    async def run(self) -> None:
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    for task in (self.receiver, self.sender, self.agent_reader):
                        nursery.start_soon(self.watch, task)
        finally:
            self.end("cancelled from outside")

    def end(self, outcome: str, last_words: float = 0.0) -> None:
        if not self.outcome:  # rule 1: the first sign ends the call; later ones are symptoms
            self.outcome = outcome  # rule 2: record the cause ...
            self.start_clock()
            self.scope.deadline = trio.current_time() + last_words  # ... then act ...
            print("call ended:", outcome)  # ... then tell

    def start_clock(self) -> float:  # rule 3: one clock, an absolute time
        self.close_by = min(self.close_by, trio.current_time() + TEARDOWN * 0.85)
        return self.close_by

    async def close(self, socket: trio.abc.Stream) -> None:
        with trio.CancelScope(shield=True, deadline=self.start_clock()):  # rule 4
            await socket.aclose()

    async def watch(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except Exception as error:  # not Cancelled, which is a BaseException
            self.end(f"crashed: {error!r}")
            raise  # rule 5: let it out; the nursery does the rest

    async def receiver(self) -> None:
        try:
            async for audio in self.phone:
                with suppress(trio.WouldBlock):  # full: drop it, and keep listening for the end
                    self.put.send_nowait(audio)
            self.end("the caller hung up", last_words=TEARDOWN * 0.25)
        except trio.BrokenResourceError:
            self.end("the phone was lost")
        finally:
            self.put.close()
            await self.close(self.phone)

    async def sender(self) -> None:
        async for audio in self.take:
            with suppress(*GONE):  # its reader reports the loss
                await self.agent.send_all(audio)
        self.scope.cancel(reason="the last words are sent")

    async def agent_reader(self) -> None:
        try:
            async for audio in self.agent:
                with suppress(*GONE):
                    await self.phone.send_all(audio)
            self.end("the agent hung up")
        except trio.BrokenResourceError:
            self.end("the agent was lost")
        finally:
            await self.close(self.agent)


async def answer(phone: trio.SocketStream) -> None:
    try:
        await Call(phone, await trio.open_tcp_stream("127.0.0.1", 9000)).run()
    except* Exception:  # one call's crash ends that call, not the server
        traceback.print_exc()


if __name__ == "__main__":  # nc -l 9000 & python skeleton.py & nc localhost 5000
    trio.run(trio.serve_tcp, answer, 5000)
