"""The handset of `bridge phone --mic`, whose sound card runs in a thread."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import trio
from rich.console import Console

from bridge.cli.phone.caller import Plan, call
from bridge.cli.phone.handset import Buffer, Handset, SoundCardError
from bridge.cli.phone.view import CallView
from tests.unit.cli.phone.played_card import Card
from tests.world import in_memory


def test_two_threads_lose_nothing():
    buffer, taken = Buffer(most=10**6, ready=1), bytearray()
    sent = bytes(range(250)) * 400

    def put() -> None:
        for at in range(0, len(sent), 50):
            buffer.put(sent[at : at + 50])

    putting = threading.Thread(target=put)
    putting.start()
    while putting.is_alive() or len(taken) < len(sent):
        taken += buffer.take(70).replace(b"\xff", b"")
    putting.join()
    assert bytes(taken) == sent
    assert buffer.dropped == 0


async def test_the_sound_card_is_unplugged(autojump_clock, nursery, capsys):
    """The caller hangs up properly, and is told."""
    async with in_memory() as world:
        card = Card(nursery)
        view = CallView(Console(stderr=True))
        phone = world.phone(on_event=view.event)
        plan = replace(Plan(b"", transcript=False), handset=Handset(card))

        async def unplug() -> None:
            await trio.sleep(1.0)
            assert card.stopped is not None
            await trio.to_thread.run_sync(card.stopped, "the sound card stopped")

        nursery.start_soon(unplug)
        with pytest.raises(SoundCardError, match="the sound card stopped"):
            await call(phone, world.base_url, plan, view)
        await world.quiet()
    assert world.ending["outcome"] == "caller_hung_up"
