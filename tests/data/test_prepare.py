"""Preparing TFDS data sets without TensorFlow, from archives made here in the published layouts."""

import gzip
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest
import specs
from PIL import Image

from aigc_jax.data import datasets, digits, prepare
from aigc_jax.data.images import DataError

ROOT = pathlib.Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)

# MNIST's builder reads exactly as many images as were published: here there are fewer.
FEWER_MNIST = """
from aigc_jax.data import prepare, standin
standin.install()
from tensorflow_datasets.image_classification import mnist
mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = 12, 4
"""


def run(*arguments, script=None):
    command = ["-c", script] if script else ["-m", "aigc_jax.data.prepare"]
    done = subprocess.run(
        [sys.executable, *command, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def by_pixels(images, labels=None):
    """What a split holds, whatever its order (TFDS shuffles as it writes)."""
    labels = [None] * len(images) if labels is None else [int(label) for label in labels]
    return sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))


def held(dataset, split):
    source = dataset.sources[split]
    batch = source.fetch(np.arange(len(source)))
    return by_pixels(batch["x"], batch.get("label"))


def write_cifar(folder, name, files, label_files, labels_per_image):
    """cifar-10 and cifar-100 in their binary version; returns {file: (images, labels)}."""
    content = {}
    with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as archive:

        def add(member, data):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        prefix = {"cifar-10-binary": "cifar-10-batches-bin"}.get(name, name)
        for label_file, count in label_files.items():
            add(f"{prefix}/{label_file}", "".join(f"c{i}\n" for i in range(count)).encode())
        for file in files:
            images = RNG.integers(0, 256, (4, 32, 32, 3), np.uint8)
            labels = RNG.integers(0, 10, (4, labels_per_image), np.uint8)
            flat = images.transpose(0, 3, 1, 2).reshape(4, -1)
            add(f"{prefix}/{file}", np.concatenate([labels, flat], axis=1).tobytes())
            content[file] = images, labels[:, -1]
    return content


def test_cifar10(tmp_path):
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    content = write_cifar(
        tmp_path, "cifar-10-binary", [*train, "test_batch.bin"], {"batches.meta.txt": 10}, 1
    )
    arguments = ("cifar10", f"--data_dir={tmp_path}/tfds", f"--archives={tmp_path}")

    code, output = run(*arguments)  # the checksum is not the published one: refused
    assert code == 1
    assert "wrong checksum" in output.splitlines()[-1]
    assert not (tmp_path / "tfds" / "cifar10" / "3.0.2").exists()

    code, output = run(*arguments, "--unverified")
    assert code == 0, output
    assert "unverified: cifar-10-binary.tar.gz has sha256" in output
    dataset = datasets.load("cifar10", data_dir=str(tmp_path / "tfds"))
    assert dataset.spec == specs.images(
        (32, 32, 3), 10, {"train": 20, "test": 4}, names=dataset.spec.class_names
    )
    assert held(dataset, "test") == by_pixels(*content["test_batch.bin"])
    both = [np.concatenate(parts) for parts in zip(*[content[f] for f in train], strict=True)]
    assert held(dataset, "train") == by_pixels(*both)


def test_cifar100_and_cycle_gan(tmp_path):
    label_files = {"coarse_label_names.txt": 20, "fine_label_names.txt": 100}
    content = write_cifar(tmp_path, "cifar-100-binary", ["train.bin", "test.bin"], label_files, 2)
    domains = {}
    with zipfile.ZipFile(tmp_path / "maps.zip", "w") as archive:
        for split, count in {"trainA": 3, "trainB": 2, "testA": 1, "testB": 1}.items():
            domains[split] = RNG.integers(0, 256, (count, 20, 16, 3), np.uint8)
            for i, image in enumerate(domains[split]):
                png = io.BytesIO()
                Image.fromarray(image).save(png, format="png")
                archive.writestr(f"maps/{split}/{i}_{split}.jpg", png.getvalue())
    script = (
        "from aigc_jax.data import prepare, standin; standin.install(); import sys; "
        "sys.exit(max(prepare.main([n, *sys.argv[1:]]) for n in ('cifar100', 'cycle_gan/maps')))"
    )
    options = f"--data_dir={tmp_path}/tfds", f"--archives={tmp_path}", "--unverified"
    code, output = run(*options, script=script)
    assert code == 0, output

    cifar = datasets.load("cifar100", data_dir=str(tmp_path / "tfds"))
    assert cifar.spec == specs.images(
        (32, 32, 3), 100, {"train": 4, "test": 4}, names=cifar.spec.class_names
    )
    assert held(cifar, "train") == by_pixels(*content["train.bin"])
    maps = datasets.load("cycle_gan/maps", data_dir=str(tmp_path / "tfds"))
    assert maps.spec.shape == (20, 16, 3)
    assert maps.spec.sizes == {"trainA": 3, "trainB": 2, "testA": 1, "testB": 1}
    for split, images in domains.items():
        assert held(maps, split) == by_pixels(images, [split[-1] == "B"] * len(images))


def test_mnist_and_fashion_mnist_whose_archives_share_their_names(tmp_path):
    content = {}
    for name in ("mnist", "fashion_mnist"):
        (tmp_path / name).mkdir()
        for part, count in {"train": 12, "t10k": 4}.items():
            images = RNG.integers(0, 256, (count, 28, 28, 1), np.uint8)
            labels = RNG.integers(0, 10, count, np.uint8)
            files = {"images-idx3": bytes(16) + images.tobytes(), "labels-idx1": bytes(8)}
            files["labels-idx1"] += labels.tobytes()
            for kind, data in files.items():
                path = tmp_path / name / f"{part}-{kind}-ubyte.gz"
                path.write_bytes(gzip.compress(data))
            content[name, part] = images, labels
    script = FEWER_MNIST + (
        "import sys\n"
        "for name in ('mnist', 'fashion_mnist'):\n"
        "    archives = f'--archives={sys.argv[1]}/{name}'\n"
        "    options = f'--data_dir={sys.argv[1]}/tfds', archives, '--unverified'\n"
        "    assert prepare.main([name, *options]) == 0\n"
    )
    code, output = run(str(tmp_path), script=script)
    assert code == 0, output
    for name in ("mnist", "fashion_mnist"):
        dataset = datasets.load(name, data_dir=str(tmp_path / "tfds"))
        assert dataset.spec == specs.images(
            (28, 28, 1), 10, {"train": 12, "test": 4}, names=dataset.spec.class_names
        )
        assert held(dataset, "train") == by_pixels(*content[name, "train"])
        assert held(dataset, "test") == by_pixels(*content[name, "t10k"])


def test_celeb_a(tmp_path):
    names = [f"{i:06d}.jpg" for i in range(1, 7)]
    decoded = {}
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip", "w") as archive:
        for name in names:
            small = RNG.integers(0, 256, (4, 4, 3), np.uint8)
            jpeg = io.BytesIO()
            Image.fromarray(small).resize((178, 218)).save(jpeg, format="jpeg")
            archive.writestr(f"img_align_celeba/{name}", jpeg.getvalue())
            decoded[name] = np.asarray(Image.open(jpeg))

    def table(headings, values):
        rows = [f"{name} {' '.join(values)}\n" for name in names]
        return f"{len(names)}\n{' '.join(headings)}\n" + "".join(rows)

    from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as celeb_a

    texts = {
        "list_attr_celeba": table(celeb_a.ATTR_HEADINGS, ["-1", "1"] * 20),
        "list_landmarks_align_celeba": table(celeb_a.LANDMARK_HEADINGS, ["7"] * 10),
        "list_eval_partition": "".join(f"{n} {max(0, i - 3)}\n" for i, n in enumerate(names)),
        "identity_CelebA": "".join(f"{name} 5\n" for name in names),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    options = f"--data_dir={tmp_path}/tfds", f"--archives={tmp_path}", "--unverified"
    code, output = run("celeb_a", *options)
    assert code == 0, output
    dataset = datasets.load("celeb_a", data_dir=str(tmp_path / "tfds"))
    assert dataset.spec == specs.images((218, 178, 3), 0, {"train": 4, "validation": 1, "test": 1})
    assert held(dataset, "train") == by_pixels([decoded[name] for name in names[:4]])
    small = datasets.load("celeb_a", data_dir=str(tmp_path / "tfds"), crop=140, image_size=64)
    assert small.spec.shape == (64, 64, 3)
    assert "label" not in small.sources["test"].fetch(np.arange(1))


def test_a_set_is_prepared_by_one_process_while_the_others_wait(tmp_path, monkeypatch):
    made = []
    really_write = digits.Digits.download_and_prepare
    monkeypatch.setattr(
        digits.Digits, "download_and_prepare", lambda *a, **k: made.append(really_write(*a, **k))
    )
    # The lock belongs to an open file, so threads contend for it as processes do.
    other = threading.Thread(target=lambda: prepare.write("digits", data_dir=str(tmp_path)))
    with prepare._alone(tmp_path, "digits"):
        other.start()
        time.sleep(0.3)
        assert not made
    prepare.write("digits", data_dir=str(tmp_path))
    other.join()
    assert len(made) == 1


@pytest.fixture
def offline(monkeypatch):
    """No server is reached, in this process and in those it starts."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "cycle_gan/maps"])
def test_without_a_network_it_fails_in_seconds_and_says_what_to_do(tmp_path, offline, name):
    began = time.monotonic()
    with pytest.raises(DataError) as error:
        datasets.load(name, data_dir=str(tmp_path))
    assert time.monotonic() - began < 10
    message = str(error.value)
    assert message.startswith(f"{name} is not prepared in {tmp_path}, and ")
    assert "\n" not in message
    for advice in (
        f"`python -m aigc_jax.data.prepare {name}` on a machine with a network",
        f"into {tmp_path}",
        "--config.data.data_dir=",
        "--archives=DIR",
    ):
        assert advice in message


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(prepare, "REACH_SECONDS", 0.2)
    release = threading.Event()

    def silent(*_, **__):
        release.wait(5)
        raise prepare.requests.Timeout

    monkeypatch.setattr(prepare.requests, "head", silent)
    began = time.monotonic()
    assert not prepare._any_answers(["https://a.test/x", "https://b.test/y"])
    assert time.monotonic() - began < 2
    release.set()


def test_a_failure_of_the_preparing_process_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "check_reachable", lambda *_, **__: None)
    monkeypatch.setattr(prepare, "__name__", "aigc_jax.data.no_such_module")
    with pytest.raises(DataError, match=r"^preparing 'cifar10' failed: .*No module named"):
        prepare.prepare("cifar10", str(tmp_path))


def test_the_stand_in_says_what_it_lacks():
    script = (
        "from aigc_jax.data import standin; standin.install(); import tensorflow as tf\n"
        "try: tf.data.Dataset\n"
        "except AttributeError as error: print(error)"
    )
    code, output = run(script=script)
    assert code == 0, output
    assert "calls tensorflow.data, which needs TensorFlow: prepare it where" in output
