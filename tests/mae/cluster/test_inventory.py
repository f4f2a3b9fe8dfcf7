"""The cluster inventory, and the rank table of a job: given or made, and refused if it does not fit the job."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
from pathlib import Path

import pytest
import yaml

import mae.train
from datasets.base.errors import InputError
from mae.cluster.inventory import check_inventory, count_servers, job_table, load_cluster, make_table
from mae.cluster.rank_table import RankTableFile, check, local_table, merge_tables, one_server, write_table
from mae.config.sections import DeviceConfig
from mae.device import context

EXAMPLE = Path(__file__).parents[3] / "configs" / "cluster_example.yaml"


ASCEND = DeviceConfig(target="Ascend", ranks=8)
CPU = DeviceConfig(target="CPU", ranks=2)


def addresses(server: int, devices: int) -> list[str]:
    return [f"10.{server}.0.{device}" for device in range(devices)]


def npu_table(path: Path, *, first: int = 1, servers: int = 1, devices: int = 8) -> Path:
    """Write the table of servers 10.0.0.<first>, ... with the addresses 10.<server>.0.<device>."""
    numbers = range(first, first + servers)
    tables = [("test", one_server(f"10.0.0.{s}", dict(enumerate(addresses(s, devices))))) for s in numbers]
    path.parent.mkdir(exist_ok=True)
    return write_table(merge_tables(tables), path).path


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
    npu_table(tmp_path / "tables" / "ten.json", first=10)
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
    npu_table(tmp_path / "own.json")
    inventory = tmp_path / "cluster.yaml"
    inventory.write_text(f"servers: {servers}\n")
    with pytest.raises(InputError) as caught:
        written_table(inventory, tmp_path / "rank_table.json")
    assert message in str(caught.value)
    assert not (tmp_path / "rank_table.json").exists()


def inventory(path: Path, *, servers: int = 1, devices: int = 8) -> Path:
    listed = [{"server_id": f"10.0.0.{s}", "device_ips": addresses(s, devices)} for s in range(1, servers + 1)]
    path.write_text(yaml.safe_dump({"servers": listed}))
    return path


def test_a_given_table_is_returned_as_it_is(tmp_path: Path) -> None:
    given = npu_table(tmp_path / "given.json")
    given.write_text(given.read_text() + "\n")
    assert job_table(ASCEND, given, tmp_path / "made") == (given.read_bytes(), list(range(8)))
    local = local_table(tmp_path / "local.json", 2).path
    assert job_table(CPU, local, tmp_path / "made") == (local.read_bytes(), [])
    assert not (tmp_path / "made").exists()


def test_devices_are_in_the_order_of_ranks(tmp_path: Path) -> None:
    given = npu_table(tmp_path / "given.json", devices=4)
    content = json.loads(given.read_text())
    for device, number, rank in zip(content["server_list"][0]["device"], "6457", "2013", strict=True):
        device.update(device_id=number, rank_id=rank)
    given.write_text(json.dumps(content))
    assert job_table(ASCEND.model_copy(update={"ranks": 4}), given, tmp_path).devices == [4, 5, 6, 7]


def test_a_cpu_job_needs_no_table(tmp_path: Path) -> None:
    assert job_table(CPU, None, tmp_path) == (None, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("hccn_tool")
@pytest.mark.parametrize(
    ("host", "server_id"),
    [
        pytest.param("10.0.0.7", "10.0.0.7", id="address"),
        pytest.param("127.0.1.1", "npu-server", id="Debian's loopback"),
        pytest.param(None, "npu-server", id="unknown host name"),
    ],
)
def test_on_ascend_a_table_of_this_server_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str | None, server_id: str
) -> None:
    def gethostbyname(_: str) -> str:
        if host is None:
            raise OSError("Name or service not known")
        return host

    monkeypatch.setattr(socket, "gethostname", lambda: "npu-server")
    monkeypatch.setattr(socket, "gethostbyname", gethostbyname)
    content, numbers = job_table(ASCEND.model_copy(update={"ranks": 4}), None, tmp_path)
    assert numbers == [0, 1, 2, 3]
    (server,) = json.loads(content)["server_list"]
    assert server["server_id"] == server_id
    assert [(d["device_id"], d["device_ip"], d["rank_id"]) for d in server["device"]] == [
        (str(d), f"192.168.100.{100 + d}", str(d)) for d in range(4)
    ]


@pytest.mark.usefixtures("hccn_tool")
def test_on_ascend_a_set_of_devices_that_breaks_a_rule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1, 2, 4 or 8 devices, found 3"):
        job_table(ASCEND.model_copy(update={"ranks": 3}), None, tmp_path)


def test_warnings_of_a_given_table_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = npu_table(tmp_path / "given.json")
    content = json.loads(given.read_text())
    for place, device in enumerate(content["server_list"][0]["device"]):
        device["rank_id"] = str(7 - place)
    given.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        job_table(ASCEND, given, tmp_path)
    assert re.search(r"given\.json: .*expected ranks that follow device_id", caplog.text)


@pytest.mark.parametrize("kind", ["--rank-table", "cluster"])
@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        pytest.param(
            ASCEND,
            {"servers": 2},
            "expected 1 server with 8 ranks, because device.ranks is 8, found 2 servers with 16 ranks; "
            "training over several servers is not possible yet; to train on this server alone, omit {kind}: "
            "a table of this server is then made",
            id="two servers",
        ),
        pytest.param(ASCEND, {"servers": 2, "devices": 4}, "found 2 servers with 8 ranks", id="2 x 4 for 8 ranks"),
        pytest.param(
            ASCEND,
            {"devices": 4},
            "found 1 server with 4 ranks; set device.ranks=4, or omit {kind}",
            id="too few ranks",
        ),
        pytest.param(
            CPU,
            {"devices": 2},
            "expected loopback addresses, because device.target is CPU, found addresses of NPUs; "
            "set device.target, or omit {kind}: a job on a CPU needs no table",
            id="NPUs for a CPU job",
        ),
    ],
)
def test_what_does_not_fit_the_job_is_refused(
    tmp_path: Path, device: DeviceConfig, options: dict[str, int], message: str, kind: str
) -> None:
    given = npu_table(tmp_path / "given.json", **options)
    if kind == "cluster":
        given = inventory(tmp_path / "cluster.yaml", **options)
    with pytest.raises(InputError) as caught:
        check_inventory(given, device) if kind == "cluster" else job_table(device, given, tmp_path)
    assert str(caught.value).startswith(f"{given}: expected ")
    assert message.format(kind=kind) in str(caught.value)


def test_a_local_table_on_ascend_is_refused(tmp_path: Path) -> None:
    given = local_table(tmp_path / "given.json", 8).path
    with pytest.raises(InputError, match=r"expected addresses of NPUs, because device\.target is Ascend, found"):
        job_table(ASCEND, given, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("hello", "expected JSON", id="no JSON"),
        pytest.param(None, "no such file", id="absent"),
        pytest.param('{"status": "completed", "server_list": []}', "rule 4", id="a broken rule"),
    ],
)
@pytest.mark.parametrize("device", [ASCEND, CPU], ids=["Ascend", "CPU"])
def test_a_given_file_has_to_keep_the_rules(
    tmp_path: Path, device: DeviceConfig, content: str | None, message: str
) -> None:
    given = tmp_path / "given.json"
    if content is not None:
        given.write_text(content)
    with pytest.raises(InputError, match=message):
        job_table(device, given, tmp_path)


def test_an_inventory_of_this_server_fits(tmp_path: Path) -> None:
    check_inventory(inventory(tmp_path / "cluster.yaml"), ASCEND)


def test_an_inventory_that_breaks_a_rule_is_refused(tmp_path: Path) -> None:
    path = inventory(tmp_path / "cluster.yaml", devices=3)
    with pytest.raises(InputError, match=rf"{path}: expected .* rank table that keeps every rule[\s\S]*rule 9"):
        check_inventory(path, ASCEND.model_copy(update={"ranks": 3}))


def test_make_table_keeps_an_inventorys_table(tmp_path: Path) -> None:
    path = inventory(tmp_path / "cluster.yaml", servers=2)
    made = make_table(ASCEND, tmp_path / "tables", path)
    assert (made.servers, made.ranks, made.reused) == (2, 16, False)
    assert make_table(ASCEND, tmp_path / "tables", path).reused


@pytest.fixture
def npus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give this machine the device files of eight NPUs."""
    devices = tmp_path / "dev"
    devices.mkdir()
    for number in range(8):
        (devices / f"davinci{number}").touch()
    monkeypatch.setattr(context, "ASCEND_DEVICES", str(devices))
    return devices


class Started(Exception):  # noqa: N818
    """Raised in place of starting ranks."""


@pytest.mark.usefixtures("npus", "hccn_tool")
@pytest.mark.parametrize("given", [True, False], ids=["given", "made"])
def test_ranks_on_ascend_always_have_a_table(tmp_path: Path, tiny, monkeypatch, given) -> None:
    def run_ranks(*_, rank_table: bytes, devices: list[int], **__) -> None:
        ids = [d["rank_id"] for s in json.loads(rank_table)["server_list"] for d in s["device"]]
        assert (ids, devices) == (["0", "1"], [0, 1])
        raise Started

    monkeypatch.setattr(mae.train, "run_ranks", run_ranks)
    job = tiny.model_copy(update={"device": DeviceConfig(target="Ascend", ranks=2)})
    table = npu_table(tmp_path / "given.json", devices=2) if given else None
    for _ in range(2):  # the second time with the table that the run keeps
        with pytest.raises(Started):
            mae.train.train(job, workspace=tmp_path, rank_table=table)
        (kept,) = tmp_path.glob("runs/*/rank_table.json")
        table = kept if given else None


@pytest.mark.usefixtures("npus")
@pytest.mark.parametrize("content", ["hello", None], ids=["no JSON", "two servers"])
def test_fresh_removes_nothing_if_the_table_is_refused(tmp_path: Path, tiny, content) -> None:
    job = tiny.model_copy(update={"device": ASCEND})
    table = tmp_path / "given.json"
    if content is None:
        npu_table(table, servers=2)
    else:
        table.write_text(content)
    with pytest.raises(InputError, match=re.escape(str(table))):
        mae.train.train(job, workspace=tmp_path, rank_table=table)
    assert not (tmp_path / "runs").exists()
    kept = mae.train.Run.of(job, tmp_path).checkpoints
    shutil.copytree(tmp_path / "dev", kept)
    with pytest.raises(InputError, match=re.escape(str(table))):
        mae.train.train(job, workspace=tmp_path, rank_table=table, resume=False)
    assert len(list(kept.iterdir())) == 8
