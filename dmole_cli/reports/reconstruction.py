"""Routing features and what routers make of them, in numpy: a page needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole_cli.artifacts.router import RouterFile

if TYPE_CHECKING:
    import numpy as np


def reconstructed(router: RouterFile, features: np.ndarray) -> np.ndarray:
    """What a router's autoencoder makes of features [samples, width], as `routing.autoencoder.Autoencoder` computes it.

    Args:
        router: from `read_router_arrays`.
        features: L2-normalised.
    """
    import numpy as np

    arrays = router.tensors
    hidden = np.maximum(features @ np.asarray(arrays["encoder.0.weight"]).T + np.asarray(arrays["encoder.0.bias"]), 0)
    found = hidden @ np.asarray(arrays["decoder.0.weight"]).T + np.asarray(arrays["decoder.0.bias"])
    return 1 / (1 + np.exp(-found)) if router.decoder == "sigmoid" else found


def embedded(points: np.ndarray, *, seed: int) -> np.ndarray:
    """t-SNE of points [points, width]: positions [points, 2], the same for the same points, seed and libraries.

    The start is their PCA, and the perplexity 30, or a third of the points where they are few. Fewer steps than scikit-learn's
    default and a coarser approximation keep 5,000 points below ten seconds.
    """
    import numpy as np
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(points) < 4:
        return np.zeros((len(points), 2))
    with threadpool_limits(1):  # sums depend on the number of threads
        parts = min(50, *points.shape)
        narrow = PCA(parts, svd_solver="full", random_state=seed % 2**32).fit_transform(points.astype(np.float64))
        tsne = TSNE(
            2,
            init="pca",
            perplexity=min(30.0, (len(points) - 1) / 3),
            max_iter=350,
            angle=0.8,
            random_state=seed % 2**32,
        )
        return tsne.fit_transform(narrow.astype(np.float32)).astype(np.float64)
