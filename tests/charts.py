"""Reads the charts of a page: the values at which markers and intervals stand, by the labels of the axis."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from masters_ray.evaluate import Interval

Axis = Literal["x", "y"]  # of the values


@dataclass(frozen=True)
class Chart:
    svg: str

    @classmethod
    def of(cls, html: str, name: str) -> "Chart":
        return cls(html[html.index(f'id="{name}-figure_1"') :].partition("</svg>")[0].partition("legend_1")[0])

    def markers(self, colour: str, axis: Axis = "y") -> list[float]:
        uses = re.findall(r'<use [^>]*x="([-.\d]+)" y="([-.\d]+)" style="fill: var\(--(\w+)\)', self.svg)
        return [self._value(x if axis == "x" else y, axis) for x, y, of in uses if of == colour and self._seen(y)]

    def points(self, colour: str) -> list[tuple[float, float]]:
        """(x, y) of the markers."""
        return list(zip(self.markers(colour, "x"), self.markers(colour), strict=True))

    def line(self, colour: str) -> list[tuple[float, float]]:
        """(x, y) of the thin line's points."""
        paths = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--(\w+)\); stroke-opacity: 0.6', self.svg)
        [path] = [path for path, of in paths if of == colour]
        places = re.findall(r"[ML] ([-.\d]+) ([-.\d]+)", path)
        return [(self._value(x, "x"), self._value(y, "y")) for x, y in places if self._seen(y)]

    def intervals(self, colour: str, axis: Axis = "y") -> list[tuple[float, float]]:
        groups = re.findall(r'LineCollection_\d+">(.*?)</g>', self.svg, re.DOTALL)
        form = r'd="M ([-.\d]+) ([-.\d]+) \nL ([-.\d]+) ([-.\d]+) \n"[^>]*stroke: var\(--(\w+)\)'
        ends = [end for group in groups for *end, of in re.findall(form, group) if of == colour]
        first = 0 if axis == "x" else 1
        return [(self._value(end[first], axis), self._value(end[first + 2], axis)) for end in ends]

    def check(
        self,
        axis: Axis,
        colour: str,
        expected: Sequence[Interval | None],
        *,
        scale: float = 1.0,
        singles: Sequence[float] = (),
    ) -> None:
        """scale: factor of the expected values. singles: values that are drawn in the same colour below the others."""
        known = [one for one in expected if one]
        values = scale * np.array([*singles, *(one.value for one in known)])
        bounds = scale * np.array([(one.low, one.high) for one in known if math.isfinite(one.low)]).reshape(-1)
        near = 0.005 * float(np.abs([*values, *bounds]).max())
        assert self.markers(colour, axis) == pytest.approx(values, abs=near)
        drawn = [bound for ends in self.intervals(colour, axis) for bound in ends]
        assert drawn == pytest.approx(bounds, abs=near)

    def _seen(self, y: str) -> bool:
        """Not where a line leaves the picture: there it has points and markers just outside."""
        [height] = re.findall(r'-patch_1">\s*<path d="M 0 ([.\d]+)', self.svg)
        return 0 <= float(y) <= float(height)

    def _value(self, place: str, axis: Axis) -> float:
        ticks = []
        for part in self.svg.split(f"{axis}tick_")[1:]:
            at = re.search(rf'<use [^>]*{axis}="([-.\d]+)"', part)
            label = re.search(r"<text[^>]*>([-−,.\d]+)</text>", part)
            if at and label:  # not the small ticks of a logarithmic axis
                ticks.append((float(at[1]), float(label[1].replace("−", "-").replace(",", ""))))
        log = axis == "y" and "(log)" in self.svg
        scale: Callable[[float], float] = math.log10 if log else float
        (begin, value), *_, (end, other) = [(at, scale(label)) for at, label in ticks]
        found = value + (float(place) - begin) * (other - value) / (end - begin)
        return 10.0**found if log else found
