"""docs/delivery.md names every counter of a loss, and a test that shows each."""

import re
from pathlib import Path

from plumtree_quic import Node, PlumtreeConfig, QuicConfig, SqliteStore
from plumtree_quic.losses import DELAYS, LOSSES
from tests.rigs.pki import Pki

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "delivery.md").read_text()
# What a counter is called that counts something that did not get through.
COUNTS_A_LOSS = re.compile(
    r"lost|dropped|refused|stale|expired|clipped|oversized|malformed|not_allowed|overflow|gaps|late$"
    r"|failed|evicted|corrupt|unserved|store_full|(commit|read)_errors|busy|over_|throttled|congested|equivocations|_cut$|demoted|filtered|rejected|keys_(?!"
    r"chains|signatures|good|learnt|forgotten)"
)
# Told otherwise: a peer's own answer, and what a retention is for.
DETAILS = {"grafts_refused", "store_evicted"}
# Of membership, of certificates and of the log, and copies too many: no message is lost by these.
OTHERS = re.compile(r"swim_|gate_certificates_refused|security_|net_links_over|tree_repairs_late")


def rows():
    return [line for line in PAGE.splitlines() if line.startswith("| `")]


def test_every_row_names_a_test_that_exists():
    assert len(rows()) > 20
    for row in rows():
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert named, row
        for path, name in named:
            assert f"def {name}(" in (ROOT / path).read_text(), name


async def test_every_counter_of_a_loss_is_on_the_page_and_every_counter_on_the_page_is_counted(
    tmp_path,
):
    pki = Pki("test")
    cert = pki.node("a")
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    store = SqliteStore(tmp_path / "messages.db")
    async with Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:0", store=store) as node:
        counted = set(node.stats())
    losses = {name for name in counted if COUNTS_A_LOSS.search(name) and not OTHERS.search(name)}
    assert len(losses) > 30
    named = set(re.findall(r"`([a-z]+_[a-z0-9_]+|congested)`", PAGE))
    assert losses - named == set()
    # Some rows hold several counters of one thing; one of these is its code.
    told = set(LOSSES) | set(DELAYS)
    assert told - counted == set()
    for row in rows():
        counters = set(re.findall(r"`(\w+)`", row.split("|")[1]))
        assert counters & told or counters & DETAILS, row
    in_rows = {name for row in rows() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert in_rows - counted == set()
