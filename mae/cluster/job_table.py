"""The rank table of one job: made from an inventory or from this server, and checked against the job's config.

Ranks are started on one server only so far, so a table of several servers is refused.
"""

from __future__ import annotations

import logging
import socket
from pathlib import Path

from datasets.base.digests import value_digest
from datasets.base.errors import InputError
from mae.cluster import rank_table as tables
from mae.cluster.inventory import load_cluster
from mae.cluster.rank_table import RankTableFile
from mae.cluster.rank_table_rules import RankTable
from mae.config.sections import DeviceConfig

logger = logging.getLogger(__name__)


def make_table(device: DeviceConfig, folder: Path, cluster: Path | None = None) -> RankTableFile:
    """Write a rank table below `folder` and check it.

    Args:
        device: its `target` and `ranks` say what the table is made of when there is no inventory: the first NPUs of
            this server on Ascend, loopback addresses on a CPU.
        cluster: inventory whose servers the table lists.

    Raises:
        InputError: the inventory is wrong, an NPU has no address, or the table breaks a rule.
    """
    if cluster is not None:
        inventory = load_cluster(cluster)
        name = f"{cluster.stem}-{value_digest(inventory.model_dump(mode='json'))}"
        return tables.write_table(inventory.table(), folder / name / "rank_table.json")
    if device.target == "Ascend":
        devices = list(range(device.ranks))
        return tables.generate(folder / f"this-server-{device.ranks}", devices=devices, server_ip=_own_server_id())
    return tables.local_table(folder / f"local-{device.ranks}" / "rank_table.json", device.ranks)


def job_table(device: DeviceConfig, given: Path | None, folder: Path) -> bytes | None:
    """Return the content of the rank table that the ranks of a job on this server read.

    The content rather than a path: the given file may be in a run directory that the job is about to remove.

    Args:
        given: the user's table. Without one, `make_table` makes one on Ascend; a job on a CPU needs none.
        folder: receives a table that is made.

    Returns:
        the file's content; None on a CPU if no table is given.

    Raises:
        InputError: the table breaks a rule or does not fit the job, or none can be made.
    """
    if given is not None:
        _check_fit(given, tables.load_table(given), device, omit="--rank-table")
        found = tables.check(given)
    elif device.target == "Ascend":
        found = make_table(device, folder)
    else:
        return None
    if device.target == "Ascend":  # on a CPU the only warning is that the table is for a CPU
        for warning in found.warnings:
            logger.warning("%s: %s", found.path, warning)
    return found.path.read_bytes()


def check_inventory(cluster: Path, device: DeviceConfig) -> None:
    """Refuse an inventory that a job cannot be trained on, before anything is spent on the job.

    Raises:
        InputError: the inventory is wrong, its table breaks a rule, or it does not fit the job.
    """
    table = load_cluster(cluster).table()
    _check_fit(cluster, table, device, omit="cluster")
    tables.table_warnings(table, Path("rank_table.json"), cluster)


def _check_fit(where: Path, table: RankTable, device: DeviceConfig, *, omit: str) -> None:
    """Raise InputError unless the table lists the ranks of a job on this server alone."""
    made = "a table of this server is then made" if device.target == "Ascend" else "a job on a CPU needs no table"
    servers, advice = len(table.server_list), f"omit {omit}: {made}"
    if (servers, table.ranks) != (1, device.ranks):
        expected = f"1 server with {device.ranks} ranks, because device.ranks is {device.ranks}"
        found = f"{servers} server{'s' if servers > 1 else ''} with {table.ranks} ranks"
        todo = f"set device.ranks={table.ranks}, or {advice}"
        if servers > 1:
            todo = f"training over several servers is not possible yet; to train on this server alone, {advice}"
        raise InputError(where, expected=expected, found=found, todo=todo)
    if table.is_local != (device.target == "CPU"):
        kinds = {True: "loopback addresses", False: "addresses of NPUs"}
        expected = f"{kinds[not table.is_local]}, because device.target is {device.target}"
        raise InputError(where, expected=expected, found=kinds[table.is_local], todo=f"set device.target, or {advice}")


def _own_server_id() -> str:
    """Return the address of this server, or its name: a table of one server needs no address (rule 5)."""
    try:
        return tables.host_address()
    except InputError:
        return socket.gethostname()
