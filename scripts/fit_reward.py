"""`rlaif fit-reward` as a job: `ray job submit --working-dir . -- python scripts/fit_reward.py ...`."""

from rlaif_ray.cli import main

if __name__ == "__main__":
    main("fit-reward")
