"""The pool of earlier generated images from which CycleGAN shows its discriminators.

Shrivastava et al. 2017 (arXiv:1612.07828), sec. 2.3; Zhu et al. 2017 (arXiv:1703.10593), sec. 4,
with 50 images. Arrays in a dict, so that it lives in a checkpoint.
"""

import jax
import jax.numpy as jnp

Pool = dict[str, jax.Array]  # {"images": [size, H, W, C], "count": int32, how many it holds}


def init(size: int, image_shape: tuple[int, int, int]) -> Pool:
    """An empty pool for `size` images [H, W, C]; with size 0, `query` changes nothing."""
    return {"images": jnp.zeros((size, *image_shape)), "count": jnp.zeros((), jnp.int32)}


def query(pool: Pool, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Pool]:
    """What the discriminator sees in place of new images [B, H, W, C], and the next pool.

    One image after another: while the pool is not full, it is stored and returned. After that, with
    probability one half it takes the place of a random one in the pool, which is returned; else it
    is returned and not kept.
    """
    size = len(pool["images"])
    if size == 0:
        return images, pool

    def one(pool: Pool, new: tuple[jax.Array, jax.Array]) -> tuple[Pool, jax.Array]:
        image, key = new
        coin_key, place_key = jax.random.split(key)
        full = pool["count"] == size
        swap = full & jax.random.bernoulli(coin_key)
        place = jnp.where(full, jax.random.randint(place_key, (), 0, size), pool["count"])
        old = pool["images"][place]
        kept = jnp.where(swap | ~full, image, old)
        pool = {
            "images": pool["images"].at[place].set(kept),
            "count": jnp.minimum(pool["count"] + 1, size),
        }
        return pool, jnp.where(swap, old, image)

    # No convolution inside, so a scan is as fast on a CPU as anywhere.
    pool, shown = jax.lax.scan(one, pool, (images, jax.random.split(key, len(images))))
    return shown, pool
