"""Settings: presets, a method's own options, and what is refused."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from spectra.methods.svft import Pattern
from spectra.training import METHODS, PRESETS, TrainSettings, preset, table_2
from spectra.training.methods import SVFT_PATTERNS
from tests.training.tiny_runs import settings


def test_table_2_is_the_papers() -> None:
    rates = {
        method: table_2(method).learning_rate
        for method in ("sorsa", "sorsa-noreg", "lora", "partial-ft")
    }
    assert rates == {"sorsa": 3e-5, "sorsa-noreg": 2e-5, "lora": 2e-5, "partial-ft": 2e-5}
    sorsa = table_2("sorsa")
    assert (sorsa.gamma, sorsa.rank, sorsa.batch_size, sorsa.max_length) == (5e-4, 128, 128, 512)
    assert (sorsa.epochs, sorsa.weight_decay, sorsa.warmup_ratio) == (1, 0, 0.03)
    assert sorsa.max_grad_norm == 0
    assert table_2("sorsa-noreg").gamma == 0
    assert table_2("lora", rank=16).alpha == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"alpha": 0.0}, "alpha must be positive, got 0.0"),
        ({"epochs": float("nan")}, "epochs must be positive, got nan"),
        ({"gamma": -1.0}, "gamma must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"warmup_ratio": 3}, r"warmup_ratio must be in \[0, 1\), got 3"),
        ({"max_steps": 0}, "max_steps must be at least 1, or -1"),
        ({"batch_size": 5}, "multiple of micro_batch_size, got 5 and 2"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings("sorsa", **changes)


def test_gamma_without_a_regularizer_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma is sorsa's; sorsa-noreg has no regularizer"):
        settings("sorsa-noreg", gamma=1e-3)
    with pytest.raises(ValueError, match="clip_together is sorsa's; lora has no regularizer"):
        settings("lora", clip_together=True)


def test_unknown_methods_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="method must be one of"):
        table_2("magic")
    with pytest.raises(TypeError, match="No setting is called speed"):
        table_2("lora", speed=1)


def test_table_3_is_the_papers() -> None:
    sorsa, lora = preset("table-3", "sorsa"), preset("table-3", "lora")
    assert (sorsa.learning_rate, sorsa.gamma, lora.learning_rate) == (3e-5, 4e-4, 2e-5)
    for chosen in (sorsa, lora):
        assert chosen.modules == ("all-linear",) and chosen.max_grad_norm == 1
        assert (chosen.rank, chosen.batch_size, chosen.max_length) == (128, 128, 512)


def test_small_keeps_the_papers_ratio_of_gamma_to_the_rate() -> None:
    paper, small = table_2("sorsa"), preset("small", "sorsa")
    assert small.gamma / small.learning_rate == pytest.approx(paper.gamma / paper.learning_rate)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_every_method_and_can_be_stored(name: str, method: str) -> None:
    chosen = preset(name, method, rank=8)
    assert chosen.rank == chosen.alpha == 8
    stored = json.loads(json.dumps(chosen.as_dict()))
    stored["modules"] = tuple(stored["modules"])
    assert TrainSettings(**stored) == chosen


def test_options_are_resolved_with_the_methods_defaults() -> None:
    lisa = preset("small", "lisa", options={"interval": "5"}).options
    assert lisa == {"active_layers": 2, "interval": 5}
    assert preset("small", "adalora", rank=5).options["init_rank"] == 8
    banded = preset("small", "svft", options={"pattern": "banded"}).options
    assert banded == {"pattern": "banded", "off_diagonals": 2}
    assert preset("small", "lora-xs", options={"init_std": 1}).options == {"init_std": 1.0}


def test_the_settings_know_the_tuners_patterns() -> None:
    assert get_args(Pattern) == SVFT_PATTERNS


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lisa", {"layers": 2}, "lisa has no option layers; it has active_layers, interval"),
        ("lora", {"interval": 2}, "lora has no option interval; it has none"),
        ("lisa", {"interval": "often"}, "interval must be a whole number, got 'often'"),
        ("lisa", {"interval": 2.5}, "interval must be a whole number, got 2.5"),
        ("galore", {"scale": None}, "scale must be a number, got None"),
        ("galore", {"update_proj_gap": 0}, "update_proj_gap must be at least 1, got 0"),
        ("adalora", {"interval": 0}, "interval must be at least 1, got 0"),
        ("lisa", {"active_layers": 0}, "active_layers must be at least 1, got 0"),
        ("adalora", {"initial_share": -0.1}, r"initial_share must be in \[0, 1\), got -0.1"),
        ("adalora", {"final_share": "nan"}, r"final_share must be in \[0, 1\), got nan"),
        ("adalora", {"init_rank": 16}, "init_rank must be above the final mean rank 16, got 16"),
        ("svft", {"pattern": "zigzag"}, "pattern must be one of plain, banded, random, top-k, got"),
        ("svft", {"off_diagonals": 2}, "off_diagonals must be 0 for the plain pattern"),
        ("svft", {"pattern": "random", "off_diagonals": -1}, "at least 1 for any other, got -1"),
    ],
)
def test_impossible_options_are_refused(
    method: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        preset("small", method, options=options)


def test_unknown_presets_and_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="preset must be one of table-2, table-3, small, got 'x'"):
        preset("x", "lora")
    with pytest.raises(ValueError, match="precision must be one of auto, float32, bfloat16, got"):
        preset("small", "lora", precision="float16")
