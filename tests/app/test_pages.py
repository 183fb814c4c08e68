"""The dashboard under Streamlit's AppTest: what is said, what is drawn, what is kept."""

import io
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import streamlit as st

from spectra import cli, figures
from spectra.store import PartTable, Run
from tests.app.pages import (
    APP,
    EVERY_PAGE,
    HOSTILE,
    add_steps,
    as_started,
    choice,
    drawn,
    kept_downloads,
    look_again,
    matrix_arrays,
    open_page,
    said,
    table,
    titles,
    write_run,
)

# Those with a figure of drift; the others' own tests are beside this file.
PAGES = ["trajectories", "layers", "matrix"]


@pytest.fixture(autouse=True)
def process():
    with as_started():
        yield


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

    assert choice(test, "run") == [f"run-{number:02}" for number in range(6)]
    assert "6 of 11 runs shown" in said(test)
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


@pytest.mark.parametrize("page", [page for page in EVERY_PAGE if page != "overview"])
def test_a_run_in_whose_place_another_is_drawn_is_said_to_be_gone(tmp_path, page):
    for name in ("a", "b*"):
        write_run(tmp_path, name, arrays=True)
    test = open_page(tmp_path, page, run="b*")
    assert "no longer" not in said(test)

    shutil.rmtree(tmp_path / "b*")
    test = look_again(test)

    assert not test.exception and not test.error
    assert r"There is no run b\* here, or no longer" in said(test)
    assert len(drawn(test)) == 1


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
        assert table(test)["problem"].str.contains("lies outside").sum() == 5
        shown += table(test).to_string()
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

    test.switch_page("views/matrix.py").run()
    assert test.selectbox(key="choice-one run").value == "b"
    assert dict(test.query_params)["run"] == "b"

    test.selectbox(key="choice-one run").set_value("a").run()
    assert test.selectbox(key="choice-one run").value == "a"
    test.switch_page("views/trajectories.py").run()
    assert choice(test, "run") == ["b", "c"]


def test_the_run_of_one_view_does_not_narrow_the_runs_of_another(tmp_path):
    for name in "abc":
        write_run(tmp_path, name)
    test = open_page(tmp_path, "layers", run="b")

    test.radio(key="choice-view").set_value("curves").run()
    assert choice(test, "run") == ["a", "b", "c"]
    test.multiselect(key="choice-run").set_value(["a", "c"]).run()
    assert dict(test.query_params) == {"view": "curves", "run": ["a", "c"]}

    test.radio(key="choice-view").set_value("map").run()
    assert test.selectbox(key="choice-one run").value == "b"
    assert dict(test.query_params) == {"run": "b"}


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
