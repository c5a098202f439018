"""python -I -S die_with_parent.py PARENT COMMAND…: become COMMAND, which Linux ends when the process PARENT ends.

SIGTERM, so that COMMAND can stop what it started. A script of its own: nothing but exec may run between fork and
exec in a process with threads.
"""

import ctypes
import os
import signal
import sys

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(command[0], command)
