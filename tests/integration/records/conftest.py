"""The store that the tests of records share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.records.store import Store
from tests.integration.records.stores import drop_tables


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store, with its tables."""
    if request.param == "sqlite":
        result = Store(f"sqlite:///{tmp_path}/calls.db")
    else:
        result = Store(request.getfixturevalue("postgres").url)
        drop_tables(result)
    result.prepare()
    yield result
    result.close()
