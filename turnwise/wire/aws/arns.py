"""Names of jobs as AWS writes them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from turnwise import errors

CATEGORY = "AgentRFT"
_JOB = re.compile(
    r"arn:aws[a-z-]*:sagemaker:(?P<region>[a-z0-9-]*):(?P<number>[0-9]{12})"
    r":job/(?P<category>[a-zA-Z0-9_-]+)/(?P<name>[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobArn:
    """A job's address: region, account number, category and job name.

    >>> str(JobArn(region="us-west-2", number="000000000001", name="walk"))
    'arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/walk'
    """

    region: str
    number: str  # the account's, 12 digits
    name: str
    category: str = CATEGORY

    @classmethod
    def parse(cls, text: str) -> JobArn:
        """Read an ARN. Raises `InvalidInput`.

        >>> JobArn.parse("arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/walk").name
        'walk'
        """
        found = _JOB.fullmatch(text)
        if found is None:
            raise errors.InvalidInput(
                "JobArn",
                text,
                "is not a job's ARN",
                remedy=f"arn:aws:sagemaker:<region>:<account>:job/{CATEGORY}/<job name>",
            )
        parts = found.groupdict()
        return cls(**parts)

    def __str__(self) -> str:
        return f"arn:aws:sagemaker:{self.region}:{self.number}:job/{self.category}/{self.name}"
