"""Wrong answers, notebook 15: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "15.1": {
        "one buffer": ({"min(2, count) * largest": "largest"}, "two windows are on the card"),
        "two buffers for one window": ({"min(2, count) * largest": "2 * largest"}, "windows: got"),
        "rounded down": ({"-(-rows // count)": "(rows // count)"}, "windows: got"),
        "never one window": ({"range(1, rows + 1)": "range(2, rows + 1)"}, "only if there is one"),
        "nothing fixed": ({"fixed + min": "min"}, "fixed bytes are on the card"),
        "the last number is left out": ({"range(1, rows + 1)": "range(1, rows)"}, "windows: got"),
        "an average size": (
            {"-(-rows // count) * row_bytes": "rows / count * row_bytes"},
            "not for one of average size",
        ),
    },
    "15.2": {
        "one after the other": (
            {
                '[("copy", k) for k in range(min(buffers, windows))]': '[("copy", 0)]',
                "k + buffers < windows": "k + 1 < windows",
                '("copy", k + buffers)': '("copy", k + 1)',
            },
            "on its way",
        ),
        "too early": (
            {
                '        orders.append(("product", k))\n': "",
                '            orders.append(("copy", k + buffers))\n': (
                    '            orders.append(("copy", k + buffers))\n        orders.append(("product", k))\n'
                ),
            },
            "before the product that reads it",
        ),
        "too many at first": ({"range(min(buffers, windows))": "range(buffers)"}, "there are windows 0 to"),
        "all at once": (
            {"range(min(buffers, windows))": "range(windows)", "k + buffers < windows": "False"},
            "the window that each product found",
        ),
        "the last is missing": ({"for k in range(windows):": "for k in range(windows - 1):"}, "product found"),
        "a product before its copy": (
            {'orders.append(("product", k))': 'orders.insert(0, ("product", k))'},
            "before its",
        ),
        "no list": ({"return orders": "return tuple(orders)"}, "return a list of orders"),
    },
    "15.3": {
        "all of y": ({'4 * (4096 // 4) * 512,\n    "panels': '4 * 4096 * 512,\n    "panels'}, "a quarter of them"),
        "to one other": ({"3 * 4 * (4096 // 4)": "4 * (4096 // 4)"}, "*three* others"),
        "the array once": ({"2 * 3 / 4 * 4 * 4096**2 / 64": "4 * 4096**2 / 64"}, "2 (P - 1) / P"),
        "the dense array once": ({"2 * 3 / 4 * 4 * 4096**2,": "4 * 4096**2,"}, "one and a half"),
    },
    "15.4": {
        "the sum": ({"n / sum(samples) for n": "n for n"}, "their mean"),
        "0 times NaN": ({" if share)": ")"}, "gradient"),
        "those that have any, alike": (
            {"n / sum(samples) for n in samples": "(n > 0) / sum(k > 0 for k in samples) for n in samples"},
            "by its share of the samples",
        ),
    },
}
