"""The cluster inventory: a YAML file that lists the servers of a training job.

configs/cluster_example.yaml is an example.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Optional

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from datasets.base.errors import InputError
from datasets.base.files import PathLike
from mae.cluster.rank_table import load_table, make_server, merge_tables
from mae.cluster.rank_table_rules import RankTable

EXAMPLE = "see configs/cluster_example.yaml"


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
            return RankTable(server_list=[make_server(self.server_id, dict(enumerate(self.device_ips)))])
        assert self.rank_table is not None  # _one_source
        table = load_table(self.rank_table)
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
