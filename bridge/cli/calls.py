"""`bridge calls`: lists recorded calls from the database; needs no running server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli.failure import Failure, Misconfigured
from bridge.config.file import config_path, load
from bridge.config.settings import ConfigError, Settings
from bridge.log import _mask_whole as mask_number
from bridge.outcome import Outcome
from bridge.text import printable

if TYPE_CHECKING:
    from bridge.call.story import Line
    from bridge.records.record import CallRecord
    from bridge.records.store import Store

# Columns of a list that goes to a file or another program instead of a terminal.
PIPED_WIDTH = 200


@click.command()
@click.argument("sid", metavar="[SID]", required=False)
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="How many calls to list.",
)
@click.option(
    "--outcome",
    metavar="OUTCOME",
    type=click.Choice([str(outcome) for outcome in Outcome]),
    help="List only calls with this outcome, such as caller_hung_up.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--config", metavar="FILE", help="The configuration file, instead of config.toml.")
def calls(
    sid: str | None, limit: int, outcome: str | None, as_json: bool, config: str | None
) -> None:
    """List recorded calls, newest first, or show one: outcome, transcript, timings.

    Reads the database that records.url names. Phone numbers are masked unless logging.mask_numbers
    is off.
    """
    try:
        settings = load(Path(config) if config else config_path())
    except ConfigError as error:
        raise Misconfigured(str(error)) from None
    found = _find(settings, sid, limit, outcome)
    if settings.logging.mask_numbers:
        for record in found:
            _mask(record)
    if as_json:
        objects = [_plain(record, whole=sid is not None) for record in found]
        result = msgspec.json.encode(objects[0] if sid is not None else objects)
        # ASCII only: no character in it can move a terminal's cursor.
        click.echo(_ascii(msgspec.json.format(result, indent=2).decode()))
        return
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    if sid is not None:
        _show(console, found[0])
    elif found:
        console.print(_listed(found))
    else:
        click.echo("no calls", err=True)


def _find(settings: Settings, sid: str | None, limit: int, outcome: str | None) -> list[CallRecord]:
    # Imported here, so that `bridge calls --help` does not load the database library.
    from bridge.records.store import Store, StoreUnavailable

    if not settings.records.url:
        raise Failure("records.url is empty: no calls are recorded")
    try:
        store = Store(settings.records.url)
    except ConfigError as error:
        raise Misconfigured(str(error)) from None
    try:
        store.check()
        return _read(store, sid, limit, outcome)
    except (ConfigError, StoreUnavailable) as error:
        raise Failure(str(error)) from None
    finally:
        store.close()


def _read(store: Store, sid: str | None, limit: int, outcome: str | None) -> list[CallRecord]:
    if sid is None:
        return store.list_calls(limit, outcome=outcome)
    record = store.get(sid)
    if record is None:
        raise Failure(f"no call {printable(sid[:100])} is recorded")
    return [record]


def _mask(record: CallRecord) -> None:
    record.caller = mask_number(record.caller)
    record.called = mask_number(record.called)
    record.transfer_to = mask_number(record.transfer_to)
    for leg in record.legs:
        leg.transfer_to = mask_number(leg.transfer_to)


def _plain(record: CallRecord, *, whole: bool) -> dict[str, Any]:
    from bridge.records.schema import LISTS

    plain = {name: getattr(record, name) for name in record.__struct_fields__}
    if not whole:
        # A list query does not read these; empty values would look like silent calls.
        for name in LISTS:
            del plain[name]
    return plain


def _ascii(text: str) -> str:
    # JSON is ASCII outside strings, so every other character can be written as an escape.
    return "".join(one if one < "\x7f" else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    units = one.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


# ---- for people -----------------------------------------------------------------------------


def _listed(records: list[CallRecord]) -> Table:
    table = _table("started", "seconds", "caller", "called", "agent", "outcome", "cost", "call")
    for record in records:
        table.add_row(
            _moment(record),
            f"{record.seconds:.1f}",
            _text(record.caller),
            _text(record.called),
            _text(record.agent),
            _outcome(record),
            _cost(record),
            _text(record.call_sid),
        )
    return table


def _show(console: Console, record: CallRecord) -> None:
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(record):
        if value.plain:
            facts.add_row(Text(name, style="dim"), value)
    console.print(facts)
    if record.transcript:
        console.print()
        for line in record.transcript:
            console.print(_line(line, record.words_kept), soft_wrap=True)
    if record.turns:
        console.print()
        console.print(_timings(record))
    if record.functions:
        console.print()
        console.print(_functions(record))
    if len(record.legs) > 1:
        console.print()
        console.print(_legs(record))


def _facts(record: CallRecord) -> list[tuple[str, Text]]:
    number = {"inbound": "in", "outbound-api": "out"}[record.direction]
    return [
        ("call", _text(record.call_sid)),
        ("outcome", _outcome(record)),
        ("reason", _text(record.reason)),
        ("started", _moment(record)),
        ("lasted", _text(f"{record.seconds:.1f} s (agent {record.agent_seconds:.1f} s)")),
        ("caller", _text(record.caller)),
        ("called", _text(record.called)),
        ("direction", _text(number)),
        ("status", _text(" ".join(filter(None, (record.status, record.answered_by))))),
        ("agent", _text(record.agent)),
        ("transfer", _text(_transfer(record))),
        ("set-up", _text(_seconds(record.setup_seconds, " s"))),
        ("teardown", _text(_seconds(record.teardown_seconds, " s"))),
        ("cost", _cost(record)),
        ("interruptions", _text(str(record.barge_ins or ""))),
        ("reconnections", _text(str(record.reconnects or ""))),
        ("audio dropped", _text(f"{record.dropped_bytes} bytes" if record.dropped_bytes else "")),
        ("recording", _text(record.recording)),
        ("Deepgram's request ids", _text(" ".join(record.request_ids))),
        ("transcript", _text("" if record.words_kept else "not stored (records.transcripts)")),
        ("shortened", _text("yes: parts were too long to store" if record.shortened else "")),
    ]


def _transfer(record: CallRecord) -> str:
    """Describe whom the caller was transferred to, and what Twilio reported of it."""
    if not record.transfer_to:
        return ""
    who = f"{record.transfer_name} {record.transfer_to}".strip()
    lasted = "" if record.transfer_seconds is None else f", {record.transfer_seconds:.0f} s"
    return f"{who}: {record.transfer_status or 'no result reported'}{lasted}"


def _legs(record: CallRecord) -> Table:
    table = _table("at", "seconds", "stream", "outcome", "reason", "dialled", "recording")
    for leg in record.legs:
        table.add_row(
            _clock(leg.at),
            f"{leg.seconds:.1f}",
            *map(_text, (leg.stream_sid, leg.outcome, leg.reason, leg.transfer_status)),
            _text(leg.recording),
        )
    return table


def _line(line: Line, words_kept: bool) -> Text:
    text = Text(f"{_clock(line.at)} ", style="")
    text.append(f"{line.role:<7}", style={"caller": "cyan", "agent": "green"}.get(line.role, ""))
    text.append(printable(line.words) if words_kept else "(not stored)")
    if line.languages:
        text.append(printable(f"  [{', '.join(line.languages)}]"), style="dim")
    if line.heard == "unheard":
        text.append("  [not heard]", style="red")
    elif line.heard == "cut":
        after = "" if line.heard_seconds is None else f" after {line.heard_seconds:.1f} s"
        text.append(f"  [cut off{after}]", style="yellow")
    return text


def _timings(record: CallRecord) -> Table:
    """Make the table of turns: when the caller finished, the reply time, then the steps in seconds
    from there; and what Deepgram reports of its part."""
    table = _table(
        *("turn", "caller finished", "reply time", "confirmed", "reply received", "sent", "heard"),
        "reported by Deepgram",
    )
    for number, turn in enumerate(record.turns, 1):
        typed = turn.typed_at is not None
        finished = turn.typed_at if typed else turn.speech_ended_at
        reply = turn.typed_reply_seconds if typed else turn.reply_seconds
        since = turn.confirmed_at if finished is None else finished
        table.add_row(
            str(number),
            "" if finished is None else _clock(finished) + " typed" * typed,
            _seconds(reply, ""),
            _step(turn.confirmed_at, finished),
            *(
                _step(step, since)
                for step in (turn.first_audio_received_at, turn.first_audio_sent_at, turn.heard_at)
            ),
            _text(
                " ".join(
                    f"{name.removesuffix('_latency')}={value:.3f}"
                    for name, value in turn.latencies.items()
                )
            ),
        )
    return table


def _step(at: float | None, since: float | None) -> str:
    if at is None:
        return ""
    return _clock(at) if since is None else f"{at - since:+.3f}"


def _functions(record: CallRecord) -> Table:
    table = _table("at", "function", "seconds", "result", "arguments", "answer")
    for one in record.functions:
        table.add_row(
            _clock(one.at),
            _text(one.name),
            f"{one.seconds:.3f}",
            _text(one.result),
            _text(one.arguments),
            _text(one.answer),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        # A SID that is truncated or wrapped cannot be copied.
        table.add_column(column, overflow="fold", no_wrap=column in ("call", "started"))
    return table


def _text(text: str) -> Text:
    return Text(printable(text))


def _moment(record: CallRecord) -> Text:
    return Text(record.started_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"))


def _outcome(record: CallRecord) -> Text:
    if not record.outcome:
        return Text(printable(record.status) or "(no end recorded)", style="dim")
    return Text(printable(record.outcome))


def _cost(record: CallRecord) -> Text:
    return Text("" if record.cost is None else f"{record.cost:.4f}")


def _seconds(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3f}{unit}"


def _clock(at: float) -> str:
    minutes, rest = divmod(round(max(0.0, at), 1), 60)
    return f"{int(minutes):02}:{rest:04.1f}"
