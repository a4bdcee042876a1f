"""Wrong answers, notebook 05: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "05.1": {
        "no sign": ({"h & 1 ? -w_k[bucket] : w_k[bucket]": "w_k[bucket]"}, "sign is missing"),
        "the sign turned round": (
            {"h & 1 ? -w_k[bucket] : w_k[bucket]": "h & 1 ? w_k[bucket] : -w_k[bucket]"},
            "wrong way round",
        ),
        "remainder": ({"(unsigned)(((unsigned long long)h * T) >> 32)": "h % T"}, "`h % T`"),
        "32 bits": ({"(unsigned long long)h * T": "(unsigned long long)(h * T)"}, "only bucket 0"),
        "in float": ({"(unsigned)(((unsigned long long)h * T) >> 32)": "h / 4294967296.0f * T"}, "computed in float"),
        "no guard": ({"    if (i >= n) return;\n": ""}, "outside d (float32, 5 elements)"),
        "a row, not the diagonal": ({"hash_ij(i, i, seed)": "hash_ij(0, i, seed)"}, "d["),
    },
    "05.2": {
        "right for n = cols": ({"(long long)s * cols + j": "(long long)s * n + j"}, "y_mn[0, 1]"),
        "samples in columns": ({"(long long)s * cols + j": "(long long)j * n + s"}, "as if it were (cols, n)"),
        "the last output is missing": (
            {">= (long long)rows * n)": ">= (long long)rows * n - 1)"},
            "last elements were not written",
        ),
        "one thread too many": ({">= (long long)rows * n)": "> (long long)rows * n)"}, "outside"),
        "y is transposed": ({"(long long)i * n + s": "(long long)s * rows + i"}, "transposed"),
        "the sign is lost": ({"h & 1 ? -w_k[bucket] : w_k[bucket]": "w_k[bucket]"}, "sign is missing"),
        "swapped in the hash": ({"weight(w_k, i, j": "weight(w_k, j, i"}, "swapped in the hash"),
        "the last input is forgotten": ({"j < cols": "j < cols - 1"}, "y_mn["),
    },
    "05.3": {
        "the guard is left": ({">= (long long)rows * n": "> (long long)rows * n"}, "outside"),
        "the bucket is left": (
            {"(unsigned)(((unsigned long long)h * T) >> 32)": "(unsigned)((unsigned long long)(h * T) >> 32)"},
            "only bucket 0",
        ),
        "another hash": ({"(unsigned)(((unsigned long long)h * T) >> 32)": "h % T"}, "`h % T`"),
    },
    "05.4": {
        "each weight once": (
            {'"loads of w_k": 48 * 20 * 3': '"loads of w_k": 48 * 20'},
            "Every sample loads its weights again",
        ),
        "x once": ({'"loads of x_dn": 48 * 20 * 3': '"loads of x_dn": 20 * 3'}, "what x holds"),
        "words": ({"48 * 20,": '"many",'}, "give a number"),
    },
}
