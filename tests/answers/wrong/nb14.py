"""Wrong answers, notebook 14: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "14.1": {
        "no places": (
            {"(budget - -(-size // 8)) // 4": "budget // 4"},
            "the places have to be stored, too",
        ),
        "a map always": ({"max(mapped, listed)": "mapped"}, "a map is not the better way"),
        "a list always": ({"max(mapped, listed)": "listed"}, "a list is not the better way"),
        "places in whole bytes": (
            {"8 * budget // (32 + bits)": "budget // (4 + -(-bits // 8))"},
            "packed places need no whole bytes",
        ),
        "a map cut to whole bytes": ({"- -(-size // 8)": "- size // 8"}, "whole bytes: round up"),
        "more than there are": ({"min(size, max(mapped, listed))": "max(mapped, listed)"}, "no more weights than"),
        "one bit too many at powers of two": ({"(size - 1).bit_length()": "size.bit_length()"}, "kept: got"),
        "the expected constant": ({"min(size, max(mapped, listed))": "73500"}, "kept: got 73500, expected"),
    },
    "14.2": {
        "of a population": ({"a.var(ddof=1)": "a.var()", "b.var(ddof=1)": "b.var()"}, "n - 1"),
        "of one seed": ({" / len(a)": "", " / len(b)": ""}, "its number of seeds"),
        "no root": ({"np.sqrt(variance)": "variance"}, "take the root"),
        "deviations for variances": (
            {"a.var(ddof=1)": "a.std(ddof=1)", "b.var(ddof=1)": "b.std(ddof=1)"},
            "squares of the deviations",
        ),
        "a minus b": ({"b.mean() - a.mean()": "a.mean() - b.mean()"}, "difference is b minus a"),
        "deviations added": (
            {
                "a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)": (
                    "(a.std(ddof=1) / len(a) ** 0.5 + b.std(ddof=1) / len(b) ** 0.5) ** 2"
                )
            },
            "add variances",
        ),
        "as many seeds on both sides": ({"/ len(b)": "/ len(a)"}, "3 against 5 seeds: standard error: got"),
    },
    "14.3": {
        "both strictly": ({"as_fast & as_good & (faster | better)": "faster & better"}, "need not be strict"),
        "equal ones dominate each other": (
            {
                "dominates = as_fast & as_good & (faster | better)": (
                    "dominates = as_fast & as_good & ~np.eye(len(speed), dtype=bool)"
                )
            },
            "neither dominates the other",
        ),
        "dominated ones": ({"~dominates.any(axis=0)": "dominates.any(axis=0)"}, "this is the opposite"),
        "a larger error": (
            {"error[:, None] <= error": "error[:, None] >= error", "error[:, None] < error": "error[:, None] > error"},
            "a smaller error is better",
        ),
        "rows for columns": ({"any(axis=0)": "any(axis=1)"}, "on the frontier"),
        "numbers": ({"~dominates.any(axis=0)": "1 - dominates.any(axis=0)"}, "return bool"),
    },
}
