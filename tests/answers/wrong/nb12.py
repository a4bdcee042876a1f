"""Wrong answers, notebook 12: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "12.1": {
        "no sign": ({"place.sign * w_k": "w_k"}, "signs are missing"),
        "W, not its transpose": ({"locate(layout, i, j)": "locate(layout, j, i)"}, "not W^T gy"),
        "right for square ones": ({"t >= layout.cols * n": "t >= layout.rows * n"}, "last elements were not written"),
        "rows and columns": ({"i < layout.rows": "i < layout.cols"}, "outside gy_mn"),
        "no guard": ({"    if (t >= layout.cols * n) return;\n": ""}, "outside"),
    },
    "12.2": {
        "still a race": (
            {
                "atomicAdd(&gw_k[place.bucket], place.sign * g);": (
                    "const float old = gw_k[place.bucket];\n    gw_k[place.bucket] = old + place.sign * g;"
                )
            },
            "race",
        ),
        "a barrier does not help": (
            {
                "atomicAdd(&gw_k[place.bucket], place.sign * g);": "gw_k[place.bucket] += place.sign * g;\n    "
                "__threadfence();"
            },
            "race",
        ),
        "no sign": ({"place.sign * g": "g"}, "signs are missing"),
        "the last one wins": (
            {"atomicAdd(&gw_k[place.bucket], place.sign * g);": "atomicExch(&gw_k[place.bucket], place.sign * g);"},
            "gw_k[",
        ),
    },
    "12.3": {
        "no atomics": (
            {
                "atomicAdd(&sum_k[place.bucket], (unsigned long long)whole)": "sum_k[place.bucket] += (unsigned long "
                "long)whole"
            },
            "race",
        ),
        "cut": ({"rint(scale * (place.sign * g))": "(scale * (place.sign * g))"}, "cut, not rounded"),
        "32 bits": ({"(long long)rint": "(int)rint"}, "32 bits"),
        "no sign": ({"place.sign * g": "g"}, "signs are missing"),
        "no scale": ({"rint(scale * (place.sign * g))": "rint(place.sign * g)"}, "multiplied by the scale"),
    },
    "12.4": {
        "atomics fix the order": (
            {'"float atomicAdd on a GPU": "may differ"': '"float atomicAdd on a GPU": "same bits"'},
            "another order",
        ),
        "integers do not commute": (
            {'"64-bit integer atomicAdd on a GPU": "same bits"': '"64-bit integer atomicAdd on a GPU": "may differ"'},
            "whole numbers",
        ),
        "other words": (
            {'"np.add.at on a CPU, float32": "same bits"': '"np.add.at on a CPU, float32": "yes"'},
            "is not it",
        ),
    },
}
