"""The classifiers reach the accuracies that their weights are known for."""

import jax
import numpy as np
import places
import pytest

from aigc_jax.data import datasets
from aigc_jax.formats import torch_file
from aigc_jax.networks.judges import classifiers

BATCH = 500


def weights(name):
    path = places.SHARED / "weights" / name
    if not path.is_file():
        pytest.skip(f"no {path} (set AIGC_SHARED)")
    return torch_file.read(path)


def accuracy(network, variables, last, *, name, data_dir, every=1):
    """Percent of the 10,000 test images; also checks that layer `last` turns features to logits.

    Of one image in `every`.
    """
    source = datasets.load(name, data_dir=data_dir, splits=("test",)).sources["test"]
    test = source.fetch(np.arange(0, 10_000, every))
    count = len(test["x"])
    # Unlike other tests' programs this one runs for longer than it compiles.
    apply = jax.jit(network.apply, compiler_options={"xla_backend_optimization_level": 3})
    right = 0
    for start in range(0, count, BATCH):
        x = test["x"][start : start + BATCH].astype(np.float32)
        features, logits = map(np.asarray, apply(variables, x))
        right += (logits.argmax(-1) == test["label"][start : start + BATCH]).sum()
    layer = variables["params"][last]
    assert features.dtype == logits.dtype == np.float32
    np.testing.assert_allclose(
        logits, features @ layer["kernel"] + layer["bias"][None, :], atol=1e-3
    )
    return 100 * right / count


def test_resnet56_on_cifar10(shared_tfds):
    variables = classifiers.resnet56_from(weights("cifar10_resnet56.npz"))
    net = classifiers.ResNet56()
    # Of all 10,000 it gets 93.39, as published, in four times the time.
    reached = accuracy(net, variables, "linear", name="cifar10", data_dir=shared_tfds, every=4)
    assert reached == pytest.approx(93.60, abs=0.05)  # one image is 0.04


def test_lenet_on_mnist(shared_tfds):
    variables = classifiers.lenet_from(weights("mnist_lenet.npz"))
    net = classifiers.LeNet()
    reached = accuracy(net, variables, "ip2", name="mnist", data_dir=shared_tfds)
    assert reached == pytest.approx(99.14, abs=0.02)


def test_resnet56_is_the_papers():
    """He et al., table 6: 0.85 M parameters."""
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(classifiers.ResNet56().init, jax.random.key(0), x)
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == 853_018


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_digits_net_is_the_fitted_mlp():
    neural_network = pytest.importorskip("sklearn.neural_network")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 8, 8, 1)).astype(np.float32)
    flat, labels = images.reshape(200, -1) / 255, np.arange(200) % 10
    mlp = neural_network.MLPClassifier((16,), max_iter=50, random_state=0).fit(flat, labels)
    variables = classifiers.digits_from(mlp.coefs_, mlp.intercepts_)
    features, logits = classifiers.DigitsNet(hidden=16).apply(variables, images)
    hidden = np.maximum(flat @ mlp.coefs_[0] + mlp.intercepts_[0][None, :], 0)
    np.testing.assert_allclose(features, hidden, atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(logits), mlp.predict_proba(flat), atol=1e-5)


def test_weights_of_another_network_are_named():
    resnet, lenet = weights("cifar10_resnet56.npz"), weights("mnist_lenet.npz")
    with pytest.raises(
        ValueError, match=r"of a ResNet-56 for CIFAR-10: \d+ missing: .*8 unexpected"
    ):
        classifiers.resnet56_from(lenet)
    with pytest.raises(ValueError, match=r"of Caffe's LeNet: 8 missing: conv1_1, .*277 unexpected"):
        classifiers.lenet_from(resnet)
    # A deeper ResNet holds every tensor that this one needs.
    deeper = {**resnet, "layer1.9.conv1.weight": resnet["layer1.8.conv1.weight"]}
    with pytest.raises(ValueError, match=r"56 for CIFAR-10: 1 unexpected: layer1.9.conv1.weight$"):
        classifiers.resnet56_from(deeper)
    hundred = {**resnet, "linear.weight": np.zeros((100, 64), np.float32)}
    with pytest.raises(ValueError, match=r"linear.weight \(100, 64\), not \(10, 64\)"):
        classifiers.resnet56_from(hundred)


def test_an_mlp_of_another_shape_is_named():
    coefs, intercepts = [np.zeros((64, 16)), np.zeros((16, 10))], [np.zeros(16), np.zeros(10)]
    classifiers.digits_from(coefs, intercepts)
    with pytest.raises(
        ValueError, match=r"one hidden layer .*coefs\[1\] \(16, 3\), not \(16, 10\)"
    ):
        classifiers.digits_from([coefs[0], np.zeros((16, 3))], intercepts)
    with pytest.raises(ValueError, match=r"unexpected: coefs\[2\], intercepts\[2\]"):
        classifiers.digits_from([*coefs, np.zeros((10, 10))], [*intercepts, np.zeros(10)])
    with pytest.raises(ValueError, match="missing"):
        classifiers.digits_from([], [])
