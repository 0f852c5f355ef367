"""What a store on a disk costs: bundles put and committed a second, read back, and opened again.

    python -m benchmarks.store                      in a new directory under the working one
    python -m benchmarks.store --directory /mnt/x   on the disk that is meant
    python -m benchmarks.store --json               one object on the last line

One thread puts and takes what is posted, as an event loop does, with at most 8 MiB that wait; the
store's own two write and read. Each way to write is measured with small bundles and with large
ones. "one at a time" waits for each commit before the next put: what a disk's flush takes.
"""

import argparse
import json
import queue
import statistics
import sys
import tempfile
import time
from pathlib import Path

from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.store.sqlite import SqliteStore
from plumtree_quic.wire import build_bundle, parse_bundle

ORIGIN = NodeId("spiffe://bench/node/a")
KEY = member_key(ORIGIN)
SMALL_BYTES, LARGE_BYTES = 256, 60 << 10
WAITING_BYTES_MAX = 8 << 20
PAGE_BYTES = 1 << 20


class Loop:
    """A store, and what it posts, taken by this thread."""

    def __init__(self, path, synchronous):
        self.store = SqliteStore(
            path, synchronous=synchronous, messages_max=1 << 30, bytes_max=1 << 40
        )
        self.posted = queue.SimpleQueue()
        self.through = 0
        began = time.perf_counter()
        self.recovered = self.store.open(parse_bundle, 0)
        self.opened_s = time.perf_counter() - began
        self.store.attach(self.posted.put, self._on_commit)

    def _on_commit(self, committed):
        self.through = committed.through

    def step(self):
        self.posted.get()()

    def put(self, bundle):
        while self.store.waiting_bytes > WAITING_BYTES_MAX:
            self.step()
        return self.store.put(bundle, ORIGIN, 1, 0)[0]

    def settle(self, ticket):
        while self.through < ticket:
            self.step()

    def page(self, ask):
        pages = []
        ask(pages.append)
        while not pages:
            self.step()
        return pages[0]


def bundles(first, count, payload_bytes):
    payload = bytes(range(256)) * (payload_bytes // 256)
    return [
        build_bundle(origin=KEY, epoch=1, first=first + n, messages=[("t", payload)])
        for n in range(count)
    ]


def rate(count, size, seconds):
    return {
        "per_s": round(count / seconds),
        "mb_per_s": round(count * size / seconds / 1e6, 1),
    }


def write(path, synchronous, count, payload_bytes, single):
    """Put `count` bundles, and then `single` more, each committed before the next one."""
    loop = Loop(path, synchronous)
    made = bundles(1, count + single, payload_bytes)
    size = len(made[0].raw)
    began = time.perf_counter()
    for bundle in made[:count]:
        ticket = loop.put(bundle)
    loop.settle(ticket)
    result = {
        "synchronous": synchronous,
        "payload_bytes": payload_bytes,
        **rate(count, size, time.perf_counter() - began),
        "per_commit": round(count / loop.store.stats()["store_commits"], 1),
    }
    times = []
    for bundle in made[count:]:
        began = time.perf_counter()
        loop.settle(loop.put(bundle))
        times.append(time.perf_counter() - began)
    result["one_at_a_time_ms"] = round(statistics.median(times) * 1e3, 2)
    loop.store.close()
    return result


def read(path, payload_bytes):
    """Read all of a store page by page: by its only stream, and by arrival."""
    loop = Loop(path, "normal")
    last = loop.store.head - 1
    rows = []
    for how in ("stream", "arrival"):
        at, count, size = 1, 0, 0
        began = time.perf_counter()
        while at <= last:
            if how == "stream":
                ask = lambda done: loop.store.read((KEY, 1), at, last, PAGE_BYTES, done)  # noqa: B023, E731
            else:
                ask = lambda done: loop.store.read_from(at, PAGE_BYTES, done)  # noqa: B023, E731
            page = loop.page(ask)
            count += len(page.kept)
            size = len(page.kept[-1].bundle.raw)
            at = page.kept[-1].next_at
        took = time.perf_counter() - began
        rows.append({"by": how, "payload_bytes": payload_bytes, **rate(count, size, took)})
    loop.store.close()
    return rows


def show(result):
    print("put, in groups as they come                            one at a time")
    for row in result["writes"]:
        print(
            f"  {row['synchronous']:<7}{row['payload_bytes']:>7,} B {row['per_s']:>8,}/s"
            f" {row['mb_per_s']:>7.1f} MB/s {row['per_commit']:>9,.1f} a commit"
            f" {row['one_at_a_time_ms']:>9.2f} ms"
        )
    print(f"read, pages of {PAGE_BYTES >> 20} MiB, decoded")
    for row in result["reads"]:
        print(
            f"  {row['by']:<7}{row['payload_bytes']:>7,} B {row['per_s']:>8,}/s"
            f" {row['mb_per_s']:>7.1f} MB/s"
        )
    opened = result["open"]
    print(
        f"open {opened['messages']:,} messages, all of them checked: {opened['seconds']:.2f} s"
        f" ({opened['file_mb']:.0f} MB)",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=100_000, help="small bundles")
    parser.add_argument("--large", type=int, default=2_000, help="large bundles")
    parser.add_argument("--single", type=int, default=200, help="puts one at a time")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the files go")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = {SMALL_BYTES: options.small, LARGE_BYTES: options.large}
    result = {"writes": [], "reads": []}
    with tempfile.TemporaryDirectory(prefix="plumtree-store-", dir=options.directory) as name:
        for synchronous in ("full", "normal"):
            for payload_bytes, count in sizes.items():
                path = Path(name) / f"{synchronous}-{payload_bytes}.db"
                result["writes"].append(
                    write(path, synchronous, count, payload_bytes, options.single)
                )
        for payload_bytes in sizes:
            result["reads"] += read(Path(name) / f"full-{payload_bytes}.db", payload_bytes)
        path = Path(name) / f"full-{SMALL_BYTES}.db"
        loop = Loop(path, "full")
        result["open"] = {
            "messages": loop.store.stats()["store_messages"],
            "seconds": round(loop.opened_s, 3),
            "file_mb": round(path.stat().st_size / 1e6, 1),
        }
        loop.store.close()
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
