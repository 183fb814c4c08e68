"""The palette, computed: it holds on both grounds, in grey and for colour-blind eyes."""

import itertools

import numpy as np
import pytest

from spectra.figures import style
from spectra.figures.chart import Ink

GROUNDS = {False: "#ffffff", True: "#0e1117"}
"""Paper and the dark screen, by `dark`."""

VISION = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""On linear RGB, of full severity: Machado, Oliveira and Fernandes, IEEE TVCG 15 (2009), 1291."""

# IEC 61966-2-1 (sRGB, D65).
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = TO_XYZ.sum(axis=1)


def linear(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(first, second):
    """WCAG 2.2's contrast of two colours, 1 to 21; it asks for 3 of lines in a graph (1.4.11)."""
    low, high = sorted(float(TO_XYZ[1] @ linear(c)) for c in (first, second))
    return (high + 0.05) / (low + 0.05)


def lab(rgb):
    """CIE 1976 L*a*b* of linear RGB."""
    ratio = rgb @ TO_XYZ.T / WHITE
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def lightness(colour):
    """L*, 0 to 100: all that a grey print keeps."""
    return lab(linear(colour))[0]


def seen(colour, vision):
    rgb = linear(colour)
    return lab(np.clip(np.array(VISION[vision]) @ rgb, 0, 1) if vision else rgb)


def difference(first, second, vision=""):
    """Distance in L*a*b* (CIE 1976) as the eye of this kind sees the colours; about 2 is seen."""
    return float(np.linalg.norm(seen(first, vision) - seen(second, vision)))


@pytest.mark.parametrize("dark", GROUNDS)
def test_lines_stand_out_from_their_ground(dark):
    inks = [Ink(kind, i) for kind in ("run", "module") for i in range(16)]
    inks += [Ink("text"), Ink("grey")]

    for ink in inks:
        assert contrast(style.colour(ink, dark), GROUNDS[dark]) >= 3, ink


@pytest.mark.parametrize("dark", GROUNDS)
@pytest.mark.parametrize("vision", ["", *VISION])
@pytest.mark.parametrize(("kind", "count", "least"), [("run", 6, 10), ("module", 8, 15)])
def test_colours_are_told_apart_by_every_eye(kind, count, least, vision, dark):
    colours = [style.colour(Ink(kind, i), dark) for i in range(count)]

    apart = {pair: difference(*pair, vision) for pair in itertools.combinations(colours, 2)}

    assert min(apart.values()) > least, min(apart, key=lambda pair: apart[pair])


@pytest.mark.parametrize("dark", GROUNDS)
def test_sixteen_runs_differ_in_grey_by_dash_or_lightness(dark):
    for i, j in itertools.combinations(range(16), 2):
        first, second = (style.run_colour(k, dark) for k in (i, j))
        assert style.dash(i) != style.dash(j) or abs(lightness(first) - lightness(second)) > 12, (
            i,
            j,
        )


def test_thirty_six_runs_differ_in_colour_or_dash():
    looks = {(style.run_colour(i), style.dash(i)) for i in range(36)}

    assert len(looks) == 36


@pytest.mark.parametrize("dark", GROUNDS)
@pytest.mark.parametrize("vision", ["", *VISION])
@pytest.mark.parametrize("name", ["step", "layer", "size"])
def test_maps_grow_in_lightness_for_every_eye(name, vision, dark):
    along = [seen(c, vision)[0] for c in style.map_colours(name, dark)]

    steps = np.diff(along)
    assert (np.sign(steps) == np.sign(steps[0])).all()
    assert np.abs(steps).min() > 2


@pytest.mark.parametrize("dark", GROUNDS)
def test_the_map_of_sizes_is_even(dark):
    """Equal steps of the value are about equal steps of lightness, from end to end."""
    steps = np.abs(np.diff([lightness(c) for c in style.map_colours("size", dark)]))

    assert steps.max() / steps.min() < 1.35


@pytest.mark.parametrize("dark", GROUNDS)
@pytest.mark.parametrize("vision", ["", *VISION])
def test_the_map_of_changes_turns_in_the_middle_and_has_two_unlike_sides(vision, dark):
    colours = style.map_colours("turn", dark)
    middle = len(colours) // 2
    along = np.array([seen(c, vision)[0] for c in colours])
    away = along - along[middle]

    assert np.abs(away[0] - away[-1]) < 0.2 * np.abs(away[0])
    assert (np.sign(np.diff(along[: middle + 1])) == -np.sign(away[0])).all()
    assert (np.sign(np.diff(along[middle:])) == np.sign(away[-1])).all()
    for i in range(middle):
        assert difference(colours[i], colours[-1 - i], vision) > 15


@pytest.mark.parametrize("dark", GROUNDS)
@pytest.mark.parametrize("name", ["step", "layer", "size", "turn"])
def test_no_value_vanishes_in_the_ground(name, dark):
    for colour in style.map_colours(name, dark):
        # Cells have an area; 1.2 is a pale tint beside white, which an empty cell is.
        assert contrast(colour, GROUNDS[dark]) > 1.2
        assert difference(colour, GROUNDS[dark]) > 9
