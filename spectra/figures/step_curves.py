"""Quantities over the steps as descriptions: one line a layer, or one line a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spectra.figures.labels import Label, label_of
from spectra.figures.noise import NoiseBand, noise_band, noise_floor, noise_sentence, reach
from spectra.figures.selection import by_run, clean, module_order, select_rows

# Beyond two decades a linear axis shows the largest curve only.
_LOG_FROM_RATIO = 100.0
_RATIOS = ("kappa", "kappa_p", "kappa_u", "kappa_v", "residual")
"""Columns read by their power of ten; the others keep a linear axis unless asked."""
# Above this many recorded steps a curve is drawn faint, and its running mean strong.
_SMOOTH_ABOVE = 80


@dataclass(frozen=True)
class Curve:
    """One line over the steps.

    Attributes
    ----------
    steps : tuple of int
    values : tuple of float, as long as `steps`
        Finite; points that are not were left out and counted in the caption.
    low, high : tuple of float, as long as `steps` or empty
        Smallest and largest value over the layers, where the line stands for several.
    raw : tuple of float, as long as `steps` or empty
        What was recorded, where `values` is its running mean.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    raw: tuple[float, ...] = ()


@dataclass(frozen=True)
class LayerPanel:
    """One run: `layers` holds (module, layer, curve), `centres` one (module, curve) a module.

    `noise` is its noise floor, where it has one and the axis shows it.
    """

    run: str
    title: str
    layers: tuple[tuple[str, int, Curve], ...]
    centres: tuple[tuple[str, Curve], ...]
    noise: NoiseBand | None


@dataclass(frozen=True)
class LayerCurves:
    """A panel a run, a thin line a layer, the middle of the layers thick.

    Attributes
    ----------
    label : Label
        Of the vertical axis.
    panels : tuple of LayerPanel
    modules : tuple of str
        In the order of their styles.
    layers : (int, int)
        First and last layer, the ends of the colour scale.
    limits : (float, float)
        Of the vertical axis, the same in every panel.
    log : bool
        Whether that axis is logarithmic.
    centre : str
        ``"mean"``, or ``"median"`` on a logarithmic axis.
    band : bool
        Whether to shade from the smallest to the largest layer.
    caption : str
    """

    label: Label
    panels: tuple[LayerPanel, ...]
    modules: tuple[str, ...]
    layers: tuple[int, int]
    limits: tuple[float, float]
    log: bool
    centre: str
    band: bool
    caption: str


@dataclass(frozen=True)
class RunPanel:
    """One quantity: `curves` holds (index of the run in `RunCurves.runs`, curve).

    `noise` is the largest noise floor of its runs, where one has any and the axis shows it.
    """

    title: str
    label: Label
    curves: tuple[tuple[int, Curve], ...]
    limits: tuple[float, float]
    log: bool
    noise: NoiseBand | None = None

    @property
    def axis(self) -> str:
        """What the vertical axis is called, without what the title already says."""
        return self.label.name if self.title == self.label.symbol else self.label.axis


@dataclass(frozen=True)
class RunCurves:
    """Runs laid over one another, a panel a quantity.

    Attributes
    ----------
    panels : tuple of RunPanel
    runs : tuple of str
        Labels, in the order of their colours and dashes.
    band : bool
        Whether to shade from the smallest to the largest layer.
    caption : str
    """

    panels: tuple[RunPanel, ...]
    runs: tuple[str, ...]
    band: bool
    caption: str


def describe_layer_curves(
    drift: pd.DataFrame,
    column: str,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    band: bool = True,
    log: bool | None = None,
) -> LayerCurves:
    """Turn drift rows into the description of `spectra.figures.curves`, a panel a run."""
    rows, order, dropped = _finite_rows(drift, column, modules, layers, steps)
    runs = list(by_run(rows, drift))
    floors = [noise_floor(part, column) for _, _, part in runs]
    limits, is_log, below = _value_limits(rows[column], log, [f.level for f in floors])
    centre = "median" if is_log else "mean"
    panels = []
    for (run, title, part), floor in zip(runs, floors, strict=True):
        lines: list[tuple[str, int, Curve]] = []
        centres: list[tuple[str, Curve]] = []
        for module in order:
            of_module = part[part["module"] == module]
            if of_module.empty:
                continue
            shown = of_module[of_module[column] > 0] if is_log else of_module
            lines += [
                (module, int(str(layer)), _curve(line["step"], line[column]))
                for layer, line in shown.groupby("layer", sort=True)
            ]
            centres.append((module, _centre(of_module, column, centre, limits)))
        drawn = [(c.steps, c.values) for _, _, c in lines]
        noise = noise_band(column, [floor], limits, is_log, drawn)
        panels.append(LayerPanel(run, title, tuple(lines), tuple(centres), noise))
    return LayerCurves(
        label=label_of(column),
        panels=tuple(panels),
        modules=order,
        layers=(int(rows["layer"].min()), int(rows["layer"].max())),
        limits=limits,
        log=is_log,
        centre=centre,
        band=band,
        caption=_join(
            label_of(column).reading,
            f"Thick: {centre} over the layers.",
            noise_sentence(
                column,
                [[f] for f in floors],
                [(p.title, f) for p, f in zip(panels, floors, strict=True)],
                limits,
            ),
            below,
            dropped,
        ),
    )


def describe_run_curves(
    drift: pd.DataFrame,
    column: str,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    band: bool = True,
    log: bool | None = None,
) -> RunCurves:
    """Turn drift rows into the description of `spectra.figures.curves` with ``overlay=True``."""
    rows, order, dropped = _finite_rows(drift, column, modules, layers, steps)
    runs = list(by_run(rows, drift))
    parts = [
        [
            (i, p)
            for i, (_, _, part) in enumerate(runs)
            if not (p := part[part["module"] == m]).empty
        ]
        for m in order
    ]
    floors = [[noise_floor(part, column) for _, part in of_module] for of_module in parts]
    limits, is_log, below = _value_limits(
        rows[column], log, [f.level for of_module in floors for f in of_module]
    )
    centre = "median" if is_log else "mean"
    panels = []
    for module, of_module, floors_here in zip(order, parts, floors, strict=True):
        curves = tuple((i, _centre(part, column, centre, limits)) for i, part in of_module)
        drawn = [(c.steps, c.values) for _, c in curves]
        noise = noise_band(column, floors_here, limits, is_log, drawn)
        panels.append(RunPanel(clean(module), label_of(column), curves, limits, is_log, noise))
    shading = " Shaded: smallest to largest layer." if band else ""
    return RunCurves(
        panels=tuple(panels),
        runs=tuple(title for _, title, _ in runs),
        band=band,
        caption=_join(
            label_of(column).reading,
            f"Lines: {centre} over the layers.{shading}",
            noise_sentence(
                column,
                floors,
                [(title, noise_floor(part, column)) for _, title, part in runs],
                limits,
            ),
            below,
            dropped,
        ),
    )


def describe_training(
    rows: pd.DataFrame,
    columns: Sequence[str] = ("loss", "grad_norm"),
    *,
    log: bool | None = None,
    smooth: int | None = None,
) -> RunCurves:
    """Turn training rows into the description of `spectra.figures.training`, which see."""
    columns = [columns] if isinstance(columns, str) else list(columns)
    missing = [c for c in ("run", "method", "step", *columns) if c not in rows.columns]
    if missing or not columns:
        raise ValueError(
            f"The training rows have no column {', '.join(missing) or 'to draw'}; they have "
            f"{', '.join(map(str, rows.columns))}."
        )
    filled = [c for c in columns if np.isfinite(rows[c].to_numpy(dtype=float)).any()]
    if smooth is not None and smooth < 1:
        raise ValueError(f"smooth must be at least 1 (no smoothing), got {smooth}.")
    if not filled:
        raise ValueError(
            f"There are no training rows with {', '.join(columns)} to draw. A run records them "
            "when trained by `spectra train` or passed to Recorder.step."
        )
    if rows.duplicated(["run", "step"]).any():
        raise ValueError(
            "Two of the runs share a name, so their steps cannot be told apart. Rename one of "
            "their folders."
        )
    rows = rows.assign(method=rows["method"].fillna("unknown"))
    rows = rows.sort_values("step", kind="stable")
    finite = np.isfinite(rows[filled].to_numpy(dtype=float))
    runs = list(by_run(rows[finite.any(axis=1)], rows))
    # Of each column by itself: an evaluation has a value now and then, the loss at every step.
    windows = {c: smooth or _window(rows[np.isfinite(rows[c].to_numpy(float))]) for c in filled}
    panels, notes = [], []
    for column in filled:
        values = rows[column].to_numpy(dtype=float)
        limits, is_log, below = _value_limits(
            rows.loc[np.isfinite(values), column], False if log is None else log
        )
        notes.append(f"{label_of(column).symbol}: {below}" if below else "")
        curves = []
        for i, (_, _, part) in enumerate(runs):
            part = part[np.isfinite(part[column].to_numpy(dtype=float))]
            part = part[part[column] > 0] if is_log else part
            if not part.empty:
                curves.append((i, _smoothed(_curve(part["step"], part[column]), windows[column])))
        label = label_of(column)
        panels.append(RunPanel(label.symbol, label, tuple(curves), limits, is_log))
    empty = [label_of(c).symbol for c in columns if c not in filled]
    # A loss that was never recorded is a gap; one that is infinite is a fact about the run.
    infinite = int(np.isinf(rows[filled].to_numpy(dtype=float)).sum())
    return RunCurves(
        panels=tuple(panels),
        runs=tuple(title for _, title, _ in runs),
        band=False,
        caption=_join(
            *_smoothing_sentences(windows),
            f"Not recorded: {', '.join(empty)}." if empty else "",
            *notes,
            f"{infinite} infinite values are left out." if infinite else "",
        ),
    )


def _finite_rows(
    drift: pd.DataFrame,
    column: str,
    modules: Iterable[str] | None,
    layers: Iterable[int] | None,
    steps: Iterable[int] | None,
) -> tuple[pd.DataFrame, tuple[str, ...], str]:
    modules = [modules] if isinstance(modules, str) else modules
    modules = None if modules is None else list(modules)
    rows = select_rows(drift, [column], modules, layers, steps)
    if not pd.api.types.is_numeric_dtype(rows[column]):
        raise ValueError(f"The column {column} holds no numbers, so it has no curve.")
    finite = np.isfinite(rows[column].to_numpy(dtype=float))
    if not finite.any():
        raise ValueError(
            f"Every chosen value of {column} is infinite (a condition number is where σ_min = 0), "
            "so there is no curve to draw."
        )
    left_out = int((~finite).sum())
    note = f"{left_out} infinite values are left out." if left_out else ""
    rows = rows[finite]
    return rows, module_order(rows, modules), note


def _value_limits(
    values: pd.Series, log: bool | None, floors: Sequence[float] = ()
) -> tuple[tuple[float, float], bool, str]:
    """Limits of an axis for `values` and noise `floors`, whether it is logarithmic, and a note.

    The note counts the values that a logarithmic axis cannot show.
    """
    positive = values[values > 0]
    if log and positive.empty:
        raise ValueError(
            f"A logarithmic axis needs values above 0, but {values.name} has none. Use log=False."
        )
    if log is None:
        log = (
            values.name in _RATIOS
            and not positive.empty
            and float(positive.max() / positive.min()) > _LOG_FROM_RATIO
        )
    if log:
        low, high = float(positive.min()), float(positive.max())
        margin = max((high / low) ** 0.04, 1.02)
        hidden = len(values) - len(positive)
        # An adapter that has not moved has ΔΣ = 0: as far below this axis as can be.
        what = "0" if values.min() == 0 else "0 or less"
        note = f"Below the axis: {hidden} values of {what}." if hidden else ""
        return reach((low / margin, high * margin), floors, log=True), True, note
    low, high = float(values.min()), float(values.max())
    if low == high == 0:
        high = max((f for f in floors if f > 0), default=0.0)
    # Zero means "as the base": it belongs on the axis unless the values stay far from it.
    if low >= 0 and low < 0.5 * high:
        return reach((-0.02 * high, 1.05 * high), floors), False, ""
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return reach((low - margin, high + margin), floors), False, ""


def _centre(rows: pd.DataFrame, column: str, centre: str, limits: tuple[float, float]) -> Curve:
    steps = rows.groupby("step", sort=True)[column]
    if centre == "mean":
        return _curve(pd.Series(steps.mean().index), steps.mean(), steps.min(), steps.max())
    # The median stands for all layers, those at 0 too; where it is 0 the axis cannot show it, and
    # a band from 0 starts at the bottom.
    middle = steps.median()
    shown = middle[middle > 0].index
    low = steps.min().clip(lower=limits[0])
    return _curve(pd.Series(shown), middle[shown], low[shown], steps.max()[shown])


def _curve(
    steps: pd.Series,
    values: pd.Series,
    low: pd.Series | None = None,
    high: pd.Series | None = None,
) -> Curve:
    def floats(series: pd.Series | None) -> tuple[float, ...]:
        return () if series is None else tuple(float(v) for v in series)

    return Curve(tuple(int(s) for s in steps), floats(values), floats(low), floats(high))


def _window(rows: pd.DataFrame) -> int:
    longest = max((part["step"].nunique() for _, part in rows.groupby("run")), default=0)
    return 1 if longest <= _SMOOTH_ABOVE else longest // (_SMOOTH_ABOVE // 2)


def _smoothing_sentences(windows: dict[str, int]) -> Iterator[str]:
    alike = len(set(windows.values())) == 1
    for column, window in windows.items():
        if window > 1:
            head = "Strong" if alike else f"{label_of(column).symbol}, strong"
            yield f"{head}: mean of {window} recorded steps; faint: every one."
            if alike:
                return


def _smoothed(curve: Curve, window: int) -> Curve:
    if window == 1:
        return curve
    mean = pd.Series(curve.values).rolling(window, center=True, min_periods=1).mean()
    return Curve(curve.steps, tuple(float(v) for v in mean), raw=curve.values)


def _join(*sentences: str) -> str:
    return " ".join(s for s in sentences if s)
