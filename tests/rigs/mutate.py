"""Does a test notice when a security check is gone? Run by scripts/mutate; exit 1 if not.

A check is found in the source, not listed by hand, so that a new one cannot be forgotten:

- a statement that refuses: `raise CheckFailed`, `raise _Refusal`, `raise LocalProtocolError`, a
  bare call of `check_...`, a `self.close(...)` in a method `_check_...`, a `return` of "drop", of
  a verdict that is not good, or of None or False in a function `check`, `take`, `verify` or
  `offer`;
- each operand of an `or` that leads to one;
- the guard of a `case`;
- a few lines in `ALSO` that protect without refusing.

Each is taken out of a copy of the package, and the tests of that file run until one fails.
"""

import argparse
import ast
import concurrent.futures
import copy
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFUSALS = {"CheckFailed", "_Refusal", "LocalProtocolError", "EngineFailed"}
RETURNING = {"check", "take", "verify", "offer"}
# A test without its check may never end. pytest gives it up after so long and names it; a run of
# all tests of a file ends long before the other limit.
TEST_SECONDS_MAX = 100
SECONDS_MAX = 900

TARGETS = {
    "plumtree_quic/security/identity.py": (
        "tests/security/test_identity.py",
        "tests/net/test_handshake.py",
        "tests/security/test_credentials.py",
    ),
    "plumtree_quic/net/tls.py": ("tests/net/test_handshake.py", "tests/net/test_b_rows.py"),
    "plumtree_quic/net/engine.py": (
        "tests/net/test_b_rows.py",
        "tests/net/test_transport_parameters.py",
        "tests/net/test_engine.py",
        "tests/net/test_handshake.py",
    ),
}

TARGETS |= {
    f"plumtree_quic/security/{name}.py": (f"tests/security/test_{name}.py",)
    for name in ("signatures", "keyring")
}

TARGETS |= {
    f"plumtree_quic/net/{name}.py": (f"tests/net/test_{name}.py",)
    for name in ("filter", "retry", "budget")
}

# Files of which only what ALSO lists is taken out: their checks are conditions, not refusals.
WIRED = {
    "plumtree_quic/security/gate.py": (
        "tests/security/test_gate.py",
        "tests/node/test_policy.py",
    ),
    "plumtree_quic/security/policy.py": ("tests/security/test_policy.py",),
    "plumtree_quic/security/revocation.py": ("tests/security/test_revocation.py",),
    "plumtree_quic/security/audit.py": ("tests/security/test_audit.py",),
    "plumtree_quic/security/credentials.py": (
        "tests/node/test_lists.py",
        "tests/node/test_rotation.py",
    ),
    "plumtree_quic/net/quota.py": ("tests/net/test_quota.py",),
    "plumtree_quic/net/clock.py": ("tests/net/test_link.py",),
    "plumtree_quic/net/rotation.py": ("tests/net/test_begun_before.py",),
    "plumtree_quic/net/link.py": ("tests/node/test_rotation.py",),
    "plumtree_quic/net/endpoint.py": (
        "tests/node/test_policy.py",
        "tests/node/test_signed.py",
        "tests/node/test_rotation.py",
        "tests/net/test_begun_before.py",
        "tests/effects/test_node_effects.py",
        "tests/net/test_link.py",
    ),
    "plumtree_quic/proto/core.py": ("tests/proto/test_core.py", "tests/sim/test_joining.py"),
    "plumtree_quic/proto/fifo.py": ("tests/proto/test_fifo.py",),
    "plumtree_quic/proto/sync.py": ("tests/proto/test_sync.py", "tests/sim/test_byzantine.py"),
    "plumtree_quic/proto/coverage.py": ("tests/proto/test_coverage.py",),
    "plumtree_quic/proto/chunks.py": ("tests/proto/test_chunks.py",),
    "plumtree_quic/assembly.py": ("tests/node/test_large.py",),
    "plumtree_quic/subscription.py": ("tests/node/test_slow_reader.py",),
    "plumtree_quic/ledger.py": ("tests/test_ledger.py", "tests/node/test_stores.py"),
    "plumtree_quic/catchup.py": ("tests/node/test_stores.py",),
    "plumtree_quic/store/database.py": ("tests/store/test_sqlite.py",),
    "plumtree_quic/proto/health.py": ("tests/proto/test_health.py", "tests/proto/test_swim.py"),
    "plumtree_quic/proto/seeds.py": ("tests/proto/test_seeds.py",),
    "plumtree_quic/proto/swim.py": ("tests/proto/test_swim.py", "tests/sim/test_joining.py"),
    "plumtree_quic/proto/overlay.py": ("tests/proto/test_overlay.py",),
    "plumtree_quic/proto/plumtree.py": (
        "tests/proto/test_plumtree.py",
        "tests/node/test_signed.py",
    ),
    "plumtree_quic/driver.py": (
        "tests/node/test_policy.py",
        "tests/node/test_quota.py",
        "tests/node/test_robustness.py",
        "tests/node/test_rotation.py",
    ),
    "plumtree_quic/node.py": (
        "tests/node/test_lists.py",
        "tests/node/test_policy.py",
        "tests/node/test_rotation.py",
    ),
}
_FIFO = "plumtree_quic/proto/fifo.py"
_SYNC = "plumtree_quic/proto/sync.py"
_COVERAGE = "plumtree_quic/proto/coverage.py"
_CHUNKS = "plumtree_quic/proto/chunks.py"
_LEDGER = "plumtree_quic/ledger.py"
_GATE = "plumtree_quic/security/gate.py"
_POLICY = "plumtree_quic/security/policy.py"
_LISTS = "plumtree_quic/security/revocation.py"
_QUOTA = "plumtree_quic/net/quota.py"
_ENDPOINT = "plumtree_quic/net/endpoint.py"
_CORE = "plumtree_quic/proto/core.py"
_HEALTH = "plumtree_quic/proto/health.py"
_SEEDS = "plumtree_quic/proto/seeds.py"
_SWIM = "plumtree_quic/proto/swim.py"
_DRIVER = "plumtree_quic/driver.py"

# (file, text, what takes its place): the text must be there exactly once.
ALSO = (
    (_FIFO, "while self._load > self._items_max:", "while False:"),
    (_SYNC, "self._disbelieve(link, key, now, DISBELIEVED_S)", "pass"),
    (_SYNC, "now - link.busy_since >= BUSY_S and link.busy >= BUSY_ANSWERS_MIN", "False"),
    (_SYNC, "if trouble.fruitless >= FRUITLESS_MAX:", "if False:"),
    (_COVERAGE, "if rate.tokens < 1.0 or len(self._counts) >= OPEN_MAX:", "if False:"),
    (_COVERAGE, "len(self._counts) >= OPEN_MAX", "False"),
    (_COVERAGE, "len(count.keys) >= KEYS_OF_ONE_MAX or self._keys >= KEYS_MAX", "False"),
    (_COVERAGE, "self._keys -= len(self._counts.pop(name).keys)", "del self._counts[name]"),
    (_COVERAGE, "count is None or peer not in count.waiting", "count is None"),
    (_FIFO, "while self._bytes > self._bytes_max:", "while False:"),
    (_CHUNKS, "self._by_origin.get(origin, 0) > ORIGIN_MESSAGES_MAX * unit", "False"),
    (_CHUNKS, "self._by_link.get(link, 0) > LINK_MESSAGES_MAX * unit", "False"),
    (_CHUNKS, "self.bytes > NODE_MESSAGES_MAX * unit", "False"),
    (_CHUNKS, "max(self._by_origin, key=self._by_origin.__getitem__)", "origin"),
    (_CHUNKS, "if key in self._given_up:", "if False:"),
    (_CHUNKS, "len(self._given_up) > GIVEN_UP_MAX", "False"),
    (_CHUNKS, "if self._contradicts(bundle.origin, bundle.epoch, first, last):", "if False:"),
    (
        "plumtree_quic/assembly.py",
        "if bundle.chunk_bytes > self._message_bytes_max:",
        "if False:",
    ),
    ("plumtree_quic/assembly.py", "and self._outside.refuses(message)", "and False"),
    (
        "plumtree_quic/subscription.py",
        "and self._bytes + size <= self._buffer_bytes",
        "",
    ),
    (_LEDGER, "if not self.store.durable or ticket <= self._through:", "if True:"),
    (
        _LEDGER,
        "for run in effect.ranges:\n            if len(serving.ranges) >= SERVING_RANGES_MAX:",
        "for run in effect.ranges:\n            if False:",
    ),
    (
        _LEDGER,
        "return False\n        if len(serving.ranges) >= SERVING_RANGES_MAX:",
        "return False\n        if False:",
    ),
    (_LEDGER, "self.store.waiting_bytes > WAITING_BYTES_MAX", "False"),
    ("plumtree_quic/catchup.py", "if place.acked.covers(at, at):", "if False:"),
    ("plumtree_quic/store/database.py", "if whose != APPLICATION_ID:", "if False:"),
    (
        "plumtree_quic/store/database.py",
        "flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW",
        "flags = os.O_RDWR | os.O_CREAT",
    ),
    (
        _GATE,
        "node_id if node_id is not None and member_key(node_id) == bundle.origin",
        "node_id if node_id is not None",
    ),
    (_FIFO, "key=lambda each: self._origins[each].load", "key=lambda each: 0"),
    (_GATE, "verdict = self._verifier.check_bundle(bundle, now)", "verdict = Verdict.GOOD"),
    (_GATE, "self._policy is None and type(message) not in _JUDGED", "True"),
    (
        _GATE,
        "self._policy is None and type(message) not in _JUDGED",
        "type(message) not in _JUDGED",
    ),
    (_GATE, "verdict = self._verifier.check_fact(fact, now)", "verdict = Verdict.GOOD"),
    (_GATE, "verdict = self._verifier.check_record(record, now)", "verdict = Verdict.GOOD"),
    (_GATE, "self._verifier.check_record(hello.record, now)", "Verdict.GOOD"),
    (_GATE, "if self._seen(bundle) and not self._differs(bundle):", "if self._seen(bundle):"),
    (_GATE, "yours.node_id != own or ", ""),
    (_GATE, "len(link.waiting) >= WAITING_MAX or", ""),
    (_GATE, "or link.waiting_bytes + size > WAITING_BYTES_MAX", ""),
    (_GATE, "if link.asked.pop(key_id_of(chain[0]), None) is None:", "if False:"),
    (_GATE, "or link.tokens < 1.0", ""),
    (_GATE, "if policy is not None and not policy.may_relay(peer):", "if False:"),
    (_GATE, "and not policy.may_join(record.node_id)", "and False"),
    (_GATE, "if len(self._facts) > FACTS_REMEMBERED_MAX:", "if False:"),
    (_GATE, "        self._facts.clear()", "        pass"),
    (_POLICY, " and not any(rule.concerns(node_id, action, topic) for rule in self.deny)", ""),
    (_POLICY, "if node_id in self.denied_identities:", "if False:"),
    (_POLICY, "_spki_sha256(certificate) in self.denied_keys", "False"),
    (_POLICY, "if not policy.may_join(own) or own in policy.denied_identities:", "if False:"),
    (_POLICY, "if len(self._answers) >= ANSWERS_MAX:", "if False:"),
    (_LISTS, "if certificate.serial_number in each.serials:", "if False:"),
    (_LISTS, "if each.issuer != issuer or", "if"),
    (_LISTS, "if not any(_is_signed_by(crl, each) for each in signers):", "if False:"),
    (_LISTS, "if each.next_update < now]", "if False]"),
    (_LISTS, "or not each.counts(ca):", "or False:"),
    (_LISTS, "_may_sign(ca) and _is_signed_by(self.crl, ca)", "_may_sign(ca)"),
    (_LISTS, "if is_closed and self.is_blind:", "if False:"),
    (_LISTS, "if is_closed and due is not None and due < now:", "if False:"),
    (_LISTS, "is_blind = is_blind or not good", "pass"),
    (_LISTS, "if each.issuer not in renewed]", "if False]"),
    (_LISTS, "good += newer", "pass"),
    (_LISTS, "if scope:", "if False:"),
    (_LISTS, "if not isinstance(algorithm, _HASHES):", "if False:"),
    (_LISTS, 'if not each.name.startswith(".") and each.is_file()', "if each.is_file()"),
    (_LISTS, "if left < 0:", "if False:"),
    (_LISTS, "if each.subject == issuer and _may_sign(each)]", "if each.subject == issuer]"),
    (_POLICY, "in self.denied_serials\n", "in ()\n"),
    (_POLICY, "(?>.*?", "(?:.*?"),
    (
        "plumtree_quic/node.py",
        "        self._stale_told = stale\n        self._running().judge_again()",
        "        self._stale_told = stale",
    ),
    ("plumtree_quic/security/credentials.py", "(not pems.has_same_keys_as(self._pems))", "1"),
    ("plumtree_quic/security/audit.py", "if len(told) >= PER_MINUTE:", "if False:"),
    ("plumtree_quic/security/audit.py", "ascii(str(value))[1:-1]", "str(value)"),
    ("plumtree_quic/security/credentials.py", "if other.node_id != old.node_id:", "if False:"),
    (_QUOTA, "if not bucket.take(now):", "if False:"),
    (_QUOTA, "if self._signatures.level <= 0:", "if False:"),
    (_QUOTA, "if self._announced.level <= 0:", "if False:"),
    (_QUOTA, "if carried.level <= 0:", "if False:"),
    (_QUOTA, "if now - self._since >= CUT_AFTER_S and not self._cut:", "if False:"),
    (_QUOTA, "if now - self._since >= DEMOTE_AFTER_S and not self._demoted:", "if False:"),
    (_QUOTA, "if account.strikes < STRIKES_MAX:", "if True:"),
    (_QUOTA, "return account is None or account.cut_until <= now", "return True"),
    (_QUOTA, "if since is not None and since + REMEMBERED_S <= now", "if since is not None"),
    (_QUOTA, "account.quota, account.strikes = PeerQuota(), 0", "pass"),
    (
        "plumtree_quic/net/link.py",
        "(self.engine.peer_not_after, self._own_not_after)",
        "(self.engine.peer_not_after,)",
    ),
    (
        _ENDPOINT,
        "if self._is_revoked is not None and self._is_revoked(self._path_of(link), peer):",
        "if False:",
    ),
    (_ENDPOINT, "elif self._admit is not None and not self._admit(peer):", "elif False:"),
    (_ENDPOINT, "if (hello.features ^ self._features) & Feature.UNSIGNED:", "if False:"),
    (_ENDPOINT, "            if refusal:", "            if False:"),
    (_ENDPOINT, "elif rotation.is_over(peer, now):", "elif False:"),
    (_ENDPOINT, "            link.close_if_expired(now)\n", ""),
    ("plumtree_quic/net/clock.py", "if abs(jumped_s) > JUMP_S", "if False"),
    (_DRIVER, 'if kind == "clock.jump":', "if False:"),
    (_ENDPOINT, "if link.generation != self._credentials().link_generation:", "if False:"),
    ("plumtree_quic/net/rotation.py", "cut_at = before.cut_at", "pass"),
    (_SWIM, "or not self._is_monitor(signer.node_id, row.node_id)", ""),
    (_SWIM, "if not self._is_monitor(self.table.own.node_id, row.node_id):", "if False:"),
    (_SWIM, "if fact.incarnation - row.incarnation > INCARNATION_STEP_MAX:", "if False:"),
    (_SWIM, "if fact.signer in row.accusations:", "if False:"),
    (_SWIM, "if row is None or self.table.is_ahead(fact.epoch):", "if row is None:"),
    (_SWIM, "if not proved and not self._may_rise(rise, now):", "if False:"),
    (_SWIM, "reason == BROKEN_BY_ITSELF and peer == record.node_id", "reason == BROKEN_BY_ITSELF"),
    (_SWIM, "if not link.may_ping(now):", "if False:"),
    (_SWIM, "if not link.may_fetch(now):", "if False:"),
    (_SWIM, "elif len(self._hints) < ASK_QUEUE_MAX and row.key", "elif row.key"),
    (_CORE, "return self._joiners() >= JOINERS_MAX", "return False"),
    (
        _CORE,
        "return len(self._links) - len(self._unwanted) >= self._overlay.links_max",
        "return False",
    ),
    (_CORE, "if self._overlay.wants(peer) or peer in self._links:", "if False:"),
    (_CORE, "if self._swim.awaits_records and now < until:", "if self._swim.awaits_records:"),
    (_CORE, "if self._held and link.dialled is not None:", "if link.dialled is not None:"),
    (_HEALTH, "if now - self._refuted_at >= self._interval_s:", "if True:"),
    (_HEALTH, "min(SCORE_MAX, self.score + points)", "self.score + points"),
    (_SEEDS, "and len(self._doors) < REFERRED_MAX", ""),
    (_SEEDS, "and len(self._referred) < REFERRED_MAX", ""),
    ("plumtree_quic/proto/overlay.py", "if min(apart, len(holders) - apart) <= reach:", "if True:"),
    ("plumtree_quic/proto/overlay.py", "if ring.zoned and not one_zone:", "if False:"),
    (
        "plumtree_quic/proto/plumtree.py",
        "if stream.claimed and self._is_claimed_alone(stream, first, last):",
        "if False:",
    ),
    ("plumtree_quic/proto/plumtree.py", "lags[max(0, len(lags) - 1 - spared)]", "lags[-1]"),
    ("plumtree_quic/proto/plumtree.py", "self._doubt(stream, link, first, last, effects)", "pass"),
    (
        "plumtree_quic/proto/plumtree.py",
        "if held is not None and not held.bundle.says_the_same(bundle):",
        "if False:",
    ),
    (
        _DRIVER,
        "if origin is not None and not self.policy.may_publish(origin, bundle.topics):",
        "if False:",
    ),
    (
        _DRIVER,
        "step = quota.charge(message, now) if quota is not None else Step.LOOK",
        "step = Step.LOOK",
    ),
    (
        _DRIVER,
        "return self.policy.denies(path, node_id) or revocation.is_revoked(",
        "return revocation.is_revoked(",
    ),
    (_DRIVER, "self._endpoint.judge_links(now)", "pass"),
    (_DRIVER, "        self.core.judge_again()\n        self._endpoint", "        self._endpoint"),
    (_DRIVER, "self._accounts.may_link(peer, self._loop.time())", "True"),
    (_DRIVER, "if code == CLOSE_PROTOCOL_ERROR and not by_peer:", "if False:"),
    (_DRIVER, "if self._accounts.strike(effect.peer, now):", "if False:"),
    ("plumtree_quic/node.py", "if not driver.policy.may_publish(self.id, (topic,)):", "if False:"),
    (
        "plumtree_quic/security/identity.py",
        '(ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth is missing"),',
        "",
    ),
    (
        "plumtree_quic/security/identity.py",
        '(ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth is missing"),',
        "",
    ),
    ("plumtree_quic/security/identity.py", ".max_chain_depth(CHAIN_DEPTH_MAX)", ""),
    (
        "plumtree_quic/net/tls.py",
        "_request_client_certificate = not context._is_client",
        "_request_client_certificate = False",
    ),
    ("plumtree_quic/net/tls.py", "context.peer_id = None", "context.peer_id = 'anybody'"),
    ("plumtree_quic/net/tls.py", "except Exception as error:", "except MemoryError as error:"),
    ("plumtree_quic/net/engine.py", "MutualTlsContext.install(self.tls, self._policy)", "pass"),
    ("plumtree_quic/net/engine.py", "self._remote_preferred_address = None", "pass"),
    ("plumtree_quic/net/engine.py", "<= RETRY_TOKEN_BYTES_MAX", "<= 10_000"),
    (
        "plumtree_quic/net/engine.py",
        "reason_phrase=_plain(reason_phrase)",
        "reason_phrase=reason_phrase",
    ),
    (
        "plumtree_quic/net/engine.py",
        "reason_phrase = _plain(self._close_event.reason_phrase)",
        "reason_phrase = self._close_event.reason_phrase",
    ),
    (
        "plumtree_quic/net/engine.py",
        "taken = stream.receiver.starting_offset()",
        "taken = stream.receiver.highest_offset",
    ),
    (
        "plumtree_quic/net/engine.py",
        "consumed += taken",
        "consumed += stream.receiver.highest_offset",
    ),
    (
        "plumtree_quic/net/engine.py",
        "_local_max_streams_bidi.sent = 0",
        "_local_max_streams_bidi.sent = 9",
    ),
    ("plumtree_quic/net/engine.py", "= settings.streams_max", "= 9999"),
    ("plumtree_quic/net/engine.py", "silence(self)", "pass"),
    ("plumtree_quic/net/retry.py", "bound_to = _bound_to(address, retry_cid)", "bound_to = b''"),
    ("plumtree_quic/net/retry.py", "if now - self._turned_at >= KEY_LIFE_S:", "if False:"),
    ("plumtree_quic/net/budget.py", "and self._socket.take(now)", ""),
    ("plumtree_quic/net/budget.py", "return bucket.take(now) and", "return"),
    ("plumtree_quic/net/budget.py", "if len(self._addresses) > ADDRESSES_MAX:", "if False:"),
    ("plumtree_quic/net/engine.py", ">= KEY_UPDATE_S", ">= 1e9"),
    ("plumtree_quic/net/engine.py", ">= KEY_UPDATE_PACKETS", ">= 1 << 60"),
    ("plumtree_quic/net/engine.py", "queue.sort(key=_stream_id)", "pass"),
    ("plumtree_quic/net/engine.py", "if self._ack_only >= ACK_ONLY_PACKETS_PER_PING:", "if False:"),
    ("plumtree_quic/security/identity.py", "and key.public_numbers().e <= RSA_EXPONENT_MAX", ""),
    ("plumtree_quic/security/signatures.py", "kind.value, bytes((0", "bytes((0"),
    ("plumtree_quic/security/signatures.py", "bytes((0, len(domain))), domain,", ""),
    ("plumtree_quic/security/signatures.py", ", bytes((len(name),)), name", ", name"),
    ("plumtree_quic/security/signatures.py", "bytes((len(name),)), name))", "))"),
    ("plumtree_quic/security/signatures.py", "salt_length=32", "salt_length=padding.PSS.AUTO"),
    (
        "plumtree_quic/security/keyring.py",
        "parse_identity(leaf, self._credentials.trust_domain)",
        "parse_identity(leaf, None)",
    ),
    ("plumtree_quic/security/keyring.py", "key.spans.clear()", "pass"),
    ("plumtree_quic/security/keyring.py", "span.revoked = None", "pass"),
    (
        "plumtree_quic/security/keyring.py",
        "span.path or key.certificates[:1]",
        "key.certificates",
    ),
    ("plumtree_quic/security/keyring.py", "and self._revoked(key, span)):", "and True):"),
    (
        "plumtree_quic/security/keyring.py",
        "and (each in path or _is_issued_by(each, vouching))",
        "",
    ),
    ("plumtree_quic/security/keyring.py", "if each.subject != each.issuer and", "if"),
    ("plumtree_quic/security/keyring.py", "cert.verify_directly_issued_by(issuer)", "pass"),
    ("plumtree_quic/security/keyring.py", "if len(siblings) >= KEYS_PER_MEMBER_MAX:", "if False:"),
    ("plumtree_quic/security/keyring.py", "if len(self._keys) > KEYS_MAX:", "if False:"),
    ("plumtree_quic/security/keyring.py", "own.used_at = _UNTIL_NOW", "pass"),
    (
        "plumtree_quic/security/keyring.py",
        "self._touch(key, now)\n        return Verdict",
        "return Verdict",
    ),
    ("plumtree_quic/security/keyring.py", "and key.key_id not in kept:", ":"),
    ("plumtree_quic/security/keyring.py", "and key.key_id not in self._kept:", ":"),
)

# What may survive, and why. Matched against the text of the mutation.
EQUIVALENT = {
    "_look_long: source_end > size [or]": "what is read after it is beyond the end, and drops",
    "_look_long: here + token_bytes > size [or]": "as is the length that follows the token",
    "len(space.ack_queue) > ACK_RANGES_MAX [or]": "aioquic 1.7.2 keeps at most 64 ranges",
    "self._overlay.links_max": "_make_room, asked after each link, turns the same one away",
    "handshake was tampered with": "aioquic compares Finished, too, though not in constant time",
}


def mutations(base, path):
    """(what, source) for each check of one file: its description and the file without it."""
    source = (base / path).read_text()
    for file, old, new in ALSO:
        if file == path:
            assert source.count(old) == 1, f"{path} holds {source.count(old)} times: {old}"
            line = source[: source.index(old)].count("\n") + 1
            yield f"{line} {old}", source.replace(old, new)
    if path not in TARGETS:
        return
    tree = ast.parse(source)
    for number, (what, _) in enumerate(_edits(tree)):
        changed = copy.deepcopy(tree)
        edits = list(_edits(changed))
        assert edits[number][0] == what
        edits[number][1]()
        yield what, ast.unparse(ast.fix_missing_locations(changed))


def _edits(tree):
    """(description, function that edits the tree in place), in source order."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            yield from _edits_of(function, function.body)


def _edits_of(function, body):
    for index, statement in enumerate(body):
        if isinstance(statement, ast.FunctionDef):
            continue
        if _refuses(function, statement):
            yield _describe(function, statement), _dropper(body, index)
        if isinstance(statement, ast.If) and _leads_to_refusal(function, statement):
            test = statement.test
            if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
                for number, operand in enumerate(test.values):
                    what = f"{_describe(function, operand)} [or]"
                    yield what, _operand_dropper(test, number)
        if isinstance(statement, ast.Match):
            for case in statement.cases:
                if case.guard is not None:
                    what = f"{_describe(function, case.guard)} [case]"
                    yield what, _guard_dropper(case)
                yield from _edits_of(function, case.body)
        for name in ("body", "orelse", "finalbody"):
            yield from _edits_of(function, getattr(statement, name, []))
        for handler in getattr(statement, "handlers", []):
            yield from _edits_of(function, handler.body)


def _refuses(function, statement):
    match statement:
        case ast.Raise(exc=ast.Call(func=ast.Name(id=name))):
            return name in REFUSALS
        case ast.Expr(value=ast.Call(func=ast.Name(id=name))):
            return name.startswith("check_")
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name))):
            return (
                name == "verify"
                or name.startswith("_check_")
                or (name == "close" and function.name.startswith("_check_"))
            )
        case ast.Return(value=ast.Name(id="_DROP")):
            return True
        case ast.Return(value=ast.Attribute(value=ast.Name(id="Verdict"), attr=verdict)):
            return verdict != "GOOD"
        case ast.Return(value=ast.Constant(value=None | False)):
            return function.name in RETURNING and statement is not function.body[-1]
    return False


def _leads_to_refusal(function, statement):
    return any(_refuses(function, each) for each in statement.body)


def _describe(function, node):
    text = re.sub(r"\s+", " ", ast.unparse(node))
    return f"{node.lineno} {function.name}: {text}"


def _dropper(body, index):
    def edit():
        body[index] = ast.Pass()

    return edit


def _operand_dropper(test, number):
    def edit():
        del test.values[number]

    return edit


def _guard_dropper(case):
    def edit():
        case.guard = None

    return edit


def snapshot(source, target):
    """Copy what a test run needs."""
    for part in ("plumtree_quic", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source / part, target / part, ignore=ignored)
    shutil.copy(source / "pyproject.toml", target)


def run(base, path, source, tests):
    """Run the tests on a copy with that source. Returns (caught by, or None; output's end)."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        copied = Path(name)
        snapshot(base, copied)
        if source is not None:
            (copied / path).write_text(source)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, "-o", f"timeout={TEST_SECONDS_MAX}", *tests],
            cwd=copied,
            env=os.environ | {"PYTHONPATH": str(copied), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0:
        return None, done.stdout[-300:]
    return (found[1].rpartition("/")[2] if found else "?"), done.stdout[-300:]


def main():
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="name the checks and run nothing")
    parser.add_argument("text", nargs="?", default="", help="only checks that contain it")
    options = parser.parse_args()
    # The checkout may change while this runs; what is tested may not.
    with tempfile.TemporaryDirectory(prefix="mutate-base-") as name:
        snapshot(ROOT, Path(name))
        return work_on(Path(name), options)


def work_on(base, options):
    """Mutate the snapshot and tell what was noticed. Returns the exit code."""
    work = [
        (path, what, source, tests)
        for path, tests in (TARGETS | WIRED).items()
        for what, source in mutations(base, path)
        if options.text in f"{path}:{what}"
    ]
    if options.list:
        for path, what, _, _ in work:
            print(f"{path}:{what}")
        return 0
    every = sorted({test for _, _, _, tests in work for test in tests})
    caught, tail = run(base, None, None, every)
    if caught is not None:
        print(f"error: the tests fail without any mutation ({caught}):\n{tail}", file=sys.stderr)
        return 1
    survived = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(run, base, path, source, tests) for path, _, source, tests in work]
        for (path, what, _, _), each in zip(work, runs, strict=True):
            caught, tail = each.result()
            reason = next((why for text, why in EQUIVALENT.items() if text in what), None)
            broken = caught == "?"
            if broken or (caught is None and reason is None):
                survived += 1
            verdict = caught or (f"(equivalent: {reason})" if reason else "SURVIVED")
            print(f"{path.rpartition('/')[2]}:{what[:90]:<92} {verdict}", flush=True)
            if broken:
                print(tail)
    print(f"{len(work)} checks removed in turn, {survived} not noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
