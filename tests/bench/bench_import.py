"""Rows a second that `losslens import table` takes over: a generated long table of two million rows, read, checked and written.

python tests/bench/bench_import.py [--rows 2000000] [--kinds csv,csv.gz,csv.zst,jsonl,parquet]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from jobs.import_results import import_results

MAPPING = """
study: generated
tables:
  - files: "*"
    run: {id: "{model}", params: "= millions * 1e6"}
    checkpoint: {step: "{step}", tokens: "= step * 2097152"}
    losses:
      - {where: metric == 'loss', value: "{value}", dataset: "{task}", unit: nats/token}
    scores:
      - where: metric != 'loss'
        value: "{value}"
        task: "{task}"
        format: text
        metric: "{metric}"
        n: {table: {task0: 100, task1: 200}, of: "{task}"}
        chance: 0.25
        stderr: "= (value * (1 - value) / n) ** 0.5"
"""


def table(rows: int) -> pa.Table:
    """Two tasks by three metrics at each step of many models; every key once."""
    at = np.arange(rows)
    metric = np.array(["acc", "acc_norm", "loss"])[at % 3]
    millions = 10 + (at // 6) % 50
    columns = {"model": np.char.add("model-", millions.astype(str)), "millions": millions, "step": at // 300, "metric": metric}
    return pa.table({**columns, "task": np.char.add("task", (at // 3 % 2).astype(str)), "value": np.random.default_rng(0).random(rows)})


def write(rows: pa.Table, file: Path) -> None:
    """As the file's name says."""
    if ".csv" in file.suffixes:
        with pa.output_stream(str(file)) as stream:
            pcsv.write_csv(rows, stream)
    elif ".jsonl" in file.suffixes:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()), encoding="utf-8")
    else:
        pq.write_table(rows, file)


def main() -> None:
    """Print a line for each kind of file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--kinds", default="csv,csv.gz,csv.zst,jsonl,parquet")
    given = parser.parse_args()
    rows = table(given.rows)
    print(f"{given.rows:,} rows, {os.cpu_count()} cores")
    for kind in given.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            file, mapping = Path(folder, f"long.{kind}"), Path(folder, "mapping.yaml")
            write(rows, file)
            mapping.write_text(MAPPING, encoding="utf-8")
            began = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):
                taken = sum(row["rows"] for row in import_results("table", file, Path(folder, "results"), mapping))
            seconds = time.perf_counter() - began
            print(f"{kind:8} {file.stat().st_size / 1e6:6.0f} MB  {seconds:6.2f} s  {taken / seconds:10,.0f} rows/s  {taken:,} taken")


if __name__ == "__main__":
    main()
