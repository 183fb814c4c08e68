"""The walls between the rooms: who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a room may import of ours, beside itself. Data flows one way: training → recording →
# (files) → checkpoints_index → analysis (linalg, metrics) → store → figures → app.
ALLOWED = {
    "checkpoints_index": set(),
    "spectra/linalg": set(),
    "spectra/metrics": set(),
    "spectra/store": set(),
    "spectra/figures": set(),
    "spectra/methods": {"spectra.linalg"},
    "spectra/recording": {"checkpoints_index", "spectra.store"},
    "spectra/analysis": {
        "checkpoints_index",
        "spectra.cache_folder",
        "spectra.linalg",
        "spectra.metrics",
        "spectra.store",
    },
    "spectra/training": {
        "checkpoints_index",
        "spectra.methods",
        "spectra.recording",
        "spectra.store",
    },
    "spectra/exporting": {
        "checkpoints_index",
        "spectra.analysis.bases",
        "spectra.store",
        "spectra.training.trainer",
    },
    "app": {"spectra.store", "spectra.figures"},
}
# Libraries that a room must never touch.
FORBIDDEN = {
    "checkpoints_index": {"transformers", "peft", "pandas", "streamlit"},
    "spectra/linalg": {"transformers", "peft", "pandas", "safetensors", "streamlit"},
    "spectra/metrics": {"transformers", "peft", "pandas", "safetensors", "streamlit"},
    "spectra/store": {"torch", "transformers", "peft", "streamlit", "matplotlib", "plotly"},
    "spectra/figures": {"torch", "transformers", "peft", "streamlit", "pyarrow"},
    "spectra/recording": {"peft", "streamlit", "pandas"},
    "spectra/analysis": {"transformers", "peft", "streamlit"},
    "spectra/exporting": {"transformers", "pandas", "streamlit"},
    "app": {"torch", "transformers", "peft", "numpy", "scipy"},
}
# The one file of a room that may, where it needs to.
EXCEPTIONS = {
    "spectra/recording/callback.py": {"transformers"},
    "checkpoints_index/peft_layers.py": {"peft", "transformers"},
}
# Likewise of our own: what a saved adapter leaves out, its tuner computes again.
OWN_EXCEPTIONS = {"checkpoints_index/peft_layers.py": {"spectra.methods"}}


def imports(room: str) -> dict[str, set[str]]:
    """Every module that each file of a room imports, by the file's path."""
    found = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
                if node.module == "spectra":
                    names |= {f"spectra.{alias.name}" for alias in node.names}
        found[str(path.relative_to(ROOT))] = names
    assert found, f"{room} has no files"
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_along_the_data_flow_only(room: str) -> None:
    own = room.replace("/", ".")
    for path, names in imports(room).items():
        for name in names:
            if name == "spectra" or name.split(".")[0] not in ("spectra", "checkpoints_index"):
                continue
            allowed = {own, *ALLOWED[room], *OWN_EXCEPTIONS.get(path, ())}
            assert any(name == a or name.startswith(f"{a}.") for a in allowed), (path, name)


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_leave_foreign_libraries_alone(room: str) -> None:
    for path, names in imports(room).items():
        touched = {name.split(".")[0] for name in names} & FORBIDDEN[room]
        assert touched <= EXCEPTIONS.get(path, set()), (path, touched)


def in_fresh_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return result.stdout.strip()


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'matplotlib', 'plotly', 'streamlit'}"
    code = f"import sys, spectra; print(sorted({heavy} & set(sys.modules)))"
    assert in_fresh_python(code) == "[]"


def test_every_public_name_can_be_loaded() -> None:
    code = "import spectra; print([n for n in spectra.__all__ if getattr(spectra, n) is None])"
    assert in_fresh_python(code) == "[]"


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("SorsaConfig", "peft", "train"),
        ("SpectraCallback", "transformers", "train"),
        ("LightningCallback", "lightning pytorch_lightning", "lightning"),
    ],
)
def test_a_missing_extra_is_named(name: str, missing: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules |= dict.fromkeys({missing.split()!r})\n"
        "import spectra\n"
        "try:\n"
        f"    spectra.{name}\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    assert f"[{extra}]" in in_fresh_python(code)
