"""`publish`, `subscribe`, `status`, `drain`, `leave`: ask a running node through its socket."""

import base64
import json
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plumtree_quic.admin.control import ask, socket_path, stream
from plumtree_quic.config import parse_duration
from plumtree_quic.errors import LinkError, MessageTooLarge
from plumtree_quic.wire import MESSAGE_BYTES_MAX

__all__ = ["drain", "leave", "publish", "status", "subscribe"]

_state_dir = click.option(
    "--state-dir",
    metavar="DIR",
    envvar="PLUMTREE_STATE_DIR",
    required=True,
    help="The running node's state directory (PLUMTREE_STATE_DIR).",
)


@click.command()
@_state_dir
@click.option("--topic", default="", help="At most 255 bytes.")
@click.argument("message", required=False)
def publish(state_dir: str, topic: str, message: str | None) -> None:
    """Broadcast MESSAGE, or all of standard input when it is missing or '-'."""
    if message is None or message == "-":
        # One byte more than ever fits, so that an endless input is refused and not collected.
        payload = sys.stdin.buffer.read(MESSAGE_BYTES_MAX + 1)
    else:
        payload = message.encode("utf-8", "surrogateescape")
    if len(payload) > MESSAGE_BYTES_MAX:
        raise MessageTooLarge(
            f"the message is longer than {MESSAGE_BYTES_MAX:,} bytes, the most that one can have; "
            "split it"
        )
    request = {"op": "publish", "topic": topic, "bytes": len(payload)}
    answer = ask(socket_path(state_dir), request, payload)
    click.echo(answer["id"])


@click.command()
@_state_dir
@click.option("--topic", help="Only this topic (default: all).")
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a message.")
@click.option("--fifo", is_flag=True, help="Each sender's messages in order; gaps are told.")
@click.option(
    "--since",
    "ago",
    metavar="DURATION",
    help="Also what was broadcast in the last 30s, 10m, 2h ..., out of stores; all: all there is.",
)
def subscribe(
    state_dir: str,
    topic: str | None,
    count: int | None,
    as_json: bool,
    fifo: bool,
    ago: str | None,
) -> None:
    """Print what the node delivers from now on, until the node ends.

    With --count: exits with 1 when the node ends before so many have come.
    """
    received = 0
    order = "fifo" if fifo else "unordered"
    since = None
    if ago is not None:
        since = 0.0 if ago == "all" else max(0.0, time.time() - parse_duration(ago))
    for message in stream(socket_path(state_dir), topic, order, since):
        gap = message.get("gap")
        received += gap is None
        if as_json:
            click.echo(json.dumps(message))
        elif gap is not None:
            missing = f"{gap['first']} to {gap['last']} of {gap['origin']}/{gap['epoch']}"
            click.echo(f"gap: {missing} did not come in time", err=True)
        else:
            text = base64.b64decode(message["payload"]).decode("utf-8", "backslashreplace")
            safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
            click.echo(f"{message['id']} {safe}")
        if count is not None and received >= count:
            return
    if count is not None:
        raise LinkError(f"the node ended after {received} of {count} messages")
    click.echo("the node ended", err=True)


@click.command()
@_state_dir
@click.option("--json", "as_json", is_flag=True, help="All of it, as one JSON object.")
def status(state_dir: str, as_json: bool) -> None:
    """Show health, members and links of the node."""
    answer = ask(socket_path(state_dir), {"op": "status"})
    if as_json:
        click.echo(json.dumps(answer))
        return
    _show(answer)


@click.command()
@_state_dir
def drain(state_dir: str) -> None:
    """Let the node refuse new broadcasts and flush the accepted ones; it stays a member."""
    ask(socket_path(state_dir), {"op": "drain"})
    click.echo("drained")


@click.command()
@_state_dir
def leave(state_dir: str) -> None:
    """Let the node leave the cluster and end."""
    ask(socket_path(state_dir), {"op": "leave"})
    click.echo("leaving")


def _show(answer: dict[str, Any]) -> None:
    console = Console()
    console.print(f"{answer['node_id']}  {answer['address']}  health: {answer['health']}")
    for reason in answer["reasons"]:
        console.print(f"  {reason}", style="yellow")
    links = {each["node_id"]: each for each in answer["peers"]}
    table = Table("member", "state", "zone", "address", "link", "rtt ms")
    for member in answer["members"]:
        link = links.get(member["node_id"])
        own = member["node_id"] == answer["node_id"]
        table.add_row(
            member["node_id"],
            member["state"],
            escape(member["zone"]),
            ", ".join(member["addresses"]),
            "self" if own else "-" if link is None else "eager" if link["eager"] else "lazy",
            f"{link['rtt_ms']:.1f}" if link else "",
        )
    console.print(table)
