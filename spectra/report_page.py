"""The HTML of a report: one file, which loads nothing from anywhere and runs only its own scripts.

Every figure is there in light, with what changes in the dark; the script draws what the reader's
system asks for, and in light on paper.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spectra.figures import SCREEN_CONFIG, Chart
from spectra.figures.chart import Heat, Line, Numbers, Panel

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1d1d1f; --faint: #5b5b60;
        --line: #d9d9de; --shade: #f4f4f6; --link: #0a58a8; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0e1117; --ink: #e8e8e8; --faint: #a9adb5; --line: #333843; --shade: #1a1e27;
          --link: #8ab8ff; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 3.2rem; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
       margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 0 1rem 4rem; }
h1 { font-size: 1.55rem; margin: 1.4rem 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible
  { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 1rem; top: .5rem; background: var(--ground); padding: .3rem; z-index: 9; }
nav { position: sticky; top: 0; z-index: 5; background: var(--ground);
      border-bottom: 1px solid var(--line); }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; max-width: 1180px; margin: 0 auto;
         padding: .5rem 1rem; list-style: none; }
figure { margin: .4rem 0 1.4rem; break-inside: avoid; }
figcaption, .how { color: var(--faint); font-size: .92rem; max-width: 62rem; }
.none { background: var(--shade); padding: .5rem .8rem; border-radius: .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
th.words, td.words { text-align: left; white-space: normal; overflow-wrap: anywhere; }
pre { background: var(--shade); padding: .8rem; font-size: 12px; white-space: pre-wrap;
      overflow-wrap: anywhere; }
summary { cursor: pointer; overflow-wrap: anywhere; }
@media print {
  :root { --ground: #ffffff; --ink: #000000; --faint: #444444; --line: #bbbbbb; --shade: #f4f4f6; }
  nav, .skip, .modebar-container { display: none !important; }
  main { max-width: none; padding: 0; }
  h2, h3, .how { break-after: avoid; }
}
"""

_SCRIPT = """
"use strict";
(function () {
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var printing = false;
  var config = read("config");
  var places = Array.prototype.slice.call(document.querySelectorAll(".plot"));
  function read(id) { return JSON.parse(document.getElementById(id).textContent); }
  function changed(value, change) {
    if ("=" in change) { return change["="]; }
    Object.keys(change).forEach(function (key) { value[key] = changed(value[key], change[key]); });
    return value;
  }
  function draw(place) {
    var figure = read(place.id + "-light");
    if (dark.matches && !printing) { figure = changed(figure, read(place.id + "-dark")); }
    if (printing) { figure.layout.width = 700; }
    return Plotly.react(place, figure.data, figure.layout, config);
  }
  function drawAll() { places.forEach(draw); }
  // One after the other, so that the page can be read and scrolled from the start.
  function drawNext(index) {
    if (index === places.length) { document.documentElement.dataset.drawn = "all"; return; }
    draw(places[index]);
    window.setTimeout(drawNext, 0, index + 1);
  }
  drawNext(0);
  dark.addEventListener("change", drawAll);
  window.addEventListener("beforeprint", function () {
    printing = true;
    document.querySelectorAll("details").forEach(function (one) { one.open = true; });
    drawAll();
  });
  window.addEventListener("afterprint", function () { printing = false; drawAll(); });
})();
"""

_NO_SCRIPT = "The figures are drawn by a script within this file, which this browser does not run."


@dataclass(frozen=True)
class Drawing:
    """One figure of a section.

    Attributes
    ----------
    chart : Chart
    name : str
        A heading of its own, where a section has several.
    """

    chart: Chart
    name: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes
    ----------
    key : str
        Its address within the page: a word.
    title : str
    drawings : tuple of Drawing
    problem : str
        Why there is no figure, or not all; empty otherwise.
    body : str
        HTML that follows the figures.
    """

    key: str
    title: str
    drawings: tuple[Drawing, ...] = ()
    problem: str = ""
    body: str = ""


def page(title: str, introduction: str, sections: Sequence[Section]) -> str:
    """Return the whole file.

    Parameters
    ----------
    title : str
    introduction : str
        HTML for the top.
    sections : sequence of Section
    """
    drawn = any(section.drawings for section in sections)
    links = "".join(f'<li><a href="#{s.key}">{html.escape(s.title)}</a></li>' for s in sections)
    library = _library() if drawn else ""
    scripts = [library, _SCRIPT] if drawn else []
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    # Nothing is loaded, sent or framed; Plotly sets styles, and saves a picture through a blob.
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    config = _json(SCREEN_CONFIG | {"responsive": True})
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="referrer" content="no-referrer">\n',
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n",
        '<a class="skip" href="#content">Skip to the content</a>\n',
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main id="content">\n',
        f"<h1>{html.escape(title)}</h1>\n{introduction}\n",
        f'<noscript><p class="none">{_NO_SCRIPT}</p></noscript>\n' if drawn else "",
        *map(_section, sections),
        f'</main>\n<script type="application/json" id="config">{config}</script>\n',
        *(f"<script>{script}</script>\n" for script in scripts),
        "</body>\n</html>\n",
    ]
    return "".join(parts)


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    name = f' class="{kind}"' if kind else ""
    return f"<p{name}>{html.escape(text)}</p>\n"


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int]
) -> str:
    """Return a table of plain texts; columns whose number is in `words` are set as words."""

    def cells(tag: str, row: Sequence[str]) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        kinds = [' class="words"' if i in words else "" for i in range(len(row))]
        return "".join(
            f"<{tag}{scope}{kind}>{html.escape(cell)}</{tag}>"
            for kind, cell in zip(kinds, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(caption)}">'
        f"<table><thead><tr>{cells('th', head)}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def _section(section: Section) -> str:
    parts = [f'<section id="{section.key}">\n<h2>{html.escape(section.title)}</h2>\n']
    readings = dict.fromkeys(d.chart.reading for d in section.drawings if d.chart.reading)
    parts += [paragraph(reading, "how") for reading in readings]
    for number, drawing in enumerate(section.drawings):
        parts.append(_figure(f"{section.key}-{number}", section.title, drawing))
    if section.problem:
        parts.append(paragraph(section.problem, "none"))
    return "".join([*parts, section.body, "</section>\n"])


def _figure(key: str, title: str, drawing: Drawing) -> str:
    from spectra.figures import plotly_renderer

    # The page sets the caption: it wraps, and can be copied.
    panels = tuple(map(_unpicked, drawing.chart.panels))
    bare = replace(drawing.chart, caption="", panels=panels)
    label = " ".join(part for part in (title, drawing.name, drawing.chart.reading) if part)
    parts = [f"<h3>{html.escape(drawing.name)}</h3>\n" if drawing.name else ""]
    light, dark = (_spec(plotly_renderer.draw(bare, dark=dark)) for dark in (False, True))
    for shade, spec in (("light", light), ("dark", _change(light, dark))):
        kind = f'type="application/json" id="{key}-{shade}"'
        parts.append(f"<script {kind}>{_json(spec)}</script>\n")
    height = light["layout"]["height"]
    place = (
        f'<div class="plot" id="{key}" role="img" aria-label="{html.escape(label)}" '
        f'style="min-height:{height:.0f}px"></div>'
    )
    caption = drawing.chart.caption
    told = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return "".join([*parts, f"<figure>{place}{told}</figure>\n"])


def _unpicked(panel: Panel) -> Panel:
    """Without what a click tells: here nothing listens, and it is half of the file."""
    marks = tuple(
        replace(mark, pick=None) if isinstance(mark, (Heat, Line, Numbers)) else mark
        for mark in panel.marks
    )
    inset = panel.inset and replace(panel.inset, panel=_unpicked(panel.inset.panel))
    return replace(panel, marks=marks, inset=inset)


def _spec(figure: Any) -> dict[str, Any]:
    figure.layout.paper_bgcolor = "rgba(0,0,0,0)"
    spec: dict[str, Any] = json.loads(figure.to_json(validate=False))
    return spec


def _change(one: Any, two: Any) -> dict[str, Any]:
    """Return what makes `two` of `one`: the data of a figure need not be there twice."""
    if isinstance(one, dict) and isinstance(two, dict) and set(one) == set(two):
        keys: Iterable[Any] = one
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        keys = range(len(one))
        if sum(one[i] != two[i] for i in keys) > len(one) / 2 and isinstance(two[0], str):
            return {"=": two}
    else:
        return {"=": two}
    return {str(key): _change(one[key], two[key]) for key in keys if one[key] != two[key]}


def _json(value: object) -> str:
    """JSON that ends no script element: only strings in it hold a ``<``."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c")


def _library() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
