"""Make, merge and check rank tables: which NPU of which server is which rank.

    mae rank-table generate --device-num "[0,8)" --server-ip 10.0.0.1      on each server
    mae rank-table merge hccl_8p_*.json --out rank_table.json              on one of them, for all

What a table must keep is in rank_table_check.py, what only a server with NPUs can tell in hccn.py.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, atomic_write
from mae.cluster.hccn import device_addresses
from mae.cluster.rank_table_rules import INVALID, MAX_SERVER_ID, Device, RankTable, Server, Violation, parse_table

HCCN_CONF = "/etc/hccn.conf"
MAX_BYTES = 40 << 20  # rule 2


class RankTableFile(StageResult):
    """A checked table on disk. `digest` is the file's SHA-256, `warnings` the rules that HCCL does not enforce."""

    path: Path
    servers: int
    ranks: int
    digest: str
    warnings: list[str]


def generate(
    out_dir: PathLike,
    *,
    devices: list[int],
    server_ip: str | None = None,
    visible_devices: list[int] | None = None,
    hccn_conf: PathLike = HCCN_CONF,
) -> RankTableFile:
    """Write this server's own table, `hccl_{n}p_{devices}_{server_id}.json`, with ranks from 0.

    Args:
        devices: logical device numbers, e.g. `parse_device_range("[0,8)")`.
        server_ip: the server_id; none asks the host name's address.
        visible_devices: physical number of each logical device; none means they are the same.
        hccn_conf: read for a device that hccn_tool gives no address for.

    Raises:
        InputError: no usable server_id, a device without address, or a set of devices that breaks a rule.
    """
    server_id = _server_id(server_ip)
    physical = _physical(devices, visible_devices)
    addresses, warnings = device_addresses(physical, Path(hccn_conf))
    table = RankTable(server_list=[make_server(server_id, {number: addresses[number] for number in physical})])
    digits = "".join(str(device) for device in devices)
    written = write_table(_numbered(table), Path(out_dir) / f"hccl_{len(devices)}p_{digits}_{server_id}.json")
    return written.model_copy(update={"warnings": [*warnings, *written.warnings]})


def merge(files: Iterable[PathLike], out: PathLike) -> RankTableFile:
    """Merge the servers' own tables into the one that every server reads.

    Servers stand in the string order of server_id (rule 11); ranks are numbered anew from 0.

    Raises:
        InputError: an input or their union breaks a rule, two inputs hold the same server, or `out` is an input.
    """
    paths = [Path(file) for file in files]
    tables: list[tuple[str, RankTable]] = []
    violations: list[Violation] = []
    for path in paths:
        table, faults = read_table(path)
        tables.append((str(path), table))
        violations += [replace(fault, where=f"{path}: {fault.where}") for fault in faults if fault.enforced]
    if violations:
        _refuse("merge", violations)
    merged = merge_tables(tables)
    if Path(out).resolve() in [path.resolve() for path in paths]:
        raise InputError(out, expected="a file that is no input", found="one of the inputs", todo="write another file")
    return write_table(merged, out)


def check(file: PathLike, *, strict: bool = False) -> RankTableFile:
    """Apply every rule that a file alone can show.

    Args:
        strict: refuse also what HCCL does not enforce but its documentation asks for.

    Raises:
        InputError: one error that lists every violation.
    """
    table, violations = read_table(file)
    return _judged(table, violations, Path(file), strict=strict)


def local_table(out: PathLike, ranks: int) -> RankTableFile:
    """Write the one-server table of a CPU run: rank n is 127.0.0.(1+n). Its warning says that it is not for launch."""
    if not 1 <= ranks <= 254:
        raise InputError("local rank table", expected="1 to 254 ranks", found=str(ranks), todo="set device.ranks")
    server = make_server("127.0.0.1", {rank: f"127.0.0.{1 + rank}" for rank in range(ranks)})
    return write_table(_numbered(RankTable(server_list=[server])), out)


def parse_device_range(text: str) -> list[int]:
    """Parse the half-open "[0,8)" to [0, 1, ..., 7]."""
    match = re.fullmatch(r"\s*\[\s*(\d{1,3})\s*,\s*(\d{1,3})\s*([)\]])\s*", text)
    expected = 'a half-open range such as "[0,8)" for devices 0 to 7'
    if match is None:
        raise InputError("--device-num", expected=expected, found=f'"{text}"', todo="quote it for the shell")
    first, end = int(match[1]), int(match[2])
    if match[3] == "]":
        todo = f'write "[{first},{end})" to end before {end}, "[{first},{end + 1})" to include it'
        raise InputError("--device-num", expected=expected, found=f'"{text}", closed', todo=todo)
    if first >= end:
        raise InputError("--device-num", expected=expected, found=f'"{text}", empty', todo="raise the second number")
    return list(range(first, end))


def parse_visible_devices(text: str) -> list[int]:
    """Parse "4,5,6,7", the physical number of logical device 0, 1, ..., to [4, 5, 6, 7]."""
    numbers = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,3}", number) for number in numbers):
        expected = 'physical device numbers such as "4,5,6,7"'
        raise InputError("--visible-devices", expected=expected, found=f'"{text}"', todo="separate them by commas")
    return [int(number) for number in numbers]


def read_table(path: PathLike) -> tuple[RankTable, list[Violation]]:
    """Read a table and what it breaks; the table is complete only where no violation is enforced.

    Raises:
        InputError: the file is missing, too large or no JSON object, so that nothing in it can be judged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, expected="a rank table", found="no such file", todo="see `mae rank-table generate`")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(path, expected="at most 40 MB", found=f"{size} bytes", todo="name a rank table [rule 2]")
    todo = f"write it again [rule 2, HCCL: {INVALID}]"
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(path, expected="JSON", found=str(error), todo=todo) from None
    if not isinstance(content, dict):
        raise InputError(path, expected="a JSON object", found=type(content).__name__, todo=todo)
    table, violations = parse_table(content)
    return table, [*_name_violations(path), *violations]


def make_server(server_id: str, addresses: dict[int, str]) -> Server:
    """One server with the address of each physical device, in rank order."""
    devices = [Device(device_id=str(number), device_ip=address) for number, address in addresses.items()]
    return Server(server_id=server_id, device=devices)


def merge_tables(tables: list[tuple[str, RankTable]]) -> RankTable:
    """Merge tables in memory; the first item of each pair names the table's origin in errors."""
    if not tables:
        raise InputError("merge", expected="at least one rank table", found="none", todo="name the servers' own tables")
    _refuse_common_servers(tables)
    servers = [server for _, table in tables for server in table.server_list]
    return _numbered(RankTable(server_list=sorted(servers, key=lambda server: server.server_id)))


def write_table(table: RankTable, out: PathLike) -> RankTableFile:
    """Check a table, then write it atomically; a file with the same content is left as it is and `reused`."""
    out = Path(out)
    content = table.model_dump(exclude_none=True)
    _, violations = parse_table(content)
    violations = [*_name_violations(out), *violations]
    errors = [violation for violation in violations if violation.enforced]
    if errors:
        _refuse(f"{out} (not written)", errors)
    text = json.dumps(content, indent=4) + "\n"
    reused = out.is_file() and out.read_bytes() == text.encode()
    if not reused:
        atomic_write(out, text)
    return _judged(table, violations, out).model_copy(update={"reused": reused})


def _judged(table: RankTable, violations: list[Violation], path: Path, *, strict: bool = False) -> RankTableFile:
    errors = [violation for violation in violations if violation.enforced or strict]
    if errors:
        _refuse(path, errors)
    return RankTableFile(
        path=path,
        servers=len(table.server_list),
        ranks=table.ranks,
        digest=file_digest(path),
        warnings=[str(violation) for violation in violations],
    )


def _refuse(where: object, violations: list[Violation]) -> NoReturn:
    """Raise one InputError that gives every violation a line of its own."""
    found = "1 violation" if len(violations) == 1 else f"{len(violations)} violations"
    todo = "\n  ".join(["correct:", *map(str, violations)])
    raise InputError(where, expected='a version "1.0" rank table that keeps every rule', found=found, todo=todo)


def _name_violations(path: Path) -> list[Violation]:
    if path.suffix == ".json":
        return []
    return [Violation(2, "file name", "a name that ends in .json", path.name, "rename the file", INVALID)]


def _refuse_common_servers(tables: list[tuple[str, RankTable]]) -> None:
    origins: dict[str, list[str]] = defaultdict(list)
    for origin, table in tables:
        for server in table.server_list:
            origins[server.server_id].append(origin)
    common = {server_id: names for server_id, names in origins.items() if len(names) > 1}
    if not common:
        return
    for origin, table in tables:
        shared = [server.server_id for server in table.server_list if server.server_id in common]
        if shared and len(table.server_list) > 1:
            merged = f"a merged table of {len(table.server_list)} servers"
            raise InputError(
                origin,
                expected="tables of different servers",
                found=f"{merged}, of which other inputs hold {', '.join(shared)}",
                todo="leave it out: a pattern such as hccl*.json also takes the output of an earlier merge [rule 5]",
            )
    raise InputError(
        "merge",
        expected="each server_id in one table",
        found="; ".join(f"{server_id} in {' and '.join(names)}" for server_id, names in common.items()),
        todo="generate each server's table with its own --server-ip; 127.0.1.1 comes from /etc/hosts [rule 5]",
    )


def _numbered(table: RankTable) -> RankTable:
    """The table with ranks 0 to N-1 in the order of its servers, and of a server's devices by their old ranks."""
    servers: list[Server] = []
    rank = 0
    for server in table.server_list:
        devices = sorted(server.device, key=lambda device: int(device.rank_id or 0))
        numbered = [device.model_copy(update={"rank_id": str(rank + place)}) for place, device in enumerate(devices)]
        servers.append(server.model_copy(update={"device": numbered}))
        rank += len(devices)
    return table.model_copy(update={"server_list": servers, "server_count": str(len(servers))})


def _server_id(server_ip: str | None) -> str:
    if server_ip is not None:
        if re.fullmatch(rf"[A-Za-z0-9_.:-]{{1,{MAX_SERVER_ID}}}", server_ip):
            return server_ip
        expected = f"an address or name of 1 to {MAX_SERVER_ID} characters"
        raise InputError("--server-ip", expected=expected, found=f'"{server_ip}"', todo="give this server's address")
    name = socket.gethostname()
    todo = "give the address that the other servers reach it under with --server-ip"
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise InputError(f"host name {name}", expected="an address", found=str(error), todo=todo) from None
    if ipaddress.ip_address(address).is_loopback:
        found = f"loopback {address}, the same on every server (Debian and Ubuntu set it in /etc/hosts)"
        raise InputError(f"host name {name}", expected="an address of this server alone", found=found, todo=todo)
    return address


def _physical(devices: list[int], visible_devices: list[int] | None) -> list[int]:
    if not devices:
        raise InputError("--device-num", expected="at least one device", found="none", todo='e.g. "[0,8)"')
    physical = devices
    if visible_devices is not None:
        count = len(visible_devices)
        beyond = [str(device) for device in devices if not 0 <= device < count]
        if beyond:
            expected = f"logical devices 0 to {count - 1}, as --visible-devices names {count}"
            todo = "count logical devices from 0"
            raise InputError("--device-num", expected=expected, found=", ".join(beyond), todo=todo)
        physical = [visible_devices[device] for device in devices]
    if len(set(physical)) < len(physical):
        found = ", ".join(map(str, physical))
        raise InputError("--visible-devices", expected="each physical device once", found=found, todo="list it once")
    return physical
