from __future__ import annotations

import json

import pytest

from turnwise import errors
from turnwise.wire.openai import faults

SAID = {
    errors.InvalidInput: errors.InvalidInput("n", 2, "is too many"),
    errors.PromptTooLong: errors.PromptTooLong("messages", 9, "tokens do not fit"),
    errors.NotFound: errors.NotFound("model", "gpt"),
}


def every_error(
    kind: type[errors.TurnwiseError] = errors.TurnwiseError,
) -> list[errors.TurnwiseError]:
    here = SAID[kind] if kind in SAID else kind("it is so")
    below = [sub for sub in kind.__subclasses__() if sub.__module__ == errors.__name__]
    return [here, *(found for sub in below for found in every_error(sub))]


@pytest.mark.parametrize("error", every_error(), ids=lambda e: type(e).__name__)
def test_every_error_has_both_messages_and_a_status(error: errors.TurnwiseError):
    body = json.loads(faults.body_of(error))
    assert body["message"] == body["error"]["message"] == str(error)
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    assert 400 <= faults.fault_of(error).status < 600


def test_what_we_did_not_foresee_tells_nothing_about_us():
    error = KeyError("secret path")
    assert faults.fault_of(error).status == 500
    assert json.loads(faults.body_of(error))["message"] == "internal error"


def test_retry_after_is_at_least_a_second():
    assert faults.headers_of(errors.LimitExceeded("full", retry_after_s=0.2)) == (
        ("retry-after", "1"),
    )
    assert faults.headers_of(errors.Unavailable("down")) == ()
