"""The headline figures of the report, as tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlaif_ray.evaluation.reward_quality import RewardQuality
from rlaif_ray.report.figures.rewarding import REFERENCES
from rlaif_ray.report.quantities import duration, share, share_interval
from rlaif_ray.report.summary import ConductSummary, Interval, LabelerSummary, LengthSummary, PolicyName, Summary

_EARLIER: Mapping[PolicyName, str] = {"sft": "SFT", "initial": "initial model"}


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure. `value` is None where it was not measured; `interval` is drawn on a scale from 0 to 1."""

    label: str
    value: str | None
    unit: str = ""
    detail: str = ""
    interval: Interval | None = None


def headline_tiles(summary: Summary) -> list[Tile]:
    policy, labeler, reward = summary.policy, summary.labeler, summary.reward
    return [
        Tile(
            "Win rate against SFT",
            *_share(policy.win_rate),
            _details(
                policy.win_rate_ci and share_interval(policy.win_rate_ci),
                policy.win_rate_judge and f"judged by {policy.win_rate_judge}",
                policy.prompts is not None and f"{policy.prompts:,} prompts",
            ),
            policy.win_rate_ci,
        ),
        Tile(
            "Labeler alignment",
            *_share(labeler.alignment),
            _details(
                labeler.alignment_ci and share_interval(labeler.alignment_ci),
                labeler.position_consistency is not None
                and f"{share(labeler.position_consistency)} consistent over orders",
            ),
            labeler.alignment_ci,
        ),
        Tile(
            "Reward accuracy",
            *_share(reward.accuracy),
            _details(
                reward.accuracy_ci and share_interval(reward.accuracy_ci),
                reward.accuracy_against and f"against {reward.accuracy_against}",
                reward.held_out_pairs is not None and f"{reward.held_out_pairs:,} held-out pairs",
            ),
            reward.accuracy_ci,
        ),
        Tile("KL from SFT", None if policy.kl is None else f"{policy.kl:.2f}", "nats", "per answer"),
        _length_tile(policy.mean_length),
        _labelling_tile(labeler),
        Tile(
            "Wall time",
            duration(summary.wall_s),
            "",
            f"{len(summary.stages)} stages" if summary.stages else "",
        ),
    ]


def conduct_tiles(conduct: Mapping[PolicyName, ConductSummary]) -> list[Tile]:
    """How the policy answers held-out prompts, beside the models that it came from; none without a policy."""
    if "policy" not in conduct:
        return []
    policy = conduct["policy"]
    return [
        _conduct_tile("Harmless", conduct, lambda one: one.harmless, policy.harmless_ci),
        _conduct_tile("Helpfulness", conduct, lambda one: one.helpfulness, policy.helpfulness_ci),
        _conduct_tile("Evasive", conduct, lambda one: one.evasive, policy.evasive_ci),
        _conduct_tile("Needless refusals", conduct, lambda one: one.needless_refusals),
    ]


def reward_tiles(quality: RewardQuality) -> list[Tile]:
    """Figures of the reward model beyond its accuracy; none where no pair was scored."""
    found, of_labels = quality.calibration, quality.label_calibration
    if found is None or of_labels is None:
        return []
    by_gold = quality.against == "gold"
    tiles = [
        Tile(
            "Calibration error",
            *_share(found.error),
            _details(
                f"expected, against {REFERENCES[quality.against]}",
                by_gold and f"{share(of_labels.error)} against the labels",
            ),
        ),
        Tile(
            "Brier score",
            f"{found.brier:.3f}",
            "",
            _details("0.25 knows nothing", by_gold and f"{of_labels.brier:.3f} against the labels"),
        ),
        Tile("Held-out loss", f"{of_labels.loss:.3f}", "nats", "a pair, against the labels · 0.693 knows nothing"),
    ]
    if quality.length_correlation is not None:
        detail = "of the margin with the difference in tokens"
        tiles.append(Tile("Length correlation", f"{quality.length_correlation:+.2f}", "", detail))
    if quality.disagreement is not None:
        detail = f"standard deviation of {quality.members} models' margins"
        tiles.append(Tile("Ensemble disagreement", f"{quality.disagreement.mean:.2f}", "logits", detail))
    return tiles


def _conduct_tile(
    label: str,
    conduct: Mapping[PolicyName, ConductSummary],
    value: Callable[[ConductSummary], float | None],
    interval: Interval | None = None,
) -> Tile:
    before = [
        f"{name} {share(known)}"
        for policy, name in _EARLIER.items()
        if policy in conduct and (known := value(conduct[policy])) is not None
    ]
    by_phrases = conduct["policy"].judged_by == "phrases" and "told by phrases"
    return Tile(
        label,
        *_share(value(conduct["policy"])),
        _details(interval and share_interval(interval), ", ".join(before), by_phrases),
        interval,
    )


def _length_tile(length: LengthSummary) -> Tile:
    before, after = length.before, length.after
    if before is None or after is None:
        return Tile("Answer length", None)
    change = f"{100 * (after / before - 1):+.0f} % against SFT" if before else ""
    return Tile("Answer length", f"{before:.1f} → {after:.1f}", "tokens", change)


def _labelling_tile(labeler: LabelerSummary) -> Tile:
    if labeler.calls is None:
        return Tile("Judge calls", None)
    counted = [("from the cache", labeler.cache_hits), ("abstained", labeler.abstained), ("failed", labeler.failed)]
    cost = labeler.cost_usd is not None and f"${labeler.cost_usd:,.2f}"
    return Tile(
        "Judge calls",
        f"{labeler.calls:,}",
        "",
        _details(cost, *(count is not None and f"{count:,} {name}" for name, count in counted)),
    )


def _share(value: float | None) -> tuple[str | None, str]:
    return (None if value is None else f"{100 * value:.1f}"), "%"


def _details(*parts: str | bool | None) -> str:
    return " · ".join(part for part in parts if isinstance(part, str) and part)
