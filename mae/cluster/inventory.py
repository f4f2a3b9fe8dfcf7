"""The servers and NPUs of a job: its cluster inventory, and the rank table that is given, or made from it.

The inventory is a YAML file that lists the servers. configs/cluster_example.yaml is an example. Ranks are started on
one server only so far, so a table of several servers is refused.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Optional

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from datasets.base.digests import value_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike
from mae.cluster.rank_table import (
    RankTableFile,
    check,
    generate,
    host_address,
    load_table,
    local_table,
    merge_tables,
    one_server,
    table_warnings,
    write_table,
)
from mae.cluster.rank_table_rules import RankTable
from mae.config.sections import DeviceConfig

EXAMPLE = "see configs/cluster_example.yaml"

logger = logging.getLogger(__name__)


class JobTable(NamedTuple):
    """The rank table of a job. Not its path: the given file may be in a run directory that is about to be removed."""

    content: Optional[bytes]  # none: a job on a CPU without a table
    devices: list[int]  # the NPU of each rank; empty on a CPU


class ClusterServer(BaseModel):
    """One server, with the addresses of its NPUs or the table that `mae rank-table generate` wrote on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server_id: str = Field(min_length=1, description="address by which the other servers reach this one")
    device_ips: Optional[list[str]] = Field(None, min_length=1, description="addresses of device 0, 1, ...")
    rank_table: Optional[Path] = Field(None, description="this server's own table, relative to the inventory")

    @model_validator(mode="after")
    def _one_source(self) -> ClusterServer:
        if (self.device_ips is None) == (self.rank_table is None):
            raise ValueError("either device_ips or rank_table")
        return self

    def table(self) -> RankTable:
        """Return the rank table of this server alone.

        Raises:
            InputError: the file of the table breaks a rule, or is the table of another server.
        """
        if self.device_ips is not None:
            return one_server(self.server_id, dict(enumerate(self.device_ips)))
        assert self.rank_table is not None  # _one_source
        table, _ = load_table(self.rank_table)
        found = [server.server_id for server in table.server_list]
        if found != [self.server_id]:
            expected = f"the table of server {self.server_id} alone"
            todo = "name the table that was generated on this server, or correct its server_id"
            raise InputError(self.rank_table, expected=expected, found=", ".join(found), todo=todo)
        return table


class Cluster(BaseModel):
    """The servers of one training job. Their order has no meaning: the rank table sorts them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    servers: list[ClusterServer] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> Cluster:
        twice = [name for name, count in Counter(server.server_id for server in self.servers).items() if count > 1]
        if twice:
            raise ValueError(f"each server_id once, but {', '.join(twice)} is repeated")
        return self

    def table(self) -> RankTable:
        """Return the rank table of all servers. Its rules are not checked yet.

        Raises:
            InputError: the table of a server breaks a rule, or belongs to another server.
        """
        return merge_tables([(f"server {server.server_id}", server.table()) for server in self.servers])


def load_cluster(path: PathLike) -> Cluster:
    """Read an inventory. Relative `rank_table` paths are resolved against its folder.

    Raises:
        InputError: the file is missing or no YAML mapping; or one line for each key that is unknown, missing or wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, expected="a cluster inventory", found="no such file", todo=EXAMPLE)
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(path, expected="YAML", found=str(error), todo="correct the file") from None
    if not isinstance(values, dict):
        raise InputError(path, expected="a YAML mapping", found=type(values).__name__, todo=EXAMPLE)
    try:
        cluster = Cluster.model_validate(values)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'inventory'}: {fault['msg']}" for fault in error.errors()]
        expected = "servers, each with a server_id and either device_ips or rank_table"
        found = "1 wrong entry" if len(faults) == 1 else f"{len(faults)} wrong entries"
        todo = "\n  ".join([f"{EXAMPLE} and correct:", *faults])
        raise InputError(path, expected=expected, found=found, todo=todo) from None
    servers = [
        server.model_copy(update={"rank_table": path.parent / server.rank_table}) if server.rank_table else server
        for server in cluster.servers
    ]
    return Cluster(servers=servers)


def count_servers(path: PathLike, devices: int) -> int:
    """Return the number of servers in an inventory.

    Raises:
        InputError: the inventory is wrong, or a server does not have `devices` NPUs.
    """
    servers = load_cluster(path).servers
    counts = {server.server_id: server.table().ranks for server in servers}
    other = [f"{count} on {name}" for name, count in counts.items() if count != devices]
    if other:
        expected = f"{devices} NPUs on each server, because device.ranks is {devices}"
        todo = "set device.ranks, or correct the inventory"
        raise InputError(path, expected=expected, found=", ".join(other), todo=todo)
    return len(servers)


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
        return write_table(inventory.table(), folder / name / "rank_table.json")
    if device.target == "Ascend":
        devices = list(range(device.ranks))
        return generate(folder / f"this-server-{device.ranks}", devices=devices, server_ip=_own_server_id())
    return local_table(folder / f"local-{device.ranks}" / "rank_table.json", device.ranks)


def job_table(device: DeviceConfig, given: Path | None, folder: Path) -> JobTable:
    """Return the rank table of a job on this server.

    Args:
        given: the user's table. Without one, `make_table` makes one on Ascend; a job on a CPU needs none.
        folder: receives a table that is made.

    Raises:
        InputError: the table breaks a rule or does not fit the job, or none can be made.
    """
    if given is None and device.target == "CPU":
        return JobTable(None, [])
    found = check(given) if given is not None else make_table(device, folder)
    table, _ = load_table(found.path)
    _check_fit(found.path, table, device, omit="--rank-table")
    if device.target == "CPU":  # the only warning is that the table is for a CPU
        return JobTable(found.path.read_bytes(), [])
    for warning in found.warnings:
        logger.warning("%s: %s", found.path, warning)
    return JobTable(found.path.read_bytes(), table.devices)


def check_inventory(cluster: Path, device: DeviceConfig) -> None:
    """Refuse an inventory that a job cannot be trained on, before anything is spent on the job.

    Raises:
        InputError: the inventory is wrong, its table breaks a rule, or it does not fit the job.
    """
    table = load_cluster(cluster).table()
    _check_fit(cluster, table, device, omit="cluster")
    table_warnings(table, Path("rank_table.json"), cluster)


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
        return host_address()
    except InputError:
        return socket.gethostname()
