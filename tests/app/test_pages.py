"""The dashboard under Streamlit's AppTest: what is said, what is drawn, what is kept."""

import io
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import streamlit as st

from spectra import cli, figures
from spectra.store import DRIFT_QUANTITIES, PartTable, Run, Sweep, SweepRun
from tests.app.pages import (
    APP,
    HOSTILE,
    add_steps,
    as_started,
    drawn,
    look_again,
    matrix_arrays,
    open_page,
    records,
    said,
    titles,
    write_run,
)
from tests.figures.rows import drift_rows

# Those with a figure of drift; the others' own tests are beside this file.
PAGES = ["trajectories", "layers", "matrix"]
EVERY_PAGE = sorted(path.stem for path in (APP / "views").glob("*.py"))


@pytest.fixture(autouse=True)
def process():
    with as_started():
        yield


def table(test, number=0):
    return test.dataframe[number].value


def choice(test, name):
    return test.session_state[f"choice-{name}"]


# Whatever lies in ROOT


@pytest.mark.parametrize("page", EVERY_PAGE)
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
def test_one_run_is_drawn_with_all_that_is_taken_along(tmp_path, page):
    write_run(tmp_path, "a", arrays=True)

    test = open_page(tmp_path, page)

    assert not test.exception and not test.error
    assert len(drawn(test)) == 1
    kinds = [button.proto.label for button in test.get("download_button")]
    assert kinds == ["PDF", "SVG", "PGF", "PNG", "CSV"]
    assert "spectra plot" in test.code[-1].value


def test_several_runs_have_a_panel_each(tmp_path):
    for name, method in (("a", "sorsa"), ("b", "lora"), ("c", "lora")):
        write_run(tmp_path, name, method)

    test = open_page(tmp_path)

    assert not test.exception
    assert titles(drawn(test)[0])[:3] == ["sorsa", "lora · b", "lora · c"]
    assert len(table(test)) == 6


def test_runs_of_one_name_in_two_folders_stay_apart(tmp_path):
    write_run(tmp_path, "x/run", "lora")
    write_run(tmp_path, "y/run", "lora")

    test = open_page(tmp_path)

    assert not test.exception
    assert titles(drawn(test)[0])[:2] == ["lora · x/run", "lora · y/run"]


def test_of_many_runs_the_first_are_shown_and_the_others_offered(tmp_path):
    for number in range(11):
        write_run(tmp_path, f"run-{number:02}", trained=False)

    test = open_page(tmp_path)

    assert choice(test, "run") == [f"run-{number:02}" for number in range(8)]
    assert "8 of 11 runs shown" in said(test)
    assert len(test.multiselect(key="choice-run").options) == 11


def test_of_many_modules_the_papers_are_shown(tmp_path):
    write_run(tmp_path, "a", modules=("q_proj", "k_proj", "v_proj", "o_proj"))

    test = open_page(tmp_path)

    assert choice(test, "module") == ["q_proj", "v_proj"]
    assert "2 of 4 modules hidden" in said(test)
    assert "--modules q_proj,v_proj" in test.code[-1].value


@pytest.mark.parametrize("page", PAGES)
def test_a_run_without_drift_is_told_how_to_get_it(tmp_path, page):
    write_run(tmp_path, "not yet", analysed=False)

    test = open_page(tmp_path, page)

    assert not test.exception
    assert f"spectra analyze '{tmp_path}/not yet'" in said(test)
    assert drawn(test) == []


@pytest.mark.parametrize("page", ["overview", *PAGES])
def test_a_damaged_run_is_named_and_takes_no_other_down(tmp_path, page):
    write_run(tmp_path, "a good one", arrays=True)
    damaged = write_run(tmp_path, "damaged")
    for path in (*damaged.drift.parts(), damaged.training_path):
        path.write_bytes(b"PAR1 but not really")
    write_run(tmp_path, "broken").settings_path.write_text("{")
    write_run(tmp_path, "newer").update_settings(format=99)

    test = open_page(tmp_path, page)

    assert not test.exception and not test.error
    if page == "overview":
        states = table(test).set_index("run")["state"].to_dict()
        assert states.pop("a good one") == "finished"
        assert set(states.values()) == {"✕ unreadable"}
        assert "format 99" in table(test).set_index("run")["problem"]["newer"]
        return
    warnings = [w.value.replace("\\", "") for w in test.warning]
    told = sorted(w.split(" is left out")[0] for w in warnings)
    # A page of one run reads no other.
    assert told == (
        ["broken", "damaged", "newer"] if page == "trajectories" else ["broken", "newer"]
    )
    assert all("\n" not in w for w in warnings)
    assert len(drawn(test)) == 1


@pytest.mark.parametrize("page", PAGES)
def test_a_run_that_vanishes_under_the_page_is_said(tmp_path, page, monkeypatch):
    write_run(tmp_path, "a", arrays=True)
    listing = Run.read_settings

    def gone_after_listing(run):
        settings = listing(run)
        for part in (*run.drift.parts(), *run.spectrum.parts()):
            part.rename(part.with_suffix(".gone"))
        return settings

    monkeypatch.setattr(Run, "read_settings", gone_after_listing)

    test = open_page(tmp_path, page)

    assert not test.exception and not test.error
    assert drawn(test) == []

    monkeypatch.undo()
    shutil.rmtree(tmp_path / "a")
    test = look_again(test)
    assert not test.exception and not test.error
    assert "There are no runs" in said(test)


@pytest.mark.parametrize("page", ["overview", *PAGES])
def test_what_a_link_leads_out_of_root_is_named_and_not_read(tmp_path, page):
    root = tmp_path / "root"
    write_run(root, "a", arrays=True)
    secret = write_run(tmp_path / "elsewhere", "secret", "hidden-method")
    (root / "linked").symlink_to(secret.path)
    for part in ("drift", "run.json", "training.parquet"):
        run = write_run(root, f"linked {part}")
        target = run.path / part
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        target.symlink_to(secret.path / part)
    inner = write_run(root, "linked part", analysed=False)
    inner.drift.folder.mkdir()
    (inner.drift.folder / "part-1.parquet").symlink_to(secret.drift.parts()[0])

    test = open_page(root, page)

    assert not test.exception and not test.error
    shown = said(test).replace("\\", "")
    if page == "overview":
        shown += table(test).to_string()
        assert shown.count("lies outside") == 5
        assert table(test)["state"].tolist() == ["finished"] + ["✕ unreadable"] * 5
    else:
        assert shown.count("lies outside") == 3 and "2 more runs cannot be read" in shown
        assert len(drawn(test)) == 1
    assert "hidden-method" not in shown


@pytest.mark.parametrize("name", ["../elsewhere/secret", "/etc", "\0"])
def test_no_parameter_of_a_link_reaches_out_of_root(tmp_path, name):
    root = tmp_path / "root"
    write_run(root, "a")
    write_run(tmp_path / "elsewhere", "secret", "hidden-method")

    test = open_page(root, run=name, sweep=name, module=name, of=name)

    assert not test.exception and not test.error
    assert titles(drawn(test)[0])[0] == "sorsa"


def test_a_link_within_root_lists_a_run_once(tmp_path):
    write_run(tmp_path, "a")
    (tmp_path / "again").symlink_to(tmp_path / "a")

    assert table(open_page(tmp_path, "overview"))["run"].tolist() == ["a"]


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_names_are_shown_as_they_are(tmp_path, page):
    name = HOSTILE.replace("/", "∕")
    write_run(tmp_path, name, name, arrays=True, modules=(name, "q_proj"))
    write_run(tmp_path, f"{name[:20]} bare", name, analysed=False)
    write_run(tmp_path, f"{name[:20]} broken").settings_path.write_text("{")

    test = open_page(tmp_path, page)

    assert not test.exception and not test.error
    # These are the elements that read Markdown; st.text and st.code do not.
    for element in (*test.info, *test.warning, *test.error, *test.caption, *test.markdown):
        assert not re.search(r"(?<!\\)(<img|\*bold|\$x|:red|\[a)", element.value)
    for figure in drawn(test):
        assert all("<img" not in title for title in titles(figure))


def test_a_fault_is_one_line_on_the_page_and_a_trace_in_the_log(tmp_path, monkeypatch, caplog):
    write_run(tmp_path, "a")
    monkeypatch.setattr(figures, "final_values", lambda rows: 1 / 0)

    test = open_page(tmp_path)

    assert not test.exception
    assert "a fault of the dashboard" in test.error[0].value
    assert "ZeroDivision" not in said(test)
    assert "ZeroDivisionError" in caplog.text


# Runs that grow


def test_a_growing_run_is_called_so_and_its_new_steps_appear(tmp_path):
    run = write_run(tmp_path, "a", finished=False, steps=(10, 20))
    with run.lock("recording"):
        test = open_page(tmp_path)
        assert "a: sorsa, ● growing" in said(test)
        assert set(table(test)["step"]) == {20}

        add_steps(run, steps=(30,))
        look_again(test)

    assert not test.exception
    assert set(table(test)["step"]) == {30}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_follows_a_growing_run_unless_told_to_stay(tmp_path, page):
    run = write_run(tmp_path, "a", finished=False, steps=(10, 20), arrays=True)
    with run.lock("recording"):
        follows, stays = open_page(tmp_path, page), open_page(tmp_path, page, step=10, until=10)
        before = drawn(follows), drawn(stays)
        add_steps(run, steps=(30,), arrays=True)
        look_again(follows)
        look_again(stays)

    assert not follows.exception and not stays.exception
    assert drawn(follows) != before[0]
    if page == "matrix":
        assert choice(follows, "step") == 30 and choice(stays, "step") == 10
        assert drawn(stays) == before[1]


def test_of_a_growing_run_only_what_is_new_and_needed_is_read(tmp_path, monkeypatch):
    run = write_run(tmp_path, "a", finished=False, steps=(10, 20))
    (first,) = run.drift.parts()
    read = []
    read_part = PartTable.read_part

    def noted(table, path, names, *rest, **more):
        read.append((path, set(names)))
        return read_part(table, path, names, *rest, **more)

    monkeypatch.setattr(PartTable, "read_part", noted)
    with run.lock("recording"):
        test = open_page(tmp_path)
        assert {path for path, _ in read} == {first}
        needed = set().union(*(names for _, names in read))
        assert {"delta_sigma", "delta_d", "step", "layer", "module"} <= needed
        assert not needed & {"residual", "stable_rank", "frobenius_drift", "source"}

        read.clear()
        add_steps(run, steps=(30,))
        look_again(test)

    assert set(table(test)["step"]) == {30}
    assert {path for path, _ in read} == set(run.drift.parts()) - {first}


def test_a_run_that_is_watched_is_growing_between_its_steps(tmp_path):
    run = write_run(tmp_path, "a", finished=True, steps=(10, 20))
    with run.lock("analysis"):
        assert "a: sorsa, ● growing" in said(open_page(tmp_path))


def test_a_growing_run_can_be_held_still(tmp_path, monkeypatch):
    run = write_run(tmp_path, "a", finished=False)
    every = []
    fragment = st.fragment

    def noted(*function, run_every=None):
        every.append(run_every)
        return fragment(*function, run_every=run_every)

    monkeypatch.setattr(st, "fragment", noted)
    assert "Hold still" not in [t.label for t in open_page(tmp_path).toggle]
    (idle,) = every
    with run.lock("recording"):
        every.clear()
        test = open_page(tmp_path)
        (growing,) = every
        assert 0 < growing < idle
        every.clear()
        test.toggle(key="choice-hold").set_value(True).run()

    assert not test.exception and not test.error
    assert every == []
    assert dict(test.query_params) == {"hold": "on"}


def test_an_interrupted_run_is_called_so(tmp_path):
    write_run(tmp_path, "a", finished=False)

    assert "a: sorsa, ◌ interrupted" in said(open_page(tmp_path))


def test_choices_survive_growth(tmp_path):
    run = write_run(tmp_path, "a", finished=False, steps=(10, 20, 30), layers=6)
    test = open_page(tmp_path)
    test.multiselect(key="choice-module").set_value(["v_proj"]).run()
    test.text_input(key="choice-layers").set_value("1-3").run()
    next(s for s in test.select_slider if s.label == "Steps").set_value((20, 30)).run()

    add_steps(run, steps=(40,), layers=6)
    write_run(tmp_path, "b", "lora", layers=6)
    look_again(test)

    assert not test.exception
    assert choice(test, "module") == ["v_proj"]
    assert choice(test, "layers") == "1-3"
    # The first step was moved and stays; the last was not, and follows the data.
    assert next(s for s in test.select_slider if s.label == "Steps").value == (20, 40)
    assert choice(test, "run") == ["a", "b"]


# Choices and links


def test_a_link_opens_the_same_choices_in_a_fresh_session(tmp_path):
    for name in "abc":
        write_run(tmp_path, name, layers=6)
    first = open_page(tmp_path)
    first.multiselect(key="choice-run").set_value(["c", "a"]).run()
    first.multiselect(key="choice-module").set_value(["q_proj"]).run()
    first.text_input(key="choice-layers").set_value("1-3").run()
    first.selectbox(key="choice-axes").set_value("free").run()
    first.toggle(key="choice-overlay").set_value(True).run()
    first.select_slider(key="choice-until").set_value(20).run()
    link = dict(first.query_params)

    second = open_page(tmp_path, **link)

    assert link.pop("run") in (["a", "c"], ["c", "a"])
    assert link == {
        **{"module": "q_proj", "layers": "1-3", "axes": "free"},
        **{"overlay": "on", "until": "20"},
    }
    for name in ("module", "layers", "axes", "overlay", "until"):
        assert choice(second, name) == choice(first, name)
    assert choice(second, "run") == ["a", "c"]
    assert drawn(second) == drawn(first)


def test_a_page_of_one_run_begins_with_the_chosen_and_leaves_them_chosen(tmp_path):
    for name in "abc":
        write_run(tmp_path, name, arrays=True)
    test = open_page(tmp_path, run=["b", "c"])

    test.query_params.clear()  # as Streamlit does when the page changes
    test.switch_page("views/matrix.py").run()
    assert test.selectbox(key="choice-one run").value == "b"
    assert dict(test.query_params)["run"] == "b"

    test.selectbox(key="choice-one run").set_value("a").run()
    assert test.selectbox(key="choice-one run").value == "a"
    test.query_params.clear()
    test.switch_page("views/trajectories.py").run()
    assert choice(test, "run") == ["b", "c"]


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_unknown_values_in_a_link_are_ignored(tmp_path, page):
    write_run(tmp_path, "a", arrays=True)
    nonsense: dict[str, Any] = dict.fromkeys(
        ("run", "axes", "column", "overlay", "view", "preset", "until", "step", "layer", "scale"),
        "no such",
    )

    test = open_page(
        tmp_path, page, **nonsense, module=["k_proj"], layers="9-x", steps="900-1", stranger="1"
    )

    assert not test.exception and not test.error
    if page in PAGES:
        assert len(drawn(test)) == 1


@pytest.mark.parametrize(
    ("text", "layers", "told"),
    [
        ("1-2", {1, 2}, ""),
        ("0, 3", {0, 3}, ""),
        ("2-9", {2, 3}, ""),
        ("9-x", {0, 1, 2, 3}, "0-11 or 3,5,7"),
        ("7", {0, 1, 2, 3}, "There are layers 0-3"),
    ],
)
def test_layers_are_typed_as_on_the_command_line(tmp_path, text, layers, told):
    write_run(tmp_path, "a", modules=("q_proj",))

    test = open_page(tmp_path, layers=text)

    assert set(table(test)["layers"]) == {len(layers)}
    assert told in said(test).replace("\\", "")
    words = shlex.split(test.code[-1].value)
    if len(layers) == 4:
        assert "--layers" not in words
    else:
        written = words[words.index("--layers") + 1]
        assert set(figures.parse_numbers(written)) == layers


def test_nothing_chosen_is_said(tmp_path):
    write_run(tmp_path, "a")
    test = open_page(tmp_path)

    test.multiselect(key="choice-module").set_value([]).run()

    assert not test.exception
    assert "at least one module" in said(test)


# Overview


def test_the_overview_tells_where_every_run_stands(tmp_path):
    run = write_run(tmp_path, "a", steps=(10, 20), noise=True)
    run.update_settings(base={"name": "some/model"})
    run.snapshots_path.mkdir()
    for name in ("base", "step-10", "step-20", "step-30"):
        (run.snapshots_path / f"{name}.safetensors").touch()
    write_run(tmp_path, "b", "lora", finished=False, analysed=False)

    test = open_page(tmp_path, "overview")

    first, second = table(test).to_dict("records")
    rows, losses = run.read_drift(), run.read_training()["loss"]
    last = rows[rows["step"] == 20]
    assert first["delta_d"] == pytest.approx(last["delta_d"].mean())
    assert first["delta_sigma"] == pytest.approx(last["delta_sigma"].mean())
    assert first["kappa"] == pytest.approx(last["kappa"].median())
    assert first["loss"] == pytest.approx(losses.tail(5).mean())
    assert first["drift_path"] == pytest.approx(
        [rows.loc[rows["step"] == step, "delta_d"].mean() for step in (10, 20)]
    )
    assert (first["last_step"], first["analysed"], first["recorded"]) == (20, 2, 3)
    assert (first["base"], first["state"]) == ("some/model", "finished")
    assert (second["method"], second["state"], second["analysed"]) == ("lora", "◌ interrupted", 0)

    test.selectbox(key="choice-of").set_value("v_proj").run()
    last = last[last["module"] == "v_proj"]
    assert table(test)["delta_d"][0] == pytest.approx(last["delta_d"].mean())
    assert dict(test.query_params) == {"of": "v_proj"}


def test_the_overview_shows_a_sweeps_progress(tmp_path):
    write_sweep(tmp_path, failed=True)

    test = open_page(tmp_path, "overview")

    assert "sweep: 6 done, 1 failed\nfull-ft-seed3 failed: too **large**" in said(test)


def test_ticked_runs_open_on_another_page(tmp_path, monkeypatch):
    for name in "abc":
        write_run(tmp_path, name)
    ticked: dict[str, dict[str, list[int]]] = {"selection": {"rows": []}}
    dataframe = st.dataframe

    def tick(frame, *, on_select="ignore", **options):
        shown = dataframe(frame, on_select=on_select, **options)
        return ticked if on_select == "rerun" else shown

    monkeypatch.setattr(st, "dataframe", tick)
    test = open_page(tmp_path, "overview")
    assert test.button(key="open-layers").disabled

    ticked["selection"]["rows"] = [2, 0]
    test.run().button(key="open-trajectories").click().run()

    assert not test.exception and not test.error
    assert choice(test, "run") == ["a", "c"]
    assert len(drawn(test)) == 1


# Trajectories


def test_rows_without_vectors_are_said_on_trajectories_and_drawn_on_layers(tmp_path):
    run = write_run(tmp_path, "a", analysed=False)
    run.drift.append(records(drift_rows("a").drop(columns="delta_d")))

    assert "values\\-only" in said(open_page(tmp_path))
    assert len(drawn(open_page(tmp_path, "layers", column="delta_sigma"))) == 1


def test_playback_draws_step_after_step_and_ends_at_the_last(tmp_path, monkeypatch):
    write_run(tmp_path, "a", steps=(10, 20, 30))
    test = open_page(tmp_path)
    whole = drawn(test)
    axes = whole[0]["layout"]["xaxis"]["range"]
    test.button(key="play-button").click().run()
    assert choice(test, "until") == 10
    assert test.button(key="play-button").label == "Stop"

    # The time for the next picture has come; a browser waits for it, a test does not.
    monkeypatch.setattr("dashboard_playback._FRAME_SECONDS", 0)
    seen = []
    for _ in range(4):
        seen.append(dict(test.query_params).get("until"))
        assert drawn(test)[0]["layout"]["xaxis"]["range"] == axes
        test.run()

    assert not test.exception
    assert seen[-1] is None and test.button(key="play-button").label == "Play"
    assert drawn(test) == whole


class Clicks:
    """Stands for Plotly in a browser: tells the page what is clicked on in its next figure."""

    def __init__(self, monkeypatch):
        self.points = []
        self.plotly_chart = st.plotly_chart
        monkeypatch.setattr(st, "plotly_chart", self._draw)

    def _draw(self, figure, *, on_select=None, key=None, selection_mode=(), **options):
        if self.points and on_select is not None:
            assert selection_mode == ("points", "box")
            points = [{"customdata": point} for point in self.points]
            self.points = []
            st.session_state[key] = {"selection": {"points": points}}
            on_select()
        return self.plotly_chart(figure, **options)


def test_clicked_layers_become_the_choice_and_a_button_ends_it(tmp_path, monkeypatch):
    write_run(tmp_path, "a", layers=6)
    clicks = Clicks(monkeypatch)
    test = open_page(tmp_path)

    clicks.points = [["a", "q_proj", 3, 20], ["a", "v_proj", 4, 40, 0.1], ["a", "q_proj", 3, 40]]
    test.run()
    test.run()

    assert not test.exception and not test.error
    assert dict(test.query_params) == {"layers": "3-4"}
    assert choice(test, "layers") == "3-4"
    assert set(table(test)["layers"]) == {2}

    test.button(key="all-layers").click().run()
    assert dict(test.query_params) == {}
    assert set(table(test)["layers"]) == {6}


def test_points_that_stand_for_no_matrix_change_nothing(tmp_path, monkeypatch):
    write_run(tmp_path, "a", layers=6)
    clicks = Clicks(monkeypatch)
    test = open_page(tmp_path)

    clicks.points = [None, [], ["a", "q_proj"]]
    test.run()

    assert not test.exception and not test.error
    assert dict(test.query_params) == {}


# Layers and Matrix


def test_layers_offers_every_quantity(tmp_path):
    write_run(tmp_path, "a")

    test = open_page(tmp_path, "layers", column="ortho_u", view="curves", overlay="on")

    assert not test.exception and not test.error
    assert test.selectbox(key="choice-column").value == "ortho_u"
    assert test.selectbox(key="choice-column").options == [
        figures.label_of(c).axis for c in DRIFT_QUANTITIES
    ]
    assert "spectra plot curves" in said(test) and "--column ortho_u" in said(test)


def test_a_quantity_that_no_row_has_is_said(tmp_path):
    write_run(tmp_path, "a")

    for view in ("map", "curves"):
        test = open_page(tmp_path, "layers", column="kappa_p", view=view)
        assert not test.exception and not test.error
        assert drawn(test) == [] and "no value of kappa" in said(test).replace("\\", "")


def test_a_click_on_the_heat_map_opens_the_matrix(tmp_path, monkeypatch):
    for name in "ab":
        write_run(tmp_path, name, steps=(10, 20), arrays=True)
    clicks = Clicks(monkeypatch)
    test = open_page(tmp_path, "layers", run="b")

    clicks.points = [["b", "v_proj", 2, 10]]
    test.run()

    assert not test.exception and not test.error
    assert "One weight matrix" in said(test)
    assert dict(test.query_params) == {"run": "b", "module": "v_proj", "layer": "2", "step": "10"}
    assert len(drawn(test)) == 1


def test_the_matrix_page_goes_from_neighbour_to_neighbour(tmp_path):
    write_run(tmp_path, "a", steps=(10, 20), arrays=True)
    test = open_page(tmp_path, "matrix", module="v_proj", layer="2")

    assert choice(test, "step") == 20
    assert test.button(key="step+1").disabled
    test.button(key="step-1").click().run()
    test.button(key="layer+1").click().run()

    assert not test.exception and not test.error
    assert (choice(test, "step"), choice(test, "layer")) == (10, "3")
    assert test.button(key="step-1").disabled and test.button(key="layer+1").disabled
    assert "--module v_proj --layer 3 --step 10" in test.code[-1].value


def test_the_matrix_page_tells_what_is_known_with_its_meaning(tmp_path):
    run = write_run(tmp_path, "a", arrays=True, noise=True)

    test = open_page(tmp_path, "matrix")

    rows = run.read_drift()
    row = rows[(rows["module"] == "q_proj") & (rows["layer"] == 0) & (rows["step"] == 40)].iloc[0]
    shown = table(test).set_index("quantity")
    assert shown.loc["ΔD (0 = base)", "value"] == pytest.approx(row["delta_d"])
    assert "Eq. 4" in shown.loc["ΔD (0 = base)", "meaning"]
    assert shown.loc["κ (σ_max/σ_min of W_t)", "value"] == pytest.approx(row["kappa"])
    assert "Solver: dense" in said(test)


def test_a_matrix_without_singular_values_is_told_how_to_get_them(tmp_path):
    write_run(tmp_path, "a")

    test = open_page(tmp_path, "matrix")

    assert not test.exception and not test.error
    assert "no singular values" in said(test)
    assert f"spectra analyze {tmp_path}/a" in said(test)


# Sweeps


def write_sweep(root, name="sweep", failed=False):
    """A sweep of a method with rank, 2 seeds, and one without, of which one run is not begun."""
    rows = []
    for method, varies in (("lora", {"rank": 4}), ("lora", {"rank": 8}), ("full-ft", {})):
        for seed in (1, 2):
            ranks = "".join(f"-rank{v}" for v in varies.values())
            run = SweepRun(f"{method}{ranks}-seed{seed}", method, seed, varies, state="done")
            rows.append(run)
            write_run(root / name, run.name, method, seed=seed)
    last = SweepRun("full-ft-seed3", "full-ft", 3, {})
    rows.append(replace(last, state="failed", error="too **large**") if failed else last)
    sweep = Sweep(root / name)
    sweep.plan({}, rows)
    return sweep


def test_runs_of_a_sweep_are_chosen_and_labelled_together(tmp_path):
    write_sweep(tmp_path, failed=True)
    write_run(tmp_path, "alone")

    test = open_page(tmp_path)
    assert not test.exception
    assert len(choice(test, "run")) == 7
    assert "seed" not in table(test)

    test.selectbox(key="choice-sweep").set_value("sweep").run()
    assert not test.exception
    assert choice(test, "run") == [
        *("lora-rank4-seed1", "lora-rank4-seed2", "lora-rank8-seed1", "lora-rank8-seed2"),
        *("full-ft-seed1", "full-ft-seed2"),
    ]
    assert "6 done, 1 failed\nfull-ft-seed3 failed: too **large**" in said(test)
    assert titles(drawn(test)[0])[:2] == ["lora-rank4-seed1", "lora-rank4-seed2"]
    assert dict(test.query_params) == {"sweep": "sweep"}


def test_a_sweeps_table_says_what_varies_and_averages_over_seeds(tmp_path):
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


def test_two_sweeps_of_one_name_and_a_damaged_one(tmp_path):
    write_sweep(tmp_path, "x/s")
    write_sweep(tmp_path, "y/s")
    write_sweep(tmp_path, "z").file_path.write_text("{")

    test = open_page(tmp_path, sweep="y/s")

    assert not test.exception
    assert test.selectbox(key="choice-sweep").options == ["all runs", "x/s", "y/s"]
    assert len(choice(test, "run")) == 6
    assert "sweep\\.json is not valid JSON" in said(test)
    assert f"{tmp_path}/y/s/lora-rank4-seed1" in test.code[-1].value


# Taking along


def test_downloads_are_drawn_on_request(tmp_path, monkeypatch):
    write_run(tmp_path, "a")

    def drawn_too_early(*_, **__):
        raise AssertionError("a page drew for paper without being asked")

    monkeypatch.setattr("spectra.figures.to_bytes", drawn_too_early)

    test = open_page(tmp_path)
    assert not test.exception and not test.error


def test_the_command_repeats_the_choices(tmp_path):
    write_run(tmp_path, "my run", layers=6)

    test = open_page(tmp_path, module=["v_proj"], layers="0-3", axes="free", preset="icml-1")

    assert shlex.split(test.code[-1].value) == [
        *("spectra", "plot", "trajectory", f"{tmp_path}/my run", "--modules", "v_proj"),
        *("--layers", "0-3", "--axes", "free", "--preset", "icml-1", "--out", "trajectory.pdf"),
    ]


@pytest.mark.parametrize(
    ("page", "query"),
    [
        ("trajectories", {"axes": "free", "until": "20", "preset": "neurips"}),
        ("trajectories", {"overlay": "on"}),
        ("layers", {"column": "delta_sigma", "scale": "log"}),
        ("layers", {"view": "curves", "overlay": "on"}),
        ("matrix", {"layer": "1", "module": "v_proj", "step": "20"}),
    ],
)
def test_the_command_on_the_page_makes_the_file_that_it_offers(tmp_path, monkeypatch, page, query):
    write_run(tmp_path, "my run", layers=6, arrays=True)
    offered = kept_downloads(monkeypatch)
    test = open_page(tmp_path, page, layers="0-3", steps="20-", **query)
    words = shlex.split(test.code[-1].value)
    monkeypatch.chdir(tmp_path)

    assert not test.exception and not test.error
    assert words[0] == "spectra"
    assert cli.main(words[1:]) == 0
    made = Path(words[-1]).read_bytes()
    assert made.startswith(b"%PDF")
    assert offered["PDF"]() == made


def test_the_rows_of_a_matrix_are_taken_along_by_index(tmp_path, monkeypatch):
    write_run(tmp_path, "a", arrays=True)
    offered = kept_downloads(monkeypatch)
    open_page(tmp_path, "matrix", layer="1", step="20")

    rows = pd.read_csv(io.BytesIO(offered["CSV"]()))

    arrays = matrix_arrays(20)
    assert rows["index"].tolist() == list(range(1, 25))
    for name in ("sigma", "sigma_change", "overlap_u"):
        assert rows[name].tolist() == pytest.approx(arrays[name], rel=1e-6)
    assert rows[["run", "module", "layer", "step"]].drop_duplicates().values.tolist() == [
        ["a", "q_proj", 1, 20]
    ]


def kept_downloads(monkeypatch):
    """Return what the page offers, by the button's label, as the page goes on to fill it in."""
    offered = {}
    button = st.download_button

    def keep(label, data, **options):
        offered[label] = data
        return button(label, data, **options)

    monkeypatch.setattr(st, "download_button", keep)
    return offered


def test_the_app_works_where_a_wheel_puts_it(tmp_path):
    elsewhere = tmp_path / "spectra" / "_app"
    shutil.copytree(APP, elsewhere, ignore=shutil.ignore_patterns("__pycache__"))
    write_run(tmp_path / "runs", "a")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if "dashboard_" in name}

    try:
        test = open_page(tmp_path / "runs", app=elsewhere)
    finally:
        sys.modules.update(before)

    assert not test.exception and not test.error
    assert len(drawn(test)) == 1


def test_the_app_imports_only_what_it_may():
    for path in APP.rglob("*.py"):
        text = path.read_text()
        for forbidden in ("torch", "numpy", "plotly", "matplotlib", "checkpoints_index", "app"):
            assert f"import {forbidden}\n" not in text, path
            assert f"from {forbidden}" not in text, path
