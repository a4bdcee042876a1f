"""Wrong answers, notebook 03: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "03.1": {
        "right in the first block": ({"block_row = i // height": "block_row = i"}, "share the hash"),
        "right in row 0": ({"t * height + i % height": "t * height"}, "`i % height`, is missing"),
        "sign turned round": ({"-1 if h & 1 else 1": "1 if h & 1 else -1"}, "wrong way round"),
        "remainder": ({"h * T >> 32": "h % T"}, "bucket: got"),
        "one candidate short": ({"(buckets - height) // height + 1": "(buckets - height) // height"}, "too few"),
        "a window at every bucket": ({"(buckets - height) // height + 1": "buckets - height + 1"}, "end to end"),
        "quotient and remainder": ({"i % height": "i // height"}, "what is left of `i`"),
        "the remainder is hashed": ({"block_row = i // height": "block_row = i % height"}, "`i % height` was hashed"),
    },
    "03.2": {
        "no sign": ({"sign[i] * w[bucket[i]]": "w[bucket[i]]"}, "signs are missing"),
        "right for one sample": (
            {
                "y = np.full((rows, x.shape[1]), np.nan)": "y = np.full((rows, 1), np.nan)",
                "y[i] = (sign[i] * w[bucket[i]]) @ x": "y[i] = (sign[i] * w[bucket[i]]) @ x[:, 0]",
            },
            "wrong shape",
        ),
        "the last row is forgotten": ({"range(rows)": "range(rows - 1)"}, "not written"),
        "float32": ({"    return y": "    return y.astype(np.float32)"}, "in float32"),
        "transposed": ({"    return y": "    return y.T"}, "transposed"),
        "integers": ({"(sign[i] * w[bucket[i]]) @ x": "np.rint((sign[i] * w[bucket[i]]) @ x)"}, "expected"),
    },
    "03.3": {
        "updates are lost": ({"np.add.at(grad_w, bucket, sign * G)": "grad_w[bucket] += sign * G"}, "updates are lost"),
        "no sign": ({"sign * G": "G"}, "signs are missing"),
        "right for square ones": ({"gy @ x.T": "(x @ gy.T).T if len(x) != len(gy) else x @ gy.T"}, "expected"),
        "the mean": (
            {"    return grad_w": "    return grad_w / np.maximum(np.bincount(bucket.ravel(), minlength=buckets), 1)"},
            "their sum",
        ),
        "as long as the largest bucket": (
            {"    return grad_w": "    return grad_w[: bucket.max() + 1]"},
            "wrong shape",
        ),
    },
    "03.4": {
        "updates are lost": ({"np.add.at(z, t, sign[:, None] * x)": "z[t] += sign[:, None] * x"}, "adds only the last"),
        "no sign": ({"sign[:, None] * x": "x"}, "signs are missing"),
        "y alone": ({"return z, C @ z": "return C @ z"}, "return a tuple"),
        "the input is overwritten": (
            {"    np.add.at(z, t, sign[:, None] * x)": "    x *= sign[:, None]\n    np.add.at(z, t, x)"},
            "`x` in place",
        ),
    },
}
