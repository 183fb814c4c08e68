"""Eight PEFT methods on one sharded bfloat16 model: times and memory of index and analyze.

Saves the model in shards of 100 MB, trains an adapter of each method for a few steps on random
tokens, and runs `spectra index` and `spectra analyze` on the folder, each in a process of its own
that tells its peak of resident memory. W_t of the first and the last layer is compared with
PEFT's own merge.

    python -m tests.benchmarks.index_zoo                           # a minute on 2 cores
    python -m tests.benchmarks.index_zoo --model SmolLM2-135M      # two minutes on 2 idle cores
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from checkpoints_index import CheckpointError, find_series, open_model

MODULES = ("q_proj", "v_proj")
STEPS = 3
RANK = 8
# The peak is the process's own: what the parent had before it started another does not count.
_COMMAND = """
from spectra.cli import main
code = main()
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
raise SystemExit(code)
"""
# Beside an adapter: what PEFT merges it to.
KEPT = "merged.kept"


def _lora(**options: Any) -> Callable[[], peft.PeftConfig]:
    return lambda: peft.LoraConfig(r=RANK, target_modules=list(MODULES), **options)


METHODS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": _lora(),
    "dora": _lora(use_dora=True),
    "pissa": _lora(init_lora_weights="pissa"),
    "olora": _lora(init_lora_weights="olora"),
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=RANK, target_r=RANK, total_step=100, target_modules=list(MODULES)
    ),
    "vera": lambda: peft.VeraConfig(r=RANK, target_modules=list(MODULES)),
    "lokr": lambda: peft.LoKrConfig(r=RANK, target_modules=list(MODULES)),
    "oft": lambda: peft.OFTConfig(oft_block_size=32, target_modules=list(MODULES)),
}


def main() -> None:
    """Make the folder, measure, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="folder; by default a random Llama of 30 MB")
    parser.add_argument("--zoo", type=Path, help="where to keep the folder for the next time")
    parser.add_argument("--compare-only", action="store_true", help="leave out analyze")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as temporary:
        zoo = options.zoo or Path(temporary, "zoo")
        if not (zoo / "base").exists():
            make_base(options.model, zoo / "base")
        for name in METHODS:
            if not (zoo / name / KEPT).exists():
                train(zoo, name)
        shards = len(list((zoo / "base").glob("*.safetensors")))
        print(f"{zoo / 'base'}: {shards} shards; {len(METHODS)} adapters of {STEPS} steps")
        environment = os.environ | {"SPECTRA_CACHE": str(Path(temporary, "cache"))}
        for name in ("first", "unchanged", "unchanged"):
            measure(f"index, {name}", ["index", str(zoo)], environment)
        largest = max(m.shape[0] * m.shape[1] * 8 for m in open_model(zoo / "base").matrices)
        print(f"largest matrix: {largest / 2**20:.1f} MiB in float64")
        compare(zoo)
        if not options.compare_only:
            out = Path(temporary, "runs")
            measure("analyze", ["analyze", str(zoo), "--out", str(out)], environment)


def make_base(model: Path | None, folder: Path) -> None:
    """Save the model in bfloat16 shards."""
    loaded: Any
    if model is None:
        config = LlamaConfig(
            vocab_size=1024,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=16,
            num_attention_heads=8,
            num_key_value_heads=4,
        )
        torch.manual_seed(0)
        loaded = LlamaForCausalLM(config)
        size = "5MB"
    else:
        loaded = AutoModelForCausalLM.from_pretrained(model)
        size = "100MB"
    loaded.to(torch.bfloat16).save_pretrained(folder, max_shard_size=size)


def train(zoo: Path, name: str) -> None:
    """Train one adapter for a few steps, and save it as its method does."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(zoo / "base", dtype=torch.float32)
    model = peft.get_peft_model(base, METHODS[name]())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    tokens = torch.randint(3, base.config.vocab_size, (2, 32))
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    model.save_pretrained(str(zoo / name / f"checkpoint-{STEPS}"))
    merged = model.merge_and_unload().state_dict()
    layers = base.config.num_hidden_layers
    kept = {
        name.removesuffix(".weight"): merged[name]
        for i in (0, layers - 1)
        for module in MODULES
        for name in [f"model.layers.{i}.self_attn.{module}.weight"]
    }
    torch.save(kept, zoo / name / KEPT)


def compare(zoo: Path) -> None:
    """Print how far W_t is from PEFT's own merge in float32, against the size of the update."""
    base = open_model(zoo / "base")
    matrices = {m.name: m for m in base.matrices}
    found = {s.name: s.checkpoints[0] for s in find_series(zoo) if s.is_adapter}
    if found.keys() != METHODS.keys():
        raise CheckpointError(f"{zoo} must hold {', '.join(METHODS)}, found {', '.join(found)}.")
    for name, adapter in found.items():
        bound = adapter.bind(base)
        expected = torch.load(zoo / name / KEPT, weights_only=True)
        errors, updates = [], []
        for matrix in (m for m in bound.matrices if m.name in expected):
            w_0 = base.read(matrices[matrix.name]).dense
            assert w_0 is not None
            w_t = bound.read(matrix).on(w_0).double()
            errors.append(float((w_t - expected[matrix.name].double()).abs().max()))
            updates.append(float((w_t - w_0.double()).abs().max()))
        assert len(errors) == len(expected)
        print(f"{name}: at most {max(errors):.1e} from PEFT's merge; update {max(updates):.1e}")


def measure(name: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Run `spectra` in a process of its own; print its time, peak of memory and last line."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    told = process.stdout.read().strip()
    assert process.wait() == 0, arguments
    seconds = time.perf_counter() - start
    *_, last, peak = told.splitlines()
    print(f"{name}: {seconds:.2f} s, peak {int(peak) // 1024} MiB; {last.strip()}", flush=True)


if __name__ == "__main__":
    main()
