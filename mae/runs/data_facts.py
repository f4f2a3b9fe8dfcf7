"""data.json: what the data stages counted, for the report."""

from __future__ import annotations

from pydantic import BaseModel

from datasets.base.files import write_json
from datasets.manifest import MANIFEST, fault_counts
from mae.runs.run import Run

FILE = "data.json"


class DataFacts(BaseModel, extra="forbid"):
    """data.json. `faults` has the number of files by status."""

    name: str
    root: str
    train: int
    val: int
    classes: list[str]
    faults: dict[str, int]
    records: str


def write_data_facts(run: Run) -> None:
    """Write data.json of a run from the index and the manifest of its records."""
    index = run.index
    facts = DataFacts(
        name=index.name,
        root=str(index.root),
        train=index.splits["train"].images,
        val=index.splits["val"].images,
        classes=index.classes,
        faults=fault_counts(run.records / MANIFEST),
        records=str(run.records),
    )
    write_json(run.directory / FILE, facts.model_dump())
