"""`python -m rlaif_ray`: the same as `rlaif`."""

from rlaif_ray.cli import main

if __name__ == "__main__":
    main()
