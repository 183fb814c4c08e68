"""The runs that a comparison draws: their values, what they are aligned by, their groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spectra.figures.captions import listed
from spectra.figures.left_out import left_out_sentence
from spectra.figures.noise import Floor, noise_floor
from spectra.figures.over_layers import over_layers
from spectra.figures.seeds import Series, Spread, against_loss, against_total, counted, spread
from spectra.figures.selection import MOST_LINE_POINTS, by_run, clean, module_order, select_rows

KEYS = frozenset({"run", "method", "module", "layer", "step"})
"""Columns that name a row, and are nothing to compare."""

_FLOORS = ("sigma_noise", "d_noise")
# Above this many recorded steps, training's own columns are drawn as running means.
_SMOOTH_ABOVE = 80
_HOW_TO_COUNT = (
    "`spectra train` records them, and spectra.SpectraCallback with TRL's trainers, or where the "
    'trainer has include_num_input_tokens_seen="non_padding"'
)


@dataclass(frozen=True)
class ComparedRun:
    """A run's values, by module; of training's columns there is one, called ``""``."""

    name: str
    title: str
    values: Mapping[str, Series]
    floors: Mapping[str, Floor]


@dataclass(frozen=True)
class Group:
    """Runs of one label: how many, and mean and spread over them by module."""

    title: str
    runs: tuple[ComparedRun, ...]
    spreads: Mapping[str, Spread]

    def floors(self, module: str) -> list[Floor]:
        """Return the noise floors of its runs."""
        return [run.floors[module] for run in self.runs if module in run.floors]


def runs_of_drift(
    drift: pd.DataFrame,
    column: str,
    modules: Iterable[str] | None,
    layers: Iterable[int] | None,
    steps: Iterable[int] | None,
) -> tuple[list[ComparedRun], tuple[str, ...], str]:
    """Return the runs' values of a column of drift, the modules, and what the caption says."""
    if not pd.api.types.is_numeric_dtype(drift[column]):
        raise ValueError(f"The column {column} holds no numbers, so it cannot be compared.")
    rows = select_rows(drift, [column], modules, layers, steps, keep=_FLOORS)
    order = module_order(rows, modules)
    runs = []
    for run, title, part in by_run(rows, drift):
        values, floors = {}, {}
        for module in order:
            of_module = part[part["module"] == module]
            if not of_module.empty:
                over = over_layers(of_module, column)
                values[module] = Series(
                    over.steps, np.where(np.isinf(over.centre), np.nan, over.centre)
                )
                floors[module] = noise_floor(of_module, column)
        runs.append(ComparedRun(run, title, values, floors))
    infinite = int(np.isinf(rows[column].to_numpy(dtype=float)).sum())
    said = left_out_sentence(rows, drift, [column])
    if infinite:
        said = (
            f"{infinite} infinite values count as the largest in the median; a line breaks where "
            f"half of the layers are. {said}"
        ).rstrip()
    return runs, order, said


def runs_of_training(
    training: pd.DataFrame, drift: pd.DataFrame, column: str, steps: Iterable[int] | None
) -> tuple[list[ComparedRun], tuple[str, ...], str]:
    """Return the runs' values of a column of training, one module ``""``, and what to say."""
    if column not in training or column in KEYS:
        known = dict.fromkeys([*drift.columns, *training.columns])
        raise ValueError(
            f"Neither drift nor training has a column {column}; they have "
            f"{', '.join(str(c) for c in known if c not in KEYS)}."
        )
    rows = training[np.isfinite(training[column].to_numpy(dtype=float, na_value=np.nan))]
    if steps is not None:
        rows = rows[rows["step"].isin(list(steps))]
    if rows.empty:
        raise ValueError(
            f"No run has a recorded {column} to compare. A run records it when trained by "
            "`spectra train`, or passed to Recorder.step."
        )
    _refuse_twins(rows)
    runs, smoothed = [], set()
    for run, title, part in by_run(rows, rows):
        part = part.sort_values("step", kind="stable")
        values, window = part[column], len(part) // (_SMOOTH_ABOVE // 2)
        if len(part) > _SMOOTH_ABOVE:
            values = values.rolling(window, center=True, min_periods=1).mean()
        series = Series(part["step"].to_numpy(dtype=float), values.to_numpy(dtype=float))
        runs.append(ComparedRun(run, title, {"": series}, {}))
        smoothed.add(window if len(part) > _SMOOTH_ABOVE else 1)
    said = ""
    if max(smoothed) > 1:
        most = f"{min(smoothed)} to {max(smoothed)}" if len(smoothed) > 1 else max(smoothed)
        said = f"A value is the mean of {most} recorded steps."
    return runs, ("",), said


def align(
    runs: Sequence[ComparedRun], training: pd.DataFrame, by: str
) -> tuple[list[ComparedRun], str]:
    """Return the runs with what they are aligned by in the steps' place, and who has none."""
    if by == "step":
        return list(runs), ""
    known = training
    if by in training:
        known = training[training[by].notna()].sort_values("step", kind="stable")
        _refuse_twins(known)
    by_name = dict(list(known.groupby("run", observed=True))) if by in training else {}
    aligned, without = [], []
    for run in runs:
        rows = by_name.get(run.name)
        moved = {}
        if rows is not None:
            total = None if by == "loss" else counted(rows, by)
            for module, series in run.values.items():
                there = (
                    against_loss(series, rows) if total is None else against_total(series, total)
                )
                if there is not None:
                    moved[module] = there
        if moved:
            aligned.append(ComparedRun(run.name, run.title, moved, run.floors))
        else:
            without.append(run.title)
    what = {"tokens": "tokens seen", "loss": "training loss", "seconds": "time"}[by]
    how = f": {_HOW_TO_COUNT}" if by == "tokens" else ""
    if not aligned:
        raise ValueError(
            f"No run has recorded {what} at the steps of its values, so they cannot be aligned "
            f'by it{how}. Choose by="step".'
        )
    return aligned, f"Left out, without recorded {what}: {listed(without)}." if without else ""


def form_groups(
    runs: Sequence[ComparedRun], order: Sequence[str], labels: Mapping[str, str] | None
) -> tuple[list[Group], str]:
    """Return the groups in the order of their first runs, and what has no place in common."""
    members: dict[tuple[bool, str], list[ComparedRun]] = {}
    for run in runs:
        label = (labels or {}).get(run.name)
        members.setdefault((label is None, run.name if label is None else label), []).append(run)
    most = max(2, MOST_LINE_POINTS // (3 * len(members) * len(order)))
    formed, apart = [], []
    for (alone, label), of_group in members.items():
        title = of_group[0].title if alone else clean(label)
        spreads = {}
        for module in order:
            series = [run.values[module] for run in of_group if module in run.values]
            found = spread(series, most) if series else None
            if found is not None:
                spreads[module] = found
        if spreads:
            formed.append(Group(title, tuple(of_group), spreads))
        else:
            apart.append(title)
    if not formed:
        raise ValueError(
            f"The runs of {listed(apart)} have no range in common, so they have no mean. Align "
            "them by something else, or compare them run by run, with groups=None."
        )
    return formed, f"Without a range that all seeds share: {listed(apart)}." if apart else ""


def _refuse_twins(rows: pd.DataFrame) -> None:
    if rows.duplicated(["run", "step"]).any():
        raise ValueError(
            "Two of the runs share a name, so their steps cannot be told apart. Rename one of "
            "their folders."
        )
