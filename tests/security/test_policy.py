"""Who may join, relay and publish: patterns, denies, files that are wrong."""

import random
import re

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from plumtree_quic.errors import ConfigError
from plumtree_quic.ids import NodeId
from plumtree_quic.security import policy as policy_module
from plumtree_quic.security.policy import ACTIONS, Policy, Rule
from tests.rigs.pki import Pki

ME = NodeId.parse("spiffe://prod/node/me")
OWN = '[[allow]]\nidentities = ["/node/me"]\nmay = ["join", "relay", "publish"]\n'


def node(path):
    return NodeId.parse(f"spiffe://prod{path}")


def policy(text):
    return Policy.from_toml(OWN + text, "policy.toml", ME)


def refused(text, own=OWN):
    with pytest.raises(ConfigError) as caught:
        Policy.from_toml(own + text, "policy.toml", ME)
    assert "policy.toml" in str(caught.value)
    return str(caught.value)


def test_by_default_identities_like_ours_but_for_the_last_segment_may_do_everything():
    default = Policy.default(ME)
    for path, allowed in (
        ("/node/me", True), ("/node/b", True), ("/node/b/c", False), ("/ns/b", False),
        ("/nodes/b", False), ("/node", False),
    ):  # fmt: skip
        assert default.may_join(node(path)) is allowed
        assert default.may_relay(node(path)) is allowed
        assert default.may_publish(node(path), ["", "orders"]) is allowed


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("/node/*", ["/node/a", "/node/a-1"], ["/node/a/b", "/other/a"]),
        ("/node/web-*", ["/node/web-1"], ["/node/db-1", "/node/web/1"]),
        ("/ns/*/sa/*", ["/ns/p/sa/x"], ["/ns/p/q/sa/x", "/ns/p/sa"]),
        ("/ns/**", ["/ns/a", "/ns/a/b/c"], ["/n/a"]),
        ("/**/billing", ["/a/billing", "/a/b/billing"], ["/a/billing2"]),
        ("/node/a.b", ["/node/a.b"], ["/node/axb"]),
    ],
)
def test_a_star_is_within_one_segment_and_two_are_any_number(pattern, matches, others):
    made = policy(f'[[allow]]\nidentities = ["{pattern}"]\nmay = ["join"]\n')
    assert [path for path in matches if not made.may_join(node(path))] == []
    assert [path for path in others if made.may_join(node(path))] == []


def test_what_no_rule_allows_is_refused():
    made = policy('[[allow]]\nidentities = ["/node/a"]\nmay = ["join"]\n')
    assert made.may_join(node("/node/a"))
    assert not made.may_relay(node("/node/a"))
    assert not made.may_publish(node("/node/a"), [""])
    assert not made.may_join(node("/node/b"))


@pytest.mark.parametrize("action", ACTIONS)
def test_deny_wins_over_every_allow(action):
    made = policy(
        '[[allow]]\nidentities = ["/node/*"]\nmay = ["join", "relay", "publish"]\n'
        f'[[deny]]\nidentities = ["/node/bad-*"]\nmay = ["{action}"]\n'
    )
    answers = {
        "join": made.may_join(node("/node/bad-1")),
        "relay": made.may_relay(node("/node/bad-1")),
        "publish": made.may_publish(node("/node/bad-1"), ["x"]),
    }
    assert [name for name, allowed in answers.items() if not allowed] == [action]
    assert made.may_join(node("/node/good"))


def test_a_bundle_is_refused_whole_when_one_of_its_topics_is():
    made = policy(
        '[[allow]]\nidentities = ["/node/*"]\nmay = ["join", "publish"]\n'
        'topics = ["orders", "metrics.*"]\n'
    )
    a = node("/node/a")
    for topics, allowed in (
        (["orders"], True), (["metrics.cpu"], True), (["orders", "metrics.cpu"], True),
        (["metrics.cpu.user"], False), ([""], False), (["orders", "secrets"], False),
    ):  # fmt: skip
        assert made.may_publish(a, topics) is allowed
    # Topics are of publish alone.
    assert made.may_join(a)


def test_a_topic_can_be_denied_to_who_may_publish_everything_else():
    made = policy(
        '[[allow]]\nidentities = ["/node/*"]\nmay = ["publish"]\n'
        '[[deny]]\nidentities = ["/**"]\nmay = ["publish"]\ntopics = ["audit.**"]\n'
    )
    assert made.may_publish(node("/node/a"), ["orders"])
    assert not made.may_publish(node("/node/a"), ["audit.x.y"])


def test_certificates_keys_and_identities_can_be_denied():
    pki = Pki("prod")
    cert, other = pki.node("a").cert, pki.node("b").cert
    spki = cert.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    for line in (
        f'sha256 = ["{cert.fingerprint(hashes.SHA256()).hex()}"]',
        f'sha256 = ["{cert.fingerprint(hashes.SHA256()).hex(":").upper()}"]',
        f'spki_sha256 = ["{digest.copy().finalize().hex()}"]',
        'identities = ["spiffe://prod/node/a"]',
    ):
        made = policy(f"[deny_certificates]\n{line}\n")
        assert made.denies([cert], node("/node/a"))
        assert not made.denies([other], node("/node/b"))


def test_a_serial_is_denied_of_its_issuer_alone():
    pki, other = Pki("prod"), Pki("prod", common_name="another CA")
    made = policy(
        f'[[deny_certificates.serials]]\nissuer = "{pki.ca.cert.subject.rfc4514_string()}"\n'
        'serials = ["12:67", "FF"]\n'
    )
    assert made.denies([pki.node("a", serial=0x1267).cert], node("/node/a"))
    assert made.denies([pki.node("a", serial=255).cert], node("/node/a"))
    assert not made.denies([pki.node("a", serial=256).cert], node("/node/a"))
    assert not made.denies([other.node("a", serial=0x1267).cert], node("/node/a"))


def test_a_denied_issuer_takes_all_below_it():
    pki = Pki("prod")
    made = policy(
        f'[deny_certificates]\nsha256 = ["{pki.ca.cert.fingerprint(hashes.SHA256()).hex()}"]\n'
    )
    assert made.denies([pki.node("a").cert, pki.ca.cert], node("/node/a"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[alow]]\n", "did you mean allow"),
        ('[[allow]]\nidentity = ["/a"]\nmay = ["join"]', "did you mean identities"),
        ('[[allow]]\nidentities = ["/a"]\nmay = ["jion"]', "'jion' is none of join"),
        ('[[allow]]\nidentities = ["/a"]', "has no may"),
        ('[[allow]]\nmay = ["join"]', "has no identities"),
        ('[[allow]]\nidentities = ["node/a"]\nmay = ["join"]', "begins with '/'"),
        ('[[allow]]\nidentities = "/a"\nmay = ["join"]', "not a list"),
        ('[[allow]]\nidentities = ["/a"]\nmay = ["join"]\ntopics = ["x"]', "beside 'publish'"),
        ('[deny_certificates]\nsha256 = ["12"]', "64 hex digits"),
        ('[deny_certificates]\nidentities = ["x"]', "spiffe://"),
        ('[deny_certificates]\nserial = ["x"]', "did you mean serials"),
        ('[deny_certificates]\nserials = ["12"]', "[[deny_certificates.serials]]"),
        ('[[deny_certificates.serials]]\nissuer = "x"\nserials = ["1"]', "the name of a CA"),
        ('[[deny_certificates.serials]]\nserials = ["1"]', "the name of a CA"),
        ('[[deny_certificates.serials]]\nissuer = "CN=x"\nserials = ["g"]', "serial number in hex"),
        ('[[deny_certificates.serials]]\nissuer = "CN=x"\nserial = ["1"]', "did you mean serials"),
        ("deny = 3", "list of rules"),
        ("[allow", "not valid TOML"),
    ],
)
def test_a_file_that_is_wrong_names_the_thing_and_the_fix(text, named):
    # A rule for ourselves first, where the rest does not begin the file anew.
    own = OWN if text.startswith("[[") or text.startswith("[deny") else ""
    assert named in refused(text, own)


def test_a_policy_that_refuses_the_node_itself_says_so():
    message = refused('[[allow]]\nidentities = ["/node/b"]\nmay = ["join"]\n', own="")
    assert "does not let this node itself join" in message
    assert '"/node/me"' in message
    assert "itself" in refused('[deny_certificates]\nidentities = ["spiffe://prod/node/me"]\n')


def test_what_the_parser_cannot_bear_is_an_error_of_the_file():
    assert "not valid TOML" in refused("x = " + "[" * 50_000 + "]" * 50_000)
    assert "not valid TOML" in refused("x = " + "9" * 5_000)


@pytest.mark.parametrize(
    ("pattern", "topic"),
    [
        ("m" + "-*" * 30 + "x", "m" + "-" * 250),
        ("*a" * 30 + "b", "a" * 255),
        ("**.a." * 30 + "x", "a." * 120 + "a"),
    ],
)
def test_no_topic_that_a_member_chooses_makes_a_pattern_try_every_way_there_is(pattern, topic):
    # By trying again at every star this takes longer than the sun has.
    made = policy(
        '[[allow]]\nidentities = ["/node/*"]\nmay = ["publish"]\n'
        f'[[deny]]\nidentities = ["/node/*"]\nmay = ["publish"]\ntopics = ["{pattern}"]\n'
    )
    assert made.may_publish(node("/node/a"), [topic])


def test_patterns_match_what_the_plain_regular_expression_matches():
    rng = random.Random(7)

    def segment(letters):
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, 4)))

    def plain(pattern, text):
        parts = [
            ".+" if each == "**" else "[^.]*".join(map(re.escape, each.split("*")))
            for each in pattern.split(".")
        ]
        return re.fullmatch(r"\.".join(parts), text, re.DOTALL) is not None

    matched = 0
    for _ in range(5_000):
        pattern = ".".join(
            rng.choice(["**", segment("ab*"), segment("ab*")]) for _ in range(rng.randint(1, 4))
        )
        text = ".".join(segment("ab") for _ in range(rng.randint(1, 5)))
        rule = Rule(("/**",), frozenset({"publish"}), (pattern,))
        assert rule.concerns(ME, "publish", text) is plain(pattern, text), (pattern, text)
        matched += plain(pattern, text)
    assert matched > 500


def test_answers_are_remembered_within_bounds(monkeypatch):
    monkeypatch.setattr(policy_module, "ANSWERS_MAX", 10)
    made = policy('[[allow]]\nidentities = ["/node/*"]\nmay = ["publish"]\n')
    for number in range(100):
        assert made.may_publish(node(f"/node/{number}"), ["x"])
        assert len(made._answers) <= 10
