"""The scoring service behind HTTP: checkpoints are submitted, queued on disk, scored on the cluster's scoring slots."""

from __future__ import annotations

if __name__ == "__main__":
    import here  # noqa: F401

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import ray

from eval_service.http.app import Front, create_app
from eval_service.http.catalogue import Catalogue
from eval_service.http.dispatcher import Dispatcher
from eval_service.http.ledger import Ledger
from eval_service.http.metrics import Metrics
from eval_service.http.security import Token, read_token, require_token
from eval_service.http.server import listen, run
from eval_service.pool import ScoringPool
from eval_service.questions import Questions
from jobs.exclusive import exclusive
from jobs.progress import Board
from losslens.cluster.connect import connected
from losslens.errors import UserError
from losslens.specs import ClusterSpec, load_study

IDLE_S = 600.0  # a scorer above --min-scorers ends after so long without work


@dataclass(frozen=True, slots=True)
class Settings:
    """What `losslens serve` was asked for; see its options. `roots` empty: the results directory is the only one."""

    host: str
    port: int
    roots: tuple[Path, ...]
    results: Path
    data: Path | None
    engine: str
    min_scorers: int
    max_scorers: int
    gpus: float
    token_file: Path | None
    drain_s: float


def serve(asked: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        UserError: a setting that cannot be: an open address without a token, a root that is no directory, a port in use.
    """
    if asked.min_scorers > asked.max_scorers:
        raise UserError(f"--min-scorers {asked.min_scorers} is above --max-scorers {asked.max_scorers}", "swap them")
    token = read_token(asked.token_file)
    require_token(asked.host, token)
    results = asked.results.resolve()
    roots = _roots(asked.roots or (results,), results)
    queue = results / "service"
    with ExitStack() as stack:
        listener = stack.enter_context(listen(asked.host, asked.port))
        stack.enter_context(exclusive(queue))
        board = stack.enter_context(Board())
        ledger = stack.enter_context(closing(Ledger(queue / "queue.sqlite")))
        catalogue = Catalogue(Questions((), str(asked.data.resolve()) if asked.data else None, seed=_seed(results)))
        spec = ClusterSpec(workers=(0, 0), train_slots=0, eval_slots=asked.max_scorers)  # it trains nothing
        slots = stack.enter_context(connected(spec))
        if not asked.gpus and ray.cluster_resources().get("GPU"):  # type: ignore[no-untyped-call]
            board.say("there are GPUs, and scorers get none of them: see --gpus-per-scorer")
        pool = ScoringPool(
            results,
            Questions(()),
            asked.engine,
            actors=asked.max_scorers,
            least=asked.min_scorers,
            release_after_s=IDLE_S,
            attempts=1,  # each is counted on the disk
            options={**slots.scorer_options(), "num_gpus": asked.gpus},
            roots=roots,
        )
        metrics = Metrics()
        dispatcher = Dispatcher(ledger, pool, catalogue, results, roots, engine=asked.engine, metrics=metrics, say=board.say)
        app = create_app(Front(ledger, dispatcher, catalogue, metrics, results, roots, Token(token) if token else None))
        host, port = listener.getsockname()[:2]
        board.say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
        run(app, dispatcher, listener, asked.drain_s)
        board.say("drained")


def _roots(asked: Sequence[Path], results: Path) -> tuple[Path, ...]:
    for root in asked:
        if root.resolve() != results and not root.is_dir():  # the results directory is made when it is needed
            raise UserError(f"the root {root} is not a directory", "give --root a directory that holds checkpoints")
    return tuple(root.resolve() for root in asked)


def _seed(results: Path) -> int:
    """The seed that chose the items of a limit in the studies there, so that the same items are asked; 0 where there are none."""
    seeds = {load_study(str(file)).seed for file in sorted((results / "studies").glob("*.yaml"))}
    if len(seeds) > 1:
        raise UserError(f"{results} holds studies of different seeds", "serve one study's results, or another directory")
    return seeds.pop() if seeds else 0


if __name__ == "__main__":
    from jobs.cli import run_verb

    run_verb("serve")
