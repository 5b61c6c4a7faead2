"""A held-out corpus that losses are measured on: raw text, or the hold-out of a packed corpus, under a name of its own.

The name is the axis, so one name means one measurement: `method` says what was measured and how, and the same name with
another method is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from eval_service.encoder import HubEncoder, encoder_of
from eval_service.planner import Ints
from losslens.corpus import PackedCorpus, manifest, readers, shards, sources
from losslens.errors import UserError
from losslens.specs import SourceSpec

FIELD = "text"
RESERVED = "train"  # the training loss has this name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OTHER_NAME = "give this one a name of its own: --loss NAME=PATH"
_CUT_TOKENS = 32  # of a document that was cut, so many tokens at its end may have been others
_SUBSTITUTE = "\x1a"  # what an ASCII tokenizer has in place of other characters


@dataclass(frozen=True, slots=True)
class LossCorpus:
    """Where the text is, and how far a window moves. `stride` in tokens; None: half of what the model takes."""

    name: str
    path: Path
    fingerprint: str
    packed: bool
    stride: int | None = None

    @property
    def by_documents(self) -> str:
        """The method of measuring document by document."""
        return f"documents {self.fingerprint}, stride {self.stride or 'of half a window'}"

    @property
    def by_rows(self) -> str:
        """The method of measuring packed rows, as training does; for models with the corpus's own tokenizer."""
        return f"rows {self.fingerprint}"

    @property
    def methods(self) -> frozenset[str]:
        """All methods that this corpus may be measured by."""
        return frozenset({self.by_documents, self.by_rows} if self.packed else {self.by_documents})


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The hold-out of one source of a packed corpus: rows [n, T + 1] and the bytes [n] of each row's T predicted tokens."""

    name: str
    weight: float
    tokens: Ints
    bytes: Ints


@dataclass(frozen=True, slots=True)
class Texts:
    """The documents of one source; `weight` None: it counts by its tokens."""

    name: str
    weight: float | None
    documents: Iterable[str]


def loss_corpora(given: Sequence[str], stride: int | None) -> tuple[LossCorpus, ...]:
    """The corpora named on the command line, `NAME=PATH` or a path whose stem is the name.

    Raises:
        UserError: no such file, nothing that can be read, a name that is none or occurs twice, a stride below 1.
    """
    if stride is not None and stride < 1:
        raise UserError(f"a stride of {stride} moves no window", "give --stride at least 1")
    found: dict[str, LossCorpus] = {}
    for one in given:
        head, equals, tail = one.partition("=")
        path = Path(tail if equals else one).expanduser()
        name = head if equals else path.name.split(".")[0]
        if not _NAME.fullmatch(name) or name == RESERVED:
            raise UserError(f"{name!r} cannot be the name of a held-out corpus", _OTHER_NAME)
        if name in found:
            raise UserError(f"two held-out corpora are called {name!r}", _OTHER_NAME)
        found[name] = _opened(name, path, stride)
    return tuple(found.values())


def require_one_meaning(corpus: LossCorpus, stored: Iterable[str | None]) -> None:
    """Refuse a name under which the results hold losses that were measured otherwise; `stored` are their methods."""
    if others := sorted({method or "an unknown way" for method in stored if method not in corpus.methods}):
        raise UserError(f"the results hold losses called {corpus.name!r} that were measured on something else ({others[0]})", _OTHER_NAME)


def texts(corpus: LossCorpus) -> Iterator[Texts]:
    """The sources of a raw corpus, streamed; a folder's sub-folders are its sources, one by one."""
    files = _files(corpus.path)
    for source in sorted({_source(corpus.path, file) for file in files}):
        yield Texts(source, None, _documents([file for file in files if _source(corpus.path, file) == source]))


def packed_rows(corpus: LossCorpus) -> list[PackedRows]:
    """The hold-out of a packed corpus as it was packed, sources without any left out."""
    packed = PackedCorpus.open(corpus.path)
    held = [(name, weight, *packed.heldout(name)) for name, weight in zip(packed.sources, packed.weights, strict=True)]
    return [PackedRows(name, weight, tokens, size.astype(np.int64)) for name, weight, tokens, size in held if len(tokens)]


def unpacked(corpus: LossCorpus, rows: PackedRows) -> Texts:
    """The text of packed rows, document by document; the last one ends where the hold-out does.

    Raises:
        UserError: the corpus's tokenizer has lost characters.
    """
    packed = PackedCorpus.open(corpus.path)
    own = encoder_of(packed.tokenizer_dir)
    documents = [own.decode(tokens.tolist()).rstrip("\ufffd") for tokens, _ in _documents_in(rows.tokens, packed.eos)]
    if any("\ufffd" in text or _SUBSTITUTE in text for text in documents):
        raise UserError(
            f"the tokenizer of the corpus {corpus.path} has lost characters, so its text cannot be given to another tokenizer",
            "measure on the text that the corpus was made of",
        )
    return Texts(rows.name, rows.weight, documents)


@lru_cache(maxsize=64)
def made_by(corpus: LossCorpus, encoder: HubEncoder) -> bool:
    """Whether the encoder makes of the corpus's text the very tokens that are packed, and ends documents with the same token."""
    packed = PackedCorpus.open(corpus.path)
    if packed.eos not in encoder.ends:
        return False
    own = encoder_of(packed.tokenizer_dir)
    compared = 0
    for source in packed_rows(corpus):
        for tokens, whole in _documents_in(source.tokens, packed.eos):
            same = len(tokens) if whole else max(0, len(tokens) - _CUT_TOKENS)
            (again,) = encoder.literally([own.decode(tokens.tolist())])
            if again[:same] != tokens[:same].tolist() or (whole and len(again) != same):
                return False
            compared += same
    return compared > 0


def _opened(name: str, path: Path, stride: int | None) -> LossCorpus:
    if (path / manifest.FILE).is_file():
        return LossCorpus(name, path.resolve(), PackedCorpus.open(path).fingerprint, True, stride)
    if not path.exists():
        raise UserError(f"there is no held-out corpus {path}", "give a file, a folder of files or a packed corpus: --loss NAME=PATH")
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{_source(path, file)}\0{shards.sha256(file)}\0".encode())
    return LossCorpus(name, path.resolve(), digest.hexdigest()[:16], False, stride)


def _files(path: Path) -> list[Path]:
    return sources.files(SourceSpec(path=str(path)))


def _source(root: Path, file: Path) -> str:
    """The sub-folder of `root` that the file lies in; empty for a file directly in it."""
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) > 1 else ""


def _documents(files: Sequence[Path]) -> Iterator[str]:
    for piece in sources.pieces(files, target=2**62):  # whole files
        yield from readers.documents(piece, FIELD, {})


def _documents_in(rows: Ints, eos: int) -> Iterator[tuple[Ints, bool]]:
    """(tokens, whether it is whole) of the documents in packed rows [n, T + 1], end-of-text tokens left out.

    Rows are windows over a stream of documents, each beginning with the last token of the one before; rows of generated
    skills are streams of their own.
    """
    one_stream = np.array_equal(rows[:-1, -1], rows[1:, 0])
    streams = [np.concatenate([rows[:1, 0], rows[:, 1:].reshape(-1)])] if one_stream else list(rows)
    for stream in streams:
        begin = 0
        for end in np.flatnonzero(stream == eos).tolist():
            if end > begin:
                yield stream[begin:end], True
            begin = end + 1
        if begin < len(stream):
            yield stream[begin:], False
