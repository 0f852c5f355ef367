"""What signed bundles cost: signing, verifying and learning a certificate, by kind of key.

    python -m benchmarks.signatures            a table
    python -m benchmarks.signatures --json     one object on the last line

A bundle is signed once by its origin and verified once by each receiver, however many messages
are in it; so what a message costs falls with their number. Each figure is the best of several
rounds, for the machine's other work only ever adds. One core, one process.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import attrs

from plumtree_quic.ids import member_key
from plumtree_quic.security.certs import DevCa
from plumtree_quic.security.credentials import QuicConfig
from plumtree_quic.security.keyring import KeyRing, Verdict
from plumtree_quic.security.signatures import Kind, Signer, context, verify
from plumtree_quic.wire import build_bundle, parse_bundle

KEY_TYPES = ("p256", "p384", "ed25519", "rsa")
MESSAGES = (1, 16, 256)
PAYLOAD_BYTES = 100
ROUND_S = 0.05


@attrs.frozen
class Cost:
    """Microseconds and bytes for one kind of key; by number of messages in a bundle.

    sign, verify: a header and body of 100 bytes. learn: a certificate that is new. origin_us,
    receiver_us: what signing adds for the origin, and all that the key ring does for a receiver,
    per message. bytes: what signing adds to a bundle on the wire, per message.
    """

    key_type: str
    sign_us: float
    verify_us: float
    learn_us: float
    origin_us: dict
    receiver_us: dict
    bytes: dict


def best_us(work, rounds):
    """The shortest mean time of `work` over a round, in microseconds."""
    best = float("inf")
    for _ in range(rounds):
        count, started = 0, time.perf_counter()
        ends = started + ROUND_S
        while (now := time.perf_counter()) < ends:
            work()
            count += 1
        best = min(best, (now - started) / count)
    return best * 1e6


def measure(key_type, rounds):
    with tempfile.TemporaryDirectory(prefix="plumtree-signatures-") as directory:
        ca = DevCa.create(Path(directory), trust_domain="bench")
        made = {}
        for name in ("origin", "receiver"):
            ca.issue(name, key_type=key_type)
            at = ca.directory
            quic = QuicConfig(at / f"{name}.crt", at / f"{name}.key", at / "ca.crt")
            made[name] = quic.credentials
    signer, origin = Signer(made["origin"]), member_key(made["origin"].node_id)
    public_key = made["origin"].key.public_key()
    prefix, sign = context(Kind.BUNDLE, "bench", "default"), signer.sign(Kind.BUNDLE)
    payload = bytes(range(PAYLOAD_BYTES))
    signature = sign(b"", payload)

    def wall_ms():
        return time.time_ns() // 1_000_000

    def check():
        assert verify(public_key, signer.algorithm, prefix, b"", payload, signature)

    def learn():
        ring = KeyRing(made["receiver"], wall_ms=wall_ms, retention_s=60.0)
        assert ring.offer(signer.chain, 0.0)

    def own_ring():
        KeyRing(made["receiver"], wall_ms=wall_ms, retention_s=60.0)

    ring = KeyRing(made["receiver"], wall_ms=wall_ms, retention_s=3600.0)
    assert ring.offer(signer.chain, 0.0)
    signed = {
        "algorithm": signer.algorithm,
        "key_id": signer.key_id,
        "signed_at": wall_ms(),
        "sign": sign,
    }
    cost = Cost(
        key_type=key_type,
        sign_us=best_us(lambda: sign(b"", payload), rounds),
        verify_us=best_us(check, rounds),
        learn_us=best_us(learn, rounds) - best_us(own_ring, rounds),
        origin_us={},
        receiver_us={},
        bytes={},
    )
    for count in MESSAGES:
        plain = {"origin": origin, "epoch": 1, "first": 1, "messages": [("", payload)] * count}
        bundle = parse_bundle(build_bundle(**plain, **signed).raw)
        bare = build_bundle(**plain)
        header, body = bundle.signed_parts

        def judge(bundle=bundle):
            assert ring.check_bundle(bundle, 0.0) is Verdict.GOOD

        cost.origin_us[count] = best_us(lambda h=header, b=body: sign(h, b), rounds) / count
        cost.receiver_us[count] = best_us(judge, rounds) / count
        cost.bytes[count] = (len(bundle.raw) - len(bare.raw)) / count
    return cost


def table(costs):
    lines = [
        f"payloads of {PAYLOAD_BYTES} bytes; microseconds of one core",
        "",
        f"{'key':<8} {'sign':>7} {'verify':>7} {'learn':>7}   per message, signed + verified once",
        f"{'':<8} {'':>7} {'':>7} {'':>7}   "
        + " ".join(f"{f'{n} a bundle':>16}" for n in MESSAGES),
    ]
    for cost in costs:
        each = " ".join(
            f"{f'{cost.origin_us[n]:.2f} + {cost.receiver_us[n]:.2f}':>16}" for n in MESSAGES
        )
        lines.append(
            f"{cost.key_type:<8} {cost.sign_us:>7.0f} {cost.verify_us:>7.0f} "
            f"{cost.learn_us:>7.0f}   {each}"
        )
    lines += ["", "bytes that signing adds, per message"]
    for cost in costs:
        each = " ".join(f"{cost.bytes[n]:>16.2f}" for n in MESSAGES)
        lines.append(f"{cost.key_type:<32}   {each}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="of which the best counts")
    parser.add_argument("--json", action="store_true", help="one object on the last line")
    options = parser.parse_args()
    costs = [measure(key_type, options.rounds) for key_type in KEY_TYPES]
    print(table(costs))
    if options.json:
        print(json.dumps({cost.key_type: attrs.asdict(cost) for cost in costs}))


if __name__ == "__main__":
    main()
