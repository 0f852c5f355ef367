"""The shape of the repository: every module says what it is, nothing names a machine."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plumtree_quic"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in MODULES
    if path.name not in ("__init__.py", "__main__.py")
}
# A home directory, a temporary one, a drive: they mean something on one machine only.
MACHINE_PATH = re.compile(r"(?<![\w.>-])(/(home|root|Users|work|tmp/venv)/\w|[A-Z]:\\\\)")
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s*[A-Za-z0-9+/=]{16}")


def repository_files():
    """What is, or is about to be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        names = [name.decode() for name in listed.stdout.split(b"\0") if name]
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    return [
        path
        for folder in ("plumtree_quic", "tests", "docs")
        for path in (ROOT / folder).rglob("*.*")
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_in_its_first_line_what_lives_there(path):
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    assert text.startswith('"""'), "the docstring is the first line"
    assert len(docstring.splitlines()[0]) > 20


def test_the_architecture_page_names_every_module_and_no_other():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(
        re.findall(r"`((?:\w+\.)*\w+)`", page.partition("## Modules")[2].partition("\n## ")[0])
    )
    known = {name for name in named if "." in name or name in NAMES} - {"wire.md"}
    assert set(NAMES) - known == set(), "modules that the page does not name"
    assert known - set(NAMES) == set(), "names on the page without a module"


def test_no_file_names_a_machines_paths():
    found = []
    for path in repository_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE_PATH.finditer(text)]
    assert found == []


def test_no_private_key_is_in_the_repository():
    found = [
        str(path.relative_to(ROOT))
        for path in repository_files()
        if path.suffix == ".key" or PRIVATE_KEY.search(path.read_text(errors="replace"))
    ]
    assert found == []


def test_the_installed_package_is_typed_and_runs_as_a_module():
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "__main__.py").is_file()
