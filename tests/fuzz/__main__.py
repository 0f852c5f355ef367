"""python -m tests.fuzz TARGET SECONDS [SEED]: fuzz one target with atheris (scripts/soak fuzz).

New inputs that reach something are kept in a temporary folder, the smallest of them in the corpus
at the end; a finding is written to the current directory and ends the run with an error.
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["plumtree_quic", "aioquic"]):
    from tests.fuzz.corpus import FOLDER, made
    from tests.fuzz.targets import TARGETS

KEPT_FILES_MAX = 60
FILE_BYTES_MAX = 1_024


def keep(target: str, found: Path) -> None:
    """Keep the smallest inputs that reached something new: few, for they are run with the suite."""
    kept = FOLDER / target
    kept.mkdir(parents=True, exist_ok=True)
    files = sorted((*kept.iterdir(), *found.iterdir()), key=lambda path: path.stat().st_size)
    contents = {path.read_bytes() for path in files[: 2 * KEPT_FILES_MAX]}
    for old in kept.iterdir():
        old.unlink()
    for data in sorted(contents, key=lambda data: (len(data), data))[:KEPT_FILES_MAX]:
        if len(data) <= FILE_BYTES_MAX:
            (kept / hashlib.sha1(data).hexdigest()[:12]).write_bytes(data)


def main(target: str, *rest: str) -> None:
    """See the module."""
    seconds, seed = rest[0], rest[1] if len(rest) > 1 else "1"
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder)
        for number, data in enumerate(made(target)):
            (found / f"made{number}").write_bytes(data)
        options = [f"-max_total_time={seconds}", f"-seed={seed}", "-rss_limit_mb=2048",
                   "-max_len=8192", "-timeout=10", "-print_final_stats=1"]  # fmt: skip
        code = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", target, "run", str(found), *options], check=False
        ).returncode
        if code == 0:
            keep(target, found)
        sys.exit(code)


def run(target: str, *arguments: str) -> None:
    """The fuzzer itself, which never returns."""
    kept = FOLDER / target
    kept.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], arguments[0], str(kept), *arguments[1:]], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    name, *others = sys.argv[1:]
    if others and others[0] == "run":
        run(name, *others[1:])
    else:
        main(name, *others)
