"""Per-index arrays of matrices that are known: by a dense SVD, or by their singular values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd


def changed_matrix(
    rows: int = 24,
    cols: int = 18,
    *,
    size: float = 0.1,
    rank: int = 2,
    noise: float | None = None,
    seed: int = 0,
    **keys: object,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the drift row and the arrays of a random matrix before and after a low-rank update.

    Parameters
    ----------
    size : float
        ‖ΔW‖_F, relative to ‖W_0‖_F.
    noise : float, optional
        Both noise floors; null where None.
    **keys
        Override run, method, module, layer, step.
    """
    rng = np.random.default_rng(seed)
    w_0 = rng.standard_normal((rows, cols))
    update = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, cols))
    update *= size * np.linalg.norm(w_0) / np.linalg.norm(update)
    u_0, s_0, vh_0 = np.linalg.svd(w_0, full_matrices=False)
    u_t, s_t, vh_t = np.linalg.svd(w_0 + update, full_matrices=False)
    p = min(16, len(s_0))
    left, right = np.abs(u_0.T @ u_t), np.abs(vh_0 @ vh_t.T)
    names = {"run": "a", "method": "lora", "module": "q_proj", "layer": 3, "step": 40, **keys}
    turn = 1 - (np.diag(left).mean() + np.diag(right).mean()) / 2
    drift = {
        "rows": rows,
        "cols": cols,
        "delta_sigma": np.abs(s_t - s_0).mean(),
        "delta_d": turn,
        "sigma_noise": noise,
        "d_noise": noise,
    }
    arrays = {
        "sigma": _stored(s_t),
        "overlap_u": _stored(np.diag(left)),
        "overlap_v": _stored(np.diag(right)),
        "sigma_change": _stored(s_t - s_0),
        "leading_u": _stored(left[:p, :p]),
        "leading_v": _stored(right[:p, :p]),
    }
    return pd.DataFrame([{**names, **drift}]), pd.DataFrame([{**names, **arrays}])


def spectra_rows(
    spectra: Iterable[np.ndarray],
    *,
    change: np.ndarray | float | None = None,
    **keys: object,
) -> pd.DataFrame:
    """Return the arrays of layers with these singular values; `change` is σ_t − σ_0 of each."""
    names = {"run": "a", "method": "lora", "module": "q_proj", "step": 40, **keys}
    rows = []
    for layer, sigma in enumerate(spectra):
        row: dict[str, object] = {**names, "layer": layer, "sigma": _stored(sigma)}
        if change is not None:
            row["sigma_change"] = _stored(np.zeros(len(sigma)) + change)
        rows.append(row)
    return pd.DataFrame(rows)


def with_arrays(rows: pd.DataFrame, **arrays: np.ndarray | None) -> pd.DataFrame:
    """Return `rows` with these arrays in every one of them."""
    columns: dict[str, Any] = {name: [value] * len(rows) for name, value in arrays.items()}
    return rows.assign(**columns)


def falling(k: int, decades: float = 2.0, scale: float = 1.0) -> np.ndarray:
    """Return k singular values, evenly spaced in their logarithm."""
    return scale * 10 ** -np.linspace(0, decades, k)


def _stored(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float32).ravel()
