"""The authors' Figure 2 and ours from the same drift values, side by side.

Left is what the conventions of the authors' notebook give (analysis/data.ipynb of their public
repository, drawn anew, none of its code): a figure a method, each on axes of its own; the marker of
a matrix is its place among the saved weights, modulo 32; colours go by the step's place among the
steps, over all of viridis; one thick path is the mean over the matrices of all modules. Right is
`spectra.figures.trajectory`. Nothing is asserted.

    python -m tests.benchmarks.authors_plot runs/methods --out docs/images/figure2.png
    python -m tests.benchmarks.authors_plot runs/lora runs/sorsa --out two.png

Of a sweep only the paper's four methods are drawn, where it has any. Also printed: how many
labels on the left name another layer, and how far the common mean is from the modules' own.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from spectra import figures
from spectra.figures import style
from spectra.store import expand_runs, read_runs

PAPERS_METHODS = ("partial-ft", "lora", "sorsa-noreg", "sorsa")
"""Those of the paper's Figure 2, in its order."""
LABELS = 32
"""The notebook's list of markers has as many entries as Llama 2 7B has layers."""
# The notebook draws 15 × 10 inches for a method. Beside another figure its letters, markers and
# lines would vanish, so they are larger here: letters 3 times, areas of markers 6 times.
_PANEL_INCHES = (15, 10)
_LETTERS = 30
_NUMBER, _DOT, _MEAN, _PATH = 6 * 36, 3 * 100, 6, 2.5
_WIDTH = 1300


def main() -> None:
    """Draw the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("runs", nargs="+", type=Path, help="analysed runs, or folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="FILE.png")
    options = parser.parse_args()
    rows = papers_methods(read_runs(expand_runs(options.runs), "drift"))
    imsave(options.out, side_by_side(rows))
    print(f"Wrote {options.out}.\n{report(rows)}")


def papers_methods(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the paper's methods, in its order; all rows where there are none."""
    rank = rows["method"].map({m: i for i, m in enumerate(PAPERS_METHODS)})
    known = rows[rank.notna()]
    return rows if known.empty else known.iloc[np.argsort(rank[rank.notna()], kind="stable")]


def authors_labels(rows: pd.DataFrame) -> pd.Series:
    """Return the number by which the notebook marks each row's matrix.

    The weights are saved module after module, q_proj first, and layer after layer within one;
    the marker is the place in this order, modulo 32. It is the layer where there are 32.
    """
    matrices = rows[["module", "layer"]].drop_duplicates().sort_values(["module", "layer"])
    places = {matrix: i % LABELS for i, matrix in enumerate(matrices.itertuples(index=False))}
    return pd.Series(
        [places[pair] for pair in rows[["module", "layer"]].itertuples(index=False)],
        index=rows.index,
    )


def common_mean(rows: pd.DataFrame) -> pd.DataFrame:
    """Return ΔΣ and ΔD of one run by step, averaged over the matrices of all modules."""
    return rows[rows["step"] > 0].groupby("step")[["delta_sigma", "delta_d"]].mean()


def draw_as_authors(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw one run by the notebook's conventions.

    Parameters
    ----------
    axes : Axes
    rows : DataFrame
        Drift of one run: module, layer, step, delta_sigma, delta_d and label.
    """
    rows = rows[rows["step"] > 0]
    steps = sorted(rows["step"].unique())
    colours = dict(zip(steps, colormaps["viridis"](np.linspace(0, 1, len(steps))), strict=True))
    for (step, label), points in rows.groupby(["step", "label"]):
        axes.scatter(
            points["delta_sigma"], points["delta_d"], marker=f"${label}$", color=colours[step],
            s=_NUMBER, alpha=0.6, linewidths=0.5,
        )  # fmt: skip
    for _, path in rows.sort_values("step").groupby(["module", "layer"]):
        _segments(axes, path, colours, linewidth=_PATH, alpha=0.1)
    mean = common_mean(rows).reset_index()
    axes.scatter(0, 0, color="black", s=_DOT)
    axes.scatter(
        mean["delta_sigma"], mean["delta_d"], color=[colours[s] for s in mean["step"]], s=_DOT
    )
    axes.plot((0, mean["delta_sigma"][0]), (0, mean["delta_d"][0]), color="black", linewidth=_MEAN)
    _segments(axes, mean, colours, linewidth=_MEAN)
    axes.legend(
        handles=[
            Line2D([], [], marker="o", color=colours[s], ls="", ms=18, label=f"Step {s}")
            for s in steps
        ],
        title="Steps", loc="upper left", bbox_to_anchor=(1, 1), title_fontsize=_LETTERS * 0.75,
        fontsize=_LETTERS * 0.75,
    )  # fmt: skip
    axes.set_xlabel("ΔΣ", fontsize=_LETTERS)
    axes.set_ylabel("ΔD", fontsize=_LETTERS)
    axes.tick_params(labelsize=_LETTERS * 0.75)
    axes.xaxis.get_offset_text().set_fontsize(_LETTERS * 0.75)
    axes.yaxis.get_offset_text().set_fontsize(_LETTERS * 0.75)
    axes.locator_params(nbins=6)
    axes.grid(visible=True)


def side_by_side(rows: pd.DataFrame) -> NDArray[Any]:
    """Return the two figures as one image, theirs left and ours right."""
    ours = figures.trajectory(rows, backend="matplotlib")
    right = _image(ours, _WIDTH / style.PAPER_WIDTH)
    parts = [part for _, part in rows.groupby("run", sort=False)]
    labels = authors_labels(rows)
    columns = 2 if len(parts) > 1 else 1
    lines = -(-len(parts) // columns)
    size = (columns * _PANEL_INCHES[0], lines * _PANEL_INCHES[1])
    theirs = Figure(figsize=size, layout="constrained")
    for i, part in enumerate(parts):
        axes = theirs.add_subplot(lines, columns, i + 1)
        draw_as_authors(axes, part.assign(label=labels[part.index]))
        axes.set_title(str(part["method"].iloc[0]), fontsize=_LETTERS * 1.2)
    left = _image(theirs, _WIDTH / size[0])
    height = max(len(left), len(right))
    gap = np.full((height, 40, 3), 255, dtype=np.uint8)
    return np.concatenate([_padded(left, height), gap, _padded(right, height)], axis=1)


def report(rows: pd.DataFrame) -> str:
    """Return how many labels are wrong, and where the common mean ends beside the modules'."""
    wrong = authors_labels(rows) != rows["layer"]
    matrices = rows.assign(wrong=wrong).groupby(["module", "layer"])["wrong"].first()
    lines = [
        f"{int(matrices.sum())} of {len(matrices)} matrices are marked by the number of another "
        "layer.",
        "| run | mean of all: ΔΣ, ΔD | "
        + " | ".join(f"{m}: ΔΣ, ΔD" for m in sorted(rows["module"].unique()))
        + " |",
    ]
    lines.append("| --- " * (2 + rows["module"].nunique()) + "|")
    for run, part in rows.groupby("run", sort=False):
        ends = [common_mean(part).iloc[-1]]
        ends += [common_mean(of).iloc[-1] for _, of in part.groupby("module")]
        cells = [f"{end['delta_sigma']:.2e}, {end['delta_d']:.2e}" for end in ends]
        lines.append(f"| {run} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _segments(axes: Axes, path: pd.DataFrame, colours: dict[Any, Any], **look: Any) -> None:
    """Join points of one path, each segment in the colour of the step that it leaves."""
    x, y, steps = (path[c].tolist() for c in ("delta_sigma", "delta_d", "step"))
    for i in range(len(x) - 1):
        axes.plot(x[i : i + 2], y[i : i + 2], color=colours[steps[i]], **look)


def _image(figure: Figure, dpi: float) -> NDArray[Any]:
    buffer = io.BytesIO()
    with style.matplotlib_settings({"text.parse_math": True, "font.family": style.FONT}):
        figure.savefig(buffer, dpi=dpi, format="png", facecolor="white")
    buffer.seek(0)
    return (imread(buffer)[..., :3] * 255).round().astype(np.uint8)


def _padded(image: NDArray[Any], height: int) -> NDArray[Any]:
    above: Sequence[tuple[int, int]] = ((0, height - len(image)), (0, 0), (0, 0))
    return np.pad(image, above, constant_values=255)


if __name__ == "__main__":
    main()
