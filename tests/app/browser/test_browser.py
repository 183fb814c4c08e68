"""The dashboard as people use it: in a browser, over real runs."""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from pypdf import PdfReader

from spectra.store import Run
from tests.app.browser.conftest import DEMO, EVERY, STEPS, MakeContext, serving

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGES = (
    *("Overview", "Trajectories", "Layers", "Matrix", "Spectrum"),
    *("Conditioning", "Training", "Compare"),
)
# In a run's name; the slash is not one, which no folder's name can hold.
HOSTILE = "<img src=x onerror=window.harmed=1> **bold** [a](http:b) $x$ %{x} ∕"
# A busy machine takes its time.
PATIENCE_SECONDS = 40
expect.set_options(timeout=1000 * PATIENCE_SECONDS)
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'
FIGURE = ".js-plotly-plot .main-svg"


def open_page(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    rest(page)
    return page


def rest(page: Page) -> None:
    """Wait until the page's script has run, and see that nothing went wrong."""
    page.wait_for_selector(IDLE)
    unharmed(page)


def unharmed(page: Page) -> None:
    assert page.locator('[data-testid="stException"]').count() == 0
    assert page.locator('[data-testid="stAlertContentError"]').all_inner_texts() == []


def drawn(page: Page) -> dict[str, Any]:
    """Return what the page's figure holds: the number of points, and the axes' ranges."""
    expect(page.locator(FIGURE).first).to_be_visible()
    found: dict[str, Any] = page.evaluate(
        """() => {
            const plot = document.querySelector('.js-plotly-plot');
            const axes = Object.keys(plot._fullLayout).filter(k => /^[xy]axis/.test(k)).sort();
            return {
                points: plot._fullData.map(trace => (trace.x || []).length),
                ranges: axes.map(k => plot._fullLayout[k].range.map(v => Number(v.toPrecision(6)))),
            };
        }"""
    )
    return found


def chosen(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def wait_until(page: Page, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, (page.url, page.inner_text("body")[:2000])
        page.wait_for_timeout(100)


def choose(page: Page, label: str, option: str) -> None:
    """Choose an option of a single choice, as the mouse does."""
    page.get_by_role("combobox", name=re.compile(rf"\b{label}$")).first.click()
    page.get_by_role("option", name=option, exact=True).click()


def place_of(page: Page, test: str) -> tuple[float, float]:
    """Return where on the screen the first clickable point lies of which `test` is true."""
    x, y = page.evaluate(
        """test => {
            const plot = document.querySelector('.js-plotly-plot');
            const wanted = new Function('data', 'return ' + test);
            const box = plot.getBoundingClientRect();
            for (const [i, trace] of plot.data.entries()) {
                const full = plot._fullData[i];
                const x = plot._fullLayout[full.xaxis.replace('x', 'xaxis')];
                const y = plot._fullLayout[full.yaxis.replace('y', 'yaxis')];
                for (const [j, data] of Array.from(trace.customdata || []).entries()) {
                    if (data.length < 4 || !wanted(data)) continue;
                    const [px, py] = [x.d2p(full.x[j]), y.d2p(full.y[j])];
                    if (!(px > 0 && px < x._length && py > 0 && py < y._length)) continue;
                    return [box.x + x._offset + px, box.y + y._offset + py];
                }
            }
            throw new Error('no such point: ' + test);
        }""",
        test,
    )
    return x, y


def test_every_page_draws_its_figure(demo: str, fresh: MakeContext) -> None:
    page = open_page(fresh(), demo)

    for title in PAGES:
        page.get_by_role("link", name=title, exact=True).first.click()
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
        rest(page)
        if title == "Overview":
            expect(page.locator('[data-testid="stDataFrame"]')).to_be_visible()
        else:
            assert sum(drawn(page)["points"]) > 0
            assert "spectra plot" in page.inner_text("body")
        unharmed(page)


@pytest.mark.parametrize(
    ("path", "label", "option", "link"),
    [
        (
            "trajectories?run=lora&run=sorsa&module=q_proj",
            "Axes",
            "each panel its own",
            {"axes": ["free"]},
        ),
        ("spectrum?layers=0-5", "View", "cumulative energy Σσ²", {"view": ["energy"]}),
        ("compare?steps=2-", "Aligned by", "training loss", {"by": ["loss"]}),
    ],
)
def test_a_link_opens_the_same_view_for_somebody_else(
    demo: str, fresh: MakeContext, path: str, label: str, option: str, link: dict[str, list[str]]
) -> None:
    page = open_page(fresh(), f"{demo}/{path}")
    before = drawn(page)
    choose(page, label, option)
    wait_until(page, lambda: link.items() <= chosen(page).items())
    wait_until(page, lambda: drawn(page) != before)
    rest(page)

    other = open_page(fresh(), page.url)

    assert chosen(other) == chosen(page) == parse_qs(urlsplit(path).query) | link
    wait_until(other, lambda: drawn(other) == drawn(page))
    expect(other.get_by_role("combobox", name=re.compile(rf"\b{label}$"))).to_have_value(option)


def test_an_exported_pdf_holds_the_figures_text(demo: str, fresh: MakeContext) -> None:
    page = open_page(fresh(accept_downloads=True), f"{demo}/trajectories?run=sorsa&run=lora")
    drawn(page)

    with page.expect_download() as started:
        page.get_by_role("button", name="PDF", exact=True).click()

    download = started.value
    assert download.suggested_filename == "trajectory.pdf"
    reader = PdfReader(io.BytesIO(Path(download.path()).read_bytes()))
    text = reader.pages[0].extract_text()
    assert len(reader.pages) == 1
    assert "sorsa" in text and "lora" in text and "ΔD" in text and "ΔΣ" in text
    unharmed(page)


def test_a_growing_run_grows_on_the_page(
    demo_runs: Path, tmp_path: Path, fresh: MakeContext
) -> None:
    run = Run(shutil.copytree(demo_runs / "sorsa", tmp_path / "runs" / "sorsa"))
    rows = run.drift.read()
    shutil.rmtree(run.drift.folder)
    known = rows[rows["step"] <= STEPS - 2 * EVERY]
    run.drift.append(known.to_dict("records"))
    last = "data[3] == {}".format

    with serving(tmp_path / "runs") as address, run.lock("recording"):
        page = open_page(fresh(), f"{address}/trajectories?module=v_proj&layers=2-9")
        expect(page.get_by_text("● growing")).to_be_visible()
        before = drawn(page)
        place_of(page, last(STEPS - 2 * EVERY))

        run.drift.append(rows[rows["step"] > STEPS - 2 * EVERY].to_dict("records"))

        wait_until(page, lambda: sum(drawn(page)["points"]) > sum(before["points"]))
        rest(page)
        place_of(page, f"{last(STEPS)} && data[1] == 'v_proj' && data[2] >= 2 && data[2] <= 9")
        assert chosen(page) == {"module": ["v_proj"], "layers": ["2-9"]}
        assert page.get_by_role("textbox", name="Layers").input_value() == "2-9"


def test_names_run_no_script_and_make_no_markup(
    demo_runs: Path, tmp_path: Path, fresh: MakeContext
) -> None:
    root = tmp_path / "runs"
    for name in DEMO[:2]:
        run = Run(shutil.copytree(demo_runs / name, root / f"{HOSTILE} {name}"))
        run.update_settings(method=f"{HOSTILE}{name}")
    broken = Run(root / f"{HOSTILE} broken")
    broken.update_settings(method="lora")
    broken.settings_path.write_text("{" + HOSTILE)

    with serving(root) as address:
        page = open_page(fresh(), address)
        for title in PAGES:
            page.get_by_role("link", name=title, exact=True).first.click()
            expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
            rest(page)
            if title != "Overview":
                drawn(page)
                assert "<img src=x" in page.inner_text("body")
            assert page.evaluate("window.harmed") is None
            assert page.locator("img[src=x], a[href^='http:b'], .katex").count() == 0
            unharmed(page)


def test_layers_are_picked_by_a_click_and_by_a_box(demo: str, fresh: MakeContext) -> None:
    page = open_page(fresh(), f"{demo}/trajectories?run=sorsa-noreg&module=q_proj")
    whole = drawn(page)

    page.mouse.click(*place_of(page, f"data[2] == 7 && data[3] == {STEPS}"))
    wait_until(page, lambda: "layers" in chosen(page))
    assert chosen(page)["layers"] == ["7"]
    wait_until(page, lambda: sum(drawn(page)["points"]) < sum(whole["points"]))

    page.get_by_role("button", name="Show all 12 layers").click()
    wait_until(page, lambda: "layers" not in chosen(page))
    wait_until(page, lambda: drawn(page) == whole)
    rest(page)

    page.locator(".js-plotly-plot").first.hover()
    page.locator('[data-title="Box Select"]').first.click()
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    assert box is not None
    # The upper half: layers that turned the most.
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()
    wait_until(page, lambda: "layers" in chosen(page))
    unharmed(page)


def test_a_click_on_the_heat_map_opens_the_matrix(demo: str, fresh: MakeContext) -> None:
    page = open_page(fresh(), f"{demo}/layers?run=sorsa-noreg&module=v_proj")
    drawn(page)

    page.mouse.click(*place_of(page, f"data[2] == 5 && data[3] == {EVERY}"))

    expect(page.get_by_role("heading", name="Matrix", exact=True)).to_be_visible()
    rest(page)
    assert sum(drawn(page)["points"]) > 0
    assert chosen(page) == {
        "run": ["sorsa-noreg"],
        "module": ["v_proj"],
        "layer": ["5"],
        "step": [str(EVERY)],
    }


def test_choices_are_made_from_the_keyboard(demo: str, fresh: MakeContext) -> None:
    page = open_page(fresh(), f"{demo}/trajectories")
    drawn(page)
    reached = "() => (document.activeElement.getAttribute('aria-label') || '')"

    for _ in range(60):
        page.keyboard.press("Tab")
        if re.search(r"\bAxes$", page.evaluate(reached)):
            break
    else:
        pytest.fail("Tab does not reach the choice of axes.")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")

    wait_until(page, lambda: chosen(page) == {"axes": ["free"]})
    rest(page)
    drawn(page)


def test_a_dark_page_has_light_words_on_a_dark_ground(demo: str, fresh: MakeContext) -> None:
    def brightness(page: Page, selector: str, style: str) -> float:
        colour = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{style}")
        red, green, blue = map(float, re.findall(r"[\d.]+", colour)[:3])
        return (0.3 * red + 0.59 * green + 0.11 * blue) / 255

    for scheme in ("light", "dark"):
        page = open_page(fresh(color_scheme=scheme), f"{demo}/trajectories")
        drawn(page)
        ground = brightness(page, '[data-testid="stApp"]', "backgroundColor")
        words = brightness(page, ".js-plotly-plot .xtick text", "fill")
        assert (words > 0.6 and ground < 0.2) if scheme == "dark" else (words < 0.4 < ground)
