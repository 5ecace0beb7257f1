"""`bridge check` asks servers for their time."""

from __future__ import annotations

import time
from email.utils import formatdate

from bridge.check.clock import check_clock
from tests.integration.check.site import Response, site


async def test_the_date_header_is_asked_for():
    late = formatdate(time.time() - 300, usegmt=True)
    async with site(lambda _: Response(404, headers={"Date": late})) as address:
        [found] = await check_clock([f"http://{address}/"])
    assert found.status == "wrong"
    assert "ahead of that of 127.0.0.1" in found.what


async def test_the_first_that_answers_counts():
    now = formatdate(usegmt=True)
    async with (
        site(lambda _: Response()) as dateless,
        site(lambda _: Response(headers={"Date": now})) as good,
    ):
        [found] = await check_clock(
            ["http://127.0.0.1:9/", f"http://{dateless}/", f"http://{good}/"]
        )
    assert found.status == "ok"
