"""The suite's own rule: continuous integration runs every test or fails."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = {
    "marked": "import pytest\n@pytest.mark.skip\ndef test_it(): pass\n",
    "condition": "import pytest\n@pytest.mark.skipif(True, reason='x')\ndef test_it(): pass\n",
    "inside": "import pytest\ndef test_it(): pytest.skip('x')\n",
    "module": "import pytest\npytest.skip('x', allow_module_level=True)\n",
    "import": "import pytest\npytest.importorskip('no_such_module')\n",
}


@pytest.mark.parametrize("strict", ["", "1"], ids=["at_home", "in_ci"])
def test_a_skip_fails_where_skips_are_forbidden(tmp_path, strict):
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    for name, content in SKIPS.items():
        (tmp_path / f"test_{name}.py").write_text(content)
    command = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--rootdir=."]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *command, "."],
        cwd=tmp_path,
        env={**os.environ, "PLUMTREE_NO_SKIPS": strict},
        capture_output=True,
        text=True,
        check=False,
    )
    refused = [
        name
        for name in SKIPS
        if re.search(rf"test_{name}\.py\S* was skipped, and PLUMTREE_NO_SKIPS is set", done.stdout)
    ]
    assert refused == (list(SKIPS) if strict else []), done.stdout
    assert (done.returncode == 0) == (strict == ""), done.stdout
