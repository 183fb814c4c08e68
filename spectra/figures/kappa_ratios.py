"""The condition number of a regularized run over that of its unregularized twin: Theorem 5."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from spectra.figures.captions import listed, sentences
from spectra.figures.chart import (
    Axis,
    Chart,
    Entry,
    Floats,
    Hover,
    Ink,
    Line,
    Mark,
    Panel,
    Pick,
    Rule,
)
from spectra.figures.drawing import draw
from spectra.figures.export import Backend
from spectra.figures.labels import RATIOS, label_of
from spectra.figures.over_layers import horizontal
from spectra.figures.selection import (
    MOST_LINE_POINTS,
    by_run,
    clean,
    module_names,
    module_order,
    select_rows,
    thin_steps,
    thinning_sentence,
)
from spectra.figures.style import dash

_KEYS = ["module", "layer", "step"]
# Beyond a decade a linear axis hides how far below 1 a ratio is.
_LOG_FROM_RATIO = 10.0
# Factors of one initialisation agree to rounding; of two, κ_p differs in its leading digits.
_SAME = 1e-3


@dataclass(frozen=True)
class _Pair:
    """A pair's ratios: one row a module, layer and step that both runs have.

    Attributes
    ----------
    regularized : str
        The run's name, for a click.
    title : str
    rows : DataFrame
        module, layer, step, ratio; ascending in that order.
    steps : array of float
        Of `rows`.
    thinning : str
        What the caption says of steps that are not drawn.
    notes : tuple of str
        What the caption says of it.
    """

    regularized: str
    title: str
    rows: pd.DataFrame
    steps: Floats
    thinning: str
    notes: tuple[str, ...]


def kappa_ratio(
    drift: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    column: str = "kappa_p",
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Draw regularized over unregularized condition number of paired runs, a panel a module.

    Parameters
    ----------
    drift : DataFrame
        Rows of the runs: columns run, method, module, step, layer and `column`.
    pairs : sequence of (str, str)
        Names of the regularized and the unregularized run, as in the column run; for example
        `spectra.store.regularized_pairs`. Several, such as seeds, are laid over one another.
    column : str
        ``"kappa_p"``, of the trained part W_p that the theorem is about; or ``"kappa"`` of W_t,
        ``"kappa_u"``, ``"kappa_v"`` of the factors.
    modules, layers, steps : iterable, optional
        Draw only these; all by default.
    backend : {"plotly", "matplotlib"}
        Screen or paper.
    dark : bool
        Colours for a dark background (plotly only).
    preset : str, optional
        Width and fonts of a venue (matplotlib only).

    Returns
    -------
    plotly.graph_objects.Figure or matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is no pair, a run of one is not there or has no value of `column`, the two of a
        pair share no matrix and step, or `column` is no condition number.

    Notes
    -----
    A ratio is of one layer at one step: κ(W_p) with the regularizer over κ(W_p) without it. The
    thick line is the geometric mean over the layers, which is the same whichever of the two runs
    is divided by the other. Theorem 5 states that the ratio is 1 at t = 0 and falls below 1 once
    the unregularized factors have lost orthonormality enough; the figure measures it, and does
    not assume it. The paper's tables give the two other learning rates, and the ratio of such a
    pair shows what both do. Where a pair's κ_p differs at step 0, the two did not begin with the
    same factors, and the caption says so.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Section 5, Theorem 5.
    """
    return draw(
        describe_kappa_ratio(drift, pairs, column, modules=modules, layers=layers, steps=steps),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_kappa_ratio(
    drift: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    column: str = "kappa_p",
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
) -> Chart:
    """Turn rows into the chart of `kappa_ratio`, which see."""
    if column not in RATIOS - {"residual"}:
        raise ValueError(
            "column must be a condition number (kappa, kappa_p, kappa_u or kappa_v), got "
            f"{column!r}."
        )
    pairs = [(str(a), str(b)) for a, b in pairs]
    parts, titles = _parts(drift, pairs, column, modules, layers, steps)
    pairs = list(dict.fromkeys(pairs))
    budget = MOST_LINE_POINTS // len(pairs)
    drawn = [_pair(a, b, parts, titles, column, budget) for a, b in pairs]
    order = module_order(pd.concat([p.rows[["module"]] for p in drawn]), modules)
    ratios = np.concatenate([p.rows["ratio"].to_numpy() for p in drawn])
    low, high = min(float(ratios.min()), 1.0), max(float(ratios.max()), 1.0)
    log = high / low > _LOG_FROM_RATIO
    margin = (high / low) ** 0.05 if log else 0.05 * (high - low) or 0.05
    limits = (low / margin, high * margin) if log else (low - margin, high + margin)
    symbol = label_of(column).symbol
    x = horizontal("step", "step", [p.steps for p in drawn], integer=True)
    y = Axis(f"{symbol} with regularizer / without", f"ratio of {symbol}", limits, log=log)
    panels = []
    for module in order:
        marks: list[Mark] = [Rule(y=1.0)]
        lines = [(i, p, p.rows[p.rows["module"] == module]) for i, p in enumerate(drawn)]
        marks += [_faint(i, p, module, of) for i, p, of in lines if not of.empty]
        marks += [_thick(i, p, module, of) for i, p, of in lines if not of.empty]
        panels.append(Panel(clean(module), x, y, tuple(marks)))
    whole = "" if column == "kappa_p" else f" Here {symbol} is drawn, and the theorem is about W_p."
    return Chart(
        panels=tuple(panels),
        entries=tuple(
            Entry(f"pair{i}", p.title, Ink("run", i), dash(i)) for i, p in enumerate(drawn)
        ),
        reading="Below 1, the regularized run is the better conditioned.",
        caption=sentences(
            f"{symbol} of a layer with the regularizer over that without it; thick: geometric mean "
            "over the layers. Theorem 5 (arXiv:2409.00055): κ of W_p has the ratio 1 at t = 0, and "
            f"below 1 once the unregularized factors have lost orthonormality enough.{whole}",
            *(note for p in drawn for note in p.notes),
            next((p.thinning for p in drawn if p.thinning), ""),
        ),
        link_x=True,
        link_y=True,
    )


def _parts(
    drift: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    column: str,
    modules: Iterable[str] | None,
    layers: Iterable[int] | None,
    steps: Iterable[int] | None,
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Return the rows and the title of every run of the pairs, by its name."""
    if not pairs:
        raise ValueError(
            "There is no pair of runs. Give the names of a regularized run and of one without the "
            "regularizer (sorsa and sorsa-noreg) that share seed and settings."
        )
    same = next((a for a, b in pairs if a == b), None)
    if same is not None:
        raise ValueError(f"A pair must be two runs, got {same!r} twice.")
    names = dict.fromkeys(name for pair in pairs for name in pair)
    wanted = drift[drift["run"].isin(list(names))] if "run" in drift else drift
    present = set(map(str, wanted["run"].unique())) if "run" in wanted else set()
    if absent := [name for name in names if name not in present]:
        known = listed([clean(name) for name in drift["run"].unique()]) if "run" in drift else ""
        raise ValueError(
            f"The rows have no run {', '.join(map(repr, absent))}; they have {known or 'none'}."
        )
    modules = module_names(modules)
    rows = select_rows(wanted, [], modules, layers, steps, keep=[column])
    if column not in rows:
        raise ValueError(f"The rows have no column {column}. Run `spectra analyze RUN`.")
    found = {run: (title, part[part[column].notna()]) for run, title, part in by_run(rows, wanted)}
    for name in names:
        if name not in found or found[name][1].empty:
            raise ValueError(
                f"The chosen rows of {clean(name)} have no value of {column}. Only runs that train "
                "SORSA's factors have kappa_p, kappa_u and kappa_v; choose the column kappa for "
                "the condition number of W_t, which every run has, or another pair."
            )
    return {n: part for n, (_, part) in found.items()}, {n: t for n, (t, _) in found.items()}


def _pair(
    regularized: str,
    plain: str,
    parts: dict[str, pd.DataFrame],
    titles: dict[str, str],
    column: str,
    budget: int,
) -> _Pair:
    """Divide what both runs have of a matrix at a step, and say what only one has."""
    one, other = (parts[name][[*_KEYS, column]] for name in (regularized, plain))
    title = f"{titles[regularized]} / {titles[plain]}"
    notes = list(_only_one_has((one, titles[regularized]), (other, titles[plain])))
    common = np.intersect1d(one["step"].unique(), other["step"].unique())
    kept = thin_steps(common, len(one) // one["step"].nunique(), budget)
    one, other = (rows[rows["step"].isin(kept)] for rows in (one, other))
    both = one.merge(other, on=_KEYS, suffixes=("", "_plain")).sort_values(_KEYS)
    if both.empty:
        raise ValueError(
            f"{title}: the two runs have no module, layer and step in common. Analyse both at the "
            "same steps and modules, or choose another pair."
        )
    ratio = (both[column] / both[f"{column}_plain"]).to_numpy(dtype=float)
    known = np.isfinite(ratio) & (ratio > 0)
    if not known.any():
        raise ValueError(
            f"{title}: every {column} is infinite (σ_min = 0) in one of the two, so they have no "
            "ratio."
        )
    if dropped := int((~known).sum()):
        notes.append(f"{title}: {dropped} infinite values are left out.")
    rows = both[_KEYS].assign(ratio=ratio)[known]
    start = rows.loc[rows["step"] == 0, "ratio"]
    if len(start) and float(np.abs(np.log(start)).max()) > _SAME:
        notes.append(
            f"{title}: {label_of(column).symbol} differs at step 0, so the two did not begin with "
            "the same factors."
        )
    steps = np.unique(rows["step"]).astype(float)
    thinning = thinning_sentence("Points", len(kept), len(common))
    return _Pair(regularized, title, rows, steps, thinning, tuple(notes))


def _only_one_has(*runs: tuple[pd.DataFrame, str]) -> Iterator[str]:
    """Say which steps, layers and modules of two runs have no partner in the other."""
    for key in _KEYS[::-1]:
        present = [set(rows[key].unique()) for rows, _ in runs]
        for (_, title), here, there in zip(runs, present, present[::-1], strict=True):
            if lone := sorted(here - there):
                names = listed([clean(value) for value in lone])
                yield f"Only {title} has the {key}{'s' if len(lone) > 1 else ''} {names}."


def _faint(number: int, pair: _Pair, module: str, rows: pd.DataFrame) -> Line:
    """Return the lines of all layers as one, with a gap after each."""
    layer, step = rows["layer"].to_numpy(), rows["step"].to_numpy()
    ends = np.flatnonzero(np.diff(layer)) + 1
    layers = np.insert(layer, ends, layer[ends - 1])
    return Line(
        np.insert(step.astype(float), ends, step[ends - 1]),
        np.insert(rows["ratio"].to_numpy(), ends, math.nan),
        Ink("run", number),
        width=0.7,
        opacity=0.4,
        entry=f"pair{number}",
        hover=Hover(f"{pair.title} · {clean(module)}", (("layer", layers.astype(float)),)),
        pick=Pick(
            pair.regularized,
            module,
            tuple(layers.tolist()),
            tuple(np.insert(step, ends, step[ends - 1]).tolist()),
        ),
    )


def _thick(number: int, pair: _Pair, module: str, rows: pd.DataFrame) -> Line:
    logs = np.log(rows["ratio"]).groupby(rows["step"], sort=True)
    return Line(
        np.asarray(logs.mean().index, dtype=float),
        np.exp(logs.mean().to_numpy()),
        Ink("run", number),
        width=2.0,
        dash=dash(number),
        rim=True,
        entry=f"pair{number}",
        hover=Hover(
            f"{pair.title} · {clean(module)}, geometric mean",
            (("layers", logs.size().to_numpy(dtype=float)),),
        ),
    )
