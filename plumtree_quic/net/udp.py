"""UdpSocket: one non-blocking socket with a reader of its own. No QUIC here.

asyncio's datagram protocol hands over one packet per callback, which costs three times as much
CPU; here one wake-up drains up to 64 datagrams and hands them over together.
"""

import asyncio
import contextlib
import errno
import ipaddress
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable

from plumtree_quic.errors import ConfigError, LinkError

__all__ = ["Address", "UdpSocket", "numeric_address", "parse_address"]

Address = tuple[str, int]

DATAGRAMS_PER_WAKE_UP = 64
BUFFER_BYTES = 4 << 20
UNSENT_MAX = 1_024
MAPPED = "::ffff:"
_DATAGRAM_BYTES = 65_535
_ANCILLARY_BYTES = 64
# Linux socket options that the socket module does not name (linux/udp.h), and their limits.
UDP_SEGMENT, UDP_GRO = 103, 104
SEGMENTS_MAX = 64
SEGMENTED_BYTES_MAX = 65_000
# What the kernel says when it cannot cut a run for this path: no checksums by the device, or a
# path whose packets are smaller.
_NO_SEGMENTS = (errno.EINVAL, errno.EIO, errno.EMSGSIZE)
# The latter are for what cannot be an address at all.
_UNSENDABLE = (OSError, ValueError, TypeError, OverflowError)


class UdpSocket:
    """A bound UDP socket of the running loop."""

    def __init__(
        self,
        bound: socket.socket,
        on_datagrams: Callable[[list[tuple[bytes, Address]]], None],
    ) -> None:
        self._socket = bound
        self._on_datagrams = on_datagrams
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[tuple[bytes, Address]] = deque()
        self._is_ipv6 = bound.family is socket.AF_INET6
        self.dropped = 0
        # Linux cuts and joins runs of datagrams in one system call (udp(7)); elsewhere, or where
        # the path refuses, each is a call of its own.
        self._segments = _cuts_segments(bound)
        if self._segments:
            with contextlib.suppress(OSError):
                bound.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        self._loop.add_reader(bound.fileno(), self._on_readable)

    @classmethod
    def bind(
        cls,
        host: str,
        port: int,
        on_datagrams: Callable[[list[tuple[bytes, Address]]], None],
    ) -> "UdpSocket":
        """Bind `host` (an IP address, or empty for every interface) and `port` (0: a free one).

        Raises:
            LinkError: the address is taken, not ours, or not allowed; the message says what to do.
        """
        host = host or "0.0.0.0"  # noqa: S104 - asked for by an empty host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                # Where the system's limit is lower, its own size must do.
                with contextlib.suppress(OSError):
                    bound.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            if family is socket.AF_INET6:
                # "[::]" takes IPv4, too, whatever the system's default is.
                with contextlib.suppress(OSError):
                    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.bind((host, port))
        except OSError as error:
            bound.close()
            raise LinkError(_explain(error, host, port))
        except (ValueError, TypeError, OverflowError):
            bound.close()
            raise LinkError(f"{host!a}:{port} is not an address; give an IP address to listen on")
        return cls(bound, on_datagrams)

    @property
    def address(self) -> Address:
        """Where we are bound."""
        return _canonical(self._socket.getsockname())

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach us."""
        return ipaddress.ip_address(self.address[0]).is_loopback

    def send(self, datagrams: list[tuple[bytes, Address]]) -> None:
        """Send now; what the kernel does not take waits, up to a bound, then is dropped."""
        if self._is_ipv6:
            datagrams = [(data, _as_ipv6(address)) for data, address in datagrams]
        if self._unsent:
            self._keep(datagrams)
            return
        number, count, singly_to = 0, len(datagrams), 0
        while number < count:
            run = self._run_from(datagrams, number) if number >= singly_to else 1
            try:
                if run > 1:
                    self._send_run(datagrams, number, run)
                else:
                    self._socket.sendto(*datagrams[number])
            except (BlockingIOError, InterruptedError):
                self._keep(datagrams[number:])
                self._loop.add_writer(self._socket.fileno(), self._on_writable)
                return
            except _UNSENDABLE as error:
                if run > 1 and isinstance(error, OSError) and error.errno in _NO_SEGMENTS:
                    # This run alone: no peer's path or address may slow down the others.
                    singly_to = number + run
                    continue
                # Unreachable, refused, too long for the path: to QUIC it is a lost packet.
                self.dropped += run
            number += run

    def _run_from(self, datagrams: list[tuple[bytes, Address]], number: int) -> int:
        """How many datagrams from `number` on the kernel can cut from one buffer: one address,
        one size, but for a last one that may be shorter.
        """
        if not self._segments:
            return 1
        data, address = datagrams[number]
        size = total = len(data)
        run = 1
        for data, other in datagrams[number + 1 : number + SEGMENTS_MAX]:
            total += len(data)
            if other != address or len(data) > size or total > SEGMENTED_BYTES_MAX:
                break
            run += 1
            if len(data) < size:
                break
        return run

    def _send_run(self, datagrams: list[tuple[bytes, Address]], number: int, run: int) -> None:
        data, address = datagrams[number]
        size = struct.pack("=H", len(data))
        self._socket.sendmsg(
            [each for each, _ in datagrams[number : number + run]],
            [(socket.IPPROTO_UDP, UDP_SEGMENT, size)],
            0,
            address,
        )

    def close(self) -> None:
        """Free the address."""
        if self._socket.fileno() != -1:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    def _keep(self, datagrams: list[tuple[bytes, Address]]) -> None:
        room = UNSENT_MAX - len(self._unsent)
        self._unsent.extend(datagrams[:room])
        self.dropped += max(0, len(datagrams) - room)

    def _on_writable(self) -> None:
        while self._unsent:
            data, address = self._unsent[0]
            try:
                self._socket.sendto(data, address)
            except (BlockingIOError, InterruptedError):
                return
            except _UNSENDABLE:
                self.dropped += 1
            self._unsent.popleft()
        self._loop.remove_writer(self._socket.fileno())

    def _on_readable(self) -> None:
        received: list[tuple[bytes, Address]] = []
        receive = self._socket.recvmsg
        for _ in range(DATAGRAMS_PER_WAKE_UP):
            try:
                data, ancillary, _flags, address = receive(_DATAGRAM_BYTES, _ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # An ICMP error of an earlier send; anybody can forge one.
                continue
            if len(address) != 2:
                address = _canonical(address)
            size = len(data)
            if ancillary:
                # The kernel joined datagrams of one sender; this is the size of each.
                size = int.from_bytes(ancillary[0][2], sys.byteorder) or size
            if size >= len(data):
                received.append((data, address))
            else:
                received += [(data[at : at + size], address) for at in range(0, len(data), size)]
            if len(received) >= DATAGRAMS_PER_WAKE_UP:
                break
        if received:
            self._on_datagrams(received)


def parse_address(text: str) -> Address:
    """Split "host:port", "[v6]:port" or ":port".

    Raises:
        ConfigError: it is none of these, or the port is not 0 to 65,535.
    """
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if (
        not separator
        or not port.isascii()
        or not port.isdigit()
        or len(port) > 5
        or int(port) > 65_535
    ):
        raise ConfigError(f"{text[:300]!r} is not host:port (like 10.0.0.5:7946 or [::1]:7946)")
    if ":" in host and not bracketed:
        raise ConfigError(f"{text!r}: write an IPv6 address in brackets, like [::1]:7946")
    return (host[1:-1] if bracketed else host, int(port))


def numeric_address(text: str) -> Address | None:
    """Return the address that `text` is without asking DNS, or None. Never raises.

    What other nodes say is dialled only in this form: a name given to the socket would be looked
    up while the event loop waits.
    """
    try:
        host, port = parse_address(text)
        is_ipv6 = ipaddress.ip_address(host).version == 6
    except (ConfigError, ValueError):
        return None
    return (host, port) if port and is_ipv6 == text.startswith("[") else None


def _cuts_segments(bound: socket.socket) -> bool:
    """Whether the kernel knows UDP_SEGMENT (Linux since 4.18)."""
    if sys.platform != "linux":
        return False
    try:
        bound.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT)
    except OSError:
        return False
    return True


def _canonical(name: tuple[str, int, int, int] | tuple[str, int]) -> Address:
    """One form for each address: IPv4 as IPv4; a link-local one with its zone."""
    host, port = name[0], name[1]
    if host.startswith(MAPPED) and "." in host:
        return (host[len(MAPPED) :], port)
    if len(name) == 4 and name[3] and "%" not in host:
        return (f"{host}%{name[3]}", port)
    return (host, port)


def _as_ipv6(address: Address) -> Address:
    return address if ":" in address[0] else (MAPPED + address[0], address[1])


def _explain(error: OSError, host: str, port: int) -> str:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"{where} is in use by another process; stop that one, or listen on another port "
                "(port 0 takes a free one)"
            )
        case errno.EADDRNOTAVAIL:
            return f"{where} is not an address of this machine; listen on one that is"
        case errno.EACCES:
            return f"{where} needs more rights: ports below 1024 are reserved; choose a larger one"
    return f"{where} cannot be bound: {error.strerror or error}; give an IP address to listen on"
