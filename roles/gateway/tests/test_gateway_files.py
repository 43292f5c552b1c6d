"""Files and vector stores, asked as a caller does: what is uploaded is found, quoted, and gone when it is deleted."""

import time
import uuid

import pytest


@pytest.fixture(scope="module", autouse=True)
def there(host, site):
    if "\nfiles:" not in host.file(f"{site['citadel_root']}/config/citadel.yaml").content_string:
        pytest.skip("this site keeps no files (gateway_files)")


def asked(caller, method, path, **body):
    answer = caller.request(method, path, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def word():
    """One that no other document has."""
    return f"quoll{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def file(caller, word):
    text = f"The number of the store room is {word}.\n\nLeave is thirty days a year.\n"
    made = asked(
        caller, "POST", "/v1/files", data={"purpose": "assistants"}, files={"file": ("handbook.md", text.encode())}
    )
    yield made
    caller.delete(f"/v1/files/{made['id']}")


@pytest.fixture(scope="module")
def store(caller, file):
    made = asked(caller, "POST", "/v1/vector_stores", json={"name": "conformance", "file_ids": [file["id"]]})
    try:
        path, end = f"/v1/vector_stores/{made['id']}", time.monotonic() + 120
        while asked(caller, "GET", path)["file_counts"]["in_progress"]:
            assert time.monotonic() < end, asked(caller, "GET", f"{path}/files")
            time.sleep(0.2)
        assert asked(caller, "GET", path)["file_counts"]["completed"] == 1, asked(caller, "GET", f"{path}/files")
        yield path
    finally:
        caller.delete(f"/v1/vector_stores/{made['id']}")


def test_the_contents_are_the_services_alone(host, site, file):
    folder = host.file(f"{site['citadel_root']}/data/files")
    assert (folder.user, folder.group, oct(folder.mode)) == (site["citadel_user"], site["citadel_group"], "0o700")
    assert host.check_output(f"find {folder.path} -type f ! -user {site['citadel_user']}") == ""


def test_what_was_uploaded_is_found_by_what_it_says(caller, store, file, word):
    found = asked(caller, "POST", f"{store}/search", json={"query": f"Which store room is {word}?"})["data"]
    assert (found[0]["file_id"], found[0]["filename"]) == (file["id"], "handbook.md")
    assert word in found[0]["content"][0]["text"]


def test_a_model_is_given_what_was_found_and_the_answer_quotes_the_file(caller, store, file, writers):
    answer = asked(
        caller, "POST", "/v1/responses",
        json={
            "model": writers[0]["name"],
            "input": "How many days of leave are there?",
            "max_output_tokens": 8,
            "tools": [{"type": "file_search", "vector_store_ids": [store.rsplit("/", 1)[1]]}],
        },
    )  # fmt: skip
    quoted = [one["file_id"] for part in answer["output"][-1]["content"] for one in part["annotations"]]
    assert file["id"] in quoted


def test_a_file_that_is_deleted_is_found_no_more(caller, store, file, word):
    asked(caller, "DELETE", f"/v1/files/{file['id']}")
    found = asked(caller, "POST", f"{store}/search", json={"query": word})["data"]
    assert [one for one in found if one["file_id"] == file["id"]] == []
    assert caller.get(f"/v1/files/{file['id']}").status_code == 404
