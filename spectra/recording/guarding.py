"""What keeps the hook from breaking a training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from checkpoints_index import CheckpointError

logger = logging.getLogger(__name__)


# What `Recorder.begin` raises when arguments, model and run do not fit together.
_REFUSALS = (ValueError, TypeError, RuntimeError, CheckpointError)


def guarded(hook: Callable[..., None], refusals: tuple[type[Exception], ...] = ()) -> Any:
    """Make of a callback's method one that never raises: each kind of error is logged, once.

    Parameters
    ----------
    hook : callable
        The method.
    refusals : tuple of exception types
        What it may raise all the same.
    """

    @functools.wraps(hook)
    def safe(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            hook(self, *args, **kwargs)
        except refusals:
            raise
        except Exception as error:
            told = self.__dict__.setdefault("_told", set())
            cause = (hook.__name__, type(error))
            if cause not in told:
                told.add(cause)
                logger.exception("Spectra failed in %s; training goes on.", hook.__name__)

    return safe


def guarded_begin(hook: Callable[..., None]) -> Any:
    """Guard the hook that begins to record: what the user can put right is said at once."""
    return guarded(hook, _REFUSALS)


class Reporter:
    """Hands summaries to trackers; one that raises is warned of once and tried again."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    def report(self, tracker: Any, method: str, *args: Any, **kwargs: Any) -> None:
        """Call the tracker's method, which writes a summary."""
        try:
            getattr(tracker, method)(*args, **kwargs)
        except Exception as error:
            name = type(tracker).__name__
            if name not in self._failed:
                self._failed.add(name)
                logger.warning("%s takes no drift summaries: %r; training goes on.", name, error)
                logger.debug("In %s:", name, exc_info=True)
