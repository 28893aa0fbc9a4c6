"""Generated pages are up to date."""

from scripts.config_reference import TARGET, reference


def test_the_config_reference_is_what_the_config_says() -> None:
    assert TARGET.read_text() == reference(), "run `make docs`"
