"""One self-contained HTML page about some runs, to share."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from spectra import figures
from spectra.figures import Chart
from spectra.figures.selection import MOST_PANELS
from spectra.report_page import Drawing, Section, page, paragraph, table
from spectra.store import Run, group_labels, regularized_pairs, run_names, whole_file

TITLE = "What fine-tuning did to the singular spectrum"

_UNANALYSED = "Nothing to draw: none of the runs is analysed. `spectra analyze RUN` computes it."
_UNTRAINED = (
    "Nothing to draw: none of the runs recorded its training. A run does when trained by "
    "`spectra train`, or passed to Recorder.step."
)
_HEADS = {
    "delta_sigma": "mean ΔΣ",
    "delta_d": "mean ΔD",
    "kappa": "median κ",
    "loss": "training loss",
    "perplexity": "perplexity",
    "perplexity_other": "perplexity, other text",
    "gsm8k": "GSM8K",
}
_WORDS = ("run", "group", "method", "module", "state", "base")


@dataclass(frozen=True)
class LeftOut:
    """A run that the report does not show, and why."""

    name: str
    reason: str


@dataclass
class _Material:
    """What was read of the runs that can be read."""

    runs: list[Run] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    drifts: list[pd.DataFrame] = field(default_factory=list)
    trainings: list[pd.DataFrame] = field(default_factory=list)
    spectra: list[pd.DataFrame] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def drift(self) -> pd.DataFrame:
        return _joined(self.drifts)

    @property
    def training(self) -> pd.DataFrame:
        return _joined(self.trainings)

    @property
    def spectrum(self) -> pd.DataFrame:
        return _joined(self.spectra)


def write_report(
    runs: Sequence[Run],
    path: Path | str,
    notes: Sequence[str] = (),
    *,
    left_out: Sequence[LeftOut] = (),
) -> Path:
    """Write figures, final values and provenance of `runs` as one HTML file.

    The file opens without a network, in light or dark as the reader's system is, and is the same
    for the same data, byte for byte. Most of it are 5 MB of Plotly.

    Parameters
    ----------
    runs : sequence of Run
        One that cannot be read is named with the reason, and the others are shown.
    path : Path or str
        The file.
    notes : sequence of str
        Paragraphs for the top of the page.
    left_out : sequence of LeftOut
        Runs that were asked for and not even found, to be named too.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        If no run can be read.
    OSError
        If the file cannot be written.
    """
    material = _read(runs)
    material.left_out[:0] = left_out
    if not material.runs:
        reasons = " ".join(f"{one.name}: {one.reason}" for one in material.left_out)
        raise ValueError(f"None of the runs can be read. {reasons}".strip())
    text = page(TITLE, _introduction(material, notes), list(_sections(material)))
    path = Path(path)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def _read(runs: Sequence[Run]) -> _Material:
    found = _Material()
    for run, name in zip(runs, run_names(runs), strict=True):
        try:
            settings, state = run.read_settings(), run.state
            drift, training = run.read_drift(), run.read_training()
            spectrum = pd.DataFrame()
            if not drift.empty:
                spectrum = run.read_spectrum(step=int(drift["step"].max()))
        except (OSError, ValueError, KeyError) as error:
            found.left_out.append(LeftOut(name, str(error)))
            continue
        found.runs.append(run)
        found.names.append(name)
        found.settings.append(settings)
        found.states.append(state)
        found.drifts.append(drift.assign(run=name))
        found.trainings.append(training.assign(run=name))
        found.spectra.append(spectrum.assign(run=name))
    return found


def _sections(material: _Material) -> Iterator[Section]:
    drift, training, spectrum = material.drift, material.training, material.spectrum
    labels = group_labels(material.runs)
    yield _panels("trajectories", "Trajectories", drift, figures.describe_trajectory, False)
    yield _panels("layers", "Layers: ΔD over the steps", drift, figures.describe_heatmap, True)
    yield _one("conditioning", "Conditioning", drift, figures.describe_conditioning)
    if pairs := regularized_pairs(material.runs):
        title = "Condition with and without the regularizer"
        yield _one("ratio", title, drift, figures.describe_kappa_ratio, pairs)
    if len(material.runs) > 1:
        describe = partial(figures.describe_compare, groups=labels)
        yield _one("compare", "Methods compared", drift, describe, training)
    yield _one("training", "Training", training, figures.describe_training, nothing=_UNTRAINED)
    title = "Spectrum at the last step"
    yield _panels("spectrum", title, spectrum, figures.describe_spectrum, True)
    yield _values(drift, training, labels)
    yield _provenance(material)


def _panels(
    key: str, title: str, rows: pd.DataFrame, describe: Callable[..., Chart], per_module: bool
) -> Section:
    """Return a section of a panel a run, or a run and module, in as many figures as it takes."""
    if rows.empty:
        return Section(key, title, problem=_UNANALYSED)
    drawings, problems = [], []
    for heading, modules, piece in _pieces(rows, per_module):
        try:
            drawings.append(Drawing(describe(piece, modules=modules), heading))
        except ValueError as error:
            problems.append(f"{heading}: {error}" if heading else str(error))
    return Section(key, title, tuple(drawings), " ".join(problems))


def _one(
    key: str,
    title: str,
    rows: pd.DataFrame,
    describe: Callable[..., Chart],
    *more: Any,
    nothing: str = "",
) -> Section:
    """Return a section of one figure."""
    if rows.empty:
        return Section(key, title, problem=nothing or _UNANALYSED)
    try:
        return Section(key, title, (Drawing(describe(rows, *more)),))
    except ValueError as error:
        return Section(key, title, problem=str(error))


def _pieces(
    rows: pd.DataFrame, per_module: bool
) -> Iterator[tuple[str, list[str] | None, pd.DataFrame]]:
    """Yield a heading, the modules and the rows of each figure that a section needs."""
    runs = list(dict.fromkeys(rows["run"]))
    modules = sorted(set(rows["module"].dropna())) if per_module else [""]
    if len(runs) * len(modules) <= MOST_PANELS:
        yield "", None, rows
        return
    for module in modules:
        for start in range(0, len(runs), MOST_PANELS):
            some = runs[start : start + MOST_PANELS]
            last = start + len(some)
            numbers = f"runs {start + 1} to {last}" if len(some) > 1 else some[0]
            if len(runs) == len(some):
                numbers = ""
            heading = ", ".join(part for part in (module, numbers) if part)
            yield heading, [module] if module else None, rows[rows["run"].isin(some)]


def _values(drift: pd.DataFrame, training: pd.DataFrame, labels: Mapping[str, str]) -> Section:
    if drift.empty:
        return Section("values", "Final values", problem=_UNANALYSED)
    parts, problem = [], ""
    try:
        ends = figures.final_values(drift)
        reading = (
            "At the last step of each run: mean ΔΣ (unit of the weights) and ΔD (0 = base) over "
            "the layers, and the median condition number κ."
        )
        parts += [paragraph(reading, "how"), _table("Final values of every run", ends)]
        if len(set(labels.values())) < len(labels):
            means = figures.comparison_table(drift, training, labels)
            told = "Means over the seeds, ± one standard deviation of the sample."
            parts += [paragraph(told, "how"), _table("Means over the seeds", means)]
    except ValueError as error:
        problem = str(error)
    return Section("values", "Final values", problem=problem, body="".join(parts))


def _table(caption: str, values: pd.DataFrame) -> str:
    shown = [c for c in values if not str(c).endswith("_sd")]
    rows = [
        [_cell(row, str(column)) for column in shown] for row in values.to_dict(orient="records")
    ]
    words = [i for i, column in enumerate(shown) if column in _WORDS]
    return table(caption, [_HEADS.get(str(c), str(c)) for c in shown], rows, words)


def _cell(row: Mapping[Any, Any], column: str) -> str:
    value, spread = row[column], row.get(f"{column}_sd")
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return "–"
    text = _number(value)
    if spread is None or pd.isna(spread):
        return text
    return f"{text} ± {float(spread):.2g}"


def _number(value: float) -> str:
    if math.isinf(value):
        return "∞"
    return f"{int(value)}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.4g}"


def _introduction(material: _Material, notes: Sequence[str]) -> str:
    parts = [paragraph(note) for note in notes]
    count = len(material.runs)
    parts.append(
        paragraph(
            f"{count} run{'s' if count > 1 else ''}. Every figure is interactive: point at a mark "
            "to read it, drag to enlarge, double-click to go back, click on the legend to hide.",
            "how",
        )
    )
    rows = []
    for name, settings, state, drift in zip(
        material.names, material.settings, material.states, material.drifts, strict=True
    ):
        base = settings.get("base") or {}
        steps = str(int(drift["step"].max())) if not drift.empty else "not analysed"
        model = base.get("name", "") if isinstance(base, dict) else str(base)
        rows.append(
            [name, str(settings.get("method") or "unknown"), state, str(model or "–"), steps]
        )
    head = ["run", "method", "state", "base", "last step"]
    parts.append(table("Runs of this report", head, rows, [0, 1, 2, 3]))
    parts += [paragraph(f"Left out: {one.name}. {one.reason}", "none") for one in material.left_out]
    return "".join(parts)


def _provenance(material: _Material) -> Section:
    parts = [
        f"<details><summary>{html.escape(name)}</summary>"
        f"<pre>{html.escape(json.dumps(settings, indent=2, ensure_ascii=False))}</pre></details>\n"
        for name, settings in zip(material.names, material.settings, strict=True)
    ]
    told = (
        "What run.json of every run says: settings, base, data, seed and versions of the software."
    )
    return Section("provenance", "Provenance", body=paragraph(told, "how") + "".join(parts))


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [one for one in tables if not one.empty]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()
