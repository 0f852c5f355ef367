"""`plumtree-quic node`, `publish`, `subscribe`, `status` as processes: the three-terminal chat."""

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest

from plumtree_quic.cli import control
from plumtree_quic.cli.main import run
from tests.rigs.pki import Pki
from tests.rigs.waiting import ASIDE, WAIT_S

PROGRAM = [sys.executable, "-m", "plumtree_quic"]


class Terminal:
    """One command that runs, with what it printed so far."""

    def __init__(self, *arguments, env=None):
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
        os.set_blocking(self.process.stdout.fileno(), False)
        self.text = ""

    def until(self, expected):
        deadline = time.monotonic() + WAIT_S
        while expected not in self.text:
            remaining = deadline - time.monotonic()
            assert remaining > 0, f"{expected!r} never came; got:\n{self.text}"
            select.select([self.process.stdout], [], [], remaining)
            chunk = self.process.stdout.read()
            if chunk == b"":
                assert expected in self.text, f"ended without {expected!r}:\n{self.text}"
            self.text += (chunk or b"").decode()
        return self.text

    def type(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def end(self):
        if self.process.stdin.closed:
            return self.process.returncode
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(WAIT_S)
        finally:
            self.process.stdin.close()
            self.text += (self.process.stdout.read() or b"").decode()
            self.process.stdout.close()
        return code


@pytest.fixture
def files(tmp_path):
    pki = Pki("test")
    (tmp_path / "ca.crt").write_bytes(pki.ca_pem)
    for name in "abc":
        cert = pki.node(name)
        (tmp_path / f"{name}.crt").write_bytes(cert.cert_pem)
        (tmp_path / f"{name}.key").write_bytes(cert.key_pem)
        (tmp_path / f"{name}.key").chmod(0o600)
    return tmp_path


def identity(files, name):
    return (
        "--cert", str(files / f"{name}.crt"),
        "--key", str(files / f"{name}.key"),
        "--ca", str(files / "ca.crt"),
    )  # fmt: skip


@contextlib.contextmanager
def terminal(*arguments, env=None):
    opened = Terminal(*arguments, env=env)
    try:
        yield opened
    finally:
        opened.end()


def address_of(opened):
    text = opened.until("listens on")
    while "\n" not in text.split("listens on", 1)[1]:
        text = opened.until("\n")
    return text.split("listens on ", 1)[1].split()[0]


def test_three_terminals_are_a_chat(files):
    common = ("node", "--listen", "127.0.0.1:0", "--print", "--stdin")
    with terminal(*common, *identity(files, "a")) as a:
        seed = address_of(a)
        with (
            terminal(*common, *identity(files, "b"), "--seed", seed) as b,
            terminal(*common, *identity(files, "c"), "--seed", seed) as c,
        ):
            for opened in (b, c):
                opened.until("spiffe://test/node/a is here")
            b.until("spiffe://test/node/c is here")
            a.until("spiffe://test/node/c is here")
            a.type("hello from a")
            b.until("a: hello from a")
            c.until("a: hello from a")
            c.type("escape \x1b[31m this")
            a.until("c: escape \\x1b[31m this")
            assert c.end() == 0
            a.until("spiffe://test/node/c left")


def test_a_line_before_the_first_seed_answered_waits_for_it(files):
    with terminal("node", "--listen", f"{ASIDE}:0", *identity(files, "b")) as probe:
        free = address_of(probe)
    with terminal(
        "node", "--listen", "127.0.0.1:0", "--stdin", "--seed", free, *identity(files, "a")
    ) as a:
        a.type("early")
        a.until("lines wait until a seed answers")
        with terminal("node", "--listen", free, "--print", *identity(files, "b")) as b:
            b.until("a: early")


def test_a_pipe_is_sent_to_its_last_byte_and_too_long_a_line_is_told(files):
    common = ("node", "--listen", "127.0.0.1:0", "--print")
    with terminal(*common, *identity(files, "a")) as a:
        seed = address_of(a)
        with terminal(*common, "--stdin", "--seed", seed, *identity(files, "b")) as b:
            lines = [f"line {number}" for number in range(3000)]
            b.process.stdin.write(b"x" * 300_000 + b"\n" + "\n".join(lines).encode())
            b.process.stdin.close()
            b.until("(65536); split it or raise the limit (67,108,864 at most)")
            a.until("b: line 2999")
            assert [line for line in a.text.splitlines() if line.startswith("b: ")] == [
                f"b: {line}" for line in lines
            ]
            b.process.send_signal(signal.SIGTERM)
            assert b.process.wait(WAIT_S) == 0
            b.process.stdout.close()


def test_a_node_that_takes_no_more_lines_says_so_once(files):
    state = ("--state-dir", str(files / "s"))
    with terminal("node", "--listen", "127.0.0.1:0", "--stdin", *state, *identity(files, "a")) as a:
        address_of(a)
        subprocess.run([*PROGRAM, "drain", *state], check=True, timeout=WAIT_S)
        a.process.stdin.write(b"line\n" * 1000)
        a.process.stdin.flush()
        a.until("no more lines are sent: the node is draining")
    assert a.text.count("draining") == 1


def test_publish_subscribe_and_status_through_the_socket(files):
    with terminal(
        "node", "--listen", "127.0.0.1:0", "--state-dir", str(files / "sa"), *identity(files, "a")
    ) as a:
        seed = address_of(a)
        with terminal(
            "node", "--listen", "127.0.0.1:0", "--print", "--seed", seed,
            "--state-dir", str(files / "sb"), *identity(files, "b"),
        ) as b:  # fmt: skip
            b.until("node/a is here")
            a.until("node/b is here")
            with terminal("subscribe", "--count", "1", "--state-dir", str(files / "sb")) as reader:
                deadline = time.monotonic() + WAIT_S
                while reader.process.poll() is None and time.monotonic() < deadline:
                    subprocess.run(
                        [*PROGRAM, "publish", "--state-dir", str(files / "sa"), "one coffee"],
                        check=True,
                        stdout=subprocess.DEVNULL,
                        timeout=WAIT_S,
                    )
                reader.until("one coffee")
            b.until("a: one coffee")
            status = subprocess.run(
                [*PROGRAM, "status", "--state-dir", str(files / "sa")],
                capture_output=True,
                text=True,
                check=True,
                timeout=WAIT_S,
                env={**os.environ, "COLUMNS": "160"},
            ).stdout
            assert "health: healthy" in status or "health: degraded" in status
            assert "spiffe://test/node/b" in status
            subprocess.run(
                [*PROGRAM, "leave", "--state-dir", str(files / "sb")], check=True, timeout=WAIT_S
            )
            assert b.process.wait(WAIT_S) == 0


@pytest.mark.parametrize(
    ("count", "code", "says"),
    [
        ((), 0, "the node ended"),
        (("--count", "2"), 1, "error: the node ended after 1 of 2 messages"),
    ],
    ids=["endless", "counted"],
)
def test_a_subscriber_says_that_its_node_ended(monkeypatch, capsys, count, code, says):
    last = {"id": "a/1/1", "payload": "b25l"}
    monkeypatch.setattr(control, "stream", lambda path, topic, order, since: iter([last]))
    assert run(["subscribe", "--state-dir", "s", *count]) == code
    printed = capsys.readouterr()
    assert printed.out == "a/1/1 one\n"
    assert printed.err == f"{says}\n"


def test_an_ordered_reader_is_told_of_gaps_which_are_no_messages(monkeypatch, capsys):
    came = [
        {"id": "a/1/1", "payload": "b25l"},
        {"gap": {"origin": "a", "epoch": 1, "first": 2, "last": 3}},
        {"id": "a/1/4", "payload": "Zm91cg=="},
        {"id": "a/1/5", "payload": "Zml2ZQ=="},
    ]
    orders = []
    monkeypatch.setattr(
        control, "stream", lambda path, topic, order, since: orders.append(order) or iter(came)
    )
    assert run(["subscribe", "--state-dir", "s", "--fifo", "--count", "2"]) == 0
    printed = capsys.readouterr()
    assert orders == ["fifo"]
    assert printed.out == "a/1/1 one\na/1/4 four\n"
    assert printed.err == "gap: 2 to 3 of a/1 did not come in time\n"


def refused(*arguments, env=None):
    done = subprocess.run(
        [*PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env={**os.environ, **(env or {})},
        check=False,
    )
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_missing_certificate_is_named(files):
    text = refused("node", "--cert", "nowhere.crt", "--key", str(files / "a.key"),
                   "--ca", str(files / "ca.crt"))  # fmt: skip
    assert "nowhere.crt" in text


def test_no_certificate_at_all_says_what_to_set(files):
    assert "PLUMTREE_CERT" in refused("node", "--listen", "127.0.0.1:0")


def test_the_wrong_key_is_named(files):
    text = refused("node", "--listen", "127.0.0.1:0", "--cert", str(files / "a.crt"),
                   "--key", str(files / "b.key"), "--ca", str(files / "ca.crt"))  # fmt: skip
    assert "b.key" in text


def test_a_port_in_use_is_named(files):
    with terminal("node", "--listen", "127.0.0.1:0", *identity(files, "a")) as a:
        text = refused("node", "--listen", address_of(a), *identity(files, "b"))
        assert "in use" in text


def test_a_bad_environment_value_is_named(files):
    text = refused(
        "node", "--listen", "127.0.0.1:0", *identity(files, "a"),
        env={"PLUMTREE_EAGER_FANOUT": "many"},
    )  # fmt: skip
    assert "eager_fanout" in text.lower()


def test_an_unknown_environment_variable_names_the_nearest(files):
    text = refused(
        "node", "--listen", "127.0.0.1:0", *identity(files, "a"),
        env={"PLUMTREE_EAGER_FANOT": "3"},
    )  # fmt: skip
    assert "eager_fanout" in text.lower()


def test_a_bad_flag_is_named(files):
    assert "--lisen" in refused("node", "--lisen", "x")


def test_a_message_too_large_says_the_limit(files):
    with terminal(
        "node", "--listen", "127.0.0.1:0", "--state-dir", str(files / "s"), *identity(files, "a"),
        "--set", "max_message_size=100",
    ) as a:  # fmt: skip
        address_of(a)
        text = refused("publish", "--state-dir", str(files / "s"), "x" * 101)
        assert "max_message_size" in text


def test_a_seed_that_is_no_address_is_named_before_the_node_starts(files):
    text = refused("node", "--listen", "127.0.0.1:0", "--seed", "10.0.0.5", *identity(files, "a"))
    assert "'10.0.0.5' is not host:port" in text
    assert "listens" not in text


def test_a_seed_that_does_not_resolve_is_told_within_seconds_and_the_node_stays_up(files):
    with terminal(
        "node", "--listen", "127.0.0.1:0", "--seed", "nobody.invalid:7946", *identity(files, "a")
    ) as a:
        a.until("none of 1 seeds answered within 6 s: nobody.invalid:7946")
        assert a.process.poll() is None


@pytest.mark.parametrize("seed", ["10.0.0.5:0", ":7946"])
def test_a_seed_that_nobody_could_dial_is_refused_at_once(files, seed):
    text = refused("node", "--listen", "127.0.0.1:0", "--seed", seed, *identity(files, "a"))
    assert f"--seed: {seed!r} cannot be dialled" in text
    assert "listens" not in text


@pytest.mark.parametrize(
    ("arguments", "env", "place"),
    [
        (("--listen", "127.0.0.1"), {}, "--listen: '127.0.0.1'"),
        ((), {"PLUMTREE_LISTEN": "127.0.0.1"}, "PLUMTREE_LISTEN: '127.0.0.1'"),
        (("--listen", "127.0.0.1:0", "--seed", "x"), {}, "--seed: 'x'"),
        (("--listen", "127.0.0.1:0"), {"PLUMTREE_SEEDS": "a:1,x"}, "PLUMTREE_SEEDS: 'x'"),
        (("--advertise", "a:x"), {}, "--advertise: 'a:x'"),
        ((), {"PLUMTREE_ADVERTISE_ADDR": "a:x"}, "PLUMTREE_ADVERTISE_ADDR: 'a:x'"),
    ],
    ids=[
        "listen_flag",
        "listen_variable",
        "seed_flag",
        "seed_variable",
        "advertise_flag",
        "advertise_variable",
    ],
)
def test_a_bad_address_says_where_it_stands(files, arguments, env, place):
    text = refused("node", *arguments, *identity(files, "a"), env=env)
    assert text.startswith(f"error: {place} is not host:port")


@pytest.mark.parametrize("listen", [(), ("--listen", ":7946"), ("--listen", "0.0.0.0:0")])
def test_an_address_that_nobody_can_dial_names_the_flags(files, listen):
    text = refused("node", *listen, *identity(files, "a"))
    assert "takes every interface" in text
    assert "--advertise" in text


def test_a_topic_that_is_too_long_is_refused_before_the_node_starts(files):
    text = refused("node", "--listen", "127.0.0.1:0", "--topic", "x" * 256, *identity(files, "a"))
    assert text.startswith("error: --topic 'xxx")
    assert "255 bytes" in text


@pytest.mark.parametrize("field", ["eager_fanuot=3", "eager_fanout=many", "sync.sync_interval=x"])
def test_a_bad_set_names_the_flag_and_not_only_a_variable(files, field):
    text = refused("node", "--listen", "127.0.0.1:0", "--set", field, *identity(files, "a"))
    assert text.startswith(f"error: --set {field!r}: ")
    assert "PLUMTREE_" not in text


def test_fields_that_are_set_are_judged_together(files):
    # Each alone is refused beside the defaults: a probe times out before the next one.
    with terminal(
        "node", "--listen", "127.0.0.1:0", "--set", "probe_timeout=2s",
        "--set", "probe_interval=3s", *identity(files, "a"),
    ) as a:  # fmt: skip
        address_of(a)


def test_verbose_tells_of_our_own_links_and_not_of_the_self_tests_refusals(files):
    with terminal("node", "-v", "--listen", "127.0.0.1:0", *identity(files, "a")) as a:
        address_of(a)
        assert "no certificate was sent" not in a.text
        assert "Negotiated" not in a.text


def test_a_damaged_epoch_file_is_named(files):
    (files / "state").mkdir()
    for content in (b"garbage", b"\xff", b"", b"9" * 30, b"-1"):
        (files / "state" / "epoch").write_bytes(content)
        text = refused(
            "node", "--listen", "127.0.0.1:0", "--state-dir", str(files / "state"),
            *identity(files, "a"),
        )  # fmt: skip
        assert "epoch" in text
        assert "remove it" in text


@contextlib.contextmanager
def inherited(number, action):
    """What is started meanwhile begins with this action for a signal."""
    before = signal.signal(number, action)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_node_that_is_told_to_end_leaves_and_is_not_missed(files, number):
    with terminal("node", "--listen", "127.0.0.1:0", *identity(files, "a")) as a:
        # Whoever runs the tests may have started them with `nohup`.
        with (
            inherited(number, signal.SIG_DFL),
            terminal(
                "node", "--listen", "127.0.0.1:0", "--seed", address_of(a), *identity(files, "b")
            ) as b,
        ):
            a.until("node/b is here")
            b.until("node/a is here")
            b.process.stdout.close()  # nobody reads any more, as when a terminal closes
            b.process.send_signal(number)
            assert b.process.wait(WAIT_S) == 0
            b.process.stdin.close()
        a.until("node/b left")


def test_a_node_under_nohup_does_not_leave_when_the_terminal_closes(files):
    with inherited(signal.SIGHUP, signal.SIG_IGN):
        opened = Terminal("node", "--listen", "127.0.0.1:0", *identity(files, "a"))
    address_of(opened)
    opened.process.send_signal(signal.SIGHUP)
    with terminal(
        "node", "--listen", "127.0.0.1:0", "--seed", address_of(opened), *identity(files, "b")
    ) as b:
        b.until("node/a is here")
    opened.until("node/b left")
    assert "leaving" not in opened.text
    assert opened.end() == 0


def test_a_message_from_a_pipe_that_never_ends_is_refused(files):
    with terminal(
        "node", "--listen", "127.0.0.1:0", "--state-dir", str(files / "s"), *identity(files, "a")
    ) as a:
        address_of(a)
        with open("/dev/zero", "rb") as endless:
            done = subprocess.run(
                [*PROGRAM, "publish", "--state-dir", str(files / "s")],
                stdin=endless, capture_output=True, text=True, timeout=WAIT_S, check=False,
            )  # fmt: skip
        assert done.returncode == 1
        assert "67,108,864" in done.stderr


def test_a_large_file_is_published_where_the_limit_says_so(files):
    common = ("node", "--listen", "127.0.0.1:0", "--state-dir")
    state = {name: str(files / f"state-{name}") for name in "ab"}
    large = files / "large"
    large.write_bytes(os.urandom(1 << 20))
    env = {"PLUMTREE_MAX_MESSAGE_SIZE": str(1 << 20), "PLUMTREE_STORAGE__ENABLED": "true"}
    with terminal(*common, state["a"], *identity(files, "a"), env=env) as a:
        seed = ("--seed", address_of(a))
        with terminal(*common, state["b"], *seed, *identity(files, "b"), env=env) as b:
            b.until("node/a is here")
            assert publish(state["a"], large).returncode == 0
            reader = ("subscribe", "--state-dir", state["b"], "--since", "all", "--json")
            done = subprocess.run(
                [*PROGRAM, *reader, "--count", "1"],
                capture_output=True, text=True, timeout=WAIT_S, check=True,
            )  # fmt: skip
            payload = json.loads(done.stdout)["payload"]
            assert base64.b64decode(payload) == large.read_bytes()
            with large.open("ab") as file:
                file.write(b"one more")
            refused = publish(state["a"], large)
            assert refused.returncode == 1
            assert "PLUMTREE_MAX_MESSAGE_SIZE" in refused.stderr


def publish(state_dir, path):
    with path.open("rb") as file:
        return subprocess.run(
            [*PROGRAM, "publish", "--state-dir", state_dir],
            stdin=file, capture_output=True, text=True, timeout=WAIT_S, check=False,
        )  # fmt: skip


def test_a_line_longer_than_a_message_is_not_sent_in_part(files):
    env = {"PLUMTREE_MAX_MESSAGE_SIZE": "100000"}
    common = ("node", "--listen", "127.0.0.1:0", "--print", "--stdin")
    with terminal(*common, *identity(files, "a"), env=env) as a:
        seed = ("--seed", address_of(a))
        with terminal(*common, *seed, *identity(files, "b"), env=env) as b:
            b.until("node/a is here")
            a.until("node/b is here")
            a.type("x" * 100_001)
            a.until("not sent")
            a.type("y" * 90_000)
            b.until("y" * 90_000)
            assert "x" * 100 not in b.text


def test_no_node_behind_the_socket(files):
    assert "no node answers" in refused("status", "--state-dir", str(files))


@contextlib.contextmanager
def ended(process):
    """`process`, ended whatever comes, its pipes closed."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def through_a_shell(redirection, *arguments):
    """The command as a shell starts it with that redirection."""
    return ["sh", "-c", f'exec "$@" {redirection}', "sh", *PROGRAM, *arguments]


@pytest.mark.parametrize("flags", [(), ("--stdin",), ("--print",)])
def test_a_node_whose_standard_input_is_closed_runs_like_any_other(files, flags):
    state = ("--state-dir", str(files / "s"))
    process = subprocess.Popen(
        through_a_shell("<&-", "node", "--listen", "127.0.0.1:0", *flags, *state,
                        *identity(files, "a")),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with ended(process):
        assert "listens on" in process.stderr.readline()
        subprocess.run([*PROGRAM, "leave", *state], check=True, timeout=30)
        text = process.communicate(timeout=15)[1]
    assert process.returncode == 0
    assert text.endswith("leaving\n")
    assert "Traceback" not in text


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_without_standard_streams_raises_nothing(files, redirection):
    done = subprocess.run(
        through_a_shell(redirection, "status", "--state-dir", str(files)),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_standard_input_that_cannot_be_read_is_told_and_the_node_stays_up(files):
    unreadable = os.open(os.devnull, os.O_WRONLY)
    process = subprocess.Popen(
        [*PROGRAM, "node", "--listen", "127.0.0.1:0", "--stdin", *identity(files, "a")],
        stdin=unreadable, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(unreadable)
    with ended(process):
        told = "standard input cannot be read: Bad file descriptor"
        assert any(told in line for line in process.stderr)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=15)[1]
    assert text.endswith("leaving\n")
    assert "Traceback" not in text


def test_a_standard_output_that_is_full_is_told_and_ends_the_node(files):
    state = ("--state-dir", str(files / "s"))
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [*PROGRAM, "node", "--listen", "127.0.0.1:0", "--print", *state,
             *identity(files, "a")],
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    with ended(process):
        address = process.stderr.readline().split()[-1]
        with terminal(
            "node", "--listen", "127.0.0.1:0", "--stdin", "--seed", address, *identity(files, "b")
        ) as b:
            b.until("node/a is here")
            b.type("one")
            text = process.communicate(timeout=15)[1]
    assert "error: standard output cannot be written: No space left on device" in text
    assert "Traceback" not in text


def test_a_node_whose_standard_output_is_closed_leaves(files):
    with terminal(
        "node", "--listen", "127.0.0.1:0", "--print", "--state-dir", str(files / "s"),
        *identity(files, "a"),
    ) as a:  # fmt: skip
        seed = address_of(a)
        with terminal(
            "node", "--listen", "127.0.0.1:0", "--stdin", "--seed", seed, *identity(files, "b")
        ) as b:
            a.until("node/b is here")
            b.until("node/a is here")
            reader = subprocess.Popen(
                [*PROGRAM, "node", "--listen", "127.0.0.1:0", "--print", "--seed", seed,
                 *identity(files, "c")],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                b.until("node/c is here")
                reader.stdout.close()
                b.type("nobody reads this")
                assert reader.wait(WAIT_S) == 0
            finally:
                if reader.poll() is None:
                    reader.kill()
                    reader.wait()


def test_since_is_a_time_that_long_ago_or_all_there_is(monkeypatch, capsys):
    asked, last = [], {"id": "a/1/1", "payload": "b25l"}
    monkeypatch.setattr(
        control, "stream", lambda path, topic, order, since: asked.append(since) or iter([last])
    )
    for ago in ("10m", "all"):
        assert run(["subscribe", "--state-dir", "s", "--since", ago, "--count", "1"]) == 0
    assert 0 < time.time() - 600 - asked[0] < 60
    assert asked[1] == 0.0
    assert run(["subscribe", "--state-dir", "s", "--since", "soon"]) != 0
    assert "'soon' is not a duration" in capsys.readouterr().err
