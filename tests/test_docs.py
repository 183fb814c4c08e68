"""The README does what it says: its code blocks run, its commands parse and work."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from spectra.cli import _parser, main
from spectra.cli.plot import read_options
from spectra.figures.options import FIGURES, figure_called
from spectra.figures.style import PRESETS
from spectra.store import DRIFT_QUANTITIES, SPECTRUM_ARRAYS, TRAINING_QUANTITIES
from spectra.training import METHODS, preset
from tests.helpers import shake, tiny_llama, tiny_model_folder, train_steps
from tests.training.tiny_runs import trained_parameters

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("console") for line in block.splitlines() if line.strip()]
    return [shlex.split(line) for line in lines]


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {words[1] for words in commands() if words[0] == "make"}
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_extra_it_names_exists() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ("train", "app", "cluster", "all"):
        assert f"`{extra}`" in README or f"[{extra}]" in README
        assert re.search(rf"^{extra} = \[", pyproject, flags=re.MULTILINE)


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_its_table_of_methods_is_the_registry() -> None:
    """The numbers are those of SmolLM2-135M: 30 layers, q_proj 576×576 and v_proj 192×576."""
    rows = re.findall(
        r"^\| `([a-z-]+)` \| (.*?) \| (.*?) \| ([\d,]+) \| (yes|no) \|$", README, re.M
    )
    assert [row[0] for row in rows] == list(METHODS)
    for name, title, trains, number, rewrites in rows:
        method = METHODS[name]
        link = f"[{method.title}](https://arxiv.org/abs/{method.paper})"
        assert title == (link if method.paper else method.title)
        assert trains == method.trains and rewrites == ("yes" if method.rewrites_base else "no")
        shapes = [(576, 576), (192, 576)] * 30
        count = 134_515_008
        if not method.trains_everything:
            count = trained_parameters(name, shapes, preset("small", name))
        assert int(number.replace(",", "")) == count


def test_its_commands_run_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model_folder(tmp_path / "base-model")
    model = tiny_llama()
    shake(model)
    model.save_pretrained(tmp_path / "outputs" / "checkpoint-10")
    rows = [{"question": "the old river", "answer": "sings a song"}] * 8
    Path("train.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    for words in commands():
        if words[0] != "spectra":
            continue
        options = _parser().parse_args(words[1:])
        if words[1] == "dashboard":
            continue  # tests/app starts it
        assert options.run is not None
        assert main(words[1:]) == 0, words
    assert Path("trajectory.pdf").read_bytes().startswith(b"%PDF")


def test_its_python_runs_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in blocks("python"):
        model = tiny_llama()
        steps = train_steps(model, 1, 3)
        scope = {
            "model": model,
            "batches": range(3),
            "train_step": lambda _, steps=steps: next(steps)[1],
        }
        exec(compile(code, "README.md", "exec"), scope)
    assert Path("trajectory.pdf").read_bytes().startswith(b"%PDF")
    assert os.path.isdir("runs/mine/drift")
    trained = [p for p in scope["model"].parameters() if p.requires_grad]
    assert trained and all(isinstance(p, torch.nn.Parameter) for p in trained)


@pytest.mark.parametrize("name", ["dashboard", "figures"])
def test_the_commands_and_links_of_other_pages_hold(name: str) -> None:
    """Each command is one that is read to its end; each picture and page is there."""
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    written = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in written for line in block.splitlines() if line.strip()]
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "spectra"
        options = _parser().parse_args(words[1:])
        if words[1] == "plot":
            read_options(figure_called(options.figure), options)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / "docs" / target).exists(), target


def test_the_pages_of_figures_are_complete() -> None:
    text = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    told = text.partition("## Presets")[0]
    assert re.findall(r"^\| `([a-z-]+)` \| ", told, re.M) == list(FIGURES)
    presets = re.findall(r"^\| `([a-z0-9-]+)` \| ([\d.]+) (in|cm) \|", text, re.M)
    assert [name for name, _, _ in presets] == list(PRESETS)
    for name, width, unit in presets:
        inches = float(width) / (2.54 if unit == "cm" else 1)
        assert inches == pytest.approx(PRESETS[name].width)


def test_the_tables_columns_are_told() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    for column in (*DRIFT_QUANTITIES, *SPECTRUM_ARRAYS, *TRAINING_QUANTITIES):
        assert f"`{column}`" in text, column
