"""What an adapter costs beside PEFT's LoRA: one layer, a whole training step, its initialisation.

All cases of a table run in this process and take turns, in one order and then backwards, after one
untimed round. A ratio is that of the medians; in brackets the quartiles of the ratios within a
round. The published SORSA package runs beside ours: its layer alone, since the rest of it does not
import under Transformers 5. Matrices are random, of the sizes of SmolLM2-135M, unless its folder is
given.

    python -m tests.benchmarks.adapters                    # all of it: about 15 minutes, 2 cores
    python -m tests.benchmarks.adapters layer --ranks 64 --rounds 15
    OMP_NUM_THREADS=1 python -m tests.benchmarks.adapters step --clock cpu --model SMOLLM2
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import peft
import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from spectra.methods import (
    LoraXsConfig,
    LoraXsLinear,
    MiloraConfig,
    MiloraLinear,
    SorsaConfig,
    SorsaLinear,
    SvfConfig,
    SvfLinear,
    SvftConfig,
    SvftLinear,
    add_regularizer_gradient,
)
from tests.benchmarks.turns import CLOCKS, Case, in_turns, machine, medians, ratio
from tests.helpers import MODULES, gaussian
from tests.methods.test_sorsa import published

STEP_RANK = 64
GAMMA, MAX_LR = 5e-4, 3e-5
"""The paper's Table 2."""

Adapt = Callable[[nn.Module], nn.Module]
"""Adapts a model's q_proj and v_proj."""


def main() -> None:
    """Run the parts that are named on the command line; all by default."""
    parts = {"layer": layer, "step": step, "initialisation": initialisation}
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; default: all")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds a table")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time")
    parser.add_argument("--model", help="folder of SmolLM2-135M; a random one by default")
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 128], help="layer")
    parser.add_argument("--size", type=int, default=4096, help="layer: its inputs and outputs")
    parser.add_argument("--tokens", type=int, default=2048, help="layer")
    parser.add_argument("--batch", type=int, nargs=2, default=[4, 128], help="step: rows, tokens")
    options = parser.parse_args()
    disable_progress_bar()
    torch.manual_seed(0)
    print(machine())
    for name in options.parts or parts:
        if name not in parts:
            parser.error(f"no part {name!r}; there are {', '.join(parts)}")
        print(f"\n## {name}\n", flush=True)
        parts[name](options)


def layer(options: argparse.Namespace) -> None:
    """Time one linear layer, forward and backward, with a gradient for its input."""
    size, clock = options.size, CLOCKS[options.clock]
    base = nn.Linear(size, size, bias=False).requires_grad_(False)
    x = gaussian(options.tokens, size).float()[None].requires_grad_()
    gradient = gaussian(options.tokens, size, 1).float()[None] / size

    def run(adapted: nn.Module) -> list[float]:
        x.grad = None
        adapted.zero_grad()
        start = clock()
        y = adapted(x)
        middle = clock()
        y.backward(gradient)
        return [middle - start, clock() - middle]

    print(
        f"{size}×{size}, {options.tokens} tokens, float32, seconds by the {options.clock} clock\n"
    )
    print(
        "| layer | rank | forward s | backward s | beside LoRA's |\n| --- | --- | --- | --- | --- |"
    )
    for r in options.ranks:
        ours = filled(SorsaLinear(base, "default", SorsaConfig(r=r, init_weights=False)))
        theirs = published_layer(published(), ours, r)
        # Both must compute the same, or their times mean nothing; theirs rounds a residual.
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)
        milora = MiloraConfig(r=r, init_weights=False)
        lora_xs = LoraXsConfig(r=r, init_weights=False)
        layers = {
            "LoRA (PEFT)": lora_layer(base, r),
            "SORSA": ours,
            "SORSA, published": theirs,
            "MiLoRA": filled(MiloraLinear(base, "default", milora)),
            "LoRA-XS": filled(LoraXsLinear(base, "default", lora_xs)),
        }
        times = in_turns({name: partial(run, layers[name]) for name in layers}, options.rounds)
        report(times, rank=str(r))
    every = "all"  # singular vectors
    layers = {
        "LoRA (PEFT)": lora_layer(base, options.ranks[-1]),
        "SVF": filled(SvfLinear(base, "default", SvfConfig(init_weights=False))),
        "SVFT, plain": filled(SvftLinear(base, "default", SvftConfig(init_weights=False))),
        "SVFT, banded, 2": filled(
            SvftLinear(
                base,
                "default",
                SvftConfig(pattern="banded", off_diagonals=2, init_weights=False),
            )
        ),
    }
    times = in_turns({name: partial(run, layers[name]) for name in layers}, options.rounds)
    report(times, rank=every, first=str(options.ranks[-1]))


def step(options: argparse.Namespace) -> None:
    """Time a training step: forward, backward, the regularizer, AdamW."""
    model = load(options.model)
    r, clock = STEP_RANK, CLOCKS[options.clock]
    rows, length = options.batch
    generator = torch.Generator().manual_seed(0)
    sorsa = adapt(SorsaConfig(r=r), model)
    authors = published()
    regularize = partial(add_regularizer_gradient, gamma=GAMMA, max_lr=MAX_LR)
    sides: dict[str, tuple[nn.Module, Callable[[nn.Module], object] | None]] = {
        "LoRA (PEFT)": (adapt(lora_config(r), model), None),
        "SORSA, regularizer": (sorsa, regularize),
        "SORSA, no regularizer": (share(sorsa), None),
        "SORSA, published": (as_published(authors, sorsa, r), partial(published_step, authors)),
        "MiLoRA": (adapt(MiloraConfig(r=r), model), None),
        "LoRA-XS": (adapt(LoraXsConfig(r=r), model), None),
        "SVF": (adapt(SvfConfig(), model), None),
        "SVFT, plain": (adapt(SvftConfig(), model), None),
    }

    def case(side: nn.Module, regularizer: Callable[[nn.Module], object] | None) -> Case:
        trained = [p for p in side.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, MAX_LR)

        def run() -> list[float]:
            tokens = torch.randint(3, 1000, (rows, length), generator=generator)
            at = [clock()]
            side(input_ids=tokens, labels=tokens).loss.backward()
            at.append(clock())
            if regularizer is not None:
                regularizer(side)
            at.append(clock())
            optimizer.step()
            optimizer.zero_grad()
            at.append(clock())
            return [b - a for a, b in zip(at, at[1:], strict=False)]

        return run

    print(
        f"{rows}×{length} tokens, rank {r}, q_proj and v_proj, float32, milliseconds by the "
        f"{options.clock} clock\n"
    )
    print("| method | rank | forward, backward | regularizer | AdamW | beside LoRA's |")
    print("| --- |" + " --- |" * 5)
    cases = {name: case(*side) for name, side in sides.items()}
    report(in_turns(cases, options.rounds), rank=str(r), unit=1e3, digits=0)


def initialisation(options: argparse.Namespace) -> None:
    """Time ``get_peft_model`` on all 60 matrices."""
    model = load(options.model)
    r, clock = STEP_RANK, CLOCKS[options.clock]
    configs: dict[str, peft.PeftConfig] = {
        "PiSSA (PEFT), float32": lora_config(r, init_lora_weights="pissa"),
        "SORSA": SorsaConfig(r=r),
        "MiLoRA": MiloraConfig(r=r),
        "LoRA-XS": LoraXsConfig(r=r),
        "SVF": SvfConfig(),
    }

    def run(config: peft.PeftConfig) -> list[float]:
        fresh, config = share(model), copy.deepcopy(config)
        start = clock()
        adapt(config, fresh)
        return [clock() - start]

    print(f"rank {r}, ours in float64, seconds by the {options.clock} clock\n")
    print("| method | rank | 60 matrices | beside PiSSA's |\n| --- | --- | --- | --- |")
    cases = {name: partial(run, config) for name, config in configs.items()}
    report(in_turns(cases, options.rounds), rank=str(r))


def report(
    times: dict[str, list[list[float]]],
    rank: str,
    first: str | None = None,
    unit: float = 1.0,
    digits: int = 3,
) -> None:
    """Print a line of the table for every case; the first is what the others stand beside."""
    to = next(iter(times.values()))
    for name, taken in times.items():
        beside = "1" if taken is to else ratio(taken, to)
        shown = first if first is not None and taken is to else rank
        seconds = " | ".join(f"{unit * part:.{digits}f}" for part in medians(taken))
        print(f"| {name} | {shown} | {seconds} | {beside} |", flush=True)


def load(folder: str | None) -> nn.Module:
    """Return SmolLM2-135M in float32, or one of its shapes with random weights."""
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def share(model: nn.Module) -> nn.Module:
    """Return a copy with parameters of its own, frozen ones on the same memory."""
    kept = {
        id(p): nn.Parameter(p.detach(), requires_grad=False)
        for p in model.parameters()
        if not p.requires_grad or not isinstance(model, peft.PeftModel)
    }
    return copy.deepcopy(model, memo=kept)


def adapt(config: peft.PeftConfig, model: nn.Module) -> nn.Module:
    """Return a copy of the model with its q_proj and v_proj adapted."""
    config.target_modules = set(MODULES)  # type: ignore[attr-defined]
    return peft.get_peft_model(share(model), config)


def lora_config(r: int, **changes: Any) -> peft.LoraConfig:
    """LoRA of this rank with scaling 1."""
    return peft.LoraConfig(r=r, lora_alpha=r, **changes)


def lora_layer(base: nn.Linear, r: int) -> nn.Module:
    """PEFT's LoRA layer with scaling 1."""
    return filled(LoraLinear(base, "default", lora_config(r), r=r, lora_alpha=r))


def filled(adapted: nn.Module) -> Any:
    """Give an adapter random tensors: what they say does not matter to the time that they take."""
    for name, parameter in adapted.named_parameters():
        if "base_layer" not in name:
            m, n = parameter.shape if parameter.ndim == 2 else (1, len(parameter))
            parameter.data = gaussian(m, n).reshape(parameter.shape).float() / math.sqrt(m + n)
    for module in adapted.modules():
        for name, buffer in module._buffers.items():
            assert buffer is not None
            if buffer.is_floating_point():
                m, n = buffer.shape if buffer.ndim == 2 else (1, len(buffer))
                value = gaussian(m, n, 1).reshape(buffer.shape).float() / math.sqrt(m + n)
            else:
                value = torch.arange(len(buffer), dtype=buffer.dtype) % int(adapted.out_features)  # type: ignore[arg-type]
            module._buffers[name] = value
    return adapted


def published_layer(authors: ModuleType, ours: SorsaLinear, r: int) -> nn.Module:
    """The authors' layer with our trained factors, and the residual of our initial ones."""
    theirs = authors.Linear(ours.in_features, ours.out_features, r=r)
    u_0, s_0, vh_0 = (ours.get_buffer(f"sorsa_{part}0.default") for part in ("u", "s", "vh"))
    theirs.weight.data = ours.get_base_weight().detach() - (u_0 * s_0) @ vh_0
    theirs.sorsa_A.data = ours.sorsa_vh["default"].detach().clone()
    theirs.sorsa_S.data = ours.sorsa_s["default"].detach().clone()
    theirs.sorsa_B.data = ours.sorsa_u["default"].detach().clone()
    return theirs


def as_published(authors: ModuleType, sorsa: nn.Module, r: int) -> nn.Module:
    """Return a copy of an adapted model with the authors' layers."""
    model = share(sorsa)
    for path, ours in sorsa_layers(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, published_layer(authors, ours, r))
    return model


def sorsa_layers(model: nn.Module) -> Iterator[tuple[str, SorsaLinear]]:
    """Yield the SORSA layers and their paths."""
    yield from [(n, m) for n, m in model.named_modules() if isinstance(m, SorsaLinear)]


def published_step(authors: ModuleType, model: nn.Module) -> None:
    """Add the regularizer's gradient as the authors' trainer does."""
    (authors.calc_ortho(model) * (GAMMA / MAX_LR)).backward()


if __name__ == "__main__":
    main()
