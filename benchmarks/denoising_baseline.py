"""What a linear filter makes of noisy MNIST: the bar for configs/dvae_mnist.py.

    PYTHONPATH=. python benchmarks/denoising_baseline.py --data_dir=DIR

The best linear map (with a constant) from noisy to clean images, by least squares on the 60,000
training images, one draw of noise each: the Wiener filter of the data's own covariance. PSNR is the
mean over the 10,000 test images, of outputs clipped to the range; noise is clipped to it first.
"""

import argparse

import numpy as np

from aigc_jax.data import datasets


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over images [N, pixels] in [0, 1], in dB."""
    return float(np.mean(-10 * np.log10(((x - y) ** 2).mean(1))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder of TFDS")
    sources = datasets.load("mnist", data_dir=parser.parse_args().data_dir).sources
    train, test = (
        sources[split].fetch(np.arange(len(sources[split])))["x"].reshape(-1, 784) / 255.0
        for split in ("train", "test")
    )
    rng = np.random.default_rng(0)
    print("| sigma | noisy | linear filter |\n|---|---|---|")
    for sigma in (0.3, 0.5):
        given, noisy = (np.clip(x + rng.normal(0, sigma, x.shape), 0, 1) for x in (train, test))
        mean_x, mean_y = train.mean(0), given.mean(0)
        y = given - mean_y
        filter_ = np.linalg.solve(y.T @ y + 1e-3 * np.eye(784), y.T @ (train - mean_x))
        denoised = np.clip((noisy - mean_y) @ filter_ + mean_x, 0, 1)
        print(f"| {sigma} | {psnr(noisy, test):.2f} dB | {psnr(denoised, test):.2f} dB |")


if __name__ == "__main__":
    main()
