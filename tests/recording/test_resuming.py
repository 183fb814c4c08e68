"""A run that is gone on with: the later attempt counts, the earlier one can be had, the rest is
refused with what differs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

import spectra
from checkpoints_index import build_index, find_checkpoints, open_model
from checkpoints_index.snapshots import BASE_FILE
from spectra.recording import Recorder
from spectra.store import Run
from tests.helpers import (
    lora,
    lora_xs,
    milora,
    plain,
    shake,
    sorsa,
    svf,
    svft,
    tiny_llama,
    train_steps,
)

LAST = 6


def record(model: nn.Module, run: Path, first: int = 1, last: int = LAST, **options: Any) -> None:
    """Train and record steps `first` to `last`."""
    with Recorder(run, **{"every": 1, **options}).attach(model, start_step=first - 1) as recorder:
        for step, loss in train_steps(model, first, last):
            recorder.step(step, loss=loss)


def series(run: Path) -> dict[int, dict[str, Tensor]]:
    """W_t of every snapshot."""
    base = open_model(run / "snapshots" / BASE_FILE)
    w_0 = {m.name: base.read(m).dense for m in base.matrices}
    return {
        c.step: {m.name: c.read(m).on(w_0[m.name]) for m in c.matrices}  # type: ignore[arg-type]
        for c in find_checkpoints(run)
    }


def equal(found: dict[int, dict[str, Tensor]], expected: dict[int, dict[str, Tensor]]) -> bool:
    return found.keys() == expected.keys() and all(
        found[step].keys() == matrices.keys()
        and all(torch.equal(found[step][name], weight) for name, weight in matrices.items())
        for step, matrices in expected.items()
    )


def begin(model: nn.Module, run: Path, start_step: int = 0, **options: Any) -> None:
    Recorder(run, **options).begin(model, start_step)


@pytest.mark.parametrize("adapt", [plain, lora, sorsa])
@pytest.mark.parametrize("start", [0, 3])
def test_the_earlier_attempt_can_be_had_again(
    adapt: Callable[..., Any], start: int, tmp_path: Path
) -> None:
    record(adapt(tiny_llama()), tmp_path / "run")
    first, curve = series(tmp_path / "run"), Run(tmp_path / "run").read_training()
    later = adapt(tiny_llama())
    if start > 0:
        shake(later, seed=3)  # not the weights of step 3, so that the attempts differ
    record(later, tmp_path / "run", start + 1, LAST - 1, overwrite=True)
    second = series(tmp_path / "run")
    assert equal({5: second[5]}, {5: first[5]}) == (start == 0)
    assert max(second) == LAST - 1

    run = Run(tmp_path / "run")
    (attempt,) = run.earlier_attempts()
    assert attempt.steps == tuple(s for s in first if s > start or start == 0)
    restored = run.restore_attempt(attempt.number, tmp_path / "restored")
    assert equal(series(restored.path), first)
    columns = ["step", "loss", "seconds"]
    assert restored.read_training()[columns].equals(curve[columns])
    assert equal(series(run.path), second)


def test_attempts_say_when_and_with_what_they_began(tmp_path: Path) -> None:
    record(lora(tiny_llama()), tmp_path)
    record(lora(tiny_llama()), tmp_path, 4, 5, overwrite=True)
    first, second = Run(tmp_path).read_settings()["attempts"]
    assert (first["start_step"], second["start_step"]) == (0, 3)
    assert datetime.fromisoformat(first["time"]) <= datetime.fromisoformat(second["time"])
    assert second["versions"]["torch"] == metadata.version("torch")
    assert (first["state"], first["last_step"]) == ("finished", LAST)


def test_the_index_and_the_analysis_see_the_later_attempt_only(tmp_path: Path) -> None:
    record(lora(tiny_llama()), tmp_path / "run")
    record(lora(tiny_llama()), tmp_path / "run", 3, 4, overwrite=True)
    assert [c.step for c in find_checkpoints(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert [e.step for e in build_index(tmp_path).entries if e.step] == [1, 2, 3, 4]
    assert set(spectra.analyze(tmp_path / "run")["step"]) == {0, 1, 2, 3, 4}
    assert len(spectra.find_runs(tmp_path)) == 1


def test_a_restored_attempt_can_be_gone_on_with(tmp_path: Path) -> None:
    record(lora(tiny_llama()), tmp_path / "run", last=3)
    record(lora(tiny_llama()), tmp_path / "run", 2, 3, overwrite=True)
    restored = Run(tmp_path / "run").restore_attempt(1, tmp_path / "restored")
    model = lora(tiny_llama())
    for _ in train_steps(model, 1, 3):
        pass
    record(model, restored.path, 4, LAST)
    record(lora(tiny_llama()), tmp_path / "undisturbed")
    assert equal(series(restored.path), series(tmp_path / "undisturbed"))


def test_an_interrupted_attempt_does_not_end_where_a_finished_one_did(tmp_path: Path) -> None:
    record(lora(tiny_llama()), tmp_path)
    assert Run(tmp_path).read_settings()["last_step"] == LAST
    with (
        pytest.raises(KeyboardInterrupt),
        Recorder(tmp_path, every=1, overwrite=True).attach(lora(tiny_llama())) as recorder,
    ):
        recorder.step(1)
        raise KeyboardInterrupt
    settings = Run(tmp_path).read_settings()
    assert Run(tmp_path).state == "interrupted"
    assert settings["last_step"] is None
    assert settings["attempts"][0]["last_step"] == LAST


@pytest.mark.parametrize("adapt", [plain, lora])
def test_a_run_that_is_only_looked_at_again_is_not_written_again(
    adapt: Callable[..., Any], tmp_path: Path
) -> None:
    model = adapt(tiny_llama())
    record(model, tmp_path)
    before = {path: path.stat() for path in Run(tmp_path).snapshots_path.iterdir()}
    with Recorder(tmp_path, every=1).attach(model, start_step=LAST):
        pass
    after = {path: path.stat() for path in Run(tmp_path).snapshots_path.iterdir()}
    assert {p: (s.st_ino, s.st_mtime_ns) for p, s in after.items()} == {
        p: (s.st_ino, s.st_mtime_ns) for p, s in before.items()
    }
    settings = Run(tmp_path).read_settings()
    assert (settings["state"], settings["last_step"]) == ("finished", LAST)


def test_the_last_step_is_written_where_the_run_lacks_it(tmp_path: Path) -> None:
    model = lora(tiny_llama())
    record(model, tmp_path)
    last = series(tmp_path)[LAST]
    (Run(tmp_path).snapshots_path / f"step-{LAST:08d}.safetensors").unlink()
    with Recorder(tmp_path, every=1).attach(model, start_step=LAST):
        pass
    assert equal({LAST: series(tmp_path)[LAST]}, {LAST: last})


# Adapters whose frozen factors come back with the file, or are computed again.

FROZEN = {"milora": milora, "svf": svf, "svft": svft, "lora-xs": lora_xs}


@pytest.mark.parametrize("kind", FROZEN)
def test_a_run_goes_on_with_the_adapter_loaded_from_its_file(kind: str, tmp_path: Path) -> None:
    record(FROZEN[kind](tiny_llama()), tmp_path / "undisturbed")
    model = FROZEN[kind](tiny_llama())
    record(model, tmp_path / "run", last=3)
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded: Any = PeftModel.from_pretrained(
        tiny_llama(), str(tmp_path / "adapter"), is_trainable=True
    )
    record(loaded, tmp_path / "run", first=4)
    assert equal(series(tmp_path / "run"), series(tmp_path / "undisturbed"))


@pytest.mark.parametrize("kind", ["svf", "svft"])
def test_vectors_may_be_rounded_as_on_another_machine_and_no_more(
    kind: str, tmp_path: Path
) -> None:
    model = FROZEN[kind](tiny_llama())
    record(model, tmp_path, last=3)
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.v_proj")
    u = getattr(layer, f"{kind}_u")["default"]
    u[:, 3] = torch.nextafter(u[:, 3], torch.ones(()))
    begin(model, tmp_path, start_step=3)
    u[2, 3] += 1e-6
    with pytest.raises(ValueError, match=r"other initial factors of .*1\.self_attn\.v_proj"):
        begin(model, tmp_path, start_step=3)


@pytest.mark.parametrize("kind", ["milora", "lora-xs"])
def test_factors_that_are_saved_must_come_back_exactly(kind: str, tmp_path: Path) -> None:
    model = FROZEN[kind](tiny_llama())
    record(model, tmp_path, last=3)
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.v_proj")
    held = layer.milora_a0 if kind == "milora" else layer.lora_xs_left
    held["default"][0, 0] += 1e-7
    with pytest.raises(ValueError, match=r"other initial factors of .*1\.self_attn\.v_proj"):
        begin(model, tmp_path, start_step=3)


# What is refused.


@pytest.mark.parametrize(
    ("start_step", "options", "message"),
    [
        (3, {}, "has no base and the model is at step 3 already"),
        (0, {"max_bytes": 1000}, "max_bytes allows 1000 bytes"),
    ],
)
def test_a_refused_run_leaves_no_folder(
    start_step: int, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        begin(plain(tiny_llama()), tmp_path / "runs" / "a", start_step, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("before", "now", "difference"),
    [
        ({"r": 3}, {"r": 5, "lora_alpha": 5 * 8 / 3}, r"lora_a of .*was \(3, 32\), now it is \(5,"),
        ({"lora_alpha": 6}, {"lora_alpha": 12}, r"the scaling of .*q_proj was 2, now it is 4"),
        ({}, {"use_dora": True}, "begun with the method lora, now it is dora"),
        ({}, {"init_lora_weights": "pissa"}, "holds no or other initial factors"),
    ],
)
def test_another_adapter_is_refused_with_what_differs(
    before: dict[str, Any], now: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    record(lora(tiny_llama(), **before), tmp_path, last=3)
    files = sorted(tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match=f"{difference}.* Record into a new run"):
        begin(lora(tiny_llama(), **now), tmp_path, start_step=3)
    assert sorted(tmp_path.rglob("*.safetensors")) == files
    assert Run(tmp_path).state == "finished"
    begin(lora(tiny_llama(), **before), tmp_path, start_step=3)


def test_full_weights_are_refused_where_an_adapter_was_recorded(tmp_path: Path) -> None:
    record(lora(tiny_llama()), tmp_path, last=3, method="mine")
    with pytest.raises(ValueError, match=r"q_proj was lora, now it is dense.*and 1 more"):
        begin(plain(tiny_llama()), tmp_path, start_step=3, method="mine")


def test_another_base_of_equal_shape_is_refused_by_name(tmp_path: Path) -> None:
    record(lora(tiny_llama()), tmp_path, last=3)
    other = tiny_llama()
    with torch.no_grad():
        other.model.layers[1].self_attn.v_proj.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"another base: model\.layers\.1\.self_attn\.v_proj"):
        begin(lora(other), tmp_path, start_step=3)


def test_other_modules_are_refused_by_name(tmp_path: Path) -> None:
    record(plain(tiny_llama()), tmp_path, last=3, modules=["q_proj", "v_proj"])
    with pytest.raises(ValueError, match=r"it has no model\.layers\.0\.self_attn\.v_proj, "):
        begin(plain(tiny_llama()), tmp_path, 3, modules=["q_proj"])
    # The same matrices by other words are the same.
    begin(plain(tiny_llama()), tmp_path, 3, modules=["re:.*(q|v)_proj"])


def test_plain_layers_may_go_on_in_another_dtype(tmp_path: Path) -> None:
    record(plain(tiny_llama()), tmp_path / "undisturbed")
    model = plain(tiny_llama())
    record(model, tmp_path / "run", last=3)
    record(model, tmp_path / "run", 4, LAST, dtype="float32")
    found, exact = series(tmp_path / "run"), series(tmp_path / "undisturbed")
    assert equal({s: found[s] for s in (1, 2, 3)}, {s: exact[s] for s in (1, 2, 3)})
    for step in range(4, LAST + 1):
        for name, weight in exact[step].items():
            largest = (weight - exact[1][name]).abs().max() + weight.abs().max()
            error = (found[step][name] - weight).abs().max()
            assert error <= torch.finfo(torch.float32).eps * largest
