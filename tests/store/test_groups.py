"""Runs that belong together: repetitions with other seeds, and pairs with a regularizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spectra.store import (
    Run,
    group_labels,
    group_runs,
    read_runs,
    regularized_pairs,
    run_names,
)

BASE = {"name": "models/tiny", "dtype": "float32"}


@pytest.fixture
def make(tmp_path: Path):
    def made(name: str, method: str = "lora", **settings: Any) -> Run:
        run = Run(tmp_path / name)
        given = {"method": method, "rank": 8, "alpha": 8.0, "options": {}, "every": 10}
        run.update_settings(method=method, base=BASE, settings=given | settings)
        return run

    return made


def test_runs_that_differ_in_their_seed_only_are_one_group(make) -> None:
    runs = [make("a", seed=1), make("c", "dora", seed=1), make("b", seed=2)]

    groups = group_runs(runs)

    assert [(g.label, g.method, g.names, g.seeds) for g in groups] == [
        ("lora", "lora", ("a", "b"), (1, 2)),
        ("dora", "dora", ("c",), (1,)),
    ]
    assert groups[0].runs == (runs[0], runs[2])


def test_how_often_a_run_is_looked_at_is_no_difference(make) -> None:
    runs = [
        make("a", seed=1, every=5, output_dir="a"),
        make("b", seed=2, every=50, output_dir="b", held_out="held.jsonl"),
    ]
    assert len(group_runs(runs)) == 1


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"learning_rate": 1e-4}, ["lora", "lora · lr 0.0001"]),
        ({"rank": 4, "alpha": 4.0}, ["lora · rank 8", "lora · rank 4"]),
        ({"rank": 4}, ["lora · rank 8", "lora · rank 4"]),
        ({"alpha": 16.0}, ["lora · alpha 8", "lora · alpha 16"]),
        ({"options": {"pattern": "banded"}}, ["lora", "lora · pattern banded"]),
        ({"data": "a,b"}, ["lora", "lora · data a,b"]),
    ],
)
def test_what_tells_groups_of_one_method_apart_is_in_their_labels(make, settings, labels) -> None:
    groups = group_runs([make("a"), make("b", **settings), make("c", "dora")])

    assert [g.label for g in groups] == [*labels, "dora"]


def test_another_base_is_another_group(make) -> None:
    other = make("b")
    other.update_settings(base={"name": "models/large"})

    labels = [g.label for g in group_runs([make("a"), other])]

    assert labels == ["lora · base models/tiny", "lora · base models/large"]


def test_runs_without_recorded_settings_are_not_averaged(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name) for name in ("a", "b", "c", "d")]
    for run in runs[:3]:
        run.update_settings(method="lora")
    runs[2].update_settings(method="dora")
    runs[3].update_settings()

    assert [(g.label, g.names) for g in group_runs(runs)] == [
        ("lora · a", ("a",)),
        ("lora · b", ("b",)),
        ("dora", ("c",)),
        ("d", ("d",)),
    ]


def test_a_broken_run_is_a_group_that_says_why_and_spares_the_others(make, tmp_path: Path) -> None:
    broken = make("b", seed=2)
    broken.settings_path.write_text("{")
    gone = Run(tmp_path / "gone")

    groups = group_runs([make("a", seed=1), broken, gone])

    assert [(g.label, g.names) for g in groups] == [
        ("lora", ("a",)),
        ("b", ("b",)),
        ("gone", ("gone",)),
    ]
    assert "not valid JSON" in groups[1].problem and "is not a run" in groups[2].problem


def test_labels_are_by_the_names_that_rows_have(make) -> None:
    runs = [make("x/a", seed=1), make("y/a", seed=2), make("y/b", "dora")]
    for run in runs:
        run.write_training([{"step": 1, "loss": 1.0}])

    labels = group_labels(runs)

    assert labels == {"x/a": "lora", "y/a": "lora", "b": "dora"}
    assert set(read_runs(runs, "training")["run"]) == set(labels)


def test_a_run_within_another_of_its_name_has_a_name_too(make) -> None:
    assert run_names([make("a"), make("a/a"), make("b")]) == ["a", "a/a", "b"]


def test_no_two_groups_share_a_label(make) -> None:
    many = {f"setting_{i}": i for i in range(9)}
    runs = [make("a"), make("b", **many), make("c", **many | {"setting_8": 0})]
    runs += [make("lora", "unknown"), make("x/lora", "unknown", rank=3)]

    labels = [g.label for g in group_runs(runs)]

    assert len(set(labels)) == len(labels) == 5


def test_pairs_with_a_regularizer_have_one_seed_and_one_rank(make) -> None:
    runs = [
        make("reg-1", "sorsa", gamma=5e-4, learning_rate=3e-5, seed=1),
        make("reg-2", "sorsa", gamma=5e-4, learning_rate=3e-5, seed=2),
        make("reg-rank", "sorsa", gamma=5e-4, learning_rate=3e-5, seed=1, rank=4),
        make("plain-1", "sorsa-noreg", gamma=0.0, learning_rate=2e-5, seed=1),
        make("plain-1-same-rate", "sorsa", gamma=0.0, learning_rate=3e-5, seed=1),
        make("plain-2", "sorsa-noreg", gamma=0.0, learning_rate=2e-5, seed=2),
        make("other", "lora", seed=1),
    ]
    assert regularized_pairs(runs) == [("reg-1", "plain-1-same-rate"), ("reg-2", "plain-2")]
