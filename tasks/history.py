"""The record of all evaluations: one parquet file each under <workspace>/history/evaluations, never changed again."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.base.files import atomic_write
from mae.evaluation.evaluate import Evaluation
from tasks.stage import stage_task

SCHEMA = pa.schema(
    {
        "time": pa.timestamp("us", "UTC"),
        "run": pa.string(),
        "protocol": pa.string(),
        "encoder": pa.string(),
        "top1": pa.float64(),
        "top5": pa.float64(),
        "images": pa.int64(),
        "checkpoint": pa.string(),
        "records": pa.string(),
    }
)


@stage_task("remember the evaluation", timeout_hours=1)
def append(run: str, evaluation: Evaluation, workspace: Path) -> Path:
    """Write a row for each encoder that an evaluation measured; returns the new file."""
    now = datetime.now(UTC)
    content = json.loads(evaluation.path.read_text())
    common = {"time": now, "run": run, **{key: content[key] for key in ("protocol", "checkpoint", "records")}}
    rows = [{**common, **score.model_dump()} for score in evaluation.results]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer)
    path = workspace / "history" / "evaluations" / f"{now:%Y%m%dT%H%M%S.%fZ}-{run}-{evaluation.protocol}.parquet"
    atomic_write(path, buffer.getvalue())
    return path
