"""Tokenizers of both families and small corpora for held-out losses: English and Chinese, empty and long documents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from losslens.corpus import PackedCorpus, manifest, shards
from losslens.corpus.manifest import FileRecord, Manifest, SourceRecord
from losslens.corpus.tokenizer import Encoder, make
from losslens.specs import CorpusSpec, SourceSpec, TokenizerSpec

ENGLISH = "The quick brown fox, they say, jumps over the lazy dog; nobody has seen it.  Twice!\n"
CHINESE = "敏捷的棕色狐狸跳过了懒狗，没有人见过。数字１２３和𝔘𝔫𝔦。\n"
SPELLED = "It is spelled <|endoftext|> or </s>."  # and not meant
DOCUMENTS = (ENGLISH, "", CHINESE, "a", "中", " two\n\n lines ", SPELLED, CHINESE * 8, ENGLISH + CHINESE, "naïve café")
BYTES = sum(len(text.encode()) for text in DOCUMENTS)


def byte_level(directory: Path) -> Path:
    """A byte-level BPE that splits most Chinese characters, with an end-of-text token."""
    make(TokenizerSpec(kind="bpe", vocab_size=320), [ENGLISH * 20, CHINESE], directory)
    return directory


def sentencepiece_like(directory: Path, *, start: bool = True) -> Path:
    """What Llama 2's converted tokenizer is: a space is put before every text, unknown characters fall back to bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *(f"<0x{i:02X}>" for i in range(256))], show_progress=False)
    tokenizer.train_from_iterator([ENGLISH * 20, "狐狸狐狸"], trainer)
    plain = Tokenizer.from_str(re.sub(r'"special": ?true', '"special": false', tokenizer.to_str()))  # bytes are text
    plain.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    wrap: Any = PreTrainedTokenizerFast  # untyped in transformers
    names = {"bos_token": "<s>", "eos_token": "</s>"} if start else {}
    wrap(tokenizer_object=plain, unk_token="<unk>", clean_up_tokenization_spaces=False, **names).save_pretrained(directory)
    return directory


def packed(directory: Path, tokenizer: Path, sources: dict[str, Sequence[str]], seq_len: int = 32) -> PackedCorpus:
    """A packed corpus that is all hold-out, its sources weighted 1, 2, ..."""
    encoder = Encoder(tokenizer)
    lengths = encoder.byte_lengths()
    empty = np.zeros((0, seq_len + 1), encoder.dtype)
    records = []
    for weight, (name, texts) in enumerate(sources.items(), start=1):
        stream = np.concatenate([np.append(ids, encoder.eos) for ids in encoder.encode([text for text in texts if text])])
        rows = np.lib.stride_tricks.sliding_window_view(stream, seq_len + 1)[::seq_len]
        files = {"heldout": rows.astype(encoder.dtype), "heldout-bytes": lengths[rows[:, 1:]].sum(1).astype(np.int32), "train": empty}
        for kind, array in files.items():
            shards.write_array(directory / name / f"{kind}.npy", array)
        kept = {kind: FileRecord.of(directory / name / f"{kind}.npy", directory) for kind in files}
        records.append(
            SourceRecord(
                name=name, weight=weight, documents=0, duplicates=0, heldout_documents=len(texts), bytes=0, tokens=0, rows=0, shards=(),
                heldout_rows=len(rows), heldout=kept["heldout"], heldout_bytes=kept["heldout-bytes"],
            )
        )  # fmt: skip
    for file in tokenizer.iterdir():
        shards.write_bytes(directory / "tokenizer" / file.name, file.read_bytes())
    spec = CorpusSpec(sources=tuple(SourceSpec(generated="copy", name=name) for name in sources), seq_len=seq_len)
    made = Manifest(
        format=manifest.FORMAT, fingerprint=f"{directory.name:0>16}", seed=0, seq_len=seq_len, vocab_size=encoder.vocab_size,
        eos=encoder.eos, sources=tuple(records), tokenizer=(), spec=spec,
    )  # fmt: skip
    manifest.write(made, directory)
    return PackedCorpus.open(directory)
