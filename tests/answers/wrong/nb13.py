"""Wrong answers, notebook 13: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "13.1": {
        "no biases": (
            {
                "(d_in + 1) * width + (width + 1) * d_out": "width * (d_in + d_out)",
                "stored - d_out) // (d_in + 1 + d_out": "stored) // (d_in + d_out",
            },
            "biases are stored",
        ),
        "half to even": (
            {
                "min(below, below + 1, key=lambda width: abs(values(width) - stored))": (
                    "max(1, round((stored - d_out) / (d_in + 1 + d_out)))"
                )
            },
            "take the smaller",
        ),
        "the largest that fits": (
            {"min(below, below + 1, key=lambda width: abs(values(width) - stored))": "below"},
            "nearest",
        ),
        "the larger of two": ({"min(below, below + 1,": "min(below + 1, below,"}, "take the smaller"),
        "the expected constant": (
            {"min(below, below + 1, key=lambda width: abs(values(width) - stored))": "126"},
            "expected",
        ),
    },
    "13.2": {
        "sample by sample": ({"reshape(features, n).T": "reshape(n, features)"}, "f * n + i"),
        "high halves first": (
            {"np.stack([low, high]": "np.stack([high, low]"},
            "low half comes first",
        ),
        "the same in every step": ({"np.uint32(derive_seed(seed, step))": "np.uint32(seed)"}, "derive_seed"),
        "not scaled": ({"(keep * (2**16 / (2**16 - threshold)))": "(keep * 1.0)"}, "1 / (1 - rate)"),
        "scaled by the rate as given": (
            {"(keep * (2**16 / (2**16 - threshold)))": "(keep / (1 - rate))"},
            "the rounded one",
        ),
        "float64": ({".astype(np.float32)": ""}, "float64; return float32"),
        "above, not below": ({">= threshold": "< threshold"}, "mask["),
        "another generator": ({"fmix32(k * np.uint32(0x9E3779B1) ^ key)": "fmix32(k ^ key)"}, "mask["),
    },
}
