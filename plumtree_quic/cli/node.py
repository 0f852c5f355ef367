"""`plumtree-quic node`: run one node until SIGTERM, SIGINT or `plumtree-quic leave`."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
import threading

import click

from plumtree_quic.admin.control import ControlServer
from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.driver import advertised_address
from plumtree_quic.errors import ConfigError, JoinError, MessageTooLarge, PlumtreeError
from plumtree_quic.net.udp import parse_address
from plumtree_quic.node import Delegate, Message, Node, Subscription
from plumtree_quic.wire import TOPIC_BYTES_MAX

__all__ = ["node"]

# Flag -> environment variable. A flag wins over the variable, the variable over the default.
_VARIABLES = {
    "listen": "PLUMTREE_LISTEN",
    "advertise": "PLUMTREE_ADVERTISE_ADDR",
    "cert": "PLUMTREE_CERT",
    "key": "PLUMTREE_KEY",
    "ca": "PLUMTREE_CA",
    "crl": "PLUMTREE_CRL",
    "crl_on_stale": "PLUMTREE_CRL_ON_STALE",
    "policy": "PLUMTREE_POLICY",
    "security_log": "PLUMTREE_SECURITY_LOG",
    "cluster": "PLUMTREE_CLUSTER",
    "trust_domain": "PLUMTREE_TRUST_DOMAIN",
    "preset": "PLUMTREE_PRESET",
    "state_dir": "PLUMTREE_STATE_DIR",
}
# A dial is given up after 5 s; by then there is a reason to tell. Then patience, up to the seeds'
# own longest pause.
_JOIN_TIMEOUTS_S = (6.0, 30.0, 300.0)


@click.command()
@click.option(
    "--listen", metavar="HOST:PORT", help="Address to bind (default :7946; needs --advertise)."
)
@click.option("--advertise", metavar="HOST[:PORT]", help="What others dial, behind a wildcard.")
@click.option("--seed", "seeds", metavar="HOST:PORT", multiple=True, help="May be repeated.")
@click.option("--cert", metavar="FILE", help="This node's certificate (PEM).")
@click.option("--key", metavar="FILE", help="Its private key (PEM).")
@click.option("--ca", metavar="FILE", help="The CA that everybody's certificate comes from (PEM).")
@click.option("--crl", metavar="PATH", help="Its revocation lists: a file, or a directory.")
@click.option("--crl-on-stale", type=click.Choice(["open", "closed"]), help="Default: open.")
@click.option("--policy", metavar="FILE", help="Who may join, relay and publish (TOML).")
@click.option("--security-log", metavar="FILE", help="Security events, one JSON object a line.")
@click.option("--cluster", metavar="NAME", help="Clusters of different names never mix.")
@click.option("--trust-domain", metavar="DOMAIN", help="Default: that of the certificate.")
@click.option("--preset", type=click.Choice(["default", "lan", "wan", "large_cluster"]))
@click.option("--state-dir", metavar="DIR", help="Keeps epoch, known peers, admin socket.")
@click.option("--set", "fields", metavar="FIELD=VALUE", multiple=True, help="Any config field.")
@click.option("--print", "prints", is_flag=True, help="Print each delivered message.")
@click.option("--stdin", "reads", is_flag=True, help="Broadcast each line of standard input.")
@click.option("--topic", default="", help="Topic of the lines read from standard input.")
@click.option("-v", "--verbose", is_flag=True, help="Log links and members.")
def node(
    seeds: tuple[str, ...],
    fields: tuple[str, ...],
    prints: bool,
    reads: bool,
    topic: str,
    verbose: bool,
    **flags: str | None,
) -> None:
    """Run one node. Every option has an environment variable (PLUMTREE_LISTEN, ...).

    With --print each delivered message is printed; lines typed at a terminal are broadcast, so
    that three terminals are a chat. The password of an encrypted key is read from
    PLUMTREE_KEY_PASSWORD alone: other users can see arguments.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s"
    )
    # aioquic's own lines are of no use here: the refusals that the self-test provokes look like
    # failures.
    logging.getLogger("quic").setLevel(logging.ERROR)
    env = dict(os.environ)
    for flag, variable in _VARIABLES.items():
        value = flags[flag]
        if value is not None:
            env[variable] = value
    _set(env, fields)
    for flag in ("cert", "key", "ca"):
        if not env.get(_VARIABLES[flag]):
            raise ConfigError(
                f"--{flag} FILE is missing (or {_VARIABLES[flag]}); for development certificates "
                "run: plumtree-quic certs NAME"
            )
    if seeds:
        env["PLUMTREE_SEEDS"] = ",".join(seeds)
    _check_addresses(
        env,
        listen="PLUMTREE_LISTEN" if flags["listen"] is None else "--listen",
        seed="--seed" if seeds else "PLUMTREE_SEEDS",
        advertise="PLUMTREE_ADVERTISE_ADDR" if flags["advertise"] is None else "--advertise",
    )
    if len(topic.encode("utf-8", "surrogateescape")) > TOPIC_BYTES_MAX:
        raise ConfigError(f"--topic {topic[:40]!r}... is too long: {TOPIC_BYTES_MAX} bytes at most")
    asyncio.run(_run(env, prints=prints, reads=reads or sys.stdin.isatty(), topic=topic))


def _set(env: dict[str, str], fields: tuple[str, ...]) -> None:
    """Put FIELD=VALUE into `env`. Raises ConfigError that names the flag, not a variable."""
    variables: dict[str, str] = {}
    for field in fields:
        name, separator, value = field.partition("=")
        if not separator:
            raise ConfigError(f"--set {field!r}: expected FIELD=VALUE, e.g. ihave_interval=50ms")
        variable = "PLUMTREE_" + name.strip().upper().replace(".", "__")
        variables[variable] = field
        env[variable] = value
    try:
        PlumtreeConfig.from_env(env)
    except ConfigError as error:
        culprit = next((field for name, field in variables.items() if name in str(error)), None)
        if culprit is None:
            raise
        told = str(error).replace("environment variable", "field")
        told = re.sub(r"PLUMTREE_(\w+)", lambda name: name[1].lower().replace("__", "."), told)
        raise ConfigError(f"--set {culprit!r}: {told}")


def _seeds_of(env: dict[str, str]) -> list[str]:
    return [each.strip() for each in env.get("PLUMTREE_SEEDS", "").split(",") if each.strip()]


def _check_addresses(env: dict[str, str], *, listen: str, seed: str, advertise: str) -> None:
    """Raise ConfigError that says where a bad address stands; the last three name the places.

    A seed that nobody could dial is told now, not after the first vain attempts.
    """
    places = [(seed, text) for text in _seeds_of(env)]
    if env.get("PLUMTREE_LISTEN"):
        places.append((listen, env["PLUMTREE_LISTEN"]))
    for place, text in places:
        try:
            host, port = parse_address(text)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}")
        if place == seed and not (host and port):
            raise ConfigError(
                f"{place}: {text!r} cannot be dialled; a seed is a host and a port, like "
                "10.0.0.5:7946"
            )
    given = env.get("PLUMTREE_ADVERTISE_ADDR")
    if given:
        try:
            advertised_address(given, 0)
        except ConfigError as error:
            raise ConfigError(f"{advertise}: {error}")


class _Narrator(Delegate):
    """Says on standard error who comes and goes."""

    def on_member_joined(self, node_id: str) -> None:
        _say(f"+ {node_id} is here")

    def on_member_left(self, node_id: str) -> None:
        _say(f"- {node_id} left")

    def on_member_failed(self, node_id: str) -> None:
        _say(f"- {node_id} failed")


async def _run(env: dict[str, str], *, prints: bool, reads: bool, topic: str) -> None:
    running = Node.from_env(env, delegate=_Narrator())
    seeds = _seeds_of(env)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Ignored from the start means `nohup`: a closed terminal is then no reason to leave.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    tasks: list[asyncio.Task[None]] = []
    control: ControlServer | None = None
    await running.start()
    try:
        if env.get("PLUMTREE_STATE_DIR"):
            control = ControlServer(running, env["PLUMTREE_STATE_DIR"])
            await control.start()
            tasks.append(loop.create_task(_stop_when_asked(control, stop)))
        _say(f"{running.id} listens on {running.address}")
        if prints:
            tasks.append(loop.create_task(_print(running.subscribe(), stop)))
        joined = asyncio.Event()
        if seeds:
            tasks.append(loop.create_task(_join(running, seeds, joined)))
        else:
            joined.set()
        if reads:
            _read_lines(loop, running, topic, joined, tasks)
        watch = loop.create_task(_until_closed(running, stop))
        tasks.append(watch)
        await stop.wait()
        if not watch.done():
            _say("leaving")
        await running.leave()
        conflict = watch.exception() if watch.done() and not watch.cancelled() else None
        if conflict is not None:
            raise conflict
    finally:
        await running.shutdown()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if control is not None:
            await control.close()


async def _until_closed(running: Node, stop: asyncio.Event) -> None:
    """End the command when the node stops by itself (another process has our identity)."""
    try:
        async for _ in running.events():
            pass
        running.members()
    finally:
        stop.set()


async def _stop_when_asked(control: ControlServer, stop: asyncio.Event) -> None:
    await control.leave_asked.wait()
    stop.set()


async def _join(running: Node, seeds: list[str], joined: asyncio.Event) -> None:
    """Say what came of the seeds; the node itself tries them for as long as it lives."""
    patience = iter(_JOIN_TIMEOUTS_S)
    timeout_s = next(patience)
    while True:
        try:
            count = await running.join(seeds, timeout=timeout_s)
        except JoinError as error:
            _say(f"warning: {error}")
            timeout_s = next(patience, timeout_s)
        except PlumtreeError as error:
            _say(f"error: {error}")
            return
        else:
            if count:
                _say(f"joined through {count} of {len(seeds)} seeds")
            joined.set()
            return


async def _print(subscription: Subscription, stop: asyncio.Event) -> None:
    """Print until the node ends; when standard output has no reader any more, end the node."""
    try:
        async with subscription:
            async for message in subscription:
                print(render(message), flush=True)
    except BrokenPipeError:
        # What is still buffered must not raise again at exit (Python's "Note on SIGPIPE").
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        stop.set()
    except OSError as error:
        _say(f"error: standard output cannot be written: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        stop.set()
    except PlumtreeError as error:
        _say(f"error: {error}")
        stop.set()


def render(message: Message) -> str:
    """One line for a terminal; whatever a peer put into it stays harmless text."""
    text = message.payload.decode("utf-8", "backslashreplace")
    text = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
    topic = f" [{message.topic}]" if message.topic else ""
    return f"{message.origin.name}{topic}: {text}"


def _read_lines(
    loop: asyncio.AbstractEventLoop,
    running: Node,
    topic: str,
    joined: asyncio.Event,
    tasks: list[asyncio.Task[None]],
) -> None:
    chunks: asyncio.Queue[list[bytes]] = asyncio.Queue()
    # One chunk is on its way at a time: a slow cluster stops the pipe, and memory is flat.
    sent = threading.Semaphore(1)

    def hand_over(whole: list[bytes]) -> None:
        if whole:
            sent.acquire()
            loop.call_soon_threadsafe(chunks.put_nowait, whole)

    def read() -> None:
        # A thread of its own: standard input may be a file, which no event loop can wait for.
        # os.read, not sys.stdin: its lock, held at exit, would abort the interpreter.
        rest = b""
        try:
            while chunk := os.read(0, 65_536):
                *whole, rest = (rest + chunk).split(b"\n")
                # Longer than a message can be is refused anyway, and must not be collected.
                rest = rest[: running.config.max_message_size + 1]
                hand_over(whole)
            hand_over([rest] if rest else [])
        except OSError as error:  # a terminal that is gone, for one
            _say(f"standard input cannot be read: {error.strerror}; no more lines are sent")
        except RuntimeError:
            return  # the loop is closed: the node is gone

    threading.Thread(target=read, daemon=True, name="stdin").start()
    tasks.append(loop.create_task(_broadcast_lines(chunks, sent, running, topic, joined)))


async def _broadcast_lines(
    chunks: "asyncio.Queue[list[bytes]]",
    sent: threading.Semaphore,
    running: Node,
    topic: str,
    joined: asyncio.Event,
) -> None:
    while True:
        lines = await chunks.get()
        if not joined.is_set():
            # Nobody would get them: a joiner has nothing from before its time.
            _say("lines wait until a seed answers")
            await joined.wait()
        for line in lines:
            try:
                await running.broadcast(line.rstrip(b"\r"), topic=topic)
            except MessageTooLarge as error:
                _say(f"not sent: {error}")
            except PlumtreeError as error:
                _say(f"no more lines are sent: {error}")
                return
        sent.release()


def _say(text: str) -> None:
    # The terminal may be gone (SIGHUP): that must not keep the node from leaving.
    with contextlib.suppress(OSError):
        click.echo(text, err=True)
