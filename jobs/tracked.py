"""TensorBoard files that follow a job's results, from a thread of the driver: training and scoring know nothing of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from jobs.exclusive import exclusive
from jobs.progress import Board

EVERY_S = 15.0


@contextmanager
def tracked(results: Path, board: Board) -> Iterator[None]:
    """For the length of the block, and once more at its end. What goes wrong is said and stops nothing else."""
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(results, board, ended), name="tracked", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(results: Path, board: Board, ended: threading.Event) -> None:
    last = ended.wait(EVERY_S)  # before anything is imported: the way to the first step is short
    try:
        from losslens.results import Results
        from losslens.tracking import opened, send_new

        stored = Results(results)
        with closing(opened("tensorboard", results, project="")) as destination, exclusive(destination.home):
            while True:
                if stored.place.there():
                    send_new(stored, destination)
                if last:
                    return
                last = ended.wait(EVERY_S)
    except Exception as error:
        board.say(f"TensorBoard gets no more: {error}")
