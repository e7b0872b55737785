"""Fetching checkpoints from servers good and bad: the right bytes arrive, or nothing does."""

import base64
import hashlib
import json
import os
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import geopose
from geopose.checkpoints.remote import download as downloads
from geopose.checkpoints.remote.download import Patience
from geopose.checkpoints.remote.fetch import Source, cached_path, fetch, fetch_all
from geopose.errors import InputError, RunError
from tests.file_server import FileServer, cut_off, ranges, silence, stall, status, whole

BODY = os.urandom(300_000)
DIGEST = hashlib.sha256(BODY).hexdigest()
HASTE = Patience(timeout_s=0.2, delays_s=(0.0,) * 3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


def get(url: str, sha256: str | None = None) -> Path:
    return fetch_all([Source(url, sha256)], HASTE)[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_whole(cache: Path, name: str = "a.pth") -> None:
    """The file, its hash, and nothing else."""
    assert names(cache) == [name, f"{name}.sha256"]
    assert (cache / name).read_bytes() == BODY
    checked = subprocess.run(["sha256sum", "--check", f"{name}.sha256"], cwd=cache, check=False)
    assert checked.returncode == 0


def test_a_file_is_fetched_once(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with FileServer(whole(BODY)) as server:
        assert get(server.url("1.0/a.pth?download=1")) == cache / "a.pth"
        assert get(server.url("1.0/a.pth?download=1")) == cache / "a.pth"
    assert len(server.requests) == 1
    assert DIGEST in caplog.text
    assert_whole(cache)


def test_demo_is_the_file_of_the_package_whatever_lies_here(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_bytes(BODY)
    assert fetch(Source("./demo")).read_bytes() == BODY
    assert not caplog.messages
    for _ in range(2):
        assert fetch(Source("demo")) == Path(geopose.__file__).parent / "demo/demo.pth"
    (message,) = caplog.messages
    assert "give ./demo" in message
    with pytest.raises(InputError, match="wanted"):
        fetch(Source("demo", DIGEST))
    assert not cache.exists()


@pytest.mark.parametrize(
    "failure",
    [
        cut_off(BODY, 100_000), stall(BODY, 100_000), cut_off(BODY, 0), silence, status(503),
        status(500), status(429, Retry_After=0),
    ],
    ids=["cut off", "stalled", "cut off at once", "silent", "503", "500", "429"],
)  # fmt: skip
@pytest.mark.parametrize("answer", [whole, ranges])
def test_what_breaks_off_is_tried_again(cache: Path, failure, answer) -> None:
    with FileServer(failure, failure, answer(BODY)) as server:
        get(server.url("a.pth"))
    assert len(server.requests) == 3
    assert_whole(cache)


@pytest.mark.parametrize("tag", [{"ETag": '"1"'}, {"Last_Modified": "then"}, {}])
def test_a_server_that_can_goes_on_where_it_broke_off(cache: Path, tag) -> None:
    with FileServer(cut_off(BODY, 100_000, **tag), ranges(BODY, **tag)) as server:
        get(server.url("a.pth"))
    assert [wanted for _, wanted in server.requests] == [None, "bytes=100000-"]
    assert_whole(cache)


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(cache: Path) -> None:
    tag = {"ETag": '"1"'}
    with FileServer(cut_off(BODY, 100_000, **tag), status(503)) as server:
        with pytest.raises(RunError, match=r"gave up.*503"):
            get(server.url("a.pth"))
        assert names(cache) == ["a.pth.part", "a.pth.part.json"]
        server.answers, server.requests = [ranges(BODY, **tag)], []
        get(server.url("a.pth"))
        assert [wanted for _, wanted in server.requests] == ["bytes=100000-"]
    assert_whole(cache)


@pytest.mark.parametrize(
    "second",
    [
        ranges(BODY, ETag='"2"'),
        ranges(BODY + b"more", ETag='"1"'),
        lambda request: request.reply(
            206, BODY[5:], Content_Length=len(BODY) - 5, ETag='"1"',
            Content_Range=f"bytes 5-{len(BODY) - 1}/{len(BODY)}",
        ),
        lambda request: request.reply(206, BODY[5:], Content_Length=len(BODY) - 5, ETag='"1"'),
        status(416),
    ],
    ids=["another version", "another length", "another part", "no word which part", "416"],
)  # fmt: skip
def test_parts_that_do_not_belong_together_are_not_joined(cache: Path, second) -> None:
    old = os.urandom(len(BODY))
    with FileServer(cut_off(old, 100_000, ETag='"1"'), second, whole(BODY)) as server:
        get(server.url("a.pth"))
    assert [wanted for _, wanted in server.requests] == [None, "bytes=100000-", None]
    assert_whole(cache)


def test_a_part_of_unknown_origin_is_not_used(cache: Path) -> None:
    cache.mkdir()
    (cache / "a.pth.part").write_bytes(b"x" * 1000)
    with FileServer(ranges(BODY)) as server:
        get(server.url("a.pth"))
    assert_whole(cache)


def test_a_part_that_was_complete(cache: Path) -> None:
    """As a process leaves it that dies between the last byte and the new name."""
    cache.mkdir()
    with FileServer(ranges(BODY)) as server:
        url = server.url("a.pth")
        (cache / "a.pth.part").write_bytes(BODY)
        note = {"url": url, "etag": None, "last_modified": None, "length": len(BODY)}
        (cache / "a.pth.part.json").write_text(json.dumps(note))
        get(url)
    assert [wanted for _, wanted in server.requests] == [f"bytes={len(BODY) - 1}-"]
    assert_whole(cache)


def test_a_server_that_promises_too_much(cache: Path) -> None:
    with (
        FileServer(cut_off(BODY + b"more", len(BODY))) as server,
        pytest.raises(RunError, match=rf"{len(BODY)} of {len(BODY) + 4} bytes"),
    ):
        get(server.url("a.pth"))
    assert "a.pth" not in names(cache)


@pytest.mark.parametrize("excess", [1, 100_000])
def test_a_server_that_sends_more_than_it_promised(cache: Path, excess: int) -> None:
    def answer(request):
        request.reply(200, BODY, Content_Length=len(BODY) - excess)

    with FileServer(answer) as server, pytest.raises(RunError, match=r"promised.*sends more"):
        get(server.url("a.pth"))
    assert names(cache) == []


def test_a_server_that_keeps_the_connection_open(cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(downloads, "SURPLUS_WAIT_S", 0.1)
    with FileServer(stall(BODY, len(BODY))) as server:
        get(server.url("a.pth"))
    assert len(server.requests) == 1
    assert_whole(cache)


def test_a_server_that_does_not_say_the_length(cache: Path) -> None:
    with FileServer(lambda request: request.reply(200, BODY)) as server:
        get(server.url("a.pth"))
    assert_whole(cache)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (status(404), "404"),
        (status(403), "403"),
        (whole(b"<html>", Content_Type="text/html; charset=utf-8"), "web page"),
        (whole(BODY, Content_Encoding="gzip"), "compressed"),
    ],
)
def test_what_trying_again_cannot_mend(cache: Path, answer, said: str) -> None:
    with FileServer(answer) as server, pytest.raises(InputError, match=said) as caught:
        get(server.url("a.pth"))
    assert len(server.requests) == 1
    assert server.url("a.pth") in str(caught.value)
    assert names(cache) == []


def test_too_little_room_is_found_before_the_download(cache: Path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    with FileServer(whole(BODY)) as server, pytest.raises(RunError, match="make room"):
        get(server.url("a.pth"))
    assert names(cache) == []


@pytest.mark.parametrize("there", [True, False])
def test_a_pinned_hash(cache: Path, there: bool) -> None:
    with FileServer(whole(BODY)) as server:
        url = server.url("a.pth")
        if there:
            get(url)
        with pytest.raises(InputError, match=rf"{DIGEST}.*{'0' * 64}"):
            get(url, "0" * 64)
        if not there:
            assert names(cache) == []
        get(url, DIGEST)
    assert_whole(cache)


def test_local_files_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(BODY)
    assert fetch(Source(str(path), DIGEST)) == path
    with pytest.raises(InputError, match=r"a\.pth.*0000.*get the right file"):
        fetch(Source(str(path), "0" * 64))
    with pytest.raises(InputError, match="no such checkpoint"):
        fetch(Source(str(tmp_path / "b.pth")))


def test_files_of_one_name_from_two_places_are_kept_apart(cache: Path) -> None:
    bodies = {"/1/best.pth": b"one", "/2/best.pth": b"two"}

    def answer(request):
        whole(bodies[request.path])(request)

    with FileServer(answer) as server:
        urls = [server.url("1/best.pth"), server.url("2/best.pth")]
        for _ in range(2):
            paths = fetch_all([Source(url) for url in urls], HASTE)
            assert [path.read_bytes() for path in paths] == [b"one", b"two"]
            assert [Source(url).path for url in urls] == paths
    assert len(server.requests) == 2


def test_a_file_put_there_by_hand_cannot_stand_for_two(cache: Path) -> None:
    cache.mkdir()
    (cache / "best.pth").write_bytes(BODY)
    one, two = (Source(f"https://example.org/{n}/best.pth") for n in (1, 2))
    assert fetch_all([one, one]) == [cache / "best.pth"] * 2
    with pytest.raises(InputError, match=r"is it the file of .*/1/best\.pth or of .*/2/best\.pth"):
        fetch_all([one, two])


def test_names_stay_inside_the_cache(cache: Path) -> None:
    assert cached_path("https://example.org/x/..%2F..%2Fetc%2Fa.pth") == cache / "a.pth"
    for url in ("https://example.org/", "https://example.org/a%00.pth"):
        with pytest.raises(InputError, match="names no file"):
            cached_path(url)


def test_without_a_network_the_message_says_which_files_to_put_where(cache: Path) -> None:
    with FileServer(whole(BODY)) as server:
        url = server.url("a.pth")
    gone = [Source(url), Source(url.replace("a.pth", "b.pth"))]
    with pytest.raises(InputError, match="cannot be reached") as caught:
        fetch_all(gone, HASTE)
    message = str(caught.value)
    assert all(part in message for part in (gone[0].entry, gone[1].entry, str(cache)))
    assert "\n" not in message


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "file"))
    with FileServer(whole(BODY)) as server, pytest.raises(RunError, match="GEOPOSE_CACHE"):
        get(server.url("a.pth"))


def test_many_at_once_download_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, results = threading.Semaphore(0), []
    monkeypatch.setattr(
        "geopose.checkpoints.remote.fetch.logger.info", lambda *_: waiting.release()
    )

    def answer(request):
        for _ in range(3):  # until the three others have been seen to wait
            assert waiting.acquire(timeout=30)
        whole(BODY)(request)

    def one() -> None:
        results.append(fetch_all([Source(server.url("a.pth"))], Patience(30.0, ()))[0])

    with FileServer(answer) as server:
        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [cache / "a.pth"] * 4
    assert len(server.requests) == 1
    assert_whole(cache)


def test_the_cache_is_torch_hubs_folder_by_default(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("GEOPOSE_CACHE")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = "https://example.org/a%20model.pth?download=1"
    assert cached_path(url) == tmp_path / "hub" / "checkpoints" / "a model.pth"


USER = "user:s%40cret@"


def test_credentials_are_used_and_not_told(
    cache: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    with FileServer(cut_off(BODY, 1000), ranges(BODY)) as server:
        path = get(server.url("a.pth").replace("//", f"//{USER}"))
    wanted = f"Basic {base64.b64encode(b'user:s@cret').decode()}"
    assert server.authorizations == [wanted, wanted]
    assert path == cache / "a.pth"
    told = caplog.text + "".join(capfd.readouterr()) + (cache / "a.pth.sha256").read_text()
    assert "user" not in told
    assert "cret" not in told


@pytest.mark.parametrize(
    "answer", [status(403), status(404), silence, whole(b"", Content_Type="text/html")]
)
def test_no_error_tells_credentials(answer, caplog: pytest.LogCaptureFixture, cache: Path) -> None:
    caplog.set_level("DEBUG")
    with FileServer(answer) as server, pytest.raises((InputError, RunError)) as caught:
        get(server.url("a.pth").replace("//", f"//{USER}"))
    told = caplog.text + str(caught.value) + "".join(map(str, cache.rglob("*")))
    assert "cret" not in told
    for url in (f"http://{USER}no.such.host.invalid/a.pth", f"http://{USER}[bad/a.pth"):
        with pytest.raises((InputError, RunError)) as caught:
            get(url)
        assert "cret" not in str(caught.value)


def test_credentials_stay_with_their_server(cache: Path) -> None:
    with (
        FileServer(whole(BODY)) as other,
        FileServer(
            lambda request: request.reply(302, Location=other.url("a.pth"), Content_Length=0)
        ) as server,
    ):
        get(server.url("a.pth").replace("//", f"//{USER}"))
    assert server.authorizations != [None]
    assert other.authorizations == [None]


def test_credentials_in_what_a_config_says() -> None:
    error = InputError("{'checkpoint': 'HTTPS://u:p:w@x@host/a@b.pth'}: no http://a:b@c")
    assert str(error) == "{'checkpoint': 'HTTPS://host/a@b.pth'}: no http://c"
