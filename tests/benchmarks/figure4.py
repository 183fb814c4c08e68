"""The SORSA paper's Figure 4: Eq. 7 against Eq. 14, over matrix sizes and ranks.

Timed, forward and backward, is a layer of the paper's row-vector convention with m = n and a frozen
W_r in memory, for x of shape (tokens, m) that needs a gradient, and trained U_p, S_p, V_p:

- Eq. 7 as written: x W_r + x (U_p diag(S_p) V_pᵀ). diag(S_p), r×r, is formed and multiplied, and so
  is W_p, m×n, in every forward pass.
- Eq. 14 as published: x W_r + x ((U_p ⊙ S_p) V_pᵀ). No diag, but W_p is formed; the authors' layer
  does this.
- Eq. 7 in low-rank order: x W_r + ((x U_p) diag(S_p)) V_pᵀ.
- Eq. 14 in low-rank order: x W_r + (x (U_p ⊙ S_p)) V_pᵀ. Nothing is formed.
- LoRA or PiSSA: x W_r + (x A) B. What the paper says Eq. 14 approaches.
- No adapter: x W_r.

All take turns, in one order and then backwards, after one untimed round; the figure shows medians.

    python -m tests.benchmarks.figure4 --csv docs/figure4.csv --figure docs/images/figure4.png
    python -m tests.benchmarks.figure4 --device cuda --where "one H100" --csv h100.csv
    python -m tests.benchmarks.figure4 --draw docs/figure4.csv --figure docs/images/figure4.png
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.ticker
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from spectra.figures import style
from tests.benchmarks.turns import in_turns, machine, medians

Product = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]

ORDERS: dict[str, Product] = {
    "Eq. 7 as written": lambda x, w, t: x @ w + x @ (t["u"] @ torch.diag(t["s"]) @ t["vh"]),
    "Eq. 14 as published": lambda x, w, t: x @ w + x @ ((t["u"] * t["s"]) @ t["vh"]),
    "Eq. 7, low-rank order": lambda x, w, t: x @ w + x @ t["u"] @ torch.diag(t["s"]) @ t["vh"],
    "Eq. 14, low-rank order": lambda x, w, t: x @ w + x @ (t["u"] * t["s"]) @ t["vh"],
    "LoRA or PiSSA": lambda x, w, t: x @ w + x @ t["u"] @ t["vh"],
    "no adapter": lambda x, w, t: x @ w,
}
BASELINE = "Eq. 14, low-rank order"
_MARKS = ("o", "s", "^", "D", "x", "")
_DASHES = ("-", (0, (4, 1.6)), "-", (0, (4, 1.6)), (0, (1, 1.4)), (0, (8, 2)))
_COLOURS = (*(style.run_colour(i) for i in (1, 3, 2, 0)), "#444444", "#999999")


def main() -> None:
    """Measure, write the numbers, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9, help="of 4096; smaller ones have more")
    parser.add_argument("--device", default="cpu", help="cuda and mps are waited for")
    parser.add_argument("--where", default="", help="the machine, in words, for the caption")
    parser.add_argument("--csv", type=Path, help="write the numbers here")
    parser.add_argument("--draw", type=Path, help="draw these numbers instead of measuring")
    parser.add_argument("--figure", type=Path, help="write the figure here")
    options = parser.parse_args()
    rows = pd.read_csv(options.draw) if options.draw else measure(options)
    if options.csv:
        rows.to_csv(options.csv, index=False, float_format="%.4g")
    print(table(rows))
    if options.figure:
        draw(rows).savefig(options.figure, dpi=style.PNG_DPI)


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """Return medians, in milliseconds, a row for each size, rank and order."""
    where = "; ".join(filter(None, (options.where, machine())))
    print(where, flush=True)
    rows = []
    for size in options.sizes:
        for rank in options.ranks:
            cases = prepare(size, rank, options.tokens, options.device)
            # Small sizes are over sooner and disturbed more.
            times = in_turns(cases, options.rounds * min(8, max(1, 4096 // size)))
            for order, taken in times.items():
                whole = pd.Series([sum(parts) for parts in taken])
                base = pd.Series([sum(parts) for parts in times[BASELINE]])
                forward, backward = medians(taken)
                rows.append(
                    {
                        "size": size,
                        "rank": rank,
                        "order": order,
                        "forward_ms": 1e3 * forward,
                        "backward_ms": 1e3 * backward,
                        "ratio": whole.median() / base.median(),
                        "ratio_low": (whole / base).quantile(0.25),
                        "ratio_high": (whole / base).quantile(0.75),
                        "tokens": options.tokens,
                        "where": where,
                    }
                )
            print(f"{size}×{size}, rank {rank}: done", flush=True)
    return pd.DataFrame(rows)


def prepare(size: int, rank: int, tokens: int, device: str) -> dict[str, Callable[[], list[float]]]:
    """One case an order; all on the same tensors, and with the same result where it should be."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / shape[0] ** 0.5).to(device)

    x, w_r, gradient = random(tokens, size), random(size, size), random(tokens, size)
    trained = {"u": random(size, rank), "s": random(rank).abs(), "vh": random(rank, size)}
    leaves = [x.requires_grad_(), *(t.requires_grad_() for t in trained.values())]
    expected = ORDERS["Eq. 7 as written"](x, w_r, trained)
    for order in list(ORDERS)[1:4]:
        torch.testing.assert_close(ORDERS[order](x, w_r, trained), expected, rtol=1e-3, atol=1e-4)

    def run(product: Product) -> list[float]:
        for leaf in leaves:
            leaf.grad = None
        at = [_now(device)]
        y = product(x, w_r, trained)
        at.append(_now(device))
        y.backward(gradient)
        at.append(_now(device))
        return [at[1] - at[0], at[2] - at[1]]

    return {order: partial(run, product) for order, product in ORDERS.items()}


def table(rows: pd.DataFrame) -> str:
    """Milliseconds forward + backward; in brackets the ratio to the last order of Eq. 14."""
    lines = ["| size | rank | " + " | ".join(ORDERS) + " |", "| --- |" + " --- |" * 7]
    for (size, rank), group in rows.groupby(["size", "rank"]):
        cells = [
            f"{r.forward_ms:.3g} + {r.backward_ms:.3g} ({r.ratio:.2f})" for r in group.itertuples()
        ]
        lines.append(f"| {size} | {rank} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: pd.DataFrame) -> Figure:
    """One column a rank: forward, backward, and both relative to the fastest order of SORSA."""
    ranks, sizes = sorted(rows["rank"].unique()), sorted(rows["size"].unique())
    kinds = {
        "forward_ms": "forward, ms",
        "backward_ms": "backward, ms",
        "ratio": "forward + backward,\n× Eq. 14 in low-rank order",
    }
    settings = {"font.family": style.FONT, "font.size": style.SMALL_FONT_SIZE}
    with style.matplotlib_settings(settings | {"axes.linewidth": 0.6}):
        figure = Figure(figsize=(style.PAPER_WIDTH, 6.6), layout="constrained")
        axes = figure.subplots(len(kinds), len(ranks), sharex=True, sharey="row", squeeze=False)
        for (column, label), line in zip(kinds.items(), axes, strict=True):
            for rank, panel in zip(ranks, line, strict=True):
                for index, order in enumerate(ORDERS):
                    shown = rows[(rows["rank"] == rank) & (rows["order"] == order)]
                    panel.plot(
                        shown["size"],
                        shown[column],
                        label=order,
                        color=_COLOURS[index],
                        linestyle=_DASHES[index],
                        linewidth=1.1,
                        marker=_MARKS[index],
                        markersize=3.6,
                        markerfacecolor="none" if index in (1, 3) else None,
                    )
                panel.set_xscale("log", base=2)
                panel.set_yscale("log")
                panel.set_xticks(sizes, [str(size) for size in sizes])
                panel.grid(True, which="major", linewidth=0.3, color="#cccccc")
                panel.spines[["top", "right"]].set_visible(False)
                panel.yaxis.set_major_formatter("{x:g}")
                if column == "ratio":
                    panel.yaxis.set_major_locator(
                        matplotlib.ticker.FixedLocator([0.5, 0.7, 1, 1.4, 2, 3])
                    )
                    panel.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
                    panel.set_xlabel("m = n", fontsize=style.FONT_SIZE)
            line[0].set_ylabel(label, fontsize=style.FONT_SIZE - 0.5)
        for rank, panel in zip(ranks, axes[0], strict=True):
            panel.set_title(f"rank {rank}", fontsize=style.FONT_SIZE)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
        tokens, where = rows["tokens"].iloc[0], rows["where"].iloc[0]
        figure.supxlabel(
            f"x: {tokens} tokens, float32, medians. {where}", fontsize=style.SMALL_FONT_SIZE - 1
        )
    return figure


def _now(device: str) -> float:
    if device != "cpu":
        getattr(torch, device.partition(":")[0]).synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
