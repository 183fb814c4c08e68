"""The report: one file that loads nothing, with every section, and what was left out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from spectra.cli import main
from spectra.report import LeftOut, write_report
from spectra.store import Run
from tests.app.pages import HOSTILE, write_run

SECTIONS = "trajectories layers conditioning compare training spectrum values provenance".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    return [
        write_run(root, "one", "sorsa", arrays=True),
        write_run(root, "two", "lora", arrays=True, reach=3.0),
    ]


@pytest.fixture(scope="module")
def page(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(runs, tmp_path_factory.mktemp("out") / "report.html", ["A note."])


class Elements(HTMLParser):
    """What a browser finds: elements with their attributes, and the text of each."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(path.read_bytes().decode())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.handle_starttag("", [])  # what follows is not of the element

    def of(self, tag: str) -> list[tuple[dict[str, str], str]]:
        pairs = zip(self.found, self.texts, strict=True)
        return [(attributes, text) for (name, attributes), text in pairs if name == tag]

    @property
    def words(self) -> str:
        pairs = zip(self.found, self.texts, strict=True)
        return " ".join(text for (name, _), text in pairs if name not in ("script", "style"))


def figures(elements: Elements) -> dict[str, Any]:
    kind = "application/json"
    return {a["id"]: json.loads(text) for a, text in elements.of("script") if a.get("type") == kind}


def test_nothing_is_loaded_from_anywhere(page: Path) -> None:
    elements = Elements(page)
    assert len(elements.found) > 100
    for tag, attributes in elements.found:
        assert not {"src", "srcset", "action", "data", "poster"} & set(attributes), tag
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert attributes.get("href", "#").startswith("#")
    ((style, css),) = elements.of("style")
    assert "url(" not in css and "@import" not in css


def test_only_its_own_scripts_may_run_and_nothing_is_sent(page: Path) -> None:
    elements = Elements(page)
    policies = [a["content"] for a, _ in elements.of("meta") if "http-equiv" in a]
    (policy,) = (dict(part.split(" ", 1) for part in p.split("; ")) for p in policies)
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in policy["script-src"] and "http" not in policies[0]
    run = [text for a, text in elements.of("script") if "type" not in a]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in run]
    assert policy["script-src"].split() == [f"'sha256-{h}'" for h in hashes]


def test_every_section_is_there_and_linked(page: Path) -> None:
    elements = Elements(page)
    assert [a["id"] for a, _ in elements.of("section")] == SECTIONS
    assert [a["href"][1:] for a, _ in elements.of("a")][1:] == SECTIONS
    drawn = figures(elements)
    for section in SECTIONS[:6]:
        assert drawn[f"{section}-0-light"]["data"]
        # In the dark the ink changes, and no data.
        dark = drawn[f"{section}-0-dark"]
        assert dark["layout"]["font"]["color"]["="].startswith("#e")
        assert not any({"x", "y", "customdata"} & set(c) for c in dark.get("data", {}).values())
    assert "A note." in elements.words


def test_the_same_runs_give_the_same_bytes(runs: list[Run], page: Path, tmp_path: Path) -> None:
    again = write_report(runs, tmp_path / "again.html", ["A note."])
    assert again.read_bytes() == page.read_bytes()


def test_the_table_has_the_values_of_the_rows(runs: list[Run], page: Path) -> None:
    drift = runs[0].read_drift()
    last = drift[(drift["step"] == drift["step"].max()) & (drift["module"] == "q_proj")]
    cells = [text for _, text in Elements(page).of("td")]
    assert f"{last['delta_d'].mean():.4g}" in cells
    assert f"{last['delta_sigma'].mean():.4g}" in cells


def test_provenance_is_what_run_json_says(runs: list[Run], page: Path) -> None:
    blocks = [json.loads(text) for _, text in Elements(page).of("pre")]
    assert blocks == [run.read_settings() for run in runs]


def test_names_are_text(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "")
    run = write_run(tmp_path, name, HOSTILE, arrays=True)
    elements = Elements(write_report([run], tmp_path / "a.html", ["</script><b>note</b>"]))
    assert not elements.of("img") and not elements.of("b")
    assert name in elements.words
    # Plotly reads mark-up in what it shows: there it is escaped a second time.
    shown = json.dumps([f for key, f in figures(elements).items() if key.endswith("light")])
    assert "<img" not in shown


def test_a_run_that_cannot_be_read_is_named_and_the_others_shown(tmp_path: Path) -> None:
    good, broken, empty = (write_run(tmp_path, n, "lora") for n in ("good", "broken", "empty"))
    broken.settings_path.write_text("{")
    for part in (empty.path / "drift").iterdir():
        part.write_bytes(b"no parquet")
    missing = LeftOut("nowhere", "It is not there.")
    written = write_report([good, broken, empty], tmp_path / "a.html", left_out=[missing])
    elements = Elements(written)
    told = [text for a, text in elements.of("p") if a.get("class") == "none"]
    left_out = [text for text in told if text.startswith("Left out")]
    assert [re.match(r"Left out: (\w+)\. .+", text)[1] for text in left_out] == [  # type: ignore[index]
        "nowhere", "broken", "empty",
    ]  # fmt: skip
    assert [a["id"] for a, _ in elements.of("section")][0] == "trajectories"
    assert "trajectories-0-light" in figures(elements)


def test_a_section_without_data_says_so_in_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path, "new", analysed=False)
    elements = Elements(write_report([run], tmp_path / "a.html"))
    assert "training-0-light" in figures(elements)
    assert "trajectories-0-light" not in figures(elements)
    assert "spectra analyze" in elements.words and "not analysed" in elements.words


def test_more_panels_than_a_figure_holds_are_several_figures(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, f"run{i:02}", "lora", layers=2) for i in range(17)]
    elements = Elements(write_report(runs, tmp_path / "a.html"))
    heads = [text for _, text in elements.of("h3")]
    assert heads[:2] == ["runs 1 to 16", "run16"]
    titles = heads[1] + " ".join(
        note["text"]
        for key, figure in figures(elements).items()
        if key.startswith("layers") and key.endswith("light")
        for note in figure["layout"]["annotations"]
    )
    assert all(run.name in titles for run in runs)


def test_no_readable_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="None of the runs can be read. gone: .*no run"):
        write_report([Run(tmp_path / "gone")], tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_the_command_names_what_it_leaves_out_and_the_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = write_run(tmp_path, "a"), tmp_path / "a.html"
    assert main(["report", str(run.path), str(tmp_path / "gone"), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(f"Left out {tmp_path / 'gone'}: ")
    assert f"Wrote {out} (" in printed.out and "MiB)" in printed.out


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_drawn_offline_as_the_readers_system_is(
    browser: Any, page: Path, scheme: str
) -> None:
    context = browser.new_context(color_scheme=scheme, offline=True)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    view = context.new_page()
    problems: list[str] = []
    view.on("console", lambda message: problems.append(message.text))
    view.on("pageerror", lambda error: problems.append(str(error)))
    view.goto(page.as_uri())
    view.wait_for_function("() => document.documentElement.dataset.drawn === 'all'")
    assert view.evaluate("() => document.querySelectorAll('.plot .main-svg').length") >= 6
    ink = view.evaluate("() => getComputedStyle(document.querySelector('.xtick text')).fill")
    channels = [int(c) for c in re.findall(r"\d+", ink)[:3]]
    assert (sum(channels) / 3 > 128) == (scheme == "dark")
    # Nothing was asked for, and the policy had nothing to refuse.
    assert asked == [page.as_uri()] and problems == []
    context.close()
