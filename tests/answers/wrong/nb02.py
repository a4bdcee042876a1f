"""Wrong answers, notebook 02: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "02.1": {
        "one step short": ({"return h ^ (h >> np.uint32(16))": "return h"}, "last step"),
        "three steps": (
            {"    h = h * np.uint32(0xC2B2AE35)\n    return h ^ (h >> np.uint32(16))": "    return h"},
            "second mult",
        ),
        "a shift of 16": ({"np.uint32(13)": "np.uint32(16)"}, "by 13"),
        "in place": (
            {"    h = h ^ (h >> np.uint32(16))\n    h =": "    h ^= h >> np.uint32(16)\n    h ="},
            "argument `h` in place",
        ),
        "64 bits wide": (
            {
                "    h = h ^ (h >> np.uint32(16))\n    h =": (
                    "    h = h.astype(np.uint64)\n    h = h ^ (h >> 16)\n    h ="
                )
            },
            "h[",
        ),
        "64 bits from first to last": (
            {
                "    h = h ^ (h >> np.uint32(16))\n    h =": "    h = h.astype(np.uint64)\n"
                "    h = h ^ (h >> np.uint32(16))\n    h ="
            },
            "kept in 64 bits",
        ),
        "64 bits at the end": (
            {"return h ^ (h >> np.uint32(16))": "return (h ^ (h >> np.uint32(16))).astype(np.uint64)"},
            "h is uint64; return uint32",
        ),
    },
    "02.2": {
        "the row key alone is mixed": (
            {
                "fmix32(row_key(i, seed) ^ (j * np.uint32(0x9E3779B1)))": "fmix32(row_key(i, seed)) ^ (j * "
                "np.uint32(0x9E3779B1))"
            },
            "Likely",
        ),
        "the column alone is mixed": (
            {
                "fmix32(row_key(i, seed) ^ (j * np.uint32(0x9E3779B1)))": "row_key(i, seed) ^ fmix32(j * "
                "np.uint32(0x9E3779B1))"
            },
            "column alone",
        ),
        "rows and columns swapped": (
            {
                "fmix32(row_key(i, seed) ^ (j * np.uint32(0x9E3779B1)))": "fmix32(row_key(j, seed) ^ (i * "
                "np.uint32(0x9E3779B1)))"
            },
            "swapped",
        ),
        "still broken, in other words": (
            {
                "fmix32(row_key(i, seed) ^ (j * np.uint32(0x9E3779B1)))": "(j * np.uint32(0x9E3779B1)) ^ row_key(i, "
                "seed)"
            },
            "low bit of j",
        ),
    },
    "02.3": {
        "the remainder": ({"h.astype(np.uint64) * np.uint64(T) >> np.uint64(32)": "h % np.uint64(T)"}, "low bits"),
        "32 bits": (
            {
                "h.astype(np.uint64) * np.uint64(T) >> np.uint64(32)": "(h * np.uint32(T)).astype(np.uint64) >> "
                "np.uint64(32)"
            },
            "cut to 32 bits",
        ),
        "float32": (
            {
                "h.astype(np.uint64) * np.uint64(T) >> np.uint64(32)": "(h.astype(np.float32) * np.float32(T) / "
                "np.float32(2**32)).astype(np.int64)"
            },
            "float32",
        ),
        "not rounded": ({"h.astype(np.uint64) * np.uint64(T) >> np.uint64(32)": "h * (T / 2**32)"}, "expected"),
        "flat": (
            {
                "h.astype(np.uint64) * np.uint64(T) >> np.uint64(32)": "(h.astype(np.uint64) * np.uint64(T) >> "
                "np.uint64(32)).ravel()"
            },
            "wrong shape",
        ),
    },
    "02.4": {
        "right unless T divides": ({"-(-(2**bits) // T), 2**bits // T": "2**bits // T + 1, 2**bits // T"}, "T divides"),
        "for words of 8 bits": ({"2**bits // T": "256 // T"}, "expected"),
        "the expected constant": ({"most, least, most - least": "3, 2, 1"}, "T = 64"),
    },
}
