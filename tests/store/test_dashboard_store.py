"""The store that the dashboard is judged on is one that an analysis could have written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from spectra.store import DRIFT_QUANTITIES, SPECTRUM_ARRAYS, group_runs, regularized_pairs
from tests.benchmarks.dashboard_store import MODULES, RUNS, write_store


def test_its_rows_hang_together_and_are_always_the_same(tmp_path: Path) -> None:
    steps, layers, k = 23, 2, 20
    runs = write_store(tmp_path / "a", runs=1, steps=steps, layers=layers, k=k, workers=1)
    (again,) = write_store(tmp_path / "b", runs=1, steps=steps, layers=layers, k=k, workers=1)
    (run,) = runs
    drift, arrays = run.read_drift(), run.read_spectrum()
    assert len(drift) == len(arrays) == steps * layers * len(MODULES)
    assert drift[[*DRIFT_QUANTITIES]].notna().all(axis=None)
    assert len(run.spectrum.parts()) == len(run.drift.parts()) == 1
    found = {name: np.stack(arrays[name].to_list()).astype(float) for name in SPECTRUM_ARRAYS}
    assert (np.diff(found["sigma"]) <= 0).all()
    for column, values in {
        "delta_sigma": np.abs(found["sigma_change"]).mean(1),
        "delta_u": 1 - found["overlap_u"].mean(1),
        "delta_v": 1 - found["overlap_v"].mean(1),
        "sigma_0_mean": (found["sigma"] - found["sigma_change"]).mean(1),
    }.items():
        np.testing.assert_allclose(drift[column], values, rtol=1e-5, atol=1e-6)
    assert (drift.loc[drift["step"] == 0, ["delta_sigma", "delta_d"]] == 0).all(axis=None)
    pd.testing.assert_frame_equal(again.read_drift(), drift)
    pd.testing.assert_frame_equal(again.read_training(), run.read_training())


def test_its_runs_are_seeds_of_methods_and_sorsas_pairs(tmp_path: Path) -> None:
    runs = write_store(tmp_path, steps=2, layers=1, k=4, workers=1)
    assert len(runs) == len(RUNS) == 10
    assert [len(group.runs) for group in group_runs(runs)] == [3, 3, 2, 2]
    assert regularized_pairs(runs) == [
        (f"sorsa-seed{seed}", f"sorsa-noreg-seed{seed}") for seed in (42, 43, 44)
    ]
