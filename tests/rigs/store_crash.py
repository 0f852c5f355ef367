"""A process that lives SCRIPT again and again, and is killed at each call that writes, in turn.

    python -m tests.rigs.store_crash <directory>

It forks, for starting an interpreter takes longer than a life, and prints one JSON object: by the
number of the call and "before" or "after" it, how many batches were told as committed. The file of
each life is left in a directory of that name.
"""

import json
import os
import signal
import sqlite3
import sys
from functools import partial
from pathlib import Path

from tests.rigs.store import Driven, Faulty, run_script, sqlite_store


class Deadly(Faulty):
    """Kills its process at the `call`-th call, before or after it."""

    call = 0
    at = "before"
    count = 0


def deadly(when, statement):
    if when == "before":
        Deadly.count += 1
    if Deadly.count == Deadly.call and when == Deadly.at:
        os.kill(os.getpid(), signal.SIGKILL)


def live(directory, told):
    """A whole life, if it is let; `told` is a descriptor that gets a byte for each batch."""
    Deadly.hook = staticmethod(deadly)
    store = sqlite_store(directory, connect=partial(sqlite3.connect, factory=Deadly))
    run_script(Driven(store), told=lambda number: os.write(told, bytes([number])))
    store.close()


def crash(directory, call, at):
    """One life: (it was killed, how many batches it told of)."""
    directory.mkdir()
    reading, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            Deadly.call, Deadly.at = call, at
            live(directory, told)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(told)
    numbers = b""
    while part := os.read(reading, 4_096):
        numbers += part
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"life {call} {at} failed")
    return os.WIFSIGNALED(status), max(numbers, default=0)


def main():
    directory = Path(sys.argv[1])
    lives, call, killed = {}, 0, True
    while killed:
        call += 1
        for at in ("before", "after"):
            name = f"{call}-{at}"
            killed, lives[name] = crash(directory / name, call, at)
    print(json.dumps(lives))


if __name__ == "__main__":
    main()
