"""Synthetic drift and training rows: the shape of real ones, with known content."""

from __future__ import annotations

import numpy as np
import pandas as pd

METHODS = {"sorsa": 0.04, "sorsa-noreg": 0.25, "lora": 0.8, "partial-ft": 1.0}
"""The paper's four methods and how far each moves, relative to the farthest."""


def drift_rows(
    run: str = "a",
    method: str = "sorsa",
    *,
    layers: int = 4,
    modules: tuple[str, ...] = ("q_proj", "v_proj"),
    steps: tuple[int, ...] = (10, 20, 40),
    reach: float = 1.0,
    noise: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Drift of one run: every layer bends its own way, v_proj turns less than q_proj."""
    rng = np.random.default_rng([seed, *map(ord, run)])
    rows = []
    for module in modules:
        slow = 1.0 if module == "q_proj" else 0.55
        for layer in range(layers):
            speed, turn = rng.uniform(0.55, 1.0, 2)
            bend = rng.uniform(0.7, 1.3)
            for step in steps:
                t = step / max(steps[-1], 1)
                wiggle = 1 + 0.03 * rng.standard_normal()
                rows.append(
                    {
                        "run": run,
                        "method": method,
                        "module": module,
                        "step": step,
                        "layer": layer,
                        "rows": 4096,
                        "cols": 4096 if module == "q_proj" else 1024,
                        "delta_sigma": 2e-3 * reach * speed * t**bend * wiggle,
                        "delta_d": 0.35 * reach * slow * turn * t**0.8 * wiggle,
                        "kappa": 10 ** rng.uniform(3, 5.5) * (1 + 0.2 * t),
                        "sigma_max": 20 + layer,
                        "ortho_u": 0.02 * t * speed if method.startswith("sorsa") else np.nan,
                        "sigma_noise": 1.5e-4 if noise else np.nan,
                        "d_noise": 6e-3 if noise else np.nan,
                        "dtype": "bfloat16",
                        "solver": "dense",
                    }
                )
    return pd.DataFrame(rows)


def four_methods(
    layers: int = 12,
    steps: tuple[int, ...] = (50, 100, 200, 300, 400, 500, 650, 781),
    noise: bool = False,
    modules: tuple[str, ...] = ("q_proj", "v_proj"),
) -> pd.DataFrame:
    """Rows of a run a method, of ranges as unlike as the paper's."""
    parts = [
        drift_rows(
            method, method, layers=layers, steps=steps, reach=reach, noise=noise, modules=modules
        )
        for method, reach in METHODS.items()
    ]
    return pd.concat(parts, ignore_index=True)


def training_rows(run: str = "a", method: str = "sorsa", steps: int = 200) -> pd.DataFrame:
    """Loss and gradient norm of one run, noisy as real ones are."""
    rng = np.random.default_rng([steps, *map(ord, run)])
    step = np.arange(1, steps + 1)
    level = 0.35 + 0.1 * rng.random()
    return pd.DataFrame(
        {
            "run": run,
            "method": method,
            "step": step,
            "loss": level + 0.6 * np.exp(-step / 40) + 0.03 * rng.standard_normal(steps),
            "grad_norm": 1 + 2 * np.exp(-step / 20) + 0.2 * np.abs(rng.standard_normal(steps)),
            "lr": 2e-5 * np.cos(np.pi * step / steps / 2),
        }
    )
