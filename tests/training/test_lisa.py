"""LISA's callback: what is frozen, when, and that it is the same in a resumed run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from checkpoints_index import find_snapshots
from checkpoints_index.snapshots import Snapshot
from spectra.store import Run
from spectra.training.lisa import LisaCallback
from spectra.training.trainer import train
from tests.helpers import tiny_model_folder
from tests.training.tiny_runs import PAIRS, settings

BLOCKS = [f"model.layers.{i}" for i in range(8)]


def test_the_blocks_depend_on_seed_and_interval_alone() -> None:
    one, other = LisaCallback(2, 5, seed=1), LisaCallback(2, 5, seed=1)
    drawn = [one.sampled(step, BLOCKS) for step in range(50)]
    assert drawn == [other.sampled(step, BLOCKS) for step in range(50)]
    assert all(drawn[step] == drawn[step - step % 5] for step in range(50))
    assert len(set(drawn)) > 5 and all(len(set(blocks)) == 2 for blocks in drawn)
    assert drawn != [LisaCallback(2, 5, seed=2).sampled(step, BLOCKS) for step in range(50)]


def test_every_block_is_drawn_as_often() -> None:
    """γ/L of the time each: within 4 standard deviations of the binomial."""
    draws = 2000
    lisa = LisaCallback(2, 1, seed=0)
    for block in BLOCKS:
        share = sum(block in lisa.sampled(step, BLOCKS) for step in range(draws)) / draws
        assert abs(share - 2 / 8) < 4 * (0.25 * 0.75 / draws) ** 0.5


def test_only_the_sampled_blocks_move_between_two_samplings(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model", layers=4)
    chosen = settings(
        "lisa",
        max_steps=8,
        every=2,
        learning_rate=1e-3,
        warmup_ratio=0.0,
        options={"active_layers": 2, "interval": 2},
    )
    run = train(folder, PAIRS, tmp_path / "run", chosen, progress=False)
    lisa = LisaCallback(2, 2, chosen.seed)
    snapshots = [weights(Snapshot(s.path)) for s in find_snapshots(run.snapshots_path)]
    for step, before, after in zip((2, 4, 6), snapshots[:-1], snapshots[1:], strict=True):
        moved = {".".join(n.split(".")[:3]) for n in after if not before[n].equal(after[n])}
        assert moved == set(lisa.sampled(step, BLOCKS[:4])), step
    model, final = (load_file(p / "model.safetensors") for p in (folder, run.path / "final"))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert not torch.equal(model[name], final[name])


def weights(snapshot: Snapshot) -> dict[str, Tensor]:
    return {m.name: snapshot.read_tensor(f"{m.name}.weight") for m in snapshot.matrices}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active_layers": 0}, "active_layers must be at least 1, got 0"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"active_layers": 3}, "active_layers must be at most the model's 2 blocks, got 3"),
    ],
)
def test_impossible_samplings_are_refused(
    options: dict[str, int], message: str, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(
            model_folder, PAIRS, tmp_path / "run", settings("lisa", options=options),
            progress=False,
        )  # fmt: skip
    # There is no run yet that one with other options would be refused for.
    assert not Run(tmp_path / "run").exists()
    possible = settings("lisa", max_steps=1)
    train(model_folder, PAIRS, tmp_path / "run", possible, progress=False)
