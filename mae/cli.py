"""Command line: every stage without Prefect. Exit codes: 0 done, 1 the input or the run is at fault, 2 wrong usage."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from datasets.base.errors import InputError
from datasets.base.files import StageResult
from mae.config.protocols import protocol_names
from mae.config.sections import Target

# MindSpore, pyarrow and scikit-learn take seconds to import, so each command imports what it needs.

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
data = typer.Typer(no_args_is_help=True, help="Unpack and validate images, write and check MindRecord shards.")
rank_table = typer.Typer(no_args_is_help=True, help="Make, merge and check HCCL rank tables.")
app.add_typer(data, name="data")
app.add_typer(rank_table, name="rank-table")

Workspace = Annotated[Path, typer.Option(envvar="MAE_WORKSPACE", help="where stages write")]
Overrides = Annotated[Optional[list[str]], typer.Option("--set", metavar="KEY=VALUE", help="change a config value")]
WORKSPACE = Path("workspace")


@app.command()
def sample_data(
    directory: Path,
    train_per_class: Annotated[Optional[int], typer.Option(help="of 600")] = None,
    val_per_class: Annotated[Optional[int], typer.Option(help="of 100")] = None,
) -> None:
    """Unpack the shipped Fashion-MNIST sample as ImageNet-style folders."""
    from datasets.sample import unpack_sample

    _show(unpack_sample(directory, train_per_class=train_per_class, val_per_class=val_per_class))


@data.command()
def unpack(
    tars: Annotated[list[Path], typer.Argument(help="archives of images, and the devkit of the validation images")],
    out: Annotated[Path, typer.Option(help="receives train/<class>/ and val/<class>/")],
    skip_md5: Annotated[bool, typer.Option("--skip-md5", help="take archives with a published name unchecked")] = False,
    workers: Annotated[Optional[int], typer.Option(min=1, help="processes; default: one per core")] = None,
) -> None:
    """Unpack the tars of ImageNet-1k, or tars of folders train/<class>/ and val/<class>/ or <class>/."""
    from datasets.unpacking import unpack_archives

    _show(unpack_archives(tars, out, check_md5=not skip_md5, workers=workers))


@data.command()
def validate(
    root: Path,
    out: Annotated[Path, typer.Option(help="receives manifest.parquet and validation.json")],
    val_share: Annotated[float, typer.Option(help="held out per class where ROOT has no val/")] = 0.1,
    expect: Annotated[Optional[str], typer.Option(help="what it has to be: imagenet-1k")] = None,
    policy: Annotated[
        Optional[list[str]], typer.Option(metavar="FAULT=ACTION", help="fail, exclude, convert or accept")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="read unchanged files again, too")] = False,
    near_duplicates: Annotated[
        Optional[int], typer.Option(metavar="BITS", help="find pictures whose hashes differ in at most so many of 64")
    ] = None,
    min_side: Annotated[int, typer.Option(help="name images with a shorter side, in pixels")] = 16,
) -> None:
    """Decode every file below ROOT and say what is wrong with which."""
    from datasets.manifest import parse_policy
    from datasets.validation import ValidationOptions
    from datasets.validation import validate as run
    from mae.report import print_faults

    options = ValidationOptions(val_share, parse_policy(policy or []), expect, near_duplicates, min_side)
    result = run(root, out, options=options, full=full)
    print_faults(result)
    _show(result)


@data.command()
def shard(
    directory: Annotated[Path, typer.Argument(help="what `mae data validate` wrote")],
    out: Annotated[Path, typer.Option(help="receives train/, val/ and index.json")],
    shard_mb: Annotated[int, typer.Option(help="image bytes per shard, in MB")] = 1024,
    short_side: Annotated[Optional[int], typer.Option(help="store images with this shorter side")] = None,
    seed: Annotated[int, typer.Option(help="of the shuffle")] = 0,
    full: Annotated[bool, typer.Option("--full", help="check the digests of a finished output")] = False,
) -> None:
    """Write the usable images as MindRecord shards. A finished, undamaged output of the same input is kept."""
    from datasets.sharding import write_records

    _show(write_records(directory, out, shard_mb=shard_mb, short_side=short_side, seed=seed, full=full))


@data.command()
def check(
    records: Path, root: Annotated[Optional[Path], typer.Option(help="compare every record with its source")] = None
) -> None:
    """Verify every shard against index.json."""
    from datasets.sharding import check_records

    _show(check_records(records, root=root))


@rank_table.command()
def generate(
    device_num: Annotated[str, typer.Option(help='half-open range of devices, e.g. "[0,8)"')],
    server_ip: Annotated[Optional[str], typer.Option(help="this server's address; default: of its host name")] = None,
    visible_devices: Annotated[Optional[str], typer.Option(help="physical ids, e.g. 4,5,6,7")] = None,
    hccn_conf: Annotated[Path, typer.Option(help="read where hccn_tool fails")] = Path("/etc/hccn.conf"),
    out: Annotated[Path, typer.Option(help="directory of the table")] = Path("."),
) -> None:
    """Write this server's rank table."""
    from mae.cluster import rank_table as tables

    visible = tables.parse_visible_devices(visible_devices) if visible_devices is not None else None
    devices = tables.parse_device_range(device_num)
    _show(tables.generate(out, devices=devices, server_ip=server_ip, visible_devices=visible, hccn_conf=hccn_conf))


@rank_table.command()
def merge(files: list[Path], out: Annotated[Path, typer.Option(help="file of the merged table")]) -> None:
    """Merge the tables of several servers."""
    from mae.cluster.rank_table import merge as run

    _show(run(files, out))


@rank_table.command("check")
def check_table(
    file: Path, strict: Annotated[bool, typer.Option("--strict", help="warnings are errors")] = False
) -> None:
    """Check a table against HCCL's rules."""
    from mae.cluster.rank_table import check as run

    _show(run(file, strict=strict))


@app.command()
def train(
    config: Annotated[Optional[Path], typer.Argument()] = None,
    overrides: Overrides = None,
    rank_table: Annotated[Optional[Path], typer.Option(help="HCCL rank table of the job, on Ascend")] = None,
    resume: Annotated[
        Optional[bool],
        typer.Option(
            "--resume/--fresh",
            help="go on with the newest run of this name, refusing another config or data; or begin again. "
            "Default: go on with the same run, or begin one",
        ),
    ] = None,
    start: Annotated[
        Optional[Path], typer.Option("--from", help="begin at this checkpoint of a run whose recipe differs")
    ] = None,
    replay: Annotated[Optional[Path], typer.Option(help="failure/step_<n> of a run: run that step again")] = None,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Run the config's task on the records that its data.records names; or run a step again that failed."""
    if (config is None) == (replay is None):
        raise typer.BadParameter("give either CONFIG or --replay")
    if replay is not None:
        from mae.training.failed_step import replay as run_again

        _show(run_again(replay))
        return
    assert config is not None
    from rich.console import Console

    from mae.config.load import load_config
    from mae.train import train as run

    job, console = load_config(config, overrides or []), Console(stderr=True)
    _show(run(job, workspace=workspace, rank_table=rank_table, resume=resume, start=start, console=console))


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="known name, model file, checkpoint or run directory")],
    data: Annotated[Path, typer.Option(help="records, or a folder of images")],
    protocol: Annotated[str, typer.Option(help=f"one of {', '.join(protocol_names())}")],
    config: Annotated[Optional[Path], typer.Option(help="default: the run's own")] = None,
    overrides: Overrides = None,
    out: Annotated[Optional[Path], typer.Option(help="default: evaluations/ of the checkpoint's run")] = None,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Measure a checkpoint by a protocol."""
    from mae.api.auto import weights
    from mae.config.load import load_config
    from mae.data import prepare
    from mae.evaluation.evaluate import evaluate as run
    from mae.runs.model_file import run_directory

    model = weights(checkpoint)
    own = run_directory(model)
    if config is None and own is None:
        todo = "name a job config: --config"
        raise InputError(checkpoint, expected="a checkpoint of a run", found="a file elsewhere", todo=todo)
    source = config if config is not None else Path(str(own), "config.yaml")
    settings = load_config(source, overrides or [])
    records = prepare(data, workspace)
    _show(run(model, records, protocol=protocol, config=settings, workspace=workspace, out=out))


@app.command()
def predict(
    checkpoint: Annotated[str, typer.Argument(help="known name, model file, checkpoint or run directory")],
    images: Annotated[list[str], typer.Argument(help="image files, folders or http(s) addresses")],
    out: Annotated[Path, typer.Option(help="receives predictions.parquet and reconstructions/, or adds to them")],
    seed: Annotated[int, typer.Option(min=0, help="of the masks")] = 0,
    target: Annotated[Target, typer.Option()] = "CPU",
) -> None:
    """Reconstructions by a MAE, the five likeliest classes by a classifier."""
    from mae.prediction.predict import predict as run

    _show(run(checkpoint, images, out, seed=seed, target=target))


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="known name, model file, checkpoint or run directory")],
    out: Annotated[Path, typer.Argument(help="file to write, .mindir or .onnx")],
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="default: any in ONNX, 1 in MindIR")] = None,
) -> None:
    """A model for other programs: tokens of a pre-trained encoder, logits of a classifier."""
    from mae.api.auto import weights
    from mae.export.verified import export as run

    _show(run(weights(checkpoint), out, batch_size=batch_size))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="known name, .pth, .safetensors, .ckpt, Hugging Face folder or run")],
    destination: Annotated[Path, typer.Argument(help=".pth, .safetensors, .ckpt, or a Hugging Face folder")],
    layout: Annotated[Optional[str], typer.Option(help="names in a file: upstream or hugging_face")] = None,
    settings: Annotated[
        Optional[list[str]], typer.Option("--set", metavar="KEY=VALUE", help="what the source cannot tell: num_heads=6")
    ] = None,
    random_decoder: Annotated[
        bool, typer.Option("--random-decoder", help="make an encoder a MAE, its decoder untrained")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what stands at DESTINATION")] = False,
) -> None:
    """Weights from and to facebookresearch/mae, timm, Hugging Face and MindSpore files."""
    from mae.api.auto import weights
    from mae.config.load import parse_overrides
    from mae.weights.convert import convert as run

    told = parse_overrides(settings or [])
    options = {"random_decoder": random_decoder, "overwrite": overwrite}
    _show(run(weights(source), destination, layout=layout, settings=told, **options))


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="job config")],
    overrides: Overrides = None,
    cluster: Annotated[Optional[Path], typer.Option(help="inventory: its servers share the job")] = None,
    images: Annotated[Optional[int], typer.Option(min=1, help="training images; default: of the records")] = None,
    rate: Annotated[Optional[float], typer.Option(min=0.001, help="images/s and device, measured elsewhere")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for a script")] = False,
) -> None:
    """Steps, hours, memory, disk, checkpoints, failures, each with its sum; on a CPU some steps are really run."""
    from mae.cluster.inventory import count_servers
    from mae.config.load import load_config
    from mae.planning.estimate import plan as estimate

    job = load_config(config, overrides or [])
    servers = count_servers(cluster, job.device.ranks) if cluster is not None else 1
    found = estimate(job, servers=servers, images=images, rate=rate)
    print(found.model_dump_json(indent=2) if as_json else found.table())


@app.command()
def report(run: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Write report/index.html, a page that shows the files of a run."""
    from mae.report import report as write
    from mae.runs import Run

    _show(write(Run.open(run.resolve())))


def main() -> None:
    """Entry point of `mae`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from mae.launch.ranks import RanksFailed

    try:
        app()
    except (InputError, RanksFailed) as error:
        print(f"mae: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # of a place that cannot be written; inputs are checked where they are read
        todo = "give a place that can be written, on a disk with room"
        place = error.filename if error.filename is not None else "file system"
        print(f"mae: {InputError(place, expected='a place to write', found=str(error), todo=todo)}", file=sys.stderr)
        sys.exit(1)


def _show(result: StageResult) -> None:
    """Print a stage's result as JSON: for a person to read and for a script to parse."""
    print(result.model_dump_json(indent=2))
