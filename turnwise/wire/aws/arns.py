"""SageMaker's ARNs that are read: of jobs, model packages, their groups, hubs' contents. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from turnwise import errors
from turnwise.domain.job import Job, JobKind

CATEGORY = "AgentRFT"
EVALUATION_CATEGORY = "AgentRFTEvaluation"
_JOB = re.compile(
    r"arn:aws[a-z-]*:sagemaker:(?P<region>[a-z0-9-]*):(?P<number>[0-9]{12})"
    r":job/(?P<category>[a-zA-Z0-9_-]+)/(?P<name>[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62})"
)

_PACKAGE = re.compile(
    r"arn:aws[a-z-]*:sagemaker:(?P<region>[a-z0-9-]*):(?P<number>[0-9]{12})"
    r":model-package/(?P<group>[a-zA-Z0-9](-*[a-zA-Z0-9]){0,79})/(?P<version>[1-9][0-9]{0,8})"
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
    def of(cls, job: Job, region: str, number: str) -> JobArn:
        """The address of a job of the account with that number."""
        is_evaluation = job.spec.kind is JobKind.EVALUATION
        category = EVALUATION_CATEGORY if is_evaluation else CATEGORY
        return cls(region=region, number=number, name=job.name, category=category)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPackageArn:
    """A registered model's address: region, account number, group and version.

    >>> str(ModelPackageArn(region="us-west-2", number="000000000001", group="walk", version=3))
    'arn:aws:sagemaker:us-west-2:000000000001:model-package/walk/3'
    """

    region: str
    number: str  # the account's, 12 digits
    group: str
    version: int

    @classmethod
    def parse(cls, text: str) -> ModelPackageArn:
        """Read an ARN. Raises `InvalidInput`.

        >>> ModelPackageArn.parse("arn:aws:sagemaker::000000000001:model-package/walk/3").version
        3
        """
        found = _PACKAGE.fullmatch(text)
        if found is None:
            raise errors.InvalidInput(
                "model",
                text,
                "is not a model package's ARN",
                remedy="arn:aws:sagemaker:<region>:<account>:model-package/<group>/<version>",
            )
        region, number, group = found["region"], found["number"], found["group"]
        return cls(region=region, number=number, group=group, version=int(found["version"]))

    def __str__(self) -> str:
        package = f"model-package/{self.group}/{self.version}"
        return f"arn:aws:sagemaker:{self.region}:{self.number}:{package}"


_GROUP = re.compile(
    r"arn:aws[a-z-]*:sagemaker:(?P<region>[a-z0-9-]*):(?P<number>[0-9]{12})"
    r":model-package-group/(?P<name>[a-zA-Z0-9](-*[a-zA-Z0-9]){0,79})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPackageGroupArn:
    """A group's address: region, account number and name.

    >>> str(ModelPackageGroupArn(region="us-west-2", number="000000000001", name="walk"))
    'arn:aws:sagemaker:us-west-2:000000000001:model-package-group/walk'
    """

    region: str
    number: str  # the account's, 12 digits
    name: str

    @classmethod
    def parse(cls, text: str, field: str = "ModelPackageGroupName") -> ModelPackageGroupArn:
        """Read an ARN. Raises `InvalidInput` for `field`.

        >>> arn = "arn:aws:sagemaker:us-west-2:000000000001:model-package-group/walk"
        >>> ModelPackageGroupArn.parse(arn).name
        'walk'
        """
        found = _GROUP.fullmatch(text)
        if found is None:
            raise errors.InvalidInput(
                field,
                text,
                "is not a model package group's ARN",
                remedy="arn:aws:sagemaker:<region>:<account>:model-package-group/<name>",
            )
        return cls(region=found["region"], number=found["number"], name=found["name"])

    def __str__(self) -> str:
        return f"arn:aws:sagemaker:{self.region}:{self.number}:model-package-group/{self.name}"


#: The hub of the base models, whose owner is written as `aws`.
PUBLIC_HUB = "SageMakerPublicHub"

_HUB_CONTENT = re.compile(
    r"arn:aws[a-z-]*:sagemaker:(?P<region>[a-z0-9-]*):(?P<owner>aws|[0-9]{12})"
    r":hub-content/(?P<hub>[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62})/(?P<kind>[a-zA-Z]+)"
    r"/(?P<name>[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62})(/(?P<version>\d{1,4}\.\d{1,4}\.\d{1,4}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubContentArn:
    """The address of a hub's content. `owner` is an account number, or "aws" for the base models.

    An empty version stands for the newest.

    >>> str(HubContentArn(region="us-west-2", kind="Model", name="tiny", version="1.0.0"))
    'arn:aws:sagemaker:us-west-2:aws:hub-content/SageMakerPublicHub/Model/tiny/1.0.0'
    """

    region: str
    kind: str  # "Model", "DataSet" ...
    name: str
    version: str = ""
    hub: str = PUBLIC_HUB
    owner: str = "aws"

    @classmethod
    def parse(cls, text: str, field: str = "HubContentArn") -> HubContentArn:
        """Read an ARN. Raises `InvalidInput` for `field`.

        >>> arn = "arn:aws:sagemaker:us-west-2:000000000001:hub-content/Mine/DataSet/walks/2.0.0"
        >>> HubContentArn.parse(arn).hub, HubContentArn.parse(arn).version
        ('Mine', '2.0.0')
        """
        found = _HUB_CONTENT.fullmatch(text)
        if found is None:
            raise errors.InvalidInput(
                field,
                text,
                "is not the ARN of a hub's content",
                remedy="arn:aws:sagemaker:<region>:<account>:hub-content/<hub>/<type>/<name>/"
                "<version>",
            )
        parts = {name: found[name] or "" for name in ("region", "owner", "hub", "kind", "name")}
        return cls(version=found["version"] or "", **parts)

    def __str__(self) -> str:
        place = f"hub-content/{self.hub}/{self.kind}/{self.name}"
        version = f"/{self.version}" if self.version else ""
        return f"arn:aws:sagemaker:{self.region}:{self.owner}:{place}{version}"
