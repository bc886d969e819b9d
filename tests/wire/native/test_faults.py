from collections.abc import Iterator

import pytest

from turnwise import errors
from turnwise.wire.native.faults import STATUS, fault


def family(cls: type[errors.TurnwiseError]) -> Iterator[type[errors.TurnwiseError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from family(child)


EVERY_ERROR = list(family(errors.TurnwiseError))


@pytest.mark.parametrize("cls", EVERY_ERROR)
def test_every_error_has_its_familys_row(cls: type[errors.TurnwiseError]):
    row = next(ancestor for ancestor in cls.__mro__ if ancestor in STATUS)
    assert row is not errors.TurnwiseError or cls is errors.TurnwiseError


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (
            errors.PromptTooLong("prompt", 9, "is too long", remedy="send at most 8 tokens"),
            (
                400,
                {
                    "type": "PromptTooLong",
                    "message": "prompt: 9 is too long; send at most 8 tokens",
                    "field": "prompt",
                    "value": "9",
                    "reason": "is too long",
                    "remedy": "send at most 8 tokens",
                },
                {},
            ),
        ),
        (
            errors.NotFound("job", "walk"),
            (
                404,
                {
                    "type": "NotFound",
                    "message": "job 'walk' does not exist",
                    "kind": "job",
                    "id": "walk",
                },
                {},
            ),
        ),
        (
            errors.NotInValidStatus("the rollout is closed"),
            (409, {"type": "NotInValidStatus", "message": "the rollout is closed"}, {}),
        ),
        (
            errors.Unauthenticated("no key"),
            (
                401,
                {"type": "Unauthenticated", "message": "no key"},
                {"WWW-Authenticate": "Bearer"},
            ),
        ),
        (
            errors.LimitExceeded("full", retry_after_s=0.3),
            (
                429,
                {"type": "LimitExceeded", "message": "full", "retry_after_s": 0.3},
                {"Retry-After": "1"},
            ),
        ),
        (
            errors.ProcessDied("the engine died"),
            (
                503,
                {"type": "ProcessDied", "message": "the engine died", "retry_after_s": None},
                {},
            ),
        ),
        (
            errors.Corrupted("hash"),
            (500, {"type": "Corrupted", "message": "hash"}, {}),
        ),
    ],
)
def test_an_error_is_told_with_what_a_client_needs_to_raise_it_again(
    error: errors.TurnwiseError, answer: tuple[int, dict[str, object], dict[str, str]]
):
    status, body, headers = answer
    assert fault(error) == (status, {"error": body}, headers)
