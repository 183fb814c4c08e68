"""One self-contained HTML page about some runs, to share."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spectra import figures
from spectra.store import Run, read_runs, whole_file

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1180px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 12px; }
.how { color: #555; }
"""

_HOW = {
    "trajectory": "Each number is a layer at one recorded step: further right, its singular "
    "values changed more (ΔΣ); further up, its singular vectors turned more (ΔD). Thick: the mean "
    "over layers.",
    "training": "Training loss (nats per token) and the norm of the task's gradient, step by step.",
    "kappa": "Condition number σ_max/σ_min of each weight; the line is the median or mean "
    "over layers, the band all of them.",
}


def write_report(runs: Sequence[Run], path: Path | str, notes: Sequence[str] = ()) -> Path:
    """Write figures, final values and provenance of `runs` as one HTML file.

    Parameters
    ----------
    runs : sequence of Run
        Analysed runs.
    path : Path or str
        The file; it opens without a network.
    notes : sequence of str
        Paragraphs for the top of the page.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        If no run has drift rows.
    OSError
        If the file cannot be written.
    """
    drift = read_runs(runs, "drift")
    training = read_runs(runs, "training")
    drawn: list[tuple[str, str, Any]] = [
        ("Trajectories", _HOW["trajectory"], figures.trajectory(drift)),
        ("Condition numbers", _HOW["kappa"], figures.curves(drift, "kappa", overlay=True)),
    ]
    if training["loss"].notna().any():
        drawn.insert(1, ("Training", _HOW["training"], figures.training(training)))
    parts = ["<h1>What fine-tuning did to the singular spectrum</h1>"]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    for number, (title, how, figure) in enumerate(drawn):
        # The library is embedded once, with the first figure.
        drawing = figure.to_html(
            full_html=False, include_plotlyjs=number == 0, config=figures.SCREEN_CONFIG
        )
        parts.append(f'<h2>{title}</h2><p class="how">{html.escape(how)}</p>{drawing}')
    parts.append(
        "<h2>At the last step: mean ΔΣ and ΔD over the layers, median κ</h2>" + _table(drift)
    )
    parts.append("<h2>Provenance</h2>")
    for run in runs:
        settings = json.dumps(run.read_settings(), indent=2, ensure_ascii=False)
        parts.append(
            f"<details><summary>{html.escape(run.name)}</summary>"
            f"<pre>{html.escape(settings)}</pre></details>"
        )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Spectra</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>"
    )
    path = Path(path)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _table(drift: pd.DataFrame) -> str:
    return figures.final_values(drift).to_html(
        index=False, escape=True, float_format=lambda v: f"{v:.4g}", border=0
    )
