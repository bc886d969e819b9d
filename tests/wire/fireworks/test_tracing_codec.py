"""What the gateway's paths say, and frames that hold tokens."""

from __future__ import annotations

import pytest

from turnwise.wire.fireworks import zstd
from turnwise.wire.fireworks.tracing_codec import CHAT, GatewayPath


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/chat",
        "/foo/chat/completions",
        "/foo/rollout_id/a/chat/completions",
        "/rollout_id/chat/completions",
        "/rollout_id//chat/completions",
        "/rollout_id/a/run_id/chat/completions",
        "/api/v1/jobs/walk/logs",
        "/rollout_id/a/logs",
        "/prechat/completions",
        "/v1/traces",
        "/project_id/chat/completions",
    ],
)
def test_what_is_not_of_the_gateway_is_left_to_others(path: str):
    assert GatewayPath.of(path) is None


@pytest.mark.parametrize(
    ("path", "tags"),
    [
        ("/rollout_id/a/chat/completions", ("rollout_id:a",)),
        ("/run_id/r/row_id/1/chat/completions", ("run_id:r", "row_id:1")),
        # Out of their order they are part of a value.
        ("/run_id/r/rollout_id/1/chat/completions", ("run_id:r/rollout_id/1",)),
        ("/rollout_id/a/row_id/run_id/chat/completions", ("rollout_id:a", "row_id:run_id")),
        ("/rollout_id/chat/completions/chat/completions", ("rollout_id:chat/completions",)),
    ],
)
def test_a_value_goes_on_until_the_next_name(path: str, tags: tuple[str, ...]):
    assert GatewayPath.of(path) == GatewayPath(CHAT, tags)


def test_a_path_of_many_names_is_read_in_one_pass():
    values = "/a/rollout_id" * 20_000
    found = GatewayPath.of(f"/rollout_id{values}/b/chat/completions")
    assert found is not None
    assert found.tags == (f"rollout_id:{values[1:]}/b",)


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 128 * 1024 + 1, 3 * 128 * 1024])
def test_a_frame_is_read_block_by_block(size: int):
    """As RFC 8878, 3.1.1 has a decoder read it; eval-protocol's own reads it in its tests."""
    content = bytes(n % 251 for n in range(size))
    frame = zstd.frame(content)
    assert frame[:5].hex() == "28b52ffda0"
    assert int.from_bytes(frame[5:9], "little") == size
    held, at, is_last = b"", 9, False
    while not is_last:
        head = int.from_bytes(frame[at : at + 3], "little")
        is_last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        assert kind == 0
        assert length <= 128 * 1024
        held, at = held + frame[at + 3 : at + 3 + length], at + 3 + length
    assert at == len(frame)
    assert held == content
