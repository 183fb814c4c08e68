"""One training, three ways to its rows: snapshots, the saved adapter, the merged weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from checkpoints_index import find_checkpoints, open_model
from spectra.analysis import analyze
from spectra.recording import Recorder
from tests.checkpoints_index.adapted import save
from tests.helpers import lora_xs, milora, shake, sorsa, svf, svft, tiny_llama
from tests.recording.test_recorded_weights import tiny_causal

KEYS = ["step", "layer", "module"]
COLUMNS = [
    *("delta_sigma", "delta_d", "delta_u", "delta_v", "matched_d", "subspace_d", "intruders"),
    *("sigma_max", "sigma_min", "kappa", "stable_rank", "effective_rank"),
    *("frobenius_drift", "spectral_drift"),
]
METHODS: dict[str, Callable[..., Any]] = {
    "sorsa": sorsa,
    "milora": milora,
    "svf": svf,
    "svft, plain": partial(svft, pattern="plain", off_diagonals=0),
    "svft, banded": svft,
    "svft, random": partial(svft, pattern="random", off_diagonals=3),
    "lora-xs": lora_xs,
}


def phi_3() -> Any:
    return tiny_causal("Phi-3", "Phi3ForCausalLM")


def exactly_merged(model: Any) -> Any:
    """The whole model in float64, in which no sum of W_0 and an update is rounded to float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model).double().merge_and_unload()


def three_ways(model: Any, folder: Path, base: nn.Module) -> tuple[pd.DataFrame, ...]:
    """Rows of one training: recorded, from its saved adapters, and from merged checkpoints."""
    base.save_pretrained(folder / "base")  # type: ignore[operator]
    with Recorder(folder / "run", every=1).attach(model) as recorder:
        for step in (1, 2):
            shake(model, seed=step, size=0.2)
            recorder.step(step)
            save(model, folder / "adapters" / f"checkpoint-{step}")
            exactly_merged(model).save_pretrained(folder / "merged" / f"checkpoint-{step}")
    rows = [analyze(folder / "run", workers=1)]
    for saved in ("adapters", "merged"):
        rows.append(
            analyze(
                folder / saved,
                base=folder / "base",
                modules=["q_proj", "v_proj"],
                out=folder / f"of-{saved}",
                workers=1,
            )
        )
    return tuple(frame.sort_values(KEYS, ignore_index=True) for frame in rows)


def assert_the_same(rows: tuple[pd.DataFrame, ...], method: str) -> None:
    recorded, adapters, merged = (frame[frame["step"] > 0] for frame in rows)
    assert len(merged) == 2 * 2 * 2
    for frame in (recorded, adapters):
        assert set(frame["method"]) == {method}
        # Nothing of W_t was rounded to the dtype of a file.
        assert (frame[["sigma_noise", "d_noise"]] == 0.0).all(axis=None)
        pd.testing.assert_frame_equal(
            frame[KEYS + COLUMNS].reset_index(drop=True),
            merged[KEYS + COLUMNS].reset_index(drop=True),
            rtol=1e-8,
            atol=1e-8,
        )
    assert (merged["delta_sigma"] > 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_rows_are_the_same(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = METHODS[name](tiny_llama(dtype=dtype))
    rows = three_ways(model, tmp_path, tiny_llama(dtype=dtype))
    assert_the_same(rows, name.split(",")[0])


@pytest.mark.parametrize("name", METHODS)
def test_rows_of_a_fused_layers_parts_are_the_same(name: str, tmp_path: Path) -> None:
    model = METHODS[name](phi_3(), target_modules=["qkv_proj"])
    assert_the_same(three_ways(model, tmp_path, phi_3()), name.split(",")[0])


@pytest.mark.parametrize(
    ("adapted", "rank"), [(milora, 6), (lora_xs, 3), (svf, None), (svft, None)]
)
def test_only_what_has_a_low_rank_reaches_the_engine_as_factors(
    adapted: Callable[..., Any], rank: int | None, tmp_path: Path
) -> None:
    model = adapted(tiny_llama())
    three_ways(model, tmp_path, tiny_llama())
    base = open_model(tmp_path / "base")
    for folder in ("run", "adapters"):
        step_2 = find_checkpoints(tmp_path / folder)[-1].bind(base)
        for matrix in step_2.matrices:
            assert matrix.rank == rank
            weight = step_2.read(matrix)
            m, n = matrix.shape
            given = [weight.delta] if rank is None else list(weight.update or ())
            expected = [(m, n)] if rank is None else [(m, rank), (rank, n)]
            assert [tuple(t.shape) for t in given if t is not None] == expected
            assert {t.dtype for t in given if t is not None} == {torch.float64}


@pytest.mark.parametrize("adapted", [milora, lora_xs, svf, svft])
def test_an_untrained_adapter_is_exactly_its_base(
    adapted: Callable[..., Any], tmp_path: Path
) -> None:
    model = adapted(tiny_llama())
    tiny_llama().save_pretrained(tmp_path / "base")
    save(model, tmp_path / "adapter" / "checkpoint-1")
    with Recorder(tmp_path / "run", every=1).attach(model) as recorder:
        recorder.step(1)
    base = open_model(tmp_path / "base")
    for folder in ("run", "adapter"):
        checkpoint = find_checkpoints(tmp_path / folder)[-1].bind(base)
        assert len(checkpoint.matrices) == 4
        for matrix in checkpoint.matrices:
            weight = checkpoint.read(matrix)
            assert weight.dense is weight.update is weight.delta is None
