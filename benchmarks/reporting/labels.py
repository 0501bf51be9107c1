"""Labels beside the points of a plot: none covers another label or a point."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# distances and directions that are tried, in points
_DISTANCES = (6, 11, 18, 27, 38, 51, 66, 83, 102, 123, 146)
_DIRECTIONS = 24
_MARKER = 4.5
_MARGIN = 1.5
# cost of a square point that is covered and of a line through a label, beside the distance of a label in points
_COVERED = 100.0
_CROSSED = 40.0
_PASSES = 6

Box = tuple[float, float, float, float]
Point = tuple[float, float]


def covered(a: Box, b: Box) -> float:
    """The area that two boxes share; a box is left, bottom, right, top."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def outside(box: Box, frame: Box) -> float:
    """The area of a box that is not in the frame."""
    return (box[2] - box[0]) * (box[3] - box[1]) - covered(box, frame)


def _meets(line: tuple[Point, Point], box: Box) -> bool:
    """Whether a line enters a box: the part of it within both pairs of sides is not empty."""
    (x0, y0), (x1, y1) = line
    enter, leave = 0.0, 1.0
    for start, step, low, high in ((x0, x1 - x0, box[0], box[2]), (y0, y1 - y0, box[1], box[3])):
        if abs(step) < 1e-9:
            if not low < start < high:
                return False
            continue
        near, far = sorted(((low - start) / step, (high - start) / step))
        enter, leave = max(enter, near), min(leave, far)
    return enter < leave


def _candidates(point: Point, size: Point) -> list[tuple[float, Box]]:
    (x, y), (width, height) = point, size
    found = []
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * step / _DIRECTIONS
            dx, dy = math.cos(angle), math.sin(angle)
            # the centre of the label: its nearest edge is so far from the point
            centre_x, centre_y = x + dx * (distance + width / 2), y + dy * (distance + height / 2)
            box = (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
            found.append((distance + (0 if dx > 0 else 1), box))
    return sorted(found, key=lambda one: one[0])


def _near(box: Box, point: Point) -> Point:
    """The place on a box that is nearest to a point."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


class _Layout:
    """Labels as they are placed so far, and the cost of one more."""

    def __init__(self, points: Sequence[Point], frame: Box, taken: Sequence[Box]) -> None:
        self.points = points
        self.frame = frame
        self.markers = [(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in points]
        self.fixed = [*self.markers, *taken]
        self.placed: dict[int, Box] = {}

    def cost(self, index: int, distance: float, box: Box, limit: float) -> float:
        """The cost of a box for one label; not all of it where it is more than the limit anyway."""
        wide = (box[0] - _MARGIN, box[1] - _MARGIN, box[2] + _MARGIN, box[3] + _MARGIN)
        others = [(self.points[i], other) for i, other in self.placed.items() if i != index]
        lost = sum(covered(wide, other) for _, other in others) + sum(covered(wide, other) for other in self.fixed)
        found = distance + _COVERED * (lost + outside(wide, self.frame))
        if found >= limit:
            return found
        line = (self.points[index], _near(box, self.points[index]))
        crossed = sum(_meets(line, other) + _meets((point, _near(other, point)), box) for point, other in others)
        crossed += sum(_meets(line, marker) for i, marker in enumerate(self.markers) if i != index)
        return found + _CROSSED * crossed

    def move(self, index: int, size: Point) -> None:
        """Place one label where it costs least; candidates come by distance, and none costs less than that."""
        best = math.inf
        for distance, box in _candidates(self.points[index], size):
            if distance >= best:
                break
            found = self.cost(index, distance, box, best)
            if found < best:
                best, self.placed[index] = found, box


def place(points: Sequence[Point], sizes: Sequence[Point], frame: Box, taken: Sequence[Box] = ()) -> list[Box]:
    """A box for each label, as near to its point as the others leave room; all in typographic points."""
    layout = _Layout(points, frame, taken)
    near = [sum(math.dist(p, q) < 60 for q in points) for p in points]
    order = sorted(range(len(points)), key=lambda i: (-near[i], points[i]))
    for _ in range(_PASSES):
        before = dict(layout.placed)
        for i in order:
            layout.move(i, sizes[i])
        if layout.placed == before:
            break
    return [layout.placed[i] for i in range(len(points))]


def label(axes: Axes, points: Sequence[tuple[float, float, str, str]], size: float, taken: Sequence[Bbox] = ()) -> None:
    """Write a name beside each (x, y, name, colour), with a thin line to the point where the name is away from it.

    Call it last: the limits and the size of the axes have to be as they will be drawn. `taken` are boxes in pixels.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    written = [figure.text(0, 0, name, fontsize=size) for _, _, name, _ in points]
    figure.draw_without_rendering()
    extents = [text.get_window_extent() for text in written]
    for text in written:
        text.remove()
    scale = 72 / figure.dpi

    def box(found: Bbox) -> Box:
        x0, y0, x1, y1 = (float(scale * value) for value in found.extents)
        return x0, y0, x1, y1

    sizes = [(extent.width * scale, extent.height * scale) for extent in extents]
    at = [axes.transData.transform((x, y)) * scale for x, y, _, _ in points]
    places = [(float(x), float(y)) for x, y in at]
    boxes = place(places, sizes, box(axes.bbox), [box(one) for one in taken])
    for (x, y, name, colour), point, found in zip(points, places, boxes, strict=True):
        centre = ((found[0] + found[2]) / 2 - point[0], (found[1] + found[3]) / 2 - point[1])
        axes.annotate(
            name, (x, y), xytext=centre, textcoords="offset points", ha="center", va="center", fontsize=size,
            color=colour,
        )  # fmt: skip
        end = _near(found, point)
        if math.dist(end, point) > _MARKER + 6:
            (x1, y1) = axes.transData.inverted().transform((end[0] / scale, end[1] / scale))
            axes.plot([x, x1], [y, y1], color=colour, linewidth=0.5, alpha=0.6, zorder=1)
