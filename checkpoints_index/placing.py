"""Which step a candidate is, to which series it belongs, and what would be counted twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints_index.byte_files import name_of
from checkpoints_index.formats import ADAPTER_FORMAT, SNAPSHOT_FORMAT, SNAPSHOTS
from checkpoints_index.steps import (
    hub_commit,
    hub_name,
    hub_revisions,
    step_in_name,
    step_of_revisions,
)
from checkpoints_index.walking import Folder, Found


@dataclass(frozen=True)
class Placed:
    """A candidate in its place among the others.

    Attributes
    ----------
    found : Found
        The candidate.
    step : int, optional
        Its step, where something says it.
    series : str
        Name of what it is a step of: a run's or an output's folder relative to the root, or a
        repository of the hub.
    revisions : tuple of str
        Its branches and tags, in the hub's cache.
    is_named : bool
        Whether a name says the step. Where only ``trainer_state.json`` does, a folder may be one
        of a series or the end of its own.
    """

    found: Found
    step: int | None
    series: str
    revisions: tuple[str, ...] = ()
    is_named: bool = True


def place(root: Path, folders: Mapping[str, Folder]) -> list[Placed]:
    """Return what a walk found, each once, in order of path."""
    places = _Places(root)
    placed = [
        (where, places.place(where, folder, found))
        for where, folder in folders.items()
        for found in folder.found
    ]
    return list(_each_once(placed))


class _Places:
    """Steps and series of what lies below one root; paths are strings relative to it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._root_name = name_of(root)
        self._revisions: dict[Path, dict[str, list[str]]] = {}

    def place(self, where: str, folder: Folder, found: Found) -> Placed:
        """Find out which step of what a candidate in the folder `where` is."""
        path = found.candidate.path
        if found.is_file:
            step = step_in_name(path.stem)
            if found.candidate.format == SNAPSHOT_FORMAT:
                is_run = self._name(where) == SNAPSHOTS
                return Placed(found, step, self._label(_parent(where) if is_run else where))
            if step is not None:
                return Placed(found, step, self._label(where))
        elif folder.step is not None:
            is_named = step_in_name(self._name(where)) is not None
            return Placed(found, folder.step, self._label(_parent(where)), is_named=is_named)
        series = self._label(_join(where, path.name) if found.is_file else where)
        revisions: tuple[str, ...] = ()
        if commit := hub_commit(path):
            repository, snapshot = commit
            revisions = self._revisions_of(repository, snapshot.name)
            below = path.absolute().relative_to(snapshot).as_posix()
            series = hub_name(repository) + ("" if below == "." else f"/{below}")
            step = step_of_revisions(revisions)
            if step is not None:
                return Placed(found, step, series, revisions)
        for place in (where, *_parents(where)):
            step = step_in_name(self._name(place))
            if step is not None:
                # Several adapters of one step, checkpoint-5/first and checkpoint-5/second, are
                # two series.
                below = where[len(place) :].strip("/")
                return Placed(found, step, self._label(_join(_parent(place), below)), revisions)
        return Placed(found, None, series, revisions)

    def _revisions_of(self, repository: Path, commit: str) -> tuple[str, ...]:
        if repository not in self._revisions:
            self._revisions[repository] = hub_revisions(repository)
        return tuple(self._revisions[repository].get(commit, ()))

    def _name(self, place: str) -> str:
        return place.rpartition("/")[2] or self._root_name

    def _label(self, place: str) -> str:
        return place or self._root_name


def _parent(place: str) -> str:
    return place.rpartition("/")[0]


def _parents(place: str) -> Iterator[str]:
    """From the nearest to the root."""
    while place:
        place = _parent(place)
        yield place


def _join(place: str, below: str) -> str:
    return f"{place}/{below}" if place and below else place or below


def _each_once(placed: list[tuple[str, Placed]]) -> Iterator[Placed]:
    """Leave out parts of a checkpoint and what trainers write a second time at their top."""
    tops = {where: p for where, p in placed if not p.found.is_file}
    inner: dict[str, list[Placed]] = {}
    parts: set[int] = set()
    for where, mine in placed:
        for above in _parents(where):
            top = tops.get(above)
            if top is None:
                continue
            if _is_part(mine, where, top):
                parts.add(id(mine))
                break
            inner.setdefault(above, []).append(mine)
    for where, mine in placed:
        if id(mine) in parts:
            continue
        if where in inner and tops[where] is mine and not (mine.is_named and mine.step is not None):
            alike = [p for p in inner[where] if _is_adapter(p) == _is_adapter(mine)]
            steps = {p.step for p in alike} - {None}
            if steps and (mine.step is None or mine.step in steps):
                continue  # a trainer's last weights once more
            if steps:
                mine = replace(mine, series=alike[0].series)
        yield mine


def _is_part(mine: Placed, where: str, top: Placed) -> bool:
    """Whether something in a checkpoint's folder is of that checkpoint: an optimizer's copy."""
    if top.step is None or not top.is_named or (_is_adapter(mine) and _is_adapter(top)):
        return False
    own = mine.step is not None and step_in_name(where.rpartition("/")[2]) is not None
    return mine.step == top.step or not own


def _is_adapter(placed: Placed) -> bool:
    return placed.found.candidate.format == ADAPTER_FORMAT
