import os
from pathlib import Path

import pytest

from turnwise import errors
from turnwise.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _empty_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory and no settings in the environment."""
    for name in [name for name in os.environ if name.startswith("TURNWISE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write(content: str) -> None:
    Path("turnwise.toml").write_text(content)


def test_options_win_over_the_environment_that_over_the_file_that_over_defaults(
    monkeypatch: pytest.MonkeyPatch,
):
    assert load_settings() == Settings()
    write('port = 1\nhost = "0.0.0.0"\nengine_slots = 8\n')
    monkeypatch.setenv("TURNWISE_PORT", "2")
    monkeypatch.setenv("TURNWISE_HOST", "127.0.0.2")
    settings = load_settings(port=3)
    assert (settings.port, settings.host, settings.engine_slots) == (3, "127.0.0.2", 8)
    assert settings.max_running_jobs == 4


def test_the_server_listens_on_loopback_unless_told_otherwise():
    assert load_settings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "TURNWISE_PORT",
            "99999",
            "TURNWISE_PORT: '99999' is not allowed; must be a whole number, 0 to 65535",
        ),
        (
            "TURNWISE_MAX_RUNNING_JOBS",
            "0",
            "TURNWISE_MAX_RUNNING_JOBS: '0' is not allowed; must be a whole number, 1 or more",
        ),
        (
            "TURNWISE_PRICE_TRAIN_PER_MILLION",
            "-1",
            "TURNWISE_PRICE_TRAIN_PER_MILLION: '-1' is not allowed; must be a number, 0 or more",
        ),
        (
            "turnwise_device",
            "gpu",
            "turnwise_device: 'gpu' is not allowed; must be cpu, cuda or cuda:N",
        ),
    ],
)
def test_a_bad_variable_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
):
    monkeypatch.setenv(name, value)
    with pytest.raises(errors.InvalidInput) as refused:
        load_settings()
    assert str(refused.value) == message


def test_a_bad_option_is_named_by_its_flag():
    with pytest.raises(errors.InvalidInput, match="--port: -1 is not allowed; must be"):
        load_settings(port=-1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "engine_slots = 0",
            "turnwise.toml: engine_slots: 0 is not allowed; must be a whole number, 1 or more",
        ),
        (
            "data_dir = 3",
            "turnwise.toml: data_dir: 3 is not allowed; must be a path",
        ),
        (
            "prot = 8421",
            "turnwise.toml: prot: 8421 is set, but there is no such setting; did you mean port?",
        ),
        (
            "zzz = 1",
            "turnwise.toml: zzz: 1 is set, but there is no such setting; "
            "docs/settings.md lists all",
        ),
        ("port = x", "turnwise.toml' is not TOML: Invalid value (at line 1, column 8)"),
    ],
)
def test_a_bad_line_of_the_file_is_named(content: str, message: str):
    write(content)
    with pytest.raises(errors.InvalidInput) as refused:
        load_settings()
    assert message in str(refused.value)
