"""What a run's labels mean for its figures, in the same words wherever a result is shown."""

CLIENT_LATE = "client late"
SHARED_GPU = "shared GPU"
MEANING = {
    CLIENT_LATE: "in some cell wp1 itself sent requests more than 10 ms late (p99), and TTFT includes that",
    "random weights": "the output means nothing, speed and memory do",
    "built-in tasks": "made by wp1 after the benchmarks' rules, and not the official sets",
    SHARED_GPU: "engines share a GPU: they compete for it, and the KV cache never leaves it",
}


def in_words(label: str, emphasis: str = "") -> str:
    """The label, in `emphasis` markers, and its meaning; an unknown label stands alone."""
    meaning = MEANING.get(label)
    return f"{emphasis}{label}{emphasis}" + (f": {meaning}" if meaning else "")
