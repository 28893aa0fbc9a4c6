"""`rlaif report` as a job: `ray job submit --working-dir . -- python scripts/report.py ...`."""

from rlaif_ray.cli import main

if __name__ == "__main__":
    main("report")
