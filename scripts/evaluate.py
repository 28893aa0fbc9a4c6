"""`rlaif evaluate` as a job: `ray job submit --working-dir . -- python scripts/evaluate.py ...`."""

from rlaif_ray.cli import main

if __name__ == "__main__":
    main("evaluate")
