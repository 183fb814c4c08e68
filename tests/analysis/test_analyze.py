"""From checkpoints on disk to drift rows: what is computed, when, and what survives."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from distributed import LocalCluster
from peft import PeftModel

import spectra
from checkpoints_index import CheckpointError
from checkpoints_index.snapshots import BASE_FILE
from spectra.analysis import analyze, plan
from spectra.analysis.rows import BaseMatrix
from spectra.cli import main
from spectra.store import DRIFT, SPECTRUM_ARRAYS, Run
from tests.analysis.test_rows import plain_svd_row
from tests.helpers import (
    attention_weights,
    lora,
    plain,
    shake,
    sorsa,
    tiny_llama,
    tiny_model_folder,
    train_steps,
)

METHODS = {"lora": lora, "sorsa": sorsa, "partial-ft": plain}


def record(folder: Path, method: str, steps: int = 4, every: int = 2) -> dict[int, dict]:
    """Record a short run; returns the merged weights at the recorded steps, as PEFT has them."""
    model = METHODS[method](tiny_llama())
    recorder = spectra.Recorder(folder, every=every, method=method)
    merged = {0: attention_weights(tiny_llama())}
    with recorder.attach(model):
        for step, loss in train_steps(model, 1, steps):
            recorder.step(step, loss=loss)
            whole = copy.deepcopy(model)
            if isinstance(whole, PeftModel):
                whole = whole.merge_and_unload()
            merged[step] = attention_weights(whole)
    return merged


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_run_are_those_of_its_merged_weights(tmp_path: Path, method: str) -> None:
    merged = record(tmp_path / "run", method)
    drift = analyze(tmp_path / "run")
    assert list(drift.columns) == DRIFT.names
    assert set(drift["step"]) == {0, 2, 4}
    assert len(drift) == 3 * 2 * 2  # steps × layers × modules
    assert set(drift["method"]) == {method}
    for _, row in drift.iterrows():
        name = f"model.layers.{row['layer']}.self_attn.{row['module']}"
        w_0, w_t = (merged[s][name].double() for s in (0, row["step"]))
        expected = plain_svd_row(w_t, w_0)
        # PEFT merges in float32; factors are followed in float64.
        tolerance = 1e-5 if method != "partial-ft" else 1e-8
        for column in ("delta_sigma", "delta_d", "sigma_max"):
            assert row[column] == pytest.approx(expected[column], abs=tolerance)
    assert (drift.loc[drift["step"] == 0, ["delta_sigma", "delta_d"]] == 0.0).all(axis=None)
    has_factors = method == "sorsa"
    assert drift["kappa_p"].notna().all() == has_factors
    assert drift["ortho_u"].notna().any() == has_factors


def test_spectrum_rows_hold_the_arrays_behind_the_drift(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora")
    drift = analyze(tmp_path / "run")
    spectrum = Run(tmp_path / "run").read_spectrum()
    both = drift.merge(spectrum, on=["step", "layer", "module"])
    assert len(both) == len(drift)
    for _, row in both.iterrows():
        assert len(row["sigma"]) == min(row["rows"], row["cols"])
        turned = 1 - (row["overlap_u"].mean() + row["overlap_v"].mean()) / 2
        assert turned == pytest.approx(row["delta_d"], abs=1e-6)  # arrays are float32
        moved = np.abs(row["sigma_change"]).mean()
        assert moved == pytest.approx(row["delta_sigma"], rel=1e-6)
        base = (row["sigma"] - row["sigma_change"]).mean()
        assert base == pytest.approx(row["sigma_0_mean"], rel=1e-6)
        assert len(row["leading_u"]) == len(row["leading_v"]) == 16 * 16


def count_decompositions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    real = BaseMatrix.__init__

    def counting(self: BaseMatrix, *arguments: Any, **options: Any) -> None:
        made.append(1)
        real(self, *arguments, **options)

    monkeypatch.setattr(BaseMatrix, "__init__", counting)
    return made


def test_a_second_analysis_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "run", "lora")
    first = analyze(tmp_path / "run")
    made = count_decompositions(monkeypatch)
    pd.testing.assert_frame_equal(analyze(tmp_path / "run"), first)
    assert not made


def test_rows_of_an_earlier_version_are_made_anew_once_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record(tmp_path / "run", "lora")
    run = Run(tmp_path / "run")
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        patch.setattr(plan, "ENGINE", "3")
        analyze(run.path)
    assert "computed anew" not in caplog.text
    # What that version did not write.
    for table, lacking in (
        (run.drift, ["sigma_0_mean"]),
        (run.spectrum, ["sigma_change", "leading_u", "leading_v"]),
    ):
        for part in table.parts():
            pq.write_table(pq.read_table(part).drop_columns(lacking), part)
    old = run.read_spectrum()
    assert old["leading_u"].isna().all() and old["sigma"].notna().all()
    assert run.read_drift()["sigma_0_mean"].isna().all()
    with caplog.at_level(logging.WARNING):
        drift = analyze(run.path)
    assert f"{len(drift)} rows that are there come from an earlier version" in caplog.text
    assert drift["sigma_0_mean"].notna().all()
    new = run.read_spectrum()
    assert new[[*SPECTRUM_ARRAYS]].notna().all(axis=None)
    made = count_decompositions(monkeypatch)
    pd.testing.assert_frame_equal(analyze(run.path), drift)
    assert not made


def test_only_new_steps_are_computed(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora", steps=4)
    analyze(tmp_path / "run")
    before = Run(tmp_path / "run").drift.read().set_index(["step", "layer", "module"])
    model = lora(tiny_llama())
    shake(model)
    recorder = spectra.Recorder(tmp_path / "run", every=2)
    with recorder.attach(model, start_step=4):
        recorder.step(5)
        recorder.step(6)
    after = analyze(tmp_path / "run").set_index(["step", "layer", "module"])
    assert set(after.index.get_level_values("step")) == {0, 2, 4, 6}
    kept = after.loc[before.index]
    assert (kept["source"] == before["source"]).all()


def test_a_step_that_is_recorded_again_is_computed_again(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora", steps=4)
    first = analyze(tmp_path / "run")
    model = lora(tiny_llama())
    shake(model, size=0.5)
    recorder = spectra.Recorder(tmp_path / "run", every=2, overwrite=True)
    with recorder.attach(model, start_step=2):
        recorder.step(3)
        recorder.step(4)
    second = analyze(tmp_path / "run")
    changed = first.merge(second, on=["step", "layer", "module"], suffixes=("_a", "_b"))
    differs = changed["delta_sigma_a"] != changed["delta_sigma_b"]
    assert set(changed.loc[differs, "step"]) == {4}


def test_rows_of_steps_that_no_longer_exist_are_dropped(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora", steps=5)  # 0, 2, 4 and the last, 5
    assert set(analyze(tmp_path / "run")["step"]) == {0, 2, 4, 5}
    model = lora(tiny_llama())
    recorder = spectra.Recorder(tmp_path / "run", every=2, overwrite=True)
    with recorder.attach(model, start_step=4):
        recorder.step(5)
        recorder.step(6)
    assert set(analyze(tmp_path / "run")["step"]) == {0, 2, 4, 6}


def assert_same_arrays(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """All arrays, to float32."""
    assert len(found) == len(expected) > 0
    for name in SPECTRUM_ARRAYS:
        pairs = zip(found[name], expected[name], strict=True)
        # float64 leaves 1e-12 of values of the size of 1: more than a small change's own digits.
        assert all(np.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in pairs), name


def test_workers_give_the_same_rows(tmp_path: Path) -> None:
    record(tmp_path / "run", "sorsa")
    serial = analyze(tmp_path / "run").drop(columns="residual")
    for part in Run(tmp_path / "run").drift.parts():
        part.unlink()
    arrays = Run(tmp_path / "run").read_spectrum()
    parallel = analyze(tmp_path / "run", workers=2).drop(columns="residual")
    pd.testing.assert_frame_equal(parallel, serial, rtol=1e-9, atol=1e-12)
    assert_same_arrays(Run(tmp_path / "run").read_spectrum(), arrays)


def test_a_dask_cluster_gives_the_same_rows(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora")
    serial = analyze(tmp_path / "run").drop(columns="residual")
    for part in Run(tmp_path / "run").drift.parts():
        part.unlink()
    arrays = Run(tmp_path / "run").read_spectrum()
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        rows = analyze(tmp_path / "run", scheduler=cluster.scheduler_address)
    pd.testing.assert_frame_equal(rows.drop(columns="residual"), serial, rtol=1e-9, atol=1e-12)
    assert_same_arrays(Run(tmp_path / "run").read_spectrum(), arrays)


def test_a_moved_run_still_works_and_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "run", "sorsa")
    analyze(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    made = count_decompositions(monkeypatch)
    drift = analyze(tmp_path / "moved")
    assert not made
    assert set(drift["run"]) == {"moved"}


def test_nan_weights_mark_their_row_and_spare_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = plain(tiny_llama())
    recorder = spectra.Recorder(tmp_path / "run", every=1)
    with recorder.attach(model):
        with torch.no_grad():
            model.model.layers[1].self_attn.q_proj.weight[0, 0] = float("nan")
        recorder.step(1)
    with caplog.at_level(logging.WARNING):
        drift = analyze(tmp_path / "run")
    marked = drift[drift["solver"] == "none"]
    assert marked[["step", "layer", "module"]].to_numpy().tolist() == [[1, 1, "q_proj"]]
    assert marked["delta_sigma"].isna().all()
    assert drift["delta_sigma"].notna().sum() == len(drift) - 1
    assert "1 of its 1024 entries are NaN or Inf" in caplog.text


def test_a_base_with_nan_spares_the_other_matrices(tmp_path: Path) -> None:
    model = lora(tiny_llama())
    layer = model.base_model.model.model.layers[0].self_attn.v_proj
    with torch.no_grad():
        layer.base_layer.weight[0, 0] = float("inf")
    with spectra.Recorder(tmp_path / "run", every=1).attach(model) as recorder:
        recorder.step(1)
    drift = analyze(tmp_path / "run")
    marked = drift[drift["solver"] == "none"]
    assert set(zip(marked["layer"], marked["module"], strict=True)) == {(0, "v_proj")}
    assert len(marked) == 2 and len(drift) == 8


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_checkpoints_outside_a_run(tmp_path: Path, kind: str) -> None:
    base = tiny_model_folder(tmp_path / "base")
    model = lora(tiny_llama())
    for step in (10, 20):
        shake(model, seed=step)
        saved = (
            copy.deepcopy(model) if kind == "adapter" else copy.deepcopy(model).merge_and_unload()
        )
        saved.save_pretrained(str(tmp_path / "out" / f"checkpoint-{step}"))
    drift = analyze(tmp_path / "out", base=base, out=tmp_path / "run")
    assert set(drift["step"]) == {0, 10, 20}
    assert len(drift) == 3 * 2 * 2
    whole = attention_weights(copy.deepcopy(model).merge_and_unload())
    name = "model.layers.1.self_attn.v_proj"
    expected = plain_svd_row(whole[name].double(), attention_weights(tiny_llama())[name].double())
    row = drift.query("step == 20 and layer == 1 and module == 'v_proj'").iloc[0]
    assert row["delta_sigma"] == pytest.approx(expected["delta_sigma"], abs=1e-6)
    assert Run(tmp_path / "run").state == "finished"


def train_adapters(root: Path, base: str) -> None:
    """Two methods side by side, each with two checkpoints and the last once more at its top."""
    for method in ("lora", "sorsa"):
        model = METHODS[method](tiny_llama())
        model.peft_config["default"].base_model_name_or_path = base
        for step in (5, 10):
            shake(model, seed=step)
            # "auto" would look for the base's configuration, here or on the hub.
            folder = root / method / f"checkpoint-{step}"
            model.save_pretrained(folder, save_embedding_layers=False)
        shutil.copytree(folder, root / method, dirs_exist_ok=True)


@pytest.mark.parametrize("base", ["base", ""])
def test_each_training_in_a_folder_is_a_run(
    tmp_path: Path,
    base: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "all"
    train_adapters(root, base)
    tiny_llama().save_pretrained(root / "base", max_shard_size="20KB")
    monkeypatch.chdir(root)  # from where "base" is found under another path
    with caplog.at_level(logging.WARNING):
        drift = analyze(root, out=tmp_path / "runs")
    assert "nobody's base" not in caplog.text
    assert ("is taken, the only model beside it" in caplog.text) == (base != "base")
    assert set(drift["run"]) == {"lora", "sorsa"}
    assert len(drift) == 2 * 3 * 2 * 2  # runs × steps × layers × modules
    for method in ("lora", "sorsa"):
        run = Run(tmp_path / "runs" / method)
        assert run.method == method and run.state == "finished"
        alone = analyze(root / method, base=root / "base", out=tmp_path / f"{method}-alone")
        rows = drift[drift["run"] == method].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows.drop(columns="run"), alone.drop(columns="run"))


def test_the_runs_of_a_folder_are_called_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train_adapters(tmp_path / "all", "base")
    tiny_model_folder(tmp_path / "base")
    analyze("all", modules=["q_proj"])
    assert [run.path.as_posix() for run in spectra.find_runs("runs")] == [
        "runs/all/lora",
        "runs/all/sorsa",
    ]


def test_a_base_among_several_models_must_be_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "all"
    train_adapters(root, "organisation/first")
    tiny_model_folder(root / "other")
    tiny_model_folder(root / "merged")
    with pytest.raises(FileNotFoundError, match="The base organisation/first is neither"):
        analyze(root, out=tmp_path / "runs")
    # The name of the hub's id tells which one it is.
    (root / "other").rename(root / "first")
    with caplog.at_level(logging.WARNING):
        analyze(root, out=tmp_path / "runs", modules=["q_proj"])
    assert "the model of its name beside it" in caplog.text
    assert f"{root / 'merged'} has no step and is nobody's base" in caplog.text
    used = Run(tmp_path / "runs" / "lora").read_settings()["base"]["name"]
    assert used == str(root / "first")


def test_whole_weights_are_not_compared_with_what_lies_beside_them(tmp_path: Path) -> None:
    tiny_model_folder(tmp_path / "out" / "checkpoint-5")
    best = tiny_model_folder(tmp_path / "out" / "best")
    with pytest.raises(ValueError, match="checkpoint-5 does not say .* give --base"):
        analyze(tmp_path / "out", out=tmp_path / "run")
    drift = analyze(tmp_path / "out", base=best, out=tmp_path / "run")
    assert set(drift["step"]) == {0, 5}


def test_models_without_steps_are_refused(tmp_path: Path) -> None:
    for name in ("first", "second"):
        tiny_model_folder(tmp_path / "all" / name)
    base = tiny_model_folder(tmp_path / "all" / "base")
    with pytest.raises(CheckpointError, match="3 of 3 checkpoints have no step, e.g. .*base"):
        analyze(tmp_path / "all", base=base, out=tmp_path / "run")


def test_a_checkpoint_that_breaks_while_it_is_read_costs_its_own_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_model_folder(tmp_path / "base")
    for place in ("a/checkpoint-5", "a/checkpoint-9", "b/checkpoint-5"):
        tiny_model_folder(tmp_path / "all" / place, seed=1)
    state = tiny_llama(2).state_dict()
    broken = tmp_path / "all" / "a" / "checkpoint-7" / "pytorch_model.bin"
    broken.parent.mkdir()
    torch.save(state, broken)
    numbers = state["model.layers.1.self_attn.q_proj.weight"].numpy().tobytes()
    content = broken.read_bytes()
    assert content.count(numbers) == 1
    # Descriptions and sizes stay right: only who reads the numbers can see it.
    broken.write_bytes(content.replace(numbers, numbers[::-1]))
    command = ["analyze", str(tmp_path / "all"), "--base", str(base), "--out", str(tmp_path / "r")]
    assert main(command) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("spectra: 1 matrices could not be read; their rows are missing")
    assert f"{broken} is not a whole PyTorch file" in said
    rows = Run(tmp_path / "r" / "a").drift.read()
    missing = {(7, 1, "q_proj")}
    found = set(rows[["step", "layer", "module"]].itertuples(index=False, name=None))
    every = {(s, n, m) for s in (0, 5, 7, 9) for n in (0, 1) for m in ("q_proj", "v_proj")}
    assert found == every - missing
    assert len(Run(tmp_path / "r" / "b").drift.read()) == 8


@pytest.mark.parametrize("damage", ["header", "no adapter that is read"])
def test_a_checkpoint_that_cannot_be_opened_costs_its_own_rows(
    tmp_path: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = tiny_model_folder(tmp_path / "base")
    for place in ("a/checkpoint-5", "a/checkpoint-7", "b/checkpoint-5"):
        tiny_model_folder(tmp_path / "all" / place, seed=1)
    broken = tmp_path / "all" / "a" / "checkpoint-7"
    if damage == "header":
        (broken / "model.safetensors").write_bytes(b"\xff" * 1000)
    else:
        (broken / "model.safetensors").rename(broken / "adapter_model.safetensors")
        (broken / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    command = ["analyze", str(tmp_path / "all"), "--base", str(base), "--out", str(tmp_path / "r")]
    assert main(command) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"spectra: {broken}")
    steps = {run: set(Run(tmp_path / "r" / run).drift.read()["step"]) for run in ("a", "b")}
    assert steps == {"a": {0, 5}, "b": {0, 5}}
    assert main([*command, "--dry-run"]) == 0  # nothing is left to do but what is told
    assert f"Left out: {broken}" in caplog.text


def test_a_broken_snapshot_costs_its_own_rows(tmp_path: Path) -> None:
    for name in ("a", "b"):
        record(tmp_path / name, "lora")
    rows = analyze(tmp_path)
    file = tmp_path / "a" / "snapshots" / "step-00000002.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    for part in Run(tmp_path / "b").drift.parts():
        part.unlink()
    with pytest.raises(CheckpointError, match=f"^{file} is shorter than it says"):
        analyze(tmp_path)
    # Those of the broken one were computed when it was whole.
    pd.testing.assert_frame_equal(
        spectra.store.read_runs(spectra.find_runs(tmp_path), "drift"), rows
    )


def test_a_model_that_may_be_the_base_must_be_whole(tmp_path: Path) -> None:
    """Else the only other model beside the adapters would be taken for it."""
    train_adapters(tmp_path / "all", "")
    tiny_model_folder(tmp_path / "all" / "merged")
    base = tiny_model_folder(tmp_path / "all" / "start")
    (base / "model.safetensors").write_bytes(b"\xff" * 1000)
    with pytest.raises(CheckpointError, match="start/model.safetensors is not a whole"):
        analyze(tmp_path / "all", out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_base_of_another_architecture_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_model_folder(tmp_path / "base")
    trained = tiny_model_folder(tmp_path / "out" / "checkpoint-1", seed=1)
    analyze(tmp_path / "out", base=base, out=tmp_path / "same")
    assert not caplog.records
    config = base / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"mistral"'))
    analyze(tmp_path / "out", base=base, out=tmp_path / "other")
    said = f"{trained} is a llama model, its base {base} a mistral: they may not belong together"
    assert caplog.text.count(said) == 1


def test_rows_of_checkpoints_that_their_trainer_deleted_stay(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    for step in (5, 10):
        tiny_model_folder(tmp_path / "out" / f"checkpoint-{step}", seed=step)
    rows = analyze(tmp_path / "out", base=base, out=tmp_path / "run")
    shutil.rmtree(tmp_path / "out" / "checkpoint-5")
    tiny_model_folder(tmp_path / "out" / "checkpoint-15", seed=15)
    more = analyze(tmp_path / "out", base=base, out=tmp_path / "run")
    assert set(more["step"]) == {0, 5, 10, 15}
    kept = more[more["step"] < 15].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, rows)


def test_a_growing_checkpoint_waits_for_the_next_analysis(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_model_folder(tmp_path / "base")
    tiny_model_folder(tmp_path / "out" / "checkpoint-5", seed=1)
    file = tiny_model_folder(tmp_path / "out" / "checkpoint-10", seed=2) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with caplog.at_level(logging.WARNING):
        first = analyze(tmp_path / "out", base=base, out=tmp_path / "run")
    assert set(first["step"]) == {0, 5}
    assert f"Left for the next time: {file} is shorter than it says" in caplog.text
    file.write_bytes(content)
    assert set(analyze(tmp_path / "out", base=base, out=tmp_path / "run")["step"]) == {0, 5, 10}


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    other = tiny_model_folder(tmp_path / "other" / "checkpoint-5")
    with pytest.raises(ValueError, match="give --base"):
        analyze(other)
    with pytest.raises(FileNotFoundError, match="base nowhere is neither a folder"):
        analyze(other, base="nowhere", out=tmp_path / "r1")
    with pytest.raises(ValueError, match=r"no matrix k_lora .*Name yours with --modules"):
        analyze(other, base=base, modules=["k_lora"], out=tmp_path / "r2")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        analyze(tmp_path / "missing", base=base)
    wide = tmp_path / "wide"
    tiny_llama(layers=3).save_pretrained(wide)
    with pytest.raises(ValueError, match="has no matrix 'model.layers.2"):
        analyze(wide, base=base, out=tmp_path / "r3")


def test_several_runs_and_folders_of_runs(tmp_path: Path) -> None:
    for method in ("lora", "sorsa"):
        record(tmp_path / "runs" / method, method)
    one_by_one = analyze([tmp_path / "runs" / "lora", tmp_path / "runs" / "sorsa"])
    assert set(one_by_one["run"]) == {"lora", "sorsa"} and len(one_by_one) == 24
    pd.testing.assert_frame_equal(analyze(tmp_path / "runs"), one_by_one)


def test_a_runs_rows_can_be_written_elsewhere(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora")
    rows = analyze(tmp_path / "run", out=tmp_path / "elsewhere")
    assert set(rows["run"]) == {"elsewhere"} and len(rows) == 12
    assert not (tmp_path / "run" / "drift").exists()


def test_asking_for_values_only_keeps_the_vectors_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "run", "lora")
    full = analyze(tmp_path / "run")
    made = count_decompositions(monkeypatch)
    pd.testing.assert_frame_equal(analyze(tmp_path / "run", values_only=True), full)
    assert not made


def test_vectors_come_where_there_were_only_values(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora")
    assert analyze(tmp_path / "run", values_only=True)["delta_d"].isna().all()
    assert analyze(tmp_path / "run")["delta_d"].notna().all()


def test_two_checkpoints_of_one_step_are_not_mixed(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    for name in ("x", "y"):
        tiny_model_folder(tmp_path / name / "checkpoint-10", seed=1)
    with pytest.raises(ValueError, match="are both step 10"):
        analyze([tmp_path / "x", tmp_path / "y"], base=base, out=tmp_path / "run")


def test_another_base_does_not_overwrite_a_recorded_run(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    record(tmp_path / "run", "lora")
    settings = Run(tmp_path / "run").read_settings()
    with pytest.raises(ValueError, match="is a recorded run with a base of its own"):
        analyze(tmp_path / "run", base=base, out=tmp_path / "run")
    assert Run(tmp_path / "run").read_settings() == settings
    rows = analyze(tmp_path / "run", base=base, out=tmp_path / "elsewhere")
    assert len(rows) == 12


def test_a_second_analysis_at_the_same_time_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora")
    with Run(tmp_path / "run").lock("analysis"):
        with pytest.raises(RuntimeError, match="The analysis of .* is under way"):
            analyze(tmp_path / "run")


def test_another_base_than_before_is_refused(tmp_path: Path) -> None:
    first = tiny_model_folder(tmp_path / "base")
    second = tiny_model_folder(tmp_path / "second", seed=1)
    trained = tiny_model_folder(tmp_path / "trained", seed=2)
    analyze(trained, base=first, out=tmp_path / "run")
    with pytest.raises(ValueError, match="was analysed against the base"):
        analyze(trained, base=second, out=tmp_path / "run")


def test_killed_at_any_moment_the_next_analysis_goes_on(tmp_path: Path) -> None:
    record(tmp_path / "run", "sorsa", steps=30, every=1)
    script = textwrap.dedent(
        f"""
        import spectra, spectra.analysis.writing as module
        module.WRITE_SECONDS = 0.0
        spectra.analyze({str(tmp_path / "run")!r})
        """
    )
    run = Run(tmp_path / "run")
    kept = 0
    for delay in (0.05, 0.15, 0.3):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=os.getcwd())
        while process.poll() is None and len(run.drift.read()) <= kept:
            time.sleep(0.02)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows = run.drift.read()
        arrays = run.spectrum.read()
        assert len(rows) >= kept  # nothing that was on disk is lost
        keys = ["step", "layer", "module"]
        assert len(rows.merge(arrays, on=keys)) == len(rows)
        kept = len(rows)
    assert kept > 0
    drift = analyze(run.path)
    assert len(drift) == 31 * 2 * 2
    assert not drift.duplicated(["step", "layer", "module"]).any()


def test_a_base_that_is_not_the_runs_own_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora")
    record(tmp_path / "other", "lora")
    (tmp_path / "other" / "snapshots" / BASE_FILE).replace(
        tmp_path / "run" / "snapshots" / BASE_FILE
    )
    with pytest.raises(CheckpointError, match="was recorded on another base"):
        analyze(tmp_path / "run")


def test_runs_and_other_checkpoints_are_not_mixed(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora")
    other = tiny_model_folder(tmp_path / "other" / "checkpoint-5")
    with pytest.raises(ValueError, match="is no recorded run, others of the paths are"):
        analyze([tmp_path / "run", other])
