"""Overview, Trajectories, Layers and Matrix, and what a sweep adds to them."""

import pytest
import streamlit as st

from spectra import figures
from spectra.store import DRIFT_QUANTITIES
from tests.app.pages import (
    EVERY_PAGE,
    Clicks,
    as_started,
    choice,
    drawn,
    open_page,
    records,
    said,
    table,
    titles,
    write_run,
    write_sweep,
)
from tests.figures.rows import drift_rows


@pytest.fixture(autouse=True)
def process():
    with as_started():
        yield


# Overview


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_a_page_shows_nothing_that_it_does_not_mean_to(tmp_path, page):
    write_run(tmp_path, "a", arrays=True)

    # Streamlit shows a string that stands alone in a script, such as a constant's docstring.
    assert [element.value for element in open_page(tmp_path, page).markdown] == []


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


def test_the_overview_says_once_what_all_runs_start_from(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path, name).update_settings(base={"name": "some/<b>model"})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text("{")

    test = open_page(tmp_path, "overview")

    assert "base" not in table(test)
    assert "start from the base some\\/\\<b\\>model" in said(test)

    write_run(tmp_path, "d").update_settings(base={"name": "other"})
    assert list(table(open_page(tmp_path, "overview"))["base"]) == ["some/<b>model"] * 2 + [
        "",
        "other",
    ]


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
    value, meaning = shown["value"].to_dict(), shown["meaning"].to_dict()
    assert float(value["ΔD (0 = base)"]) == pytest.approx(row["delta_d"], rel=1e-5)
    assert "Eq. 4" in meaning["ΔD (0 = base)"]
    assert float(value["κ (σ_max/σ_min of W_t)"]) == pytest.approx(row["kappa"], rel=1e-5)
    assert "Solver: dense" in said(test)


def test_a_matrix_without_singular_values_is_told_how_to_get_them(tmp_path):
    write_run(tmp_path, "a")

    test = open_page(tmp_path, "matrix")

    assert not test.exception and not test.error
    assert "no singular values" in said(test)
    assert f"spectra analyze {tmp_path}/a" in said(test)


# Sweeps


def test_runs_of_a_sweep_are_chosen_and_labelled_together(tmp_path):
    write_sweep(tmp_path, failed=True)
    write_run(tmp_path, "alone")

    test = open_page(tmp_path)
    assert not test.exception
    assert len(test.multiselect(key="choice-run").options) == 7
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
