"""What settings mean, held to PEFT's own reading of them."""

from __future__ import annotations

from typing import Any

import peft
import pytest
from peft.utils.other import get_pattern_key

from checkpoints_index.adapter_methods import METHODS, check_settings, method_name, scaling
from spectra.methods import SorsaConfig

PATHS = [
    f"{stack}.{layer}.{module}"
    for stack in ("model.layers", "encoder.layer", "layers")
    for layer in (0, 1, 11)
    for module in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "q_proj")
]
PATTERNS = [
    {"q_proj": 2, "self_attn.q_proj": 3},
    {"self_attn.q_proj": 3, "q_proj": 2},
    {"proj": 2, "_proj": 3, "[qk]_proj": 5},
    {r"model\.layers\.1\..*q_proj": 2, "layers.1.self_attn.q_proj": 3},
    {r"^layers\.[01]\.(self_attn|mlp)\.\w+": 7},
    {"model.layers.1": 2, "": 3},
    {},
]


@pytest.mark.parametrize("patterns", PATTERNS)
@pytest.mark.parametrize("path", PATHS)
def test_patterns_are_matched_as_by_peft(patterns: dict[str, int], path: str) -> None:
    expected = patterns.get(get_pattern_key(list(patterns), path), 16) / 4
    settings = {"peft_type": "LORA", "lora_alpha": 16, "alpha_pattern": patterns}
    check_settings(settings)
    assert scaling(settings, path, 4) == expected


def test_every_method_is_pefts_with_its_prefix() -> None:
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    assert SorsaConfig(r=1).peft_type == "SORSA"
    prefixes = {str(getattr(k, "value", k)): p for k, p in PEFT_TYPE_TO_PREFIX_MAPPING.items()}
    for kind, method in METHODS.items():
        # PEFT's prefix of VeRA leaves out the shared projections.
        assert prefixes[kind].startswith(method.prefix)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"peft_type": "LORA"}, "lora"),
        ({"peft_type": "LORA", "init_lora_weights": True}, "lora"),
        ({"peft_type": "LORA", "init_lora_weights": "eva"}, "lora"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa_niter_16"}, "pissa"),
        ({"peft_type": "LORA", "init_lora_weights": "OLoRA"}, "olora"),
        ({"peft_type": "LORA", "use_dora": True}, "dora"),
        ({"peft_type": "LOHA", "use_dora": True}, "loha"),
    ],
)
def test_variants_go_by_their_own_names(settings: dict[str, Any], name: str) -> None:
    assert method_name(settings) == name


def test_all_of_pefts_loras_are_known() -> None:
    """A start that PEFT adds may rewrite the base; this list is to be gone through then."""
    from typing import get_args, get_type_hints

    hint = get_type_hints(peft.LoraConfig)["init_lora_weights"]
    named = {n for a in get_args(hint) for n in get_args(a)} | set(get_args(hint)) - {bool}
    known = {
        "gaussian",
        "eva",
        "olora",
        "pissa",
        "pissa_niter_[number of iters]",
        "corda",
        "loftq",
        "orthogonal",
        "mica",
    }
    assert {name for name in named if isinstance(name, str)} <= known
