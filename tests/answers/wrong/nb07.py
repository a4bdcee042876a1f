"""Wrong answers, notebook 07: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "07.1": {
        "in the if": (
            {
                "if (t < n) kept[t] = x[t];\n    __syncthreads();": (
                    "if (t < n) {\n        kept[t] = x[t];\n        __syncthreads();\n    }"
                )
            },
            "Every thread of a block has to reach",
        ),
        "a barrier for the warp": ({"__syncthreads()": "__syncwarp()"}, "race"),
        "too late": (
            {
                "    __syncthreads();  // kept is complete\n": "",
                "kept[n - 1 - t];": "kept[n - 1 - t];\n    __syncthreads();",
            },
            "race",
        ),
        "off by one": ({"n - 1 - t": "n - t"}, "y["),
        "no use of shared memory, and not reversed": ({"kept[n - 1 - t]": "kept[t]"}, "y["),
    },
    "07.2": {
        "no barrier in the loop": ({"        __syncthreads();\n    }": "    }"}, "race"),
        "no barrier before it": ({"0.0f;\n    __syncthreads();": "0.0f;"}, "race"),
        "a barrier in the if": (
            {
                "if (t < half) part[t] += part[t + half];\n        __syncthreads();": (
                    "if (t < half) {\n            part[t] += part[t + half];\n            __syncthreads();\n        }"
                )
            },
            "barrier",
        ),
        "right for multiples of 128": ({"i < n ? x[i] : 0.0f": "x[i]"}, "outside x"),
        "home early": (
            {"    part[t] = i < n ? x[i] : 0.0f;": "    if (i >= n) return;\n    part[t] = x[i];"},
            "Every thread of a block has to reach",
        ),
        "nobody adds": ({"if (t < half) part[t] += part[t + half];": ""}, "nothing was added"),
        "not written past the end": ({"part[t] = i < n ? x[i] : 0.0f;": "if (i < n) part[t] = x[i];"}, "uninitialised"),
    },
    "07.3": {
        "right, and no tile": (
            {
                "sum += a_tile[ty][k] * x_tile[k][tx]": (
                    "if (i < rows && s < n && j0 + k < cols) sum += a[i * cols + j0 + k] * x[(j0 + k) * n + s]"
                )
            },
            "fetch each tile once",
        ),
        "no second barrier": ({"x_tile[k][tx];\n        __syncthreads();": "x_tile[k][tx];"}, "race"),
        "no first barrier": ({"0.0f;\n        __syncthreads();\n        for": "0.0f;\n        for"}, "race"),
        "right for whole tiles": (
            {"i < rows && j0 + tx < cols ? a[i * cols + j0 + tx] : 0.0f": "a[i * cols + j0 + tx]"},
            "outside a",
        ),
        "the other guard": ({"j0 + ty < cols && s < n": "j0 + tx < cols && s < n"}, "outside x"),
        "only the first tile": ({"j0 < cols; j0": "j0 < 16; j0"}, "y["),
        "the store is not guarded": ({"if (i < rows && s < n) y": "if (i < rows) y"}, "outside"),
    },
    "07.4": {
        "an even number": ({"tile[32][33]": "tile[32][34]"}, "2 wavefronts a request"),
        "the conflict moved to the store": (
            {
                "tile[32][33]": "tile[32][32]",
                "tile[ty][tx] = a": "tile[tx][ty] = a",
                "= tile[tx][ty]": "= tile[ty][tx]",
            },
            "32 wavefronts a request",
        ),
        "no tile": (
            {
                "b[(column + ty) * rows + row + tx] = tile[tx][ty]": (
                    "b[(column + ty) * rows + row + tx] = a[(row + tx) * cols + column + ty]"
                )
            },
            "32 sectors a request",
        ),
        "too narrow": ({"tile[32][33]": "tile[32][31]"}, "tile[31]"),
    },
}
