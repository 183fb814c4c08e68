"""The table under a trajectory figure: where every run ended."""

from __future__ import annotations

import numpy as np
import pandas as pd

from spectra.figures.selection import by_run, module_order, select_rows


def final_values(drift: pd.DataFrame) -> pd.DataFrame:
    """Return where each run's modules ended: the last point of every mean path.

    Parameters
    ----------
    drift : DataFrame
        Rows as `trajectory` takes them.

    Returns
    -------
    DataFrame
        One row a run and module: run, method, module, step (its last), layers (how many),
        delta_sigma and delta_d (means over the layers; unit of the weights, and 0 to 1), kappa
        (the median, since one nearly singular layer would carry a mean).

    Raises
    ------
    ValueError
        As `trajectory` does.
    """
    rows = select_rows(drift, ["delta_sigma", "delta_d"], None, None, None)
    if "kappa" not in rows:
        rows = rows.assign(kappa=np.nan)
    order = module_order(rows, None)
    found = []
    for run, _, part in by_run(rows, drift):
        for module in order:
            of_module = part[part["module"] == module]
            last = of_module[of_module["step"] == of_module["step"].max()]
            if not last.empty:
                found.append(
                    {
                        "run": run,
                        "method": last["method"].iloc[0],
                        "module": module,
                        "step": int(last["step"].iloc[0]),
                        "layers": last["layer"].nunique(),
                        "delta_sigma": float(last["delta_sigma"].mean()),
                        "delta_d": float(last["delta_d"].mean()),
                        "kappa": float(last["kappa"].median()),
                    }
                )
    return pd.DataFrame(found)
