"""Wrong answers, notebook 11: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "11.1": {
        "right without a stride": ({"stride * np.arange(T)": "height * np.arange(T)"}, "IndexError"),
        "right without a stride, wrapped": (
            {
                "w[stride * np.arange(T) + np.arange(height)[:, None]]": (
                    "w[(height * np.arange(T) + np.arange(height)[:, None]) % len(w)]"
                )
            },
            "not at k * height",
        ),
        "no sign": ({"sign[:, None] * x": "x"}, "signs are missing"),
        "too few windows": ({"(len(w) - height) // stride + 1": "len(w) // height"}, "IndexError"),
        "updates are lost": (
            {"np.add.at(z, t, sign[:, None] * x)": "z[t] += sign[:, None] * x"},
            "one input of each bin",
        ),
    },
    "11.2": {
        "one panel": ({"T * (cols // width)": "T"}, "every panel that it crosses"),
        "an addition a weight": ({"rows // height * cols": "rows * cols"}, "strip and input"),
        "one strip": ({"rows // height * cols": "cols"}, "additions of one strip"),
        "right without a stride": ({"(buckets - height) // stride + 1": "buckets // height"}, "windows overlap"),
    },
    "11.3": {
        "no sign": ({"sign_d[j] * x_dn": "x_dn"}, "signs are missing"),
        "sign by place": ({"sign_d[j] *": "sign_d[p] *"}, "not by its place in the list"),
        "empty bins are left out": ({"z_tn[t] = sum;": "if (starts[k] < starts[k + 1]) z_tn[t] = sum;"}, "NaN"),
        "the list as the input": ({"x_dn[j * n + s]": "x_dn[p * n + s]"}, "z_tn["),
        "one too far": ({"p < starts[k + 1]": "p <= starts[k + 1]"}, "outside"),
        "no guard": ({"    if (t >= T * n) return;\n": ""}, "outside"),
    },
    "11.4": {
        "right without a stride": ({"k * stride + i": "k * height + i"}, "outside w_k"),
        "a window too few": ({"k < T": "k < T - 1"}, "y_mn["),
        "y is transposed": ({"y_mn[t] = sum": "y_mn[s * height + i] = sum"}, "transposed"),
        "no guard": ({"    if (t >= height * n) return;\n": ""}, "outside"),
    },
}
