"""Shared by every kind of test. Being here, it makes this directory importable, for what tests share."""

import os

from hypothesis import settings

# Read once, when torch is imported: with a thread a core, tests of tiny models wait for one another's threads.
os.environ["OMP_NUM_THREADS"] = "1"

# Read by every process of Ray: a busy machine takes its time to start a node.
os.environ.update(RAY_raylet_start_wait_time_s="120")

# How long an example takes says nothing on a machine that is busy.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")
