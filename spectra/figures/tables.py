"""Tables for papers: where every method ended, mean and spread over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from spectra.figures.chart import Floats
from spectra.figures.ends import LAST_STEPS, over_seeds
from spectra.figures.export import write_whole
from spectra.figures.selection import by_run, clean, module_names, module_order, select_rows
from spectra.figures.tex import DEFINITIONS, GLYPH_MACRO, escape

TABLE_ENDINGS = (".tex", ".csv")

_DRIFT = ("delta_sigma", "delta_d", "kappa")
_EVALUATIONS = ("perplexity", "perplexity_other", "gsm8k")
_HEADS = {
    "delta_sigma": (r"$\Delta\Sigma$", "unit of $W$"),
    "delta_d": (r"$\Delta D$", ""),
    "kappa": (r"$\kappa$", ""),
    "loss": ("loss", "nats/token"),
    "perplexity": ("perplexity", ""),
    "perplexity_other": ("perplexity, other text", ""),
    "gsm8k": ("GSM8K", "share"),
}
"""A column's head and unit in LaTeX."""
# A spread has one digit that means something, and a second that rounds it.
_DIGITS_OF_SPREAD = 2
_DIGITS = 3
# Orders of magnitude that are read without a power of ten.
_PLAIN = (-1, 4)
# Beyond so many orders of magnitude in a column, one power of ten cannot serve all its cells.
_ORDERS_OF_A_COLUMN = 3


def comparison_table(
    drift: pd.DataFrame,
    training: pd.DataFrame | None = None,
    groups: Mapping[str, str] | None = None,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Return where every group of runs ended: mean and spread over its seeds.

    Parameters
    ----------
    drift : DataFrame
        Rows of one or more runs: columns run, method, module, step, layer, delta_sigma, delta_d;
        and, where present, kappa.
    training : DataFrame, optional
        Concatenated `Run.read_training()`.
    groups : mapping, optional
        The label of each run, by its name; see `spectra.store.group_labels`. A run that is not in
        it, and every run by default, stands alone.
    modules, layers : iterable, optional
        Only these; all by default.

    Returns
    -------
    DataFrame
        A row a group and module: group, module, seeds (how many), step; and of each quantity its
        mean and, as ``QUANTITY_sd``, the sample's standard deviation over the seeds, null for one
        seed. The quantities are, at that step, delta_sigma and delta_d (means over the layers;
        unit of the weights, and 0 to 1) and kappa (median over the layers); loss (nats per token;
        mean of the five recorded steps up to it), perplexity, perplexity_other and gsm8k (the last
        up to it), where some run has them.

    Raises
    ------
    ValueError
        If there are no rows, a column is missing or two runs share a name.

    Notes
    -----
    The step is the last one that all seeds of the group have of that module, so that a seed that
    was interrupted is compared at the step that it reached. Where they have none in common, each
    is taken at its own last step, and the step is null. What has no value of ΔΣ and ΔD, as rows
    of ``--values-only``, has those empty.
    """
    modules = module_names(modules)
    rows = select_rows(drift, [], modules, layers, None, keep=_DRIFT)
    absent = [c for c in ("delta_sigma", "delta_d") if c not in rows]
    if absent:
        raise ValueError(f"The rows have no column {', '.join(absent)}. Run `spectra analyze RUN`.")
    order = module_order(rows, modules)
    curves = _by_run(training)
    # A run that stands alone must not fall in with a group of the same label.
    members: dict[tuple[bool, str, str], list[tuple[str, pd.DataFrame]]] = {}
    titles: dict[tuple[bool, str], str] = {}
    for run, title, part in by_run(rows, drift):
        label = (groups or {}).get(run)
        key = (True, run) if label is None else (False, label)
        titles.setdefault(key, title if label is None else label)
        for module in order:
            of_module = part[part["module"] == module]
            if not of_module.empty:
                members.setdefault((*key, module), []).append((run, of_module))
    places = {key: i for i, key in enumerate(titles)}
    ends = []
    for (alone, label, module), parts in members.items():
        common = set.intersection(*(set(part["step"].unique()) for _, part in parts))
        for run, part in parts:
            step = int(max(common)) if common else int(part["step"].max())
            ends.append(
                {"place": places[alone, label], "group": titles[alone, label], "module": module}
                | {"step": step if common else pd.NA}
                | _drift_at(part[part["step"] == step])
                | _training_at(curves.get(run), step)
            )
    values = pd.DataFrame(ends).astype({"step": "Int64"})
    quantities = [c for c in (*_DRIFT, "loss", *_EVALUATIONS) if c in values]
    quantities = [c for c in quantities if values[c].notna().any()]
    table = over_seeds(values, ["place", "group", "module", "step"], quantities)
    # A group's modules stand together, whatever was trained between its runs.
    table = table.sort_values("place", kind="stable", ignore_index=True)
    found = [c for quantity in quantities for c in (quantity, f"{quantity}_sd")]
    return table[["group", "module", "seeds", "step", *found]]


def to_latex(table: pd.DataFrame, *, command: str = "") -> str:
    r"""Return a table of `comparison_table` as LaTeX.

    It needs ``\usepackage{booktabs}``, and stands in a ``table`` of one's own with a caption.

    Parameters
    ----------
    table : DataFrame
    command : str
        What made it, for a comment in the first line.

    Notes
    -----
    Mean and standard deviation of a cell end at the same decimal. A column has as many decimals
    in all its rows, two digits of the median deviation, and where its numbers are very small or
    large a power of ten that stands in its head; a column whose numbers differ by more than three
    orders of magnitude has a power in each cell instead. Names are escaped.
    """
    quantities = [c for c in table.columns if f"{c}_sd" in table.columns]
    powers, cells = {}, {}
    for quantity in quantities:
        powers[quantity], cells[quantity] = _cells(table[quantity], table[f"{quantity}_sd"])
    heads = [_head(quantity, powers[quantity]) for quantity in quantities]
    lines = [
        f"% made by: {_comment(command) or 'spectra.figures.to_latex'}",
        "% mean ± a standard deviation of the sample over the seeds; \\usepackage{booktabs}",
        rf"\begin{{tabular}}{{ll{'r' * (2 + len(quantities))}}}",
        r"\toprule",
        " & ".join(["group", "module", "seeds", "step", *heads]) + r" \\",
        r"\midrule",
    ]
    several = table["module"].nunique() > 1
    before = None
    for row, (group, module, seeds, step) in enumerate(
        zip(table["group"], table["module"], table["seeds"], table["step"], strict=True)
    ):
        if several and before not in (None, group):
            lines.append(r"\addlinespace")
        texts = [
            "" if group == before else _name(group),
            _name(module),
            str(seeds),
            "--" if pd.isna(step) else str(step),
            *(cells[quantity][row] for quantity in quantities),
        ]
        lines.append(" & ".join(texts) + r" \\")
        before = group
    lines += [r"\bottomrule", r"\end{tabular}"]
    if any(GLYPH_MACRO in line for line in lines):
        lines.insert(2, DEFINITIONS)
    return "\n".join(lines) + "\n"


def table_bytes(table: pd.DataFrame, ending: str, *, command: str = "") -> bytes:
    """Return a table as the bytes of a file.

    Parameters
    ----------
    table : DataFrame
        Of `comparison_table`.
    ending : {".tex", ".csv"}
        ``.csv`` has all digits, and a null as an empty cell.
    command : str
        What made it; for LaTeX.

    Raises
    ------
    ValueError
        For another ending.
    """
    if ending.lower() == ".tex":
        return to_latex(table, command=command).encode()
    if ending.lower() == ".csv":
        return table.to_csv(index=False, lineterminator="\n").encode()
    raise ValueError(f"A table is written as {' or '.join(TABLE_ENDINGS)}, got {ending!r}.")


def write_table(table: pd.DataFrame, path: Path | str, *, command: str = "") -> Path:
    """Write a table, whole or not at all; the ending of `path` chooses the format.

    Raises
    ------
    ValueError
        If the ending is neither ``.tex`` nor ``.csv``.
    OSError
        If the file cannot be written.
    """
    path = Path(path)
    write_whole(path, table_bytes(table, path.suffix, command=command))
    return path


def _by_run(training: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    if training is None or training.empty:
        return {}
    if training.duplicated(["run", "step"]).any():
        raise ValueError(
            "Two of the runs share a name, so their steps cannot be told apart. Rename one of "
            "their folders."
        )
    rows = training.sort_values("step", kind="stable")
    return {str(run): part for run, part in rows.groupby("run", observed=True)}


def _drift_at(rows: pd.DataFrame) -> dict[str, float]:
    """Return the values over the layers at one step."""
    found = {name: float(rows[name].mean()) for name in ("delta_sigma", "delta_d")}
    if "kappa" in rows:
        found["kappa"] = float(rows["kappa"].median())
    return found


def _training_at(rows: pd.DataFrame | None, step: int) -> dict[str, float]:
    """Return what training recorded up to a step."""
    if rows is None:
        return {}
    rows = rows[rows["step"] <= step]
    found = {}
    if "loss" in rows and rows["loss"].notna().any():
        found["loss"] = float(rows["loss"].dropna().tail(LAST_STEPS).mean())
    for name in _EVALUATIONS:
        if name in rows and rows[name].notna().any():
            found[name] = float(rows[name].dropna().iloc[-1])
    return found


def _cells(means: pd.Series, deviations: pd.Series) -> tuple[int, list[str]]:
    """Return the power of ten of a column's head, and its cells."""
    mean, sd = means.to_numpy(dtype=float), deviations.to_numpy(dtype=float, na_value=math.nan)
    sizes = np.abs(mean[np.isfinite(mean) & (mean != 0)])
    if not len(sizes):
        return 0, [_cell(m, s, 0, 0) for m, s in zip(mean, sd, strict=True)]
    top, bottom = _order(sizes.max()), _order(sizes.min())
    if top - bottom > _ORDERS_OF_A_COLUMN:
        return 0, [_cell_alone(m, s) for m, s in zip(mean, sd, strict=True)]
    power = _power(top)
    decimals = max(_decimals(sd, top, bottom) + power, 0)
    cells = [_cell(m, s, power, decimals) for m, s in zip(mean, sd, strict=True)]
    if np.isfinite(sd).any():
        # Means stand below one another, also that of a single seed.
        room = rf"\phantom{{{{}}\pm {0:.{decimals}f}}}$"
        cells = [c[:-1] + room if c.endswith("$") and r"\pm" not in c else c for c in cells]
    return power, cells


def _cell_alone(mean: float, sd: float) -> str:
    """Return a cell that has its own power of ten."""
    if not math.isfinite(mean) or mean == 0:
        return _cell(mean, sd, 0, 0)
    order = _order(abs(mean))
    power = _power(order)
    decimals = max(_decimals(np.array([sd]), order, order) + power, 0)
    cell = _cell(mean, sd, power, decimals)
    if not power:
        return cell
    inner = cell.strip("$")
    inner = f"({inner})" if "pm" in inner else inner
    return rf"${inner} \times 10^{{{power}}}$"


def _cell(mean: float, sd: float, power: int, decimals: int) -> str:
    if math.isnan(mean):
        return "--"
    if math.isinf(mean):
        return r"$\infty$"
    text = f"{mean / 10.0**power:.{decimals}f}"
    if math.isfinite(sd):
        text += rf" \pm {sd / 10.0**power:.{decimals}f}"
    return f"${text}$"


def _decimals(sd: Floats, top: int, bottom: int) -> int:
    """Return after how many decimals numbers of orders `bottom` to `top` end."""
    spreads = sd[np.isfinite(sd) & (sd > 0)]
    if not len(spreads):
        # The smallest keeps two digits.
        return max(_DIGITS - 1 - top, 1 - bottom)
    middle = _DIGITS_OF_SPREAD - 1 - _order(float(np.median(spreads)))
    # Where one group's seeds agree much better than the others', at least a digit of theirs.
    return min(max(middle, -_order(float(spreads.min()))), middle + 2)


def _order(value: float) -> int:
    return math.floor(math.log10(value))


def _power(order: int) -> int:
    if _PLAIN[0] <= order <= _PLAIN[1]:
        return 0
    return -3 if order == -2 else order


def _head(quantity: str, power: int) -> str:
    name, unit = _HEADS.get(quantity, (escape(quantity), ""))
    unit = " ".join(part for part in (f"$10^{{{power}}}$" if power else "", unit) if part)
    return f"{name} ({unit})" if unit else name


def _name(name: object) -> str:
    text = escape(clean(name))
    # Behind the end of a row, these would be taken for what belongs to it.
    return f"{{}}{text}" if text.startswith(("[", "*")) else text


def _comment(text: str) -> str:
    """Return text that cannot end a comment's line."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
