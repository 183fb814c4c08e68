"""Choosing rows and naming panels: what every description does first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import pandas as pd

_LONGEST_NAME = 48
_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


def select_rows(
    drift: pd.DataFrame,
    columns: Iterable[str],
    modules: Iterable[str] | None,
    layers: Iterable[int] | None,
    steps: Iterable[int] | None,
) -> pd.DataFrame:
    """Return the drift rows that are asked for and have a value in every one of `columns`.

    Raises
    ------
    ValueError
        If a column is missing, nothing is left, or two rows share run, module, layer and step.
    """
    columns = list(columns)
    _require(drift, ["run", "method", "module", "layer", "step", *columns])
    if drift.empty:
        raise ValueError(
            "There are no drift rows to draw. Run `spectra analyze RUN` first, then read them "
            "with spectra.analyze(RUN)."
        )
    rows = drift.assign(method=drift["method"].fillna("unknown"))
    chosen = pd.Series(True, index=rows.index)
    for column, wanted in (("module", modules), ("layer", layers), ("step", steps)):
        if wanted is not None:
            members = _members(wanted)
            chosen &= pd.Series([v in members for v in rows[column]], index=rows.index)
    if not chosen.any():
        raise ValueError(
            "No drift rows match the chosen modules, layers and steps. The rows hold modules "
            f"{', '.join(sorted(map(str, rows['module'].unique())))}; layers "
            f"{rows['layer'].min()}–{rows['layer'].max()}; steps {rows['step'].min()}–"
            f"{rows['step'].max()}."
        )
    rows = rows[chosen].dropna(subset=columns)
    if rows.empty:
        raise ValueError(
            f"The chosen rows have no value of {', '.join(columns)}. Rows analysed with "
            "--values-only have no vectors: run `spectra analyze RUN` without it. Other columns "
            "are empty where the method trains no such factors."
        )
    twice = rows.duplicated(["run", "method", "module", "layer", "step"])
    if twice.any():
        run = rows.loc[twice, "run"].iloc[0]
        raise ValueError(
            f"Two runs are both called {run!r}, so their rows cannot be told apart. Rename one "
            "folder, or change the column `run` before drawing."
        )
    return rows.sort_values("step", kind="stable")


def by_run(rows: pd.DataFrame, order: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (run, title, its rows), in the order in which the runs first stand in `order`.

    The title is the method, and the run's name beside it where two runs share a method; in a
    sweep the name begins with the method and is enough.
    """
    keys = order[["run", "method"]].fillna("unknown").drop_duplicates()
    keys = keys.merge(rows[["run", "method"]].drop_duplicates(), on=["run", "method"])
    shared = keys["method"].duplicated(keep=False)
    for run, method, twice in zip(keys["run"], keys["method"], shared, strict=True):
        part = rows[(rows["run"] == run) & (rows["method"] == method)]
        if method == "unknown" or (twice and str(run).startswith(f"{method}-")):
            title = clean(run)
        else:
            title = f"{clean(method)} · {clean(run)}" if twice else clean(method)
        yield str(run), title, part


def module_order(rows: pd.DataFrame, modules: Iterable[str] | None) -> tuple[str, ...]:
    """Return the modules that occur, as the caller ordered them or else by name."""
    present = set(rows["module"])
    wanted = sorted(present) if modules is None else dict.fromkeys(modules)
    return tuple(m for m in wanted if m in present)


def clean(name: object) -> str:
    """Return a name that can stand in a figure: one line, printable, not endless."""
    text = " ".join(str(name).split())
    text = "".join(c if c.isprintable() else _UNPRINTABLE for c in text)
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


def _require(rows: pd.DataFrame, columns: list[str]) -> None:
    missing = [c for c in columns if c not in rows.columns]
    if missing:
        raise ValueError(
            f"The rows have no column {', '.join(missing)}; they have "
            f"{', '.join(map(str, rows.columns))}."
        )


def _members(wanted: Iterable[object]) -> Collection[object]:
    if isinstance(wanted, str):
        return {wanted}
    return wanted if isinstance(wanted, range) else set(wanted)
