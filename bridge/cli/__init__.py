"""The command line: one module per command, imported only when that command runs.

Exit codes: 0 done; 1 the work failed, the reason in one line on standard error; 2 wrong usage or
configuration; 130 interrupted. Results go to standard output, progress and logs to standard error.
"""

from __future__ import annotations

import importlib
import sys

import click

from bridge import __version__

# In the order in which a newcomer meets them.
COMMANDS = {
    "demo": "Run everything on this machine; needs no accounts and no keys.",
    "serve": "Run the server.",
    "phone": "Call a running bridge as Twilio would.",
    "calls": "List calls, or show one: outcome, transcript, timings.",
    "dial": "Place an outbound call.",
    "check": "Find out what is wrong with configuration and credentials.",
    "number": "Point a Twilio number's voice webhook at this server.",
    "agent": "Run a local agent that speaks the Voice Agent protocol.",
    "load": "Place many simulated calls at once against a running bridge.",
}

# Every other command is the function of its name in the module of its name.
_MODULES = {"phone": "bridge.cli.phone.command"}


class LazyGroup(click.Group):
    """A click group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(_MODULES.get(cmd_name, f"bridge.cli.{cmd_name}"))
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bridge")
def cli() -> None:
    """A phone rings; a voice agent answers. bridge is the server between them."""


def main() -> None:
    """Run the console script and exit with the documented code, however the command ended."""
    try:
        result = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BaseExceptionGroup as group:
        # Trio raises KeyboardInterrupt inside a group, beside the errors that it caused.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)
