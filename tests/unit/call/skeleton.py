"""A call in miniature: three tasks, two sockets, one ending. The page is bridge/call/README.md."""

import math
from contextlib import suppress

import trio

TEARDOWN = 2.0  # seconds, from the first sign of the end until everything is closed


class Call:
    def __init__(self, phone, agent):
        self.phone, self.agent = phone, agent
        self.outcome, self.close_by, self.scope = "", math.inf, trio.CancelScope()
        self.put, self.take = trio.open_memory_channel(100)

    async def run(self):
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.part, self.receiver, self.phone)
                nursery.start_soon(self.part, self.sender, self.take)
                nursery.start_soon(self.part, self.agent_reader, self.agent)

    def end(self, outcome, last_words=0.0):
        if not self.outcome:  # rule 1: the first sign ends the call; later ones are symptoms
            self.outcome = outcome  # rule 2: record the cause ...
            self.close_by = trio.current_time() + 0.85 * TEARDOWN  # rule 3: one clock
            self.scope.deadline = trio.current_time() + last_words  # ... then act ...
            print("call ended:", outcome)  # ... then tell

    async def part(self, work, own):
        try:
            await work()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.end("a peer was lost")
        except BaseException as error:  # Cancelled, too: from outside, if it is the first sign
            self.end(type(error).__name__)
            raise  # rule 5: let it out; the nursery does the rest
        finally:
            with trio.CancelScope(shield=True, deadline=self.close_by):  # rule 4: shield and clock
                await own.aclose()

    async def receiver(self):
        with self.put:
            async for audio in self.phone:
                with suppress(trio.WouldBlock):  # full: drop it, and keep listening for the end
                    self.put.send_nowait(audio)
        self.end("the caller hung up", last_words=0.25 * TEARDOWN)

    async def sender(self):
        async for audio in self.take:
            await self.agent.send_all(audio)
        self.scope.cancel(reason="the last words are sent")

    async def agent_reader(self):
        async for audio in self.agent:
            await self.phone.send_all(audio)
        self.end("the agent hung up")


async def answer(phone):
    with suppress(Exception):  # one call's crash, or an agent that is not there, ends no other call
        await Call(phone, await trio.open_tcp_stream("localhost", 9000)).run()


if __name__ == "__main__":  # nc -l 9000 & python skeleton.py & nc localhost 5000
    trio.run(trio.serve_tcp, answer, 5000)
