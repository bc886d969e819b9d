import hashlib
import re

from turnwise.dashboard.pages import STATIC


def test_vendored_files_are_what_their_list_says():
    table = (STATIC / "vendor" / "VENDOR.md").read_text()
    listed = dict(re.findall(r"^\| (\S+) \|.*\| ([0-9a-f]{64}) \|$", table, re.MULTILINE))
    files = [file for file in (STATIC / "vendor").iterdir() if file.suffix in (".js", ".css")]
    assert {file.name for file in files} == set(listed)
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == listed[file.name], file.name
