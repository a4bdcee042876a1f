"""Matrix products with hashed weights: a matrix W_h whose entries a hash draws from few stored buckets."""

from hashedmm.build import RawKernel, gpu_available
from hashedmm.check import check
from hashedmm.checkpoint import load_model, save_model
from hashedmm.datasets import Dataset, load_mnist
from hashedmm.hashing import HashSpec, derive_seed
from hashedmm.matmul import KERNELS, hashed_matmul, hashed_matmul_grad_w, hashed_matmul_grad_x, materialise
from hashedmm.nn import MLP, SGD, Adam, Dropout, HashedLinear, Linear, ReLU, train
from hashedmm.variants import VARIANTS, load_variant

__version__ = "0.1.0"

__all__ = [
    "KERNELS",
    "MLP",
    "SGD",
    "VARIANTS",
    "Adam",
    "Dataset",
    "Dropout",
    "HashSpec",
    "HashedLinear",
    "Linear",
    "RawKernel",
    "ReLU",
    "check",
    "derive_seed",
    "gpu_available",
    "hashed_matmul",
    "hashed_matmul_grad_w",
    "hashed_matmul_grad_x",
    "load_mnist",
    "load_model",
    "load_variant",
    "materialise",
    "save_model",
    "train",
]
