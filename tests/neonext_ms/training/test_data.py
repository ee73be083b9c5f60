from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mindspore.dataset import MindDataset
from PIL import Image

from conftest import DATA
from neonext_ms.commands import mindrecord
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.images.folder import find_images
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.training.config.load import make_config
from neonext_ms.training.config.schema import AugmentationConfig
from neonext_ms.training.data import augment
from neonext_ms.training.data.datasets import DATASETS, open_dataset, write_digits
from neonext_ms.training.data.image_sets import BrokenImages, PartialSet
from neonext_ms.training.data.loader import TrainLoader, validation_batches
from neonext_ms.training.data.mindrecord import write_records

SIZE = (16, 16)


def _config(**parts):
    data = {"dataset": "digits", "batch_size": 4, "val_batch_size": 4, "workers": 1, **parts.pop("data", {})}
    return make_config({"data": data, **parts})


def _folder(root, counts=(6, 6), size=20, names="ab", parts=("train", "val")):
    rng = np.random.RandomState(0)
    for part in parts:
        for name, count in zip(names, counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def _folders_config(root, **data):
    return _config(data={"dataset": "imagefolder", "path": str(root), **data})


# Data sets


def test_digits_are_those_of_the_golden_images(tmp_path):
    train, val = open_dataset(_config().data)
    assert (len(train), len(val), train.classes) == (1437, 360, tuple("0123456789"))
    write_digits(tmp_path)
    golden = find_images(DATA / "digits")
    for file in golden.files:
        written = np.asarray(Image.open(tmp_path / "val" / file))
        assert np.array_equal(written, np.asarray(Image.open(DATA / "digits" / file))), file
    assert len(find_images(tmp_path / "train").files) == 1437


def test_digits_are_written_in_one_step(tmp_path, monkeypatch):
    save, calls = Image.Image.save, []

    def full(self, path):
        calls.append(path)
        if len(calls) == 20:
            raise OSError(errno.ENOSPC, "full")
        save(self, path)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="digits: the disk is full"):
        write_digits(tmp_path / "new" / "digits")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").touch()
    with pytest.raises(InputError, match="exists already"):
        write_digits(tmp_path)


def test_classes_are_renumbered(tmp_path):
    train, _ = open_dataset(_folders_config(_folder(tmp_path, (3, 2))).data)
    train.renumber([1, 0])
    assert train.classes == ("b", "a") and list(train.labels) == [1, 1, 1, 0, 0]


def test_image_folders(tmp_path):
    train, val = open_dataset(_folders_config(_folder(tmp_path, (3, 2))).data)
    assert train.classes == val.classes == ("a", "b") and list(train.labels) == [0, 0, 0, 1, 1]
    assert train.name(0) == str(tmp_path / "train" / "a" / "0.png") and train.read(0).size == (20, 20)


def test_class_folders_that_differ_are_listed(tmp_path):
    _folder(tmp_path, names="ab", parts=["train"])
    _folder(tmp_path, names="bc", parts=["val"])
    with pytest.raises(InputError) as caught:
        open_dataset(_folders_config(tmp_path).data)
    assert "train/a" in str(caught.value) and "val/c" in str(caught.value) and "/b" not in str(caught.value)


def test_missing_data_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"data\.path is not set"):
        open_dataset(_config(data={"dataset": "imagefolder"}).data)
    with pytest.raises(InputError, match="train: no such file or folder"):
        open_dataset(_folders_config(tmp_path).data)
    (_folder(tmp_path) / "train" / "empty").mkdir()
    with pytest.raises(InputError, match="no images in 1 of 3 class folders"):
        open_dataset(_folders_config(tmp_path).data)


@pytest.mark.parametrize("shards", [1, 3])
def test_records_give_the_batches_of_the_folder(tmp_path, shards, capsys):
    root, output = _folder(tmp_path / "data", (9, 8)), tmp_path / "records"
    assert mindrecord.main([str(root), str(output), "--shards", str(shards), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["parts"]
    assert written["train"]["images"] == 17 and len(written["val"]["files"]) == shards
    config, records = _folders_config(root), _config(data={"dataset": "mindrecord", "path": str(output), "workers": 2})
    (train, val), sets = open_dataset(config.data), open_dataset(records.data)
    for one, other in zip((train, val), sets, strict=True):
        assert (one.classes, list(one.labels)) == (other.classes, list(other.labels))
        assert [one.file(i) for i in range(17)] == [other.file(i) for i in range(17)]
    batches = zip(_epoch(config, train), _epoch(records, sets[0]), strict=True)
    assert all(_equal(one, other) for one, other in batches)
    # MindSpore's own reader sees the same files.
    rows = MindDataset(str(output / written["train"]["files"][0]), shuffle=False)
    for row in rows.create_dict_iterator(num_epochs=1, output_numpy=True):
        position = int(row["position"])
        assert bytes(row["image"]) == Path(train.name(position)).read_bytes() == sets[0].content(position)
        assert train.file(position) == str(row["name"]) and train.labels[position] == row["label"]


def test_pages_of_records(tmp_path, monkeypatch):
    monkeypatch.setattr("neonext_ms.training.data.mindrecord._LEAST_PAGE", 1 << 15)
    root = _folder(tmp_path / "data", (9, 9), size=48)
    write_records(root, tmp_path / "records", shards=2)
    train, _ = open_dataset(_config(data={"dataset": "mindrecord", "path": str(tmp_path / "records")}).data)
    for i in range(18):
        assert train.content(i) == (root / "train" / train.file(i)).read_bytes()


def test_conversion_names_broken_images_and_leaves_nothing_half_written(tmp_path, capsys):
    root, output = _folder(tmp_path / "data"), tmp_path / "records"
    for i in range(2):
        (root / "train" / "b" / f"{i}.png").write_bytes(b"x")
    assert mindrecord.main([str(root), str(output), "--broken-limit", "1"]) == 1
    error = capsys.readouterr().err
    assert "2 images cannot be read, more than --broken-limit=1" in error and "b/0.png" in error
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert mindrecord.main([str(root), str(output), "--shards", "2"]) == 0
    assert capsys.readouterr().err.count("skipped:") == 2
    train, _ = open_dataset(_config(data={"dataset": "mindrecord", "path": str(output)}).data)
    assert [train.file(i) for i in range(6, 10)] == ["b/2.png", "b/3.png", "b/4.png", "b/5.png"]
    assert mindrecord.main([str(root), str(output)]) == 1
    assert "records: exists already" in capsys.readouterr().err


def test_records_that_are_damaged_are_named(tmp_path):
    write_records(_folder(tmp_path / "data"), tmp_path / "records", shards=2)
    data = _config(data={"dataset": "mindrecord", "path": str(tmp_path / "records")}).data
    shard = tmp_path / "records" / "train.mindrecord1"
    whole, index = shard.read_bytes(), Path(f"{shard}.db").read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"in .*train\.mindrecord1: the record is truncated"):
        for i in range(12):
            open_dataset(data)[0].read(i)
    shard.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"train\.mindrecord1: not a MindRecord file"):
        open_dataset(data)
    shard.write_bytes(whole)
    for content, expected in ((b"x" * 100, r"mindrecord1\.db: not an index"), (None, r"mindrecord1\.db: no such file")):
        Path(f"{shard}.db").unlink()
        if content:
            Path(f"{shard}.db").write_bytes(content)
        with pytest.raises(InputError, match=expected):
            open_dataset(data)
        Path(f"{shard}.db").write_bytes(index)
    with pytest.raises(InputError, match=r"unknown part 'test' \(expected one of train, val\)"):
        open_dataset(replace(data, val="test"))
    for statement in ("label_0 = NULL", "name_0 = X'00'", "PAGE_ID_BLOB = 1 << 40", "PAGE_OFFSET_BLOB_END = 0"):
        with contextlib.closing(sqlite3.connect(f"{shard}.db")) as database, database:
            database.execute(f"UPDATE INDEXES SET {statement}")
        with pytest.raises(InputError, match=r"mindrecord1\.db: not an index"):
            open_dataset(data)
        Path(f"{shard}.db").write_bytes(index)
    endless = "SELECT * FROM KEPT, (WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n)"
    computed = "ADD COLUMN x AS (zeroblob(1000000000))"
    for change in (
        f"ALTER TABLE INDEXES RENAME TO KEPT; CREATE VIEW INDEXES AS {endless}",
        f"ALTER TABLE INDEXES {computed}",
    ):
        with contextlib.closing(sqlite3.connect(f"{shard}.db")) as database:
            database.executescript(change)
        with pytest.raises(InputError, match=r"mindrecord1\.db: .*INDEXES is not one of MindSpore"):
            open_dataset(data)
        Path(f"{shard}.db").write_bytes(index)
    with contextlib.closing(sqlite3.connect(f"{shard}.db")) as database, database:
        others = ", ".join([row[1] for row in database.execute("PRAGMA table_info(INDEXES)")][1:])
        for first in (1000, 2000):
            database.execute(f"INSERT INTO INDEXES SELECT ROW_ID + {first}, {others} FROM INDEXES")
    with pytest.raises(InputError, match=r"mindrecord1\.db: .*more rows than the 12 images"):
        open_dataset(data)
    Path(f"{shard}.db").unlink()
    os.mkfifo(f"{shard}.db")
    with pytest.raises(InputError, match=r"mindrecord1\.db: not a regular file"):
        open_dataset(data)
    Path(f"{shard}.db").unlink()
    Path(f"{shard}.db").write_bytes(index)
    listing = tmp_path / "records" / "index.json"
    for images, expected in (("1e999", "damaged"), (f"{10**30}", "damaged"), (f"{2**52}", "incomplete index")):
        text = listing.read_text()
        listing.write_text(re.sub(r'"images": \d+', f'"images": {images}', text))
        with pytest.raises(InputError, match=expected):
            open_dataset(data)
        listing.write_text(text)
    (tmp_path / "records" / "index.json").unlink()
    with pytest.raises(InputError, match=r"has no index\.json\. Expected a folder that neonext-mindrecord wrote"):
        open_dataset(data)


@pytest.mark.parametrize(("dataset", "label_bytes"), [("cifar10", 1), ("cifar100", 2)])
def test_cifar(tmp_path, dataset, label_bytes):
    rng = np.random.RandomState(0)
    names = {
        "cifar10": (
            "cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", "batches.meta.txt",
        ),
        "cifar100": ("cifar-100-binary", ["train.bin"], "test.bin", "fine_label_names.txt"),
    }[dataset]  # fmt: skip
    root = tmp_path / names[0]
    root.mkdir()
    (root / names[3]).write_text("x\ny y\nz\n\n")
    records = {name: rng.randint(0, 3, (4, label_bytes + 3072), dtype=np.uint8) for name in [*names[1], names[2]]}
    for name, values in records.items():
        values.tofile(root / name)
    for path in (root, tmp_path):
        train, val = open_dataset(_config(data={"dataset": dataset, "path": str(path)}).data)
        assert (len(train), len(val), train.classes) == (4 * len(names[1]), 4, ("x", "y y", "z"))
    record = records[names[2]][2]
    assert val.labels[2] == record[label_bytes - 1]
    # Red, green and blue planes, row by row.
    assert np.array_equal(np.asarray(val.read(2)), record[label_bytes:].reshape(3, 32, 32).transpose(1, 2, 0))
    with open(root / names[2], "ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match="expected images of"):
        open_dataset(_config(data={"dataset": dataset, "path": str(root)}).data)
    assert dataset in DATASETS


# Augmentation


def _image(size=(24, 20)):
    return Image.fromarray(np.random.RandomState(1).randint(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.mark.parametrize("crop", ["resized", "pad", "none"])
def test_augmentation_follows_its_generator(crop):
    config = AugmentationConfig(crop=crop, erasing=1.0)
    mean, std = np.zeros((3, 1, 1), np.float32), np.full((3, 1, 1), 255, np.float32)
    first, same, other = (
        augment.augment(_image(), np.random.default_rng(seed), config, SIZE, mean, std) for seed in (0, 0, 1)
    )
    assert first.shape == (3, *SIZE) and first.dtype == np.float32
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_nothing_random_leaves_the_image_as_it_is():
    config = AugmentationConfig(crop="none", flip=0, randaugment_ops=0, erasing=0)
    mean, std = np.full((3, 1, 1), 128, np.float32), np.full((3, 1, 1), 64, np.float32)
    pixels = augment.augment(_image((16, 16)), np.random.default_rng(0), config, SIZE, mean, std)
    assert np.array_equal(pixels, (np.asarray(_image((16, 16)), np.float32).transpose(2, 0, 1) - 128) / 64)


def test_geometry_moves_the_way_torchvision_does():
    image = Image.new("RGB", (32, 32))
    image.putpixel((20, 16), (255, 0, 0))

    def places(moved):
        y, x = np.nonzero(np.asarray(moved)[..., 0])
        return list(zip(x.tolist(), y.tolist(), strict=True))

    assert places(augment.apply_operation(image, "translate_x", 5 / 32)) == [(25, 16)]
    assert places(augment.apply_operation(image, "translate_y", -5 / 32)) == [(20, 11)]
    assert places(augment.apply_operation(image, "rotate", 90)) == [(16, 11)]
    # The row through the middle stays where it is, those below it move to the left.
    assert places(augment.apply_operation(image, "shear_x", 0.3)) == [(20, 16)]
    image = Image.new("RGB", (32, 32))
    image.putpixel((20, 26), (255, 0, 0))
    ((x, y),) = places(augment.apply_operation(image, "shear_x", 0.3))
    assert y == 26 and x == 17


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_operations_keep_size_and_mode(name):
    largest, signed, _ = augment._OPERATIONS[name]
    for magnitude in {largest, -largest if signed else 0}:
        assert augment.apply_operation(_image(), name, magnitude).size == (24, 20)
    assert augment.apply_operation(_image(), name, 0).mode == "RGB"


def test_random_resized_crop_of_odd_shapes():
    for size in ((200, 3), (3, 200), (1, 1)):
        crop = augment.random_resized_crop(_image(size), np.random.default_rng(0), (8, 12), (0.08, 1), (0.75, 4 / 3))
        assert crop.size == (12, 8)


def test_soft_targets():
    targets = augment.soft_targets(np.array([1, 0]), 4, 0.2)
    np.testing.assert_allclose(targets, [[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]], rtol=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0), (0, 1.0), (0.8, 1.0)])
def test_targets_are_mixed_like_the_pixels(mixup, cutmix):
    config = AugmentationConfig(mixup=mixup, cutmix=cutmix)
    images = np.stack([np.full((3, 12, 10), i, np.float32) for i in range(2)])
    targets = np.eye(2, dtype=np.float32)
    shares = set()
    for seed in range(20):
        mixed, soft = augment.mix(images, targets, np.random.default_rng(seed), config)
        # The share of the second class is the mean of the pixels, since its pixels are 1 and the other's 0.
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), soft[:, 1], atol=1e-6)
        np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
        shares.add(float(soft[0, 1]))
    assert len(shares) > 10 and images[0].max() == 0
    kept, same = augment.mix(images, targets, np.random.default_rng(0), replace(config, mix_probability=0.0))
    assert kept is images and same is targets


def test_erasing_replaces_a_rectangle():
    pixels = np.full((3, 32, 32), 9, np.float32)
    augment.erase(pixels, np.random.default_rng(0))
    changed = (pixels != 9).all(axis=0)
    rows, columns = changed.any(axis=1), changed.any(axis=0)
    assert 0.01 < changed.mean() < 0.4 and changed.sum() == rows.sum() * columns.sum()


def test_drop_path_factors_have_mean_one():
    factors = augment.drop_path_factors([0.25, 0.5], 20000, np.random.default_rng(0))
    assert factors.shape == (2, 20000) and set(np.unique(factors)) == {0, np.float32(4 / 3), 2}
    np.testing.assert_allclose(factors.mean(axis=1), 1, atol=0.02)


# Batches


def _epoch(config, train, epoch=0, done=0, shard=(0, 1), drop_path=(0.5,)):
    groups = TrainLoader(train, config, SIZE, drop_path, shard).epoch(epoch, done)
    return [batch for group in groups for batch in group]


def _equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))


def test_batches_follow_from_seed_epoch_and_position(tmp_path):
    root = _folder(tmp_path, (9, 9))
    configs = [_folders_config(root, workers=w, processes=p) for w, p in ((1, False), (2, False), (2, True))]
    train, _ = open_dataset(configs[0].data)
    runs = [_epoch(config, train) for config in configs]
    assert [len(run) for run in runs] == [4, 4, 4]
    assert all(_equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
    assert all(_equal(a, b) for a, b in zip(runs[0][2:], _epoch(configs[2], train, done=2), strict=True))
    assert not _equal(runs[0][0], _epoch(configs[0], train, epoch=1)[0])
    seeded = replace(configs[0], run=replace(configs[0].run, seed=1))
    assert not _equal(runs[0][0], _epoch(seeded, train)[0])


def test_cards_share_the_images_of_one_epoch(tmp_path):
    config = _folders_config(_folder(tmp_path, (9, 9)))
    train, _ = open_dataset(config.data)
    shards = [_epoch(config, train, shard=(rank, 2)) for rank in (0, 1)]
    assert [len(shard) for shard in shards] == [2, 2]
    alone = np.concatenate([batch.indices for batch in _epoch(config, train)])
    together = np.concatenate([batch.indices for pair in zip(*shards, strict=True) for batch in pair])
    assert np.array_equal(alone[:16], together) and len(set(together)) == 16


def test_a_batch_that_cannot_be_filled(tmp_path):
    train, _ = open_dataset(_folders_config(_folder(tmp_path)).data)
    config = _config(data={"batch_size": 4}, optimizer={"accumulate": 2})
    with pytest.raises(InputError, match="are 16 images per update, but there are only 12"):
        TrainLoader(train, config, SIZE, (), (0, 2))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_corrupt_image_in_the_middle_of_an_epoch_is_named_and_replaced(tmp_path, workers):
    root = _folder(tmp_path)
    broken = root / "train" / "b" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    config = _folders_config(root, workers=workers)
    train, _ = open_dataset(config.data)
    batches = _epoch(config, train)
    messages = [text for batch in batches for text in batch.broken]
    assert len(batches) == 3 and len(messages) == 1 and str(broken) in messages[0]
    assert str(broken) not in [train.name(i) for batch in batches for i in batch.indices]


def test_broken_images_are_counted_once_up_to_a_limit():
    broken = BrokenImages(2)
    assert broken.add(["a", "a", "b"]) == ["a", "b"] and broken.add(["a"]) == []
    with pytest.raises(InputError, match=r"3 images cannot be read, more than data.broken_limit=2"):
        broken.add(["c"])


def test_validation_counts_every_image_once(tmp_path):
    root = _folder(tmp_path, (3, 2))
    (root / "val" / "a" / "1.png").write_bytes(b"no image")
    config = _folders_config(root)
    _, val = open_dataset(config.data)
    seen, messages = [], []
    for rank in (0, 1):
        batches = list(validation_batches(val, config, Preprocessing(), SIZE, (rank, 2)))
        assert [batch[0].shape for batch in batches] == [(4, 3, *SIZE)]
        for _, labels, indices, broken in batches:
            seen += labels[indices >= 0].tolist()
            messages += broken
    assert sorted(seen) == [0, 0, 1, 1] and len(messages) == 1 and "a/1.png" in messages[0]


def test_a_share_takes_evenly_spaced_images_of_each_class(tmp_path):
    _folder(tmp_path, counts=(8, 2))
    whole, _ = open_dataset(_config(data={"dataset": "imagefolder", "path": str(tmp_path)}).data)
    part, val = open_dataset(_config(data={"dataset": "imagefolder", "path": str(tmp_path), "share": 0.25}).data)
    assert part.labels == [0, 0, 1] and len(val) == 10
    assert [part.file(i) for i in range(3)] == [whole.file(i) for i in (0, 4, 8)]
    assert part.read(1).tobytes() == whole.read(4).tobytes()
    part.renumber([1, 0])
    assert part.labels == [1, 1, 0] and part.classes == ("b", "a")
    assert len(PartialSet(whole, 0.01)) == 2
