"""Every figure once, from tidy rows: Matplotlib for paper, Plotly for screen.

Rows become a description (what is drawn, as plain data), and a renderer draws the description.
Importing this package loads neither plotting library.
"""

from __future__ import annotations

from spectra.figures.chart import Chart
from spectra.figures.comparison import compare, describe_compare
from spectra.figures.conditioning import conditioning, describe_conditioning
from spectra.figures.ends import final_losses, final_values, over_seeds
from spectra.figures.export import SCREEN_CONFIG, Backend, backend_for, save, to_bytes
from spectra.figures.heatmaps import describe_heatmap, heatmap
from spectra.figures.kappa_ratios import describe_kappa_ratio, kappa_ratio
from spectra.figures.labels import LABELS, Label, label_of
from spectra.figures.matrices import describe_matrix, matrix
from spectra.figures.options import (
    needed_columns,
    parse_names,
    parse_numbers,
    plot_command,
    write_names,
    write_numbers,
)
from spectra.figures.spectrum_views import describe_spectrum, spectrum
from spectra.figures.step_curves import (
    curves,
    describe_curves,
    describe_layer_curves,
    describe_run_curves,
)
from spectra.figures.tables import (
    TABLE_ENDINGS,
    comparison_table,
    table_bytes,
    to_latex,
    write_table,
)
from spectra.figures.training_curves import describe_training, training
from spectra.figures.trajectories import describe_trajectory, trajectory
from spectra.figures.trajectory_marks import unrelated_level

__all__ = [
    "LABELS",
    "SCREEN_CONFIG",
    "TABLE_ENDINGS",
    "Backend",
    "Chart",
    "Label",
    "backend_for",
    "compare",
    "comparison_table",
    "conditioning",
    "curves",
    "describe_compare",
    "describe_conditioning",
    "describe_curves",
    "describe_heatmap",
    "describe_kappa_ratio",
    "describe_layer_curves",
    "describe_matrix",
    "describe_run_curves",
    "describe_spectrum",
    "describe_training",
    "describe_trajectory",
    "final_losses",
    "final_values",
    "heatmap",
    "kappa_ratio",
    "label_of",
    "matrix",
    "needed_columns",
    "over_seeds",
    "parse_names",
    "parse_numbers",
    "plot_command",
    "save",
    "spectrum",
    "table_bytes",
    "to_bytes",
    "to_latex",
    "training",
    "trajectory",
    "unrelated_level",
    "write_names",
    "write_numbers",
    "write_table",
]
