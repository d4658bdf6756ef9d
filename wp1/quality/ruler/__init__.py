"""RULER's prompts for any tokenizer and length, laid out as scripts/data/synthetic of NVIDIA/RULER at c3f5e3b4 does.

What is NVIDIA's: every line and its order, the worked examples, which words are drawn from, how often they occur, where
needles may stand, and that nothing else is added; tests hold it against files that those scripts made. What is not:

- the draws, which are Python's by a seed of each prompt's own, so no prompt is one of NVIDIA's
- essays, which are verses of the King James Bible and not Paul Graham's, cut to the word
- the length: as much filling as fits, where NVIDIA's search leaves up to a tenth free. A prompt and its answer have at
  most the length asked for; less than 98 % of it only where another line, word or document would be too much
- cwe of more words than wonderwords has (8,166; far beyond 100,000 tokens) is refused, where NVIDIA has another list

Sentences are lm-eval's copy of NVIDIA's, without the typo in vt's. lm-eval's own generators differ: in vt's layout
(blanks for line ends, an example of five lines) and in cwe's (no blank before the example's answer).
"""
