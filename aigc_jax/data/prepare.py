"""Prepares a TFDS data set as ArrayRecord, with no TensorFlow installed.

    python -m aigc_jax.data.prepare cifar10 [--data_dir=DIR] [--archives=DIR]

runs in a process of its own, because TFDS's builders call TensorFlow while they prepare and get a
stand-in here (aigc_jax.data.standin). `aigc_jax.data.datasets.load` starts it when it must.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator

import requests
import tensorflow_datasets as tfds

from aigc_jax import files
from aigc_jax.data import digits, standin
from aigc_jax.data.images import DataError

REACH_SECONDS = 6.0  # to hear from a server at all; TFDS itself would try for minutes
DIGITS = "digits"


def make_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder of a TFDS data set, or of `digits`, as ArrayRecord; or a DataError."""
    try:
        if name == DIGITS:
            return digits.Digits(data_dir=data_dir, file_format="array_record")
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (ValueError, AssertionError, tfds.core.DatasetNotFoundError) as error:
        reason = " ".join(str(error).split())
        if "File format is already set" in reason:  # there as TFRecord, which has no random access
            reason = "it is there in another format than ArrayRecord: set another data.data_dir"
        raise DataError(f"{name!r} cannot be opened with TFDS: {reason}") from error


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether the data set lies in its data_dir (TFDS's own question warns where it does not)."""
    return (builder.data_path / "dataset_info.json").exists()


def command(name: str, data_dir: str | None) -> str:
    """The shell command that prepares `name`, for messages."""
    return f"python -m aigc_jax.data.prepare {name}" + (f" --data_dir={data_dir}" * bool(data_dir))


def prepare(name: str, data_dir: str | None) -> None:
    """Downloads and prepares a data set in a process of its own, whose output is shown.

    Raises a DataError within seconds where no server can be reached.
    """
    builder = make_builder(name, data_dir)
    check_reachable(builder, archives=None)
    print(f"{name} is not in {builder.data_dir_root}: preparing it there, once", flush=True)
    if name == DIGITS:  # its builder asks nothing of TensorFlow
        tfds.disable_progress_bar()
        write(name, data_dir=data_dir)
        return
    arguments = [sys.executable, "-m", __name__, name]
    arguments += [f"--data_dir={data_dir}"] * bool(data_dir)
    # The package may be imported from a folder that the child would not look in.
    paths = [str(pathlib.Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)
    tail = b""
    while chunk := process.stderr.read1(4096):
        sys.stderr.write(chunk.decode(errors="replace"))
        sys.stderr.flush()
        tail = (tail + chunk)[-4096:]
    if process.wait():
        said = tail.decode(errors="replace").strip().splitlines() or [f"exit {process.returncode}"]
        reason = said[-1].removeprefix("error: ")
        raise DataError(f"preparing {name!r} failed: {reason} (again: {command(name, data_dir)})")


def write(
    name: str,
    *,
    data_dir: str | None = None,
    download_dir: str | None = None,
    archives: str | None = None,
    unverified: bool = False,
) -> str:
    """Prepares in this process, which needs the stand-in; returns the data set's folder.

    `archives` is a folder of files fetched by hand, under the names that TFDS knows them by; each
    must have the published checksum, unless `unverified` accepts what differs and says so.
    """
    builder = make_builder(name, data_dir)
    with _alone(builder.data_dir_root, name):
        if is_prepared(builder):  # another process may have done it meanwhile
            return builder.data_dir
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        with contextlib.ExitStack() as stack:
            if archives:
                archives = config.manual_dir = _existing(archives)
                # TFDS takes an earlier extraction of a file with the same name for this one's, and
                # the files of mnist and fashion_mnist are called the same.
                config.extract_dir = stack.enter_context(
                    tempfile.TemporaryDirectory(dir=builder.data_dir_root)
                )
                if unverified:
                    type(builder).url_infos = _as_found(builder.url_infos or {}, archives)
                    stack.callback(delattr, type(builder), "url_infos")
            check_reachable(builder, archives)
            builder.download_and_prepare(download_dir=download_dir, download_config=config)
    return builder.data_dir


def check_reachable(builder: tfds.core.DatasetBuilder, archives: str | None) -> None:
    """Raises a DataError unless a server that holds the data answers, or `archives` has it all."""
    files = {url: info.filename for url, info in (builder.url_infos or {}).items()}
    if archives:
        held = set(os.listdir(archives))
        files = {url: name for url, name in files.items() if name not in held}
        if builder.builder_config is not None and len(files) < len(builder.url_infos or {}):
            return  # one archive a config: which one TFDS wants, only its builder knows
    by_host = {urllib.parse.urlsplit(url).netloc: url for url in sorted(files, reverse=True)}
    if not by_host or _any_answers(list(by_host.values())):
        return
    known = ", ".join(sorted(filter(None, files.values()))[:6])
    data_dir = builder.data_dir_root
    raise DataError(
        f"{_name(builder)} is not prepared in {data_dir}, and {', '.join(sorted(by_host))} "
        f"cannot be reached: run `{command(_name(builder), None)}` on a machine with a network and "
        f"copy the folder {builder.name} from its data_dir into {data_dir}, or point "
        f"--config.data.data_dir= at a prepared copy, or fetch the archives by hand ({known}) and "
        f"run `{command(_name(builder), str(data_dir))} --archives=DIR`"
    )


def _name(builder: tfds.core.DatasetBuilder) -> str:
    config = builder.builder_config
    return builder.name if config is None else f"{builder.name}/{config.name}"


def _any_answers(urls: list[str]) -> bool:
    """Whether one of the servers answers in time; daemon threads, as a name look-up can hang."""
    answered = threading.Event()
    done = threading.Semaphore(0)

    def ask(url: str) -> None:
        try:
            response = requests.head(url, timeout=REACH_SECONDS)
            # Plain http through a proxy: a refusal is the proxy's, not the server's.
            proxied = url.startswith("http:") and "http" in urllib.request.getproxies()
            if response.status_code < 400 or not proxied:
                answered.set()
        except requests.RequestException:
            pass
        finally:
            done.release()

    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    deadline = time.monotonic() + REACH_SECONDS
    for _ in urls:
        left = max(0.0, deadline - time.monotonic())
        if not done.acquire(timeout=left) or answered.is_set():
            break
    return answered.is_set()


def _existing(folder: str) -> str:
    path = files.expanded(folder)
    if not path.is_dir():
        raise DataError(f"there is no folder of archives at {folder!r}")
    return str(path)


def _as_found(url_infos: dict, archives: str) -> dict:
    """The published sizes and checksums, replaced by the real ones of the files in `archives`."""
    found = {}
    for url, info in url_infos.items():
        path = pathlib.Path(archives) / (info.filename or "")
        if path.is_file():
            with path.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
            if checksum != info.checksum:
                print(f"unverified: {path.name} has sha256 {checksum}, published {info.checksum}")
            info = type(info)(
                size=type(info.size)(path.stat().st_size), checksum=checksum, filename=info.filename
            )
        found[url] = info
    return found


@contextlib.contextmanager
def _alone(data_dir: os.PathLike, name: str) -> Iterator[None]:
    """Holds a lock, so that the processes of one run prepare a data set once."""
    os.makedirs(data_dir, exist_ok=True)
    lock = pathlib.Path(data_dir) / f".prepare-{name.replace('/', '-')}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m aigc_jax.data.prepare", description=__doc__)
    parser.add_argument("name", help="a TFDS data set, as cifar10 or cycle_gan/maps")
    parser.add_argument(
        "--data_dir", help="where to put it (TFDS's default: ~/tensorflow_datasets)"
    )
    parser.add_argument("--download_dir", help="where downloads go (default: DATA_DIR/downloads)")
    parser.add_argument("--archives", help="a folder of archives fetched by hand, used as they are")
    parser.add_argument(
        "--unverified",
        action="store_true",
        help="accept archives whose checksum is not the published one (a mirror's, repacked)",
    )
    options = vars(parser.parse_args(arguments))
    try:
        print(f"prepared: {write(options.pop('name'), **options)}")
    except Exception as error:  # the last line is what `prepare` reports of it
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    standin.install()
    sys.exit(main())
