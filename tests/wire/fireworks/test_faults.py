"""Every error of ours in the service's shape."""

import pytest

from turnwise import errors
from turnwise.wire.fireworks.faults import Code, Refused, fault


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidInput("epochs", 0, "is out of range"), 400, 3),
        (errors.NotFound("dataset", "rows"), 404, 5),
        (errors.Conflict("it runs"), 400, 9),
        (errors.Unauthenticated("no key"), 401, 16),
        (errors.Denied("this key may not"), 403, 7),
        (errors.LimitExceeded("too many"), 429, 8),
        (errors.Unavailable("gone"), 503, 14),
        (errors.StorageFull("full"), 429, 8),
        (errors.Corrupted("changed"), 500, 13),
        (ValueError("secret"), 500, 13),
        (Refused(Code.ALREADY_EXISTS, "it exists"), 409, 6),
        (Refused(Code.UNIMPLEMENTED, "not here"), 501, 12),
    ],
)
def test_an_error_has_the_status_and_the_number_of_its_kind(
    error: Exception, status: int, code: int
):
    found, body, _ = fault(error)
    assert (found, body["code"]) == (status, code)
    assert body["details"][0]["reason"] in Code.__members__


def test_what_went_wrong_inside_is_not_told():
    assert fault(ValueError("secret"))[1]["message"] == "internal error"


def test_what_is_taken_is_not_to_be_tried_again():
    assert fault(Refused(Code.ALREADY_EXISTS, "it exists"))[2] == {"x-should-retry": "false"}
    assert fault(errors.StorageFull("full"))[2]["x-should-retry"] == "false"


def test_who_asks_for_too_much_is_told_when_to_come_back():
    assert fault(errors.LimitExceeded("full", retry_after_s=1.2))[2] == {"retry-after": "2"}
    assert fault(errors.LimitExceeded("full"))[2] == {"retry-after": "30"}
    assert fault(errors.Unavailable("down", retry_after_s=3))[2] == {"retry-after": "3"}


def test_a_bad_field_is_named_apart():
    _, body, _ = fault(errors.InvalidInput("epochs", 0, "is out of range"))
    assert body["details"][0]["metadata"] == {"field": "epochs"}
