"""The command line: every stage without Prefect. On Python 3.9 typer cannot read postponed annotations: import none."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from typer import Argument, Option

from datasets.base.errors import InputError
from datasets.base.files import StageResult
from mae.config.protocols import protocol_names
from mae.config.sections import Target

# MindSpore, pyarrow and scikit-learn take seconds to import, so each command imports what it needs.

HELP = """Masked-autoencoder pre-training of vision transformers: data, training, evaluation, weights.

Results are printed to stdout as JSON, logs to stderr. Exit codes: 0 success, 1 the input or the run has an error,
2 wrong usage. `mae COMMAND --help` explains a command.
"""
app = typer.Typer(
    no_args_is_help=True, add_completion=False, help=HELP, pretty_exceptions_enable=False, rich_markup_mode=None
)
data = typer.Typer(no_args_is_help=True, help="Validate images and write MindRecord shards.")
rank_table = typer.Typer(no_args_is_help=True, help="Generate, merge and check HCCL rank tables.")
app.add_typer(data, name="data")
app.add_typer(rank_table, name="rank-table")

Workspace = Annotated[Path, Option(envvar="MAE_WORKSPACE", help="Folder for all output.")]
Overrides = Annotated[
    Optional[list[str]], Option("--set", metavar="KEY=VALUE", help="Change a config value, e.g. pretrain.epochs=5.")
]
Checkpoint = Annotated[str, Argument(help="Published name, model file, checkpoint, run or Hugging Face folder.")]
Python = Annotated[Optional[str], Option("--python", help="Interpreter that computes. Default: $MAE_PYTHON, or this.")]
WORKSPACE = Path("workspace")


@app.command()
def sample_data(
    directory: Annotated[Path, Argument(help="Folder to create.")],
    train_per_class: Annotated[Optional[int], Option(help="Training images per class. Default: all 600.")] = None,
    val_per_class: Annotated[Optional[int], Option(help="Validation images per class. Default: all 100.")] = None,
) -> None:
    """Unpack the shipped images (Fashion-MNIST) into train/CLASS/ and val/CLASS/."""
    from datasets.sample import unpack_sample

    _show(unpack_sample(directory, train_per_class=train_per_class, val_per_class=val_per_class))


@data.command()
def unpack(
    tars: Annotated[list[Path], Argument(help="Archives of images, and ImageNet's devkit.")],
    out: Annotated[Path, Option(help="Folder for train/CLASS/ and val/CLASS/.")],
    skip_md5: Annotated[bool, Option("--skip-md5", help="Do not check the MD5 of ImageNet's archives.")] = False,
    workers: Annotated[Optional[int], Option(min=1, help="Number of processes. Default: one per core.")] = None,
) -> None:
    """Unpack the tars of ImageNet-1k, or tars of folders train/CLASS/ and val/CLASS/, or CLASS/.

    \b
    Example:
      mae data unpack ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar ILSVRC2012_devkit_t12.tar.gz --out imagenet
    """
    from datasets.unpacking import unpack_archives

    _show(unpack_archives(tars, out, check_md5=not skip_md5, workers=workers))


@data.command()
def validate(
    root: Annotated[Path, Argument(help="Folder of images: train/CLASS/ and val/CLASS/, or CLASS/.")],
    out: Annotated[Path, Option(help="Folder for manifest.parquet and validation.json.")],
    val_share: Annotated[float, Option(help="Share of each class to hold out if ROOT has no val/.")] = 0.1,
    expect: Annotated[Optional[str], Option(help="Data set to compare with: imagenet-1k. Default: none.")] = None,
    policy: Annotated[
        Optional[list[str]],
        Option(metavar="FAULT=ACTION", help="What to do with a fault: fail, exclude, convert, accept."),
    ] = None,
    full: Annotated[bool, Option("--full", help="Also read files that have not changed since last time.")] = False,
    near_duplicates: Annotated[
        Optional[int], Option(metavar="BITS", help="Report images whose 64-bit hashes differ in at most BITS bits.")
    ] = None,
    min_side: Annotated[int, Option(help="Report images with a side shorter than this, in pixels.")] = 16,
) -> None:
    """Decode every file below ROOT and report each faulty one."""
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
    directory: Annotated[Path, Argument(help="Output folder of `mae data validate`.")],
    out: Annotated[Path, Option(help="Folder for train/, val/ and index.json.")],
    shard_mb: Annotated[int, Option(help="Image bytes per shard, in MB.")] = 1024,
    short_side: Annotated[Optional[int], Option(help="Shrink images to this shorter side. Default: unchanged.")] = None,
    seed: Annotated[int, Option(help="Seed of the shuffle.")] = 0,
    full: Annotated[bool, Option("--full", help="Also read finished shards to verify them.")] = False,
) -> None:
    """Write the usable images as MindRecord shards. A finished, undamaged output of the same input is kept."""
    from datasets.sharding import write_records

    _show(write_records(directory, out, shard_mb=shard_mb, short_side=short_side, seed=seed, full=full))


@data.command()
def check(
    records: Annotated[Path, Argument(help="Output folder of `mae data shard`.")],
    root: Annotated[Optional[Path], Option(help="Also compare every record with its image below ROOT.")] = None,
) -> None:
    """Verify every shard against index.json."""
    from datasets.sharding import check_records

    _show(check_records(records, root=root))


@rank_table.command()
def generate(
    device_num: Annotated[str, Option(help='Half-open range of devices, e.g. "[0,8)".')],
    server_ip: Annotated[Optional[str], Option(help="This server's address. Default: of its host name.")] = None,
    visible_devices: Annotated[Optional[str], Option(help="Physical device ids, e.g. 4,5,6,7.")] = None,
    hccn_conf: Annotated[Path, Option(help="Device addresses, read if hccn_tool fails.")] = Path("/etc/hccn.conf"),
    out: Annotated[Path, Option(help="Folder for the table.")] = Path("."),
) -> None:
    """Write the rank table of this server."""
    from mae.cluster import rank_table as tables

    visible = tables.parse_visible_devices(visible_devices) if visible_devices is not None else None
    devices = tables.parse_device_range(device_num)
    _show(tables.generate(out, devices=devices, server_ip=server_ip, visible_devices=visible, hccn_conf=hccn_conf))


@rank_table.command()
def merge(
    files: Annotated[list[Path], Argument(help="Rank tables, one per server.")],
    out: Annotated[Path, Option(help="File for the merged table.")],
) -> None:
    """Merge the rank tables of several servers."""
    from mae.cluster.rank_table import merge as run

    _show(run(files, out))


@rank_table.command("check")
def check_table(
    file: Annotated[Path, Argument(help="Rank table.")],
    strict: Annotated[bool, Option("--strict", help="Treat warnings as errors.")] = False,
) -> None:
    """Check a rank table against HCCL's rules."""
    from mae.cluster.rank_table import check as run

    _show(run(file, strict=strict))


@app.command()
def train(
    config: Annotated[Optional[Path], Argument(help="YAML job config, see configs/.")] = None,
    overrides: Overrides = None,
    rank_table: Annotated[Optional[Path], Option(help="HCCL rank table of the job, on Ascend.")] = None,
    resume: Annotated[
        Optional[bool],
        Option(
            "--resume/--fresh",
            help="--resume: continue the newest run of this name; fails if config or data changed. "
            "--fresh: delete the run and start over. "
            "Default: continue the run if config and data are the same, else start a new run.",
        ),
    ] = None,
    start: Annotated[
        Optional[Path], Option("--from", help="Start a new run from this checkpoint of another recipe.")
    ] = None,
    replay: Annotated[
        Optional[Path], Option(help="Instead of CONFIG: failure/step_N of a run, to run that step again.")
    ] = None,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Train the model of a job config on records.

    \b
    Examples:
      mae train configs/demo.yaml --set data.records=RECORDS
      mae train configs/finetune_vit_b16.yaml --set data.records=RECORDS --set init=workspace/runs/RUN
      mae train --replay workspace/runs/RUN/failure/step_120
    """
    if (config is None) == (replay is None):
        raise typer.BadParameter("give either CONFIG or --replay")
    if replay is not None:
        from mae.training.failed_step import replay as run_again

        _show(run_again(replay))
        return
    assert config is not None
    from rich.console import Console

    from mae.config import load_config
    from mae.train import train as run

    job, console = load_config(config, overrides or []), Console(stderr=True)
    _show(run(job, workspace=workspace, rank_table=rank_table, resume=resume, start=start, console=console))


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[Path, Option(help="Records, or a folder of images.")],
    protocol: Annotated[str, Option(help=f"One of {', '.join(protocol_names())}.")],
    config: Annotated[Optional[Path], Option(help="YAML job config. Default: the run's config.")] = None,
    overrides: Overrides = None,
    python: Python = None,
    out: Annotated[Optional[Path], Option(help="Folder for the result. Default: evaluations/ of the run.")] = None,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Measure a checkpoint with an evaluation protocol.

    \b
    Examples:
      mae evaluate workspace/runs/RUN --data workspace/records/RECORDS --protocol linear
      mae evaluate mae_vit_base_p16_finetuned --data imagenet --protocol classify \\
        --config configs/finetune_vit_b16.yaml --out result
    """
    from mae.config import load_config
    from mae.data import prepare
    from mae.evaluation import evaluate as run
    from mae.runs import Run, run_directory
    from mae.weights import find_weights

    model = find_weights(checkpoint)
    own = run_directory(model)
    given = [*(overrides or []), *([] if python is None else [f"device.python={python}"])]
    if config is not None:
        job = load_config(config, given)
    elif own is not None:
        job = Run.open(own).config_of_another(given)
    else:
        found, todo = "a file outside of any run", "give a job config: --config"
        raise InputError(checkpoint, expected="a checkpoint of a run", found=found, todo=todo)
    _show(run(model, prepare(data, workspace), protocol=protocol, config=job, workspace=workspace, out=out))


@app.command()
def predict(
    checkpoint: Checkpoint,
    images: Annotated[list[str], Argument(help="Image files, folders of images or http(s) addresses.")],
    out: Annotated[Path, Option(help="Folder for predictions.parquet and pictures, or to add them to.")],
    seed: Annotated[int, Option(min=0, help="Seed of the masks.")] = 0,
    target: Annotated[Target, Option(help="Device to run on.")] = "CPU",
    python: Python = None,
) -> None:
    """Predict images with a checkpoint.

    A MAE reconstructs them; a classifier gives its five most probable classes.

    \b
    Example:
      mae predict workspace/runs/RUN photo.jpg more-photos/ --out predictions
    """
    from mae.config import DeviceConfig
    from mae.prediction import predict as run

    _show(run(checkpoint, images, out, device=DeviceConfig(target=target, python=python), seed=seed))


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, Argument(help="File to write, .mindir or .onnx.")],
    batch_size: Annotated[
        Optional[int], Option(min=1, help="Images per batch. Default: any in ONNX, 1 in MindIR.")
    ] = None,
    python: Python = None,
) -> None:
    """Export a model to a MindIR or ONNX file.

    The output is the tokens of a pre-trained encoder, or the logits of a classifier.
    """
    from mae.export import export as run
    from mae.weights import find_weights

    _show(run(find_weights(checkpoint), out, batch_size=batch_size, python=python))


@app.command()
def convert(
    source: Annotated[
        str, Argument(help="Published name, .pth, .safetensors or .ckpt file, Hugging Face folder, or run.")
    ],
    destination: Annotated[Path, Argument(help=".pth, .safetensors or .ckpt file, or a Hugging Face folder.")],
    layout: Annotated[Optional[str], Option(help="Weight names in a file: upstream (default) or hugging_face.")] = None,
    settings: Annotated[
        Optional[list[str]],
        Option("--set", metavar="KEY=VALUE", help="A value that SOURCE does not contain. Repeatable."),
    ] = None,
    random_decoder: Annotated[
        bool, Option("--random-decoder", help="Make an encoder a MAE with an untrained decoder.")
    ] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace another model at DESTINATION.")] = False,
) -> None:
    """Convert weights from and to other projects' files.

    Reads files of facebookresearch/mae, timm, Hugging Face, MindFormers and this project. The suffix of DESTINATION
    chooses the format.

    \b
    Examples:
      mae convert mae_pretrain_vit_base.pth base.safetensors
      mae convert workspace/runs/RUN vit-mae/
      mae convert small.pth small.ckpt --set num_heads=6
    """
    from mae.config.load import parse_overrides
    from mae.weights import convert as run
    from mae.weights import find_weights

    given = parse_overrides(settings or [])
    options = {"random_decoder": random_decoder, "overwrite": overwrite}
    _show(run(find_weights(source), destination, layout=layout, settings=given, **options))


@app.command()
def plan(
    config: Annotated[Path, Argument(help="YAML job config.")],
    overrides: Overrides = None,
    cluster: Annotated[
        Optional[Path], Option(help="Inventory of servers that share the job. Default: one server.")
    ] = None,
    images: Annotated[
        Optional[int], Option(min=1, help="Training images. Default: counted in data.records, or ImageNet's.")
    ] = None,
    rate: Annotated[
        Optional[float],
        Option(min=0.001, help="Images per second and device. Default: published for Ascend, measured on CPU."),
    ] = None,
) -> None:
    """Estimate hours, memory and disk of a job.

    Also estimates steps, checkpoints and failures. Each figure is printed with its calculation. On a CPU, some training
    steps are run to measure their speed.

    \b
    Example:
      mae plan configs/pretrain_vit_b16_800ep.yaml --cluster configs/cluster_example.yaml
    """
    from mae.cluster.inventory import count_servers
    from mae.config import load_config
    from mae.planning import estimate

    job = load_config(config, overrides or [])
    servers = count_servers(cluster, job.device.ranks) if cluster is not None else 1
    print(estimate(job, servers=servers, images=images, rate=rate).table())


@app.command()
def report(run: Annotated[Path, Argument(help="Run directory.")]) -> None:
    """Write report/index.html of a run, finished or not."""
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
    except OSError as error:  # an output cannot be written: inputs are checked by the code that reads them
        todo = "choose a writable folder on a disk with free space"
        place = error.filename if error.filename is not None else "file system"
        print(f"mae: {InputError(place, expected='a place to write', found=str(error), todo=todo)}", file=sys.stderr)
        sys.exit(1)


def _show(result: StageResult) -> None:
    """Print a stage's result as JSON."""
    print(result.model_dump_json(indent=2))
