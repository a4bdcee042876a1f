"""Wrong answers, notebook 01: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "01.1": {
        "the share that is not used": ({"1 - (1 - 1 / K) ** N": "(1 - 1 / K) ** N"}, "*not* used"),
        "right for many buckets": ({"1 - (1 - 1 / K) ** N": "1 - np.exp(-N / K)"}, "limit for large K"),
        "draws do not repeat": ({"1 - (1 - 1 / K) ** N": "min(1.0, N / K)"}, "draws repeat"),
        "the number of section 5": ({"1 - (1 - 1 / K) ** N": "0.4326 / 0.5"}, "got 0.8652"),
    },
    "01.2": {
        "no bit for the sign": ({"(np.log2(K))) + 1": "(np.log2(K)))"}, "sign needs a bit"),
        "whole bytes an entry": ({"(virtual * bits + 7) // 8": "virtual * ((bits + 7) // 8)"}, "not each entry"),
        "bits of K": ({"int(np.ceil(np.log2(K))) + 1": "K.bit_length() + 1"}, "from 0 to K - 1"),
        "the seed is free": ({"4 * K + 4": "4 * K"}, "seed is 4 bytes"),
        "right for whole bytes": ({"(virtual * bits + 7) // 8": "virtual * bits // 8"}, "with a table: got"),
        "rounded down": ({"round(virtual * compression)": "int(virtual * compression)"}, "expected"),
        "a float": ({"(virtual * bits + 7) // 8": "virtual * bits / 8"}, "with a table: got"),
        "two of three": ({"4 * virtual, 4 * K + table": "4 * K + table"}, "return a tuple (dense"),
    },
}
