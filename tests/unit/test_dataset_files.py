"""Directories that the library `datasets` and the Hub write: the files that we take for a split are those that `datasets` takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from losslens.corpus import readers, sources
from losslens.corpus.dataset_files import by_name
from losslens.errors import UserError
from losslens.specs import SourceSpec

TEXTS = [f"document {i} 中😀" for i in range(40)]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library itself, which keeps what it caches in a folder of the test."""
    library = pytest.importorskip("datasets", reason="the library that writes these directories comes with lm-eval")
    library.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    library.disable_progress_bars()
    return library


def read(hf: Path, split: str = "train", **more: Any) -> list[str]:
    return list(documents(hf, split, **more))


def documents(hf: Path, split: str = "train", target: int = 1 << 20, **more: Any) -> Iterator[str]:
    source = SourceSpec(hf=str(hf), split=split, **more)
    for piece in sources.pieces(sources.files(source), target):
        yield from readers.documents(piece, source.text_column, source.where)


def test_a_dataset_saved_to_disk(datasets: Any, tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": TEXTS, "label": list(range(40)), "body": TEXTS[::-1]})
    made.save_to_disk(tmp_path / "one", num_shards=3)
    assert read(tmp_path / "one") == TEXTS
    assert read(tmp_path / "one", text_column="body") == TEXTS[::-1]
    assert read(tmp_path / "one", where={"label": "7"}) == [TEXTS[7]]
    made.select(range(30, 5, -1)).filter(lambda row: row["label"] % 2 == 0).save_to_disk(tmp_path / "chosen")
    assert read(tmp_path / "chosen") == TEXTS[30:5:-2], "rows that are chosen by indices"


def test_several_splits_saved_to_disk(datasets: Any, tmp_path: Path) -> None:
    halves = {"train": TEXTS[:20], "my_own": TEXTS[20:]}
    datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": texts}) for name, texts in halves.items()}).save_to_disk(tmp_path)
    for name, texts in halves.items():
        assert read(tmp_path, name) == texts
        assert read(tmp_path / name) == texts
    for wanted in ("test", "en/train"):
        with pytest.raises(UserError, match=f"has no split '{wanted}'") as caught:
            read(tmp_path, wanted)
        assert "train, my_own" in caught.value.remedy


@pytest.mark.parametrize("form", ["large_string", "string_view", "dictionary"])
def test_texts_in_other_forms(form: str, datasets: Any, tmp_path: Path) -> None:
    if form == "large_string":
        made = datasets.Dataset.from_dict({"text": TEXTS}, features=datasets.Features({"text": datasets.Value("large_string")}))
        made.save_to_disk(tmp_path)
        assert read(tmp_path) == TEXTS
        return
    kind = pa.dictionary(pa.int32(), pa.string()) if form == "dictionary" else pa.string_view()
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.string()).cast(kind)}), tmp_path / "data" / "train-00000-of-00001.parquet")
    assert read(tmp_path) == TEXTS


@pytest.mark.parametrize(("column", "what"), [("label", "int"), ("tokens", "list"), ("answers", "dict"), ("image", "bytes")])
def test_what_is_no_text_is_refused_in_a_sentence(column: str, what: str, datasets: Any, tmp_path: Path) -> None:
    rows = {"text": TEXTS[:2], "label": [1, 2], "tokens": [[1], [2, 3]], "answers": [{"a": 1}, {"a": 2}], "image": [b"x", b"y"]}
    labels = datasets.Dataset.from_dict(rows)
    labels.save_to_disk(tmp_path / "arrow")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    labels.to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
    for folder in ("arrow", "hub"):
        with pytest.raises(UserError, match=f"the column '{column}' of .* holds {what} values, not text"):
            read(tmp_path / folder, text_column=column)


def hub(folder: Path, files: dict[str, list[str]], front: str | None = None) -> Path:
    """A dataset repository: Parquet files with these texts, and a README.md that begins with `front`."""
    for name, texts in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        else:
            pq.write_table(pa.table({"text": texts}), folder / name)
    if front is not None:
        (folder / "README.md").write_text(f"---\n{front}\n---\n# A dataset\n\n---\nconfigs: no\n---\n", encoding="utf-8")
    return folder


TWO_CONFIGS = """
license: odc-by
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train-*}
  - {split: test, path: [en/test-*, "en/more/**"]}
- config_name: zh
  data_files: "zh/*.parquet"
  default: true
dataset_info:
- {config_name: en, features: [{name: text, dtype: string}]}
"""
FILES = {
    "en/train-00000-of-00002.parquet": TEXTS[:3],
    "en/train-00001-of-00002.parquet": TEXTS[3:5],
    "en/test-00000-of-00001.parquet": TEXTS[5:6],
    "en/more/deep/x.parquet": TEXTS[6:8],
    "zh/a.parquet": TEXTS[8:9],
    "zh/b.parquet": TEXTS[9:10],
    "zh/below/c.parquet": TEXTS[10:11],
}


def test_configurations_of_a_readme(datasets: Any, tmp_path: Path) -> None:
    folder = hub(tmp_path, FILES, TWO_CONFIGS)
    assert read(folder) == read(folder, "zh/train") == TEXTS[8:10]
    for config, split in (("en", "train"), ("en", "test"), ("zh", "train")):
        theirs = list(datasets.load_dataset(str(folder), config, split=split, streaming=True))
        assert sorted(read(folder, f"{config}/{split}")) == sorted(row["text"] for row in theirs)
    with pytest.raises(UserError, match="has no split 'en/dev'") as caught:
        read(folder, "en/dev")
    assert caught.value.remedy.endswith("from test, train")
    with pytest.raises(UserError, match="has no configuration 'fr'") as caught:
        read(folder, "fr/train")
    assert "en, zh" in caught.value.remedy


def test_configurations_without_a_default_are_to_be_named(tmp_path: Path) -> None:
    folder = hub(tmp_path, FILES, TWO_CONFIGS.replace("  default: true\n", ""))
    with pytest.raises(UserError, match="2 configurations, none of which is the default") as caught:
        read(folder, "test")
    assert "en/test, zh/test" in caught.value.remedy


def test_a_configuration_by_folder(datasets: Any, tmp_path: Path) -> None:
    folder = hub(tmp_path, FILES, "configs:\n- {config_name: english, data_dir: en}")
    assert sorted(read(folder)) == sorted(TEXTS[:5])
    theirs = datasets.load_dataset(str(folder), "english", split="test", streaming=True)
    assert sorted(read(folder, "english/test")) == sorted(row["text"] for row in theirs)


@pytest.mark.parametrize(
    ("front", "says"),
    [
        ("configs: [", "cannot be read"),
        ("configs: 7", "cannot be read"),
        ("configs: [{data_files: x}]", "missing required field `config_name`"),
        ("configs: [{config_name: x, data_files: [{split: train}]}]", "missing required field `path`"),
        ("configs: [{config_name: x, data_files: 'nothing-*'}]", "no file of split 'train'"),
        ("configs: [{config_name: x, data_files: '../*'}]", "no file of split 'train'"),
        ("configs: [{config_name: x, data_files: 'hf://datasets/a/b/*'}]", "no file of split 'train'"),
    ],
)
def test_a_readme_that_helps_nobody(front: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read(hub(tmp_path, FILES, front))
    assert caught.value.remedy and "\n" not in str(caught.value)


@pytest.mark.parametrize("front", [None, "license: mit", "- a list", ""])
def test_a_readme_without_configurations(front: str | None, tmp_path: Path) -> None:
    if front == "- a list":
        with pytest.raises(UserError, match="cannot be read"):
            read(hub(tmp_path, FILES, front))
    else:
        assert sorted(read(hub(tmp_path, FILES, front))) == sorted(TEXTS[:5])


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/en.gold-00000-of-00001.parquet", "x/test.parquet"],
        ["train/a.parquet", "train/deep/b.parquet", "test/a.parquet", "other/dev.parquet"],
        ["val_set/a.parquet", "my-train/a.parquet", "test.parquet"],
        ["wiki_train.parquet", "wiki-eval.2.parquet", "training2.parquet", "trained.parquet"],
        ["dev.parquet", "validation-1.parquet", "contest.parquet"],
        ["a.parquet", "b/c.parquet"],
        ["en/train-00000-of-00001.parquet", "en/test-00000-of-00001.parquet"],
    ],
)
def test_splits_by_names_are_those_of_the_library(names: list[str], datasets: Any, tmp_path: Path) -> None:
    from datasets.data_files import get_data_patterns, resolve_pattern

    folder = hub(tmp_path, {name: [name] for name in names})

    def matching(pattern: str) -> set[str]:
        try:
            return {Path(path).relative_to(folder).as_posix() for path in resolve_pattern(pattern, str(folder))}
        except FileNotFoundError:  # one of several patterns
            return set()

    patterns = get_data_patterns(str(folder))
    theirs = {str(split): sorted(set().union(*map(matching, listed))) for split, listed in patterns.items()}
    assert {split: sorted(files) for split, files in by_name(names).items()} == theirs
    for split, files in theirs.items():
        assert read(folder, split) == files


def test_the_first_documents_come_before_the_rest_is_read(tmp_path: Path) -> None:
    """The end of the last file is not there: who has asked for ten documents does not learn it."""
    big = [f"{i} " + "x" * 1000 for i in range(5000)]
    for number in range(3):
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": big}), tmp_path / "data" / f"train-0000{number}-of-00003.parquet", row_group_size=100)
    last = tmp_path / "data" / "train-00002-of-00003.parquet"
    raw = bytearray(last.read_bytes())
    raw[: len(raw) // 2] = bytes(len(raw) // 2)
    last.write_bytes(raw)
    before = pa.total_allocated_bytes()
    stream = documents(tmp_path)
    assert list(islice(stream, 10)) == big[:10]
    assert pa.total_allocated_bytes() - before < 10_000_000
    with pytest.raises(UserError, match="is damaged"):
        list(stream)
