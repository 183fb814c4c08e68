"""Runs after the fact: the steps' models are the trained ones, and the curve loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from spectra.methods import SorsaConfig
from spectra.recording import Recorder
from spectra.store import Run
from spectra.training.evaluation import runs as module
from spectra.training.evaluation.folders import model_perplexity
from spectra.training.evaluation.perplexity import perplexity
from spectra.training.evaluation.recorded_weights import RecordedModel, why_final_only
from spectra.training.evaluation.runs import (
    choose_steps,
    evaluate_gsm8k,
    evaluate_perplexity,
)
from spectra.training.evaluation.texts import read_held_out, read_other_text
from tests.checkpoints_index.architectures import tiny
from tests.helpers import (
    MODULES,
    lora,
    plain,
    seeded,
    shake,
    tiny_llama,
    tiny_tokenizer,
    train_steps,
)
from tests.helpers import tiny_model_folder as model_in

# A merge in float32 rounds the product, its scaling, the sum, and what DoRA multiplies with.
ROUNDINGS = 16 * torch.finfo(torch.float32).eps
TEXT = "the old river sings of a small bird and its song the river"


def _adapted(config: Callable[..., Any], **options: Any) -> Callable[[nn.Module], Any]:
    def adapt(model: nn.Module) -> Any:
        with seeded(1):
            return peft.get_peft_model(model, config(r=3, target_modules=list(MODULES), **options))

    return adapt


METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "partial-ft": plain,
    "lora": _adapted(peft.LoraConfig, lora_alpha=8),
    "dora": _adapted(peft.LoraConfig, use_dora=True),
    "pissa": _adapted(peft.LoraConfig, init_lora_weights="pissa"),
    "sorsa": _adapted(SorsaConfig),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, GSM8K-like problems, and other text."""
    root = tmp_path_factory.mktemp("evaluated")
    model_in(root / "base")
    rows = [{"question": "the old river", "answer": f"a small bird #### {i}"} for i in range(3)]
    (root / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "other.txt").write_text(TEXT)
    return root


def recorded(
    path: Path, base: Path, adapt: Callable[[nn.Module], Any] = METHODS["lora"], **options: Any
) -> tuple[Run, dict[int, Any]]:
    """A run of four steps, recorded at every second; and its models, by step."""
    states: dict[int, Any] = {}
    model = adapt(tiny_llama())
    recorder = Recorder(path, every=2, base=str(base), **options)
    with recorder.attach(model):
        states[0] = {k: v.clone() for k, v in model.state_dict().items()}
        for step, loss in train_steps(model, 1, 4):
            recorder.step(step, loss=loss, lr=0.05)
            states[step] = {k: v.clone() for k, v in model.state_dict().items()}
    return Run(path), states


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    return recorded(tmp_path / "run", folder / "base")[0]


def silent(run: Run, **options: Any) -> Any:
    return evaluate_perplexity(run, progress=False, **options)


# The model of a step.


def merged(adapt: Callable[[nn.Module], Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    model = adapt(tiny_llama())
    model.load_state_dict(state)
    whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return dict(whole.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_a_recorded_steps_model_is_the_trained_one(
    method: str, folder: Path, tmp_path: Path
) -> None:
    run, states = recorded(tmp_path / "run", folder / "base", METHODS[method])
    assert why_final_only(run.read_settings()) is None
    model = RecordedModel(run, tiny_llama())
    for step in (4, 0, 2):  # in any order
        found, expected = model.show(step).state_dict(), merged(METHODS[method], states[step])
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            atol = 0.0 if method == "partial-ft" else ROUNDINGS * weight.abs().max().item()
            torch.testing.assert_close(found[name], weight, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["GPT-2", "GPT-NeoX", "Phi-3"])
def test_parts_of_fused_layers_are_put_where_they_belong(name: str, tmp_path: Path) -> None:
    import copy

    start = copy.deepcopy(tiny(name)[0])
    trained = copy.deepcopy(start)
    fused = ("c_attn", "query_key_value", "qkv_proj")
    for path, parameter in trained.named_parameters():
        parameter.requires_grad_(path.split(".")[-2] in fused and parameter.ndim == 2)
    recorder = Recorder(tmp_path / "run", modules=("q_proj", "k_proj", "v_proj"))
    with recorder.attach(trained):
        shake(trained)
        recorder.step(1)
    shown = RecordedModel(Run(tmp_path / "run"), copy.deepcopy(start)).show(1).state_dict()
    changed = 0
    for path, weight in trained.state_dict().items():
        assert torch.equal(shown[path], weight), path
        changed += not torch.equal(weight, start.state_dict()[path])
    assert changed == 2  # layers


def test_another_base_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="is not W_0 of .*they differ by .*--base"):
        RecordedModel(run, tiny_llama(seed=1))
    shorter = tiny_llama()
    shorter.model.layers = shorter.model.layers[:1]
    with pytest.raises(ValueError, match=r"has model.layers.1.*this model has none"):
        RecordedModel(run, shorter)


def test_a_base_rounded_to_16_bits_is_the_base(run: Run) -> None:
    shown = RecordedModel(run, tiny_llama(dtype=torch.bfloat16)).show(0)
    for found, expected in zip(shown.parameters(), tiny_llama().parameters(), strict=True):
        assert torch.equal(found, expected.to(torch.bfloat16))


def test_what_trains_more_than_is_recorded_is_told_apart(folder: Path, tmp_path: Path) -> None:
    counts = {}
    for name, modules in (("all", MODULES), ("some", ("q_proj",))):
        run, _ = recorded(tmp_path / name, folder / "base", modules=modules)
        counts[name] = run.read_settings()["parameters"]
    expected = sum(p.numel() for p in lora(tiny_llama()).parameters() if p.requires_grad)
    assert counts["all"] == {"trained": expected, "recorded": expected}
    assert counts["some"]["trained"] == expected > counts["some"]["recorded"] > 0
    why = why_final_only({"method": "lora", "parameters": counts["some"]})
    assert why is not None and "trained parameters were recorded" in why
    full = {"trained": 5, "recorded": 5}
    assert why_final_only({"method": "lora", "parameters": full}) is None
    # LISA thaws other layers later.
    assert why_final_only({"method": "lisa", "parameters": full}) is not None
    # Recorded before run.json told.
    assert why_final_only({"method": "lora"}) is not None


def test_full_fine_tuning_trains_more_than_layers(folder: Path, tmp_path: Path) -> None:
    run, _ = recorded(tmp_path / "run", folder / "base", lambda m: m, modules=("all-linear",))
    why = why_final_only(run.read_settings())
    total = sum(p.numel() for p in tiny_llama().parameters())
    assert why is not None and why.endswith(f"of the {total:,} trained parameters were recorded")


# Perplexity.


def test_every_recorded_step_gets_what_its_own_model_gives(folder: Path, tmp_path: Path) -> None:
    run, states = recorded(tmp_path / "run", folder / "base")
    before = run.read_training()
    files = {"held_out": folder / "held.jsonl", "other_text": folder / "other.txt"}
    rows = silent(run, **files, max_length=64)
    assert rows["step"].tolist() == [0, 2, 4]
    tokenizer = tiny_tokenizer()
    examples = {
        "perplexity": read_held_out(files["held_out"], tokenizer, 64),
        "perplexity_other": read_other_text(files["other_text"], tokenizer, 64),
    }
    model = lora(tiny_llama(), lora_alpha=8)
    for step, row in rows.set_index("step").iterrows():
        model.load_state_dict(states[step])
        for column, measured in examples.items():
            # Merged and unmerged round differently in float32.
            assert row[column] == pytest.approx(perplexity(model, measured), rel=1e-4)
    after = run.read_training()
    assert after["step"].tolist() == [0, 1, 2, 3, 4]
    kept = after[after["step"] > 0].reset_index(drop=True)[["step", "loss", "lr", "seconds"]]
    assert kept.equals(before[["step", "loss", "lr", "seconds"]])
    assert after[after["step"].isin([1, 3])]["perplexity"].isna().all()
    assert after["loss"].isna().tolist() == [True, False, False, False, False]


def test_what_is_there_is_not_measured_again(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = silent(run, held_out=folder / "held.jsonl")

    def load(*_: Any) -> Any:
        raise AssertionError("loaded for nothing")

    monkeypatch.setattr(module, "load_model", load)
    assert silent(run, held_out=folder / "held.jsonl").equals(first)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    original = module.likelihood.perplexity

    def counted(*arguments: Any, **options: Any) -> float:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(1)
        return original(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.likelihood, "perplexity", counted)
        silent(run, held_out=folder / "held.jsonl")
    assert run.read_training()["perplexity"].notna().sum() == 2
    measured[:] = [1]  # one more is let through, and only one is needed
    monkeypatch.setattr(module.likelihood, "perplexity", counted)
    assert silent(run, held_out=folder / "held.jsonl")["step"].tolist() == [0, 2, 4]


def test_one_column_is_measured_on_one_thing(run: Run, folder: Path, tmp_path: Path) -> None:
    first = silent(run, other_text=folder / "other.txt")
    (tmp_path / "same.txt").write_text(TEXT)
    assert silent(run, other_text=tmp_path / "same.txt").equals(first)
    (tmp_path / "another.txt").write_text(TEXT[::2])
    with pytest.raises(ValueError, match="values of perplexity_other on something else .*--again"):
        silent(run, other_text=tmp_path / "another.txt")
    with pytest.raises(ValueError, match="dtype float32; now .*dtype bfloat16"):
        silent(run, other_text=folder / "other.txt", dtype="bfloat16")
    second = silent(run, other_text=tmp_path / "another.txt", again=True)
    assert (second["perplexity_other"] != first["perplexity_other"]).all()
    assert silent(run, other_text=tmp_path / "another.txt").equals(second)


def test_files_of_the_training_are_the_default(folder: Path, tmp_path: Path) -> None:
    held = {"held_out": str(folder / "held.jsonl"), "max_length": 40}
    run, _ = recorded(tmp_path / "run", folder / "base", settings=held)
    rows = silent(run)
    assert list(rows) == ["step", "perplexity"] and rows["perplexity"].notna().all()


def test_a_run_without_files_or_of_unknown_dtype_is_refused(run: Run, folder: Path) -> None:
    with pytest.raises(ValueError, match="trained without held-out data. Give --held-out"):
        silent(run)
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        silent(run, other_text=folder / "other.txt", dtype="int3")


def test_a_run_that_is_being_recorded_is_left_alone(folder: Path, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", every=1)
    with recorder.attach(lora(tiny_llama())):
        recorder.step(1, loss=1.0)
        with pytest.raises(RuntimeError, match="being recorded or evaluated by another process"):
            silent(Run(tmp_path / "run"), other_text=folder / "other.txt", base=folder / "base")
    assert recorder.missing == []


def test_a_run_trained_further_keeps_what_was_measured(run: Run, folder: Path) -> None:
    first = silent(run, other_text=folder / "other.txt")
    recorder = Recorder(run.path, every=2, base=str(folder / "base"))
    model = lora(tiny_llama(), lora_alpha=8)
    with seeded(3):
        shake(model)
    with recorder.attach(model, start_step=4):
        for step, loss in train_steps(model, 5, 6):
            recorder.step(step, loss=loss)
    second = silent(run, other_text=folder / "other.txt")
    assert second["step"].tolist() == [0, 2, 4, 6]
    assert second.head(3).equals(first)


def test_where_only_the_end_is_known_the_end_is_evaluated(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run, states = recorded(tmp_path / "run", folder / "base", modules=("q_proj",))
    with pytest.raises(FileNotFoundError, match="Only the final model .*has no final/ yet"):
        silent(run, other_text=folder / "other.txt")
    model = lora(tiny_llama(), lora_alpha=8)
    model.load_state_dict(states[4])
    model.save_pretrained(run.path / "final")
    rows = silent(run, other_text=folder / "other.txt", say=said.append)
    assert rows["step"].tolist() == [4] and len(said) == 1
    assert "Only the final model of" in said[0] and "parameters were recorded" in said[0]
    examples = read_other_text(folder / "other.txt", tiny_tokenizer(), 512)
    expected = perplexity(model, examples)
    assert rows["perplexity_other"].item() == pytest.approx(expected, rel=1e-4)


def test_a_sorsa_adapters_folder_is_evaluated_on_its_base(folder: Path, tmp_path: Path) -> None:
    model = METHODS["sorsa"](tiny_llama())
    shake(model)
    model.save_pretrained(tmp_path / "adapter")
    found = model_perplexity(
        tmp_path / "adapter", other_text=folder / "other.txt", base=folder / "base"
    )
    examples = read_other_text(folder / "other.txt", tiny_tokenizer(), 512)
    expected = perplexity(model, examples)
    assert found == {"perplexity_other": pytest.approx(expected, rel=1e-4)}


# GSM8K.


def test_gsm8k_goes_into_the_curve_and_its_outputs_beside_it(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(model: Any, tokenizer: Any, prompts: list[Any], length: int) -> list[str]:
        """Right on the first two problems at step 0, on none later."""
        w = dict(model.named_parameters())["model.layers.0.self_attn.q_proj.weight"]
        is_base = torch.equal(w, tiny_llama().model.layers[0].self_attn.q_proj.weight)
        return [f"#### {i}" if is_base and i < 2 else "#### 9" for i in range(len(prompts))]

    monkeypatch.setattr(module.problems_solved, "respond", answers)
    scores = evaluate_gsm8k(run, folder / "held.jsonl", steps="all", progress=False)
    assert {step: score.solved for step, score in scores.items()} == {0: 2, 2: 0, 4: 0}
    values = run.read_training().set_index("step")["gsm8k"]
    assert values.dropna().to_dict() == {0: pytest.approx(2 / 3), 2: 0.0, 4: 0.0}
    files = sorted(p.name for p in (run.path / "evaluation").iterdir())
    assert files == [f"gsm8k-step-{step}.jsonl" for step in (0, 2, 4)]

    def load(*_: Any) -> Any:
        raise AssertionError("loaded for nothing")

    monkeypatch.setattr(module, "load_model", load)
    assert evaluate_gsm8k(run, folder / "held.jsonl", steps="all", progress=False) == scores
    with pytest.raises(ValueError, match="values of gsm8k on something else .*problems 3.*1"):
        evaluate_gsm8k(run, folder / "held.jsonl", limit=1, progress=False)

    monkeypatch.undo()
    right = ["#### 0", "#### 1", "#### 2"]
    monkeypatch.setattr(module.problems_solved, "respond", lambda *_: right)
    again = evaluate_gsm8k(run, folder / "held.jsonl", steps=[2], again=True, progress=False)
    assert again == {2: module.problems_solved.Score(3, 3)}
    assert run.read_training().set_index("step")["gsm8k"].dropna().to_dict() == {2: 1.0}


def test_steps_are_the_last_all_or_some() -> None:
    assert choose_steps([0, 2, 4], "last") == [4]
    assert choose_steps([0, 2, 4], "all") == [0, 2, 4]
    assert choose_steps([0, 2, 4], [4, 0]) == [0, 4]
    with pytest.raises(ValueError, match="Step 3 cannot be evaluated; there is 0, 2, 4"):
        choose_steps([0, 2, 4], [3])
    with pytest.raises(ValueError, match='must be "last", "all" or numbers'):
        choose_steps([0, 2, 4], "first")
