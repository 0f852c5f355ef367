"""`plumtree-quic connect`: one handshake with a node, and what each step of the check says.

The check is security/identity.py, taken by net/; here is only what people read. Nothing joins:
the link ends as soon as the peer has greeted us, before it has heard a word of ours.
"""

import contextlib
import select
import socket
import time
from enum import Enum
from random import Random

import attrs
import click

from plumtree_quic.errors import ConfigError
from plumtree_quic.ids import NodeId
from plumtree_quic.messages import Record
from plumtree_quic.net.endpoint import Endpoint
from plumtree_quic.net.events import DialFailed, LinkUp
from plumtree_quic.net.link import CloseCode, Link
from plumtree_quic.net.selftest import self_test
from plumtree_quic.net.settings import NetSettings
from plumtree_quic.net.udp import parse_address
from plumtree_quic.security.credentials import Credentials, QuicConfig
from plumtree_quic.security.explain import explain
from plumtree_quic.security.identity import CHECKS, OWN_IDENTITY, Check, CheckFailed
from plumtree_quic.wire import build_record

__all__ = ["connect"]

Address = tuple[str, int]

LET_IN = Check(14, "the peer lets us in: its greeting came", "")
CLOSE_S = 0.2
_DATAGRAM_BYTES = 65_535
# Steps of identity.py's CHECKS.
_ABOUT_CERTIFICATE = (5, 8, 9, 10)
_MEANT = 12

_MISMATCH = "compare both with `plumtree-quic certs inspect`"
_ALERTS: dict[int, tuple[str, str]] = {
    40: ("handshake_failure", "both must run plumtree-quic, of versions that fit"),
    42: ("bad_certificate", f"its trust domain is another one, or ours names no node; {_MISMATCH}"),
    43: (
        "unsupported_certificate",
        "our certificate's key or usages are not allowed; issue it new",
    ),
    44: ("certificate_revoked", "our certificate was revoked; issue a new one"),
    45: ("certificate_expired", "by its clock ours is not valid now; correct the clocks, or renew"),
    46: ("certificate_unknown", _MISMATCH),
    47: ("illegal_parameter", "both must run plumtree-quic, of versions that fit"),
    48: ("unknown_ca", "it does not trust the CA of our certificate; issue both from one CA"),
    49: ("access_denied", "its policy does not admit us, or it runs under our own identity"),
    50: ("decode_error", "both must run plumtree-quic, of versions that fit"),
    51: ("decrypt_error", "our key does not match our certificate, by its check"),
    80: ("internal_error", "see the log of the peer"),
    116: ("certificate_required", "it got no certificate from us; is this its only listener?"),
    120: ("no_application_protocol", "something else than a plumtree-quic node listens there"),
}
"""TLS alerts (RFC 8446, section 6) by which a peer refuses us: name, and what to do."""


class _Silence(Enum):
    """How an address that sent nothing of use was silent."""

    NONE = "answered"
    NOTHING = "nothing came back"
    CLOSED = "the port is closed"
    FOREIGN = "what came back is not of a plumtree-quic node"
    UNREACHABLE = "unreachable"


@attrs.frozen
class _Attempt:
    """What became of one dial. silence: NONE when a handshake was begun by both sides."""

    address: Address
    link: Link
    up: bool
    error: str
    silence: _Silence
    seconds: float


@click.command(no_args_is_help=True)
@click.argument("where", metavar="HOST:PORT")
@click.option("--cert", "cert_file", metavar="FILE", required=True, help="Our certificate (PEM).")
@click.option("--key", "key_file", metavar="FILE", required=True, help="Its private key (PEM).")
@click.option("--ca", "ca_file", metavar="FILE", required=True, help="The CA that we trust (PEM).")
@click.option("--trust-domain", metavar="DOMAIN", help="Default: that of the certificate.")
@click.option("--expect", metavar="NODE_ID", help="Refuse whoever else answers (spiffe://...).")
@click.option("--cluster", metavar="NAME", default="default", show_default=True)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 60.0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="For the handshake, and again for the greeting.",
)
def connect(
    where: str,
    cert_file: str,
    key_file: str,
    ca_file: str,
    trust_domain: str | None,
    expect: str | None,
    cluster: str,
    timeout: float,
) -> int:
    """Make one handshake with the node at HOST:PORT and say what each step of the check gives.

    Exits with 0 only when the node would let us in: it has accepted our certificate, we have
    accepted its, and both are of one cluster. Nothing joins, and nothing is left behind there.
    """
    host, port = parse_address(where)
    if not host or not port:
        raise ConfigError(f"{where!r}: connect needs a host and a port, like 10.0.0.5:7946")
    credentials = QuicConfig(
        cert_file, key_file, ca_file, trust_domain=trust_domain, cluster=cluster
    ).credentials
    expected = NodeId.parse(expect) if expect is not None else None
    self_test()
    click.echo(f"we are {credentials.node_id}, cluster {cluster!a}")
    attempt: _Attempt | None = None
    for address, family in _resolve(host, port):
        attempt = _attempt(address, family, credentials, expected, timeout)
        if attempt.silence is _Silence.NONE:
            break
        _tell_silence(attempt, timeout)
    assert attempt is not None
    if attempt.silence is not _Silence.NONE:
        return 1
    _tell_steps(attempt, credentials, ca_file)
    return 0 if attempt.up else 1


def _resolve(host: str, port: int) -> list[tuple[Address, int]]:
    """Return each address of `host` with its family, in the order of the system's preference."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ConfigError(
            f"{host!a} does not resolve ({why}): check the name, or give an IP address"
        )
    return [((str(name[0]), int(name[1])), int(family)) for family, _, _, _, name in found]


def _attempt(
    address: Address,
    family: int,
    credentials: Credentials,
    expected: NodeId | None,
    timeout_s: float,
) -> _Attempt:
    began = time.monotonic()
    endpoint = Endpoint(
        lambda: credentials,
        NetSettings(handshake_s=timeout_s, welcome_s=timeout_s, close_s=CLOSE_S),
        rng=Random(),
        record=lambda: _bare_record(credentials),
        yours=_nothing,
        wanted=_unwanted,
    )
    silence = _Silence.NOTHING
    error = ""
    up = False
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        link = endpoint.dial(address, expected, began)
        try:
            # Connected, so that the kernel tells when nobody listens there.
            sock.connect(address)
        except OSError as failure:
            reason = failure.strerror or str(failure)
            return _Attempt(address, link, False, reason, _Silence.UNREACHABLE, 0.0)
        done = False
        while not done:
            now = time.monotonic()
            endpoint.advance(now)
            for event in endpoint.poll():
                if isinstance(event, LinkUp):
                    up = done = True
                elif isinstance(event, DialFailed):
                    error, done = str(event.error), True
            if done:
                break
            # After the events: once the peer has greeted us, our own hello must not leave.
            _send(sock, endpoint.transmit(now))
            deadline = endpoint.next_deadline()
            wait = 1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            select.select([sock], [], [], wait)
            try:
                while True:
                    data = sock.recv(_DATAGRAM_BYTES)
                    filtered = endpoint.counters.filtered
                    endpoint.receive(data, address, time.monotonic())
                    if endpoint.counters.filtered == filtered:
                        silence = _Silence.NONE
                    elif silence is _Silence.NOTHING:
                        silence = _Silence.FOREIGN
            except BlockingIOError:
                pass
            except ConnectionRefusedError:
                # An ICMP message, which anybody could forge: believed only before any answer.
                if silence is _Silence.NOTHING:
                    return _Attempt(
                        address, link, False, "", _Silence.CLOSED, time.monotonic() - began
                    )
            except OSError as failure:
                if silence is _Silence.NOTHING:
                    reason = failure.strerror or str(failure)
                    return _Attempt(address, link, False, reason, _Silence.UNREACHABLE, 0.0)
        now = time.monotonic()
        seconds = now - began
        link.close(CloseCode.GOING_AWAY, "connect", now)
        _send(sock, endpoint.transmit(now))
    return _Attempt(address, link, up, error, silence, seconds)


def _send(sock: socket.socket, datagrams: list[tuple[bytes, Address]]) -> None:
    for data, _ in datagrams:
        # What the kernel does not take is lost, and is sent again.
        with contextlib.suppress(OSError):
            sock.send(data)


def _bare_record(credentials: Credentials) -> Record:
    """A record without a signature: nobody would take it, and it never leaves."""
    return build_record(
        node_id=credentials.node_id, epoch=1, incarnation=0, addresses=(), valid_until=1
    )


def _nothing(_peer: NodeId) -> None:
    return None


def _unwanted(_peer: NodeId) -> bool:
    return False


# --- what people read -----------------------------------------------------------------------------


def _tell_silence(attempt: _Attempt, timeout_s: float) -> None:
    where = _shown_address(attempt.address)
    match attempt.silence:
        case _Silence.CLOSED:
            click.echo(f"FAIL  {where}: the port is closed: that host is up, and nothing listens")
            click.echo("      fix: start the node, or correct the port")
        case _Silence.UNREACHABLE:
            click.echo(f"FAIL  {where}: cannot be reached: {attempt.error}")
            click.echo("      fix: correct the address, or the route to it")
        case _Silence.FOREIGN:
            click.echo(f"FAIL  {where}: answers, and not as a plumtree-quic node does")
            click.echo("      fix: correct the address: another UDP service listens there")
        case _:
            click.echo(f"FAIL  {where}: no answer within {timeout_s:g} s")
            click.echo("      fix: is the host up, and does a firewall let UDP pass both ways?")


def _tell_steps(attempt: _Attempt, credentials: Credentials, ca_name: str) -> None:
    link = attempt.link
    where = _shown_address(attempt.address)
    click.echo(f"{where} answered")
    results = {result.step: result for result in link.engine.report}
    failure = link.engine.failure
    for check in CHECKS:
        result = results.get(check.step)
        remark = f" ({result.reason})" if result is not None and result.reason else ""
        if result is None and failure is not None and check.step < failure.step:
            # The steps come in this order; the first goes on until the last message.
            click.echo(f"pass  {check.step:>2}  {check.name}")
        elif result is None:
            click.echo(f"----  {check.step:>2}  {check.name}: not reached")
        elif result.passed:
            click.echo(f"pass  {check.step:>2}  {check.name}{remark}")
        else:
            assert failure is not None
            click.echo(f"FAIL  {check.step:>2}  {check.name}{remark}")
            click.echo(f"          it got TLS alert {failure.alert}{_alert_name(failure.alert)}")
            click.echo(f"          {_why(attempt, failure, credentials, ca_name)}")
            click.echo(f"          fix: {_fix(check, failure)}")
    if attempt.up:
        click.echo(f"pass  {LET_IN.step}  {LET_IN.name}")
        hello = link.hello
        assert hello is not None
        click.echo(
            f"{link.peer} would let us in: cluster {hello.cluster!a}, wire version "
            f"{hello.major}.{hello.minor}, {attempt.seconds * 1000:.0f} ms"
        )
        return
    if failure is not None:
        click.echo(f"----  {LET_IN.step}  {LET_IN.name}: not reached")
    else:
        _tell_refusal(attempt, credentials)
    click.echo(f"{where} and we do not get together")


def _tell_refusal(attempt: _Attempt, credentials: Credentials) -> None:
    """Our own check has nothing against the peer, and still there is no greeting."""
    link = attempt.link
    click.echo(f"FAIL  {LET_IN.step}  {LET_IN.name}")
    hello = link.hello
    if link.alert is not None:
        name, fix = _ALERTS.get(link.alert, ("unknown alert", "see the log of the peer"))
        click.echo(f"          it refused us with TLS alert {link.alert} ({name})")
        click.echo(f"          fix: {fix}")
        return
    match link.close_code:
        case CloseCode.WRONG_CLUSTER if hello is not None:
            ours = ascii(credentials.cluster)
            click.echo(f"          it belongs to cluster {hello.cluster!a}, we to {ours}")
            click.echo("          fix: give both the same cluster name (--cluster)")
        case CloseCode.VERSION if hello is not None:
            click.echo(f"          it speaks wire version {hello.major}.{hello.minor}")
            click.echo("          fix: upgrade the older of the two")
        case 0:
            click.echo("          it answered, and fell silent before it greeted us")
            click.echo(
                "          fix: it may be at a limit of its links, or packets of 1,200 bytes do "
                "not pass: look at its log and at the path"
            )
        case _:
            click.echo(f"          {attempt.error}")
            click.echo("          fix: look at the log of the peer")


def _why(attempt: _Attempt, failure: CheckFailed, credentials: Credentials, ca_name: str) -> str:
    """What is wrong with the peer's certificate, in a sentence."""
    certificates = attempt.link.engine.peer_certificates
    if failure.step in _ABOUT_CERTIFICATE and certificates:
        leaf, *chain = certificates
        return explain(
            failure,
            leaf,
            chain,
            credentials.anchors,
            cert_name="the peer's certificate",
            ca_name=ca_name,
        )
    if failure.reason == OWN_IDENTITY:
        return f"it runs as {credentials.node_id}, and so would we"
    detail = ascii(failure.detail)[1:-1][:200]
    if failure.step == _MEANT and attempt.link.expected is not None and detail:
        return f"it is {detail}, and we meant {attempt.link.expected}"
    return detail or failure.reason


def _fix(check: Check, failure: CheckFailed) -> str:
    if failure.reason == OWN_IDENTITY:
        return "give every node a certificate of its own, or dial another address than our own"
    return check.fix


def _alert_name(alert: int) -> str:
    name = _ALERTS.get(alert)
    return f" ({name[0]})" if name is not None else ""


def _shown_address(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
