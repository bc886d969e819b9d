"""The SDK against a server behind https, which has few places for requests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fireworks
import httpx
import pytest
from fireworks import Fireworks
from fireworks.lib.dataset_upload import count_dataset_examples, upload_dataset_shards

from tests.wire.aws.clients.service import Server, save_model
from tests.wire.fireworks.clients.conftest import BASE, ROWS, jsonl
from tests.wire.fireworks.clients.front import Front


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The SDK's client of a server whose public address is that of an https front."""
    folder = tmp_path_factory.mktemp("secure")
    front = Front(folder)
    server = Server(
        folder / "data",
        TURNWISE_PUBLIC_URL=front.url,
        TURNWISE_ENGINE_SLOTS="1",
        TURNWISE_ENGINE_QUEUE="1",
    )
    (folder / "data/models").mkdir()
    save_model(folder / "data/models/tiny")
    with pytest.MonkeyPatch.context() as patch, front.serve(server.url):
        patch.setenv("SSL_CERT_FILE", str(front.certificate))
        with Fireworks(
            api_key=server.key, base_url=front.url, account_id="default", max_retries=0
        ) as client:
            yield client
    server.stop()
    print(server.log.read_text())


def test_shards_are_uploaded_to_signed_addresses(secure: Any, tmp_path: Path):
    """Contract check 6."""
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(jsonl(ROWS))
    count = count_dataset_examples(str(tmp_path))
    given = {"user_uploaded": {}, "example_count": str(count)}
    secure.datasets.create(dataset_id="shards", dataset=given)
    upload_dataset_shards(secure, "shards", str(tmp_path))
    found = secure.datasets.get("shards")
    assert (found.state, found.example_count) == ("READY", "4")
    urls = secure.datasets.get_download_endpoint("shards").filename_to_signed_urls
    assert sorted(urls) == ["a.jsonl", "b.jsonl"]
    with httpx.Client() as http:
        assert http.get(urls["b.jsonl"]).text == jsonl(ROWS)


def test_a_request_too_many_is_told_when_to_come_again(secure: Any):
    """Contract check 21."""

    def ask(_: int) -> Exception | None:
        try:
            secure.chat.completions.create(
                model=BASE, messages=[{"role": "user", "content": "2+2?"}], max_tokens=64
            )
        except fireworks.RateLimitError as error:
            return error
        return None

    with ThreadPoolExecutor(12) as pool:
        refused = [error for error in pool.map(ask, range(12)) if error is not None]
    assert 0 < len(refused) < 12
    for error in refused:
        assert int(error.response.headers["retry-after"]) >= 1
