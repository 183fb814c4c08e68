"""A sweep's file: which runs it stands for, what they are called, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from spectra.store import Run
from spectra.training import METHODS, preset
from spectra.training.adaptation import adapt
from spectra.training.sweep import means_something, read_sweep
from tests.helpers import tiny_llama

DOCUMENT = Path(__file__).parents[2] / "docs" / "sweeps.md"
SHARED: dict[str, Any] = {"model": "model", "data": "pairs.jsonl", "out": "runs"}


def write_file(folder: Path, **keys: Any) -> Path:
    (folder / "model").mkdir(exist_ok=True)
    for name in ("pairs.jsonl", "held.jsonl", "other.txt"):
        (folder / name).write_text("{}")
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(SHARED | {"methods": ["sorsa"]} | keys, sort_keys=False))
    return path


def names(file: Path) -> list[str]:
    return [run.name for run in read_sweep(file).runs]


def begin(file: Path, number: int = 0) -> Run:
    """Make the folder of a run as the trainer begins it."""
    plan = read_sweep(file)
    run = Run(plan.out / plan.runs[number].name)
    settings = plan.runs[number].settings.as_dict()
    run.update_settings(settings=settings | {"model": plan.model, "data": plan.data})
    return run


def test_methods_seeds_and_grid_are_crossed_and_named(tmp_path: Path) -> None:
    file = write_file(
        tmp_path, methods=["sorsa", "lora"], seeds=[1, 2], grid={"rank": [8, 16], "alpha": [4]}
    )
    assert names(file) == [
        "sorsa-rank8-seed1",
        "sorsa-rank16-seed1",
        "lora-alpha4-rank8-seed1",
        "lora-alpha4-rank16-seed1",
        "sorsa-rank8-seed2",
        "sorsa-rank16-seed2",
        "lora-alpha4-rank8-seed2",
        "lora-alpha4-rank16-seed2",
    ]
    plan = read_sweep(file)
    assert plan.runs[1].settings == preset("table-2", "sorsa", rank=16, seed=1)
    assert plan.runs[-1].settings == preset("table-2", "lora", rank=16, seed=2, alpha=4.0)
    assert (plan.model, plan.data) == (str(tmp_path / "model"), str(tmp_path / "pairs.jsonl"))
    assert plan.out == tmp_path / "runs" and plan.analyze


def test_the_documents_example_is_a_sweep(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text("utf-8"), flags=re.DOTALL)
    asked = yaml.safe_load(text)
    (tmp_path / asked["model"]).mkdir()
    for key in ("data", "held_out", "other_text"):
        (tmp_path / asked[key]).write_text("")
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    found = names(file)
    # 3 seeds of 2 rates; of 2 rates and 2 ranks; of 2 ranks
    assert len(found) == 3 * (2 + 4 + 2) and "lora-lr0.0001-rank8-seed1" in found


def test_a_grid_that_means_nothing_to_a_method_gives_one_run_of_it(tmp_path: Path) -> None:
    grid = {"rank": [8, 16], "gamma": [1e-3, 2e-3]}
    methods = ["partial-ft", "lora", "sorsa"]
    assert names(write_file(tmp_path, methods=methods, seeds=[1], grid=grid)) == [
        "partial-ft-seed1",
        "lora-rank8-seed1",
        "lora-rank16-seed1",
        "sorsa-gamma0.001-rank8-seed1",
        "sorsa-gamma0.001-rank16-seed1",
        "sorsa-gamma0.002-rank8-seed1",
        "sorsa-gamma0.002-rank16-seed1",
    ]


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"galore"}))
def test_a_rank_means_something_where_it_changes_what_is_trained(method: str) -> None:
    """GaLore's is of gradients, which no parameter shows; LISA freezes later what it does."""
    counts = set()
    for rank in (2, 4):
        adapted = adapt(tiny_llama(), preset("table-2", method, rank=rank))
        counts.add(sum(p.numel() for p in adapted.parameters() if p.requires_grad))
    assert means_something("rank", method) == (len(counts) == 2)


def test_settings_that_mean_nothing_to_a_method_are_left_out_of_it(tmp_path: Path) -> None:
    file = write_file(
        tmp_path, methods=["partial-ft", "sorsa"], settings={"gamma": 1e-3, "rank": 4}
    )
    partial, sorsa = (run.settings for run in read_sweep(file).runs)
    assert (partial.gamma, partial.rank) == (0.0, preset("table-2", "partial-ft").rank)
    assert (sorsa.gamma, sorsa.rank) == (1e-3, 4)


def test_what_is_set_for_a_method_is_not_crossed(tmp_path: Path) -> None:
    file = write_file(
        tmp_path,
        methods=["lora", "sorsa"],
        seeds=[1],
        grid={"learning_rate": [1e-4, 2e-4]},
        per_method={"sorsa": {"learning_rate": 3e-4}},
    )
    assert names(file) == ["lora-lr0.0001-seed1", "lora-lr0.0002-seed1", "sorsa-seed1"]
    sorsa = read_sweep(file).runs[-1]
    assert sorsa.settings.learning_rate == 3e-4 and sorsa.varies == {"learning_rate": 3e-4}


def test_methods_own_settings_are_fields_like_any_other(tmp_path: Path) -> None:
    file = write_file(
        tmp_path,
        methods=["svft", "lora"],
        seeds=[1],
        grid={"pattern": ["random", "banded"]},
        settings={"off_diagonals": 3},
    )
    assert names(file) == ["svft-pattern-random-seed1", "svft-pattern-banded-seed1", "lora-seed1"]
    options = read_sweep(file).runs[1].settings.options
    assert options == {"pattern": "banded", "off_diagonals": 3}


def test_numbers_with_exponents_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 takes 2e-4 for a text, and 1e2 too."""
    file = write_file(tmp_path)
    file.write_text(
        "model: model\ndata: pairs.jsonl\nout: runs\nmethods: [lora]\nseeds: [1e1]\n"
        "settings: {learning_rate: 2e-4, max_steps: 1e2, modules: q_proj}\n"
        "grid: {warmup_ratio: [1e-1, 0]}\n"
    )
    first, second = read_sweep(file).runs
    assert (first.settings.learning_rate, first.settings.max_steps) == (2e-4, 100)
    assert first.settings.seed == 10 and first.settings.modules == ("q_proj",)
    assert [first.name, second.name] == ["lora-warmup-ratio0.1-seed10", "lora-warmup-ratio0-seed10"]


def test_lists_of_modules_have_names_of_their_own(tmp_path: Path) -> None:
    grid = {"modules": [["q_proj", "v_proj"], ["*_proj"], ["?_proj"], "all-linear"]}
    found = names(write_file(tmp_path, grid=grid, seeds=[1]))
    assert found[0] == "sorsa-modules-q_proj+v_proj-seed1"
    assert found[3] == "sorsa-modules-all-linear-seed1"
    assert len(set(found)) == 4 and all("*" not in n and "/" not in n for n in found)


def test_files_to_evaluate_on_start_from_the_sweeps_folder(tmp_path: Path) -> None:
    file = write_file(tmp_path, held_out="held.jsonl", other_text="other.txt", analyze=False)
    plan = read_sweep(file)
    assert plan.runs[0].settings.held_out == str(tmp_path / "held.jsonl")
    assert plan.runs[0].settings.other_text == str(tmp_path / "other.txt")
    assert not plan.analyze


@pytest.mark.parametrize("name", ["table-2", "table-3", "small"])
def test_presets_are_the_trainers(name: str, tmp_path: Path) -> None:
    file = write_file(tmp_path, preset=name, methods=list(METHODS), seeds=[42])
    assert [run.settings for run in read_sweep(file).runs] == [preset(name, m) for m in METHODS]


def test_one_more_value_renames_nothing(tmp_path: Path) -> None:
    before = names(write_file(tmp_path, seeds=[1], grid={"rank": [8]}))
    after = names(write_file(tmp_path, seeds=[1, 2], grid={"rank": [4, 8]}, methods=["sorsa"]))
    assert before == ["sorsa-rank8-seed1"] and set(before) < set(after)


def test_a_run_that_is_there_keeps_its_name_when_more_is_varied(tmp_path: Path) -> None:
    begin(write_file(tmp_path, seeds=[1], settings={"rank": 8}))
    file = write_file(tmp_path, seeds=[1], grid={"rank": [8, 16]})
    assert names(file) == ["sorsa-seed1", "sorsa-rank16-seed1"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"settings": {"rank": 4}}, "sorsa-seed1 is there with other settings: alpha was 8.0, "),
        ({"model": "other-model"}, "model was '.*', is 'other-model'. Choose another out, or del"),
    ],
)
def test_a_run_with_other_settings_is_refused_before_anything_runs(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    begin(write_file(tmp_path, seeds=[1], settings={"rank": 8}))
    file = write_file(tmp_path, **({"seeds": [1], "settings": {"rank": 8}} | keys))
    with pytest.raises(ValueError, match=message):
        read_sweep(file)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": None}, "model is missing"),
        ({"methods": None}, "methods is missing"),
        ({"speed": 1}, "speed is no key here; there are model, data, out"),
        ({"methods": ["magic"]}, "methods must be of full-ft, .*, got 'magic'"),
        ({"methods": [["lora"]]}, r"methods must be of .*, got \['lora'\]"),
        ({"methods": "lora"}, r"methods must be a list such as \[a, b\], got 'lora'"),
        ({"methods": ["lora", "lora"]}, "methods has 'lora' twice"),
        ({"seeds": [1, 1.0]}, "seeds has 1.0 twice"),
        ({"seeds": [1.5]}, "seeds must be a whole number, got 1.5"),
        ({"seeds": []}, "seeds must be a list"),
        ({"preset": "table-9"}, "preset must be one of table-2, .*, got 'table-9'"),
        ({"analyze": "later"}, "analyze must be true or false, got 'later'"),
        ({"settings": {"speed": 1}}, "settings.speed is no setting; there are modules, learn"),
        ({"settings": {"seed": 1}}, "settings.seed is not for here; use seeds"),
        ({"settings": {"held_out": "a"}}, "settings.held_out is not for here; use held_out at"),
        ({"settings": {"rank": True}}, "settings.rank must be a whole number, got True"),
        ({"settings": {"rank": None}}, "settings.rank must be a whole number, got None"),
        ({"settings": {"rank": 0}}, "sorsa: rank must be at least 1, got 0"),
        ({"settings": {"learning_rate": "fast"}}, "settings.learning_rate must be a number"),
        ({"settings": {"learning_rate": float("inf")}}, "learning_rate must be a number, got inf"),
        ({"settings": {"squared": 1}}, "settings.squared must be true or false, got 1"),
        ({"settings": {"reduction": "max"}}, "reduction must be one of mean, sum, got 'max'"),
        ({"settings": {"modules": []}}, r"settings.modules must be a list of names, got \[\]"),
        ({"settings": {"pattern": "plain"}}, "settings.pattern is no setting"),
        (
            {"methods": ["svft"], "per_method": {"svft": {"pattern": "zigzag"}}},
            "svft: pattern must be one of plain, banded, random, top-k, got 'zigzag'",
        ),
        ({"settings": [1]}, r"settings must hold keys with values, got \[1\]"),
        ({"grid": {"rank": 8}}, "grid.rank must be a list"),
        ({"grid": {"rank": [8, "8"]}}, "grid.rank has 8 twice"),
        ({"grid": {"rank": [8, 0]}}, "sorsa, rank 0: rank must be at least 1, got 0"),
        ({"grid": {"rank": [8]}, "settings": {"rank": 4}}, "rank is both in settings and in grid"),
        ({"grid": {"alpha": [1]}}, "grid.alpha means nothing to sorsa"),
        ({"per_method": {"lora": {"rank": 4}}}, "per_method.lora is no key here; there are sorsa"),
        (
            {"methods": ["svf"], "per_method": {"svf": {"rank": 4}}},
            "per_method.svf.rank means nothing to svf",
        ),
        ({"data": "gone.jsonl"}, "data .*gone.jsonl does not exist"),
        ({"held_out": "gone.jsonl"}, "held_out .*gone.jsonl does not exist"),
        ({"model": "./gone"}, "model .*gone is not a folder"),
        ({"out": 7}, "out must be a text, got 7"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_key(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = write_file(tmp_path, **keys)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        read_sweep(file)
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith(f"{file}: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings: {rank: 4, rank: 8}", "rank is given twice"),
        ("methods: [", "is not valid YAML"),
        ("- a", "must hold keys with values"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as refusal:
        read_sweep(file)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone.yaml does not exist"):
        read_sweep(tmp_path / "gone.yaml")
