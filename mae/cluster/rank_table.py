"""Make, merge and check rank tables. A rank table lists the server and the NPU of each rank of a job.

    mae rank-table generate --device-num "[0,8)" --server-ip 10.0.0.1      on each server
    mae rank-table merge hccl_8p_*.json --out rank_table.json              on one of them, for all

The rules of a table are in rank_table_rules.py. The NPUs' addresses come from hccn.py.
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

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, atomic_write
from mae.cluster.hccn import device_addresses
from mae.cluster.rank_table_rules import INVALID, MAX_SERVER_ID, Device, RankTable, Server, Violation, parse_table

HCCN_CONF = "/etc/hccn.conf"
MAX_BYTES = 40 << 20  # rule 2


class RankTableFile(StageResult):
    """A checked table on disk: `digest` is the file's SHA-256, `warnings` names broken rules that HCCL accepts."""

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
    """Write this server's own table, `hccl_{n}p_{devices}_{server_id}.json`. Its ranks count from 0.

    Args:
        devices: logical device numbers, for example `parse_device_range("[0,8)")`.
        server_ip: the server_id. Default: the address of the host name.
        visible_devices: physical number of each logical device. Default: the logical number.
        hccn_conf: read for a device for which hccn_tool reports no address.

    Raises:
        InputError: no usable server_id, a device without address, or a set of devices that breaks a rule.
    """
    server_id = host_address() if server_ip is None else _checked_server_id(server_ip)
    physical = _physical(devices, visible_devices)
    addresses, warnings = device_addresses(physical, Path(hccn_conf))
    digits = "".join(map(str, devices))
    out = Path(out_dir) / f"hccl_{len(devices)}p_{digits}_{server_id}.json"
    written = write_table(one_server(server_id, {number: addresses[number] for number in physical}), out)
    return written.model_copy(update={"warnings": [*warnings, *written.warnings]})


def merge(files: Iterable[PathLike], out: PathLike) -> RankTableFile:
    """Merge the servers' own tables into one, which every server reads.

    The servers are sorted by server_id as strings (rule 11). Ranks are numbered again from 0.

    Raises:
        InputError: an input or the result breaks a rule, two inputs contain the same server, or `out` is an input.
    """
    tables: list[tuple[str, RankTable]] = []
    faults: list[Violation] = []
    for file in map(Path, files):
        table, violations = _read(file)
        tables.append((str(file), table))
        faults += [replace(v, where=f"{file}: {v.where}") for v in violations if v.enforced]
    _accept(faults, "merge")
    merged = merge_tables(tables)
    if Path(out).resolve() in [Path(file).resolve() for file, _ in tables]:
        raise InputError(out, expected="a new file", found="one of the inputs", todo="choose another --out")
    return write_table(merged, out)


def check(file: PathLike, *, strict: bool = False) -> RankTableFile:
    """Check a table against every rule that the file alone can show.

    Args:
        strict: also refuse a table that HCCL accepts although its documentation forbids it.

    Raises:
        InputError: one error that lists every violation.
    """
    return _result(Path(file), *load_table(file, strict=strict))


def local_table(out: PathLike, ranks: int) -> RankTableFile:
    """Write the table of a job on CPUs: rank n has the address 127.0.0.(1+n). Its warning says so."""
    if not 1 <= ranks <= 254:
        raise InputError("local rank table", expected="1 to 254 ranks", found=str(ranks), todo="set device.ranks")
    return write_table(one_server("127.0.0.1", {rank: f"127.0.0.{1 + rank}" for rank in range(ranks)}), out)


def parse_device_range(text: str) -> list[int]:
    """Parse the half-open range "[0,8)" to [0, 1, ..., 7]."""
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
    """Parse "4,5,6,7", the physical numbers of logical devices 0, 1, ..., to [4, 5, 6, 7]."""
    numbers = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,3}", number) for number in numbers):
        expected = 'physical device numbers such as "4,5,6,7"'
        raise InputError("--visible-devices", expected=expected, found=f'"{text}"', todo="separate them by commas")
    return [int(number) for number in numbers]


def load_table(path: PathLike, *, strict: bool = False) -> tuple[RankTable, list[str]]:
    """Return a table and its broken rules that HCCL accepts.

    Raises:
        InputError: the file breaks a rule that HCCL enforces, or any rule if `strict`.
    """
    table, violations = _read(Path(path))
    return table, _accept(violations, path, strict=strict)


def one_server(server_id: str, addresses: dict[int, str]) -> RankTable:
    """Return the table of one server. `addresses` has the address of each physical device, in the order of ranks."""
    devices = [
        Device(device_id=str(number), device_ip=address, rank_id=str(rank))
        for rank, (number, address) in enumerate(addresses.items())
    ]
    return RankTable(server_list=[Server(server_id=server_id, device=devices)], server_count="1")


def merge_tables(tables: list[tuple[str, RankTable]]) -> RankTable:
    """Merge tables in memory. The first item of each pair names the origin of the table in errors.

    Ranks are numbered from 0: servers in string order of server_id, the devices of a server by their old ranks.

    Raises:
        InputError: there is no table, or two of them contain the same server.
    """
    if not tables:
        raise InputError("merge", expected="at least one rank table", found="none", todo="name the servers' own tables")
    _refuse_common_servers(tables)
    merged: list[Server] = []
    rank = 0
    for server in sorted((s for _, table in tables for s in table.server_list), key=lambda server: server.server_id):
        devices = sorted(server.device, key=lambda device: int(device.rank_id))
        numbered = [device.model_copy(update={"rank_id": str(rank + n)}) for n, device in enumerate(devices)]
        merged.append(server.model_copy(update={"device": numbered}))
        rank += len(devices)
    return RankTable(server_list=merged, server_count=str(len(merged)))


def write_table(table: RankTable, out: PathLike) -> RankTableFile:
    """Check a table and write it atomically. An equal file is not written again: the result says `reused`."""
    out = Path(out)
    warnings = table_warnings(table, out, f"{out} (not written)")
    text = json.dumps(_content(table), indent=4) + "\n"
    reused = out.is_file() and out.read_bytes() == text.encode()
    if not reused:
        atomic_write(out, text)
    return _result(out, table, warnings).model_copy(update={"reused": reused})


def table_warnings(table: RankTable, path: Path, where: object) -> list[str]:
    """Return the broken rules that HCCL accepts; raise InputError at `where` for those that it does not.

    Args:
        path: where the table is, or will be written.
    """
    return _accept([*_name_violations(path), *parse_table(_content(table))[1]], where)


def host_address() -> str:
    """Return the address of this server's host name.

    Raises:
        InputError: it has none, or a loopback address.
    """
    name = socket.gethostname()
    todo = "pass the address by which the other servers reach this one with --server-ip"
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise InputError(f"host name {name}", expected="an address", found=str(error), todo=todo) from None
    if ipaddress.ip_address(address).is_loopback:
        found = f"loopback {address}, the same on every server (Debian and Ubuntu set it in /etc/hosts)"
        raise InputError(f"host name {name}", expected="an address of this server alone", found=found, todo=todo)
    return address


def _read(path: Path) -> tuple[RankTable, list[Violation]]:
    """Read a table and its violations. The table is complete only if no violation is enforced.

    Raises:
        InputError: the file is missing, too large or no JSON object.
    """
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


def _content(table: RankTable) -> dict[str, object]:
    return table.model_dump(exclude_none=True)


def _result(path: Path, table: RankTable, warnings: list[str]) -> RankTableFile:
    servers = len(table.server_list)
    return RankTableFile(path=path, servers=servers, ranks=table.ranks, digest=file_digest(path), warnings=warnings)


def _accept(violations: list[Violation], where: object, *, strict: bool = False) -> list[str]:
    """Return the violations as warnings, or raise one InputError with a line for each that is refused."""
    errors = [violation for violation in violations if violation.enforced or strict]
    if errors:
        found = "1 violation" if len(errors) == 1 else f"{len(errors)} violations"
        todo = "\n  ".join(["correct:", *map(str, errors)])
        raise InputError(where, expected='a version "1.0" rank table that keeps every rule', found=found, todo=todo)
    return list(map(str, violations))


def _name_violations(path: Path) -> list[Violation]:
    if path.suffix == ".json":
        return []
    return [Violation(2, "file name", "a name that ends in .json", path.name, "rename the file", INVALID)]


def _refuse_common_servers(tables: list[tuple[str, RankTable]]) -> None:
    origins: dict[str, list[str]] = defaultdict(list)
    for origin, table in tables:
        for server in table.server_list:
            origins[server.server_id].append(origin)
    if common := [f"{server_id} in {' and '.join(names)}" for server_id, names in origins.items() if len(names) > 1]:
        todo = (
            "leave out the output of an earlier merge, which a pattern such as hccl*.json also matches, and generate "
            "each server's table with its own --server-ip; 127.0.1.1 comes from /etc/hosts [rule 5]"
        )
        raise InputError("merge", expected="each server_id in one table", found="; ".join(common), todo=todo)


def _checked_server_id(server_ip: str) -> str:
    if not re.fullmatch(rf"[A-Za-z0-9_.:-]{{1,{MAX_SERVER_ID}}}", server_ip):
        expected = f"an address or name of 1 to {MAX_SERVER_ID} characters"
        raise InputError("--server-ip", expected=expected, found=f'"{server_ip}"', todo="give this server's address")
    return server_ip


def _physical(devices: list[int], visible_devices: list[int] | None) -> list[int]:
    if not devices:
        raise InputError("--device-num", expected="at least one device", found="none", todo='e.g. "[0,8)"')
    physical = devices
    if visible_devices is not None:
        count = len(visible_devices)
        beyond = [str(device) for device in devices if not 0 <= device < count]
        if beyond:
            expected = f"logical devices 0 to {count - 1}, because --visible-devices names {count}"
            todo = "count logical devices from 0"
            raise InputError("--device-num", expected=expected, found=", ".join(beyond), todo=todo)
        physical = [visible_devices[device] for device in devices]
    if len(set(physical)) < len(physical):
        found = ", ".join(map(str, physical))
        raise InputError("--visible-devices", expected="each physical device once", found=found, todo="list it once")
    return physical
