"""Stage train: prepare a run, start its ranks, follow them, and verify the result."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

from datasets.base.errors import InputError, no_room, room_for
from datasets.base.files import atomic_write
from datasets.batches import steps_per_epoch
from datasets.records import Records, check_files, check_labelled, load_index
from mae.cluster.inventory import JobTable, job_table
from mae.config.sections import Config, PretrainConfig
from mae.device.context import check_target
from mae.health.follow import Follower
from mae.health.tensorboard import rewrite
from mae.health.verdict import FILE as VERDICT
from mae.health.verdict import conclude, load_verdict
from mae.launch.interpreter import check_interpreter
from mae.launch.ranks import RanksFailed, check_free, run_ranks
from mae.runs.data_facts import write_data_facts
from mae.runs.failure import failures, fall_back
from mae.runs.fork import fork
from mae.runs.log import read_lines
from mae.runs.model_file import model_file
from mae.runs.resume import check_resumed
from mae.runs.run import Run, Training

if TYPE_CHECKING:
    from rich.console import Console

    from datasets.validation import Validation

HANG_SECONDS = 1800.0  # longer than any graph takes to compile: a rank without progress for this long is stuck
LEAST_ROOM = 64 << 10  # bytes of free disk, below which a rank may have been unable to write its error

logger = logging.getLogger(__name__)


def train(
    config: Config,
    *,
    workspace: Path,
    rank_table: Optional[Path] = None,
    resume: Optional[bool] = None,
    start: Optional[Path] = None,
    report_line: Callable[[str], None] = logger.info,
    console: Optional[Console] = None,
) -> Training:
    """Run the config's task on its records, continue it from its newest checkpoint, or return the finished run.

    Args:
        config: `data.records` is a directory that `mae data shard` wrote.
        workspace: receives runs/<run>/.
        rank_table: HCCL rank table of the job, copied into the run. None: on Ascend one is made for this server.
        resume: True: continue the newest run of this name, and fail if config or data changed. False: remove an earlier
            attempt of the same run first. None: continue the same run, or start a new one.
        start: start at this checkpoint of a run with another recipe (`mae.runs.fork`).
        report_line: called with a line of progress per epoch, or per minute if epochs are longer.
        console: a terminal that shows one line, updated in place, instead.

    Raises:
        InputError: config, records, rank table and machine do not fit each other, or a file of the records is damaged.
        RanksFailed: a rank died; the same call continues from the newest checkpoint.
    """
    config = _resolved(config)
    check_target(config.device)
    asked = check_interpreter(config.device.python)
    logger.info("%s: Python %s, MindSpore %s, CANN %s", asked.path, asked.python, asked.mindspore, asked.cann)
    table = job_table(config.device, rank_table, workspace / "rank_tables")
    run = Run.of(config, workspace)
    check_free(run.directory)
    if start is not None:
        fork(start, run, fresh=resume is False)
    elif resume is False:
        shutil.rmtree(run.directory, ignore_errors=True)
    check_resumed(run, asked.mindspore, among_others=resume is True)
    done = run.finished()
    if done is not None and run.evaluated(done.steps):
        logger.info("%s: reusing the finished run", run.directory)
        if load_verdict(run) is None:  # the launcher was killed after the last checkpoint
            rewrite(run.directory, read_lines(run.metrics))
            conclude(run, report_line)
        return done.model_copy(update={"reused": True})
    before = failures(run)
    run.write_config()
    write_data_facts(run)
    if table.content is not None:
        atomic_write(run.directory / "rank_table.json", table.content)
    (run.directory / VERDICT).unlink(missing_ok=True)
    while True:
        try:
            _run(run, table, report_line, console)
            break
        except InputError:
            if not fall_back(run, before):  # at most once per run
                raise
    done = run.finished()
    if done is None:
        todo = f"read {run.directory / 'logs'}"
        raise InputError(run.directory, expected="the last epoch's checkpoint", found="none that is intact", todo=todo)
    conclude(run, report_line)
    return done


def check_data(config: Config, data: Union[Validation, Records], *, protocols: Sequence[str] = ()) -> None:
    """Refuse a job with too few images for its batches, or without the labels that its evaluations need.

    Args:
        protocols: protocols that will evaluate the encoder on the same images.

    Raises:
        InputError: a batch is larger than the data, or labels are missing.
    """
    recipe = config.recipe
    for name, section in config.recipes():
        if name in (config.task, *protocols):
            batch, key = section.batch_size * section.accum_iter, f"{name}.batch_size"
            steps_per_epoch(data.train, batch_size=batch, ranks=config.device.ranks, key=key)
    if protocols or (isinstance(recipe, PretrainConfig) and recipe.eval_epochs is not None):
        check_labelled(data.directory, classes=len(data.classes), val=data.val)


def _resolved(config: Config) -> Config:
    """Return the config with absolute paths, after the checks that would otherwise fail in every rank."""
    if config.data.records is None:
        return config  # Run.of says what is missing
    if config.task != "pretrain" and config.init is None:
        expected, todo = f"a checkpoint that task {config.task} starts from", "set it to one of pre-training"
        raise InputError("init", expected=expected, found="none", todo=todo)
    init = str(model_file(Path(config.init)).resolve()) if config.init is not None else None
    records = Path(config.data.records).resolve()
    found = load_index(records).result(records, reused=True)
    check_data(config, found)
    classes = len(found.classes)
    if config.model.num_classes not in (None, classes):
        raise InputError(
            "model.num_classes",
            expected=f"{classes}, the number of classes in {records}",
            found=str(config.model.num_classes),
            todo="correct it or leave it out",
        )
    data = config.data.model_copy(update={"records": str(records)})
    return config.model_copy(update={"data": data, "init": init})


def _run(run: Run, table: JobTable, report_line: Callable[[str], None], console: Optional[Console]) -> None:
    """Run the ranks on records that are complete. If they fail, report damaged records or a full disk as the cause.

    MindDataset ends a rank by SIGSEGV if a shard was cut short. Every file's content is checked if the error names the
    records.
    """
    check_files(run.records, full=False)
    try:
        with Follower(run, report_line, console) as poll, room_for("the run's files", run.directory):
            device, newest = run.config.device, run.newest()
            run_ranks(
                ["-m", "mae.training.engine", str(run.directory), *([str(newest)] if newest is not None else [])],
                ranks=device.ranks,
                log_dir=run.directory / "logs",
                run_dir=run.directory,
                poll=poll,
                hang_seconds=HANG_SECONDS,
                devices=table.devices,
                rank_table=table.content,
                connect_seconds=device.hccl_connect_seconds,
                python=device.python,
            )
    except (InputError, RanksFailed) as error:
        free = shutil.disk_usage(run.directory).free
        if isinstance(error, RanksFailed) and free < LEAST_ROOM:
            raise no_room("the run's files", run.directory, f"{free} bytes free") from error
        check_files(run.records, full=isinstance(error, InputError) and str(run.records) in str(error))
        raise
