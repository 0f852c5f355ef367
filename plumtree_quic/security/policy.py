"""Policy: which identities may join, relay and publish to which topics, and which are denied.

Pure: rules in, answers out; files are read by whoever hands their text in. There is no rule for
reading: every member relays, and so can read, every topic.

A policy file is TOML::

    [[allow]]
    identities = ["/node/*", "/ns/prod/**"]     # over the path of the NodeId
    may = ["join", "relay", "publish"]

    [[allow]]
    identities = ["/ns/prod/sa/billing"]
    may = ["publish"]
    topics = ["invoices", "audit.*"]            # of publish alone; without it, every topic

    [[deny]]
    identities = ["/node/old-*"]
    may = ["join"]

    [deny_certificates]
    sha256 = ["..."]          # of the certificate, in hex
    spki_sha256 = ["..."]     # of its public key: whatever certificate it is in
    identities = ["spiffe://prod/node/stolen"]

    [[deny_certificates.serials]]
    issuer = "CN=prod CA"     # RFC 4514, as `plumtree-quic certs inspect` shows it
    serials = ["1f:04:2b"]    # in hex

Whatever no rule allows is refused, and a deny wins over every allow. In patterns ``*`` stands for
any characters of one segment, or none, ``**`` for one segment or more; segments are separated by
``/`` in identities and by ``.`` in topics.
"""

import difflib
import hashlib
import re
import tomllib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from plumtree_quic.errors import ConfigError
from plumtree_quic.ids import NodeId

__all__ = ["ACTIONS", "Policy", "Rule"]

ACTIONS = ("join", "relay", "publish")
RULES_MAX = 256
PATTERNS_MAX = 1_024
POLICY_BYTES_MAX = 1 << 20
# What was answered lately is remembered: a bundle costs a lookup. Identities are members' only.
ANSWERS_MAX = 65_536

_HEX_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
# At most 20 bytes (RFC 5280, section 4.1.2.2).
_HEX_SERIAL = re.compile(r"[0-9a-f]{1,40}\Z")


@attrs.frozen
class Rule:
    """One allow or deny. topics: of "publish" alone; None for all of them."""

    identities: tuple[str, ...]
    may: frozenset[str]
    topics: tuple[str, ...] | None = None

    def concerns(self, node_id: NodeId, action: str, topic: str | None) -> bool:
        """Whether this rule speaks of `node_id` doing `action`, for "publish" to `topic`."""
        if action not in self.may or not _any(self.identities, node_id.path, "/"):
            return False
        return topic is None or self.topics is None or _any(self.topics, topic, ".")


@attrs.frozen
class Policy:
    """The rules of one node. Immutable; a changed file makes a new one."""

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    denied_certificates: frozenset[bytes] = frozenset()
    denied_keys: frozenset[bytes] = frozenset()
    denied_identities: frozenset[str] = frozenset()
    denied_serials: frozenset[tuple[str, int]] = frozenset()
    name: str = "the default policy"
    _answers: dict[tuple[NodeId, str, str | None], bool] = attrs.field(
        factory=dict, eq=False, repr=False
    )

    @classmethod
    def default(cls, own: NodeId) -> "Policy":
        """Identities like our own, up to the last segment of the path, may do everything."""
        folder = own.path.rpartition("/")[0]
        return cls(allow=(Rule((f"{folder}/*",), frozenset(ACTIONS)),))

    @classmethod
    def from_toml(cls, text: str, name: str, own: NodeId) -> "Policy":
        """Parse a policy file, which errors call `name`.

        Raises:
            ConfigError: it is not TOML, holds something unknown, or refuses `own` itself.
        """
        try:
            given = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            # ValueError also of numbers with thousands of digits, RecursionError of lists in lists.
            raise ConfigError(f"{name} is not valid TOML: {error}") from None
        _check_keys(given, ("allow", "deny", "deny_certificates"), name)
        certificates = given.get("deny_certificates", {})
        if not isinstance(certificates, dict):
            raise ConfigError(
                f"{name}: deny_certificates is not a table; write [deny_certificates]"
            )
        _check_keys(
            certificates,
            ("sha256", "spki_sha256", "identities", "serials"),
            f"{name}: deny_certificates",
        )
        policy = cls(
            allow=_rules(given.get("allow", []), f"{name}: allow"),
            deny=_rules(given.get("deny", []), f"{name}: deny"),
            denied_certificates=_digests(certificates.get("sha256", []), f"{name}: sha256"),
            denied_keys=_digests(certificates.get("spki_sha256", []), f"{name}: spki_sha256"),
            denied_identities=_identities(certificates.get("identities", []), name),
            denied_serials=_serials(
                certificates.get("serials", []), f"{name}: deny_certificates.serials"
            ),
            name=name,
        )
        if not policy.may_join(own) or own in policy.denied_identities:
            raise ConfigError(
                f"{name} does not let this node itself join ({own}); add it to a rule, for "
                f'example: [[allow]] identities = ["{own.path}"] may = ["join"]'
            )
        return policy

    def may_join(self, node_id: NodeId) -> bool:
        """Whether links with `node_id` are made."""
        return self._may(node_id, "join", None)

    def may_relay(self, node_id: NodeId) -> bool:
        """Whether `node_id` may pass on what others have said."""
        return self._may(node_id, "relay", None)

    def may_publish(self, node_id: NodeId, topics: Sequence[str]) -> bool:
        """Whether `node_id` may broadcast under every one of `topics`."""
        return all(self._may(node_id, "publish", topic) for topic in topics)

    def denies(self, path: Sequence[x509.Certificate], node_id: NodeId) -> bool:
        """Whether a certificate, its key, one of its issuers, or its identity is denied."""
        if node_id in self.denied_identities:
            return True
        if not (self.denied_certificates or self.denied_keys or self.denied_serials):
            return False
        return any(
            certificate.fingerprint(hashes.SHA256()) in self.denied_certificates
            or _spki_sha256(certificate) in self.denied_keys
            or (certificate.issuer.rfc4514_string(), certificate.serial_number)
            in self.denied_serials
            for certificate in path
        )

    def _may(self, node_id: NodeId, action: str, topic: str | None) -> bool:
        question = (node_id, action, topic)
        answer = self._answers.get(question)
        if answer is None:
            if len(self._answers) >= ANSWERS_MAX:
                self._answers.clear()
            answer = self._answers[question] = any(
                rule.concerns(node_id, action, topic) for rule in self.allow
            ) and not any(rule.concerns(node_id, action, topic) for rule in self.deny)
        return answer


# --- patterns -----------------------------------------------------------------------------------


@lru_cache(maxsize=4_096)
def _compiled(segment: str) -> re.Pattern[str]:
    # Each part is taken where it comes first, for good: a topic that a member chose can make no
    # pattern try every way there is.
    first, *others = segment.split("*")
    if not others:
        return re.compile(re.escape(first), re.DOTALL)
    middle = "".join(f"(?>.*?{re.escape(part)})" for part in others[:-1])
    return re.compile(f"{re.escape(first)}{middle}.*{re.escape(others[-1])}", re.DOTALL)


def _matches(pattern: Sequence[str], text: Sequence[str]) -> bool:
    """Segment by segment. Only the last ** is ever tried again: the time is bounded by product."""
    at = here = 0
    again: tuple[int, int] | None = None
    while here < len(text):
        if at < len(pattern) and pattern[at] == "**":
            at, here = at + 1, here + 1
            again = (at, here)
        elif at < len(pattern) and _compiled(pattern[at]).fullmatch(text[here]):
            at, here = at + 1, here + 1
        elif again is not None:
            again = (again[0], again[1] + 1)
            at, here = again
        else:
            return False
    return at == len(pattern)


def _any(patterns: Sequence[str], text: str, separator: str) -> bool:
    segments = text.split(separator)
    return any(_matches(pattern.split(separator), segments) for pattern in patterns)


def _spki_sha256(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).digest()


# --- what stands in the file --------------------------------------------------------------------


def _check_keys(given: dict[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; allowed: {', '.join(allowed)}"
            raise ConfigError(f"{where} has no setting {key!r}{hint}")


def _texts(value: object, where: str) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or not all(isinstance(each, str) for each in value)
        or len(value) > PATTERNS_MAX
    ):
        raise ConfigError(f"{where} is not a list of at most {PATTERNS_MAX} texts")
    return tuple(value)


def _rules(value: object, where: str) -> tuple[Rule, ...]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ConfigError(
            f"{where} is not a list of rules; write [[{where.rsplit(maxsplit=1)[-1]}]]"
        )
    if len(value) > RULES_MAX:
        raise ConfigError(f"{where} has {len(value)} rules, the most is {RULES_MAX}")
    return tuple(_rule(each, f"{where}[{number}]") for number, each in enumerate(value))


def _rule(given: dict[str, Any], where: str) -> Rule:
    _check_keys(given, ("identities", "may", "topics"), where)
    for key in ("identities", "may"):
        if not given.get(key):
            raise ConfigError(f"{where} has no {key}")
    identities = _texts(given["identities"], f"{where}.identities")
    for pattern in identities:
        if not pattern.startswith("/"):
            raise ConfigError(
                f"{where}.identities: {pattern!r} is no path; it begins with '/', like '/node/*'"
            )
    may = _texts(given["may"], f"{where}.may")
    for action in may:
        if action not in ACTIONS:
            raise ConfigError(f"{where}.may: {action!r} is none of {', '.join(ACTIONS)}")
    topics = None
    if "topics" in given:
        if "publish" not in may:
            raise ConfigError(f"{where}.topics is of use beside 'publish' alone")
        topics = _texts(given["topics"], f"{where}.topics")
    return Rule(identities, frozenset(may), topics)


def _digests(value: object, where: str) -> frozenset[bytes]:
    out = []
    for text in _texts(value, where):
        digest = text.replace(":", "").lower()
        if not _HEX_SHA256.match(digest):
            raise ConfigError(f"{where}: {text!r} is not the SHA-256 of something, 64 hex digits")
        out.append(bytes.fromhex(digest))
    return frozenset(out)


def _serials(value: object, where: str) -> frozenset[tuple[str, int]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ConfigError(f"{where} is not a list of tables; write [[deny_certificates.serials]]")
    out: set[tuple[str, int]] = set()
    for number, given in enumerate(value):
        here = f"{where}[{number}]"
        _check_keys(given, ("issuer", "serials"), here)
        issuer = given.get("issuer")
        try:
            if not isinstance(issuer, str):
                raise ValueError
            name = x509.Name.from_rfc4514_string(issuer).rfc4514_string()
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError(
                f"{here}.issuer: {issuer!r} is not the name of a CA, like 'CN=prod CA'"
            ) from None
        for text in _texts(given.get("serials", []), f"{here}.serials"):
            digits = text.replace(":", "").lower()
            if not _HEX_SERIAL.match(digits):
                raise ConfigError(f"{here}.serials: {text!r} is no serial number in hex")
            out.add((name, int(digits, 16)))
    return frozenset(out)


def _identities(value: object, name: str) -> frozenset[str]:
    try:
        return frozenset(str(NodeId.parse(text)) for text in _texts(value, f"{name}: identities"))
    except ConfigError as error:
        raise ConfigError(f"{name}: deny_certificates.identities: {error}")
