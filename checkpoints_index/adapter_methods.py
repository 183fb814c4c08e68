"""What methods call their tensors in PEFT's files, and what their settings mean for the scaling."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints_index.matrices import factors_fit

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One of PEFT's methods, or of this project's own.

    Attributes
    ----------
    prefix : str
        How the names of its tensors begin, after the path of the layer.
    factors : tuple of str
        Tensors that show the matrix's shape, the first with m rows, the last with n columns;
        every layer must have them. Empty where the files do not show it.
    start : tuple of str
        Such factors of what was taken from W_0, whose product is subtracted; likewise.
    low_rank : bool
        Whether the update is a product of factors; otherwise PEFT merges the layer.
    shared : bool
        Whether the tensors that all layers share depend on the largest layer's shape.
    ours : bool
        Whether the tuner is this project's, and knows the update itself.
    """

    prefix: str
    factors: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    low_rank: bool = False
    shared: bool = False
    ours: bool = False


METHODS: dict[str, Method] = {
    "LORA": Method("lora_", ("lora_B.weight", "lora_A.weight"), low_rank=True),
    "ADALORA": Method("lora_", ("lora_B", "lora_A"), low_rank=True),
    "SORSA": Method(
        "sorsa_",
        ("sorsa_u", "sorsa_s", "sorsa_vh"),
        ("sorsa_u0", "sorsa_s0", "sorsa_vh0"),
        low_rank=True,
        ours=True,
    ),
    "MILORA": Method(
        "milora_",
        ("milora_b", "milora_a"),
        ("milora_b0", "milora_a0"),
        low_rank=True,
        ours=True,
    ),
    "LORA_XS": Method(
        "lora_xs_",
        ("lora_xs_left", "lora_xs_core", "lora_xs_right"),
        low_rank=True,
        ours=True,
    ),
    "SVF": Method("svf_", ours=True),
    "SVFT": Method("svft_", ours=True),
    "VERA": Method("vera_", low_rank=True, shared=True),
    "LOHA": Method("hada_"),
    "LOKR": Method("lokr_"),
    "OFT": Method("oft_"),
    "BOFT": Method("boft_"),
    "IA3": Method("ia3_"),
    "HRA": Method("hra_"),
    "FOURIERFT": Method("fourierft_"),
    "MISS": Method("miss_"),
    "SHIRA": Method("shira_"),
    "RANDLORA": Method("randlora_", shared=True),
    "C3A": Method("c3a_"),
    "VBLORA": Method("vblora_"),
    "DELORA": Method("delora_"),
    "WAVEFT": Method("waveft_"),
    "GRALORA": Method("gralora_"),
    "HIRA": Method("hira_"),
    "GLORA": Method("glora_"),
    "DEFT": Method("deft_"),
    "PEANUT": Method("peanut_"),
}
"""The methods that are read, by PEFT's names: those that the tests hold to PEFT's own merge."""

POSITIONS = ("indices", "_rows", "_cols", "_pivot")
"""How the names of a method's tensors end that are positions, and no floats."""

BASE_REWRITING_LORA = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""LoRA initialisations that subtract the adapter's start from the stored base weight, so that
the base no longer holds W_0; by the beginnings of their names."""

# Of these, the start follows from W_0 alone and is the same in every run.
REPEATABLE = ("pissa", "olora")
# LoRA's variants without a low-rank update that PEFT can merge.
MERGED_VARIANTS = {"use_dora": "dora", "kasa_config": "kasa"}
# Settings under which a LoRA has no W_t, or one that is not had from W_0 and its own tensors.
UNREAD_LORA = (
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "monteclora_config",
    "velora_config",
)

# PEFT's own, for configurations that leave them out.
_DEFAULT_ALPHA = 8
_DEFAULT_INIT_R = 12
# What PEFT's AdaLoRA adds to the rank before it divides by it.
ADALORA_EPSILON = 1e-5
# Patterns are regular expressions, and come from a file: what could take exponential time, or
# a high power of the name's length, is not tried.
_LONGEST_PATTERN = 500
_COSTLY_PATTERN = re.compile(r"\)[*+?{]|(?:[*+}][^*+}]*){4,}")


def rewritten_base(settings: Settings) -> str | None:
    """Return the initialisation of a LoRA that rewrites the base, or ``None``."""
    initialisation = settings.get("init_lora_weights")
    if not isinstance(initialisation, str):
        return None
    name = initialisation.lower()
    return name if name.startswith(BASE_REWRITING_LORA) else None


def method_name(settings: Settings) -> str:
    """Return what a reader calls the method: LoRA's variants and starts by their own names."""
    kind = str(settings.get("peft_type"))
    if kind == "LORA":
        for setting, name in MERGED_VARIANTS.items():
            if settings.get(setting):
                return name
        start = rewritten_base(settings)
        if start is not None:
            return next(name for name in BASE_REWRITING_LORA if start.startswith(name))
    return kind.lower().replace("_", "-")


def shape_and_rank(
    settings: Settings, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[int, int], int | None]:
    """Return a layer's shape and its update's rank, as far as its tensors' shapes tell.

    Dimensions that they do not show are 0.

    Raises
    ------
    ValueError
        If a factor is missing, or factors do not fit.
    """
    kind = str(settings.get("peft_type"))
    method = METHODS[kind]
    if kind == "VERA":
        return _vera_shape_and_rank(shapes)
    if not method.factors:
        return (0, 0), None
    if any(name not in shapes for name in method.factors + method.start):
        raise ValueError("lacks a factor")
    factors = [shapes[name] for name in method.factors]
    start = [shapes[name] for name in method.start]
    if not _fit(kind, factors) or start not in ([], factors):
        raise ValueError("has factors that do not fit")
    if kind == "ADALORA" and shapes.get("lora_E") != (factors[0][1], 1):
        raise ValueError("lacks a factor, or has factors that do not fit")
    rank: int | None = factors[0][1]
    if start or rewritten_base(settings):
        # Trained and initial factors side by side.
        rank = 2 * factors[0][1]
    if any(settings.get(setting) for setting in MERGED_VARIANTS):
        rank = None
    return (factors[0][0], factors[-1][1]), rank


def _fit(kind: str, factors: list[tuple[int, ...]]) -> bool:
    if kind == "LORA_XS":
        left, core, right = factors
        return factors_fit([left, right]) and core == (right[0], right[0])
    return factors_fit(factors)


def _vera_shape_and_rank(
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[tuple[int, int], int | None]:
    lambda_b, lambda_d = shapes.get("vera_lambda_b"), shapes.get("vera_lambda_d")
    if lambda_b is None or lambda_d is None:
        raise ValueError("lacks a factor")
    if len(lambda_b) != 1 or len(lambda_d) != 1:
        raise ValueError("has factors that do not fit")
    return (lambda_b[0], 0), lambda_d[0]


def scaling(settings: Settings, path: str, rank: int) -> float:
    """Return what PEFT multiplies B A (of AdaLoRA: B diag(E) A) with.

    Parameters
    ----------
    settings : mapping
        The adapter's configuration.
    path : str
        The layer's, as the model that PEFT adapted calls it.
    rank : int
        Of the stored factors.

    Raises
    ------
    ValueError
        If a setting is no number, or a pattern is no harmless regular expression.
    """
    if settings.get("peft_type") == "ADALORA":
        alpha = _number(settings.get("lora_alpha", _DEFAULT_ALPHA), "lora_alpha")
        start = _number(settings.get("init_r", _DEFAULT_INIT_R), "init_r")
        return (alpha if alpha > 0 else float(rank)) / (start + ADALORA_EPSILON)
    patterns = _patterns(settings, "alpha_pattern")
    found = _matching(list(patterns), path)
    value = settings.get("lora_alpha", _DEFAULT_ALPHA) if found is None else patterns[found]
    alpha = _number(value, "lora_alpha")
    if rank == 0:
        return alpha
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def check_settings(settings: Settings) -> None:
    """Raise ValueError where `scaling` would for any layer, or PEFT should not see a pattern."""
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in _patterns(settings, name):
            _compiled(pattern)
    if isinstance(settings.get("feedforward_modules"), str):
        _compiled(settings["feedforward_modules"])
    if settings.get("peft_type") in ("LORA", "ADALORA"):
        scaling(settings, "", 1)
        for value in _patterns(settings, "alpha_pattern").values():
            _number(value, "alpha_pattern")


def _patterns(settings: Settings, name: str) -> Mapping[str, Any]:
    patterns = settings.get(name) or {}
    if not isinstance(patterns, Mapping):
        raise ValueError(f"{name} must map patterns to numbers, got {patterns!r}")
    return patterns


def _matching(patterns: list[str], path: str) -> str | None:
    # As peft.utils.get_pattern_key: the first pattern that fits the path's end.
    return next((p for p in patterns if _compiled(p).match(path)), None)


def _compiled(pattern: str) -> re.Pattern[str]:
    if len(pattern) > _LONGEST_PATTERN or _COSTLY_PATTERN.search(pattern):
        raise ValueError(f"the pattern {pattern[:80]!r} could take forever to match")
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise ValueError(f"{pattern!r} is no pattern ({error})") from error


def _number(value: object, name: str) -> float:
    try:
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise ValueError(f"{name} must be a number, got {value!r}")
