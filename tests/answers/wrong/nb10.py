"""Wrong answers, notebook 10: {exercise: {why: (edits of the solution, what the check has to say)}}."""

WRONG = {
    "10.1": {
        "right for whole panels": (
            {
                "base = r * row_of_panels + c * buckets(h, width)": "base = (r * across + c) * buckets(height, width)",
                "base + buckets(h, w)": "base + buckets(height, width)",
            },
            "edges are smaller",
        ),
        "right above the last row": ({"c * buckets(h, width)": "c * buckets(height, width)"}, "start: got"),
        "the last column is full": (
            {"buckets(height, last)": "buckets(height, width)"},
            "start: got",
        ),
        "right where the last is narrower": (
            {"last = cols - (across - 1) * width": "last = cols % width"},
            "not 0 wide",
        ),
        "the last panel is full": ({"base + buckets(h, w)": "base + buckets(h, width)"}, "stop: got"),
        "32 bits": (
            {"return base, base +": "base = int(np.uint32(base % 2**32))\n    return base, base +"},
            "(8191, 1023)",
        ),
    },
    "10.2": {
        "no second barrier": ({"        __syncthreads();  // nobody reads the slice any more\n": ""}, "race"),
        "no first barrier": ({"        __syncthreads();  // the slice is complete\n": ""}, "race"),
        "as many as threads": (
            {
                "for (int k = threadIdx.x; k < panel.buckets; k += blockDim.x) {": (
                    "const int k = threadIdx.x;\n        if (k < panel.buckets) {"
                ),
            },
            "uninitialised",
        ),
        "right for one panel": ({"w_k[panel.base + k]": "w_k[k]"}, "from `panel.base` on"),
        "a run for each thread": (
            {
                "for (int k = threadIdx.x; k < panel.buckets; k += blockDim.x) {": (
                    "const int each = (panel.buckets + blockDim.x - 1) / blockDim.x;\n"
                    "        for (int k = threadIdx.x * each; k < (threadIdx.x + 1) * each; ++k) {\n"
                    "            if (k >= panel.buckets) break;"
                )
            },
            "neighbouring buckets",
        ),
        "outside": ({"k < panel.buckets": "k < panel.buckets + 1"}, "outside"),
    },
    "10.3": {
        "a little narrow": (
            {
                "(most + 0.5)": "most",
                "    while round(height * width * compression) > most:\n        width -= 1\n": "    width -= 1\n",
            },
            "slightly wider",
        ),
        "one wider is not enough": ({"(most + 0.5)": "most"}, "half a bucket more"),
        "buckets": ({"    return width": "    return most"}, "number of buckets"),
        "right for one byte": ({"budget // itemsize": "budget"}, "width: got"),
    },
}
