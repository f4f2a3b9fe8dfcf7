"""Stage evaluate: measure a pre-trained encoder by every protocol that the config has a section for."""

from __future__ import annotations

from pathlib import Path

from datasets.base.files import StageResult
from mae.config import Config
from mae.config import protocols as known_protocols
from mae.evaluation import Evaluation
from mae.evaluation import evaluate as evaluate_checkpoint
from mae.launch import RanksFailed
from tasks.stage import markdown, stage_task, table


class Evaluations(StageResult):
    """The results of all protocols for one checkpoint."""

    items: list[Evaluation]


@stage_task("evaluate", run_name="evaluate {protocol}", final=(RanksFailed,))
def evaluate(
    protocol: str, checkpoint: Path, records: Path, config: Config, workspace: Path, refresh: bool = False
) -> Evaluation:
    """Measure a checkpoint by one protocol; with `refresh` even if it has been measured before."""
    result = evaluate_checkpoint(
        checkpoint, records, protocol=protocol, config=config, workspace=workspace, refresh=refresh
    )
    markdown(f"evaluation-{protocol}", scores(result))
    return result


def protocols(config: Config) -> list[str]:
    """Return the protocols that a config has a section for."""
    return [name for name in known_protocols() if config.section(name) is not None]


def intact(result: Evaluations) -> bool:
    """Return whether the files of all evaluations exist."""
    return all(item.path.is_file() for item in result.items)


def scores(result: Evaluation) -> str:
    """Return the results as Markdown."""
    rows: list[tuple[object, ...]] = [(s.encoder, f"{s.top1:.1%}", f"{s.images:,}") for s in result.results]
    return f"`{result.path}`\n\n{table(('encoder', 'top-1', 'validation images'), rows)}"
