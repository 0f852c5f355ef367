"""Entry of `plumtree-quic` and `python -m plumtree_quic`. The commands live in cli/."""

import importlib.util
import os
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; return the exit code: 0 done, 1 failed, 2 called wrongly."""
    _open_what_the_caller_closed()
    missing = [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: the command line needs {' and '.join(missing)}, which the library alone does "
            "not; run: pip install 'plumtree-quic[cli]'",
            file=sys.stderr,
        )
        return 1
    from plumtree_quic.cli.main import run

    return run(sys.argv[1:])


def _open_what_the_caller_closed() -> None:
    """Put the null device in place of standard streams that were closed (`<&-`).

    Otherwise the next socket takes the number, and is read as if somebody typed there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    # They live as long as the process: there is nothing to close.
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


if __name__ == "__main__":
    sys.exit(main())
