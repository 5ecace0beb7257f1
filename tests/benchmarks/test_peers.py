"""The comparison with peers: its picture, and peers that cannot be installed."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.benchmarks.chart import DARK, HEIGHT, LIGHT, WIDTH, Colours, Point, chart
from tests.benchmarks.measuring import BenchmarkError
from tests.benchmarks.peers import ADAPTERS, PEERS, install

POINTS = [
    Point("bridge", 9.1, 1.2, 3.1, highlighted=True),
    Point("floor", 8.9, 1.2, 2.9),
    Point("A <peer> & others", 22.0, 2.0, 22.5),
]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_the_picture_has_a_labelled_point_for_each_program(colours: Colours) -> None:
    root = ElementTree.fromstring(chart(POINTS, "10 calls", colours))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {point.name for point in POINTS} <= set(texts)
    assert sum("ms" in (text or "") for text in texts) == 2  # both axes have a unit
    circles = list(root.iter(f"{SVG}circle"))
    fills = [circle.get("fill") for circle in circles]
    assert len(circles) == len(POINTS)
    assert fills.count(colours.highlight) == 1
    for circle in circles:
        assert 0 < float(circle.get("cx", "")) < WIDTH
        assert 0 < float(circle.get("cy", "")) < HEIGHT


def test_the_cheaper_is_further_left_and_the_faster_lower() -> None:
    points = [Point("a", 5.0, 1.0, 2.0), Point("b", 10.0, 80.0, 90.0)]
    root = ElementTree.fromstring(chart(points, "", LIGHT))
    (ax, ay), (bx, by) = (
        (float(circle.get("cx", "")), float(circle.get("cy", "")))
        for circle in root.iter(f"{SVG}circle")
    )
    assert ax < bx
    assert ay > by


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        chart([], "", LIGHT)


def test_each_peer_has_its_adapter() -> None:
    assert all((ADAPTERS / peer.adapter).exists() for peer in PEERS)


async def test_a_broken_environment_is_named(tmp_path: Path) -> None:
    """The marker of a complete installation is there, and Python is not."""
    peer = PEERS[0]
    environment = tmp_path / peer.folder
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    (environment / "complete").touch()
    with pytest.raises(BenchmarkError, match=f"{peer.name}: not installed in"):
        await install(peer, tmp_path)
