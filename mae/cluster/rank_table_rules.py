"""Types and rules of the version "1.0" rank table that HCCL reads on Ascend 910A servers.

Sources: the open HCCL parser (rules 1 to 9, enforced), the CANN documentation (10), the MindSpore documentation (11).

1. version is "1.0". Without a version HCCL reads the legacy group_list layout; "1.1" is for heterogeneous clusters,
   "1.2" for super-pods (A3 only).
2. The file exists, its name ends in .json, it has at most 40 MB of valid JSON, and every scalar is a JSON string.
3. status is "completed". With any other status HCCL polls the file for 30 minutes, then fails.
4. server_list is not empty. server_count is optional; if present it is the length of server_list.
5. server_id has 1 to 64 characters and is unique. It need not be an address.
6. Each server has devices. device_id is 0 to 7, unique within the server.
7. The rank_ids are exactly 0 to N-1.
8. device_ip is a valid address, unique in the whole table. All are of one IP family. With more than one server they
   are mandatory.
9. Every server has the same number of devices: 1, 2, 4 or 8. The total is a multiple of 8, or 1, 2 or 4. HCCL accepts
   only some sets of four devices; documented collectives stay within one ring (0-3, 4-7).
10. The ranks of a server are contiguous and follow its device_ids.
11. Ranks follow the string order of server_id ("10.0.0.10" comes before "10.0.0.9").
12. At launch RANK_ID and the local device must match the table. The file cannot show this, so it is not checked here.

HCCL does not enforce 10, 11 and the rings of 9. Breaking them is a warning, or an error with `strict`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

from pydantic import BaseModel, ConfigDict, ValidationError

MAX_SERVER_ID = 64
RINGS = ({0, 1, 2, 3}, {4, 5, 6, 7})
SETS_OF_FOUR = ("0123", "4567", "0145", "0246", "0347", "1256", "1357", "2367")

# HCCL's error codes. Newer CANN releases report the second and third separately from EI0004.
INVALID = "EI0004"
BAD_VALUE = "EI0014, older CANN EI0004"
MISSING = "EI0017, older CANN EI0004"


class Device(BaseModel):
    """One NPU. Missing fields are read as empty strings, so that one check can report every fault of a table."""

    model_config = ConfigDict(extra="allow")

    device_id: str = ""
    device_ip: str = ""
    rank_id: str = ""


class Server(BaseModel):
    """One server. HCCL ignores `host_nic_ip`; it is here because every tool writes it."""

    model_config = ConfigDict(extra="allow")

    server_id: str = ""
    device: list[Device] = []
    host_nic_ip: str = "reserve"


class RankTable(BaseModel):
    """A whole table. Keys that HCCL does not read are kept."""

    model_config = ConfigDict(extra="allow")

    version: str = "1.0"
    server_count: Optional[str] = None
    server_list: list[Server] = []
    status: str = "completed"

    @property
    def ranks(self) -> int:
        return sum(len(server.device) for server in self.server_list)

    @property
    def devices(self) -> list[int]:
        """The device number of each rank. For a table without violations."""
        devices = [device for server in self.server_list for device in server.device]
        return [int(device.device_id) for device in sorted(devices, key=lambda device: int(device.rank_id))]

    @property
    def is_local(self) -> bool:
        """Whether this is the table of a job on CPUs: one server, whose devices all have loopback addresses."""
        devices = [device for server in self.server_list for device in server.device]
        return len(self.server_list) == 1 and bool(devices) and all(_is_loopback(d.device_ip) for d in devices)


@dataclass(frozen=True)
class Violation:
    """One broken rule. `code` is the error that HCCL reports; `enforced` is False if HCCL accepts the table."""

    rule: int
    where: str
    expected: str
    found: str
    todo: str
    code: str | None = None
    enforced: bool = True

    def __str__(self) -> str:
        mark = f"rule {self.rule}, HCCL: {self.code}" if self.code else f"rule {self.rule}"
        return f"{self.where}: expected {self.expected}, found {self.found}; {self.todo} [{mark}]"


def parse_table(content: dict[str, Any]) -> tuple[RankTable, list[Violation]]:
    """Return a table from its JSON content, and its violations of rules 1 to 11."""
    violations: list[Violation] = []
    content = _as_strings(content, "", violations)
    if "version" not in content:
        layout = "the legacy group_list layout" if "group_list" in content else "no version, which HCCL reads as legacy"
        todo = "generate a version 1.0 table on each server (`mae rank-table generate`) and merge them"
        violations.append(Violation(1, "version", '"1.0"', layout, todo, INVALID))
    violations += _status(content.get("status", ""))
    if "group_list" in content:  # the other rules do not apply to this layout
        return RankTable(), violations
    try:
        table = RankTable.model_validate(content)
    except ValidationError as error:
        for fault in error.errors():
            where = ".".join(str(part) for part in fault["loc"])
            violations.append(Violation(2, where, fault["msg"], repr(fault["input"]), "correct the layout", INVALID))
        return RankTable(), violations
    for rule in (_version, _servers, _devices, _ranks, _addresses, _shape, _rank_order):
        violations += rule(table)
    return table, violations


def _as_strings(value: Any, where: str, violations: list[Violation]) -> Any:
    """Rule 2: add a violation for each scalar that is no string, and return the value with strings in their place."""
    if isinstance(value, dict):
        return {key: _as_strings(item, f"{where}.{key}".lstrip("."), violations) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_strings(item, f"{where}[{index}]", violations) for index, item in enumerate(value)]
    if isinstance(value, str):
        return value
    bare = json.dumps(value)
    violations.append(Violation(2, where, "a JSON string", bare, f'write "{bare}" in quotation marks', INVALID))
    return bare


def _status(status: Any) -> Iterator[Violation]:
    if status == "completed":
        return
    found, todo = f'"{status}"' if status else "none", "HCCL would poll for 30 minutes; generate the table again"
    if status == "initializing":
        found += ": the table is not filled in yet"
        todo = "wait until the platform that writes it has finished, then copy it again"
    yield Violation(3, "status", '"completed"', found, todo, "HCCL_E_TIMEOUT")


def _version(table: RankTable) -> Iterator[Violation]:
    kinds = {"1.1": "heterogeneous clusters", "1.2": "super-pods of A3 servers"}
    if table.version != "1.0":
        kind = kinds.get(table.version, "no layout that HCCL knows")
        todo = "generate version 1.0 tables for 910A servers"
        code = "HCCL_E_NOT_SUPPORT" if table.version not in kinds else None
        yield Violation(1, "version", '"1.0"', f'"{table.version}" ({kind})', todo, code)


def _servers(table: RankTable) -> Iterator[Violation]:
    """Rules 4 and 5."""
    servers = table.server_list
    if not servers:
        yield Violation(4, "server_list", "at least one server", "none", "merge the servers' own tables", MISSING)
    if table.server_count is not None and table.server_count != str(len(servers)):
        found = f'"{table.server_count}", but there are {len(servers)} servers'
        yield Violation(4, "server_count", "the length of server_list", found, "correct it or remove it", BAD_VALUE)
    for label, server in _labelled_servers(table):
        if not server.server_id:
            yield Violation(5, label, "a server_id", "none", "give the server's address", MISSING)
        elif len(server.server_id) > MAX_SERVER_ID:
            found = f"{len(server.server_id)} characters"
            wanted = f"a server_id of at most {MAX_SERVER_ID} characters"
            yield Violation(5, label, wanted, found, "shorten it", BAD_VALUE)
    for server_id, count in Counter(server.server_id for server in servers if server.server_id).items():
        if count > 1:
            found = f'"{server_id}" {count} times'
            todo = "give each server its own address when its table is generated (--server-ip)"
            yield Violation(5, "server_list", "server_ids that are unique", found, todo, BAD_VALUE)


def _devices(table: RankTable) -> Iterator[Violation]:
    """Rule 6. A job on CPUs may have more than eight ranks."""
    for label, device in _labelled_devices(table):
        number = _number(device.device_id)
        if not device.device_id:
            yield Violation(6, label, "a device_id", "none", "give the NPU's number, 0 to 7", MISSING)
        elif number is None or (number > 7 and not table.is_local):
            found = f'"{device.device_id}"'
            yield Violation(6, label, "device_id 0 to 7", found, "a 910A server has eight NPUs", BAD_VALUE)
    for label, server in _labelled_servers(table):
        if not server.device:
            yield Violation(6, label, "at least one device", "none", "generate this server's table again", MISSING)
        for number, count in Counter(_number(device.device_id) for device in server.device).items():
            if number is not None and count > 1:
                found = f"{number} {count} times"
                yield Violation(6, label, "device_ids that are unique", found, "list each NPU once", BAD_VALUE)


def _ranks(table: RankTable) -> Iterator[Violation]:
    """Rule 7."""
    holders: dict[int, list[str]] = defaultdict(list)
    for label, device in _labelled_devices(table):
        number = _number(device.rank_id)
        if number is not None:
            holders[number].append(label)
        elif device.rank_id:
            yield Violation(7, label, "a number as rank_id", f'"{device.rank_id}"', "renumber from 0", BAD_VALUE)
        else:
            yield Violation(7, label, "a rank_id", "none", "renumber from 0", MISSING)
    wanted = f"each rank_id of 0 to {table.ranks - 1} once"
    for rank, labels in sorted(holders.items()):
        if len(labels) > 1:
            yield Violation(7, "rank_id", wanted, f"{rank} on {' and '.join(labels)}", "renumber from 0", BAD_VALUE)
        if rank >= table.ranks:
            yield Violation(7, labels[0], wanted, f"rank_id {rank}", "renumber from 0", BAD_VALUE)


def _addresses(table: RankTable) -> Iterator[Violation]:
    """Rule 8. In a table of one server a missing address is a warning: only the 910A documents require it."""
    todo = "every NPU needs its own address (see `hccn_tool -i N -ip -g`)"
    owners: dict[Any, str] = {}
    families: dict[int, str] = {}
    for label, device in _labelled_devices(table):
        if not device.device_ip:
            enforced = len(table.server_list) > 1
            yield Violation(8, label, "a device_ip", "none", todo, MISSING if enforced else None, enforced)
            continue
        try:
            address = ipaddress.ip_address(device.device_ip)
        except ValueError:
            yield Violation(8, label, "an IP address as device_ip", f'"{device.device_ip}"', todo, BAD_VALUE)
            continue
        if address in owners:
            found = f"{device.device_ip}, already used by {owners[address]}"
            yield Violation(8, label, "a device_ip that is unique in the table", found, todo, BAD_VALUE)
        owners.setdefault(address, label)
        families.setdefault(address.version, label)
        if address.is_loopback and not table.is_local:
            yield Violation(8, label, "the address of an NPU's network port", f"loopback {address}", todo)
    if len(families) > 1:
        found = f"IPv4 (first: {families[4]}) and IPv6 (first: {families[6]})"
        yield Violation(8, "device_ip", "one IP family in the whole table", found, "give all NPUs the same", BAD_VALUE)
    if table.is_local:
        todo = "right for a job on CPUs, not for launch on Ascend"
        yield Violation(8, "device_ip", "addresses of NPUs", "loopback addresses only", todo, enforced=False)


def _shape(table: RankTable) -> Iterator[Violation]:
    """Rule 9. It follows from the wiring of a 910A server, so a job on CPUs is exempt."""
    if table.is_local:
        return
    servers = [(label, server.device) for label, server in _labelled_servers(table)]
    if len({len(devices) for _, devices in servers}) > 1:
        found = ", ".join(f"{len(devices)} on {label}" for label, devices in servers)
        todo = "use the same --device-num on every server"
        yield Violation(9, "server_list", "the same number of devices on every server", found, todo, INVALID)
    if table.ranks % 8 and table.ranks not in (1, 2, 4):
        found, todo = str(table.ranks), "choose other numbers of servers or devices"
        yield Violation(9, "server_list", "1, 2, 4 or a multiple of 8 devices in total", found, todo, INVALID)
    for label, devices in servers:
        if len(devices) not in (0, 1, 2, 4, 8):
            found, todo = str(len(devices)), "choose another --device-num"
            yield Violation(9, label, "1, 2, 4 or 8 devices", found, todo, INVALID)
        numbers = sorted({n for device in devices if (n := _number(device.device_id)) is not None and n < 8})
        if len(numbers) != len(devices) or len(numbers) not in (2, 4):
            continue
        found = ", ".join(map(str, numbers))
        if len(numbers) == 4 and "".join(map(str, numbers)) not in SETS_OF_FOUR:
            yield Violation(9, label, "a set of four devices that HCCL accepts", found, "use 0-3 or 4-7", INVALID)
        elif not any(ring.issuperset(numbers) for ring in RINGS):
            todo = "collectives of part of a server are documented only within a ring"
            yield Violation(9, label, "devices of one ring, 0-3 or 4-7", found, todo, enforced=False)


def _rank_order(table: RankTable) -> Iterator[Violation]:
    """Rules 10 and 11."""
    first_ranks: list[tuple[int, str]] = []
    for label, server in _labelled_servers(table):
        pairs = [(_number(device.rank_id), _number(device.device_id)) for device in server.device]
        placed = sorted((rank, device) for rank, device in pairs if rank is not None and device is not None)
        if not placed or len(placed) < len(pairs):
            continue  # rules 6 and 7 report this
        ranks, devices = [rank for rank, _ in placed], [device for _, device in placed]
        first_ranks.append((ranks[0], server.server_id))
        if ranks[-1] - ranks[0] != len(ranks) - 1:
            found = f"ranks {', '.join(map(str, ranks))}"
            yield Violation(10, label, "contiguous ranks", found, "merge the servers' own tables again", enforced=False)
        if devices != sorted(devices):
            found = f"devices {', '.join(map(str, devices))} in rank order"
            todo = "order --visible-devices by number"
            yield Violation(10, label, "ranks that follow device_id", found, todo, enforced=False)
    order = [server_id for _, server_id in sorted(first_ranks)]
    if order != sorted(order):
        wanted = f"ranks in the string order of server_id ({', '.join(sorted(order))})"
        todo = "merge the servers' own tables again"
        yield Violation(11, "server_list", wanted, ", ".join(order), todo, enforced=False)


def _labelled_servers(table: RankTable) -> Iterator[tuple[str, Server]]:
    """Yield each server with its name in errors: its server_id, or its position if that is missing or repeated."""
    times = Counter(server.server_id for server in table.server_list)
    for index, server in enumerate(table.server_list):
        unique = server.server_id and times[server.server_id] == 1
        yield f"server {server.server_id}" if unique else f"server_list[{index}]", server


def _labelled_devices(table: RankTable) -> Iterator[tuple[str, Device]]:
    for label, server in _labelled_servers(table):
        for index, device in enumerate(server.device):
            yield f"{label} device {device.device_id or f'at place {index}'}", device


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
