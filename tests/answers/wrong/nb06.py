"""Wrong answers, notebook 06: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "06.1": {
        "backwards is bad": ({'"x[31 - t]": 4': '"x[31 - t]": 32'}, "order of the lanes"),
        "aligned": ({'"x[3 + t]": 5': '"x[3 + t]": 4'}, "begin inside a sector"),
        "bytes, not lanes": ({'"x[12 * t]": 32': '"x[12 * t]": 48'}, "No request"),
        "too few": ({'"x[2 * t + 1]": 8': '"x[2 * t + 1]": 5'}, "5 is too small"),
    },
    "06.2": {
        "right, and down the columns": ({"i = t / w, j = t % w": "i = t % h, j = t / h"}, "sectors a request"),
        "no guard": ({"    if (t >= h * w) return;\n": ""}, "outside"),
        "rows as long as the window": ({"(top + i) * cols": "(top + i) * w"}, "rows of `x` have `cols` numbers"),
        "top and left swapped": (
            {"(top + i) * cols + left + j": "(left + i) * cols + top + j"},
            "`left` counts columns",
        ),
        "right at the left edge": ({"(top + i) * cols + left + j": "(top + i) * cols + j"}, "y["),
        "the row of y is as long as x's": ({"y[i * w + j]": "y[i * cols + j]"}, "writes outside y"),
    },
    "06.3": {
        "only the store": ({"(long long)i * n + s": "(long long)s * rows + i"}, "transposed"),
        "still naive, other words": ({"t / n": "t - t / rows * rows", "t % n": "t / rows"}, "next column"),
        "swapped": ({"t / n": "t % n", "t % n;": "t / n;"}, "outside x_dn"),
    },
    "06.4": {
        "right, and every third": (
            {"p = t / 3, c = t % 3": "p = t % n, c = t / n", "rgb[t]": "rgb[3 * p + c]"},
            "sectors a request (load of `rgb`)",
        ),
        "no guard": ({"    if (t >= 3 * n) return;\n": ""}, "outside"),
        "as it was": ({"planes[c * n + p]": "planes[t]"}, "planes["),
    },
}
