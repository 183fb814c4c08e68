"""What storage does to a matrix, against the formats' own definitions."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from spectra.linalg.rounding import PRECISIONS, noise_sample, normal_float_levels, rounded
from tests.helpers import gaussian

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
QUANTISED = ("int8", "nf4", "q8_0", "q4_0")
# Entries that share a scale: how each format cuts a matrix of 64 columns.
BLOCKS = {"int8": 64, "nf4": 64, "q8_0": 32, "q4_0": 32}

WEIGHTS = 0.02 * gaussian(96, 64)
MATRICES = {
    "weights": WEIGHTS,
    "zeros": torch.zeros(4, 64, dtype=torch.float64),
    "a row of zeros": torch.cat([torch.zeros(1, 64, dtype=torch.float64), WEIGHTS[:3]]),
    "powers of two": torch.exp2((3 * gaussian(8, 64)).round()) * WEIGHTS[:8].sign(),
    "one value": torch.full((2, 64), -0.3, dtype=torch.float64),
    "float16's smallest": 1e-7 * gaussian(8, 64),
    "below everything": 1e-60 * gaussian(8, 64),
    "many magnitudes": gaussian(8, 64) * torch.logspace(-9, 1, 64, dtype=torch.float64),
    "one outlier": WEIGHTS[:4] + 50 * torch.eye(4, 64, dtype=torch.float64),
}


def test_every_precision_is_tested() -> None:
    assert PRECISIONS == FLOATS + QUANTISED


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MATRICES)
def test_rounding_again_changes_nothing(name: str, precision: str) -> None:
    once = rounded(MATRICES[name], precision)
    assert once.dtype == torch.float64 and once.shape == MATRICES[name].shape
    assert torch.equal(rounded(once, precision), once)


@pytest.mark.parametrize("precision", FLOATS)
def test_floats_are_torchs_own(precision: str) -> None:
    stored = WEIGHTS.to(getattr(torch, precision))
    assert torch.equal(rounded(WEIGHTS, precision), stored.double())
    # What is in the format already, whatever tensor it comes in, stays.
    assert torch.equal(rounded(stored, precision), stored.double())


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("name", ["weights", "a row of zeros", "many magnitudes", "one outlier"])
def test_errors_are_within_half_a_level(name: str, precision: str) -> None:
    w = MATRICES[name]
    blocks = w.reshape(-1, BLOCKS[precision])
    errors = (rounded(w, precision).reshape(blocks.shape) - blocks).abs().amax(1)
    largest = blocks.abs().amax(1)
    widest = {
        "int8": largest / 127,
        "nf4": largest * normal_float_levels().diff().max(),
        "q8_0": largest / 127,
        # Codes are -8…7: what is as large as the largest, of the other sign, is off by a level.
        "q4_0": 2 * largest / 8,
    }[precision]
    # A float16 scale is off by up to 2^-11, at up to 127 (8) levels that is 0.06 (0.004) of one;
    # or, where it is subnormal, by up to 2^-25.
    slack = {"q8_0": 0.13 * widest + 127 * 2**-25, "q4_0": 0.01 * widest + 8 * 2**-25}
    bound = widest / 2 + slack.get(precision, 1e-6 * widest)
    assert (errors <= bound).all()


def test_int8_takes_each_row_by_its_largest_magnitude() -> None:
    w = torch.tensor([[127.0, -64.4, 0.6, 0.4], [0.0, 0.0, 0.0, 0.0], [-1.0, 0.5, 0.25, 0.1]])
    expected = torch.tensor(
        [[127, -64, 1, 0], [0, 0, 0, 0], [-1, 64 / 127, 32 / 127, 13 / 127]], dtype=torch.float64
    )
    torch.testing.assert_close(rounded(w, "int8"), expected, rtol=1e-15, atol=0)


# The list in QLoRA's Appendix E, as bitsandbytes has it (`functional.get_4bit_type("nf4")`).
PUBLISHED = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def test_the_normal_float_levels_are_the_published_ones() -> None:
    published = torch.tensor(PUBLISHED, dtype=torch.float64)
    torch.testing.assert_close(normal_float_levels(), published, rtol=0, atol=1e-6)


def test_nf4_takes_the_nearest_level_of_its_block() -> None:
    w = gaussian(5, 26)  # 130 entries: two blocks and two entries of a third
    flat, found = w.flatten(), rounded(w, "nf4").flatten()
    for start in (0, 64, 128):
        block = flat[start : start + 64]
        levels = torch.tensor(PUBLISHED, dtype=torch.float64) * block.abs().max()
        nearest = levels[(block[:, None] - levels).abs().argmin(1)]
        torch.testing.assert_close(found[start : start + 64], nearest, rtol=0, atol=1e-5)


# A row of 32, and what the gguf package 0.19 makes of it, in units of the scale: its
# gguf.quants.quantize to the type, then dequantize, both in float32. (Of random matrices, too,
# q8_0 and q4_0 agree with it in every bit.)
ROW = tuple((7 * i % 32 - 11) / 8 for i in range(32))
GGUF = {
    # float16 of 2.5/127
    "q8_0": (
        0.0196838378906250,
        (-70, -25, 19, 64, 108, -51, -6, 38, 83, 127, -32, 13, 57, 102, -57, -13)
        + (32, 76, 121, -38, 6, 51, 95, -64, -19, 25, 70, 114, -44, 0, 44, 89),
    ),
    # 2.5/-8
    "q4_0": (
        -0.3125,
        (4, 2, -1, -4, -7, 3, 0, -2, -5, -8, 2, -1, -4, -6, 4, 1)
        + (-2, -5, -8, 2, 0, -3, -6, 4, 1, -2, -4, -7, 3, 0, -3, -6),
    ),
}


@pytest.mark.parametrize("precision", GGUF)
def test_gguf_formats_are_those_of_llama_cpp(precision: str) -> None:
    scale, codes = GGUF[precision]
    found = rounded(torch.tensor([ROW]), precision)
    assert found[0].tolist() == [scale * code for code in codes]


@pytest.mark.parametrize("precision", ["q8_0", "q4_0"])
def test_gguf_formats_need_whole_blocks(precision: str) -> None:
    with pytest.raises(ValueError, match=r"blocks of 32.*\(4, 40\)"):
        rounded(gaussian(4, 40), precision)


@pytest.mark.parametrize("function", [rounded, noise_sample])
def test_unknown_precisions_are_refused_with_the_known(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="float64, float32, .*, q4_0, got 'fp16'"):
        function(WEIGHTS, "fp16")


@pytest.mark.parametrize(
    ("precision", "largest", "too_large"),
    [
        ("float32", 3.4028e38, 1e39),
        ("float16", 65519.0, 65521.0),  # up to half a step beyond 65504
        ("float16", 65519.0, 1e6),
        ("bfloat16", 3.38e38, 3.40e38),
        ("float8_e4m3fn", 463.0, 465.0),
        ("float8_e5m2", 61439.0, 61441.0),
        ("int8", 3e38, 1e39),
        ("nf4", 3e38, 1e39),
        ("q8_0", 8e6, 9e6),  # the scale is a float16
        ("q4_0", 5e5, 6e5),
    ],
)
def test_what_does_not_fit_is_said(precision: str, largest: float, too_large: float) -> None:
    w = WEIGHTS.clone()
    w[3, 3] = -largest
    for function in (rounded, noise_sample):
        assert torch.isfinite(function(w, precision)).all()
        said = f"does not fit into {precision}: its largest entry is {too_large:.6g} in"
        with pytest.raises(ValueError, match=re.escape(said)):
            function(w * (too_large / largest), precision)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        rounded(torch.tensor([[1.0, math.nan]]), "bfloat16")


# Noise.


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MATRICES)
def test_the_sample_is_stored_as_the_same_bytes(name: str, precision: str) -> None:
    stored = rounded(MATRICES[name], precision)
    for w in (MATRICES[name], stored):
        assert torch.equal(rounded(noise_sample(w, precision), precision), stored)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_of_more_digits_are_rounded(precision: str) -> None:
    assert torch.equal(noise_sample(WEIGHTS, precision), rounded(WEIGHTS, precision))


def size(noise: Tensor) -> float:
    return torch.linalg.matrix_norm(noise).item()


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "float64"])
def test_the_dither_is_as_large_as_rounding(precision: str) -> None:
    w = gaussian(256, 128)
    stored = rounded(w, precision)
    dither = noise_sample(stored, precision) - stored
    # Equal for evenly spaced levels, as int8's. Else measured between 0.82 (nf4, where the dither
    # keeps to the smaller of two half steps) and 1.06 (bfloat16).
    assert 0.75 < size(dither) / size(stored - w) < 1.25
    # It hits half the entries either way.
    assert abs((dither > 0).double().mean().item() - (dither < 0).double().mean().item()) < 0.05


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("written", ["float32", "float16", "bfloat16"])
def test_dequantised_weights_are_known_by_their_levels(precision: str, written: str) -> None:
    # Their own rounding to the file's dtype must not pass for the noise of quantisation.
    stored = rounded(rounded(WEIGHTS, precision), written)
    noise = size(noise_sample(stored, precision) - stored)
    assert noise > 0.5 * size(rounded(WEIGHTS, precision) - WEIGHTS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_sample_is_always_the_same(precision: str) -> None:
    stored = rounded(WEIGHTS, precision)
    state = torch.random.get_rng_state()
    first = noise_sample(stored, precision)
    torch.manual_seed(1)
    again = noise_sample(stored, precision)
    torch.random.set_rng_state(state)
    assert torch.equal(first, again)


def test_the_input_is_left_alone() -> None:
    w = WEIGHTS.clone()
    for precision in PRECISIONS:
        rounded(w, precision)
        noise_sample(w, precision)
        noise_sample(rounded(w, precision), precision)
    assert torch.equal(w, WEIGHTS)


def test_at_powers_of_two_the_dither_keeps_to_the_narrow_side() -> None:
    w = torch.full((64, 64), 1.0, dtype=torch.float64)
    moves = noise_sample(w, "bfloat16") - 1
    # Below 1 bfloat16's numbers are 2^-8 apart, above it 2^-7.
    assert 0.9 * 2**-9 < moves.abs().max() < 2**-9
