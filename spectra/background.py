"""Work beside a training that must not notice it."""

from __future__ import annotations

import os
from contextlib import suppress

from threadpoolctl import threadpool_limits

_LOWEST = 19
_SINGLE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def go_to_background() -> None:
    """Give this process the lowest priority, one thread for arithmetic, and no accelerator.

    What it gets is the time that nothing else wants. For good: a process without rights cannot
    raise its priority again.
    """
    os.environ |= dict.fromkeys(_SINGLE_THREAD, "1")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with suppress(OSError, AttributeError):  # not on Windows
        os.nice(_LOWEST)
    with suppress(OSError, AttributeError):  # Linux only
        # Its reading and writing then have the lowest priority too.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Of libraries that were loaded before.
    threadpool_limits(1)
    import torch

    torch.set_num_threads(1)
