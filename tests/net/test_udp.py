"""The socket: batches, addresses, errors with their fix, and a bounded queue."""

import asyncio
import errno
import socket

import pytest

from plumtree_quic.errors import ConfigError, LinkError
from plumtree_quic.net import udp
from plumtree_quic.net.udp import UdpSocket, numeric_address, parse_address


class Inbox:
    """What a socket handed over, batch by batch."""

    def __init__(self):
        self.batches = []
        self._changed = asyncio.Event()

    def __call__(self, datagrams):
        self.batches.append(list(datagrams))
        self._changed.set()

    @property
    def datagrams(self):
        return [each for batch in self.batches for each in batch]

    async def wait(self, count):
        async with asyncio.timeout(10):
            while len(self.datagrams) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.datagrams


@pytest.fixture
def make():
    opened = []

    def bind(host="127.0.0.1", port=0):
        inbox = Inbox()
        bound = UdpSocket.bind(host, port, inbox)
        opened.append(bound)
        return bound, inbox

    yield bind
    for each in opened:
        each.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_datagrams_arrive_with_the_senders_address(make, host):
    (a, _), (b, inbox) = make(host), make(host)
    a.send([(b"one", b.address), (b"two", b.address)])
    got = await inbox.wait(2)
    assert got == [(b"one", a.address), (b"two", a.address)]
    assert a.is_loopback


async def test_one_wake_up_hands_over_many_datagrams_together_and_a_bounded_number(make):
    (a, _), (b, inbox) = make(), make()
    a.send([(bytes([number]), b.address) for number in range(200)])
    got = await inbox.wait(200)
    assert [data[0] for data, _ in got] == list(range(200))
    assert len(inbox.batches) < 20
    assert max(map(len, inbox.batches)) <= 2 * udp.DATAGRAMS_PER_WAKE_UP


async def test_datagrams_of_any_size_keep_their_borders(make):
    (a, _), (b, inbox) = make(), make()
    sizes = [1, 1200, 1200, 1200, 300, 16_000, 16_000, 5, 1452, 1452, 1453, 60_000, 1452]
    a.send([(bytes([number]) * size, b.address) for number, size in enumerate(sizes)])
    got = await inbox.wait(len(sizes))
    assert [(len(data), data[0]) for data, _ in got] == [
        (size, number) for number, size in enumerate(sizes)
    ]


async def test_datagrams_for_several_addresses_keep_their_order_each(make):
    (a, _), (b, first), (c, second) = make(), make(), make()
    a.send([(bytes([number]) * 1200, (b, c)[number % 2].address) for number in range(40)])
    assert [data[0] for data, _ in await first.wait(20)] == list(range(0, 40, 2))
    assert [data[0] for data, _ in await second.wait(20)] == list(range(1, 40, 2))


async def test_an_address_in_use_is_told_with_the_fix(make):
    bound, _ = make()
    with pytest.raises(LinkError, match=r"in use by another process; .*another port"):
        UdpSocket.bind(*bound.address, Inbox())


async def test_an_address_that_is_not_ours_is_told(make):
    with pytest.raises(LinkError, match=r"192\.0\.2\.1"):
        UdpSocket.bind("192.0.2.1", 0, Inbox())


async def test_what_cannot_be_sent_is_dropped_and_the_rest_leaves(make):
    (a, _), (b, inbox) = make(), make()
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.bind(("127.0.0.1", 0))
    nobody = closed.getsockname()
    closed.close()
    a.send([(bytes(70_000), b.address), (b"x", nobody), (b"kept", b.address)])
    a.send([(b"too", b.address)])
    assert [data for data, _ in await inbox.wait(2)] == [b"kept", b"too"]
    assert a.dropped >= 1


class Full:
    """A socket whose kernel buffer is full until `open` is set."""

    def __init__(self, real):
        self._real = real
        self.open = False

    def __getattr__(self, name):
        return getattr(self._real, name)

    def sendto(self, data, address):
        if not self.open:
            raise BlockingIOError(errno.EAGAIN, "full")
        return self._real.sendto(data, address)

    def sendmsg(self, *arguments):
        if not self.open:
            raise BlockingIOError(errno.EAGAIN, "full")
        return self._real.sendmsg(*arguments)


async def test_a_full_kernel_buffer_keeps_a_bounded_queue_in_order(make):
    (a, _), (b, inbox) = make(), make()
    full = a._socket = Full(a._socket)
    datagrams = [(number.to_bytes(4, "big"), b.address) for number in range(1500)]
    a.send(datagrams[:10])
    a.send(datagrams[10:])
    assert len(a._unsent) == udp.UNSENT_MAX
    assert a.dropped == 1500 - udp.UNSENT_MAX
    full.open = True
    got = await inbox.wait(udp.UNSENT_MAX)
    assert [int.from_bytes(data, "big") for data, _ in got] == list(range(udp.UNSENT_MAX))
    a.send([(b"next", b.address)])
    assert (await inbox.wait(udp.UNSENT_MAX + 1))[-1][0] == b"next"


async def test_close_frees_the_address_and_may_be_repeated(make):
    bound, _ = make()
    where = bound.address
    bound.close()
    bound.close()
    again, _ = make(*where)
    assert again.address == where


async def test_b38_no_option_forbids_fragments(make):
    bound, _ = make()
    mtu_discover, dont = 10, 0  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT (Linux)
    fresh = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    default = fresh.getsockopt(socket.IPPROTO_IP, mtu_discover)
    fresh.close()
    assert bound._socket.getsockopt(socket.IPPROTO_IP, mtu_discover) in (default, dont)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.5:7946", ("10.0.0.5", 7946)),
        ("[::1]:7946", ("::1", 7946)),
        (":7946", ("", 7946)),
        ("node-1.example:0", ("node-1.example", 0)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65_535)),
    ],
)
def test_addresses_that_are_understood(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "7946", "host", "host:", "host:port", "host:-1", "host:65536", "::1:7946", "h:٣", "h:1 "],
)
def test_addresses_that_are_refused_with_an_example(text):
    with pytest.raises(ConfigError):
        parse_address(text)


async def test_a_wildcard_ipv6_socket_takes_ipv4_and_names_it_as_ipv4(make):
    (a, _), (b, inbox) = make("127.0.0.1"), make("::")
    a.send([(b"over IPv4", ("127.0.0.1", b.address[1]))])
    assert await inbox.wait(1) == [(b"over IPv4", a.address)]


async def test_an_ipv6_socket_answers_an_ipv4_address(make):
    (a, inbox), (b, _) = make("127.0.0.1"), make("::")
    b.send([(b"back", a.address)])
    assert await inbox.wait(1) == [(b"back", ("127.0.0.1", b.address[1]))]


@pytest.mark.parametrize("host", ["not an address", "nul\0", "127.0.0.1\0", "999.1.1.1"])
async def test_a_host_that_is_no_address_is_a_link_error(host):
    with pytest.raises(LinkError):
        UdpSocket.bind(host, 0, Inbox())


async def test_an_address_that_is_none_is_dropped_and_never_raises(make):
    (a, _), (b, inbox) = make(), make()
    for nonsense in (("", -1), ("nul\0", 1), ("127.0.0.1", 70_000), ("127.0.0.1", "x")):
        a.send([(b"lost", nonsense)])
    assert a.dropped == 4
    a.send([(b"kept", b.address)])
    assert await inbox.wait(1) == [(b"kept", a.address)]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.5:7946", ("10.0.0.5", 7946)),
        ("[::1]:7946", ("::1", 7946)),
        ("localhost:7946", None),
        ("10.0.0.5:0", None),
        (":7946", None),
        ("[10.0.0.5]:7946", None),
        ("999.0.0.1:1", None),
        ("nul\0:1", None),
        ("x" * 5_000, None),
    ],
)
def test_what_peers_say_is_an_address_only_in_numbers(text, address):
    assert numeric_address(text) == address


async def test_a_run_of_one_size_and_a_shorter_last_arrives_as_it_was_cut(make):
    (a, _), (b, inbox) = make(), make()
    sent = [bytes((number,)) * 1_200 for number in range(60)] + [b"short", b"x" * 700, b"y" * 900]
    a.send([(data, b.address) for data in sent])
    got = await inbox.wait(len(sent))
    assert [data for data, _ in got] == sent
    assert {address for _, address in got} == {a.address}
    assert a.dropped == 0


async def test_a_path_that_takes_no_segments_gets_datagrams_one_by_one(make, monkeypatch):
    (a, _), (b, inbox) = make(), make()

    def refuse(*_):
        raise OSError(errno.EINVAL, "no segments here")

    monkeypatch.setattr(a, "_send_run", refuse)
    sent = [bytes((number,)) * 1_200 for number in range(10)]
    a.send([(data, b.address) for data in sent])
    assert [data for data, _ in await inbox.wait(10)] == sent
    assert a.dropped == 0
