"""The number of the layout of stored rows: how it is told, who refuses what, and the steps from each number to the next.

1  what losslens wrote before parts told their layout
2  parts carry the number in their metadata; those of one large import are sorted by task (`compaction.ORDER`); a sample tells its engine

A folder or bucket tells the highest number in it by an empty file, `parts/layout-N`, which stands there before the first part of that
layout does. Parts of anybody else carry no number: they are in the columns of the contract, and what they lack is NULL.
`compaction` takes parts of an older layout through the steps; until then the views read them as they are.
"""

from __future__ import annotations

from importlib.resources import files

from losslens.errors import UserError
from losslens.results.places import Place, listing

LAYOUT = 2
STAMP = {b"losslens_layout": str(LAYOUT).encode()}
_MARK = "layout-"


def number(metadata: dict[bytes, bytes] | None) -> int:
    """The layout of a part of ours, from its Parquet metadata."""
    return int((metadata or {}).get(b"losslens_layout", b"1"))


def claim(place: Place) -> None:
    """Before a part is written: mark the place as holding this layout. Raises UserError as `require_known` does."""
    if require_known(place) < LAYOUT:
        place.put(f"parts/{_MARK}{LAYOUT}", b"")


def require_known(place: Place) -> int:
    """The highest layout in the place. Raises UserError when a newer losslens wrote there."""
    marks = [entry.name.removeprefix(_MARK) for entry in listing(place, "parts") if entry.name.startswith(_MARK)]
    highest = max((int(mark) for mark in marks if mark.isdecimal()), default=1)
    if highest > LAYOUT:
        raise UserError(
            f"{place} was written by a newer losslens: its layout is {highest}, and this one knows {LAYOUT}.", "Install the newer losslens."
        )
    return highest


def steps(table: str, layout: int) -> list[str]:
    """What takes rows of `table` in `layout` to LAYOUT, in order: SQL that selects from `older` and the views `parts.*`."""
    folder = files(__package__).joinpath("sql", "migrations")
    texts = (folder.joinpath(f"{to:03}_{table}.sql") for to in range(layout + 1, LAYOUT + 1))
    return [text.read_text(encoding="utf-8") for text in texts if text.is_file()]
