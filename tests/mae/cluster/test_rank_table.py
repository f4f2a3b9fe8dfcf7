"""Rank tables: every rule of rank_table_rules.py, generation from recorded hccn_tool output, merging."""

from __future__ import annotations

import copy
import json
import os
import re
import socket
from pathlib import Path

import pytest

from datasets.base.errors import InputError
from mae.cluster.rank_table import check, generate, local_table, merge, parse_device_range, parse_visible_devices

# The samples in the MindFormers model card of MAE: one server of eight NPUs ...
ONE_SERVER = json.loads("""
{"version": "1.0", "server_count": "1", "server_list": [{"server_id": "xx.xx.xx.xx", "device": [
 {"device_id": "0","device_ip": "192.1.27.6","rank_id": "0"},
 {"device_id": "1","device_ip": "192.2.27.6","rank_id": "1"},
 {"device_id": "2","device_ip": "192.3.27.6","rank_id": "2"},
 {"device_id": "3","device_ip": "192.4.27.6","rank_id": "3"},
 {"device_id": "4","device_ip": "192.1.27.7","rank_id": "4"},
 {"device_id": "5","device_ip": "192.2.27.7","rank_id": "5"},
 {"device_id": "6","device_ip": "192.3.27.7","rank_id": "6"},
 {"device_id": "7","device_ip": "192.4.27.7","rank_id": "7"}],
 "host_nic_ip": "reserve"}], "status": "completed"}
""")
# ... and two servers. Both have the same server_id, and four addresses of the first are repeated on the second.
PRINTED_TWO_SERVERS = json.loads("""
{"version": "1.0", "server_count": "2", "server_list": [{"server_id": "xx.xx.xx.xx", "device": [
 {"device_id": "0", "device_ip": "192.168.0.0", "rank_id": "0"},
 {"device_id": "1", "device_ip": "192.168.1.0", "rank_id": "1"},
 {"device_id": "2", "device_ip": "192.168.2.0", "rank_id": "2"},
 {"device_id": "3", "device_ip": "192.168.3.0", "rank_id": "3"},
 {"device_id": "4", "device_ip": "192.168.0.1", "rank_id": "4"},
 {"device_id": "5", "device_ip": "192.168.1.1", "rank_id": "5"},
 {"device_id": "6", "device_ip": "192.168.2.1", "rank_id": "6"},
 {"device_id": "7", "device_ip": "192.168.3.1", "rank_id": "7"}],
 "host_nic_ip": "reserve"}, {"server_id": "xx.xx.xx.xx", "device": [
 {"device_id": "0", "device_ip": "192.168.0.1", "rank_id": "8"},
 {"device_id": "1", "device_ip": "192.168.1.1", "rank_id": "9"},
 {"device_id": "2", "device_ip": "192.168.2.1", "rank_id": "10"},
 {"device_id": "3", "device_ip": "192.168.3.1", "rank_id": "11"},
 {"device_id": "4", "device_ip": "192.168.0.2", "rank_id": "12"},
 {"device_id": "5", "device_ip": "192.168.1.2", "rank_id": "13"},
 {"device_id": "6", "device_ip": "192.168.2.2", "rank_id": "14"},
 {"device_id": "7", "device_ip": "192.168.3.2", "rank_id": "15"}],
 "host_nic_ip": "reserve"}], "status": "completed"}
""")
LEGACY = json.loads("""
{"board_id": "0x0000", "chip_info": "910", "deploy_mode": "lab", "group_count": "1",
 "group_list": [{"group_name": "", "device_num": "1", "server_num": "1", "instance_count": "1",
 "instance_list": [{"rank_id": "0", "server_id": "10.0.0.1", "devices": [
 {"device_id": "0", "device_ip": "10.1.0.0"}]}]}], "para_plane_nic_location": "device", "status": "initializing"}
""")


def table(*servers: str, devices: int = 8) -> dict:
    """A correct table. Server s, counted from 0, has the addresses 10.<s+1>.0.<device>."""
    server_list = [
        {
            "server_id": server_id,
            "device": [
                {"device_id": str(d), "device_ip": f"10.{s + 1}.0.{d}", "rank_id": str(s * devices + d)}
                for d in range(devices)
            ],
            "host_nic_ip": "reserve",
        }
        for s, server_id in enumerate(servers)
    ]
    return {
        "version": "1.0",
        "server_count": str(len(servers)),
        "server_list": server_list,
        "status": "completed",
    }


def changed(content: dict, *path_and_value: object) -> dict:
    """A copy with one value replaced, or removed if the value is `...`."""
    *path, last, value = path_and_value
    content = copy.deepcopy(content)
    inner = content
    for key in path:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return content


def with_devices(content: dict, server: int, ids: list[int]) -> dict:
    """A copy in which a server has the devices `ids`, in this rank order."""
    first = server * len(ids)
    devices = [
        {"device_id": str(d), "device_ip": f"10.{server + 1}.0.{d}", "rank_id": str(first + place)}
        for place, d in enumerate(ids)
    ]
    return changed(content, "server_list", server, "device", devices)


def saved(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


ONE, TWO = table("10.0.0.1"), table("10.0.0.1", "10.0.0.2")
DEVICE = ("server_list", 0, "device", 3)
SECOND = ("server_list", 1, "device", 0)
INTERLEAVED = copy.deepcopy(TWO)
for s, server in enumerate(INTERLEAVED["server_list"]):
    for d, device in enumerate(server["device"]):
        device["rank_id"] = str(2 * d + s)


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        pytest.param(changed(ONE, "version", ...), ["rule 1,", "no version"], id="1-version-absent"),
        pytest.param(LEGACY, ["rule 1,", "legacy group_list", "rule 3,", "initializing"], id="1-legacy-group-list"),
        pytest.param(changed(ONE, "version", "1.1"), ["rule 1]", "heterogeneous"], id="1-heterogeneous"),
        pytest.param(changed(ONE, "version", "1.2"), ["rule 1]", "A3"], id="1-super-pod"),
        pytest.param(changed(ONE, "version", "2.0"), ["rule 1,", "HCCL_E_NOT_SUPPORT"], id="1-unknown-version"),
        pytest.param(
            changed(ONE, *DEVICE, "rank_id", 3),
            ["rule 2,", "server_list[0].device[3].rank_id", "a JSON string, found 3", "EI0004"],
            id="2-number",
        ),
        pytest.param(changed(ONE, "status", None), ["rule 2,", "found null"], id="2-null"),
        pytest.param(changed(ONE, "server_list", {}), ["rule 2,", "server_list", "list"], id="2-server-list-no-list"),
        pytest.param(changed(ONE, "status", "initializing"), ["rule 3,", "HCCL_E_TIMEOUT"], id="3-initializing"),
        pytest.param(changed(ONE, "status", "ready"), ["rule 3,", '"ready"', "30 minutes"], id="3-other-status"),
        pytest.param(changed(ONE, "status", ...), ["rule 3,", "found none"], id="3-status-absent"),
        pytest.param(table(), ["rule 4,", "at least one server"], id="4-no-servers"),
        pytest.param(changed(TWO, "server_count", "3"), ["rule 4,", '"3", but there are 2'], id="4-server-count"),
        pytest.param(changed(ONE, "server_list", 0, "server_id", ""), ["rule 5,", "EI0017"], id="5-server-id-empty"),
        pytest.param(changed(ONE, "server_list", 0, "server_id", "s" * 65), ["rule 5,", "65 char"], id="5-too-long"),
        pytest.param(
            table("10.0.0.1", "10.0.0.1"), ["rule 5,", '"10.0.0.1" 2 times', "EI0014"], id="5-server-id-repeated"
        ),
        pytest.param(changed(ONE, "server_list", 0, "device", []), ["rule 6,", "at least one"], id="6-no-devices"),
        pytest.param(changed(ONE, *DEVICE, "device_id", "8"), ["rule 6,", "device 8", "0 to 7"], id="6-device-8"),
        pytest.param(changed(ONE, *DEVICE, "device_id", "npu3"), ["rule 6,", '"npu3"'], id="6-device-no-number"),
        pytest.param(changed(ONE, *DEVICE, "device_id", ...), ["rule 6,", "at place 3"], id="6-device-id-absent"),
        pytest.param(changed(ONE, *DEVICE, "device_id", "2"), ["rule 6,", "2 2 times"], id="6-device-id-repeated"),
        pytest.param(changed(ONE, *DEVICE, "rank_id", ...), ["rule 7,", "a rank_id, found none"], id="7-rank-absent"),
        pytest.param(changed(ONE, *DEVICE, "rank_id", "x"), ["rule 7,", '"x"'], id="7-rank-no-number"),
        pytest.param(
            changed(TWO, *SECOND, "rank_id", "3"),
            ["rule 7,", "0 to 15 once, found 3 on server 10.0.0.1 device 3 and server 10.0.0.2 device 0"],
            id="7-rank-repeated",
        ),
        pytest.param(changed(ONE, *DEVICE, "rank_id", "8"), ["rule 7,", "found rank_id 8"], id="7-rank-too-high"),
        pytest.param(changed(ONE, *DEVICE, "device_ip", "10.0.0"), ["rule 8,", '"10.0.0"'], id="8-no-address"),
        pytest.param(changed(TWO, *SECOND, "device_ip", ...), ["rule 8,", "found none", "EI0017"], id="8-ip-absent"),
        pytest.param(
            changed(TWO, *SECOND, "device_ip", "10.1.0.4"),
            ["rule 8,", "server 10.0.0.2 device 0:", "already used by server 10.0.0.1 device 4", "hccn_tool"],
            id="8-ip-on-two-servers",
        ),
        pytest.param(changed(ONE, *DEVICE, "device_ip", "10.1.0.4"), ["rule 8,", "already"], id="8-ip-on-one-server"),
        pytest.param(changed(TWO, *SECOND, "device_ip", "fd00::1"), ["rule 8,", "IPv6 (first: "], id="8-two-families"),
        pytest.param(changed(ONE, *DEVICE, "device_ip", "127.0.0.1"), ["rule 8]", "loopback"], id="8-one-loopback"),
        pytest.param(
            changed(TWO, "server_list", 1, "device", TWO["server_list"][1]["device"][:4]),
            ["rule 9,", "8 on server 10.0.0.1, 4 on server 10.0.0.2", "rule 9,", "multiple of 8", "12"],
            id="9-different-counts",
        ),
        pytest.param(table("10.0.0.1", devices=3), ["rule 9,", "1, 2, 4 or 8 devices, found 3"], id="9-three-devices"),
        pytest.param(table("a", "b", "c", devices=2), ["rule 9,", "total, found 6"], id="9-six-in-total"),
        pytest.param(with_devices(ONE, 0, [2, 3, 4, 5]), ["rule 9,", "2, 3, 4, 5"], id="9-impossible-four"),
    ],
)
def test_refused(tmp_path: Path, content: dict, messages: list[str]) -> None:
    file = saved(tmp_path / "table.json", content)
    with pytest.raises(InputError) as caught:
        check(file)
    assert str(caught.value).startswith(str(file))
    for words in messages:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        pytest.param(
            changed(ONE, *DEVICE, "device_ip", ...), ["rule 8]", "a device_ip, found none"], id="8-one-server"
        ),
        pytest.param(with_devices(ONE, 0, [0, 1, 4, 5]), ["rule 9]", "one ring"], id="9-four-across-rings"),
        pytest.param(with_devices(ONE, 0, [3, 4]), ["rule 9]", "one ring"], id="9-two-across-rings"),
        pytest.param(INTERLEAVED, ["rule 10]", "contiguous", "0, 2, 4"], id="10-interleaved"),
        pytest.param(
            with_devices(ONE, 0, [1, 0, 2, 3]), ["rule 10]", "1, 0, 2, 3 in rank order"], id="10-device-order"
        ),
        pytest.param(table("10.0.0.9", "10.0.0.10"), ["rule 11]", "(10.0.0.10, 10.0.0.9)"], id="11-numeric-order"),
    ],
)
def test_warning_or_error_when_strict(tmp_path: Path, content: dict, messages: list[str]) -> None:
    file = saved(tmp_path / "table.json", content)
    warnings = "\n".join(check(file).warnings)
    with pytest.raises(InputError) as caught:
        check(file, strict=True)
    for words in messages:
        assert words in warnings
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "servers", "ranks"),
    [
        pytest.param(ONE_SERVER, 1, 8, id="printed-one-server"),
        pytest.param(TWO, 2, 16, id="two-servers"),
        pytest.param(changed(ONE, "server_count", ...), 1, 8, id="server-count-is-optional"),
        pytest.param(changed(ONE, "server_list", 0, "host_nic_ip", ...), 1, 8, id="host-nic-ip-is-optional"),
        pytest.param(changed(ONE, "server_list", 0, "container_ip", "10.9.0.1"), 1, 8, id="unknown-keys-are-ignored"),
        pytest.param(with_devices(ONE, 0, [4, 5, 6, 7]), 1, 4, id="second-ring"),
        pytest.param(table("a", "b", devices=1), 2, 2, id="two-servers-of-one"),
    ],
)
def test_accepted_strictly_and_without_warning(tmp_path: Path, content: dict, servers: int, ranks: int) -> None:
    found = check(saved(tmp_path / "table.json", content), strict=True)
    assert (found.servers, found.ranks, found.warnings) == (servers, ranks, [])


def test_printed_two_server_sample_is_refused_for_both_faults(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        check(saved(tmp_path / "table.json", PRINTED_TWO_SERVERS))
    message = str(caught.value)
    assert "found 5 violations" in message
    assert 'found "xx.xx.xx.xx" 2 times' in message
    for third in range(4):
        place = f"server_list[1] device {third}"
        assert f"{place}: expected a device_ip that is unique in the table, found 192.168.{third}.1" in message
    assert "already used by server_list[0] device 4" in message


def test_all_violations_are_reported_at_once(tmp_path: Path) -> None:
    content = changed(TWO, "version", 1.0)
    content = changed(content, "status", "initializing")
    content = changed(content, *DEVICE, "device_id", 9)
    content = changed(content, *SECOND, "device_ip", "10.1.0.4")
    with pytest.raises(InputError) as caught:
        check(saved(tmp_path / "table.json", content))
    rules = re.findall(r"\[rule (\d+)", str(caught.value))
    assert rules == ["2", "2", "3", "6", "8"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("absent.json", None, "no such file", id="absent"),
        pytest.param("table.json", b'{"version": ', "expected JSON", id="cut-off"),
        pytest.param("table.json", b"\xff\xfe\x00", "expected JSON", id="binary"),
        pytest.param("table.json", b"[]", "a JSON object, found list", id="no-object"),
        pytest.param("table.txt", json.dumps(ONE).encode(), "ends in .json, found table.txt", id="file-name"),
    ],
)
def test_unreadable_file(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)):
        check(tmp_path / name)


def test_file_above_40_mb(tmp_path: Path) -> None:
    with open(tmp_path / "table.json", "wb") as file:
        file.truncate((40 << 20) + 1)
    with pytest.raises(InputError, match="40 MB"):
        check(tmp_path / "table.json")


@pytest.mark.parametrize(
    ("text", "devices"),
    [("[0,8)", range(8)), ("[4,8)", range(4, 8)), (" [0, 1) ", range(1)), ("[10,16)", range(10, 16))],
)
def test_device_range(text: str, devices: range) -> None:
    assert parse_device_range(text) == list(devices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[0,7]", '"[0,8)" to include it'),
        ("[4,4)", "empty"),
        ("[8,0)", "empty"),
        ("0,8", "quote it for the shell"),
        ("[0-8)", "quote it for the shell"),
        ("[0,99999999999)", "quote it for the shell"),
        ("", "half-open"),
    ],
)
def test_device_range_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_device_range(text)


def test_visible_devices() -> None:
    assert parse_visible_devices("4, 5,12") == [4, 5, 12]
    with pytest.raises(InputError, match="separate them by commas"):
        parse_visible_devices("4-7")


@pytest.mark.usefixtures("hccn_tool")
def test_generate_writes_the_same_table_as_the_old_tool(tmp_path: Path) -> None:
    written = generate(tmp_path / "out", devices=list(range(8)), server_ip="10.0.0.1")
    assert written.path == tmp_path / "out" / "hccl_8p_01234567_10.0.0.1.json"
    assert (written.servers, written.ranks, written.warnings, written.reused) == (1, 8, [], False)
    expected = {
        "version": "1.0",
        "server_count": "1",
        "server_list": [
            {
                "server_id": "10.0.0.1",
                "device": [
                    {"device_id": str(d), "device_ip": f"192.168.100.{100 + d}", "rank_id": str(d)} for d in range(8)
                ],
                "host_nic_ip": "reserve",
            }
        ],
        "status": "completed",
    }
    text = written.path.read_text()
    assert json.loads(text) == expected
    assert '\n    "server_count": "1"' in text  # indent 4
    assert check(written.path, strict=True).digest == written.digest


def test_generate_again_keeps_the_same_table_and_replaces_another(tmp_path: Path, hccn_tool: Path) -> None:
    first = generate(tmp_path, devices=[0, 1], server_ip="10.0.0.1")
    inode = first.path.stat().st_ino
    again = generate(tmp_path, devices=[0, 1], server_ip="10.0.0.1")
    assert (again.reused, again.digest, again.path.stat().st_ino) == (True, first.digest, inode)
    (hccn_tool / "1").write_text("ipaddr:192.168.100.201\n")
    moved = generate(tmp_path, devices=[0, 1], server_ip="10.0.0.1")
    assert not moved.reused
    assert moved.digest != first.digest


@pytest.mark.usefixtures("hccn_tool")
def test_logical_devices_are_mapped_to_physical_ones(tmp_path: Path) -> None:
    written = generate(tmp_path, devices=[0, 1, 2, 3], server_ip="10.0.0.1", visible_devices=[4, 5, 6, 7])
    assert written.path.name == "hccl_4p_0123_10.0.0.1.json"
    devices = json.loads(written.path.read_text())["server_list"][0]["device"]
    assert devices[0] == {"device_id": "4", "device_ip": "192.168.100.104", "rank_id": "0"}
    assert [device["device_id"] for device in devices] == ["4", "5", "6", "7"]


def test_generate_falls_back_to_hccn_conf_with_a_warning(tmp_path: Path, hccn_tool: Path) -> None:
    (hccn_tool / "1").unlink()
    conf = tmp_path / "hccn.conf"
    conf.write_text("address_0=10.9.0.0\nnetmask_0=255.255.255.0\naddress_1=10.9.0.1\nnetdetect_1=10.9.0.254\n")
    written = generate(tmp_path, devices=[0, 1], server_ip="10.0.0.1", hccn_conf=conf)
    devices = json.loads(written.path.read_text())["server_list"][0]["device"]
    assert [device["device_ip"] for device in devices] == ["192.168.100.100", "10.9.0.1"]
    assert len(written.warnings) == 1
    assert f"device 1: address read from {conf}" in written.warnings[0]
    assert "hccn_tool get device 1 failed" in written.warnings[0]


def test_generate_without_hccn_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    conf = tmp_path / "hccn.conf"
    conf.write_text("address_0=10.9.0.0\n")
    assert generate(tmp_path, devices=[0], server_ip="10.0.0.1", hccn_conf=conf).ranks == 1
    with pytest.raises(InputError) as caught:
        generate(tmp_path, devices=[0, 1], server_ip="10.0.0.1", hccn_conf=conf)
    for words in ("device 1 of this server", "hccn_tool -i 1 -ip -g", "cannot be run", "has addresses of device 0"):
        assert words in str(caught.value)


def test_generate_without_any_source_of_addresses(tmp_path: Path, hccn_tool: Path) -> None:
    (hccn_tool / "0").write_text("ipaddr:\n")
    with pytest.raises(InputError, match=r"device 0 of this server.*absent\.conf cannot be read"):
        generate(tmp_path, devices=[0], server_ip="10.0.0.1", hccn_conf=tmp_path / "absent.conf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"devices": []}, "at least one device", id="no-devices"),
        pytest.param({"devices": [0, 1, 2]}, "1, 2, 4 or 8 devices", id="three-devices"),
        pytest.param({"devices": [2, 3, 4, 5]}, "four devices that HCCL accepts", id="across-the-rings"),
        pytest.param({"devices": [0, 0]}, "each physical device once", id="repeated"),
        pytest.param({"devices": [0, 2], "visible_devices": [4, 5]}, "logical devices 0 to 1", id="beyond-visible"),
        pytest.param({"devices": [0, 1], "visible_devices": [4, 4]}, "each physical device once", id="visible-twice"),
        pytest.param({"devices": [0], "server_ip": "../10.0.0.1"}, "1 to 64 characters", id="server-ip-with-slash"),
        pytest.param({"devices": [0], "server_ip": ""}, "1 to 64 characters", id="server-ip-empty"),
    ],
)
@pytest.mark.usefixtures("hccn_tool")
def test_generate_refuses_and_writes_nothing(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        generate(tmp_path / "out", **{"server_ip": "10.0.0.1", **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("hccn_tool")
def test_server_id_comes_from_the_host_name_unless_it_is_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "10.0.0.7")
    assert generate(tmp_path, devices=[0]).path.name == "hccl_1p_0_10.0.0.7.json"
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "127.0.1.1")
    with pytest.raises(InputError, match=r"loopback 127\.0\.1\.1, the same on every server.*--server-ip"):
        generate(tmp_path, devices=[0])


def own_tables(directory: Path, server_ids: list[str], devices: int = 8) -> list[Path]:
    """Each server's own table as `generate` names it."""
    whole = table(*server_ids, devices=devices)
    paths = []
    for server in whole["server_list"]:
        own = {**whole, "server_count": "1", "server_list": [copy.deepcopy(server)]}
        for rank, device in enumerate(own["server_list"][0]["device"]):
            device["rank_id"] = str(rank)
        paths.append(saved(directory / f"hccl_{devices}p_{server['server_id']}.json", own))
    return paths


def test_merge_of_twelve_servers_follows_the_string_order(tmp_path: Path) -> None:
    files = own_tables(tmp_path, [f"10.0.0.{n}" for n in range(12, 0, -1)])
    merged = merge(files, tmp_path / "rank_table.json")
    assert (merged.servers, merged.ranks, merged.warnings) == (12, 96, [])
    content = json.loads(merged.path.read_text())
    order = [server["server_id"] for server in content["server_list"]]
    assert order == [f"10.0.0.{n}" for n in (1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9)]
    assert content["server_count"] == "12"
    assert [int(d["rank_id"]) for server in content["server_list"] for d in server["device"]] == list(range(96))
    # Server 10.0.0.9 was written fourth, so its addresses are 10.4.0.x.
    assert content["server_list"][-1]["device"][7]["device_ip"] == "10.4.0.7"
    assert check(merged.path, strict=True).ranks == 96


def test_merge_does_not_depend_on_the_order_of_files_and_is_idempotent(tmp_path: Path) -> None:
    files = own_tables(tmp_path, ["10.0.0.9", "10.0.0.10"])
    first = merge(files, tmp_path / "rank_table.json")
    again = merge(files[::-1], tmp_path / "rank_table.json")
    assert (first.reused, again.reused, again.digest) == (False, True, first.digest)


def test_merge_keeps_keys_of_servers_that_hccl_does_not_read(tmp_path: Path) -> None:
    file = own_tables(tmp_path, ["10.0.0.1"])[0]
    saved(file, changed(json.loads(file.read_text()), "server_list", 0, "container_ip", "10.9.0.1"))
    merged = merge([file], tmp_path / "rank_table.json")
    assert json.loads(merged.path.read_text())["server_list"][0]["container_ip"] == "10.9.0.1"


def test_glob_that_takes_the_previous_output(tmp_path: Path) -> None:
    own_tables(tmp_path, ["10.0.0.1", "10.0.0.2"])
    out = tmp_path / "hccl_2s_16p.json"
    before = merge(sorted(tmp_path.glob("hccl*.json")), out)
    with pytest.raises(InputError) as caught:
        merge(sorted(tmp_path.glob("hccl*.json")), out)
    for words in (f"10.0.0.1 in {out} and ", f"10.0.0.2 in {out} and ", "hccl*.json", "leave out the output"):
        assert words in str(caught.value)
    assert check(out).digest == before.digest


@pytest.mark.parametrize(
    ("second", "messages"),
    [
        pytest.param({"server_id": "10.0.0.1"}, ["10.0.0.1 in ", "first.json and ", "--server-ip"], id="server-id"),
        pytest.param(
            {"device": TWO["server_list"][0]["device"]},
            ["8 violations", "server 10.0.0.2 device 0", "already used by server 10.0.0.1 device 0"],
            id="device-ip",
        ),
        pytest.param({"version": "1.2"}, ["second.json: version", "A3"], id="version"),
        pytest.param({"status": "initializing"}, ["second.json: status", "not filled in yet"], id="status"),
        pytest.param({"devices": 4}, ["8 on server 10.0.0.1, 4 on server 10.0.0.2"], id="device-counts"),
    ],
)
def test_merge_refuses_and_writes_nothing(tmp_path: Path, second: dict, messages: list[str]) -> None:
    count = second.get("devices", 8)
    own = {"version": "1.0", "server_count": "1", "status": "completed"}
    own.update({key: value for key, value in second.items() if key in own})
    devices = [{"device_id": str(d), "device_ip": f"10.2.0.{d}", "rank_id": str(d)} for d in range(count)]
    server = {"server_id": "10.0.0.2", "device": devices}
    server.update({key: value for key, value in second.items() if key in server})
    files = [saved(tmp_path / "first.json", ONE), saved(tmp_path / "second.json", {**own, "server_list": [server]})]
    with pytest.raises(InputError) as caught:
        merge(files, tmp_path / "out.json")
    for words in messages:
        assert words in str(caught.value)
    assert not (tmp_path / "out.json").exists()


def test_merge_reports_every_faulty_input(tmp_path: Path) -> None:
    files = [
        saved(tmp_path / "first.json", changed(ONE, "status", "initializing")),
        saved(tmp_path / "second.json", LEGACY),
    ]
    with pytest.raises(InputError, match=r"(?s)first\.json: status.*second\.json: version.*group_list"):
        merge(files, tmp_path / "out.json")


def test_merge_of_nothing_and_over_an_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one rank table"):
        merge([], tmp_path / "out.json")
    files = own_tables(tmp_path, ["10.0.0.1", "10.0.0.2"])
    with pytest.raises(InputError, match="one of the inputs"):
        merge(files, files[0])
    assert check(files[0]).servers == 1


def test_interrupted_write_keeps_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = own_tables(tmp_path, ["10.0.0.1", "10.0.0.2"])
    before = merge(files[:1], tmp_path / "rank_table.json")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        merge(files, before.path)
    assert check(before.path).digest == before.digest
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 12])
def test_local_table(tmp_path: Path, ranks: int) -> None:
    made = local_table(tmp_path / "rank_table.json", ranks)
    assert (made.servers, made.ranks) == (1, ranks)
    assert len(made.warnings) == 1
    assert "not for launch on Ascend" in made.warnings[0]
    devices = json.loads(made.path.read_text())["server_list"][0]["device"]
    assert devices[-1] == {
        "device_id": str(ranks - 1),
        "device_ip": f"127.0.0.{ranks}",
        "rank_id": str(ranks - 1),
    }
    assert local_table(tmp_path / "rank_table.json", ranks).reused
    with pytest.raises(InputError, match="not for launch"):
        check(made.path, strict=True)


def test_local_tables_do_not_merge(tmp_path: Path) -> None:
    local = local_table(tmp_path / "local.json", 8).path
    npus = own_tables(tmp_path, ["10.0.0.1"])
    with pytest.raises(InputError, match=r"found loopback 127\.0\.0\.1"):
        merge([local, *npus], tmp_path / "out.json")


@pytest.mark.parametrize("ranks", [0, 255])
def test_local_table_has_1_to_254_ranks(tmp_path: Path, ranks: int) -> None:
    with pytest.raises(InputError, match="1 to 254 ranks"):
        local_table(tmp_path / "rank_table.json", ranks)
