"""Where a snapshot's numbers wait for the thread that writes them."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from spectra.recording.gathering import gathered, is_sharded
from spectra.recording.layers import Part
from spectra.recording.live_weights import Live
from spectra.recording.snapshot_files import SnapshotLayout

# While one is written, the next snapshot goes into the other. Of small snapshots more may wait: a
# disk that takes its time with each file is none that cannot keep up.
_LEAST_SLOTS = 2
_MOST_SLOTS = 64
_MOST_BYTES = 128 * 1024**2


class Slot:
    """Room for one snapshot, in the order of its file.

    Attributes
    ----------
    body : Tensor of shape (bytes,), uint8
        All of it.
    views : list of tuple of Part and Tensor
        Each part's place in it.
    """

    def __init__(self, layout: SnapshotLayout, pinned: bool) -> None:
        self.body = torch.empty(layout.nbytes, dtype=torch.uint8, pin_memory=pinned)
        self.views = layout.views(self.body)
        self._copied: list[Any] = []

    def mark(self, devices: Sequence[torch.device]) -> None:
        """Note that all copies are under way."""
        self._copied = []
        for device in devices:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            self._copied.append(event)

    def wait(self) -> None:
        """Wait until the copies have arrived."""
        for event in self._copied:
            event.synchronize()


class Staging:
    """The slots, and how they are filled.

    Parameters
    ----------
    layout : SnapshotLayout
        Of what is copied.
    """

    def __init__(self, layout: SnapshotLayout) -> None:
        self._layout = layout
        # A fused layer's parts are of one tensor, which is gathered once.
        self._places: dict[Live, list[int]] = {}
        for place, (_, part) in enumerate(self._layout.parts):
            self._places.setdefault(part.live, []).append(place)
        devices = {live().device for live in self._places}
        self._devices = [device for device in devices if device.type == "cuda"]
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._made = 0
        fitting = _MOST_BYTES // max(layout.nbytes, 1)
        self._most = min(max(fitting, _LEAST_SLOTS), _MOST_SLOTS)

    def take(self, seconds: float = 0.0) -> Slot | None:
        """Return a free slot, or None where there is none within so many seconds.

        Raises
        ------
        RuntimeError
            If there is no memory for it.
        """
        try:
            return self._free.get_nowait()
        except queue.Empty:
            pass
        if self._made < self._most:
            slot = Slot(self._layout, pinned=bool(self._devices))
            self._made += 1
            return slot
        try:
            return self._free.get(timeout=seconds) if seconds else None
        except queue.Empty:
            return None

    def give_back(self, slot: Slot) -> None:
        """Make a slot free again."""
        self._free.put(slot)

    @torch.no_grad()
    def fill(self, slot: Slot | None) -> Exception | None:
        """Copy all parts as they are now; return what went wrong, if something did.

        Every process goes through all of a sharded model's parts, with a slot or without.
        """
        problem: Exception | None = None
        for live, places in self._places.items():
            try:
                tensor = live()
                # Only into pinned memory, and not from a copy that is freed behind the GPU's back.
                later = bool(self._devices) and not is_sharded(tensor)
                with gathered(tensor) as whole:
                    for part, view in map(slot.views.__getitem__, places) if slot else ():
                        view.copy_(part.take(whole), non_blocking=later)
            except Exception as error:
                problem = problem or error
        if slot is not None and problem is None:
            slot.mark(self._devices)
        return problem


@torch.no_grad()
def on_cpu(parts: Sequence[Part], wanted: bool) -> Iterator[Tensor]:
    """Yield each part from the live model, contiguous on the CPU, one at a time.

    Every process goes through all of a sharded model's parts.

    Parameters
    ----------
    parts : sequence of Part
        Which ones.
    wanted : bool
        Whether this process wants the numbers; where not, it is given empty tensors.
    """
    for part in parts:
        with gathered(part.live()) as whole:
            yield part.take(whole).to("cpu").contiguous() if wanted else torch.empty(0)
