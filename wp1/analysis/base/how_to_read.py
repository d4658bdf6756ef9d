"""What the figures of a page mean, in words: the paragraphs at the end of reports and comparisons."""

HOW_TO_READ = """\
- **TTFT**: first output token − intended arrival; its parts: **queue** (until scheduled), **prefill**, and the token's
  way from the engine to the client.
- **first decode step**: from prefill, or the handoff, to the first token that decoding made.
- **TPOT**: (last token − first token) / (output tokens − 1); **ITL**: the single gaps.
- **E2E**: last token − intended arrival.
- **client delay**: how late wp1 itself sent; it is part of TTFT. Above 10 ms (p99) the cell is marked.
- **event-loop lag**: how late timers fired in wp1's own loop, which sends requests and takes tokens.
- Warm-up requests and engine start are not in any figure; failed requests are counted, and have no latencies."""
HOW_TO_READ_ONE_EACH = """\
- **TTFT**: first output token − intended arrival; **E2E**: last token − intended arrival. Warm-up requests and engine
  start are in no figure."""
HOW_TO_READ_LOAD = """\
- **steady state**: at the start of an open loop engines are empty, at its end they run empty. What was due between one
  median E2E after the first arrival (after the ramp) and one before the last counts, in all arms alike, if that is 20
  requests a repeat.
- **over-saturated**: less than 90 % of the offered rate was answered, and requests in flight grew by 30 % from the
  middle third of the arrivals to the last."""
HOW_TO_READ_ARMS = """\
- **Δ**, **ratio**: second arm − first, second / first; **95 % of Δ**: Student's t over the differences of the repeats;
  of one or two repeats over pairs of the same request, which says nothing of another repeat. One in twenty such
  intervals excludes zero by chance.
- **≠ 0**: whether the difference is shown among all of the comparison (Benjamini-Hochberg: of those shown, 5 % are by
  chance); a dash where fewer than six pairs (of a rate: three repeats) are too few to tell, or where answers differ in
  length and a figure grows with it; **here**: in the requests of one or two repeats, which is no word on another.
- **goodput**: the highest request rate tested at which, as at every lower one tested, SLO attainment is at least 90 %,
  per device.
- **same tokens**: greedy answers to the same prompt, token by token. **The same arm against itself** is the control:
  requests that one arm was asked more than once. Another batch adds up in another order, so where the two best tokens
  are close rounding decides between them; **nats** are the difference of their log-probabilities at the first token
  that is another, from requests that were asked once more after their cell (`control.jsonl`, in no figure)."""
