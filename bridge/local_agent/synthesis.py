"""Text to speech for a few sentences, in a process that lives only for them."""

from __future__ import annotations

import trio

from bridge.local_agent import missing
from bridge.local_agent.events import Setup
from bridge.local_agent.worker_client import WorkerBroken, open_worker


class SynthesisError(Exception):
    """There is no speech engine on this machine, or it failed; the message has the remedy."""


async def synthesise(text: str, *, voice: str = "") -> bytes:
    """Return the speech of `text` (English, at most 1000 characters) as µ-law at 8 kHz.

    `voice` names the engine, "flite" or "espeak-ng"; the default is the best one installed. A
    worker process does the work; it has ended when this returns or is cancelled. Raises
    SynthesisError.
    """
    (speech,) = await synthesise_all([text], voice=voice)
    return speech


async def synthesise_all(texts: list[str], *, voice: str = "") -> list[bytes]:
    """Synthesise several texts with one process; see `synthesise`."""
    if why := missing(recognition=False):
        raise SynthesisError(why)
    try:
        async with open_worker(Setup(voice=voice)) as worker, trio.open_nursery() as nursery:
            nursery.start_soon(worker.run, lambda event: None)
            speech = [await worker.speak(text) for text in texts]
            nursery.cancel_scope.cancel(reason="all texts are synthesised")
            return speech
    except* WorkerBroken as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise SynthesisError(str(error)) from None
    raise AssertionError("unreachable")
