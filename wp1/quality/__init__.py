"""Answers scored: tasks, their data and wording, and official scores. One file a benchmark; no engine is needed."""
