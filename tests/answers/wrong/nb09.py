"""Wrong answers, notebook 09: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "09.1": {
        "right unless it is whole": ({"np.floor(M / (D - P)) + 1": "np.ceil(M / (D - P))"}, "next use on"),
        "D below P": ({"D <= P": "D == P"}, "never pays"),
        "not whole": ({"np.floor(M / (D - P)) + 1": "M / (D - P)"}, "whole numbers"),
        "no case for D = P": ({"    if D <= P:\n        return np.inf\n": ""}, "never pays"),
    },
    "09.2": {
        "M forgotten": (
            {'"M = 8, P = 1, D = 5, one product": "direct"': '"M = 8, P = 1, D = 5, one product": "materialise"'},
            "matrix alone takes 8 ms",
        ),
        "D below P": ({'"direct",  # D < P': '"materialise",'}, "takes longer than the direct one"),
        "one product is ten": ({'"materialise",  # 18 < 50': '"direct",'}, "takes 1 ms, not 5"),
    },
}
