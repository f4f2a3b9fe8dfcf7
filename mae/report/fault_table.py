"""What a validation found, as a table on the console."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from datasets.manifest import FAULTS, MANIFEST, iterate_manifest
from datasets.validation import Validation


def print_faults(result: Validation) -> None:
    """Print every fault that was found, what became of its files, and the first of them, to stderr."""
    console = Console(stderr=True)
    if result.found:
        table = Table(title=f"{result.root}: {result.train:,} + {result.val:,} images kept", title_justify="left")
        table.add_column("fault: a file that ...")
        table.add_column("files", justify="right")
        table.add_column("action")
        table.add_column("first", overflow="fold")
        first = _first_files(result)
        for name, fault in FAULTS.items():
            if name in result.found:
                count, action = f"{result.found[name]:,}", result.policy[name]
                table.add_row(f"[bold]{name}[/]: {fault.meaning}", count, action, first.get(name, ""))
        console.print(table)
    for warning, files in result.warnings.items():
        console.print(f"{files:,} files: warning of the decoder: {warning}", markup=False)


def _first_files(result: Validation) -> dict[str, str]:
    """The first path of each fault; reads no further than to the last of them."""
    first: dict[str, str] = {}
    for row in iterate_manifest(result.directory / MANIFEST):
        for fault in filter(None, row.faults.split(",")):
            first.setdefault(fault, row.path)
        if len(first) == len(result.found):
            break
    return first
