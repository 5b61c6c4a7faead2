"""Compaction: many small parts, and parts of an older layout, become few large ones, sorted by what queries filter by.

It needs no lock and may be killed anywhere, because of the order in which things appear:

1. the merged part, whole, under a name of its own: from now on rows are there twice, which the views show once;
2. a record of which parts it replaces;
3. after a grace, long enough for readers that listed them, those parts go, and then the record.

A merged part is of a higher generation than all that it replaces, so that no two compactors can each remove what the other kept.
No row is lost: only rows equal in every column become one. Parts that others named are never touched.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from losslens.errors import DataMismatch, EnvironmentFailure
from losslens.results import database, layout, parts
from losslens.results.places import Entry, Folder, Place, listing, remove, remove_abandoned
from losslens.results.tables import TABLES

FULL = 8 << 20  # rows of a merged part: about 100 MB of samples
GRACE = 3600.0  # seconds: no query takes that long, and no machine caches a listing that long
_MEMORY = "2GB"  # what sorting takes at most; the rest goes to the disk
_RECORD = ".replaced-"

ORDER = {
    "scores": ("task", "format", "shots", "metric", "checkpoint_id", "task_version", "engine"),
    "samples": ("task", "format", "shots", "checkpoint_id", "item_id", "option", "task_version", "engine"),
    "losses": ("dataset", "unit", "checkpoint_id"),
}
"""How rows of a merged part are sorted; in other tables by their columns from the left. A query for one task reads a few row groups."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of ours: what deciding needs to know."""

    name: str
    rows: int
    layout: int

    @property
    def generation(self) -> int:
        """0 as written, otherwise one more than that of the parts it was merged from."""
        match = parts.OURS.fullmatch(self.name)
        return int(match["generation"] or 0) if match else 0


@dataclass(frozen=True, slots=True)
class Compacted:
    """What became of a table: parts that were merged into how many, and parts that went because their grace is over."""

    table: str
    merged: int
    into: int
    rows: int
    removed: int


def batches(found: Iterable[Part], full: int = FULL) -> list[list[Part]]:
    """Which parts are merged together: those that are less than half full, up to `full` rows, and any of an older layout."""
    groups: list[list[Part]] = [[]]
    for part in sorted(found, key=lambda part: part.name):
        if part.rows < full / 2 or part.layout < layout.LAYOUT:
            if sum(other.rows for other in groups[-1]) + part.rows > full:
                groups.append([])
            groups[-1].append(part)
    return [group for group in groups if len(group) > 1 or any(part.layout < layout.LAYOUT for part in group)]


def compact(place: Place, grace: float = GRACE) -> list[Compacted]:
    """Merge the parts of every table, and remove those that were replaced more than `grace` seconds ago.

    Raises:
        UserError: a newer losslens wrote there.
        DataMismatch: a part cannot be read; it is named, and nothing of its table has changed.
        EnvironmentFailure: no space, no permission, no memory.
    """
    layout.claim(place)
    if isinstance(place, Folder):
        remove_abandoned(place.path)
    return [_compact(place, table, grace) for table in TABLES]


def _compact(place: Place, table: str, grace: float) -> Compacted:
    replaced = {name for record in _records(place, table) for name in record.parts}
    names = [Path(path).name for path in parts.paths(place, table)]
    live = [name for name in names if parts.OURS.fullmatch(name) and name not in replaced]
    groups = batches(_described(place, table, live))
    rows = sum(_replace(place, table, group) for group in groups)
    return Compacted(table, sum(map(len, groups)), len(groups), rows, _remove_replaced(place, table, grace))


def _described(place: Place, table: str, names: Sequence[str]) -> Iterator[Part]:
    for name in names:
        path = f"parts/{table}/{name}"
        try:
            with place.files.open_input_file(place.at(path)) as file:
                metadata = pq.read_metadata(file)
        except FileNotFoundError:  # another compactor was here
            continue
        except (pa.ArrowException, OSError) as error:
            raise _damaged(f"{place}/{path}", str(error)) from error
        yield Part(name, metadata.num_rows, layout.number(metadata.metadata))


def _replace(place: Place, table: str, group: Sequence[Part]) -> int:
    """Merge a group into one part and note what it replaces; its rows."""
    with place.scratch() as scratch:
        merged = scratch / "merged.parquet"
        rows = _merge(place, table, group, merged, scratch)
        with open(merged, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        name, size = f"g{max(part.generation for part in group) + 1}-{digest}.parquet", merged.stat().st_size
        place.put(f"parts/{table}/{name}", merged)
    record = json.dumps({"by": name, "size": size, "parts": sorted(part.name for part in group)}).encode()
    place.put(f"parts/{table}/{_RECORD}{hashlib.sha256(record).hexdigest()[:32]}.json", record)
    return rows


def _merge(place: Place, table: str, group: Sequence[Part], merged: Path, scratch: Path) -> int:
    """Write the distinct rows of some parts, sorted and in this layout, to a file; how many they are."""
    older = sorted({part.layout for part in group})
    steps = {number: layout.steps(table, number) for number in older}
    with database.separate(place, database.reached(" ".join(text for texts in steps.values() for text in texts))) as connection:
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute("SET temp_directory = '" + str(scratch / "spill").replace("'", "''") + "'")
        selects = []
        for number in older:
            paths = [f"parts/{table}/{part.name}" for part in group if part.layout == number]
            connection.register(f"layout_{number}", database.dataset(place, table, paths))
            selected = f"SELECT * FROM layout_{number}"
            for step in steps[number]:
                selected = f"WITH older AS ({selected}) {step}"
            selects.append(f"({selected})")
        columns = ", ".join(f'"{name}"' for name in TABLES[table].names)
        order = ", ".join(f'"{name}"' for name in ORDER.get(table, TABLES[table].names))
        try:
            sql = f"SELECT DISTINCT {columns} FROM ({' UNION ALL BY NAME '.join(selects)}) ORDER BY {order}"
            return _stream(connection.sql(sql).to_arrow_reader(parts.ROW_GROUP), TABLES[table], merged)
        except duckdb.OutOfMemoryException as error:
            raise EnvironmentFailure(f"Memory or disk is too small to merge {table}.", "Free some and run it again.") from error
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            for where, reason in parts.verify(place):
                raise _damaged(where, reason) from error
            raise EnvironmentFailure(f"{place} cannot be compacted: {' '.join(str(error).split())}.", "Run it again.") from error


def _stream(reader: pa.RecordBatchReader, schema: pa.Schema, merged: Path) -> int:
    rows = 0
    with pq.ParquetWriter(merged, schema.with_metadata(layout.STAMP), compression="zstd") as writer:
        for batch in reader:
            writer.write_table(pa.Table.from_batches([batch]).cast(writer.schema), row_group_size=parts.ROW_GROUP)
            rows += batch.num_rows
    return rows


@dataclass(frozen=True, slots=True)
class _Record:
    """That `parts` are all in `by`, a part of so many bytes."""

    entry: Entry
    by: str
    size: int
    parts: tuple[str, ...]


def _records(place: Place, table: str) -> list[_Record]:
    """Lower generations first: what replaced a part may have been replaced itself."""
    found = []
    for entry in listing(place, f"parts/{table}"):
        if entry.name.startswith(_RECORD):
            try:
                with place.files.open_input_file(place.at(f"parts/{table}/{entry.name}")) as file:
                    told: dict[str, Any] = json.loads(file.read())
            except FileNotFoundError:
                continue
            found.append(_Record(entry, told["by"], told["size"], tuple(told["parts"])))
    return sorted(found, key=lambda record: Part(record.by, 0, 0).generation)


def _remove_replaced(place: Place, table: str, grace: float) -> int:
    """Remove what was replaced long enough ago; how many parts.

    Where the part that replaced them is not as it was written, only the record goes: they count again, and are merged again.
    """
    removed = 0
    for record in _records(place, table):
        if time.time() - record.entry.made >= grace:
            sizes = {entry.name: entry.size for entry in listing(place, f"parts/{table}")}
            if sizes.get(record.by) == record.size:
                gone = [name for name in record.parts if name in sizes]
                for name in gone:
                    remove(place, f"parts/{table}/{name}")
                removed += len(gone)
            remove(place, f"parts/{table}/{record.entry.name}")
    return removed


def _damaged(where: str, reason: str) -> DataMismatch:
    return DataMismatch(f"{where} cannot be read: {' '.join(reason.split())}.", "Restore it, or move it away to do without its rows.")
