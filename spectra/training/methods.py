"""The methods that are compared: what each one is, in one place. Needs neither torch nor PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """One method of the trainer; `spectra.training.adaptation` builds it.

    Attributes
    ----------
    name : str
        Of ``--method``.
    title : str
        What people call it.
    paper : str
        arXiv id of what it is described in; empty where there is no such thing.
    trains : str
        Trained parameters of one m×n matrix at rank r, with k = min(m, n), or in words.
        (d are SVFT's `off_diagonals`.)
    rewrites_base : bool
        Whether it subtracts a part of W_0 from the base that it trains on.
    trains_everything : bool
        Whether all parameters of the model are trained, and not `modules` alone.
    options : mapping
        The method's own settings and their defaults.
    """

    name: str
    title: str
    paper: str
    trains: str
    rewrites_base: bool = False
    trains_everything: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


SVFT_PATTERNS = ("plain", "banded", "random", "top-k")
"""What `SvftConfig` knows; here too, so that the settings are judged without PEFT."""

# Of SVFT's patterns that have some, the smallest of its paper's.
_OFF_DIAGONALS = 2
# Options that count steps or blocks; with 0 PEFT and GaLore would fail in the middle of a run.
_COUNTS = {"interval", "update_proj_gap", "active_layers"}
_SHARES = {"initial_share", "final_share"}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("full-ft", "full fine-tuning", "", "everything", trains_everything=True),
        Method("partial-ft", "partial fine-tuning", "", "m·n"),
        Method("lora", "LoRA", "2106.09685", "r·(m + n)"),
        Method("rslora", "rsLoRA", "2312.03732", "r·(m + n)"),
        Method("dora", "DoRA", "2402.09353", "r·(m + n) + m"),
        Method("olora", "OLoRA", "2406.01775", "r·(m + n)", rewrites_base=True),
        Method("pissa", "PiSSA", "2404.02948", "r·(m + n)", rewrites_base=True),
        # `rank` is the mean rank at the end; init_rank 0 stands for one and a half of it. The
        # shares are about those of the paper's runs (its Appendix), `orthogonal` is PEFT's.
        Method(
            "adalora",
            "AdaLoRA",
            "2303.10512",
            "R·(m + n + 1), R falls from 1.5 r to r on average",
            options={
                "init_rank": 0,
                "initial_share": 0.1,
                "final_share": 0.5,
                "interval": 1,
                "orthogonal": 0.5,
            },
        ),
        Method("sorsa", "SORSA", "2409.00055", "r·(m + n + 1)"),
        Method("sorsa-noreg", "SORSA without regularizer", "2409.00055", "r·(m + n + 1)"),
        Method("milora", "MiLoRA", "2406.09044", "r·(m + n)"),
        Method("svf", "SVF", "2501.06252", "k"),
        Method(
            "svft",
            "SVFT",
            "2405.19597",
            "k + d·(2·k - d - 1)",
            options={"pattern": "plain", "off_diagonals": 0},
        ),
        Method("lora-xs", "LoRA-XS", "2405.17604", "r²", options={"init_std": 0.0}),
        # Both are those of its authors' examples.
        Method(
            "galore",
            "GaLore",
            "2403.03507",
            "everything",
            trains_everything=True,
            options={"update_proj_gap": 200, "scale": 0.25},
        ),
        Method(
            "lisa",
            "LISA",
            "2403.17919",
            "everything, a few blocks at a time",
            trains_everything=True,
            options={"active_layers": 2, "interval": 20},
        ),
    )
}
"""Every method of the trainer, by name."""


def method_called(name: str) -> Method:
    """Return a method by its name.

    Raises
    ------
    ValueError
        If there is none.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]


def resolve_options(method: Method, given: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Return a method's own settings: the defaults, and over them what is given.

    Parameters
    ----------
    method : Method
        Whose.
    given : mapping
        Values of the defaults' types, or texts that stand for such.
    rank : int
        Of the run.

    Raises
    ------
    ValueError
        For an option that the method does not have, or a value of another type or that cannot be.
    """
    unknown = sorted(given.keys() - method.options.keys())
    if unknown:
        has = f"it has {', '.join(method.options)}" if method.options else "it has none"
        raise ValueError(f"{method.name} has no option {', '.join(unknown)}; {has}.")
    resolved = {
        name: _converted(name, given.get(name, default), type(default))
        for name, default in method.options.items()
    }
    for name in _COUNTS & resolved.keys():
        if resolved[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {resolved[name]}.")
    for name in _SHARES & resolved.keys():
        if not 0 <= resolved[name] < 1:
            raise ValueError(f"{name} must be in [0, 1), got {resolved[name]}.")
    if method.name == "adalora":
        _resolve_init_rank(resolved, rank)
    if method.name == "svft":
        _resolve_pattern(resolved)
    return resolved


def _resolve_init_rank(options: dict[str, Any], rank: int) -> None:
    options["init_rank"] = options["init_rank"] or -(-3 * rank // 2)
    if options["init_rank"] <= rank:
        raise ValueError(
            f"init_rank must be above the final mean rank {rank}, got {options['init_rank']}."
        )


def _resolve_pattern(options: dict[str, Any]) -> None:
    pattern = options["pattern"]
    if pattern not in SVFT_PATTERNS:
        raise ValueError(f"pattern must be one of {', '.join(SVFT_PATTERNS)}, got {pattern!r}.")
    if pattern != "plain":
        options["off_diagonals"] = options["off_diagonals"] or _OFF_DIAGONALS
    if (pattern == "plain") != (options["off_diagonals"] == 0) or options["off_diagonals"] < 0:
        raise ValueError(
            "off_diagonals must be 0 for the plain pattern and at least 1 for any other, got "
            f"{options['off_diagonals']} for {pattern!r}."
        )


def _converted(name: str, value: Any, kind: type) -> Any:
    try:
        converted = kind(value)
        if converted == value or isinstance(value, str):
            return converted
    except (TypeError, ValueError):
        pass
    words = {int: "a whole number", float: "a number", str: "a text"}
    raise ValueError(f"{name} must be {words[kind]}, got {value!r}.")
