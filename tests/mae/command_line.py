"""Runs `mae` in this process, through the entry point of the command."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any, NamedTuple
from unittest import mock

from mae.cli import main


class Finished(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON that a successful stage prints."""
        assert self.code == 0, self.stderr
        return json.loads(self.stdout)


def mae(*arguments: object) -> Finished:
    """Run `mae` with these arguments. An error that `mae` does not handle is raised."""
    out, err = io.StringIO(), io.StringIO()
    command = mock.patch.object(sys, "argv", ["mae", *map(str, arguments)])
    with command, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            return Finished(int(end.code or 0), out.getvalue(), err.getvalue())
    return Finished(0, out.getvalue(), err.getvalue())
