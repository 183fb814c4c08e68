"""The bundled trainer: one run of one method, resumable, with the hook attached."""

from __future__ import annotations

import hashlib
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from spectra.recording.callback import SpectraCallback
from spectra.store import Run, whole_file
from spectra.store.files import TEMPORARY_PREFIX
from spectra.training.adalora import AdaLoraCallback
from spectra.training.adaptation import adapt, block_layers
from spectra.training.cost import CostCallback
from spectra.training.data import read_pairs, tokenize
from spectra.training.evaluation.callback import PerplexityCallback
from spectra.training.evaluation.texts import READERS
from spectra.training.galore import galore_allowed, galore_arguments
from spectra.training.lisa import LisaCallback
from spectra.training.methods import METHODS
from spectra.training.regularizer import SorsaRegularizerCallback
from spectra.training.residuals import initial_factors, save_as_lora
from spectra.training.settings import TrainSettings, differences

logger = logging.getLogger(__name__)

# Written into a checkpoint when all of it is on disk; one without it is half-written.
_COMPLETE = "complete"
_KEPT_CHECKPOINTS = 2
FINAL = "final"
"""Folder of the trained adapter or model in a run; it appears whole, when all is done."""
_UNFINISHED = ".final-unfinished"
# Beside the checkpoints: what a method that rewrites the base began with.
_INITIAL = "initial.safetensors"


def train(
    model: Path | str,
    data: Path | str | list[tuple[str, str]],
    out: Path | str,
    settings: TrainSettings,
    *,
    progress: bool = True,
) -> Run:
    """Fine-tune a model with one method and record it; continue where a killed run stopped.

    Parameters
    ----------
    model : Path or str
        Folder or hub id of a causal language model.
    data : Path, str or list of (question, answer)
        As `spectra.training.data.read_pairs` takes it, or the pairs themselves.
    out : Path or str
        The run's folder. A run that is there with the same settings is continued; a finished
        one is left as it is.
    settings : TrainSettings
        Method and hyperparameters.
    progress : bool
        Show a progress bar with the time left.

    Returns
    -------
    Run
        Finished; the trained adapter or model is in its ``final`` folder.

    Raises
    ------
    ValueError
        If `out` holds a run with other settings, or is no run and has what one would replace, or
        settings, model and data do not fit.
    OSError
        If the model cannot be loaded or the run's folder not be written.
    """
    run = Run(out)
    resolved = settings.as_dict() | {"model": str(model), "data": _name_of(data)}
    if not run.exists():
        _refuse_strangers(run)
    elif _continues(run, resolved) == "finished":
        logger.info("%s is finished already; nothing to do.", run.path)
        return run

    pairs = data if isinstance(data, list) else read_pairs(data)
    loaded, tokenizer = _load(model)
    examples = tokenize(pairs, tokenizer, settings.max_length)
    measured = {
        column: READERS[column](file, tokenizer, settings.max_length)
        for column, file in settings.measured_on.items()
    }
    transformers.set_seed(settings.seed)
    if settings.gradient_checkpointing:
        _checkpoint_activations(loaded)
    checkpoint = _last_complete(run)
    adapted, initial = _adapted(loaded, settings, run, continues=checkpoint is not None)

    recording = SpectraCallback(
        run.path,
        modules=settings.modules,
        every=settings.every,
        method=settings.method,
        base=str(model),
        settings=resolved,
        # A finished run does not come here; one whose end was lost is done again from before.
        overwrite=True,
    )
    cost = CostCallback()
    trainer = Trainer(
        model=adapted,
        args=_arguments(run, settings, loaded),
        train_dataset=examples,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        # First the cost, which counts what is trained, and the recording, which looks for it:
        # methods may freeze a part.
        callbacks=[cost, recording],
    )
    for callback in _method_callbacks(trainer, settings, recording):
        trainer.add_callback(callback)
    if measured:
        trainer.add_callback(
            PerplexityCallback(recording.recorder, measured, batch_size=settings.micro_batch_size)
        )
    # Last: when it is told, all others have saved what is theirs.
    trainer.add_callback(_MarkComplete())
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(transformers.PrinterCallback)
    if progress:
        trainer.add_callback(_Bar())
    is_galore = settings.method == "galore"
    with galore_allowed(trainer, settings) if is_galore else nullcontext():
        trainer.train(resume_from_checkpoint=checkpoint)

    unfinished = run.path / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    if initial:
        save_as_lora(adapted, initial, unfinished)
    else:
        trainer.save_model(str(unfinished))
    tokenizer.save_pretrained(unfinished)
    run.update_settings(cost=cost.measured)
    unfinished.rename(run.path / FINAL)
    # They are there to resume from; the run's result is its snapshots and final/.
    shutil.rmtree(run.checkpoints_path, ignore_errors=True)
    return run


def _adapted(
    model: PreTrainedModel, settings: TrainSettings, run: Run, continues: bool
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the model to train and, if its base was rewritten, what it began with."""
    if not METHODS[settings.method].rewrites_base:
        return adapt(model, settings), {}
    path = run.checkpoints_path / _INITIAL
    if continues:
        initial = load_file(path)
        return adapt(model, settings, initial), initial
    adapted = adapt(model, settings)
    initial = initial_factors(adapted)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        save_file(initial, temporary)
    return adapted, initial


def _method_callbacks(
    trainer: Trainer, settings: TrainSettings, recording: SpectraCallback
) -> list[TrainerCallback]:
    """Return what a method does between the steps."""
    log = recording.recorder.log
    if settings.method.startswith("sorsa"):
        return [
            SorsaRegularizerCallback(
                settings.gamma,
                reduction=settings.reduction,
                squared=settings.squared,
                max_grad_norm=settings.max_grad_norm if settings.clip_together else None,
                on_value=lambda step, loss: log(step, ortho_loss=loss),
            )
        ]
    if settings.method == "adalora":
        return [
            AdaLoraCallback(
                settings,
                parts=lambda: (
                    trainer.current_gradient_accumulation_steps
                    if trainer.model_accepts_loss_kwargs
                    else 1
                ),
                on_loss=lambda step, loss, ortho: log(step, loss=loss, ortho_loss=ortho),
            )
        ]
    if settings.method == "lisa":
        lisa = LisaCallback(seed=settings.seed, **settings.options)
        assert trainer.model is not None
        lisa.check(trainer.model)  # before there is a run that other options could not continue
        return [lisa]
    return []


def _arguments(run: Run, settings: TrainSettings, model: PreTrainedModel) -> TrainingArguments:
    modern_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and modern_gpu)
    optimizer: dict[str, Any] = {"optim": "adamw_torch"}
    if settings.method == "galore":
        optimizer = galore_arguments(settings, block_layers(model))
    return TrainingArguments(
        output_dir=str(run.checkpoints_path),
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=0.0 if settings.clip_together else settings.max_grad_norm,
        **optimizer,
        bf16=bfloat16,
        tf32=bfloat16 if modern_gpu else None,
        # Without an accelerator, bfloat16 is refused unless this is said.
        use_cpu=bfloat16 and not (torch.cuda.is_available() or torch.mps.is_available()),
        torch_compile=settings.torch_compile,
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=1,
        # Goes into the trainer's checkpoints, so that a run that is continued counts on.
        include_num_input_tokens_seen="non_padding",
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=_KEPT_CHECKPOINTS,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _continues(run: Run, resolved: dict[str, Any]) -> str:
    """Return the existing run's state, or refuse it if it was set to something else."""
    if listed := differences(run.read_settings().get("settings", {}), resolved):
        raise ValueError(
            f"{run.path} is a run with other settings: {listed}. Choose another --out."
        )
    return "finished" if (run.path / FINAL).is_dir() else "running"


def _refuse_strangers(run: Run) -> None:
    """Refuse a folder that is no run and has checkpoints, which a run would delete, or a result."""
    own = (_INITIAL, TEMPORARY_PREFIX)  # of a run that was killed before it was recorded
    found = [p for p in run.checkpoints_path.glob("*") if not p.name.startswith(own)]
    if (run.path / FINAL).exists():
        found.append(run.path / FINAL)
    if found:
        raise ValueError(
            f"{run.path} is no run, but has {found[0].relative_to(run.path)}, which a run would "
            "replace. Choose another --out."
        )


def _last_complete(run: Run) -> str | None:
    """Return the newest whole checkpoint that leaves steps to do; the others are deleted.

    From the last step's, Transformers would train one step too many. The one before it is kept
    too, and doing the steps between again gives the same result.
    """
    complete = {}
    for folder in run.checkpoints_path.glob("checkpoint-*"):
        if (folder / _COMPLETE).is_file() and not _is_last_step(folder):
            complete[int(folder.name.rsplit("-", 1)[1])] = folder
        else:
            shutil.rmtree(folder)
    if not complete:
        return None
    step = max(complete)
    logger.info("Continuing %s from step %d.", run.path, step)
    return str(complete[step])


def _is_last_step(folder: Path) -> bool:
    state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    return state.global_step >= state.max_steps


def _load(model: Path | str) -> tuple[PreTrainedModel, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{str(model)!r} is neither a folder with a causal language model and its tokenizer "
            f"nor a hub id that could be loaded ({reason})."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    loaded.config.use_cache = False
    return loaded, tokenizer


def _checkpoint_activations(model: PreTrainedModel) -> None:
    # Renamed in Transformers 5; here and not by the trainer's argument, which was renamed too.
    enable = "activation_checkpointing_enable"
    getattr(model, enable if hasattr(model, enable) else "gradient_checkpointing_enable")()
    # Where embeddings are frozen, nothing else would ask for gradients in front of a block.
    model.enable_input_require_grads()


def _name_of(data: Path | str | list[tuple[str, str]]) -> str:
    if not isinstance(data, list):
        return str(data)
    digest = hashlib.sha256(repr(data).encode()).hexdigest()[:12]
    return f"{len(data)} pairs, sha256 {digest}"


class _MarkComplete(TrainerCallback):
    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero and args.output_dir:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            with whole_file(folder / _COMPLETE) as temporary:
                temporary.write_text("")


class _Bar(ProgressCallback):
    """The progress bar, with the loss beside it instead of a line a step."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        bar: Any = self.training_bar
        if bar is not None and logs and "loss" in logs:
            bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
