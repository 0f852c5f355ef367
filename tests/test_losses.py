"""What is lost is told of: once, soon, and not too often."""

import asyncio
import logging

from plumtree_quic import Delegate, Loss, Node, PlumtreeConfig, QuicConfig
from plumtree_quic.losses import DELAYS, LOSSES, TOLD_EVERY_S, LossWatch
from tests.rigs.pki import Pki
from tests.rigs.waiting import WAIT_S, until


def test_what_counts_up_is_told_with_how_much():
    watch = LossWatch()
    assert watch.look({"order_gaps": 0}, 0.0) == []
    what = LOSSES["order_gaps"]
    assert watch.look({"order_gaps": 3}, 1.0) == [Loss("order_gaps", 3, True, what)]
    assert watch.look({"order_gaps": 3}, 100.0) == []


def test_what_goes_on_is_told_now_and_then_and_nothing_of_it_is_left_out():
    watch = LossWatch()
    told = []
    for second in range(26):
        told += watch.look({"congested": second}, float(second))
    assert [loss.count for loss in told] == [1, 10, 10]
    assert not any(loss.is_final for loss in told)
    assert TOLD_EVERY_S == 10.0


def test_no_reason_is_both_a_loss_and_a_delay():
    assert not set(LOSSES) & set(DELAYS)


async def test_a_node_tells_its_delegate_its_events_and_its_log(caplog):
    caplog.set_level(logging.INFO, "plumtree_quic")
    told = []

    class Told(Delegate):
        def on_loss(self, loss):
            told.append(loss)

    cert = (pki := Pki("test")).node("a")
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    async with (
        Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:0", delegate=Told()) as node,
        node.subscribe(own=True, buffer=1, when_full="drop_newest"),
    ):
        events = aiter(node.events())
        following = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        for _ in range(5):
            await node.broadcast(b"x")
        await until(lambda: told)
        event = await asyncio.wait_for(following, WAIT_S)
    assert [(loss.reason, loss.count) for loss in told] == [("subscription_dropped", 4)]
    assert (event.kind, event.detail["reason"]) == ("on_loss", "subscription_dropped")
    (line,) = [each for each in caplog.records if getattr(each, "event", "") == "loss"]
    assert (line.levelno, line.reason, line.count) == (logging.WARNING, "subscription_dropped", 4)
