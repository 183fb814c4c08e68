"""Which runs are a regularized one and its twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectra.store import Run, pair_runs


def run_of(root: Path, name: str, method: str, **settings: Any) -> Run:
    run = Run(root / name)
    run.update_settings(method=method, settings={"method": method, "rank": 8} | settings)
    return run


def names(pairs: list[tuple[Run, Run]]) -> list[tuple[str, str]]:
    return [(a.name, b.name) for a, b in pairs]


def test_twins_have_the_same_seed_and_settings_but_for_the_regularizer(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path, "plain-2", "sorsa-noreg", seed=2, gamma=0.0, learning_rate=2e-5),
        run_of(tmp_path, "with-1", "sorsa", seed=1, gamma=5e-4, learning_rate=3e-5),
        run_of(tmp_path, "with-2", "sorsa", seed=2, gamma=5e-4, learning_rate=3e-5),
        run_of(tmp_path, "plain-1", "sorsa-noreg", seed=1, gamma=0.0, learning_rate=2e-5),
        run_of(tmp_path, "other", "lora", seed=1),
    ]

    assert names(pair_runs(runs)) == [("with-1", "plain-1"), ("with-2", "plain-2")]


def test_runs_that_differ_in_more_are_no_pair(tmp_path: Path) -> None:
    regularized = run_of(tmp_path, "a", "sorsa", seed=1)
    twins = [
        run_of(tmp_path, "b", "sorsa-noreg", seed=2),
        run_of(tmp_path, "c", "sorsa-noreg", seed=1, rank=16),
    ]

    assert pair_runs([regularized, *twins]) == []


def test_the_nearest_twin_is_taken_and_each_only_once(tmp_path: Path) -> None:
    far = run_of(tmp_path, "x/plain", "sorsa-noreg")
    first = run_of(tmp_path, "y/with", "sorsa")
    near = run_of(tmp_path, "y/plain", "sorsa-noreg")
    second = run_of(tmp_path, "y/again", "sorsa")

    assert pair_runs([far, first, near, second]) == [(first, near), (second, far)]


def test_runs_of_other_tools_pair_by_their_methods(tmp_path: Path) -> None:
    for name, method in (("a", "sorsa"), ("b", "sorsa-noreg")):
        Run(tmp_path / name).update_settings(method=method)

    assert names(pair_runs([Run(tmp_path / "a"), Run(tmp_path / "b")])) == [("a", "b")]
