"""One colour per size, ordered by parameters: samples of matplotlib's plasma map, whose lightness is monotonic, so the
order survives colour blindness and grey print. Each theme takes the part of the map that stands out on its ground."""

from __future__ import annotations

# matplotlib.colormaps["plasma"] at 0, 0.1, ..., 1
_PLASMA = ("0d0887", "41049d", "6a00a8", "8f0da4", "b12a90", "cc4778", "e16462", "f2844b", "fca636", "fcce25", "f0f921")
LIGHT, DARK = (0.0, 0.63), (1.0, 0.42)  # smallest size to largest; at least 3:1 against the page's ground


def colours(sizes: int, part: tuple[float, float]) -> list[str]:
    """`#rrggbb` for each of `sizes` slots, evenly spaced over `part` of the map."""
    start, end = part
    return [_sample(start + (end - start) * slot / max(sizes - 1, 1)) for slot in range(sizes)]


def stylesheet(sizes: int) -> str:
    """Classes `.s0`, `.s1`, ... that set `--c` for both themes."""
    pairs = enumerate(zip(colours(sizes, LIGHT), colours(sizes, DARK), strict=True))
    return "".join(f".s{slot}{{--c:light-dark({light},{dark})}}" for slot, (light, dark) in pairs)


def _sample(place: float) -> str:
    index = min(int(place * 10), 9)
    ends = [[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in _PLASMA[index : index + 2]]
    return "#" + "".join(f"{round(a + (b - a) * (place * 10 - index)):02x}" for a, b in zip(*ends, strict=True))
