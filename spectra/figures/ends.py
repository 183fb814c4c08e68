"""The table under a trajectory figure: where every run ended, and runs of several seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spectra.figures.selection import by_run, module_order, select_rows

# The loss of one step is that of one batch.
LAST_STEPS = 5
"""Recorded steps whose mean is a run's final loss."""


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


def final_losses(training: pd.DataFrame) -> pd.DataFrame:
    """Return each run's training loss at its end: the mean over its last five recorded steps.

    Parameters
    ----------
    training : DataFrame
        Rows of ``training.parquet``, with the column run.

    Returns
    -------
    DataFrame
        run and loss (nats per token); runs without a recorded loss are left out.
    """
    rows = training.dropna(subset=["loss"]).sort_values("step")
    last = rows.groupby("run", sort=False).tail(LAST_STEPS)
    return last.groupby("run", sort=False)["loss"].mean().reset_index()


def over_seeds(values: pd.DataFrame, by: Sequence[str], quantities: Sequence[str]) -> pd.DataFrame:
    """Return means and standard deviations over the runs that differ in their seed only.

    Parameters
    ----------
    values : DataFrame
        A row a run, or a run and module.
    by : sequence of str
        Columns that tell the groups apart, such as method, rank and module. An empty value, of
        a setting that means nothing to a method, is a value like any other.
    quantities : sequence of str
        Columns to average.

    Returns
    -------
    DataFrame
        One row a group, in the order of `values`: `by`, seeds (how many rows it has), and of each
        quantity its mean and, as ``QUANTITY_sd``, the sample's standard deviation; null for one
        seed.
    """
    groups = values.groupby(list(by), sort=False, dropna=False)
    table = groups.size().rename("seeds").to_frame()
    for quantity in quantities:
        table[quantity] = groups[quantity].mean()
        table[f"{quantity}_sd"] = groups[quantity].std(ddof=1)
    return table.reset_index()
