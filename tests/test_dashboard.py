"""How the dashboard's server is started."""

from __future__ import annotations

import subprocess
import sys
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
