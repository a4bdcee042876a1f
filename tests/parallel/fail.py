"""A training in which the last rank does something wrong: `mpiexec -n N python fail.py HOW`; see test_parallel.py.

HOW is kill, hang, raise or seed. With 2 ranks panels are split, with 3 the samples. Imports hashedmm and mpi4py.
"""

import itertools
import os
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np

from hashedmm import nn
from hashedmm.nn import MLP, train
from hashedmm.parallel import DataParallel, PanelParallel, world

HOW = sys.argv[1]


def wrong():
    print(f"step 5 is reached, {HOW} follows", file=sys.stderr, flush=True)
    if HOW == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif HOW == "hang":
        time.sleep(600)
    elif HOW == "raise":
        raise RuntimeError("what went wrong")


def main():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, 20), np.float32), rng.integers(0, 4, 300)
    with world(timeout=2 if HOW == "hang" else 100) as ranks:
        last = ranks.rank == ranks.size - 1
        real, steps = nn._softmax_cross_entropy, itertools.count()

        def function(*args):
            if last and next(steps) == 5:
                wrong()
            return real(*args)

        nn._softmax_cross_entropy = function
        seed = 7 if last and HOW == "seed" else 0
        net = MLP([20, 96, 4], structure="panels", compression=1 / 4, panel=(16, 16), seed=seed)
        kind = PanelParallel if ranks.size == 2 else DataParallel
        train(kind(net, ranks), SimpleNamespace(x_train=x, y_train=y), evaluate=False, epochs=100000, progress=False)


if __name__ == "__main__":
    main()
