"""Which part of the results an analysis looks at: one value for the filters that all analyses share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from losslens.results import Results


@dataclass(frozen=True, slots=True)
class Filters:
    """Each filter takes one value or several separated by commas; None lets everything through."""

    task: str | None = None
    format: str | None = None
    metric: str | None = None
    loss_dataset: str | None = None
    study: str | None = None

    def points(self, stored: Results) -> pa.Table:
        """The rows of view `curve` that pass.

        Raises UserError when there are none; its remedy names what there is.
        """
        from losslens.errors import UserError

        points = stored.curve(**{name: value.split(",") for name, value in asdict(self).items() if value is not None})
        if not points.num_rows:
            raise UserError(f"{stored.root} holds no checkpoint with both a loss and a score.", "Run or evaluate a study into it first.")
        return points


EVERYTHING = Filters()
