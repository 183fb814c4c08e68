"""The bundled trainer: every method trains, records, resumes and can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from checkpoints_index.snapshots import BASE_FILE, Snapshot
from spectra.analysis import analyze
from spectra.store import Run
from spectra.training import trainer
from spectra.training.data import tokenize
from spectra.training.trainer import FINAL, train
from tests.helpers import tiny_model_folder
from tests.training.tiny_runs import PAIRS, STEPS, settings


def test_the_schedule_is_a_cosine_after_the_warm_up(model_folder: Path, tmp_path: Path) -> None:
    chosen = settings("lora", max_steps=20, warmup_ratio=0.1)
    rates = train(model_folder, PAIRS, tmp_path / "run", chosen, progress=False).read_training()[
        "lr"
    ]
    assert rates.iloc[:2].tolist() == pytest.approx([0.0, 0.5e-2])
    progress = torch.arange(18) / 18
    cosine = 1e-2 * 0.5 * (1 + torch.cos(torch.pi * progress))
    assert rates.iloc[2:].tolist() == pytest.approx(cosine.tolist(), rel=1e-5)


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(
    model_folder: Path, tmp_path: Path
) -> None:
    chosen = settings("lora", max_steps=2)
    run = train(model_folder, PAIRS, tmp_path / "run", chosen, progress=False)
    before = run.training_path.stat().st_mtime_ns
    train(model_folder, PAIRS, tmp_path / "run", chosen, progress=False)
    assert run.training_path.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="with other settings: .*rank was 3, is 2"):
        train(
            model_folder, PAIRS, tmp_path / "run", settings("lora", max_steps=2, rank=2),
            progress=False,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["checkpoints/checkpoint-500", "checkpoints/best.pt", "final"])
def test_what_is_not_of_a_run_is_left_alone(name: str, model_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "out" / name / "model.safetensors"
    other.parent.mkdir(parents=True)
    other.write_text("of another trainer")
    with pytest.raises(ValueError, match=f"out is no run, but has {name}, .* Choose another --out"):
        train(model_folder, PAIRS, tmp_path / "out", settings("lora"), progress=False)
    assert other.read_text() == "of another trainer"


def test_modules_that_the_model_lacks_are_refused(model_folder: Path, tmp_path: Path) -> None:
    chosen = settings("partial-ft", modules=("query",))
    with pytest.raises(ValueError, match="No layer of the model is called query"):
        train(model_folder, PAIRS, tmp_path / "run", chosen, progress=False)


@pytest.mark.parametrize("method", ["lora", "partial-ft"])
def test_modules_may_be_globs_and_whole_paths(
    method: str, model_folder: Path, tmp_path: Path
) -> None:
    chosen = settings(method, max_steps=1, modules=("model.layers.1.*.[qv]_proj",))
    run = train(model_folder, PAIRS, tmp_path / "run", chosen, progress=False)
    drift = analyze(run.path)
    assert set(drift["layer"]) == {1} and set(drift["module"]) == {"q_proj", "v_proj"}


def test_an_end_that_was_lost_is_done_again_without_an_extra_step(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings("sorsa")
    undisturbed = train(model_folder, PAIRS, tmp_path / "undisturbed", chosen, progress=False)

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        train(model_folder, PAIRS, tmp_path / "run", chosen, progress=False)
    lost = Run(tmp_path / "run")
    assert not (lost.path / FINAL).exists()
    ended = train(model_folder, PAIRS, lost.path, chosen, progress=False)
    assert ended.read_training()["step"].tolist() == list(range(1, STEPS + 1))
    expected, found = final_weights(undisturbed), final_weights(ended)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not list(ended.path.glob(".final*")) and not ended.checkpoints_path.exists()


def test_a_model_that_cannot_be_loaded_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'nowhere' is neither a folder with a causal language"):
        train("nowhere", PAIRS, tmp_path / "run", settings("lora"), progress=False)


def final_weights(run: Run) -> dict[str, torch.Tensor]:
    (path,) = (run.path / "final").glob("*.safetensors")
    return load_file(path)


@pytest.mark.parametrize("method", ["sorsa", "partial-ft"])
def test_killed_at_any_moment_a_run_ends_like_an_undisturbed_one(
    method: str, tmp_path: Path
) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    chosen = settings(method, max_steps=60, every=5, save_every=5)
    undisturbed = train(folder, PAIRS, tmp_path / "undisturbed", chosen, progress=False)

    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps(PAIRS))
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import json
            from spectra.training import TrainSettings
            from spectra.training.trainer import train
            pairs = [tuple(p) for p in json.load(open({str(pairs)!r}))]
            settings = TrainSettings(**json.load(open({str(tmp_path / "settings.json")!r})))
            train({str(folder)!r}, pairs, {str(tmp_path / "killed")!r}, settings, progress=False)
            """
        )
    )
    stored = chosen.as_dict()
    (tmp_path / "settings.json").write_text(json.dumps(stored))
    killed = Run(tmp_path / "killed")
    for after in (7, 23, 41):  # snapshots are at 5, 10, …: each kill is at another moment
        process = subprocess.Popen([sys.executable, str(script)], cwd=os.getcwd())
        while process.poll() is None and not _reached(killed, after):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # and not an end of its own
        for path in killed.snapshots_path.glob("*.safetensors"):
            snapshot = Snapshot(path)  # whole, or this raises
            for matrix in snapshot.matrices:
                snapshot.read(matrix)
    resumed = train(folder, PAIRS, killed.path, chosen, progress=False)

    expected, found = final_weights(undisturbed), final_weights(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    columns = ["step", "loss", "grad_norm", "lr", "ortho_loss", "tokens"]
    pd.testing.assert_frame_equal(
        resumed.read_training()[columns], undisturbed.read_training()[columns]
    )
    series = [
        {p.name: load_file(p) for p in run.snapshots_path.glob("step-*")}
        for run in (undisturbed, resumed)
    ]
    assert series[0].keys() == series[1].keys()
    for name in series[0]:
        for tensor in series[0][name]:
            assert torch.equal(series[0][name][tensor], series[1][name][tensor]), (name, tensor)
    assert (resumed.snapshots_path / BASE_FILE).is_file()


def test_tokens_are_those_of_the_batches_without_their_padding(
    model_folder: Path, tmp_path: Path
) -> None:
    """An epoch sees every example once, in whatever order: 48 in 12 steps of 2 × 2."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    lengths = [len(example["input_ids"]) for example in tokenize(PAIRS, tokenizer, 64)]
    assert len(set(lengths)) > 1  # so that there is padding

    rows = train(
        model_folder, PAIRS, tmp_path / "run", settings("lora", max_steps=24), progress=False
    ).read_training()

    tokens = rows.set_index("step")["tokens"]
    assert [tokens[12], tokens[24]] == [sum(lengths), 2 * sum(lengths)]
    of_a_step = tokens.diff().dropna()
    assert of_a_step.between(4 * min(lengths), 4 * max(lengths)).all()


def _reached(run: Run, step: int) -> bool:
    """Whether a snapshot of about `step` is there."""
    return any(
        int(p.stem.removeprefix("step-")) >= step - step % 5
        for p in run.snapshots_path.glob("step-*.safetensors")
    )


@pytest.mark.parametrize("method", ["lora", "partial-ft", "lisa"])
def test_computing_activations_again_changes_nothing(
    method: str, model_folder: Path, tmp_path: Path
) -> None:
    kept, again = (
        train(
            model_folder,
            PAIRS,
            tmp_path / str(checkpointing),
            settings(method, max_steps=3, gradient_checkpointing=checkpointing),
            progress=False,
        ).read_training()[["loss", "grad_norm"]]
        for checkpointing in (False, True)
    )
    pd.testing.assert_frame_equal(again, kept, rtol=1e-6)


def test_a_compiled_model_trains_and_is_recorded_the_same(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backend that only traces: the default one takes half a minute here."""
    original = trainer._arguments

    def traced(*given: Any) -> Any:
        arguments = original(*given)
        assert arguments.torch_compile and arguments.torch_compile_backend == "inductor"
        arguments.torch_compile_backend = "eager"
        return arguments

    chosen = settings("sorsa", max_steps=3)
    plain = train(model_folder, PAIRS, tmp_path / "plain", chosen, progress=False)
    monkeypatch.setattr(trainer, "_arguments", traced)
    compiled = train(
        model_folder,
        PAIRS,
        tmp_path / "compiled",
        settings("sorsa", max_steps=3, torch_compile=True),
        progress=False,
    )
    curve = ["step", "loss", "grad_norm"]
    expected, found = (run.read_training()[curve] for run in (plain, compiled))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    keys = ["step", "layer", "module", "delta_sigma"]
    expected, found = (analyze(run.path)[keys] for run in (plain, compiled))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3)
    assert final_weights(compiled).keys() == final_weights(plain).keys()


def test_bfloat16_is_for_products_and_not_for_weights(model_folder: Path, tmp_path: Path) -> None:
    """The loss is off by the rounding to 8 bits; what is trained keeps 24."""
    exact, rounded = (
        train(
            model_folder,
            PAIRS,
            tmp_path / precision,
            settings("lora", max_steps=3, precision=precision),
            progress=False,
        )
        for precision in ("float32", "bfloat16")
    )
    losses = [run.read_training()["loss"].iloc[0] for run in (exact, rounded)]
    assert 0 < abs(losses[1] - losses[0]) < 2**-6 * losses[0]
    assert all(t.dtype == torch.float32 for t in final_weights(rounded).values())


def test_a_missing_galore_is_one_clear_line(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "galore_torch.galore_projector", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'its extra "galore": pip install "\.\[galore\]"'
    ):
        train(model_folder, PAIRS, tmp_path / "run", settings("galore"), progress=False)


def test_a_rank_that_a_matrix_does_not_have_is_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rank must be at most min\(m, n\) = 16 of .*, got 17"):
        train(model_folder, PAIRS, tmp_path / "run", settings("pissa", rank=17), progress=False)
