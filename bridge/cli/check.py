"""`bridge check`: finds what is wrong with configuration and credentials."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from urllib.parse import urlsplit

import click
import trio

from bridge import log as logs
from bridge.check import Checks, Finding, run_checks
from bridge.cli.failure import Failure, Misconfigured
from bridge.config.file import config_path, load
from bridge.config.secrets import Secrets
from bridge.config.settings import ConfigError, Settings
from bridge.text import printable
from bridge.twilio.numbers import is_number

_LOOKS = {
    "ok": ("ok", "green"),
    "warning": ("warn", "yellow"),
    "wrong": ("WRONG", "red"),
    "skipped": ("-", "bright_black"),
}


@click.command()
@click.option("--config", metavar="FILE", help="The configuration file, instead of config.toml.")
@click.option(
    "--url",
    default="",
    help="The public address to check, instead of server.public_url; or any voice webhook.",
)
@click.option(
    "--number",
    metavar="+15551234567",
    help="One of your Twilio numbers: do its calls reach this server?",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(config: str | None, url: str, number: str | None, as_json: bool) -> int:
    """Find out what is wrong with configuration and credentials.

    Reads the configuration, opens a session with each configured agent as a call does, calls the
    server as Twilio does (signed, at its public address), calls Twilio's REST API, and writes to
    the database. Prints one line per finding: what, why, what to do.

    Run it with the server's environment, while the server runs, on the same machine. Exit code 1:
    something is wrong; 2: the configuration cannot be used at all.
    """
    if config is not None:
        os.environ["BRIDGE_CONFIG"] = config
    if number is not None and not is_number(number):
        raise Misconfigured(
            f"--number: expected a phone number such as +15551234567, got {printable(number)}"
        )
    _check_url(url)
    try:
        settings, secrets = load(config_path()), Secrets.from_environment()
    except ConfigError as error:
        if as_json:
            click.echo(json.dumps({"ok": False, "findings": [], "error": str(error)}))
        raise Misconfigured(str(error)) from None
    findings = _run(settings, secrets, url, number or "")
    wrong = [finding for finding in findings if finding.status == "wrong"]
    if as_json:
        result = {"ok": not wrong, "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(result, indent=2 if sys.stdout.isatty() else None))
    else:
        _show(findings)
    if wrong:
        raise Failure(f"{len(wrong)} problem{'s' * (len(wrong) > 1)}: {wrong[0].line}")
    return 0


def open_checks(settings: Settings, secrets: Secrets, url: str, number: str) -> Checks:
    """Return the checks to run. Tests replace this to keep off the network."""
    return Checks(settings, secrets, url, number)


def _run(settings: Settings, secrets: Secrets, url: str, number: str) -> list[Finding]:
    # The findings are the output; log lines of the code they call would only repeat them.
    logs.configure(level="critical", secrets=secrets.values())
    try:
        return trio.run(run_checks, open_checks(settings, secrets, url, number).all())
    except BaseExceptionGroup as group:
        # Trio raises KeyboardInterrupt inside a group, beside the errors that it caused.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise click.Abort from None


def _show(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        word, colour = _LOOKS[finding.status]
        status = click.style(word.ljust(5), fg=colour, bold=finding.status == "wrong")
        click.echo(f"{status}  {finding.check.ljust(width)}  {finding.line}")
    counts = Counter(finding.status for finding in findings)
    if not counts["wrong"]:
        warned = counts["warning"]
        warnings = f", {warned} warning{'s' * (warned > 1)}" if warned else ""
        click.echo(f"no problems{warnings}", err=True)


def _check_url(url: str) -> None:
    if not url:
        return
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or not url.isascii() or not url.isprintable():
        raise Misconfigured("--url: expected an address such as https://voice.example.com")
