"""The generated pages say what the code says."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "dev" / "docs.py")
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)


@pytest.mark.parametrize("name", docs.PAGES)
def test_page_is_current(name: str) -> None:
    written = (docs.REFERENCE / name).read_text(encoding="utf-8")
    assert written == docs.PAGES[name](), f"docs/reference/{name} is old: run `make docs`"


def test_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    fetched = re.compile(r"<(?:script|img|iframe)[^>]+src=[\"']?(?:https?:)?//|<link[^>]+stylesheet[^>]+(?:https?:)?//")
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs" / "researcher").glob("*.md")))
    assert [page.name for page in pages if fetched.search(page.read_text(encoding="utf-8"))] == []


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports each by its name alone, and stops at the second."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) > 100 and sorted(names) == sorted(set(names))
