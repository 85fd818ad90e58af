"""The image store is complete or absent; an interrupted run continues and ends with the same bytes."""

import errno
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

import drawn
from downloads import check_refused
from drawn import SMALL, Drawn, source
from m3lib.data import files, store
from m3lib.errors import InputError
from m3lib.prepare import pack, photos, signatures
from notebook_runs import MAX_WAIT

FILES = {"raw": ["images.npy"], "jpeg": ["images.bin", "images.idx.npy"]}
both_kinds = pytest.mark.parametrize("kind", ["raw", "jpeg"])


@pytest.fixture
def folder(tmp_path):
    """A prepared folder; unfinished shards lie in tmp_path/work."""
    return tmp_path / "prepared"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def uninterrupted(given, tmp_path, settings):
    """Pack somewhere else; return the files and the resulting source."""
    other = tmp_path / "uninterrupted" / "prepared"
    packed = pack.pack(given, other, settings, 1)
    assert sorted(contents(other)) == FILES[settings.format]
    return contents(other), packed


def fail(error):
    """Return a function that raises an error."""

    def raise_error(*_):
        raise error

    return raise_error


def interrupt(given, folder, settings, shards):
    """Pack some shards, then press Ctrl-C."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "merge", fail(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            pack.pack(given, folder, settings, 1)
    for path in sorted(work_files(folder), key=lambda path: int(path.name))[shards:]:
        path.unlink()


def work_files(folder):
    return [path for path in (folder.parent / "work").rglob("*") if path.is_file()]


def test_the_store_holds_every_row_in_order(folder):
    given = source(37, Drawn())
    assert pack.pack(given, folder, SMALL).manifest is given.manifest
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    assert (images.shape, images.dtype) == ((37, 16, 20, 3), np.uint8)
    for i in range(37):
        assert (images[i] == photos.fit(given.load(i), 16, 20, "crop")).all()
    assert sorted(contents(folder)) == FILES["raw"]
    assert not work_files(folder)


@both_kinds
def test_the_store_is_the_same_for_any_number_of_workers(folder, kind):
    stores, settings = [], replace(SMALL, format=kind, max_unreadable=0.5)
    for workers in (1, 2):
        packed = pack.pack(source(300, Drawn(bad=(0, 16, 128, 299))), folder, settings, workers)
        stores.append((contents(folder), packed.notes, tuple(packed.manifest["image"])))
    assert stores[0] == stores[1]
    assert len(store.open_store(folder)) == 296


@both_kinds
def test_a_store_of_the_other_kind_is_removed(folder, kind):
    for name in ({"raw": "jpeg", "jpeg": "raw"}[kind], kind):
        pack.pack(source(20, Drawn()), folder, replace(SMALL, format=name), 1)
        assert sorted(contents(folder)) == FILES[name]


# unreadable images


def test_unreadable_images_leave_the_store_and_the_manifest(folder):
    bad = (1, 4, 5, 6, 7, 8, 9, 39)
    packed = pack.pack(source(40, Drawn(bad=bad)), folder, replace(SMALL, max_unreadable=0.2))
    images = np.load(folder / "images.npy")
    assert len(images) == len(packed.manifest) == 32
    assert list(packed.manifest["image"][:4]) == ["0.png", "2.png", "3.png", "10.png"]
    for i in (0, 3, 31):
        assert (images[i] == photos.fit(packed.load(i), 16, 20, "crop")).all()
    assert packed.notes[0] == "before"
    assert "8 of 40 images" in packed.notes[1]
    assert packed.notes[2:] == tuple(f"photo {i} is spoilt" for i in bad[:5])


@pytest.mark.parametrize(
    ("bad", "total", "max_unreadable", "expected"),
    [(0, 9, 0.0, False), (29, 100, 0.29, False), (30, 100, 0.29, True), (9, 9, 1.0, True), (8, 9, 1.0, False)],
)
def test_the_share_of_unreadable_images_may_reach_the_limit(bad, total, max_unreadable, expected):
    assert pack.too_many(bad, total, max_unreadable) is expected


def test_shards_without_any_image_are_joined(folder):
    packed = pack.pack(source(300, Drawn(bad=tuple(range(100, 280)))), folder, replace(SMALL, max_unreadable=0.9))
    assert len(np.load(folder / "images.npy")) == len(packed.manifest) == 120


@pytest.mark.parametrize(
    ("load", "max_unreadable", "words"),
    [
        (
            Drawn(bad=(3, 9)),
            0.04,
            ["2 of 40 images can't be read", "images.max_unreadable = 0.04", "photo 3 is spoilt"],
        ),
        (Drawn(bad=tuple(range(40))), 1.0, ["40 of 40 images", "photo 0 is spoilt"]),
        (Drawn(kill=20), 1.0, ["killed", "run again"]),
    ],
)
def test_a_failed_pack_is_one_sentence_and_keeps_the_old_store(folder, load, max_unreadable, words):
    folder.mkdir()
    (folder / "images.npy").write_bytes(b"old")
    check_refused(lambda: pack.pack(source(40, load), folder, replace(SMALL, max_unreadable=max_unreadable)), *words)
    assert contents(folder) == {"images.npy": b"old"}
    assert not work_files(folder)


def test_the_error_counts_unreadable_images_by_kind_and_names_three_of_each():
    bad = {4: "'a/4.heic': an HEIC photo, convert it", 1: "'1.jpg': an empty file, download it again"}
    bad |= {i: f"'a/{i}.heic': an HEIC photo, convert it" for i in (2, 6, 8)}
    bad |= {9: '"it\'s": damaged or cut off (7 bytes lack)', 10: "'it (2)': damaged or cut off (8 bytes lack)"}
    assert pack.kinds(bad) == (
        ": 4 x an HEIC photo, convert it (such as 'a/2.heic', 'a/4.heic', 'a/6.heic'); "
        "2 x damaged or cut off (such as \"it's\", 'it (2)'); 1 x an empty file, download it again (such as '1.jpg')"
    )
    many = pack.kinds({i: f"problem {i}" for i in range(20)})
    assert many.count(" x problem ") == 8
    assert many.endswith("(such as image 7); ...")


def test_a_bug_in_a_loader_leaves_no_store(folder):
    with pytest.raises(RuntimeError, match="a bug"):
        pack.pack(source(200, Drawn(bug=150)), folder, SMALL)
    assert not folder.exists()


# interruptions


@pytest.mark.parametrize(
    ("kind", "number", "hold", "shards"),
    [("raw", signal.SIGKILL, 300, 2), ("jpeg", signal.SIGKILL, 130, 1), ("jpeg", signal.SIGINT, 300, 2)],
)
def test_a_killed_pack_continues_with_the_next_shard(tmp_path, folder, kind, number, hold, shards):
    log = str(tmp_path / "log")
    command = [sys.executable, drawn.__file__, folder, kind, log, str(hold)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, env={"PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL) as process:
        while len(finished(folder)) < shards:
            assert process.poll() is None
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        if number == signal.SIGINT:  # the shards that were begun are finished
            drawn.go(log).touch()
    assert process.returncode != 0
    assert not folder.exists()
    assert psutil.wait_procs(workers, MAX_WAIT)[1] == []  # they notice that their parent is gone
    before = finished(folder)
    loaded = Counter(map(int, Path(log).read_text().split()))
    drawn.go(log).touch()

    settings = replace(SMALL, format=kind, max_unreadable=0.1)
    packed = pack.pack(drawn.held(log, hold), folder, settings, 1)
    expected, result = uninterrupted(drawn.held("/dev/null", sys.maxsize), tmp_path, settings)
    assert contents(folder) == expected
    assert packed.notes == result.notes
    assert "4 of 330 images" in packed.notes[1]
    assert packed.notes[2:] == tuple(f"photo {i} is spoilt" for i in (3, 20, 250, 329))
    assert list(packed.manifest["image"]) == list(result.manifest["image"])
    again = Counter(map(int, Path(log).read_text().split())) - loaded
    done = {row for start in before for row in range(start, min(start + pack.SHARD, 330))}
    assert set(again) == set(range(330)) - done
    assert not work_files(folder)


def finished(folder) -> list[int]:
    """Return the first rows of the finished shards."""
    return [int(path.name) for path in work_files(folder) if path.suffix != ".part"]


def test_a_pack_that_was_killed_while_it_joined_shards_ends_with_the_same_bytes(tmp_path, folder, monkeypatch):
    given, copies = source(300, Drawn()), []

    def copy(images, file):
        if len(copies) == 2:
            raise KeyboardInterrupt
        copies.append(file.write(images.read()))

    with monkeypatch.context() as patch:
        patch.setattr(pack.shutil, "copyfileobj", copy)
        with pytest.raises(KeyboardInterrupt):
            pack.pack(given, folder, SMALL, 1)
    assert finished(folder) == [256]
    assert not contents(folder)
    pack.pack(given, folder, SMALL, 1)
    assert contents(folder) == uninterrupted(given, tmp_path, SMALL)[0]


CHANGES = {
    "height": lambda given, settings: (given, replace(settings, height=17)),
    "fit": lambda given, settings: (given, replace(settings, fit="pad")),
    "format": lambda given, settings: (given, replace(settings, format="jpeg")),
    "names": lambda given, settings: (source(300, given.load, prefix="another "), settings),
    "loader": lambda given, settings: (replace(given, load=replace(given.load, smooth=True)), settings),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_shards_of_other_settings_are_removed(tmp_path, folder, change):
    log = tmp_path / "log"
    given = source(300, Drawn(log=str(log)))
    interrupt(given, folder, SMALL, 2)
    log.unlink()
    given, settings = change(given, SMALL)
    pack.pack(given, folder, settings, 1)
    assert sorted(map(int, log.read_text().split())) == list(range(300))
    assert contents(folder) == uninterrupted(given, tmp_path, settings)[0]
    assert not work_files(folder)


def test_shards_of_photos_that_were_replaced_meanwhile_are_removed(tmp_path, folder):
    """The first stage writes inputs.json again before the pipeline continues."""
    photo, inputs = tmp_path / "0.png", folder.parent / "inputs.json"
    given = replace(source(1, Drawn()), load=photos.PhotoLoader(tmp_path, ("0.png",)))
    for colour in ("red", "blue"):
        Image.new("RGB", (20, 16), colour).save(photo)
        inputs.write_text(colour)
        interrupt(given, folder, SMALL, 1)
    pack.pack(given, folder, SMALL, 1)
    assert (np.load(folder / "images.npy") == (0, 0, 255)).all()


def test_the_fingerprint_covers_the_code_of_readers_and_no_other(folder, tmp_path, monkeypatch):
    code = tmp_path / "m3lib" / "prepare"
    shutil.copytree(Path(pack.__file__).parent, code)
    monkeypatch.setattr(pack, "__file__", str(code / "pack.py"))
    inputs = tmp_path / "inputs.json"
    digests = [pack.fingerprint(source(3, Drawn()), SMALL, inputs)]
    (tmp_path / "m3lib" / "figures.py").write_text("COLOUR = 1")
    assert pack.fingerprint(source(3, Drawn()), SMALL, inputs) == digests[0]
    for name in ("photos.py", "wardrobe/garments.py"):
        (code / name).write_text((code / name).read_text() + "\n")
        digests.append(pack.fingerprint(source(3, Drawn()), SMALL, inputs))
    assert len(set(digests)) == 3


@both_kinds
@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_shard_that_a_power_failure_cut_is_packed_again(tmp_path, folder, kind, left):
    given, settings = source(300, Drawn()), replace(SMALL, format=kind)
    interrupt(given, folder, settings, 2)
    shard = next(path for path in work_files(folder) if path.name == "128")
    shard.write_bytes(shard.read_bytes()[:left])
    pack.pack(given, folder, settings, 1)
    assert contents(folder) == uninterrupted(given, tmp_path, settings)[0]


def test_unreadable_images_of_two_runs_are_counted_together(folder):
    given, settings = source(300, Drawn(bad=(5, 290))), replace(SMALL, max_unreadable=0.005)
    interrupt(given, folder, replace(settings, max_unreadable=1), 2)
    with pytest.raises(InputError, match=r"2 of 300 images .*: 1 x photo 5 is spoilt .*; 1 x photo"):
        pack.pack(given, folder, settings, 1)
    assert not work_files(folder)


def test_finished_shards_outlive_a_killed_worker(folder):
    with pytest.raises(InputError, match="finished work is kept"):
        pack.pack(source(300, Drawn(kill=140)), folder, SMALL, 1)
    assert finished(folder) == [0]


# disk space


@pytest.mark.parametrize(
    ("kind", "needed", "advice"),
    [
        ("raw", "needs 3.1 GB, but 0.2 GB are free in ", ": set images.format to jpeg (at most 0.6 GB in all), make "),
        ("jpeg", "needs up to 0.6 GB, but 0.2 GB are free in ", ": make images.height and images.width smaller"),
    ],
)
def test_too_little_disk_is_reported_before_anything_is_drawn(tmp_path, folder, monkeypatch, kind, needed, advice):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=200_000_000))
    log = tmp_path / "log"
    settings = replace(SMALL, height=1024, width=1024, format=kind)
    check_refused(lambda: pack.pack(source(1000, Drawn(log=str(log))), folder, settings), needed, advice)
    assert not log.exists()


def test_finished_shards_need_no_more_disk(folder, monkeypatch):
    given = source(300, Drawn())
    interrupt(given, folder, SMALL, 2)
    rest = 300 * (16 * 20 * 3 + signatures.BYTES) - sum(path.stat().st_size for path in work_files(folder))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=rest - 1))
    check_refused(lambda: pack.pack(given, folder, SMALL, 1), "free some space")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=rest))
    pack.pack(given, folder, SMALL, 1)
    assert sorted(contents(folder)) == FILES["raw"]


def test_a_full_disk_is_one_sentence_and_the_next_run_continues(tmp_path, folder, monkeypatch):
    given, error = source(300, Drawn()), OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(pack.shutil, "copyfileobj", fail(error))
        with pytest.raises(InputError, match=r"the disk of .* is full: free some space, then run again"):
            pack.pack(given, folder, SMALL, 1)
    assert not contents(folder)
    assert sorted(finished(folder)) == [0, 128, 256]
    pack.pack(given, folder, SMALL, 1)
    assert contents(folder) == uninterrupted(given, tmp_path, SMALL)[0]
