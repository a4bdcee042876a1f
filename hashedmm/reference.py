"""The oracle: the hashed matrix, its product and its gradients in plain NumPy, written to be read and never for speed.

Every faster path in this package is tested against these four functions. They list the indices of every weight and
compute in the dtype they are given (pass float64 for a reference). Imports hashing.
"""

from __future__ import annotations

import numpy as np

from hashedmm.hashing import HashSpec


def materialise(w: np.ndarray, spec: HashSpec) -> np.ndarray:
    """W[i, j] = sign[i, j] * w[bucket[i, j]].

    Parameters
    ----------
    w : (n_buckets,) real array
    spec : HashSpec

    Returns
    -------
    (rows, cols) array of w's dtype.
    """
    bucket, sign = spec.indices()
    return sign.astype(w.dtype) * w[bucket]


def matmul(w: np.ndarray, x: np.ndarray, spec: HashSpec) -> np.ndarray:
    """y = W x for x (cols, n): (rows, n)."""
    return materialise(w, spec) @ x


def matmul_grad_x(w: np.ndarray, gy: np.ndarray, spec: HashSpec) -> np.ndarray:
    """W^T gy, (cols, n): the gradient of a loss with respect to x, given gy (rows, n), that with respect to y."""
    return materialise(w, spec).T @ gy


def matmul_grad_w(x: np.ndarray, gy: np.ndarray, spec: HashSpec) -> np.ndarray:
    """The gradient with respect to the buckets, (n_buckets,) float64.

    The dense gradient is G = gy x^T. A bucket is used by many weights, so by the chain rule its gradient is the signed
    sum of theirs: grad_w[b] = sum of sign[i, j] G[i, j] over all (i, j) with bucket[i, j] = b (Chen et al. 2015).
    """
    bucket, sign = spec.indices()
    g = (gy @ x.T) * sign
    return np.bincount(bucket.ravel(), weights=g.ravel(), minlength=spec.n_buckets)
