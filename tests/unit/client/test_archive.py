import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from turnwise import errors
from turnwise.client import Client
from turnwise.client.archive import unpack

CONTENT = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40}


def packed(contents: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def in_pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[i : i + size] for i in range(0, len(content), size))


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_folder_is_written_as_its_pieces_come(size: int, tmp_path: Path):
    folder = tmp_path / "new" / "tuned"
    unpack(in_pieces(packed(CONTENT), size), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == CONTENT
    assert list(folder.parent.iterdir()) == [folder]


def test_what_is_cut_short_leaves_nothing(tmp_path: Path):
    with pytest.raises(errors.Unavailable, match="archive cannot be read: unexpected end of data"):
        unpack(in_pieces(packed(CONTENT)[:5000], 1000), tmp_path / "tuned")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_came_into_being_meanwhile_is_left_alone(tmp_path: Path):
    def pieces() -> Iterator[bytes]:
        yield packed(CONTENT)
        (tmp_path / "tuned").mkdir()

    with pytest.raises(errors.InvalidInput, match=r"folder: '.*tuned' exists; name a new folder"):
        unpack(pieces(), tmp_path / "tuned")
    assert [file.name for file in tmp_path.iterdir()] == ["tuned"]
    assert list((tmp_path / "tuned").iterdir()) == []


def test_a_file_that_would_leave_the_folder_is_refused(tmp_path: Path):
    with pytest.raises(errors.Unavailable, match="outside the destination"):
        unpack(iter([packed({"../escaped": b""})]), tmp_path / "inner" / "tuned")
    assert [file.name for file in tmp_path.iterdir()] == ["inner"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.Unavailable, match="file/tuned cannot be written: Not a directory"):
        unpack(iter([packed(CONTENT)]), tmp_path / "file" / "tuned")


class _BreaksOff(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = packed(CONTENT)
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:5000])

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_transfer_that_breaks_off_leaves_nothing(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    with HTTPServer(("127.0.0.1", 0), _BreaksOff) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with (
            Client(url, "key") as client,
            pytest.raises(errors.Unavailable, match="the transfer of walk/1 broke off"),
        ):
            client.export_model("walk/1", tmp_path / "tuned", progress=lambda *at: seen.append(at))
        answering.join()
    assert list(tmp_path.iterdir()) == []
    assert seen[-1] == (5000, len(packed(CONTENT)))
