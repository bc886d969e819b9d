"""Datasets: made, filled in either way, read back and removed."""

import httpx
import pytest

from tests.builders import ACCOUNT
from tests.wire.fireworks.kit import HOME, Place, a_dataset, message_of, rows_text
from turnwise.domain.access import Action
from turnwise.wire.fireworks.uploads import EXPIRES_S

DATASETS = f"{HOME}/datasets"


@pytest.mark.parametrize(
    "dataset",
    [
        {
            "displayName": "Rows",
            "evalProtocol": {},
            "format": "FORMAT_UNSPECIFIED",
            "exampleCount": "2",
        },
        {"format": "CHAT", "example_count": 2},
    ],
)
async def test_a_dataset_is_made_as_each_client_says_it_and_its_rows_are_counted_here(
    api: httpx.AsyncClient, dataset: dict[str, object]
):
    made = await api.post(DATASETS, json={"dataset": dataset, "datasetId": "rows"})
    assert (made.json()["name"], made.json()["state"]) == (
        "accounts/default/datasets/rows",
        "UPLOADING",
    )
    sent = await api.post(f"{DATASETS}/rows:upload", files={"file": ("a.jsonl", rows_text())})
    assert sent.json()["bytes"] == len(rows_text())
    found = (await api.get(f"{DATASETS}/rows")).json()
    assert (found["state"], found["exampleCount"]) == ("READY", "4")
    assert found["format"] == dataset["format"]


async def test_a_form_is_read_whether_its_part_has_a_content_type_or_not(
    api: httpx.AsyncClient, place: Place
):
    await api.post(DATASETS, json={"dataset": {}, "datasetId": "rows"})
    for head in ("", "Content-Type: application/octet-stream\r\n"):
        form = (
            '--x"y\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x"y\r\n'
            f'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n{head}\r\n'
            '{"messages": []}\r\n--x"y--\r\n'
        )
        sent = await api.post(
            f"{DATASETS}/rows:upload",
            content=form.encode(),
            headers={"Content-Type": 'multipart/form-data; boundary="x\\"y"'},
        )
        assert sent.status_code == 200, sent.text
        _, file = await place.world.buckets.get(ACCOUNT, "turnwise-datasets", "rows/a.jsonl")
        assert file.read_text() == '{"messages": []}'


@pytest.mark.parametrize(
    ("content_type", "form", "said"),
    [
        ("application/json", "{}", "is not a form"),
        ("multipart/form-data; boundary=x", "", "is empty"),
        ("multipart/form-data; boundary=x", "--x\r\n\r\n\r\n--x--", "is not in the form"),
        ("multipart/form-data; boundary=x", "--x\r\nContent-Disposition: y", "is not in the form"),
        (
            "multipart/form-data; boundary=x",
            '--x\r\nContent-Disposition: form-data; name="file"; y="'
            + ";" * 8192
            + '"\r\n\r\na\r\n--x',
            "is not in the form",
        ),
        (
            "multipart/form-data; boundary=x",
            '--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nno end',
            "is not in the form",
        ),
        (
            "multipart/form-data; boundary=x",
            '--x\r\nContent-Disposition: form-data; name="file"; filename="../a"\r\n\r\na\r\n--x--',
            "is not the name of a file here",
        ),
    ],
)
async def test_a_form_that_is_broken_leaves_the_rows_as_they_were(
    api: httpx.AsyncClient, content_type: str, form: str, said: str
):
    await a_dataset(api)
    sent = await api.post(
        f"{DATASETS}/rows:upload", content=form, headers={"Content-Type": content_type}
    )
    assert said in message_of(sent, 400)
    found = (await api.get(f"{DATASETS}/rows")).json()
    assert (found["state"], found["exampleCount"]) == ("READY", "4")


async def test_files_are_put_at_signed_addresses_without_a_key_and_read_back(
    api: httpx.AsyncClient, place: Place
):
    await api.post(DATASETS, json={"dataset": {}, "datasetId": "rows"})
    text = rows_text()
    asked = {"filenameToSize": {"a b.jsonl": str(len(text)), "b.jsonl": len(text)}}
    refused = await api.post(f"{DATASETS}/rows:getUploadEndpoint", json=asked)
    assert "'a b.jsonl' is not the name of a file here" in message_of(refused, 400)
    asked = {"filenameToSize": {"a.jsonl": str(len(text)), "b.jsonl": len(text)}}
    urls = (await api.post(f"{DATASETS}/rows:getUploadEndpoint", json=asked)).json()
    assert set(urls["filenameToSignedUrls"]) == {"a.jsonl", "b.jsonl"}
    async with place.client() as nobody:
        for url in urls["filenameToSignedUrls"].values():
            validated = await api.post(f"{DATASETS}/rows:validateUpload", json={})
            assert "upload it before it is validated" in message_of(validated, 400)
            sent = await nobody.put(url, content=text, headers=range_of(len(text)))
            assert sent.status_code == 200, sent.text
        assert (await api.post(f"{DATASETS}/rows:validateUpload", json={})).json() == {}
        found = (await api.get(f"{DATASETS}/rows")).json()
        assert (found["state"], found["exampleCount"]) == ("READY", "8")
        back = (await api.get(f"{DATASETS}/rows:getDownloadEndpoint")).json()
        assert (await nobody.get(back["filenameToSignedUrls"]["b.jsonl"])).text == text


async def test_files_that_are_announced_anew_take_the_place_of_others(
    api: httpx.AsyncClient, place: Place
):
    await a_dataset(api)
    asked = {"filenameToSize": {"new.jsonl": 3}}
    await api.post(f"{DATASETS}/rows:getUploadEndpoint", json=asked)
    found = (await api.get(f"{DATASETS}/rows")).json()
    assert (found["state"], found["exampleCount"]) == ("UPLOADING", "0")
    assert await place.world.buckets.all_below(ACCOUNT, "turnwise-datasets", "") == []


def range_of(size: int) -> dict[str, str]:
    return {"X-Goog-Content-Length-Range": f"{size},{size}"}


async def test_a_signed_address_is_good_for_one_file_of_one_size_and_for_an_hour(
    api: httpx.AsyncClient, place: Place
):
    for id in ("rows", "other"):
        await api.post(DATASETS, json={"dataset": {}, "datasetId": id})
    asked = {"filenameToSize": {"a.jsonl": 3}}
    answer = await api.post(f"{DATASETS}/rows:getUploadEndpoint", json=asked)
    url = answer.json()["filenameToSignedUrls"]["a.jsonl"]
    async with place.client() as nobody:
        for other in (
            url.replace("a.jsonl", "b.jsonl"),
            url.replace("size=3", "size=4"),
            url.replace("/rows/", "/other/"),
            url.replace("/datasets/", "/evaluators/"),
            url.partition("&token")[0],
        ):
            size = 4 if "size=4" in other else 3
            sent = await nobody.put(other, content="x" * size, headers=range_of(size))
            assert "ask for a new one" in message_of(sent, 401)
        for content, headers in (("four", range_of(3)), ("fo", range_of(3)), ("foo", {})):
            message_of(await nobody.put(url, content=content, headers=headers), 400)
        message_of(await nobody.get(url), 401)
        assert (await api.get(f"{DATASETS}/rows")).json()["exampleCount"] == "0"
        place.world.clock.at += EXPIRES_S
        message_of(await nobody.put(url, content="foo", headers=range_of(3)), 401)


async def test_a_signed_address_ends_with_its_key(api: httpx.AsyncClient, place: Place):
    await api.post(DATASETS, json={"dataset": {}, "datasetId": "rows"})
    asked = {"filenameToSize": {"a.jsonl": 3}}
    answer = await api.post(f"{DATASETS}/rows:getUploadEndpoint", json=asked)
    url = answer.json()["filenameToSignedUrls"]["a.jsonl"]
    for key in await place.keyring.keys(ACCOUNT):
        await place.keyring.revoke(ACCOUNT, key.key_id)
    async with place.client() as nobody:
        message_of(await nobody.put(url, content="foo", headers=range_of(3)), 401)


async def test_what_is_no_list_of_files_gets_no_addresses(api: httpx.AsyncClient):
    await api.post(DATASETS, json={"dataset": {}, "datasetId": "rows"})
    for sizes in (None, {}, [], {"a.jsonl": 0}, {"a.jsonl": "x"}, {"a/b": 1}, {"..": 1}):
        sent = await api.post(f"{DATASETS}/rows:getUploadEndpoint", json={"filenameToSize": sizes})
        assert "filename_to_size" in message_of(sent, 400) or "a.jsonl" in sent.text


async def test_a_dataset_is_changed_listed_and_deleted_with_its_files(
    api: httpx.AsyncClient, place: Place
):
    await a_dataset(api)
    await a_dataset(api, "a-second")
    changed = await api.patch(f"{DATASETS}/rows", json={"displayName": "Better"})
    assert changed.json()["displayName"] == "Better"
    listed = (await api.get(DATASETS, params={"filter": 'displayName="Better"'})).json()
    assert [each["name"] for each in listed["datasets"]] == ["accounts/default/datasets/rows"]
    assert (await api.delete(f"{DATASETS}/rows")).json() == {}
    message_of(await api.get(f"{DATASETS}/rows"), 404)
    [left] = await place.world.buckets.all_below(ACCOUNT, "turnwise-datasets", "")
    assert left.key == "a-second/rows.jsonl"


async def test_a_second_upload_takes_the_place_of_the_first(api: httpx.AsyncClient, place: Place):
    await a_dataset(api)
    await api.post(f"{DATASETS}/rows:upload", files={"file": ("new.jsonl", b'{"messages": []}\n')})
    assert (await api.get(f"{DATASETS}/rows")).json()["exampleCount"] == "1"
    [left] = await place.world.buckets.all_below(ACCOUNT, "turnwise-datasets", "")
    assert left.key == "rows/new.jsonl"


@pytest.mark.parametrize("id", ["", "Rows", "1rows", "rows-", "r" * 64, "a:b", "a/b"])
async def test_an_id_that_is_none_is_refused(api: httpx.AsyncClient, id: str):
    made = await api.post(DATASETS, json={"dataset": {}, "datasetId": id})
    assert "is not an id" in message_of(made, 400)


async def test_an_id_of_63_characters_is_found_with_a_verb_behind_it(api: httpx.AsyncClient):
    id = "a-" + "b" * 61
    await a_dataset(api, id)
    assert (await api.get(f"{DATASETS}/{id}:getDownloadEndpoint")).status_code == 200


async def test_rows_that_are_elsewhere_are_refused(api: httpx.AsyncClient):
    for given in (
        {"dataset": {"externalUrl": "gs://x"}, "datasetId": "rows"},
        {"dataset": {}, "datasetId": "rows", "sourceDatasetId": "x"},
        {"dataset": [], "datasetId": "rows"},
        ["dataset"],
        "dataset",
    ):
        message_of(await api.post(DATASETS, json=given), 400)
    assert (await api.get(DATASETS)).json()["totalSize"] == 0


async def test_a_body_that_nothing_could_store_is_refused(api: httpx.AsyncClient):
    for content in (b'{"dataset": "\\ud800"}', b"\xff", b"{", b"[" * 100_000):
        message_of(await api.post(DATASETS, content=content), 400)


async def test_a_key_that_may_only_read_makes_nothing(api: httpx.AsyncClient, place: Place):
    await a_dataset(api)
    async with place.client(await place.key(actions=[Action.READ])) as reader:
        assert (await reader.get(f"{DATASETS}/rows")).status_code == 200
        for refused in (
            await reader.post(DATASETS, json={"dataset": {}, "datasetId": "mine"}),
            await reader.post(f"{DATASETS}/rows:upload", files={"file": ("a.jsonl", b"{}")}),
            await reader.post(f"{DATASETS}/rows:getUploadEndpoint", json={}),
            await reader.post(f"{DATASETS}/rows:validateUpload", json={}),
            await reader.patch(f"{DATASETS}/rows", json={}),
            await reader.delete(f"{DATASETS}/rows"),
        ):
            message_of(refused, 403)
    assert (await api.get(f"{DATASETS}/rows")).json()["exampleCount"] == "4"
