"""Shows a live call from the caller's side: who speaks, and what happens.

A phone has no transcript: who speaks is detected by loudness. The bridge's transcript (`live_call`)
is shown as well, if it is available. The reply time is measured at the phone, independently of the
bridge's: from the end of the caller's speech to the first audio of the reply that the phone plays.
"""

from __future__ import annotations

import audioop
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bridge.cli.phone.live_call import LiveCall
from bridge.testing.activity import SpeechTurn, VoiceDetector, key_press, reply_to
from bridge.testing.phone.media_stream import FRAME_SECONDS
from bridge.testing.phone.phone import PhoneEvent, SimulatedPhone
from bridge.testing.speech import RATE, ulaw_to_pcm
from bridge.text import printable

# On a terminal speech stands out from events.
_STYLES = {"agent": "bold", "caller": "bold cyan", "keypad": "bold cyan"}

_LEVEL_CELLS = 12
_QUIETEST_DB, _LOUDEST_DB = -48.0, -6.0  # of 16-bit full scale, as root mean square

_INTERRUPTION_SECONDS = 0.1  # a shorter unheard rest is only the tail of a sentence

_WORDS = {
    "dialling": "phone: POST {text}",
    "twiml": "Twilio {text}",
    "note": "note: {text}",
    "started": "answered: media stream {text}",
    "dtmf": "caller presses {text}",
    "mark": "mark {text!r} received",
    "mark_echoed": "mark {text!r} sent back",
    "fault": "ERROR {text}",
    "closed": "server closed the stream ({text})",
    "ended": "call ended: {text}",
}


class CallView:
    """Shows a live call: a panel on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.agent = VoiceDetector()
        self.caller = VoiceDetector()
        self.interruptions = 0
        self.watching = False
        self._console = console
        self._live: Live | None = None
        self._heard_bytes = 0
        self._sent_until = 0
        self._unannounced: float | None = None
        self._keys: list[SpeechTurn] = []
        self._played: list[tuple[float, float]] = []  # when the phone played audio, from and to
        self._connected_at = 0.0  # when the media stream began, in the phone's seconds
        self._levels = {"caller": 0.0, "agent": 0.0}
        self._told: list[tuple[str, str]] = []
        self.live: LiveCall | None = None

    @property
    def reply_seconds(self) -> list[float]:
        """Seconds the caller waited for each finished reply to speech, in order."""
        return [seconds for turn, seconds in self._replies_heard() if turn.end != turn.start]

    @property
    def typed_reply_seconds(self) -> list[float]:
        """Seconds the caller waited for each finished reply to keys, in order."""
        return [seconds for turn, seconds in self._replies_heard() if turn.end == turn.start]

    def _replies_heard(self) -> list[tuple[SpeechTurn, float]]:
        replies = (self._reply(turn.start) for turn in self.agent.turns)
        return [reply for reply in replies if reply is not None]

    def _reply(self, start: float) -> tuple[SpeechTurn, float] | None:
        since = self.caller.speaking_since
        speaking = [] if since is None else [SpeechTurn(since, None)]
        turns = sorted(self.caller.turns + self._keys + speaking, key=lambda turn: turn.start)
        return reply_to(start, turns, self.agent.turns, self._played)

    @contextmanager
    def showing(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        # Refreshed by `look`: rich's auto-refresh would use a thread.
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def event(self, event: PhoneEvent) -> None:
        """Show an event of the phone; `look` shows audio."""
        if event.kind == "started":
            self._connected_at = event.at
            turns = self.caller.turns
            # A phone sends a piece when it has been spoken.
            self.caller = VoiceDetector(event.at - FRAME_SECONDS)
            self.caller.turns = turns
        if event.kind == "dtmf":
            self._keys.append(key_press(event.at))
        if event.kind == "clear":
            unheard = event.size / RATE
            if unheard >= _INTERRUPTION_SECONDS:
                self.interruptions += 1
                self._line(event.at, f"agent interrupted (clear, {unheard:.1f} s unheard)")
            else:
                self._line(event.at, "clear (the agent had finished)")
        elif words := _WORDS.get(event.kind):
            self._line(event.at, words.format(text=event.text))

    def look(self, phone: SimulatedPhone, last: bool = False) -> None:
        """Analyse the audio since the last look and refresh the panel."""
        now = phone.elapsed
        # Counted in bytes, so that rounding errors do not add up over a long call.
        heard = phone.heard_since(self._heard_bytes / RATE)
        self._heard_bytes += len(heard)
        sent = phone.sent_audio
        said = sent[self._sent_until :]
        self._levels = {"caller": level(said), "agent": level(heard)}
        self._played = phone.heard_stretches
        self.hear(heard, said, last)
        self._sent_until = len(sent)
        if self._live is not None:
            self._live.update(self._panel(phone, now), refresh=True)

    def news(self) -> None:
        """Show the lines of the bridge's transcript that are new or changed."""
        if self.live is None:
            return
        for index, line in enumerate(self.live.transcript):
            who, words = str(line.get("role", "")), printable(str(line.get("words", "")))
            if index < len(self._told) and self._told[index] == (who, words):
                continue
            self._told[index:] = [(who, words)]
            at = line.get("at")
            since = float(at) if isinstance(at, int | float) else 0.0
            shown = f"{who} pressed {words}" if who == "keypad" else f"{who}: “{words}”"
            self._line(self._connected_at + since, shown, _STYLES.get(who, "bold"))

    def note(self, words: str) -> None:
        """Show a line of this command."""
        if self._live is None:
            click.echo(words, err=True)
        else:
            self._live.console.print(Text(words))

    def hear(self, heard: bytes, sent: bytes, last: bool = False) -> None:
        """Show who spoke in the next µ-law bytes that the caller heard and sent."""
        callers = self.caller.feed(sent)
        agents = self.agent.feed(heard)
        if last:
            callers += self.caller.finish()
            agents += self.agent.finish()
        # The end of the caller's turn is shown before the reply to it.
        for turn in callers:
            self._turn("caller", turn)
        for turn in agents:
            if turn.end is None:
                self._announce()
                self._unannounced = turn.start
            else:
                self._announce()
                self._turn("agent", turn)
        if self._unannounced is not None and not self._in_doubt(self._unannounced):
            self._announce()

    def _in_doubt(self, start: float) -> bool:
        """Return whether the caller may still have been speaking when the agent began."""
        voice = self.caller.last_voice_at
        return self.caller.speaking_since is not None and voice is not None and voice <= start

    def _announce(self) -> None:
        """Show that the agent began to speak, unless it is shown already."""
        if self._unannounced is None:
            return
        start, self._unannounced = self._unannounced, None
        reply = self._reply(start)
        took = "" if reply is None else f" ({reply[1]:.1f} s after the caller)"
        self._line(start, f"agent speaks{took}")

    def _turn(self, who: str, turn: SpeechTurn) -> None:
        if turn.end is None:
            self._line(turn.start, f"{who} speaks")
        else:
            self._line(turn.end, f"{who} falls silent ({turn.end - turn.start:.1f} s)")

    def _line(self, at: float, words: str, style: str = "dim") -> None:
        if self._live is None:
            click.echo(f"{_clock(at)} {words}", err=True)
        else:
            self._live.console.print(Text.assemble((f"{_clock(at)} ", "dim"), (words, style)))

    def _panel(self, phone: SimulatedPhone, now: float) -> Group:
        table = Table.grid(padding=(0, 3))
        sides = [
            Text.assemble(
                (f"{name} ", "bold green" if side.speaking_since is not None else "dim"),
                (bar(self._levels[name]), "green"),
            )
            for name, side in (("caller", self.caller), ("agent", self.agent))
        ]
        faults = len(phone.faults)
        table.add_row(Text(_clock(now), style="bold"), *sides)
        table.add_row(
            Text(f"errors {faults}", style="bold red" if faults else "dim"),
            Text(self._replies()),
            Text(f"queue {phone.queued:4.1f} s", style="dim"),
        )
        return Group(Text(), table)

    def _replies(self) -> str:
        """Format the latest reply time and the median."""
        replies = self.reply_seconds
        if not replies:
            return "reply  -"
        return f"reply  {replies[-1]:.2f} s, median {statistics.median(replies):.2f}"


def level(ulaw: bytes) -> float:
    """Return the loudness of µ-law audio, from 0 for a quiet line to 1 for a loud voice."""
    loudness = audioop.rms(ulaw_to_pcm(ulaw), 2) if ulaw else 0
    if not loudness:
        return 0.0
    decibels = 20 * math.log10(loudness / 32768)
    return max(0.0, min(1.0, (decibels - _QUIETEST_DB) / (_LOUDEST_DB - _QUIETEST_DB)))


def bar(share: float) -> str:
    """Draw a level from 0 to 1 as a bar of fixed width."""
    cells = round(share * _LEVEL_CELLS)
    return "█" * cells + "·" * (_LEVEL_CELLS - cells)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds), 1), 60)
    return f"{int(minutes):02}:{rest:04.1f}"
