"""Figures of many runs: changes per task, curves over a setting, points of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from polylab.callbacks.figures.rows import Rows
from polylab.callbacks.figures.sheet import Panel, Sheet, check_names, wrap
from polylab.callbacks.figures.style import (
    ACCENT,
    BANDS,
    DPI,
    FONT,
    INK,
    MUTED,
    RULE,
    canvas,
    fit_width,
    heading,
    place,
    plain_axis,
    text_width,
)

__all__ = ["Curve", "Point", "draw_changes", "draw_curves", "draw_points"]

_PLOT, _LEGEND, _ASIDE = 430, 16, 11  # px
_MOST = len(BANDS)


@dataclass(frozen=True)
class Curve:
    """A value at every setting: its mean, and the lowest and the highest of the runs."""

    words: str
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Point:
    """What one method costs and achieves, with an interval of the latter."""

    name: str
    x: float
    y: float
    low: float
    high: float


def draw_changes(
    changes: Mapping[str, np.ndarray], *, tasks: Sequence[str], title: str, shown: Sequence[str]
) -> Figure:
    """A row for every task, and a dot for the change of each setting with the range of its seeds.

    Args:
        changes: By setting, `[seeds, tasks]`, at most eight settings.
        tasks: Row names, in the order of the rows.
        title: Large.
        shown: Lines that say what is shown.

    Raises:
        ValueError: If a setting does not fit the tasks, or there are too many.
    """
    if not 1 <= len(changes) <= _MOST:
        raise ValueError(f"{len(changes)} settings to draw; give from 1 to {_MOST}.")
    for values in changes.values():
        check_names(values, range(len(values)), tasks)  # type: ignore[arg-type]
    rows = Rows.of(len(tasks))

    def draw(axes: Axes) -> None:
        _row_axis(axes, rows, _symmetric(changes))
        offsets = np.linspace(-0.22, 0.22, len(changes)) if len(changes) > 1 else [0.0]
        for (_, values), colour, offset in zip(changes.items(), BANDS, offsets, strict=False):
            mean, low, high = (rows.fold(f(values, axis=0)) for f in (np.mean, np.min, np.max))
            at = np.arange(rows.drawn) + offset
            axes.hlines(at, low, high, color=colour, linewidth=1.4, alpha=0.6)
            axes.scatter(mean, at, s=18, color=colour, linewidths=0, zorder=3)
        _legend(axes, list(changes), width=_PLOT)

    panel = Panel(_PLOT, draw, 24 + _LEGEND * _n_lines(list(changes), _PLOT))
    return Sheet(title, [*shown, *rows.words()], tasks, rows).draw([panel])


def draw_curves(
    curves: Sequence[Curve],
    settings: Sequence[float],
    *,
    axis: str,
    title: str,
    shown: Sequence[str],
) -> Figure:
    """Small plots of the same settings: the mean as a line, the range of the runs as a band.

    Args:
        curves: One plot for each.
        settings: Where the values belong on the horizontal axis, which is logarithmic.
        axis: Its name.
        title: Large.
        shown: Lines that say what is shown.

    Raises:
        ValueError: If a curve has another number of values than there are settings.
    """
    for curve in curves:
        if not len(curve.mean) == len(curve.low) == len(curve.high) == len(settings):
            raise ValueError(
                f"{len(settings)} settings and {len(curve.mean)} values of {curve.words!r}; "
                "give one value for each."
            )
    wide, high, gap = 250, 170, 50
    columns = min(3, len(curves))
    width = fit_width(title, 60 + columns * (wide + gap))
    lines = wrap(shown, width - 28)
    top = 72 + 16 * len(lines)
    rows = -(-len(curves) // columns)
    figure = canvas(width, top + rows * (high + 78) - 20)
    heading(figure, title, lines)
    for i, curve in enumerate(curves):
        row, column = divmod(i, columns)
        axes = place(figure, 56 + column * (wide + gap), top + row * (high + 78), wide, high)
        _log_axis(axes, settings, axis)
        axes.fill_between(settings, curve.low, curve.high, color=ACCENT, alpha=0.18, linewidth=0)
        axes.plot(settings, curve.mean, color=ACCENT, marker="o", markersize=4, linewidth=1.6)
        if curve.limits is not None:
            axes.set_ylim(*curve.limits)
        axes.set_title(curve.words, loc="left", fontsize=FONT + 0.5, color=INK, pad=8)
    return figure


def draw_points(
    points: Sequence[Point], *, axes_names: tuple[str, str], title: str, shown: Sequence[str]
) -> Figure:
    """A named point for each method, with a vertical bar for its interval.

    Those with the same `x` stand side by side, to the right of it.

    Args:
        points: At most eight.
        axes_names: Words of the horizontal axis, which is logarithmic, and of the vertical one.
        title: Large.
        shown: Lines that say what is shown.

    Raises:
        ValueError: If there are none or too many.
    """
    if not 1 <= len(points) <= _MOST:
        raise ValueError(f"{len(points)} methods to draw; give from 1 to {_MOST}.")
    width = fit_width(title, 760)
    lines = wrap(shown, width - 28)
    names = [point.name for point in points]
    top = 58 + 16 * len(lines) + _LEGEND * _n_lines(names, width - 120)
    figure = canvas(width, top + 330 + 64)
    heading(figure, title, lines)
    axes = place(figure, 70, top, width - 110, 330)
    plain_axis(axes)
    axes.set_xscale("log")
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for i, (point, colour) in enumerate(zip(points, BANDS, strict=False)):
        before = [one.x for one in points[:i]].count(point.x)
        aside = ScaledTranslation(_ASIDE * before / DPI, 0, figure.dpi_scale_trans)
        style = {"color": colour, "transform": axes.transData + aside}
        axes.plot([point.x] * 2, [point.low, point.high], linewidth=2, alpha=0.55, **style)
        axes.plot([point.x], [point.y], marker="o", markersize=6.5, markeredgewidth=0, **style)
    # lines that are moved aside do not count for the limits by themselves
    axes.update_datalim([(point.x, end) for point in points for end in (point.low, point.high)])
    axes.margins(x=0.12, y=0.12)
    axes.autoscale_view()
    axes.minorticks_off()
    x, y = axes_names
    axes.set_xlabel(x, fontsize=FONT, color=MUTED)
    axes.set_ylabel(y, fontsize=FONT, color=MUTED)
    _legend(axes, names, width=width - 120, above=8)
    return figure


def _symmetric(changes: Mapping[str, np.ndarray]) -> float:
    """The end of an axis around 0, which is never so narrow that noise looks large."""
    furthest = max(float(np.abs(values).max()) for values in changes.values())
    return max(0.05, 1.08 * furthest)


def _row_axis(axes: Axes, rows: Rows, end: float) -> None:
    plain_axis(axes)
    axes.set_ylim(rows.drawn - 0.5, -0.5)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xlim(-end, end)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axvline(0, color=MUTED, linewidth=1.2)
    if rows.pitch >= 10:
        axes.hlines(np.arange(rows.drawn), -end, end, color=RULE, linewidth=0.4, zorder=0)


def _log_axis(axes: Axes, settings: Sequence[float], name: str) -> None:
    plain_axis(axes)
    axes.set_xscale("log")
    axes.set_xticks(list(settings), [f"{value:g}" for value in settings])
    axes.minorticks_off()
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(name, fontsize=FONT, color=MUTED)


def _places(names: Sequence[str], width: int) -> list[tuple[int, int]]:
    """Line and pixel of each name of a legend that is broken into lines."""
    places, line, x = [], 0, 0
    for name in names:
        needs = text_width(name) + 34
        if x and x + needs > width:
            line, x = line + 1, 0
        places.append((line, x))
        x += needs
    return places


def _n_lines(names: Sequence[str], width: int) -> int:
    return 1 + max(line for line, _ in _places(names, width))


def _legend(axes: Axes, names: Sequence[str], *, width: int, above: int = 26) -> None:
    """Dots and names over the axes, the last line of them `above` px away."""
    box, places = axes.get_window_extent(), _places(names, width)
    last = places[-1][0]
    for name, colour, (line, x) in zip(names, BANDS, places, strict=False):
        y = 1 + (above + _LEGEND * (last - line) + 4) / box.height
        left = (x + 6) / box.width
        where = {"transform": axes.transAxes, "clip_on": False}
        axes.plot([left], [y], marker="o", markersize=5, color=colour, **where)
        style = {"va": "center", "color": INK, "fontsize": FONT, "parse_math": False}
        axes.text(left + 9 / box.width, y, name, transform=axes.transAxes, **style)
