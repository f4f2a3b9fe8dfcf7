"""The cluster inventory: its keys, its errors, and the rank table that is made from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets.base.errors import InputError
from mae.cluster.inventory import count_servers, load_cluster
from mae.cluster.rank_table import RankTableFile, check, make_server, merge_tables, write_table
from mae.cluster.rank_table_rules import RankTable

EXAMPLE = Path(__file__).parents[3] / "configs" / "cluster_example.yaml"


def own_table(path: Path, server_id: str, network: int) -> Path:
    server = make_server(server_id, {device: f"10.{network}.0.{device}" for device in range(8)})
    path.parent.mkdir(exist_ok=True)
    return write_table(merge_tables([("test", RankTable(server_list=[server]))]), path).path


def written_table(inventory: Path, out: Path) -> RankTableFile:
    return write_table(load_cluster(inventory).table(), out)


def test_example_makes_a_table_of_16_ranks(tmp_path: Path) -> None:
    made = written_table(EXAMPLE, tmp_path / "rank_table.json")
    assert (made.servers, made.ranks, made.warnings, made.reused) == (2, 16, [], False)
    assert check(made.path, strict=True).digest == made.digest
    last = json.loads(made.path.read_text())["server_list"][1]["device"][7]
    assert last == {"device_id": "7", "device_ip": "198.51.100.27", "rank_id": "15"}
    assert written_table(EXAMPLE, made.path).reused


def test_servers_with_addresses_and_with_tables_mix(tmp_path: Path) -> None:
    own_table(tmp_path / "tables" / "ten.json", "10.0.0.10", network=10)
    inventory = tmp_path / "cluster.yaml"
    addresses = ", ".join(f"10.9.0.{device}" for device in range(8))
    inventory.write_text(
        f"servers:\n- {{server_id: 10.0.0.9, device_ips: [{addresses}]}}\n"
        "- {server_id: 10.0.0.10, rank_table: tables/ten.json}\n"
    )
    made = written_table(inventory, tmp_path / "rank_table.json")
    servers = json.loads(made.path.read_text())["server_list"]
    assert [server["server_id"] for server in servers] == ["10.0.0.10", "10.0.0.9"]
    assert servers[0]["device"][0] == {"device_id": "0", "device_ip": "10.10.0.0", "rank_id": "0"}
    assert servers[1]["device"][0] == {"device_id": "0", "device_ip": "10.9.0.0", "rank_id": "8"}
    assert count_servers(inventory, 8) == 2
    with pytest.raises(InputError, match=r"expected 4 NPUs on each server, .* found 8 on 10\.0\.0\.9, 8 on"):
        count_servers(inventory, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("servers: [", "expected YAML", id="no-yaml"),
        pytest.param("- 10.0.0.1", "a YAML mapping, found list", id="a-list"),
        pytest.param("", "a YAML mapping, found NoneType", id="empty"),
        pytest.param("servers: []", "servers: List should have at least 1 item", id="no-servers"),
        pytest.param("hosts: []", "hosts: Extra inputs are not permitted", id="unknown-key"),
        pytest.param(
            "servers: [{server_id: a, device_ip: [10.1.0.0]}]",
            "servers.0.device_ip: Extra inputs are not permitted",
            id="unknown-key-of-a-server",
        ),
        pytest.param("servers: [{device_ips: [10.1.0.0]}]", "servers.0.server_id: Field required", id="no-server-id"),
        pytest.param("servers: [{server_id: a}]", "either device_ips or rank_table", id="no-addresses"),
        pytest.param(
            "servers: [{server_id: a, device_ips: [10.1.0.0], rank_table: a.json}]",
            "either device_ips or rank_table",
            id="two-sources",
        ),
        pytest.param("servers: [{server_id: a, device_ips: []}]", "at least 1 item", id="no-devices"),
        pytest.param(
            "servers: [{server_id: a, device_ips: [10.1.0.0]}, {server_id: a, device_ips: [10.1.0.1]}]",
            "each server_id once, but a is repeated",
            id="server-twice",
        ),
    ],
)
def test_inventory_refused(tmp_path: Path, text: str, message: str) -> None:
    inventory = tmp_path / "cluster.yaml"
    inventory.write_text(text)
    with pytest.raises(InputError) as caught:
        load_cluster(inventory)
    assert str(caught.value).startswith(str(inventory))
    assert message in str(caught.value)


def test_absent_inventory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; see configs/cluster_example\.yaml"):
        load_cluster(tmp_path / "cluster.yaml")


@pytest.mark.parametrize(
    ("servers", "message"),
    [
        pytest.param(
            "[{server_id: a, device_ips: [10.1.0.0]}, {server_id: b, device_ips: [10.1.0.0]}]",
            "server b device 0: expected a device_ip that is unique in the table, found 10.1.0.0",
            id="address-of-another-server",
        ),
        pytest.param("[{server_id: a, device_ips: [10.1.0.0, 10.1.0]}]", '"10.1.0"', id="no-address"),
        pytest.param("[{server_id: a, rank_table: absent.json}]", "absent.json: expected a rank table", id="no-table"),
        pytest.param(
            "[{server_id: a, rank_table: own.json}]",
            "expected the table of server a alone, found 10.0.0.1",
            id="table-of-another-server",
        ),
    ],
)
def test_cluster_table_refused(tmp_path: Path, servers: str, message: str) -> None:
    own_table(tmp_path / "own.json", "10.0.0.1", network=1)
    inventory = tmp_path / "cluster.yaml"
    inventory.write_text(f"servers: {servers}\n")
    with pytest.raises(InputError) as caught:
        written_table(inventory, tmp_path / "rank_table.json")
    assert message in str(caught.value)
    assert not (tmp_path / "rank_table.json").exists()
