"""The table of figures and options: what is written is read back, by any figure."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectra import figures
from spectra.cli import _parser
from spectra.cli.plot import read_options
from spectra.figures.options import FIGURES, Option, plot_command

# A command line cannot hold a null character, nor half of a surrogate pair.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
NAME = TEXT.filter(bool)
SPANS = st.tuples(st.integers(0, 400), st.integers(0, 60)).map(lambda s: range(s[0], sum(s) + 1))
NUMBERS = st.one_of(SPANS, st.lists(st.integers(0, 10**6), min_size=1, unique=True).map(sorted))
FLOATS = st.floats(allow_nan=False)


def values_of(option: Option) -> st.SearchStrategy[Any]:
    return {
        "name": NAME,
        "names": st.lists(TEXT, max_size=4).map(tuple),
        "numbers": NUMBERS,
        "number": st.integers(0, 10**9),
        "pair": st.tuples(FLOATS, FLOATS).map(lambda pair: tuple(sorted(pair))),
        "choice": st.sampled_from(option.choices or ("",)),
        "switch": st.booleans() if option.default is None else st.just(not option.default),
    }[option.kind]


@st.composite
def drawn_figures(draw: st.DrawFn) -> tuple[str, list[str], dict[str, Any]]:
    figure = FIGURES[draw(st.sampled_from(sorted(FIGURES)))]
    chosen = {
        option.name: draw(values_of(option))
        for option in figure.options
        if option.required or draw(st.booleans())
    }
    return figure.name, draw(st.lists(NAME, min_size=1, max_size=3)), chosen


@given(drawn_figures())
def test_what_is_written_is_read_back(drawn: tuple[str, list[str], dict[str, Any]]) -> None:
    name, runs, chosen = drawn

    words = plot_command(name, runs, "figure.pdf", **chosen)
    options = _parser().parse_args(words[1:])
    back = read_options(FIGURES[name], options)

    assert [run.removeprefix("./") for run in options.runs] == [r.removeprefix("./") for r in runs]
    defaults = {option.name: option.default for option in FIGURES[name].options}
    assert {k: listed(v) for k, v in (defaults | back).items()} == {
        k: listed(v) for k, v in (defaults | chosen).items()
    }


def listed(value: Any) -> Any:
    return list(value) if isinstance(value, range | tuple) else value


@pytest.mark.parametrize("name", FIGURES)
def test_defaults_leave_no_word(name: str) -> None:
    figure = FIGURES[name]
    required: dict[str, Any] = {option.name: 3 for option in figure.options if option.required}
    defaults = {o.name: o.default for o in figure.options if not o.required}

    assert plot_command(name, ["a"], "b.pdf", **required) == plot_command(
        name, ["a"], "b.pdf", **required, **defaults
    )


@pytest.mark.parametrize("name", FIGURES)
def test_options_and_defaults_are_those_of_the_function(name: str) -> None:
    function = getattr(figures, FIGURES[name].called)
    parameters = inspect.signature(function).parameters

    for option in FIGURES[name].options:
        if (name, option.name) == ("training", "steps"):
            continue  # the command chooses the rows
        assert option.name in parameters, option.name
        default = parameters[option.name].default
        if option.required or (name, option.name) == ("curves", "column"):
            assert default is inspect.Parameter.empty
        else:
            assert default == option.default, option.name
    # What the command line has no option for, it finds out itself.
    own = {option.name for option in FIGURES[name].options}
    rows = {"drift", "arrays", "training", "rows", "backend", "dark"}
    assert set(parameters) - own - rows <= {"pairs", "groups"}


@pytest.mark.parametrize("name", FIGURES)
def test_the_example_in_the_help_is_read(name: str) -> None:
    words = ["plot", name, *FIGURES[name].example, "--out", "a.pdf"]

    read_options(FIGURES[name], _parser().parse_args(words))


def test_another_figures_option_is_refused() -> None:
    with pytest.raises(ValueError, match="curves has no option 'axes'; it has column, modules"):
        plot_command("curves", ["a"], "b.pdf", axes="free")
    with pytest.raises(ValueError, match="no figure 'pie'"):
        plot_command("pie", ["a"], "b.pdf")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3", [0, 1, 2, 3]), ("3,5,7", [3, 5, 7]), (" 4 , 1-2", [4, 1, 2]), ("0", [0])],
)
def test_numbers_are_read(text: str, numbers: list[int]) -> None:
    assert list(figures.parse_numbers(text)) == numbers


@pytest.mark.parametrize("text", ["", "x", "3-", "-3", "5-3", "1,,2", "1.5", "0-99999999999", "²"])
def test_what_is_no_range_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="A range is written 0-11 or 3,5,7"):
        figures.parse_numbers(text)


@given(st.sets(st.integers(0, 200), min_size=1), st.sets(st.integers(0, 200)))
def test_numbers_written_choose_the_same_of_those_there(chosen: set[int], others: set[int]) -> None:
    there = sorted(chosen | others)

    read = set(figures.parse_numbers(figures.write_numbers(chosen, there)))

    assert {number for number in there if number in read} == chosen


def test_neighbours_are_a_range() -> None:
    assert figures.write_numbers([50, 100, 150, 250], [0, 50, 100, 150, 200, 250]) == "50-150,250"
    assert figures.write_numbers(range(50, 101)) == "50-100"
    assert figures.write_numbers([7]) == "7"


def test_the_columns_of_the_options_are_needed() -> None:
    def needed(figure: str, **options: Any) -> list[str]:
        return figures.needed_columns(figure, "drift", options) or []

    assert "sigma_0_mean" not in needed("trajectory")
    assert "sigma_0_mean" in needed("trajectory", relative=True)
    assert "ortho_v" in needed("curves", column="ortho_v")
    assert figures.needed_columns("matrix", "spectrum") is None
