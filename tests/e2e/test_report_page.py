"""The report in a real browser: its figures are drawn, its themes differ, and a hostile answer does nothing."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from synthetic_run import write_synthetic_run

from rlaif_ray.report.html import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=5000",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_synthetic_run(tmp_path_factory.mktemp("runs") / "headlines-7").path)


def browse(report: Path, profile: Path, *flags: str) -> str:
    """Open the report in a browser with an empty profile, and return what it prints."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, report.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_every_panel_is_drawn_and_no_text_of_a_model_runs(report: Path, tmp_path: Path) -> None:
    page = browse(report, tmp_path, "--dump-dom")
    body = page[page.index("<body>") :]
    panels = re.findall(r'<div class="plot([^"]*)" data-figure="([^"]+)"', body)
    undrawn = {figure for classes, figure in panels if "js-plotly-plot" not in classes}
    # Folded panels are drawn when they are opened, at the size that they then have.
    folded = re.findall(r'data-figure="([^"]+)"', "".join(re.findall(r"<details>.*?</details>", body, re.DOTALL)))
    assert undrawn == set(folded)
    assert len(panels) - len(undrawn) == 44
    assert "<title>headlines-7 · rlaif-ray</title>" in page
    assert "&lt;script&gt;document.title = 'owned'&lt;/script&gt;" in body


@pytest.mark.long
@pytest.mark.parametrize("width", [1280, 500])
def test_light_and_dark_pages_are_painted(report: Path, tmp_path: Path, width: int) -> None:
    images = []
    # Blink's setting of the preferred scheme: 1 is light, 0 is dark.
    for scheme in (1, 0):
        image = tmp_path / f"{scheme}.png"
        browse(
            report, tmp_path / f"profile-{scheme}", f"--screenshot={image}", f"--window-size={width},1600",
            f"--blink-settings=preferredColorScheme={scheme}",
        )  # fmt: skip
        images.append(image.read_bytes())
    assert [struct.unpack(">II", image[16:24]) for image in images] == [(width, 1600)] * 2
    assert all(len(image) > 50_000 for image in images)
    assert images[0] != images[1]
