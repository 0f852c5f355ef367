"""The README's example runs as written, and names only what exists."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_embedding_example_runs_as_written(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    subprocess.run(
        [sys.executable, "-m", "plumtree_quic", "certs", "a", "b"], cwd=tmp_path, check=True
    )
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "b'one coffee' True" in done.stdout


def test_every_file_that_the_readme_names_exists():
    for name in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / name).exists(), name
    for script in re.findall(r"scripts/\w+", TEXT):
        assert (ROOT / script).exists(), script


def test_the_module_map_names_modules_that_exist():
    rows = re.findall(r"^\| (`[^|]+) \|", TEXT, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([a-z_/.]+)`", row)]
    assert len(named) >= 9
    for name in named:
        assert (ROOT / "plumtree_quic" / name).exists(), name
