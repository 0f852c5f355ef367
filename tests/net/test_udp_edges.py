"""The socket when the kernel says no: errors, a full buffer, systems that grant less."""

import asyncio
import errno
import socket

import pytest

from plumtree_quic.errors import ConfigError, LinkError
from plumtree_quic.net.udp import UdpSocket, parse_address

TO = ("127.0.0.1", 9)


class Kernel:
    """Stands before a real socket. errors: what receiving raises first. full: takes nothing."""

    def __init__(self, real):
        self._real = real
        self.errors = []
        self.full = False
        self.sent = []

    def __getattr__(self, name):
        return getattr(self._real, name)

    def sendto(self, data, address):
        if self.full:
            raise BlockingIOError
        self.sent.append(data)
        return len(data)

    def sendmsg(self, buffers, *_):
        if self.full:
            raise BlockingIOError
        self.sent += buffers
        return sum(map(len, buffers))

    def recvfrom(self, *arguments):
        self._raise()
        return self._real.recvfrom(*arguments)

    def recvmsg(self, *arguments):
        self._raise()
        return self._real.recvmsg(*arguments)

    def _raise(self):
        if self.errors:
            raise self.errors.pop()


@pytest.fixture
def bind():
    """Bind a socket of the loop; returns it, its batches, and the kernel before it."""
    bound = []

    def make():
        batches = []
        one = UdpSocket.bind("127.0.0.1", 0, batches.append)
        kernel = one._socket = Kernel(one._socket)
        bound.append(one)
        return one, batches, kernel

    yield make
    for each in bound:
        each.close()


async def test_an_error_of_an_earlier_send_does_not_end_the_batch(bind):
    """Anybody can forge the ICMP message behind it (RFC 9000, section 14.2.1)."""
    one, batches, kernel = bind()
    kernel.errors = [ConnectionRefusedError(), OSError(113, "no route")]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.sendto(b"x", one.address)
        one._on_readable()
        assert batches == [[(b"x", other.getsockname())]]


async def test_errors_for_ever_do_not_hold_the_loop(bind):
    one, batches, kernel = bind()

    class Endless(list):
        taken = 0

        def pop(self):
            self.taken += 1
            return OSError(113, "no route")

    kernel.errors = Endless([1])
    one._on_readable()
    assert kernel.errors.taken == 64
    assert batches == []


async def test_no_batch_is_empty(bind):
    one, batches, _ = bind()
    one._on_readable()
    assert batches == []


async def test_nothing_overtakes_what_waits(bind):
    one, _, kernel = bind()
    kernel.full = True
    one.send([(b"a", TO)])
    kernel.full = False
    one.send([(b"b", TO)])
    assert kernel.sent == []
    one._on_writable()
    assert kernel.sent == [b"a", b"b"]


async def test_a_buffer_that_fills_up_again_keeps_the_rest(bind):
    one, _, kernel = bind()
    kernel.full = True
    one.send([(b"a", TO), (b"b", TO)])
    one._on_writable()
    assert (kernel.sent, len(one._unsent), one.dropped) == ([], 2, 0)


async def test_waiting_ends_with_the_queue(bind):
    one, _, kernel = bind()
    kernel.full = True
    one.send([(b"a", TO)])
    kernel.full = False
    one._on_writable()
    # remove_writer tells whether there was one.
    assert not asyncio.get_running_loop().remove_writer(kernel.fileno())


async def test_a_system_that_grants_no_large_buffers_is_no_error(monkeypatch):
    class Small(socket.socket):
        def setsockopt(self, level, option, *value):
            if option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                raise OSError(105, "no buffer space available")
            return super().setsockopt(level, option, *value)

    monkeypatch.setattr(socket, "socket", Small)
    one = UdpSocket.bind("127.0.0.1", 0, lambda _: None)
    assert one.address[1]
    one.close()


@pytest.mark.parametrize("host", ["a\0b", "x" * 80 + "..y", "300.1.1.1", "192.0.2.1"])
async def test_a_bind_that_fails_leaves_no_socket_open(host, monkeypatch):
    opened = []

    class Watched(socket.socket):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            opened.append(self)

    monkeypatch.setattr(socket, "socket", Watched)
    with pytest.raises(LinkError):
        UdpSocket.bind(host, 0, lambda _: None)
    # The name is looked up on the same socket: no other is made.
    assert [each.fileno() for each in opened] == [-1]


@pytest.mark.parametrize("digits", [6, 5_000])
def test_a_port_of_any_length_is_refused_as_what_it_is(digits):
    """int() itself raises above 4,300 digits, and does not say what an address looks like."""
    with pytest.raises(ConfigError, match="is not host:port") as raised:
        parse_address("h:" + "9" * digits)
    assert len(str(raised.value)) < 500


def test_zeros_before_a_port_are_no_port():
    with pytest.raises(ConfigError):
        parse_address("h:000001")


# --- runs of datagrams in one system call ---------------------------------------------------------


class Offloading(Kernel):
    """Refuses a run with an error number, and notes how each datagram left."""

    def __init__(self, real):
        super().__init__(real)
        self.refuse = None
        self.calls = []

    def sendto(self, data, address):
        self.calls.append(1)
        return super().sendto(data, address)

    def sendmsg(self, buffers, *arguments):
        if self.refuse is not None:
            raise OSError(self.refuse, "refused")
        self.calls.append(len(buffers))
        return super().sendmsg(buffers, *arguments)


@pytest.fixture
async def offloading(bind):
    one, _, kernel = bind()
    one._socket = Offloading(kernel._real)
    one._segments = True
    return one


RUN = [(bytes(1_200), TO)] * 4


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.EMSGSIZE])
async def test_a_run_that_the_path_does_not_take_leaves_one_by_one_and_the_next_is_tried(
    offloading, number
):
    offloading._socket.refuse = number
    offloading.send(RUN)
    assert offloading._socket.calls == [1, 1, 1, 1]
    offloading._socket.refuse = None
    offloading.send(RUN)
    assert offloading._socket.calls == [1, 1, 1, 1, 4]
    assert offloading.dropped == 0


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EACCES, errno.EPERM])
async def test_a_route_that_fails_costs_its_own_datagrams_and_no_other_link_its_speed(
    offloading, number
):
    offloading._socket.refuse = number
    offloading.send(RUN)
    assert (offloading._socket.calls, offloading.dropped) == ([], 4)
    offloading._socket.refuse = None
    offloading.send(RUN)
    assert offloading._socket.calls == [4]


async def test_an_address_of_the_other_family_costs_no_other_link_its_speed():
    """Any member may write one into its record."""
    one = UdpSocket.bind("127.0.0.1", 0, lambda _: None)
    before = one._segments
    one.send([(bytes(1_200), ("2001:db8::1", 7946))] * 2)
    assert (one._segments, one.dropped) == (before, 2)
    one.close()


async def test_the_order_is_kept_when_a_run_leaves_one_by_one(offloading):
    offloading._socket.refuse = errno.EIO
    datagrams = [(bytes([number]) * 100, TO) for number in range(6)]
    offloading.send(datagrams)
    assert offloading._socket.sent == [data for data, _ in datagrams]
