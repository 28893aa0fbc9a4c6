from pathlib import Path

import pytest

from rlaif_ray.config import ServeRewardConfig, UserError, load_serve_config
from scripts.config_reference import rows


def test_values_are_yaml_over_the_defaults() -> None:
    config = load_serve_config(["port=0", "actors.max=4", "api_key_env=MY_KEY", "host=0.0.0.0"])
    assert (config.host, config.port, config.api_key_env) == ("0.0.0.0", 0, "MY_KEY")
    assert (config.actors.min, config.actors.max) == (1, 4)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert load_serve_config([f"host='{host}'"]).host == host


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("host=0.0.0.0", "host=0.0.0.0 lets other machines in: set api_key_env"),
        ("host=reward.example.org", "host=reward.example.org lets other machines in"),
        ("prot=8000", "prot is not a known key; did you mean port?"),
        ("actors.mim=2", r"actors.mim is not a known key; did you mean min\?"),
        ("port=70000", "port: Input should be less than or equal to 65535"),
        ("actors.min=0", "actors.min must be 1 or more"),
        ("max_queued", "'max_queued' is not an override; write key=value"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_its_key(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        load_serve_config([override])
    assert "\n" not in str(error.value)
    assert not str(error.value).startswith("None")


def test_the_page_has_every_key() -> None:
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    table = page.partition("## Keys\n")[2].splitlines()[3:]
    assert table == list(rows(ServeRewardConfig, None, ()))
