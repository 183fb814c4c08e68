"""Spectrum, Conditioning, Training and Compare: what is said, what is drawn, what is kept."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from spectra import cli
from spectra.figures.options import FIGURES
from spectra.store import Run
from tests.app.pages import (
    HOSTILE,
    add_steps,
    as_started,
    drawn,
    look_again,
    open_page,
    records,
    said,
    write_run,
)
from tests.figures.rows import drift_rows, training_rows

PAGES = ["spectrum", "conditioning", "training", "compare"]
RATIO: tuple[str, dict[str, Any]] = ("conditioning", {"view": "ratio"})
# Every way in which one of these pages draws: what the link says.
VIEWS: list[tuple[str, dict[str, Any]]] = [
    *(("spectrum", {"view": view}) for view in ("values", "density", "energy", "share")),
    ("spectrum", {"view": "share", "within": "0.5:2", "steps": "20-", "module": "v_proj"}),
    ("conditioning", {}),
    ("conditioning", {"condition": ["kappa", "ortho_u"], "scale": "log", "layers": "0,2"}),
    RATIO,
    ("training", {}),
    ("training", {"quantity": "lr", "against": "loss", "steps": "5-", "smooth": "5"}),
    ("compare", {}),
    ("compare", {"compared": "kappa", "scale": "log", "layers": "0-1"}),
    ("compare", {"compared": "loss", "module": "q_proj"}),
    ("compare", {"by": "loss", "steps": "-20"}),
]
TWINS = {"sorsa": 5e-4, "sorsa-noreg": 0.0}


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    with as_started():
        yield


def write_twins(root: Path, seed: int = 1, **rows: Any) -> list[Run]:
    """A SORSA run and one without its regularizer, alike otherwise, with the factors' κ."""
    runs = []
    for method, gamma in TWINS.items():
        run = write_run(root, f"{method}-seed{seed}", method, analysed=False, trained=False)
        settings = {"method": method, "seed": seed, "gamma": gamma, "rank": 8}
        run.update_settings(settings=settings)
        frame = drift_rows(run.name, method, **rows)
        spread = 1 + frame["delta_d"] * (1 if gamma else 3)
        factors = {name: spread for name in ("kappa_p", "kappa_u", "kappa_v")}
        run.drift.append(records(frame.assign(**factors, ortho_u=spread - 1, ortho_v=spread - 1)))
        add_arrays(run, method, **rows)
        training = training_rows(run.name, method, 20).drop(columns=["run", "method"])
        run.write_training(records(training.assign(tokens=100.0 * training["step"])))
        runs.append(run)
    return runs


def add_arrays(run: Run, method: str, **rows: Any) -> None:
    """Append the arrays of a run whose drift rows are there already."""
    aside = Run(run.path.parent / ".aside" / run.name)
    add_steps(aside, method, arrays=True, **rows)
    run.spectrum.append(records(aside.spectrum.read().drop(columns="source")))


def commands(test: AppTest) -> list[list[str]]:
    return [shlex.split(e.value) for e in test.code if e.value.startswith("spectra plot ")]


def linked(test: AppTest) -> dict[str, list[str]]:
    return listed(dict(test.query_params))


def listed(link: dict[str, Any]) -> dict[str, list[str]]:
    return {k: v if isinstance(v, list) else [v] for k, v in link.items()}


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_root_says_what_to_do(tmp_path: Path, page: str) -> None:
    test = open_page(tmp_path, page)

    assert not test.exception
    assert "There are no runs" in said(test) and "spectra demo" in said(test)
    assert drawn(test) == []


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SORSA run and its twin, which no test changes."""
    root = tmp_path_factory.mktemp("twins") / "my runs"
    write_twins(root)
    return root


@pytest.mark.parametrize(("page", "link"), VIEWS)
def test_a_run_or_pair_is_drawn_as_the_link_says(
    twins: Path, page: str, link: dict[str, Any]
) -> None:
    test = open_page(twins, page, **link)

    assert not test.exception and not test.error, said(test)
    assert len(drawn(test)) == 1, said(test)
    # The link still says what is shown.
    assert {k: v for k, v in linked(test).items() if k in link} == listed(link)


@pytest.mark.parametrize(("page", "link"), VIEWS)
def test_the_command_on_the_page_draws_what_is_on_it(
    twins: Path, page: str, link: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Any] = []
    monkeypatch.setattr("spectra.figures.save", lambda figure, path: saved.append(figure))

    test = open_page(twins, page, **link)
    words = commands(test)[0]

    assert words[-2] == "--out" and words[-1].endswith(".pdf")
    assert cli.main([*words[1:-1], "a.html"]) == 0
    (figure,) = saved
    assert json.loads(figure.to_json())["data"] == drawn(test)[0]["data"]


@pytest.mark.parametrize("page", PAGES)
def test_one_run_is_enough(tmp_path: Path, page: str) -> None:
    write_run(tmp_path, "a", "lora", arrays=True)

    test = open_page(tmp_path, page)

    assert not test.exception and not test.error
    assert len(drawn(test)) == 1
    assert commands(test)


@pytest.mark.parametrize("page", PAGES)
def test_many_runs_are_drawn_together(tmp_path: Path, page: str) -> None:
    for seed in (1, 2, 3):
        write_twins(tmp_path, seed)

    test = open_page(tmp_path, page)

    assert not test.exception and not test.error
    assert len(drawn(test)) == 1
    paths = commands(test)[0][3:]
    named = [word for word in paths if word.startswith(str(tmp_path))]
    assert len(named) == (1 if page == "spectrum" else 6)


@pytest.mark.parametrize("page", PAGES)
def test_a_growing_run_is_followed_and_the_choices_stay(tmp_path: Path, page: str) -> None:
    run = write_run(
        tmp_path, "a", finished=False, arrays=True, layers=4, steps=(10, 20), trained=False
    )
    rows = records(training_rows("a", steps=20).drop(columns=["run", "method"]))
    run.write_training(rows[:10])
    link = {} if page == "training" else {"module": "v_proj", "layers": "1-2"}
    with run.lock("recording"):
        test = open_page(tmp_path, page, **link)
        assert "● growing" in said(test)
        before = str(drawn(test))

        add_steps(run, arrays=True, layers=4, steps=(30,))
        run.write_training(rows)
        look_again(test)

    assert not test.exception and not test.error
    assert str(drawn(test)) != before
    assert linked(test) == listed(link)


@pytest.mark.parametrize("page", PAGES)
def test_a_run_that_is_not_analysed_says_the_command(tmp_path: Path, page: str) -> None:
    write_run(tmp_path, "not yet", analysed=False, trained=False)

    test = open_page(tmp_path, page)

    assert not test.exception and not test.error
    assert drawn(test) == []
    if page == "training":
        assert "Without recorded training: not yet" in said(test)
    else:
        assert f"spectra analyze '{tmp_path}/not yet'" in said(test)


@pytest.mark.parametrize("page", PAGES)
def test_a_damaged_run_is_named_and_takes_no_other_down(tmp_path: Path, page: str) -> None:
    write_run(tmp_path, "a good one", arrays=True)
    damaged = write_run(tmp_path, "damaged", arrays=True)
    for path in (*damaged.drift.parts(), damaged.training_path, *damaged.spectrum.parts()):
        path.write_bytes(b"PAR1 but not really")

    test = open_page(tmp_path, page)
    assert not test.exception and not test.error
    assert len(drawn(test)) == 1
    if page != "spectrum":  # shows one run, by default the first
        assert "damaged is left out" in said(test).replace("\\", "")

    test = open_page(tmp_path, page, run="damaged")
    assert not test.exception and not test.error
    assert "damaged is left out" in said(test).replace("\\", "")


@pytest.mark.parametrize("page", PAGES)
def test_unknown_values_in_a_link_are_ignored(tmp_path: Path, page: str) -> None:
    write_twins(tmp_path)
    names = ("run", "view", "module", "layers", "steps", "step", "within", "condition", "pair")
    more = ("quantity", "against", "smooth", "scale", "compared", "by", "regularized", "ratio-of")

    for value in ("<b>", "9999999999999", "nan:nan", "1e999:-1"):
        test = open_page(tmp_path, page, **dict.fromkeys((*names, *more), value))

        assert not test.exception and not test.error, (value, said(test))
        assert len(drawn(test)) == 1, (value, said(test))


@pytest.mark.parametrize("page", PAGES)
def test_names_are_data(tmp_path: Path, page: str) -> None:
    name = HOSTILE.replace("/", "∕")
    (module,) = modules = (f'{HOSTILE}, "quoted"',)
    run = write_run(tmp_path, name, HOSTILE, arrays=True, modules=modules)
    run.update_settings(settings={"seed": 1, "note": HOSTILE})

    test = open_page(tmp_path, page, module=module)

    assert not test.exception and not test.error
    # These are the elements that read Markdown; st.text and st.code do not.
    for element in (*test.info, *test.warning, *test.error, *test.caption, *test.markdown):
        assert not re.search(r"(?<!\\)(<img|\*bold|\$x|:red|\[a)", element.value)
    (figure,) = drawn(test)
    for trace in figure["data"]:
        # What a click tells the page; a pointer does not show it.
        if "<img" in str(trace.pop("customdata", None)):
            assert "customdata[0]" not in str(trace) and "customdata[1]" not in str(trace)
    assert "<img" not in str(figure)
    words = commands(test)[0]
    assert words[3] == str(tmp_path / name)


def test_only_the_shown_steps_arrays_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = tuple(range(10, 410, 10))
    write_run(tmp_path, "a", arrays=True, steps=steps, layers=2)
    asked: list[list[int]] = []
    whole = Run.read_spectrum

    def noted(self: Run, step: int | None = None, **options: Any) -> Any:
        asked.append(sorted(options.get("steps") or [step]))
        return whole(self, step, **options)

    monkeypatch.setattr(Run, "read_spectrum", noted)
    open_page(tmp_path, "spectrum", view="energy")
    assert sum(asked, []) == [400]

    asked.clear()
    open_page(tmp_path, "spectrum", view="share")
    shown = sum(asked, [])
    assert len(shown) <= 12 and max(shown) == 400


def test_the_pair_is_found_and_another_can_be_chosen(tmp_path: Path) -> None:
    write_twins(tmp_path, 1)
    write_twins(tmp_path, 2)

    test = open_page(tmp_path, "conditioning", view="ratio")
    pairs = test.multiselect(key="choice-pair")
    assert pairs.options == [
        "sorsa-seed1 / sorsa-noreg-seed1",
        "sorsa-seed2 / sorsa-noreg-seed2",
    ]
    assert [Path(w).name for w in commands(test)[0][3:7]] == [
        *("sorsa-seed1", "sorsa-noreg-seed1", "sorsa-seed2", "sorsa-noreg-seed2")
    ]

    pairs.set_value([]).run()
    test.selectbox(key="choice-regularized").set_value("sorsa-seed1").run()
    test.selectbox(key="choice-unregularized").set_value("sorsa-noreg-seed2").run()
    assert not test.exception
    assert [Path(w).name for w in commands(test)[0][3:5]] == ["sorsa-seed1", "sorsa-noreg-seed2"]
    assert linked(test) == {
        "view": ["ratio"],
        "pair": [""],
        "regularized": ["sorsa-seed1"],
        "unregularized": ["sorsa-noreg-seed2"],
    }


def test_no_pair_says_what_a_pair_is(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "lora")

    test = open_page(tmp_path, "conditioning", view="ratio")

    assert "no twin" in said(test) or "with a twin" in said(test)
    assert drawn(test) == []


def test_what_no_run_has_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "lora")

    test = open_page(tmp_path, "conditioning")

    assert "No run has κ_p" in said(test).replace("\\", "")
    assert test.multiselect(key="choice-condition").value == ["kappa"]


def test_any_training_column_against_any(tmp_path: Path) -> None:
    write_twins(tmp_path)

    test = open_page(tmp_path, "training", quantity="grad_norm", against="loss")

    (figure,) = drawn(test)
    assert "loss" in figure["layout"]["xaxis"]["title"]["text"]
    assert "--against loss" in said(test)


def test_the_table_can_be_taken_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2):
        write_twins(tmp_path, seed)
    monkeypatch.chdir(tmp_path)

    test = open_page(tmp_path, "compare")

    table = test.dataframe[0].value
    assert table["seeds"].tolist() == [2] * 4  # two methods of two modules
    assert {"LaTeX", "CSV"} <= {b.label for b in test.get("download_button")}
    (words,) = [words for words in commands(test) if words[2] == "table"]
    assert cli.main(words[1:]) == 0
    assert "\\toprule" in Path(words[-1]).read_text()


def test_alignment_that_is_not_recorded_is_not_offered(tmp_path: Path) -> None:
    write_run(tmp_path, "a")

    test = open_page(tmp_path, "compare")

    assert test.selectbox(key="choice-by").options == ["step", "training loss"]


def test_every_figure_has_a_page_that_shows_its_command(twins: Path) -> None:
    shown = set()
    for page, link in [*((page, {}) for page in PAGES), RATIO]:
        shown |= {words[2] for words in commands(open_page(twins, page, **link))}

    of_other_pages = {"trajectory", "curves", "heatmap", "matrix"}
    assert shown == set(FIGURES) - of_other_pages


def test_choices_go_with_the_user_from_page_to_page(twins: Path) -> None:
    test = open_page(twins, "trajectories", module="v_proj", layers="1-2", run="sorsa-seed1")

    for page in ("layers", "conditioning", "compare", "trajectories"):
        test.switch_page(f"views/{page}.py").run()

        assert not test.exception and not test.error
        assert test.multiselect(key="choice-module").value == ["v_proj"]
        assert test.text_input(key="choice-layers").value == "1-2"
        assert len(drawn(test)) == 1
    assert test.multiselect(key="choice-run").value == ["sorsa-seed1"]
