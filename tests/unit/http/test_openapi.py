"""The OpenAPI description says what there is, and the server does what it says."""

from __future__ import annotations

import re

from bridge.http.app import create_app
from bridge.http.openapi import NOT_DESCRIBED, description
from tests.world import SECRETS

METHODS = {"get", "post", "put", "patch", "delete"}


def test_every_route_is_described_and_nothing_else() -> None:
    """So that the description cannot drift: who adds a route adds it to the table."""
    rules = create_app(secrets=SECRETS).url_map.iter_rules()
    there = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in rules
        if not rule.websocket and rule.endpoint not in NOT_DESCRIBED
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    paths = description()["paths"]
    described = {(path, method) for path in paths for method in paths[path] if method in METHODS}
    assert described == there
