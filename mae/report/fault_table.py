"""Prints the faults that a validation found as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from datasets.manifest import FAULTS, MANIFEST
from datasets.validation import Validation
from mae.report.faulty_files import first_rows


def print_faults(result: Validation) -> None:
    """Print to stderr each fault, the number of its files, what is done with them, and the path of the first."""
    console = Console(stderr=True)
    if result.found:
        table = Table(title=f"{result.root}: {result.train:,} + {result.val:,} images kept", title_justify="left")
        table.add_column("fault: a file that ...")
        table.add_column("files", justify="right")
        table.add_column("action")
        table.add_column("first", overflow="fold")
        found = [name for name in FAULTS if name in result.found]
        for name, rows in first_rows(result.directory / MANIFEST, found, 1).items():
            count, first = f"{result.found[name]:,}", rows[0].path if rows else ""
            table.add_row(f"[bold]{name}[/]: {FAULTS[name].meaning}", count, result.policy[name], first)
        console.print(table)
    for warning, files in result.warnings.items():
        console.print(f"{files:,} files: warning of the decoder: {warning}", markup=False)
