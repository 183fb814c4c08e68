"""Every figure × renderer draws, and files come out whole, alike and safe."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial

import numpy as np
import pandas as pd
import pytest

from spectra import figures
from tests.figures.rows import drift_rows, four_methods, training_rows

ROWS = four_methods(layers=3, steps=(10, 20, 40), noise=True)
FIGURES = {
    "trajectory": partial(figures.trajectory, ROWS),
    "trajectory, free axes": partial(figures.trajectory, ROWS, axes="free"),
    "trajectory, one point": partial(
        figures.trajectory, drift_rows(layers=1, modules=("q_proj",), steps=(5,))
    ),
    "trajectory, no drift": partial(
        figures.trajectory, drift_rows().assign(delta_sigma=0.0, delta_d=0.0)
    ),
    "trajectory, five runs": partial(
        figures.trajectory, pd.concat([drift_rows(r, "lora", layers=2) for r in "abcde"])
    ),
    "trajectory, noise of one axis": partial(figures.trajectory, ROWS.assign(d_noise=0.0)),
    "trajectory, noise of the other": partial(figures.trajectory, ROWS.assign(sigma_noise=np.nan)),
    "curves": partial(figures.curves, ROWS, "delta_d"),
    "curves, noise above": partial(figures.curves, ROWS.assign(d_noise=9.0), "delta_d"),
    "curves, zeros below": partial(
        figures.curves,
        ROWS.assign(delta_sigma=ROWS["delta_sigma"].where(ROWS["step"] > 10, 0.0)),
        "delta_sigma",
        overlay=True,
        log=True,
    ),
    "curves, logarithmic": partial(figures.curves, ROWS, "kappa"),
    "curves, overlaid": partial(figures.curves, ROWS, "kappa", overlay=True),
    "curves, one point": partial(
        figures.curves, drift_rows(layers=1, modules=("q_proj",), steps=(5,)), "delta_d"
    ),
    "training": partial(figures.training, training_rows(steps=200)),
    "training, one step": partial(figures.training, training_rows(steps=1)),
}
SUFFIXES = (".pdf", ".svg", ".pgf", ".png", ".html")
STARTS = {
    ".pdf": b"%PDF",
    ".svg": b"<?xml",
    ".pgf": b"%% A figure by Spectra",
    ".png": b"\x89PNG",
    ".html": b"<!doctype html>",
}
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "$\\frac{1}{$ & %{x} __import__",
    "模型 🚀 \u202e\x00\x1b[31m\nnew line",
    "long" * 60,
)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", FIGURES)
def test_it_draws(name, suffix, tmp_path):
    figure = FIGURES[name](backend=figures.backend_for(f"x{suffix}"))

    path = figures.save(figure, tmp_path / "sub" / f"x{suffix}")

    assert path.read_bytes().lstrip().startswith(STARTS[path.suffix])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "name", ["trajectory", "curves", "curves, logarithmic", "curves, zeros below", "training"]
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_same_rows_give_the_same_bytes(name, suffix):
    backend = figures.backend_for(f"x{suffix}")

    first, second = (figures.to_bytes(FIGURES[name](backend=backend), suffix) for _ in range(2))

    assert first == second


def test_dark_colours_differ_on_screen_only():
    light, dark = (figures.trajectory(ROWS, dark=d).to_json() for d in (False, True))

    assert light != dark


@pytest.mark.slow
def test_a_paper_figure_of_a_7b_model_is_small():
    rows = four_methods(layers=32)

    content = figures.to_bytes(figures.trajectory(rows, backend="matplotlib"), ".pdf")

    # 4 methods × 32 layers × 2 modules × 8 steps: 2048 numbers, as text with two fonts embedded.
    assert len(content) < 300_000
    assert b"/FontFile2" in content


def test_svg_text_stays_text():
    content = figures.to_bytes(figures.trajectory(ROWS, backend="matplotlib"), ".svg")

    texts = {"".join(e.itertext()) for e in ElementTree.fromstring(content).iter()}

    assert {"partial-ft", "q_proj, mean of layers", "2"} <= texts


@pytest.mark.parametrize("suffix", [".svg", ".html"])
@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_data(name, suffix):
    # Two noise floors: the caption names the runs.
    noisy = drift_rows(name, name, layers=2, modules=(name, "q_proj"), noise=True)
    rows = pd.concat([noisy, drift_rows("b", "b", layers=2, modules=(name, "q_proj"))])
    logged = training_rows(name, name, steps=5)
    backend = figures.backend_for(f"x{suffix}")

    for figure in (
        figures.trajectory(rows, backend=backend),
        figures.curves(rows, "delta_d", backend=backend),
        figures.curves(rows, "delta_d", backend=backend, overlay=True),
        figures.training(logged, backend=backend),
    ):
        content = figures.to_bytes(figure, suffix)

        if suffix == ".svg":
            ElementTree.fromstring(content)
        if suffix == ".html":
            assert b"<script>alert(1)" not in content
            assert b"<img src=x" not in content
            # Plotly would read a tag in any text of the page's data, but not in what a click
            # tells: there names stand as they are, and no text may show them.
            drawn = json.loads(figure.to_json())
            for trace in drawn["data"]:
                told = trace.pop("customdata", [])
                shown = re.findall(r"customdata\[(\d+)\]", trace.get("hovertemplate", ""))
                assert "<img src" not in str([row[int(i)] for row in told for i in shown])
            assert "<img src" not in json.dumps(drawn)


def test_names_that_the_font_lacks_or_mathematics_would_read_are_drawn_in_a_pdf():
    rows = pd.concat([drift_rows(name, name, layers=2) for name in HOSTILE])

    content = figures.to_bytes(figures.trajectory(rows, backend="matplotlib"), ".pdf")

    assert content.startswith(b"%PDF")


@pytest.mark.parametrize("path", ["figure", "figure.docx", ".pdf", "figure.pdf.gz", ""])
def test_an_unknown_ending_is_refused(path):
    with pytest.raises(ValueError, match=r"\.pdf, \.svg, \.pgf, \.png or \.html"):
        figures.backend_for(path)


@pytest.mark.parametrize(
    ("backend", "name", "message"),
    [
        ("plotly", "x.pdf", 'plotly figure cannot be written as .pdf.*backend="matplotlib"'),
        ("matplotlib", "x.html", 'matplotlib figure cannot be written as .html.*"plotly"'),
        ("matplotlib", "x.docx", "a file name with one of these endings"),
    ],
)
def test_a_format_of_the_other_renderer_is_refused(backend, name, message, tmp_path):
    figure = FIGURES["training"](backend=backend)

    with pytest.raises(ValueError, match=message):
        figures.save(figure, tmp_path / name)

    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "x.svg"
    path.write_text("earlier")
    figure = FIGURES["training"](backend="matplotlib")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        figures.save(figure, path)

    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def loaded_after(program):
    """Run `program` in a process of its own; return which of the telling modules it loaded."""
    telling = ("matplotlib", "matplotlib.pyplot", "plotly", "torch", "streamlit")
    program = f"import sys; {program}; print(*[m for m in {telling} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return done.stdout.decode().split()


def test_importing_figures_loads_no_plotting_library():
    assert loaded_after("import spectra.figures") == []


def test_drawing_loads_its_own_library_and_no_pyplot():
    draw = (
        "from spectra import figures; from tests.figures.rows import training_rows; "
        "figures.to_bytes(figures.training(training_rows(), backend='{}'), '{}')"
    )

    assert loaded_after(draw.format("matplotlib", ".svg")) == ["matplotlib"]
    assert loaded_after(draw.format("plotly", ".html")) == ["plotly"]


def test_drawing_leaves_matplotlib_as_it_was():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figures.to_bytes(FIGURES["trajectory"](backend="matplotlib"), ".pdf")

    assert dict(mpl.rcParams) == before
