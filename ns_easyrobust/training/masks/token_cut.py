"""TokenCut: the object of an image, by a normalised cut of the graph of its patches (Wang et al. 2022, 2202.11539).

The steps and constants are those of the authors' ``object_discovery.py`` (github.com/YangtaoWANG95/TokenCut, lines 11
to 97 of its ``unsupervised_saliency_detection``). Their bilateral solver, which then draws the mask's border along the
photograph's edges, is left out: borders here are those of patches.
"""

from __future__ import annotations

from typing import Any

from ...utils import ndimage, np

_WEAK = 1e-5  # weight of an edge between patches that are not alike: the graph stays connected
_TIED = 1e-6  # patches with the same neighbours have equal entries; rounding must not choose between them


def token_cut(
    keys: Any, grid: tuple[int, int], tau: float = 0.2, attention: Any = None, *, centred: bool = True
) -> Any:
    """The mask of an image's object: (height, width) bool.

    Args:
        keys: (N, D) features of the patches, row by row, N = height * width.
        grid: (height, width).
        tau: patches are alike where the cosine of their keys is above this.
        attention: (N,) what the class token pays the patches: the object is on the side of the cut where the mean is
            larger. None: as published, on the side of the largest entry of the eigenvector, mostly the smaller side;
            in photographs that their object fills, that is the background.
        centred: take the mean of the image's keys off them first. A vector added to all keys adds the same to each of
            a query's scores, so that attention does not see it, but cosines do: in a DINOv2 model they are all above
            0.6. False: as published, for DINO's keys.

    Returns:
        All False where every two patches are alike, or no two are: there is no cut then.
    """
    keys = np.asarray(keys, dtype=np.float64)
    weights = affinity(keys - keys.mean(axis=0) if centred else keys, tau)
    apart = ~np.eye(len(weights), dtype=bool)
    if len(weights) < 3 or np.ptp(weights[apart]) == 0:
        return np.zeros(grid, bool)
    return object_side(second_eigenvector(weights), grid, attention)


def affinity(keys: Any, tau: float) -> Any:
    """Weights of the graph, (N, N) float64: 1 where the cosine of two keys is above ``tau``, else 1e-5."""
    unit = keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-12)
    return np.where(unit @ unit.T > tau, 1.0, _WEAK)


def second_eigenvector(weights: Any) -> Any:
    """The relaxed normalised cut, (N,) float64: (D - A) v = lambda D v with the second smallest lambda.

    Args:
        weights: A, (N, N), symmetric and positive; D is the diagonal of its row sums (Shi and Malik 2000, Eq. 6).
    """
    from scipy.linalg import eigh

    degrees = np.diag(weights.sum(axis=1))
    _, vectors = eigh(degrees - weights, degrees, subset_by_index=[1, 1])
    return vectors[:, 0]


def object_side(vector: Any, grid: tuple[int, int], attention: Any = None) -> Any:
    """Patches on the object's side of the mean and connected (by their sides) with the seed, (height, width) bool.

    The seed is the patch of the largest absolute entry, on the side that ``attention`` (N,) chooses or on any; of
    equal ones the first, so that neither the eigenvector's sign nor rounding decides.
    """
    above, sizes = vector > vector.mean(), np.abs(vector)
    if attention is not None:
        attention = np.asarray(attention, dtype=np.float64)
        if attention[above].mean() < attention[~above].mean():
            above = ~above
        sizes = np.where(above, sizes, -1.0)
    seed = int(np.argmax(sizes >= sizes.max() * (1 - _TIED)))
    side = (above if above[seed] else ~above).reshape(grid)
    components, _ = ndimage.label(side)
    return components == components.reshape(-1)[seed]
