"""Perplexity beside a training: at every recorded step, and the training is the same to the bit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spectra.store import Run
from spectra.training import trainer
from spectra.training.evaluation import callback
from spectra.training.evaluation.runs import evaluate_perplexity
from spectra.training.trainer import FINAL, train
from tests.training.tiny_runs import PAIRS, settings

COLUMNS = ["perplexity", "perplexity_other"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("files")
    rows = [{"question": q, "answer": a} for q, a in PAIRS[:5]]
    (root / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "other.txt").write_text("a small bird sings of the old river and its song " * 9)
    return {"held_out": str(root / "held.jsonl"), "other_text": str(root / "other.txt")}


def final_weights(run: Run) -> dict[str, Tensor]:
    (path,) = (run.path / FINAL).glob("*.safetensors")
    return load_file(path)


def trained(model: Path, out: Path, method: str, **changes: Any) -> Run:
    options = {"max_steps": 6, "every": 4, "save_every": 99} | changes
    return train(model, PAIRS, out, settings(method, **options), progress=False)


def assert_same_weights(one: Run, other: Run) -> None:
    expected, found = final_weights(one), final_weights(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("method", ["sorsa", "adalora", "pissa", "lisa", "partial-ft"])
def test_every_recorded_step_is_measured_and_training_is_the_same_to_the_bit(
    method: str, model_folder: Path, tmp_path: Path, files: dict[str, str]
) -> None:
    without = trained(model_folder, tmp_path / "without", method)
    run = trained(model_folder, tmp_path / "with", method, **files)
    assert_same_weights(without, run)
    rows = run.read_training()
    assert rows["step"].tolist() == list(range(7))
    measured = rows[rows[COLUMNS].notna().all(axis=1)].reset_index(drop=True)
    assert measured["step"].tolist() == [0, 4, 6]
    assert rows[COLUMNS].notna().any(axis=1).sum() == 3
    assert rows["loss"].tolist()[1:] == without.read_training()["loss"].tolist()
    assert measured["perplexity"].iloc[-1] < measured["perplexity"].iloc[0]

    # Afterwards, from the snapshots, it is the same; of LISA's there is the final model only.
    again = evaluate_perplexity(run, again=True, progress=False)
    assert again["step"].tolist() == ([6] if method == "lisa" else [0, 4, 6])
    expected = measured[measured["step"].isin(again["step"])]
    for column in COLUMNS:
        # Merged and unmerged round differently in float32.
        assert again[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-4)
    assert run.read_training().drop(columns=COLUMNS).equals(rows.drop(columns=COLUMNS))


def test_it_is_in_float32_also_where_training_computes_in_bfloat16(
    model_folder: Path, tmp_path: Path, files: dict[str, str]
) -> None:
    """So that it compares with other runs' and with what is evaluated afterwards."""
    options = {"max_steps": 2, "every": 2, "precision": "bfloat16"}
    run = trained(model_folder, tmp_path / "run", "lora", **options, **files)
    without = trained(model_folder, tmp_path / "without", "lora", **options)
    assert_same_weights(without, run)
    rows = run.read_training()
    while_training = rows[rows["perplexity"].notna()].reset_index(drop=True)
    assert run.read_settings()["evaluation"]["perplexity"]["dtype"] == "float32"
    again = evaluate_perplexity(run, again=True, progress=False)
    for column in COLUMNS:  # rounding the products would be off by 3e-3
        assert while_training[column].tolist() == pytest.approx(again[column].tolist(), rel=1e-5)


def test_the_time_of_measuring_is_left_out_of_the_curve(
    model_folder: Path, tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any, **__: Any) -> float:
        time.sleep(0.2)
        return 2.0

    monkeypatch.setattr(callback, "perplexity", slow)
    begun = time.monotonic()
    run = trained(model_folder, tmp_path / "run", "lora", max_steps=2, every=1, **files)
    # Two columns at steps 0, 1 and 2 take 1.2 s.
    assert run.read_training()["seconds"].max() < time.monotonic() - begun - 1.2


def test_a_resumed_training_keeps_what_was_measured_and_refuses_other_data(
    model_folder: Path, tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(model_folder, tmp_path / "whole", "sorsa", every=2, save_every=4, **files)
    chosen = settings("sorsa", max_steps=6, every=2, save_every=4, **files)

    def die(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer._MarkComplete, "on_step_end", die, raising=False)
        train(model_folder, PAIRS, tmp_path / "run", chosen, progress=False)

    other = Path(files["other_text"])
    text = other.read_text()
    other.write_text(text + "the end")
    with pytest.raises(ValueError, match="values of perplexity_other on other data"):
        train(model_folder, PAIRS, tmp_path / "run", chosen, progress=False)
    other.write_text(text)

    resumed = train(model_folder, PAIRS, tmp_path / "run", chosen, progress=False)
    expected, found = whole.read_training(), resumed.read_training()
    columns = ["step", "loss", *COLUMNS]
    assert found[columns].equals(expected[columns])
    assert found[found["perplexity"].notna()]["step"].tolist() == [0, 2, 4, 6]
    assert_same_weights(whole, resumed)
