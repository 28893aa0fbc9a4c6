"""Where prompts come from."""

from __future__ import annotations

from rlaif_ray.config.section import Positive, Section


class PromptsConfig(Section):
    path: str
    """A JSONL or parquet file, the name of a `datasets` dataset, or `toyworld:` and `headlines`, `discretion` or
    `discretion-red-team`."""
    field: str = "prompt"
    """The column that holds a text, or a list of {role, content} messages."""
    reference: str | None = None
    """The column that holds a reference answer, for rewards that compare with one. In the toy world, whatever is set
    here: a demonstrator's answer."""
    limit: Positive | None = None
    """Read at most so many prompts."""
    held_out: Positive | None = None
    """Prompts kept from every training stage, for the evaluation. Without it a fifth, at most 1,000."""
