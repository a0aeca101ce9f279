"""The generated pages say what the code says."""

from __future__ import annotations

import importlib.util

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "dev" / "docs.py")
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)


@pytest.mark.parametrize("name", docs.PAGES)
def test_page_is_current(name: str) -> None:
    written = (docs.REFERENCE / name).read_text(encoding="utf-8")
    assert written == docs.PAGES[name](), f"docs/reference/{name} is old: run `make docs`"
