"""The table of a comparison: its numbers in closed form, its LaTeX compiled where there is one."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spectra import figures
from tests.figures.rows import training_rows
from tests.figures.test_compare import drift

HOSTILE = '[x] *a* \\evil{} 50% & _ # $ ^ ~ \n \x07 \N{CJK UNIFIED IDEOGRAPH-65E5} π é " -- <>|'
GROUPS = {"s1": "sorsa", "s2": "sorsa", "s3": "sorsa"}


def runs(values: dict[str, float], steps: tuple[int, ...] = (0, 10, 20)) -> pd.DataFrame:
    """Runs of layers 0…3 whose ΔD is value · (0.5, 1.5, 0.5, 1.5) at the end, ΔΣ a 1000th of it."""

    def growing(value: float) -> Callable[[Any, Any], Any]:
        return lambda layer, step: value * (0.5 + layer % 2) * step / 20

    parts = []
    for run, value in values.items():
        table = drift(
            run,
            growing(value),
            steps=steps,
            method="lora" if run.startswith("l") else "sorsa",
        )
        parts.append(table.assign(delta_sigma=table["delta_d"] / 1000, kappa=2.0 ** table["layer"]))
    return pd.concat(parts)


def test_means_and_sample_deviations_over_the_seeds() -> None:
    curves = pd.concat(
        [
            training_rows(run, steps=20).assign(loss=value, perplexity=np.nan)
            for run, value in {"s1": 1.0, "s2": 3.0, "s3": 5.0}.items()
        ]
    )

    table = figures.comparison_table(runs({"s1": 0.1, "s2": 0.2, "s3": 0.6}), curves, GROUPS)

    (row,) = table.to_dict("records")
    assert [row[c] for c in ("group", "module", "seeds", "step")] == ["sorsa", "q_proj", 3, 20]
    assert row["delta_d"] == pytest.approx(0.3)
    assert row["delta_d_sd"] == pytest.approx(math.sqrt(0.07))  # of 0.1, 0.2, 0.6
    assert row["delta_sigma"] == pytest.approx(0.3e-3)
    assert (row["kappa"], row["kappa_sd"]) == (3.0, 0.0)  # of 1, 2, 4, 8
    assert (row["loss"], row["loss_sd"]) == (3.0, 2.0)
    assert "perplexity" not in table


def test_the_loss_is_of_the_last_five_steps_up_to_the_tables() -> None:
    curve = training_rows("s1", steps=30)
    curve["loss"] = curve["step"].astype(float)
    curve["perplexity"] = (100.0 - curve["step"]).where(curve["step"].isin([5, 15, 25]))

    (row,) = figures.comparison_table(runs({"s1": 0.1}), curve).to_dict("records")

    assert row["loss"] == 18.0  # of 16 … 20
    assert row["perplexity"] == 85.0
    assert math.isnan(row["loss_sd"])


def test_a_seed_that_was_interrupted_is_compared_at_the_step_it_reached() -> None:
    whole = runs({"s1": 0.1, "l1": 0.4})
    short = runs({"s2": 0.3}, steps=(0, 10))

    table = figures.comparison_table(pd.concat([whole, short]), None, GROUPS).set_index("group")

    assert table.loc["sorsa", "step"] == 10 and table.loc["lora", "step"] == 20
    assert table.loc["sorsa", "delta_d"] == pytest.approx((0.05 + 0.15) / 2)
    assert table.loc["lora", "delta_d"] == pytest.approx(0.4)


def test_seeds_without_a_common_step_are_taken_at_their_ends() -> None:
    table = figures.comparison_table(
        pd.concat([runs({"s1": 0.1}), runs({"s2": 0.4}, steps=(5, 15))]), None, GROUPS
    )

    assert table["step"].isna().all()
    assert table["delta_d"].tolist() == [pytest.approx((0.1 + 0.3) / 2)]


def test_groups_keep_the_runs_order_and_their_modules_together() -> None:
    parts = [runs({"s1": 0.1}), runs({"l1": 0.2}), runs({"s2": 0.3})]
    parts += [part.assign(module="v_proj") for part in parts]

    table = figures.comparison_table(pd.concat(parts), None, GROUPS)

    assert list(zip(table["group"], table["module"], strict=True)) == [
        ("sorsa", "q_proj"), ("sorsa", "v_proj"), ("lora", "q_proj"), ("lora", "v_proj"),
    ]  # fmt: skip


def test_a_run_that_is_called_like_a_group_is_not_of_it() -> None:
    table = figures.comparison_table(runs({"s1": 0.1, "s2": 0.3}), None, {"s1": "sorsa"})

    assert sorted(table["seeds"]) == [1, 1]


def test_rows_of_values_only_have_no_vectors_drift() -> None:
    table = figures.comparison_table(runs({"s1": 0.1}).assign(delta_d=np.nan))

    assert "delta_d" not in table and table["delta_sigma"].notna().all()


def latex(means: list[float], deviations: list[float], column: str = "delta_d") -> list[str]:
    """Return the cells of one column of a table."""
    n = len(means)
    table = pd.DataFrame(
        {
            "group": [f"g{i}" for i in range(n)], "module": ["q"] * n, "seeds": [3] * n,
            "step": [1] * n, column: means, f"{column}_sd": deviations,
        }
    )  # fmt: skip
    text = figures.to_latex(table)
    rows = [line for line in text.splitlines() if line.startswith("g") and "&" in line][1:]
    return [rows_.split(" & ")[-1].removesuffix(r" \\") for rows_ in rows]


@pytest.mark.parametrize(
    ("means", "deviations", "cells"),
    [
        ([0.3124, 0.0871], [0.0213, 0.0187], [r"$0.312 \pm 0.021$", r"$0.087 \pm 0.019$"]),
        ([12.34, 101.0], [1.3, 2.4], [r"$12.3 \pm 1.3$", r"$101.0 \pm 2.4$"]),
        # One group's seeds agree a hundred times better: a digit of theirs is kept.
        ([0.5, 0.002], [0.04, 0.0003], [r"$0.5000 \pm 0.0400$", r"$0.0020 \pm 0.0003$"]),
        ([0.25, 0.125], [math.nan, math.nan], ["$0.250$", "$0.125$"]),
        ([math.inf, 2.0], [math.nan, 0.5], [r"$\infty\phantom{{}\pm 0.00}$", r"$2.00 \pm 0.50$"]),
        ([math.nan, 0.0], [math.nan, 0.0], ["--", r"$0 \pm 0$"]),
        (
            [3.0e5, 2.0],
            [1.2e4, 0.3],
            [r"$(3.00 \pm 0.12) \times 10^{5}$", r"$2.00 \pm 0.30$"],
        ),
    ],
)
def test_a_cell_ends_where_its_spread_does(means, deviations, cells) -> None:
    assert latex(means, deviations) == cells


def test_small_numbers_have_their_power_of_ten_in_the_head() -> None:
    table = figures.comparison_table(runs({"s1": 0.1, "s2": 0.2}), None, GROUPS)

    head = next(line for line in figures.to_latex(table).splitlines() if line.startswith("group"))

    assert r"$\Delta\Sigma$ ($10^{-4}$ unit of $W$)" in head
    assert latex([1.5e-4], [2.0e-5], "delta_sigma") == [r"$1.50 \pm 0.20$"]


def test_a_command_stays_in_its_comment() -> None:
    table = figures.comparison_table(runs({"s1": 0.1}))

    text = figures.to_latex(table, command="spectra plot table 'a\nb\u2028c' \\input{evil}")

    first, second, *_ = text.splitlines()
    assert first == "% made by: spectra plot table 'a b c' \\input{evil}"
    assert second.startswith("%")


def test_the_csv_has_all_digits_and_reads_back(tmp_path: Path) -> None:
    table = figures.comparison_table(runs({"s1": 0.1, "s2": 0.2}), None, GROUPS | {"s2": HOSTILE})

    path = figures.write_table(table, tmp_path / "deep" / "table.csv")

    read = pd.read_csv(io.BytesIO(path.read_bytes()))
    pd.testing.assert_frame_equal(
        read.drop(columns=["step"]),
        table.drop(columns=["step"]),
        check_dtype=False,
        check_exact=True,
    )
    assert list(read["step"]) == list(table["step"])


def test_the_same_table_gives_the_same_bytes_and_other_endings_are_refused(tmp_path: Path) -> None:
    table = figures.comparison_table(runs({"s1": 0.1}))

    path = figures.write_table(table, tmp_path / "table.tex", command="spectra plot table s1")

    assert path.read_bytes() == figures.table_bytes(table, ".tex", command="spectra plot table s1")
    with pytest.raises(ValueError, match=r"written as \.tex or \.csv, got '\.pdf'"):
        figures.write_table(table, tmp_path / "table.pdf")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles_whatever_the_runs_are_called(tmp_path: Path) -> None:
    names = {"s1": HOSTILE, "s2": "*a", "s3": "[b]"}
    table = figures.comparison_table(runs({"s1": 0.1, "s2": 0.2, "s3": 0.3}), None, names)
    figures.write_table(table, tmp_path / "table.tex", command=HOSTILE)
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        "\\input{table.tex}\n\\end{document}\n"
    )

    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )

    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
