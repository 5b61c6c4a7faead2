"""The tokenizer of a checkpoint as engines need it: text to ids without special tokens, ids to text, where to begin and end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from losslens.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
_AT_ONCE = 1000  # texts: a fast tokenizer keeps offsets and masks of all texts of a call, some 100 bytes a token

_KNOWN: dict[str, HubEncoder] = {}  # loading takes a tenth of a second; the checkpoints of a study share one tokenizer


class HubEncoder:
    """A Hugging Face tokenizer; equal when made from equal files. `ends`: tokens that end a generation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fingerprint: str, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.ends = ends

    @property
    def start(self) -> int | None:
        """The beginning-of-text token, else the end-of-text token (it separates documents), else None."""
        bos: int | None = self._tokenizer.bos_token_id
        eos: int | None = self._tokenizer.eos_token_id
        return eos if bos is None else bos

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        return self._ids(texts)

    def literally(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, but a text that spells a special token does not mean it."""
        return self._ids(texts, split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids up to the first end token; special tokens have none."""
        kept = list(ids)
        for at, token in enumerate(kept):
            if token in self.ends:
                kept = kept[:at]
                break
        return str(self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _ids(self, texts: Sequence[str], **settings: bool) -> list[list[int]]:
        ids: list[list[int]] = []
        for first in range(0, len(texts), _AT_ONCE):
            ids += self._tokenizer(list(texts[first : first + _AT_ONCE]), add_special_tokens=False, **settings)["input_ids"]
        return ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HubEncoder) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def encoder_of(directory: Path) -> HubEncoder:
    """The encoder of a model directory; one object for all directories with equal tokenizer files.

    Raises:
        UserError: the directory holds no tokenizer that transformers can load.
    """
    files = sorted({file for pattern in _FILES for file in directory.glob(pattern) if file.is_file()})
    if not files:
        raise UserError(f"{directory} holds no tokenizer", "save the tokenizer beside the model (tokenizer.save_pretrained)")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    ends = _ends(directory)
    digest.update(repr(sorted(ends)).encode())
    fingerprint = digest.hexdigest()
    if fingerprint not in _KNOWN:
        _KNOWN[fingerprint] = _load(directory, fingerprint, ends)
    return _KNOWN[fingerprint]


def _load(directory: Path, fingerprint: str, ends: frozenset[int]) -> HubEncoder:
    from transformers import AutoTokenizer  # seconds, which whoever only hands out work need not wait

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # transformers, tokenizers and sentencepiece each raise their own kinds
        raise UserError(f"the tokenizer in {directory} cannot be loaded: {error}", "save it again") from error
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return HubEncoder(tokenizer, fingerprint, ends.union(own))


def _ends(directory: Path) -> frozenset[int]:
    """End tokens that the model's own generation settings name."""
    file = directory / "generation_config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    return frozenset(named if isinstance(named, list) else () if named is None else (named,))
