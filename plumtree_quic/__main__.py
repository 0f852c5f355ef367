"""Entry of `plumtree-quic` and `python -m plumtree_quic`. The commands live in cli/."""

import importlib.util
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; return the exit code: 0 done, 1 failed, 2 called wrongly."""
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


if __name__ == "__main__":
    sys.exit(main())
