"""Draws the curves of loss and learning rate as SVG."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from markupsafe import Markup

from mae.runs.log import Reading

# matplotlib draws with these colours. The page's style sheet has their values for light and dark screens and for paper.
COLOURS = {"#010101": "var(--muted)", "#020202": "var(--rule)", "#030303": "var(--accent)"}
MUTED, RULE, ACCENT = COLOURS
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mae",  # the same figure gives the same bytes
    "font.size": 8,
    "grid.color": RULE,
    "savefig.transparent": True,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "figure.constrained_layout.use"), True),
}


def loss_chart(readings: list[Reading], per_point: int) -> Markup:
    """Return an SVG of loss and learning rate against epochs, which takes its fonts and colours from the page.

    Args:
        readings: at least one.
        per_point: number of readings whose mean is one point; a band shows their smallest and largest loss.
    """
    import matplotlib.style  # takes a second, which other users of this room do not need
    from matplotlib.figure import Figure

    values = np.array([(reading.epoch, reading.lr, reading.loss) for reading in readings])
    groups = np.split(values, range(per_point, len(values), per_point))
    points = [(*group.mean(axis=0), group[:, 2].min(), group[:, 2].max()) for group in groups]
    epoch, lr, loss, lowest, highest = np.transpose(points)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(8, 3.6))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.fill_between(epoch, lowest, highest, color=ACCENT, alpha=0.2, linewidth=0)
        upper.plot(epoch, loss, color=ACCENT, linewidth=1.2, marker="o" if len(groups) == 1 else None)
        upper.text(epoch[-1], loss[-1], f"\u00a0{readings[-1].loss:.4g}", va="center", color=ACCENT)
        upper.set(ylabel="loss")
        lower.plot(epoch, lr, color=MUTED, linewidth=1)
        lower.set(xlabel="epoch", ylabel="lr", yticks=[0, max(lr)], yticklabels=["0", f"{max(lr):.2g}"])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r"(?s)^.*?<svg .*?(viewBox=.*?) xmlns.*?>", r"<svg \1>", buffer.getvalue())  # without XML's prologue
    return Markup(re.sub("|".join(COLOURS), lambda match: COLOURS[match.group()], svg))
