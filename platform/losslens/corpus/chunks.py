"""A corpus source cut into chunks: what one worker packs by itself, into one shard.

Where the cuts lie depends on the source alone, never on how many workers there are, so the shards are the same bytes on
any cluster. A chunk knows how to give its documents again and again, streamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from losslens import generated
from losslens.corpus import readers, sources
from losslens.corpus.order import Mixture
from losslens.corpus.sources import Piece
from losslens.errors import UserError
from losslens.specs import CorpusSpec, SourceSpec
from losslens.specs.validate import source_name

Split = Literal["train", "heldout"]

STDLIB = "stdlib"
CHUNK_BYTES = 16 << 20  # of text: seconds of work, so that a killed job loses little
MOST_CHUNKS = 4096  # of one source: above 64 GiB chunks grow instead
_SKILL_ROWS = 4096
_SKILL_TEXTS = 64  # texts set aside for each packed row where a tokenizer makes them shorter than a row


@dataclass(frozen=True, slots=True)
class FileChunk:
    """Pieces of files, in order."""

    pieces: tuple[Piece, ...]
    text_column: str
    where: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        """About how many bytes of text it holds."""
        return sum(piece.size for piece in self.pieces)

    def documents(self) -> Iterator[str]:
        """Raw texts."""
        for piece in self.pieces:
            yield from readers.documents(piece, self.text_column, dict(self.where))


@dataclass(frozen=True, slots=True)
class StdlibChunk:
    """Files of the standard library that belong to a split."""

    split: Split
    size: int

    def documents(self) -> Iterator[str]:
        """Their texts."""
        return (text for _, text in generated.stdlib_documents(self.split))


@dataclass(frozen=True, slots=True)
class SkillChunk:
    """Enough text of one generated skill for the packed rows `start` to `start + rows`.

    With a byte tokenizer one text is one row (`rows_as_they_are`); with any other, as many texts as it takes.
    """

    skill: str
    seed: int
    split: Split
    start: int
    rows: int
    length: int
    rows_as_they_are: bool

    @property
    def size(self) -> int:
        """About how many bytes of text it makes."""
        return self.rows * self.length

    def documents(self) -> Iterator[str]:
        """Texts of `length` characters, made one hundred at a time."""
        each = 1 if self.rows_as_they_are else _SKILL_TEXTS
        first, stop = self.start * each, (self.start + self.rows) * each
        for start in range(first, stop, 100):
            count = min(100, stop - start)
            yield from generated.rows(self.skill, seed=self.seed, split=self.split, start=start, count=count, length=self.length)


Chunk = FileChunk | StdlibChunk | SkillChunk


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """One source of the mixture: what to pack for training and, where it is not a matter of hashes, what is held out.

    `identity` fingerprints the content that the chunks will give.
    """

    name: str
    chunks: tuple[Chunk, ...]
    heldout: Chunk | None
    identity: str


def plan_sources(spec: CorpusSpec, seed: int, rows: int, train_seeds: Mapping[str, int] | None = None) -> list[SourcePlan]:
    """The sources in the order of the spec. `rows` training rows in all decide how many rows generated skills make, from
    the seed in `train_seeds` by the name of the source, or `seed`. Held-out rows are always those of `seed`.

    Raises:
        UserError: a source that does not exist, cannot be read or holds no file.
    """
    needed, seeds = Mixture.of([source.weight for source in spec.sources]).rows_within(rows), train_seeds or {}
    return [
        _file_plan(source) if source.generated is None else _generated_plan(source, spec, seed, count, seeds.get(source_name(source)))
        for source, count in zip(spec.sources, needed, strict=True)
    ]


def _file_plan(source: SourceSpec) -> SourcePlan:
    paths = sources.files(source)
    target = max(CHUNK_BYTES, sum(path.stat().st_size for path in paths) // MOST_CHUNKS)
    where = tuple(sorted(source.where.items()))
    groups = [FileChunk(group, source.text_column, where) for group in _grouped(list(sources.pieces(paths, target)), target)]
    return SourcePlan(source_name(source), tuple(groups), None, sources.digest(paths))


def _generated_plan(source: SourceSpec, spec: CorpusSpec, seed: int, count: int, train_seed: int | None) -> SourcePlan:
    name = str(source.generated)
    if name == STDLIB:
        train, heldout = (sum(len(text) for _, text in generated.stdlib_documents(split)) for split in ("train", "heldout"))
        return SourcePlan(source_name(source), (StdlibChunk("train", train),), StdlibChunk("heldout", heldout), generated.stdlib_digest())
    if name not in generated.skills():
        raise UserError(f"there is no generated source called {name!r}", f"choose from {STDLIB}, {', '.join(generated.skills())}")

    def chunk(split: Split, start: int, rows: int) -> SkillChunk:
        of = seed if train_seed is None or split == "heldout" else train_seed
        return SkillChunk(name, of, split, start, rows, spec.seq_len + 1, spec.tokenizer.kind == "byte")

    train_chunks = tuple(chunk("train", start, min(_SKILL_ROWS, count - start)) for start in range(0, count, _SKILL_ROWS))
    identity = f"{name} {seed} {count}" if train_seed is None else f"{name} {seed} {count} from {train_seed}"
    return SourcePlan(source_name(source), train_chunks, chunk("heldout", 0, spec.holdout.rows), identity)


def _grouped(pieces: Sequence[Piece], target: int) -> Iterator[tuple[Piece, ...]]:
    """Neighbouring pieces together until they reach the target: a folder of small files makes few chunks."""
    group: list[Piece] = []
    for piece in pieces:
        if group and sum(member.size for member in group) + piece.size > target:
            yield tuple(group)
            group = []
        group.append(piece)
    if group:
        yield tuple(group)
