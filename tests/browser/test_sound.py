"""The page's own arithmetic, in a real browser: µ-law, resampling, playback, messages."""

from __future__ import annotations

import audioop
import base64
import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from bridge.twilio import messages
from tests.browser.driver import Browser
from tests.browser.house import House, house
from tests.world import settings


@pytest.fixture(scope="module")
def here() -> Iterator[House]:
    with house(using=settings()) as here:
        yield here


@pytest.fixture(scope="module")
def run(the_browser: Browser, here: House) -> Iterator[Any]:
    """Runs a script with `ulaw`, `resampler`, `playback`, `engine` and `media` imported."""
    browser = the_browser
    browser.fresh()

    def in_page(script: str, *arguments: Any) -> Any:
        return browser.run(
            """
            const [script, ...given] = arguments;
            const names = ["ulaw", "resampler", "playback", "engine", "media-stream"];
            return Promise.all(names.map((name) => import(`/assets/${name}.js`))).then((all) =>
              new Function("ulaw", "resampler", "playback", "engine", "media", "given", script)(
                ...all, given))
            """,
            script,
            *arguments,
        )

    # What a test evaluates is no script of the page's: its policy would forbid it.
    browser.cdp("Page.setBypassCSP", enabled=True)
    browser.open(f"{here.address}/softphone")
    yield in_page
    browser.cdp("Page.setBypassCSP", enabled=False)


# ---- µ-law --------------------------------------------------------------------------------------


def test_every_sample_is_encoded_as_audioop_does(run: Any) -> None:
    encoded = bytes(run("return Array.from(ulaw.ENCODED)"))
    samples = struct.pack("<65536h", *range(32768), *range(-32768, 0))
    assert encoded == audioop.lin2ulaw(samples, 2)


def test_every_byte_is_decoded_as_audioop_does(run: Any) -> None:
    decoded = run("return Array.from(ulaw.DECODED)")
    expected = struct.unpack("<256h", audioop.ulaw2lin(bytes(range(256)), 2))
    assert tuple(decoded) == expected


def test_samples_beyond_full_scale_are_clipped(run: Any) -> None:
    loud = run("return [1, 7, -1, -7, 0, NaN].map(ulaw.encodeSample)")
    expected = audioop.lin2ulaw(struct.pack("<6h", 32767, 32767, -32768, -32768, 0, 0), 2)
    assert bytes(loud) == expected
    assert run("return ulaw.SILENCE") == 0xFF


# ---- resampling ---------------------------------------------------------------------------------

RATES = [44100, 48000, 16000, 96000, 8000, 22050]

# What comes out of a sine of `given` Hz at full scale, in dB, the first and last 50 ms left out.
DOWN = """
    const [rate, hertz, block] = given, out = [];
    const decimator = new resampler.Decimator(rate);
    const samples = Float32Array.from({length: rate}, (_, i) => Math.sin(2*Math.PI*hertz*i/rate));
    for (let i = 0; i < rate; i += block) {
      decimator.push(samples.subarray(i, i + block), (x) => out.push(x));
    }
    const middle = out.slice(400, -400);
    const power = middle.reduce((sum, x) => sum + x * x, 0) / middle.length;
    return [out.length, 10 * Math.log10(2 * power + 1e-12)];
"""
UP = """
    const [rate, hertz] = given;
    const interpolator = new resampler.Interpolator();
    const at = (i) => Math.sin(2 * Math.PI * hertz * i / 8000);
    let power = 0, wrong = 0;
    const n = rate / 2;
    for (let i = 0; i < n; i++) {
      const position = 100 + i * 8000 / rate, base = Math.floor(position);
      const value = interpolator.value(base, position - base, at);
      power += value * value / n;
      wrong += (value - at(position)) ** 2 / n;
    }
    return [10 * Math.log10(2 * power + 1e-12), 10 * Math.log10(2 * wrong + 1e-12)];
"""


@pytest.mark.parametrize("rate", RATES)
def test_a_voice_keeps_its_loudness_on_the_way_down(run: Any, rate: int) -> None:
    for hertz in (100, 300, 1000, 3000, 3300):
        count, decibels = run(DOWN, rate, hertz, 128)
        assert abs(count - 8000) < 40
        assert abs(decibels) < 0.5, hertz


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate > 16000])
def test_what_the_phone_cannot_carry_is_left_out_and_not_folded(run: Any, rate: int) -> None:
    for hertz in (4700, 5500, 7000, 9000, 10500):
        assert run(DOWN, rate, hertz, 128)[1] < -50, hertz


def test_the_size_of_the_blocks_changes_nothing(run: Any) -> None:
    results = [run(DOWN, 44100, 1000, block) for block in (1, 128, 441, 1024, 44100)]
    assert all(result == pytest.approx(results[0], abs=1e-6) for result in results)


@pytest.mark.parametrize("rate", RATES)
def test_a_voice_is_what_it_was_on_the_way_up(run: Any, rate: int) -> None:
    for hertz in (100, 1000, 3000):
        power, wrong = run(UP, rate, hertz)
        assert abs(power) < 0.5, hertz
        assert wrong < -45, hertz


# ---- the playback buffer ------------------------------------------------------------------------

# Steps of a phone at 48 kHz, 128 samples each; what happened when, in steps.
PLAY = """
    const [events, steps] = given, marks = [], loud = [];
    let step = 0;
    const play = new playback.Playback(48000, (name) => marks.push([name, step]));
    const tone = (bytes) => Uint8Array.from({length: bytes},
      (_, i) => ulaw.encodeSample(0.5 * Math.sin(2 * Math.PI * 500 * i / 8000)));
    for (; step < steps; step++) {
      for (const [at, what, value] of events) {
        if (at !== step) continue;
        if (what === "add") play.add(tone(value));
        if (what === "mark") play.mark(value);
        if (what === "clear") play.clear();
      }
      const out = new Float32Array(128);
      play.pull(out);
      loud.push(Math.max(...out.map(Math.abs)));
    }
    return {marks, loud, waiting: play.waiting, steepest: null};
"""
STEP = 128 / 48000  # seconds
SECOND = round(1 / STEP)


def sounding(loud: list[float]) -> float:
    """For how many seconds there was sound."""
    return sum(peak > 0.01 for peak in loud) * STEP


def test_a_mark_comes_back_when_what_was_before_it_has_played(run: Any) -> None:
    heard = run(PLAY, [[0, "add", 8000], [0, "mark", "a"], [0, "add", 4000], [0, "mark", "b"]], 700)
    assert [name for name, _ in heard["marks"]] == ["a", "b"]
    assert heard["marks"][0][1] == pytest.approx(SECOND, abs=2)
    assert heard["marks"][1][1] == pytest.approx(1.5 * SECOND, abs=2)
    assert sounding(heard["loud"]) == pytest.approx(1.5, abs=0.02)


def test_a_mark_behind_nothing_comes_back_at_once(run: Any) -> None:
    heard = run(PLAY, [[3, "mark", "a"], [100, "add", 800], [250, "mark", "b"]], 300)
    assert heard["marks"] == [["a", 3], ["b", 250]]


def test_clear_silences_and_brings_every_mark_back_in_order(run: Any) -> None:
    events = [[0, "add", 16000], [0, "mark", "a"], [0, "add", 800], [0, "mark", "b"]]
    heard = run(PLAY, [*events, [100, "clear", 0]], 300)
    assert heard["marks"] == [["a", 100], ["b", 100]]
    assert max(heard["loud"][90:100]) > 0.4
    assert max(heard["loud"][102:]) == 0, "faded within 4 ms"
    assert heard["waiting"] == 0


def test_what_comes_after_clear_plays(run: Any) -> None:
    events = [[0, "add", 16000], [100, "clear", 0], [100, "add", 4000], [100, "mark", "c"]]
    heard = run(PLAY, events, 400)
    assert sounding(heard["loud"]) == pytest.approx(100 * STEP + 0.5, abs=0.02)
    ((name, at),) = heard["marks"]
    assert name == "c"
    assert at == pytest.approx(100 + 0.5 * SECOND, abs=2)


def test_clear_with_nothing_to_play_does_no_harm(run: Any) -> None:
    heard = run(PLAY, [[0, "clear", 0], [5, "add", 800], [5, "mark", "a"], [200, "clear", 0]], 300)
    assert sounding(heard["loud"]) == pytest.approx(0.1, abs=0.01)
    assert [name for name, _ in heard["marks"]] == ["a"]


def test_speech_in_time_has_no_gap_though_its_messages_come_unevenly(run: Any) -> None:
    """20 ms messages, bunched and late by up to 40 ms: the lead carries them over."""
    at = [0, 0, 0, 15, 15, 37, 37, 45, 45, 60, 60, 60, 82, 82]
    events = [[step, "add", 160] for step in at]
    heard = run(PLAY, [*events, [82, "mark", "a"]], 250)
    first = next(i for i, peak in enumerate(heard["loud"]) if peak > 0.01)
    last = max(i for i, peak in enumerate(heard["loud"]) if peak > 0.01)
    assert all(peak > 0.01 for peak in heard["loud"][first:last])
    assert (last - first) * STEP == pytest.approx(0.28, abs=0.01)


def test_a_short_word_plays_though_nothing_follows(run: Any) -> None:
    heard = run(PLAY, [[0, "add", 160]], 100)
    assert sounding(heard["loud"]) == pytest.approx(0.02, abs=0.006)


def test_a_long_call_fills_no_memory(run: Any) -> None:
    held = run(
        """
        const play = new playback.Playback(48000, () => {});
        const second = new Uint8Array(8000).fill(0x20), out = new Float32Array(48000);
        for (let i = 0; i < 120; i++) { play.add(second); play.pull(out); }
        return play.samples.length / 8000;
        """
    )
    assert held < 40


# ---- the engine ---------------------------------------------------------------------------------


def test_a_frame_is_20_ms_whatever_the_context_s_rate(run: Any) -> None:
    counts = run(
        """
        return [44100, 48000, 96000].map((rate) => {
          const sizes = [];
          const it = new engine.Engine(rate, ({type, bytes}) => {
            if (type === "frame") sizes.push(bytes.length);
          });
          for (let done = 0; done < 10 * rate; done += 128) {
            it.process(new Float32Array(128), new Float32Array(128));
          }
          return [sizes.length, new Set(sizes).size, sizes[0]];
        })
        """
    )
    for count, kinds, size in counts:
        assert (kinds, size) == (1, 160)
        assert count == pytest.approx(500, abs=1)


def test_without_a_microphone_or_muted_silence_is_sent(run: Any) -> None:
    voices = run(
        """
        const sent = {none: new Set(), muted: new Set(), open: new Set()};
        const loud = Float32Array.from({length: 128}, (_, i) => Math.sin(i / 3));
        for (const how of Object.keys(sent)) {
          const it = new engine.Engine(48000, (m) => {
            if (m.type === "frame") m.bytes.forEach((byte) => sent[how].add(byte));
          });
          it.receive({type: "mute", on: how === "muted"});
          for (let i = 0; i < 100; i++) {
            it.process(how === "none" ? null : loud, new Float32Array(128));
          }
        }
        return Object.entries(sent).map(([how, bytes]) => [how, [...bytes]])
        """
    )
    assert dict(voices)["none"] == [0xFF]
    assert dict(voices)["muted"] == [0xFF]
    assert len(dict(voices)["open"]) > 10


# ---- messages -----------------------------------------------------------------------------------


def test_a_call_s_messages_are_twilio_s(run: Any) -> None:
    """Field by field as Twilio documents them, numbers in strings."""
    sid, call_sid = "MZ" + "a" * 32, "CA" + "b" * 32
    texts = run(
        """
        const [callSid, sid] = given, frame = new Uint8Array(160).fill(255);
        const w = new media.MediaStreamWriter(callSid, sid, {From: "softphone", ticket: "t\\"1"});
        return [w.connected(), w.start(), w.media(frame, 3), w.dtmf("#"), w.media(frame, 9),
                w.mark("0:1"), w.stop()]
        """,
        call_sid,
        sid,
    )
    payload = base64.b64encode(b"\xff" * 160).decode()
    account = "AC" + "0" * 32
    start = {
        "accountSid": account,
        "streamSid": sid,
        "callSid": call_sid,
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"From": "softphone", "ticket": 't"1'},
    }
    voice = {"track": "inbound", "payload": payload}
    key = {"track": "inbound_track", "digit": "#"}
    numbered: list[tuple[str, Any]] = [
        ("start", start),
        ("media", {**voice, "chunk": "1", "timestamp": "60"}),
        ("dtmf", key),
        ("media", {**voice, "chunk": "2", "timestamp": "180"}),
        ("mark", {"name": "0:1"}),
        ("stop", {"accountSid": account, "callSid": call_sid}),
    ]
    assert json.loads(texts[0]) == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    assert [json.loads(text) for text in texts[1:]] == [
        {"event": event, "sequenceNumber": str(number), event: body, "streamSid": sid}
        for number, (event, body) in enumerate(numbered, start=1)
    ]
    read = [messages.parse(text) for text in texts]
    assert isinstance(read[2], messages.Media)
    assert read[2].media.payload == b"\xff" * 160


def test_what_the_bridge_says_is_understood(run: Any) -> None:
    sid = "MZ" + "a" * 32
    out = messages.Outbound(sid)
    texts = [out.media(bytes(range(256))), out.mark('a "mark" µ'), out.clear()]
    read = run(
        """
        return given[0].map((text) => {
          const m = media.readMessage(text, given[1]);
          return m && {...m, bytes: m.bytes && Array.from(m.bytes)};
        })
        """,
        texts,
        sid,
    )
    assert read[0]["type"] == "audio"
    assert bytes(read[0]["bytes"]) == bytes(range(256))
    assert (read[1]["type"], read[1]["name"]) == ("mark", 'a "mark" µ')
    assert read[2]["type"] == "clear"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "null",
        "[]",
        '{"event":"clear","streamSid":"MZother"}',
        '{"event":"media","streamSid":"MZ1","media":{"payload":"%%%"}}',
        '{"event":"media","streamSid":"MZ1"}',
        '{"event":"mark","streamSid":"MZ1","mark":{"name":7}}',
        '{"event":"new","streamSid":"MZ1"}',
    ],
)
def test_unpronounceable_text_is_left_alone(run: Any, text: str) -> None:
    assert run("return media.readMessage(given[0], 'MZ1')", text) is None


def test_a_stream_sid_is_two_letters_and_32_hexadecimal_digits(run: Any) -> None:
    first, second = run("return [media.newStreamSid(), media.newStreamSid()]")
    assert first != second
    for sid in (first, second):
        assert len(sid) == 34
        assert sid.startswith("MZ")
        assert math.isfinite(int(sid[2:], 16))
