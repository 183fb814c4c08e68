"""Pictures of the dashboard's pages, for docs/dashboard.md.

``python -m tests.benchmarks.screenshots ROOT OUT`` serves ``spectra dashboard ROOT``, opens every
page in Debian's Chromium without a window, at a laptop's width, and writes
``OUT/dashboard-PAGE.png``, and of some pages ``OUT/dashboard-PAGE-dark.png``. Colours are
reduced to a palette where a picture would be larger than 200 KB.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from tests.benchmarks.dashboard import _CHROMIUM, _QUIET, _READY, _WATCH, PAGES, dashboard

WIDTH, HEIGHT = 1280, 800
HIGHER = {"trajectories": 1060, "matrix": 1000, "conditioning": 1000}
"""Pages whose figure does not end at that height."""
DARK = ("trajectories", "matrix")
_COLOURS = 256
_MOST_BYTES = 200_000


def take(browser: Browser, url: str, dark: bool, size: tuple[int, int]) -> bytes:
    """Return a PNG of a page, once it is drawn."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
    )
    context.set_default_timeout(90_000)
    try:
        page = context.new_page()
        page.add_init_script(f"window.__canvas = true;{_WATCH}")
        page.goto(url, wait_until="commit")
        page.wait_for_function(_READY, arg=_QUIET, polling=50)
        page.mouse.move(size[0] - 1, size[1] - 1)
        page.wait_for_timeout(500)
        return page.screenshot()
    finally:
        context.close()


def reduced(picture: bytes) -> bytes:
    """Return the PNG, with a palette of few colours where it is large."""
    if len(picture) < _MOST_BYTES:
        return picture
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image = image.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Write the pictures and tell their sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder of runs")
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--pages", default=",".join(PAGES), help="default: all")
    parser.add_argument(
        "--choices",
        action="append",
        default=[],
        metavar="PAGE?QUERY",
        help="choices of a page as its URL has them, such as 'layers?column=kappa'",
    )
    parser.add_argument("--height", type=int, help=f"default: {HEIGHT}, or what the page needs")
    chosen = parser.parse_args()
    choices = dict(words.split("?", 1) for words in chosen.choices)
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("There is no chromium on the PATH: apt-get install chromium.")
    chosen.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as temporary,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM) as browser,
        dashboard(chosen.root, Path(temporary)) as server,
    ):
        for name in chosen.pages.split(","):
            address = f"{server.address}/{'' if name == 'overview' else name}"
            if name in choices:
                address += f"?{choices[name]}"
            size = (WIDTH, chosen.height or HIGHER.get(name, HEIGHT))
            for dark in (False, True)[: 1 + (name in DARK)]:
                content = reduced(take(browser, address, dark, size))
                path = chosen.out / f"dashboard-{name}{'-dark' if dark else ''}.png"
                path.write_bytes(content)
                print(f"{path}: {len(content) / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
