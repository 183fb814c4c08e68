"""Charts with known content, for the renderers' own tests."""

from __future__ import annotations

import numpy as np

from spectra.figures.chart import (
    GREY,
    Axis,
    Band,
    Chart,
    ColourBar,
    Entry,
    Frame,
    Heat,
    Ink,
    Inset,
    Line,
    Note,
    Numbers,
    Panel,
    Rule,
    Zone,
)

STEP = Axis("step", "step", (0, 400), integer=True)
SIGMA = Axis("ΔΣ (unit of the weights)", "ΔΣ", (-1e-4, 2.2e-3))
TURN = Axis("ΔD (0 = base)", "ΔD", (-0.02, 0.4))
KAPPA = Axis("κ (σ_max/σ_min of W_t)", "κ", (1e2, 1e6), log=True)


def every_mark() -> Chart:
    """Every mark, kind of axis and ornament once, in three panels."""
    steps = np.arange(0.0, 401.0, 50.0)
    broken = np.where(steps == 200, np.nan, 1e3 * (1 + steps / 10))
    curves = Panel(
        "conditioning",
        STEP,
        KAPPA,
        (
            Zone(y=(None, 400.0), edge=True),
            Rule(y=5e5),
            Rule(x=300, dash="dash"),
            Band(steps, broken / 3, broken * 3, Ink("run", 0), entry="sorsa"),
            Line(steps, broken, Ink("run", 0), entry="sorsa"),
            Line(np.array([100.0]), np.array([1e5]), Ink("run", 1), dash="dash", entry="lora"),
            Note("noise floor of bfloat16", y=400.0),
            Note("at the top", side="right"),
        ),
    )
    paths = _paths("a path with an inset", layers=12, reach=1.0)
    inner = Panel("", Axis("", "", (0, 5e-4)), Axis("", "", (0, 0.1)), paths.marks)
    heat = Panel(
        "layer × step",
        STEP,
        Axis("layer", "layer", (11.5, -0.5), ticks=tuple((float(i), str(i)) for i in range(12))),
        (Heat(steps, np.arange(12.0), _with_gaps(12, len(steps)), "ΔD"),),
    )
    overlap = Panel(
        "|U_0ᵀU_t|",
        Axis("trained", "j", (0.5, 8.5), integer=True),
        Axis("base", "i", (8.5, 0.5), integer=True),
        (Heat(np.arange(1.0, 9), np.arange(1.0, 9), np.eye(8), "|⟨u_i, u_j⟩|"),),
        square=True,
    )
    with_inset = Panel(
        paths.title,
        paths.x,
        paths.y,
        (*paths.marks, Frame((0, 5e-4), (0, 0.1))),
        inset=Inset((0.45, 0.5, 0.5, 0.45), inner),
    )
    return Chart(
        (curves, with_inset, heat, overlap),
        (
            Entry("sorsa", "sorsa", Ink("run", 0)),
            Entry("lora", "lora", Ink("run", 1), dash="dash"),
            Entry("q_proj", "q_proj, mean of layers", Ink("module", 0), marker="circle"),
            Entry("v_proj", "v_proj", Ink("module", 1), "dash", "square", lettering=1),
        ),
        ColourBar("ΔD", "size", (0.0, 1.0), integer=False),
        caption="Numbers are layers. The grey band is what rounding to bfloat16 alone would give.",
    )


def many_runs(
    runs: int, layers: int = 12, steps: tuple[int, ...] = (50, 100, 200, 400), modules: int = 2
) -> Chart:
    """Figure 2: a panel a run, numbers for layers, thick lines for the means."""
    names = "q_proj v_proj k_proj o_proj".split()[:modules]
    return Chart(
        tuple(
            _paths(f"method-{i}", layers, 0.2 + 0.8 * (i + 1) / runs, steps, modules, seed=i)
            for i in range(runs)
        ),
        tuple(
            Entry(m, f"{m}, mean of layers", Ink("module", i), ("solid", "dash", "dot")[i % 3],
                  ("circle", "square", "diamond")[i % 3], lettering=i)
            for i, m in enumerate(names)
        ),
        ColourBar("step", "step", (steps[0], steps[-1]), ticks=tuple(map(float, steps))),
        caption=(
            "Numbers are layers (q_proj upright, v_proj italic). Unrelated bases would have "
            "ΔD ≈ 0.984 (above these axes)."
        ),
        link_x=True,
        link_y=True,
    )  # fmt: skip


def overlaid(runs: int, panels: int = 2, points: int = 60) -> Chart:
    """Training curves: a line a run, a panel a quantity."""
    rng = np.random.default_rng(0)
    steps = np.linspace(1, 400, points)
    quantities = [Axis("training loss (nats per token)", "loss", (0, 2.2)),
                  Axis("gradient norm (before clipping)", "norm", (0, 2.2)),
                  Axis("‖U_pᵀU_p − I‖ (Frobenius)", "ortho", (1e-3, 10), log=True)]  # fmt: skip
    return Chart(
        tuple(
            Panel(
                "",
                STEP,
                axis,
                tuple(
                    Line(
                        steps,
                        0.3 + 0.05 * i + np.exp(-steps / 60) + 0.02 * rng.standard_normal(points),
                        Ink("run", i),
                        dash=("solid", "dash", "dot", "dashdot", "longdash")[i % 5],
                        entry=str(i),
                    )
                    for i in range(runs)
                ),
            )
            for axis in (quantities * panels)[:panels]
        ),
        tuple(
            Entry(str(i), f"method-{'with-a-name' if i % 3 else 'x'}-{i}", Ink("run", i),
                  ("solid", "dash", "dot", "dashdot", "longdash")[i % 5])
            for i in range(runs)
        ),
        link_x=True,
    )  # fmt: skip


def heat_of(layers: int, steps: int = 40, panels: int = 1, log: bool = False) -> Chart:
    """A column of every layer over the steps."""
    rng = np.random.default_rng(1)
    x = np.sort(rng.choice(np.arange(1, 1000), steps, replace=False)).astype(float)
    y = np.arange(float(layers))
    values = (x / 1000) ** 0.7 * (0.3 + 0.7 * rng.random((layers, 1))) + 1e-3
    values[:: max(layers // 4, 1), : steps // 5] = np.nan
    labels = tuple((float(i), str(i)) for i in range(layers))
    return Chart(
        tuple(
            Panel(
                f"sorsa · {'qvkoudg'[i % 7]}_proj",
                Axis("step", "step", (x[0], x[-1]), integer=True),
                Axis("layer", "layer", (-0.5, layers - 0.5), integer=True, ticks=labels),
                (Heat(x, y, values, "ΔD"),),
            )
            for i in range(panels)
        ),
        bar=ColourBar("ΔD (0 = base)", "size", (1e-3 if log else 0.0, 1.0), log, integer=False),
        link_x=True,
        link_y=True,
    )


def _paths(
    title: str, layers: int, reach: float, steps: tuple[int, ...] = (50, 100, 200, 400),
    modules: int = 2, seed: int = 0,
) -> Panel:  # fmt: skip
    rng = np.random.default_rng(seed)
    time = np.array(steps, float) / steps[-1]
    marks: list[Line | Numbers | Zone | Rule] = [Zone(x=(0, 1e-4), y=(0, 0.02))]
    means: list[Line] = []
    for module in range(modules):
        across = 2e-3 * reach * time * rng.uniform(0.5, 1, (layers, 1)) * (1 - 0.2 * module)
        up = 0.36 * reach * time**0.7 * rng.uniform(0.4, 1, (layers, 1)) * (1 - 0.3 * module)
        threads = [np.pad(a, ((0, 0), (1, 0))) for a in (across, up)]
        gapped = [np.pad(a, ((0, 0), (0, 1)), constant_values=np.nan).ravel() for a in threads]
        marks.append(Line(gapped[0], gapped[1], GREY, 0.35, opacity=0.35))
        marks.append(
            Numbers(
                across.ravel(), up.ravel(),
                tuple(str(layer) for layer in range(layers) for _ in steps),
                np.tile(time, layers), lettering=module,
            )
        )  # fmt: skip
        dash, marker = (
            ("solid", "dash", "dot")[module % 3],
            ("circle", "square", "diamond")[module % 3],
        )
        means.append(
            Line(
                np.append(0, across.mean(0)), np.append(0, up.mean(0)), Ink("module", module), 1.5,
                dash, marker=marker, rim=True,
            )
        )  # fmt: skip
    return Panel(title, SIGMA, TURN, (*marks, *means))


def _with_gaps(rows: int, columns: int) -> np.ndarray:
    values = np.linspace(0, 1, rows * columns).reshape(rows, columns)
    values[2:4, 3] = np.nan
    return values
