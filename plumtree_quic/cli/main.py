"""The `plumtree-quic` group: finds a command, imports only that one, turns errors into one line.

No command's own work here.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

import click

import plumtree_quic
from plumtree_quic.errors import ConfigError, CredentialsError, PlumtreeError

__all__ = ["COMMANDS", "group", "run"]

COMMANDS: dict[str, tuple[str, str]] = {
    "certs": ("plumtree_quic.cli.certs:certs", "Issue development certificates; inspect any."),
    "connect": ("plumtree_quic.cli.connect:connect", "One handshake with a node, step by step."),
    "node": ("plumtree_quic.cli.node:node", "Run one node."),
    "publish": ("plumtree_quic.cli.control:publish", "Broadcast through a running node."),
    "subscribe": ("plumtree_quic.cli.control:subscribe", "Print what a running node delivers."),
    "status": ("plumtree_quic.cli.control:status", "Health, members and links of a running node."),
    "drain": ("plumtree_quic.cli.control:drain", "Let a running node flush and take no more."),
    "leave": ("plumtree_quic.cli.control:leave", "Let a running node leave and end."),
    "cluster": ("plumtree_quic.cli.cluster:cluster", "The encrypted benchmark cluster."),
    "sim": ("plumtree_quic.cli.sim:sim", "Thousands of nodes in virtual time."),
}
"""Name -> (``module:attribute``, what ``--help`` says). The line stands here so that ``--help``
imports no command."""


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return [
            name for name, (target, _) in COMMANDS.items() if _module_exists(target.split(":")[0])
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


def _module_exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@click.group(
    cls=_LazyGroup,
    name="plumtree-quic",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(plumtree_quic.__version__, prog_name="plumtree-quic")
def group() -> None:
    """Secure messaging inside a cluster: Plumtree over QUIC, mutual TLS everywhere."""


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code.

    Ours: 0 done, 1 failed, 2 called wrongly (a bad flag, name or setting), 130 interrupted. An
    error is one line on standard error that begins with ``error:``.
    """
    try:
        result = group.main(list(arguments), prog_name="plumtree-quic", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        text = error.format_message().rstrip(".")
        click.echo(f"error: {text}{_hint(error)}", err=True)
        return error.exit_code
    except click.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # the reader went away (`| head`): tell nobody
            click.echo(f"error: {error}", err=True)
        # What is still buffered must not raise again at exit (Python's "Note on SIGPIPE").
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except PlumtreeError as error:
        click.echo(f"error: {error}", err=True)
        usage = isinstance(error, ConfigError) and not isinstance(error, CredentialsError)
        return 2 if usage else 1
    return result if isinstance(result, int) else 0


def _hint(error: click.ClickException) -> str:
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f" (see: {error.ctx.command_path} --help)"
    return ""
