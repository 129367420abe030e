"""What tests ask of figures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, Tick
from matplotlib.figure import Figure
from matplotlib.text import Text


def no_overlap(fig: Figure) -> bool:
    """Return whether no two texts touch, of all that are to be seen in a figure."""
    fig.draw_without_rendering()
    axes = fig.findobj(Axes)
    beyond = {
        id(tick.label1)
        for axis in [panel.xaxis for panel in axes] + [panel.yaxis for panel in axes]
        for tick in axis.get_major_ticks()
        if not _is_within(axis, tick)
    }
    texts = [text for text in fig.findobj(Text) if text.get_text() and text.get_visible() and id(text) not in beyond]
    boxes = np.array([text.get_window_extent().extents for text in texts]).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, 2:]
    touch = ((low[:, None] < high) & (low < high[:, None])).all(axis=2)
    return touch.sum() == len(boxes)  # each touches itself


def lines(axes: Axes) -> dict:
    """Return the curves of axes by their label."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def _is_within(axis: Axis, tick: Tick) -> bool:
    low, high = sorted(axis.get_view_interval())
    return low <= tick.get_loc() <= high


def check_same_bytes(draw: Callable[[Path], None], folder: Path) -> None:
    """Check that a figure, drawn twice under a name without suffix, is the same PDF and the same PNG."""
    for stem in ("first.v1", "second"):
        draw(folder / stem)
    assert {path.name for path in folder.iterdir()} == {
        f"{stem}.{kind}" for stem in ("first.v1", "second") for kind in ("pdf", "png")
    }
    for kind, start in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
        content = (folder / f"second.{kind}").read_bytes()
        assert content == (folder / f"first.v1.{kind}").read_bytes()
        assert content.startswith(start)
