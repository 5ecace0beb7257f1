"""Fixtures that several folders of tests/integration share, and that are costly to set up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.records.postgres import Cluster, cluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server of this process's; each test empties what it uses. Who stops it starts
    it again."""
    with cluster() as database:
        yield database
