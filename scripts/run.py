"""`ray job submit --working-dir . -- python scripts/run.py CONFIG [key=value ...]`: the whole recipe as a job."""

import sys

from rlaif_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
