"""The README's example runs as written, and names only what exists."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import click

from plumtree_quic.cli.main import COMMANDS

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


def test_every_page_of_the_documentation_is_named():
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f"(docs/{page.name})" in TEXT, page.name


def test_every_flag_that_is_named_exists():
    pages = [TEXT] + [
        (ROOT / each).read_text()
        for each in ("CHANGELOG.md", "docs/security.md", "docs/configuration.md")
    ]
    commands = [importlib.import_module(module.split(":")[0]) for module, _ in COMMANDS.values()]
    known = {
        flag
        for module in commands
        for command in vars(module).values()
        if isinstance(command, click.Command)
        for parameter in command.params
        for flag in parameter.opts
    }
    named = {flag for page in pages for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)}
    assert named - known == set()


def test_the_scripts_can_be_called_in_the_order_in_which_they_stand():
    # mkcerts overwrites nothing, so that a second call with a name of the first one is an error.
    names = [
        name for call in re.findall(r"scripts/mkcerts ([a-z ]+)", TEXT) for name in call.split()
    ]
    assert len(names) == len(set(names))


def test_the_module_map_names_every_module_and_package_at_the_top():
    package = ROOT / "plumtree_quic"
    there = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    there |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    rows = re.findall(r"^\| (`[^|]+) \|", TEXT, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_/.]+)`", row)}
    assert there - named == set()
