"""Shared by every kind of test. Being here, it makes this directory importable, for what tests share."""

import os

# Read once, when torch is imported: with a thread a core, tests of tiny models wait for one another's threads.
os.environ["OMP_NUM_THREADS"] = "1"
