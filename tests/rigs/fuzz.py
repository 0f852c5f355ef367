"""Frames that a hostile peer may write: random ones, and valid ones damaged a little."""

import argparse
import random
from collections import Counter
from collections.abc import Iterator

from plumtree_quic.errors import WireError
from plumtree_quic.messages import Chunk, Gossip, Lane, Repair
from plumtree_quic.wire import LinkDecoder, decode_datagram, open_bundle, open_piece
from tests.rigs.wire_examples import golden

INTERESTING = (0x00, 0x01, 0x3F, 0x40, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xC4, 0xC6, 0xC9, 0xD9, 0xDD)
INTERESTING = (*INTERESTING, 0xDE, 0xDF, 0xFE, 0xFF)


def hostile_frames(seed: int) -> Iterator[bytes]:
    """Yield frames without end; the same ones for the same seed."""
    rng = random.Random(seed)
    seeds = [body for bodies in golden().values() for body in bodies]
    while True:
        if rng.random() < 0.1:
            yield rng.randbytes(rng.choice((0, 1, 2, 9, 40, 400)))
            continue
        body = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
            damage(rng, body, seeds)
        yield bytes(body)


def damage(rng: random.Random, body: bytearray, seeds: list[bytes]) -> None:
    at = rng.randrange(len(body) + 1)
    match rng.randrange(7):
        case 0 if body:
            body[at % len(body)] ^= 1 << rng.randrange(8)
        case 1 if body:
            body[at % len(body)] = rng.choice(INTERESTING)
        case 2:
            del body[at:]
        case 3:
            body[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
        case 4:
            del body[at : at + rng.choice((1, 2, 4, 16))]
        case 5:
            other = rng.choice(seeds)
            body[at:] = other[rng.randrange(len(other) + 1) :]
        case _:
            body[at : at + 8] = b"\xff" * rng.choice((1, 2, 4, 8))


def fuzz(seed: int, count: int) -> Counter[str]:
    """Decode `count` hostile frames on links that live as long as they may.

    Counts what became of them. Anything but a message or a WireError is raised.
    """
    outcomes: Counter[str] = Counter()
    decoder = LinkDecoder()
    stream = hostile_frames(seed)
    for _ in range(count):
        body = next(stream)
        # The lane is the peer's choice; mostly the one on which the type belongs.
        lane = Lane((body[0] >> 4) % 7 if body else 0)
        try:
            message = decode_datagram(body) if body[:1] >= b"\x70" else decoder.decode(lane, body)
            if isinstance(message, Gossip | Chunk | Repair):
                open_bundle(message.bundle)
                if message.bundle.is_chunk:
                    open_piece(message.bundle)
        except WireError:
            outcomes["refused"] += 1
            decoder = LinkDecoder()
        else:
            outcomes[type(message).__name__] += 1
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Decode hostile frames; a crash names its seed.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1_000_000)
    options = parser.parse_args()
    print(dict(fuzz(options.seed, options.count)))
