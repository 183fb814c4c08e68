"""Which runs belong together: repetitions with other seeds, and pairs that a theorem is about."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spectra.store.run import Run, run_names

# Settings in which repetitions may differ: what the draw of random numbers is, where things lie,
# and how often the training is looked at.
_SEEDS = ("seed", "data_seed", "random_seed")
_APART = frozenset(
    {*_SEEDS, "out", "output_dir", "logging_dir", "run_name"}
    | {"every", "save_every", "held_out", "other_text"}
)
_SHORT = {"learning_rate": "lr"}
# In a label; what more differs is told apart by the first run's name.
_MOST_PARTS = 4
# In which SORSA with its regularizer and without it may differ: the tables of the paper give the
# two other learning rates.
_OF_THE_REGULARIZER = frozenset(
    {"method", "gamma", "learning_rate", "reduction", "squared", "clip_together"}
)


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seed only.

    Attributes
    ----------
    label : str
        The method, and what tells this group from others of that method; no two groups of one
        call share it.
    method : str
    runs : tuple of Run
    names : tuple of str
        What `read_runs` calls them in the column ``run``.
    seeds : tuple of int or None
        Of each run; None where none is recorded.
    varies : mapping
        The settings by which it differs from other groups of its method.
    problem : str
        Why its one run could not be read; empty where it could.
    """

    label: str
    method: str
    runs: tuple[Run, ...]
    names: tuple[str, ...]
    seeds: tuple[int | None, ...]
    varies: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class _Described:
    """A run with what decides its group; `settings` is None where nothing is recorded."""

    run: Run
    name: str
    method: str = "unknown"
    seed: int | None = None
    settings: Mapping[str, Any] | None = None
    problem: str = ""


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """Return the runs in groups whose members differ in their seed only.

    Two runs are of one group if method, base model and all recorded hyperparameters agree, apart
    from seeds, folders, and how often and on what the run is recorded and evaluated. A run
    without recorded hyperparameters is a group of its own, since nobody knows what it may be
    averaged with; so is one that cannot be read.

    Parameters
    ----------
    runs : sequence of Run
        In any order; groups are in the order of their first runs.

    Returns
    -------
    list of RunGroup
        Every run is in one of them. A run whose ``run.json`` cannot be read is a group whose
        `problem` says why; nothing is raised.
    """
    found: dict[Hashable, list[_Described]] = {}
    for number, one in enumerate(_describe(runs)):
        found.setdefault(_key(one) or number, []).append(one)
    of_method: dict[str, list[_Described]] = {}
    for members in found.values():
        of_method.setdefault(members[0].method, []).append(members[0])
    varying = {method: _varying(firsts) for method, firsts in of_method.items()}
    groups = []
    for members in found.values():
        first = members[0]
        varies = {k: v for k, v in _settings(first).items() if k in varying[first.method]}
        groups.append(
            RunGroup(
                label=_label(first, varies, alone=len(of_method[first.method]) == 1),
                method=first.method,
                runs=tuple(m.run for m in members),
                names=tuple(m.name for m in members),
                seeds=tuple(m.seed for m in members),
                varies=varies,
                problem=first.problem,
            )
        )
    return _apart(groups)


def group_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Return the label of each run's group by the run's name: the ``groups`` of the figures.

    Parameters
    ----------
    runs : sequence of Run
        As given to `read_runs`, so that the names agree.
    """
    return {name: group.label for group in group_runs(runs) for name in group.names}


def regularized_pairs(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return pairs of SORSA runs, with the regularizer and without: those of Theorem 5.

    The two of a pair have the same seed and settings; only what concerns the regularizer may
    differ, and the learning rate, for which the paper's tables have another value there. One
    whose learning rate agrees is preferred.

    Parameters
    ----------
    runs : sequence of Run
        Others than SORSA's, and those without recorded hyperparameters, are passed over.

    Returns
    -------
    list of (str, str)
        Names of the regularized and the unregularized run, as `read_runs` calls them, in the
        order of the former. An unregularized run may be in several.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Theorem 5.
    """
    sorsa = [d for d in _describe(runs) if d.method.startswith("sorsa") and d.settings is not None]
    plain = [d for d in sorsa if not _gamma(d)]
    pairs = []
    for one in sorsa:
        partners = [p for p in plain if _pair_key(p) == _pair_key(one)]
        if _gamma(one) and partners:
            rate = _settings(one).get("learning_rate")
            partners.sort(key=lambda p: _settings(p).get("learning_rate") != rate)
            pairs.append((one.name, partners[0].name))
    return pairs


def _describe(runs: Sequence[Run]) -> Iterator[_Described]:
    for run, name in zip(runs, run_names(runs), strict=True):
        try:
            stored = run.read_settings()
        except (OSError, ValueError) as error:
            yield _Described(run, name, problem=str(error))
            continue
        method = str(stored.get("method", "unknown"))
        settings = stored.get("settings")
        if not isinstance(settings, Mapping) or not settings:
            yield _Described(run, name, method)
            continue
        base = stored.get("base")
        flat = _flat({"base": base.get("name") if isinstance(base, Mapping) else base, **settings})
        seeds = [flat[key] for key in _SEEDS if isinstance(flat.get(key), int)]
        kept = {k: v for k, v in flat.items() if k not in _APART}
        yield _Described(run, name, method, seeds[0] if seeds else None, kept)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings, such as a method's ``options``, beside the others."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = _flat(value) if isinstance(value, Mapping) else {str(key): value}
        found |= {k if k not in found else f"{key}.{k}": v for k, v in inner.items()}
    return found


def _key(one: _Described) -> Hashable:
    if one.settings is None:
        return None
    return one.method, json.dumps(one.settings, sort_keys=True, default=str)


def _pair_key(one: _Described) -> str:
    kept = {k: v for k, v in _settings(one).items() if k not in _OF_THE_REGULARIZER}
    return json.dumps([one.seed, kept], sort_keys=True, default=str)


def _gamma(one: _Described) -> float:
    gamma = _settings(one).get("gamma", 0.0)
    return float(gamma) if isinstance(gamma, int | float) else 0.0


def _settings(one: _Described) -> Mapping[str, Any]:
    return one.settings or {}


def _varying(groups: Sequence[_Described]) -> set[str]:
    """Return the settings in which groups of one method differ."""
    known = [one.settings for one in groups if one.settings is not None]
    values: dict[str, set[str]] = {}
    for settings in known:
        for key, value in settings.items():
            values.setdefault(key, set()).add(json.dumps(value, sort_keys=True, default=str))
    varying = {
        key for key, of_key in values.items() if len(of_key) > 1 or any(key not in s for s in known)
    }
    # α that follows the rank says nothing that the rank does not.
    if "rank" in varying and all(s.get("alpha") == s.get("rank") for s in known):
        varying.discard("alpha")
    return varying


def _label(one: _Described, varies: Mapping[str, Any], alone: bool) -> str:
    if one.problem or one.method == "unknown":
        return one.name
    if one.settings is None:
        return one.method if alone else f"{one.method} · {one.name}"
    parts = [f"{_SHORT.get(k, k.replace('_', ' '))} {_text(v)}" for k, v in sorted(varies.items())]
    return " · ".join([one.method, *parts[:_MOST_PARTS]])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _apart(groups: list[RunGroup]) -> list[RunGroup]:
    """Name the first run too where a label alone would stand for several groups."""
    labels = [group.label for group in groups]
    found = [
        replace(g, label=f"{g.label} · {g.names[0]}") if labels.count(g.label) > 1 else g
        for g in groups
    ]
    labels = [group.label for group in found]
    return [
        replace(g, label=f"{g.label} ({n})") if labels.count(g.label) > 1 else g
        for n, g in enumerate(found, start=1)
    ]
