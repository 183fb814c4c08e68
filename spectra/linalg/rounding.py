"""What storing a matrix in few bits does to it: rounding, quantisation, and room for neither."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spectra.linalg.dense import as_float64

# Formats that are a torch dtype of the same name.
_FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
# Entries that a block of nf4, and one of GGUF's formats, share a scale with.
_NF4_BLOCK = 64
_GGUF_BLOCK = 32

# Errors of entries that were never rounded before are spread evenly over ± half a step, which is
# 0.58 half steps in the root mean square. Of de-quantised weights that were written as bfloat16
# it is 0.02 (4 bits) to 0.24 (8 bits); of weights read from this very format it is 0.
_STORED_BEFORE = 0.3
# The dither keeps off the middle between two steps: there float64 → float32 → bfloat16, which is
# how torch converts, may round differently from one step.
_INSIDE = 1 - 2.0**-10
_SEED = 0
_EXPONENT_BITS = 0x7FF << 52  # of a float64
_ROWS = 64


def rounded(w: Tensor, precision: str) -> Tensor:
    """Return what `w` is after it was stored in `precision` and read back.

    Parameters
    ----------
    w : Tensor of shape (m, n), any floating dtype
        The matrix; not changed.
    precision : str
        A torch dtype: ``"float64"``, ``"float32"``, ``"float16"``, ``"bfloat16"``,
        ``"float8_e4m3fn"``, ``"float8_e5m2"`` (the two of 8 bits as they are, without a scale).
        Or a quantisation: ``"int8"`` (each row by its largest magnitude, as in LLM.int8()),
        ``"nf4"`` (blocks of 64, QLoRA's 16 levels, without double quantisation), ``"q8_0"`` and
        ``"q4_0"`` (GGUF: blocks of 32 along rows, with a float16 scale).

    Returns
    -------
    Tensor of shape (m, n), float64
        Rounding it again changes nothing.

    Raises
    ------
    ValueError
        If the precision is unknown, an entry is too large for it, `w` has NaN or infinite
        entries, or its rows do not divide into the blocks of q8_0 or q4_0.

    Notes
    -----
    Scales are kept as bitsandbytes and llama.cpp keep them: float32 for int8 and nf4, float16
    for q8_0 and q4_0.

    References
    ----------
    Dettmers et al., LLM.int8(), arXiv:2208.07339; QLoRA, arXiv:2305.14314, Appendix E.
    llama.cpp, ``ggml-quants.c``.

    Examples
    --------
    >>> rounded(torch.tensor([[1.0, 1.01]]), "bfloat16")
    tensor([[1.0000, 1.0078]], dtype=torch.float64)
    """
    w = _checked(w, precision)
    if precision in _FLOATS:
        return _as_float(w, precision)
    return _fitting(w, _QUANTISED[precision](w)[0], precision)


def noise_sample(w: Tensor, precision: str) -> Tensor:
    """Return a matrix that nothing but storage in `precision` tells from `w`.

    Whoever reads weights in `precision` cannot know them better than to half a step of that
    format. What a metric gives between `w` and this matrix is therefore its noise floor: drift
    that storage alone could have made.

    Where `w` was computed in more digits than `precision` has, this is ``rounded(w, precision)``.
    But most weights that come to be analysed have been through the format before, as a base in
    bfloat16 has. Rounding them again changes nothing, which would put the floor at 0 as if they
    were exact. They are not: every matrix whose entries lie within half a step of theirs is
    stored as the very same bytes. Then one of those is returned, with each entry moved by a
    random amount within its half step. The root mean square of that is what rounding a matrix for
    the first time makes, too.

    Parameters
    ----------
    w : Tensor of shape (m, n), any floating dtype
        The matrix; not changed.
    precision : str
        As in `rounded`.

    Returns
    -------
    Tensor of shape (m, n), float64
        The same at every call. ``rounded`` makes the same matrix of it as of `w`.

    Raises
    ------
    ValueError
        As `rounded`.

    Notes
    -----
    Weights count as stored before where rounding moves them by less than 0.3 half steps in the
    root mean square, so that those which were de-quantised and then written as bfloat16 do: they
    are on their levels up to bfloat16's own rounding. Unrounded ones are moved by 0.58.

    Entries that set the scale of their row or block stay as they are, for with another scale the
    bytes would differ; where the two neighbours of a stored number are not equally far (powers
    of two, the levels of nf4), it moves by half the smaller distance. So the floor is rather too
    low than too high. For ``"float64"`` it is 0: this computation has no more digits than that.
    """
    w = _checked(w, precision)
    if precision in _FLOATS:
        value = _as_float(w, precision)
        room = _float_room(value, precision)
    else:
        value, room = _QUANTISED[precision](w)
        value = _fitting(w, value, precision)
    if _mean_square_move(w, value, room) > _STORED_BEFORE**2:
        return value
    generator = torch.Generator().manual_seed(_SEED)
    dither = torch.rand(w.shape, generator=generator, dtype=torch.float64)
    return dither.sub_(0.5).mul_(room).mul_(2 * _INSIDE).add_(value)


def normal_float_levels() -> Tensor:
    """Return the 16 levels of NormalFloat 4: quantiles of a normal distribution, scaled to 1.

    Eight on the positive side and seven on the negative, evenly spaced in probability between
    1/2 and 1 − δ, and 0 itself; δ is the mean of 1/30 and 1/32, so that no level is infinite.

    Returns
    -------
    Tensor of shape (16,), float64
        Ascending; the list in QLoRA's Appendix E to the digits of float32.

    References
    ----------
    Dettmers et al., QLoRA, arXiv:2305.14314, Section 3 and Appendix E.
    """
    last = 1 - (1 / 30 + 1 / 32) / 2
    positive = torch.special.ndtri(torch.linspace(0.5, last, 9, dtype=torch.float64))
    negative = -torch.special.ndtri(torch.linspace(0.5, last, 8, dtype=torch.float64))
    return torch.cat([negative.flip(0), positive[1:]]) / positive[-1]


def _checked(w: Tensor, precision: str) -> Tensor:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    return as_float64(w)


def _fitting(w: Tensor, value: Tensor, precision: str, largest: float | None = None) -> Tensor:
    low, high = torch.aminmax(w)
    fits = largest is None or max(-low.item(), high.item()) <= largest
    # The sum is finite only if all are, and needs no matrix of its own; it can overflow, too.
    if fits and (torch.isfinite(value.sum()) or torch.isfinite(value).all()):
        return value
    raise ValueError(
        f"w does not fit into {precision}: its largest entry is {w.abs().max().item():.6g} in "
        "magnitude. Name the precision that it was really stored in."
    )


def _as_float(w: Tensor, precision: str) -> Tensor:
    dtype = getattr(torch, precision)
    info = torch.finfo(dtype)
    # What is up to half a step beyond the largest number is rounded to it. Further out, torch
    # gives inf, NaN or the largest number itself, by dtype and version.
    _, exponent = math.frexp(info.max)
    largest = info.max + math.ldexp(info.eps, exponent - 1) / 2
    return _fitting(w, w.to(dtype).double(), precision, largest)


def _float_room(value: Tensor, precision: str) -> Tensor:
    """How far each number can move either way and still be rounded to itself."""
    info = torch.finfo(getattr(torch, precision))
    room = torch.empty_like(value)
    # Pieces that stay in the processor's cache: 0.09 s to 0.30 s at 4096×4096, one thread.
    for numbers, rooms in zip(value.split(_ROWS), room.split(_ROWS), strict=True):
        # The exponent's bits alone are the power of two at or below a number; 0 for 0.
        power = (numbers.view(torch.int64) & _EXPONENT_BITS).view(torch.float64)
        # Below a power of two the numbers lie twice as close.
        power *= torch.where(numbers.abs() == power, info.eps / 2, info.eps)
        power.clamp_(min=info.tiny * info.eps)  # of subnormal numbers, all the same
        torch.div(power, 2, out=rooms)
    return room


def _mean_square_move(w: Tensor, value: Tensor, room: Tensor) -> float:
    """Mean square of value − w in units of `room`, over the entries that have any."""
    total, count = 0.0, 0
    for i in range(0, len(w), _ROWS):
        rows = slice(i, i + _ROWS)
        movable = room[rows] > 0
        moves = (value[rows] - w[rows]) / torch.where(movable, room[rows], torch.inf)
        total += moves.square().sum().item()
        count += int(movable.sum())
    return total / max(count, 1)


def _int8(w: Tensor) -> tuple[Tensor, Tensor]:
    scale = w.abs().amax(1, keepdim=True).float().double() / 127
    codes = (w / scale).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).round_().clamp_(-127, 127)
    return codes * scale, _uniform_room(codes.abs() == 127, scale)


def _nf4(w: Tensor) -> tuple[Tensor, Tensor]:
    blocks = _blocks(w.flatten(), _NF4_BLOCK)
    scale = blocks.abs().amax(1, keepdim=True).float().double()
    levels = normal_float_levels()
    distances = levels.diff()
    codes = torch.bucketize((blocks / scale).nan_to_num_(nan=0.0), levels[:-1] + distances / 2)
    # −1 and 1 carry the scale.
    zero = levels.new_zeros(1)
    rooms = torch.cat([zero, torch.minimum(distances[:-1], distances[1:]) / 2, zero])
    value, room = (levels[codes] * scale).flatten(), (rooms[codes] * scale).flatten()
    return value[: w.numel()].reshape(w.shape), room[: w.numel()].reshape(w.shape)


def _q8_0(w: Tensor) -> tuple[Tensor, Tensor]:
    blocks = _gguf_blocks(w, "q8_0")
    scale = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * (1 / scale)
    # Halves away from zero, as C's roundf.
    whole = scaled.abs().floor()
    codes = scaled.sign() * (whole + (2 * (scaled.abs() - whole)).floor())
    return _gguf_values(w, codes, scale, codes.abs() == 127)


def _q4_0(w: Tensor) -> tuple[Tensor, Tensor]:
    blocks = _gguf_blocks(w, "q4_0")
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = largest / -8
    codes = (blocks * (1 / scale) + 8.5).trunc().clamp_(0, 15) - 8
    return _gguf_values(w, codes, scale, codes == -8)


def _gguf_blocks(w: Tensor, precision: str) -> Tensor:
    if w.shape[1] % _GGUF_BLOCK:
        raise ValueError(
            f"{precision} stores rows in blocks of {_GGUF_BLOCK}, but w has the shape "
            f"{tuple(w.shape)}. GGUF files keep such matrices in float16 or float32."
        )
    # llama.cpp computes in float32; so do we, for the same codes.
    return w.reshape(-1, _GGUF_BLOCK).float()


def _gguf_values(
    w: Tensor, codes: Tensor, scale: Tensor, carries_scale: Tensor
) -> tuple[Tensor, Tensor]:
    stored = scale.half().double()
    # A scale that float16 rounds to 0 leaves nothing of its block; its codes may be NaN.
    codes = torch.where(stored == 0, 0.0, codes.double())
    value, room = codes * stored, _uniform_room(carries_scale, stored.abs())
    return value.reshape(w.shape), room.reshape(w.shape)


def _uniform_room(carries_scale: Tensor, step: Tensor) -> Tensor:
    return torch.where(carries_scale, 0.0, step / 2)


def _blocks(flat: Tensor, size: int) -> Tensor:
    """Rows of `size` entries, the last filled up with zeros."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).reshape(-1, size)


# Each gives the stored values and the room that `_float_room` describes.
_QUANTISED: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "int8": _int8,
    "nf4": _nf4,
    "q8_0": _q8_0,
    "q4_0": _q4_0,
}

PRECISIONS = (*_FLOATS, *_QUANTISED)
"""The names of what a matrix can be stored in."""
