"""The store that the dashboard is judged on: 10 runs × 200 steps × 32 layers × 7 modules.

``python -m tests.benchmarks.dashboard_store FOLDER`` writes 448,000 drift rows with their arrays,
training rows and ``run.json``, by the store's own writer, in parts of ten steps that are compacted
in the end as `spectra analyze` does. The numbers are invented, but hang together as real ones do:
ΔΣ is the mean of the arrays' changes, ΔD comes from their overlaps, seeds differ a little and
methods much. The same arguments give the same rows.

The matrices have k = 64 singular values by default, which makes 1.2 GB; with the 4096 of a 7B
model the arrays alone would be 30 GB. No page reads more than one step or one matrix of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from spectra.store import DRIFT, SPECTRUM, TRAINING, Run

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEPS_A_PART = 10
EVERY = 10
K = 64


@dataclass(frozen=True)
class Method:
    """How far a method's matrices come, and what it trains.

    Attributes
    ----------
    sigma, turn : float
        ΔΣ relative to the mean singular value, and ΔD, where they level off.
    rate : float
        Steps until two thirds of that.
    settings : mapping
        What its ``run.json`` says beyond the common.
    """

    sigma: float
    turn: float
    rate: float
    settings: Mapping[str, Any]
    has_factors: bool = False


_ADAPTER = {"rank": 64, "alpha": 64.0, "options": {}}
METHODS = {
    "sorsa": Method(0.004, 0.02, 300, _ADAPTER | {"learning_rate": 3e-5, "gamma": 4e-4}, True),
    "sorsa-noreg": Method(0.010, 0.06, 500, _ADAPTER | {"learning_rate": 3e-5}, True),
    "lora": Method(0.012, 0.10, 700, _ADAPTER | {"learning_rate": 2e-4}),
    "partial-ft": Method(0.002, 0.03, 200, {"learning_rate": 2e-5}),
}
RUNS = [
    (m, s) for m, seeds in zip(METHODS, (3, 3, 2, 2), strict=True) for s in range(42, 42 + seeds)
]


def write_store(
    folder: Path, runs: int = 10, steps: int = 200, layers: int = 32, k: int = K, workers: int = 2
) -> list[Run]:
    """Write the runs to `folder`, which must not hold any yet; see the module."""
    chosen = RUNS[:runs]
    jobs = [(folder / f"{m}-seed{seed}", m, seed, steps, layers, k) for m, seed in chosen]
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(_write_run, *zip(*jobs, strict=True)))
    else:
        for job in jobs:
            _write_run(*job)
    return [Run(job[0]) for job in jobs]


def _write_run(path: Path, name: str, seed: int, steps: int, layers: int, k: int) -> None:
    method, run = METHODS[name], Run(path)
    numbers = np.random.default_rng([seed, list(METHODS).index(name)])
    all_steps = EVERY * np.arange(steps)
    _describe(run, name, method, seed, int(all_steps[-1]))
    run.write_training(_training(method, int(all_steps[-1]), numbers))
    matrices = _Matrices(method, layers, k, numbers)
    for first in range(0, steps, STEPS_A_PART):
        drift, spectrum = [], []
        for step in all_steps[first : first + STEPS_A_PART]:
            rows, arrays = matrices.at(int(step), numbers)
            common = {
                "run": np.full(matrices.count, run.name),
                "method": np.full(matrices.count, name),
                "module": matrices.module,
                "step": np.full(matrices.count, step),
                "layer": matrices.layer,
                "source": np.full(matrices.count, f"{step:016x}"),
            }
            drift.append(pa.table({n: (common | rows)[n] for n in DRIFT.names}))
            spectrum.append(pa.table({n: (common | arrays)[n] for n in SPECTRUM.names}))
        run.spectrum.append(pa.concat_tables(spectrum))
        run.drift.append(pa.concat_tables(drift))
    run.spectrum.compact()
    run.drift.compact()


class _Matrices:
    """All matrices of a run: where each begins, and in which direction it goes."""

    def __init__(self, method: Method, layers: int, k: int, numbers: np.random.Generator) -> None:
        self.method = method
        self.count = layers * len(MODULES)
        self.layer = np.repeat(np.arange(layers), len(MODULES))
        self.module = np.tile(np.array(MODULES), layers)
        wide = np.isin(self.module, MODULES[4:])
        self.rows = np.where(wide, k * 43 // 16, k)
        self.cols = np.full(self.count, k)
        self.p = min(16, k)
        # The base's values do not depend on the run: all start from one model.
        base = np.random.default_rng(7)
        decay = base.uniform(0.3, 0.6, (self.count, 1))
        scale = base.uniform(5, 40, (self.count, 1))
        self.sigma_0 = scale * np.arange(1, k + 1) ** -decay
        depth = self.layer / max(layers - 1, 1)
        strength = base.uniform(0.6, 1.6, len(MODULES))[np.tile(np.arange(len(MODULES)), layers)]
        self.reach = strength * (0.5 + depth + 0.6 * np.sin(3 * np.pi * depth) ** 2)
        self.reach *= numbers.lognormal(0, 0.1, self.count)
        self.change = _mean_one(np.abs(numbers.normal(size=self.sigma_0.shape)))
        self.change *= np.where(numbers.random(self.sigma_0.shape) < 0.8, 1, -1)
        ramp = np.linspace(0.3, 1.7, k)
        self.turns = [_mean_one(ramp * numbers.gamma(2, 0.5, self.sigma_0.shape)) for _ in "uv"]
        self.off = [np.abs(numbers.normal(size=(self.count, self.p, self.p))) for _ in "uv"]

    def at(self, step: int, numbers: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the columns of drift and of spectrum at a step, without the keys."""
        part = (1 - np.exp(-step / self.method.rate)) * self.reach
        part = part * (numbers.lognormal(0, 0.03, self.count) if step else 1)
        mean_0 = self.sigma_0.mean(1)
        size = self.method.sigma * part * mean_0
        sigma = self.sigma_0 + self.change * size[:, None]
        order = np.argsort(-sigma, axis=1)
        sigma = np.take_along_axis(sigma, order, 1)
        change = sigma - self.sigma_0
        turn = np.minimum(self.method.turn * part, 0.5)
        overlaps = [np.clip(1 - t * turn[:, None], 0, 1) for t in self.turns]
        leading = []
        for off, overlap in zip(self.off, overlaps, strict=True):
            square = off * np.sqrt(turn / self.p)[:, None, None]
            index = np.arange(self.p)
            square[:, index, index] = overlap[:, : self.p]
            leading.append(np.clip(square, 0, 1))
        delta = [1 - o.mean(1) for o in overlaps]
        share = sigma / sigma.sum(1, keepdims=True)
        norm_0 = np.linalg.norm(self.sigma_0, axis=1)
        moved = np.sqrt((change**2).sum(1) + (norm_0 * turn) ** 2)
        rounding = np.full(self.count, 2.0**-9 * 0.02)
        rows = {
            "rows": self.rows,
            "cols": self.cols,
            "delta_sigma": np.abs(change).mean(1),
            "delta_d": (delta[0] + delta[1]) / 2,
            "delta_u": delta[0],
            "delta_v": delta[1],
            "sigma_0_mean": mean_0,
            "sigma_max": sigma[:, 0],
            "sigma_min": sigma[:, -1],
            "kappa": sigma[:, 0] / sigma[:, -1],
            **self._factors(part),
            "matched_d": (delta[0] + delta[1]) / 3,
            "subspace_d": (delta[0] + delta[1]) / 5,
            "intruders": np.floor(8 * turn),
            "stable_rank": (sigma**2).sum(1) / sigma[:, 0] ** 2,
            "effective_rank": np.exp(-(share * np.log(share)).sum(1)),
            "frobenius_drift": moved / norm_0,
            "spectral_drift": moved / norm_0 * 0.7,
            "ill_determined": np.zeros(self.count),
            "sigma_noise": rounding * mean_0,
            "d_noise": rounding * 4,
            "residual": np.full(self.count, 3e-15),
            "dtype": np.full(self.count, "BF16"),
            "solver": np.full(self.count, "low-rank" if step else "unchanged"),
        }
        arrays = {
            "sigma": sigma,
            "sigma_change": change,
            "overlap_u": overlaps[0],
            "overlap_v": overlaps[1],
            "leading_u": leading[0],
            "leading_v": leading[1],
        }
        return rows, {name: _lists(array) for name, array in arrays.items()}

    def _factors(self, part: np.ndarray) -> dict[str, Any]:
        names = ("kappa_p", "kappa_u", "kappa_v", "ortho_u", "ortho_v")
        if not self.method.has_factors:
            return {name: pa.nulls(self.count, pa.float64()) for name in names}
        loose = self.method.turn * part
        return {
            "kappa_p": 4 * (1 + 6 * loose),
            "kappa_u": 1 + 4 * loose,
            "kappa_v": 1 + 3 * loose,
            "ortho_u": 8 * loose,
            "ortho_v": 6 * loose,
        }


def _lists(array: np.ndarray) -> pa.Array:
    flat = array.reshape(len(array), -1).astype(np.float32)
    offsets = np.arange(0, flat.size + 1, flat.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(flat.ravel()))


def _mean_one(array: np.ndarray) -> np.ndarray:
    return array / array.mean(1, keepdims=True)


def _training(method: Method, last: int, numbers: np.random.Generator) -> dict[str, np.ndarray]:
    steps = np.arange(last + 1)
    warm = np.minimum(steps / (0.03 * last), 1)
    falling = 0.5 * (1 + np.cos(np.pi * steps / last))
    looked_at = steps % EVERY == 0
    perplexity = 1.9 + 1.5 * np.exp(-steps / 200) + 0.01 * numbers.normal(size=len(steps))
    forgotten = 8 + 30 * method.turn * (1 - np.exp(-steps / method.rate))
    values = {
        "loss": 0.5 + 1.2 * np.exp(-steps / 150) + 0.05 * numbers.normal(size=len(steps)),
        "grad_norm": 0.3 + numbers.gamma(4, 0.05, len(steps)),
        "lr": float(method.settings["learning_rate"]) * warm * falling,
        "ortho_loss": method.turn * (1 - np.exp(-steps / method.rate)),
        "seconds": 2.1 * steps,
        "tokens": 12_000.0 * steps,
        "perplexity": np.where(looked_at, perplexity, np.nan),
        "perplexity_other": np.where(looked_at, forgotten, np.nan),
    }
    if not method.has_factors:
        values["ortho_loss"] = np.full(len(steps), np.nan)
    for name in ("loss", "grad_norm", "lr", "ortho_loss", "seconds", "tokens"):
        values[name][0] = np.nan  # nothing is trained at step 0
    nothing = np.full(len(steps), np.nan)
    return {name: values.get(name, nothing) for name in TRAINING.names} | {"step": steps}


def _describe(run: Run, name: str, method: Method, seed: int, last: int) -> None:
    run.update_settings(
        created="2026-01-01T00:00:00+00:00",
        versions={"spectra": "0.1.0"},
        method=name,
        modules=list(MODULES),
        every=EVERY,
        state="finished",
        base={"name": "models/invented-7b", "dtype": "bfloat16"},
        settings={
            "method": name,
            "modules": list(MODULES),
            "rank": None,
            "gamma": 0.0,
            **method.settings,
            "epochs": 1.0,
            "max_steps": last,
            "batch_size": 32,
            "max_length": 512,
            "warmup_ratio": 0.03,
            "seed": seed,
            "every": EVERY,
            "model": "models/invented-7b",
            "data": "data/invented.jsonl",
        },
        last_step=last,
    )


def main() -> None:
    """Write the store and say what it has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("-k", type=int, default=K)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    start = time.monotonic()
    runs = write_store(
        chosen.folder, chosen.runs, chosen.steps, chosen.layers, chosen.k, chosen.workers
    )
    rows = len(runs) * chosen.steps * chosen.layers * len(MODULES)
    size = sum(p.stat().st_size for p in chosen.folder.rglob("*.parquet")) / 1e6
    print(f"{len(runs)} runs, {rows:,} drift rows, {size:.0f} MB, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
