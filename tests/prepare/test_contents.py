"""Digests of photos that are kept between runs: every change is seen, and what did not change is not read again."""

import hashlib
import os
import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from m3lib.prepare import contents

NAMES = [f"{i}.jpg" for i in range(6)]


class Folder:
    """A folder of files that count how often they are read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.photos, self.kept, self.read = folder / "photos é", folder / "kept", []
        self.photos.mkdir()
        for name in NAMES:
            (self.photos / name).write_bytes(name.encode())
        real = contents.digest_of
        monkeypatch.setattr(contents, "digest_of", lambda path: self.read.append(path) or real(path))
        monkeypatch.setattr(contents, "SETTLED", -1)  # files just written count as settled
        monkeypatch.setattr(contents, "KEPT", str(self.kept))

    def digests(self, names: Sequence[str] = NAMES) -> list[str]:
        """The digests, which are right; `files` are the names of the files that were read for them."""
        self.read.clear()
        found = contents.digests(self.photos, names)
        for name, text in zip(names, found, strict=True):
            path = self.photos / name
            assert text == (hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() if path.is_file() else "")
        self.files = {path.name for path in self.read}
        return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = Folder(tmp_path, monkeypatch)
    folder.digests()
    assert folder.files == set(NAMES)
    return folder


def test_unchanged_files_are_not_read_again(folder):
    folder.digests()
    assert folder.files == set()


def overwrite(path: Path) -> None:
    """At a later time by the file system's clock, which some systems advance every few milliseconds only."""
    before, probe = path.stat(), path.with_name("probe")
    probe.touch()
    while probe.stat().st_ctime_ns <= before.st_ctime_ns:
        probe.touch()
    path.write_bytes(b"X" * before.st_size)


def overwrite_and_restore_the_time(path: Path) -> None:
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_another(path: Path) -> None:
    """By a file of the same size and time, as an unpacked archive has it."""
    other = path.with_name("other")
    other.write_bytes(b"Y" * path.stat().st_size)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)


def swap_with_a_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"Z" * path.stat().st_size)
    path.unlink()
    path.symlink_to(target)


CHANGES = [overwrite, overwrite_and_restore_the_time, replace_by_another, swap_with_a_link, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_keeps_name_and_size_is_seen_and_only_that_file_is_read(folder, change):
    before = folder.digests()
    change(folder.photos / NAMES[2])
    after = folder.digests()
    assert folder.files == {NAMES[2]} - ({NAMES[2]} if change is Path.unlink else set())
    assert [i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]] == [2]


def test_two_files_that_change_places_are_seen(folder):
    before = folder.digests()
    first, second = folder.photos / NAMES[0], folder.photos / NAMES[1]
    first.rename(folder.photos / "x")
    second.rename(first)
    (folder.photos / "x").rename(second)
    assert folder.digests() == [before[1], before[0], *before[2:]]


def test_a_file_that_changed_just_now_is_read_again(folder, monkeypatch):
    """A second change within the resolution of the file system's clock would leave the same state."""
    monkeypatch.setattr(contents, "SETTLED", 1000)
    overwrite(folder.photos / NAMES[3])
    for _ in range(2):
        folder.digests()
        assert NAMES[3] in folder.files
    monkeypatch.setattr(contents, "SETTLED", -1)
    folder.digests()
    folder.digests()
    assert folder.files == set()


@pytest.mark.parametrize(
    "damage", [b"", b"\xff", b"[]", b"3", b'{"0.jpg": 5}', b'{"0.jpg": [[1, 2, 3, 4, 5], "x"]}', None]
)
def test_what_is_kept_may_be_damaged_or_lost(folder, damage):
    (store,) = folder.kept.iterdir()
    store.write_bytes(damage) if damage is not None else store.unlink()
    folder.digests()
    assert folder.files == set(NAMES)
    folder.digests()
    assert folder.files == set()


def test_a_folder_that_can_not_be_written_to_only_costs_time(folder, monkeypatch):
    monkeypatch.setattr(contents, "KEPT", str(folder.photos / NAMES[0] / "no folder"))
    folder.digests()
    folder.digests()
    assert folder.files == set(NAMES)


def test_names_that_are_no_files_have_no_digest(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    names = ["pipe", ".", "missing", "nul\0byte", "x" * 300, "\udcff"]
    assert contents.digests(tmp_path, names) == [""] * len(names)


def test_several_threads_may_keep_digests_at_once(folder, monkeypatch):
    expected = folder.digests()
    monkeypatch.setattr(contents, "KEPT", str(folder.kept / "new"))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: contents.digests(folder.photos, NAMES), range(40)))
    assert all(digests == expected for digests in found)
    assert len(list((folder.kept / "new").iterdir())) == 1


def test_a_full_disk_leaves_no_part_of_a_file(folder):
    """A limit on the size of files acts as a full disk does: a write fails halfway."""
    (store,), limits = folder.kept.iterdir(), resource.getrlimit(resource.RLIMIT_FSIZE)
    before = store.read_bytes()
    overwrite(folder.photos / NAMES[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        folder.digests()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(folder.kept.iterdir()) == [store]
    assert store.read_bytes() == before


def test_two_tables_over_one_folder_keep_each_others_digests(folder):
    for names in (NAMES[:3], NAMES[2:], NAMES[:1], NAMES):
        folder.digests(names)
        assert folder.files == set()
    overwrite(folder.photos / NAMES[5])
    (folder.photos / NAMES[4]).unlink()
    (folder.photos / NAMES[0]).touch()
    folder.digests(NAMES[:3])
    assert folder.files == {NAMES[0]}
    (store,) = folder.kept.iterdir()
    assert contents.read(store).keys() == set(NAMES) - {NAMES[4]}
    folder.digests()
    assert folder.files == {NAMES[5]}
