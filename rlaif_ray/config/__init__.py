"""The run's configuration: frozen, strict, one tree. A YAML file with `key=value` overrides behind it.

Everything that can be wrong with it is found at load, and said in one sentence that names the key.
"""

from rlaif_ray.config.constitution import ConstitutionConfig
from rlaif_ray.config.fitting import FitConfig, PreferenceFileConfig
from rlaif_ray.config.judge import CascadeConfig, EndpointConfig, JudgeConfig, PriceConfig
from rlaif_ray.config.learning import DpoConfig, LearnerConfig, PpoConfig
from rlaif_ray.config.loading import dump_config, holds_config, load_config, load_judge_config, load_serve_config
from rlaif_ray.config.prompts import PromptsConfig
from rlaif_ray.config.reward import PretrainingConfig, RewardConfig, RewardSourceConfig
from rlaif_ray.config.run import (
    CollectConfig,
    EvaluationConfig,
    JudgeRunConfig,
    LoraConfig,
    PolicyConfig,
    RolloutConfig,
    RunConfig,
    ScratchModelConfig,
    SftConfig,
)
from rlaif_ray.config.section import ActorResources, PoolSize, Replicas, Section, Stopped, UserError
from rlaif_ray.config.serve import ServeRewardConfig

__all__ = [
    "ActorResources",
    "CascadeConfig",
    "CollectConfig",
    "ConstitutionConfig",
    "DpoConfig",
    "EndpointConfig",
    "EvaluationConfig",
    "FitConfig",
    "JudgeConfig",
    "JudgeRunConfig",
    "LearnerConfig",
    "LoraConfig",
    "PolicyConfig",
    "PoolSize",
    "PpoConfig",
    "PreferenceFileConfig",
    "PretrainingConfig",
    "PriceConfig",
    "PromptsConfig",
    "Replicas",
    "RewardConfig",
    "RewardSourceConfig",
    "RolloutConfig",
    "RunConfig",
    "ScratchModelConfig",
    "Section",
    "ServeRewardConfig",
    "SftConfig",
    "Stopped",
    "UserError",
    "dump_config",
    "holds_config",
    "load_config",
    "load_judge_config",
    "load_serve_config",
]
