"""What a sweep's file asks for: methods × seeds × settings, each with its name and settings."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from spectra.store import Run, SweepRun
from spectra.training.methods import METHODS
from spectra.training.settings import PRESETS, TrainSettings, differences, preset

KEYS = (
    "model",
    "data",
    "out",
    "preset",
    "methods",
    "seeds",
    "settings",
    "grid",
    "per_method",
    "analyze",
    "held_out",
    "other_text",
)
"""The keys of a sweep's file."""

_REQUIRED = ("model", "data", "out", "methods")
# What is said elsewhere in the file, or by other names.
_ELSEWHERE = {
    "method": "methods",
    "seed": "seeds",
    "held_out": "held_out at the top",
    "other_text": "other_text at the top",
    "options": "the names of the method's own settings",
}
_LORAS = frozenset({"lora", "rslora", "dora", "olora", "pissa", "adalora"})
_REGULARIZED = frozenset({"sorsa"})
# Fields of TrainSettings that mean something to these methods only.
_MEANT_FOR = {
    "rank": METHODS.keys() - {"full-ft", "partial-ft", "svf", "svft", "lisa"},
    "alpha": _LORAS,
    "gamma": _REGULARIZED,
    "reduction": _REGULARIZED,
    "squared": _REGULARIZED,
    "clip_together": _REGULARIZED,
}
_SHORT = {"learning_rate": "lr"}
_DATA_FILES = {".jsonl", ".json", ".parquet"}
_LONGEST_VALUE = 40


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes
    ----------
    name : str
        Of its folder: the method, what else the file varies, and the seed.
    settings : TrainSettings
        Resolved.
    varies : mapping
        What the grid has, by field or by the method's own setting: this run's value of it.
    """

    name: str
    settings: TrainSettings
    varies: Mapping[str, Any]

    def as_row(self) -> SweepRun:
        """Return its row in ``sweep.json``, before it is begun."""
        return SweepRun(
            name=self.name,
            method=self.settings.method,
            seed=self.settings.seed,
            varies={k: list(v) if isinstance(v, tuple) else v for k, v in self.varies.items()},
            settings=self.settings.as_dict(),
        )


@dataclass(frozen=True)
class SweepPlan:
    """All that a sweep's file asks for.

    Attributes
    ----------
    asked : mapping
        The file's content.
    model, data : str
        As `spectra.training.trainer.train` takes them; files and folders with their whole path.
    out : Path
        Folder of the runs.
    analyze : bool
        Whether each run is analysed when it is trained.
    runs : tuple of PlannedRun
        In the order in which they are trained: seed after seed, so that there is soon one run of
        each kind.
    """

    asked: Mapping[str, Any]
    model: str
    data: str
    out: Path
    analyze: bool
    runs: tuple[PlannedRun, ...]


def read_sweep(file: Path | str) -> SweepPlan:
    """Read a sweep's file and resolve every run of it.

    Parameters
    ----------
    file : Path or str
        YAML with the keys `KEYS`. Paths in it start from its folder.

    Returns
    -------
    SweepPlan
        With at least one run.

    Raises
    ------
    FileNotFoundError
        If the file, or one that it names, is missing.
    ValueError
        For an unknown key, method or setting, a value that cannot be, or runs of the same name
        that `out` holds with other settings.
    """
    file = Path(file)
    try:
        asked = _read_yaml(file)
        return _planned(asked, file.resolve().parent)
    except (ValueError, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and not file.is_file():
            raise FileNotFoundError(f"{file} does not exist. Give a sweep's YAML file.") from error
        raise type(error)(f"{file}: {error}") from error


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        asked = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"is not valid YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(asked, dict):
        raise ValueError(f"must hold keys with values, got {asked!r}.")
    return asked


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's readers keep one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise ValueError(f"{twice[0]} is given twice.")
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def _planned(asked: dict[str, Any], folder: Path) -> SweepPlan:
    _refuse_unknown(asked, KEYS, "")
    for key in _REQUIRED:
        if asked.get(key) is None:
            raise ValueError(f"{key} is missing.")
    if asked.get("preset", PRESETS[0]) not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {asked['preset']!r}.")
    analyze = asked.get("analyze", True)
    if not isinstance(analyze, bool):
        raise ValueError(f"analyze must be true or false, got {analyze!r}.")
    out = folder / _text("out", asked["out"])
    model = _model(_text("model", asked["model"]), folder)
    data = _data(_text("data", asked["data"]), folder)
    runs = tuple(_named(_Combinations(asked, folder)))
    settled = _settled(runs, out, {"model": model, "data": data})
    return SweepPlan(asked, model, data, out, analyze, settled)


class _Combinations:
    """The settings of every run, in the order of training."""

    def __init__(self, asked: Mapping[str, Any], folder: Path) -> None:
        self._preset = asked.get("preset", PRESETS[0])
        self.methods = _list("methods", asked["methods"])
        for method in self.methods:
            if not isinstance(method, str) or method not in METHODS:
                raise ValueError(f"methods must be of {', '.join(METHODS)}, got {method!r}.")
        seeds = _list("seeds", asked.get("seeds", [TrainSettings.seed]))
        self.seeds = _distinct("seeds", [converted("seeds", seed, int) for seed in seeds])
        self._types = get_type_hints(TrainSettings)
        self._fixed = self._read("settings", asked.get("settings"), self.methods)
        for key in ("held_out", "other_text"):
            if asked.get(key) is not None:
                self._fixed[key] = str(_existing(key, folder / _text(key, asked[key])))
        # In an order of their own: that in the file shall not change a name.
        self._grid = {
            name: self._values(f"grid.{name}", name, values)
            for name, values in sorted(_mapping("grid", asked.get("grid")).items(), key=str)
        }
        if both := sorted(self._grid.keys() & self._fixed.keys()):
            raise ValueError(f"{both[0]} is both in settings and in grid.")
        own = _mapping("per_method", asked.get("per_method"))
        _refuse_unknown(own, self.methods, "per_method.")
        self._own = {
            method: self._read(f"per_method.{method}", given, [method])
            for method, given in own.items()
        }

    def __iter__(self) -> Iterator[tuple[TrainSettings, dict[str, Any], dict[str, Any]]]:
        """Yield settings, what was crossed of them, and what differs between the methods too."""
        for seed, method in itertools.product(self.seeds, self.methods):
            own = self._own.get(method, {})
            axes = {
                name: values
                for name, values in self._grid.items()
                if name not in own and means_something(name, method)
            }
            for point in itertools.product(*axes.values()):
                crossed = dict(zip(axes, point, strict=True))
                values = own | crossed
                varies = {name: values[name] for name in self._grid if name in values}
                yield self._settings(method, seed, own, crossed), crossed, varies

    def _settings(
        self, method: str, seed: int, own: dict[str, Any], crossed: dict[str, Any]
    ) -> TrainSettings:
        fixed = {n: v for n, v in self._fixed.items() if means_something(n, method)}
        given = fixed | own | crossed
        options = {n: given.pop(n) for n in METHODS[method].options if n in given}
        try:
            return preset(self._preset, method, seed=seed, options=options, **given)
        except ValueError as error:
            where = ", ".join([method, *(f"{n} {v}" for n, v in crossed.items())])
            raise ValueError(f"{where}: {error}") from error

    def _read(self, where: str, given: Any, methods: list[str]) -> dict[str, Any]:
        """Return fields and methods' own settings with their values, in their types."""
        found = {}
        for name, value in _mapping(where, given).items():
            found[name] = self._value(f"{where}.{name}", name, value, methods)
        return found

    def _values(self, where: str, name: str, values: Any) -> list[Any]:
        listed = _list(where, values)
        return _distinct(where, [self._value(where, name, v, self.methods) for v in listed])

    def _value(self, where: str, name: str, value: Any, methods: list[str]) -> Any:
        if name in _ELSEWHERE:
            raise ValueError(f"{where} is not for here; use {_ELSEWHERE[name]}.")
        of = [method for method in methods if name in METHODS[method].options]
        if name not in self._types and not of:
            own = sorted({option for method in methods for option in METHODS[method].options})
            known = [f.name for f in fields(TrainSettings) if f.name not in _ELSEWHERE]
            raise ValueError(f"{where} is no setting; there are {', '.join([*known, *own])}.")
        if not any(means_something(name, method) for method in methods):
            raise ValueError(f"{where} means nothing to {', '.join(methods)}.")
        kind = self._types[name] if name in self._types else type(METHODS[of[0]].options[name])
        return converted(where, value, kind)


def means_something(name: str, method: str) -> bool:
    """Whether a field, or a method's own setting, changes a run of the method."""
    if name in _MEANT_FOR:
        return method in _MEANT_FOR[name]
    return name in METHODS[method].options or name in TrainSettings.__dataclass_fields__


def converted(where: str, value: Any, kind: Any) -> Any:
    """Return a value of YAML as the type that is wanted; ``2e-4``, to YAML a text, is a number.

    Raises
    ------
    ValueError
        If it is none.
    """
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise ValueError(f"{where} must be one of {', '.join(get_args(kind))}, got {value!r}.")
    if kind is bool or kind is str:
        if isinstance(value, kind):
            return value
        expected = "true or false" if kind is bool else "a text"
        raise ValueError(f"{where} must be {expected}, got {value!r}.")
    if get_origin(kind) is tuple:
        names = [value] if isinstance(value, str) else value
        if isinstance(names, list) and names and all(isinstance(n, str) for n in names):
            return tuple(names)
        raise ValueError(f"{where} must be a list of names, got {value!r}.")
    if type(value) is int and kind is int:
        return value
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if kind is int and math.isfinite(number) and number == int(number):
        return int(number)
    if kind is float and math.isfinite(number):
        return number
    expected = "a whole number" if kind is int else "a number"
    raise ValueError(f"{where} must be {expected}, got {value!r}.")


def _named(combinations: _Combinations) -> Iterator[PlannedRun]:
    """Name each run by its method, all that the grid varies, and its seed.

    What is in the grid is in the name also where the grid has one value of it, so that a second
    one does not rename the first.
    """
    for settings, crossed, varies in combinations:
        parts = [settings.method, *(_part(n, v) for n, v in crossed.items())]
        yield PlannedRun("-".join([*parts, f"seed{settings.seed}"]), settings, varies)


def _part(name: str, value: Any) -> str:
    """Return what stands for a value in a folder's name; other values have other parts."""
    text = "+".join(value) if isinstance(value, tuple) else str(value)
    if isinstance(value, float) and value == int(value):
        text = str(int(value))
    clean = re.sub(r"[^\w.+-]", "_", text)
    if clean != text or len(clean) > _LONGEST_VALUE:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        clean = f"{clean[:_LONGEST_VALUE]}~{digest}"
    word = _SHORT.get(name, name.replace("_", "-"))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{word}{clean}" if number else f"{word}-{clean}"


def _settled(
    runs: tuple[PlannedRun, ...], out: Path, shared: dict[str, Any]
) -> tuple[PlannedRun, ...]:
    """Let runs that `out` holds already keep their names, also where the file has moved on."""
    held = {path.parent.name: _held_settings(path.parent) for path in out.glob("*/run.json")}
    names = {str(settings): name for name, settings in held.items()}
    settled = []
    for run in runs:
        settings = run.settings.as_dict() | shared
        name = names.get(str(settings), run.name)
        before = held.get(name)
        if before and (listed := differences(before, settings)):
            raise ValueError(
                f"{out / name} is there with other settings: {listed}. Choose another out, or "
                "delete that run."
            )
        settled.append(PlannedRun(name, run.settings, run.varies))
    twice = [name for name, n in Counter(run.name for run in settled).items() if n > 1]
    if twice:
        raise ValueError(f"Two runs would both be called {twice[0]}.")
    return tuple(settled)


def _held_settings(folder: Path) -> dict[str, Any]:
    """Return what a run was set to, with its model and data."""
    stored = Run(folder).read_settings().get("settings", {})
    known = [*(f.name for f in fields(TrainSettings)), "model", "data"]
    return {key: stored[key] for key in known if key in stored}


def _model(text: str, folder: Path) -> str:
    path = folder / text
    if path.is_dir():
        return str(path.resolve())
    if Path(text).is_absolute() or text.startswith("."):
        raise FileNotFoundError(f"model {path} is not a folder.")
    return text  # an id of the hub


def _data(text: str, folder: Path) -> str:
    path = folder / text
    if path.suffix in _DATA_FILES:
        return str(_existing("data", path))
    return text


def _existing(key: str, path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{key} {path} does not exist.")
    return path.resolve()


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} must be a text, got {value!r}.")
    return value


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key} must be a list such as [a, b], got {value!r}.")
    return _distinct(key, value)


def _distinct(key: str, values: list[Any]) -> list[Any]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{key} has {value!r} twice.")
    return values


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} must hold keys with values, got {value!r}.")
    return {str(name): found for name, found in value.items()}


def _refuse_unknown(given: Mapping[str, Any], known: Any, where: str) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{where}{key} is no key here; there are {', '.join(known)}.")
