"""Charts on paper: every mark is where it belongs, in a venue's width and letters, and small."""

import functools
import itertools
import re
import shutil
import subprocess
from dataclasses import replace
from io import BytesIO

import numpy as np
import pypdf
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from spectra import figures
from spectra.figures import style
from spectra.figures.chart import (
    Axis,
    Band,
    Chart,
    ColourBar,
    Entry,
    Heat,
    Ink,
    Line,
    Note,
    Numbers,
    Panel,
    Rule,
    Zone,
)
from spectra.figures.matplotlib_renderer import draw
from spectra.figures.paper_layout import columns_for, plain, plan, text_width, thinned, wrap
from spectra.figures.paper_marks import cell_edges
from spectra.figures.tex import escape
from tests.figures.charts import every_mark, heat_of, many_runs, overlaid

PRESETS = (None, *style.PRESETS)
FORMATS = (".pdf", ".svg", ".pgf", ".png")
HOSTILE = (
    "</script><script>alert(1)</script>",
    "$\\frac{1}{$ & %{x} __import__ #1 ^^M ~ \\end{document} \\input{/etc/passwd}",
    "$x_1$ and $y^2$",
    "模型 🚀 \u202e\x00\x1b[31m\nnew line",
    "--- '' `` ?` \" ,, << >> é ñ ő ø ß Ł ½ Ж",
    "‖UᵀU − I‖ ⟨u, v⟩ σ_max κₚ 10⁻³ ΔΣ",
    "long" * 60,
)
RED, BLUE = (style.colour(Ink("run", i)) for i in (1, 0))
UNIT = Axis("x", "x", (0, 10)), Axis("y", "y", (0, 10))


def chart_of(*marks, x=UNIT[0], y=UNIT[1], **options):
    return Chart((Panel("", x, y, tuple(marks)),), **options)


def hostile_chart():
    """Hostile names wherever a chart has words."""
    ticks = tuple((float(i), name) for i, name in enumerate(HOSTILE))
    panels = tuple(
        Panel(
            name,
            Axis(name, name, (-1, 8), ticks=ticks),
            Axis(name, name, (0, 10)),
            (Numbers(np.array([5.0]), np.array([5.0]), (name,), np.array([1.0])), Note(name, y=5)),
        )
        for name in HOSTILE
    )
    entries = tuple(Entry(str(i), name, Ink("run", i)) for i, name in enumerate(HOSTILE))
    bar = ColourBar(HOSTILE[1], "size", (0, 1), integer=False)
    return Chart(panels, entries, bar, caption=" ".join(HOSTILE))


def pixels(figure, place, across=0.0, up=0.0):
    """Colour of a figure's first panel at `place`, in its units, moved by points."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(200)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())
    x, y = figure.axes[0].transData.transform(place) + np.array([across, up]) * 200 / 72
    return image[image.shape[0] - 1 - int(y), int(x), :3] / 255


def assert_colour(found, colour, tolerance=0.02):
    assert np.abs(found - to_rgb(colour)).max() <= tolerance, (found, colour)


@functools.cache
def page_of_every_mark(preset):
    content = figures.to_bytes(draw(every_mark(), preset), ".pdf")
    return pypdf.PdfReader(BytesIO(content)).pages[0]


# --- what a venue asks for


@pytest.mark.parametrize("preset", PRESETS)
def test_a_figure_is_as_wide_as_the_venue_asks_and_fits_its_page(preset):
    inches = 6.75 if preset is None else style.PRESETS[preset].width
    page = page_of_every_mark(preset).mediabox

    assert float(page.width) == pytest.approx(72 * inches, abs=0.01)
    assert 72 < float(page.height) < 72 * 9


def test_the_widths_are_the_venues():
    # Text widths and column gaps that the venues' style files set.
    assert style.PRESETS["icml-1"].width == pytest.approx((6.75 - 0.25) / 2)
    assert style.PRESETS["acl-1"].width * 2.54 == pytest.approx((21 - 2 * 2.5 - 0.6) / 2)
    assert style.PRESETS["acl-2"].width * 2.54 == pytest.approx(21 - 2 * 2.5)
    for venue in ("iclr", "neurips"):
        assert style.PRESETS[venue].width == 5.5
        assert 2 * style.PRESETS[f"{venue}-half"].width < 5.5


@pytest.mark.parametrize("preset", PRESETS)
def test_fonts_are_embedded_and_the_presets_own(preset):
    fonts = page_of_every_mark(preset)["/Resources"]["/Font"].get_object()
    names = set()
    for font in (f.get_object() for f in fonts.values()):
        inner = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
        assert inner["/Subtype"] in ("/TrueType", "/CIDFontType2")
        assert "/FontFile2" in inner["/FontDescriptor"]
        names.add(str(font["/BaseFont"]).rpartition("+")[2].lstrip("/").partition("-")[0])

    wanted = {"DejaVuSans"} if preset is None else {"STIXGeneral", "DejaVuSerif"}
    assert names <= wanted
    assert wanted & names


@pytest.mark.parametrize("preset", PRESETS)
def test_text_is_text_and_the_caption_is_left_to_the_paper(preset):
    text = " ".join(page_of_every_mark(preset).extract_text().split())

    for words in ("conditioning", "noise floor of bfloat16", "ΔΣ", "q_proj, mean of layers", "11"):
        assert words in text
    assert ("Numbers are layers." in text) == (preset is None)


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(ValueError, match="one of iclr, .*acl-2, got 'cvpr'"):
        draw(every_mark(), "cvpr")


def test_a_chart_without_panels_is_refused():
    with pytest.raises(ValueError, match="no panel"):
        draw(Chart(()))


# --- files


def test_the_same_chart_gives_the_same_bytes_however_often_it_is_written():
    first, second = draw(every_mark(), "icml-1"), draw(every_mark(), "icml-1")
    before = {suffix: figures.to_bytes(first, suffix) for suffix in FORMATS}

    for suffix in reversed(FORMATS):
        assert figures.to_bytes(second, suffix) == before[suffix]
    # The PDF was written before the picture in pixels, now after it.
    assert figures.to_bytes(first, ".pdf") == before[".pdf"]


@pytest.mark.parametrize(("preset", "last"), [(None, "sans-serif"), ("iclr", "serif")])
def test_an_svg_where_the_fonts_are_missing_falls_back_to_their_kind(preset, last):
    content = figures.to_bytes(draw(every_mark(), preset), ".svg").decode()
    families = set(re.findall(r"font-family: ([^;]*);", content))

    assert len(families) == 1
    assert families.pop().split(", ")[-1] == last


def test_a_heat_map_of_eighty_layers_is_small():
    content = figures.to_bytes(draw(heat_of(80, steps=200, panels=4)), ".pdf")

    # 64,000 cells: as shapes they take 1.7 MB.
    assert len(content) < 200_000


def test_pgf_needs_no_latex(monkeypatch):
    def no_program(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", no_program)
    picture = figures.to_bytes(draw(every_mark(), "iclr"), ".pgf").decode()

    assert "\\begin{pgfpicture}" in picture
    assert "{q\\_proj, mean of layers}" in picture
    assert "{\\ensuremath{{\\Delta}{\\Sigma}} (unit of the weights)}" in picture


@pytest.mark.parametrize(
    ("suffix", "preset"), [(".pdf", None), (".svg", None), (".svg", "acl-1"), (".png", "icml-1")]
)
def test_hostile_names_are_drawn(suffix, preset):
    content = figures.to_bytes(draw(hostile_chart(), preset), suffix)

    assert content
    if suffix == ".svg":
        assert b"<script" not in content
        # The name itself, not a formula made of it.
        assert b"$x_1$ and" in content


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("run_1", r"run\_1"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("$a$ & 5% #1", r"\$a\$ \& 5\% \#1"),
        ("a^b~c", r"a\textasciicircum{}b\textasciitilde{}c"),
        ("<b>|", r"\textless{}b\textgreater{}\textbar{}"),
        ("a--b", "a{-}{-}b"),
        ("``'\"", r"{`}{`}{'}{\char34}"),
        ("a\x00b\x1b[0m\u202ec\n", "ab[0mc"),
        ("ΔΣ", r"\ensuremath{{\Delta}{\Sigma}}"),
        ("σ", r"\ensuremath{\sigma}"),
        ("10⁻³", r"10\ensuremath{^{-3}}"),
        ("Uₚᵀ", r"U\ensuremath{_{\mathrm{p}}^{\mathrm{T}}}"),
        ("W₀", r"W\ensuremath{_{0}}"),
        ("‖·‖", r"\ensuremath{{\Vert}{\cdot}{\Vert}}"),
        ("⟨u⟩ − 1", r"\ensuremath{\langle}u\ensuremath{\rangle} \ensuremath{-} 1"),
        ("é ő ß", r"\'{e} \H{o} {\ss}"),
        ("模", r"\spectraglyph{模}"),
        ("", ""),
    ],
)
def test_words_become_latex_that_prints_them(text, latex):
    assert escape(text) == latex


def test_any_character_becomes_harmless_latex():
    every = "".join(map(chr, itertools.chain(range(0x3000), range(0x1F300, 0x1F700))))
    escaped = escape(every)
    commands = escaped.replace(r"\{", "").replace(r"\}", "")

    assert commands.count("{") == commands.count("}")
    # Beyond ASCII nothing but letters for other engines, each within its macro.
    bare = [a for a, b in itertools.pairwise(escaped) if not b.isascii() and a != "{"]
    assert bare == []
    assert all(c.isprintable() for c in escaped)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_pgf_compiles_in_a_document_and_prints_hostile_names(tmp_path):
    charts = [(every_mark(), None), (hostile_chart(), "icml-2"), (every_mark(), "acl-1")]
    inputs = []
    for i, (chart, preset) in enumerate(charts):
        figures.save(draw(chart, preset), tmp_path / f"f{i}.pgf")
        inputs.append(rf"\noindent\input{{f{i}.pgf}}" + "\n\n")
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage[margin=1cm]{geometry}\\usepackage{pgf}"
        f"\\begin{{document}}{''.join(inputs)}\\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)

    assert done.returncode == 0, done.stdout[-2000:].decode(errors="replace")
    pages = pypdf.PdfReader(tmp_path / "paper.pdf").pages
    text = " ".join(page.extract_text() for page in pages)
    for words in ("conditioning", "</script><script>", "\\frac{1}{$", "\\input{/etc/passwd}"):
        assert words in text


# --- marks


def test_a_line_breaks_at_nan_and_a_lone_point_is_seen():
    x = np.arange(1.0, 10.0)
    y = np.array([5, 5, 5, np.nan, 5, np.nan, 5, 5, 5])
    figure = draw(chart_of(Line(x, y, Ink("run", 1), width=2)))

    assert_colour(pixels(figure, (2.5, 5)), RED)
    assert_colour(pixels(figure, (5, 5)), RED)
    assert_colour(pixels(figure, (4, 5), up=3), "white")
    assert_colour(pixels(figure, (4, 5)), "white", 0.1)


def test_a_rim_keeps_a_line_apart_from_what_it_crosses():
    below = Zone(ink=Ink("run", 0), opacity=1.0)
    line = Line(np.array([0.0, 10]), np.array([5.0, 5]), Ink("run", 1), width=3, rim=True)
    figure = draw(chart_of(below, line))

    assert_colour(pixels(figure, (5, 5)), RED)
    assert pixels(figure, (5, 5), up=1.8).min() > 0.7
    assert_colour(pixels(figure, (5, 5), up=5), BLUE)


def test_later_marks_lie_above_earlier_ones():
    line = Line(np.array([0.0, 10]), np.array([5.0, 5]), Ink("run", 1), width=3)
    zone = Zone(ink=Ink("run", 0), opacity=1.0)

    assert_colour(pixels(draw(chart_of(zone, line)), (5, 5)), RED)
    assert_colour(pixels(draw(chart_of(line, zone)), (5, 5)), BLUE)


def test_bands_zones_and_rules_reach_where_they_say():
    x = np.array([2.0, 4.0])
    band = Band(x, x - 1, x + 1, Ink("run", 1), opacity=1.0)
    zone = Zone(x=(6, None), y=(2, 4), ink=Ink("run", 0), opacity=1.0)
    figure = draw(chart_of(band, zone, Rule(y=8, ink=Ink("run", 0), dash="solid", width=3)))

    assert_colour(pixels(figure, (3, 3.8)), RED)
    assert_colour(pixels(figure, (3, 4.3)), "white")
    assert_colour(pixels(figure, (9.9, 3)), BLUE)
    assert_colour(pixels(figure, (9.9, 4.2)), "white")
    assert_colour(pixels(figure, (5.5, 3)), "white")
    assert_colour(pixels(figure, (1, 8)), BLUE)


def test_a_band_over_a_single_step_is_seen():
    one = np.array([5.0])
    figure = draw(chart_of(Band(one, one - 2, one + 2, Ink("run", 1), opacity=0.5)))

    assert_colour(pixels(figure, (5, 6)), RED)


@pytest.mark.parametrize("reverse", [False, True])
def test_cells_meet_half_way_and_missing_ones_look_like_nothing(reverse):
    x, y = np.array([0.0, 1, 5]), np.array([2.0, 6])
    values = np.array([[0.0, 1.0, 0.0], [1.0, np.nan, 1.0]])
    limits = (8.0, 0.0) if reverse else (0.0, 8.0)
    figure = draw(
        chart_of(
            Heat(x, y, values, "v"),
            x=Axis("x", "x", (-0.5, 7)),
            y=Axis("y", "y", limits),
            bar=ColourBar("v", "size", (0, 1), integer=False),
        )
    )
    low, high = style.map_colours("size")[0], style.map_colours("size")[-1]

    # Edges lie at 0.5 and 3 across and at 4 upwards.
    assert_colour(pixels(figure, (0.45, 3.9)), low)
    assert_colour(pixels(figure, (0.55, 3.9)), high)
    assert_colour(pixels(figure, (2.9, 3.9)), high)
    assert_colour(pixels(figure, (3.1, 3.9)), low)
    assert_colour(pixels(figure, (3.1, 4.1)), high)
    missing = pixels(figure, (1.7, 6))
    assert missing.min() > 0.7
    assert np.ptp(missing) < 0.03


def test_edges_of_cells():
    assert cell_edges(np.array([0.0, 10, 100])) == pytest.approx([-5, 5, 55, 145])
    assert cell_edges(np.array([1.0, 100]), log=True) == pytest.approx([0.1, 10, 1000])
    assert cell_edges(np.array([3.0])) == pytest.approx([2.5, 3.5])


@pytest.mark.parametrize("log", [False, True])
def test_values_beyond_the_bar_have_the_colour_of_its_end(log):
    heat = Heat(np.array([1.0, 2]), np.array([1.0, 2]), np.array([[0.0, 0], [99, 99]]), "v")
    axis = Axis("x", "x", (0.5, 2.5))
    bar = ColourBar("v", "size", (0.1, 10), log=log, integer=False)
    figure = draw(chart_of(heat, x=axis, y=axis, bar=bar))

    assert_colour(pixels(figure, (1, 1)), style.map_colours("size")[0])
    assert_colour(pixels(figure, (1, 2)), style.map_colours("size")[-1])


def test_numbers_take_the_colour_of_their_place_and_stay_in_their_panel():
    places = np.array([0.0, 0.5, 1.0, 1.0])
    at = np.array([1.0, 5, 9, 11])
    figure = draw(chart_of(Numbers(at, at, ("0", "1", "22", "33"), places, "layer", lettering=3)))
    texts = figure.axes[0].texts

    assert [t.get_text() for t in texts] == ["0", "1", "22"]
    wanted = [style.blend(style.map_colours("layer"), p) for p in places[:3]]
    assert [t.get_color() for t in texts] == wanted
    assert {(t.get_fontstyle(), t.get_fontweight()) for t in texts} == {("italic", "bold")}


def test_numbers_shrink_where_there_are_many():
    def size(layers):
        panel = draw(many_runs(4, layers)).axes[0]
        return panel.texts[0].get_fontsize()

    assert 7 == size(3) > size(20) > size(32) >= size(80) >= 3.2


# --- layout


@pytest.mark.parametrize(
    ("panels", "columns"),
    [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (6, 3), (7, 4), (8, 4), (9, 3), (10, 5), (16, 4)],
)
def test_rows_of_panels_are_even(panels, columns):
    assert columns_for(panels, None, 5) == columns


def test_columns_keep_to_the_wish_and_to_the_room():
    assert columns_for(8, 2, 5) == 2
    assert columns_for(2, 4, 5) == 2
    assert columns_for(8, 4, 2) == 2
    assert columns_for(16, None, 2) == 2
    assert columns_for(5, None, 0) == 1


def test_sixteen_runs_are_four_by_four_and_fit_a_page():
    figure = draw(many_runs(16))
    places = [axes.get_position() for axes in figure.axes[:16]]

    assert len({round(p.x0, 3) for p in places}) == 4
    assert len({round(p.y0, 3) for p in places}) == 4
    assert figure.get_size_inches()[1] <= 7


CHARTS = {
    "every mark": every_mark,
    "one run": lambda: many_runs(1),
    "four runs, 80 layers": lambda: many_runs(4, 80),
    "seven runs": lambda: many_runs(7, 3),
    "sixteen runs": lambda: many_runs(16, 3),
    "80 layers as heat": lambda: heat_of(80, panels=4),
    "three quantities of ten runs": lambda: overlaid(10, 3, points=5),
    "sixteen runs in one panel": lambda: overlaid(16, 1, points=5),
}


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        *((name, preset) for name in CHARTS for preset in (None, "icml-1")),
        *(("every mark", preset) for preset in ("iclr", "neurips-half", "acl-1", "icml-2")),
    ],
)
def test_nothing_touches_and_nothing_is_cut_off(name, preset):
    figure = draw(CHARTS[name](), preset)
    boxes = _boxes(figure)

    for _, text, box in boxes:
        assert box.x0 > -1 and box.y0 > -1, text
        assert box.x1 < figure.bbox.width + 1 and box.y1 < figure.bbox.height + 1, text
    for (one, text, box), (other, text_2, box_2) in itertools.combinations(boxes, 2):
        assert one == other or not box.overlaps(box_2), (text, text_2)
    for axes in figure.axes:
        extents = [t.get_window_extent() for t in _tick_labels(axes) if t.get_text()]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))


def _tick_labels(axes):
    """Labels of the ticks within the limits, that is those that are drawn."""
    labels = []
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        low, high = sorted(limits)
        slack = 1e-9 * (high - low)
        ticks = [t for t in axis.get_major_ticks() if low - slack <= t.get_loc() <= high + slack]
        labels += [t.label1 for t in ticks if t.label1.get_visible()]
    return labels


def _boxes(figure):
    """Where panels, their words, legends and captions lie: (whose, what, box) in pixels."""
    FigureCanvasAgg(figure).draw()
    boxes = []
    for axes in figure.axes:
        ticks = _tick_labels(axes)
        words = [axes.title, axes.xaxis.label, axes.yaxis.label, *ticks]
        boxes.append((id(axes), "panel", axes.get_window_extent()))
        boxes += [(id(axes), t.get_text(), t) for t in words if t.get_visible() and t.get_text()]
    loose = [*figure.texts, *(t for legend in figure.legends for t in legend.get_texts())]
    boxes += [(id(t), t.get_text(), t) for t in loose]
    return [(o, s, b.get_window_extent() if isinstance(b, Text) else b) for o, s, b in boxes]


def test_a_name_that_two_panels_share_stands_at_the_outer_sides():
    left, right = draw(many_runs(2)).axes[:2]

    assert (left.get_ylabel(), right.get_ylabel()) == ("ΔD (0 = base)", "")
    assert not any(t.label1.get_visible() for t in right.yaxis.get_major_ticks())


def test_ticks_are_as_given_and_thinned_where_they_would_touch():
    def labels(layers):
        figure = draw(heat_of(layers), "iclr-half")
        FigureCanvasAgg(figure).draw()
        return [t.get_text() for t in figure.axes[0].get_yticklabels()]

    assert labels(8) == [str(i) for i in range(8)]
    assert labels(80)[:3] in (["0", "2", "4"], ["0", "5", "10"])
    assert thinned([0, 1, 2, 3, 4, 5, 6, 7], [1.5] * 8) == [0, 2, 4, 6]
    assert thinned([0, 1, 2], [0.5] * 3) == [0, 1, 2]
    assert thinned([], []) == []


def test_logarithmic_axes_have_powers_and_short_ones_numbers():
    def ticks(low, high):
        line = Line(np.array([0.0, 10]), np.array([low, high]), Ink("run", 0))
        figure = draw(chart_of(line, y=Axis("κ", "κ", (low, high), log=True)))
        FigureCanvasAgg(figure).draw()
        return [t.get_text() for t in figure.axes[0].get_yticklabels() if t.get_text()]

    assert {"10²", "10³", "10⁴"} <= set(ticks(50, 2e4))
    assert {"200", "500"} <= set(ticks(150, 900))


def test_symbols_of_axes_have_their_indices_and_names_keep_theirs():
    axis = Axis("κ (σ_max/σ_min of W_t)", "κ", (0, 10))
    figure = draw(
        Chart((Panel("W_t of q_proj", axis, axis, ()),), (Entry("a", "W_0", Ink("run", 0)),))
    )

    assert figure.axes[0].get_xlabel() == "κ (σₘₐₓ/σₘᵢₙ of Wₜ)"
    assert figure.axes[0].get_title() == "W_t of q_proj"
    assert plain("‖U_pᵀU_p − I‖ of W_0, |U_0ᵀV_t|") == "‖UₚᵀUₚ − I‖ of W_0, |U₀ᵀVₜ|"
    assert figure.legends[0].get_texts()[0].get_text() == "W_0"


def test_lines_are_broken_to_the_room_they_have():
    preset = style.PRESETS["iclr"]
    lines = wrap("a name of several words and averyveryverylongwordwithoutaspace", 0.8, preset, 8)

    assert all(text_width(line, preset, 8) <= 0.8 for line in lines)
    assert (
        "".join(lines).replace(" ", "")
        == "anameofseveralwordsandaveryveryverylongwordwithoutaspace"
    )
    short = wrap("a name of several words", 0.5, preset, 8, most=2)
    assert len(short) == 2
    assert short[1].endswith("…")
    assert text_width(short[1], preset, 8) <= 0.5


def test_a_legend_of_sixteen_takes_few_lines():
    preset = style.PRESETS["icml-2"]
    sheet = plan(overlaid(16, 2, points=2), preset, captioned=False)

    assert sheet.legend_columns == 4


def test_a_panel_longer_than_the_page_allows_is_made_lower():
    many = replace(many_runs(20, 2), columns=1)

    assert draw(many).get_size_inches()[1] < 20


@pytest.mark.parametrize(
    ("name", "lines"),
    [("sorsa-noreg-seed0", ["sorsa-noreg-", "seed0"]), ("w" * 24, None), ("a-" + "w" * 24, None)],
)
def test_a_long_name_is_broken_after_a_joint_where_it_has_one(name, lines):
    preset = style.PRESETS["icml-1"]
    room = text_width("sorsa-noreg-see", preset, preset.size)

    found = wrap(name, room, preset, preset.size)

    assert "".join(found) == name and found == (lines or found)
    assert all(text_width(line, preset, preset.size) <= room for line in found)
