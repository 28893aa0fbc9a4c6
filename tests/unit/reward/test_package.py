import shutil
from pathlib import Path

import numpy as np
import pytest

from rlaif_ray.config import UserError
from rlaif_ray.reward.ensemble import RewardEnsemble
from rlaif_ray.reward.model import NORMALISATION_FILE
from rlaif_ray.reward.package import pack_reward_model, unpacked
from tests.small_models import write_models


@pytest.fixture
def reward(tmp_path: Path) -> Path:
    return write_models(tmp_path)[1]


@pytest.fixture
def ensemble(tmp_path: Path, reward: Path) -> Path:
    for number in range(2):
        shutil.copytree(reward, tmp_path / "ensemble" / str(number))
    return tmp_path / "ensemble"


def load(directory: Path) -> RewardEnsemble:
    return RewardEnsemble.load(directory, dtype="float32", trust_remote_code=False, device="cpu")


def test_what_is_unpacked_scores_as_what_was_packed(ensemble: Path) -> None:
    ids, sequences = ("a", "b"), ([5, 6, 7], [8, 9])
    with unpacked(pack_reward_model(ensemble)) as directory:
        copy = load(directory)
    original = load(ensemble)
    assert copy.normalisations == original.normalisations
    scores = [one.raw_scores(ids, sequences, max_batch_tokens=64) for one in (copy, original)]
    assert scores[0].shape == (2, 2)
    assert np.array_equal(*scores)


@pytest.mark.parametrize("file", [NORMALISATION_FILE, "tokenizer.json", "model.safetensors"])
def test_the_fingerprint_is_of_every_file(reward: Path, file: str) -> None:
    before = pack_reward_model(reward).fingerprint
    assert pack_reward_model(reward).fingerprint == before
    data = (reward / file).read_bytes()
    (reward / file).write_bytes(data + b" ")
    assert pack_reward_model(reward).fingerprint != before


def test_without_weights_a_package_is_small_and_the_same_version(reward: Path) -> None:
    package = pack_reward_model(reward)
    light = package.without_weights()
    assert set(package.files) - set(light.files) == {"model.safetensors"}
    assert light.fingerprint == package.fingerprint


def test_a_pickle_never_travels(reward: Path) -> None:
    (reward / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pytorch_model.bin" not in pack_reward_model(reward).files
    (reward / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights as safetensors"):
        pack_reward_model(reward)


def test_what_is_no_reward_model_is_named(tmp_path: Path) -> None:
    sft, _ = write_models(tmp_path)
    with pytest.raises(UserError, match=f"sft holds no {NORMALISATION_FILE}"):
        pack_reward_model(sft)
    with pytest.raises(UserError, match="holds no reward model"):
        pack_reward_model(tmp_path / "nowhere")


def test_an_ensemble_shares_one_tokenizer(ensemble: Path) -> None:
    tokenizer = ensemble / "1" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("seven", "eleven"))
    with pytest.raises(UserError, match="another tokenizer"):
        pack_reward_model(ensemble)
