"""The per-index arrays behind drift: choosing them, and drawing fewer points than there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectra.figures.chart import Floats
from spectra.figures.selection import by_run, clean, module_order

KEYS = ["run", "method", "module", "layer", "step"]
# A scale leaves out this share of the values at either end where they would more than double it.
_TAIL = 0.005


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix, largest first.

    Attributes
    ----------
    layer : int
    sigma : array of shape (k,)
        Of W_t.
    base : array of shape (k,) or None
        Of W_0, where it is known.
    """

    layer: int
    sigma: Floats
    base: Floats | None


@dataclass(frozen=True)
class Group:
    """The spectra of one module of one run at one step, by layer."""

    run: str
    title: str
    module: str
    step: int
    spectra: tuple[Spectrum, ...]


Stack: TypeAlias = tuple[Group, ...]
"""The groups of one panel, steps ascending."""


def choose_arrays(
    arrays: pd.DataFrame,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
) -> tuple[pd.DataFrame, int]:
    """Return the rows that are asked for and hold finite singular values; how many hold none.

    Without `steps`, the last step of each run.

    Raises
    ------
    ValueError
        If a column is missing, nothing is left, or two rows share run, module, layer and step.
    """
    missing = [c for c in (*KEYS, "sigma") if c not in arrays.columns]
    if missing:
        raise ValueError(
            f"The rows have no column {', '.join(missing)}; they have "
            f"{', '.join(map(str, arrays.columns))}. Run.read_spectrum() reads what is needed."
        )
    if arrays.empty:
        raise ValueError(
            "There are no spectra to draw. Run `spectra analyze RUN` first, then read them with "
            "spectra.store.Run(RUN).read_spectrum()."
        )
    chosen = np.ones(len(arrays), dtype=bool)
    for column, wanted in (("module", modules), ("layer", layers), ("step", steps)):
        if wanted is not None:
            members = [wanted] if isinstance(wanted, str) else list(wanted)
            chosen &= arrays[column].isin(members).to_numpy()
    if steps is None and chosen.any():
        rows = arrays[chosen]
        last = rows.groupby("run", observed=True)["step"].transform("max")
        chosen[np.flatnonzero(chosen)] = (rows["step"] == last).to_numpy()
    if not chosen.any():
        raise ValueError(
            "No spectra match the chosen modules, layers and steps. The rows hold modules "
            f"{', '.join(sorted(map(str, arrays['module'].unique())))}; layers "
            f"{arrays['layer'].min()}–{arrays['layer'].max()}; steps {arrays['step'].min()}–"
            f"{arrays['step'].max()}."
        )
    rows = arrays[chosen]
    whole = np.array([_is_whole(sigma) for sigma in rows["sigma"]], dtype=bool)
    if not whole.any():
        raise ValueError(
            "The chosen rows hold no finite singular values above 0. Run `spectra analyze RUN` "
            "again to compute them anew."
        )
    rows = rows[whole]
    twice = rows.duplicated(["run", "method", "module", "layer", "step"])
    if twice.any():
        raise ValueError(
            f"Two runs are both called {rows.loc[twice, 'run'].iloc[0]!r}, so their rows cannot "
            "be told apart. Rename one folder, or change the column `run` before drawing."
        )
    return rows, int((~whole).sum())


def groups(
    rows: pd.DataFrame, order: pd.DataFrame, modules: Iterable[str] | None
) -> Iterator[Group]:
    """Yield the spectra of every run, module and step, steps ascending."""
    names = module_order(rows, modules)
    for run, title, part in by_run(rows, order):
        for module in names:
            of_module = part[part["module"] == module]
            for step, at_step in of_module.groupby("step", sort=True):
                at_step = at_step.sort_values("layer", kind="stable")
                yield Group(
                    run=run,
                    title=f"{title} · {clean(module)}",
                    module=str(module),
                    step=int(str(step)),
                    spectra=tuple(_spectra(at_step)),
                )


def reference(stack: Stack) -> tuple[Spectrum, ...]:
    """Return what the last step is compared with: the first step, or the base of a single one."""
    return stack[0].spectra if len(stack) > 1 else bases(stack[-1])


def bases(group: Group) -> tuple[Spectrum, ...]:
    """Return the spectra of W_0, of the matrices whose base is known."""
    return tuple(Spectrum(s.layer, s.base, None) for s in group.spectra if s.base is not None)


def layer_range(groups: Sequence[Group]) -> tuple[int, int]:
    """Return the first and the last layer."""
    layers = [s.layer for group in groups for s in group.spectra]
    return min(layers), max(layers)


def array_of(value: object) -> Floats | None:
    """Return a cell as an array of float64; None where the row has none."""
    if value is None or isinstance(value, float) or value is pd.NA:
        return None
    array = np.asarray(value, dtype=np.float64)
    return array if array.size else None


def few_indices(k: int, most: int) -> NDArray[np.int64]:
    """Return at most about `most` of the indices 0…k−1, close together at both ends.

    For curves that fall steadily, as spectra do: they bend at their ends.
    """
    if k <= most:
        return np.arange(k)
    half = np.round(np.geomspace(1, (k + 1) / 2, most // 2)).astype(np.int64) - 1
    return np.unique(np.concatenate([half, k - 1 - half]))


def peaks(values: Floats, most: int) -> NDArray[np.int64]:
    """Return at most `most` indices of `values`: the lowest and highest of every stretch.

    What stands out in a curve of thousands of points stays when a figure draws hundreds.
    Indices of NaN are left out; the first and the last of the others are kept.
    """
    known = np.flatnonzero(np.isfinite(values))
    if len(known) <= most:
        return known
    stretch = np.arange(len(known)) * ((most - 2) // 2) // len(known)
    by_value = np.lexsort((values[known], stretch))
    first = np.flatnonzero(np.diff(stretch, prepend=-1))
    last = np.append(first[1:], len(known)) - 1
    ends = np.array([0, len(known) - 1])
    return known[np.unique(np.concatenate([by_value[first], by_value[last], ends]))]


def without_tails(values: Floats) -> tuple[float, float]:
    """Return the range of `values`, without a tail of 0.5% that would more than double it."""
    low, high = float(values.min()), float(values.max())
    inner_low = float(np.quantile(values, _TAIL, method="lower"))
    inner_high = float(np.quantile(values, 1 - _TAIL, method="higher"))
    width = inner_high - inner_low
    if width > 0:
        low = inner_low if inner_low - low > width else low
        high = inner_high if high - inner_high > width else high
    return low, high


def joined(lines: Sequence[Floats]) -> Floats:
    """Return the lines behind one another, NaN between them: one mark for lines of one look."""
    parts = [part for line in lines for part in (line, [np.nan])]
    return np.concatenate(parts[:-1]).astype(np.float64) if parts else np.empty(0)


def _is_whole(value: object) -> bool:
    array = array_of(value)
    # The sum is NaN or infinite where any value is.
    return array is not None and bool(np.isfinite(array.sum())) and bool(array.max() > 0)


def _spectra(rows: pd.DataFrame) -> Iterator[Spectrum]:
    changes = rows["sigma_change"] if "sigma_change" in rows else [None] * len(rows)
    for layer, value, stored in zip(rows["layer"], rows["sigma"], changes, strict=True):
        sigma, change = array_of(value), array_of(stored)
        assert sigma is not None
        base = None
        if change is not None and len(change) == len(sigma):
            base = np.maximum(sigma - change, 0.0)
        yield Spectrum(int(layer), sigma, base)
