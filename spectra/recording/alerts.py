"""Alerts: what of the drift, while a run is trained, is worth a warning or the run's end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checkpoints_index import matches
from spectra.recording.when import load_named
from spectra.store import DRIFT_QUANTITIES

logger = logging.getLogger(__name__)

# One matrix within a step: its layer and module.
_Place = tuple[int, str]


@dataclass(frozen=True)
class Alert:
    """A limit on a column of drift, for every matrix, or a test of the user's own.

    Where a number is missing (null, NaN) nothing is raised; an infinite one counts.

    Parameters
    ----------
    column : str or callable
        A column of drift, such as ``"kappa"``. Or a function that takes a step's rows as a
        DataFrame and returns a message or None; also by name, as ``"module:function"``. It is
        called on a thread of ours.
    above, below : float, optional
        Raise when a matrix comes to lie beyond; as long as it stays there, only once.
    factor : float, optional
        Raise when a value is more than so many times that of the same matrix at the analysed
        step before; with a factor less than 1, when it falls below that share.
    modules : sequence of str, optional
        Names or globs of the modules that count; all by default.
    stop : bool
        Whether to ask the trainer to end, beside the warning.

    Raises
    ------
    ValueError
        If the column is unknown, no limit is given, or a limit is no number.

    Examples
    --------
    >>> Alert("ortho_u", above=0.1, stop=True).column
    'ortho_u'
    """

    column: str | Callable[[Any], str | None]
    above: float | None = None
    below: float | None = None
    factor: float | None = None
    modules: Sequence[str] | None = None
    stop: bool = False

    def __post_init__(self) -> None:
        limits = [name for name in ("above", "below", "factor") if getattr(self, name) is not None]
        for name in limits:
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if isinstance(self.modules, str):
            object.__setattr__(self, "modules", (self.modules,))
        if isinstance(self.column, str) and ":" in self.column:
            object.__setattr__(self, "column", load_named(self.column, "column"))
        if callable(self.column):
            if limits or self.modules is not None:
                raise ValueError(
                    f"An alert that is a function takes no {', '.join(limits or ['modules'])}; it "
                    "sees all rows and judges by itself."
                )
        elif self.column not in DRIFT_QUANTITIES:
            raise ValueError(
                f"column must be one of {', '.join(DRIFT_QUANTITIES)}, or a function as "
                f'"module:function"; got {self.column!r}.'
            )
        elif not limits:
            raise ValueError(f"The alert on {self.column} needs a limit: above, below or factor.")
        if self.factor is not None and not (self.factor > 0 and self.factor != 1):
            raise ValueError(f"factor must be positive and not 1, got {self.factor:g}.")

    @classmethod
    def of(cls, given: Any) -> Alert:
        """Make an alert of what a configuration holds: a dict, a function or its name."""
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            return cls(**given)
        return cls(given)


@dataclass(frozen=True)
class Raised:
    """An alert that was raised: by what, at which step, and whether training shall end."""

    step: int
    message: str
    stop: bool


class Alerts:
    """The alerts of one run, with what they remember from one step to the next.

    Parameters
    ----------
    given : sequence
        `Alert`, or what `Alert.of` takes; a single one may stand by itself.
    """

    def __init__(self, given: Any = ()) -> None:
        listed = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        self._judges = [_Judge(Alert.of(g)) for g in listed if g is not None]

    @property
    def may_stop(self) -> bool:
        """Whether one of them asks for the training's end."""
        return any(judge.alert.stop for judge in self._judges)

    def check(self, step: int, rows: Any) -> list[Raised]:
        """Return the alerts that the drift rows of `step`, a DataFrame, raise."""
        raised = []
        for judge in self._judges:
            message = judge.message(step, rows)
            if message is not None:
                raised.append(Raised(step, f"step {step}: {message}", judge.alert.stop))
        return raised


class _Judge:
    """One alert and the step before."""

    def __init__(self, alert: Alert) -> None:
        self.alert = alert
        self._beyond: set[_Place] = set()
        self._before: dict[_Place, float] = {}
        self._step = -1
        self._failed = False

    def message(self, step: int, rows: Any) -> str | None:
        if callable(self.alert.column):
            return self._ask(self.alert.column, rows)
        places = zip(rows["layer"].tolist(), rows["module"].tolist(), strict=True)
        values = {
            place: value
            for place, value in zip(places, rows[self.alert.column].tolist(), strict=True)
            if value is not None
            and not math.isnan(value)
            and matches(place[1], self.alert.modules, place[1])
        }
        found = self._beyond_limits(values)
        # Steps that are recorded again come after later ones.
        if not found and step > self._step:
            found = self._jumps(values)
        self._before, self._step = values, step
        return found

    def _beyond_limits(self, values: dict[_Place, float]) -> str | None:
        above, below = self.alert.above, self.alert.below
        high = {p for p, v in values.items() if above is not None and v > above}
        low = {p for p, v in values.items() if below is not None and v < below}
        new = (high | low) - self._beyond
        self._beyond = high | low
        if not new:
            return None
        if new & high:
            worst = max(new & high, key=lambda p: values[p])
            limit = f"above {above:g}"
        else:
            worst = min(new & low, key=lambda p: values[p])
            limit = f"below {below:g}"
        return self._says(worst, values, limit, len(self._beyond))

    def _jumps(self, values: dict[_Place, float]) -> str | None:
        factor = self.alert.factor
        if factor is None:
            return None
        # Nothing is a multiple of zero, and infinity has no multiples.
        before = {p: v for p, v in self._before.items() if v > 0 and math.isfinite(v)}
        ratios = {p: v / before[p] for p, v in values.items() if p in before}
        if factor > 1:
            jumped = {p: r for p, r in ratios.items() if r > factor}
            worst = max(jumped, key=lambda p: jumped[p], default=None)
        else:
            jumped = {p: r for p, r in ratios.items() if r < factor}
            worst = min(jumped, key=lambda p: jumped[p], default=None)
        if worst is None:
            return None
        than = f"{'more' if factor > 1 else 'less'} than {factor:g} times"
        limit = f"{than} its {before[worst]:.4g} at step {self._step}"
        return self._says(worst, values, limit, len(jumped))

    def _says(self, place: _Place, values: dict[_Place, float], limit: str, count: int) -> str:
        layer, module = place
        among = f" ({count} of {len(values)} matrices)" if len(values) > 1 else ""
        value = f"{values[place]:.4g}"
        return f"{self.alert.column} of layer {layer} {module} is {value}, {limit}{among}."

    def _ask(self, function: Callable[[Any], str | None], rows: Any) -> str | None:
        try:
            message = function(rows)
        except Exception as error:
            if not self._failed:
                self._failed = True
                name = getattr(function, "__qualname__", repr(function))
                logger.warning("The alert %s fails (%s); training goes on.", name, error)
                logger.debug("In the alert %s:", name, exc_info=True)
            return None
        return str(message) if message else None


def _number(name: str, value: Any) -> float:
    # YAML takes 1e4 for text.
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or math.isnan(number):
        raise ValueError(f"{name} must be a number, got {value!r}.")
    return number
