"""Wrong answers, notebook 08: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "08.1": {
        "seconds": ({"1e3 * moved": "moved", "1e3 * operations": "operations"}, "in seconds"),
        "the sum": ({"max(by_bytes, by_operations)": "by_bytes + by_operations"}, "sum of both"),
        "the smaller": ({"max(by_bytes, by_operations)": "min(by_bytes, by_operations)"}, "smaller of the two"),
        "right for few columns": (
            {'"bytes" if by_bytes >= by_operations else "operations"': '"bytes"'},
            "limit: got 'bytes'",
        ),
    },
    "08.2": {
        "the dense matrix": ({"round(rows * cols * compression)": "rows * cols"}, "dense matrix is not moved"),
        "buckets alone": ({" + cols * n + rows * n": ""}, "`x` and `y` are moved"),
        "right for float32": ({"itemsize * numbers": "4 * numbers"}, "`itemsize` bytes"),
        "another giga": ({"/ 1e9": "/ 2**30"}, "2^30"),
        "x alone is missing": ({" + cols * n": ""}, "`x` is moved"),
        "part of a bucket": ({"round(rows * cols * compression)": "rows * cols * compression"}, "round it"),
        "right for square ones": ({"cols * n + rows * n": "2 * cols * n"}, "rate: got"),
    },
    "08.3": {
        "all calls": ({"times[1:]": "times"}, "got"),
        "another order": (
            {"np.median(kept), np.percentile(kept, 20)": "np.percentile(kept, 20), np.median(kept)"},
            "the order is",
        ),
        "the mean": ({"np.median(kept)": "np.mean(kept)"}, "mean"),
        "the minimum": ({"np.median(kept)": "np.min(kept)"}, "minimum"),
        "without the largest": ({"times[1:]": "np.sort(times)[:-1]"}, "largest time was left out"),
        "sorted in place": ({"    kept = times[1:]": "    kept = times[1:]\n    kept.sort()"}, "`times` in place"),
    },
    "08.4": {
        "NaN in another way": ({"np.abs(got - expected) <= bound": "~(np.abs(got - expected) > bound)"}, "one NaN"),
        "too small passes": ({"np.abs(got - expected) <= bound": "got - expected <= bound"}, "one too small"),
        "NaN taken for 0": ({"    near =": "    got = np.nan_to_num(got)\n    near ="}, "one NaN"),
        "below the bound": ({"<= bound": "< bound"}, "a bound of 0"),
        "most of them": ({"near.all()": "near.mean() > 0.9"}, "one too large"),
        "NaN is left out": ({"    near =": "    got = np.nan_to_num(got, nan=expected)\n    near ="}, "one NaN"),
    },
}
