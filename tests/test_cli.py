"""The ``spectra`` command: what it prints, writes and returns."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoKrConfig, VeraConfig, get_peft_model
from safetensors.torch import save_file

from spectra.analysis.base_cache import BaseCache
from spectra.cli import main
from spectra.linalg import decompose
from spectra.store import Run
from tests.helpers import gaussian, tiny_llama, tiny_model_folder

COMMANDS = (
    *("demo", "train", "sweep", "index", "analyze", "watch", "plot", "dashboard", "report"),
    *("evaluate", "cache"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two trained and analysed runs, made through the command line."""
    root = tmp_path_factory.mktemp("cli")
    model = tiny_model_folder(root / "model")
    data = root / "data.jsonl"
    words = ["the old river sings", "a small bird", "of the song"]
    rows = [{"question": q, "answer": q} for q in words * 4]
    data.write_text("\n".join(json.dumps(r) for r in rows))
    for method in ("lora", "sorsa"):
        options = "--rank 3 --batch-size 2 --micro-batch-size 2 --max-steps 4 --every 2"
        status = main(
            ["train", "--model", str(model), "--method", method, "--data", str(data)]
            + ["--out", str(root / "runs" / method), "--max-length", "64", *options.split()]
        )
        assert status == 0
        assert main(["analyze", str(root / "runs" / method)]) == 0
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_a_command_to_paste(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"Example: spectra {command}" in capsys.readouterr().out.replace("\n", " ")


def test_wrong_usage_exits_with_2() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plot", "pie"])
    assert stop.value.code == 2


def test_a_failure_is_one_clear_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(tmp_path / "nowhere")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("spectra: ")
    assert "Traceback" not in captured.err


def test_index_lists_a_runs_snapshots(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(runs / "runs" / "sorsa")]) == 0
    about, modules, head, *rows = capsys.readouterr().out.splitlines()
    assert about == f"sorsa: 3 checkpoints, method sorsa, base {runs / 'model'}"
    assert modules == "  2 layers × q_proj 32×32 of rank 6, v_proj 16×32 of rank 6; float32"
    assert head.split() == ["step", "format", "layers", "size", "state", "path"]
    assert [row.split()[:3] for row in rows] == [[s, "snapshot", "2"] for s in ("0", "2", "4")]
    assert all("complete" in row for row in rows)
    assert {row.index("complete") for row in rows} == {head.index("state")}
    assert main(["index", str(runs / "runs" / "sorsa"), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [c["step"] for c in listed] == [0, 2, 4]
    first = listed[0]["matrices"][0]
    assert (first["layer"], first["module"], first["shape"]) == (0, "q_proj", [32, 32])
    assert set(listed[0]) == {
        *("path", "step", "method", "base", "matrices", "format", "series", "revisions", "size"),
        *("state", "problem"),
    }


def test_index_marks_what_it_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "out"
    tiny_model_folder(root / "checkpoint-1")
    for name in ("checkpoint-2", "checkpoint-3", "step-1"):
        shutil.copytree(root / "checkpoint-1", root / name)
    whole = (root / "checkpoint-1" / "model.safetensors").read_bytes()
    (root / "checkpoint-2" / "model.safetensors").write_bytes(whole[:-1])
    (root / "checkpoint-3" / "model.safetensors").write_bytes(b"\xff" * len(whole))
    (root / "elsewhere").symlink_to(tmp_path)
    assert main(["index", str(root)]) == 0
    out = capsys.readouterr().out
    assert "out: 4 checkpoints, method full-ft" in out
    assert f"ambiguous: Step 1 stands for 2 checkpoints: {root / 'checkpoint-1'}, " in out
    assert "incomplete  checkpoint-2" in out and "is shorter than it says itself" in out
    assert "broken      checkpoint-3" in out and "no whole" not in out
    assert "elsewhere is a link out of the folder" in out
    assert main(["index", str(root), "--json"]) == 0
    captured = capsys.readouterr()
    listed = {Path(c["path"]).name: c for c in json.loads(captured.out)}
    assert {name: c["state"] for name, c in listed.items()} == {
        "checkpoint-1": "complete",
        "checkpoint-2": "incomplete",
        "checkpoint-3": "broken",
        "step-1": "complete",
    }
    assert "Step 1 stands for 2" in listed["checkpoint-1"]["problem"]
    assert "is shorter than" in listed["checkpoint-2"]["problem"]
    assert "elsewhere is a link out of the folder" in captured.err


def test_index_fails_only_where_nothing_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", str(tmp_path)]) == 1
    assert "looked for model.safetensors" in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    assert main(["index", str(tmp_path)]) == 0
    assert "broken" in capsys.readouterr().out


def test_names_cannot_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = tmp_path / "\x1b[2J\u202e\nevil" / "checkpoint-1"
    tensors = {"layers.0.q\x1b[31m\n.weight": torch.zeros(2, 3)}
    hostile.mkdir(parents=True)
    save_file(tensors, hostile / "model.safetensors")
    (hostile / "..\x07").symlink_to("/")
    (hostile.parent / "checkpoint-2").mkdir()
    (hostile.parent / "checkpoint-2" / "model.safetensors").write_bytes(b"\xff" * 64)
    assert main(["index", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert r"\x1b[2J\u202e\nevil" in out and r"q\x1b[31m\n 2×3" in out


def test_names_in_progress_bars_cannot_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_model_folder(tmp_path / "base")
    for name in ("\x1b[2J\a\nevil", "x" * 240):
        tiny_model_folder(tmp_path / name / "checkpoint-1", seed=1)
        words = ["analyze", str(tmp_path / name), "--base", str(base), "--out"]
        assert main([*words, str(tmp_path / "runs" / name)]) == 0
    shown = capsys.readouterr().err
    assert r"Analysing \x1b[2J\x07\nevil:" in shown
    assert all(bar.isprintable() for line in shown.splitlines() for bar in line.split("\r"))
    assert f"Analysing {'x' * 40}:" in shown


def test_index_shows_no_shape_that_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in (VeraConfig, LoKrConfig):
        config = kind(r=4, target_modules=["q_proj"])
        get_peft_model(tiny_llama(), config).save_pretrained(str(tmp_path / kind.__name__))
    assert main(["index", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 layers × q_proj; float32" in out
    assert "2 layers × q_proj 32×? of rank 4; float32" in out
    assert main(["index", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shapes = {c["method"]: c["matrices"][0]["shape"] for c in found}
    assert shapes == {"lokr": [None, None], "vera": [32, None]}


def test_experts_are_listed_together_by_a_name_that_modules_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, seed in (("base", 0), ("trained/checkpoint-1", 1)):
        (tmp_path / folder).mkdir(parents=True)
        tensors = {
            f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight": gaussian(
                6, 4, 10 * layer + expert + 100 * seed
            )
            for layer in range(2)
            for expert in range(3)
        }
        tensors["model.layers.0.self_attn.q_proj.weight"] = gaussian(4, 4, seed)
        save_file(tensors, tmp_path / folder / "model.safetensors")
    assert main(["index", str(tmp_path / "trained")]) == 0
    listed = capsys.readouterr().out
    assert "experts.*.w1 6×4 (3)" in listed and "q_proj 4×4;" in listed
    words = ["analyze", str(tmp_path / "trained"), "--base", str(tmp_path / "base")]
    assert main([*words, "--out", str(tmp_path / "run"), "--modules", "experts.*.w1"]) == 0
    assert "12 rows: 2 steps × 2 layers × 3 modules" in capsys.readouterr().out


def test_names_in_errors_and_warnings_cannot_either(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    out = tmp_path / "\x1b[31m"
    tiny_model_folder(out / "checkpoint-1", seed=1)
    (out / "checkpoint-2").mkdir()
    (out / "checkpoint-2" / "model.safetensors").write_bytes(b"")
    spectra = str(Path(sys.executable).with_name("spectra"))
    words = [spectra, "analyze", str(out), "--base", str(base), "--out", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert r"Left for the next time: " in done.stderr and r"\x1b[31m/checkpoint-2" in done.stderr
    assert "\x1b[31m" not in done.stderr
    (out / "checkpoint-2" / "model.safetensors").write_bytes(b"\xff" * 64)
    failed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("spectra: ") and failed.stderr.count("\n") == 1
    assert r"\x1b[31m/checkpoint-2" in failed.stderr and "\x1b" not in failed.stderr


def test_index_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    tiny_model_folder(tmp_path / "out" / "checkpoint-1")
    assert main(["index", str(tmp_path / "out")]) == 0
    (kept,) = (tmp_path / "cache" / "index").iterdir()
    assert str(tmp_path / "out") in kept.read_text()
    first = capsys.readouterr().out
    assert main(["index", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == first
    # Of decompositions there are none.
    assert main(["cache"]) == 0
    assert "0 entries" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png", "html"])
@pytest.mark.parametrize("figure", ["trajectory", "curves", "training"])
def test_every_figure_in_every_format(
    figure: str, suffix: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"{figure}.{suffix}"
    chosen = [str(runs / "runs" / m) for m in ("lora", "sorsa")]
    assert main(["plot", figure, *chosen, "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert out.stat().st_size > 1000


def test_plot_takes_modules_layers_and_steps(runs: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.svg", tmp_path / "part.svg"
    run = str(runs / "runs" / "sorsa")
    assert main(["plot", "trajectory", run, "--out", str(whole)]) == 0
    options = ["--modules", "q_proj", "--layers", "1", "--steps", "0-2", "--axes", "free"]
    assert main(["plot", "trajectory", run, "--out", str(part), *options]) == 0
    assert "v_proj" in whole.read_text() and "v_proj" not in part.read_text()


def test_a_folder_of_runs_stands_for_its_runs(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(runs / "runs")
    assert main(["analyze", folder]) == 0
    assert main(["index", folder]) == 0
    listed = capsys.readouterr().out
    assert "lora: 3 checkpoints" in listed and "sorsa: 3 checkpoints" in listed
    for figure in ("trajectory", "training"):
        out = tmp_path / f"{figure}.svg"
        assert main(["plot", figure, folder, "--out", str(out)]) == 0
        assert "lora" in out.read_text() and "sorsa" in out.read_text()


def test_runs_of_one_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    for place in ("first", "second"):
        shutil.copytree(runs / "runs" / "lora", tmp_path / place / "lora")
    for figure in ("trajectory", "training"):
        out = tmp_path / f"{figure}.svg"
        assert main(["plot", figure, str(tmp_path), "--out", str(out)]) == 0
        assert "first/lora" in out.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plot", "trajectory", "nowhere", "--out", "a.pdf"], "nowhere is not a folder"),
        (["plot", "curves", "RUN", "--column", "a,b", "--out", "a.pdf"], "a,b"),
        (["plot", "curves", "RUN", "--layers", "x", "--out", "a.pdf"], "0-11 or 3,5,7"),
        (["report", "nowhere", "--out", "a.html"], "nowhere is not a folder"),
        (["dashboard", "nowhere"], "nowhere is not a folder"),
        (["train", "--model", "m", "--data", "d.jsonl", "--out", "o"], "d.jsonl does not exist"),
    ],
)
def test_foreseeable_mistakes_are_one_line(
    words: list[str],
    message: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = str(runs / "runs" / "lora")
    assert main([run if w == "RUN" else w for w in words]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_a_run_is_not_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_model_folder(tmp_path / "base")
    tiny_model_folder(tmp_path / "checkpoint-1", seed=1)
    words = ["analyze", str(tmp_path / "checkpoint-1"), "--base", str(base)]
    capsys.readouterr()
    assert main([*words, "--out", str(base / "config.json")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "config.json is a file. Choose another --out." in error


def test_no_workers_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["analyze", "runs", "--workers", "0"])
    assert "must be at least 1, or -1 for all cores, got 0" in capsys.readouterr().err


def test_an_unknown_format_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(runs / "runs" / "sorsa")
    assert main(["plot", "trajectory", run, "--out", str(tmp_path / "a.docx")]) == 1
    assert ".pdf" in capsys.readouterr().err


def test_the_report_is_one_page_that_needs_no_network(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    chosen = [str(runs / "runs" / m) for m in ("lora", "sorsa")]
    assert main(["report", *chosen, "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "<script src=" not in page and "<link" not in page
    assert "vector_drift" not in page and "Provenance" in page and "learning_rate" in page


def test_the_report_escapes_names(runs: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(runs / "runs" / "lora", hostile)
    out = tmp_path / "report.html"
    assert main(["report", str(hostile), "--out", str(out)]) == 0
    assert "<img src=x" not in out.read_text(encoding="utf-8")


def test_the_cache_is_listed_and_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPECTRA_CACHE_GIB", "2")
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cache'}: 0 entries, 0 B (at most 2.0 GiB)\n"
    w_0 = gaussian(48, 64).bfloat16()
    cache = BaseCache()
    cache.decomposition(w_0, lambda: decompose(w_0))
    cache.noise(w_0, "bfloat16", lambda: (0.5, 0.5))
    assert main(["cache"]) == 0
    first, head, *lines = capsys.readouterr().out.splitlines()
    assert "2 entries, 4" in first and "KiB" in first and head.split()[0] == "shape"
    assert all(line.strip().startswith("48 × 64") for line in lines)
    assert {line.split()[3] for line in lines} == {"svd", "noise-bfloat16"}
    assert main(["cache", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["bytes"] == cache.size() == sum(e["bytes"] for e in listed["entries"])
    assert listed["max_bytes"] == 2**31 and listed["entries"][0]["shape"] == [48, 64]
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out.startswith("Deleted 2 entries from ")
    assert main(["cache", "--clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"] == 0
    assert cache.entries() == []


def test_a_wrong_bound_of_the_cache_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECTRA_CACHE_GIB", "much")
    assert main(["cache"]) == 1
    assert "SPECTRA_CACHE_GIB must be a number of GiB" in capsys.readouterr().err


def test_the_command_is_installed() -> None:
    command = [str(Path(sys.executable).with_name("spectra")), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "COMMAND" in result.stdout


def test_watch_tells_of_each_step_and_ends_when_all_is_recorded(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["watch", str(runs / "runs" / "lora"), "--out", str(tmp_path / "run")]
    assert main([*command, "--until-finished"]) == 0
    *steps, last = capsys.readouterr().out.splitlines()
    assert [line.partition(" rows")[0] for line in steps] == [
        f"run: step {step}, 4" for step in (0, 2, 4)
    ]
    assert last == "Analysed 3 steps: 12 rows."
    assert main([*command, "--idle", "0.001"]) == 0
    assert capsys.readouterr().out == "Analysed 0 steps: 0 rows.\n"


def test_ctrl_c_ends_watching_with_status_0(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "spectra", "watch", str(out), "--base", str(base)]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run"), "--background"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        assert process.stderr.readline() == f"Waiting for checkpoints in {out}.\n"
        tiny_model_folder(out / "checkpoint-3", seed=1)
        assert process.stdout.readline().startswith("run: step 0, 4 rows in ")
        assert process.stdout.readline().startswith("run: step 3, 4 rows in ")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, rest) == (0, "\nAnalysed 2 steps: 8 rows.\n")
    assert "Traceback" not in errors and "KeyboardInterrupt" not in errors
    assert set(Run(tmp_path / "run").read_drift()["step"]) == {0, 3}


@pytest.mark.parametrize("option", ["--interval=0", "--idle=-1", "--idle=inf", "--workers=0"])
def test_watch_refuses_what_makes_no_sense(option: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["watch", "somewhere", option])
    assert stop.value.code == 2
