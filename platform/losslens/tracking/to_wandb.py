"""Weights & Biases, through its own client: a run there for each of ours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from losslens.errors import EnvironmentFailure
from losslens.tracking.points import Point, Run, folder_name

try:
    import wandb
except ImportError as error:
    raise EnvironmentFailure("wandb is not installed", "pip install 'losslens[wandb]'") from error


class WeightsAndBiases:
    """A project. Account, mode and server are what wandb's own variables and `wandb login` say."""

    def __init__(self, root: Path, project: str) -> None:
        settings = wandb.setup().settings
        self._project, self._runs = project, dict[str, Any]()
        account = f"{settings.entity} {settings.base_url} {settings.mode}"  # what was sent offline is not online
        self.home = root / "wandb" / folder_name(f"{project}-{hashlib.sha256(account.encode()).hexdigest()[:8]}")

    def send(self, run: Run, points: Sequence[Point], mark: str | None) -> str:
        """Log the points under step and tokens; the mark is their number so far, by which W&B drops those that come again."""
        sent = int(mark or 0)
        try:
            live = self._runs.get(run.run_id) or self._begin(run)
            for count, point in enumerate(points, sent + 1):
                place = {"step": point.step, "tokens": point.tokens}
                live.log({**{name: x for name, x in place.items() if x is not None}, **point.values}, step=count)
        except wandb.Error as error:
            raise EnvironmentFailure(f"W&B does not take the run: {_sentence(error)}", _REMEDY) from error
        return str(sent + len(points))

    def _begin(self, run: Run) -> Any:
        folder = self.home / run.name
        folder.mkdir(parents=True, exist_ok=True)
        live = wandb.init(
            project=self._project,
            id=run.name,
            name=run.run_id,
            group=run.settings.get("study"),
            config=dict(run.settings),
            dir=folder,
            resume="allow",
            reinit="create_new",  # several runs at once
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True, x_disable_stats=True),
        )
        live.define_metric("tokens", hidden=True)
        live.define_metric("step", hidden=True)
        live.define_metric("*", step_metric="tokens")
        self._runs[run.run_id] = live
        return live

    def close(self) -> None:
        """Wait until all is sent."""
        for live in self._runs.values():
            live.finish()


_REMEDY = "run `wandb login` or set WANDB_API_KEY; WANDB_MODE=offline keeps everything here for `wandb sync`"


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
