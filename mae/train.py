"""Stage train: name a run by its inputs, start its ranks, follow them, verify what they wrote."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.base.digests import value_digest
from datasets.base.errors import InputError, no_room, room_for
from datasets.base.files import StageResult, atomic_write, write_json
from datasets.batches import steps_per_epoch
from datasets.manifest import MANIFEST, fault_counts
from datasets.records import Records, check_files, check_labelled, load_index
from mae.config.sections import Config, PretrainConfig, dump_config
from mae.device.context import check_target
from mae.health.follow import Follower
from mae.health.tensorboard import rewrite
from mae.health.verdict import FILE as VERDICT
from mae.health.verdict import judge
from mae.launch.ranks import RanksFailed, check_free, run_ranks
from mae.runs import checkpoint
from mae.runs.failure import failures, fall_back
from mae.runs.fork import fork, load_fork
from mae.runs.history import remember
from mae.runs.inputs import differences, run_inputs
from mae.training.metrics import METRICS, evaluations, read_lines

if TYPE_CHECKING:
    from rich.console import Console

    from datasets.validation import Validation

HANG_SECONDS = 1800.0  # longer than any graph compiles; a rank without progress for so long will make none
LEAST_ROOM = 64 << 10  # bytes; below it a disk is full for who writes a log, a line of metrics or the news of an error

logger = logging.getLogger(__name__)


class Training(StageResult):
    """A finished run. `checkpoint` is the last model file, `digest` its SHA-256, `loss` the last logged loss."""

    run_dir: Path
    checkpoint: Path
    digest: str
    steps: int
    loss: float


def run_directory(config: Config, *, workspace: Path) -> Path:
    """<workspace>/runs/<name>-<digest>: the same config on the same records is the same run.

    What cannot change the result is no part of the digest: `mae.runs.inputs` says what.
    """
    _records(config)
    return workspace / "runs" / f"{config.name}-{value_digest(run_inputs(config))}"


def train(
    config: Config,
    *,
    workspace: Path,
    rank_table: Path | None = None,
    resume: bool | None = None,
    start: Path | None = None,
    report_line: Callable[[str], None] = logger.info,
    console: Console | None = None,
) -> Training:
    """Run the config's task on its records, or continue it from its newest checkpoint, or find it finished.

    Args:
        config: `data.records` names a directory that `mae data shard` wrote.
        workspace: receives runs/<run>/.
        rank_table: HCCL rank table for the ranks on Ascend; copied into the run.
        resume: True: go on from the newest checkpoint of a run of this name, and refuse one of another config or data.
            False: remove an earlier attempt of the same run first. None: go on with the same run, or begin one.
        start: begin at this checkpoint of a run whose recipe differs (`mae.runs.fork.fork`).
        report_line: called with a line of progress per epoch, or per minute where epochs are longer.
        console: a terminal that gets one line kept up to date instead.

    Raises:
        InputError: config, records and machine do not fit each other, or a file of the records is damaged.
        RanksFailed: a rank died; calling again continues from the newest checkpoint.
    """
    config = _resolved(config)
    check_target(config.device)
    run_dir = run_directory(config, workspace=workspace)
    recipe = config.recipe
    check_free(run_dir)
    if start is not None:
        fork(start, run_dir, config, fresh=resume is False)
    elif resume is False:
        shutil.rmtree(run_dir, ignore_errors=True)
    _check_resumed(run_dir, config, among_others=resume is True)
    done = _finished(run_dir, recipe.epochs)
    if done is not None and _measured(run_dir, config, done.steps):
        logger.info("%s: reusing the finished run", run_dir)
        if not (run_dir / VERDICT).exists():  # its launcher was killed behind the last checkpoint
            rewrite(run_dir, read_lines(run_dir / METRICS))
            _conclude(run_dir, config, report_line)
        return done
    run_dir.mkdir(parents=True, exist_ok=True)
    atomic_write(run_dir / "config.yaml", dump_config(config))
    write_json(run_dir / "data.json", _data_facts(_records(config)))
    if rank_table is not None:
        shutil.copyfile(rank_table, run_dir / "rank_table.json")
    (run_dir / VERDICT).unlink(missing_ok=True)
    before = failures(run_dir)
    try:
        _run(run_dir, config, report_line, console)
    except InputError:
        if not fall_back(run_dir, config, before):
            raise
        _run(run_dir, config, report_line, console)
    result = _finished(run_dir, recipe.epochs)
    if result is None:
        todo = f"read {run_dir / 'logs'}"
        raise InputError(run_dir, expected="the last epoch's checkpoint", found="none that is intact", todo=todo)
    _conclude(run_dir, config, report_line)
    return result.model_copy(update={"reused": False})


def _conclude(run_dir: Path, config: Config, report_line: Callable[[str], None]) -> None:
    """Judge a finished run; one with one recipe and a loss as it should be is what later ones are compared with."""
    result = judge(run_dir, config)
    if load_fork(run_dir) is None and not any(finding.about == "loss" for finding in result.findings):
        remember(run_dir, config)
    for line in result.lines():
        report_line(line)


def _run(run_dir: Path, config: Config, report_line: Callable[[str], None], console: Console | None) -> None:
    """Run the ranks on records that are whole; where they fail, say so if the records no longer are.

    Or if the disk is full. MindDataset ends a rank by SIGSEGV where a shard was cut. A fault in a record is looked for
    in every file's content.
    """
    records = _records(config)
    check_files(records, full=False)
    try:
        with room_for("the run's files", run_dir):
            _run_ranks(run_dir, config, report_line, console)
    except (InputError, RanksFailed) as error:
        free = shutil.disk_usage(run_dir).free
        if isinstance(error, RanksFailed) and free < LEAST_ROOM:  # nor was there room to say so
            raise no_room("the run's files", run_dir, f"{free} bytes free") from error
        check_files(records, full=isinstance(error, InputError) and str(records) in str(error))
        raise


def _run_ranks(run_dir: Path, config: Config, report_line: Callable[[str], None], console: Console | None) -> None:
    with Follower(run_dir, config, report_line, console) as poll:
        run_ranks(
            ["-m", "mae.training.engine", str(run_dir)],
            ranks=config.device.ranks,
            log_dir=run_dir / "logs",
            run_dir=run_dir,
            poll=poll,
            hang_seconds=HANG_SECONDS,
            rank_table=run_dir / "rank_table.json" if config.device.target == "Ascend" else None,
            python=config.device.python,
        )


def check_data(config: Config, data: Validation | Records, *, protocols: Sequence[str] = ()) -> None:
    """Refuse a job that there are too few images for, or no labels where its accuracy is measured.

    Args:
        protocols: by these the encoder is evaluated on the same images then.

    Raises:
        InputError: a batch is larger than the data, or there is no label to measure by.
    """
    recipe = config.recipe
    for name, section in config.recipes():
        if name in (config.task, *protocols):
            batch, key = section.batch_size * section.accum_iter, f"{name}.batch_size"
            steps_per_epoch(data.train, batch_size=batch, ranks=config.device.ranks, key=key)
    if protocols or (isinstance(recipe, PretrainConfig) and recipe.eval_epochs is not None):
        check_labelled(data.directory, classes=len(data.classes), val=data.val)


def _check_resumed(run_dir: Path, config: Config, *, among_others: bool) -> None:
    """Refuse to go on from a checkpoint of another config or other records, naming each key that differs."""
    found = checkpoint.newest(run_dir / "checkpoints")
    if found is None and among_others and not (run_dir / "config.yaml").exists():
        runs = [path for path in run_dir.parent.glob(f"{config.name}-*") if path.name.rpartition("-")[0] == config.name]
        others = filter(None, (checkpoint.newest(path / "checkpoints") for path in runs))
        found = max(others, key=lambda path: path.stat().st_mtime, default=None)
    if found is None:
        return
    written, wanted = checkpoint.load_state(found).inputs, run_inputs(config)
    if written != wanted:
        todo = "undo this to go on with it, leave out --resume to begin another run, or begin that at it with --from"
        if found.parents[1] == run_dir:
            todo = "begin again with --fresh, which removes it"
        expected = "the config and records that this checkpoint was trained with"
        raise InputError(found, expected=expected, found=differences(written, wanted), todo=todo)


def _records(config: Config) -> Path:
    if config.data.records is None:
        todo = "run `mae data shard` and set data.records to what it wrote"
        raise InputError("data.records", expected="a records directory", found="none", todo=todo)
    return Path(config.data.records)


def _resolved(config: Config) -> Config:
    """The config with absolute paths, after what would fail in every rank has been checked."""
    records = _records(config).resolve()
    found = load_index(records).result(records, reused=True)
    check_data(config, found)
    classes = len(found.classes)
    if config.task != "pretrain" and config.init is None:
        expected, todo = f"a checkpoint that task {config.task} starts from", "set it to one of pre-training"
        raise InputError("init", expected=expected, found="none", todo=todo)
    if config.model.num_classes not in (None, classes):
        raise InputError(
            "model.num_classes",
            expected=f"{classes}, the number of classes in {records}",
            found=str(config.model.num_classes),
            todo="correct it or leave it out",
        )
    data = config.data.model_copy(update={"records": str(records)})
    init = str(checkpoint.model_file(Path(config.init)).resolve()) if config.init is not None else None
    return config.model_copy(update={"data": data, "init": init})


def _data_facts(records: Path) -> dict[str, Any]:
    """What the report says of the data: counts, classes, and the files that validation found fault with."""
    index = load_index(records)
    return {
        "name": index.name,
        "root": str(index.root),
        "train": index.splits["train"].images,
        "val": index.splits["val"].images,
        "classes": index.classes,
        "faults": fault_counts(records / MANIFEST),
        "records": str(records),
    }


def _measured(run_dir: Path, config: Config, step: int) -> bool:
    """Whether the last epoch's evaluation is there, which a kill behind the last checkpoint leaves out."""
    recipe = config.recipe
    if not isinstance(recipe, PretrainConfig) or not recipe.evaluation_due(step, step // recipe.epochs):
        return True
    found = {line["protocol"] for line in evaluations(read_lines(run_dir / METRICS)) if line["step"] == step}
    return found >= set(recipe.eval_protocols)


def _finished(run_dir: Path, epochs: int) -> Training | None:
    """The result of a run whose last epoch has an intact checkpoint."""
    newest = checkpoint.newest(run_dir / "checkpoints")
    if newest is None:
        return None
    state = checkpoint.load_state(newest)
    if state.epoch < epochs:
        return None
    model = newest / checkpoint.MODEL
    return Training(
        run_dir=run_dir,
        checkpoint=model,
        digest=state.digests[checkpoint.MODEL],
        steps=state.step,
        loss=state.loss,
        reused=True,
    )
