"""Three kinds of tokenizer, one kind of directory: `tokenizer.json` + `tokenizer_config.json`, which AutoTokenizer and vLLM load.

byte, 128   id = ASCII code; id 0 (NUL) ends a document; any other byte becomes id 26 (ASCII SUB).
byte, 257   id = byte; id 256 ends a document.
bpe         byte-level BPE trained on the corpus; id 0 ends a document; splits like Qwen2's, each digit by itself.
path        an existing tokenizer that has an end-of-text token, copied.

Every kind turns any text into tokens; all but byte 128 turn those back into the same text. What packing writes is what
`AutoTokenizer` gives for a document (without special tokens), then the end-of-text id.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from losslens.corpus.shards import write_bytes
from losslens.errors import UserError
from losslens.specs import TokenizerSpec

ASCII_EOS = "\x00"
EOS = "<|endoftext|>"
SUBSTITUTE = 26
_ASCII = 128
# Qwen2's pattern (Qwen2 technical report, 2024): words with their leading space, single digits, runs of signs, white space.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

Tokens = NDArray[np.unsignedinteger]


def make(spec: TokenizerSpec, texts: Iterable[str], directory: Path) -> None:
    """Writes the tokenizer of the spec to a directory; `texts` are read only to train a BPE.

    Raises:
        UserError: an existing tokenizer that cannot be loaded or has no end-of-text token, or too little text for a BPE.
    """
    if spec.kind == "path":
        _copy(Path(str(spec.path)).expanduser(), directory)
    elif spec.kind == "bpe":
        _save(_bpe(texts, spec.vocab_size), EOS, directory)
    else:
        _save(*_bytes(spec.vocab_size), directory)


def existing(directory: Path) -> tuple[TokenizerSpec, int]:
    """What makes the tokenizer of a model's directory again, and how many ids it has. One of ours of bytes is known as such: rows of
    generated skills are then rows as they are.

    Raises:
        UserError: there is none, or it is no fast one.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{directory} holds no tokenizer.json", "save the model's fast tokenizer beside its weights")
    try:
        found = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more special
        raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}", "copy the model again") from error
    ids = max(found.get_vocab().values()) + 1
    for size in (_ASCII, 257):
        if found.to_str() == _finished(*_bytes(size)).to_str():
            return TokenizerSpec(kind="byte", vocab_size=size), ids
    return TokenizerSpec(kind="path", path=str(directory)), ids


class Encoder:
    """A tokenizer directory at work, for one process.

    `eos` is the id that ends a document, `vocab_size` the number of ids, `dtype` the type that tokens are stored in.
    """

    def __init__(self, directory: Path, byte_vocabulary: int | None = None) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # parallel are the pieces of the corpus, not this
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True  # a document that spells the end-of-text token does not end there
        self._byte_vocabulary = byte_vocabulary
        config = msgspec.json.decode((directory / "tokenizer_config.json").read_bytes())
        eos = self._tokenizer.token_to_id(_spelling(config["eos_token"]))
        assert eos is not None, "an end-of-text token outside the vocabulary"
        self.eos = eos
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 65_536 else np.uint32)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text, without special tokens."""
        if self._byte_vocabulary:
            return [_byte_ids(text, self._byte_vocabulary) for text in texts]
        return [np.array(found.ids, dtype=self.dtype) for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def byte_lengths(self) -> NDArray[np.int32]:
        """UTF-8 bytes of text that each id stands for [vocab_size]; special tokens stand for none."""
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        byte_level = '"ByteLevel"' in self._tokenizer.to_str().split('"model":{')[0]
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        for token, i in self._tokenizer.get_vocab().items():
            if i not in special:
                lengths[i] = len(token) if byte_level else _sentencepiece_bytes(token)
        return lengths


def _byte_ids(text: str, vocabulary: int) -> Tokens:
    """What the Hugging Face byte tokenizers give, about 100 times faster (a test holds them equal)."""
    ids = np.frombuffer(text.encode(), dtype=np.uint8)
    if vocabulary == _ASCII and not text.isascii():
        ids = np.where(ids < _ASCII, ids, SUBSTITUTE)
    return ids.astype(np.uint16)


def _bytes(vocabulary: int) -> tuple[Tokenizer, str]:
    letters = _byte_letters()[: min(vocabulary, 256)]
    ids = {letter: i for i, letter in enumerate(letters)}
    if vocabulary == _ASCII:
        del ids[letters[0]]
        ids[ASCII_EOS] = 0
        model = models.BPE(vocab=ids, merges=[], unk_token=letters[SUBSTITUTE], fuse_unk=False)
    else:
        model = models.BPE(vocab=ids, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer, ASCII_EOS if vocabulary == _ASCII else EOS


def _bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"the corpus has too little text for {vocab_size:,} BPE entries: it gave {tokenizer.get_vocab_size():,}",
            f"set corpus.tokenizer.vocab_size to {tokenizer.get_vocab_size()} or less, or add text",
        )
    return tokenizer


def _finished(tokenizer: Tokenizer, eos: str) -> Tokenizer:
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(eos, special=True, normalized=False)])
    return tokenizer


def _save(tokenizer: Tokenizer, eos: str, directory: Path) -> None:
    tokenizer = _finished(tokenizer, eos)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eos,  # each document follows the end of another
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_bytes(directory / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    write_bytes(directory / "tokenizer_config.json", msgspec.json.format(msgspec.json.encode(config)))


def _copy(source: Path, directory: Path) -> None:
    from transformers import AutoTokenizer  # slow to import, and only this kind needs it

    advice = "give a Hugging Face tokenizer directory that has an eos_token"
    if not source.is_dir():
        raise UserError(f"there is no tokenizer directory {source}", advice)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the tokenizer {source} cannot be loaded: {str(error).splitlines()[0]}", advice) from error
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer {source} has no end-of-text token to separate documents", advice)
    tokenizer.save_pretrained(directory)
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"the tokenizer {source} has no fast form (tokenizer.json)", advice)


def _byte_letters() -> list[str]:
    """The printable letter that GPT-2's byte-level alphabet gives each of the 256 bytes (Radford et al. 2019, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _sentencepiece_bytes(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1  # a byte that has no letter of its own
    return len(token.replace("\u2581", " ").encode())


def _spelling(token: str | dict[str, object]) -> str:
    return token if isinstance(token, str) else str(token["content"])
