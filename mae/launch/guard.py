"""Becomes a command that the kernel kills when its parent dies: `python guard.py PARENT_PID COMMAND...`.

The command leads a process group of its own, so that Ctrl-C in a terminal reaches the launcher only. A preexec
function in the launcher could do the same, but it is unsafe in a process with threads, such as a flow's. This script
needs only the standard library and Linux.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, *command = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):  # it died before the call above
        os._exit(1)
    os.setpgid(0, 0)
    os.execv(command[0], command)
