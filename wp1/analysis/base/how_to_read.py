"""What the figures of a page mean: the paragraphs at the end of reports and comparisons."""

HOW_TO_READ = """\
- **TTFT**: first output token − intended arrival. Its parts are **queue** (until scheduled), **prefill**, and the
  token's delivery from the engine to the client.
- **first decode step**: from the end of prefill, or of the handoff, to the first token produced by decoding.
- **TPOT**: (last token − first token) / (output tokens − 1); **ITL**: each gap between two tokens.
- **E2E**: last token − intended arrival.
- **client delay**: how late wp1 itself sent the request; TTFT includes it. A cell is marked if its p99 exceeds 10 ms.
- **event-loop lag**: how late timers fired in wp1's own event loop, which sends requests and receives tokens.
- No figure includes warm-up requests or engine start. Failed requests are counted but have no latencies."""
HOW_TO_READ_ONE_EACH = """\
- **TTFT**: first output token − intended arrival; **E2E**: last token − intended arrival. No figure includes warm-up
  requests or engine start."""
HOW_TO_READ_LOAD = """\
- **steady state**: an open loop starts with empty engines and ends with engines running empty. Figures therefore count
  only requests due from one median E2E after the first arrival (or after the ramp) to one median E2E before the last,
  over the same window in all arms, if at least 20 requests per repeat lie in it.
- **over-saturated**: less than 90 % of the offered rate was answered, and requests in flight grew by more than 30 %
  from the middle third of the arrivals to the last third."""
HOW_TO_READ_ARMS = """\
- **Δ**, **ratio**: second arm − first, second / first; **95 % of Δ**: the 95 % confidence interval of Δ, by Student's t
  over the differences of the repeats. With one or two repeats it is over pairs of the same request, and says nothing
  about another repeat. One in twenty such intervals excludes zero by chance.
- **≠ 0**: whether the difference is shown, after correction for all tests of the comparison (Benjamini-Hochberg: 5 % of
  those shown are due to chance). A dash: fewer than six pairs (for a rate: three repeats), or a figure that grows with
  the output while answers differ in length. **here**: shown for the requests of one or two repeats only, which says
  nothing about another.
- **goodput**: the highest tested request rate, per device, up to which every tested rate has an SLO attainment of at
  least 90 %.
- **same tokens**: greedy answers to the same prompt, compared token by token. **The same arm against itself** is the
  control: requests that one arm was asked more than once. Another batch sums in another order, so if the two best
  tokens are close, rounding decides between them. **nats** are the difference of their log-probabilities at the first
  token that differs, from requests asked once more after their cell (`control.jsonl`, in no figure)."""
