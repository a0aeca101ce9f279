"""Draws docs/images/: what the commands about results print, as SVG; a report and MLflow's pages, as PNG by chromium.

The runs are those of the tests.  `images.py --no-browser` leaves the PNG as they are.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
CHROMIUM = Path("/usr/bin/chromium")
_WIDTH, _HEIGHT = 84, 22  # of the terminal
_VIEW = {"width": 1280, "height": 1180}
_FONT = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)  # which rich would fetch from elsewhere

sys.path.insert(0, str(ROOT / "tests" / "unit"))
from results_made import learned  # noqa: E402 a module of the tests


def leaderboard() -> str:
    """The groups of runs over seeds."""
    from labtrack.cli import cli

    line = "leaderboard --metric max:f1 --over seed --precision 4"
    with _recording() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        cli([*line.split(), "-s", str(folder / "mlflow.db")], standalone_mode=False)
    return _terminal(line, said.getvalue())


def plot() -> str:
    """Three runs in the terminal."""
    from labtrack.analysis.plot import Paper, Plotter

    with _recording() as folder:
        drawn = Plotter([str(folder / "mlflow.db")], ["unet-1", "gat-1", "mlp-1"], ["f1"]).draw(
            Paper(_WIDTH, _HEIGHT, colors=True)
        )
    return _terminal("plot unet-1 gat-1 mlp-1 -m f1", "\n".join(drawn.lines))


def _terminal(line: str, said: str) -> str:
    """A terminal in which a command was called."""
    from rich._export_format import CONSOLE_SVG_FORMAT

    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(f"\x1b[1m$ labtrack {line}\x1b[0m\n{said}".rstrip("\n")))
    form = _FONT.sub("", CONSOLE_SVG_FORMAT)
    found = console.export_svg(title="", code_format=form, unique_id=f"labtrack-{line.split(maxsplit=1)[0]}")
    return found.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


@contextlib.contextmanager
def _recording() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        learned(Path(name) / "mlflow.db")
        yield Path(name)


def report(file: Path) -> None:
    """The page of a report."""
    from playwright.sync_api import sync_playwright

    from labtrack.analysis import page
    from labtrack.analysis.board import Asked
    from labtrack.analysis.report import Wish

    with _recording() as folder, sync_playwright() as playwright:
        wish = Wish("max:f1", over="seed", metrics=("f1", "val_loss"))
        page.write(Asked([str(folder / "mlflow.db")]), folder / "report.html", wish)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport=_VIEW, color_scheme="light")
        shown.goto((folder / "report.html").as_uri())
        shown.check("#m0")
        shown.screenshot(path=file)
        browser.close()


def pages(file: Path) -> None:
    """MLflow's own pages, as `labtrack ui` shows them: the runs of an experiment with a curve beside them."""
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(ROOT / "tests" / "sync"))
    from sync_server import mlflow_bin

    from labtrack.ui import Settings, view

    settings = Settings(mlflow=str(mlflow_bin().parent), port=0)
    with _recording() as folder, view(str(folder / "mlflow.db"), settings) as here, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        shown.goto(here.url)
        shown.get_by_text("Experiments").first.wait_for()
        shown.goto(f"http://127.0.0.1:{here.port}/#/experiments/0/runs?compareRunsMode=CHART")
        shown.locator(".js-plotly-plot path.js-line").first.wait_for(state="attached")
        shown.get_by_role("link", name="unet-1").first.wait_for()
        shown.keyboard.press("Escape")  # a hint about searches, over the curves
        shown.screenshot(path=file)
        browser.close()


PICTURES: dict[str, Callable[[], str]] = {"leaderboard.svg": leaderboard, "plot.svg": plot}


def main() -> None:
    """Draws every picture."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")
    if "--no-browser" not in sys.argv:
        report(IMAGES / "report.png")
        pages(IMAGES / "ui.png")


if __name__ == "__main__":
    main()
