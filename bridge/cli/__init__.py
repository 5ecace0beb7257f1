"""The command line: one module per command, imported only when it is used.

Exit codes: 0 done; 1 the work failed, the reason in one line on standard error; 2 wrong usage or
configuration; 130 interrupted. Results go to standard output, progress and logs to standard error.
"""

from __future__ import annotations

import importlib
import sys

import click

# In the order in which a newcomer meets them.
COMMANDS = {
    "demo": "Everything on this machine, no accounts and no keys.",
    "serve": "Run the server.",
    "phone": "Call a running bridge as Twilio would.",
    "calls": "List calls, or show one: outcome, transcript, timings.",
    "dial": "Place an outbound call.",
    "check": "Find out what is wrong with configuration and credentials.",
    "number": "Point a Twilio number's voice webhook at this server.",
    "agent": "Run a local agent that speaks the Voice Agent protocol.",
    "load": "Many simulated calls at once against a running bridge.",
}


class LazyGroup(click.Group):
    """A click group whose commands live in modules of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"bridge.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bridge", prog_name="bridge")
def cli() -> None:
    """A phone rings; a voice agent answers. bridge is the server between them."""


class Failure(click.ClickException):
    """The work failed: exit code 1, the reason in one line on standard error."""

    exit_code = 1

    def show(self, file: object = None) -> None:
        click.echo(f"bridge: {self.message}", err=True)


class Misconfigured(Failure):
    """Wrong usage or configuration: exit code 2, the field and the remedy in one line."""

    exit_code = 2


def reason(error: BaseException) -> BaseException:
    """The first error inside nested exception groups: the one to show in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> None:
    """The console script. Turns every way a command can end into the documented exit code."""
    try:
        result = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BaseExceptionGroup as group:
        # Trio's nurseries hand on Ctrl-C in a group; whatever else is in it fell with it.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)
