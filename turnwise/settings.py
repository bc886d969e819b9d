"""The server's settings: environment (`TURNWISE_*`) over `turnwise.toml` over these defaults."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)


class Settings(BaseSettings):
    """What an operator may set. Each field is documented in docs/settings.md."""

    model_config = SettingsConfigDict(
        env_prefix="TURNWISE_", toml_file="turnwise.toml", frozen=True, extra="forbid"
    )

    data_dir: Path = Field(Path("data"), description="Where everything is kept; mode 0700.")
    host: str = Field(
        "127.0.0.1", description="Address to listen on. Loopback unless you say otherwise."
    )
    port: int = Field(8420, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    public_url: str = Field(
        "", description="Base URL that agents reach this server by; default http://host:port."
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL; default a SQLite file in the data folder."
    )
    max_running_jobs: int = Field(4, ge=1, description="Jobs that run at once; others wait.")
    device: str = Field("cpu", description="cpu or cuda, for engines and learners.")
    engine_threads: int = Field(1, ge=1, description="Compute threads of an engine.")
    engine_slots: int = Field(128, ge=1, description="Requests that an engine decodes at once.")
    engine_max_length: int = Field(4096, ge=16, description="Longest prompt + completion, tokens.")
    engine_queue: int = Field(1024, ge=1, description="Waiting requests before 429 is answered.")
    learner_threads: int = Field(1, ge=1, description="Compute threads of a learner.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
