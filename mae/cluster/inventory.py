"""The cluster inventory: which servers train together, and the rank table they make.

configs/cluster_example.yaml shows the file.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Optional

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from datasets.base.errors import InputError
from datasets.base.files import PathLike
from mae.cluster.rank_table import RankTableFile, check, make_server, merge_tables, read_table, write_table
from mae.cluster.rank_table_rules import RankTable

EXAMPLE = "see configs/cluster_example.yaml"


class ClusterServer(BaseModel):
    """One server: its NPUs' addresses, or the table that `mae rank-table generate` wrote on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server_id: str = Field(min_length=1, description="the address that the other servers reach it under")
    device_ips: Optional[list[str]] = Field(None, min_length=1, description="addresses of device 0, 1, ...")
    rank_table: Optional[Path] = Field(None, description="this server's own table, relative to the inventory")

    @model_validator(mode="after")
    def _one_source(self) -> ClusterServer:
        if (self.device_ips is None) == (self.rank_table is None):
            raise ValueError("either device_ips or rank_table")
        return self


class Cluster(BaseModel):
    """The servers of one training job, in any order: the rank table has its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    servers: list[ClusterServer] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> Cluster:
        twice = [name for name, count in Counter(server.server_id for server in self.servers).items() if count > 1]
        if twice:
            raise ValueError(f"each server_id once, but {', '.join(twice)} stands there again")
        return self


def load_cluster(path: PathLike) -> Cluster:
    """Read an inventory; the result's `rank_table` paths no longer depend on where the inventory is.

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
        todo = "\n  ".join([f"{EXAMPLE} and correct:", *faults])
        raise InputError(path, expected=expected, found=f"{len(faults)} at fault", todo=todo) from None
    servers = [
        server.model_copy(update={"rank_table": path.parent / server.rank_table}) if server.rank_table else server
        for server in cluster.servers
    ]
    return Cluster(servers=servers)


def cluster_table(cluster: Cluster, out: PathLike) -> RankTableFile:
    """Make or read each server's table, merge them by the rules of `rank_table.merge`, check and write the result.

    Raises:
        InputError: a server's table or the merged one breaks a rule, or a table is not that of the server naming it.
    """
    return write_table(merge_tables([_own_table(server) for server in cluster.servers]), out)


def count_servers(path: PathLike, devices: int) -> int:
    """How many servers an inventory has.

    Raises:
        InputError: the inventory is at fault, or not each of them has so many devices.
    """
    servers = load_cluster(path).servers
    counts = {server.server_id: _own_table(server)[1].ranks for server in servers}
    other = [f"{count} on {name}" for name, count in counts.items() if count != devices]
    if other:
        expected, todo = f"{devices} NPUs on each server, as device.ranks says", "set device.ranks, or correct it"
        raise InputError(path, expected=expected, found=", ".join(other), todo=todo)
    return len(servers)


def _own_table(server: ClusterServer) -> tuple[str, RankTable]:
    if server.device_ips is not None:
        made = make_server(server.server_id, dict(enumerate(server.device_ips)))
        return f"server {server.server_id}", RankTable(server_list=[made])
    path = server.rank_table
    assert path is not None  # ClusterServer has one of the two
    check(path)
    table, _ = read_table(path)
    held = [entry.server_id for entry in table.server_list]
    if held != [server.server_id]:
        todo = "name the table that was generated on this server, or correct its server_id"
        raise InputError(
            path, expected=f"the table of server {server.server_id} alone", found=", ".join(held), todo=todo
        )
    return str(path), table
