"""Settings that must be in the environment before torch and matplotlib are first imported.

As environment variables they cost tests without torch nothing, and they reach the processes that tests start.
"""

import os
import signal

# One thread a test process: xdist runs one process a core, and sums are then added in the same order whatever the machine.
# `make bench` sets its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Figures are drawn into files, also where there is a display.
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell that starts the tests in the background makes them ignore Ctrl-C, and tests of Ctrl-C send themselves one.
signal.signal(signal.SIGINT, signal.default_int_handler)
