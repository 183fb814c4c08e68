"""Builders that the tests share: matrices with known spectra, tiny models, adapters and runs.

Everything is seeded and leaves torch's global random state as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MODULES = ("q_proj", "v_proj")
"""What most tests adapt and record; with grouped queries v_proj is rectangular."""

_WORDS = ("the", "old", "river", "sings", "of", "a", "small", "bird", "and", "its", "song")
_VOCABULARY = {"<pad>": 0, "<unk>": 1, "</s>": 2} | {w: 3 + i for i, w in enumerate(_WORDS)}


# Matrices.


def gaussian(m: int, n: int, seed: int = 0) -> Tensor:
    """Standard normal entries; shape (m, n), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=generator, dtype=torch.float64)


def orthonormal(d: int, k: int, seed: int = 0) -> Tensor:
    """Random orthonormal columns; shape (d, k), float64."""
    return torch.linalg.qr(gaussian(d, k, seed)).Q


def matrix_with_spectrum(s: Sequence[float] | Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    """U diag(s) Vᵀ with random orthonormal U and V: its singular values are `s`.

    At most min(m, n) values; the remaining ones are zero. Shape (m, n), float64.
    """
    values = torch.as_tensor(s, dtype=torch.float64)
    u, v = orthonormal(m, len(values), 2 * seed), orthonormal(n, len(values), 2 * seed + 1)
    return (u * values) @ v.T


def low_rank_factors(m: int, n: int, r: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Factors B (m, r) and A (r, n) of an update of rank r, float64."""
    return gaussian(m, r, 2 * seed) / m**0.5, gaussian(r, n, 2 * seed + 1) / n**0.5


# Models.


def tiny_llama(
    seed: int = 0, layers: int = 2, dtype: torch.dtype = torch.float32, dropout: float = 0.0
) -> Any:
    """Random LlamaForCausalLM: hidden size 32, q_proj (32, 32), v_proj (16, 32)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
        # Large enough that singular values are far apart and drift is far above rounding.
        initializer_range=0.2,
        tie_word_embeddings=False,
        attention_dropout=dropout,
    )
    with seeded(seed):
        return LlamaForCausalLM(config).to(dtype)  # type: ignore[arg-type]


def tiny_tokenizer() -> Any:
    """Fast word-level tokenizer of `tiny_llama`'s vocabulary, with pad, unk and eos."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(_VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )


def tiny_model_folder(
    folder: Path, seed: int = 0, layers: int = 2, dtype: torch.dtype = torch.float32
) -> Path:
    """Write `tiny_llama` and its tokenizer as a Hugging Face folder; returns `folder`."""
    tiny_llama(seed, layers, dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def quantised_folder(
    base: Path, folder: Path, options: Mapping[str, Any], shard: str = "5GB"
) -> Path:
    """Write the model of a folder as Transformers quantises it for bitsandbytes."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=BitsAndBytesConfig(**options),
        device_map="cpu",
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def token_rows(seed: int = 0, rows: int = 2, length: int = 12) -> Tensor:
    """Random token ids for `tiny_llama`; shape (rows, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, len(_VOCABULARY), (rows, length), generator=generator)


def lora(model: nn.Module, **changes: Any) -> Any:
    """`model` with a LoRA of rank 3 and alpha 8 on `MODULES`; B starts at zero."""
    from peft import LoraConfig, get_peft_model

    options: dict[str, Any] = {"r": 3, "lora_alpha": 8, "target_modules": list(MODULES)}
    with seeded(1):
        return get_peft_model(model, LoraConfig(**(options | changes)))


def sorsa(model: nn.Module, **changes: Any) -> Any:
    """`model` with a SORSA adapter of rank 3 on `MODULES`."""
    from peft import get_peft_model

    from spectra.methods import SorsaConfig

    options: dict[str, Any] = {"r": 3, "target_modules": list(MODULES)}
    with seeded(1):
        return get_peft_model(model, SorsaConfig(**(options | changes)))


def milora(model: nn.Module, **changes: Any) -> Any:
    """`model` with a MiLoRA adapter of rank 3 on `MODULES`."""
    return _tuned(model, "MiloraConfig", {"r": 3} | changes)


def svf(model: nn.Module, **changes: Any) -> Any:
    """`model` with an SVF adapter on `MODULES`."""
    return _tuned(model, "SvfConfig", changes)


def svft(model: nn.Module, **changes: Any) -> Any:
    """`model` with an SVFT adapter of a banded pattern on `MODULES`."""
    return _tuned(model, "SvftConfig", {"pattern": "banded", "off_diagonals": 2} | changes)


def lora_xs(model: nn.Module, **changes: Any) -> Any:
    """`model` with a LoRA-XS adapter of rank 3 on `MODULES`."""
    return _tuned(model, "LoraXsConfig", {"r": 3} | changes)


def _tuned(model: nn.Module, config: str, options: Mapping[str, Any]) -> Any:
    from peft import get_peft_model

    import spectra.methods

    with seeded(1):
        settings = {"target_modules": list(MODULES)} | dict(options)
        return get_peft_model(model, getattr(spectra.methods, config)(**settings))


def plain(model: nn.Module) -> Any:
    """`model` with only the weights of `MODULES` trainable: partial fine-tuning."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[-2] in MODULES)
    return model


@torch.no_grad()
def shake(model: nn.Module, seed: int = 0, size: float = 0.05) -> None:
    """Add Gaussian noise to everything trainable: a stand-in for training."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((size * noise).to(parameter.dtype))


def train_steps(model: nn.Module, first: int, last: int, lr: float = 0.05) -> Iterator[Any]:
    """Train on `token_rows` by plain SGD; yields (step, loss) after each optimizer step.

    A step's batch depends on its number alone and SGD has no state, so that steps 1 to n give
    the same weights in one go or resumed.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    for step in range(first, last + 1):
        rows = token_rows(seed=step)
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.sub_(lr * parameter.grad)
                    parameter.grad = None
        yield step, loss.detach()


def attention_weights(model: nn.Module, modules: Iterable[str] = MODULES) -> dict[str, Tensor]:
    """Copies of the weights of an unwrapped model's `modules`, by their layers' paths."""
    return {
        name.removesuffix(".weight"): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if name.split(".")[-2] in set(modules)
    }


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator within a block, and give its state back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
