"""``spectra plot``: each figure as its function draws it, from no more than it needs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spectra import figures
from spectra.cli import main
from spectra.figures.options import FIGURES, TABLE, plot_command
from spectra.store import Run, group_labels, read_runs
from tests.app.pages import matrix_arrays, records
from tests.figures.rows import drift_rows, training_rows

STEPS = (10, 20, 30)
# What each figure is drawn with: as its function takes it.
DRAWN: dict[str, dict[str, Any]] = {
    "trajectory": {"modules": ("v_proj", "q_proj"), "layers": [0, 2], "overlay": True, "until": 20},
    "curves": {"column": "delta_d", "steps": range(10, 21), "log": True, "band": False},
    "heatmap": {"column": "kappa", "modules": ("q_proj",), "log": False},
    "matrix": {"module": "q_proj", "layer": 1, "step": 20},
    "spectrum": {"view": "share", "within": (0.1, 2.0), "steps": [10, 30], "layers": [0, 1]},
    "conditioning": {"columns": ("kappa", "kappa_p"), "layers": [1]},
    "kappa-ratio": {"column": "kappa_p", "modules": ("q_proj",)},
    "training": {"columns": ("grad_norm",), "against": "loss", "smooth": 3, "log": True},
    "compare": {"column": "kappa", "by": "loss", "modules": ("v_proj",)},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two seeds each, a regularized method and its twin, with arrays."""
    root = tmp_path_factory.mktemp("plot") / "runs"
    for method, gamma in (("sorsa", 1e-3), ("sorsa-noreg", 0.0)):
        for seed in (1, 2):
            name = f"{method}-{seed}"
            run = Run(root / name)
            run.update_settings(
                method=method, settings={"method": method, "seed": seed, "gamma": gamma, "rank": 4}
            )
            rows = drift_rows(name, method, layers=3, steps=STEPS, noise=True)
            run.drift.append(records(rows.assign(kappa_p=2 + rows["delta_d"] / (1 + 100 * gamma))))
            keys = records(rows[["run", "method", "module", "step", "layer"]])
            run.spectrum.append([key | matrix_arrays(key["step"]) for key in keys])
            training = training_rows(name, method, 40).drop(columns=["run", "method"])
            run.write_training(records(training))
    return root


def rows_of(runs: Sequence[Run], tables: Sequence[str]) -> list[pd.DataFrame]:
    """Every row of the runs, as one reads them in Python."""
    arrays = [run.read_spectrum() for run in runs]
    return [
        pd.concat(arrays, ignore_index=True) if table == "spectrum" else read_runs(runs, table)
        for table in tables
    ]


def extra(name: str, runs: Sequence[Run]) -> Mapping[str, Any]:
    names = [run.name for run in runs]
    if name == "compare":
        return {"groups": group_labels(runs)}
    if name == "kappa-ratio":
        return {"pairs": list(zip(names[::2], names[1::2], strict=True))}
    return {}


@pytest.mark.parametrize(
    ("name", "ending"),
    [*((name, ".html") for name in DRAWN), ("curves", ".svg"), ("heatmap", ".png")],
)
def test_the_command_draws_what_the_function_draws(
    root: Path, tmp_path: Path, name: str, ending: str
) -> None:
    figure = FIGURES[name]
    chosen = ["sorsa-1", "sorsa-noreg-1", "sorsa-2", "sorsa-noreg-2"]
    runs = [Run(root / n) for n in (chosen[:1] if name == "matrix" else chosen)]
    out = tmp_path / f"figure{ending}"

    words = plot_command(name, [run.path for run in runs], out, **DRAWN[name])
    assert main(words[1:]) == 0

    draw = getattr(figures, figure.called)
    rows = rows_of(runs, figure.reads)
    drawn = draw(*rows, backend=figures.backend_for(out), **extra(name, runs), **DRAWN[name])
    assert out.read_bytes() == figures.to_bytes(drawn, ending)


def test_every_figure_is_compared() -> None:
    assert {*DRAWN, "table"} == set(FIGURES)


def test_the_steps_of_training_are_chosen(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.svg"
    run = Run(root / "sorsa-1")

    assert main(["plot", "training", str(run.path), "--steps", "5-20", "--out", str(out)]) == 0

    rows = read_runs([run], "training")
    drawn = figures.training(rows[rows["step"].between(5, 20)], backend="matplotlib")
    assert out.read_bytes() == figures.to_bytes(drawn, ".svg")


@pytest.mark.parametrize("ending", [".tex", ".csv"])
def test_the_table_is_written(root: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"table{ending}"
    words = ["plot", "table", str(root), "--modules", "q_proj", "--out", str(out)]

    assert main(words) == 0

    runs = [Run(path) for path in sorted(root.iterdir())]
    drift, training = rows_of(runs, ("drift", "training"))
    table = figures.comparison_table(drift, training, group_labels(runs), modules=("q_proj",))
    command = shlex.join(["spectra", *words])
    assert out.read_bytes() == figures.table_bytes(table, ending, command=command)


def test_a_venues_figure_comes_with_its_caption_as_text(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.svg"
    words = ["plot", "heatmap", str(root / "sorsa-1"), "--out", str(out)]

    assert main(words) == 0
    assert "Caption:" not in capsys.readouterr().out
    assert main([*words, "--preset", "icml-1"]) == 0

    caption = figures.describe_heatmap(read_runs([Run(root / "sorsa-1")], "drift")).caption
    assert capsys.readouterr().out == f"Wrote {out}\nCaption: {caption}\n"
    assert caption.split()[0] not in out.read_text()


def test_a_folder_of_runs_pairs_by_itself(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "folder.html"

    assert main(["plot", "kappa-ratio", str(root), "--out", str(out)]) == 0

    runs = [Run(path) for path in sorted(root.iterdir())]
    pairs = [("sorsa-1", "sorsa-noreg-1"), ("sorsa-2", "sorsa-noreg-2")]
    (drift,) = rows_of(runs, ["drift"])
    drawn = figures.kappa_ratio(drift, pairs)
    assert out.read_bytes() == figures.to_bytes(drawn, ".html")


def test_only_what_the_figure_needs_is_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, Any]] = []
    drift, arrays = Run.read_drift, Run.read_spectrum

    def note_drift(self: Run, columns: list[str] | None = None) -> pd.DataFrame:
        read.append(("drift", columns))
        return drift(self, columns)

    def note_arrays(self: Run, step: int | None = None, **options: Any) -> pd.DataFrame:
        read.append(("arrays", options | {"step": step}))
        return arrays(self, step, **options)

    monkeypatch.setattr(Run, "read_drift", note_drift)
    monkeypatch.setattr(Run, "read_spectrum", note_arrays)
    run, out = str(root / "sorsa-1"), str(tmp_path / "a.html")

    main(["plot", "curves", run, "--column", "kappa", "--out", out])
    main(["plot", "spectrum", run, "--modules", "q_proj", "--out", out])
    main(["plot", "training", run, "--out", out])

    (_, columns), (_, asked) = read
    assert "kappa" in columns and "delta_sigma" not in columns
    assert list(asked["steps"]) == [30] and list(asked["modules"]) == ["q_proj"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["curves", "R", "--axes", "free"],
            "curves has no --axes (an option of trajectory); it has",
        ),
        (["training", "R", "--layers=0"], "training has no --layers (an option of trajectory, "),
        (["heatmap", "R", "--colour", "red"], "heatmap has no --colour; it has --out, --column"),
        (["matrix", "R"], "required: --module, --layer, --step"),
        (["spectrum", "R", "--view", "pie"], "invalid choice: 'pie'"),
        (["heatmap", "R", "--preset", "nature"], "invalid choice: 'nature'"),
        (["matrix", "R", "--module", "q", "--layer", "x"], "invalid int value: 'x'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plot", *words, "--out", "a.pdf"])

    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and f"spectra plot {words[0]} --help" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["heatmap", "sorsa-1", "--out", "a.html", "--preset", "icml-1"], "a.html is not"),
        (["heatmap", "sorsa-1", "--out", "a.docx"], ".pdf"),
        (["table", "sorsa-1", "--out", "a.pdf"], ".tex or .csv"),
        (["kappa-ratio", "sorsa-1", "--out", "a.pdf"], "in pairs, the regularized one first"),
        (["spectrum", "sorsa-1", "--within", "2", "--out", "a.pdf"], "two numbers, such as 0.1"),
        (["spectrum", "sorsa-1", "--within", "2,1", "--out", "a.pdf"], "smaller number first"),
        (
            ["matrix", "sorsa-1", *"--module q_proj --layer 9 --step 20 --out a.pdf".split()],
            "layers 0-2",
        ),
        (["spectrum", "sorsa-1", "--steps", "1-9", "--out", "a.pdf"], "steps 10-30"),
        (["curves", "sorsa-1", "--column", "delta_s", "--out", "a.pdf"], "delta_sigma, delta_d"),
        (["compare", "sorsa-1", "--column", "lost", "--out", "a.pdf"], "loss, grad_norm"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    words: list[str],
    message: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(root)

    assert main(["plot", *words]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("spectra: ") and message in line
    assert not list(root.glob("a.*"))


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plot", name, "--help"])

    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(option.written in text for option in FIGURES[name].options)
    assert f"Example: spectra plot {name} " in text
    assert Path(text).suffix == (".tex" if name == TABLE else ".pdf")
