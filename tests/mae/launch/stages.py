"""A guard, a rank and a scheduler that need no MindSpore and can be stopped at each stage of their start. A script.

As a guard it gets the guard's arguments. STAGE names where every process waits a second: "guard" before it asks to die
with its parent, "exec" before it becomes its command. In a rank and in the scheduler the stage "running" lasts.
"""

import os
import runpy
import sys
import time
from pathlib import Path

NAME = "scheduler" if os.environ.get("MS_ROLE") == "MS_SCHED" else f"rank {os.environ['RANK_ID']}"


def reached(stage, seconds):
    if os.environ.get("STAGE") == stage:
        Path(os.environ["MAE_LAUNCH_DIR"], f"{NAME} at {stage}").touch()
        time.sleep(seconds)


def main():
    if len(sys.argv) == 1:
        print("serving", flush=True)
        reached("running", 100)
        time.sleep(100)
    elif sys.argv[1:] == ["rank"]:
        reached("running", 100)
    else:
        reached("guard", 1)
        execv = os.execv
        os.execv = lambda *command: (reached("exec", 1), execv(*command))
        sys.argv[0] = os.environ["GUARD"]
        runpy.run_path(os.environ["GUARD"], run_name="__main__")


if __name__ == "__main__":
    main()
