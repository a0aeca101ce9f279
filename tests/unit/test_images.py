"""docs/images/ shows what the commands print."""

from __future__ import annotations

import re

import pytest

import images

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("name", images.PICTURES)
def test_picture_is_current_and_fetches_nothing(name: str) -> None:
    written = (images.IMAGES / name).read_text(encoding="utf-8")
    assert written == images.PICTURES[name](), f"docs/images/{name} is old: run `scripts/dev/images.py`"
    assert set(re.findall(r"https?://[^\"' )<]+", written)) <= {
        "http://www.w3.org/2000/svg", "https://www.textualize.io"
    }  # fmt: skip
    assert "@font-face" not in written and "url(http" not in written


@pytest.mark.parametrize("name", ["report.png", "ui.png"])
def test_picture_of_a_page_is_there_and_small(name: str) -> None:
    data = (images.IMAGES / name).read_bytes()
    assert data.startswith(PNG) and len(data) < 200_000
