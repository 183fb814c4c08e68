"""Charts on the screen: what Plotly is given, and in a browser what it makes of it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly
import plotly.graph_objects as go
import pytest

from spectra.figures.chart import (
    GREY,
    Axis,
    Band,
    Chart,
    ColourBar,
    Entry,
    Frame,
    Heat,
    Hover,
    Ink,
    Inset,
    Line,
    Mark,
    Note,
    Numbers,
    Panel,
    Pick,
    Rule,
    Zone,
)
from spectra.figures.plotly_renderer import draw
from spectra.figures.screen_layout import columns_for

HOSTILE = '<img src=x onerror=alert(1)><b>bold</b> %{customdata[0]} $x$ \x1b[31m\n"quoted"'
X = np.array([0.0, 1.0, 2.0, 3.0])
SIDE = Axis("ΔΣ (unit of the weights)", "ΔΣ", (0.0, 3.5))
UP = Axis("ΔD (0 = base)", "ΔD", (0.0, 4.0))
LAYERS = np.arange(3.0)


def numbers(run: str = "a", module: str = "q_proj", **changes: Any) -> Numbers:
    facts: dict[str, Any] = {
        "entry": "q",
        "hover": Hover(f"{run} · {module}", (("κ", np.array([1.5, np.nan, np.inf, 2e4])),)),
        "pick": Pick(run, module, (0, 1, 2, 3), (10, 10, 20, 20)),
    }
    return Numbers(X, X / 2, ("0", "1", "2", "3"), X / 3, **facts | changes)


def heat(run: str = "a", module: str = "q_proj") -> Heat:
    values = np.array([[0.1, np.nan, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, np.inf, 8.0]])
    return Heat(X * 10, LAYERS, values, "ΔD", f"{run} · {module}", pick_of_heat(run, module))


def pick_of_heat(run: str, module: str) -> Pick:
    return Pick(run, module, (0, 1, 2), (0, 10, 20, 30))


def every_mark(name: str = "a") -> tuple[Mark, ...]:
    line = Line(X, X + 0.1, Ink("run", 1), dash="dash", entry="q", hover=Hover(name))
    return (
        Zone(x=(None, 1.0), y=(None, 0.5), edge=True),
        Zone(y=(1.0, 2.0)),
        Rule(x=2.0),
        Rule(y=3.0, dash="dash"),
        Frame((0.0, 1.0), (0.0, 1.0)),
        Note(name, reading=name),
        Note(name, y=0.5, side="right", over=True),
        Band(X, X, X + 1, Ink("module", 1), entry="q"),
        line,
        Line(X[:1], X[:1], Ink("step", 0.5)),
        Line(X, X, Ink("module", 0), marker="square", rim=True, hover=Hover(name, (("step", X),))),
        Line(X, X, GREY, width=0, marker="x"),
        Line(X, X, Ink("layer", 0.3), pick=Pick(name, name, (0, 0, 0, 0), (1, 2, 3, 4))),
        numbers(name, name),
        numbers(name, name, ink=Ink("text"), hover=None, size=8.0, lettering=3),
    )


def every_chart(name: str = "a") -> Chart:
    inner = Panel("", SIDE, UP, every_mark(name))
    logarithmic = Axis("κ", "κ", (1.0, 1e5), log=True)
    counted = Axis(name, name, (-0.5, 2.5), integer=True, ticks=((0.0, name), (2.0, "2")))
    panels = (
        Panel(name, SIDE, UP, every_mark(name), inset=Inset((0.5, 0.5, 0.4, 0.4), inner)),
        Panel("b", SIDE, logarithmic, (Line(X, X + 1, GREY), Note(name, y=10.0), Zone(y=(2, 5)))),
        Panel("c", Axis("step", "step", (-5, 35), integer=True), counted, (heat(name, name),)),
        Panel("d", UP, UP, (Heat(LAYERS, LAYERS, np.eye(3), name, name),), square=True),
    )
    bar = ColourBar(name, "size", (0.1, 100.0), log=True)
    return Chart(panels, (Entry("q", name, Ink("run", 1), lettering=3),), bar, name, name)


def one_panel(*marks: Mark, x: Axis = SIDE, y: Axis = UP, **facts: Any) -> Chart:
    return Chart((Panel("", x, y, marks),), **facts)


def traces(figure: go.Figure, mode: str) -> list[Any]:
    lines = [t for t in figure.data if t.type == "scatter" and t.mode == mode]
    return [t for t in lines if t.x[0] is not None]


@pytest.mark.parametrize("dark", [False, True])
def test_every_mark_is_drawn_in_plotlys_own_terms(dark: bool) -> None:
    # Drawn without Plotly's checks, so they are made here: an unknown property or value raises.
    figure = go.Figure(draw(every_chart(), dark).to_dict())
    assert {t.type for t in figure.data} == {"heatmap", "scatter"}
    modes = {t.mode for t in figure.data if t.type == "scatter"}
    assert modes == {"lines", "markers", "lines+markers", "text"}
    # Twice zone, edge, zone, two rules, frame; the inset's ground; the zone of the second panel.
    assert len(figure.layout.shapes) == 2 * 6 + 1 + 1


def test_a_chart_without_panels_is_refused() -> None:
    with pytest.raises(ValueError, match="no panel"):
        draw(Chart(()))


def test_names_are_shown_as_they_stand() -> None:
    shown = json.loads(draw(every_chart(HOSTILE)).to_json())
    raw = {"customdata", "legendgroup", "uid", "uirevision"}  # what Plotly never shows
    words = list(_strings(shown, skip=raw))
    assert any("&lt;img" in word for word in words)
    for word in words:
        assert "<img" not in word and "<b>bold" not in word, word
        assert "\x1b" not in word and "\n" not in word, word
        asked = re.findall(r"%\{(.*?)\}", word)
        assert all(
            re.fullmatch(r"(x|y|hovertext|customdata)(\[\d\])?(:[.\d~g]+)?", a) for a in asked
        )


def test_what_a_click_tells_is_never_shown() -> None:
    for trace in draw(every_chart(HOSTILE)).data:
        if trace.customdata is not None and np.ndim(trace.customdata) == 2:
            picked = np.shape(trace.customdata)[1] >= 4 and trace.customdata[0][0] == HOSTILE
            for index in range(4) if picked else ():
                assert f"customdata[{index}]" not in (trace.hovertemplate or "")


def test_a_click_tells_run_module_layer_and_step_of_every_point() -> None:
    figure = draw(one_panel(numbers("run/1", "v")))
    (trace,) = traces(figure, "text")
    assert [list(row[:4]) for row in trace.customdata] == [
        ["run/1", "v", 0, 10], ["run/1", "v", 1, 10], ["run/1", "v", 2, 20], ["run/1", "v", 3, 20],
    ]  # fmt: skip
    assert [row[4] for row in trace.customdata] == ["1.5", "not computed", "∞", "2e+04"]


def test_every_cell_of_a_heat_map_with_a_value_can_be_clicked() -> None:
    figure = draw(one_panel(heat("r", "q"), bar=ColourBar("ΔD", "size", (0.0, 8.0))))
    (points,) = traces(figure, "markers")
    cells = {
        (x, y): tuple(row[:4])
        for x, y, row in zip(points.x, points.y, points.customdata, strict=True)
    }
    assert len(cells) == 11  # of twelve, one of which has no value
    assert (10.0, 0.0) not in cells
    assert cells[30.0, 2.0] == ("r", "q", 2, 30)
    # Plotly draws one of them and finds all: to draw 13,000 takes half a second.
    assert points.marker.maxdisplayed == 1 and points.marker.opacity == 0
    assert not traces(draw(one_panel(Heat(X, LAYERS, heat().values, "ΔD"))), "markers")


def test_values_beyond_the_colour_bar_have_its_ends_colours() -> None:
    bar = ColourBar("κ", "size", (1.0, 100.0), log=True)
    values = np.array([[0.0, 10.0, np.inf, np.nan]])
    (trace,) = draw(one_panel(Heat(X, LAYERS[:1], values, "κ"), bar=bar)).data[:1]
    assert trace.z[0][:3].tolist() == [0.0, 1.0, 2.0] and np.isnan(trace.z[0][3])
    assert trace.customdata[0].tolist()[:3] == [0.0, 10.0, np.inf]


def test_lines_of_one_look_are_one_trace_and_lose_no_point() -> None:
    rng = np.random.default_rng(0)
    lines = [
        Line(X, rng.normal(size=4), Ink("layer", layer / 31), hover=Hover(f"layer {layer}"))
        for layer in range(32)
        for _ in range(20)
    ]
    figure = draw(one_panel(*lines))
    drawn = traces(figure, "lines")
    assert len(drawn) == 32
    points = {(x, y) for t in drawn for x, y in zip(t.x, t.y, strict=True) if not np.isnan(y)}
    assert points == {(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True)}
    # Between two of them is a gap, or they would be joined.
    assert all(np.isnan(t.y[4::5]).all() and len(t.y) == 20 * 5 - 1 for t in drawn)


def test_many_lines_stay_few_traces_in_fewer_shades() -> None:
    panels = tuple(
        Panel(str(run), SIDE, UP, tuple(Line(X, X * i, Ink("layer", i / 31)) for i in range(32)))
        for run in range(10)
    )
    assert len(draw(Chart(panels)).data) <= 160


def test_heads_of_merged_lines_stay_with_their_points() -> None:
    lines = [Line(X, X + i, GREY, hover=Hover(f"run {i}"), entry="a") for i in range(3)]
    (trace,) = traces(draw(one_panel(*lines)), "lines")
    heads = {y - x: head for x, y, head in zip(trace.x, trace.y, trace.hovertext, strict=True)}
    assert {d: h for d, h in heads.items() if not np.isnan(d)} == {
        0: "run 0",
        1: "run 1",
        2: "run 2",
    }


def test_the_last_of_two_marks_is_above() -> None:
    thick = Line(X, X, Ink("module", 0), width=3)
    figure = draw(one_panel(Band(X, X, X + 1, GREY), Line(X, X, GREY, width=0.5), thick))
    assert [t.line.width for t in figure.data] == [0, 0.75, 4.5]


def test_rims_give_way_where_panels_are_many() -> None:
    def rims(panels: int) -> int:
        mean = Line(X, X, Ink("module", 0), marker="circle", rim=True)
        figure = draw(Chart(tuple(Panel(str(i), SIDE, UP, (mean,)) for i in range(panels))))
        return len(traces(figure, "lines"))

    assert rims(4) == 4
    assert rims(30) == 0


def test_an_entry_hides_all_its_marks() -> None:
    figure = draw(every_chart())
    legend = [t for t in figure.data if t.showlegend]
    assert [t.legendgroup for t in legend] == ["q"]
    assert sum(t.legendgroup == "q" for t in figure.data) > 5


def test_linked_panels_zoom_together_and_name_their_axes_once() -> None:
    panels = tuple(Panel(str(i), SIDE, UP, (Line(X, X, GREY),)) for i in range(4))
    layout = draw(Chart(panels, link_x=True, link_y=True)).layout
    assert [layout[f"xaxis{i}"].matches for i in ("", 2, 3, 4)] == [None, "x", "x", "x"]
    assert [layout[f"yaxis{i}"].title.text for i in ("", 2, 3, 4)] == [UP.label, None] * 2
    assert [layout[f"xaxis{i}"].showticklabels for i in ("", 2, 3, 4)] == [False, False, True, True]


def test_a_zoom_belongs_to_the_quantity_that_an_axis_shows() -> None:
    first, again = draw(one_panel(numbers())), draw(one_panel(numbers(), numbers("b")))
    other = draw(one_panel(numbers(), y=Axis("κ", "κ", (1, 10))))
    assert first.layout.uirevision == again.layout.uirevision == other.layout.uirevision
    assert first.layout.yaxis.uirevision == again.layout.yaxis.uirevision
    assert first.layout.yaxis.uirevision != other.layout.yaxis.uirevision


def test_dark_changes_colours_and_nothing_else() -> None:
    light, dark = draw(every_chart()), draw(every_chart(), dark=True)
    assert light.layout.paper_bgcolor != dark.layout.paper_bgcolor
    assert light.layout.font.color != dark.layout.font.color
    for one, two in zip(light.data, dark.data, strict=True):
        np.testing.assert_array_equal(one.x, two.x)
        assert one.customdata is None or np.shape(one.customdata) == np.shape(two.customdata)


def test_the_same_chart_is_the_same_bytes() -> None:
    assert draw(every_chart()).to_json() == draw(every_chart()).to_json()


@pytest.mark.parametrize(
    ("panels", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (6, 3), (8, 4), (9, 3), (16, 4)]
)
def test_rows_are_even(panels: int, columns: int) -> None:
    assert columns_for(panels) == columns


# What only a browser can tell.


@pytest.fixture(scope="module")
def plotly_page(browser: Any) -> Iterator[Any]:
    """A page with Plotly, which takes longest to load."""
    library = Path(plotly.__file__).parent / "package_data/plotly.min.js"
    page = browser.new_page(viewport={"width": 860, "height": 900})
    page.set_content("<div id=place></div>")
    page.add_script_tag(path=library)
    yield page
    page.close()


@pytest.fixture
def shown(plotly_page: Any) -> Iterator[Any]:
    """Shows a figure in Chromium and returns the page."""
    problems: list[str] = []
    plotly_page.on("pageerror", lambda error: problems.append(str(error)))

    def show(figure: go.Figure) -> Any:
        plotly_page.mouse.move(0, 0)
        plotly_page.evaluate(
            "f => { Plotly.purge('place'); window.picked = null; return Plotly.newPlot('place', "
            "f.data, {...f.layout, clickmode: 'event+select'}); }",
            json.loads(figure.to_json()),
        )
        return plotly_page

    yield show
    assert problems == []


TEXTS = "s => [...document.querySelectorAll(s)].map(e => e.textContent)"
PIXELS = """([x, y]) => { const g = document.getElementById('place'), l = g._fullLayout,
  r = g.getBoundingClientRect(); return [r.left + l.xaxis._offset + l.xaxis.d2p(x),
  r.top + l.yaxis._offset + l.yaxis.d2p(y)]; }"""


ENDS = """s => { const r = document.querySelector(s).getBoundingClientRect();
  return [r.top, r.bottom]; }"""


@pytest.mark.browser
def test_ticks_of_an_axis_have_one_notation(shown: Any) -> None:
    x, y = Axis("x", "x", (0.0, 3e4)), Axis("y", "y", (0.0, 3e-5))
    page = shown(draw(one_panel(Line(X * 1e4, X * 1e-5, GREY), x=x, y=y)))
    across = page.evaluate(TEXTS, ".xtick text")
    up = page.evaluate(TEXTS, ".ytick text")
    assert across[:2] == ["0", "5000"] and not any("e" in tick for tick in across)
    assert up[0] == "0" and all(tick.endswith("e−5") for tick in up[1:]) and len(up) > 3


@pytest.mark.browser
def test_a_hostile_name_is_text_in_the_browser(shown: Any) -> None:
    page = shown(draw(one_panel(numbers(HOSTILE, "q"), entries=(Entry("q", HOSTILE, GREY),))))
    page.mouse.move(*page.evaluate(PIXELS, [2.0, 1.0]))
    page.wait_for_selector(".hoverlayer .hovertext")
    told = page.evaluate(TEXTS, ".hoverlayer .hovertext")[0]
    assert "<img src=x onerror=alert(1)><b>bold</b> %{cus" in told
    assert "ΔΣ 2ΔD 1κ ∞" in told
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert "<img src=x" in page.evaluate(TEXTS, ".legendtext")[0]


@pytest.mark.browser
def test_a_pointer_reads_the_line_that_it_is_on(shown: Any) -> None:
    lines = [
        Line(X, X / 2 + i, GREY, hover=Hover(f"layer {i}", (("step", X * 10),)), pick=pick)
        for i, pick in enumerate([numbers().pick, numbers("b").pick])
    ]
    page = shown(draw(one_panel(*lines)))
    page.mouse.move(*page.evaluate(PIXELS, [2.0, 2.0]))
    page.wait_for_selector(".hoverlayer .hovertext")
    assert page.evaluate(TEXTS, ".hoverlayer .hovertext") == ["layer 1ΔΣ 2ΔD 2step 20"]


@pytest.mark.browser
@pytest.mark.parametrize("mark", ["heat", "numbers", "line"])
def test_a_click_finds_the_matrix(shown: Any, mark: str) -> None:
    line = Line(X, X / 2, GREY, hover=Hover("a"), pick=numbers().pick)
    drawn: Mark = {"heat": heat(), "numbers": numbers(), "line": line}[mark]
    x, y = (Axis("step", "step", (-5, 35)), Axis("layer", "layer", (-0.5, 2.5)))
    chart = one_panel(drawn, x=x, y=y) if mark == "heat" else one_panel(drawn)
    page = shown(draw(chart))
    page.evaluate(
        "document.getElementById('place').on('plotly_selected', e => "
        "{ window.picked = e.points.map(p => [...p.customdata].slice(0, 4)); })"
    )
    point, wanted = ([20.0, 1.0], [1, 20]) if mark == "heat" else ([2.0, 1.0], [2, 20])
    place = page.evaluate(PIXELS, point)
    page.mouse.move(place[0] - 9, place[1] - 9)
    page.mouse.move(*place)
    page.wait_for_selector(".hoverlayer .hovertext")
    page.mouse.click(*place)
    page.wait_for_function("window.picked && window.picked.length")
    assert page.evaluate("window.picked") == [["a", "q_proj", *wanted]]


@pytest.mark.browser
def test_a_long_legend_is_whole_and_beside_the_buttons(shown: Any) -> None:
    entries = tuple(Entry(str(i), f"method {i} with a name", Ink("run", i)) for i in range(16))
    page = shown(draw(one_panel(numbers(), entries=entries)))
    assert len(page.evaluate(TEXTS, ".legendtext")) == 16
    legend, bar, panel = (page.evaluate(ENDS, s) for s in (".legend", ".modebar", ".nsewdrag"))
    assert bar[1] <= legend[0] and legend[1] <= panel[0]
    assert page.evaluate("document.querySelector('.legend .scrollbar').getAttribute('height')") in (
        None, "0",
    )  # fmt: skip


@pytest.mark.browser
def test_a_click_on_the_legend_hides_the_entry(shown: Any) -> None:
    page = shown(draw(one_panel(numbers(), entries=(Entry("q", "q", GREY),))))
    assert len(page.evaluate(TEXTS, ".textpoint")) == 4
    page.click(".legendtoggle")
    page.wait_for_function("document.querySelectorAll('.textpoint').length === 0")


def _strings(value: Any, skip: set[str]) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        if "bdata" in value:
            base64.b64decode(value["bdata"])
            return
        for key, inner in value.items():
            if key not in skip:
                yield from _strings(inner, skip)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, skip)
