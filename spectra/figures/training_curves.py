"""What training recorded, runs laid over one another: against the steps, or anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectra.figures import style
from spectra.figures.captions import sentences
from spectra.figures.chart import Axis, Chart, Floats, Hover, Ink, Line, Mark, Panel
from spectra.figures.drawing import draw
from spectra.figures.export import Backend
from spectra.figures.labels import Label, label_of
from spectra.figures.scales import padded, spans, value_scale
from spectra.figures.selection import (
    MOST_LINE_POINTS,
    by_run,
    run_codes,
    thin_steps,
    thinning_sentence,
    with_known_methods,
)
from spectra.figures.step_curves import run_entries

# Above this many recorded steps a curve is drawn faint, and its running mean strong.
_SMOOTH_ABOVE = 80
# A perplexity is the exponential of a loss, and falls by factors; gradients have spikes.
_LOG_FROM_RATIO = {"perplexity": 10.0, "perplexity_other": 10.0, "grad_norm": 100.0}
_COUNTS = ("step", "tokens")


def training(
    rows: pd.DataFrame,
    columns: Sequence[str] = ("loss", "grad_norm"),
    *,
    against: str = "step",
    log: bool | None = None,
    smooth: int | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Draw what training recorded over the steps, runs laid over one another.

    Parameters
    ----------
    rows : DataFrame
        Concatenated `Run.read_training()`: columns run, method, step and `columns`.
    columns : sequence of str
        A panel each; the loss (nats per token) and the gradient's norm by default. A column
        without any value is left out and named in the caption.
    against : str
        What the horizontal axis shows: the step, or any other column, such as ``"tokens"``,
        ``"seconds"`` or ``"loss"``. Points are joined in the order of the steps, and stand where
        both have a value.
    log : bool, optional
        Logarithmic vertical axes; by default for perplexities that span more than a decade, and
        gradient norms that span more than two.
    smooth : int, optional
        Recorded steps in the running mean that is drawn strong, over the faint record; 1 for
        none. By default none up to 80 steps, and a fortieth of the longest run beyond. What
        `against` names is averaged alike where it does not only grow.
    backend : {"plotly", "matplotlib"}
        Screen or paper.
    dark : bool
        Colours for a dark background (plotly only).
    preset : str, optional
        Width and fonts of a venue, one of `style.PRESETS` (matplotlib only).

    Returns
    -------
    plotly.graph_objects.Figure or matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is nothing to draw, a column is missing, no column has a value together with
        `against`, two runs share a name, or `log` is asked for a column without a value above 0.

    Notes
    -----
    Of a very long record some points are left out, and the caption says so; the faint lines keep
    the extremes, so that no spike is lost.

    References
    ----------
    Cao, SORSA, arXiv:2409.00055, Figure 3.
    """
    chart = describe_training(rows, columns, against=against, log=log, smooth=smooth)
    return draw(chart, backend, dark=dark, preset=preset)


def describe_training(
    rows: pd.DataFrame,
    columns: Sequence[str] = ("loss", "grad_norm"),
    *,
    against: str = "step",
    log: bool | None = None,
    smooth: int | None = None,
) -> Chart:
    """Turn training rows into the chart of `spectra.figures.training`, which see."""
    columns = [columns] if isinstance(columns, str) else list(dict.fromkeys(columns))
    rows = _ordered_rows(rows, columns, against, smooth)
    drawn = [c for c in columns if _finite(rows, c).any()]
    if not drawn:
        raise ValueError(
            f"There are no training rows with {', '.join(columns)} to draw. A run records them "
            "when trained by `spectra train` or passed to Recorder.step."
        )
    both = {c: _finite(rows, c) & _finite(rows, against) for c in drawn}
    filled = [c for c in drawn if both[c].any()]
    if not filled:
        raise ValueError(
            f"No step has a value of {against} together with one of {', '.join(columns)}. Choose "
            "another column for against, for example step."
        )
    shown = np.logical_or.reduce([both[c] for c in filled])
    whole = {run: part for run, _, part in by_run(rows, rows)}
    runs = [(run, title, whole[run]) for run, title, _ in by_run(rows[shown], rows)]
    # Of each column by itself: an evaluation has a value now and then, the loss at every step.
    windows = {c: smooth or _window(rows[_finite(rows, c)]) for c in {*filled, against}}
    averaged = windows[against] > 1 and any(_falls(part, against) for _, _, part in runs)
    budget = int(MOST_LINE_POINTS / len(filled) / len(runs))
    panels, notes, most, kept = [], [], 0, 0
    lows, highs = [], []
    for column in filled:
        values = rows[column].to_numpy(dtype=float)[both[column]]
        if log is None:
            ratio = _LOG_FROM_RATIO.get(column)
            is_log = ratio is not None and spans(pd.Series(values), ratio) and values.min() > 0
        else:
            is_log = log
        scale = value_scale(column, values, is_log)
        symbol = label_of(column).symbol
        notes.append(f"{symbol}: {scale.note}" if scale.note else "")
        faint: list[Mark] = []
        strong: list[Mark] = []
        for i, (_, title, part) in enumerate(runs):
            here = _finite(part, column) & _finite(part, against)
            if is_log:
                here &= part[column].to_numpy(dtype=float) > 0
            if not here.any():
                continue
            x, y, steps = (part[c].to_numpy(float)[here] for c in (against, column, "step"))
            smoothed = _running_mean(y, windows[column])
            if averaged:
                # Over its own record: the column may have a value now and then only.
                known = _finite(part, against)
                mean = _running_mean(part[against].to_numpy(float)[known], windows[against])
                x = mean[here[known]]
            elif windows[column] > 1:
                at = _extremes(y, budget // 3)
                faint.append(Line(x[at], y[at], Ink("run", i), 0.5, opacity=0.3, entry=f"run {i}"))
            thinned = thin_steps(steps, 1, budget // (3 if windows[column] > 1 else 1))
            at = np.flatnonzero(np.isin(steps, thinned))
            most, kept = max(most, len(steps)), max(kept, len(at))
            hover: tuple[tuple[str, Floats], ...] = ()
            if against != "step":
                hover = (("step", steps[at]),)
            strong.append(
                Line(
                    x[at], smoothed[at], Ink("run", i), 1.4, dash=style.dash(i),
                    entry=f"run {i}", hover=Hover(title, hover),
                )
            )  # fmt: skip
            lows.append(x.min())
            highs.append(x.max())
        label = label_of(column)
        # The title says the symbol already.
        axis = Axis(label.name or label.symbol, label.symbol, scale.limits, log=is_log)
        panels.append((symbol, axis, (*faint, *strong)))
    across = _across(against, min(lows), max(highs))
    empty = [label_of(c).symbol for c in columns if c not in filled]
    # A loss that was never recorded is a gap; one that is infinite is a fact about the run.
    infinite = int(np.isinf(rows[filled].to_numpy(dtype=float)).sum())
    return Chart(
        panels=tuple(Panel(title, across, axis, marks) for title, axis, marks in panels),
        entries=run_entries([title for _, title, _ in runs]),
        reading=_reading(filled, against),
        caption=sentences(
            *(
                [_averaging_sentence({c: windows[c] for c in (against, *filled)})]
                if averaged
                else _smoothing_sentences({c: windows[c] for c in filled})
            ),
            thinning_sentence("Lines through", kept, most),
            f"Not recorded: {', '.join(empty)}." if empty else "",
            *notes,
            f"{infinite} infinite values are left out." if infinite else "",
        ),
        link_x=True,
    )


def _ordered_rows(
    rows: pd.DataFrame, columns: list[str], against: str, smooth: int | None
) -> pd.DataFrame:
    """Return the rows run after run, ascending in step, so that a line follows time."""
    missing = [c for c in ("run", "method", "step", against, *columns) if c not in rows.columns]
    if missing or not columns:
        raise ValueError(
            f"The training rows have no column {', '.join(missing) or 'to draw'}; they have "
            f"{', '.join(map(str, rows.columns))}."
        )
    if smooth is not None and smooth < 1:
        raise ValueError(f"smooth must be at least 1 (no smoothing), got {smooth}.")
    for column in (against, *columns):
        if not pd.api.types.is_numeric_dtype(rows[column]):
            raise ValueError(f"The column {column} holds no numbers, so it has no curve.")
    if rows.duplicated(["run", "step"]).any():
        raise ValueError(
            "Two of the runs share a name, so their steps cannot be told apart. Rename one of "
            "their folders."
        )
    rows = with_known_methods(rows)
    if rows.empty:
        return rows
    places, _ = run_codes(rows)
    return rows.iloc[np.lexsort((rows["step"].to_numpy(), places))]


def _finite(rows: pd.DataFrame, column: str) -> NDArray[np.bool_]:
    return np.isfinite(rows[column].to_numpy(dtype=float, na_value=np.nan))


def _falls(part: pd.DataFrame, column: str) -> bool:
    """Whether a column ever gets less from one recorded step to the next."""
    values = part[column].to_numpy(dtype=float)
    return bool((np.diff(values[np.isfinite(values)]) < 0).any())


def _across(against: str, low: float, high: float) -> Axis:
    label = label_of(against) if against != "step" else Label("step", "", "")
    ratio = _LOG_FROM_RATIO.get(against)
    log = ratio is not None and low > 0 and high / low > ratio
    return Axis(
        label.axis, label.symbol, padded(low, high, log), log=log, integer=against in _COUNTS
    )


def _reading(columns: list[str], against: str) -> str:
    if against != "step":
        return f"Each run over {label_of(against).symbol}, its points joined in the order of steps."
    return " ".join(label_of(c).reading for c in columns[:2])


def _window(rows: pd.DataFrame) -> int:
    longest = int(rows["run"].value_counts().max()) if len(rows) else 0
    return 1 if longest <= _SMOOTH_ABOVE else longest // (_SMOOTH_ABOVE // 2)


def _smoothing_sentences(windows: dict[str, int]) -> list[str]:
    """Say what the strong lines are means of, and the faint ones the record of."""
    alike = len(set(windows.values())) == 1
    sentences = []
    for column, window in windows.items():
        if window > 1:
            symbol = "" if alike else f"{label_of(column).symbol}: "
            sentences.append(f"{symbol}Strong: mean of {window} recorded steps; faint: every one.")
            if alike:
                break
    return sentences


def _averaging_sentence(windows: dict[str, int]) -> str:
    """Say what is averaged where the horizontal axis is."""
    means = [f"{label_of(c).symbol} {window}" for c, window in windows.items() if window > 1]
    return f"Means of so many recorded steps: {', '.join(means)}."


def _running_mean(values: Floats, window: int) -> Floats:
    if window == 1:
        return values
    mean = pd.Series(values).rolling(window, center=True, min_periods=1).mean()
    return mean.to_numpy()


def _extremes(values: Floats, count: int) -> NDArray[np.intp]:
    """Return about `count` places that keep the least and the greatest of every stretch."""
    stretches = max(count // 2, 1)
    if len(values) <= 2 * stretches:
        return np.arange(len(values))
    length = -(-len(values) // stretches)
    filled = np.pad(values, (0, length * stretches - len(values)), mode="edge")
    blocks = filled.reshape(stretches, length)
    starts = np.arange(stretches) * length
    ends = [0, len(values) - 1]
    places = np.concatenate([starts + blocks.argmin(axis=1), starts + blocks.argmax(axis=1), ends])
    return np.unique(np.minimum(places, len(values) - 1))
