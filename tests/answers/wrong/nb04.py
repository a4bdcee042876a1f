"""Wrong answers, notebook 04: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "04.1": {
        "no guard": ({"if (i < n) ": ""}, "outside x (float32, 1 elements)"),
        "right for one block": ({"blockIdx.x * blockDim.x + threadIdx.x": "threadIdx.x"}, "`blockIdx.x` is missing"),
        "one too few": ({"i < n": "i < n - 1"}, "NaN"),
        "right for multiples of 64": ({"i < n": "i < n / 64 * 64"}, "NaN"),
        "slope on the wrong side": ({"x[i] > 0.0f ? x[i] : slope * x[i]": "x[i] > 0.0f ? slope * x[i] : x[i]"}, "y[0]"),
        "a typing error": ({"slope * x[i];": "slope * x[k];"}, "line 4 of the kernel"),
        "no semicolon": ({"slope * x[i];": "slope * x[i]"}, "does not compile"),
        "another name": ({"void leaky": "void leak"}, "has to be called `leaky`; the code has: leak"),
        "the input is changed": (
            {"const float* x": "float* x", "if (i < n) y[i]": "if (i < n) x[i] = y[i]"},
            "changed its input `x`",
        ),
    },
    "04.2": {
        "half a guard": ({" && j < cols": ""}, "outside"),
        "right for square ones": ({"i * cols + j": "i * rows + j"}, "y["),
        "one factor a row": ({"c[j]": "c[i]"}, "one factor a row"),
        "x is the row": (
            {
                "blockIdx.x * blockDim.x + threadIdx.x": "blockIdx.y * blockDim.y + threadIdx.y",
                "const int i = blockIdx.y * blockDim.y + threadIdx.y": "const int i = blockIdx.x * blockDim.x + "
                "threadIdx.x",
            },
            "`i` and `j` are swapped",
        ),
        "indices of Python": ({"[i * cols + j]": "[i, j]"}, "C has no `y[i, j]`"),
    },
    "04.3": {
        "right in C order": (
            {"(np.int64(stride // x.itemsize) for stride in x.strides)": "(np.int64(cols), np.int64(1))"},
            "as if it were in C order",
        ),
        "bytes": ({"stride // x.itemsize": "stride"}, "outside"),
        "Python numbers": ({"np.int64(stride // x.itemsize)": "stride // x.itemsize"}, "np.int64"),
        "a Python int at the end": ({"np.int32(cols)": "cols"}, "np.int32"),
        "a copy": (
            {"    rows, cols = x.shape": "    x = np.ascontiguousarray(x)\n    rows, cols = x.shape"},
            "pass `x`, not a copy",
        ),
        "five arguments": ({", np.int32(rows), np.int32(cols)": ", np.int32(rows)"}, "six arguments"),
    },
    "04.4": {
        "rounded down": ({"-(-2500 // 192)": "2500 // 192"}, "four elements are left over"),
        "counted from the last index": ({"14 * 192 - 1 - 2499": "14 * 192 - 1 - 2500"}, "*one* past"),
    },
}
