"""The wheel: everything is in it, and nothing that does not belong on the path."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, cwd=out)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_puts_only_our_packages_on_the_path(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"spectra", "checkpoints_index"}
    assert not [name for name in names if "__pycache__" in name or "tests/" in name]


def test_the_wheel_brings_the_dashboard_and_the_bundled_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"spectra/_app/main.py", "spectra/_app/views/trajectories.py"} <= names
    bundled = "spectra/training/bundled"
    assert {f"{bundled}/model.safetensors", f"{bundled}/tokenizer.json"} <= names
    assert wheel.stat().st_size < 8 * 2**20


def test_the_wheels_command_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import sys, spectra, spectra.dashboard as d, spectra.cli\n"
        f"assert spectra.__file__.startswith({str(site)!r}), spectra.__file__\n"
        f"assert str(d._script()).startswith({str(site)!r}) and d._script().is_file()\n"
        "sys.exit(spectra.cli.main(['index', 'nowhere']))"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "nowhere is not a folder" in result.stderr
