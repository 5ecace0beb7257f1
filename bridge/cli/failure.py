"""The errors that end a command with a documented exit code."""

from __future__ import annotations

import click


class Failure(click.ClickException):
    """The work failed: exit code 1, the reason in one line on standard error."""

    exit_code = 1

    def show(self, file: object = None) -> None:
        click.echo(f"bridge: {self.message}", err=True)


class Misconfigured(Failure):
    """Wrong usage or configuration: exit code 2, the field and the remedy in one line."""

    exit_code = 2


def reason(error: BaseException) -> BaseException:
    """Return the first error inside nested exception groups: the one to report in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
