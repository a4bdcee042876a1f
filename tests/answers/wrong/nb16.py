"""Wrong answers, notebook 16: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "16.1": {
        "a multiply-add is one": ({"2 * rows * cols * n": "rows * cols * n"}, "two operations"),
        "numbers, not bytes": (
            {
                "itemsize * (rows * cols * compression": "(rows * cols * compression",
                "itemsize * (rows * cols + n": "(rows * cols + n",
            },
            "`itemsize` bytes",
        ),
        "right for square ones": ({"compression + n * (rows + cols)": "compression + 2 * n * rows"}, "hashed: got"),
        "one column of x and y": (
            {
                "compression + n * (rows + cols)": "compression + rows + cols",
                "cols + n * (rows + cols)": "cols + rows + cols",
            },
            "have `n` columns",
        ),
        "fewer operations": ({"operations / hashed": "compression * operations / hashed"}, "counted by the product"),
    },
    "16.2": {
        "right for multiples": ({"-(-rows // height)": "rows // height"}, "round up"),
        "a part of a strip": ({"-(-rows // height)": "rows / height"}, "a whole strip"),
        "upside down": ({"own / (2 * rows * cols)": "2 * rows * cols / own"}, "as a share of the sketch"),
        "additions count twice": ({"own = strips * cols": "own = 2 * strips * cols"}, "one operation, not two"),
        "half the multiply-adds": ({"+ 2 * rows * bins": "+ rows * bins"}, "multiply-add is two"),
    },
}
