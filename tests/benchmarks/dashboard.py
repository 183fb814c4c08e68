"""How quickly the dashboard answers on the judged store, as its users see it.

``python -m tests.benchmarks.dashboard STORE`` starts ``spectra dashboard STORE``, opens every page
in Debian's Chromium without a window, and prints for each

- the first picture: a browser that knows nothing opens the page's address; until a figure with
  its lines is in the document (on the Overview: until its table is painted);
- a change of a choice, by the keyboard: from the key to the last stroke of the new figure.

Both are medians of ten, in milliseconds, measured inside the browser. A page with one static chart
of 100 points, served by Streamlit in the same way, is measured beside them: no page of Streamlit
can be quicker. Memory is that of all processes of the server. `tests.benchmarks.dashboard_store`
makes the store.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

HOST = "127.0.0.1"
FIRST_LIMIT, CHANGE_LIMIT, MEMORY_LIMIT = 2000, 500, 1024
_QUIET = 400
_CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

# Notes when something of a figure changes, when a table's canvas is written to, and when the user
# last did something. A figure is there when it has a line, point or image.
_WATCH = """
(() => {
  const seen = window.__seen = {first: null, last: null, input: null};
  const drawn = '.js-plotly-plot :is(.scatterlayer .trace, .heatmaplayer .hm, .imagelayer image, '
    + '.barlayer .trace, .contourlayer g, .shapelayer path)';
  const note = () => {
    seen.last = performance.now();
    if (seen.first === null) seen.first = seen.last;
  };
  const inFigure = (node) => {
    const element = node.nodeType === 1 ? node : node.parentElement;
    return element && element.closest && element.closest('.js-plotly-plot');
  };
  new MutationObserver((changes) => {
    if (seen.first === null && !document.querySelector(drawn)) return;
    if (seen.first === null || changes.some((change) => inFigure(change.target))) note();
  }).observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
  const write = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (...words) {
    if (window.__canvas && this.canvas.closest('[data-testid="stDataFrame"]')) note();
    return write.apply(this, words);
  };
  for (const kind of ['keydown', 'pointerdown', 'click'])
    document.addEventListener(kind, () => { seen.input = performance.now(); }, true);
})();
"""
_READY = """
(quiet) => {
  const app = document.querySelector('[data-testid="stApp"]');
  return app && app.getAttribute('data-test-script-state') === 'notRunning'
    && window.__seen.last !== null && performance.now() - window.__seen.last > quiet;
}
"""


@dataclass(frozen=True)
class Choice:
    """A widget by its key, and how it is changed: a select, a slider, a switch or a text."""

    key: str
    kind: str = "select"


PAGES: dict[str, tuple[Choice, ...]] = {
    "overview": (Choice("of"),),
    "trajectories": (Choice("until", "slider"), Choice("overlay", "switch")),
    "layers": (Choice("column"), Choice("one-run")),
    "matrix": (Choice("step", "slider"), Choice("layer")),
    "spectrum": (Choice("step", "slider"), Choice("view-of-the-spectrum")),
    "conditioning": (Choice("layers", "text"),),
    "training": (Choice("smooth"), Choice("against")),
    "compare": (Choice("compared"), Choice("by")),
}
"""The pages by their addresses, and the choices that are changed on each."""

_REFERENCE = """
import plotly.graph_objects as go
import streamlit as st

st.set_page_config(page_title="Reference", layout="wide")
colour = st.selectbox("Colour", ["black", "red", "green"], key="choice-colour")
line = go.Scatter(x=list(range(100)), y=[i * i % 17 for i in range(100)], line={"color": colour})
st.plotly_chart(go.Figure(line), theme=None)
"""


@dataclass
class Times:
    """What was measured of a page, in milliseconds."""

    first: list[float] = field(default_factory=list)
    settled: list[float] = field(default_factory=list)
    changes: dict[str, list[float]] = field(default_factory=dict)
    problem: str = ""


class Server:
    """A server of pages, its address, and its processes' memory."""

    def __init__(self, command: Sequence[str], port: int, log: Path) -> None:
        self.address = f"http://{HOST}:{port}"
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        start = time.monotonic()
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/_stcore/health", timeout=5) as answer:
                    answer.read()
                break
            except OSError:
                if self._process.poll() is not None or time.monotonic() - start > 60:
                    raise RuntimeError(f"No server:\n{log.read_text()[-4000:]}") from None
                time.sleep(0.02)
        self.start_seconds = time.monotonic() - start

    def memory(self) -> tuple[float, float]:
        """Return the present and the highest resident memory of all its processes, in MiB."""
        found = {"VmRSS": 0.0, "VmHWM": 0.0}
        for folder in Path("/proc").iterdir():
            try:
                if not folder.name.isdigit() or os.getpgid(int(folder.name)) != self._process.pid:
                    continue
                lines = (folder / "status").read_text().splitlines()
            except OSError:
                continue  # ended meanwhile
            for line in lines:
                name, _, value = line.partition(":")
                if name in found:
                    found[name] += int(value.split()[0]) / 1024
        return found["VmRSS"], found["VmHWM"]

    def stop(self) -> None:
        """End it and its children."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def dashboard(store: Path, folder: Path) -> Iterator[Server]:
    """Serve the dashboard over a store."""
    port = _free_port()
    command = [sys.executable, "-m", "spectra", "dashboard", str(store), "--port", str(port)]
    server = Server(command, port, folder / "dashboard.log")
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def reference(folder: Path) -> Iterator[Server]:
    """Serve a page with one static chart, with the dashboard's options."""
    port = _free_port()
    script = folder / "reference.py"
    script.write_text(_REFERENCE)
    options = {"address": HOST, "port": port, "headless": "true", "fileWatcherType": "none"}
    flags = [f"--server.{name}={value}" for name, value in options.items()]
    flags.append("--browser.gatherUsageStats=false")
    command = [sys.executable, "-m", "streamlit", "run", str(script), *flags]
    server = Server(command, port, folder / "reference.log")
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def visit(browser: Browser, url: str, canvas: bool) -> Iterator[Page]:
    """Open a page in a browser that has seen nothing yet."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(90_000)
    try:
        page = context.new_page()
        page.add_init_script(f"window.__canvas = {'true' if canvas else 'false'};{_WATCH}")
        page.goto(url, wait_until="commit")
        yield page
    finally:
        context.close()


def measure(
    browser: Browser,
    url: str,
    choices: Sequence[Choice],
    visits: int,
    changes: int,
    canvas: bool = False,
    picture: Path | None = None,
) -> Times:
    """Measure the first picture so many times, and so many changes of each choice."""
    times = Times()
    for number in range(visits):
        try:
            with visit(browser, url, canvas) as page:
                page.wait_for_function(_READY, arg=_QUIET, polling=50)
                seen = page.evaluate("window.__seen")
                times.first.append(seen["first"])
                times.settled.append(seen["last"])
                if number == visits - 1:
                    if picture is not None:
                        page.screenshot(path=picture)
                    for choice in choices:
                        times.changes[choice.key] = _changes(page, choice, changes)
        except Exception as error:
            times.problem = str(error).splitlines()[0]
            if picture is not None and not page.is_closed():
                page.screenshot(path=picture)
            break
    return times


def _changes(page: Page, choice: Choice, count: int) -> list[float]:
    found = []
    widget = page.locator(f".st-key-choice-{choice.key}").first
    widget.wait_for(timeout=10_000)
    for number in range(count):
        page.wait_for_timeout(150)
        page.evaluate("window.__seen.last = null")
        back = number % 2 == 1
        if choice.kind == "slider":
            thumb = widget.get_by_role("slider").first
            thumb.focus()
            thumb.press("ArrowRight" if back else "ArrowLeft")
        elif choice.kind == "switch":
            widget.locator("input").focus()
            page.keyboard.press("Space")
        elif choice.kind == "text":
            widget.locator("input").fill("" if back else "0-15")
            page.keyboard.press("Enter")
        elif widget.get_by_role("radio").count():
            widget.locator("input:checked").focus()
            page.keyboard.press("ArrowUp" if back else "ArrowDown")
        else:
            widget.locator("input").first.click()
            page.keyboard.press("ArrowUp" if back else "ArrowDown")
            page.keyboard.press("Enter")
        page.wait_for_function(_READY, arg=_QUIET, polling=50)
        seen = page.evaluate("window.__seen")
        found.append(seen["last"] - seen["input"])
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--pages", default=",".join(PAGES), help="default: all")
    parser.add_argument("--visits", type=int, default=10)
    parser.add_argument("--changes", type=int, default=10)
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each page")
    chosen = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("There is no chromium on the PATH: apt-get install chromium.")
    if chosen.pictures is not None:
        chosen.pictures.mkdir(parents=True, exist_ok=True)
    names = chosen.pages.split(",")
    with (
        tempfile.TemporaryDirectory() as temporary,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM) as browser,
    ):
        folder = Path(temporary)
        print(f"{'page':14}{'choice':12}{'first':>8}{'settled':>9}{'change':>8}{'worst':>8}   ms")
        with reference(folder) as server:
            colour = (Choice("colour"),)
            times = measure(browser, server.address, colour, chosen.visits, chosen.changes)
            _tell("(reference)", times)
        with dashboard(chosen.store, folder) as server:
            first = names[0]
            with visit(browser, _address(server, first), first == "overview") as page:
                page.wait_for_function(_READY, arg=_QUIET, polling=50)
                cold = page.evaluate("window.__seen.first")
            print(
                f"{'(cold)':26}{cold:8.0f}   {first}, the first visit after a start that took "
                f"{server.start_seconds:.1f} s"
            )
            for name in names:
                picture = None if chosen.pictures is None else chosen.pictures / f"{name}.png"
                times = measure(
                    browser,
                    _address(server, name),
                    PAGES.get(name, ()),
                    chosen.visits,
                    chosen.changes,
                    canvas=name == "overview",
                    picture=picture,
                )
                _tell(name, times)
            now, highest = server.memory()
            log = (folder / "dashboard.log").read_text()
        print(f"memory {now:.0f} MiB, at most {highest:.0f} MiB (limit {MEMORY_LIMIT})")
        print(f"limits: first picture {FIRST_LIMIT} ms, change {CHANGE_LIMIT} ms")
        if "Traceback" in log:
            print(log[-3000:])


def _address(server: Server, page: str) -> str:
    return server.address + ("" if page == next(iter(PAGES)) else f"/{page}")


def _tell(name: str, times: Times) -> None:
    def middle(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.0f}" if values else "–"

    first = f"{middle(times.first):>8}{middle(times.settled):>9}"
    if not times.changes:
        print(f"{name:26}{first}   {times.problem}", flush=True)
    for number, (key, values) in enumerate(times.changes.items()):
        begin = first if number == 0 else " " * 17
        label = name if number == 0 else ""
        worst = f"{max(values):.0f}" if values else "–"
        over = "" if not values or statistics.median(values) <= CHANGE_LIMIT else "  over"
        print(f"{label:14}{key:12}{begin}{middle(values):>8}{worst:>8}{over}", flush=True)
    if times.changes and times.problem:
        print(f"{'':14}{times.problem}", flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
