"""The dashboard's pages under Streamlit's AppTest: what is said, what is drawn, what is kept."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from spectra import cli, figures
from spectra.store import DRIFT_QUANTITIES, Run, Sweep, SweepRun
from tests.figures.rows import drift_rows, training_rows

APP = Path(__file__).parents[2] / "app"
PAGES = ["trajectories", "metrics", "training"]
# A first script run imports Plotly and reads the files; a busy machine takes its time.
PATIENCE_SECONDS = 60


def records(frame):
    return frame.to_dict("records")


def write_run(root, name, method="sorsa", *, finished=True, analysed=True, trained=True, **rows):
    run = Run(root / name)
    run.update_settings(method=method, **({"state": "finished"} if finished else {}))
    if analysed:
        run.drift.append(records(drift_rows(name, method, **rows)))
    if trained:
        kept = training_rows(name, method, 20).drop(columns=["run", "method"])
        run.write_training(records(kept))
    return run


def open_page(root, page="trajectories", app=APP, **query):
    sys.argv = ["main.py", str(root)]
    test = AppTest.from_file(str(app / "main.py"), default_timeout=PATIENCE_SECONDS)
    for name, value in query.items():
        test.query_params[name] = value
    if page != "trajectories":
        test.switch_page(f"views/{page}.py")
    return test.run()


@pytest.fixture(autouse=True)
def restored_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))


def said(test):
    elements = (*test.info, *test.warning, *test.error, *test.caption, *test.text, *test.code)
    return "\n".join(e.value for e in elements)


def drawn(test):
    """Return the figures on the page, as Plotly's JSON."""
    return [json.loads(e.proto.spec) for e in test.get("plotly_chart")]


def titles(figure):
    return [a["text"] for a in figure["layout"]["annotations"]]


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_root_is_said_plainly(tmp_path, page):
    test = open_page(tmp_path, page)

    assert not test.exception
    assert "There are no runs" in said(test)
    assert "spectra demo" in said(test)
    assert drawn(test) == []


def test_a_root_that_is_no_folder_is_said(tmp_path):
    test = open_page(tmp_path / "nowhere")

    assert not test.exception
    assert "is not a folder" in test.error[0].value.replace("\\", "")


@pytest.mark.parametrize("page", PAGES)
def test_one_run_is_drawn_on_every_page(tmp_path, page):
    write_run(tmp_path, "a")

    test = open_page(tmp_path, page)

    assert not test.exception
    assert len(drawn(test)) == 1
    assert [b.label for b in test.get("download_button")] == ["PDF", "SVG", "PNG", "CSV"]
    assert "spectra plot" in said(test)


def test_several_runs_have_a_panel_each(tmp_path):
    for name, method in (("a", "sorsa"), ("b", "lora"), ("c", "lora")):
        write_run(tmp_path, name, method)

    test = open_page(tmp_path)

    assert not test.exception
    assert titles(drawn(test)[0])[:3] == ["sorsa", "lora · b", "lora · c"]
    assert len(test.dataframe[0].value) == 6


def test_runs_of_one_name_in_two_folders_stay_apart(tmp_path):
    write_run(tmp_path, "x/run", "lora")
    write_run(tmp_path, "y/run", "lora")

    test = open_page(tmp_path)

    assert not test.exception
    assert titles(drawn(test)[0])[:2] == ["lora · x/run", "lora · y/run"]


def test_a_growing_run_is_called_so_and_its_new_steps_appear(tmp_path):
    run = write_run(tmp_path, "a", finished=False, steps=(10, 20))
    with run.lock("recording"):
        test = open_page(tmp_path)
        assert "a: sorsa, ● growing" in said(test)
        assert set(test.dataframe[0].value["step"]) == {20}

        run.drift.append(records(drift_rows("a", steps=(30,))))
        test.run()

    assert not test.exception
    assert set(test.dataframe[0].value["step"]) == {30}


def test_a_run_that_is_watched_is_growing_between_its_steps(tmp_path):
    run = write_run(tmp_path, "a", finished=True, steps=(10, 20))
    with run.lock("analysis"):
        assert "a: sorsa, ● growing" in said(open_page(tmp_path))


def test_an_interrupted_run_is_called_so(tmp_path):
    write_run(tmp_path, "a", finished=False)

    assert "a: sorsa, ◌ interrupted" in said(open_page(tmp_path))


def test_choices_survive_growth(tmp_path):
    run = write_run(tmp_path, "a", finished=False, steps=(10, 20, 30), layers=6)
    test = open_page(tmp_path)
    test.multiselect(key="choice-module").set_value(["v_proj"]).run()
    slider = next(s for s in test.select_slider if s.label == "Steps")
    slider.set_value((20, 30)).run()

    run.drift.append(records(drift_rows("a", steps=(40,), layers=6)))
    write_run(tmp_path, "b", "lora")
    test.run()

    assert not test.exception
    assert test.multiselect(key="choice-module").value == ["v_proj"]
    slider = next(s for s in test.select_slider if s.label == "Steps")
    # The first step was moved and stays; the last was not, and follows the data.
    assert slider.value == (20, 40)
    assert test.multiselect(key="choice-run").value == ["a", "b"]


def test_a_link_opens_the_same_choices_in_a_fresh_session(tmp_path):
    for name in "abc":
        write_run(tmp_path, name, layers=6)
    first = open_page(tmp_path)
    first.multiselect(key="choice-run").set_value(["a", "c"]).run()
    first.multiselect(key="choice-module").set_value(["q_proj"]).run()
    next(s for s in first.select_slider if s.label == "Layers").set_value((1, 3)).run()
    first.selectbox(key="choice-axes").set_value("free").run()
    link = dict(first.query_params)

    second = open_page(tmp_path, **link)

    assert link == {"run": ["a", "c"], "module": "q_proj", "layers": "1-3", "axes": "free"}
    assert second.multiselect(key="choice-run").value == ["a", "c"]
    assert second.multiselect(key="choice-module").value == ["q_proj"]
    assert next(s for s in second.select_slider if s.label == "Layers").value == (1, 3)
    assert second.selectbox(key="choice-axes").value == "free"
    assert drawn(second) == drawn(first)


def test_a_metric_is_chosen_by_the_link(tmp_path):
    write_run(tmp_path, "a")

    test = open_page(tmp_path, "metrics", column="ortho_u", overlay="on")

    assert not test.exception
    assert test.selectbox(key="choice-column").value == "ortho_u"
    assert test.toggle(key="choice-overlay").value is True
    assert "--column ortho_u" in said(test)


def test_metrics_offers_every_quantity_that_has_a_value(tmp_path):
    run = write_run(tmp_path, "a", analysed=False)
    rows = drift_rows("a", steps=(5,), layers=2)
    filled = dict.fromkeys(DRIFT_QUANTITIES, 0.5) | {"kappa_p": None}
    run.drift.append(records(rows.assign(**filled)))

    test = open_page(tmp_path, "metrics")

    assert not test.exception
    assert test.selectbox(key="choice-column").options == [
        figures.label_of(c).axis for c in DRIFT_QUANTITIES if c != "kappa_p"
    ]


def test_a_logarithmic_metric_with_zeros_is_drawn(tmp_path):
    run = write_run(tmp_path, "a", analysed=False)
    rows = drift_rows("a", steps=(0, 1, 10), noise=True)
    rows.loc[rows["step"] == 0, "delta_sigma"] = 0.0
    run.drift.append(records(rows))

    test = open_page(tmp_path, "metrics", column="delta_sigma", log="on")

    assert not test.exception
    assert drawn(test)[0]["layout"]["yaxis"]["type"] == "log"
    assert "noise floor" in titles(drawn(test)[0])


@pytest.mark.parametrize("page", PAGES)
def test_unknown_values_in_a_link_are_ignored(tmp_path, page):
    write_run(tmp_path, "a")

    test = open_page(
        tmp_path,
        page,
        run="gone",
        module=["k_proj"],
        layers="9-x",
        steps="900-1",
        axes="sideways",
        column="no such",
        overlay="perhaps",
        stranger="1",
    )

    assert not test.exception
    assert len(drawn(test)) == 1
    assert test.multiselect(key="choice-run").value == ["a"]


def test_nothing_chosen_is_said(tmp_path):
    write_run(tmp_path, "a")
    test = open_page(tmp_path)

    test.multiselect(key="choice-module").set_value([]).run()

    assert not test.exception
    assert "at least one module" in said(test)


def test_a_run_without_drift_is_told_how_to_get_it(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "not yet", analysed=False)

    test = open_page(tmp_path)

    assert not test.exception
    assert f"spectra analyze '{tmp_path}/not yet'" in said(test)
    assert len(drawn(test)) == 1


def test_rows_without_vectors_are_said_on_trajectories_and_drawn_as_metrics(tmp_path):
    run = write_run(tmp_path, "a", analysed=False)
    rows = drift_rows("a").drop(columns="delta_d")
    run.drift.append(records(rows))

    assert "values\\-only" in said(open_page(tmp_path))
    assert len(drawn(open_page(tmp_path, "metrics"))) == 1


@pytest.mark.parametrize("page", PAGES)
def test_a_damaged_run_is_named_in_one_line_and_takes_no_other_down(tmp_path, page):
    write_run(tmp_path, "good")
    damaged = write_run(tmp_path, "damaged")
    for path in (*damaged.drift.parts(), damaged.training_path):
        path.write_bytes(b"PAR1 but not really")
    write_run(tmp_path, "broken").settings_path.write_text("{")
    write_run(tmp_path, "newer").update_settings(format=99)

    test = open_page(tmp_path, page)

    assert not test.exception
    warnings = [w.value.replace("\\", "") for w in test.warning]
    assert sorted(w.split(" is left out")[0] for w in warnings) == ["broken", "damaged", "newer"]
    assert all("\n" not in w for w in warnings)
    assert len(drawn(test)) == 1


def test_names_are_shown_as_they_are(tmp_path):
    name = "<img src=x onerror=alert(1)> **bold** $x$ :red[r] [a](http:b)"
    write_run(tmp_path, name.replace("/", "∕"), name)
    write_run(tmp_path, f"{name[:20]} bare".replace("/", "∕"), name, analysed=False)
    broken = write_run(tmp_path, f"{name[:20]} broken".replace("/", "∕"))
    broken.settings_path.write_text("{")

    for page in PAGES:
        test = open_page(tmp_path, page)

        assert not test.exception
        # These are the elements that read Markdown; st.text and st.code do not.
        for element in (*test.info, *test.warning, *test.error, *test.caption, *test.markdown):
            assert not re.search(r"(?<!\\)(<img|\*bold|\$x|:red|\[a)", element.value)
        assert all("<img" not in title for title in titles(drawn(test)[0]))


def write_sweep(root, name="sweep", failed=False):
    """A sweep of a method with rank, 2 seeds, and one without, of which one run is not begun."""
    rows = []
    for method, varies in (("lora", {"rank": 4}), ("lora", {"rank": 8}), ("full-ft", {})):
        for seed in (1, 2):
            ranks = "".join(f"-rank{v}" for v in varies.values())
            run = SweepRun(f"{method}{ranks}-seed{seed}", method, seed, varies, state="done")
            rows.append(run)
            write_run(root / name, run.name, method, seed=seed)
    waiting: Any = {"state": "failed", "error": "too **large**"} if failed else {}
    rows.append(SweepRun("full-ft-seed3", "full-ft", 3, {}, **waiting))
    sweep = Sweep(root / name)
    sweep.plan({}, rows)
    return sweep


def test_runs_of_a_sweep_are_chosen_and_labelled_together(tmp_path):
    write_sweep(tmp_path, failed=True)
    write_run(tmp_path, "alone")

    test = open_page(tmp_path)
    assert not test.exception
    assert len(test.multiselect(key="choice-run").value) == 7
    assert "seed" not in test.dataframe[0].value

    test.selectbox(key="choice-sweep").set_value("sweep").run()
    assert not test.exception
    assert test.multiselect(key="choice-run").value == [
        *("lora-rank4-seed1", "lora-rank4-seed2", "lora-rank8-seed1", "lora-rank8-seed2"),
        *("full-ft-seed1", "full-ft-seed2"),
    ]
    assert test.text[0].value == "6 done, 1 failed\nfull-ft-seed3 failed: too **large**"
    assert titles(drawn(test)[0])[:2] == ["lora-rank4-seed1", "lora-rank4-seed2"]
    assert dict(test.query_params) == {"sweep": "sweep"}


def test_a_sweeps_tables_say_what_varies_and_average_over_seeds(tmp_path):
    write_sweep(tmp_path)

    test = open_page(tmp_path)  # a folder that is one sweep opens as it

    each, means = (frame.value for frame in test.dataframe)
    assert not test.exception
    assert each.columns[:6].tolist() == ["run", "method", "seed", "rank", "module", "step"]
    assert len(each) == 12 and each["rank"].isna().sum() == 4
    assert means["seeds"].tolist() == [2] * 6
    for _, row in means.iterrows():
        same = each[(each["method"] == row["method"]) & (each["module"] == row["module"])]
        same = same[same["rank"].fillna(0) == (row["rank"] if row["rank"] > 0 else 0)]
        first, second = same["delta_d"]
        assert row["delta_d"] == pytest.approx((first + second) / 2)
        assert row["delta_d_sd"] == pytest.approx(abs(first - second) / 2**0.5)

    test = open_page(tmp_path, "training")
    each, means = (frame.value for frame in test.dataframe)
    assert each["loss"].notna().all() and means["seeds"].tolist() == [2] * 3


def test_two_sweeps_of_one_name_and_a_damaged_one(tmp_path):
    write_sweep(tmp_path, "x/s")
    write_sweep(tmp_path, "y/s")
    write_sweep(tmp_path, "z").file_path.write_text("{")

    test = open_page(tmp_path, sweep="y/s")

    assert not test.exception
    assert test.selectbox(key="choice-sweep").options == ["all runs", "x/s", "y/s"]
    assert len(test.multiselect(key="choice-run").value) == 6
    assert "sweep\\.json is not valid JSON" in said(test)
    assert f"{tmp_path}/y/s/lora-rank4-seed1" in test.code[-1].value


def test_downloads_are_drawn_on_request(tmp_path, monkeypatch):
    write_run(tmp_path, "a")

    def drawn_too_early(*_, **__):
        raise AssertionError("a page drew for paper without being asked")

    monkeypatch.setattr("spectra.figures.to_bytes", drawn_too_early)

    assert not open_page(tmp_path).exception


def test_the_command_repeats_the_choices(tmp_path):
    write_run(tmp_path, "my run", layers=6)

    test = open_page(tmp_path, module=["v_proj"], layers="0-3", axes="free")

    assert test.code[-1].value == (
        f"spectra plot trajectory '{tmp_path}/my run' --modules v_proj --layers 0-3 --axes free "
        "--out trajectory.pdf"
    )


@pytest.mark.parametrize("page", PAGES)
def test_the_command_on_the_page_works(tmp_path, monkeypatch, page):
    write_run(tmp_path, "my run", layers=6)
    test = open_page(tmp_path, page, layers="0-3", steps="20-", axes="free", overlay="on")
    words = shlex.split(test.code[-1].value)
    monkeypatch.chdir(tmp_path)

    assert words[0] == "spectra"
    assert cli.main(words[1:]) == 0
    assert Path(words[-1]).read_bytes().startswith(b"%PDF")


def test_the_app_works_where_a_wheel_puts_it(tmp_path):
    elsewhere = tmp_path / "spectra" / "_app"
    shutil.copytree(APP, elsewhere, ignore=shutil.ignore_patterns("__pycache__"))
    write_run(tmp_path / "runs", "a")

    test = open_page(tmp_path / "runs", app=elsewhere)

    assert not test.exception
    assert len(drawn(test)) == 1


def test_the_app_imports_only_what_it_may():
    for path in APP.rglob("*.py"):
        text = path.read_text()
        for forbidden in ("torch", "numpy", "plotly", "matplotlib", "checkpoints_index", "app"):
            assert f"import {forbidden}\n" not in text, path
            assert f"from {forbidden}" not in text, path
