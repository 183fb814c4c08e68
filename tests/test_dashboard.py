"""How the dashboard's server is started."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spectra.dashboard import ADDRESS, dashboard_command
from spectra.figures.screen_marks import ground


def flags(command: list[str]) -> dict[str, str]:
    options = command[: command.index("--")]
    return {name: value for name, value in zip(options, options[1:], strict=False) if "--" in name}


def test_it_serves_this_machine_and_shows_no_trace(tmp_path: Path) -> None:
    command = dashboard_command(tmp_path, ADDRESS, 8501)

    assert flags(command)["--server.address"] == "127.0.0.1"
    assert flags(command)["--client.showErrorDetails"] == "none"
    assert flags(command)["--browser.gatherUsageStats"] == "false"
    assert command[-2:] == ["--", str(tmp_path.resolve())]


def test_a_dark_page_is_the_ground_of_dark_figures(tmp_path: Path) -> None:
    """Insets are filled with it, and the palette was chosen on it."""
    given = flags(dashboard_command(tmp_path, ADDRESS, 8501))

    assert given["--theme.dark.backgroundColor"] == ground(True)


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        dashboard_command(tmp_path / "nowhere", ADDRESS, 8501)


def test_the_server_loads_what_the_first_page_needs_before_it_is_asked() -> None:
    code = (
        "import sys, spectra.dashboard as d\n"
        "d._load_libraries()\n"
        "print(sorted({'pandas', 'pyarrow.parquet', 'plotly.graph_objs'} - set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there a signal ends the parent alone")
def test_a_signal_to_the_command_ends_the_server(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "spectra", "dashboard", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: answers(port))
            server.send_signal(signal.SIGTERM)
            server.wait(30)
            # A server in a process of its own would answer on.
            assert not answers(port)
        finally:
            server.kill()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, port)) == 0


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.1)
