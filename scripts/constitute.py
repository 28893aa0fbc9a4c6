"""`rlaif constitute` as a job: `ray job submit --working-dir . -- python scripts/constitute.py ...`."""

from rlaif_ray.cli import main

if __name__ == "__main__":
    main("constitute")
