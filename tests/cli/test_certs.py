"""`plumtree-quic certs` as people call it: what it writes, says and returns."""

import datetime
import importlib.util
import os
import re
import stat
import subprocess
import sys

import pytest
from cryptography import x509

from plumtree_quic import NodeId, Policy, QuicConfig
from plumtree_quic.cli.main import COMMANDS, run
from tests.rigs.pki import Pki, utc


@pytest.fixture
def out(tmp_path):
    return tmp_path / "made"


def names(directory):
    return sorted(each.name for each in directory.iterdir())


def one_line(text):
    """The one line that an error is."""
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


def test_one_command_makes_a_ca_and_certificates(out, capsys):
    assert run(["certs", "--out", str(out), "a", "b"]) == 0
    assert names(out) == ["a.crt", "a.key", "b.crt", "b.key", "ca.crt", "ca.key"]
    for name in ("a", "b", "ca"):
        assert stat.S_IMODE((out / f"{name}.key").stat().st_mode) == 0o600
    assert "spiffe://dev/node/a" in capsys.readouterr().out
    quic = QuicConfig(out / "b.crt", out / "b.key", out / "ca.crt")
    assert quic.node_id == "spiffe://dev/node/b"


def test_the_default_directory_is_certs_dev(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["certs", "a"]) == 0
    assert names(tmp_path / "certs" / "dev") == ["a.crt", "a.key", "ca.crt", "ca.key"]


def test_a_second_run_uses_the_same_ca(out):
    assert run(["certs", "--out", str(out), "--trust-domain", "shop", "a"]) == 0
    ca = (out / "ca.crt").read_bytes()
    assert run(["certs", "--out", str(out), "b"]) == 0
    assert (out / "ca.crt").read_bytes() == ca
    quic = QuicConfig(out / "b.crt", out / "b.key", out / "ca.crt")
    assert quic.node_id == "spiffe://shop/node/b"


@pytest.mark.parametrize("key_type", ["p256", "p384", "ed25519", "rsa"])
def test_every_key_type(out, key_type, capsys):
    assert run(["certs", "--out", str(out), "--key-type", key_type, "--days", "2", "a"]) == 0
    assert run(["certs", "inspect", str(out / "a.crt")]) == 0
    shown = {"p256": "P-256", "p384": "P-384", "ed25519": "Ed25519", "rsa": "RSA 3072"}
    assert shown[key_type] in capsys.readouterr().out


def test_existing_files_are_kept_without_force(out, capsys):
    assert run(["certs", "--out", str(out), "a"]) == 0
    before = (out / "a.key").read_bytes()
    assert run(["certs", "--out", str(out), "b", "a"]) == 1
    assert "a.crt exists; --force" in one_line(capsys.readouterr().err)
    assert (out / "a.key").read_bytes() == before
    assert "b.crt" not in names(out)
    assert run(["certs", "--out", str(out), "--force", "a"]) == 0
    assert (out / "a.key").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bad-flag", "a"], "--bad-flag"),
        (["--days", "0", "a"], "--days"),
        (["--days", "many", "a"], "--days"),
        (["--key-type", "dsa", "a"], "dsa"),
        (["A"], "'A'"),
        (["../a"], "'../a'"),
        (["ca"], "'ca'"),
        (["a", "a"], "'a' is given twice"),
        (["a", "inspect"], "'inspect'"),
        (["--trust-domain", "No Good", "a"], "trust domain"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_is_one_line_and_exit_code_2(out, capsys, arguments, named):
    assert run(["certs", "--out", str(out), *arguments]) == 2
    assert named in one_line(capsys.readouterr().err)
    assert not out.exists()


def test_without_a_name_it_says_how_to_call_it(capsys):
    assert run(["certs"]) == 2
    assert "NAME" in capsys.readouterr().err


def test_inspect_says_who_it_is_and_that_a_node_would_accept_it(out, capsys):
    run(["certs", "--out", str(out), "a"])
    capsys.readouterr()
    assert run(["certs", "inspect", str(out / "a.crt"), str(out / "ca.crt")]) == 0
    text = capsys.readouterr().out
    assert "identity    spiffe://dev/node/a" in text
    assert "serverAuth, clientAuth, digitalSignature" in text
    assert "days left" in text
    assert "accepted by every node" in text
    assert "this is a CA's certificate" in text


# --- revoke -------------------------------------------------------------------------------------


def revoked(out, name):
    credentials = QuicConfig(
        out / f"{name}.crt", out / f"{name}.key", out / "ca.crt", crl_path=out / "ca.crl"
    ).credentials
    assert credentials.revocation.problems == ()
    return credentials.revocation.is_revoked(
        [credentials.leaf, *credentials.anchors], datetime.datetime.now(datetime.UTC)
    )


def test_revoke_puts_certificates_on_the_list_that_nodes_read_and_takes_none_off(out, capsys):
    assert run(["certs", "--out", str(out), "a", "b", "c"]) == 0
    assert run(["certs", "revoke", "--out", str(out), "a"]) == 0
    assert f"{out / 'ca.crl'}: revoked a\n" in capsys.readouterr().out
    assert [revoked(out, name) for name in "abc"] == [True, False, False]
    assert run(["certs", "revoke", "--out", str(out), "b", "a"]) == 0
    assert [revoked(out, name) for name in "abc"] == [True, True, False]
    assert names(out) == sorted(
        ["ca.crl", "ca.crt", "ca.key"]
        + [f"{name}.{kind}" for name in "abc" for kind in ("crt", "key")]
    )


def test_a_new_certificate_of_a_revoked_name_is_good(out):
    run(["certs", "--out", str(out), "a"])
    run(["certs", "revoke", "--out", str(out), "a"])
    assert run(["certs", "--out", str(out), "--force", "a"]) == 0
    assert not revoked(out, "a")


def test_revoke_without_a_name_renews_the_list_or_writes_a_first_one(out, capsys):
    run(["certs", "--out", str(out), "a", "b"])
    seen = []
    for arguments in ([], ["--days", "3", "a"], ["--days", "9"]):
        assert run(["certs", "revoke", "--out", str(out), *arguments]) == 0
        crl = x509.load_pem_x509_crl((out / "ca.crl").read_bytes())
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        lasts = crl.next_update_utc - crl.last_update_utc
        seen.append((number, len(list(crl)), lasts.days))
    assert seen == [(1, 0, 30), (2, 1, 3), (3, 1, 9)]
    assert "renewed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"nonsense", "is damaged"), (b"another CA's", "is not the list of")],
)
def test_revoke_overwrites_no_list_that_it_did_not_write(out, tmp_path, capsys, content, said):
    run(["certs", "--out", str(out), "a"])
    if content != b"nonsense":
        run(["certs", "--out", str(tmp_path / "other"), "b"])
        run(["certs", "revoke", "--out", str(tmp_path / "other")])
        content = (tmp_path / "other" / "ca.crl").read_bytes()
    (out / "ca.crl").write_bytes(content)
    capsys.readouterr()
    assert run(["certs", "revoke", "--out", str(out), "a"]) == 1
    assert said in one_line(capsys.readouterr().err)
    assert (out / "ca.crl").read_bytes() == content


def test_revoke_of_an_unknown_name_is_one_line_and_revokes_none_of_the_others(out, capsys):
    run(["certs", "--out", str(out), "a"])
    capsys.readouterr()
    assert run(["certs", "revoke", "--out", str(out), "a", "nobody"]) == 1
    assert "nobody.crt" in one_line(capsys.readouterr().err)
    assert "ca.crl" not in names(out)


@pytest.mark.parametrize("arguments", [["--days", "0", "a"], ["--bad", "a"], ["ca"], ["../a"]])
def test_a_wrong_call_of_revoke_is_one_line(out, capsys, arguments):
    run(["certs", "--out", str(out), "a"])
    capsys.readouterr()
    assert run(["certs", "revoke", "--out", str(out), *arguments]) in (1, 2)
    one_line(capsys.readouterr().err)
    assert "ca.crl" not in names(out)


def test_revoke_says_how_to_call_it(capsys):
    assert run(["certs", "revoke", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for said in ("--crl DIR/ca.crl", "before you issue NAME again", "--days"):
        assert said in text


# --- inspect ------------------------------------------------------------------------------------


def test_inspect_shows_what_a_deny_list_asks_for(out, capsys):
    run(["certs", "--out", str(out), "a"])
    capsys.readouterr()
    run(["certs", "inspect", str(out / "a.crt")])
    text = capsys.readouterr().out
    shown = dict(re.findall(r"^ *(issuer|serial|SHA-256) +(.+)$", text, re.MULTILINE))
    for rule in (
        f'[deny_certificates]\nsha256 = ["{shown["SHA-256"]}"]\n',
        f'[[deny_certificates.serials]]\nissuer = "{shown["issuer"]}"\n'
        f'serials = ["{shown["serial"]}"]\n',
    ):
        allow = '[[allow]]\nidentities = ["/node/*"]\nmay = ["join"]\n'
        policy = Policy.from_toml(allow + rule, "x", NodeId.parse("spiffe://dev/node/b"))
        leaf = x509.load_pem_x509_certificate((out / "a.crt").read_bytes())
        assert policy.denies([leaf], NodeId.parse("spiffe://dev/node/a"))


@pytest.mark.parametrize(
    ("wrong", "step"),
    [
        ({"key_type": "p521"}, "step 5"),
        ({"not_after": utc(seconds=-1)}, "step 8"),
        ({"eku": None}, "step 9"),
        ({"issuer": "self"}, "step 9"),
        ({"uris": ("spiffe://test/node/a", "spiffe://test/node/b")}, "step 10"),
    ],
    ids=["key", "expired", "usages", "self_signed", "two_identities"],
)
def test_inspect_names_the_step_that_refuses(tmp_path, capsys, wrong, step):
    pki = Pki("test")
    pki.ca.write(tmp_path, "ca")
    path, _ = pki.node("a", **wrong).write(tmp_path, "a")
    assert run(["certs", "inspect", str(path)]) == 1
    text = capsys.readouterr().out
    assert f"REFUSED at {step}" in text
    assert str(path) in text.splitlines()[-1]


def test_inspect_takes_another_ca_and_a_trust_domain(tmp_path, capsys):
    pki, other = Pki("test"), Pki("test", common_name="other CA")
    (tmp_path / "right.crt").write_bytes(pki.ca_pem)
    (tmp_path / "wrong.crt").write_bytes(other.ca_pem)
    path, _ = pki.node("a").write(tmp_path, "a")
    call = ["certs", "inspect", str(path)]
    assert run(call) == 0
    assert "--ca FILE" in capsys.readouterr().out
    assert run([*call, "--ca", str(tmp_path / "right.crt")]) == 0
    assert run([*call, "--ca", str(tmp_path / "wrong.crt")]) == 1
    assert run([*call, "--ca", str(tmp_path / "right.crt"), "--trust-domain", "prod"]) == 1


def test_inspect_without_a_ca_refuses_what_no_ca_could_save(tmp_path, capsys):
    pki = Pki("test")
    for number, wrong in enumerate(
        ({"not_after": utc(seconds=-1)}, {"eku": None}, {"uris": ("http://a",)}, {})
    ):
        path, _ = pki.node("a", **wrong).write(tmp_path, f"a{number}")
        assert run(["certs", "inspect", str(path)]) == (1 if wrong else 0)
        text = capsys.readouterr().out
        assert ("REFUSED" in text) == bool(wrong)
        assert ("name the CA with --ca FILE" in text) != bool(wrong)


def test_inspect_says_what_is_revoked(out, tmp_path, capsys):
    run(["certs", "--out", str(out), "a", "b"])
    run(["certs", "revoke", "--out", str(out), "a"])
    capsys.readouterr()
    assert run(["certs", "inspect", str(out / "b.crt")]) == 0
    assert "accepted by every node" in capsys.readouterr().out
    assert run(["certs", "inspect", str(out / "a.crt")]) == 1
    text = capsys.readouterr().out
    assert "REFUSED at step 11" in text
    assert f"--crl {out / 'ca.crl'}" in text
    # Another list than the one beside the CA; one that says nothing of use is told.
    (tmp_path / "other.crl").write_bytes((out / "ca.crl").read_bytes())
    (out / "ca.crl").write_bytes(b"nonsense")
    assert run(["certs", "inspect", str(out / "a.crt")]) == 0
    assert "is no certificate revocation list" in capsys.readouterr().out
    call = ["certs", "inspect", str(out / "a.crt"), "--crl"]
    assert run([*call, str(tmp_path / "other.crl")]) == 1
    assert run([*call, str(tmp_path / "nowhere.crl")]) == 1
    assert "nowhere.crl" in one_line(capsys.readouterr().err)


def test_inspect_escapes_what_a_certificate_says_to_the_terminal(tmp_path, capsys):
    pki = Pki("test")
    path, _ = pki.node("\x1b[31mred", uris=("spiffe://test/\x1b[2J",)).write(tmp_path, "a")
    run(["certs", "inspect", str(path)])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"", b"text", b"-----BEGIN CERTIFICATE-----\nx"])
def test_inspect_of_what_is_no_certificate_is_one_line_and_exit_code_1(tmp_path, capsys, content):
    path = tmp_path / "file.crt"
    if content is not None:
        path.write_bytes(content)
    assert run(["certs", "inspect", str(path)]) == 1
    assert str(path) in one_line(capsys.readouterr().err)


# --- the group ----------------------------------------------------------------------------------


def test_help_names_every_command_that_is_there_and_no_other(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (target, _) in COMMANDS.items():
        there = importlib.util.find_spec(target.partition(":")[0]) is not None
        assert (f"\n  {name} " in text) == there


def test_a_command_whose_module_is_missing_does_not_exist(capsys, monkeypatch):
    monkeypatch.setitem(COMMANDS, "later", ("plumtree_quic.cli.later:later", "Not yet."))
    assert run(["--help"]) == 0
    assert "later" not in capsys.readouterr().out
    assert run(["later"]) == 2
    assert "later" in one_line(capsys.readouterr().err)


def test_an_unknown_command_is_one_line_and_exit_code_2(capsys):
    assert run(["cretificates"]) == 2
    assert "cretificates" in one_line(capsys.readouterr().err)


def python(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        **options,
    )


def test_certs_loads_no_quic_stack():
    program = (
        "import sys\n"
        "from plumtree_quic.cli.main import run\n"
        "run(['certs', '--help'])\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "sys.exit(str(loaded & {'aioquic', 'msgpack', 'zstandard', 'asyncio'}))\n"
    )
    assert python("-c", program).stderr.strip() == "set()"


def test_without_the_extra_it_says_what_to_install():
    program = (
        "import importlib.util, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: (\n"
        "    None if name in ('click', 'rich') else found(name, *more))\n"
        "from plumtree_quic.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = python("-c", program)
    assert done.returncode == 1
    assert "pip install 'plumtree-quic[cli]'" in done.stderr


def test_the_reader_may_go_away(out):
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"{sys.executable} -m plumtree_quic certs --help | true; exit ${{PIPESTATUS[0]}}",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
