"""Both kinds of store hold the same pictures; a pack that was cut off goes on, and ends as if it had not been."""

import errno
import itertools
import json
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
import pytest

import drawn
from drawn import SMALL, Drawn, source
from m3lib.data import files, manifest, store
from m3lib.errors import InputError
from m3lib.prepare import photos

JPEG = replace(SMALL, store="jpeg")
FILES = {"raw": ["images.npy"], "jpeg": ["images.bin", "images.idx.npy"]}
both_kinds = pytest.mark.parametrize("kind", ["raw", "jpeg"])


@pytest.fixture
def folder(tmp_path):
    """Of a prepared data set; unfinished work lies beside it."""
    (tmp_path / "prepared").mkdir()
    return tmp_path / "prepared"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder of 37 JPEGs."""
    folder = tmp_path_factory.mktemp("packed") / "prepared"
    folder.mkdir()
    photos.pack(source(37, Drawn()), folder, JPEG)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def undisturbed(source_, tmp_path, settings):
    """The files, and the source that is returned, of a pack in one go elsewhere."""
    other = tmp_path / "undisturbed" / "prepared"
    other.mkdir(parents=True)
    kept = photos.pack(source_, other, settings, 1)
    assert sorted(contents(other)) == FILES[settings.store]
    return contents(other), kept


def cut(source_, folder, settings, chunks):
    """Ctrl-C after a number of chunks."""

    def cut_short(drawn_, done, total):
        yield from itertools.islice(drawn_, chunks)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "progress", cut_short)
        with pytest.raises(KeyboardInterrupt):
            photos.pack(source_, folder, settings, 1)
    assert not list(folder.iterdir())


# reading


def test_jpegs_are_close_to_the_raw_pictures(folder):
    given = source(37, Drawn(smooth=True))
    photos.pack(given, folder, JPEG)
    found = store.open_store(folder)
    assert isinstance(found, store.JpegStore)
    assert (len(found), found.shape, found.dtype) == (37, (37, 16, 20, 3), np.uint8)
    for i in range(37):
        raw = photos.fit(given.load(i), 16, 20, "crop").astype(int)
        assert np.abs(found[i] - raw).max() <= 6
        assert np.abs(found[i] - raw).mean() <= 1


KEYS = {
    "first": 0,
    "last": -1,
    "numpy's own": np.int64(5),
    "array": np.array([3, 36, 3, 0]),
    "negative": np.array([-1, 2]),
    "table": np.array([[1, 2, 3], [4, 5, 6]]),
    "list": [7, 8],
    "none": np.array([], int),
    "chosen": np.arange(37) % 5 == 0,
    "slice": slice(3, 20, 4),
    "backwards": slice(None, None, -1),
    "empty": slice(5, 5),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_jpegs_are_indexed_as_an_array_is(packed, key):
    found = store.open_store(packed)
    whole = np.stack([found.decode(i) for i in range(37)])
    assert len({picture.tobytes() for picture in whole}) == 37
    assert found[key].dtype == np.uint8
    assert np.array_equal(found[key], whole[key])


@pytest.mark.parametrize("key", [37, -38, np.array([0, 37]), 1.5, np.ones(36, bool)])
def test_a_wrong_index_is_refused(packed, key):
    found = store.open_store(packed)
    with pytest.raises(IndexError):
        found[key]


@pytest.mark.parametrize("name", FILES["jpeg"])
@pytest.mark.parametrize("left", [None, 0, 40, 150, -1])
def test_a_missing_or_cut_file_is_refused(packed, folder, name, left):
    shutil.copytree(packed, folder, dirs_exist_ok=True)
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if left is not None:
        (folder / name).write_bytes(whole[:left])
    with pytest.raises((OSError, ValueError, EOFError)):
        store.open_store(folder)


def test_an_empty_raw_store_is_refused_in_a_sentence(folder):
    given = source(1, Drawn())
    given.taxonomy.save(folder / "taxonomy.json")
    given.manifest.to_parquet(folder / "manifest.parquet")
    (folder / "protocol.json").write_text('{"relevance": "pair"}')
    (folder / "images.npy").touch()
    with pytest.raises(InputError, match="not a prepared data set"):
        manifest.open_prepared(folder)
    photos.pack(given, folder, JPEG)
    assert manifest.open_prepared(folder).images.shape == (1, 16, 20, 3)


def test_a_damaged_picture_is_one_sentence(packed, folder):
    shutil.copytree(packed, folder, dirs_exist_ok=True)
    offsets = np.load(folder / "images.idx.npy")
    with (folder / "images.bin").open("r+b") as file:
        file.seek(offsets[5])
        file.write(bytes(100))
    found = store.open_store(folder)
    with pytest.raises(InputError, match=r"picture 5 of .*images\.bin is damaged; run `dvc repro --force prepare`"):
        found[[4, 5]]
    assert found[[4, 6]].shape == (2, 16, 20, 3)


# writing


def test_jpegs_are_the_same_for_any_number_of_workers(folder):
    stores = []
    for workers in (1, 2):
        kept = photos.pack(source(200, Drawn(bad=(0, 16, 199))), folder, replace(JPEG, max_bad=0.5), workers)
        stores.append((contents(folder), kept.notes, tuple(kept.manifest["image"])))
    assert stores[0] == stores[1]
    assert len(store.open_store(folder)) == 197


def test_jpegs_of_smooth_pictures_are_small(folder):
    large = replace(JPEG, height=224, width=224)
    photos.pack(source(20, Drawn(smooth=True)), folder, large)
    assert (folder / "images.bin").stat().st_size < 0.1 * 20 * 224 * 224 * 3


@both_kinds
def test_a_store_of_the_other_kind_is_gone(folder, kind):
    other = {"raw": "jpeg", "jpeg": "raw"}[kind]
    for each in (other, kind):
        photos.pack(source(20, Drawn()), folder, replace(SMALL, store=each))
        assert sorted(contents(folder)) == FILES[each]
    assert not list((folder.parent / "work").iterdir())


@pytest.mark.parametrize(
    ("kind", "number", "lines"),
    [("raw", signal.SIGKILL, 15), ("jpeg", signal.SIGKILL, 4), ("raw", signal.SIGINT, 2), ("jpeg", signal.SIGINT, 17)],
)
def test_a_killed_pack_goes_on_where_it_was(tmp_path, folder, kind, number, lines):
    """Lines of the journal: the fingerprint, and one for each of 21 chunks."""
    log, journal = tmp_path / "log", tmp_path / "work" / "images.journal"
    command = [sys.executable, drawn.__file__, folder, kind, log]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, env={"PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= lines)
        process.send_signal(number)
        process.wait(30)
    assert process.returncode != 0
    assert not list(folder.iterdir())
    done = json.loads(journal.read_bytes().splitlines(keepends=True)[lines - 1])[0]
    time.sleep(0.3)  # its workers end by themselves
    shutil.rmtree(folder)  # as DVC does
    folder.mkdir()

    settings = replace(SMALL, store=kind, max_bad=0.1)
    kept = photos.pack(drawn.slow(str(log)), folder, settings, 1)
    expected, whole = undisturbed(drawn.slow("/dev/null", pause=0), tmp_path, settings)
    assert contents(folder) == expected
    assert kept.notes == whole.notes
    assert "4 of 330 images" in kept.notes[1]
    assert kept.notes[2:] == tuple(f"photo {i} is spoilt" for i in (3, 20, 250, 329))
    assert list(kept.manifest["image"]) == list(whole.manifest["image"])
    loads = Counter(map(int, log.read_text().split()))
    assert set(loads) == set(range(330))
    assert done >= 16 * (lines - 1)
    assert max(loads[i] for i in range(done)) == 1
    assert not list((tmp_path / "work").iterdir())


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def change(given, settings, what):
    match what:
        case "height":
            return given, replace(settings, height=17)
        case "fit":
            return given, replace(settings, fit="pad")
        case "store":
            return given, replace(settings, store="jpeg")
        case "names":
            return source(100, given.load, prefix="another "), settings
        case "loader":
            return replace(given, load=replace(given.load, smooth=True)), settings


@pytest.mark.parametrize("what", ["height", "fit", "store", "names", "loader"])
def test_work_of_other_settings_is_not_used(tmp_path, folder, what):
    log = tmp_path / "log"
    given = source(100, Drawn(log=str(log)))
    cut(given, folder, SMALL, 3)
    log.unlink()
    given, settings = change(given, SMALL, what)
    photos.pack(given, folder, settings, 1)
    assert sorted(map(int, log.read_text().split())) == list(range(100))
    assert contents(folder) == undisturbed(given, tmp_path, settings)[0]


@pytest.mark.parametrize("spoil", ["half a line", "half a chunk", "lost pictures", "no pictures", "empty journal"])
def test_only_whole_work_is_taken_up(tmp_path, folder, spoil):
    log = tmp_path / "log"
    given, settings = source(100, Drawn(bad=(50,), log=str(log))), replace(JPEG, max_bad=0.1)
    cut(given, folder, settings, 4)
    part, journal = tmp_path / "work" / "images.part", tmp_path / "work" / "images.journal"
    if spoil == "half a line":
        journal.write_bytes(journal.read_bytes()[:-9])
    elif spoil == "half a chunk":
        part.write_bytes(part.read_bytes() + bytes(100))
    elif spoil == "lost pictures":
        part.write_bytes(part.read_bytes()[:-1])
    elif spoil == "no pictures":
        part.unlink()
    else:
        journal.write_bytes(b"")
    log.unlink()
    cut(given, folder, settings, 1)  # taken up twice
    kept = photos.pack(given, folder, settings, 1)
    expected, whole = undisturbed(given, tmp_path, settings)
    assert contents(folder) == expected
    assert kept.notes == whole.notes
    first = {"half a line": 48, "half a chunk": 64}.get(spoil, 0)
    assert int(log.read_text().split()[0]) == first


def test_the_progress_bar_goes_on_from_where_it_was(folder, monkeypatch):
    bars = []

    class Bar(photos.tqdm):
        def __init__(self, **options):
            super().__init__(**options, disable=False)
            bars.append((self, options))

    monkeypatch.setattr(photos, "tqdm", Bar)
    given, settings = source(100, Drawn(bad=(5, 90))), replace(SMALL, max_bad=0.1)
    cut(given, folder, settings, 3)
    photos.pack(given, folder, settings, 1)
    bar, options = bars[-1]
    assert (options["initial"], options["total"], bar.n) == (48, 100, 100)


def test_too_many_bad_images_in_two_runs_leave_no_work(folder):
    given, settings = source(100, Drawn(bad=(5, 90))), replace(SMALL, max_bad=0.01)
    cut(given, folder, settings, 3)
    with pytest.raises(InputError, match=r"2 of the first 96 images .*; the first is photo 5 is spoilt"):
        photos.pack(given, folder, settings, 1)
    assert not list(folder.iterdir())
    assert not list((folder.parent / "work").iterdir())


def test_after_a_killed_worker_the_work_goes_on(tmp_path, folder):
    with pytest.raises(InputError, match="what is done so far is kept"):
        photos.pack(source(100, Drawn(kill=70)), folder, SMALL, 1)
    assert len((tmp_path / "work" / "images.journal").read_text().splitlines()) > 1


@pytest.mark.parametrize(
    ("kind", "needed", "advice"),
    [
        ("raw", "needs 3.1 GB, but 0.2 GB are free in ", ": set images.store to jpeg (at most 0.6 GB in all), make "),
        ("jpeg", "needs up to 0.6 GB, but 0.2 GB are free in ", ": make images.height and images.width smaller"),
    ],
)
def test_too_little_disk_is_told_before_anything_is_drawn(tmp_path, folder, monkeypatch, kind, needed, advice):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=200_000_000))
    log = tmp_path / "log"
    with pytest.raises(InputError) as raised:
        photos.pack(source(1000, Drawn(log=str(log))), folder, replace(SMALL, height=1024, width=1024, store=kind))
    assert needed in str(raised.value)
    assert advice in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not log.exists()


@both_kinds
def test_what_is_done_needs_no_more_disk(folder, monkeypatch, kind):
    """To the byte; 3 chunks of 7 are done."""
    given, settings = source(100, Drawn(smooth=True)), replace(SMALL, store=kind)
    cut(given, folder, settings, 3)
    done = (folder.parent / "work" / "images.part").stat().st_size - (128 if kind == "raw" else 0)
    rest = 100 * 16 * 20 * 3 - done
    monkeypatch.setattr(store, "JPEG_SHARE", 1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=rest - 1))
    with pytest.raises(InputError, match="free some space"):
        photos.pack(given, folder, settings, 1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=rest))
    photos.pack(given, folder, settings, 1)
    assert sorted(contents(folder)) == FILES[kind]


def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(folder, monkeypatch):
    given = source(64, Drawn())
    add = store.Work.add

    def fill(work, chunk):
        if chunk.stop > 32:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(work, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(store.Work, "add", fill)
        with pytest.raises(InputError, match=r"the disk of .* is full: free some space") as error:
            photos.pack(given, folder, SMALL)
    assert "\n" not in str(error.value)
    assert not list(folder.iterdir())
    assert (folder.parent / "work/images.journal").read_text().count("\n") == 1 + 2  # the fingerprint, two chunks
    photos.pack(given, folder, SMALL)
    assert len(np.load(folder / "images.npy")) == 64
