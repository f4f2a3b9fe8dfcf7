"""The history of all evaluations: Parquet files under <workspace>/history/evaluations, which are never changed."""

from __future__ import annotations

import io
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.base.files import atomic_write
from mae.evaluation.evaluate import Evaluation
from mae.runs.evaluations import LAST_OLD_VERSION, current_name, read_evaluation

if TYPE_CHECKING:
    import pyarrow as pa


def schema() -> pa.Schema:
    """Return the columns: one row per encoder that an evaluation measured. `top1` and `top5` are shares of `images`."""
    import pyarrow as pa

    return pa.schema(
        {
            "time": pa.timestamp("us", "UTC"),
            "run": pa.string(),
            "protocol": pa.string(),
            "version": pa.int64(),
            "encoder": pa.string(),
            "top1": pa.float64(),
            "top5": pa.float64(),
            "images": pa.int64(),
            "checkpoint": pa.string(),
            "records": pa.string(),
        }
    )


def append(run: str, evaluation: Evaluation, workspace: Path) -> Path:
    """Write a row for each encoder that an evaluation measured, and return the new file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    now, found = datetime.now(timezone.utc), read_evaluation(evaluation.path)
    common = {"time": now, "run": run, **found.model_dump(include={"protocol", "version", "checkpoint", "records"})}
    rows = [{**common, **score.model_dump(exclude={"features"})} for score in found.results]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema()), buffer)
    path = workspace / "history" / "evaluations" / f"{now:%Y%m%dT%H%M%S.%fZ}-{run}-{found.protocol}.parquet"
    atomic_write(path, buffer.getvalue())
    return path


def read_history(workspace: Path) -> pa.Table:
    """Return all rows, oldest first. Rows of earlier commits get today's names of their protocols.

    Those rows have no version: `linear` was the name of what is called `logistic` today.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for path in sorted((workspace / "history" / "evaluations").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            version = row.get("version") or LAST_OLD_VERSION
            rows.append({**row, "version": version, "protocol": current_name(row["protocol"], version)})
    return pa.Table.from_pylist(rows, schema())
