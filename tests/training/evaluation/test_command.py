"""``spectra evaluate`` on runs, models and adapters."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from spectra.cli import main
from spectra.recording import Recorder
from spectra.store import Run
from spectra.training.evaluation import folders, gsm8k, runs
from tests.helpers import lora, tiny_llama, tiny_model_folder, train_steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a run of four steps on it, its adapter, problems and text."""
    root = tmp_path_factory.mktemp("command")
    tiny_model_folder(root / "base")
    model = lora(tiny_llama())
    recorder = Recorder(root / "run", every=2, base=str(root / "base"))
    with recorder.attach(model):
        for step, loss in train_steps(model, 1, 4):
            recorder.step(step, loss=loss)
    model.save_pretrained(root / "adapter")
    rows = [{"question": "the old river", "answer": f"a bird #### {i}"} for i in range(4)]
    (root / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "other.txt").write_text("the old river sings of a small bird and its song")
    return root


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every problem is answered 1."""

    def respond(model: Any, tokenizer: Any, prompts: list[Any], length: int) -> list[str]:
        return ["#### 1"] * len(prompts)

    monkeypatch.setattr(gsm8k, "respond", respond)


def test_perplexity_of_a_run_is_printed_and_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(folder / "run"), "--task", "perplexity"]
    files = ["--other-text", str(folder / "other.txt")]
    assert main([*command, *files]) == 0
    out = capsys.readouterr().out
    values = Run(folder / "run").read_training().set_index("step")["perplexity_other"].dropna()
    assert values.index.tolist() == [0, 2, 4]
    for step, value in values.items():
        assert re.search(rf"^ *{step} +{value:.4f}$", out, flags=re.MULTILINE)
    assert main(command) == 1
    assert "trained without held-out data. Give --held-out" in capsys.readouterr().err


def test_gsm8k_of_a_run_is_printed_with_its_standard_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(folder / "run"), "--task", "gsm8k", "--steps", "0,4"]
    assert main([*command, "--data", str(folder / "problems.jsonl")]) == 0
    out = capsys.readouterr().out
    for step in (0, 4):
        assert f"step {step}: 1 of 4 = 25.0% ± 21.7% (binomial standard error)" in out
    assert (folder / "run" / "evaluation" / "gsm8k-step-4.jsonl").is_file()


@pytest.mark.parametrize("name", ["base", "adapter"])
def test_models_and_adapters_are_evaluated_without_a_run(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(folder / name), "--base", str(folder / "base")]
    out = tmp_path / "out.jsonl"
    problems = ["--task", "gsm8k", "--data", str(folder / "problems.jsonl"), "--limit", "2"]
    assert main([*command, *problems, "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("1 of 2 = 50.0%")
    assert len(out.read_text().splitlines()) == 2
    # On another base the adapter is another model, whose problems are solved anew.
    tiny_model_folder(tmp_path / "other", seed=1)
    before = out.read_text()
    elsewhere = [*command[:-1], str(tmp_path / "other")]
    assert main([*elsewhere, *problems, "--out", str(out)]) == 0
    assert (out.read_text() != before) == (name == "adapter")
    capsys.readouterr()
    text = ["--task", "perplexity", "--other-text", str(folder / "other.txt")]
    assert main([*command, *text]) == 0
    step = 0 if name == "base" else 4
    run = Run(folder / "run")
    runs.evaluate_perplexity(run, other_text=folder / "other.txt", progress=False)
    expected = run.read_training().set_index("step")["perplexity_other"][step]
    (found,) = re.findall(r"perplexity_other: (.*)", capsys.readouterr().out)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_lm_evals_results_are_printed_with_what_they_compare_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def stand(model: Any, tokenizer: Any, task: str, **options: Any) -> dict[str, Any]:
        asked.append({"task": task} | options)
        return {task: {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": task}}

    monkeypatch.setattr(runs, "lm_eval", stand)
    monkeypatch.setattr(folders, "lm_eval", stand)
    command = ["--task", "lm-eval:words", "--limit", "7", "--batch-size", "3"]
    assert main(["evaluate", str(folder / "run"), *command, "--steps", "all"]) == 0
    out = capsys.readouterr().out
    assert "step 2: words acc,none: 0.5000 ± 0.1000\n" in out and "lm-eval's own" in out
    assert len(asked) == 3 and asked[0]["unsafe_code"] is False
    assert asked[1]["limit"] == 7 and asked[1]["batch_size"] == 3
    assert asked[2]["out"] == folder / "run" / "evaluation" / "lm-eval-words-step-4.json"
    assert main(["evaluate", str(folder / "base"), *command, "--unsafe-code"]) == 0
    assert capsys.readouterr().out.startswith("words acc,none: 0.5000 ± 0.1000\n")
    assert asked[3]["unsafe_code"] is True and asked[3]["out"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run", "--task", "mmlu"], "--task must be perplexity, gsm8k or lm-eval:NAME"),
        (["run", "--task", "gsm8k"], "gsm8k needs --data FILE"),
        (["base", "--task", "perplexity"], "needs --held-out FILE, --other-text FILE, or both"),
        (["nowhere", "--task", "perplexity", "--other-text", "OTHER"], "'.*nowhere' is neither"),
        (["run", "--task", "gsm8k", "--data", "DATA", "--steps", "3"], "Step 3 cannot be"),
        (["run", "--task", "perplexity", "--other-text", "gone.txt"], "gone.txt does not exist"),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_line(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"OTHER": str(folder / "other.txt"), "DATA": str(folder / "problems.jsonl")}
    path, *rest = (given.get(option, option) for option in options)
    assert main(["evaluate", str(folder / path), *rest]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
