"""S3's XML, in and out. Pure.

An answer is written from pairs: ("Name", "text"), or ("Name", [pairs]) for what is inside it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from turnwise.wire.aws.service import AwsError

_SPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'

#: Characters that XML cannot hold as they are; S3 writes references, as of "\r" everybody does.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]")

#: Ten thousand parts with checksums are 3 MB.
MAX_BYTES = 8 * 1024 * 1024

Content = str | int | bool | Iterable[tuple[str, "Content"]]


def document(name: str, content: Content) -> bytes:
    """A whole answer.

    >>> document("A", [("B", "x<y"), ("C", 1), ("C", True)]).decode().splitlines()[1][51:]
    '<B>x&lt;y</B><C>1</C><C>true</C></A>'
    """
    return f'{_HEAD}<{name} xmlns="{_SPACE}">{_inside(content)}</{name}>'.encode()


def fault(code: str, message: str, resource: str, request_id: str) -> bytes:
    """An error. Without the namespace, as S3's are."""
    content = (
        ("Code", code),
        ("Message", message),
        ("Resource", resource),
        ("RequestId", request_id),
    )
    return f"{_HEAD}<Error>{_inside(content)}</Error>".encode()


def _inside(content: Content) -> str:
    if isinstance(content, bool):
        return "true" if content else "false"
    if isinstance(content, str | int):
        return _CONTROL.sub(lambda found: f"&#x{ord(found[0]):x};", escape(str(content)))
    return "".join(f"<{name}>{_inside(inner)}</{name}>" for name, inner in content)


def timestamp(seconds: float) -> str:
    """As S3 writes times in XML, in whole seconds.

    >>> timestamp(0.9)
    '1970-01-01T00:00:00.000Z'
    """
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


class _Builder(ElementTree.TreeBuilder):
    """Refuses documents that declare entities, before any is expanded; in every encoding."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise malformed("has a document type")


class Element:
    """A request's XML; names are looked up whatever their namespace is."""

    def __init__(self, element: ElementTree.Element) -> None:
        self._element = element

    @classmethod
    def parse(cls, body: bytes, name: str) -> Element:
        """Read a body whose outermost element has that name. Raises `AwsError`."""
        if len(body) > MAX_BYTES:
            raise malformed(f"is larger than {MAX_BYTES} bytes")
        try:
            # Whatever encoding it declares: in another one, what is looked for would be hidden.
            text = body.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise malformed("is not UTF-8") from None
        try:
            element = ElementTree.fromstring(text, ElementTree.XMLParser(target=_Builder()))
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise malformed(f"is not XML: {error}") from None
        if _local(element) != name:
            raise malformed(f"must be a {name}")
        return cls(element)

    def all(self, name: str) -> Iterator[Element]:
        """The elements of that name right inside this one."""
        return (Element(each) for each in self._element if _local(each) == name)

    def text(self, name: str, default: str | None = None) -> str:
        """The text of the first element of that name. Raises `AwsError` without a default."""
        found = next(self.all(name), None)
        if found is not None:
            return found._element.text or ""
        if default is None:
            raise malformed(f"lacks {name} in {_local(self._element)}")
        return default


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def malformed(reason: str) -> AwsError:
    """The error for a body that is not as S3 describes it."""
    return AwsError("MalformedXML", f"the body {reason}")
