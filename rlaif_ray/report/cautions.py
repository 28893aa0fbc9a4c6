"""What a reader of the report must be warned of."""

from __future__ import annotations

from collections.abc import Mapping

from rlaif_ray.report.quantities import share
from rlaif_ray.report.summary import ConductSummary, PolicyName

_RISE = 0.05


def silence_caution(conduct: Mapping[PolicyName, ConductSummary]) -> str | None:
    """A sentence where the policy evades, or refuses without need, by over 5 points more often than the model that it
    came from; None where it does not, or nobody measured it."""
    if not {"initial", "policy"} <= conduct.keys():
        return None
    before, after = conduct["initial"], conduct["policy"]
    rose = [
        f"{name} rose from {share(was)} to {share(now)}"
        for name, was, now in (
            ("evasive answers", before.evasive, after.evasive),
            ("needless refusals", before.needless_refusals, after.needless_refusals),
        )
        if was is not None and now is not None and now - was > _RISE
    ]
    return f"Harmless by saying nothing? From the initial model to the policy {' and '.join(rose)}." if rose else None
