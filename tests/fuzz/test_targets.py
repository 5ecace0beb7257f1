"""Each fuzz target with hypothesis: honest input, honest input that is damaged, and any bytes."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.fuzz.targets import SEEDS, TARGETS
from tests.unit.server.malformed import ALL

# A whole server each time.
SLOW = {"connection"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


def damaged(seed: bytes, random: Random) -> bytes:
    """As a fuzzer damages: bytes changed, taken out, put in twice, cut off."""
    data = bytearray(seed)
    for _ in range(random.randint(1, 6)):
        at = random.randrange(len(data) + 1)
        match random.randrange(5):
            case 0 if at < len(data):
                data[at] = random.randrange(256)
            case 1:
                del data[at : at + random.randrange(8)]
            case 2:
                data[at:at] = data[at : at + random.randrange(30)] * random.randint(1, 3)
            case 3:
                data[at:at] = random.choice(
                    [b'"', b"\\u0000", b"{", b"[" * 500, b"9" * 40, b"\xff"]
                )
            case _:
                del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_honest_input_keeps_every_promise(name: str) -> None:
    assert SEEDS[name]
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300), seed=st.integers(0, 2**32))
@example(data=b"[" * 100_000, seed=0)
@example(data=b'{"a":' * 50_000, seed=0)
def test_no_input_breaks_a_promise(name: str, data: bytes, seed: int) -> None:
    random = Random(seed)
    if name not in SLOW or random.random() < 0.1:
        TARGETS[name](data)
        TARGETS[name](damaged(random.choice(SEEDS[name]), random))


@pytest.mark.parametrize("case", list(ALL)[::4])
def test_the_corpus_of_malformed_input_is_a_seed(case: str) -> None:
    """The connection's target takes what is known to have broken hypercorn."""
    TARGETS["connection"](b"".join(ALL[case]))
