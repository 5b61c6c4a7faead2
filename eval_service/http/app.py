"""The HTTP front: requests in, evaluations into the ledger, answers from it. Nothing is scored here."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from eval_service.admission import OutsideRoots, admit
from eval_service.http.catalogue import Catalogue
from eval_service.http.dispatcher import Dispatcher
from eval_service.http.evaluations import Evaluation, State, cancelled
from eval_service.http.ledger import Ledger
from eval_service.http.metrics import CONTENT_TYPE, Metrics
from eval_service.http.security import Gate, Token, problem
from losslens.errors import LosslensError, UserError
from losslens.results import Results

THIS_MACHINE = frozenset({"127.0.0.1", "localhost", "::1"})
_SCORES = "SELECT task, task_version, format, shots, metric, value, stderr, n, chance, higher_is_better, engine, scored_at FROM scores "
_SCORES += "WHERE checkpoint_id = $1 AND (list_contains($2, task) OR list_contains($2, task || ':' || format)) ORDER BY ALL"


class Submission(BaseModel):
    """What to score. `limit`: items per task, a fixed pseudo-random subset; none: all of them."""

    model_config = ConfigDict(extra="forbid", strict=True)
    checkpoint: Annotated[str, Field(min_length=1, max_length=4096, description="Directory of a Hugging Face model, seen by the service.")]
    tasks: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]],
        Field(min_length=1, max_length=100, description="Names; TASK:FORMAT asks a task in that format alone, TASK in each it has."),
    ]
    limit: Annotated[int | None, Field(ge=2, le=10_000_000)] = None


class Accepted(BaseModel):
    """The evaluation is on the disk and will be scored."""

    id: str


class Shown(BaseModel):
    """An evaluation. `attempts`: how often it was begun. `reused`: what had been scored before, written TASK:FORMAT, and on how many
    items; it is not scored again, whatever `limit` says."""

    id: str
    state: State
    checkpoint: str
    checkpoint_id: str | None
    tasks: list[str]
    limit: int | None
    attempts: int
    engine: str | None
    reused: dict[str, int]
    error: str | None
    remedy: str | None
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class Score(BaseModel):
    """A stored score, as the table `scores` has it."""

    task: str
    task_version: int
    format: str | None
    shots: int | None
    metric: str
    value: float | None
    stderr: float | None
    n: int | None
    chance: float | None
    higher_is_better: bool | None
    engine: str | None
    scored_at: datetime | None


class Health(BaseModel):
    """`ready`, or `draining`: running evaluations end, new ones are refused."""

    status: str


class Problem(BaseModel):
    """Why a request is refused, in a sentence, and what to do."""

    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Front:
    """What the requests are answered from."""

    ledger: Ledger
    dispatcher: Dispatcher
    catalogue: Catalogue
    metrics: Metrics
    results: Path
    roots: Sequence[Path]
    token: Token | None


def create_app(front: Front) -> FastAPI:
    """The service as an ASGI application."""
    app = FastAPI(
        title="losslens",
        version="1",
        description="Scores checkpoints of language models.",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Gate, hosts=None if front.token else THIS_MACHINE)
    _open_routes(app, front)
    _guarded_routes(app, front)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(LosslensError, _failed)
    return app


def _open_routes(app: FastAPI, front: Front) -> None:
    """What is answered without a token: it tells nothing."""

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})

    @app.get("/healthz", responses={503: {"model": Health}, 413: {"model": Problem}, 421: {"model": Problem}})
    def health(response: Response) -> Health:
        """Whether evaluations are accepted."""
        response.status_code = 503 if front.dispatcher.draining else 200
        return Health(status="draining" if front.dispatcher.draining else "ready")


def _guarded_routes(app: FastAPI, front: Front) -> None:
    guard = [Depends(_bearer(front.token))]

    @app.post("/evaluations", status_code=202, dependencies=guard, responses=_refusals(400, 403, 422))
    def submit(asked: Submission, response: Response) -> Accepted:
        """Queue an evaluation; it is on the disk when this is answered."""
        if front.dispatcher.draining:
            raise HTTPException(503, "the service is stopping", {"Retry-After": "30"})
        front.catalogue.versions(asked.tasks)
        admit(asked.checkpoint, front.roots)
        tasks = tuple(dict.fromkeys(asked.tasks))
        evaluation = Evaluation(secrets.token_hex(8), asked.checkpoint, tasks, asked.limit, time.time())
        front.ledger.add(evaluation)
        front.dispatcher.changed(evaluation)
        response.headers["Location"] = f"/evaluations/{evaluation.evaluation_id}"
        return Accepted(id=evaluation.evaluation_id)

    @app.get("/evaluations", dependencies=guard, responses=_refusals(422))
    def list_evaluations(
        state: State | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[str | None, Query(max_length=200, description="Go on below this id.")] = None,
    ) -> list[Shown]:
        """Evaluations, the newest first."""
        return [_shown(evaluation) for evaluation in front.ledger.listed(state, limit, before)]

    @app.get("/evaluations/{id}", dependencies=guard, responses=_refusals(404, 422))
    def show_evaluation(id: Id) -> Shown:
        """One evaluation."""
        return _shown(_known(front.ledger, id))

    @app.get("/evaluations/{id}/scores", dependencies=guard, responses=_refusals(404, 422))
    def show_scores(id: Id) -> list[Score]:
        """What is stored of the evaluation's checkpoint and tasks; empty before it is done."""
        evaluation = _known(front.ledger, id)
        if evaluation.state is not State.done:
            return []
        rows = Results(front.results).query(_SCORES, [evaluation.checkpoint_id, list(evaluation.tasks)])
        return [Score(**row) for row in rows.to_pylist()]

    @app.delete("/evaluations/{id}", dependencies=guard, responses=_refusals(404, 409, 422))
    def cancel(id: Id) -> Shown:
        """Cancel an evaluation that has not ended; the scorer that works on it ends too."""
        while True:  # it may begin or end between reading and writing
            before = _known(front.ledger, id)
            try:
                after = cancelled(before, time.time())
            except UserError as error:
                raise HTTPException(409, error.message) from error
            if after is before or front.ledger.replace(before, after):
                front.dispatcher.changed(after)
                return _shown(after)

    @app.get("/metrics", dependencies=guard, response_class=Response, responses=_refusals() | {200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(front.metrics.text(front.ledger.counts(), front.dispatcher.scorers), media_type=CONTENT_TYPE)


Id = Annotated[str, InPath(max_length=200)]


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How a request may be refused, beside the ways that all share: no token, another name, too large a body, a full disk."""
    return {status: {"model": Problem} for status in (401, 413, 421, 503, *statuses)}


def _bearer(token: Token | None) -> Callable[..., None]:
    def require(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_SCHEME)]) -> None:
        if token is not None and (given is None or not token.is_borne(given.credentials)):
            raise HTTPException(401, "the request bears no valid token", {"WWW-Authenticate": "Bearer"})

    return require


def _known(ledger: Ledger, evaluation_id: str) -> Evaluation:
    evaluation = ledger.get(evaluation_id)
    if evaluation is None:
        raise HTTPException(404, "there is no such evaluation")
    return evaluation


def _shown(evaluation: Evaluation) -> Shown:
    about: dict[str, Any] = {name: getattr(evaluation, name) for name in Shown.model_fields if name != "id" and not name.endswith("_at")}
    times = {name: _time(getattr(evaluation, name)) for name in ("submitted_at", "started_at", "ended_at")}
    return Shown(**{**about, **times, "id": evaluation.evaluation_id, "tasks": list(evaluation.tasks), "reused": dict(evaluation.reused)})


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong, in a sentence."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return problem(422, f"{where or 'the body'}: {first['msg']}", "see /openapi.json")


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def _failed(_: Request, error: Exception) -> JSONResponse:
    """Whose fault it is decides the status: the client's path or input, else something here."""
    assert isinstance(error, LosslensError)
    status = 403 if isinstance(error, OutsideRoots) else 422 if isinstance(error, UserError) else 503
    return problem(status, error.message, error.remedy)


_SCHEME = HTTPBearer(auto_error=False, description="Needed unless the service listens to its own machine only.")
_PAGE = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
_SCRIPT = base64.b64encode(hashlib.sha256(_PAGE.partition("<script>")[2].partition("</script>")[0].encode()).digest()).decode()
_POLICY = f"default-src 'none'; connect-src 'self'; script-src 'sha256-{_SCRIPT}'; style-src 'unsafe-inline'; frame-ancestors 'none'"
