"""Adapter folders to drift rows: those of the weights that PEFT merges, in float64."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from spectra.analysis import analyze
from tests.analysis.test_rows import plain_svd_row
from tests.checkpoints_index.adapted import METHODS, write
from tests.helpers import attention_weights, tiny_llama, tiny_model_folder


def merged_in_float64(folder: Path, base_dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """W_t by PEFT, with nothing rounded to the base's dtype."""
    model: Any = tiny_llama(dtype=base_dtype).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, str(folder)).double()
        return attention_weights(adapted.merge_and_unload())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["DoRA", "OFT", "IA3", "AdaLoRA", "VeRA"])
def test_rows_are_those_of_pefts_merge(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base", dtype=dtype)
    write(name, tmp_path / "adapter" / "checkpoint-7", dtype)
    drift = analyze(tmp_path / "adapter", base=base, out=tmp_path / "run", workers=1)
    merged = merged_in_float64(tmp_path / "adapter" / "checkpoint-7", dtype)
    before = attention_weights(tiny_llama(dtype=dtype))
    trained = drift[drift["step"] == 7]
    assert len(trained) == len(merged) == 4
    for _, row in trained.iterrows():
        layer = f"model.layers.{row['layer']}.self_attn.{row['module']}"
        expected = plain_svd_row(merged[layer], before[layer].double())
        for column in ("delta_sigma", "delta_d", "sigma_max"):
            assert row[column] == pytest.approx(expected[column], abs=1e-8)
    # An adapter leaves W_0 as it is, so that nothing is rounded to the base's dtype.
    assert (trained[["sigma_noise", "d_noise"]] == 0.0).all(axis=None)
    low_rank = METHODS[name].rank is not None
    assert low_rank or not trained["solver"].str.contains("low-rank").any()


def test_workers_merge_as_one_process_does(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    write("DoRA", tmp_path / "adapter")
    rows = [
        analyze(tmp_path / "adapter", base=base, out=tmp_path / f"run-{n}", workers=n)
        for n in (1, 2)
    ]
    columns = ["step", "layer", "module", "delta_sigma", "delta_d", "frobenius_drift"]
    one, two = (r[columns].sort_values(columns[:3]).reset_index(drop=True) for r in rows)
    assert one.equals(two)
