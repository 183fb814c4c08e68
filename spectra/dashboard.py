"""Starts the Streamlit dashboard over a folder of runs."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

ADDRESS = "127.0.0.1"
FIRST_PORT = 8501
_PORTS_TRIED = 50
# Tells the server's process which page to open once it answers.
_OPEN = "SPECTRA_OPEN_PAGE"
_START_SECONDS = 30.0


def dashboard_command(root: Path | str, address: str, port: int) -> list[str]:
    """Return the command that serves the dashboard.

    Raises
    ------
    FileNotFoundError
        If `root` is not a folder.
    ModuleNotFoundError
        If Streamlit is not installed.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder. Give the one that holds your runs.")
    require_streamlit()
    options = {
        "server.address": address,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
        # Streamlit's own red reads as a warning; these stand apart from either ground.
        "theme.light.primaryColor": "#1f6f8b",
        "theme.dark.primaryColor": "#4aa3c0",
        # The ground that the figures' dark colours were chosen on; insets are filled with it.
        "theme.dark.backgroundColor": "#0e1117",
        "theme.dark.secondaryBackgroundColor": "#262730",
        # No page means to show a bare string or value of its script.
        "runner.magicEnabled": "false",
        # Python collects garbage anyway; a full round after every choice would delay the next.
        "runner.postScriptGC": "false",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    script = str(_script())
    return [
        sys.executable,
        "-m",
        "spectra.dashboard",
        "run",
        script,
        *flags,
        "--",
        str(root.resolve()),
    ]


def serve(root: Path | str, address: str = ADDRESS, port: int | None = None) -> int:
    """Serve the dashboard until it is interrupted, in this process' place where that is possible.

    Parameters
    ----------
    root : Path or str
        Folder of runs.
    address : str
        Address to bind to; only this machine by default.
    port : int, optional
        The first free one from 8501 on by default.

    Returns
    -------
    int
        Exit status.

    Raises
    ------
    FileNotFoundError, ModuleNotFoundError
        As `dashboard_command`.
    OSError
        If the port, or every port tried, is taken.
    """
    port = _free_port(address, port)
    command = dashboard_command(root, address, port)
    url = f"http://{address}:{port}"
    print(f"Dashboard over {root}: {url} (Ctrl-C ends it)", flush=True)
    environment = dict(os.environ)
    if sys.stdout.isatty() and address == ADDRESS:
        environment[_OPEN] = url
    if os.name == "posix":
        # The server takes this process' place: its memory, and a signal goes where it is meant to.
        os.execve(command[0], command, environment)
    with subprocess.Popen(command, env=environment) as server:
        try:
            return server.wait()
        except KeyboardInterrupt:
            server.terminate()
            server.wait()
            return 0


def require_streamlit() -> None:
    """Raise ModuleNotFoundError, with what to install, if Streamlit is missing."""
    if importlib.util.find_spec("streamlit") is None:
        raise ModuleNotFoundError(
            "The dashboard needs Streamlit, which is not installed. Install Spectra with its "
            'extra "app": pip install ".[app]" in a clone.'
        )


def _script() -> Path:
    """Return the app's entry script: inside the installed package, or in a clone's app/."""
    installed = Path(__file__).parent / "_app" / "main.py"
    return installed if installed.is_file() else Path(__file__).parents[1] / "app" / "main.py"


def _free_port(address: str, wanted: int | None) -> int:
    for port in [wanted] if wanted else range(FIRST_PORT, FIRST_PORT + _PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if wanted:
                    raise OSError(
                        f"Port {wanted} on {address} is taken; choose another."
                    ) from error
                continue
            return port
    raise OSError(f"No free port on {address} from {FIRST_PORT} on; choose one with --port.")


def _run_streamlit() -> None:
    """Run Streamlit in this process, as ``python -m streamlit`` does, with the pages' libraries.

    They are loaded while the server starts, so that the first visitor does not wait for them.
    """
    from streamlit.web import cli

    threading.Thread(target=_load_libraries, name="spectra-loading", daemon=True).start()
    if page := os.environ.pop(_OPEN, ""):
        threading.Thread(target=_open_page, args=(page,), name="spectra-page", daemon=True).start()
    cli.main(prog_name="streamlit")


def _open_page(url: str) -> None:
    """Open the dashboard in the user's browser, as soon as the server answers."""
    parts = urlsplit(url)
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        try:
            socket.create_connection((parts.hostname or ADDRESS, parts.port or 0), 1).close()
        except OSError:
            time.sleep(0.1)
            continue
        webbrowser.open(url)
        return


def _load_libraries() -> None:
    import pandas as pd

    import spectra.store  # noqa: F401  (with pyarrow)
    from spectra import figures

    # The first figure that Plotly draws loads half of it.
    step = pd.DataFrame({"run": ["a"], "method": ["a"], "step": [0], "loss": [1.0]})
    figures.training(step, ["loss"]).to_json()


if __name__ == "__main__":
    _run_streamlit()
