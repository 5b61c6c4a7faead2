"""The next batch, fetched and copied to the device while the present one computes.

One batch ahead and no more: what was fetched and is not used, when a run leaves, is fetched again from the cursor.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor


def ahead(batches: Iterator[np.ndarray], device: torch.device) -> Generator[Tensor]:
    """The batches as tensors on the device."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def fetch() -> tuple[Tensor, torch.cuda.Event | None] | None:
        rows = next(batches, None)
        if rows is None:
            return None
        tokens = torch.from_numpy(rows)
        if stream is None:
            return tokens, None
        with torch.cuda.stream(stream):
            return tokens.pin_memory().to(device, non_blocking=True), stream.record_event()

    with ThreadPoolExecutor(1, "next-batch") as pool:
        coming = pool.submit(fetch)
        while (arrived := coming.result()) is not None:
            coming = pool.submit(fetch)
            rows, copied = arrived
            if copied is not None:
                torch.cuda.current_stream().wait_event(copied)
                rows.record_stream(torch.cuda.current_stream())  # its memory is taken again only after the step
            yield rows
