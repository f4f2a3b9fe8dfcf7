"""The addresses of this server's NPU network ports, read from `hccn_tool` or from `/etc/hccn.conf`."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from datasets.base.errors import InputError

HCCN_TOOL_SECONDS = 30


def device_addresses(devices: list[int], hccn_conf: Path) -> tuple[dict[int, str], list[str]]:
    """Return the address of each physical device, as `hccn_tool` reports it.

    `hccn_conf` is read only for devices for which `hccn_tool` reports no address.

    Returns:
        the addresses by device number, and one warning if `hccn_conf` was used.

    Raises:
        InputError: neither source has the address of a device.
    """
    addresses: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for device in devices:
        address, reason = _ask_hccn_tool(device)
        if address is not None:
            addresses[device] = address
        else:
            reasons[device] = reason
    if not reasons:
        return addresses, []
    listed, found = _read_conf(hccn_conf)
    absent = [device for device in reasons if device not in listed]
    if absent:
        first = absent[0]
        raise InputError(
            f"device {_join(absent)} of this server",
            expected=f"an address from `hccn_tool -i {first} -ip -g` or a line address_{first}=IP in {hccn_conf}",
            found=f"{reasons[first]}, and {found}",
            todo="check `npu-smi info` and --device-num, or pass the right file with --hccn-conf",
        )
    addresses.update({device: listed[device] for device in reasons})
    why = "; ".join(dict.fromkeys(reasons.values()))
    return addresses, [f"device {_join(reasons)}: address read from {hccn_conf}, because {why}"]


def _read_conf(hccn_conf: Path) -> tuple[dict[int, str], str]:
    """Return the `address_N=IP` lines by N, and a description of the file for an error."""
    try:
        lines = re.findall(r"^\s*address_(\d+)\s*=\s*(\S+)", hccn_conf.read_text(), flags=re.MULTILINE)
    except OSError as error:
        return {}, f"{hccn_conf} cannot be read ({error.strerror})"
    listed = {int(number): address for number, address in lines}
    return listed, f"{hccn_conf} has addresses of device {_join(sorted(listed))}" if listed else f"{hccn_conf} has none"


def _ask_hccn_tool(device: int) -> tuple[str | None, str]:
    """Return the address in the first line, `ipaddr:...`, of `hccn_tool -i N -ip -g`; or None and the reason."""
    command = ["hccn_tool", "-i", str(device), "-ip", "-g"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=HCCN_TOOL_SECONDS, check=False)
    except OSError as error:
        return None, f"hccn_tool cannot be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        return None, f"hccn_tool gave no answer in {HCCN_TOOL_SECONDS} s"
    if match := re.match(r"ipaddr:\s*(\S+)", answer.stdout):
        return match[1], ""
    printed = (answer.stdout.strip() or answer.stderr.strip() or "nothing").splitlines()[0]
    return None, f"hccn_tool printed {printed!r} (exit code {answer.returncode})"


def _join(devices: Iterable[int]) -> str:
    return ", ".join(map(str, devices))
